//! Logs of instances, in the site's words.
//!
//! While the supervisor has an instance its log is in the supervisor's directory; when the instance is forgotten the
//! log moves to the site's. The cursors stay.

use std::path::{Path, PathBuf};

use tram_sandbox::logs::{self, Cursor, Order, Range, Record, Stream};
use tram_site::{Error, LogCursor, LogEntry, LogPage, LogQuery, LogStream};
use tram_types::{InstanceId, Timestamp};

use crate::record::Store;

/// Lines read at a time while looking for those of some streams only.
const STEP: usize = 1024;
/// Most lines of one page, whatever the query says: bounds memory.
const PAGE_MAX: usize = 10_000;

/// Where the supervisor keeps an instance; see the documentation of its state directory.
pub(crate) fn instance_directory(supervisor_dir: &Path, id: InstanceId) -> PathBuf {
    supervisor_dir.join("instances").join(id.to_string())
}

/// A page; empty when there is no log.
pub(crate) fn read(id: InstanceId, directory: &Path, query: &LogQuery) -> Result<LogPage, logs::Error> {
    if !directory.exists() {
        return Ok(LogPage::default());
    }
    let limit = query.limit.clamp(1, PAGE_MAX);
    let after = query.after.map(|LogCursor(after)| Cursor(after));
    let order = if query.newest {
        Order::Descending
    } else {
        Order::Ascending
    };
    let mut range = Range {
        // Descending, the reader's "after" means "before": it must begin at the end.
        after: if query.newest { None } else { after },
        start: query.start.map(Timestamp::jiff),
        end: query.end.map(Timestamp::jiff),
    };
    let wanted = |record: &Record| query.streams.is_empty() || query.streams.contains(&stream(record.stream));
    let mut found = Vec::new();
    'reading: loop {
        let batch = logs::read(directory, &range, STEP, order)?;
        let full = batch.len() == STEP;
        if let Some(last) = batch.last() {
            range.after = Some(last.cursor);
        }
        for record in batch {
            if query.newest && after.is_some_and(|after| record.cursor <= after) {
                break 'reading;
            }
            if wanted(&record) {
                found.push(record);
                if found.len() > limit {
                    break 'reading;
                }
            }
        }
        if !full {
            break;
        }
    }
    let has_more = found.len() > limit;
    found.truncate(limit);
    if query.newest {
        found.reverse();
    }
    let entries = found.into_iter().map(|record| LogEntry {
        instance: id,
        at: record.at.into(),
        stream: stream(record.stream),
        message: record.text,
        cursor: LogCursor(record.cursor.0),
    });
    Ok(LogPage {
        entries: entries.collect(),
        has_more,
    })
}

const fn stream(stream: Stream) -> LogStream {
    match stream {
        Stream::Stdout => LogStream::Stdout,
        Stream::Stderr => LogStream::Stderr,
        Stream::Koyeb => LogStream::Koyeb,
    }
}

/// Where an instance's log is now.
pub(crate) fn directory(store: &Store, supervisor_dir: &Path, id: InstanceId) -> PathBuf {
    let kept = store.kept_logs(id);
    if kept.exists() {
        kept
    } else {
        instance_directory(supervisor_dir, id).join("logs")
    }
}

/// Adds lines on the platform's own stream. Blocks.
pub(crate) fn append(
    store: &Store,
    supervisor_dir: &Path,
    id: InstanceId,
    lines: &[String],
) -> Result<(), Error> {
    let mut directory = directory(store, supervisor_dir, id);
    if !directory.exists() {
        // It was never launched, or was forgotten without a log.
        directory = store.kept_logs(id);
        std::fs::create_dir_all(&directory)
            .map_err(|error| Error::unavailable("cannot make the directory of a log", error))?;
    }
    for line in lines {
        logs::append_platform(&directory, line)
            .map_err(|error| Error::unavailable("cannot write to the log", error))?;
    }
    Ok(())
}
