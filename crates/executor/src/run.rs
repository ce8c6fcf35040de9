//! Commands: `/run` answers when they end, `/run_streaming` as they go.
//!
//! A command ends when its shell ends. What it left in the background lives on and is not waited for, although it may
//! hold the streams open. When the client goes away before that, or its time is over (clients close the connection
//! then), the command and everything that came of it is killed.

use std::time::Duration;

use hyper::StatusCode;
use hyper::body::Bytes;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};

use crate::children::{Children, Code, Refusal, Started};
use crate::output::{Piece, QUEUE_PIECES, Stream, pieces};
use crate::reply::{self, Reply};
use crate::request::Command;

/// The answer of a shell that does not find a program.
const NOT_FOUND: Code = 127;
/// Kept of each stream for an answer in one piece; more is for `/run_streaming`.
const OUTPUT_BYTES_MAX: usize = 64 << 20;
/// After the end of a command: silence after which its streams are taken to hold nothing more of it.
const DRAIN_PATIENCE: Duration = Duration::from_millis(50);
/// After the end of a command: what can still be its own (both pipes and the queue), with room to spare. More comes of
/// what it left in the background.
const DRAIN_BYTES_MAX: usize = 4 << 20;
/// Between signs of life: well below the time after which proxies give up on a silent stream.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// What `/run` answers.
#[derive(Debug, Default, Serialize)]
struct Outcome {
    stdout: String,
    stderr: String,
    code: Code,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// The last event of `/run_streaming`.
#[derive(Debug, Serialize)]
struct Complete {
    code: Code,
    error: bool,
}

/// A message without a stream, as clients tell it from output.
#[derive(Debug, Serialize)]
struct Failure {
    error: String,
}

/// The answer to a command that was not started, unless it is one with an exit code.
fn refused(refusal: &Refusal) -> Reply {
    let status = match refusal {
        Refusal::Full => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::BAD_REQUEST,
    };
    reply::text(status, refusal.message())
}

/// The next thing a command does.
enum Next {
    Piece(Piece),
    End(Code),
}

/// A running command, read to its end.
struct Reading {
    pieces: mpsc::Receiver<Piece>,
    end: oneshot::Receiver<Code>,
    /// Its code, once it has ended.
    code: Option<Code>,
    drained: usize,
}

impl Reading {
    /// Cancel-safe: what was not returned comes with the next call.
    async fn next(&mut self) -> Next {
        let Some(code) = self.code else {
            tokio::select! {
                biased;
                piece = self.pieces.recv() => match piece {
                    Some(piece) => return Next::Piece(piece),
                    // Both streams are closed; the program may go on for long.
                    None => return Next::End((&mut self.end).await.unwrap_or(NOT_FOUND)),
                },
                code = &mut self.end => self.code = Some(code.unwrap_or(NOT_FOUND)),
            }
            return Box::pin(self.next()).await;
        };
        match timeout(DRAIN_PATIENCE, self.pieces.recv()).await {
            Ok(Some(piece)) if self.drained < DRAIN_BYTES_MAX => {
                self.drained += piece.data.len();
                Next::Piece(piece)
            }
            _ => Next::End(code),
        }
    }
}

fn read(started: Started) -> Reading {
    Reading {
        pieces: pieces(started.stdout, started.stderr),
        end: started.end,
        code: None,
        drained: 0,
    }
}

/// Runs a command and answers when it has ended. Dropping the future kills it.
pub(crate) async fn whole(children: &Children, wanted: &Command) -> Reply {
    let started = match children.shell(wanted) {
        Ok(started) => started,
        Err(refusal @ Refusal::NoShell) => {
            let outcome = Outcome {
                stderr: format!("{}\n", refusal.message()),
                code: NOT_FOUND,
                error: Some(refusal.message()),
                ..Outcome::default()
            };
            return reply::json(StatusCode::OK, &outcome);
        }
        Err(refusal) => return refused(&refusal),
    };
    let guard = started.tree.kill_on_drop();
    let mut reading = read(started);
    let mut outcome = Outcome::default();
    let mut cut = false;
    loop {
        match reading.next().await {
            Next::Piece(piece) => {
                let kept = match piece.stream {
                    Stream::Stdout => &mut outcome.stdout,
                    Stream::Stderr => &mut outcome.stderr,
                };
                if kept.len() + piece.data.len() <= OUTPUT_BYTES_MAX {
                    kept.push_str(&piece.data);
                } else {
                    cut = true;
                }
            }
            Next::End(code) => {
                outcome.code = code;
                break;
            }
        }
    }
    guard.disarm();
    if cut {
        let most = OUTPUT_BYTES_MAX >> 20;
        outcome.error = Some(format!(
            "output beyond {most} MiB was dropped: use /run_streaming"
        ));
    } else if outcome.code != 0 {
        outcome.error = Some("Non-zero exit code".to_owned());
    }
    reply::json(StatusCode::OK, &outcome)
}

/// Runs a command and answers with events as they come.
pub(crate) fn streaming(children: &Children, wanted: &Command) -> Reply {
    let (send, receive) = mpsc::channel(QUEUE_PIECES);
    match children.shell(wanted) {
        Ok(started) => {
            tokio::spawn(tell(started, send));
        }
        Err(refusal @ Refusal::NoShell) => {
            let data = format!("{}\n", refusal.message());
            let stream = Stream::Stderr;
            // There is room for these.
            let _ = send.try_send(reply::event("output", &Piece { stream, data }));
            let _ = send.try_send(complete(NOT_FOUND));
        }
        Err(Refusal::Kernel(error)) => {
            let error = Refusal::Kernel(error).message();
            let _ = send.try_send(reply::event("error", &Failure { error }));
        }
        Err(refusal) => return refused(&refusal),
    }
    reply::events(receive)
}

fn complete(code: Code) -> Bytes {
    reply::event("complete", &Complete { code, error: false })
}

async fn tell(started: Started, send: mpsc::Sender<Bytes>) {
    let guard = started.tree.kill_on_drop();
    let mut reading = read(started);
    let mut signs = interval_at(Instant::now() + KEEP_ALIVE, KEEP_ALIVE);
    signs.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let (event, last) = tokio::select! {
            next = reading.next() => match next {
                Next::Piece(piece) => (reply::event("output", &piece), false),
                Next::End(code) => (complete(code), true),
            },
            _ = signs.tick() => (reply::KEEP_ALIVE, false),
            // The client is gone: the guard kills.
            () = send.closed() => return,
        };
        if last {
            guard.disarm();
            let _ = send.send(event).await;
            return;
        }
        if send.send(event).await.is_err() {
            return;
        }
    }
}
