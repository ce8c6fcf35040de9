//! One record as one line, which says of itself whether it is whole.

use std::io::Write as _;

use tram_types::inference::TokenRecord;

/// Characters of the checksum.
const CHECK_CHARACTERS: usize = 8;
/// What a line has, mostly.
const USUAL_BYTES: usize = 768;
/// Longest line: a record's texts are bounded and make half a KiB; what is longer is none.
pub const MAX_BYTES: usize = 16 * 1024;

/// With its newline. None: a record that is too long to be read back.
pub(super) fn encode(record: &TokenRecord) -> Option<Vec<u8>> {
    let mut line = Vec::with_capacity(USUAL_BYTES);
    line.extend_from_slice(&[b' '; CHECK_CHARACTERS + 1]);
    serde_json::to_writer(&mut line, record).ok()?;
    let (check, json) = line.split_at_mut(CHECK_CHARACTERS + 1);
    write!(&mut check[..CHECK_CHARACTERS], "{:08x}", crc32fast::hash(json)).ok()?;
    line.push(b'\n');
    (line.len() <= MAX_BYTES).then_some(line)
}

/// Without its newline. None: damaged.
pub(super) fn decode(line: &[u8]) -> Option<TokenRecord> {
    let (check, rest) = line.split_at_checked(CHECK_CHARACTERS)?;
    let json = rest.strip_prefix(b" ")?;
    let check = u32::from_str_radix(std::str::from_utf8(check).ok()?, 16).ok()?;
    if crc32fast::hash(json) != check {
        return None;
    }
    serde_json::from_slice(json).ok()
}
