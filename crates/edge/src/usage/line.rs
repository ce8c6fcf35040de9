//! One record as one line, which says of itself whether it is whole.

use crc::{CRC_32_ISO_HDLC, Crc};
use tram_types::inference::TokenRecord;

const CRC32: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);
/// Characters of the checksum.
const CHECK_CHARACTERS: usize = 8;
/// Longest line: a record's texts are bounded and make half a KiB; what is longer is none.
pub const MAX_BYTES: usize = 16 * 1024;

/// With its newline. None: a record that is too long to be read back.
pub(super) fn encode(record: &TokenRecord) -> Option<Vec<u8>> {
    let json = serde_json::to_vec(record).ok()?;
    let mut line = format!("{:08x} ", CRC32.checksum(&json)).into_bytes();
    line.extend(json);
    line.push(b'\n');
    (line.len() <= MAX_BYTES).then_some(line)
}

/// Without its newline. None: damaged.
pub(super) fn decode(line: &[u8]) -> Option<TokenRecord> {
    let (check, rest) = line.split_at_checked(CHECK_CHARACTERS)?;
    let json = rest.strip_prefix(b" ")?;
    let check = u32::from_str_radix(std::str::from_utf8(check).ok()?, 16).ok()?;
    if CRC32.checksum(json) != check {
        return None;
    }
    serde_json::from_slice(json).ok()
}
