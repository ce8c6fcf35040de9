//! One line of JSON for each finished request, written by a thread of its own so that a slow disk delays nobody.
//!
//! A log in a file is bounded in size: a full file is set aside, and the oldest of those set aside goes. The queue
//! is bounded too; lines that do not fit are dropped and counted. Query strings and routing keys are secrets
//! often enough and are left out.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use http::{HeaderValue, Method, Request, Version};
use serde::Serialize;
use uuid::Uuid;

use crate::config;
use crate::error::Error;
use crate::forwarded::Client;

/// Lines that wait for the disk: a second of a busy machine.
const QUEUE_MAX: usize = 32 * 1024;

/// Bytes gathered before a write.
const BUFFER_BYTES: usize = 64 * 1024;

/// A file of this size is set aside: some 200,000 requests.
const SEGMENT_MAX_BYTES: u64 = 64 * 1024 * 1024;

/// Files set aside that are kept, `.1` the newest. With the current one they bound the log to 320 MiB.
const SEGMENTS_KEPT: u32 = 4;

/// Where finished requests go.
#[derive(Debug, Clone)]
pub(crate) struct AccessLog {
    lines: SyncSender<Vec<u8>>,
    dropped: Arc<AtomicU64>,
}

impl AccessLog {
    /// Opens the log and starts its thread. `None` when switched off.
    pub(crate) fn open(setting: &config::AccessLog) -> Result<Option<Self>, Error> {
        let sink: Box<dyn Write + Send> = match setting {
            config::AccessLog::Off => return Ok(None),
            config::AccessLog::Stdout => Box::new(io::stdout()),
            config::AccessLog::File(path) => Box::new(Segments::open(path, SEGMENT_MAX_BYTES).map_err(
                |source| Error::File {
                    doing: "open",
                    path: path.clone(),
                    source,
                },
            )?),
        };
        let (lines, queue) = sync_channel(QUEUE_MAX);
        std::thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || write_lines(&queue, sink))
            .map_err(|source| Error::Worker { index: 0, source })?;
        Ok(Some(Self {
            lines,
            dropped: Arc::default(),
        }))
    }

    /// Lines lost because the disk was too slow.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
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

impl Write for Segments {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let more = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if self.length_bytes > 0 && self.length_bytes.saturating_add(more) > self.max_bytes {
            self.set_aside()?;
        }
        // Whole, so that a line is never torn between two files.
        self.file.write_all(bytes)?;
        self.length_bytes = self.length_bytes.saturating_add(more);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Ends when the last sender is gone.
fn write_lines(queue: &Receiver<Vec<u8>>, sink: Box<dyn Write + Send>) {
    let mut sink = BufWriter::with_capacity(BUFFER_BYTES, sink);
    while let Ok(line) = queue.recv() {
        let mut outcome = sink.write_all(&line);
        while let Ok(line) = queue.try_recv() {
            outcome = outcome.and_then(|()| sink.write_all(&line));
        }
        if let Err(error) = outcome.and_then(|()| sink.flush()) {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "cannot write the access log"
            );
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
    host: String,
    path: String,
    version: Version,
    id: HeaderValue,
    client: IpAddr,
    tls: bool,
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
            version: request.version(),
            id: id.clone(),
            client: client.ip,
            tls: client.tls,
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
            scheme: if self.tls { "https" } else { "http" },
            host: &self.host,
            path: &self.path,
            protocol: if self.version == Version::HTTP_2 {
                "h2"
            } else {
                "http/1.1"
            },
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
        let Ok(mut bytes) = serde_json::to_vec(&line) else {
            return;
        };
        bytes.push(b'\n');
        if self.log.lines.try_send(bytes).is_err() {
            self.log.dropped.fetch_add(1, Relaxed);
        }
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
    use super::*;

    #[test]
    fn a_full_file_is_set_aside_between_lines_and_the_oldest_goes() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("access.log");
        for number in 0..8 {
            // Opened anew each time, as after a restart: what is there counts.
            let mut log = Segments::open(&path, 20).expect("opens");
            log.write_all(format!("line number {number}\n").as_bytes())
                .expect("writes");
        }
        let text = |name: &str| fs::read_to_string(dir.path().join(name)).expect("is there");
        assert_eq!(text("access.log"), "line number 7\n");
        assert_eq!(text("access.log.1"), "line number 6\n");
        assert_eq!(text("access.log.4"), "line number 3\n");
        assert_eq!(fs::read_dir(dir.path()).expect("reads").count(), 5);
    }

    #[test]
    fn routing_keys_stay_out_of_the_log() {
        assert_eq!(without_key("/r/secret/a/b"), "/r/*/a/b");
        assert_eq!(without_key("/r/secret"), "/r/*");
        assert_eq!(without_key("/reports/1"), "/reports/1");
    }
}
