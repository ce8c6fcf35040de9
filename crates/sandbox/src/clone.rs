//! Copying a file so that it costs as little as the file system allows.
//!
//! Used for the disks of instances. The one design choice to know: blocks are shared where the file system can
//! (`FICLONE` of xfs and btrfs), in a time that does not depend on the size; elsewhere what is written is copied inside
//! the kernel, and holes stay holes.

use std::fs::File;
use std::io;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

/// One piece of a copy: large enough that calls cost nothing, small enough that an end by signal is heard.
const PIECE_BYTES: u64 = 16 << 20;

/// How a copy was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cloned {
    /// Both files share their blocks until one is written.
    Shared,
    /// What was written was copied: so many bytes.
    Copied(u64),
}

/// Makes `to`, which is empty, the same as `from`.
///
/// # Errors
/// Those of the file system, above all that it is full. What is in `to` then is of no use.
pub(crate) fn clone_file(from: &File, to: &File) -> io::Result<Cloned> {
    match rustix::fs::ioctl_ficlone(to, from) {
        Ok(()) => return Ok(Cloned::Shared),
        // Another file system, or one without shared blocks.
        Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOTTY | Errno::NOSYS) => {}
        Err(errno) => return Err(errno.into()),
    }
    to.set_len(from.metadata()?.len())?;
    let (mut at, mut copied) = (0, 0);
    loop {
        let begin = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            Ok(begin) => begin,
            Err(Errno::NXIO) => return Ok(Cloned::Copied(copied)),
            Err(errno) => return Err(errno.into()),
        };
        at = rustix::fs::seek(from, SeekFrom::Hole(begin))?;
        copy_piece(from, to, begin, at)?;
        copied += at - begin;
    }
}

/// Copies one range.
fn copy_piece(from: &File, to: &File, begin: u64, end: u64) -> io::Result<()> {
    let (mut read_at, mut write_at) = (begin, begin);
    while read_at < end {
        let wanted = usize::try_from((end - read_at).min(PIECE_BYTES)).unwrap_or(usize::MAX);
        match rustix::fs::copy_file_range(from, Some(&mut read_at), to, Some(&mut write_at), wanted) {
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    #[test]
    fn a_copy_has_the_same_bytes_and_the_same_holes() {
        let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        from.set_len(64 << 20).unwrap();
        from.write_all_at(b"begin", 0).unwrap();
        from.write_all_at(&vec![7; 3 << 20], 33 << 20).unwrap();
        clone_file(&from, &to).unwrap();
        assert_eq!(to.metadata().unwrap().len(), 64 << 20);
        assert!(
            to.metadata().unwrap().blocks() * 512 < 8 << 20,
            "holes stay holes"
        );
        let mut all = (vec![0; 64 << 20], vec![1; 64 << 20]);
        from.read_exact_at(&mut all.0, 0).unwrap();
        to.read_exact_at(&mut all.1, 0).unwrap();
        assert!(all.0 == all.1);
    }
}
