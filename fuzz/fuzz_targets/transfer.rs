//! A stream of files from a sandbox that nobody trusts, or to one: nothing outside its directory may be touched, and what was
//! written is written again the same way.

#![no_main]

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::Path,
};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;

/// What a stream begins with.
const MAGIC: &[u8; 8] = b"tramcp1\n";

/// Pieces that names are made of, beside what the fuzzer thinks of.
const PIECES: [&[u8]; 9] = [
    b"a", b"b", b"top", b"..", b".", b"", b"canary", b"outside", b"link",
];

#[derive(Debug, Arbitrary)]
enum Name {
    Pieces { absolute: bool, pieces: Vec<u8> },
    Outside,
    Bytes(Vec<u8>),
}

#[derive(Debug, Arbitrary)]
enum Entry {
    Directory(u16, Name),
    File(u16, Name, Vec<Vec<u8>>),
    Link(Name, Name),
    LeftOut(Name, String),
    GivesUp(String),
}

#[derive(Debug, Arbitrary)]
enum Stream {
    Bytes(Vec<u8>),
    Entries(Vec<Entry>),
}

fuzz_target!(|stream: Stream| {
    let world = tempfile::tempdir().expect("a temporary directory");
    let (place, outside) = (world.path().join("place"), world.path().join("outside"));
    let canary = world.path().join("canary");
    fs::create_dir(&place).expect("a directory");
    fs::create_dir(&outside).expect("a directory");
    fs::write(&canary, b"untouched").expect("a file");
    fs::set_permissions(&canary, fs::Permissions::from_mode(0o640)).expect("a mode");
    symlink(&canary, outside.join("link")).expect("a link");
    let before = picture(world.path());

    let bytes = match stream {
        Stream::Bytes(bytes) => bytes,
        Stream::Entries(entries) => written(&entries, &canary),
    };
    let unpacked = tram_transfer::unpack(&mut bytes.as_slice(), &place);
    assert_eq!(
        picture(world.path()),
        before,
        "something outside the directory changed"
    );
    if unpacked.is_ok() {
        let mut packed = Vec::new();
        let there = tram_transfer::pack(&place, &mut packed).expect("what was written can be read");
        let again = world.path().join("again");
        let summary =
            tram_transfer::unpack(&mut packed.as_slice(), &again).expect("what was packed is a stream");
        assert_eq!((summary.files, summary.bytes), (there.files, there.bytes));
    }
    // Directories that their owner may not enter go, too.
    open(world.path());
});

fn open(directory: &Path) {
    let _set = fs::set_permissions(directory, fs::Permissions::from_mode(0o700));
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            open(&entry.path());
        }
    }
}

/// Everything that could show a touch, of all that lies beside the directory.
fn picture(world: &Path) -> Vec<String> {
    let mut seen = Vec::new();
    for place in ["", "outside"] {
        let mut names: Vec<_> = fs::read_dir(world.join(place))
            .expect("a directory")
            .map(|entry| entry.expect("an entry").path())
            .collect();
        names.sort();
        for path in names {
            let meta = fs::symlink_metadata(&path).expect("it is there");
            let contents = if meta.is_file() {
                fs::read(&path).expect("readable")
            } else {
                Vec::new()
            };
            // The directory's own times change with what is in it.
            let changed = if path.ends_with("place") {
                0
            } else {
                meta.ctime_nsec()
            };
            seen.push(format!(
                "{} {:o} {} {changed} {contents:?}",
                path.display(),
                meta.mode(),
                meta.nlink().min(2)
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
            let pieces: Vec<&[u8]> = pieces
                .iter()
                .map(|piece| PIECES[usize::from(*piece) % PIECES.len()])
                .collect();
            [if *absolute { &b"/"[..] } else { b"" }, &pieces.join(&b'/')].concat()
        }
    }
}

/// A stream of these entries (crates/transfer).
fn written(entries: &[Entry], canary: &Path) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    let put = |out: &mut Vec<u8>, bytes: &[u8]| {
        let bytes = &bytes[..bytes.len().min(usize::from(u16::MAX))];
        out.extend_from_slice(&(bytes.len() as u16).to_be_bytes());
        out.extend_from_slice(bytes);
    };
    for entry in entries {
        match entry {
            Entry::Directory(mode, path) => {
                out.push(b'd');
                out.extend_from_slice(&u32::from(*mode).to_be_bytes());
                put(&mut out, &name(path, canary));
            }
            Entry::File(mode, path, chunks) => {
                out.push(b'f');
                out.extend_from_slice(&u32::from(*mode).to_be_bytes());
                put(&mut out, &name(path, canary));
                for chunk in chunks.iter().filter(|chunk| !chunk.is_empty()) {
                    out.extend_from_slice(&(chunk.len() as u32).to_be_bytes());
                    out.extend_from_slice(chunk);
                }
                out.extend_from_slice(&[0; 4]);
            }
            Entry::Link(path, target) => {
                out.push(b'l');
                put(&mut out, &name(path, canary));
                put(&mut out, &name(target, canary));
            }
            Entry::LeftOut(path, reason) => {
                out.push(b'x');
                put(&mut out, &name(path, canary));
                put(&mut out, reason.as_bytes());
            }
            Entry::GivesUp(reason) => {
                out.push(b'a');
                put(&mut out, reason.as_bytes());
            }
        }
    }
    out.push(b'e');
    out
}
