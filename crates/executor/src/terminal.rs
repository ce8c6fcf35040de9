//! `GET /terminal`: a program on a terminal of its own, over a WebSocket.
//!
//! ```text
//! query     command (a line for the shell; without it the shell itself), cwd, rows, columns, term
//! binary    what is typed, and what is shown: bytes as they are
//! text      from the client {"resize":{"rows":24,"columns":80}} or {"signal":"TERM"};
//!           from here, last of all, {"exit":0}
//! ```
//!
//! Ends with the program, or the program with it: when the client goes away, the program and all that came of it is
//! killed. Nothing is dropped on the way: a client that is slow to read slows the program down, and what is typed waits at
//! the client while the program does not read.
//!
//! The one design choice to know: a program needs a session of its own to have a terminal, which is made between fork and
//! exec. So this program starts itself under another name ([`WORD`]), makes the session, and becomes the shell.

use std::ffi::{CStr, CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use hyper::header::{
    CONNECTION, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::http::request::Parts;
use hyper::upgrade::OnUpgrade;
use hyper::{Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustix::process::Signal;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::Winsize;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Message, Role, WebSocketConfig};

use crate::children::{Children, Code, Tree};
use crate::reply::{Content, Reply, Wrong};
use crate::request::parameter;

/// The word by which this program is told to become a program on a terminal.
pub(crate) const WORD: &str = "terminal";
/// At once. A sandbox has 256 terminals (`devpts`), and some are for programs in it, such as tmux.
const TERMINALS_MAX: usize = 64;
/// A piece of output: what the kernel holds of one at most.
const PIECE_BYTES: usize = 16 << 10;
/// A message of a client: a large paste, in pieces.
const MESSAGE_BYTES_MAX: usize = 64 << 10;
/// Rows and columns: beyond any screen, and far below what programs allocate by.
const SIDE_MAX: u16 = 4096;
/// After the end of the program: silence after which nothing more of it is expected.
const DRAIN_PATIENCE: Duration = Duration::from_millis(50);
/// After the end of the program: what can still be its own, with room to spare.
const DRAIN_BYTES_MAX: usize = 1 << 20;
/// Between signs of life: proxies give up on a silent connection after a minute.
const KEEP_ALIVE: Duration = Duration::from_secs(25);
/// A client has to answer its first request's upgrade, and the last words, within this.
const PATIENCE: Duration = Duration::from_secs(10);
/// What terminals are taken for when the client does not say.
const TERM: &str = "xterm-256color";
/// Longest name of a kind of terminal.
const TERM_BYTES_MAX: usize = 64;

/// The places for terminals.
#[derive(Debug, Clone)]
pub(crate) struct Terminals(Arc<Semaphore>);

impl Default for Terminals {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(TERMINALS_MAX)))
    }
}

/// What a client asks for.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    command: Option<String>,
    cwd: Option<String>,
    size: (u16, u16),
    term: String,
}

/// What a client says beside what is typed.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Order {
    Resize { rows: u16, columns: u16 },
    Signal(String),
}

#[derive(Debug, Serialize)]
struct End {
    exit: Code,
}

impl Terminals {
    /// Answers a request for a terminal. `upgrade` is of the same request.
    pub(crate) fn open(&self, children: &Children, head: &Parts, upgrade: OnUpgrade) -> Result<Reply, Wrong> {
        let key = key(head)?;
        let wanted = Wanted::read(head.uri.query())?;
        let place = Arc::clone(&self.0).try_acquire_owned().map_err(|_| {
            Wrong::new(
                StatusCode::SERVICE_UNAVAILABLE,
                format!("{TERMINALS_MAX} terminals are open in this sandbox already: close some"),
            )
        })?;
        let opened = Opened::start(children, &wanted).map_err(|error| {
            Wrong::new(
                StatusCode::BAD_REQUEST,
                format!("cannot open a terminal: {error}"),
            )
        })?;
        tokio::spawn(serve(upgrade, opened, place));
        let mut reply = Response::new(Content::Whole(None));
        *reply.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = reply.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(SEC_WEBSOCKET_ACCEPT, key);
        Ok(reply)
    }
}

/// The answer to a client's key, if this is the opening of a WebSocket.
fn key(head: &Parts) -> Result<HeaderValue, Wrong> {
    let says = |name, what: &str| {
        let said = head.headers.get(name).and_then(|value| value.to_str().ok());
        said.is_some_and(|said| said.split(',').any(|word| word.trim().eq_ignore_ascii_case(what)))
    };
    let key = head.headers.get(SEC_WEBSOCKET_KEY);
    match key {
        Some(key) if says(UPGRADE, "websocket") && says(SEC_WEBSOCKET_VERSION, "13") => {
            HeaderValue::from_str(&derive_accept_key(key.as_bytes()))
                .map_err(|_| Wrong::new(StatusCode::BAD_REQUEST, "the key of the WebSocket cannot be used"))
        }
        _ => Err(Wrong::new(
            StatusCode::UPGRADE_REQUIRED,
            "a terminal is a WebSocket of version 13",
        )),
    }
}

impl Wanted {
    fn read(query: Option<&str>) -> Result<Self, Wrong> {
        let wrong = |what: String| Wrong::new(StatusCode::BAD_REQUEST, what);
        let text = |name: &str| parameter(query, name).filter(|text| !text.is_empty());
        for name in ["command", "cwd"] {
            if text(name).is_some_and(|text| text.contains('\0')) {
                return Err(wrong(format!("`{name}` contains a zero byte")));
            }
        }
        let side = |name: &str, usual: u16| match text(name) {
            None => Ok(usual),
            Some(text) => text
                .parse()
                .ok()
                .filter(|side| (1..=SIDE_MAX).contains(side))
                .ok_or_else(|| wrong(format!("`{name}` must be a number from 1 to {SIDE_MAX}"))),
        };
        let term = text("term").unwrap_or_else(|| TERM.to_owned());
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-+._".contains(&byte);
        if term.len() > TERM_BYTES_MAX || !term.bytes().all(plain) {
            return Err(wrong(
                "`term` must be the name of a kind of terminal, such as xterm-256color".to_owned(),
            ));
        }
        Ok(Self {
            command: text("command"),
            cwd: text("cwd"),
            size: (side("rows", 24)?, side("columns", 80)?),
            term,
        })
    }
}

/// A program on a terminal.
#[derive(Debug)]
struct Opened {
    /// The terminal's other side, to give orders to.
    master: OwnedFd,
    /// The same, to read from and to write to. They are no pipes, and are waited for as pipes are.
    shown: pipe::Receiver,
    typed: pipe::Sender,
    tree: Tree,
    end: oneshot::Receiver<Code>,
}

impl Opened {
    fn start(children: &Children, wanted: &Wanted) -> io::Result<Self> {
        let (master, name) = new_terminal(wanted.size)?;
        let open = || open_terminal(&name);
        // Through /proc, so that it is this very file whatever the image has at its path.
        let mut command = Command::new("/proc/self/exe");
        children.environment(&mut command);
        command.arg(WORD);
        match &wanted.command {
            Some(line) => command.args(["sh", "-c", line]),
            None => command.arg("sh"),
        };
        command
            .env("TERM", &wanted.term)
            .stdin(Stdio::from(open()?))
            .stdout(Stdio::from(open()?))
            .stderr(Stdio::from(open()?));
        if let Some(directory) = &wanted.cwd {
            command.current_dir(directory);
        }
        let (tree, end, _) = children.start_session(&mut command)?;
        Self::of(master, tree, end)
    }

    fn of(master: OwnedFd, tree: Tree, end: oneshot::Receiver<Code>) -> io::Result<Self> {
        Ok(Self {
            shown: pipe::Receiver::from_owned_fd_unchecked(master.try_clone()?)?,
            typed: pipe::Sender::from_owned_fd_unchecked(master.try_clone()?)?,
            master,
            tree,
            end,
        })
    }
}

/// A terminal of this size: our side of it, and the name of the program's.
fn new_terminal(size: (u16, u16)) -> io::Result<(OwnedFd, CString)> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    rustix::io::ioctl_fionbio(&master, true)?;
    resize(&master, size)?;
    let name = ptsname(&master, Vec::new())?;
    Ok((master, name))
}

fn open_terminal(name: &CStr) -> io::Result<OwnedFd> {
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC;
    Ok(rustix::fs::open(name, flags, rustix::fs::Mode::empty())?)
}

fn resize(master: impl AsFd, (rows, columns): (u16, u16)) -> io::Result<()> {
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(rustix::termios::tcsetwinsize(master, size)?)
}

/// Our end of a WebSocket that was opened, with bounds on what its client may send at once.
async fn websocket<S: AsyncRead + AsyncWrite + Unpin>(stream: S) -> WebSocketStream<S> {
    let config = WebSocketConfig::default()
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX))
        .max_write_buffer_size(4 * MESSAGE_BYTES_MAX)
        .write_buffer_size(0);
    WebSocketStream::from_raw_socket(stream, Role::Server, Some(config)).await
}

/// From the upgrade to the end of either side.
async fn serve(upgrade: OnUpgrade, opened: Opened, place: OwnedSemaphorePermit) {
    let guard = opened.tree.kill_on_drop();
    let Ok(Ok(upgraded)) = timeout(PATIENCE, upgrade).await else {
        return;
    };
    let mut socket = websocket(TokioIo::new(upgraded)).await;
    // The client has gone, or said what it may not: the guard kills.
    let Some(code) = pass(&mut socket, opened).await else {
        return;
    };
    guard.disarm();
    let last = async {
        let text = serde_json::to_string(&End { exit: code }).unwrap_or_default();
        socket.send(Message::text(text)).await?;
        socket.close(None).await
    };
    let _ = timeout(PATIENCE, last).await;
    drop(place);
}

/// Both ways until the program ends: its code. `None`: the client is gone.
async fn pass<S>(socket: &mut WebSocketStream<S>, opened: Opened) -> Option<Code>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Opened {
        master,
        shown: mut output,
        typed: mut input,
        tree,
        mut end,
    } = opened;
    let mut piece = vec![0; PIECE_BYTES];
    let mut typed: Vec<u8> = Vec::new();
    let mut signs = interval_at(Instant::now() + KEEP_ALIVE, KEEP_ALIVE);
    signs.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The other end is open in nobody any more, though the program may go on.
    let mut silent = false;
    let code = loop {
        tokio::select! {
            biased;
            code = &mut end => break code.unwrap_or_default(),
            read = output.read(&mut piece), if !silent => match read {
                Ok(0) | Err(_) => silent = true,
                Ok(count) => socket.send(shown(&piece, count)).await.ok()?,
            },
            written = input.write(&typed), if !typed.is_empty() => match written {
                Ok(count) => { typed.drain(..count); }
                Err(_) => typed.clear(),
            },
            message = socket.next(), if typed.is_empty() => match message? {
                Ok(Message::Binary(bytes)) => typed = bytes.to_vec(),
                Ok(Message::Text(text)) => carry_out(text.as_str(), &master, &tree)?,
                Ok(Message::Close(_)) | Err(_) => return None,
                Ok(_) => {}
            },
            _ = signs.tick() => socket.send(Message::Ping(hyper::body::Bytes::new())).await.ok()?,
        }
    };
    let mut drained = 0;
    while !silent && drained < DRAIN_BYTES_MAX {
        match timeout(DRAIN_PATIENCE, output.read(&mut piece)).await {
            Ok(Ok(count)) if count > 0 => {
                drained += count;
                socket.send(shown(&piece, count)).await.ok()?;
            }
            _ => break,
        }
    }
    Some(code)
}

fn shown(piece: &[u8], count: usize) -> Message {
    Message::binary(piece.get(..count).unwrap_or_default().to_vec())
}

/// `None`: what was said cannot be understood, and neither can what comes after.
fn carry_out(text: &str, master: &OwnedFd, tree: &Tree) -> Option<()> {
    match serde_json::from_str(text).ok()? {
        Order::Resize { rows, columns } => {
            let fits = |side: u16| (1..=SIDE_MAX).contains(&side);
            if fits(rows) && fits(columns) {
                // The terminal is there, so the kernel has no reason to refuse.
                let _ = resize(master, (rows, columns));
            }
        }
        Order::Signal(name) => tree.signal(signal(&name)?),
    }
    Some(())
}

fn signal(name: &str) -> Option<Signal> {
    Some(match name.strip_prefix("SIG").unwrap_or(name) {
        "HUP" => Signal::HUP,
        "INT" => Signal::INT,
        "QUIT" => Signal::QUIT,
        "TERM" => Signal::TERM,
        "KILL" => Signal::KILL,
        "USR1" => Signal::USR1,
        "USR2" => Signal::USR2,
        "CONT" => Signal::CONT,
        _ => return None,
    })
}

/// In the process that was started for it: makes the session, takes its standard input for the terminal, and becomes the
/// program. Returns only to say why not.
pub(crate) fn become_program(mut words: impl Iterator<Item = OsString>) -> String {
    let Some(program) = words.next() else {
        return "there is no program to run".to_owned();
    };
    if let Err(error) = rustix::process::setsid() {
        return format!("cannot make a session: {error}");
    }
    if let Err(error) = rustix::process::ioctl_tiocsctty(rustix::stdio::stdin()) {
        return format!("cannot take the terminal: {error}");
    }
    let error = Command::new(&program).args(words).exec();
    let missing = error.kind() == io::ErrorKind::NotFound && program == OsStr::new("sh");
    if missing {
        "this image has no shell: a terminal needs `sh` in PATH".to_owned()
    } else {
        format!("cannot run {}: {error}", program.display())
    }
}

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted_is_read_and_checked() {
        let usual = Wanted::read(None).unwrap();
        assert_eq!((usual.size, usual.command), ((24, 80), None));
        let wanted = Wanted::read(Some(
            "command=echo+%24TERM&rows=50&columns=132&term=vt100&cwd=/tmp",
        ))
        .unwrap();
        assert_eq!(wanted.command.as_deref(), Some("echo $TERM"));
        assert_eq!((wanted.size, wanted.term.as_str()), ((50, 132), "vt100"));
        for wrong in [
            "rows=0",
            "rows=-1",
            "columns=70000",
            "columns=x",
            "term=a%20b",
            "command=a%00b",
        ] {
            assert!(Wanted::read(Some(wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn orders_are_understood_or_refused() {
        let order = serde_json::from_str::<Order>(r#"{"resize":{"rows":1,"columns":2}}"#);
        assert!(matches!(order, Ok(Order::Resize { rows: 1, columns: 2 })));
        assert!(serde_json::from_str::<Order>(r#"{"resize":{"rows":70000,"columns":2}}"#).is_err());
        assert_eq!(signal("SIGTERM"), Some(Signal::TERM));
        assert_eq!(signal("nonsense"), None);
    }
}
