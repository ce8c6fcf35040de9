//! Reads a file or a whole directory into a stream.

use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::Summary;
use crate::format::{CHUNK_BYTES, Writer};

/// What the top directory of a machine is called, which has no name.
const NAMELESS: &str = "root";

/// Writes the file or directory at `path` as a stream. A link that `path` is, is followed; links below are kept as they
/// are. What is no file, directory or link is left out and named.
///
/// # Errors
/// Those of reading, with the path, which the other side is told too; those of writing.
pub fn pack(path: &Path, output: &mut impl Write) -> io::Result<Summary> {
    let mut writer = Writer(output);
    writer.begin()?;
    let mut packing = Packing {
        writer,
        summary: Summary::default(),
        within_file: false,
    };
    let outcome = packing.whole(path);
    let Packing {
        mut writer,
        summary,
        within_file,
    } = packing;
    match outcome {
        Ok(()) => writer.end().map(|()| summary),
        Err(error) => {
            // Where writing failed, nobody hears it.
            let _ = writer.give_up(within_file, &error.to_string());
            Err(error)
        }
    }
}

struct Packing<'w, W> {
    writer: Writer<'w, W>,
    summary: Summary,
    /// Whether a file was begun and not ended.
    within_file: bool,
}

impl<W: Write> Packing<'_, W> {
    fn whole(&mut self, path: &Path) -> io::Result<()> {
        let top = fs::canonicalize(path).map_err(|error| at(path, error))?;
        let name = PathBuf::from(
            top.file_name()
                .map_or_else(|| OsString::from(NAMELESS), ToOwned::to_owned),
        );
        let about = fs::metadata(&top).map_err(|error| at(path, error))?;
        if !about.is_dir() {
            if !about.is_file() {
                return Err(at(path, io::Error::other("is neither a file nor a directory")));
            }
            return self.file(&top, &name);
        }
        self.writer.directory(about.mode(), &name)?;
        // Directories that are being read, the innermost last.
        let mut open = vec![(fs::read_dir(&top).map_err(|error| at(path, error))?, top, name)];
        while let Some((entries, from, to)) = open.last_mut() {
            let Some(entry) = entries.next() else {
                open.pop();
                continue;
            };
            let entry = entry.map_err(|error| at(from, error))?;
            let (from, to) = (from.join(entry.file_name()), to.join(entry.file_name()));
            let about = match fs::symlink_metadata(&from) {
                Ok(about) => about,
                // It has gone since the directory was read.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(at(&from, error)),
            };
            if about.is_dir() {
                self.writer.directory(about.mode(), &to)?;
                open.push((fs::read_dir(&from).map_err(|error| at(&from, error))?, from, to));
            } else {
                self.leaf(&from, &to, &about)?;
            }
        }
        Ok(())
    }

    fn leaf(&mut self, from: &Path, to: &Path, about: &Metadata) -> io::Result<()> {
        if about.is_symlink() {
            let target = fs::read_link(from).map_err(|error| at(from, error))?;
            self.writer.link(to, &target)
        } else if about.is_file() {
            self.file(from, to)
        } else {
            let reason = "is no file, directory or link";
            self.summary.leave_out(to, reason);
            self.writer.left_out(to, reason)
        }
    }

    fn file(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        // Neither through a link nor waiting for the other end of a pipe that has taken the file's place.
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
        let mut file = File::options()
            .read(true)
            .custom_flags(i32::try_from(flags).map_err(io::Error::other)?)
            .open(from)
            .map_err(|error| at(from, error))?;
        let about = file.metadata().map_err(|error| at(from, error))?;
        if !about.is_file() {
            return Err(at(from, io::Error::other("is a file no longer")));
        }
        self.writer.file(about.mode(), to)?;
        self.within_file = true;
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let count = match file.read(&mut buffer) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(at(from, error)),
            };
            self.writer.chunk(buffer.get(..count).unwrap_or_default())?;
            if count == 0 {
                break;
            }
            self.summary.bytes += u64::try_from(count).unwrap_or_default();
        }
        self.within_file = false;
        self.summary.files += 1;
        Ok(())
    }
}

/// The error with the path it is of.
fn at(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
