//! Hostile archives: nothing they say touches anything outside their directory.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;

use proptest::prelude::*;
use tar::EntryType;
use tempfile::TempDir;

use super::*;

/// A layer's directory beside a canary that must not change.
struct Place {
    base: TempDir,
}

impl Place {
    fn new() -> Self {
        let base = tempfile::tempdir().unwrap();
        fs::create_dir(base.path().join("layer")).unwrap();
        fs::create_dir(base.path().join("outside")).unwrap();
        fs::write(base.path().join("outside/canary"), "alive").unwrap();
        Self { base }
    }

    fn layer(&self, path: &str) -> PathBuf {
        self.base.path().join("layer").join(path)
    }

    fn unpack(&self, archive: &[u8]) -> Result<LayerReport, UnpackError> {
        let outcome = unpack_layer(archive, &self.layer(""), &Budget::new(&Limits::default()));
        self.assert_untouched();
        outcome
    }

    fn assert_untouched(&self) {
        let outside = self.base.path().join("outside");
        let names: Vec<_> = fs::read_dir(&outside)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names, ["canary"]);
        let canary = fs::metadata(outside.join("canary")).unwrap();
        assert_eq!(
            (
                fs::read_to_string(outside.join("canary")).unwrap().as_str(),
                canary.nlink()
            ),
            ("alive", 1)
        );
        assert_eq!(fs::read_dir(self.base.path()).unwrap().count(), 2);
    }
}

struct Tar(tar::Builder<Vec<u8>>);

impl Tar {
    fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn add(mut self, path: &str, kind: EntryType, link: &str, contents: &[u8]) -> Self {
        self.push(path.as_bytes(), kind, link.as_bytes(), contents, 0o755);
        self
    }

    fn file(self, path: &str, contents: &[u8]) -> Self {
        self.add(path, EntryType::Regular, "", contents)
    }

    fn push(&mut self, path: &[u8], kind: EntryType, link: &[u8], contents: &[u8], mode: u32) {
        for (long, text) in [(EntryType::GNULongName, path), (EntryType::GNULongLink, link)] {
            if text.len() > 100 {
                self.raw(b"././@LongLink", long, b"", text, 0);
            }
        }
        self.raw(
            &path[..path.len().min(100)],
            kind,
            &link[..link.len().min(100)],
            contents,
            mode,
        );
    }

    fn raw(&mut self, path: &[u8], kind: EntryType, link: &[u8], contents: &[u8], mode: u32) {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(contents.len() as u64);
        header.as_old_mut().name[..path.len()].copy_from_slice(path);
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link);
        if kind == EntryType::Char || kind == EntryType::Block {
            header.set_device_major(1).unwrap();
            header.set_device_minor(3).unwrap();
        }
        header.set_cksum();
        self.0.append(&header, contents).unwrap();
    }

    fn build(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// Owners, whiteouts and trusted attributes need root.
macro_rules! needs_root {
    () => {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: unpacking layers needs root");
            return;
        }
    };
}

#[test]
fn names_that_lead_out_are_refused() {
    needs_root!();
    for name in [
        "../outside/x",
        "a/../../outside/x",
        "..",
        "/../outside/canary",
        "a/..",
        "./../x",
    ] {
        let place = Place::new();
        let outcome = place.unpack(&Tar::new().file(name, b"evil").build());
        assert!(
            matches!(outcome, Err(UnpackError::Name { .. })),
            "{name}: {outcome:?}"
        );
    }
    let place = Place::new();
    place
        .unpack(&Tar::new().file("/etc/passwd", b"in the layer").build())
        .unwrap();
    assert_eq!(fs::read(place.layer("etc/passwd")).unwrap(), b"in the layer");
}

#[test]
fn links_are_followed_inside_only() {
    needs_root!();
    let place = Place::new();
    let outside = place.base.path().join("outside");
    let outside = outside.to_str().unwrap();
    let archive = Tar::new()
        .add("up", EntryType::Symlink, "../outside", b"")
        .add("far", EntryType::Symlink, outside, b"")
        .add("deep", EntryType::Symlink, "../../../../../../../../..", b"")
        .build();
    place.unpack(&archive).unwrap();
    // Written through: refused, or kept inside where the link leads to when the layer is the root.
    for (name, inside) in [("up/x", "outside/x"), ("far/canary", ""), ("deep/x", "x")] {
        let place = Place::new();
        let links = Tar::new()
            .add("up", EntryType::Symlink, "../outside", b"")
            .add("far", EntryType::Symlink, outside, b"")
            .add("deep", EntryType::Symlink, "../../../../../../../../..", b"")
            .add("outside/", EntryType::Directory, "", b"");
        let outcome = place.unpack(&links.file(name, b"evil").build());
        if inside.is_empty() {
            assert!(outcome.is_err(), "{name}");
        } else {
            outcome.unwrap();
            assert_eq!(fs::read(place.layer(inside)).unwrap(), b"evil", "{name}");
        }
    }
    // A link in the place of a file is replaced, not written through.
    let place = Place::new();
    let archive = Tar::new()
        .add("f", EntryType::Symlink, &format!("{outside}/canary"), b"")
        .file("f", b"new")
        .build();
    place.unpack(&archive).unwrap();
    assert_eq!(fs::read(place.layer("f")).unwrap(), b"new");
    // And so is a link in the place of a directory.
    let place = Place::new();
    let archive = Tar::new()
        .add("d", EntryType::Symlink, outside, b"")
        .add("d/", EntryType::Directory, "", b"")
        .file("d/canary", b"new")
        .build();
    place.unpack(&archive).unwrap();
    assert_eq!(fs::read(place.layer("d/canary")).unwrap(), b"new");
    // Links in a circle end.
    let place = Place::new();
    let archive = Tar::new()
        .add("a", EntryType::Symlink, "b", b"")
        .add("b", EntryType::Symlink, "a", b"")
        .file("a/x", b"")
        .build();
    assert!(place.unpack(&archive).is_err());
}

#[test]
fn a_directory_replaced_under_the_cached_parent_is_noticed() {
    needs_root!();
    let place = Place::new();
    let archive = Tar::new()
        .add("real/", EntryType::Directory, "", b"")
        .add("d", EntryType::Symlink, "real", b"")
        .file("d/one", b"")
        .add("d", EntryType::Directory, "", b"")
        .file("d/two", b"")
        .file("real", b"a file now")
        .file("d/three", b"")
        .build();
    place.unpack(&archive).unwrap();
    assert!(
        place.layer("d/two").exists() && place.layer("d/three").exists() && place.layer("real").is_file()
    );
}

#[test]
fn hard_links_stay_inside() {
    needs_root!();
    let place = Place::new();
    let outside = place.base.path().join("outside/canary");
    for target in [
        "../outside/canary",
        outside.to_str().unwrap(),
        "missing",
        "dir",
        "escape/canary",
        ".",
        "dev",
    ] {
        let place = Place::new();
        let archive = Tar::new()
            .add("dir/", EntryType::Directory, "", b"")
            .file(".wh.dev", b"")
            .add("escape", EntryType::Symlink, "../outside", b"")
            .add("link", EntryType::Link, target, b"")
            .build();
        assert!(place.unpack(&archive).is_err(), "{target}");
    }
    let archive = Tar::new()
        .file("bin/one", b"same")
        .add("two", EntryType::Link, "./bin/one", b"")
        .add("two", EntryType::Link, "/bin/one", b"")
        .add("bin/one", EntryType::Link, "bin/one", b"")
        .build();
    place.unpack(&archive).unwrap();
    let (one, two) = (
        fs::metadata(place.layer("bin/one")).unwrap(),
        fs::metadata(place.layer("two")).unwrap(),
    );
    assert_eq!((one.ino(), one.nlink()), (two.ino(), 2));
}

#[test]
fn devices_are_left_out_and_fifos_made() {
    needs_root!();
    let place = Place::new();
    let archive = Tar::new()
        .add("dev/null", EntryType::Char, "", b"")
        .add("dev/sda", EntryType::Block, "", b"")
        .add("run/pipe", EntryType::Fifo, "", b"")
        .build();
    let report = place.unpack(&archive).unwrap();
    assert_eq!((report.skipped_devices, report.entries), (2, 3));
    assert!(!place.layer("dev/null").exists() && !place.layer("dev/sda").exists());
    assert!(
        fs::symlink_metadata(place.layer("run/pipe"))
            .unwrap()
            .file_type()
            .is_fifo()
    );
}

#[test]
fn whiteouts_hide_and_their_tricks_do_not_work() {
    needs_root!();
    let is_whiteout = |path: &Path| {
        fs::symlink_metadata(path).is_ok_and(|stat| stat.file_type().is_char_device() && stat.rdev() == 0)
    };
    let is_opaque = |path: &Path| {
        let mut value = [0_u8; 4];
        rustix::fs::getxattr(path, "trusted.overlay.opaque", &mut value[..]) == Ok(1) && value[0] == b'y'
    };
    let place = Place::new();
    let archive = Tar::new()
        .file("a/.wh.gone", b"")
        .file("b/.wh..wh..opq", b"")
        .file("c/new", b"")
        .file(".wh.c", b"")
        .file(".wh.d", b"")
        .add("d/", EntryType::Directory, "", b"")
        .file("e", b"here")
        .file(".wh.e", b"")
        .file(".wh..wh.plnk", b"")
        .build();
    let report = place.unpack(&archive).unwrap();
    assert!(is_whiteout(&place.layer("a/gone")));
    assert!(is_opaque(&place.layer("b")) && is_opaque(&place.layer("c")) && is_opaque(&place.layer("d")));
    assert!(place.layer("c/new").exists());
    assert_eq!(fs::read(place.layer("e")).unwrap(), b"here");
    assert!(!report.opaque_root && !place.layer(".wh..wh.plnk").exists());

    let place = Place::new();
    assert!(
        place
            .unpack(&Tar::new().file(".wh..wh..opq", b"").file("x", b"").build())
            .unwrap()
            .opaque_root
    );
    for name in [".wh.", ".wh...", ".wh..", ".wh.a/b", "x/.wh.y/z"] {
        let place = Place::new();
        let outcome = place.unpack(&Tar::new().file(name, b"").build());
        assert!(
            matches!(outcome, Err(UnpackError::Name { .. })),
            "{name}: {outcome:?}"
        );
    }
}

#[test]
fn modes_owners_times_and_attributes_are_kept() {
    needs_root!();
    let place = Place::new();
    let mut archive = Tar::new();
    archive.push(b"bin/su", EntryType::Regular, b"", b"x", 0o4755);
    let mut builder = archive.0;
    // `cap_net_bind_service=ep` in the kernel's second revision.
    let capability = [1_u8, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let records: [(&str, &[u8]); 6] = [
        ("SCHILY.xattr.security.capability", &capability),
        ("SCHILY.xattr.user.note", b"hi"),
        ("SCHILY.xattr.user.overlay.opaque", b"y"),
        ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ("uid", b"1234"),
        ("mtime", b"1600000000.5"),
    ];
    builder.append_pax_extensions(records).unwrap();
    let mut tar = Tar(builder);
    tar.push(b"bin/ping", EntryType::Regular, b"", b"x", 0o755);
    place.unpack(&tar.build()).unwrap();
    let su = fs::metadata(place.layer("bin/su")).unwrap();
    assert_eq!(
        (su.permissions().mode() & 0o7777, su.mtime()),
        (0o4755, 1_700_000_000)
    );
    let ping = place.layer("bin/ping");
    let stat = fs::metadata(&ping).unwrap();
    assert_eq!(
        (stat.uid(), stat.mtime(), stat.mtime_nsec()),
        (1234, 1_600_000_000, 500_000_000)
    );
    let attribute = |name: &str| {
        let mut value = [0_u8; 64];
        rustix::fs::getxattr(&ping, name, &mut value[..])
            .ok()
            .map(|length| value[..length].to_vec())
    };
    assert_eq!(attribute("security.capability").as_deref(), Some(&capability[..]));
    assert_eq!(attribute("user.note").as_deref(), Some(&b"hi"[..]));
    assert_eq!(
        (
            attribute("user.overlay.opaque"),
            attribute("trusted.overlay.opaque")
        ),
        (None, None)
    );
}

#[test]
fn long_and_impossible_names() {
    needs_root!();
    let place = Place::new();
    let long = format!("{}/file", ["d".repeat(200), "e".repeat(255)].join("/"));
    place.unpack(&Tar::new().file(&long, b"x").build()).unwrap();
    assert!(place.layer(&long).exists());
    for name in [
        "x".repeat(256),
        format!("{}x", "d/".repeat(2100)),
        "nul\0l".into(),
    ] {
        let place = Place::new();
        let mut tar = Tar::new();
        // Only a long name can hold a NUL in the middle.
        tar.raw(b"././@LongLink", EntryType::GNULongName, b"", name.as_bytes(), 0);
        tar.raw(b"x", EntryType::Regular, b"", b"", 0o644);
        assert!(
            matches!(place.unpack(&tar.build()), Err(UnpackError::Name { .. })),
            "{}",
            name.len()
        );
    }
}

#[test]
fn a_sparse_file_is_written_with_holes() {
    needs_root!();
    let place = Place::new();
    let mut header = tar::Header::new_gnu();
    header.set_path("sparse").unwrap();
    header.set_entry_type(EntryType::GNUSparse);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(3);
    let fields = header.as_gnu_mut().unwrap();
    fields.set_real_size(64 << 20);
    fields.sparse[0].set_offset(32 << 20);
    fields.sparse[0].set_length(3);
    header.set_cksum();
    let mut builder = tar::Builder::new(Vec::new());
    builder.append(&header, &b"abc"[..]).unwrap();
    place.unpack(&builder.into_inner().unwrap()).unwrap();
    let stat = fs::metadata(place.layer("sparse")).unwrap();
    assert_eq!(stat.len(), 64 << 20);
    assert!(stat.blocks() * 512 < 1 << 20, "{} blocks", stat.blocks());
    assert_eq!(
        &fs::read(place.layer("sparse")).unwrap()[32 << 20..(32 << 20) + 4],
        b"abc\0"
    );
}

#[test]
fn bombs_end_at_the_budget() {
    needs_root!();
    let limits = Limits {
        image_unpacked_bytes: 1 << 20,
        image_entries: 100,
        ..Limits::default()
    };
    let place = Place::new();
    let zeros = Tar::new().file("zeros", &vec![0; 64 << 20]).build();
    let bomb = zstd::encode_all(&zeros[..], 1).unwrap();
    assert!(bomb.len() < 100_000);
    let outcome = unpack_layer(&bomb[..], &place.layer(""), &Budget::new(&limits));
    assert!(
        matches!(outcome, Err(UnpackError::Budget { what: "bytes", .. })),
        "{outcome:?}"
    );
    let mut many = Tar::new();
    for index in 0..200 {
        many.push(
            format!("f{index}").as_bytes(),
            EntryType::Regular,
            b"",
            b"",
            0o644,
        );
    }
    let outcome = unpack_layer(&many.build()[..], &place.layer(""), &Budget::new(&limits));
    assert!(
        matches!(outcome, Err(UnpackError::Budget { what: "files", .. })),
        "{outcome:?}"
    );
    // What follows the end mark counts as well.
    let trailing = [Tar::new().file("x", b"").build(), vec![0; 2 << 20]].concat();
    let outcome = unpack_layer(&trailing[..], &place.layer(""), &Budget::new(&limits));
    assert!(matches!(outcome, Err(UnpackError::Budget { .. })), "{outcome:?}");
}

#[test]
fn directories_nested_through_links_are_replaced_without_recursion() {
    needs_root!();
    let place = Place::new();
    let mut tar = Tar::new();
    let step = ["d"; 60].join("/");
    let mut at = step.clone();
    for index in 0..6 {
        tar.push(format!("{at}/f").as_bytes(), EntryType::Regular, b"", b"", 0o644);
        tar.push(
            format!("l{index}").as_bytes(),
            EntryType::Symlink,
            at.as_bytes(),
            b"",
            0o777,
        );
        at = format!("l{index}/{step}");
    }
    tar.push(b"d", EntryType::Regular, b"", b"a file", 0o644);
    place.unpack(&tar.build()).unwrap();
    assert!(place.layer("d").is_file());
}

fn any_name() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        12 => "[ab]",
        1 => Just("..".to_owned()),
        1 => Just(".".to_owned()),
        1 => Just("".to_owned()),
        1 => Just(".wh.a".to_owned()),
        1 => Just(".wh..wh..opq".to_owned()),
        1 => Just("outside".to_owned()),
        1 => Just("canary".to_owned()),
    ];
    proptest::collection::vec(part, 1..4).prop_map(|parts| parts.join("/").into_bytes())
}

/// Where links point; `@` stands for the absolute path of the directory outside.
fn any_target() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        3 => any_name(),
        1 => Just(b"@".to_vec()),
        1 => Just(b"@/canary".to_vec()),
        1 => Just(b"../outside".to_vec()),
        1 => Just(b"../outside/canary".to_vec()),
        1 => Just(b"/".to_vec()),
    ]
}

fn any_kind() -> impl Strategy<Value = EntryType> {
    prop_oneof![
        Just(EntryType::Regular),
        Just(EntryType::Directory),
        Just(EntryType::Symlink),
        Just(EntryType::Link),
        Just(EntryType::Fifo),
        Just(EntryType::Char),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever entries in whatever order, with links in every direction: nothing outside changes.
    #[test]
    fn arbitrary_archives_stay_inside(entries in proptest::collection::vec((any_name(), any_kind(), any_target(), 0_u32..0o10000), 0..25)) {
        if rustix::process::geteuid().is_root() {
            let place = Place::new();
            let outside = place.base.path().join("outside");
            let outside = outside.to_str().unwrap().as_bytes();
            // One archive of all, then each entry as an archive of its own in the same directory: an entry that
            // is refused ends its archive, and the rest shall have its turn.
            let mut whole = Tar::new();
            let mut single = Vec::new();
            for (name, kind, target, mode) in &entries {
                let target = match target.strip_prefix(b"@") {
                    Some(rest) => [outside, rest].concat(),
                    None => target.clone(),
                };
                let data: &[u8] = if *kind == EntryType::Regular { b"data" } else { b"" };
                whole.push(name, *kind, &target, data, *mode);
                let mut tar = Tar::new();
                tar.push(name, *kind, &target, data, *mode);
                single.push(tar.build());
            }
            let _ = place.unpack(&whole.build());
            for archive in single {
                let _ = place.unpack(&archive);
            }
        }
    }
}

#[test]
fn links_upwards_are_followed_while_others_rename() {
    let place = Place::new();
    fs::create_dir_all(place.layer("a/b")).unwrap();
    std::os::unix::fs::symlink("a/../a/b", place.layer("link")).unwrap();
    let directory = OwnedFd::from(fs::File::open(place.layer("")).unwrap());
    let root = root::Root::new(directory);
    let path = root::components(b"link").unwrap();
    let done = AtomicBool::new(false);
    let (one, two) = (place.base.path().join("one"), place.base.path().join("two"));
    fs::write(&one, "").unwrap();
    let failed = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                fs::rename(&one, &two).unwrap();
                fs::rename(&two, &one).unwrap();
            }
        });
        let failed: Vec<_> = (0..50_000)
            .filter_map(|_| root.existing_directory(&path).err())
            .take(1)
            .collect();
        done.store(true, Ordering::Relaxed);
        failed
    });
    assert!(failed.is_empty(), "{failed:?}");
}

#[test]
fn the_disk_is_asked_for_room_again_and_again() {
    let place = Place::new();
    let limits = Limits {
        min_free_bytes: u64::MAX,
        ..Limits::default()
    };
    let floor = Arc::new(Floor::new(place.base.path(), &limits).unwrap());
    assert!(floor.check().is_ok(), "half of what is free now is enough");
    let budget = Budget::new(&Limits::default()).above(Arc::new(floor.raised()));
    let mut stream = Metered {
        inner: io::repeat(0).take(4 * CHECK_BYTES),
        hasher: None,
        bytes: 0,
        unchecked: 0,
        budget: &budget,
        refused: None,
    };
    io::copy(&mut stream, &mut io::sink()).unwrap_err();
    assert!(stream.bytes < CHECK_BYTES && stream.bytes > CHECK_BYTES / 2);
    assert!(
        matches!(&stream.refused, Some(UnpackError::Io { source, .. }) if source.kind() == io::ErrorKind::StorageFull)
    );
}
