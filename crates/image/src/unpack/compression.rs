//! Finds out how a layer is compressed from its first bytes, and decompresses it.
//!
//! Media types are not asked: builders get them wrong, and the digest of the uncompressed archive is checked
//! anyway. Memory is bounded: gzip needs 32 KiB, zstd at most its default window limit of 128 MiB.

use std::io::{self, BufRead, BufReader, Chain, Cursor, Read};

use flate2::bufread::GzDecoder;

const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Skippable zstd frames start with one of sixteen numbers (here without their low half byte).
const ZSTD_SKIPPABLE: [u8; 3] = [0x2a, 0x4d, 0x18];
/// Files are read in pieces of this size.
const BUFFER_BYTES: usize = 128 << 10;

/// A reader of uncompressed bytes over `reader`, whatever it holds.
pub(crate) fn decompress<'a>(mut reader: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut start = Vec::with_capacity(ZSTD_MAGIC.len());
    reader
        .by_ref()
        .take(ZSTD_MAGIC.len() as u64)
        .read_to_end(&mut start)?;
    let gzip = start.starts_with(&GZIP_MAGIC);
    let zstd = start.starts_with(&ZSTD_MAGIC)
        || matches!(start.as_slice(), [0x50..=0x5f, rest @ ..] if *rest == ZSTD_SKIPPABLE);
    let whole = BufReader::with_capacity(BUFFER_BYTES, Cursor::new(start).chain(reader));
    Ok(if gzip {
        Box::new(Members {
            state: State::Between(whole),
        })
    } else if zstd {
        Box::new(zstd::stream::read::Decoder::with_buffer(whole)?)
    } else {
        Box::new(whole)
    })
}

type Source<R> = BufReader<Chain<Cursor<Vec<u8>>, R>>;

/// A gzip file is one or more members (pigz and estargz write many). What follows the last member and is no
/// member, such as padding of a tape, is ignored: the digest decides whether the contents are whole.
struct Members<R: Read> {
    state: State<R>,
}

enum State<R: Read> {
    Between(Source<R>),
    Inside(Box<GzDecoder<Source<R>>>),
    Done,
}

impl<R: Read> Read for Members<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            match std::mem::replace(&mut self.state, State::Done) {
                State::Between(mut source) => {
                    if is_member(&mut source)? {
                        self.state = State::Inside(Box::new(GzDecoder::new(source)));
                    }
                }
                State::Inside(mut decoder) => {
                    let count = decoder.read(buffer)?;
                    if count > 0 {
                        self.state = State::Inside(decoder);
                        return Ok(count);
                    }
                    self.state = State::Between(decoder.into_inner());
                }
                State::Done => return Ok(0),
            }
        }
    }
}

/// Whether another member starts here. One buffered byte is enough to tell it from padding with zeros; a
/// stray 0x1f is left to the decoder to refuse.
fn is_member(source: &mut impl BufRead) -> io::Result<bool> {
    Ok(source.fill_buf()?.first() == Some(&GZIP_MAGIC[0]))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn read(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        decompress(bytes)?.read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn every_kind_is_told_by_its_first_bytes() {
        let text = b"layer ".repeat(50_000);
        assert_eq!(read(&text).unwrap(), text);
        assert_eq!(read(&gzip(&text)).unwrap(), text);
        let zstd = zstd::encode_all(&text[..], 3).unwrap();
        assert_eq!(read(&zstd).unwrap(), text);
        assert_eq!(read(b"").unwrap(), b"");
        assert_eq!(read(b"\x1f").unwrap(), b"\x1f");
    }

    #[test]
    fn several_members_and_frames_are_one_stream() {
        let members = [gzip(b"one"), gzip(b""), gzip(b"two")].concat();
        assert_eq!(read(&members).unwrap(), b"onetwo");
        let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 9, 9, 9][..]];
        let one = zstd::encode_all(&b"one"[..], 3).unwrap();
        let two = zstd::encode_all(&b"two"[..], 3).unwrap();
        assert_eq!(
            read(&[skippable[0], &one, skippable[0], &two].concat()).unwrap(),
            b"onetwo"
        );
    }

    #[test]
    fn padding_is_ignored_and_a_cut_is_not() {
        assert_eq!(read(&[gzip(b"one"), vec![0; 700]].concat()).unwrap(), b"one");
        let whole = gzip(&b"layer ".repeat(1000));
        assert!(read(&whole[..whole.len() - 9]).is_err());
        let mut broken = whole.clone();
        let middle = broken.len() - 6;
        broken[middle] ^= 0xff;
        assert!(read(&broken).is_err(), "the checksum is verified");
    }
}
