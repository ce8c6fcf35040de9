//! A layer of an image, unpacked as root: nothing outside its directory may be touched, whatever the archive says.
//!
//! Half of the inputs are taken as the archive's bytes; the other half describe an archive, since hardly any random
//! bytes carry the check sums of a tape archive.

#![no_main]

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::Path,
};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use tram_image::{Limits, unpack};

/// Enough for every path through the code, and little enough for many runs a second.
const LIMITS: Limits = Limits {
    image_compressed_bytes: 1 << 20,
    image_unpacked_bytes: 1 << 20,
    image_entries: 64,
    min_free_bytes: 0,
};

/// Pieces that names are made of, beside what the fuzzer thinks of.
const PIECES: [&[u8]; 12] = [
    b"a",
    b"b",
    b"c",
    b"..",
    b".",
    b"",
    b".wh.a",
    b".wh..wh..opq",
    b"canary",
    b"outside",
    b"link",
    b".wh...",
];

#[derive(Debug, Arbitrary)]
enum Name {
    Pieces { absolute: bool, pieces: Vec<u8> },
    Outside,
    Bytes(Vec<u8>),
}

#[derive(Debug, Arbitrary)]
struct Entry {
    kind: u8,
    name: Name,
    target: Name,
    mode: u16,
    contents: Vec<u8>,
    extended: Vec<(String, Vec<u8>)>,
}

#[derive(Debug, Arbitrary)]
enum Layer {
    Bytes(Vec<u8>),
    Entries(Vec<Entry>),
}

fuzz_target!(|layer: Layer| {
    let world = tempfile::tempdir().expect("a temporary directory");
    let root = world.path().join("layers/one");
    let outside = world.path().join("outside");
    let canary = world.path().join("canary");
    fs::create_dir_all(&root).expect("a directory");
    fs::create_dir(&outside).expect("a directory");
    fs::write(&canary, b"untouched").expect("a file");
    fs::set_permissions(&canary, fs::Permissions::from_mode(0o640)).expect("a mode");
    symlink(&canary, outside.join("link")).expect("a link");
    let before = picture(world.path());

    let archive = match layer {
        Layer::Bytes(bytes) => bytes,
        Layer::Entries(entries) => tape(&entries, &canary),
    };
    let unpacked = unpack::unpack_layer(archive.as_slice(), &root, &unpack::Budget::new(&LIMITS));
    if let Ok(report) = unpacked {
        assert!(report.entries <= LIMITS.image_entries);
        assert!(report.archive_bytes <= LIMITS.image_unpacked_bytes);
    }
    assert_eq!(
        picture(world.path()),
        before,
        "something outside the layer changed"
    );
});

/// Everything that could show a touch, of all that lies beside the layer.
fn picture(world: &Path) -> Vec<String> {
    let mut seen = Vec::new();
    for place in ["", "layers", "outside"] {
        let mut names: Vec<_> = fs::read_dir(world.join(place))
            .expect("a directory")
            .map(|entry| entry.expect("an entry").path())
            .collect();
        names.sort();
        for path in names {
            let meta = fs::symlink_metadata(&path).expect("it is there");
            let (own, contents) = if meta.is_file() {
                // A hard link from inside shows in the number of links.
                (meta.nlink(), fs::read(&path).expect("readable"))
            } else {
                (0, Vec::new())
            };
            let layer = path.ends_with("one");
            seen.push(format!(
                "{} {:o} {} {} {} {} {contents:?}",
                path.display(),
                // The layer's own root may be described by the archive.
                if layer { 0 } else { meta.mode() },
                if layer { 0 } else { meta.uid() },
                if layer { 0 } else { meta.mtime_nsec() },
                own,
                if layer { 0 } else { meta.ctime_nsec() },
            ));
        }
    }
    seen
}

fn name(of: &Name, canary: &Path) -> Vec<u8> {
    match of {
        Name::Outside => canary.as_os_str().as_encoded_bytes().to_vec(),
        Name::Bytes(bytes) => bytes.clone(),
        Name::Pieces { absolute, pieces } => {
            let mut path = if *absolute { b"/".to_vec() } else { Vec::new() };
            for (index, piece) in pieces.iter().enumerate() {
                if index > 0 {
                    path.push(b'/');
                }
                path.extend_from_slice(PIECES[usize::from(*piece) % PIECES.len()]);
            }
            path
        }
    }
}

/// A tape archive (ustar, with GNU's long names and POSIX's extended records) of these entries.
fn tape(entries: &[Entry], canary: &Path) -> Vec<u8> {
    let mut out = Vec::new();
    for entry in entries {
        let (path, target) = (name(&entry.name, canary), name(&entry.target, canary));
        if path.len() > 100 {
            record(
                &mut out,
                b"././@LongLink",
                b"",
                b'L',
                0o644,
                &[&path[..], b"\0"].concat(),
            );
        }
        if target.len() > 100 {
            record(
                &mut out,
                b"././@LongLink",
                b"",
                b'K',
                0o644,
                &[&target[..], b"\0"].concat(),
            );
        }
        if !entry.extended.is_empty() {
            let mut records = Vec::new();
            for (key, value) in &entry.extended {
                let body = key.len() + value.len() + 3;
                let mut length = body + 1;
                while length != body + length.to_string().len() {
                    length = body + length.to_string().len();
                }
                records.extend_from_slice(format!("{length} {key}=").as_bytes());
                records.extend_from_slice(value);
                records.push(b'\n');
            }
            record(&mut out, b"extended", b"", b'x', 0o644, &records);
        }
        let kind = b"01234567gLKxS\0"[usize::from(entry.kind) % 14];
        record(&mut out, &path, &target, kind, entry.mode, &entry.contents);
    }
    out.extend_from_slice(&[0; 1024]);
    out
}

fn record(out: &mut Vec<u8>, path: &[u8], target: &[u8], kind: u8, mode: u16, contents: &[u8]) {
    let mut header = [0u8; 512];
    let put = |header: &mut [u8; 512], at: usize, bytes: &[u8], most: usize| {
        let length = bytes.len().min(most);
        header[at..at + length].copy_from_slice(&bytes[..length]);
    };
    put(&mut header, 0, path, 100);
    put(&mut header, 100, format!("{mode:07o}").as_bytes(), 7);
    put(&mut header, 108, b"0000000", 7);
    put(&mut header, 116, b"0000000", 7);
    put(
        &mut header,
        124,
        format!("{:011o}", contents.len()).as_bytes(),
        11,
    );
    put(&mut header, 136, b"00000000000", 11);
    put(&mut header, 148, b"        ", 8);
    header[156] = kind;
    put(&mut header, 157, target, 100);
    put(&mut header, 257, b"ustar\x0000", 8);
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    put(&mut header, 148, format!("{sum:06o}\0 ").as_bytes(), 8);
    out.extend_from_slice(&header);
    out.extend_from_slice(contents);
    out.resize(out.len().next_multiple_of(512), 0);
}
