//! The files of a checkpoint: when they count, and when they go.
//!
//! The one design choice to know: files are written in `checkpoint.new`, made durable, and only then renamed to
//! `checkpoint`. So `checkpoint` is whole, whoever died when, and `checkpoint.new` is nothing. Durable not for the
//! sake of a power cut, which ends the instance anyway, but because a disk that fills up or fails says so when it is
//! flushed, and the memory is let go next.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::mounts::Given;
use crate::state::ignore_missing;

/// Only root may look: it is the memory of a program.
const MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;
/// Of one that is lent without being shown as another's (see [`Image::lend`]).
const LENT_MODE: u32 = 0o755;
const LENT_FILE_MODE: u32 = 0o644;
/// Of one that is shown as another's: through it, to a file whose name one knows.
const SHOWN_MODE: u32 = 0o711;
/// What the clocks of an image showed.
const CLOCKS: &str = "timens-";
/// Left free on the disk beside the image, for logs and whatever else is on it.
const RESERVE_BYTES: u64 = 1 << 30;

/// What is known of an image beside CRIU's own files.
const KEPT: &str = "kept.json";

/// The image of one instance, or one that others start from.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    /// The directory that it is in.
    parent: PathBuf,
    /// Its own.
    path: PathBuf,
}

/// What whoever restores an image needs to know, and cannot ask the processes any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// What the pipes of its output were called, in the order of the streams.
    pub(crate) pipes: Vec<String>,
    /// The mounts that a restore is to be given.
    pub(crate) mounts: Vec<Given>,
    /// How many processes it has.
    processes: usize,
    /// What they took together when it was taken, in bytes.
    memory_bytes: u64,
    /// The memory of each of them, together, in bytes.
    pages_bytes: u64,
}

impl Kept {
    /// The memory of its processes, each with its own, in bytes.
    pub(crate) fn pages_bytes(&self) -> u64 {
        self.pages_bytes
    }

    /// Whether its memory may come as it is touched. Not when its processes share so much of it that it would take far
    /// more than before if each had its own: CRIU lets them share it again, but only when it reads all of it first.
    /// `limit`: how much memory they may take.
    pub(crate) fn may_come_lazily(&self, limit: Option<u64>) -> bool {
        self.processes == 1 || may_part(self.pages_bytes, self.memory_bytes, limit.unwrap_or(u64::MAX))
    }
}

/// Whether processes may each have memory of their own, `apart` bytes in all, who together took `before` bytes and may
/// take up to `limit`: if that is a quarter more at most, and leaves a quarter of the limit.
fn may_part(apart: u64, before: u64, limit: u64) -> bool {
    apart <= before.saturating_add(before / 4) && apart <= limit - limit / 4
}

impl Image {
    pub(crate) fn of(instance: &Path) -> Self {
        Self {
            parent: instance.to_owned(),
            path: instance.join("checkpoint"),
        }
    }

    /// One that is kept at `path`, for others to start from.
    pub(crate) fn kept_at(path: &Path) -> io::Result<Self> {
        let parent = path.parent().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
        Ok(Self {
            parent,
            path: path.to_owned(),
        })
    }

    /// Where a whole image is.
    pub(crate) fn path(&self) -> PathBuf {
        self.path.clone()
    }

    /// Where it is kept which memory was touched first after a wake. It outlives the image: the next one is of the same
    /// program.
    pub(crate) fn touched(&self) -> PathBuf {
        self.parent.join("touched")
    }

    /// What is known of a whole image.
    pub(crate) fn kept(&self) -> io::Result<Kept> {
        let bytes = fs::read(self.path.join(KEPT))?;
        serde_json::from_slice(&bytes).map_err(io::Error::other)
    }

    /// Writes down what will be known of the one that is being written, whose pages are there.
    pub(super) fn describe(
        &self,
        pipes: Vec<String>,
        mounts: Vec<Given>,
        processes: usize,
        memory_bytes: u64,
    ) -> io::Result<()> {
        let mut pages_bytes = 0;
        for entry in fs::read_dir(self.beginnings())? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with("pages-") {
                pages_bytes += entry.metadata()?.len();
            }
        }
        let kept = Kept {
            pipes,
            mounts,
            processes,
            memory_bytes,
            pages_bytes,
        };
        let bytes = serde_json::to_vec(&kept).map_err(io::Error::other)?;
        fs::write(self.beginnings().join(KEPT), bytes)
    }

    /// Lets root alone read the one that is being written, whatever CRIU made its files.
    pub(super) fn close(&self) -> io::Result<()> {
        set_modes(&self.beginnings(), MODE, FILE_MODE)
    }

    /// Lets whoever gets to a whole one read it. CRIU reads it as the instance's own root, through a descriptor of the
    /// directory; nobody else gets there, since the directory above is for root alone. Only where the file system cannot
    /// show it as that root's own.
    pub(super) fn lend(&self) -> io::Result<()> {
        set_modes(&self.path, LENT_MODE, LENT_FILE_MODE)
    }

    /// Lets CRIU read the one file of a whole one that it reads before it has the ids as whose the image is shown: what
    /// the clocks showed. It is made anew, since the old one is a link that others have too; nothing of the memory is in
    /// it.
    pub(super) fn show_clocks(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(CLOCKS) {
                let clocks = fs::read(entry.path())?;
                fs::remove_file(entry.path())?;
                fs::write(entry.path(), clocks)?;
                fs::set_permissions(entry.path(), Permissions::from_mode(LENT_FILE_MODE))?;
            }
        }
        fs::set_permissions(&self.path, Permissions::from_mode(SHOWN_MODE))
    }

    /// Becomes the same as `from`, without taking room for it where both are on one file system.
    pub(crate) fn link(&self, from: &Self) -> io::Result<()> {
        let beginnings = self.begin()?;
        for entry in fs::read_dir(&from.path)? {
            let entry = entry?;
            let to = beginnings.join(entry.file_name());
            match fs::hard_link(entry.path(), &to) {
                Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                    fs::copy(entry.path(), &to)?;
                }
                linked => linked?,
            }
        }
        // Nothing is lost by a power cut: what is linked is on the disk.
        fs::rename(beginnings, &self.path)
    }

    /// Where one is being written.
    pub(super) fn beginnings(&self) -> PathBuf {
        let mut path = self.path.as_os_str().to_owned();
        path.push(".new");
        path.into()
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
    pub(crate) fn commit(&self) -> io::Result<()> {
        let path = self.beginnings();
        for entry in fs::read_dir(&path)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                File::open(entry.path())?.sync_all()?;
            }
        }
        File::open(&path)?.sync_all()?;
        fs::rename(path, &self.path)?;
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

fn set_modes(directory: &Path, mode: u32, file_mode: u32) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        fs::set_permissions(entry?.path(), Permissions::from_mode(file_mode))?;
    }
    fs::set_permissions(directory, Permissions::from_mode(mode))
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
    fn processes_that_share_much_stay_together() {
        assert!(may_part(100, 100, u64::MAX) && may_part(125, 100, 200));
        assert!(!may_part(126, 100, u64::MAX), "they shared a fifth");
        assert!(!may_part(151, 150, 200), "the limit is near");
    }

    #[test]
    fn an_image_is_lent_and_neither_end_takes_it_from_the_other() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Image::kept_at(&dir.path().join("one.memory")).unwrap();
        fs::write(kept.begin().unwrap().join("pages-1.img"), vec![7; 10_000]).unwrap();
        fs::write(kept.beginnings().join("timens-0.img"), "clocks").unwrap();
        kept.describe(vec!["pipe:[7]".to_owned()], Vec::new(), 1, 9)
            .unwrap();
        kept.close().unwrap();
        kept.commit().unwrap();
        let instance = dir.path().join("instance");
        fs::create_dir(&instance).unwrap();
        let lent = Image::of(&instance);
        lent.link(&kept).unwrap();
        assert_eq!(lent.kept().unwrap(), kept.kept().unwrap());
        assert!(lent.kept().unwrap().may_come_lazily(None));
        let modes = |image: &Image| {
            let of = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
            (of(image.path()), of(image.path().join("pages-1.img")))
        };
        assert_eq!((modes(&kept), modes(&lent)), ((0o700, 0o600), (0o700, 0o600)));
        let clocks = |image: &Image| {
            let file = image.path().join("timens-0.img");
            (
                fs::read(&file).unwrap(),
                fs::metadata(&file).unwrap().permissions().mode() & 0o777,
            )
        };
        lent.show_clocks().unwrap();
        lent.show_clocks().unwrap();
        assert_eq!((modes(&kept), modes(&lent)), ((0o700, 0o600), (0o711, 0o600)));
        assert_eq!(clocks(&kept), (b"clocks".to_vec(), 0o600));
        assert_eq!(clocks(&lent), (b"clocks".to_vec(), 0o644));
        lent.lend().unwrap();
        assert_eq!(modes(&lent), (0o755, 0o644));
        let inode = |image: &Image| fs::metadata(image.path().join("pages-1.img")).unwrap().ino();
        assert_eq!(inode(&lent), inode(&kept), "one copy in memory serves all");
        kept.remove().unwrap();
        assert_eq!(
            fs::read(lent.path().join("pages-1.img")).unwrap(),
            vec![7; 10_000]
        );
    }

    #[test]
    fn a_disk_that_would_be_full_is_known_before() {
        let dir = tempfile::tempdir().unwrap();
        let image = Image::of(dir.path());
        assert!(!image.room_for(u64::MAX / 2).unwrap());
    }
}
