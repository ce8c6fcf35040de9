//! Checksums of what a snapshot of an instance is made of, and whether they still hold.
//!
//! Called by `site/instance_snapshots.rs`, from threads that may block. A file's checksum is SHA-256 over its blocks that
//! are not all zeroes, each after its number, and over its length: a copy with other holes has the same one.
//!
//! The one design choice to know: a start from a snapshot must not wait for all of it to be read. Every write, and every
//! exchange of a file, changes what the kernel notes about it (length, number, times), so where that is as it was when the
//! checksum was taken, the file was not written to. Only otherwise is it read ([`Checksums::hold_as_noted`]). What a disk
//! loses by itself changes no note: [`Checksums::verify`] finds it, by reading. For the same reason nobody waits for a
//! checksum to be taken: the kernel's notes are kept first ([`Checksums::note`]), and the sums are added when all has been
//! read ([`Checksums::complete`]), provided that the notes are still the same.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::fs::SeekFrom;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

/// One block: large enough that calls cost nothing beside the reading.
const BLOCK_BYTES: u64 = 1 << 20;
/// Most files of one snapshot: a memory image has some tens for each process. More is no snapshot of ours.
const FILES_MAX: usize = 100_000;

/// How long reading may go on.
#[derive(Debug, Clone)]
pub(crate) struct Bounds {
    /// Until when.
    pub(crate) until: Instant,
    /// Whoever wanted to know has gone.
    pub(crate) gone: CancellationToken,
}

impl Bounds {
    fn check(&self) -> io::Result<()> {
        if self.gone.is_cancelled() {
            Err(io::ErrorKind::Interrupted.into())
        } else if Instant::now() > self.until {
            Err(io::ErrorKind::TimedOut.into())
        } else {
            Ok(())
        }
    }
}

/// The checksums of one snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Checksums {
    /// By their names: one for the disk, `memory/...` for each file of a memory image, and one for the executor.
    files: BTreeMap<String, Noted>,
}

/// A file as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Noted {
    /// Absent until the file has been read.
    sha256: Option<String>,
    stamp: Stamp,
}

impl Noted {
    /// Whether the file has the bytes it had, by reading it. Nobody can tell of one that was never read.
    fn is_sum_of(&self, file: &File, bounds: Option<&Bounds>) -> io::Result<bool> {
        match &self.sha256 {
            Some(sha256) => Ok(*sha256 == sum(file, bounds)?),
            None => Ok(false),
        }
    }
}

/// What the kernel notes about a file, and changes with every write. Not when its status changed: a copy that borrows the
/// file under another name changes that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    bytes: u64,
    inode: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(file: &fs::Metadata) -> Self {
        Self {
            bytes: file.len(),
            inode: file.ino(),
            modified: (file.mtime(), file.mtime_nsec()),
        }
    }
}

/// Where the files of one snapshot are.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    /// Its disk.
    pub(crate) disk: PathBuf,
    /// The directory of its memory image, if it has one.
    pub(crate) memory: Option<PathBuf>,
    /// The executor that is among its processes, if one is.
    pub(crate) executor: Option<PathBuf>,
}

impl Files {
    /// All of them by name.
    fn all(&self) -> io::Result<BTreeMap<String, PathBuf>> {
        let mut all = BTreeMap::from([("disk".to_owned(), self.disk.clone())]);
        all.extend(self.executor.clone().map(|path| ("executor".to_owned(), path)));
        let Some(memory) = &self.memory else {
            return Ok(all);
        };
        // A link to another one is not followed.
        if !fs::symlink_metadata(memory)?.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        for entry in fs::read_dir(memory)? {
            let entry = entry?;
            if all.len() > FILES_MAX {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "too many files"));
            }
            // Links are none of ours: they would be seen as files that were not there.
            all.insert(
                format!("memory/{}", entry.file_name().to_string_lossy()),
                entry.path(),
            );
        }
        Ok(all)
    }

    /// What they take on the disk.
    pub(crate) fn bytes(&self) -> io::Result<u64> {
        let mut bytes = 0;
        for path in self.all()?.values() {
            // In blocks of 512 bytes, whatever the file system's own are.
            bytes += fs::symlink_metadata(path)?.blocks() * 512;
        }
        Ok(bytes)
    }
}

impl Checksums {
    /// Notes the files as they are, unread.
    ///
    /// # Errors
    /// When a file cannot be looked at.
    pub(crate) fn note(files: &Files) -> io::Result<Self> {
        let mut noted = Self::default();
        for (name, path) in files.all()? {
            let stamp = Stamp::of(&open(&path)?.metadata()?);
            noted.files.insert(name, Noted { sha256: None, stamp });
        }
        Ok(noted)
    }

    /// Whether every file has been read.
    pub(crate) fn is_complete(&self) -> bool {
        self.files.values().all(|noted| noted.sha256.is_some())
    }

    /// Reads the files that have not been read yet; or what is wrong, when one is not what was noted.
    ///
    /// # Errors
    /// Those of [`Self::verify`].
    pub(crate) fn complete(
        mut self,
        files: &Files,
        bounds: Option<&Bounds>,
    ) -> io::Result<Result<Self, String>> {
        let sums = std::cell::RefCell::new(BTreeMap::new());
        let wrong = self.compare(files, |name, noted, file| {
            if noted.sha256.is_some() {
                return Ok(true);
            }
            let sha256 = sum(file, bounds)?;
            sums.borrow_mut().insert(name.to_owned(), sha256);
            // Looked at last: nothing was written all the while.
            Ok(Stamp::of(&file.metadata()?) == noted.stamp)
        })?;
        if let Some(wrong) = wrong {
            return Ok(Err(wrong));
        }
        for (name, sha256) in sums.into_inner() {
            if let Some(noted) = self.files.get_mut(&name) {
                noted.sha256 = Some(sha256);
            }
        }
        Ok(Ok(self))
    }

    /// Whether the files are what they were, as far as the kernel's notes tell; where they do not, by reading. What is
    /// wrong, if anything.
    ///
    /// # Errors
    /// When they cannot be looked at.
    pub(crate) fn hold_as_noted(&self, files: &Files) -> io::Result<Option<String>> {
        self.compare(files, |_, noted, file| {
            let as_noted = Stamp::of(&file.metadata()?) == noted.stamp;
            Ok(as_noted || noted.is_sum_of(file, None)?)
        })
    }

    /// Reads everything. What is wrong, if anything.
    ///
    /// # Errors
    /// When a file cannot be read, which may be for want of a working disk; [`io::ErrorKind::TimedOut`] and
    /// [`io::ErrorKind::Interrupted`] at a bound.
    pub(crate) fn verify(&self, files: &Files, bounds: &Bounds) -> io::Result<Option<String>> {
        self.compare(files, |_, noted, file| noted.is_sum_of(file, Some(bounds)))
    }

    fn compare(
        &self,
        files: &Files,
        same: impl Fn(&str, &Noted, &File) -> io::Result<bool>,
    ) -> io::Result<Option<String>> {
        let found = match files.all() {
            Err(error) if is_no_such(&error) => return Ok(Some("its memory is gone".to_owned())),
            found => found?,
        };
        if let Some(more) = found.keys().find(|name| !self.files.contains_key(*name)) {
            return Ok(Some(format!("it has a file that it did not have: {more}")));
        }
        for (name, noted) in &self.files {
            let file = match found.get(name).map(|path| open(path)) {
                Some(Ok(file)) => file,
                Some(Err(error)) if is_no_plain_file(&error) => {
                    return Ok(Some(format!("its {name} is no plain file")));
                }
                Some(Err(error)) if !is_no_such(&error) => return Err(error),
                _ => return Ok(Some(format!("its {name} is gone"))),
            };
            let bytes = file.metadata()?.len();
            if bytes != noted.stamp.bytes {
                return Ok(Some(format!(
                    "its {name} has {bytes} bytes, and had {}",
                    noted.stamp.bytes
                )));
            }
            if !same(name, noted, &file)? {
                return Ok(Some(format!("its {name} has other bytes than when it was taken")));
            }
        }
        Ok(None)
    }
}

fn is_no_such(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

/// What [`open`] says of links, directories and devices.
pub(crate) fn is_no_plain_file(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    error.kind() == io::ErrorKind::InvalidData || matches!(errno, Some(Errno::LOOP | Errno::NXIO))
}

/// A plain file of its own; a link to another one is not followed.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, "it is no plain file"))
    }
}

fn sum(file: &File, bounds: Option<&Bounds>) -> io::Result<String> {
    let bytes = file.metadata()?.len();
    let mut digest = Sha256::new();
    digest.update(bytes.to_le_bytes());
    let mut block = vec![0; usize::try_from(BLOCK_BYTES).unwrap_or_default()];
    let mut at = 0;
    loop {
        bounds.map_or(Ok(()), Bounds::check)?;
        let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(Errno::NXIO) => break,
            Err(errno) => return Err(errno.into()),
        };
        let number = data / BLOCK_BYTES;
        let begin = number * BLOCK_BYTES;
        let length = usize::try_from(BLOCK_BYTES.min(bytes.saturating_sub(begin))).unwrap_or_default();
        let Some(read) = block.get_mut(..length) else {
            break;
        };
        file.read_exact_at(read, begin)?;
        if read.iter().any(|byte| *byte != 0) {
            digest.update(number.to_le_bytes());
            digest.update(&*read);
        }
        at = begin + BLOCK_BYTES;
    }
    use std::fmt::Write as _;
    let mut text = String::new();
    for byte in digest.finalize() {
        let _ = write!(text, "{byte:02x}");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::time::Duration;

    use super::*;

    fn taken(files: &Files) -> Checksums {
        let noted = Checksums::note(files).unwrap();
        assert!(!noted.is_complete());
        let taken = noted.complete(files, None).unwrap().unwrap();
        assert!(taken.is_complete());
        taken
    }

    fn unbounded() -> Bounds {
        Bounds {
            until: Instant::now() + Duration::from_secs(600),
            gone: CancellationToken::new(),
        }
    }

    fn snapshot(directory: &Path) -> Files {
        let (disk, memory) = (directory.join("one"), directory.join("one.memory"));
        let file = File::create(&disk).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(b"something", 40 << 20).unwrap();
        fs::create_dir(&memory).unwrap();
        fs::write(memory.join("pages-1.img"), vec![7; 3 << 20]).unwrap();
        Files {
            disk,
            memory: Some(memory),
            executor: None,
        }
    }

    #[test]
    fn a_single_bit_is_noticed_wherever_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let files = snapshot(dir.path());
        let sums = taken(&files);
        assert_eq!(sums.verify(&files, &unbounded()).unwrap(), None);
        assert_eq!(sums.hold_as_noted(&files).unwrap(), None);
        let memory = files.memory.clone().unwrap().join("pages-1.img");
        // In the data, in a hole, in memory.
        for (path, at, was) in [
            (&files.disk, 40 << 20, b's'),
            (&files.disk, 12_345_678, 0),
            (&memory, 2 << 20, 7),
        ] {
            let file = File::options().write(true).open(path).unwrap();
            file.write_all_at(&[was ^ 4], at).unwrap();
            let said = sums.verify(&files, &unbounded()).unwrap().unwrap();
            assert!(said.contains("other bytes"), "{said}");
            assert!(sums.hold_as_noted(&files).unwrap().is_some());
            // Put back: the notes differ now, and reading says that all is well.
            file.write_all_at(&[was], at).unwrap();
            assert_eq!(sums.hold_as_noted(&files).unwrap(), None);
        }
    }

    #[test]
    fn what_was_written_before_it_was_read_is_damage() {
        let dir = tempfile::tempdir().unwrap();
        let files = snapshot(dir.path());
        let noted = Checksums::note(&files).unwrap();
        assert_eq!(
            noted.hold_as_noted(&files).unwrap(),
            None,
            "as it was, though unread"
        );
        let file = File::options().write(true).open(&files.disk).unwrap();
        file.write_all_at(b"other", 40 << 20).unwrap();
        file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        for said in [
            noted.hold_as_noted(&files).unwrap(),
            noted.clone().complete(&files, None).unwrap().err(),
            noted.verify(&files, &unbounded()).unwrap(),
        ] {
            assert!(said.unwrap().contains("its disk has other bytes"));
        }
    }

    #[test]
    fn what_is_cut_off_gone_or_new_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let files = snapshot(dir.path());
        let sums = taken(&files);
        let memory = files.memory.clone().unwrap();
        fs::write(memory.join("core-9.img"), "").unwrap();
        assert!(
            sums.hold_as_noted(&files)
                .unwrap()
                .unwrap()
                .contains("core-9.img")
        );
        fs::remove_file(memory.join("core-9.img")).unwrap();
        // Not followed, whatever it shows.
        fs::rename(memory.join("pages-1.img"), dir.path().join("elsewhere")).unwrap();
        symlink(dir.path().join("elsewhere"), memory.join("pages-1.img")).unwrap();
        let said = sums.hold_as_noted(&files).unwrap().unwrap();
        assert!(said.contains("pages-1.img is no plain file"), "{said}");
        fs::remove_file(memory.join("pages-1.img")).unwrap();
        assert!(sums.hold_as_noted(&files).unwrap().unwrap().contains("is gone"));
        fs::rename(dir.path().join("elsewhere"), memory.join("pages-1.img")).unwrap();
        assert_eq!(sums.hold_as_noted(&files).unwrap(), None);
        File::options()
            .write(true)
            .open(&files.disk)
            .unwrap()
            .set_len(1 << 20)
            .unwrap();
        assert!(
            sums.hold_as_noted(&files)
                .unwrap()
                .unwrap()
                .contains("bytes, and had")
        );
    }

    #[test]
    fn a_copy_without_its_holes_has_the_same_checksum() {
        let dir = tempfile::tempdir().unwrap();
        let files = snapshot(dir.path());
        let copy = dir.path().join("copy");
        fs::write(&copy, fs::read(&files.disk).unwrap()).unwrap();
        assert_eq!(
            sum(&File::open(&files.disk).unwrap(), None).unwrap(),
            sum(&File::open(&copy).unwrap(), None).unwrap()
        );
    }

    #[test]
    fn memory_that_is_gone_or_elsewhere_is_damage() {
        let dir = tempfile::tempdir().unwrap();
        let files = snapshot(dir.path());
        let sums = taken(&files);
        let memory = files.memory.clone().unwrap();
        let elsewhere = dir.path().join("elsewhere");
        fs::rename(&memory, &elsewhere).unwrap();
        let says = || sums.verify(&files, &unbounded()).unwrap().unwrap();
        assert!(says().contains("memory is gone"), "{}", says());
        symlink(&elsewhere, &memory).unwrap();
        assert!(says().contains("memory is gone"), "{}", says());
        fs::remove_file(&memory).unwrap();
        fs::rename(&elsewhere, &memory).unwrap();
        fs::remove_file(&files.disk).unwrap();
        fs::create_dir(&files.disk).unwrap();
        assert!(says().contains("disk is no plain file"), "{}", says());
    }

    #[test]
    fn reading_ends_in_time_and_with_who_asked() {
        let dir = tempfile::tempdir().unwrap();
        let files = snapshot(dir.path());
        let sums = taken(&files);
        let late = Bounds {
            until: Instant::now() - Duration::from_millis(1),
            ..unbounded()
        };
        let error = sums.verify(&files, &late).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let left = unbounded();
        left.gone.cancel();
        let error = sums.verify(&files, &left).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Interrupted);
    }
}
