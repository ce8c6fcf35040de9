//! The file system of a volume that an instance has mounted, reached from outside the instance.
//!
//! The one design choice to know: not by a path through the instance, whose links lead where the instance wants, but by
//! mounting the loop device once more, attached nowhere. The kernel gives the file system that is there already.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;

use crate::still::Still;
use crate::{disk, sys};

/// Longest time a file system is held still: what the instance wants to write waits for so long.
const FREEZE_MAX: Duration = Duration::from_secs(15);

/// A mounted file system.
#[derive(Debug)]
pub struct Live {
    root: OwnedFd,
}

impl Live {
    /// That of the volume at `path`; `None` when nothing has it mounted.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn of(path: &Path) -> io::Result<Option<Self>> {
        for (device, file) in devices()? {
            if file == path {
                return Self::on(&device, path);
            }
        }
        Ok(None)
    }

    fn on(device: &Path, path: &Path) -> io::Result<Option<Self>> {
        let mount = match disk::mount_path(device, &[]) {
            Ok(mount) => mount,
            // It let go meanwhile.
            Err(error) => {
                return match shows(device)? {
                    Some(file) if file == path => Err(error),
                    _ => Ok(None),
                };
            }
        };
        // The device can have been given another file before, and not since.
        if shows(device)?.is_none_or(|file| file != path) {
            return Ok(None);
        }
        Ok(Some(Self {
            root: disk::open(&mount)?,
        }))
    }

    /// How much of it is in use, in bytes.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn used_bytes(&self) -> io::Result<u64> {
        let found = rustix::fs::fstatvfs(&self.root)?;
        Ok(found
            .f_blocks
            .saturating_sub(found.f_bfree)
            .saturating_mul(found.f_frsize))
    }

    /// Writes everything down and holds it still for [`FREEZE_MAX`] at most.
    pub(super) fn freeze(self) -> io::Result<Still> {
        Still::hold(self.root, FREEZE_MAX)
    }
}

/// Lets every volume below `directory` go on that was left frozen: this process and the guard were both killed.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn thaw_all(directory: &Path) -> io::Result<()> {
    for (device, file) in devices()? {
        if !file.starts_with(directory) {
            continue;
        }
        if let Some(live) = Live::on(&device, &file)? {
            // Refused where it is not frozen, which is nearly always.
            let _ = sys::thaw_file_system(live.root.as_fd());
        }
    }
    Ok(())
}

/// Every loop device with the file it shows.
fn devices() -> io::Result<Vec<(PathBuf, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/sys/block")? {
        let name = entry?.file_name();
        if !name.as_bytes().starts_with(b"loop") {
            continue;
        }
        let device = Path::new("/dev").join(name);
        if let Some(file) = shows(&device)? {
            found.push((device, file));
        }
    }
    Ok(found)
}

/// The file a loop device shows, if it shows one.
fn shows(device: &Path) -> io::Result<Option<PathBuf>> {
    let name = device.file_name().unwrap_or_default();
    let path = Path::new("/sys/block").join(name).join("loop/backing_file");
    match fs::read(path) {
        Ok(mut bytes) => {
            if bytes.last() == Some(&b'\n') {
                bytes.pop();
            }
            Ok(Some(std::ffi::OsStr::from_bytes(&bytes).into()))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        // It is being let go.
        Err(error) if error.raw_os_error() == Some(Errno::NXIO.raw_os_error()) => Ok(None),
        Err(error) => Err(error),
    }
}
