//! The supervisor: one small single-threaded process per state directory.
//!
//! Owns the instances of its state directory: it launches, watches, freezes and ends them, and tells
//! whoever asks. Run by `tram supervise`, spoken to through [`crate::client`].
//!
//! ```text
//! poll ─┬─ listener, clients ── requests ──┬─ launch ── fork ── shim ── clone3 ── instance
//!       ├─ a shim's report, answer or end  ├─ exec ──── fork ── helper ── clone3 ── program
//!       ├─ a memory limit that was hit     └─ freeze, thaw, signal, kill, stats, remove
//!       └─ timers: the grace of a stop
//! ```
//!
//! The one design choice to know: it keeps no state that its death would lose. Everything it knows is
//! on disk or in the kernel, so `kill -9` costs its clients a reconnect and its instances nothing
//! (see `adopt`).

mod adopt;
mod clients;
mod errand;
mod exec;
mod instance;
mod launch;
mod requests;
mod sweep;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{FlockOperation, flock};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

pub use crate::cgroup::Freezer;
use crate::cgroup::{self, Driver};
use crate::disk::Stock;
use crate::protocol::{Event, InstanceId, Reply};
use crate::seccomp::Filter;
use crate::state::{StateDir, ignore_missing};
use crate::sys;

use clients::Clients;
use exec::PendingExec;
use instance::{Instance, Phase};
use sweep::Sweeper;

/// The socket's file name in the state directory.
pub const SOCKET_NAME: &str = "supervisor.sock";
const LOCK_NAME: &str = "supervisor.lock";
/// Connections waiting to be accepted; each is accepted within a turn of the loop.
const BACKLOG: i32 = 128;
/// A shim that was just forked by a dying supervisor holds its lock for a moment.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2);
const LOCK_LOOK: Duration = Duration::from_millis(5);
/// Somebody else's launch is looked at again so often until it is done.
const RECHECK: Duration = Duration::from_millis(10);
/// Killed processes are gone within this, unless one is stuck in the kernel.
const CGROUPS_TIMEOUT: Duration = Duration::from_secs(1);
/// The least that inotify must offer on a machine with many instances: what Kubernetes distributions set.
const INOTIFY_LEAST: [(&str, u64); 2] = [("max_user_instances", 8192), ("max_user_watches", 524_288)];

/// What a supervisor is told at its start.
#[derive(Debug, Clone)]
pub struct Config {
    /// Holds everything; made if missing. Must not be on an overlay file system.
    pub state_dir: PathBuf,
    /// Leave it at its default but for tests.
    pub freezer: Freezer,
}

impl Config {
    pub fn new(state_dir: impl Into<PathBuf>) -> Self {
        Self {
            state_dir: state_dir.into(),
            freezer: Freezer::default(),
        }
    }
}

/// Why a supervisor cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the supervisor must start before any thread")]
    Threads,
    #[error("another supervisor runs on {}", .0.display())]
    AlreadyRunning(PathBuf),
    #[error("cannot {what}")]
    Setup {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("cannot build the system call filter")]
    Filter(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the supervisor's loop failed")]
    Loop(#[source] io::Error),
}

fn setup(what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Setup { what, source }
}

/// Serve until SIGTERM or SIGINT. Instances go on when it returns.
pub fn run(config: &Config) -> Result<(), Error> {
    if !sys::is_single_threaded().map_err(setup("read /proc"))? {
        return Err(Error::Threads);
    }
    let mut supervisor = Supervisor::start(config)?;
    tracing::info!(state_dir = %supervisor.state.root().display(), instances = supervisor.instances.len(), "supervisor ready");
    let result = supervisor.serve().map_err(Error::Loop);
    supervisor.finish_cgroups();
    // Clients see at once that nobody listens.
    let _ = fs::remove_file(supervisor.state.root().join(SOCKET_NAME));
    result
}

struct Supervisor {
    state: StateDir,
    driver: Box<dyn Driver>,
    filter: Filter,
    boot_id: String,
    listener: OwnedFd,
    signals: SignalFd,
    clients: Clients,
    instances: BTreeMap<InstanceId, Instance>,
    execs: BTreeMap<u64, PendingExec>,
    next_exec: u64,
    sweeper: Sweeper,
    stock: Stock,
    /// Cgroups that were still busy when their instance ended.
    busy_cgroups: Vec<InstanceId>,
    stopping: bool,
    /// Held for as long as this process lives.
    _lock: File,
    /// Keeps moves between cgroups cheap.
    _dynamic_modifications: Option<OwnedFd>,
}

/// Which descriptor became ready.
#[derive(Debug, Clone)]
enum Ready {
    Listener,
    Signals,
    Client(u64, PollFlags),
    Report(InstanceId),
    Shim(InstanceId),
    Oom(InstanceId),
    Errand(InstanceId),
    Exec(u64),
}

/// What is polled, and what it means when it is ready.
#[derive(Default)]
struct Waiting<'a> {
    fds: Vec<PollFd<'a>>,
    names: Vec<Ready>,
}

impl<'a> Waiting<'a> {
    fn add(&mut self, fd: &'a impl AsFd, flags: PollFlags, name: Ready) {
        self.fds.push(PollFd::new(fd, flags));
        self.names.push(name);
    }
}

impl Supervisor {
    fn start(config: &Config) -> Result<Self, Error> {
        sys::hurry_process(true);
        fill_stdio().map_err(setup("open the null device"))?;
        raise_limits();
        let state = StateDir::ensure(&config.state_dir).map_err(setup("make the state directory"))?;
        let lock = lock(state.root())?;
        // Not offered by older kernels; launches are then slower.
        let dynamic_modifications = match cgroup::favor_dynamic_modifications() {
            Ok(fd) => Some(fd),
            Err(error) => {
                tracing::debug!(%error, "cannot make cgroup moves cheap");
                None
            }
        };
        let driver = cgroup::driver(state.root(), config.freezer).map_err(setup("set up cgroups"))?;
        let mut mask = SigSet::empty();
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD] {
            mask.add(signal);
        }
        mask.thread_block()
            .map_err(io::Error::from)
            .map_err(setup("block signals"))?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let signals = SignalFd::with_flags(&mask, flags)
            .map_err(io::Error::from)
            .map_err(setup("listen to signals"))?;
        let mut supervisor = Self {
            driver,
            filter: Filter::build().map_err(|error| Error::Filter(Box::new(error)))?,
            boot_id: sys::boot_id().map_err(setup("read the boot id"))?,
            listener: listen(state.root()).map_err(setup("listen on the socket"))?,
            signals,
            clients: Clients::default(),
            instances: BTreeMap::new(),
            execs: BTreeMap::new(),
            next_exec: 0,
            sweeper: Sweeper::default(),
            stock: Stock::new(&state),
            busy_cgroups: Vec::new(),
            stopping: false,
            _lock: lock,
            _dynamic_modifications: dynamic_modifications,
            state,
        };
        supervisor.adopt_all().map_err(setup("adopt the instances"))?;
        if supervisor.stock.is_low() {
            supervisor.sweep();
        }
        Ok(supervisor)
    }

    fn serve(&mut self) -> io::Result<()> {
        while !self.stopping {
            for ready in self.wait()? {
                match ready {
                    Ready::Listener => self.clients.accept(&self.listener),
                    Ready::Signals => self.on_signals(),
                    Ready::Client(client, flags) => self.on_client(client, flags),
                    Ready::Report(id) => self.on_report(&id),
                    Ready::Shim(id) => self.on_shim_end(&id),
                    Ready::Oom(id) => self.on_oom(&id),
                    Ready::Errand(id) => self.on_errand(&id),
                    Ready::Exec(exec) => self.on_exec_report(exec),
                }
            }
            self.on_time();
        }
        Ok(())
    }

    /// Gives the cgroups of instances that have just ended a moment to become empty, so that a clean exit leaves
    /// none.
    fn finish_cgroups(&mut self) {
        let deadline = Instant::now() + CGROUPS_TIMEOUT;
        while !self.busy_cgroups.is_empty() && Instant::now() < deadline {
            if sys::poll(&mut [], Some(RECHECK)).is_err() {
                return;
            }
            self.on_time();
        }
    }

    fn wait(&self) -> io::Result<Vec<Ready>> {
        let mut waiting = Waiting::default();
        if self.clients.accepting() {
            waiting.add(&self.listener, PollFlags::IN, Ready::Listener);
        }
        waiting.add(&self.signals, PollFlags::IN, Ready::Signals);
        for (number, socket, flags) in self.clients.interests() {
            waiting.add(socket, flags, Ready::Client(number, flags));
        }
        for (id, instance) in &self.instances {
            match &instance.phase {
                Phase::Starting(starting) => {
                    if let Some(report) = &starting.report {
                        waiting.add(report, PollFlags::IN, Ready::Report(id.clone()));
                    }
                    if let Some(shim) = &starting.shim {
                        waiting.add(shim, PollFlags::IN, Ready::Shim(id.clone()));
                    }
                }
                Phase::Running(running) => {
                    waiting.add(&running.shim, PollFlags::IN, Ready::Shim(id.clone()));
                    if let Some(errand) = &running.errand {
                        waiting.add(&errand.connection, PollFlags::IN, Ready::Errand(id.clone()));
                    }
                    if let Some(oom) = &running.oom {
                        waiting.add(&oom.fd, oom.flags, Ready::Oom(id.clone()));
                    }
                }
                Phase::Ended(_) => {}
            }
        }
        for (number, exec) in &self.execs {
            waiting.add(exec.report(), PollFlags::IN, Ready::Exec(*number));
        }
        sys::poll(&mut waiting.fds, self.next_timer())?;
        let ready =
            waiting
                .fds
                .iter()
                .zip(waiting.names)
                .filter_map(|(fd, name)| match (fd.revents(), name) {
                    (revents, _) if revents.is_empty() => None,
                    (revents, Ready::Client(number, _)) => Some(Ready::Client(number, revents)),
                    (_, name) => Some(name),
                });
        Ok(ready.collect())
    }

    /// How long until something is due without anybody saying so.
    fn next_timer(&self) -> Option<Duration> {
        let mut next = self.clients.next_timer();
        let mut soon = |after: Duration| next = Some(next.map_or(after, |next: Duration| next.min(after)));
        if !self.busy_cgroups.is_empty() {
            soon(RECHECK);
        }
        for instance in self.instances.values() {
            match &instance.phase {
                Phase::Starting(starting) if starting.must_be_rechecked() => {
                    let left = starting
                        .not_before
                        .map(|at| at.saturating_duration_since(Instant::now()));
                    soon(left.unwrap_or_default().max(RECHECK));
                }
                Phase::Running(running) => {
                    if let Some(at) = running.kill_at_boottime_ms {
                        soon(Duration::from_millis(at.saturating_sub(sys::boottime_ms())));
                    }
                    if let Some(at) = running.look_for_oom_at {
                        soon(at.saturating_duration_since(Instant::now()));
                    }
                }
                _ => {}
            }
        }
        next
    }

    fn on_time(&mut self) {
        let now = sys::boottime_ms();
        let mut recheck = Vec::new();
        let mut look = Vec::new();
        for (id, instance) in &mut self.instances {
            match &mut instance.phase {
                Phase::Starting(starting)
                    if starting.must_be_rechecked()
                        && starting.not_before.is_none_or(|at| at <= Instant::now()) =>
                {
                    recheck.push(id.clone());
                }
                Phase::Running(running) => {
                    if running.kill_at_boottime_ms.is_some_and(|at| at <= now) {
                        running.kill_at_boottime_ms = None;
                        if let Err(error) = self.driver.kill(id.as_str()) {
                            tracing::error!(instance = %id, %error, "cannot kill after the grace");
                        }
                    }
                    if running.look_for_oom_at.is_some_and(|at| at <= Instant::now()) {
                        running.look_for_oom_at = None;
                        look.push(id.clone());
                    }
                }
                _ => {}
            }
        }
        for id in recheck {
            self.recheck(&id);
        }
        for id in look {
            self.look_for_oom(&id);
        }
        for id in std::mem::take(&mut self.busy_cgroups) {
            // An id may have been given to a new instance meanwhile; its cgroup is then not ours to take.
            if self
                .instances
                .get(&id)
                .is_none_or(|instance| matches!(instance.phase, Phase::Ended(_)))
            {
                self.remove_cgroup(&id);
            }
        }
    }

    fn on_signals(&mut self) {
        while let Ok(Some(signal)) = self.signals.read_signal() {
            if signal.ssi_signo != Signal::SIGCHLD as u32 {
                self.stopping = true;
            }
        }
        let reaped = sys::reap_children();
        let again = self.sweeper.reaped(&reaped);
        self.stock.receive();
        if again {
            self.sweep();
        }
    }

    /// Have the trash emptied and the stocks filled.
    fn sweep(&mut self) {
        self.sweeper.start(&self.state, &mut self.stock);
    }

    fn broadcast(&mut self, event: &Event) {
        self.clients.broadcast(event);
    }

    fn reply(&mut self, client: u64, reply: &Reply, fds: Vec<OwnedFd>) {
        self.clients.reply(client, reply, fds);
    }
}

/// Three descriptors an instance are held here, and the usual soft limit is 1024.
fn raise_limits() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = rustix::process::setrlimit(rustix::process::Resource::Nofile, raised) {
        tracing::warn!(%error, limit = ?limit.current, "cannot raise the limit of open files");
    }
    // Counted per user, and root in an instance is the machine's: one instance must not use up what the machine's own
    // programs and every other instance need. The kernel's default is 128.
    for (name, least) in INOTIFY_LEAST {
        let path = format!("/proc/sys/fs/inotify/{name}");
        let now = fs::read_to_string(&path)
            .ok()
            .and_then(|text| text.trim().parse::<u64>().ok());
        if now.is_some_and(|now| now < least)
            && let Err(error) = fs::write(&path, least.to_string())
        {
            tracing::warn!(%error, name, "cannot raise a limit of inotify");
        }
    }
}

/// Descriptors 0, 1 and 2 must be taken, or a socket would get one of their numbers.
fn fill_stdio() -> io::Result<()> {
    loop {
        let null = File::options().read(true).write(true).open("/dev/null")?;
        if std::os::fd::AsRawFd::as_raw_fd(&null) > 2 {
            return Ok(());
        }
        // Kept open for ever, on purpose.
        std::mem::forget(null);
    }
}

fn lock(root: &Path) -> Result<File, Error> {
    let open = || {
        OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(root.join(LOCK_NAME))
    };
    let file = open().map_err(setup("open the lock file"))?;
    let deadline = Instant::now() + LOCK_TIMEOUT;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                sys::poll(&mut [], Some(LOCK_LOOK)).map_err(setup("wait for the lock"))?;
            }
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(Error::AlreadyRunning(root.to_owned())),
            Err(errno) => return Err(setup("lock the state directory")(errno.into())),
        }
    }
}

/// Only the state directory's owner may connect.
fn listen(root: &Path) -> io::Result<OwnedFd> {
    let path = root.join(SOCKET_NAME);
    ignore_missing(fs::remove_file(&path))?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let mask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let bound = rustix::net::bind(&socket, &SocketAddrUnix::new(&path)?);
    rustix::process::umask(mask);
    bound?;
    rustix::net::listen(socket.as_fd(), BACKLOG)?;
    Ok(socket)
}
