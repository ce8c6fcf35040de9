//! Every process below the executor: started here, reaped here, and killed with all that came of it.
//!
//! The one design choice to know: there is a single reaper, `waitpid(-1)`, since the executor is the first process of
//! the sandbox and inherits whatever loses its parent. Starting and reaping exclude each other, so an end is never
//! heard of before its process is known.
//!
//! A command may leave its process group, its session and its parent. Its processes are known by all of these and by
//! a variable in their environment ([`MARK`]), which survives both.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, kill_process_group, set_child_subreaper};
use tokio::net::unix::pipe;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::identity::Identity;
use crate::settings::SECRET_VARIABLE;

/// Names, in the environment of a command, what it belongs to.
const MARK: &str = "SANDBOX_EXEC_ID";
/// Commands and processes that may run at once. The sandbox's own limit of processes comes above; this one answers in
/// words, and leaves room for the rest to be looked at and killed.
const RUNNING_MAX: usize = 512;
/// Looks for processes that were born while their parents were being killed. Each look kills all there are, so only a
/// fork bomb is not gone after two or three.
const KILL_ROUNDS_MAX: usize = 32;
/// What shells answer for a program that a signal ended, less the signal.
const SIGNALLED: i32 = 128;

/// How a process ended: its exit code, or 128 and the signal.
pub(crate) type Code = i32;

/// The processes below the executor.
#[derive(Debug, Clone)]
pub(crate) struct Children {
    known: Arc<Mutex<HashMap<i32, oneshot::Sender<Code>>>>,
    identity: Identity,
}

/// A command that was started.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) tree: Tree,
    /// Its end.
    pub(crate) end: oneshot::Receiver<Code>,
    pub(crate) stdout: pipe::Receiver,
    pub(crate) stderr: pipe::Receiver,
}

/// Why a command was not started.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// There are too many already.
    Full,
    /// The directory it should run in is not there, or is none.
    Directory(String),
    /// The image has no shell.
    NoShell,
    /// The kernel said no.
    Kernel(io::Error),
}

impl Refusal {
    /// For the one who asked.
    pub(crate) fn message(&self) -> String {
        match self {
            Self::Full => format!("{RUNNING_MAX} commands run in this sandbox already: wait for some to end"),
            Self::Directory(directory) => format!("Invalid working directory: {directory}"),
            Self::NoShell => {
                "this image has no shell: commands are run by `sh`, which was not found in PATH; use an \
                              image that has one (files and ports work without)"
                    .to_owned()
            }
            Self::Kernel(error) => format!("cannot start the command: {error}"),
        }
    }
}

impl Children {
    /// Begins to reap. Has to be called within the runtime, once.
    ///
    /// # Errors
    ///
    /// When signals cannot be received.
    pub(crate) fn reaping(identity: Identity) -> io::Result<Self> {
        let children = Self {
            known: Arc::default(),
            identity,
        };
        // Not the first process of its namespace everywhere (a site may have a helper of its own before it).
        set_child_subreaper(Some(rustix::process::getpid()))?;
        let mut ends = signal(SignalKind::child())?;
        let reaped = children.clone();
        tokio::spawn(async move {
            while ends.recv().await.is_some() {
                reaped.reap();
            }
        });
        Ok(children)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<i32, oneshot::Sender<Code>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reap(&self) {
        let mut known = self.lock();
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            let code = status
                .exit_status()
                .or_else(|| status.terminating_signal().map(|signal| SIGNALLED + signal));
            if let (Some(code), Some(waiting)) = (code, known.remove(&pid.as_raw_nonzero().get())) {
                let _ = waiting.send(code);
            }
        }
    }

    /// Starts a program as it is given, in a process group of its own.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub(crate) fn start(
        &self,
        command: &mut Command,
    ) -> io::Result<(Tree, oneshot::Receiver<Code>, std::process::Child)> {
        command.process_group(0);
        self.start_session(command)
    }

    /// Starts a program that makes a session of its own, and with it a process group.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub(crate) fn start_session(
        &self,
        command: &mut Command,
    ) -> io::Result<(Tree, oneshot::Receiver<Code>, std::process::Child)> {
        let mark = uuid::Uuid::new_v4().simple().to_string();
        command.env(MARK, &mark).env_remove(SECRET_VARIABLE);
        let (said, end) = oneshot::channel();
        let mut known = self.lock();
        let child = command.spawn()?;
        let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
        known.insert(pid, said);
        drop(known);
        let tree = Tree {
            children: self.clone(),
            pid,
            mark,
        };
        Ok((tree, end, child))
    }

    /// Gives a program this sandbox's variables, where they are not this process's own.
    pub(crate) fn environment(&self, command: &mut Command) {
        if let Some(environment) = self.identity.environment() {
            command.env_clear().envs(&*environment);
        }
    }

    /// Has the shell run a command, with both its streams piped.
    pub(crate) fn shell(&self, wanted: &crate::request::Command) -> Result<Started, Refusal> {
        if self.lock().len() >= RUNNING_MAX {
            return Err(Refusal::Full);
        }
        let mut command = Command::new("sh");
        self.environment(&mut command);
        command
            .arg("-c")
            .arg(&wanted.cmd)
            .envs(wanted.env.iter().flatten())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(directory) = wanted.cwd.as_deref().filter(|directory| !directory.is_empty()) {
            if !std::fs::metadata(directory).is_ok_and(|found| found.is_dir()) {
                return Err(Refusal::Directory(directory.to_owned()));
            }
            command.current_dir(directory);
        }
        let (tree, end, mut child) = self.start(&mut command).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Refusal::NoShell,
            _ => Refusal::Kernel(error),
        })?;
        let piped = |stream: Option<OwnedFd>| {
            stream
                .ok_or_else(|| io::Error::other("a stream is missing"))
                .and_then(pipe::Receiver::from_owned_fd)
        };
        let streams = piped(child.stdout.take().map(OwnedFd::from))
            .and_then(|stdout| Ok((stdout, piped(child.stderr.take().map(OwnedFd::from))?)));
        match streams {
            Ok((stdout, stderr)) => Ok(Started {
                tree,
                end,
                stdout,
                stderr,
            }),
            Err(error) => {
                tree.kill();
                Err(Refusal::Kernel(error))
            }
        }
    }

    /// Kills everything below the executor.
    pub(crate) fn kill_all(&self) {
        let own = rustix::process::getpid().as_raw_nonzero().get();
        kill_until_gone(|| {
            let processes = processes();
            let mut below = descendants(&processes, HashSet::from([own]));
            below.remove(&own);
            below
        });
    }
}

/// A command and all that came of it.
#[derive(Debug, Clone)]
pub(crate) struct Tree {
    children: Children,
    pid: i32,
    mark: String,
}

impl Tree {
    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// Sends a signal to the program itself, when it is still there.
    pub(crate) fn signal(&self, signal: Signal) {
        let known = self.children.lock();
        // Under the lock it is not reaped, so the number is still its own.
        if known.contains_key(&self.pid)
            && let Some(pid) = Pid::from_raw(self.pid)
        {
            let _ = kill_process(pid, signal);
        }
    }

    /// Kills the program and everything that came of it, wherever it has hidden.
    pub(crate) fn kill(&self) {
        let marked = format!("{MARK}={}", self.mark);
        self.kill_group();
        kill_until_gone(|| {
            let alive = self.children.lock().contains_key(&self.pid);
            let processes = processes();
            let of_this = processes
                .iter()
                .filter(|process| {
                    process.pid == self.pid && alive
                        // The group keeps its number while it has members, so this one cannot be another's.
                        || process.group == self.pid
                        || has_variable(process.pid, marked.as_bytes())
                })
                .map(|process| process.pid)
                .collect();
            descendants(&processes, of_this)
        });
    }

    /// Its process group at one blow: a shell whose command was killed first would go on with the next one.
    fn kill_group(&self) {
        let known = self.children.lock();
        // Under the lock it is not reaped, so the number is still its group's.
        if known.contains_key(&self.pid)
            && let Some(group) = Pid::from_raw(self.pid)
        {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }

    /// Of a command that is not there, so that no signal reaches anybody.
    #[cfg(feature = "fuzzing")]
    pub(crate) fn of_nothing() -> Self {
        Self {
            children: Children {
                known: Arc::default(),
                identity: Identity::at(crate::identity::PATH),
            },
            pid: i32::MAX,
            mark: String::new(),
        }
    }

    /// A guard that kills it when it is dropped.
    pub(crate) fn kill_on_drop(&self) -> KillOnDrop {
        KillOnDrop(Some(self.clone()))
    }
}

/// Kills its tree when it is dropped, unless it was told not to.
#[derive(Debug)]
pub(crate) struct KillOnDrop(Option<Tree>);

impl KillOnDrop {
    pub(crate) fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if let Some(tree) = self.0.take() {
            tree.kill();
        }
    }
}

/// A process as /proc shows it.
#[derive(Debug, PartialEq, Eq)]
struct Process {
    pid: i32,
    parent: i32,
    group: i32,
}

/// Kills what `find` finds until it finds nothing more.
fn kill_until_gone(find: impl Fn() -> HashSet<i32>) {
    for _ in 0..KILL_ROUNDS_MAX {
        let found = find();
        if found.is_empty() {
            return;
        }
        for pid in found.into_iter().filter_map(Pid::from_raw) {
            let _ = kill_process(pid, Signal::KILL);
        }
        std::thread::yield_now();
    }
}

/// All processes that are not dead.
fn processes() -> Vec<Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| number(&entry.ok()?.file_name()))
        .filter_map(|pid| parse(pid, &std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?))
        .collect()
}

fn number(name: &OsStr) -> Option<i32> {
    name.to_str()?.parse().ok()
}

/// Reads `/proc/PID/stat`; `None` for what is dead. The name of a program is in parentheses and may contain any.
fn parse(pid: i32, stat: &str) -> Option<Process> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let group = fields.next()?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(Process { pid, parent, group })
}

/// Whether a process whose `stat` this is is not dead, for fuzz targets.
#[cfg(feature = "fuzzing")]
pub(crate) fn is_alive(stat: &str) -> bool {
    parse(7, stat).is_some()
}

/// These processes and all below them.
fn descendants(processes: &[Process], mut found: HashSet<i32>) -> HashSet<i32> {
    loop {
        let before = found.len();
        let more: Vec<i32> = processes
            .iter()
            .filter(|process| found.contains(&process.parent))
            .map(|process| process.pid)
            .collect();
        found.extend(more);
        if found.len() == before {
            return found;
        }
    }
}

fn has_variable(pid: i32, wanted: &[u8]) -> bool {
    std::fs::read(format!("/proc/{pid}/environ"))
        .is_ok_and(|environment| environment.split(|byte| *byte == 0).any(|entry| entry == wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_file_is_read_whatever_the_program_is_called() {
        let read = parse(7, "7 (a) S 1 (b) R 5 6 7 0");
        assert_eq!(
            read,
            Some(Process {
                pid: 7,
                parent: 5,
                group: 6
            })
        );
        assert_eq!(parse(7, "7 (x) Z 5 6 7"), None);
        assert_eq!(parse(7, "nonsense"), None);
    }

    #[test]
    fn descendants_are_found_in_any_order() {
        let process = |pid, parent| Process {
            pid,
            parent,
            group: 0,
        };
        let all = [process(4, 3), process(3, 2), process(2, 1), process(9, 1)];
        assert_eq!(descendants(&all, HashSet::from([2])), HashSet::from([2, 3, 4]));
        assert_eq!(descendants(&all, HashSet::new()), HashSet::new());
    }
}
