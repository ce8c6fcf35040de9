//! Removes trees of hostile depth.
//!
//! A layer can nest directories deeper than a recursion has stack or descriptors for. This one goes down a
//! bounded number of levels; what lies deeper is moved up beside the tree first and removed after it.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

/// Levels gone down at once; each holds one descriptor and one stack frame.
const MAX_DEPTH: u32 = 64;

const DIRECTORY: OFlags = OFlags::DIRECTORY
    .union(OFlags::RDONLY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Removes `name` in `parent`, whatever it is. Missing is fine. `parent` must be the caller's alone.
pub(crate) fn remove_all(parent: impl AsFd, name: &[u8]) -> io::Result<()> {
    let parent = parent.as_fd();
    let mut pending = vec![name.to_vec()];
    let mut moved = 0_u64;
    while let Some(name) = pending.pop() {
        let Some(directory) = remove_or_open(parent, &name)? else {
            continue;
        };
        let mut deeper = Deeper {
            top: parent,
            moved: &mut moved,
            pending: &mut pending,
        };
        clear(&directory, 0, &mut deeper)?;
        rustix::fs::unlinkat(parent, &name[..], AtFlags::REMOVEDIR)?;
    }
    Ok(())
}

/// Where subtrees beyond the depth go.
struct Deeper<'a> {
    top: BorrowedFd<'a>,
    moved: &'a mut u64,
    pending: &'a mut Vec<Vec<u8>>,
}

impl Deeper<'_> {
    fn take(&mut self, directory: &OwnedFd, name: &CString) -> io::Result<()> {
        loop {
            let place = format!(".tram-removed-{}", *self.moved);
            *self.moved += 1;
            let flags = rustix::fs::RenameFlags::NOREPLACE;
            match rustix::fs::renameat_with(directory, name.as_c_str(), self.top, place.as_str(), flags) {
                Ok(()) => {
                    self.pending.push(place.into_bytes());
                    return Ok(());
                }
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

fn clear(directory: &OwnedFd, depth: u32, deeper: &mut Deeper<'_>) -> io::Result<()> {
    // Read in pieces: removing while reading may make the kernel skip entries, so go round until it is empty.
    loop {
        let mut found = false;
        for item in Dir::read_from(directory)? {
            let item = item?;
            let name = item.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            found = true;
            let Some(child) = remove_or_open(directory.as_fd(), name.to_bytes())? else {
                continue;
            };
            if depth + 1 >= MAX_DEPTH {
                deeper.take(directory, &name.to_owned())?;
            } else {
                clear(&child, depth + 1, deeper)?;
                rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR)?;
            }
        }
        if !found {
            return Ok(());
        }
    }
}

/// Removes what is no directory; opens what is one.
fn remove_or_open(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<Option<OwnedFd>> {
    let stat = match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        return Ok(Some(rustix::fs::openat(parent, name, DIRECTORY, Mode::empty())?));
    }
    rustix::fs::unlinkat(parent, name, AtFlags::empty())?;
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_deeper_than_any_recursion_goes_away() {
        let base = tempfile::tempdir().unwrap();
        let base_fd =
            rustix::fs::open(base.path(), OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty()).unwrap();
        let mut at = base_fd.try_clone().unwrap();
        for _ in 0..MAX_DEPTH * 10 {
            rustix::fs::mkdirat(&at, "d", Mode::from_raw_mode(0o700)).unwrap();
            drop(rustix::fs::openat(&at, "f", OFlags::CREATE | OFlags::WRONLY, Mode::empty()).unwrap());
            at = rustix::fs::openat(&at, "d", DIRECTORY, Mode::empty()).unwrap();
        }
        remove_all(&base_fd, b"d").unwrap();
        remove_all(&base_fd, b"missing").unwrap();
        let left: Vec<_> = base
            .path()
            .read_dir()
            .unwrap()
            .map(|item| item.unwrap().file_name())
            .collect();
        assert_eq!(left, ["f"]);
    }
}
