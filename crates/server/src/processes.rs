//! The helper processes of the control plane: started when they are not there, found again when they are.
//!
//! `tram supervise` and `tram edge` outlive a kill -9 of `tram up`. Each holds a lock on a file of its state
//! directory and writes its process id there, so a new control plane knows whether one is running without talking to
//! it. [`Keeper`] watches a helper and starts it again when it ends before its time; the composition root owns both.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Seek, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    process::{Pid, PidfdFlags, Signal},
};
use tokio_util::sync::CancellationToken;

/// Pause before a helper that ended is started again, doubled each time up to [`RESTART_PAUSE_MAX`]: a helper that
/// cannot start must not take the processor from the instances.
const RESTART_PAUSE: Duration = Duration::from_millis(50);
/// Longest pause between two starts of a helper.
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(5);
/// What is left of any time to stop once somebody is in a hurry: enough for what ends by itself.
const AT_ONCE: Duration = Duration::from_millis(500);
/// Largest process id file that is read, in bytes: a number and a line feed.
const PID_FILE_MAX_BYTES: u64 = 32;
/// A lock whose holder is dead is waited for: a process that the holder was starting has it until its own exec, which
/// takes milliseconds even on a busy machine.
const INHERITED_LOCK_PATIENCE: Duration = Duration::from_secs(2);
/// Between two looks at such a lock.
const INHERITED_LOCK_LOOK: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 5_000_000,
};
/// Digits of the largest process id.
const PID_DIGITS_MAX: usize = 10;

/// What went wrong with a helper process.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the helper could not be used.
    #[error("cannot {doing} {}", path.display())]
    File {
        /// What was tried.
        doing: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// The process could not be started or watched.
    #[error("cannot {doing} the `{role}` process")]
    Process {
        /// What was tried.
        doing: &'static str,
        /// With which helper.
        role: &'static str,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}

/// A lock on a directory, with the holder's process id in the lock file. Released when dropped or when the process
/// ends, however it ends.
#[derive(Debug)]
pub struct DirectoryLock {
    _file: File,
}

/// Who holds a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder {
    /// The process id it wrote, if it could be read.
    pub pid: Option<i32>,
}

impl DirectoryLock {
    /// Takes the lock `name` of `directory`, or says who has it.
    ///
    /// # Errors
    /// When the lock file cannot be made or written.
    pub fn take(directory: &Path, name: &str) -> Result<Result<Self, Holder>, Error> {
        let path = directory.join(name);
        let at = |doing| {
            let path = path.clone();
            move |source| Error::File { doing, path, source }
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(at("open"))?;
        let deadline = Instant::now() + INHERITED_LOCK_PATIENCE;
        loop {
            match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    let pid = read_pid(&mut file);
                    // A process that it was about to start when it was killed holds its lock until its own exec.
                    let is_dead = pid.and_then(Pid::from_raw).is_some_and(|pid| {
                        rustix::process::test_kill_process(pid) == Err(rustix::io::Errno::SRCH)
                    });
                    if !is_dead || Instant::now() >= deadline {
                        return Ok(Err(Holder { pid }));
                    }
                    rustix::event::poll(&mut [], Some(&INHERITED_LOCK_LOOK))
                        .map_err(|errno| at("wait for")(errno.into()))?;
                }
                Err(errno) => return Err(at("lock")(errno.into())),
            }
        }
        // Always of one length and written over what was there: it needs no room on a full disk but the first time,
        // and is never empty for a reader.
        let text = format!("{:>width$}\n", std::process::id(), width = PID_DIGITS_MAX);
        file.rewind()
            .and_then(|()| file.write_all(text.as_bytes()))
            .and_then(|()| file.set_len(u64::try_from(text.len()).unwrap_or(PID_FILE_MAX_BYTES)))
            .map_err(at("write"))?;
        Ok(Ok(Self { _file: file }))
    }

    /// Who holds the lock `name` of `directory`, if anybody does.
    #[must_use]
    pub fn holder(directory: &Path, name: &str) -> Option<Holder> {
        let mut file = File::open(directory.join(name)).ok()?;
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockShared) {
            Err(rustix::io::Errno::WOULDBLOCK) => Some(Holder {
                pid: read_pid(&mut file),
            }),
            _ => None,
        }
    }
}

fn read_pid(file: &mut File) -> Option<i32> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.take(PID_FILE_MAX_BYTES).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// One helper: how it is started and where its lock and its output are.
#[derive(Debug, Clone)]
pub struct Helper {
    /// The subcommand, also its name in messages.
    pub role: &'static str,
    /// Its arguments after the subcommand.
    pub arguments: Vec<String>,
    /// Its state directory, which holds its lock.
    pub state_dir: PathBuf,
    /// The name of its lock file.
    pub lock_name: &'static str,
    /// Where its standard output and error go.
    pub log: PathBuf,
}

impl Helper {
    /// The process that runs now, if one does.
    #[must_use]
    pub fn running(&self) -> Option<i32> {
        DirectoryLock::holder(&self.state_dir, self.lock_name)?.pid
    }

    fn start(&self) -> Result<tokio::process::Child, Error> {
        let file_error = |source| Error::File {
            doing: "open the log",
            path: self.log.clone(),
            source,
        };
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .map_err(file_error)?;
        let errors = log.try_clone().map_err(file_error)?;
        // The running binary itself, also after the file was replaced by an upgrade.
        let mut command = std::process::Command::new("/proc/self/exe");
        command
            .arg0("tram")
            .arg(self.role)
            .args(&self.arguments)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            // A group of its own: Ctrl-C in the terminal of `tram up` is not meant for it.
            .process_group(0);
        let mut command = tokio::process::Command::from(command);
        command
            .kill_on_drop(false)
            .spawn()
            .map_err(|source| Error::Process {
                doing: "start",
                role: self.role,
                source,
            })
    }

    /// The last lines of the helper's output, for a message about its death.
    #[must_use]
    pub fn last_words(&self) -> String {
        /// Enough for an error with its causes.
        const LAST_LINES: usize = 8;
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
    }
}

/// Keeps one helper running until it is told to stop.
#[derive(Debug)]
pub struct Keeper {
    helper: Helper,
    stop: CancellationToken,
    ends: Arc<AtomicU32>,
    adopted: bool,
    /// Gives back a child that still runs when the watch is over.
    task: tokio::task::JoinHandle<Option<Box<tokio::process::Child>>>,
}

impl Keeper {
    /// Adopts the helper that runs, or starts one; either way it is watched from now on.
    ///
    /// # Errors
    /// When a first start fails; later ones are retried and logged.
    pub fn keep(helper: Helper) -> Result<Self, Error> {
        let first = match helper.running() {
            Some(pid) => {
                tracing::info!(role = helper.role, pid, "adopted a running helper process");
                Running::Adopted(pid)
            }
            None => Running::Child(Box::new(helper.start()?)),
        };
        let adopted = matches!(first, Running::Adopted(_));
        let stop = CancellationToken::new();
        let ends = Arc::new(AtomicU32::new(0));
        let task = tokio::spawn(watch(helper.clone(), first, Arc::clone(&ends), stop.clone()));
        Ok(Self {
            helper,
            stop,
            ends,
            adopted,
            task,
        })
    }

    /// What is kept.
    #[must_use]
    pub fn helper(&self) -> &Helper {
        &self.helper
    }

    /// Whether a helper that was started here has ended by itself.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ends.load(Ordering::Relaxed) > 0
    }

    /// Ends the helper by SIGTERM, waits for it at most `grace`, or hardly at all in a `hurry`, then ends it by force.
    pub async fn stop(self, grace: Duration, hurry: &CancellationToken) {
        self.stop.cancel();
        let child = self.task.await.unwrap_or_else(|_| {
            tracing::warn!(
                role = self.helper.role,
                "the watch over a helper process ended early"
            );
            None
        });
        // One that was started a moment ago has not said who it is yet.
        let unheard = child.as_ref().and_then(|child| i32::try_from(child.id()?).ok());
        let pid = self.helper.running().or(unheard).and_then(Pid::from_raw);
        reap(child);
        let Some(pid) = pid else { return };
        signal(pid, Signal::TERM, self.helper.role);
        let in_time = tokio::select! {
            () = ended(pid) => true,
            () = patience(grace, hurry) => false,
        };
        if !in_time {
            tracing::warn!(
                role = self.helper.role,
                "a helper process did not stop in time and is killed"
            );
            signal(pid, Signal::KILL, self.helper.role);
            // A killed process always ends; the bound is for a kernel in distress.
            let _ = tokio::time::timeout(Duration::from_secs(5), ended(pid)).await;
        }
    }

    /// Takes back what [`Keeper::keep`] did: ends a helper that was started, leaves one that was adopted.
    pub async fn undo(self, grace: Duration, hurry: &CancellationToken) {
        if self.adopted {
            self.leave().await;
        } else {
            self.stop(grace, hurry).await;
        }
    }

    /// Leaves the helper running and stops watching it.
    pub async fn leave(self) {
        self.stop.cancel();
        reap(self.task.await.unwrap_or_default());
    }
}

/// Comes back after `usual`, or soon after somebody is in a hurry.
pub async fn patience(usual: Duration, hurry: &CancellationToken) {
    let hurried = async {
        hurry.cancelled().await;
        tokio::time::sleep(AT_ONCE).await;
    };
    tokio::select! {
        () = tokio::time::sleep(usual) => {}
        () = hurried => {}
    }
}

enum Running {
    Child(Box<tokio::process::Child>),
    Adopted(i32),
}

async fn watch(
    helper: Helper,
    mut running: Running,
    ends: Arc<AtomicU32>,
    stop: CancellationToken,
) -> Option<Box<tokio::process::Child>> {
    let mut pause = RESTART_PAUSE;
    loop {
        let since = Instant::now();
        tokio::select! {
            () = stop.cancelled() => {
                return match running {
                    Running::Child(child) => Some(child),
                    Running::Adopted(_) => None,
                };
            }
            () = wait(&mut running) => {}
        }
        // An adopted one may have been dying when it was found: that says nothing about the next.
        if matches!(running, Running::Child(_)) {
            ends.fetch_add(1, Ordering::Relaxed);
        }
        tracing::warn!(role = helper.role, "a helper process ended; starting it again");
        if since.elapsed() > RESTART_PAUSE_MAX {
            pause = RESTART_PAUSE;
        }
        loop {
            tokio::select! {
                () = stop.cancelled() => return None,
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(RESTART_PAUSE_MAX);
            match helper.start() {
                Ok(child) => {
                    running = Running::Child(Box::new(child));
                    break;
                }
                Err(error) => {
                    tracing::error!(role = helper.role, error = %crate::chain(&error), "cannot start a helper process")
                }
            }
        }
    }
}

/// A child that is left to itself must still be reaped when it ends before us.
fn reap(child: Option<Box<tokio::process::Child>>) {
    if let Some(mut child) = child {
        tokio::spawn(async move { child.wait().await });
    }
}

async fn wait(running: &mut Running) {
    match running {
        Running::Child(child) => {
            let _ = child.wait().await;
        }
        Running::Adopted(pid) => {
            if let Some(pid) = Pid::from_raw(*pid) {
                ended(pid).await;
            }
        }
    }
}

fn signal(pid: Pid, signal: Signal, role: &'static str) {
    if let Err(error) = rustix::process::kill_process(pid, signal) {
        tracing::debug!(role, %error, "a helper process could not be signalled");
    }
}

/// Comes back when the process has ended; at once when there is none.
///
/// A thread waits in the kernel: such a wait is rare (a helper that this process did not start, or one that is being
/// stopped), and it ends with the helper or with this process.
async fn ended(pid: Pid) {
    let Ok(pidfd) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else {
        return;
    };
    let waited = tokio::task::spawn_blocking(move || {
        let mut watched = [PollFd::new(&pidfd, PollFlags::IN)];
        while rustix::event::poll(&mut watched, None) == Err(rustix::io::Errno::INTR) {}
    });
    if let Err(error) = waited.await {
        tracing::debug!(%error, "the wait for a helper process was cut off");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_told_who_the_first_is() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(DirectoryLock::holder(directory.path(), "lock"), None);
        let first = DirectoryLock::take(directory.path(), "lock").unwrap().unwrap();
        let holder = DirectoryLock::take(directory.path(), "lock")
            .unwrap()
            .unwrap_err();
        assert_eq!(holder.pid, i32::try_from(std::process::id()).ok());
        assert_eq!(DirectoryLock::holder(directory.path(), "lock"), Some(holder));
        drop(first);
        assert!(DirectoryLock::take(directory.path(), "lock").unwrap().is_ok());
    }

    #[test]
    fn a_lock_that_outlives_its_holder_for_a_moment_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let mut dead = std::process::Command::new("true").spawn().unwrap();
        dead.wait().unwrap();
        let path = directory.path().join("lock");
        std::fs::write(&path, dead.id().to_string()).unwrap();
        let inherited = File::open(&path).unwrap();
        rustix::fs::flock(&inherited, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
        let keeper = std::thread::spawn(move || {
            // As long as an exec may take.
            let _ = rustix::event::poll(
                &mut [],
                Some(&Timespec {
                    tv_sec: 0,
                    tv_nsec: 100_000_000,
                }),
            );
            drop(inherited);
        });
        assert!(DirectoryLock::take(directory.path(), "lock").unwrap().is_ok());
        keeper.join().unwrap();
    }

    #[tokio::test]
    async fn patience_is_short_in_a_hurry() {
        let hurry = CancellationToken::new();
        patience(Duration::ZERO, &hurry).await;
        hurry.cancel();
        tokio::time::timeout(
            Duration::from_secs(30),
            patience(Duration::from_secs(3600), &hurry),
        )
        .await
        .unwrap();
    }

    #[tokio::test]
    async fn the_end_of_a_process_is_noticed() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        tokio::time::timeout(Duration::from_secs(10), ended(pid))
            .await
            .unwrap();
        child.wait().unwrap();
        ended(pid).await;
    }
}
