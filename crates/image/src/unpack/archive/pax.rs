//! pax records: `<length> <key>=<value>\n`, which override fields of the header that follows.

use super::{MAX_SPARSE_PIECES, Piece};
use crate::unpack::UnpackError;

const BAD: UnpackError = UnpackError::Archive("an extended header is malformed");

/// What the records of one entry say. Keys nobody here needs are dropped.
#[derive(Debug, Default)]
pub(super) struct Records {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: Option<Sparse>,
}

/// A sparse file in one of pax's three formats.
#[derive(Debug, Default)]
pub(super) struct Sparse {
    /// `None` in format 1.0, where the map stands before the data.
    pub(super) pieces: Option<Vec<Piece>>,
    pub(super) real_size: Option<u64>,
    /// The file's name; the header's is made up.
    pub(super) name: Option<Vec<u8>>,
    offset: Option<u64>,
}

impl Records {
    pub(super) fn extend(&mut self, mut bytes: &[u8]) -> Result<(), UnpackError> {
        while !bytes.is_empty() {
            // Some writers pad with NULs.
            if bytes.iter().all(|byte| *byte == 0) {
                break;
            }
            let space = bytes.iter().position(|byte| *byte == b' ').ok_or(BAD)?;
            let length = usize::try_from(decimal(&bytes[..space])?).map_err(|_| BAD)?;
            if length <= space + 1 || length > bytes.len() {
                return Err(BAD);
            }
            let (record, rest) = bytes.split_at(length);
            let record = record[space + 1..].strip_suffix(b"\n").ok_or(BAD)?;
            let equals = record.iter().position(|byte| *byte == b'=').ok_or(BAD)?;
            self.set(&record[..equals], &record[equals + 1..])?;
            bytes = rest;
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), UnpackError> {
        match key {
            // An empty value takes an earlier record back.
            b"path" => self.path = some(value),
            b"linkpath" => self.link = some(value),
            b"size" => self.size = Some(decimal(value)?),
            b"uid" => self.uid = Some(decimal(value)?),
            b"gid" => self.gid = Some(decimal(value)?),
            b"mtime" => self.mtime = Some(time(value)?),
            b"GNU.sparse.major" | b"GNU.sparse.minor" | b"GNU.sparse.numblocks" => {
                self.sparse.get_or_insert_default();
            }
            b"GNU.sparse.name" => self.sparse.get_or_insert_default().name = some(value),
            b"GNU.sparse.realsize" | b"GNU.sparse.size" => {
                self.sparse.get_or_insert_default().real_size = Some(decimal(value)?);
            }
            b"GNU.sparse.offset" => self.sparse.get_or_insert_default().offset = Some(decimal(value)?),
            b"GNU.sparse.numbytes" => self.sparse.get_or_insert_default().push(decimal(value)?)?,
            b"GNU.sparse.map" => {
                let sparse = self.sparse.get_or_insert_default();
                let mut numbers = value.split(|byte| *byte == b',');
                while let (Some(offset), Some(bytes)) = (numbers.next(), numbers.next()) {
                    sparse.offset = Some(decimal(offset)?);
                    sparse.push(decimal(bytes)?)?;
                }
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        Ok(())
    }
}

impl Sparse {
    fn push(&mut self, bytes: u64) -> Result<(), UnpackError> {
        let offset = self.offset.take().ok_or(BAD)?;
        let pieces = self.pieces.get_or_insert_default();
        if pieces.len() >= MAX_SPARSE_PIECES {
            return Err(BAD);
        }
        pieces.push(Piece { offset, bytes });
        Ok(())
    }
}

fn some(value: &[u8]) -> Option<Vec<u8>> {
    (!value.is_empty()).then(|| value.to_vec())
}

fn decimal(text: &[u8]) -> Result<u64, UnpackError> {
    std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or(BAD)
}

/// `1700000000.123456789`, perhaps negative; digits after the ninth are cut.
fn time(text: &[u8]) -> Result<(i64, u32), UnpackError> {
    const NANOS_DIGITS: usize = 9;
    let text = std::str::from_utf8(text).map_err(|_| BAD)?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = seconds.parse().map_err(|_| BAD)?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(BAD);
    }
    let digits: String = fraction
        .chars()
        .chain(std::iter::repeat('0'))
        .take(NANOS_DIGITS)
        .collect();
    let nanos: u32 = digits.parse().map_err(|_| BAD)?;
    if text.starts_with('-') && nanos > 0 {
        return Ok((seconds.checked_sub(1).ok_or(BAD)?, 1_000_000_000 - nanos));
    }
    Ok((seconds, nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_and_malformed_ones_refused() {
        let mut records = Records::default();
        records
            .extend(b"12 path=a/b\n24 mtime=1700000000.25\n30 SCHILY.xattr.user.note=hello\n")
            .unwrap_err();
        let mut records = Records::default();
        records
            .extend(b"12 path=a/b\n23 mtime=1700000000.25\n34 SCHILY.xattr.user.note=a\nb=cde\n")
            .unwrap();
        assert_eq!(records.path.as_deref(), Some(&b"a/b"[..]));
        assert_eq!(records.mtime, Some((1_700_000_000, 250_000_000)));
        assert_eq!(records.xattrs, [(b"user.note".to_vec(), b"a\nb=cde".to_vec())]);
        for bad in [
            &b"x"[..],
            b"5 a=b",
            b"99999999999999999999 a=b\n",
            b"3 a\n",
            b"0 a=b\n",
            b"8 size=\n",
        ] {
            assert!(Records::default().extend(bad).is_err(), "{bad:?}");
        }
        assert_eq!(time(b"-1.5").unwrap(), (-2, 500_000_000));
    }
}
