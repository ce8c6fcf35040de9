//! Processes that outlive the request that started them, with what they said.
//!
//! A finished one is kept for a while, so that its logs and its exit code can be asked for.

mod logs;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hyper::StatusCode;
use hyper::body::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::children::{Children, Code, Refusal, Tree};
use crate::output::{QUEUE_PIECES, pieces};
use crate::reply::{self, Reply};
use crate::request::Command;
use logs::Logs;

/// Finished processes that are kept; the oldest go first. Their logs are what they cost.
const FINISHED_MAX: usize = 64;

/// How a process is doing. Clients look for `running`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Running,
    Completed,
    Failed,
    Killed,
}

/// A process as clients see it: exactly these members, which one of them makes an object of.
#[derive(Debug, Clone, Serialize)]
struct View {
    id: String,
    command: String,
    status: Status,
    pid: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<Code>,
    started_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    completed_at: Option<Timestamp>,
}

#[derive(Debug)]
struct Process {
    view: View,
    tree: Tree,
    logs: Logs,
    /// It was told to end.
    killed: bool,
}

/// The processes of the sandbox, oldest first.
#[derive(Debug, Clone, Default)]
pub(crate) struct Processes(Arc<Mutex<VecDeque<Process>>>);

/// The body of a request to kill one.
#[derive(Debug, Deserialize)]
pub(crate) struct Wanted {
    id: String,
}

#[derive(Debug, Serialize)]
struct Started<'a> {
    id: &'a str,
    pid: i32,
    status: Status,
}

#[derive(Debug, Serialize)]
struct List {
    processes: Vec<View>,
}

#[derive(Debug, Serialize)]
struct Killed {
    success: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Debug, Serialize)]
struct Ended {
    message: &'static str,
}

impl Processes {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Process>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts one.
    pub(crate) fn start(&self, children: &Children, wanted: Command) -> Reply {
        let started = match children.shell(&wanted) {
            Ok(started) => started,
            Err(refusal) => {
                let status = match refusal {
                    Refusal::Full => StatusCode::SERVICE_UNAVAILABLE,
                    _ => StatusCode::BAD_REQUEST,
                };
                return reply::text(status, refusal.message());
            }
        };
        let view = View {
            id: uuid::Uuid::new_v4().to_string(),
            command: wanted.cmd,
            status: Status::Running,
            pid: started.tree.pid(),
            exit_code: None,
            started_at: Timestamp::now(),
            completed_at: None,
        };
        let answer = reply::json(
            StatusCode::CREATED,
            &Started {
                id: &view.id,
                pid: view.pid,
                status: view.status,
            },
        );
        let logs = Logs::default();
        let id = view.id.clone();
        self.lock().push_back(Process {
            view,
            tree: started.tree,
            logs: logs.clone(),
            killed: false,
        });
        let mut pieces = pieces(started.stdout, started.stderr);
        tokio::spawn(async move {
            while let Some(piece) = pieces.recv().await {
                logs.push(piece);
            }
            logs.close();
        });
        let processes = self.clone();
        let end = started.end;
        tokio::spawn(async move {
            // The sender goes only with the executor.
            if let Ok(code) = end.await {
                processes.ended(&id, code);
            }
        });
        answer
    }

    fn ended(&self, id: &str, code: Code) {
        let mut all = self.lock();
        if let Some(process) = all.iter_mut().find(|process| process.view.id == id) {
            process.view.exit_code = Some(code);
            process.view.completed_at = Some(Timestamp::now());
            process.view.status = match (process.killed, code) {
                (true, _) => Status::Killed,
                (false, 0) => Status::Completed,
                (false, _) => Status::Failed,
            };
        }
        let finished = |process: &Process| process.view.status != Status::Running;
        while all.iter().filter(|process| finished(process)).count() > FINISHED_MAX {
            if let Some(oldest) = all.iter().position(finished) {
                all.remove(oldest);
            }
        }
    }

    /// All there are.
    pub(crate) fn list(&self) -> Reply {
        let processes = self.lock().iter().map(|process| process.view.clone()).collect();
        reply::json(StatusCode::OK, &List { processes })
    }

    /// Kills one, with everything that came of it.
    pub(crate) fn kill(&self, wanted: &Wanted) -> Reply {
        let mut all = self.lock();
        let found = all.iter_mut().find(|process| process.view.id == wanted.id);
        let refused = |error: String| {
            let answer = Killed {
                success: false,
                message: None,
                error: Some(error),
            };
            reply::json(StatusCode::BAD_REQUEST, &answer)
        };
        let tree = match found {
            None => return refused(format!("process {} not found", wanted.id)),
            Some(process) if process.view.status != Status::Running => {
                return refused(format!("process {} has ended already", wanted.id));
            }
            Some(process) => {
                process.killed = true;
                process.tree.clone()
            }
        };
        drop(all);
        tree.kill();
        let answer = Killed {
            success: true,
            message: Some("the process was killed"),
            error: None,
        };
        reply::json(StatusCode::OK, &answer)
    }

    /// What one has said, and with `follow` what it says from now on until it ends.
    pub(crate) fn logs(&self, id: &str, follow: bool) -> Reply {
        let all = self.lock();
        let Some(process) = all.iter().find(|process| process.view.id == id) else {
            return reply::text(StatusCode::NOT_FOUND, format!("process {id} not found"));
        };
        let logs = process.logs.clone();
        drop(all);
        let (send, receive) = mpsc::channel(QUEUE_PIECES);
        tokio::spawn(tell(logs, follow, send));
        reply::events(receive)
    }
}

async fn tell(logs: Logs, follow: bool, send: mpsc::Sender<Bytes>) {
    let mut reader = logs.reader();
    loop {
        for line in reader.next() {
            if send.send(reply::event("log", &line)).await.is_err() {
                return;
            }
        }
        let more = tokio::select! {
            more = reader.wait(follow) => more,
            () = send.closed() => return,
        };
        if !more {
            break;
        }
    }
    let ended = Ended {
        message: "stream ended",
    };
    let _ = send.send(reply::event("complete", &ended)).await;
}
