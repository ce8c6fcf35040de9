//! What fuzz targets may reach of the inside: a whole executor without a socket, the guard before it, a terminal, the relay,
//! and each thing that is read of a file or a line.
//!
//! Only there with the feature `fuzzing`; nothing in the product calls it. What must hold whatever comes in is asserted
//! here where only this crate can see it, and in the targets otherwise.

use std::convert::Infallible;
use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::AUTHORIZATION;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::auth::Door;
use crate::blind::{self, Blind, Seal};
use crate::children::{self, Children};
use crate::identity::Identity;
use crate::output::{PIECE_BYTES_MAX, Splitter};
use crate::processes::{self, Processes};
use crate::relay::{self, Binding};
use crate::reply::{self, Content};
use crate::request;
use crate::secret::Digest;
use crate::server::{self, State};
use crate::settings::{Access, SECRET_VARIABLE, Settings};
use crate::streaming::Transfers;
use crate::terminal::Terminals;
pub use crate::terminal::fuzzing::{Passed, order, query, terminal};

/// Bytes on their way to and from an executor.
const ROOM_BYTES: usize = 64 << 10;
/// No identity is ever there.
const NOWHERE: &str = "/nowhere/identity";
/// Of the sandbox that a copy was made of.
const FIRST_SECRET: &str = "of the first one";

/// A whole executor, without a socket.
#[derive(Debug)]
pub struct Executor(Arc<State>);

impl Executor {
    /// One that lets in whoever shows this secret. Has to be called within a runtime, once in a process.
    ///
    /// # Errors
    /// When signals cannot be received.
    pub fn new(secret: &str) -> io::Result<Self> {
        let identity = Identity::at(NOWHERE);
        let access = Access::Static(Digest::of(secret.as_bytes()));
        Ok(Self(Arc::new(State {
            door: Door::new(access, identity.clone())?,
            children: Children::reaping(identity)?,
            processes: Processes::default(),
            binding: Binding::default(),
            transfers: Transfers::default(),
            terminals: Terminals::default(),
        })))
    }

    /// All that it answers to a client that sends this and then nothing more.
    pub async fn answer(&self, bytes: &[u8]) -> Vec<u8> {
        let (client, served) = tokio::io::duplex(ROOM_BYTES);
        let mut http = server::http();
        // The client that has said all still hears.
        http.half_close(true);
        let serving = server::attend(&http, served, Arc::clone(&self.0));
        let pieces = [bytes];
        let (heard, ()) = tokio::join!(told(client, &pieces), serving);
        heard
    }
}

/// Sends the pieces one by one and reads to the end.
async fn told(client: impl AsyncRead + AsyncWrite, pieces: &[&[u8]]) -> Vec<u8> {
    let (mut reading, mut writing) = tokio::io::split(client);
    let sending = async {
        for piece in pieces {
            // It may hang up in the middle of nonsense.
            if writing.write_all(piece).await.is_err() {
                break;
            }
        }
        let _ = writing.shutdown().await;
    };
    let mut heard = Vec::new();
    let (_, _) = tokio::join!(sending, reading.read_to_end(&mut heard));
    heard
}

/// A request as what serves a connection sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The method and what is asked for.
    pub line: String,
    /// All headers but `Connection` and `Authorization`.
    pub headers: Vec<(String, Vec<u8>)>,
    /// The digest of the secret in each `Authorization`.
    pub shown: Vec<Option<String>>,
    /// `None`: it broke off.
    pub body: Option<Vec<u8>>,
    /// The bytes of each `Authorization`, as they arrived.
    pub authorization: Vec<Vec<u8>>,
    /// The request after it is on another connection, since only a whole parser finds the end of this one.
    pub last: bool,
}

/// The requests that are seen of a connection on which these pieces arrive: by hyper alone, and behind the guard.
pub async fn requests(pieces: &[&[u8]], guarded: bool) -> Vec<Seen> {
    let (client, stream) = tokio::io::duplex(ROOM_BYTES);
    let (sender, receiver) = mpsc::channel();
    if guarded {
        let (stream, seal) = Blind::new(stream);
        tokio::join!(told(client, pieces), see(stream, Some(seal), sender));
    } else {
        tokio::join!(told(client, pieces), see(stream, None, sender));
    }
    receiver.try_iter().collect()
}

async fn see<S>(stream: S, seal: Option<Arc<Seal>>, seen: mpsc::Sender<Seen>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let (seal, seen) = (seal.clone(), seen.clone());
        async move {
            let _ = seen.send(seen_of(request, seal.as_deref()).await);
            Ok::<_, Infallible>(Response::new(Content::Whole(None)))
        }
    });
    let mut http = server::http();
    http.half_close(true);
    let _ = http.serve_connection(TokioIo::new(stream), service).await;
}

async fn seen_of(request: Request<Incoming>, seal: Option<&Seal>) -> Seen {
    let (head, body) = request.into_parts();
    let authorization: Vec<_> = head.headers.get_all(AUTHORIZATION).iter().collect();
    let shown = authorization.iter().map(|value| match seal {
        Some(seal) => seal.shown(value.to_str().ok()),
        None => blind::bearer(value.as_bytes()).map(Digest::of),
    });
    let plain = |value: &[u8]| value.iter().all(u8::is_ascii_digit);
    let lengths: Vec<_> = head.headers.get_all("content-length").iter().collect();
    let last = head.headers.contains_key("transfer-encoding")
        || lengths.len() > 1
        || lengths.iter().any(|length| !plain(length.as_bytes()));
    let others = head
        .headers
        .iter()
        .filter(|(name, _)| !matches!(name.as_str(), "authorization" | "connection"));
    Seen {
        line: format!("{} {}", head.method, head.uri),
        shown: shown
            .map(|digest| digest.map(|digest| digest.to_string()))
            .collect(),
        headers: others
            .map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()))
            .collect(),
        authorization: authorization
            .iter()
            .map(|value| value.as_bytes().to_vec())
            .collect(),
        last,
        body: body.collect().await.ok().map(|body| body.to_bytes().to_vec()),
    }
}

/// A relay on a port of this machine to another one, for ever.
pub async fn relay(listener: TcpListener, to: u16) {
    let binding = Binding::default();
    let wanted = serde_json::json!({ "port": to });
    if let Ok(wanted) = serde_json::from_value(wanted) {
        let _ = binding.bind(&wanted);
    }
    binding.relay(listener).await;
}

/// Reads the bodies of requests that are not carried out.
pub fn bodies(bytes: &[u8]) {
    if let Ok(wanted) = serde_json::from_slice::<relay::Wanted>(bytes) {
        let binding = Binding::default();
        let bound = binding.bind(&wanted).status();
        let again = binding.bind(&wanted).status();
        assert!(
            !bound.is_success() || again == hyper::StatusCode::CONFLICT,
            "bound twice"
        );
        assert!(binding.unbind().status().is_success());
    }
    if let Ok(wanted) = serde_json::from_slice::<processes::Wanted>(bytes) {
        // There is none.
        assert!(!Processes::default().kill(&wanted).status().is_success());
    }
    if let Ok(command) = serde_json::from_slice::<request::Command>(bytes) {
        // What a client is told of it is one line of an event.
        let event = reply::event("output", &command.cmd);
        let text = String::from_utf8_lossy(&event).into_owned();
        assert_eq!(text.trim_end_matches('\n').lines().count(), 2, "{text:?}");
    }
}

/// Reads the parameters of a query: each is found as it is, or not at all.
pub fn parameters(text: &str) {
    for name in ["path", "id", "mode", ""] {
        let found = request::parameter(Some(text), name);
        let there = text
            .split('&')
            .any(|pair| pair.split_once('=').map_or(pair, |(key, _)| key) == name);
        assert_eq!(found.is_some(), there, "{name}");
        // Reading does not make more of it.
        assert!(found.is_none_or(|value| value.len() <= 3 * text.len()));
    }
}

/// Reads settings: from the words of a command, separated by zero bytes, and for what they leave open from variables that
/// all have the same value.
pub fn settings(words: &[u8], variable: &str) {
    use std::os::unix::ffi::OsStringExt;
    let words = words
        .split(|byte| *byte == 0)
        .map(|word| OsString::from_vec(word.to_vec()));
    match Settings::read(words, |_| Some(variable.to_owned())) {
        Ok(settings) => {
            if let Access::Static(digest) = settings.access {
                assert!(Digest::read(&digest.to_string()).is_some_and(|again| again.is(&digest)));
            }
        }
        Err(problem) => assert!(!problem.is_empty()),
    }
}

/// Reads who a copy is. `path`: a file that is not there yet, and is made of these bytes.
///
/// # Errors
/// When the file cannot be written.
pub fn identity(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let identity = Identity::at(path);
    let first = Digest::of(FIRST_SECRET.as_bytes());
    let door = Door::new(Access::Static(first), identity.clone())?;
    std::fs::write(path, bytes)?;
    let opened = door.opens(Some(&first));
    match identity.environment() {
        Some(environment) => {
            assert!(
                !environment.contains_key(SECRET_VARIABLE),
                "its programs would know it"
            );
            // Unless that is what the copy was told, which is there to be read.
            let content: serde_json::Value = serde_json::from_slice(bytes).unwrap_or_default();
            let secret = content["environment"][SECRET_VARIABLE]
                .as_str()
                .unwrap_or_default();
            let told = secret == FIRST_SECRET || secret.starts_with("sha256:");
            assert!(
                told || !opened.is_ok_and(|opened| opened),
                "the first one's owner gets in"
            );
        }
        // It cannot be read: nobody gets in.
        None => assert!(opened.is_err(), "somebody got in"),
    }
    Ok(())
}

/// Reads the secret of an earlier life. `path`: a file that is not there yet, and is made of these bytes.
///
/// # Errors
/// When the file cannot be written.
pub fn claim(path: &Path, bytes: &[u8]) -> io::Result<()> {
    std::fs::write(path, bytes)?;
    let Ok(door) = Door::new(Access::Pool(path.to_owned()), Identity::at(NOWHERE)) else {
        assert!(std::str::from_utf8(bytes).is_err(), "text can be read");
        return Ok(());
    };
    let other = Digest::of(b"nobody claimed it with this");
    let opened = door.opens(Some(&other))?;
    if bytes.is_empty() {
        assert!(opened, "it was nobody's");
    } else if !bytes.starts_with(b"sha256:") && bytes != b"nobody claimed it with this" {
        assert!(!opened, "it was somebody's");
        assert!(door.opens(Some(&Digest::of(bytes)))?, "its owner is locked out");
    }
    Ok(())
}

/// Reads a process as the kernel shows it, whose program chose its own name.
pub fn process(text: &str) {
    let name: String = text.chars().filter(|one| *one != '\0').collect();
    let _ = children::is_alive(text);
    // Whatever the name, what comes after it counts.
    assert!(children::is_alive(&format!("7 ({name}) S 1 7 7 0")));
    assert!(!children::is_alive(&format!("7 ({name}) Z 1 7 7 0")));
}

/// Cuts what a program says into pieces of text: nothing is lost, and none is too long.
pub fn output(bytes: &[u8], size: usize) {
    let mut splitter = Splitter::default();
    let mut pieces = Vec::new();
    for part in bytes.chunks(size.max(1)) {
        pieces.extend(splitter.push(part));
        pieces.extend(splitter.beginning());
    }
    pieces.extend(splitter.rest());
    assert!(splitter.is_empty());
    if let Ok(text) = std::str::from_utf8(bytes) {
        assert!(pieces.iter().all(|piece| piece.len() <= PIECE_BYTES_MAX));
        assert_eq!(pieces.concat(), text);
    }
}

/// Reads a digest: what is one says the same when it is written.
pub fn digest(text: &str) {
    if let Some(digest) = Digest::read(text) {
        assert!(digest.to_string().eq_ignore_ascii_case(text));
    }
}
