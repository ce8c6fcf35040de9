//! One instance as the supervisor holds it: what it must poll, and no more.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::time::Instant;

use jiff::Timestamp;

use crate::cgroup::OomWatch;
use crate::protocol::{ExitRecord, InstanceId, InstanceInfo, InstanceState, LaunchSpec};
use crate::state::{InstanceDir, ProcessIdentity};

#[derive(Debug)]
pub(super) struct Instance {
    pub(super) dir: InstanceDir,
    pub(super) generation: u64,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) stop_signal: i32,
    pub(super) upper_on_disk: bool,
    pub(super) created_at: Timestamp,
    pub(super) started_at: Option<Timestamp>,
    pub(super) phase: Phase,
}

/// ```text
/// Starting -> Running -> Ended
///     \                    /
///      +------------------+
/// ```
#[derive(Debug)]
pub(super) enum Phase {
    Starting(Starting),
    Running(Running),
    Ended(ExitRecord),
}

#[derive(Debug)]
pub(super) struct Starting {
    /// From the shim this supervisor forked. Absent: the shim is that of an earlier supervisor, and the
    /// disk is looked at until it says more.
    pub(super) report: Option<OwnedFd>,
    pub(super) shim: Option<OwnedFd>,
    /// Who waits for the launch.
    pub(super) client: Option<u64>,
    /// It could not be examined: not to be looked at again before this.
    pub(super) not_before: Option<Instant>,
}

#[derive(Debug)]
pub(super) struct Running {
    pub(super) init: ProcessIdentity,
    /// Absent while it is checkpointed.
    pub(super) process: Option<OwnedFd>,
    pub(super) shim: OwnedFd,
    /// What its shim is doing for it.
    pub(super) errand: Option<Errand>,
    pub(super) oom: Option<OomWatch>,
    pub(super) oom_kills: u64,
    /// The count may rise a moment after the notice.
    pub(super) look_for_oom_at: Option<Instant>,
    pub(super) depth: Depth,
    pub(super) kill_at_boottime_ms: Option<u64>,
}

/// How deep it sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Depth {
    Awake,
    Frozen,
    Checkpointed,
}

/// An order that a shim was given and has not answered yet.
#[derive(Debug)]
pub(super) struct Errand {
    pub(super) connection: OwnedFd,
    /// Who waits for the checkpoint.
    pub(super) client: Option<u64>,
    /// Who waits for it to run.
    pub(super) wakers: Vec<u64>,
    /// It is to run when this is done, whoever waits.
    pub(super) wake: bool,
    /// It is a checkpoint, which can be called off.
    pub(super) checkpoint: bool,
    /// It is written down for others: it is frozen for a while, and goes on as it was.
    pub(super) keep: bool,
}

impl Starting {
    /// Nothing that is polled will tell what becomes of it.
    pub(super) fn must_be_rechecked(&self) -> bool {
        self.report.is_none() && self.shim.is_none()
    }
}

impl Instance {
    pub(super) fn new(dir: InstanceDir, spec: &LaunchSpec, created_at: Timestamp, phase: Phase) -> Self {
        Self {
            dir,
            generation: spec.generation,
            labels: spec.labels.clone(),
            stop_signal: spec.stop_signal,
            upper_on_disk: spec.upper_bytes_max.is_none() && spec.disk_bytes_max.is_none(),
            created_at,
            started_at: None,
            phase,
        }
    }

    pub(super) fn info(&self, id: &InstanceId) -> InstanceInfo {
        let state = match &self.phase {
            Phase::Starting(_) => InstanceState::Starting,
            Phase::Running(running) => {
                let pid = running.init.pid;
                match running.depth {
                    Depth::Awake => InstanceState::Running { pid },
                    Depth::Frozen => InstanceState::Frozen { pid },
                    Depth::Checkpointed => InstanceState::Checkpointed,
                }
            }
            Phase::Ended(exit) => InstanceState::Exited { exit: exit.clone() },
        };
        InstanceInfo {
            id: id.clone(),
            generation: self.generation,
            state,
            labels: self.labels.clone(),
            created_at: self.created_at,
            started_at: self.started_at,
            log_dir: self.dir.logs(),
            upper_dir: self.upper_on_disk.then(|| self.dir.upper()),
        }
    }
}
