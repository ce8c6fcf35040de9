//! Lines on their way from the workers to the thread that writes them.
//!
//! The choice to know: **a line wakes nobody as long as the writer gathers.** The writer sleeps without end only when there
//! is nothing; the line that ends that sleep is followed by all that come within [`GATHER`], and written with them. So a
//! busy worker pays for a few hundred bytes that are copied, and not for another thread that is woken for each request.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long lines wait for others: what an eye that follows the log does not see.
const GATHER: Duration = Duration::from_millis(20);
/// Lines of so many bytes wait for no others.
const GATHER_MAX_BYTES: usize = 256 * 1024;
/// What is kept of a buffer that had to grow while the disk was slow.
const KEPT_BYTES: usize = 2 * GATHER_MAX_BYTES;

#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    more: Condvar,
    max_bytes: usize,
}

#[derive(Debug, Default)]
struct State {
    lines: Vec<u8>,
    count: u64,
    /// The writer sleeps until it is told.
    idle: bool,
    closed: bool,
}

impl Queue {
    /// Holds at most so many bytes.
    pub(super) fn new(max_bytes: usize) -> Self {
        Self {
            state: Mutex::default(),
            more: Condvar::new(),
            max_bytes,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there was room for a line.
    pub(super) fn push(&self, line: &[u8]) -> bool {
        let mut state = self.lock();
        if state.closed || state.lines.len() + line.len() > self.max_bytes {
            return false;
        }
        state.lines.extend_from_slice(line);
        state.count += 1;
        // The one line that makes a gathering writer stop is told as well.
        let full = state.lines.len() >= GATHER_MAX_BYTES && state.lines.len() - line.len() < GATHER_MAX_BYTES;
        let tell = std::mem::take(&mut state.idle) || full;
        drop(state);
        if tell {
            self.more.notify_one();
        }
        true
    }

    /// No line comes after this; those that came are written.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.more.notify_one();
    }

    /// Waits for lines and takes all there are into `taken`, which it empties first; how many. `None`: it is closed, and
    /// nothing is left.
    pub(super) fn take(&self, taken: &mut Vec<u8>) -> Option<u64> {
        taken.clear();
        taken.shrink_to(KEPT_BYTES);
        let mut state = self.lock();
        while state.lines.is_empty() {
            if state.closed {
                return None;
            }
            state.idle = true;
            state = self.more.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let until = Instant::now() + GATHER;
        while state.lines.len() < GATHER_MAX_BYTES && !state.closed {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            (state, _) = self
                .more
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.idle = false;
        std::mem::swap(&mut state.lines, taken);
        Some(std::mem::take(&mut state.count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_come_together_are_taken_together_and_a_full_queue_refuses() {
        let queue = Queue::new(10);
        assert!(queue.push(b"one\n") && queue.push(b"two\n"));
        assert!(!queue.push(b"three\n"), "14 bytes");
        let mut taken = b"old".to_vec();
        assert_eq!(queue.take(&mut taken), Some(2));
        assert_eq!(taken, b"one\ntwo\n");
        assert!(queue.push(b"three\n"));
        queue.close();
        assert!(!queue.push(b"four\n"));
        assert_eq!(queue.take(&mut taken), Some(1));
        assert_eq!(taken, b"three\n");
        assert_eq!(queue.take(&mut taken), None);
    }

    #[test]
    fn no_line_of_many_threads_is_lost_or_torn() {
        const THREADS: usize = 4;
        const LINES: usize = 20_000;
        let queue = Queue::new(usize::MAX);
        let written = std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let (mut all, mut taken, mut counted) = (Vec::new(), Vec::new(), 0);
                while let Some(count) = queue.take(&mut taken) {
                    counted += count;
                    all.extend_from_slice(&taken);
                }
                (all, counted)
            });
            let workers: Vec<_> = (0..THREADS)
                .map(|thread| {
                    let queue = &queue;
                    scope.spawn(move || {
                        for number in 0..LINES {
                            assert!(queue.push(format!("{thread} {number}\n").as_bytes()));
                        }
                    })
                })
                .collect();
            for worker in workers {
                worker.join().expect("ends");
            }
            queue.close();
            writer.join().expect("ends")
        });
        let (all, counted) = written;
        assert_eq!(counted, (THREADS * LINES) as u64);
        let text = String::from_utf8(all).expect("text");
        let mut next = [0; THREADS];
        for line in text.lines() {
            let (thread, number) = line.split_once(' ').expect("two numbers");
            let thread: usize = thread.parse().expect("a number");
            assert_eq!(number.parse(), Ok(next[thread]));
            next[thread] += 1;
        }
        assert_eq!(next, [LINES; THREADS]);
    }
}
