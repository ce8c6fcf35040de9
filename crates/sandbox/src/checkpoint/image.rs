//! The files of a checkpoint: when they count, and when they go.
//!
//! The one design choice to know: files are written in `checkpoint.new`, made durable, and only then renamed to
//! `checkpoint`. So `checkpoint` is whole, whoever died when, and `checkpoint.new` is nothing. Durable not for the
//! sake of a power cut, which ends the instance anyway, but because a disk that fills up or fails says so when it is
//! flushed, and the memory is let go next.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::state::ignore_missing;

/// Only root may look: it is the memory of a program.
const MODE: u32 = 0o700;
/// Left free on the disk beside the image, for logs and whatever else is on it.
const RESERVE_BYTES: u64 = 1 << 30;

/// The image of one instance.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    /// The instance's directory.
    parent: PathBuf,
}

impl Image {
    pub(crate) fn of(instance: &Path) -> Self {
        Self {
            parent: instance.to_owned(),
        }
    }

    /// Where a whole image is.
    pub(crate) fn path(&self) -> PathBuf {
        self.parent.join("checkpoint")
    }

    /// Where it is kept which memory was touched first after a wake. It outlives the image: the next one is of the same
    /// program.
    pub(crate) fn touched(&self) -> PathBuf {
        self.parent.join("touched")
    }

    /// How many bytes of memory are in it.
    pub(crate) fn pages_bytes(&self) -> io::Result<u64> {
        let mut bytes = 0;
        for entry in fs::read_dir(self.path())? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with("pages-") {
                bytes += entry.metadata()?.len();
            }
        }
        Ok(bytes)
    }

    /// Where one is being written.
    pub(super) fn beginnings(&self) -> PathBuf {
        self.parent.join("checkpoint.new")
    }

    /// An empty directory to write to.
    pub(super) fn begin(&self) -> io::Result<PathBuf> {
        self.remove()?;
        let path = self.beginnings();
        DirBuilder::new().mode(MODE).create(&path)?;
        Ok(path)
    }

    /// Whether the disk has room for a program of this size.
    pub(super) fn room_for(&self, bytes: u64) -> io::Result<bool> {
        let disk = rustix::fs::statvfs(&self.parent)?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        Ok(free >= bytes.saturating_add(RESERVE_BYTES))
    }

    /// It is whole: put it on the disk and give it its name.
    pub(super) fn commit(&self) -> io::Result<()> {
        let path = self.beginnings();
        for entry in fs::read_dir(&path)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                File::open(entry.path())?.sync_all()?;
            }
        }
        File::open(&path)?.sync_all()?;
        fs::rename(path, self.path())?;
        File::open(&self.parent)?.sync_all()
    }

    /// Away with it, whole or not.
    pub(crate) fn remove(&self) -> io::Result<()> {
        for path in [self.path(), self.beginnings()] {
            ignore_missing(fs::remove_dir_all(path))?;
        }
        Ok(())
    }

    /// What it takes on the disk; nothing when there is none. It may be removed meanwhile.
    pub(crate) fn bytes(&self) -> io::Result<u64> {
        let entries = match fs::read_dir(self.path()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            entries => entries?,
        };
        // In blocks of 512 bytes, whatever the file system's own are.
        let files = entries.flatten().filter_map(|entry| entry.metadata().ok());
        Ok(files.map(|file| file.blocks() * 512).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_counts_once_it_is_committed() {
        let dir = tempfile::tempdir().unwrap();
        let image = Image::of(dir.path());
        let beginnings = image.begin().unwrap();
        fs::write(beginnings.join("pages-1.img"), vec![7; 10_000]).unwrap();
        assert!(!image.path().exists());
        image.commit().unwrap();
        assert!(image.path().exists() && !beginnings.exists());
        assert!(image.bytes().unwrap() >= 10_000);
        // The next one begins with nothing of it.
        let beginnings = image.begin().unwrap();
        assert!(!image.path().exists());
        assert_eq!(fs::read_dir(&beginnings).unwrap().count(), 0);
        image.remove().unwrap();
        image.remove().unwrap();
        assert!(!beginnings.exists());
    }

    #[test]
    fn a_disk_that_would_be_full_is_known_before() {
        let dir = tempfile::tempdir().unwrap();
        let image = Image::of(dir.path());
        assert!(!image.room_for(u64::MAX / 2).unwrap());
    }
}
