//! Room that is left free on the disk that holds the images.
//!
//! One tenant's image must not fill the disk that everybody's instances and the database lie on. The store makes one
//! [`Floor`] when it opens; a download and an unpacking ask it at their start and every [`CHECK_BYTES`]. The one
//! design choice to know: what is free is asked of the file system instead of being counted, because others write to
//! it too.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use crate::error::Error;
use crate::limits::{Limits, MIN_FREE_PERCENT};

/// Written between two questions. Asking takes microseconds, writing so much some hundred milliseconds.
pub(crate) const CHECK_BYTES: u64 = 64 << 20;

/// The least that must stay free.
#[derive(Debug)]
pub(crate) struct Floor {
    directory: OwnedFd,
    bytes: u64,
}

impl Floor {
    /// As the limits say, but never more than half of what is free now: a disk that is small or nearly full must
    /// still take an image.
    pub(crate) fn new(directory: &Path, limits: &Limits) -> Result<Self, Error> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(directory, flags, Mode::empty())
            .map_err(|errno| Error::io("opening", directory, errno))?;
        let found = rustix::fs::fstatvfs(&opened)
            .map_err(|errno| Error::io("measuring the disk of", directory, errno))?;
        let size = found.f_blocks.saturating_mul(found.f_frsize);
        let free = found.f_bavail.saturating_mul(found.f_frsize);
        Ok(Self {
            directory: opened,
            bytes: (size / 100 * MIN_FREE_PERCENT)
                .max(limits.min_free_bytes)
                .min(free / 2),
        })
    }

    /// The same, out of reach.
    #[cfg(test)]
    pub(crate) fn raised(&self) -> Self {
        Self {
            directory: self.directory.try_clone().unwrap(),
            bytes: u64::MAX,
        }
    }

    /// Fails as a full disk does when less than the floor is free.
    pub(crate) fn check(&self) -> io::Result<()> {
        let found = rustix::fs::fstatvfs(&self.directory)?;
        if found.f_bavail.saturating_mul(found.f_frsize) >= self.bytes {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::StorageFull,
            format!("images leave {} MiB free", self.bytes >> 20),
        ))
    }
}
