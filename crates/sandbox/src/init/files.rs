//! Paths inside a root that is not trusted.
//!
//! Used while the root is put together. The one design choice to know: a path is walked component by
//! component with `openat2(RESOLVE_IN_ROOT)`, where absolute symlinks and `..` stay inside, and what
//! is created is created relative to a directory that was so reached.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;

use super::{During, Step};
use crate::protocol::{ConfigFile, IdRange, Link, outside};

const DIRECTORY_MODE: u32 = 0o755;
/// Tries of a path while something on the machine is renamed or mounted: the kernel then cannot vouch for a `..` and
/// asks for another try. Each takes microseconds; nobody can keep up a race for this many.
const TRIES: usize = 128;

/// The root of an instance that is being put together.
#[derive(Debug)]
pub(super) struct Root {
    fd: OwnedFd,
    ids: Option<IdRange>,
}

/// Who owns what is created.
#[derive(Debug, Clone, Copy)]
pub(super) struct Owner {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Owner {
    pub(super) const ROOT: Self = Self { uid: 0, gid: 0 };
}

impl Root {
    pub(super) fn open(path: &Path, ids: Option<IdRange>) -> Step<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(CWD, path, flags, Mode::empty()).during(|| "open the root".into())?;
        Ok(Self { fd, ids })
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Open a path inside, wherever its symlinks lead inside.
    fn resolve(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        again(|| {
            rustix::fs::openat2(
                &self.fd,
                path,
                flags | OFlags::PATH | OFlags::CLOEXEC,
                Mode::empty(),
                ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
            )
        })
    }

    /// Whether there is a directory of this name at the top, and not a symlink to one.
    pub(super) fn has_directory(&self, name: &str) -> bool {
        rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|found| FileType::from_raw_mode(found.st_mode) == FileType::Directory)
    }

    /// The directory at this path, made with its parents if missing.
    pub(super) fn ensure_dir(&self, path: &Path, owner: Owner) -> Step<OwnedFd> {
        self.try_ensure_dir(path, owner)
            .during(|| format!("make the directory {}", path.display()))
    }

    fn try_ensure_dir(&self, path: &Path, owner: Owner) -> Result<OwnedFd, Errno> {
        // The usual case: it is there.
        match self.resolve(path, OFlags::DIRECTORY) {
            Err(Errno::NOENT) => {}
            other => return other,
        }
        let mut walked = PathBuf::from("/");
        let mut current = self.resolve(&walked, OFlags::DIRECTORY)?;
        for component in path.components() {
            let Component::Normal(name) = component else {
                continue;
            };
            walked.push(name);
            current = match self.resolve(&walked, OFlags::DIRECTORY) {
                Err(Errno::NOENT) => {
                    rustix::fs::mkdirat(&current, name, Mode::from_raw_mode(DIRECTORY_MODE))?;
                    let made = self.resolve(&walked, OFlags::DIRECTORY)?;
                    self.own(&made, owner)?;
                    made
                }
                other => other?,
            };
        }
        Ok(current)
    }

    /// What a bind mount can be put on: a directory or an (empty, new) file.
    pub(super) fn ensure_target(&self, path: &Path, directory: bool) -> Step<OwnedFd> {
        if directory {
            return self.ensure_dir(path, Owner::ROOT);
        }
        let what = || format!("make the file {} to mount on", path.display());
        match self.resolve(path, OFlags::empty()) {
            Err(Errno::NOENT) => {}
            other => return other.during(what),
        }
        let (parent, name) = self.parent(path)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o644)).during(what)?;
        self.resolve(path, OFlags::empty()).during(what)
    }

    /// Put a file in place. Whatever stands at the path itself is replaced, never followed: writing
    /// through a symlink, a pipe or a hard link of an image could reach things it should not.
    pub(super) fn write(&self, file: &ConfigFile) -> Step<()> {
        let what = || format!("write the file {}", file.path.display());
        let (parent, name) = self.parent(&file.path)?;
        match rustix::fs::unlinkat(&parent, &name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno).during(what),
        }
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // Nobody else may read it before it has its owner and mode.
        let created = rustix::fs::openat(&parent, &name, flags, Mode::from_raw_mode(0o600)).during(what)?;
        rustix::fs::fchown(
            &created,
            Some(Uid::from_raw(outside(self.ids, file.uid))),
            Some(Gid::from_raw(outside(self.ids, file.gid))),
        )
        .during(what)?;
        rustix::fs::fchmod(&created, Mode::from_raw_mode(file.mode)).during(what)?;
        std::fs::File::from(created).write_all(&file.content).during(what)
    }

    /// Put a symbolic link in place. What is mounted there stays: it is what the link would lead to, or was asked for.
    pub(super) fn link(&self, link: &Link) -> Step<()> {
        let what = || format!("make the link {}", link.path.display());
        let (parent, name) = self.parent(&link.path)?;
        link_at(parent.as_fd(), &name, &link.target).during(what)
    }

    fn own(&self, fd: &OwnedFd, owner: Owner) -> Result<(), Errno> {
        let uid = Uid::from_raw(outside(self.ids, owner.uid));
        let gid = Gid::from_raw(outside(self.ids, owner.gid));
        rustix::fs::chownat(fd, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)
    }

    fn parent(&self, path: &Path) -> Step<(OwnedFd, PathBuf)> {
        let parent = path.parent().unwrap_or(Path::new("/"));
        let name = path
            .file_name()
            .ok_or(Errno::INVAL)
            .during(|| format!("use the path {}", path.display()))?;
        Ok((self.ensure_dir(parent, Owner::ROOT)?, name.into()))
    }
}

/// Makes a link in a directory, in the place of what is there and is not a directory or mounted.
pub(super) fn link_at(parent: BorrowedFd<'_>, name: &Path, target: &Path) -> Result<(), Errno> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(Errno::BUSY) => return Ok(()),
        Err(errno) => return Err(errno),
    }
    rustix::fs::symlinkat(target, parent, name)
}

/// Repeats what the kernel asks to repeat.
pub(crate) fn again<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    let mut result = call();
    for _ in 1..TRIES {
        match result {
            Err(Errno::AGAIN) => result = call(),
            other => return other,
        }
    }
    result
}

/// Whether a path of this machine is a directory.
pub(super) fn is_directory(fd: impl AsFd) -> Result<bool, Errno> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode) == FileType::Directory)
}
