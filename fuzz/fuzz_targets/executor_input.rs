//! What an executor reads beside requests: settings, files of an earlier life or of whoever made a copy, what processes are
//! called and say, and what clients put into queries, bodies and messages.

#![no_main]

use std::path::PathBuf;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;
use tram_executor::fuzzing;

/// More than one piece of output holds.
const LONG_BYTES: usize = 80 << 10;

static DIRECTORY: OnceLock<TempDir> = OnceLock::new();

/// A file that is not there yet.
fn new_file() -> PathBuf {
    let directory = DIRECTORY.get_or_init(|| tempfile::tempdir().expect("a temporary directory"));
    let path = directory.path().join("file");
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("{error}"),
        _ => path,
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((kind, bytes)) = data.split_first() else {
        return;
    };
    let text = String::from_utf8_lossy(bytes);
    match kind % 11 {
        0 => fuzzing::bodies(bytes),
        1 => fuzzing::parameters(&text),
        2 => {
            let (words, variable) = text.split_once('\n').unwrap_or((&text, ""));
            fuzzing::settings(words.as_bytes(), variable);
        }
        3 => fuzzing::identity(&new_file(), bytes).expect("a file"),
        4 => fuzzing::claim(&new_file(), bytes).expect("a file"),
        5 => fuzzing::process(&text),
        6 => fuzzing::output(bytes, 1 + bytes.len() % 7),
        7 => fuzzing::output(&bytes.repeat(LONG_BYTES.div_ceil(bytes.len().max(1))), 4096),
        8 => fuzzing::digest(&text),
        9 => {
            let _ = fuzzing::query(&text);
        }
        _ => {
            let _ = fuzzing::order(&text);
        }
    }
});
