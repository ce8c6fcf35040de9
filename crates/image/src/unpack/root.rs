//! The only code that turns names of an archive into operations on this machine's file system.
//!
//! A [`Name`] is proven to be one component: not empty, not `.` or `..`, without slash or NUL, not too long.
//! A [`Parent`] is an open directory inside the layer. Everything else is done with the two together, without
//! following the last component.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid, XattrFlags, openat,
    openat2,
};
use rustix::io::Errno;

use super::UnpackError;
use super::archive::Entry;
use crate::limits::MAX_PATH_BYTES;

/// Longest component on every Linux file system.
const MAX_NAME_BYTES: usize = 255;
/// A character device 0/0 is overlayfs's whiteout.
const WHITEOUT_DEVICE: rustix::fs::Dev = 0;
/// Marks a directory that hides the one below it.
const OPAQUE_ATTRIBUTE: &str = "trusted.overlay.opaque";
/// Resolution of a path of the archive: links stay inside, and no mount or magic link leads out.
const INSIDE: ResolveFlags = ResolveFlags::IN_ROOT
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);
const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::RDONLY).union(OFlags::CLOEXEC);
/// Each fails only if something is renamed in the microseconds it takes; a busy machine may do that many times.
const RESOLVE_ATTEMPTS: usize = 128;
/// Directories nobody described.
const IMPLIED_MODE: Mode = Mode::from_raw_mode(0o755);
/// Files and directories while they are being filled.
const PRIVATE_FILE: Mode = Mode::from_raw_mode(0o600);
const PRIVATE_DIRECTORY: Mode = Mode::from_raw_mode(0o700);

/// One component of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Name<'a>(&'a [u8]);

impl<'a> Name<'a> {
    /// Checks one component.
    pub(super) fn new(bytes: &'a [u8]) -> Result<Self, &'static str> {
        match bytes {
            b"" | b"." => Err("it names nothing"),
            b".." => Err("it leads upwards"),
            _ if bytes.contains(&b'/') => Err("it holds a slash"),
            _ if bytes.contains(&0) => Err("it holds a NUL byte"),
            _ if bytes.len() > MAX_NAME_BYTES => Err("a part of it is longer than 255 bytes"),
            _ => Ok(Self(bytes)),
        }
    }

    pub(super) fn bytes(self) -> &'a [u8] {
        self.0
    }
}

/// Splits a path of the archive into checked components. Empty means the layer's root.
pub(super) fn components(path: &[u8]) -> Result<Vec<Name<'_>>, UnpackError> {
    if path.len() > MAX_PATH_BYTES {
        return Err(UnpackError::name(path, "it is longer than 4095 bytes"));
    }
    path.split(|byte| *byte == b'/')
        .filter(|part| !part.is_empty() && *part != b".")
        .map(|part| Name::new(part).map_err(|reason| UnpackError::name(path, reason)))
        .collect()
}

/// The layer's directory.
#[derive(Debug)]
pub(super) struct Root {
    directory: OwnedFd,
}

impl Root {
    pub(super) fn new(directory: OwnedFd) -> Self {
        Self { directory }
    }

    pub(super) fn open(&self) -> io::Result<OwnedFd> {
        self.directory.try_clone()
    }

    /// The directory at `path`, following links inside the layer. Makes what is missing.
    pub(super) fn ensure_directory(&self, path: &[Name<'_>]) -> Result<OwnedFd, UnpackError> {
        let joined = join(path);
        match self.open_inside(&joined) {
            Ok(directory) => return Ok(directory),
            Err(Errno::NOENT) => {}
            Err(Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => {
                return Err(UnpackError::name(
                    &joined,
                    "a part of it is not a directory in this layer",
                ));
            }
            Err(errno) => return Err(UnpackError::io("opening a directory of", &joined, errno)),
        }
        // Something is missing: walk down, making it. Links on the way are resolved from the root again.
        for depth in 1..=path.len() {
            let (upper, last) = path.split_at(depth - 1);
            let parent = self.existing_directory(upper)?;
            if let Some(name) = last.first() {
                match rustix::fs::mkdirat(&parent, name.bytes(), IMPLIED_MODE) {
                    Ok(()) => {
                        // The umask may have taken bits away.
                        let made = openat(&parent, name.bytes(), DIRECTORY | OFlags::NOFOLLOW, Mode::empty())
                            .map_err(|errno| UnpackError::io("opening", &joined, errno))?;
                        rustix::fs::fchmod(&made, IMPLIED_MODE)
                            .map_err(|errno| UnpackError::io("setting the mode of", &joined, errno))?;
                    }
                    Err(Errno::EXIST) => {}
                    Err(errno) => return Err(UnpackError::io("making a directory of", &joined, errno)),
                }
            }
        }
        self.existing_directory(path)
    }

    /// Resolves inside the layer. A link with `..` in it cannot be followed safely while anything on the machine is
    /// being renamed; the kernel then says to try again.
    fn open_inside(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        for _ in 1..RESOLVE_ATTEMPTS {
            match openat2(&self.directory, path, DIRECTORY, Mode::empty(), INSIDE) {
                Err(Errno::AGAIN) => {}
                other => return other,
            }
        }
        openat2(&self.directory, path, DIRECTORY, Mode::empty(), INSIDE)
    }

    /// The directory at `path`, which must be there.
    pub(super) fn existing_directory(&self, path: &[Name<'_>]) -> Result<OwnedFd, UnpackError> {
        let joined = join(path);
        self.open_inside(&joined).map_err(|errno| match errno {
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV => {
                UnpackError::name(&joined, "a part of it is not a directory in this layer")
            }
            errno => UnpackError::io("opening a directory of", &joined, errno),
        })
    }
}

fn join(path: &[Name<'_>]) -> Vec<u8> {
    if path.is_empty() {
        return b".".to_vec();
    }
    path.iter()
        .map(|name| name.bytes())
        .collect::<Vec<_>>()
        .join(&b'/')
}

/// What stands at a name, without following it.
pub(super) fn look(parent: impl AsFd, name: Name<'_>) -> io::Result<Option<Stat>> {
    match rustix::fs::statat(parent, name.bytes(), AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

pub(super) fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

pub(super) fn is_whiteout(stat: &Stat) -> bool {
    file_type(stat) == FileType::CharacterDevice && stat.st_rdev == WHITEOUT_DEVICE
}

pub(super) fn make_directory(parent: impl AsFd, name: Name<'_>) -> io::Result<()> {
    Ok(rustix::fs::mkdirat(parent, name.bytes(), PRIVATE_DIRECTORY)?)
}

pub(super) fn open_directory(parent: impl AsFd, name: Name<'_>) -> io::Result<OwnedFd> {
    Ok(openat(
        parent,
        name.bytes(),
        DIRECTORY | OFlags::NOFOLLOW,
        Mode::empty(),
    )?)
}

pub(super) fn create_file(parent: impl AsFd, name: Name<'_>) -> io::Result<File> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(File::from(openat(parent, name.bytes(), flags, PRIVATE_FILE)?))
}

pub(super) fn make_symlink(parent: impl AsFd, name: Name<'_>, target: &[u8]) -> io::Result<()> {
    Ok(rustix::fs::symlinkat(target, parent, name.bytes())?)
}

pub(super) fn make_hard_link(
    target_parent: impl AsFd,
    target: Name<'_>,
    parent: impl AsFd,
    name: Name<'_>,
) -> io::Result<()> {
    // No AT_SYMLINK_FOLLOW: a link to a symbolic link is a second name of the symbolic link itself.
    Ok(rustix::fs::linkat(
        target_parent,
        target.bytes(),
        parent,
        name.bytes(),
        AtFlags::empty(),
    )?)
}

pub(super) fn make_fifo(parent: impl AsFd, name: Name<'_>) -> io::Result<()> {
    Ok(rustix::fs::mknodat(
        parent,
        name.bytes(),
        FileType::Fifo,
        PRIVATE_FILE,
        0,
    )?)
}

pub(super) fn make_whiteout(parent: impl AsFd, name: Name<'_>) -> io::Result<()> {
    Ok(rustix::fs::mknodat(
        parent,
        name.bytes(),
        FileType::CharacterDevice,
        Mode::empty(),
        WHITEOUT_DEVICE,
    )?)
}

pub(super) fn make_opaque(directory: impl AsFd) -> io::Result<()> {
    Ok(rustix::fs::fsetxattr(
        directory,
        OPAQUE_ATTRIBUTE,
        b"y",
        XattrFlags::empty(),
    )?)
}

/// Owner, attributes, mode and times of an open file or directory. In this order: a change of owner clears
/// setuid bits and capabilities.
pub(super) fn describe_open(file: impl AsFd, entry: &Entry, with_times: bool) -> io::Result<()> {
    rustix::fs::fchown(
        &file,
        Some(Uid::from_raw(entry.uid)),
        Some(Gid::from_raw(entry.gid)),
    )?;
    for (name, value) in entry.xattrs.iter().filter(|(name, _)| is_kept_attribute(name)) {
        match rustix::fs::fsetxattr(&file, &name[..], value, XattrFlags::empty()) {
            // tmpfs of old kernels has no user attributes; a malformed capability is none.
            Ok(()) | Err(Errno::NOTSUP | Errno::INVAL | Errno::PERM | Errno::TOOBIG | Errno::RANGE) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    rustix::fs::fchmod(&file, Mode::from_raw_mode(entry.mode))?;
    if with_times {
        rustix::fs::futimens(&file, &times(entry.mtime_seconds, entry.mtime_nanos))?;
    }
    Ok(())
}

/// Owner, mode and times of something that is not opened: a symbolic link or a fifo.
pub(super) fn describe_at(
    parent: impl AsFd,
    name: Name<'_>,
    entry: &Entry,
    with_mode: bool,
) -> io::Result<()> {
    let (uid, gid) = (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)));
    rustix::fs::chownat(&parent, name.bytes(), uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
    if with_mode {
        // Nothing else works in this directory, so the fifo made a moment ago is still what stands here.
        rustix::fs::chmodat(
            &parent,
            name.bytes(),
            Mode::from_raw_mode(entry.mode),
            AtFlags::empty(),
        )?;
    }
    let times = times(entry.mtime_seconds, entry.mtime_nanos);
    Ok(rustix::fs::utimensat(
        parent,
        name.bytes(),
        &times,
        AtFlags::SYMLINK_NOFOLLOW,
    )?)
}

pub(super) fn set_times(file: impl AsFd, seconds: i64, nanos: u32) -> io::Result<()> {
    Ok(rustix::fs::futimens(file, &times(seconds, nanos))?)
}

fn times(seconds: i64, nanos: u32) -> Timestamps {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: nanos.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

/// Capabilities of programs, and what users put there themselves. Never overlayfs's own marks, which would let
/// an archive write whiteouts in a spelling of its own.
fn is_kept_attribute(name: &[u8]) -> bool {
    name == b"security.capability" || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
}
