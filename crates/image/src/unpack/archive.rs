//! Reads a tar archive as a stream: ustar, old v7, GNU long names and sparse files, pax headers and sparse
//! files.
//!
//! Written here rather than taken from the `tar` crate because every buffer must be bounded against a hostile
//! archive (that crate reads a long name of any length into memory) and because pax sparse files are needed.
//! Data is never buffered: the caller reads the entry's bytes from [`Archive`] itself.

use std::io::{self, Read};

use super::UnpackError;

mod header;
mod pax;

use header::Block;

/// The unit of the format.
const BLOCK_BYTES: usize = 512;
/// A long name in GNU's way. `PATH_MAX` is 4096; what is longer is refused by name anyway.
const MAX_LONG_NAME_BYTES: u64 = 16 << 10;
/// All pax records of one entry: extended attributes may be 64 KiB each.
const MAX_PAX_BYTES: u64 = 1 << 20;
/// Pieces of one sparse file.
const MAX_SPARSE_PIECES: usize = 1 << 16;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Directory,
    Symlink,
    HardLink,
    Fifo,
    /// Character or block device.
    Device,
}

/// A piece of a sparse file: `bytes` of data at `offset`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

/// The description of one entry.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) path: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) kind: Kind,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime_seconds: i64,
    pub(super) mtime_nanos: u32,
    /// Bytes of the file once written, holes included.
    pub(super) size: u64,
    /// `None` for an ordinary file.
    pub(super) sparse: Option<Vec<Piece>>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A tar archive being read. Between two calls of [`Archive::next_entry`] it reads as the entry's data.
pub(super) struct Archive<R> {
    inner: R,
    /// Data of the current entry that is left.
    left: u64,
    /// Padding after it.
    padding: u64,
}

impl<R: Read> Archive<R> {
    pub(super) fn new(inner: R) -> Self {
        Self {
            inner,
            left: 0,
            padding: 0,
        }
    }

    /// The next entry, or `None` at the end mark. What is left of the data before is skipped.
    pub(super) fn next_entry(&mut self) -> Result<Option<Entry>, UnpackError> {
        let mut records = pax::Records::default();
        let mut long_path = None;
        let mut long_link = None;
        loop {
            self.skip()?;
            let Some(block) = self.block()? else {
                return Ok(None);
            };
            let size = block.size()?;
            match block.kind() {
                b'L' => long_path = Some(self.long_name(size)?),
                b'K' => long_link = Some(self.long_name(size)?),
                b'x' | b'X' => records.extend(&self.small(size, MAX_PAX_BYTES)?)?,
                // Global records (git writes its commit there) say nothing a layer needs.
                b'g' => self.set_data(size),
                _ => {
                    return self
                        .describe(&block, size, records, long_path, long_link)
                        .map(Some);
                }
            }
        }
    }

    fn describe(
        &mut self,
        block: &Block,
        header_size: u64,
        records: pax::Records,
        long_path: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Entry, UnpackError> {
        let path = records.path.or(long_path).unwrap_or_else(|| block.path());
        let link = records.link.or(long_link).unwrap_or_else(|| block.link());
        let kind = match block.kind() {
            // Before ustar, a directory was a file whose name ends in a slash.
            0 | b'0' | b'7' if path.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' | b'4' => Kind::Device,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            _ => return Err(UnpackError::name(&path, "it is of a kind no layer may hold")),
        };
        // Links and directories may carry a size and have no data.
        let data = if kind == Kind::File {
            records.size.unwrap_or(header_size)
        } else {
            0
        };
        self.set_data(data);
        let mut size = data;
        let mut sparse = None;
        let mut name = path;
        if kind == Kind::File {
            if block.kind() == b'S' {
                // The extension blocks stand between the header and the data and are not counted in it.
                let (pieces, real_size) = self.gnu_sparse(block)?;
                self.set_data(data);
                (sparse, size) = (Some(pieces), real_size);
            } else if let Some(map) = records.sparse {
                let pieces = match map.pieces {
                    Some(pieces) => pieces,
                    None => self.pax_sparse()?,
                };
                (sparse, size) = (Some(pieces), map.real_size.unwrap_or(data));
                name = map.name.unwrap_or(name);
            }
            if let Some(pieces) = &sparse {
                check_sparse(pieces, size, self.left)?;
            }
        }
        let (mtime_seconds, mtime_nanos) = records.mtime.unwrap_or((block.mtime()?, 0));
        Ok(Entry {
            path: name,
            link,
            kind,
            mode: block.mode()?,
            uid: owner(records.uid, block.uid())?,
            gid: owner(records.gid, block.gid())?,
            mtime_seconds,
            mtime_nanos,
            size,
            sparse,
            xattrs: records.xattrs,
        })
    }

    /// GNU's own sparse files: four pieces in the header, more in blocks after it.
    fn gnu_sparse(&mut self, block: &Block) -> Result<(Vec<Piece>, u64), UnpackError> {
        let (mut pieces, mut more) = block.sparse_pieces()?;
        let real_size = block.real_size()?;
        // Reading the map is not reading data.
        (self.left, self.padding) = (0, 0);
        while more {
            let Some(extension) = self.raw_block()? else {
                return Err(UnpackError::Archive("a sparse file ends early"));
            };
            let (next, continued) = Block::new(extension).sparse_extension()?;
            pieces.extend(next);
            more = continued;
            if pieces.len() > MAX_SPARSE_PIECES {
                return Err(UnpackError::Archive("a sparse file has too many pieces"));
            }
        }
        Ok((pieces, real_size))
    }

    /// The 1.0 pax sparse format: the map is text at the start of the data, padded to a block.
    fn pax_sparse(&mut self) -> Result<Vec<Piece>, UnpackError> {
        let mut text = MapText {
            archive: self,
            block: [0; BLOCK_BYTES],
            at: BLOCK_BYTES,
        };
        let count = text.number()?;
        if count > MAX_SPARSE_PIECES as u64 {
            return Err(UnpackError::Archive("a sparse file has too many pieces"));
        }
        (0..count)
            .map(|_| {
                Ok(Piece {
                    offset: text.number()?,
                    bytes: text.number()?,
                })
            })
            .collect()
    }

    fn set_data(&mut self, bytes: u64) {
        self.left = bytes;
        let over = bytes % BLOCK_BYTES as u64;
        self.padding = if over == 0 { 0 } else { BLOCK_BYTES as u64 - over };
    }

    fn skip(&mut self) -> Result<(), UnpackError> {
        let (left, padding) = (self.left, self.padding);
        (self.left, self.padding) = (0, 0);
        let mut skip = |bytes: u64| {
            io::copy(&mut self.inner.by_ref().take(bytes), &mut io::sink()).map_err(UnpackError::Compression)
        };
        if skip(left)? < left {
            return Err(UnpackError::Archive("it ends inside an entry"));
        }
        // Some writers (umoci among them) leave out the last padding and the end mark.
        skip(padding)?;
        Ok(())
    }

    /// A header block with a good checksum, or `None` at the end mark or the end of the stream.
    fn block(&mut self) -> Result<Option<Block>, UnpackError> {
        let Some(bytes) = self.raw_block()? else {
            return Ok(None);
        };
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let block = Block::new(bytes);
        block.check()?;
        Ok(Some(block))
    }

    fn raw_block(&mut self) -> Result<Option<[u8; BLOCK_BYTES]>, UnpackError> {
        let mut bytes = [0; BLOCK_BYTES];
        let mut filled = 0;
        while filled < BLOCK_BYTES {
            match self
                .inner
                .read(&mut bytes[filled..])
                .map_err(UnpackError::Compression)?
            {
                0 if filled == 0 => return Ok(None),
                0 => return Err(UnpackError::Archive("it ends inside a header")),
                count => filled += count,
            }
        }
        Ok(Some(bytes))
    }

    fn long_name(&mut self, size: u64) -> Result<Vec<u8>, UnpackError> {
        let mut name = self.small(size, MAX_LONG_NAME_BYTES)?;
        // GNU ends it with a NUL, others with several or none.
        while name.last() == Some(&0) {
            name.pop();
        }
        Ok(name)
    }

    fn small(&mut self, size: u64, limit: u64) -> Result<Vec<u8>, UnpackError> {
        if size > limit {
            return Err(UnpackError::Archive("a name or attribute is far too long"));
        }
        self.set_data(size);
        let mut bytes = Vec::new();
        self.read_to_end(&mut bytes).map_err(UnpackError::Compression)?;
        if self.left > 0 {
            return Err(UnpackError::Archive("it ends inside a name"));
        }
        Ok(bytes)
    }
}

impl<R: Read> Read for Archive<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let limit = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.inner.read(&mut buffer[..limit])?;
        self.left -= count as u64;
        Ok(count)
    }
}

/// Decimal numbers, one a line, read from the data block by block.
struct MapText<'a, R> {
    archive: &'a mut Archive<R>,
    block: [u8; BLOCK_BYTES],
    at: usize,
}

impl<R: Read> MapText<'_, R> {
    fn number(&mut self) -> Result<u64, UnpackError> {
        const BAD: UnpackError = UnpackError::Archive("the map of a sparse file is malformed");
        let mut value: Option<u64> = None;
        loop {
            if self.at == BLOCK_BYTES {
                self.archive.read_exact(&mut self.block).map_err(|_| BAD)?;
                self.at = 0;
            }
            let byte = self.block[self.at];
            self.at += 1;
            match byte {
                b'0'..=b'9' => {
                    let digit = u64::from(byte - b'0');
                    let shifted = value
                        .unwrap_or(0)
                        .checked_mul(10)
                        .and_then(|value| value.checked_add(digit));
                    value = Some(shifted.ok_or(BAD)?);
                }
                b'\n' => return value.ok_or(BAD),
                _ => return Err(BAD),
            }
        }
    }
}

/// Pieces must be in order, inside the file, and add up to the data there is.
fn check_sparse(pieces: &[Piece], size: u64, data: u64) -> Result<(), UnpackError> {
    const BAD: UnpackError = UnpackError::Archive("the map of a sparse file makes no sense");
    // ext4 and XFS stop far below; `off_t` is signed.
    if size > i64::MAX.unsigned_abs() {
        return Err(BAD);
    }
    let (mut end, mut total) = (0_u64, 0_u64);
    for piece in pieces {
        if piece.offset < end {
            return Err(BAD);
        }
        end = piece.offset.checked_add(piece.bytes).ok_or(BAD)?;
        total = total.checked_add(piece.bytes).ok_or(BAD)?;
    }
    if end > size || total != data {
        return Err(BAD);
    }
    Ok(())
}

fn owner(pax: Option<u64>, header: Result<u64, UnpackError>) -> Result<u32, UnpackError> {
    let id = match pax {
        Some(id) => id,
        None => header?,
    };
    // The highest id means "leave as it is" to the kernel.
    u32::try_from(id)
        .ok()
        .filter(|id| *id != u32::MAX)
        .ok_or(UnpackError::Archive("an owner is not a number the kernel knows"))
}

#[cfg(test)]
mod tests;
