//! What questions to models cost, on its way to whoever adds it up: an append-only journal on this edge's disk.
//!
//! The stage for models appends ([`Journal`]), the control plane reads ([`Reader`]) and remembers how far in the same
//! transaction in which it adds up; so each record counts once, whichever of the two processes is killed and when.
//!
//! ```text
//! usage/<journal>.<number>.log      one record a line: CRC-32 of the rest in hexadecimal, a space, JSON, newline
//! ```
//!
//! The choice to know: **a record is one `write(2)`**, made before the last bytes of its answer go to the client. The
//! kernel has it then, and a process that is killed cannot take it back. What a machine that loses power had not
//! written back (a few seconds, see [`SYNC_PERIOD`]) is lost.
//!
//! Guarantees: nothing is ever written into a segment once a later one is there, and no segment is written by two
//! processes (an edge begins a new one; it holds the lock of its directory). So a line without an end in a segment that
//! has a successor is torn for good and passed over, and a position is never in a segment that began anew.
//!
//! A disk without room: records wait in memory ([`WAITING_MAX`]) and are written when there is room. What does not fit,
//! there or in [`JOURNAL_MAX_BYTES`] that nobody reads, is lost, counted (`tram_edge_usage_lost_total`) and told in the
//! log once.

mod journal;
mod line;
mod reader;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::time::Duration;

use uuid::Uuid;

pub use journal::{Journal, keep};
pub use line::MAX_BYTES as LINE_MAX_BYTES;
pub use reader::{Batch, Reader};

/// A segment of this size is followed by the next: some ten thousand records, which are read in well under a second.
pub const SEGMENT_MAX_BYTES: u64 = 4 * 1024 * 1024;
/// What the journal may take of the disk when nobody reads it: more than two million records.
pub const JOURNAL_MAX_BYTES: u64 = 1024 * 1024 * 1024;
/// Records that wait for a disk without room: some 5 MiB of memory.
pub const WAITING_MAX: usize = 10_000;
/// How often what was written is made safe from a loss of power, and what waits is tried again.
pub const SYNC_PERIOD: Duration = Duration::from_secs(2);

/// Where an edge with this state directory keeps its journal.
#[must_use]
pub fn directory(state_dir: &Path) -> PathBuf {
    state_dir.join("usage")
}

/// A file of a journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Segment {
    journal: Uuid,
    number: u64,
}

impl Segment {
    fn path(self, directory: &Path) -> PathBuf {
        directory.join(format!("{}.{:010}.log", self.journal, self.number))
    }

    fn of_name(name: &str) -> Option<Self> {
        let (journal, number) = name.strip_suffix(".log")?.split_once('.')?;
        Some(Self {
            journal: journal.parse().ok()?,
            number: number.parse().ok()?,
        })
    }

    /// All that are there, in their order. A directory that is not there has none.
    fn list(directory: &Path) -> std::io::Result<Vec<Self>> {
        let entries = match std::fs::read_dir(directory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut found = Vec::new();
        for entry in entries {
            found.extend(entry?.file_name().to_str().and_then(Self::of_name));
        }
        found.sort_unstable();
        Ok(found)
    }
}
