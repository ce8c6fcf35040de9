//! Persistent volumes: a file of this machine with a file system in it, which one instance at a time has mounted.
//!
//! Called by `site-local`, which knows the volumes, and by a shim (`attach`), which mounts them for its instance.
//! Every function here may block on the disk.
//!
//! Promises: a file is at its path only when it is whole and would survive a power cut; killed at any moment, this
//! process leaves no part of one, because a file has no name before it is whole. Its space is taken when it is made, so
//! what was promised is there.
//!
//! The one design choice to know: who uses a volume holds an exclusive `flock` on the very description of the file that
//! the loop device was given. The kernel keeps that description until the device lets go, which is after the last mount
//! is gone. So the lock says exactly whether anything can still write to the file, whoever died and however, and there is
//! nothing to clean up.

mod attach;
mod copy;
mod live;

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{AtFlags, CWD, FallocateFlags, FlockOperation};
use rustix::io::Errno;

use crate::disk::nameless_file;

pub(crate) use self::attach::attach;
pub use self::live::{Live, thaw_all};

/// What the tools and the kernel agree on everywhere; also what direct access to the file asks for.
const BLOCK_BYTES: u64 = 4096;
/// Left free on the machine's disk whatever is promised: images, logs and the database have to go on.
const SPARE_BYTES: u64 = 1 << 30;
/// A file system that is smaller than its file by less is as large as it can be: the last group of blocks may be too small
/// to be of use, and volumes grow by whole gigabytes.
const GROUP_BYTES: u64 = 128 << 20;
/// Where tools of file systems are, whatever `PATH` this process was given.
const TOOLS: &str = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin";

/// How the space of new files is dealt with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Space {
    /// It is taken at once.
    Reserved,
    /// It is taken as it is written; a disk that is full then fails the write.
    AsWritten,
}

/// How many bytes more the disk below `directory` can promise.
///
/// # Errors
/// When the disk cannot be asked.
pub fn room(directory: &Path) -> io::Result<u64> {
    let disk = rustix::fs::statvfs(directory)?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    Ok(free.saturating_sub(SPARE_BYTES))
}

/// Makes an empty volume at `path`; one that is there stays as it is.
///
/// # Errors
/// [`io::ErrorKind::StorageFull`] when there is no room for it, or what the disk or `mke2fs` said.
pub fn make(path: &Path, bytes: u64, space: Space) -> io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    let file = nameless(path)?;
    extend(&file, bytes, space)?;
    // Inode tables and the journal need not be cleared: the file reads as zeroes.
    run(
        "mke2fs",
        &[
            "-q",
            "-F",
            "-t",
            "ext4",
            "-b",
            "4096",
            "-m",
            "0",
            "-E",
            "lazy_itable_init=1,lazy_journal_init=1,nodiscard",
        ],
        &Path::new("/proc").join(format!("{}/fd/{}", std::process::id(), file.as_raw_fd())),
        &[0],
    )?;
    publish(&file, path)
}

/// Makes a volume at `path` that holds what `snapshot` does, and is at least so large; one that is there stays as it is.
///
/// # Errors
/// [`io::ErrorKind::StorageFull`], [`io::ErrorKind::NotFound`] when there is no such snapshot.
pub fn make_from(path: &Path, snapshot: &Path, bytes: u64, space: Space) -> io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    let from = File::open(snapshot)?;
    let file = nameless(path)?;
    copy::whole(&from, &file)?;
    extend(&file, bytes.max(from.metadata()?.len()), space)?;
    publish(&file, path)
}

/// Makes the file of a volume larger. Its file system follows when it is attached the next time.
///
/// # Errors
/// [`io::ErrorKind::StorageFull`], [`io::ErrorKind::NotFound`].
pub fn grow(path: &Path, bytes: u64, space: Space) -> io::Result<()> {
    let file = File::options().read(true).write(true).open(path)?;
    if file.metadata()?.len() >= bytes {
        return Ok(());
    }
    extend(&file, bytes, space)?;
    file.sync_all()
}

/// Keeps at `path` what the volume `of` holds now; a snapshot that is there stays as it is.
///
/// # Errors
/// [`io::ErrorKind::ResourceBusy`] when the volume could not be held still for long enough,
/// [`io::ErrorKind::StorageFull`], [`io::ErrorKind::NotFound`].
pub fn snapshot(path: &Path, of: &Path) -> io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    let from = File::open(of)?;
    let file = nameless(path)?;
    copy::still(&from, of, &file)?;
    publish(&file, path)
}

/// Removes a volume, or a snapshot. `false` when an instance has it.
///
/// # Errors
/// What the disk said; a file that is not there is no error.
pub fn remove(path: &Path) -> io::Result<bool> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        other => other?,
    };
    if !try_lock(&file)? {
        return Ok(false);
    }
    fs::remove_file(path)?;
    sync_parent(path)?;
    Ok(true)
}

/// Whether an instance has the volume, or something of it is left that could write.
///
/// # Errors
/// What the disk said.
pub fn is_attached(path: &Path) -> io::Result<bool> {
    Ok(!try_lock(&File::open(path)?)?)
}

/// How much of a volume is in use, in bytes: of one that is not attached, and of one that is as of the last time its file
/// system wrote that down.
///
/// # Errors
/// What the disk said; [`io::ErrorKind::InvalidData`] when it holds no file system.
pub fn used_bytes(path: &Path) -> io::Result<u64> {
    let superblock = Superblock::read(&File::open(path)?)?;
    let used = superblock.blocks.saturating_sub(superblock.free_blocks);
    Ok(used.saturating_mul(superblock.block_bytes))
}

/// Files below `directory` that are volumes or snapshots: their names and sizes.
///
/// # Errors
/// What the disk said.
pub fn list(directory: &Path) -> io::Result<Vec<(PathBuf, u64)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        match entry.metadata() {
            Ok(metadata) if metadata.is_file() => found.push((entry.path(), metadata.size())),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// What ext4 says of itself, at the places the kernel's documentation gives (`ext4/super.rst`).
struct Superblock {
    blocks: u64,
    free_blocks: u64,
    block_bytes: u64,
}

impl Superblock {
    fn read(file: &File) -> io::Result<Self> {
        const AT: u64 = 1024;
        const MAGIC: u16 = 0xEF53;
        /// Block numbers have 64 bits.
        const WIDE: u32 = 0x80;
        let mut bytes = [0; 1024];
        file.read_exact_at(&mut bytes, AT)?;
        let word = |at: usize| {
            let part = bytes.get(at..at + 4).and_then(|part| part.try_into().ok());
            part.map_or(0, u32::from_le_bytes)
        };
        let magic = u16::try_from(word(0x38) & 0xFFFF).unwrap_or_default();
        if magic != MAGIC {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "there is no ext4 file system in it",
            ));
        }
        let wide = word(0x60) & WIDE != 0;
        let number = |low: usize, high: usize| {
            let high = if wide { u64::from(word(high)) << 32 } else { 0 };
            high | u64::from(word(low))
        };
        Ok(Self {
            blocks: number(0x4, 0x150),
            free_blocks: number(0xC, 0x158),
            block_bytes: 1024_u64.checked_shl(word(0x18)).unwrap_or(BLOCK_BYTES),
        })
    }
}

/// A file that has no name yet, where `path` will be.
fn nameless(path: &Path) -> io::Result<File> {
    nameless_file(path.parent().unwrap_or(Path::new("/")))
}

fn extend(file: &File, bytes: u64, space: Space) -> io::Result<()> {
    let size = file.metadata()?.len();
    match space {
        Space::AsWritten if size < bytes => file.set_len(bytes),
        Space::AsWritten => Ok(()),
        Space::Reserved => {
            // What a copy left as holes is taken as well.
            rustix::fs::fallocate(file, FallocateFlags::empty(), 0, bytes.max(size))?;
            Ok(())
        }
    }
}

/// Gives a whole file its name. Somebody else's that came first stays.
pub(crate) fn publish(file: &File, path: &Path) -> io::Result<()> {
    file.sync_all()?;
    let through = format!("/proc/self/fd/{}", file.as_raw_fd());
    match rustix::fs::linkat(CWD, &through, CWD, path, AtFlags::SYMLINK_FOLLOW) {
        Ok(()) | Err(Errno::EXIST) => sync_parent(path),
        Err(errno) => Err(errno.into()),
    }
}

fn sync_parent(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// Takes the lock of whoever uses the volume; `false` when somebody has it. It goes with the file's description.
fn try_lock(file: &File) -> io::Result<bool> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Runs a tool of e2fsprogs on a file; gives its exit code, one of `good`.
fn run(tool: &str, arguments: &[&str], on: &Path, good: &[i32]) -> io::Result<()> {
    let output = Command::new(tool)
        .args(arguments)
        .arg(on)
        .env("PATH", TOOLS)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| {
            io::Error::new(error.kind(), format!("cannot run {tool} (of e2fsprogs): {error}"))
        })?;
    if output.status.code().is_some_and(|code| good.contains(&code)) {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = if said.trim().is_empty() {
        String::from_utf8_lossy(&output.stdout)
    } else {
        said
    };
    Err(io::Error::other(format!("{tool} failed: {}", said.trim())))
}
