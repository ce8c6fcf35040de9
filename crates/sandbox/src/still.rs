//! Holding a file system still, so that a copy of the file it is in is of one moment.
//!
//! Used for snapshots of volumes and of instances' disks. The one design choice to know: whoever holds it may be killed,
//! and an instance must not wait for ever then. A guard, a process of its own, lets the file system go on when the holder
//! ends or the time is over. Should the guard be killed too, the next start of the platform lets it go on: what may be
//! held is known by then, see `volume::thaw_all` and `snapshot::thaw_all`.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::sys;

/// A file system that is held still, until it is let go or dropped.
#[derive(Debug)]
pub(crate) struct Still {
    top: OwnedFd,
    /// Closes with this process, which is how the guard learns of its end.
    held: Option<OwnedFd>,
    guard: i32,
    over: bool,
}

impl Still {
    /// Writes everything down and holds the file system of this directory still, whatever becomes of this process for no
    /// longer than `at_most`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn hold(top: OwnedFd, at_most: Duration) -> io::Result<Self> {
        // First, and synchronously: what is left then is little, and the time it is held still is short.
        rustix::fs::syncfs(&top)?;
        let (watched, held) = pipe_with(PipeFlags::CLOEXEC)?;
        let guard = sys::thaw_after(top.as_fd(), watched.as_fd(), at_most)?;
        let mut still = Self {
            top,
            held: Some(held),
            guard,
            over: true,
        };
        sys::freeze_file_system(still.top.as_fd())?;
        still.over = false;
        Ok(still)
    }

    /// Lets it go on. `false` when it went on before: then what was copied is of no one moment.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn release(mut self) -> io::Result<bool> {
        self.over = true;
        match sys::thaw_file_system(self.top.as_fd()) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl Drop for Still {
    fn drop(&mut self) {
        if !self.over {
            // It fails only when it is not held any more.
            let _ = sys::thaw_file_system(self.top.as_fd());
        }
        self.held.take();
        sys::reap(self.guard);
    }
}
