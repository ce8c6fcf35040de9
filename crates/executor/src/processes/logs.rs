//! The last lines of a process, for any number of readers.
//!
//! Each stream has bounds of its own, in lines and in bytes, so that a talkative one does not push the other out. A
//! line has a number; a reader asks for those from its own on, and one that is too slow misses the oldest.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::watch;

use crate::output::{Piece, Stream};

/// Lines kept of each stream.
const LINES_MAX: usize = 10_000;
/// Bytes kept of each stream: 10,000 lines of usual length fit; a process cannot fill the sandbox's memory.
const BYTES_MAX: usize = 2 << 20;
/// Lines handed out at once, so that nobody holds a second copy of all.
const BATCH_LINES: usize = 256;

/// A line of a process.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Line {
    #[serde(skip)]
    number: u64,
    timestamp: Timestamp,
    stream: Stream,
    data: String,
}

/// What a process has said.
#[derive(Debug, Clone)]
pub(super) struct Logs {
    kept: Arc<Mutex<Kept>>,
    /// How many lines there were, and whether that was all.
    changed: Arc<watch::Sender<(u64, bool)>>,
}

#[derive(Debug, Default)]
struct Kept {
    stdout: Tail,
    stderr: Tail,
    next: u64,
}

#[derive(Debug, Default)]
struct Tail {
    lines: VecDeque<Line>,
    bytes: usize,
}

impl Default for Logs {
    fn default() -> Self {
        Self {
            kept: Arc::default(),
            changed: Arc::new(watch::channel((0, false)).0),
        }
    }
}

impl Logs {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a piece.
    pub(super) fn push(&self, piece: Piece) {
        let mut kept = self.lock();
        let number = kept.next;
        kept.next += 1;
        let tail = match piece.stream {
            Stream::Stdout => &mut kept.stdout,
            Stream::Stderr => &mut kept.stderr,
        };
        tail.bytes += piece.data.len();
        tail.lines.push_back(Line {
            number,
            timestamp: Timestamp::now(),
            stream: piece.stream,
            data: piece.data,
        });
        while tail.lines.len() > LINES_MAX || tail.bytes > BYTES_MAX {
            match tail.lines.pop_front() {
                Some(line) => tail.bytes -= line.data.len(),
                None => break,
            }
        }
        drop(kept);
        self.changed.send_replace((number + 1, false));
    }

    /// Nothing more will come.
    pub(super) fn close(&self) {
        self.changed.send_modify(|state| state.1 = true);
    }

    /// A reader that begins with the oldest line there is.
    pub(super) fn reader(&self) -> Reader {
        Reader {
            logs: self.clone(),
            changed: self.changed.subscribe(),
            next: 0,
        }
    }
}

/// A place in the logs.
#[derive(Debug)]
pub(super) struct Reader {
    logs: Logs,
    changed: watch::Receiver<(u64, bool)>,
    next: u64,
}

impl Reader {
    /// Some of the lines that were not read yet, in their order.
    pub(super) fn next(&mut self) -> Vec<Line> {
        let kept = self.logs.lock();
        let unread = |tail: &'_ Tail| {
            let begin = tail.lines.partition_point(|line| line.number < self.next);
            tail.lines
                .range(begin..)
                .take(BATCH_LINES)
                .cloned()
                .collect::<Vec<_>>()
        };
        let mut lines = unread(&kept.stdout);
        lines.extend(unread(&kept.stderr));
        drop(kept);
        lines.sort_unstable_by_key(|line| line.number);
        lines.truncate(BATCH_LINES);
        if let Some(last) = lines.last() {
            self.next = last.number + 1;
        }
        lines
    }

    /// Waits for lines; `false` when none will come, or when there are none and `follow` is not wanted.
    pub(super) async fn wait(&mut self, follow: bool) -> bool {
        let next = self.next;
        let known = *self.changed.borrow();
        if known.0 > next {
            return true;
        }
        if !follow {
            return false;
        }
        match self.changed.wait_for(|(lines, all)| *lines > next || *all).await {
            Ok(state) => state.0 > next,
            Err(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(stream: Stream, data: String) -> Piece {
        Piece { stream, data }
    }

    #[tokio::test]
    async fn the_last_lines_of_each_stream_are_kept_in_order() {
        let logs = Logs::default();
        logs.push(piece(Stream::Stderr, "kept\n".into()));
        for number in 0..LINES_MAX + 10 {
            logs.push(piece(Stream::Stdout, format!("{number}\n")));
        }
        let mut reader = logs.reader();
        let mut all = Vec::new();
        while reader.wait(false).await {
            all.extend(reader.next());
        }
        assert_eq!(all.len(), LINES_MAX + 1);
        assert_eq!((all[0].data.as_str(), all[1].data.as_str()), ("kept\n", "10\n"));
        assert!(all.windows(2).all(|pair| pair[0].number < pair[1].number));
    }

    #[tokio::test]
    async fn long_lines_are_bounded_by_bytes() {
        let logs = Logs::default();
        for _ in 0..100 {
            logs.push(piece(Stream::Stdout, "x".repeat(BYTES_MAX / 10)));
        }
        assert_eq!(logs.lock().stdout.lines.len(), 10);
    }

    #[tokio::test]
    async fn a_follower_hears_what_comes_and_the_end() {
        let logs = Logs::default();
        let mut reader = logs.reader();
        let told = logs.clone();
        let teller = tokio::spawn(async move {
            told.push(piece(Stream::Stdout, "a\n".into()));
            told.close();
        });
        assert!(reader.wait(true).await);
        assert_eq!(reader.next().len(), 1);
        assert!(!reader.wait(true).await);
        teller.await.unwrap();
    }
}
