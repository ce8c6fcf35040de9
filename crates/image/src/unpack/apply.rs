//! Carries an archive's entries out, in their order.

use std::collections::HashMap;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};

use super::archive::{Archive, Entry, Kind, Piece};
use super::root::{self, Name, Root};
use super::{Budget, UnpackError, remove_all};

/// What starts a whiteout's name.
const WHITEOUT_PREFIX: &[u8] = b".wh.";
/// Marks its directory as opaque.
const OPAQUE_MARK: &[u8] = b".wh..wh..opq";
/// aufs's own bookkeeping, meaningless elsewhere.
const AUFS_PREFIX: &[u8] = b".wh..wh.";
/// Longest target of a symbolic link the kernel takes.
const MAX_TARGET_BYTES: usize = 4095;
/// Files are copied in pieces of this size.
const COPY_BYTES: usize = 256 << 10;
/// Paths kept to set the times of directories at the end. An archive with more (a bomb; real ones have a few
/// MiB) leaves the rest with the time of unpacking.
const MAX_REMEMBERED_BYTES: usize = 64 << 20;

/// What was done.
#[derive(Debug, Default)]
pub(super) struct Applied {
    pub(super) entries: u64,
    pub(super) skipped_devices: u64,
    pub(super) opaque_root: bool,
}

/// Unpacks every entry of `reader` below `directory`.
pub(super) fn apply(reader: impl Read, directory: &Path, budget: &Budget) -> Result<Applied, UnpackError> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = rustix::fs::open(directory, flags, Mode::empty())
        .map_err(|errno| UnpackError::io("opening the layer directory", b"/", errno))?;
    let mut unpacker = Unpacker {
        root: Root::new(opened),
        archive: Archive::new(reader),
        applied: Applied::default(),
        parent: None,
        replaced: false,
        directory_times: HashMap::new(),
        remembered_bytes: 0,
        buffer: vec![0; COPY_BYTES],
    };
    while let Some(entry) = unpacker.archive.next_entry()? {
        budget.take_entries(1)?;
        unpacker.entry(&entry)?;
    }
    unpacker.finish()
}

struct Unpacker<R> {
    root: Root,
    archive: Archive<R>,
    applied: Applied,
    /// The parent of the entry before: archives list a directory's files together.
    parent: Option<(Vec<u8>, OwnedFd)>,
    /// Whether something other than a file was replaced: the same path may lead elsewhere now.
    replaced: bool,
    directory_times: HashMap<Vec<u8>, (i64, u32)>,
    remembered_bytes: usize,
    buffer: Vec<u8>,
}

impl<R: Read> Unpacker<R> {
    fn entry(&mut self, entry: &Entry) -> Result<(), UnpackError> {
        let path = root::components(&entry.path)?;
        let Some((name, parents)) = path.split_last() else {
            return self.root_entry(entry);
        };
        if let Some(hidden) = parents
            .iter()
            .find(|part| part.bytes().starts_with(WHITEOUT_PREFIX))
        {
            return Err(UnpackError::name(hidden.bytes(), "a whiteout holds no files"));
        }
        if name.bytes().starts_with(WHITEOUT_PREFIX) {
            return self.whiteout(entry, parents, *name);
        }
        self.applied.entries += 1;
        if entry.kind == Kind::Device {
            self.applied.skipped_devices += 1;
            return Ok(());
        }
        let parent = self.parent(parents)?;
        let outcome = self.make(entry, &parent, *name, &path);
        self.parent = match outcome {
            Ok(()) if !self.replaced => Some((joined(parents), parent)),
            _ => None,
        };
        self.replaced = false;
        outcome
    }

    fn make(
        &mut self,
        entry: &Entry,
        parent: &OwnedFd,
        name: Name<'_>,
        path: &[Name<'_>],
    ) -> Result<(), UnpackError> {
        let failed = |doing: &'static str| move |error: io::Error| UnpackError::io(doing, &entry.path, error);
        match entry.kind {
            Kind::Directory => {
                let there = root::look(parent, name).map_err(failed("looking at"))?;
                let replaces_whiteout = there.as_ref().is_some_and(root::is_whiteout);
                if there.is_none_or(|stat| root::file_type(&stat) != FileType::Directory) {
                    self.clear(parent, name).map_err(failed("replacing"))?;
                    root::make_directory(parent, name).map_err(failed("making"))?;
                }
                let made = root::open_directory(parent, name).map_err(failed("opening"))?;
                if replaces_whiteout {
                    root::make_opaque(&made).map_err(failed("marking"))?;
                }
                root::describe_open(&made, entry, true).map_err(failed("describing"))?;
                self.remember(joined(path), entry);
            }
            Kind::File => {
                self.clear(parent, name).map_err(failed("replacing"))?;
                let mut file = root::create_file(parent, name).map_err(failed("creating"))?;
                self.copy(entry, &mut file)?;
                root::describe_open(&file, entry, true).map_err(failed("describing"))?;
            }
            Kind::Symlink => {
                if entry.link.is_empty() || entry.link.len() > MAX_TARGET_BYTES || entry.link.contains(&0) {
                    return Err(UnpackError::name(
                        &entry.path,
                        "it is a symbolic link without a usable target",
                    ));
                }
                self.clear(parent, name).map_err(failed("replacing"))?;
                root::make_symlink(parent, name, &entry.link).map_err(failed("linking"))?;
                root::describe_at(parent, name, entry, false).map_err(failed("describing"))?;
            }
            Kind::HardLink => self.hard_link(entry, parent, name)?,
            Kind::Fifo => {
                self.clear(parent, name).map_err(failed("replacing"))?;
                root::make_fifo(parent, name).map_err(failed("making"))?;
                root::describe_at(parent, name, entry, true).map_err(failed("describing"))?;
            }
            Kind::Device => {}
        }
        Ok(())
    }

    /// `./` describes the layer's own root.
    fn root_entry(&mut self, entry: &Entry) -> Result<(), UnpackError> {
        if entry.kind != Kind::Directory {
            return Err(UnpackError::name(&entry.path, "the root is a directory"));
        }
        let failed = |error: io::Error| UnpackError::io("describing", b"/", error);
        let directory = self.root.open().map_err(failed)?;
        root::describe_open(&directory, entry, true).map_err(failed)?;
        self.remember(Vec::new(), entry);
        Ok(())
    }

    fn whiteout(&mut self, entry: &Entry, parents: &[Name<'_>], name: Name<'_>) -> Result<(), UnpackError> {
        let failed = |error: io::Error| UnpackError::io("hiding", &entry.path, error);
        if name.bytes() == OPAQUE_MARK {
            if parents.is_empty() {
                self.applied.opaque_root = true;
                return Ok(());
            }
            let directory = self.root.ensure_directory(parents)?;
            return root::make_opaque(&directory).map_err(failed);
        }
        if name.bytes().starts_with(AUFS_PREFIX) {
            return Ok(());
        }
        let hidden = Name::new(&name.bytes()[WHITEOUT_PREFIX.len()..])
            .map_err(|reason| UnpackError::name(&entry.path, reason))?;
        self.applied.entries += 1;
        let parent = self.parent(parents)?;
        match root::look(&parent, hidden).map_err(failed)? {
            None => root::make_whiteout(&parent, hidden).map_err(failed)?,
            // A whiteout is about the layers below. What this layer put here hides a lower file anyway, but
            // merges with a lower directory, which is to be hidden.
            Some(stat) if root::file_type(&stat) == FileType::Directory => {
                let directory = root::open_directory(&parent, hidden).map_err(failed)?;
                root::make_opaque(&directory).map_err(failed)?;
            }
            Some(_) => {}
        }
        self.parent = Some((joined(parents), parent));
        Ok(())
    }

    fn hard_link(&mut self, entry: &Entry, parent: &OwnedFd, name: Name<'_>) -> Result<(), UnpackError> {
        let refused = |reason: &'static str| UnpackError::Link {
            name: super::printable(&entry.path),
            target: super::printable(&entry.link),
            reason,
        };
        let failed = |error: io::Error| UnpackError::io("linking", &entry.path, error);
        let target = root::components(&entry.link)?;
        let (target_name, target_parents) = target
            .split_last()
            .ok_or_else(|| refused("which is a directory"))?;
        let target_parent = self
            .root
            .existing_directory(target_parents)
            .map_err(|_| refused("which is not in this layer"))?;
        let stat = root::look(&target_parent, *target_name)
            .map_err(failed)?
            .ok_or_else(|| refused("which is not in this layer"))?;
        match root::file_type(&stat) {
            FileType::RegularFile | FileType::Symlink | FileType::Fifo => {}
            FileType::Directory => return Err(refused("which is a directory")),
            _ => return Err(refused("which cannot be linked")),
        }
        if let Some(there) = root::look(parent, name).map_err(failed)? {
            if (there.st_dev, there.st_ino) == (stat.st_dev, stat.st_ino) {
                return Ok(());
            }
            self.clear(parent, name).map_err(failed)?;
        }
        // The target may just have been removed with a directory that stood here.
        root::make_hard_link(&target_parent, *target_name, parent, name).map_err(failed)
    }

    /// Removes what an entry replaces.
    fn clear(&mut self, parent: &OwnedFd, name: Name<'_>) -> io::Result<()> {
        if let Some(stat) = root::look(parent, name)? {
            self.replaced |= root::file_type(&stat) != FileType::RegularFile;
            remove_all(parent, name.bytes())?;
        }
        Ok(())
    }

    /// Copies the entry's data: ordinary files at once, sparse ones piece by piece with holes between.
    fn copy(&mut self, entry: &Entry, file: &mut std::fs::File) -> Result<(), UnpackError> {
        match &entry.sparse {
            None => self.copy_bytes(entry, file, entry.size),
            Some(pieces) => {
                let failed = |error: io::Error| UnpackError::io("writing", &entry.path, error);
                for Piece { offset, bytes } in pieces {
                    file.seek(SeekFrom::Start(*offset)).map_err(failed)?;
                    self.copy_bytes(entry, file, *bytes)?;
                }
                file.set_len(entry.size).map_err(failed)
            }
        }
    }

    fn copy_bytes(&mut self, entry: &Entry, file: &mut std::fs::File, bytes: u64) -> Result<(), UnpackError> {
        let mut left = bytes;
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
            let count = self
                .archive
                .read(&mut self.buffer[..want])
                .map_err(UnpackError::Compression)?;
            if count == 0 {
                return Err(UnpackError::Archive("it ends inside a file"));
            }
            file.write_all(&self.buffer[..count])
                .map_err(|error| UnpackError::io("writing", &entry.path, error))?;
            left -= count as u64;
        }
        Ok(())
    }

    fn parent(&mut self, parents: &[Name<'_>]) -> Result<OwnedFd, UnpackError> {
        match self.parent.take() {
            Some((path, directory)) if path == joined(parents) => Ok(directory),
            _ => self.root.ensure_directory(parents),
        }
    }

    fn remember(&mut self, path: Vec<u8>, entry: &Entry) {
        if self.remembered_bytes < MAX_REMEMBERED_BYTES {
            self.remembered_bytes += path.len() + size_of::<(Vec<u8>, (i64, u32))>();
            self.directory_times
                .insert(path, (entry.mtime_seconds, entry.mtime_nanos));
        }
    }

    /// Filling a directory changed its time: set them all again.
    fn finish(self) -> Result<Applied, UnpackError> {
        for (path, (seconds, nanos)) in &self.directory_times {
            // What was replaced since by something else is nobody's loss.
            let Ok(directory) = root::components(path).and_then(|path| self.root.existing_directory(&path))
            else {
                continue;
            };
            root::set_times(&directory, *seconds, *nanos)
                .map_err(|error| UnpackError::io("setting the time of", path, error))?;
        }
        Ok(self.applied)
    }
}

fn joined(path: &[Name<'_>]) -> Vec<u8> {
    path.iter()
        .map(|name| name.bytes())
        .collect::<Vec<_>>()
        .join(&b'/')
}
