//! Reading records back.

use std::fs;
use std::io;
use std::path::Path;

use super::{Cursor, Error, Order, Range, Record, format};

/// The first records of all segments, oldest first.
pub(super) fn segments(dir: &Path) -> io::Result<Vec<u64>> {
    let mut segments = Vec::new();
    for entry in fs::read_dir(dir)? {
        if let Some(first) = entry?.file_name().to_str().and_then(format::segment_first) {
            segments.push(first);
        }
    }
    segments.sort_unstable();
    Ok(segments)
}

/// At most `limit` records of the range. Segments that are removed meanwhile are skipped.
pub fn read(dir: impl AsRef<Path>, range: &Range, limit: usize, order: Order) -> Result<Vec<Record>, Error> {
    let dir = dir.as_ref();
    read_from(dir, range, limit, order).map_err(|source| Error::new("read", dir, source))
}

fn read_from(dir: &Path, range: &Range, limit: usize, order: Order) -> io::Result<Vec<Record>> {
    let mut segments = segments(dir)?;
    skip_segments(&mut segments, range.after, order);
    if order == Order::Descending {
        segments.reverse();
    }
    let mut records = Vec::new();
    for segment in segments {
        if records.len() >= limit {
            break;
        }
        let content = match fs::read(dir.join(format::segment_name(segment))) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            content => content?,
        };
        // Only whole lines: the last may be half written at this moment.
        let whole = content
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |end| end + 1);
        let lines = content
            .get(..whole)
            .unwrap_or_default()
            .split(|byte| *byte == b'\n')
            .filter_map(format::decode);
        let left = limit - records.len();
        match order {
            Order::Ascending => records.extend(lines.filter(|record| range.holds(record, order)).take(left)),
            Order::Descending => {
                let found: Vec<Record> = lines.filter(|record| range.holds(record, order)).collect();
                records.extend(found.into_iter().rev().take(left));
            }
        }
    }
    Ok(records)
}

/// Drop the segments that lie wholly on the wrong side of the cursor.
fn skip_segments(segments: &mut Vec<u64>, after: Option<Cursor>, order: Order) {
    let Some(Cursor(after)) = after else { return };
    match order {
        Order::Ascending => {
            // The segment that holds the next record is the last that begins at or before it.
            let next = after.saturating_add(1);
            let holding = segments.iter().rposition(|first| *first <= next).unwrap_or(0);
            segments.drain(..holding);
        }
        Order::Descending => segments.retain(|first| *first < after),
    }
}
