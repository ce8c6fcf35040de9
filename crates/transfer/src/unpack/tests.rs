//! Trees come out as they went in; crafted streams do no harm.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;

use proptest::prelude::*;

use super::*;
use crate::pack;

/// A stream by hand.
#[derive(Default)]
struct Crafted(Vec<u8>);

impl Crafted {
    fn new() -> Self {
        Self(b"tramcp1\n".to_vec())
    }

    fn text(mut self, text: &[u8]) -> Self {
        self.0.extend(u16::try_from(text.len()).unwrap().to_be_bytes());
        self.0.extend(text);
        self
    }

    fn kind(mut self, kind: u8) -> Self {
        self.0.push(kind);
        self
    }

    fn number(mut self, number: u32) -> Self {
        self.0.extend(number.to_be_bytes());
        self
    }

    fn directory(self, path: &str) -> Self {
        self.kind(b'd').number(0o755).text(path.as_bytes())
    }

    fn file(self, path: &str, content: &str) -> Self {
        let mut begun = self
            .kind(b'f')
            .number(0o644)
            .text(path.as_bytes())
            .number(u32::try_from(content.len()).unwrap());
        begun.0.extend(content.as_bytes());
        begun.number(0)
    }

    fn link(self, path: &str, target: &str) -> Self {
        self.kind(b'l').text(path.as_bytes()).text(target.as_bytes())
    }

    fn unpack(self, to: &Path) -> io::Result<Summary> {
        unpack(&mut self.kind(b'e').0.as_slice(), to)
    }
}

/// A directory to unpack into, within another that must stay as it is.
fn place() -> (tempfile::TempDir, PathBuf) {
    let outer = tempfile::tempdir().unwrap();
    let inner = outer.path().join("into");
    fs::create_dir(&inner).unwrap();
    fs::write(outer.path().join("precious"), "mine").unwrap();
    (outer, inner)
}

fn is_untouched(outer: &tempfile::TempDir) -> bool {
    let mut names: Vec<_> = fs::read_dir(outer.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    names == ["into", "precious"] && fs::read(outer.path().join("precious")).unwrap() == b"mine"
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    for path in ["../x", "a/../../x", "/etc/x", "..", ".", "", "a/../x", "a\0b"] {
        let (outer, inner) = place();
        let error = Crafted::new().directory("a").file(path, "evil").unpack(&inner);
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::InvalidData, "{path:?}");
        let error = Crafted::new().directory(path).unpack(&inner);
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::InvalidData, "{path:?}");
        assert!(is_untouched(&outer), "{path:?}");
    }
}

#[test]
fn nothing_is_written_through_a_link() {
    let (outer, inner) = place();
    // One that leads out is not made at all, and so there is no directory to write into.
    let error = Crafted::new()
        .directory("a")
        .link("a/out", "../..")
        .file("a/out/x", "evil")
        .unpack(&inner);
    assert_eq!(error.unwrap_err().kind(), io::ErrorKind::NotFound);
    // One that was there before is not followed.
    fs::remove_dir_all(inner.join("a")).unwrap();
    fs::create_dir(inner.join("a")).unwrap();
    symlink(outer.path(), inner.join("a/out")).unwrap();
    for stream in [
        Crafted::new().directory("a").file("a/out/x", "evil"),
        Crafted::new().directory("a").directory("a/out"),
        Crafted::new().directory("a").file("a/out/precious", "evil"),
    ] {
        let error = stream.unpack(&inner).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotADirectory, "{error}");
    }
    // A file takes the place of a link, not of where it leads.
    symlink(outer.path().join("precious"), inner.join("a/file")).unwrap();
    Crafted::new()
        .directory("a")
        .file("a/file", "new")
        .unpack(&inner)
        .unwrap();
    assert!(inner.join("a/file").symlink_metadata().unwrap().is_file());
    assert!(is_untouched(&outer));
}

#[test]
fn links_that_lead_out_are_left_out_and_named() {
    for (path, target) in [
        ("a/l", "/etc/passwd"),
        ("a/l", "../precious"),
        ("a/l", "b/../../.."),
        ("a/b/l", "../../x"),
        ("a/l", ""),
        ("l", "a"),
    ] {
        let (outer, inner) = place();
        let stream = Crafted::new().directory("a").directory("a/b").link(path, target);
        let summary = stream.unpack(&inner).unwrap();
        assert_eq!(
            (summary.left_out, summary.named.len()),
            (1, 1),
            "{path} -> {target}"
        );
        assert!(inner.join(path).symlink_metadata().is_err(), "{path} -> {target}");
        assert!(is_untouched(&outer));
    }
}

#[test]
fn lengths_have_limits_and_an_end_that_comes_early_is_an_error() {
    let (_outer, inner) = place();
    let file = || Crafted::new().kind(b'f').number(0o644).text(b"f");
    for stream in [
        file().number(u32::MAX - 1),
        file().number(1 << 20),
        file().number(5),
        Crafted::new().kind(b'b').number(0o644).text(b"device"),
        Crafted::new().kind(b'd').number(0o755).kind(0xff).kind(0xff),
        Crafted::default(),
        Crafted::new(),
    ] {
        let error = unpack(&mut stream.0.as_slice(), &inner).unwrap_err();
        assert!(
            matches!(
                error.kind(),
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
            ),
            "{error}"
        );
        assert_eq!(
            fs::read_dir(&inner).unwrap().count(),
            0,
            "no half of a file is left"
        );
    }
}

#[test]
fn what_the_sender_met_is_told_and_leaves_no_half_of_a_file() {
    let (_outer, inner) = place();
    let mut stream = Crafted::new().kind(b'f').number(0o644).text(b"f").number(3);
    stream.0.extend(b"abc");
    let stream = stream.number(u32::MAX).text(b"/x: Input/output error");
    let error = unpack(&mut stream.0.as_slice(), &inner).unwrap_err();
    assert!(error.to_string().contains("/x: Input/output error"), "{error}");
    assert_eq!(fs::read_dir(&inner).unwrap().count(), 0);
}

#[test]
fn programs_do_not_come_to_run_as_their_owner() {
    let (_outer, inner) = place();
    let stream = Crafted::new().kind(b'f').number(0o6755).text(b"f").number(0);
    stream.unpack(&inner).unwrap();
    assert_eq!(inner.join("f").metadata().unwrap().mode() & 0o7777, 0o755);
}

fn packed(path: &Path) -> Vec<u8> {
    let mut stream = Vec::new();
    pack(path, &mut stream).unwrap();
    stream
}

#[test]
fn a_tree_comes_out_as_it_went_in() {
    let (outer, inner) = place();
    let tree = outer.path().join("tree");
    fs::create_dir_all(tree.join("sub/deep")).unwrap();
    fs::write(
        tree.join("sub/data"),
        (0..=255).cycle().take(200_000).collect::<Vec<u8>>(),
    )
    .unwrap();
    fs::write(tree.join("empty"), "").unwrap();
    fs::set_permissions(tree.join("empty"), fs::Permissions::from_mode(0o751)).unwrap();
    symlink("sub/data", tree.join("link")).unwrap();
    symlink("../empty", tree.join("sub/up")).unwrap();
    fs::set_permissions(tree.join("sub/deep"), fs::Permissions::from_mode(0o500)).unwrap();
    rustix::fs::mkfifoat(CWD, tree.join("pipe"), permissions(0o600)).unwrap();
    let stream = packed(&tree);
    // Into a directory, under a new name, over what is there.
    for (to, at) in [(".", "tree"), ("new/name", "new/name"), (".", "tree")] {
        let summary = unpack(&mut stream.as_slice(), &inner.join(to)).unwrap();
        assert_eq!((summary.files, summary.bytes, summary.left_out), (2, 200_000, 1));
        let copy = inner.join(at);
        assert_eq!(
            fs::read(copy.join("link")).unwrap(),
            fs::read(tree.join("sub/data")).unwrap()
        );
        assert_eq!(fs::read_link(copy.join("sub/up")).unwrap(), Path::new("../empty"));
        assert_eq!(copy.join("empty").metadata().unwrap().mode() & 0o7777, 0o751);
        assert_eq!(copy.join("sub/deep").metadata().unwrap().mode() & 0o7777, 0o500);
        assert!(!copy.join("pipe").exists());
    }
}

#[test]
fn a_file_goes_into_a_directory_or_gets_another_name() {
    let (outer, inner) = place();
    let stream = packed(&outer.path().join("precious"));
    unpack(&mut stream.as_slice(), &inner).unwrap();
    unpack(&mut stream.as_slice(), &inner.join("other")).unwrap();
    unpack(&mut stream.as_slice(), &inner.join("made/")).unwrap();
    for at in ["precious", "other", "made/precious"] {
        assert_eq!(fs::read(inner.join(at)).unwrap(), b"mine", "{at}");
    }
    // A directory that has the name stays.
    fs::create_dir(inner.join("taken")).unwrap();
    fs::create_dir(inner.join("taken/precious")).unwrap();
    assert!(unpack(&mut stream.as_slice(), &inner.join("taken")).is_err());
    assert_eq!(fs::read_dir(inner.join("taken")).unwrap().count(), 1);
}

#[test]
fn what_cannot_be_read_is_told_to_both_sides() {
    let (_outer, inner) = place();
    let mut stream = Vec::new();
    let error = pack(&inner.join("missing"), &mut stream).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
    let told = unpack(&mut stream.as_slice(), &inner).unwrap_err();
    assert_eq!(told.to_string(), error.to_string());
}

proptest! {
    /// Whatever comes, nothing outside is touched and nothing panics.
    #[test]
    fn no_stream_does_harm(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let (outer, inner) = place();
        let mut stream = b"tramcp1\n".to_vec();
        stream.extend(&bytes);
        let _ = unpack(&mut stream.as_slice(), &inner);
        prop_assert!(is_untouched(&outer));
    }

    /// Links of any shape lead nowhere outside, also through one another.
    #[test]
    fn no_link_leads_out(links in proptest::collection::vec(("[ab]", "(\\.\\./|\\./|[abl]/){0,4}[abl.]{1,2}"), 1..6)) {
        let (outer, inner) = place();
        let mut stream = Crafted::new().directory("top").directory("top/a").directory("top/a/b").directory("top/b");
        for (directory, target) in &links {
            stream = stream.link(&format!("top/{directory}/l"), target);
        }
        stream.unpack(&inner).unwrap();
        let inner = inner.canonicalize().unwrap();
        for path in ["top/a/l", "top/b/l"] {
            if let Ok(leads) = inner.join(path).canonicalize() {
                prop_assert!(leads.starts_with(inner.join("top")), "{path} leads to {}", leads.display());
            }
        }
        prop_assert!(is_untouched(&outer));
    }
}
