//! One line of JSON for each finished request, written by a thread of its own so that a slow disk delays nobody.
//!
//! A log in a file is bounded in size: a full file is set aside, and the oldest of those set aside goes. The queue
//! ([`queue`]) is bounded too; lines that do not fit, or for which the disk has no room, are dropped and counted. A TCP
//! connection is a line as well. Query strings and routing keys are secrets often enough and are left out.

mod queue;

use std::cell::RefCell;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use http::{HeaderValue, Method, Request, Version};
use serde::Serialize;
use uuid::Uuid;

use crate::config;
use crate::error::Error;
use crate::forwarded::{self, Client};

use queue::Queue;

/// Lines that wait for the disk: a second of a busy machine.
const QUEUE_MAX_BYTES: usize = 8 * 1024 * 1024;

/// What a line has, mostly.
const LINE_BYTES: usize = 512;

thread_local! {
    /// A line as it is made: of each worker one.
    static LINE: RefCell<Vec<u8>> = RefCell::new(Vec::with_capacity(LINE_BYTES));
}

/// A file of this size is set aside: some 200,000 requests.
const SEGMENT_MAX_BYTES: u64 = 64 * 1024 * 1024;

/// Files set aside that are kept, `.1` the newest. With the current one they bound the log to 320 MiB.
const SEGMENTS_KEPT: u32 = 4;

/// Where finished requests go.
#[derive(Debug, Clone)]
pub(crate) struct AccessLog {
    lines: Arc<Lines>,
    dropped: Arc<AtomicU64>,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
}

/// The way in. The log ends with the last of them.
#[derive(Debug)]
struct Lines(Arc<Queue>);

impl Drop for Lines {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl AccessLog {
    /// Opens the log and starts its thread. `None` when switched off.
    pub(crate) fn open(setting: &config::AccessLog) -> Result<Option<Self>, Error> {
        let sink: Box<dyn Sink> = match setting {
            config::AccessLog::Off => return Ok(None),
            config::AccessLog::Stdout => Box::new(Stdout),
            config::AccessLog::File(path) => Box::new(Segments::open(path, SEGMENT_MAX_BYTES).map_err(
                |source| Error::File {
                    doing: "open",
                    path: path.clone(),
                    source,
                },
            )?),
        };
        let lines = Arc::new(Queue::new(QUEUE_MAX_BYTES));
        let queue = Arc::clone(&lines);
        let dropped = Arc::<AtomicU64>::default();
        let lost = Arc::clone(&dropped);
        let thread = std::thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || write_lines(&queue, sink, &lost))
            .map_err(|source| Error::Worker { index: 0, source })?;
        Ok(Some(Self {
            lines: Arc::new(Lines(lines)),
            dropped,
            thread: Arc::new(Mutex::new(Some(thread))),
        }))
    }

    /// Ends the log, when nothing is left to come: what was handed over is on the disk when this returns. Blocks.
    pub(crate) fn close(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.lines.0.close();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the thread of the access log panicked");
        }
    }

    /// Lines lost because the disk was too slow or full.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }
}

/// Takes whole lines: all of them, or none.
trait Sink: Send {
    fn append(&mut self, lines: &[u8]) -> io::Result<()>;
}

struct Stdout;

impl Sink for Stdout {
    fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(lines)?;
        stdout.flush()
    }
}

/// A file that begins anew when it is full. Whoever writes must write whole lines.
#[derive(Debug)]
struct Segments {
    path: PathBuf,
    file: File,
    length_bytes: u64,
    max_bytes: u64,
}

impl Segments {
    fn open(path: &Path, max_bytes: u64) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let meta = file.metadata()?;
        Ok(Self {
            path: path.to_owned(),
            length_bytes: meta.len(),
            // A pipe or a terminal is never full and cannot be set aside.
            max_bytes: if meta.is_file() { max_bytes } else { u64::MAX },
            file,
        })
    }

    fn set_aside(&mut self) -> io::Result<()> {
        let aside = |number: u32| {
            let mut name = self.path.clone().into_os_string();
            name.push(format!(".{number}"));
            PathBuf::from(name)
        };
        for number in (1..SEGMENTS_KEPT).rev() {
            match fs::rename(aside(number), aside(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        fs::rename(&self.path, aside(1))?;
        *self = Self::open(&self.path, self.max_bytes)?;
        Ok(())
    }
}

impl Sink for Segments {
    fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        let more = u64::try_from(lines.len()).unwrap_or(u64::MAX);
        if self.length_bytes > 0 && self.length_bytes.saturating_add(more) > self.max_bytes {
            self.set_aside()?;
        }
        let written = self.file.write_all(lines);
        if written.is_err() && self.max_bytes < u64::MAX {
            // What went in before the disk was full ends within a line.
            self.file.set_len(self.length_bytes)?;
        }
        written?;
        self.length_bytes = self.length_bytes.saturating_add(more);
        Ok(())
    }
}

/// Ends when the queue is closed.
fn write_lines(queue: &Queue, mut sink: Box<dyn Sink>, lost: &AtomicU64) {
    let mut lines = Vec::new();
    let mut failing = false;
    while let Some(count) = queue.take(&mut lines) {
        let outcome = sink.append(&lines);
        match outcome {
            Ok(()) => failing = false,
            Err(error) => {
                lost.fetch_add(count, Relaxed);
                // Once: a full disk would fail for every line.
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "cannot write the access log; its lines are lost until this is mended"
                    );
                }
            }
        }
    }
}

/// One request on its way to the log.
#[derive(Debug)]
pub(crate) struct Entry {
    log: AccessLog,
    started: Instant,
    at: jiff::Timestamp,
    method: Method,
    scheme: &'static str,
    host: String,
    path: String,
    protocol: &'static str,
    id: HeaderValue,
    client: IpAddr,
    pub(crate) service: Option<Uuid>,
    pub(crate) instance: Option<Uuid>,
    pub(crate) status: u16,
    /// Whether the edge answered itself.
    pub(crate) refusal: bool,
    pub(crate) held: Duration,
    pub(crate) first_byte: Duration,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    /// Whether the answer was passed on whole.
    pub(crate) complete: bool,
}

#[derive(Serialize)]
struct Line<'a> {
    at: jiff::Timestamp,
    request_id: &'a str,
    client: IpAddr,
    method: &'a str,
    scheme: &'static str,
    host: &'a str,
    path: &'a str,
    protocol: &'static str,
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    service_id: Option<Uuid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    instance_id: Option<Uuid>,
    by_edge: bool,
    complete: bool,
    bytes_in: u64,
    bytes_out: u64,
    held_ms: u64,
    first_byte_ms: u64,
    total_ms: u64,
}

impl Entry {
    pub(crate) fn new<B>(
        log: &AccessLog,
        request: &Request<B>,
        client: &Client,
        id: &HeaderValue,
        started: Instant,
    ) -> Self {
        let host = request.uri().authority().map_or_else(
            || {
                request
                    .headers()
                    .get(http::header::HOST)
                    .and_then(|host| host.to_str().ok())
                    .unwrap_or_default()
            },
            |authority| authority.as_str(),
        );
        Self {
            log: log.clone(),
            started,
            at: jiff::Timestamp::now(),
            method: request.method().clone(),
            host: host.to_owned(),
            path: without_key(request.uri().path()),
            protocol: if request.version() == Version::HTTP_2 {
                "h2"
            } else {
                "http/1.1"
            },
            id: id.clone(),
            client: client.ip,
            scheme: if client.tls { "https" } else { "http" },
            service: None,
            instance: None,
            status: 0,
            refusal: false,
            held: Duration::ZERO,
            first_byte: Duration::ZERO,
            bytes_in: 0,
            bytes_out: 0,
            complete: true,
        }
    }

    /// For a connection to a public TCP port: its status is the one that a request would have ended with.
    pub(crate) fn tcp(log: &AccessLog, client: IpAddr, public_port: u16) -> Self {
        Self {
            log: log.clone(),
            started: Instant::now(),
            at: jiff::Timestamp::now(),
            method: Method::CONNECT,
            scheme: "tcp",
            host: format!(":{public_port}"),
            path: String::new(),
            protocol: "tcp",
            id: forwarded::new_request_id(),
            client,
            service: None,
            instance: None,
            status: 0,
            refusal: false,
            held: Duration::ZERO,
            first_byte: Duration::ZERO,
            bytes_in: 0,
            bytes_out: 0,
            complete: true,
        }
    }

    /// Hands the line to the writer; drops it when the queue is full.
    pub(crate) fn write(&self) {
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let line = Line {
            at: self.at,
            request_id: self.id.to_str().unwrap_or_default(),
            client: self.client,
            method: self.method.as_str(),
            scheme: self.scheme,
            host: &self.host,
            path: &self.path,
            protocol: self.protocol,
            status: self.status,
            service_id: self.service,
            instance_id: self.instance,
            by_edge: self.refusal,
            complete: self.complete,
            bytes_in: self.bytes_in,
            bytes_out: self.bytes_out,
            held_ms: ms(self.held),
            first_byte_ms: ms(self.first_byte),
            total_ms: ms(self.started.elapsed()),
        };
        LINE.with_borrow_mut(|bytes| {
            bytes.clear();
            bytes.shrink_to(LINE_BYTES);
            if serde_json::to_writer(&mut *bytes, &line).is_err() {
                return;
            }
            bytes.push(b'\n');
            if !self.log.lines.0.push(bytes) {
                self.log.dropped.fetch_add(1, Relaxed);
            }
        });
    }
}

/// A path whose routing key, if it has the form of one, is masked.
fn without_key(path: &str) -> String {
    match path.strip_prefix("/r/") {
        Some(tail) => format!("/r/*{}", tail.find('/').map_or("", |slash| &tail[slash..])),
        None => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_full_file_is_set_aside_between_lines_and_the_oldest_goes() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("access.log");
        for number in 0..8 {
            // Opened anew each time, as after a restart: what is there counts.
            let mut log = Segments::open(&path, 20).expect("opens");
            log.append(format!("line number {number}\n").as_bytes())
                .expect("writes");
        }
        let text = |name: &str| fs::read_to_string(dir.path().join(name)).expect("is there");
        assert_eq!(text("access.log"), "line number 7\n");
        assert_eq!(text("access.log.1"), "line number 6\n");
        assert_eq!(text("access.log.4"), "line number 3\n");
        assert_eq!(fs::read_dir(dir.path()).expect("reads").count(), 5);
    }

    /// A disk that has room for the first and the third batch only.
    struct Full(u32, mpsc::Sender<Vec<u8>>);

    impl Sink for Full {
        fn append(&mut self, lines: &[u8]) -> io::Result<()> {
            self.0 += 1;
            if self.0 == 2 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.1.send(lines.to_vec()).expect("somebody looks");
            Ok(())
        }
    }

    #[test]
    fn lines_without_room_are_counted_and_not_written_later() {
        let lines = Queue::new(100);
        let (sender, written) = mpsc::channel();
        let lost = AtomicU64::new(0);
        std::thread::scope(|scope| {
            let (lost, queue) = (&lost, &lines);
            scope.spawn(move || write_lines(queue, Box::new(Full(0, sender)), lost));
            let line = |text: &str| assert!(lines.push(text.as_bytes()));
            line("one\n");
            assert_eq!(written.recv().expect("written"), b"one\n");
            line("two\n");
            while lost.load(Relaxed) == 0 {
                std::thread::yield_now();
            }
            line("three\n");
            assert_eq!(written.recv().expect("written"), b"three\n");
            lines.close();
        });
        assert_eq!(lost.load(Relaxed), 1);
    }

    #[test]
    fn a_disk_that_fills_up_leaves_no_torn_line() {
        use std::os::unix::process::CommandExt as _;

        /// What the child may write to one file.
        const ROOM: u64 = 25;
        let path = "TRAM_ACCESS_LOG_TEST";
        if let Ok(path) = std::env::var(path) {
            let limit = rustix::process::Rlimit {
                current: Some(ROOM),
                maximum: Some(ROOM),
            };
            rustix::process::setrlimit(rustix::process::Resource::Fsize, limit).expect("lower");
            let mut log = Segments::open(Path::new(&path), 1 << 20).expect("opens");
            log.append(b"line number 0\n").expect("room");
            log.append(b"line number 1\n").expect_err("no room");
            return;
        }
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("access.log");
        // A process of its own, since the limit holds for all of one; the signal that comes with it is ignored there.
        let status = std::process::Command::new("sh")
            .arg0("sh")
            .args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""])
            .arg(std::env::current_exe().expect("this program"))
            .args([
                "--exact",
                "access_log::tests::a_disk_that_fills_up_leaves_no_torn_line",
            ])
            .env(path, &file)
            .stdout(std::process::Stdio::null())
            .status()
            .expect("starts");
        assert!(status.success());
        assert_eq!(fs::read_to_string(file).expect("is there"), "line number 0\n");
    }

    #[test]
    fn a_closed_log_is_on_the_disk() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("access.log");
        let log = AccessLog::open(&config::AccessLog::File(path.clone()))
            .expect("opens")
            .expect("is on");
        for _ in 0..1000 {
            Entry::tcp(&log, IpAddr::from([127, 0, 0, 1]), 5432).write();
        }
        log.close();
        log.close();
        assert_eq!(fs::read_to_string(path).expect("is there").lines().count(), 1000);
    }

    #[test]
    fn routing_keys_stay_out_of_the_log() {
        assert_eq!(without_key("/r/secret/a/b"), "/r/*/a/b");
        assert_eq!(without_key("/r/secret"), "/r/*");
        assert_eq!(without_key("/reports/1"), "/reports/1");
    }
}
