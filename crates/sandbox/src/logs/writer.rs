//! Appending records, for several writers in turn.
//!
//! The one design choice to know: a writer collects a batch in memory and holds the lock only to
//! append it, so the lock is never held while anything is waited for.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rustix::fs::{FlockOperation, flock};

use super::{Stream, format};
use crate::protocol::LogLimits;
use crate::state::ignore_missing;

/// The lock, and where the last writer stopped.
const HEAD_NAME: &str = "head";
const HEAD_BYTES: usize = 24;
const FILE_MODE: u32 = 0o600;

/// Appends to the segments of one directory.
#[derive(Debug)]
pub(crate) struct Writer {
    dir: PathBuf,
    segment_bytes: u64,
    segments_max: usize,
    head: File,
    /// The segment opened last, and its first record.
    segment: Option<(u64, File)>,
    batch: Vec<(Timestamp, Stream, bool, String)>,
}

/// What `head` says: the next record's number, the newest segment and its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Head {
    next: u64,
    segment: u64,
    length: u64,
}

impl Writer {
    /// The directory must exist.
    pub(crate) fn open(dir: &Path, limits: &LogLimits) -> io::Result<Self> {
        let head = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(FILE_MODE)
            .open(dir.join(HEAD_NAME))?;
        Ok(Self {
            dir: dir.to_owned(),
            segment_bytes: limits.segment_bytes,
            segments_max: limits.segments_max,
            head,
            segment: None,
            batch: Vec::new(),
        })
    }

    /// Keep a record for the next [`Writer::flush`]. `text` must hold no newline.
    pub(crate) fn push(&mut self, at: Timestamp, stream: Stream, continued: bool, text: &str) {
        self.batch.push((at, stream, continued, text.to_owned()));
    }

    /// Append what was pushed. What could not be written is lost (the disk is full: holding it would
    /// fill memory next).
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        if self.batch.is_empty() {
            return Ok(());
        }
        flock(&self.head, FlockOperation::LockExclusive)?;
        let result = self.append();
        self.batch.clear();
        let unlocked = flock(&self.head, FlockOperation::Unlock);
        result?;
        Ok(unlocked?)
    }

    fn append(&mut self) -> io::Result<()> {
        let mut head = self.find_end()?;
        let mut bytes = Vec::new();
        for (at, stream, continued, text) in std::mem::take(&mut self.batch) {
            if head.length + bytes.len() as u64 >= self.segment_bytes {
                head = self.write_out(head, &mut bytes)?;
                head = self.rotate(head)?;
            }
            format::encode(&mut bytes, head.next, at, stream, continued, &text);
            head.next += 1;
        }
        let head = self.write_out(head, &mut bytes)?;
        self.write_head(head)
    }

    fn write_out(&mut self, head: Head, bytes: &mut Vec<u8>) -> io::Result<Head> {
        self.open_segment(head.segment)?.write_all(bytes)?;
        let length = head.length + bytes.len() as u64;
        bytes.clear();
        Ok(Head { length, ..head })
    }

    fn rotate(&mut self, head: Head) -> io::Result<Head> {
        let segments = super::reader::segments(&self.dir)?;
        let excess = (segments.len() + 1).saturating_sub(self.segments_max);
        for oldest in segments.into_iter().take(excess) {
            ignore_missing(fs::remove_file(self.dir.join(format::segment_name(oldest))))?;
        }
        Ok(Head {
            segment: head.next,
            length: 0,
            ..head
        })
    }

    fn open_segment(&mut self, first: u64) -> io::Result<&mut File> {
        let opened = match self.segment.take() {
            Some((open, file)) if open == first => (open, file),
            _ => {
                let path = self.dir.join(format::segment_name(first));
                (
                    first,
                    OpenOptions::new()
                        .create(true)
                        .append(true)
                        .mode(FILE_MODE)
                        .open(path)?,
                )
            }
        };
        Ok(&mut self.segment.insert(opened).1)
    }

    /// Where to go on, as the last writer left it, or as the newest segment shows.
    fn find_end(&mut self) -> io::Result<Head> {
        if let Some(head) = self.read_head()
            && self.open_segment(head.segment)?.metadata()?.len() == head.length
        {
            return Ok(head);
        }
        let Some(newest) = super::reader::segments(&self.dir)?.pop() else {
            return Ok(Head {
                next: 1,
                segment: 1,
                length: 0,
            });
        };
        let path = self.dir.join(format::segment_name(newest));
        let content = fs::read(&path)?;
        let whole = content
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |end| end + 1);
        let last = content
            .get(..whole)
            .unwrap_or_default()
            .split(|byte| *byte == b'\n')
            .rev()
            .find_map(format::decode);
        OpenOptions::new()
            .write(true)
            .open(&path)?
            .set_len(whole as u64)?;
        let next = last.map_or(newest, |record| record.cursor.0 + 1);
        Ok(Head {
            next,
            segment: newest,
            length: whole as u64,
        })
    }

    fn read_head(&self) -> Option<Head> {
        let mut bytes = [0; HEAD_BYTES];
        self.head.read_exact_at(&mut bytes, 0).ok()?;
        let number = |index: usize| {
            let eight = bytes.get(index * 8..index * 8 + 8)?.try_into().ok()?;
            Some(u64::from_le_bytes(eight))
        };
        Some(Head {
            next: number(0)?,
            segment: number(1)?,
            length: number(2)?,
        })
    }

    fn write_head(&self, head: Head) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(HEAD_BYTES);
        for number in [head.next, head.segment, head.length] {
            bytes.extend(number.to_le_bytes());
        }
        self.head.write_all_at(&bytes, 0)
    }
}
