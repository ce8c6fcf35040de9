//! Which parts of its memory an instance touched right after it woke, kept beside it for the next time.
//!
//! A list without promises: a missing or damaged one costs some faults, a stale one some copies.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;

/// So many windows are kept, 32 MiB: handing them over takes some ten milliseconds of one core.
pub(super) const WINDOWS_MAX: usize = 512;
/// Two numbers in a line.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// A window of a process's memory: its number inside, and where the window begins.
pub(super) type Window = (i32, u64);

/// What was written down, if anything.
pub(super) fn read(path: &Path) -> Vec<Window> {
    let small = fs::metadata(path).is_ok_and(|file| file.len() <= FILE_BYTES_MAX);
    let text = small
        .then(|| fs::read_to_string(path).ok())
        .flatten()
        .unwrap_or_default();
    let line = |line: &str| {
        let (pid, start) = line.split_once(' ')?;
        Some((pid.parse().ok()?, u64::from_str_radix(start, 16).ok()?))
    };
    text.lines().filter_map(line).take(WINDOWS_MAX).collect()
}

/// Writes down what was touched this time, and of what was known before as much as there is room for.
pub(super) fn write(path: &Path, touched: &[Window], before: &[Window]) -> io::Result<()> {
    let mut kept: Vec<Window> = Vec::new();
    for window in touched.iter().chain(before) {
        if kept.len() < WINDOWS_MAX && !kept.contains(window) {
            kept.push(*window);
        }
    }
    let mut text = String::new();
    for (pid, start) in kept {
        let _ = writeln!(text, "{pid} {start:x}");
    }
    let new = path.with_extension("new");
    fs::write(&new, text)?;
    fs::rename(new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_new_comes_first_and_the_list_stays_short() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("touched");
        assert_eq!(read(&path), []);
        write(&path, &[(1, 0x7f00_0000_0000), (1, 0x1000)], &[]).unwrap();
        let before = read(&path);
        assert_eq!(before, [(1, 0x7f00_0000_0000), (1, 0x1000)]);
        write(&path, &[(2, 0x2000), (1, 0x1000)], &before).unwrap();
        assert_eq!(read(&path), [(2, 0x2000), (1, 0x1000), (1, 0x7f00_0000_0000)]);
        let many: Vec<Window> = (0..2000).map(|n| (1, u64::MAX - n)).collect();
        write(&path, &many, &before).unwrap();
        assert_eq!(read(&path), many[..WINDOWS_MAX]);
        fs::write(&path, "nonsense\n1\n1 xyz\n-3 10\n").unwrap();
        assert_eq!(read(&path), [(-3, 16)]);
    }
}
