//! The stream's words and numbers, and their limits.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// What a stream begins with: this format and no other version of it.
const MAGIC: &[u8; 8] = b"tramcp1\n";
/// Most bytes in a piece of a file: large enough that a piece costs nothing, small enough to hold several in memory.
pub(crate) const CHUNK_BYTES: usize = 64 * 1024;
/// Most bytes of a path, a target or a reason: the kernel's limit of a path.
const TEXT_BYTES_MAX: usize = 4096;
/// In place of a piece's length: the sender gives up.
const GIVES_UP: u32 = u32::MAX;
/// What may be said of permissions: not that a program runs as its owner.
pub(crate) const MODE_MASK: u32 = 0o777;

/// One thing of the stream, without what is in it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    Directory { mode: u32, path: OsString },
    File { mode: u32, path: OsString },
    Link { path: OsString, target: OsString },
    LeftOut { path: OsString, reason: OsString },
    End,
}

pub(crate) struct Writer<'w, W>(pub(crate) &'w mut W);

impl<W: Write> Writer<'_, W> {
    pub(crate) fn begin(&mut self) -> io::Result<()> {
        self.0.write_all(MAGIC)
    }

    pub(crate) fn directory(&mut self, mode: u32, path: &Path) -> io::Result<()> {
        self.0.write_all(b"d")?;
        self.number(mode & MODE_MASK)?;
        self.text(path.as_os_str().as_bytes())
    }

    pub(crate) fn file(&mut self, mode: u32, path: &Path) -> io::Result<()> {
        self.0.write_all(b"f")?;
        self.number(mode & MODE_MASK)?;
        self.text(path.as_os_str().as_bytes())
    }

    pub(crate) fn chunk(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.number(u32::try_from(bytes.len()).map_err(io::Error::other)?)?;
        self.0.write_all(bytes)
    }

    pub(crate) fn link(&mut self, path: &Path, target: &Path) -> io::Result<()> {
        self.0.write_all(b"l")?;
        self.text(path.as_os_str().as_bytes())?;
        self.text(target.as_os_str().as_bytes())
    }

    pub(crate) fn left_out(&mut self, path: &Path, reason: &str) -> io::Result<()> {
        self.0.write_all(b"x")?;
        self.text(path.as_os_str().as_bytes())?;
        self.text(reason.as_bytes())
    }

    /// The end of a stream that cannot go on.
    pub(crate) fn give_up(&mut self, within_file: bool, reason: &str) -> io::Result<()> {
        if within_file {
            self.number(GIVES_UP)?;
        } else {
            self.0.write_all(b"a")?;
        }
        let bytes = reason.as_bytes();
        self.text(bytes.get(..TEXT_BYTES_MAX).unwrap_or(bytes))?;
        self.0.flush()
    }

    pub(crate) fn end(&mut self) -> io::Result<()> {
        self.0.write_all(b"e")?;
        self.0.flush()
    }

    fn number(&mut self, number: u32) -> io::Result<()> {
        self.0.write_all(&number.to_be_bytes())
    }

    fn text(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.len() > TEXT_BYTES_MAX {
            return Err(io::ErrorKind::InvalidFilename.into());
        }
        let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
        self.0.write_all(&length.to_be_bytes())?;
        self.0.write_all(bytes)
    }
}

pub(crate) struct Reader<'r, R>(pub(crate) &'r mut R);

impl<R: Read> Reader<'_, R> {
    pub(crate) fn begin(&mut self) -> io::Result<()> {
        let mut magic = [0; MAGIC.len()];
        self.0.read_exact(&mut magic)?;
        if &magic == MAGIC {
            Ok(())
        } else {
            Err(wrong("it does not begin as one"))
        }
    }

    pub(crate) fn entry(&mut self) -> io::Result<Entry> {
        let mut kind = [0];
        self.0.read_exact(&mut kind)?;
        Ok(match kind[0] {
            b'd' => Entry::Directory {
                mode: self.number()? & MODE_MASK,
                path: self.text()?,
            },
            b'f' => Entry::File {
                mode: self.number()? & MODE_MASK,
                path: self.text()?,
            },
            b'l' => Entry::Link {
                path: self.text()?,
                target: self.text()?,
            },
            b'x' => Entry::LeftOut {
                path: self.text()?,
                reason: self.text()?,
            },
            b'a' => return Err(self.gave_up()),
            b'e' => Entry::End,
            _ => return Err(wrong("it holds something unknown")),
        })
    }

    /// The next piece of a file, in `buffer`; empty at the file's end.
    pub(crate) fn chunk<'b>(&mut self, buffer: &'b mut [u8; CHUNK_BYTES]) -> io::Result<&'b [u8]> {
        let length = self.number()?;
        if length == GIVES_UP {
            return Err(self.gave_up());
        }
        let piece = usize::try_from(length)
            .ok()
            .and_then(|length| buffer.get_mut(..length))
            .ok_or_else(|| wrong("a piece is too long"))?;
        self.0.read_exact(piece)?;
        Ok(piece)
    }

    fn gave_up(&mut self) -> io::Error {
        match self.text() {
            Ok(reason) => io::Error::other(reason.to_string_lossy().into_owned()),
            Err(error) => error,
        }
    }

    fn number(&mut self) -> io::Result<u32> {
        let mut bytes = [0; 4];
        self.0.read_exact(&mut bytes)?;
        Ok(u32::from_be_bytes(bytes))
    }

    fn text(&mut self) -> io::Result<OsString> {
        let mut length = [0; 2];
        self.0.read_exact(&mut length)?;
        let length = usize::from(u16::from_be_bytes(length));
        if length > TEXT_BYTES_MAX {
            return Err(wrong("a name is too long"));
        }
        let mut bytes = vec![0; length];
        self.0.read_exact(&mut bytes)?;
        Ok(OsString::from_vec(bytes))
    }
}

/// The stream is none of ours, or was made to do harm.
pub(crate) fn wrong(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("what was sent is not a copy of files: {what}"),
    )
}
