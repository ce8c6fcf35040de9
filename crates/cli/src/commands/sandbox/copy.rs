//! `tram sandbox cp SRC DST`: files and directories into a sandbox, out of it, and from one to another.
//!
//! The executor inside reads or writes one stream (`tram-transfer`) by its standard streams, which travel as those of `tram
//! exec` do: nothing is asked of the image, and no more than some pieces are in memory at a time, however large the files.
//! What comes out of a sandbox is written down with as much care as if it came from an enemy.

use std::{
    io::{self, BufReader, BufWriter, Read, Write},
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde_json::{Value, json};
use tokio::{io::AsyncReadExt as _, sync::mpsc, task::spawn_blocking};
use tram_transfer::Summary;

use crate::{
    client::{Client, Receiver, Sender},
    commands::exec::{self, STDIN_CHUNK_BYTES, data},
    error::Error,
    host::Input,
    session::Session,
    view::{number, text, texts},
};

/// The executor in every sandbox, and its command for files.
const EXECUTOR: [&str; 2] = ["/.tramontane/executor", "file"];
/// How many pieces wait between the connection and the disk: enough that neither waits for the other all the time.
const PIECES: usize = 16;
/// Most bytes that are kept of what the executor says of itself: an error or a summary.
const SAID_BYTES_MAX: usize = 64 * 1024;

/// Arguments of `cp`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// What to copy: a path, SANDBOX:PATH, or - for standard input
    #[arg(value_name = "SRC")]
    pub source: String,
    /// Where to: a path, SANDBOX:PATH, or - for standard output
    #[arg(value_name = "DST")]
    pub target: String,
}

/// One end of a copy.
#[derive(Debug, PartialEq, Eq)]
enum Side {
    Local(PathBuf),
    Inside { sandbox: String, path: String },
    Standard,
}

impl Side {
    /// A name before a colon is a sandbox's, unless it looks like a path: `./a:b` is a file.
    fn parse(given: &str) -> Self {
        match given.split_once(':') {
            _ if given == "-" => Self::Standard,
            Some((sandbox, path)) if !sandbox.is_empty() && !sandbox.starts_with(['.', '/']) => {
                Self::Inside {
                    sandbox: sandbox.to_owned(),
                    path: if path.is_empty() { "." } else { path }.to_owned(),
                }
            }
            _ => Self::Local(PathBuf::from(given)),
        }
    }
}

pub(super) async fn run(session: Session, arguments: Arguments) -> Result<(), Error> {
    let client = session.client()?;
    let (from, to) = (Side::parse(&arguments.source), Side::parse(&arguments.target));
    let summary = match (from, to) {
        (Side::Inside { sandbox, path }, Side::Local(to)) => download(&client, &sandbox, &path, to).await?,
        (Side::Local(from), Side::Inside { sandbox, path }) => upload(&client, from, &sandbox, &path).await?,
        (Side::Inside { sandbox, path }, Side::Standard) => {
            let id = super::find(&client, &sandbox).await?.id;
            let printer = session.printer.clone();
            let out = move |bytes: Vec<u8>| {
                let printer = printer.clone();
                async move { printer.bytes(&bytes) }
            };
            let ended = command(&client, &id, &["read", &path], Feed::Nothing, out).await?;
            return ended.succeeded().map(|_| ());
        }
        (Side::Standard, Side::Inside { sandbox, path }) => {
            let id = super::find(&client, &sandbox).await?.id;
            let feed = Feed::Stdin(session.host.stdin);
            let ended = command(&client, &id, &["write", &path], feed, ignore).await?;
            return ended.succeeded().map(|_| ());
        }
        (
            Side::Inside { sandbox, path },
            Side::Inside {
                sandbox: to,
                path: at,
            },
        ) => across(&client, (&sandbox, &path), (&to, &at)).await?,
        _ => {
            return Err(Error::input(
                "neither side is in a sandbox",
                "write it as `SANDBOX:PATH`, such as `box:/tmp/data`",
            ));
        }
    };
    for named in &summary.named {
        session.printer.warning(format_args!("left out: {named}"));
    }
    let unnamed = summary
        .left_out
        .saturating_sub(u64::try_from(summary.named.len()).unwrap_or(u64::MAX));
    if unnamed > 0 {
        session.printer.warning(format_args!("left out: {unnamed} more"));
    }
    session.printer.detail(format_args!(
        "copied {} bytes in {} files",
        summary.bytes, summary.files
    ));
    Ok(())
}

async fn download(client: &Client, sandbox: &str, path: &str, to: PathBuf) -> Result<Summary, Error> {
    let id = super::find(client, sandbox).await?.id;
    let (pieces, arriving) = mpsc::channel(PIECES);
    let unpacking =
        spawn_blocking(move || tram_transfer::unpack(&mut BufReader::new(Arriving::new(arriving)), &to));
    // A reader that has gone met an error of its own, which is told below.
    let out = move |bytes: Vec<u8>| {
        let pieces = pieces.clone();
        async move { pieces.send(bytes).await.map_err(|_| stopped()) }
    };
    let ended = command(client, &id, &["pack", path], Feed::Nothing, out).await;
    let unpacked = unpacking.await.map_err(|error| Error::Exec(error.to_string()))?;
    match (unpacked, ended) {
        (Ok(summary), Ok(ended)) => ended.succeeded().map(|_| summary),
        // The stream was cut off, and the connection says why.
        (Err(error), Err(cause)) if error.kind() == io::ErrorKind::UnexpectedEof => Err(cause),
        (Err(error), Ok(ended)) if error.kind() == io::ErrorKind::UnexpectedEof => {
            ended.succeeded()?;
            Err(Error::Exec(format!("cannot copy: {error}")))
        }
        (Err(error), _) => Err(Error::Exec(format!("cannot copy: {error}"))),
        (Ok(_), Err(cause)) => Err(cause),
    }
}

async fn upload(client: &Client, from: PathBuf, sandbox: &str, path: &str) -> Result<Summary, Error> {
    let id = super::find(client, sandbox).await?.id;
    let (pieces, leaving) = mpsc::channel(PIECES);
    let packing = spawn_blocking(move || {
        let mut output = BufWriter::with_capacity(STDIN_CHUNK_BYTES, Leaving(pieces));
        tram_transfer::pack(&from, &mut output)
    });
    let ended = command(client, &id, &["unpack", path], Feed::Pieces(leaving), ignore).await;
    let packed = packing.await.map_err(|error| Error::Exec(error.to_string()))?;
    let mut summary = match packed {
        Ok(summary) => summary,
        // Nobody took it any more, and the other side says why.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
            ended?.succeeded()?;
            return Err(Error::Exec(format!("cannot copy: {error}")));
        }
        Err(error) => return Err(Error::Exec(format!("cannot copy: {error}"))),
    };
    let said = told(ended?)?;
    summary.left_out = said.left_out;
    summary.named = said.named;
    Ok(summary)
}

/// From one sandbox to another; it passes through here, and nothing of it is kept.
async fn across(client: &Client, from: (&str, &str), to: (&str, &str)) -> Result<Summary, Error> {
    let (source, target) = (
        super::find(client, from.0).await?.id,
        super::find(client, to.0).await?.id,
    );
    let (pieces, passing) = mpsc::channel(PIECES);
    // Which side ended first has the reason; the other one only hears of it.
    let target_ended = &AtomicBool::new(false);
    // As many bytes in a message to a command as it may have, whatever came in one from another.
    let out = move |bytes: Vec<u8>| {
        let pieces = pieces.clone();
        async move {
            for piece in bytes.chunks(STDIN_CHUNK_BYTES) {
                if pieces.send(piece.to_vec()).await.is_err() {
                    target_ended.store(true, Ordering::Relaxed);
                    return Err(stopped());
                }
            }
            Ok(())
        }
    };
    let (pack, unpack) = (["pack", from.1], ["unpack", to.1]);
    // Each ends the other by what it holds of the channel, which goes with it.
    let (packed, unpacked) = tokio::join!(
        command(client, &source, &pack, Feed::Nothing, out),
        command(client, &target, &unpack, Feed::Pieces(passing), ignore),
    );
    if !target_ended.load(Ordering::Relaxed) {
        packed?.succeeded()?;
    }
    told(unpacked?)
}

/// What the executor says of what it has unpacked.
fn told(ended: Ended) -> Result<Summary, Error> {
    let said = ended.succeeded()?;
    let told: Value = serde_json::from_slice(&said)
        .map_err(|_| Error::Exec("the sandbox does not say whether it has all of it".to_owned()))?;
    let count = |name: &str| u64::try_from(number(&told, name)).unwrap_or_default();
    Ok(Summary {
        files: count("files"),
        bytes: count("bytes"),
        left_out: count("left_out"),
        named: texts(&told, "named"),
    })
}

fn stopped() -> Error {
    Error::Exec("the copy was stopped".to_owned())
}

async fn ignore(_: Vec<u8>) -> Result<(), Error> {
    Ok(())
}

/// What a command is given to read.
enum Feed {
    Nothing,
    Stdin(Input),
    Pieces(mpsc::Receiver<Vec<u8>>),
}

impl Feed {
    /// The next piece; `None` at the end.
    async fn next(&mut self) -> Result<Option<Vec<u8>>, Error> {
        match self {
            Self::Nothing => Ok(None),
            Self::Pieces(pieces) => Ok(pieces.recv().await),
            Self::Stdin(stdin) => {
                let mut bytes = vec![0; STDIN_CHUNK_BYTES];
                let count = stdin.read(&mut bytes).await.map_err(|source| Error::Read {
                    what: "standard input".to_owned(),
                    source,
                })?;
                bytes.truncate(count);
                Ok(Some(bytes).filter(|bytes| !bytes.is_empty()))
            }
        }
    }
}

/// How a command ended.
struct Ended {
    code: u8,
    /// The beginning of its output.
    said: Vec<u8>,
    /// The beginning of its errors.
    complained: Vec<u8>,
}

impl Ended {
    /// What it said, unless it failed.
    fn succeeded(self) -> Result<Vec<u8>, Error> {
        if self.code == 0 {
            return Ok(self.said);
        }
        let complaint = String::from_utf8_lossy(&self.complained).trim().to_owned();
        Err(Error::Exec(if complaint.is_empty() {
            format!("the copy ended with exit code {} inside the sandbox", self.code)
        } else {
            format!("cannot copy: {complaint}")
        }))
    }
}

/// Has the executor of a sandbox work on files; what it writes goes to `out`, piece by piece.
async fn command<Out, Written>(
    client: &Client,
    service_id: &str,
    arguments: &[&str],
    mut feed: Feed,
    out: Out,
) -> Result<Ended, Error>
where
    Out: Fn(Vec<u8>) -> Written,
    Written: Future<Output = Result<(), Error>>,
{
    let (mut sender, receiver) = client.stream(exec::PATH, &[]).await?.split();
    let words: Vec<&str> = EXECUTOR.iter().chain(arguments).copied().collect();
    let order = json!({
        "id": service_id,
        "idType": "SERVICE_ID",
        "body": { "command": words, "disableTty": true },
    });
    sender.send(&order).await?;
    tokio::select! {
        ended = receive(receiver, out) => ended,
        error = send(&mut sender, &mut feed) => Err(error),
    }
}

/// Sends all there is and its end, then keeps the connection; what it returns is why it cannot.
async fn send(sender: &mut Sender, feed: &mut Feed) -> Error {
    loop {
        let piece = tokio::select! {
            piece = feed.next() => piece,
            kept = sender.keep_alive() => match kept {
                Ok(()) => continue,
                Err(error) => return error.into(),
            },
        };
        let body = match piece {
            Ok(Some(bytes)) => json!({ "data": BASE64.encode(bytes) }),
            Ok(None) => break,
            Err(error) => return error,
        };
        if let Err(error) = sender.send(&json!({ "body": { "stdin": body } })).await {
            return error.into();
        }
    }
    let mut sent = sender
        .send(&json!({ "body": { "stdin": { "close": true } } }))
        .await;
    while sent.is_ok() {
        sent = sender.keep_alive().await;
    }
    sent.err().map_or_else(stopped, Error::from)
}

async fn receive<Out, Written>(mut receiver: Receiver, out: Out) -> Result<Ended, Error>
where
    Out: Fn(Vec<u8>) -> Written,
    Written: Future<Output = Result<(), Error>>,
{
    let (mut said, mut complained) = (Vec::new(), Vec::new());
    while let Some(frame) = receiver.next().await? {
        if let Some(error) = frame.get("error") {
            return Err(Error::Exec(
                text(error, "message").trim_end_matches('.').to_owned(),
            ));
        }
        let result = frame.get("result").cloned().unwrap_or_default();
        if let Some(bytes) = data(&result, "stdout")? {
            keep(&mut said, &bytes);
            out(bytes).await?;
        }
        if let Some(bytes) = data(&result, "stderr")? {
            keep(&mut complained, &bytes);
        }
        if result.get("exited").and_then(Value::as_bool) == Some(true) {
            // An exit code is a byte; a server that says more says "failed".
            let code = u8::try_from(number(&result, "exit_code")).unwrap_or(u8::MAX);
            return Ok(Ended {
                code,
                said,
                complained,
            });
        }
    }
    Err(Error::Exec("the connection ended before the copy did".to_owned()))
}

fn keep(kept: &mut Vec<u8>, bytes: &[u8]) {
    let room = SAID_BYTES_MAX.saturating_sub(kept.len()).min(bytes.len());
    kept.extend_from_slice(bytes.get(..room).unwrap_or_default());
}

/// Pieces from the connection, for a thread that reads.
struct Arriving {
    pieces: mpsc::Receiver<Vec<u8>>,
    current: io::Cursor<Vec<u8>>,
}

impl Arriving {
    fn new(pieces: mpsc::Receiver<Vec<u8>>) -> Self {
        Self {
            pieces,
            current: io::Cursor::default(),
        }
    }
}

impl Read for Arriving {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match Read::read(&mut self.current, buffer)? {
                0 if !buffer.is_empty() => {}
                count => return Ok(count),
            }
            match self.pieces.blocking_recv() {
                Some(piece) => self.current = io::Cursor::new(piece),
                None => return Ok(0),
            }
        }
    }
}

/// Pieces for the connection, from a thread that writes.
struct Leaving(mpsc::Sender<Vec<u8>>);

impl Write for Leaving {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Whole pieces of at most one frame: a longer one came past the buffer.
        let piece = bytes.get(..STDIN_CHUNK_BYTES).unwrap_or(bytes);
        self.0
            .blocking_send(piece.to_vec())
            .map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_side_is_a_path_a_sandbox_or_a_stream() {
        let inside = |sandbox: &str, path: &str| Side::Inside {
            sandbox: sandbox.to_owned(),
            path: path.to_owned(),
        };
        for (given, side) in [
            ("-", Side::Standard),
            ("box:/a:b", inside("box", "/a:b")),
            ("app/box:/a", inside("app/box", "/a")),
            ("box:", inside("box", ".")),
            ("./a:b", Side::Local("./a:b".into())),
            ("/a:b", Side::Local("/a:b".into())),
            ("a/b", Side::Local("a/b".into())),
            (":x", Side::Local(":x".into())),
        ] {
            assert_eq!(Side::parse(given), side, "{given}");
        }
    }
}
