//! One record as one line of text: `<sequence> <microseconds> <stream> <mark> <text>`.
//!
//! Text, so that `less` can read a segment when everything else is broken.

use jiff::Timestamp;

use super::{Cursor, Record, Stream};

/// Goes on in the next record of the stream, or does not.
const CONTINUED: &str = "+";
const WHOLE: &str = ".";

pub(super) fn segment_name(first: u64) -> String {
    // Twenty digits hold every u64, and names then sort by number.
    format!("{first:020}.log")
}

pub(super) fn segment_first(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".log")?;
    (digits.len() == 20).then(|| digits.parse().ok())?
}

/// `text` must hold no newline.
pub(super) fn encode(
    out: &mut Vec<u8>,
    sequence: u64,
    at: Timestamp,
    stream: Stream,
    continued: bool,
    text: &str,
) {
    use std::io::Write;
    let stream = match stream {
        Stream::Stdout => "o",
        Stream::Stderr => "e",
        Stream::Koyeb => "k",
    };
    let mark = if continued { CONTINUED } else { WHOLE };
    // Writing to memory cannot fail.
    let _ = writeln!(out, "{sequence} {} {stream} {mark} {text}", at.as_microsecond());
}

/// `None` for what is not a record, such as the torn end of a segment.
pub(super) fn decode(line: &[u8]) -> Option<Record> {
    let line = std::str::from_utf8(line).ok()?;
    let mut fields = line.splitn(5, ' ');
    let cursor = Cursor(fields.next()?.parse().ok()?);
    let at = Timestamp::from_microsecond(fields.next()?.parse().ok()?).ok()?;
    let stream = match fields.next()? {
        "o" => Stream::Stdout,
        "e" => Stream::Stderr,
        "k" => Stream::Koyeb,
        _ => return None,
    };
    let continued = match fields.next()? {
        CONTINUED => true,
        WHOLE => false,
        _ => return None,
    };
    Some(Record {
        cursor,
        at,
        stream,
        continued,
        text: fields.next()?.to_owned(),
    })
}
