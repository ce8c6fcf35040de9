//! Copies of volumes: shared with the original where the file system can, block by block where it cannot.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::{Live, try_lock};
use crate::clone::clone_file;
use crate::sys;

/// One piece that is compared at a time.
const COMPARE_BYTES: usize = 1 << 20;
/// A volume that is about to be mounted or let go has a lock and no file system yet, or not any more.
const BETWEEN_PATIENCE: Duration = Duration::from_secs(10);
const BETWEEN_LOOK: Duration = Duration::from_millis(5);

/// Copies a file that nobody writes to.
pub(super) fn whole(from: &File, to: &File) -> io::Result<()> {
    if share(from, to)? {
        return Ok(());
    }
    clone_file(from, to).map(drop)
}

/// Copies a volume as it is at one moment, although an instance may write to it. Most is copied beforehand; then it is
/// held still (frozen when it is mounted, locked when it is not) for as long as it takes to copy what changed since.
pub(super) fn still(from: &File, path: &Path, to: &File) -> io::Result<()> {
    // Tried here to know whether it can; the one that counts is made while it is held still.
    if !share(from, to)? {
        clone_file(from, to)?;
    }
    let deadline = Instant::now() + BETWEEN_PATIENCE;
    loop {
        if try_lock(from)? {
            // Nothing is mounted. The lock ends with `from`.
            return catch_up(from, to);
        }
        if let Some(live) = Live::of(path)? {
            let still = live.freeze()?;
            let copied = catch_up(from, to);
            if !still.release()? {
                return Err(Errno::BUSY.into());
            }
            return copied;
        }
        if Instant::now() >= deadline {
            return Err(Errno::BUSY.into());
        }
        sys::poll(&mut [], Some(BETWEEN_LOOK))?;
    }
}

fn catch_up(from: &File, to: &File) -> io::Result<()> {
    if share(from, to)? {
        return Ok(());
    }
    changes(from, to)
}

/// Makes one file share the blocks of the other; `false` where the file system cannot.
fn share(from: &File, to: &File) -> io::Result<bool> {
    match rustix::fs::ioctl_ficlone(to, from) {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::XDEV | Errno::INVAL | Errno::NOSYS) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Copies what differs. Where the original has nothing written, the copy has nothing either: a volume never gives blocks
/// back.
fn changes(from: &File, to: &File) -> io::Result<()> {
    let length = from.metadata()?.len();
    to.set_len(length)?;
    let (mut theirs, mut ours) = (vec![0; COMPARE_BYTES], vec![0; COMPARE_BYTES]);
    let mut at = 0;
    loop {
        let begin = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            Ok(begin) => begin,
            Err(Errno::NXIO) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        let end = rustix::fs::seek(from, SeekFrom::Hole(begin))?;
        at = begin;
        while at < end {
            let wanted = usize::try_from(end - at)
                .unwrap_or(COMPARE_BYTES)
                .min(COMPARE_BYTES);
            let theirs = theirs.get_mut(..wanted).unwrap_or_default();
            let ours = ours.get_mut(..wanted).unwrap_or_default();
            from.read_exact_at(theirs, at)?;
            to.read_exact_at(ours, at)?;
            if theirs != ours {
                to.write_all_at(theirs, at)?;
            }
            at += wanted as u64;
        }
    }
}
