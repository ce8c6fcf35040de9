//! The reader: from a position that it was given to one that it gives back. It remembers nothing, and writes nothing but
//! takes away what was read.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;

use tram_types::inference::{JournalPosition as Position, TokenRecord};
use uuid::Uuid;

use super::{LINE_MAX_BYTES, Segment, line};

/// Read at a time: thousands of records, and at least one whole line.
const READ_MAX_BYTES: usize = 1024 * 1024;
const _: () = assert!(READ_MAX_BYTES > LINE_MAX_BYTES);

/// What stands after a position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// In their order.
    pub records: Vec<TokenRecord>,
    /// Lines that cannot be read, and ends of segments that are torn.
    pub damaged: u64,
    /// Where what follows begins.
    pub next: Position,
    /// Whether there was more than fits in a batch.
    pub has_more: bool,
}

/// Reads the journals of an edge. Its calls block for the disk.
#[derive(Debug, Clone)]
pub struct Reader {
    directory: PathBuf,
}

impl Reader {
    /// Of the edge with this state directory.
    #[must_use]
    pub fn new(state_dir: &std::path::Path) -> Self {
        Self {
            directory: super::directory(state_dir),
        }
    }

    /// The journals there are: one, unless somebody laid directories together.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn journals(&self) -> io::Result<Vec<Uuid>> {
        let mut journals: Vec<Uuid> = Segment::list(&self.directory)?
            .into_iter()
            .map(|segment| segment.journal)
            .collect();
        journals.dedup();
        Ok(journals)
    }

    /// What stands after a position; nothing when there is nothing new.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn read(&self, from: Position) -> io::Result<Batch> {
        let mut batch = Batch {
            records: Vec::new(),
            damaged: 0,
            next: from,
            has_more: false,
        };
        // Listed before anything is read: what has a successor now was written to its end.
        let segments: Vec<Segment> = Segment::list(&self.directory)?
            .into_iter()
            .filter(|segment| segment.journal == from.journal && segment.number >= from.segment)
            .collect();
        let mut room = READ_MAX_BYTES;
        for (index, segment) in segments.iter().enumerate() {
            if batch.next.segment != segment.number {
                batch.next.segment = segment.number;
                batch.next.offset = 0;
            }
            let is_last = index + 1 == segments.len();
            if room <= LINE_MAX_BYTES {
                batch.has_more = true;
                break;
            }
            let bytes = match self.bytes(*segment, batch.next.offset, room) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                bytes => bytes?,
            };
            room -= bytes.len().min(room);
            let taken = take(&bytes, &mut batch);
            batch.next.offset += u64::try_from(taken).unwrap_or(0);
            let left = bytes.len() - taken;
            if room == 0 && left <= LINE_MAX_BYTES {
                batch.has_more = true;
                break;
            }
            if left > LINE_MAX_BYTES {
                // No line is so long: the rest of this file is not ours to read.
                batch.damaged += 1;
                batch.next.offset += u64::try_from(left).unwrap_or(0);
                batch.has_more = true;
                break;
            }
            if left > 0 && !is_last {
                batch.damaged += 1;
            }
        }
        Ok(batch)
    }

    fn bytes(&self, segment: Segment, offset: u64, max: usize) -> io::Result<Vec<u8>> {
        let mut file = File::open(segment.path(&self.directory))?;
        file.seek(SeekFrom::Start(offset))?;
        let mut bytes = Vec::new();
        file.take(u64::try_from(max).unwrap_or(u64::MAX))
            .read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Takes away the segments before a position. The one that it is in stays, though it be read to its end: its number
    /// must be known to the next.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn forget(&self, before: Position) -> io::Result<()> {
        for segment in Segment::list(&self.directory)? {
            if segment.journal != before.journal || segment.number >= before.segment {
                continue;
            }
            match fs::remove_file(segment.path(&self.directory)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Takes whole lines; gives their bytes.
fn take(bytes: &[u8], batch: &mut Batch) -> usize {
    let mut taken = 0;
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let Some(content) = line.strip_suffix(b"\n") else {
            break;
        };
        match line::decode(content) {
            Some(record) => batch.records.push(record),
            None => batch.damaged += 1,
        }
        taken += line.len();
    }
    taken
}
