//! The logs of an instance: segment files in its directory.
//!
//! Written by the shim (what the program prints) and by [`append_platform`] (what the platform has to
//! say); read by `site-local` through [`read`] and [`Follower`]. Owns the format, the bounds and the
//! order.
//!
//! The one design choice to know: a record's sequence number is its cursor, and a segment is named
//! after its first record, so reading from a cursor needs no index. Writers take turns with a file
//! lock, whose file also remembers where the last one stopped; if that does not match the segment
//! (a writer was killed in the middle), the segment's end is read and mended.

mod follower;
mod format;
mod lines;
mod rate;
mod reader;
mod writer;

use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use follower::Follower;
pub use lines::LINE_BYTES_MAX;
pub(crate) use lines::LineSplitter;
pub(crate) use rate::TokenBucket;
pub use reader::read;
pub(crate) use writer::Writer;

/// A platform message is one line; a longer one is cut.
const PLATFORM_BYTES_MAX: usize = LINE_BYTES_MAX;

/// Where a record came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    Stdout,
    Stderr,
    /// The platform itself.
    Koyeb,
}

/// A place in the logs of one instance: just behind one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Cursor(pub u64);

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Rises by at least one from record to record.
    pub cursor: Cursor,
    pub at: Timestamp,
    pub stream: Stream,
    /// The line was too long and goes on in the stream's next record.
    pub continued: bool,
    pub text: String,
}

/// Which records.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Range {
    /// Only what lies beyond this record in the order of reading: later ones when ascending, earlier
    /// ones when descending.
    pub after: Option<Cursor>,
    /// Not before this moment.
    pub start: Option<Timestamp>,
    /// Before this moment.
    pub end: Option<Timestamp>,
}

impl Range {
    fn holds(&self, record: &Record, order: Order) -> bool {
        let beyond = match (self.after, order) {
            (None, _) => true,
            (Some(after), Order::Ascending) => record.cursor > after,
            (Some(after), Order::Descending) => record.cursor < after,
        };
        beyond
            && self.start.is_none_or(|start| record.at >= start)
            && self.end.is_none_or(|end| record.at < end)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Oldest first.
    Ascending,
    /// Newest first.
    Descending,
}

/// The logs could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} the logs in {}", dir.display())]
pub struct Error {
    what: &'static str,
    dir: PathBuf,
    #[source]
    source: io::Error,
}

impl Error {
    fn new(what: &'static str, dir: &Path, source: io::Error) -> Self {
        Self {
            what,
            dir: dir.to_owned(),
            source,
        }
    }
}

/// Add a message of the platform. Safe while the instance runs and writes, and after it ended.
pub fn append_platform(dir: impl AsRef<Path>, message: &str) -> Result<(), Error> {
    let dir = dir.as_ref();
    let append = || {
        let mut writer = Writer::open(dir, &crate::protocol::LogLimits::default())?;
        let line = message.lines().next().unwrap_or_default();
        let end = line.floor_char_boundary(PLATFORM_BYTES_MAX);
        writer.push(
            Timestamp::now(),
            Stream::Koyeb,
            false,
            line.get(..end).unwrap_or_default(),
        );
        writer.flush()
    };
    append().map_err(|source| Error::new("write", dir, source))
}

#[cfg(test)]
mod tests;
