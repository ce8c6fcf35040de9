//! Writes a stream down, whoever made it.
//!
//! Every path is walked from the directory that was asked for, one component at a time and never through a link, so
//! nothing is written outside, whatever the stream says and whatever it made before. A file appears under its name when it
//! is whole.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::Summary;
use crate::format::{CHUNK_BYTES, Entry, Reader, wrong};

/// What the owner needs of a directory while it is filled.
const FILLING: u32 = 0o700;
/// Most directories whose owner may not write to them: their permissions are set last, and remembered until then.
const CLOSED_MAX: usize = 10_000;
/// Most components of a path: far above real trees, low enough to walk.
const DEPTH_MAX: usize = 256;

/// Writes the stream's file or directory to `to`: below it, when it is a directory, and in place of it otherwise. Its
/// directories are made. A link that leads out of what is copied, or might, is left out and named.
///
/// # Errors
/// Those of reading the stream, which may be what its sender met, and of writing, with the path. What was written whole
/// by then stays.
pub fn unpack(input: &mut impl Read, to: &Path) -> io::Result<Summary> {
    let mut reader = Reader(input);
    reader.begin()?;
    let inside = fs::metadata(to).is_ok_and(|about| about.is_dir());
    let (parent, name) = if inside || ends_as_directory(to) {
        (to, None)
    } else {
        let name = to.file_name().ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{}: has no name", to.display()),
            )
        })?;
        (to.parent().unwrap_or(Path::new("")), Some(name.to_owned()))
    };
    let parent = if parent.as_os_str().is_empty() {
        Path::new(".")
    } else {
        parent
    };
    fs::create_dir_all(parent).map_err(|error| at(parent, error))?;
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY;
    let top =
        rustix::fs::openat(CWD, parent, flags, Mode::empty()).map_err(|error| at(parent, error.into()))?;
    let mut unpacking = Unpacking {
        top,
        into: parent.to_owned(),
        name,
        summary: Summary::default(),
        closed: Vec::new(),
    };
    loop {
        let entry = reader.entry()?;
        if entry == Entry::End {
            break;
        }
        unpacking.entry(entry, &mut reader)?;
    }
    unpacking.close()?;
    Ok(unpacking.summary)
}

fn ends_as_directory(path: &Path) -> bool {
    let bytes = path.as_os_str().as_bytes();
    bytes.ends_with(b"/") || bytes.ends_with(b"/.") || bytes == b"."
}

struct Unpacking {
    /// The directory that what is copied goes into.
    top: OwnedFd,
    /// How whoever asked called it.
    into: PathBuf,
    /// What it is to be called there; none: as the stream calls it.
    name: Option<OsString>,
    summary: Summary,
    /// Directories whose permissions are set last.
    closed: Vec<(Vec<OsString>, u32)>,
}

impl Unpacking {
    fn entry(&mut self, entry: Entry, reader: &mut Reader<'_, impl Read>) -> io::Result<()> {
        match entry {
            Entry::Directory { mode, path } => {
                let names = self.names(&path)?;
                let place = self.place(&names);
                self.directory(names, mode).map_err(|error| at(&place, error))
            }
            Entry::File { mode, path } => {
                let names = self.names(&path)?;
                self.file(&names, mode, reader)
            }
            Entry::Link { path, target } => {
                let names = self.names(&path)?;
                let place = self.place(&names);
                if stays_inside(names.len(), Path::new(&target)) {
                    return self.link(&names, &target).map_err(|error| at(&place, error));
                }
                let target = Path::new(&target).display();
                let reason = format!("is a link out of what is copied, to {target}");
                self.summary.leave_out(&place, &reason);
                Ok(())
            }
            Entry::LeftOut { path, reason } => {
                self.summary
                    .leave_out(Path::new(&path), &reason.to_string_lossy());
                Ok(())
            }
            Entry::End => Ok(()),
        }
    }

    /// Where something goes, for whoever reads of it.
    fn place(&self, names: &[OsString]) -> PathBuf {
        self.into.join(names.iter().collect::<PathBuf>())
    }

    /// The components of a path of the stream, with the name that was asked for in place of the first.
    fn names(&self, path: &OsStr) -> io::Result<Vec<OsString>> {
        let mut names = Vec::new();
        for component in Path::new(path).components() {
            match component {
                Component::Normal(name) if names.len() < DEPTH_MAX && !name.as_bytes().contains(&0) => {
                    names.push(name.to_owned());
                }
                _ => return Err(wrong("a name in it leads elsewhere")),
            }
        }
        match (names.first_mut(), &self.name) {
            (None, _) => return Err(wrong("a name in it is empty")),
            (Some(first), Some(name)) => first.clone_from(name),
            (Some(_), None) => {}
        }
        Ok(names)
    }

    /// The directory of what `names` leads to, and its own name. Directories on the way must be there: the stream has each
    /// before what is in it.
    fn parent<'n>(&self, names: &'n [OsString]) -> io::Result<(OwnedFd, &'n OsStr)> {
        let Some((last, before)) = names.split_last() else {
            return Err(wrong("a name in it is empty"));
        };
        let mut directory = self.top.try_clone()?;
        for name in before {
            directory = open_directory(&directory, name)?;
        }
        Ok((directory, last))
    }

    fn directory(&mut self, names: Vec<OsString>, mode: u32) -> io::Result<()> {
        let (parent, name) = self.parent(&names)?;
        match rustix::fs::mkdirat(&parent, name, permissions(FILLING)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        // A link or a file of that name is refused here.
        let directory = open_directory(&parent, name)?;
        rustix::fs::fchmod(&directory, permissions(mode | FILLING))?;
        if mode & FILLING != FILLING {
            if self.closed.len() == CLOSED_MAX {
                return Err(wrong("it has too many directories that cannot be written to"));
            }
            self.closed.push((names, mode));
        }
        Ok(())
    }

    /// Gives directories the permissions that would have kept us from filling them; the innermost first.
    fn close(&mut self) -> io::Result<()> {
        while let Some((names, mode)) = self.closed.pop() {
            let (parent, name) = self.parent(&names)?;
            rustix::fs::fchmod(open_directory(&parent, name)?, permissions(mode))?;
        }
        Ok(())
    }

    fn file(&mut self, names: &[OsString], mode: u32, reader: &mut Reader<'_, impl Read>) -> io::Result<()> {
        let here = |error| at(&self.place(names), error);
        let (parent, name) = self.parent(names).map_err(here)?;
        let (mut file, passing) = Passing::create(&parent).map_err(here)?;
        let mut buffer = [0; CHUNK_BYTES];
        let mut bytes: u64 = 0;
        loop {
            // An error of the sender has a path of its own.
            let piece = reader.chunk(&mut buffer)?;
            if piece.is_empty() {
                break;
            }
            file.write_all(piece).map_err(here)?;
            bytes += u64::try_from(piece.len()).unwrap_or_default();
        }
        rustix::fs::fchmod(&file, permissions(mode)).map_err(|error| here(error.into()))?;
        passing.rename(name).map_err(here)?;
        self.summary.files += 1;
        self.summary.bytes += bytes;
        Ok(())
    }

    fn link(&self, names: &[OsString], target: &OsStr) -> io::Result<()> {
        let (parent, name) = self.parent(names)?;
        match rustix::fs::symlinkat(target, &parent, name) {
            Err(Errno::EXIST) => {
                // A directory in the way stays and is an error.
                rustix::fs::unlinkat(&parent, name, AtFlags::empty())?;
                rustix::fs::symlinkat(target, &parent, name)?;
            }
            other => other?,
        }
        Ok(())
    }
}

/// A file without its name yet; removed unless it gets it.
struct Passing<'p> {
    parent: &'p OwnedFd,
    name: Option<String>,
}

impl<'p> Passing<'p> {
    fn create(parent: &'p OwnedFd) -> io::Result<(File, Self)> {
        /// Several copies into one directory at a time are rare, and leftovers of one that was killed rarer.
        const TRIES: u32 = 1000;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        for number in 0..TRIES {
            let name = format!(".tram-{}-{number}", std::process::id());
            match rustix::fs::openat(parent, &name, flags, permissions(0o600)) {
                Ok(file) => {
                    let passing = Self {
                        parent,
                        name: Some(name),
                    };
                    return Ok((File::from(file), passing));
                }
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// In place of what has the name, unless that is a directory.
    fn rename(mut self, to: &OsStr) -> io::Result<()> {
        if let Some(name) = &self.name {
            rustix::fs::renameat(self.parent, name, self.parent, to)?;
        }
        self.name = None;
        Ok(())
    }
}

impl Drop for Passing<'_> {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            // There is nobody to tell.
            let _ = rustix::fs::unlinkat(self.parent, name, AtFlags::empty());
        }
    }
}

fn open_directory(parent: &impl AsFd, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
    match rustix::fs::openat(parent, name, flags, Mode::empty()) {
        Ok(directory) => Ok(directory),
        Err(Errno::NOTDIR | Errno::LOOP) => Err(io::Error::new(
            io::ErrorKind::NotADirectory,
            format!(
                "{} is a link or a file, not a directory",
                Path::new(name).display()
            ),
        )),
        Err(error) => Err(error.into()),
    }
}

/// Whether a link stays within what is copied, wherever other links of it lead: it goes up from its own directory no
/// higher than the top, and then only down. `depth`: components of the link's own path.
fn stays_inside(depth: usize, target: &Path) -> bool {
    // What is copied is the first component; a link in it may go up to it and no further.
    let mut above = depth.saturating_sub(2);
    let mut goes_down = false;
    for component in target.components() {
        match component {
            Component::CurDir => {}
            Component::Normal(_) => goes_down = true,
            Component::ParentDir if !goes_down && above > 0 => above -= 1,
            _ => return false,
        }
    }
    depth >= 2 && !target.as_os_str().is_empty()
}

fn permissions(mode: u32) -> Mode {
    Mode::from_raw_mode(mode)
}

fn at(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests;
