//! The blocking client of the supervisor.
//!
//! Called by `site-local`, which wraps it for tokio, and by `tram doctor`. Owns the time limits: no
//! call here waits for ever, whatever the supervisor does.
//!
//! The one design choice to know: every call opens its own connection (some 50 µs on a Unix
//! socket), so a [`Client`] is cheap to clone, needs no lock, and a supervisor that was restarted
//! between two calls is not noticed.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::patience;
use crate::protocol::frame::{self, Decoder, FrameError};
use crate::protocol::{
    CheckpointSpec, Event, ExecSpec, ExitStatus, InstanceId, InstanceInfo, KeepSpec, LaunchSpec,
    PROTOCOL_VERSION, Refusal, Reply, Request, Stats, TtySize,
};
use crate::supervisor::SOCKET_NAME;
use crate::sys;

/// The supervisor accepts at once; one that does not is stopped or overwhelmed.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Questions and small orders take the supervisor milliseconds.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// A program in an instance is started without reading much, on a machine that may be busy.
pub const EXEC_TIMEOUT: Duration = Duration::from_secs(30);
/// After this, whoever waits for what depends on the size of an instance asks how large it is, and waits as long as that
/// may take. A thaw takes a millisecond and a restore some fifty.
pub const FIRST_PATIENCE: Duration = Duration::from_secs(20);

/// Why a call did not give what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot connect to the supervisor at {}", path.display())]
    Connect {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot talk to the supervisor")]
    Talk(#[source] io::Error),
    #[error("the supervisor did not answer within {} ms", .0.as_millis())]
    TimedOut(Duration),
    #[error("the supervisor closed the connection")]
    Closed,
    #[error("cannot understand the supervisor")]
    Frame(#[from] FrameError),
    #[error("the supervisor answered something else than was asked: {0}")]
    Unexpected(String),
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// Speaks to the supervisor of one state directory.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// Does no I/O; use [`Client::ping`] to see whether somebody is there.
    pub fn new(state_dir: impl AsRef<Path>) -> Self {
        Self {
            socket: state_dir.as_ref().join(SOCKET_NAME),
        }
    }

    /// The supervisor's pid.
    pub fn ping(&self) -> Result<i32, Error> {
        match self.call(
            &Request::Ping {
                version: PROTOCOL_VERSION,
            },
            CALL_TIMEOUT,
        )? {
            Reply::Pong { pid, .. } => Ok(pid),
            other => Err(unexpected(other)),
        }
    }

    /// Start an instance and wait until its program was exec'd. Returns its first process's pid on
    /// this machine. A program that could not be executed is [`Refusal::Launch`]; the instance is
    /// then on record as ended, until removed.
    pub fn launch(&self, spec: LaunchSpec) -> Result<i32, Error> {
        let patience = launch_patience(&spec);
        let spec = Box::new(spec);
        let request = match spec.gvisor {
            Some(_) => Request::LaunchGvisor { spec },
            None => Request::Launch { spec },
        };
        match self.call(&request, patience)? {
            Reply::Launched { pid } => Ok(pid),
            other => Err(unexpected(other)),
        }
    }

    /// Returns at once; the end is an [`Event::Exited`]. Stopping an ended instance is
    /// [`Refusal::NotRunning`].
    pub fn stop(&self, id: &InstanceId, grace: Duration) -> Result<(), Error> {
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        self.order(&Request::Stop {
            id: id.clone(),
            grace_ms,
        })
    }

    /// Returns once the kernel was told; the end is an [`Event::Exited`].
    pub fn kill(&self, id: &InstanceId) -> Result<(), Error> {
        self.order(&Request::Kill { id: id.clone() })
    }

    pub fn signal(&self, id: &InstanceId, signal: i32) -> Result<(), Error> {
        self.order(&Request::Signal {
            id: id.clone(),
            signal,
        })
    }

    /// Returns when every process is frozen. Freezing twice succeeds.
    pub fn freeze(&self, id: &InstanceId) -> Result<(), Error> {
        self.order(&Request::Freeze { id: id.clone() })
    }

    /// Returns when it runs again. A checkpointed instance is restored first.
    pub fn thaw(&self, id: &InstanceId) -> Result<(), Error> {
        match self.call_for(&Request::Thaw { id: id.clone() }, id, patience::waking)? {
            Reply::Done => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    /// Returns when the frozen instance's processes and memory are on disk and gone. Checkpointing twice succeeds.
    pub fn checkpoint(&self, id: &InstanceId, checkpoint: CheckpointSpec) -> Result<(), Error> {
        let request = Request::Checkpoint {
            id: id.clone(),
            checkpoint,
        };
        match self.call_for(&request, id, patience::keeping)? {
            Reply::Done => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    /// Returns when a running or frozen instance is written down for others to begin as; it goes on as it was.
    pub fn keep(&self, id: &InstanceId, keep: KeepSpec) -> Result<(), Error> {
        let request = Request::Keep { id: id.clone(), keep };
        match self.call_for(&request, id, patience::keeping)? {
            Reply::Done => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    /// Run one more program inside.
    pub fn exec(&self, id: &InstanceId, exec: ExecSpec) -> Result<Exec, Error> {
        let mut connection = Connection::open(&self.socket)?;
        let deadline = Instant::now() + EXEC_TIMEOUT;
        connection.send(&Request::Exec { id: id.clone(), exec }, deadline, EXEC_TIMEOUT)?;
        match connection.reply(deadline, EXEC_TIMEOUT)? {
            Reply::ExecStarted { pid, tty } => Exec::from_fds(pid, tty, connection.fds),
            Reply::Refused { refusal } => Err(refusal.into()),
            other => Err(unexpected(other)),
        }
    }

    pub fn list(&self) -> Result<Vec<InstanceInfo>, Error> {
        match self.call(&Request::List, CALL_TIMEOUT)? {
            Reply::Instances { instances } => Ok(instances),
            other => Err(unexpected(other)),
        }
    }

    pub fn stats(&self, id: &InstanceId) -> Result<Stats, Error> {
        match self.call(&Request::Stats { id: id.clone() }, CALL_TIMEOUT)? {
            Reply::Stats { stats } => Ok(stats),
            other => Err(unexpected(other)),
        }
    }

    /// Forget an ended instance and everything of it. Removing an unknown one succeeds.
    pub fn remove(&self, id: &InstanceId) -> Result<(), Error> {
        self.order(&Request::Remove { id: id.clone() })
    }

    /// From now on, every change. List after watching to miss nothing.
    pub fn watch(&self) -> Result<Watch, Error> {
        let mut connection = Connection::open(&self.socket)?;
        let deadline = Instant::now() + CALL_TIMEOUT;
        connection.send(&Request::Watch, deadline, CALL_TIMEOUT)?;
        match connection.reply(deadline, CALL_TIMEOUT)? {
            Reply::Watching => Ok(Watch { connection }),
            Reply::Refused { refusal } => Err(refusal.into()),
            other => Err(unexpected(other)),
        }
    }

    fn order(&self, request: &Request) -> Result<(), Error> {
        match self.call(request, CALL_TIMEOUT)? {
            Reply::Done => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    /// Asks for what takes the longer the larger the instance is: as long as `patience` says for its bytes, in memory or on
    /// the disk. These are asked for only when the answer does not come at once.
    fn call_for(
        &self,
        request: &Request,
        id: &InstanceId,
        patience: impl Fn(u64) -> Duration,
    ) -> Result<Reply, Error> {
        let mut connection = Connection::open(&self.socket)?;
        let begun = Instant::now();
        connection.send(request, begun + FIRST_PATIENCE, FIRST_PATIENCE)?;
        let mut reply = connection.reply(begun + FIRST_PATIENCE, FIRST_PATIENCE);
        if matches!(reply, Err(Error::TimedOut(_))) {
            let bytes = match self.stats(id) {
                Ok(stats) => stats.held_bytes().max(stats.checkpoint_bytes),
                // Over by now, which the answer says too, or too busy to say: the least patience is minutes.
                Err(_) => 0,
            };
            let timeout = patience(bytes);
            reply = connection.reply(begun + timeout, timeout);
        }
        match reply? {
            Reply::Refused { refusal } => Err(refusal.into()),
            reply => Ok(reply),
        }
    }

    fn call(&self, request: &Request, timeout: Duration) -> Result<Reply, Error> {
        let mut connection = Connection::open(&self.socket)?;
        let deadline = Instant::now() + timeout;
        connection.send(request, deadline, timeout)?;
        match connection.reply(deadline, timeout)? {
            Reply::Refused { refusal } => Err(refusal.into()),
            reply => Ok(reply),
        }
    }
}

/// How long a launch may take: what its disk and its memory begin as is read first.
pub fn launch_patience(spec: &LaunchSpec) -> Duration {
    // In blocks of 512 bytes, whatever the file system's own are. What cannot be counted is not there.
    let taken = |path: &Path| std::fs::metadata(path).map_or(0, |found| found.blocks() * 512);
    let disk = spec.disk_from.as_deref().map_or(0, taken);
    let memory = spec.memory_from.as_ref().map_or(0, |from| {
        let files = std::fs::read_dir(&from.image);
        let files = files.into_iter().flatten().flatten();
        files.map(|file| taken(&file.path())).sum()
    });
    patience::launching(disk, memory)
}

fn unexpected(reply: Reply) -> Error {
    Error::Unexpected(format!("{reply:?}"))
}

/// A stream of [`Event`]s. Readable (see [`AsFd`]) when something arrived or the supervisor is gone.
#[derive(Debug)]
pub struct Watch {
    connection: Connection,
}

impl Watch {
    /// The next event, or `None` when none came in time. [`Error::Closed`] when the supervisor went
    /// away (or dropped this watcher because it did not read): watch again, then list.
    pub fn next(&mut self, timeout: Duration) -> Result<Option<Event>, Error> {
        match self.connection.receive(Instant::now() + timeout, timeout) {
            Ok(event) => Ok(Some(event)),
            Err(Error::TimedOut(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.socket.as_fd()
    }
}

/// A program that runs inside an instance because of [`Client::exec`].
#[derive(Debug)]
pub struct Exec {
    /// As this machine sees it.
    pub pid: i32,
    /// The pidfd: signal it with `pidfd_send_signal`.
    pub process: OwnedFd,
    /// Readable when it ended; give it to [`read_exit`].
    pub exit: OwnedFd,
    pub io: ExecIo,
}

/// The program's ends.
#[derive(Debug)]
pub enum ExecIo {
    /// Both directions; give it to [`resize`] for a new size.
    Tty { master: OwnedFd },
    Pipes {
        stdin: OwnedFd,
        stdout: OwnedFd,
        stderr: OwnedFd,
    },
}

impl Exec {
    fn from_fds(pid: i32, tty: bool, fds: Vec<OwnedFd>) -> Result<Self, Error> {
        let count = fds.len();
        let mut fds = fds.into_iter();
        let mut next = || {
            fds.next()
                .ok_or_else(|| Error::Unexpected(format!("{count} file descriptors")))
        };
        let (process, exit) = (next()?, next()?);
        let io = if tty {
            ExecIo::Tty { master: next()? }
        } else {
            ExecIo::Pipes {
                stdin: next()?,
                stdout: next()?,
                stderr: next()?,
            }
        };
        Ok(Self {
            pid,
            process,
            exit,
            io,
        })
    }
}

/// How many bytes travel through [`Exec::exit`]: a kind (0 code, 1 signal) and a value, both 32 bit
/// little-endian.
pub const EXIT_BYTES: usize = 8;

/// Take the exit status out of [`Exec::exit`]. Blocks until the program ended. `None` when its
/// status was never learnt, because the helper that waited for it was killed.
pub fn read_exit(exit: impl AsFd) -> io::Result<Option<ExitStatus>> {
    let mut bytes = [0_u8; EXIT_BYTES];
    let mut filled = 0;
    while filled < EXIT_BYTES {
        match rustix::io::read(&exit, &mut bytes[filled..]) {
            Ok(0) => return Ok(None),
            Ok(count) => filled += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(decode_exit(bytes))
}

/// What [`read_exit`] does, for who reads the pipe by other means.
pub fn decode_exit(bytes: [u8; EXIT_BYTES]) -> Option<ExitStatus> {
    let [k0, k1, k2, k3, v0, v1, v2, v3] = bytes;
    let value = i32::from_le_bytes([v0, v1, v2, v3]);
    match u32::from_le_bytes([k0, k1, k2, k3]) {
        0 => Some(ExitStatus::Code(value)),
        1 => Some(ExitStatus::Signal(value)),
        _ => None,
    }
}

pub(crate) fn encode_exit(status: ExitStatus) -> [u8; EXIT_BYTES] {
    let (kind, value) = match status {
        ExitStatus::Code(code) => (0_u32, code),
        ExitStatus::Signal(signal) => (1, signal),
    };
    let mut bytes = [0; EXIT_BYTES];
    bytes[..4].copy_from_slice(&kind.to_le_bytes());
    bytes[4..].copy_from_slice(&value.to_le_bytes());
    bytes
}

/// End a command whose client has gone: SIGKILL to it and to its process group, of which [`Exec::process`] is the leader.
/// What moved into a group of its own, as programs do that shall outlive a terminal, goes on. On kernels before 6.9 the
/// command alone is killed.
pub fn kill(process: impl AsFd) -> io::Result<()> {
    sys::kill_group(process.as_fd())
}

/// Give a terminal a new size; its program is told by SIGWINCH.
pub fn resize(master: impl AsFd, size: TtySize) -> io::Result<()> {
    let size = rustix::termios::Winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(rustix::termios::tcsetwinsize(master, size)?)
}

#[derive(Debug)]
struct Connection {
    socket: OwnedFd,
    decoder: Decoder,
    fds: Vec<OwnedFd>,
}

impl Connection {
    fn open(path: &Path) -> Result<Self, Error> {
        let connect = || {
            let socket = rustix::net::socket_with(
                AddressFamily::UNIX,
                SocketType::STREAM,
                SocketFlags::CLOEXEC,
                None,
            )?;
            // The send timeout is also what bounds a connect to a full backlog.
            set_socket_timeout(&socket, Timeout::Send, Some(CONNECT_TIMEOUT))?;
            rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
            Ok::<_, rustix::io::Errno>(socket)
        };
        match connect() {
            Ok(socket) => Ok(Self {
                socket,
                decoder: Decoder::default(),
                fds: Vec::new(),
            }),
            Err(errno) => Err(Error::Connect {
                path: path.to_owned(),
                source: errno.into(),
            }),
        }
    }

    fn send(&mut self, request: &Request, deadline: Instant, timeout: Duration) -> Result<(), Error> {
        let bytes = frame::encode(request)?;
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            self.limit(Timeout::Send, deadline, timeout)?;
            match frame::send(self.socket.as_fd(), rest, &[]) {
                Ok(sent) => rest = &rest[sent..],
                Err(error) => interpret(error, timeout)?,
            }
        }
        Ok(())
    }

    fn reply(&mut self, deadline: Instant, timeout: Duration) -> Result<Reply, Error> {
        self.receive(deadline, timeout)
    }

    fn receive<T: serde::de::DeserializeOwned>(
        &mut self,
        deadline: Instant,
        timeout: Duration,
    ) -> Result<T, Error> {
        loop {
            if let Some(message) = self.decoder.decode()? {
                return Ok(message);
            }
            self.limit(Timeout::Recv, deadline, timeout)?;
            match frame::receive(&self.socket, &mut self.decoder, &mut self.fds) {
                Ok(0) => return Err(Error::Closed),
                Ok(_) => {}
                Err(error) => interpret(error, timeout)?,
            }
        }
    }

    /// Let the next system call wait no longer than the deadline.
    fn limit(&self, which: Timeout, deadline: Instant, timeout: Duration) -> Result<(), Error> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() && !timeout.is_zero() {
            return Err(Error::TimedOut(timeout));
        }
        // Zero would mean "for ever" to the kernel.
        let left = left.max(Duration::from_micros(1));
        set_socket_timeout(&self.socket, which, Some(left)).map_err(|errno| Error::Talk(errno.into()))
    }
}

/// An error of one system call: nothing (try again), or the end of the call.
fn interpret(error: io::Error, timeout: Duration) -> Result<(), Error> {
    match error.kind() {
        io::ErrorKind::Interrupted => Ok(()),
        io::ErrorKind::WouldBlock => Err(Error::TimedOut(timeout)),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Err(Error::Closed),
        _ => Err(Error::Talk(error)),
    }
}
