//! The core files of a cgroup in the unified tree: they are there with or without controllers.
//!
//! Used by both drivers. A v2-frozen process can be killed, a v1-frozen one only after thawing:
//! that is why the v1 driver prefers these.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::event::PollFlags;

use super::{Attach, FREEZE_TIMEOUT, keyed, read, write};
use crate::sys;

/// One cgroup of the unified tree.
#[derive(Debug)]
pub(super) struct Unified {
    path: PathBuf,
}

impl Unified {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    pub(super) fn attach(&self) -> io::Result<Attach> {
        let directory: OwnedFd = File::open(&self.path)?.into();
        Ok(Attach {
            born_in: Some(directory),
            procs: Vec::new(),
            cpu: Vec::new(),
        })
    }

    pub(super) fn kill(&self) -> io::Result<()> {
        match write(&self.path.join("cgroup.kill"), "1") {
            // The cgroup is gone, and so is everything in it.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !self.path.exists() => Ok(()),
            other => other,
        }
    }

    /// On a timeout the processes are thawed again: half frozen is no state anybody wants.
    pub(super) fn freeze(&self) -> io::Result<()> {
        // Opened first, so that no change between writing and waiting is missed.
        let mut events = File::open(self.path.join("cgroup.events"))?;
        write(&self.path.join("cgroup.freeze"), "1")?;
        let deadline = Instant::now() + FREEZE_TIMEOUT;
        loop {
            // Read through the descriptor that is polled: that is what makes it wait for the next change.
            let mut text = String::new();
            events.rewind()?;
            events.read_to_string(&mut text)?;
            if keyed(&text, "frozen") == 1 {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.thaw()?;
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the processes did not freeze in time",
                ));
            }
            sys::wait_for(&events, PollFlags::PRI, left)?;
        }
    }

    pub(super) fn thaw(&self) -> io::Result<()> {
        write(&self.path.join("cgroup.freeze"), "0")
    }

    pub(super) fn is_frozen(&self) -> io::Result<bool> {
        Ok(keyed(&read(&self.path.join("cgroup.events"))?, "frozen") == 1)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn is_empty(&self) -> io::Result<bool> {
        match read(&self.path.join("cgroup.events")) {
            Ok(events) => Ok(keyed(&events, "populated") == 0),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(error) => Err(error),
        }
    }
}

/// `cgroup.procs` of a cgroup, to write `0` to.
pub(super) fn open_procs(cgroup: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).open(cgroup.join("cgroup.procs"))
}
