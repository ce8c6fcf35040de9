//! A volume for an instance: locked, checked where it has grown, and mounted where only the instance will see it.
//!
//! In the instance's shim, before its first process is made.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use super::{GROUP_BYTES, Superblock, run, try_lock};
use crate::protocol::User;
use crate::{disk, sys};

/// The instance before this one may be on its way out, or a snapshot be under way: both take less.
const LOCK_PATIENCE: Duration = Duration::from_secs(20);
const LOCK_LOOK: Duration = Duration::from_millis(5);
/// What `mke2fs` puts into every file system.
const LOST_AND_FOUND: &str = "lost+found";

/// Mounts a volume, attached nowhere yet. Whoever holds the mount, or has it attached, has the volume.
pub(crate) fn attach(path: &Path, user: &User) -> io::Result<OwnedFd> {
    let file = lock(path)?;
    follow_growth(&file, path)?;
    let device = disk::attach(&file)?;
    let mount = disk::mount(&device, &["noinit_itable"])?;
    hand_over(&mount, user)?;
    Ok(mount)
}

fn lock(path: &Path) -> io::Result<File> {
    let deadline = Instant::now() + LOCK_PATIENCE;
    let file = File::options().read(true).write(true).open(path)?;
    while !try_lock(&file)? {
        if Instant::now() >= deadline {
            return Err(Errno::BUSY.into());
        }
        sys::poll(&mut [], Some(LOCK_LOOK))?;
    }
    // Removed between the opening and the lock: what is written would be lost.
    if rustix::fs::fstat(&file)?.st_nlink == 0 {
        return Err(Errno::NOENT.into());
    }
    Ok(file)
}

/// Makes the file system as large as its file, where that has grown.
fn follow_growth(file: &File, path: &Path) -> io::Result<()> {
    let superblock = Superblock::read(file)?;
    let size = superblock.blocks.saturating_mul(superblock.block_bytes);
    if file.metadata()?.len() < size.saturating_add(GROUP_BYTES) {
        return Ok(());
    }
    // 1: errors were corrected, which a journal that had to be replayed counts as.
    run("e2fsck", &["-f", "-p"], path, &[0, 1])?;
    run("resize2fs", &[], path, &[0])?;
    file.sync_all()
}

/// A volume that nobody has used belongs to the user of the first program that does, and is empty: databases refuse a
/// directory with something in it.
fn hand_over(mount: &OwnedFd, user: &User) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(mount, ".", flags, Mode::empty())?;
    let mut fresh = false;
    for entry in rustix::fs::Dir::read_from(&root)? {
        match entry?.file_name().to_bytes() {
            b"." | b".." => {}
            name if name == LOST_AND_FOUND.as_bytes() => fresh = true,
            _ => return Ok(()),
        }
    }
    if fresh {
        let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
        rustix::fs::fchown(&root, Some(uid), Some(gid))?;
        rustix::fs::unlinkat(root.as_fd(), LOST_AND_FOUND, AtFlags::REMOVEDIR)?;
    }
    Ok(())
}
