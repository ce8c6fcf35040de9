//! The writer: one for an edge, shared by its workers.

use std::collections::VecDeque;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use tram_types::inference::TokenRecord;
use uuid::Uuid;

use super::{JOURNAL_MAX_BYTES, SEGMENT_MAX_BYTES, SYNC_PERIOD, Segment, WAITING_MAX, line};
use crate::error::Error;

/// Takes records of finished questions. Cheap to clone; clones write to the same files.
#[derive(Debug, Clone)]
pub struct Journal(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    writer: Mutex<Writer>,
    written: AtomicU64,
    lost: AtomicU64,
    waiting: AtomicU64,
}

#[derive(Debug)]
struct Writer {
    directory: PathBuf,
    /// The next to be begun.
    next: Segment,
    open: Option<Open>,
    /// Files with bytes that the disk may not have yet.
    unsynced: Vec<Arc<File>>,
    /// Bytes of all segments, as they were when the open one was begun.
    held_bytes: u64,
    waiting: VecDeque<Vec<u8>>,
    failing: bool,
    segment_max_bytes: u64,
    journal_max_bytes: u64,
}

#[derive(Debug)]
struct Open {
    file: Arc<File>,
    length_bytes: u64,
}

impl Journal {
    /// The journal below an edge's state directory. Nothing is made there before the first record.
    ///
    /// # Errors
    /// When what is there already cannot be read.
    pub fn open(state_dir: &Path) -> Result<Self, Error> {
        Self::with_bounds(state_dir, SEGMENT_MAX_BYTES, JOURNAL_MAX_BYTES)
    }

    pub(super) fn with_bounds(
        state_dir: &Path,
        segment_max_bytes: u64,
        journal_max_bytes: u64,
    ) -> Result<Self, Error> {
        let directory = super::directory(state_dir);
        let there = Segment::list(&directory).map_err(|source| Error::File {
            doing: "read",
            path: directory.clone(),
            source,
        })?;
        // The reader leaves the last one, so that a number never comes twice.
        let last = there.into_iter().max_by_key(|segment| segment.number);
        let next = match last {
            Some(last) => Segment {
                number: last.number + 1,
                ..last
            },
            None => Segment {
                journal: Uuid::new_v4(),
                number: 1,
            },
        };
        Ok(Self(Arc::new(Inner {
            writer: Mutex::new(Writer {
                directory,
                next,
                open: None,
                unsynced: Vec::new(),
                held_bytes: 0,
                waiting: VecDeque::new(),
                failing: false,
                segment_max_bytes,
                journal_max_bytes,
            }),
            written: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            waiting: AtomicU64::new(0),
        })))
    }

    /// Hands a record to the kernel: when this returns, it outlives this process. Call it before the last bytes of the
    /// answer go to the client, so that no answer that came whole goes uncounted.
    ///
    /// Never fails to the caller: what becomes of a record without room says the module. Blocks for one `write(2)` to
    /// the page cache.
    pub fn append(&self, record: &TokenRecord) {
        let Some(bytes) = line::encode(record) else {
            self.0.lost.fetch_add(1, Relaxed);
            tracing::error!(question = %record.question_id, "a record of what a question cost is too long and lost");
            return;
        };
        let mut writer = self.writer();
        if writer.waiting.len() >= WAITING_MAX {
            self.0.lost.fetch_add(1, Relaxed);
            return;
        }
        writer.waiting.push_back(bytes);
        if writer.failing {
            // A disk that had no room is not asked again for every question, see [`Journal::settle`].
            self.0.waiting.fetch_add(1, Relaxed);
        } else {
            self.write(&mut writer);
        }
    }

    /// Tries again what waits, and has what was written put on the disk. Blocks for as long as the disk needs.
    pub fn settle(&self) {
        let unsynced = {
            let mut writer = self.writer();
            self.write(&mut writer);
            std::mem::take(&mut writer.unsynced)
        };
        for file in unsynced {
            if let Err(error) = file.sync_data() {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "what questions cost is not safe from a loss of power"
                );
            }
        }
    }

    /// Records that the kernel has.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.0.written.load(Relaxed)
    }

    /// Records that found no room and are gone.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.0.lost.load(Relaxed)
    }

    /// Records that wait for room.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        self.0.waiting.load(Relaxed)
    }

    fn writer(&self) -> std::sync::MutexGuard<'_, Writer> {
        self.0.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what waits, as far as there is room.
    fn write(&self, writer: &mut Writer) {
        while let Some(bytes) = writer.waiting.pop_front() {
            match writer.append(&bytes) {
                Ok(()) => {
                    self.0.written.fetch_add(1, Relaxed);
                    if std::mem::take(&mut writer.failing) {
                        tracing::info!("what questions cost can be written again");
                    }
                }
                Err(error) => {
                    writer.waiting.push_front(bytes);
                    // Once: a full disk fails for every record.
                    if !std::mem::replace(&mut writer.failing, true) {
                        tracing::error!(
                            error = &error as &dyn std::error::Error,
                            directory = %writer.directory.display(),
                            "cannot write what questions cost: it waits in memory, and beyond {WAITING_MAX} questions it is lost"
                        );
                    }
                    break;
                }
            }
        }
        let waiting = u64::try_from(writer.waiting.len()).unwrap_or(u64::MAX);
        self.0.waiting.store(waiting, Relaxed);
    }
}

impl Writer {
    /// A whole line or nothing that a reader would take for one.
    fn append(&mut self, line: &[u8]) -> io::Result<()> {
        let more = u64::try_from(line.len()).unwrap_or(u64::MAX);
        if self
            .open
            .as_ref()
            .is_some_and(|open| open.length_bytes.saturating_add(more) > self.segment_max_bytes)
        {
            self.open = None;
        }
        let open = match &mut self.open {
            Some(open) => open,
            None => {
                let begun = self.begin()?;
                self.open.insert(begun)
            }
        };
        let mut file: &File = &open.file;
        // One call for the whole line, as a regular file takes it; more only where a signal came between.
        if let Err(error) = file.write_all(line) {
            // What went in of it has no end of line. If it cannot be taken out, the segment ends with it.
            if file.set_len(open.length_bytes).is_err() {
                self.open = None;
            }
            return Err(error);
        }
        open.length_bytes += more;
        if !self.unsynced.iter().any(|known| Arc::ptr_eq(known, &open.file)) {
            self.unsynced.push(Arc::clone(&open.file));
        }
        Ok(())
    }

    fn begin(&mut self) -> io::Result<Open> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.directory)?;
        self.held_bytes = held_bytes(&self.directory)?;
        if self.held_bytes >= self.journal_max_bytes {
            return Err(io::Error::other(format!(
                "the journal holds {} bytes that nobody has read: is the control plane running?",
                self.held_bytes
            )));
        }
        let file = OpenOptions::new()
            .create_new(true)
            .append(true)
            .mode(0o600)
            .open(self.next.path(&self.directory))?;
        self.next.number += 1;
        Ok(Open {
            file: Arc::new(file),
            length_bytes: 0,
        })
    }
}

fn held_bytes(directory: &Path) -> io::Result<u64> {
    let mut held = 0;
    for segment in Segment::list(directory)? {
        // One that went meanwhile was read.
        held += fs::metadata(segment.path(directory)).map_or(0, |meta| meta.len());
    }
    Ok(held)
}

/// Settles a journal now and then, for as long as it is awaited.
pub async fn keep(journal: Journal) {
    let mut tick = tokio::time::interval(SYNC_PERIOD);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let journal = journal.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || journal.settle()).await {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "the journal of what questions cost was not settled"
            );
        }
    }
}
