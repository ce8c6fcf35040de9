//! The fields of one 512-byte header block.

use super::{BLOCK_BYTES, Piece};
use crate::unpack::UnpackError;

/// One header block. Fields are read where they are needed; nothing is believed but the checksum.
pub(super) struct Block {
    bytes: [u8; BLOCK_BYTES],
}

impl Block {
    pub(super) fn new(bytes: [u8; BLOCK_BYTES]) -> Self {
        Self { bytes }
    }

    /// Compares the checksum, in which the field itself counts as spaces. Old tars summed signed bytes.
    pub(super) fn check(&self) -> Result<(), UnpackError> {
        const BAD: UnpackError =
            UnpackError::Archive("a header has a wrong checksum; is it a tar archive at all?");
        let stored = number(self.field(148, 8)).map_err(|_| BAD)?;
        let (mut unsigned, mut signed) = (0_i64, 0_i64);
        for (at, byte) in self.bytes.iter().enumerate() {
            let byte = if (148..156).contains(&at) { b' ' } else { *byte };
            unsigned += i64::from(byte);
            signed += i64::from(byte.cast_signed());
        }
        if stored == unsigned || stored == signed {
            Ok(())
        } else {
            Err(BAD)
        }
    }

    pub(super) fn kind(&self) -> u8 {
        self.bytes[156]
    }

    pub(super) fn path(&self) -> Vec<u8> {
        let name = text(self.field(0, 100));
        // GNU uses the place of the prefix for other things.
        let posix = self.field(257, 6) == b"ustar\0";
        let prefix = text(self.field(345, 155));
        if posix && !prefix.is_empty() {
            [prefix, b"/", name].concat()
        } else {
            name.to_vec()
        }
    }

    pub(super) fn link(&self) -> Vec<u8> {
        text(self.field(157, 100)).to_vec()
    }

    pub(super) fn mode(&self) -> Result<u32, UnpackError> {
        // Only permission bits: some writers put the type in as well.
        Ok(u32::try_from(number(self.field(100, 8))? & 0o7777).unwrap_or(0))
    }

    pub(super) fn uid(&self) -> Result<u64, UnpackError> {
        positive(self.field(108, 8))
    }

    pub(super) fn gid(&self) -> Result<u64, UnpackError> {
        positive(self.field(116, 8))
    }

    pub(super) fn size(&self) -> Result<u64, UnpackError> {
        positive(self.field(124, 12))
    }

    pub(super) fn mtime(&self) -> Result<i64, UnpackError> {
        number(self.field(136, 12))
    }

    pub(super) fn real_size(&self) -> Result<u64, UnpackError> {
        positive(self.field(483, 12))
    }

    /// The pieces in the header of a GNU sparse file, and whether more follow.
    pub(super) fn sparse_pieces(&self) -> Result<(Vec<Piece>, bool), UnpackError> {
        Ok((pieces(self.field(386, 96))?, self.bytes[482] != 0))
    }

    /// The pieces in a block that continues one.
    pub(super) fn sparse_extension(&self) -> Result<(Vec<Piece>, bool), UnpackError> {
        Ok((pieces(self.field(0, 504))?, self.bytes[504] != 0))
    }

    fn field(&self, at: usize, bytes: usize) -> &[u8] {
        &self.bytes[at..at + bytes]
    }
}

fn pieces(field: &[u8]) -> Result<Vec<Piece>, UnpackError> {
    field
        .chunks_exact(24)
        .take_while(|piece| piece[0] != 0)
        .map(|piece| {
            let (offset, bytes) = piece.split_at(12);
            Ok(Piece {
                offset: positive(offset)?,
                bytes: positive(bytes)?,
            })
        })
        .collect()
}

fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn positive(field: &[u8]) -> Result<u64, UnpackError> {
    u64::try_from(number(field)?).map_err(|_| UnpackError::Archive("a header has a negative number"))
}

/// Octal digits between spaces and NULs, or, with the highest bit set, a big-endian number in two's complement.
fn number(field: &[u8]) -> Result<i64, UnpackError> {
    const BAD: UnpackError = UnpackError::Archive("a header has a malformed number");
    if let Some(first) = field.first()
        && first & 0x80 != 0
    {
        let negative = first & 0x40 != 0;
        let mut value: i64 = if negative { -1 } else { 0 };
        for (at, byte) in field.iter().enumerate() {
            let byte = match at {
                // The marking bit gives way to the sign.
                0 if negative => *byte,
                0 => byte & 0x7f,
                _ => *byte,
            };
            value = value
                .checked_mul(256)
                .and_then(|value| value.checked_add(i64::from(byte)))
                .ok_or(BAD)?;
            if at == 0 && negative {
                value = i64::from(byte.cast_signed());
            }
        }
        return Ok(value);
    }
    let digits = field.iter().skip_while(|byte| **byte == b' ' || **byte == 0);
    let mut value: i64 = 0;
    for byte in digits {
        match byte {
            b'0'..=b'7' => {
                value = value
                    .checked_mul(8)
                    .and_then(|value| value.checked_add(i64::from(byte - b'0')))
                    .ok_or(BAD)?;
            }
            b' ' | 0 => break,
            _ => return Err(BAD),
        }
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_every_spelling() {
        assert_eq!(number(b"0000755\0").unwrap(), 0o755);
        assert_eq!(number(b"    755 ").unwrap(), 0o755);
        assert_eq!(number(b"\0\0\0\0\0\0\0\0").unwrap(), 0);
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]).unwrap(), 1 << 32);
        assert_eq!(number(&[0xff; 12]).unwrap(), -1);
        assert_eq!(
            number(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe]).unwrap(),
            -2
        );
        assert!(number(b"9999999\0").is_err());
        assert!(
            number(&[0x81, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).is_err(),
            "over 63 bits"
        );
        assert!(positive(&[0xff; 12]).is_err());
    }
}
