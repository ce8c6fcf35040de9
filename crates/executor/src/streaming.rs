//! Files of any size, and whole directories, as they are: `GET` and `PUT` of `/file` and `/tree`.
//!
//! Beyond the protocol of Koyeb's clients, whose answers hold a whole file as text. Nothing but a few pieces is in memory,
//! and whoever is slow slows the other side down.
//!
//! ```text
//! GET /file?path=P          200 and the bytes
//! PUT /file?path=P[&mode=M] the bytes of the request, in place of what the file had; its directories are made
//! GET /tree?path=P          200 and a stream of tram-transfer
//! PUT /tree?path=P          such a stream, to the path or below it when it is a directory; answers what was left out
//! ```
//! A failure has a status of its own and a text. One in the middle of an answer breaks the connection off: what has
//! arrived is not whole, and its length or its missing end says so.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use http_body_util::BodyExt;
use hyper::body::{Bytes, Incoming};
use hyper::{Method, StatusCode};
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;

use crate::files::THREADS_MAX;
use crate::reply::{self, Reply, Wrong};
use crate::request::{SILENCE_MAX, parameter};

/// Transfers at once: each holds a thread for as long as its client takes, and small operations need some too.
const TRANSFERS_MAX: usize = THREADS_MAX / 2;
/// Bytes in a piece: enough that handing it over costs nothing beside copying it.
const PIECE_BYTES: usize = 256 * 1024;
/// Pieces between the two sides, so that neither waits for the other all the time: one megabyte.
const PIECES: usize = 4;
/// Permissions of a new file that nobody chose, before the umask.
const FILE_MODE: u32 = 0o644;
/// Permissions that can be chosen.
const MODE_MASK: u32 = 0o7777;

/// The transfers that are under way.
#[derive(Debug, Clone)]
pub(crate) struct Transfers(Arc<Semaphore>);

impl Default for Transfers {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(TRANSFERS_MAX)))
    }
}

/// What is moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    File,
    Tree,
}

impl What {
    /// What a path of a request is about.
    pub(crate) fn at(path: &str) -> Option<Self> {
        match path {
            "/file" => Some(Self::File),
            "/tree" => Some(Self::Tree),
            _ => None,
        }
    }
}

impl Transfers {
    /// Answers a request.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub(crate) async fn carry_out(
        &self,
        what: What,
        method: &Method,
        query: Option<&str>,
        body: Incoming,
    ) -> Result<Reply, Wrong> {
        let path = parameter(query, "path").filter(|path| !path.is_empty());
        let path = path.ok_or_else(|| Wrong::new(StatusCode::BAD_REQUEST, "`path` must be given"))?;
        let path = PathBuf::from(path);
        let busy = "too many files are on their way: try again";
        let permit = Arc::clone(&self.0)
            .try_acquire_owned()
            .map_err(|_| Wrong::new(StatusCode::SERVICE_UNAVAILABLE, busy))?;
        match (method, what) {
            (&Method::GET, What::File) => send_file(path, permit).await,
            (&Method::GET, What::Tree) => Ok(send_tree(path, permit)),
            (&Method::PUT, What::File) => {
                let mode = parameter(query, "mode").map(|text| mode(&text)).transpose()?;
                receive(body, permit, move |input| write_file(&path, mode, input)).await
            }
            (&Method::PUT, What::Tree) => {
                receive(body, permit, move |input| {
                    let summary = tram_transfer::unpack(&mut BufReader::new(input), &path)?;
                    Ok(
                        json!({ "files": summary.files, "bytes": summary.bytes, "left_out": summary.left_out,
                               "named": summary.named }),
                    )
                })
                .await
            }
            _ => Err(Wrong::new(StatusCode::METHOD_NOT_ALLOWED, "use GET or PUT")),
        }
    }
}

fn mode(text: &str) -> Result<u32, Wrong> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| mode & !MODE_MASK == 0)
        .ok_or_else(|| {
            let words = "`mode` must be permissions in octal, such as 755";
            Wrong::new(StatusCode::BAD_REQUEST, words)
        })
}

/// An error of the sandbox's file system in the words of HTTP.
fn refused(error: &io::Error) -> Wrong {
    let status = match error.kind() {
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::PermissionDenied => StatusCode::FORBIDDEN,
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => StatusCode::INSUFFICIENT_STORAGE,
        ErrorKind::TimedOut => StatusCode::REQUEST_TIMEOUT,
        _ => StatusCode::BAD_REQUEST,
    };
    Wrong::new(status, error.to_string())
}

async fn send_file(path: PathBuf, permit: OwnedSemaphorePermit) -> Result<Reply, Wrong> {
    let opened = tokio::task::spawn_blocking(move || {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        // Not to wait for the other end of a pipe.
        let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).map_err(io::Error::other)?;
        let opened = OpenOptions::new().read(true).custom_flags(flags).open(&path);
        let file = opened.map_err(named)?;
        let about = file.metadata().map_err(named)?;
        if !about.is_file() {
            return Err(named(io::Error::other(
                "is not a file: use /tree for a directory",
            )));
        }
        Ok((file, about.len()))
    });
    let (file, length) = opened
        .await
        .map_err(|_| Wrong::new(StatusCode::INTERNAL_SERVER_ERROR, "the transfer broke off"))?
        .map_err(|error| refused(&error))?;
    let (pieces, receiver) = mpsc::channel(PIECES);
    tokio::task::spawn_blocking(move || {
        let _permit = permit;
        // No more than was promised: a file may grow meanwhile.
        send_all(file.take(length), &pieces);
    });
    Ok(reply::bytes(receiver, Some(length)))
}

/// Sends until there is no more or nobody takes it.
fn send_all(mut input: impl Read, pieces: &mpsc::Sender<Bytes>) {
    loop {
        let mut piece = vec![0; PIECE_BYTES];
        let count = match input.read(&mut piece) {
            Ok(0) => return,
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        piece.truncate(count);
        if pieces.blocking_send(piece.into()).is_err() {
            return;
        }
    }
}

fn send_tree(path: PathBuf, permit: OwnedSemaphorePermit) -> Reply {
    let (pieces, receiver) = mpsc::channel(PIECES);
    tokio::task::spawn_blocking(move || {
        let _permit = permit;
        let mut output = io::BufWriter::with_capacity(PIECE_BYTES, Leaving(pieces));
        // The stream tells its reader what went wrong.
        let _ = tram_transfer::pack(&path, &mut output);
    });
    reply::bytes(receiver, None)
}

/// Hands the body of a request to `write`, on a thread of its own, and answers with what that says.
async fn receive(
    mut body: Incoming,
    permit: OwnedSemaphorePermit,
    write: impl FnOnce(Arriving) -> io::Result<serde_json::Value> + Send + 'static,
) -> Result<Reply, Wrong> {
    let (pieces, receiver) = mpsc::channel::<io::Result<Bytes>>(PIECES);
    let writing = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        let arriving = Arriving {
            pieces: receiver,
            current: Bytes::new(),
        };
        write(arriving)
    });
    loop {
        let piece = match timeout(SILENCE_MAX, body.frame()).await {
            Ok(None) => break,
            Ok(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => Ok(data),
                Err(_) => continue,
            },
            Ok(Some(Err(error))) => Err(io::Error::new(
                ErrorKind::UnexpectedEof,
                format!("the body broke off: {error}"),
            )),
            Err(_) => Err(io::Error::new(
                ErrorKind::TimedOut,
                format!("nothing of the body arrived for {} s", SILENCE_MAX.as_secs()),
            )),
        };
        let broken = piece.is_err();
        // One who takes no more has an error of his own, which is told below.
        if pieces.send(piece).await.is_err() || broken {
            break;
        }
    }
    drop(pieces);
    match writing.await {
        Ok(Ok(said)) => Ok(reply::json(StatusCode::OK, &said)),
        Ok(Err(error)) => Err(refused(&error)),
        Err(_) => Err(Wrong::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the transfer broke off",
        )),
    }
}

fn write_file(path: &Path, mode: Option<u32>, mut input: Arriving) -> io::Result<serde_json::Value> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        fs::create_dir_all(parent).map_err(named)?;
    }
    let mut file: File = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode.unwrap_or(FILE_MODE))
        .open(path)
        .map_err(named)?;
    let mut bytes: u64 = 0;
    while let Some(piece) = input.next()? {
        file.write_all(&piece).map_err(named)?;
        bytes += u64::try_from(piece.len()).unwrap_or_default();
    }
    if let Some(mode) = mode {
        // By the open file, not by its path, which may lead elsewhere by now.
        file.set_permissions(fs::Permissions::from_mode(mode))
            .map_err(named)?;
    }
    Ok(json!({ "bytes": bytes }))
}

/// Pieces of a request, for a thread that reads.
struct Arriving {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    current: Bytes,
}

impl Arriving {
    /// The next piece, `None` at the end of the body.
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        self.pieces.blocking_recv().transpose()
    }
}

impl Read for Arriving {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.next()? {
                Some(piece) => self.current = piece,
                None => return Ok(0),
            }
        }
        let count = self.current.len().min(buffer.len());
        let taken = self.current.split_to(count);
        if let Some(room) = buffer.get_mut(..count) {
            room.copy_from_slice(&taken);
        }
        Ok(count)
    }
}

/// Pieces of an answer, from a thread that writes.
struct Leaving(mpsc::Sender<Bytes>);

impl Write for Leaving {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0
            .blocking_send(Bytes::copy_from_slice(bytes))
            .map_err(|_| ErrorKind::BrokenPipe)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
