//! From an instance's pipes to its logs.
//!
//! Runs in the shim until the instance has ended and its output is read. Owns the bounds on a flood.
//!
//! The one design choice to know: when a program prints more than its rate, whole chunks are dropped
//! after counting their lines, and reading itself is slowed to [`READ_BYTES_PER_SECOND`], so a flood
//! costs the shim (which is outside the instance's CPU limit) next to nothing.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rustix::event::{PollFd, PollFlags};

use crate::logs::{LineSplitter, Stream, TokenBucket, Writer};
use crate::protocol::LogLimits;
use crate::sys;

/// The size of a pipe: one read empties it.
const CHUNK_BYTES: usize = 64 << 10;
/// What is read at most, kept or dropped: beyond it the program waits in its `write`.
const READ_BYTES_PER_SECOND: u64 = 32 << 20;
const READ_BURST_BYTES: u64 = 8 << 20;
/// What a record costs beside its text; without it a flood of empty lines would be free.
const RECORD_OVERHEAD_BYTES: u64 = 40;
/// After dropping, keep lines again when so much may be written at once: a few full screens, rather
/// than a line here and there.
const RESUME_BYTES: u64 = 256 << 10;
/// How often dropped lines are reported while it goes on.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// A pipe may have been handed to a process outside the instance, which may hold it for ever.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

pub(super) struct Pump {
    sources: Vec<Source>,
    writer: Writer,
    kept: TokenBucket,
    read: TokenBucket,
    dropping: bool,
    dropped: u64,
    reported_at: Instant,
    limit: u64,
    /// One read at a time.
    buffer: Vec<u8>,
}

/// Why the pump stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Woken {
    /// The process has ended.
    Ended,
    /// Something else is to be seen to: which.
    Other(usize),
}

struct Source {
    stream: Stream,
    pipe: OwnedFd,
    lines: LineSplitter,
    /// In the middle of a line whose beginning was dropped.
    skipping: bool,
}

impl Pump {
    pub(super) fn new(
        streams: [(Stream, OwnedFd); 2],
        writer: Writer,
        limits: &LogLimits,
    ) -> io::Result<Self> {
        let now = Instant::now();
        let mut sources = Vec::new();
        for (stream, pipe) in streams {
            rustix::io::ioctl_fionbio(&pipe, true)?;
            sources.push(Source {
                stream,
                pipe,
                lines: LineSplitter::default(),
                skipping: false,
            });
        }
        Ok(Self {
            sources,
            writer,
            kept: TokenBucket::new(limits.bytes_per_second, limits.burst_bytes, now),
            read: TokenBucket::new(
                READ_BYTES_PER_SECOND.max(2 * limits.bytes_per_second),
                READ_BURST_BYTES,
                now,
            ),
            dropping: false,
            dropped: 0,
            reported_at: now,
            limit: limits.bytes_per_second,
            buffer: Vec::new(),
        })
    }

    /// The pipes that are still open, to read from.
    pub(super) fn pipes(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.sources.iter().map(|source| source.pipe.as_fd())
    }

    /// Until the process has ended, or one of `others` is readable.
    pub(super) fn run(&mut self, process: &OwnedFd, others: &[BorrowedFd<'_>]) -> io::Result<Woken> {
        loop {
            let pause = self.read.wait_for(CHUNK_BYTES as u64, Instant::now());
            let mut watched = vec![process.as_fd()];
            watched.extend_from_slice(others);
            let (readable, woken) = self.wait(&watched, None, pause)?;
            self.read_all(readable);
            match woken {
                Some(0) => return Ok(Woken::Ended),
                Some(other) => return Ok(Woken::Other(other - 1)),
                None => {}
            }
        }
    }

    /// Until the pipes are at their end, or that has taken too long.
    pub(super) fn finish(mut self) -> io::Result<()> {
        let until = Instant::now() + DRAIN_TIMEOUT;
        while !self.sources.is_empty() {
            let now = Instant::now();
            if now >= until {
                break;
            }
            let pause = self.read.wait_for(CHUNK_BYTES as u64, now);
            let (readable, _) = self.wait(&[], Some(until), pause)?;
            self.read_all(readable);
        }
        for mut source in std::mem::take(&mut self.sources) {
            source
                .lines
                .finish(|continued, text| self.writer.push(Timestamp::now(), source.stream, continued, text));
        }
        self.report_dropped(true);
        self.flush();
        Ok(())
    }

    /// In their own order: what both have was, as far as anybody can tell, written to stdout first.
    fn read_all(&mut self, readable: Vec<usize>) {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(CHUNK_BYTES, 0);
        let over: Vec<usize> = readable
            .into_iter()
            .filter(|index| self.read_from(*index, &mut buffer))
            .collect();
        self.buffer = buffer;
        for index in over.into_iter().rev() {
            self.sources.remove(index);
        }
        self.report_dropped(false);
        self.flush();
    }

    /// Which sources can be read, and which of `watched` can, if any.
    fn wait(
        &self,
        watched: &[BorrowedFd<'_>],
        until: Option<Instant>,
        pause: Duration,
    ) -> io::Result<(Vec<usize>, Option<usize>)> {
        let listen = pause.is_zero();
        let pipes = if listen { self.sources.len() } else { 0 };
        let mut fds = Vec::with_capacity(pipes + watched.len());
        let sources = self.sources.iter().take(pipes);
        fds.extend(sources.map(|source| PollFd::new(&source.pipe, PollFlags::IN)));
        fds.extend(
            watched
                .iter()
                .map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)),
        );
        let mut timeout = (!listen).then_some(pause);
        if self.dropped > 0 {
            timeout = Some(timeout.map_or(REPORT_EVERY, |timeout| timeout.min(REPORT_EVERY)));
        }
        if let Some(until) = until {
            let left = until.saturating_duration_since(Instant::now());
            timeout = Some(timeout.map_or(left, |timeout| timeout.min(left)));
        }
        sys::poll(&mut fds, timeout)?;
        let ready: Vec<usize> = fds
            .iter()
            .enumerate()
            .filter(|(_, fd)| !fd.revents().is_empty())
            .map(|(index, _)| index)
            .collect();
        let woken = ready.iter().find_map(|index| index.checked_sub(pipes));
        Ok((ready.into_iter().filter(|index| *index < pipes).collect(), woken))
    }

    /// Reads once from a source; whether it is over.
    fn read_from(&mut self, index: usize, buffer: &mut [u8]) -> bool {
        let Some(source) = self.sources.get_mut(index) else {
            return false;
        };
        let read = match rustix::io::read(source.pipe.as_fd(), &mut *buffer) {
            Ok(0) => {
                // The last line may lack its newline.
                let (stream, writer) = (source.stream, &mut self.writer);
                source
                    .lines
                    .finish(|continued, text| writer.push(Timestamp::now(), stream, continued, text));
                return true;
            }
            Ok(read) => read,
            // Nothing there after all.
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return false,
            Err(_) => return true,
        };
        let now = Instant::now();
        self.read.take(read as u64, now);
        let bytes = buffer.get(..read).unwrap_or_default();
        if self.dropping && self.kept.wait_for(RESUME_BYTES, now).is_zero() {
            self.dropping = false;
        }
        if self.dropping {
            self.dropped += count_lines(bytes);
            source.skipping = !bytes.ends_with(b"\n");
            source.lines = LineSplitter::default();
            return false;
        }
        let bytes = if source.skipping {
            source.skipping = !bytes.contains(&b'\n');
            after_line(bytes)
        } else {
            bytes
        };
        let at = Timestamp::now();
        let (stream, kept, writer) = (source.stream, &mut self.kept, &mut self.writer);
        let (dropping, dropped) = (&mut self.dropping, &mut self.dropped);
        source.lines.push(bytes, |continued, text| {
            if !*dropping && kept.take(text.len() as u64 + RECORD_OVERHEAD_BYTES, now) {
                writer.push(at, stream, continued, text);
            } else {
                *dropping = true;
                *dropped += 1;
            }
        });
        false
    }

    fn report_dropped(&mut self, finally: bool) {
        let due = finally || self.reported_at.elapsed() >= REPORT_EVERY;
        if self.dropped == 0 || !due {
            return;
        }
        let text = format!(
            "{} lines were dropped: the instance printed more than its limit of {} bytes per second",
            self.dropped, self.limit
        );
        self.writer.push(Timestamp::now(), Stream::Koyeb, false, &text);
        self.dropped = 0;
        self.reported_at = Instant::now();
    }

    fn flush(&mut self) {
        if self.writer.flush().is_err() {
            // The disk is full or gone. The instance must not stop for that; say so when it is back.
            self.dropped += 1;
        }
    }
}

fn count_lines(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|byte| **byte == b'\n').count() as u64
}

/// What follows the line whose beginning was dropped.
fn after_line(bytes: &[u8]) -> &[u8] {
    let end = bytes
        .iter()
        .position(|byte| *byte == b'\n')
        .map_or(bytes.len(), |end| end + 1);
    bytes.get(end..).unwrap_or_default()
}
