//! What the supervisor is asked and what it answers: the contract of this crate.
//!
//! Owns the messages of the socket `<state>/supervisor.sock` and the description of an instance.
//! Used by the supervisor, by [`crate::client`], and by whoever builds a [`LaunchSpec`].
//!
//! The one design choice to know: one connection carries one request at a time, each answered by
//! one [`Reply`]; a connection that sent [`Request::Watch`] carries [`Event`]s from then on.
//! Messages are JSON behind a four byte length (see `frame`), so a stuck supervisor can be talked
//! to by hand.

pub mod frame;
mod ids;
mod spec;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use ids::IdRange;
pub(crate) use ids::outside;
pub use spec::{
    BindMount, Capability, ConfigFile, DISK_BYTES_MIN, DeviceNode, InstanceId, InvalidSpec, LaunchSpec,
    Limits, Link, LogLimits, MemoryFrom, Network, VolumeMount,
};

/// Raised when a message changes so that an older peer would misread it.
pub const PROTOCOL_VERSION: u32 = 1;

/// One order or question to the supervisor.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// Are you there, and do we speak the same version?
    Ping { version: u32 },
    /// Start an instance. Answered once its program was exec'd, or could not be.
    Launch { spec: Box<LaunchSpec> },
    /// The same in gVisor's kernel. A request of its own, so that a supervisor from before there was such a class refuses
    /// it, where it would overlook a member of the spec and start the instance with less between it and the machine.
    LaunchGvisor { spec: Box<LaunchSpec> },
    /// Send the spec's stop signal now, and kill what is left when the grace has passed. Answered at
    /// once; the end arrives as [`Event::Exited`]. A frozen instance is thawed first.
    Stop { id: InstanceId, grace_ms: u64 },
    /// Kill every process of the instance at once, frozen or not.
    Kill { id: InstanceId },
    /// Send one signal to the instance's first process.
    Signal { id: InstanceId, signal: i32 },
    /// Take the CPU away from every process of the instance.
    Freeze { id: InstanceId },
    /// Give it back. A checkpointed instance is restored first.
    Thaw { id: InstanceId },
    /// Write a frozen instance's processes and memory to disk and let them go. Answered when they are gone, or with
    /// [`Refusal::CannotCheckpoint`]; a thaw that comes meanwhile wins.
    Checkpoint {
        id: InstanceId,
        checkpoint: CheckpointSpec,
    },
    /// Write a running or frozen instance down for others to begin as ([`LaunchSpec::memory_from`]): processes, memory
    /// and disk, of one moment in which it stands still. Answered when all of it is durable, or with
    /// [`Refusal::CannotCheckpoint`]; it goes on either way.
    Keep { id: InstanceId, keep: KeepSpec },
    /// Run one more program inside a running instance. The reply carries file descriptors.
    Exec { id: InstanceId, exec: ExecSpec },
    /// All instances that have a directory, ended ones too.
    List,
    /// What one instance uses.
    Stats { id: InstanceId },
    /// Forget an ended instance: its directory, logs, writable layer and cgroups. Removing an
    /// unknown instance succeeds.
    Remove { id: InstanceId },
    /// Turn this connection into a stream of [`Event`]s.
    Watch,
}

/// What the supervisor answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    Pong {
        version: u32,
        pid: i32,
    },
    /// The program was exec'd; `pid` is the instance's first process as this machine sees it.
    Launched {
        pid: i32,
    },
    Done,
    /// The program was exec'd. File descriptors ride on this message, in this order: a pidfd, the exit
    /// pipe, then the pty master, or stdin, stdout and stderr.
    ExecStarted {
        pid: i32,
        tty: bool,
    },
    Instances {
        instances: Vec<InstanceInfo>,
    },
    Stats {
        stats: Stats,
    },
    /// The stream has begun: every later change is sent.
    Watching,
    Refused {
        refusal: Refusal,
    },
}

/// What changed, to those who watch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    Started {
        id: InstanceId,
        generation: u64,
        pid: i32,
    },
    Exited {
        id: InstanceId,
        generation: u64,
        exit: ExitRecord,
    },
    /// The kernel killed a process of the instance because its memory limit was reached. The
    /// instance may well go on; `kills` counts since its start.
    Oom {
        id: InstanceId,
        kills: u64,
    },
    Frozen {
        id: InstanceId,
    },
    /// `pid`: its first process, which is another one after a restore.
    Thawed {
        id: InstanceId,
        #[serde(default)]
        pid: Option<i32>,
    },
    /// A frozen instance has no processes and no memory any more: they are on disk.
    Checkpointed {
        id: InstanceId,
    },
}

/// One instance as the supervisor knows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct InstanceInfo {
    pub id: InstanceId,
    pub generation: u64,
    pub state: InstanceState,
    pub labels: BTreeMap<String, String>,
    /// When the launch was recorded.
    pub created_at: Timestamp,
    /// When the program was exec'd; absent if it never was.
    pub started_at: Option<Timestamp>,
    /// Where [`crate::logs::read`] finds its logs. Gone after [`Request::Remove`].
    pub log_dir: PathBuf,
    /// The writable layer on disk (overlay upper); absent when it is a bounded tmpfs.
    pub upper_dir: Option<PathBuf>,
}

/// ```text
/// Starting -> Running <-> Frozen -> Checkpointed
///     \        \  ^        /         / |
///      +--------+-|-------+---------+--|--> Exited
///                 +--------------------+
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum InstanceState {
    Starting,
    Running {
        pid: i32,
    },
    Frozen {
        pid: i32,
    },
    /// Its processes and memory are on disk.
    Checkpointed,
    Exited {
        exit: ExitRecord,
    },
}

/// How an instance ended. Written to disk before anybody is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// Absent when the end could not be observed ([`ExitCause::Interrupted`], [`ExitCause::Lost`])
    /// or the program was never exec'd.
    pub status: Option<ExitStatus>,
    /// The memory limit killed a process of this instance and the instance did not end well.
    pub oom_killed: bool,
    pub at: Timestamp,
    pub cause: ExitCause,
}

/// The exit status of one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitStatus {
    Code(i32),
    Signal(i32),
}

/// Why an instance ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ExitCause {
    /// By itself.
    Exited,
    /// After [`Request::Stop`].
    Stopped,
    /// After [`Request::Kill`].
    Killed,
    /// It never ran: see the failure.
    LaunchFailed { failure: LaunchFailure },
    /// The supervisor died while it launched this instance, and nothing of it was left running.
    Interrupted,
    /// Its shim vanished (killed from outside, or the machine restarted), so the exit status was
    /// never learnt; or it could not be brought back from a checkpoint, which its log says.
    Lost,
}

/// Why a launch or an exec did not get as far as running the program.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum LaunchFailure {
    /// The program itself could not be executed: not found (`ENOENT`), not permitted (`EACCES`), of
    /// another format (`ENOEXEC`), ... The owner of the image can mend this.
    #[error("cannot execute {program:?}: {}", errno_text(*errno))]
    Exec {
        program: String,
        argv: Vec<String>,
        errno: i32,
    },
    /// Something the spec asked for could not be done: `what` names it, say a bind mount.
    #[error("cannot {what}: {}", errno_text(*errno))]
    Setup { what: String, errno: i32 },
    /// It was killed before its program was executed.
    #[error("the instance was killed while it was being set up")]
    Died,
}

fn errno_text(errno: i32) -> String {
    format!("{} (errno {errno})", rustix::io::Errno::from_raw_os_error(errno))
}

/// Why the supervisor did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(tag = "code", rename_all = "snake_case")]
pub enum Refusal {
    #[error("there is no instance {id}")]
    UnknownInstance { id: InstanceId },
    #[error("instance {id} exists already; remove it first")]
    AlreadyExists { id: InstanceId },
    #[error("generation {given} is older than the recorded {recorded}")]
    StaleGeneration { recorded: u64, given: u64 },
    #[error("instance {id} is not running")]
    NotRunning { id: InstanceId },
    #[error("instance {id} has not ended; stop or kill it first")]
    NotEnded { id: InstanceId },
    #[error("instance {id} is frozen; thaw it first")]
    Frozen { id: InstanceId },
    #[error("instance {id} is not frozen; freeze it first")]
    NotFrozen { id: InstanceId },
    /// The program does something that cannot be written to disk; the reason is for its owner. It stays frozen, and
    /// asking again will hardly help.
    #[error("{reason}")]
    CannotCheckpoint { reason: String },
    /// A checkpoint was overtaken by a thaw, or a freeze by a restore that is under way.
    #[error("instance {id} is being woken")]
    Waking { id: InstanceId },
    #[error("the launch spec is not valid: {reason}")]
    InvalidSpec { reason: String },
    #[error(transparent)]
    Launch { failure: LaunchFailure },
    #[error("{limit} {what} is the most this supervisor takes")]
    TooMany { what: String, limit: usize },
    #[error("this supervisor speaks protocol version {ours}, not {theirs}")]
    Version { ours: u32, theirs: u32 },
    #[error("the request cannot be read: {reason}")]
    Malformed { reason: String },
    /// The machine did not let the supervisor do it; `reason` is its whole error chain.
    #[error("the supervisor failed: {reason}")]
    Internal { reason: String },
}

/// How to write an instance to disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointSpec {
    /// CRIU (see [`crate::checkpoint::Criu::find`]).
    pub program: PathBuf,
    /// Addresses of the data plane as the instance sees them: a connection accepted from there may be cut off.
    pub peers: Vec<IpAddr>,
}

/// How to write an instance down for others to begin as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeepSpec {
    #[serde(flatten)]
    pub checkpoint: CheckpointSpec,
    /// Where its disk is put, as a file: last, so that what is there is whole. Absolute, in a directory that is there.
    pub disk: PathBuf,
    /// Where its processes and memory are put, as a directory. Absolute, as `disk`.
    pub memory: PathBuf,
}

/// What an instance uses, read from its cgroup at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// CPU time used since the start.
    pub cpu_usec: u64,
    /// Time its processes waited because the CPU limit was used up.
    pub cpu_throttled_usec: u64,
    /// All memory charged, file cache included.
    pub memory_bytes: u64,
    /// The same without the file cache that could be dropped at once.
    pub memory_working_set_bytes: u64,
    /// Memory that is in swap, and in none of the others. Unknown to earlier supervisors.
    #[serde(default)]
    pub swap_bytes: u64,
    pub pids: u64,
    /// Processes killed by the memory limit since the start.
    pub oom_kills: u64,
    /// On disk, while it is checkpointed and until all of it has been read back.
    #[serde(default)]
    pub checkpoint_bytes: u64,
}

impl Stats {
    /// What is to be written when its memory goes to a file, wherever that is now.
    pub fn held_bytes(&self) -> u64 {
        self.memory_bytes.saturating_add(self.swap_bytes)
    }

    /// About what a file of its memory takes: files that the kernel only keeps in memory for it are on its disk already.
    pub fn dumped_bytes(&self) -> u64 {
        self.memory_working_set_bytes.saturating_add(self.swap_bytes)
    }
}

/// One more program inside a running instance. It gets the instance's namespaces, cgroup,
/// capabilities and seccomp filter.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExecSpec {
    pub argv: Vec<String>,
    /// The whole environment; nothing is inherited.
    pub env: Vec<(String, String)>,
    /// Absent: the instance's own.
    #[serde(default)]
    pub cwd: Option<String>,
    /// Absent: the instance's own user and groups.
    #[serde(default)]
    pub user: Option<User>,
    /// Present: a terminal of this size. Absent: three pipes.
    #[serde(default)]
    pub tty: Option<TtySize>,
}

/// Who a process runs as, in numbers of the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    #[serde(default)]
    pub groups: Vec<u32>,
}

/// A terminal's size in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TtySize {
    pub rows: u16,
    pub columns: u16,
}
