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
use rustix::pipe::{PipeFlags, pipe_with};

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

    /// Writes everything down and holds it still, until it is thawed or dropped; or, whatever becomes of this process,
    /// for [`FREEZE_MAX`].
    pub(super) fn freeze(self) -> io::Result<Frozen> {
        // First, and synchronously: what is left then is little, and the time it is held still is short.
        rustix::fs::syncfs(&self.root)?;
        let (watched, held) = pipe_with(PipeFlags::CLOEXEC)?;
        let guard = sys::thaw_after(self.root.as_fd(), watched.as_fd(), FREEZE_MAX)?;
        let mut frozen = Frozen {
            live: self,
            held: Some(held),
            guard,
            over: true,
        };
        sys::freeze_file_system(frozen.live.root.as_fd())?;
        frozen.over = false;
        Ok(frozen)
    }
}

/// A file system that is held still.
#[derive(Debug)]
pub(super) struct Frozen {
    live: Live,
    /// Closes with this process, which is how the guard learns of its end.
    held: Option<OwnedFd>,
    guard: i32,
    over: bool,
}

impl Frozen {
    /// Lets it go on. An error when it went on before: then what was copied is of no one moment.
    pub(super) fn thaw(mut self) -> io::Result<()> {
        self.over = true;
        match sys::thaw_file_system(self.live.root.as_fd()) {
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                Err(Errno::BUSY.into())
            }
            other => other,
        }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        if !self.over {
            // It fails only when it is not frozen any more.
            let _ = sys::thaw_file_system(self.live.root.as_fd());
        }
        self.held.take();
        sys::reap(self.guard);
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
