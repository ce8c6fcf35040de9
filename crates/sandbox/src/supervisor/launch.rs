//! Launching: record, make the cgroup, fork the shim; and learning what became of it.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::Supervisor;
use super::instance::{Depth, Instance, Phase, Running, Starting};
use crate::protocol::{Event, ExitCause, ExitRecord, InstanceId, LaunchFailure, LaunchSpec, Refusal, Reply};
use crate::shim::{self, Report};
use crate::state::ProcessIdentity;
use crate::sys;

/// One supervisor keeps two descriptors for each; this stays within the usual limit of 20 000.
const INSTANCES_MAX: usize = 4096;
/// A shim's report: a pid, a start time, a moment.
const REPORT_BYTES_MAX: usize = 4096;
/// Dying takes a killed process milliseconds; one that hangs in the kernel is given up on.
const DEATH_TIMEOUT: Duration = Duration::from_secs(2);
const DEATH_LOOK: Duration = Duration::from_millis(1);
/// The kernel tells of a full cgroup just before it counts the kill.
const OOM_LOOK_AGAIN: Duration = Duration::from_millis(20);

impl Supervisor {
    /// Answers the client only when it fails at once; else the report does.
    pub(super) fn launch(&mut self, client: u64, spec: &LaunchSpec) -> Result<(), Refusal> {
        spec.validate().map_err(|error| Refusal::InvalidSpec {
            reason: error.to_string(),
        })?;
        if let Some(existing) = self.instances.get(&spec.id) {
            if spec.generation < existing.generation {
                return Err(Refusal::StaleGeneration {
                    recorded: existing.generation,
                    given: spec.generation,
                });
            }
            return Err(Refusal::AlreadyExists { id: spec.id.clone() });
        }
        if self.instances.len() >= INSTANCES_MAX {
            return Err(Refusal::TooMany {
                what: "instances".to_owned(),
                limit: INSTANCES_MAX,
            });
        }
        match self.start_shim(client, spec) {
            Ok(instance) => {
                self.instances.insert(spec.id.clone(), instance);
                if self.state.wants_spares() || self.stock.is_low() {
                    self.sweep();
                }
                Ok(())
            }
            Err(error) => {
                // Leave nothing: nobody would know of it.
                let dir = self.state.instance(&spec.id);
                self.remove_cgroup(&spec.id);
                if self.state.discard(&dir).is_ok() {
                    self.sweep();
                }
                Err(internal("start the instance", &error))
            }
        }
    }

    fn start_shim(&mut self, client: u64, spec: &LaunchSpec) -> io::Result<Instance> {
        let dir = self.state.instance(&spec.id);
        self.state.create_instance(&dir)?;
        dir.write_spec(spec)?;
        let created_at = Timestamp::now();
        self.driver.create(spec.id.as_str(), &spec.limits)?;
        let lock = dir
            .try_lock_shim()?
            .ok_or_else(|| io::Error::other("another shim holds the lock"))?;
        let (report, shim_report) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        let plain = spec.disk_bytes_max.filter(|_| spec.disk_from.is_none());
        let disk = plain.and_then(|bytes| self.stock.take(bytes));
        let order = shim::Order {
            dir: &dir,
            spec,
            driver: self.driver.as_ref(),
            filter: &self.filter,
            boot_id: &self.boot_id,
            report: shim_report,
            lock,
            disk,
        };
        let pid = sys::fork(move || shim::run(order))?;
        // It is not reaped before this loop's next turn, so the pid is still its own.
        let shim = Pid::from_raw(pid)
            .map(|pid| pidfd_open(pid, PidfdFlags::empty()))
            .transpose()?;
        let starting = Starting {
            report: Some(report),
            shim,
            client: Some(client),
            not_before: None,
        };
        Ok(Instance::new(dir, spec, created_at, Phase::Starting(starting)))
    }

    /// The shim said something, or closed its end without a word.
    pub(super) fn on_report(&mut self, id: &InstanceId) {
        let Some(instance) = self.instances.get_mut(id) else {
            return;
        };
        let Phase::Starting(starting) = &mut instance.phase else {
            return;
        };
        let Some(report) = starting.report.take() else {
            return;
        };
        let mut bytes = [0; REPORT_BYTES_MAX];
        let said = match rustix::net::recv(&report, &mut bytes, RecvFlags::empty()) {
            Ok((_, length)) => serde_json::from_slice(bytes.get(..length).unwrap_or_default()).ok(),
            Err(_) => None,
        };
        match (said, starting.shim.take()) {
            (Some(Report::Started { init, started_at }), Some(shim)) => {
                self.started(id, init, shim, started_at)
            }
            (Some(Report::Ended), _) => self.on_shim_end(id),
            (_, shim) => {
                // Wait for its end, which is near; its exit record may be there then.
                starting.shim = shim;
            }
        }
    }

    /// The program runs: watch it.
    pub(super) fn started(
        &mut self,
        id: &InstanceId,
        init: ProcessIdentity,
        shim: OwnedFd,
        started_at: Timestamp,
    ) {
        let Some(instance) = self.instances.get_mut(id) else {
            return;
        };
        let Phase::Starting(starting) = &mut instance.phase else {
            return;
        };
        let client = starting.client.take();
        let Some(process) = sys::pidfd_of(init.pid, init.start_ticks) else {
            // It has ended already and the shim is about to say so.
            starting.shim = Some(shim);
            instance.started_at = Some(started_at);
            self.told_started(id, init, client);
            return;
        };
        let frozen = self.driver.is_frozen(id.as_str()).unwrap_or(false);
        let depth = if frozen { Depth::Frozen } else { Depth::Awake };
        self.runs(id, init, Some(process), shim, started_at, depth);
        self.told_started(id, init, client);
        // What the disk says may be about to change.
        self.ask_after_errand(id);
    }

    /// From now on it is watched.
    pub(super) fn runs(
        &mut self,
        id: &InstanceId,
        init: ProcessIdentity,
        process: Option<OwnedFd>,
        shim: OwnedFd,
        started_at: Timestamp,
        depth: Depth,
    ) {
        let Some(instance) = self.instances.get_mut(id) else {
            return;
        };
        let oom = match self.driver.watch_oom(id.as_str()) {
            Ok(watch) => Some(watch),
            Err(error) => {
                tracing::warn!(instance = %id, %error, "cannot watch for memory limit hits");
                None
            }
        };
        let kill_at_boottime_ms = match instance.dir.stop() {
            Ok(Some(stop)) => Some(stop.kill_at_boottime_ms),
            _ => None,
        };
        instance.started_at = Some(started_at);
        instance.phase = Phase::Running(Running {
            init,
            process,
            shim,
            errand: None,
            oom,
            oom_kills: 0,
            look_for_oom_at: None,
            depth,
            kill_at_boottime_ms,
        });
    }

    fn told_started(&mut self, id: &InstanceId, init: ProcessIdentity, client: Option<u64>) {
        if let Some(client) = client {
            self.reply(client, &Reply::Launched { pid: init.pid }, Vec::new());
        }
        if let Some(instance) = self.instances.get(id) {
            let generation = instance.generation;
            self.broadcast(&Event::Started {
                id: id.clone(),
                generation,
                pid: init.pid,
            });
        }
    }

    /// The shim is gone, or has written its last word.
    pub(super) fn on_shim_end(&mut self, id: &InstanceId) {
        let Some(instance) = self.instances.get(id) else {
            return;
        };
        let exit = match instance.dir.exit() {
            Ok(Some(exit)) => exit,
            Ok(None) => self.lost(id),
            Err(error) => {
                tracing::error!(instance = %id, %error, "cannot read the exit record");
                self.lost(id)
            }
        };
        self.ended(id, exit);
    }

    /// No shim and no record: make sure that it is over, and say so.
    fn lost(&self, id: &InstanceId) -> ExitRecord {
        let started = self
            .instances
            .get(id)
            .is_some_and(|instance| instance.started_at.is_some());
        let cause = if started {
            ExitCause::Lost
        } else {
            ExitCause::LaunchFailed {
                failure: LaunchFailure::Died,
            }
        };
        self.end_without_record(id, cause)
    }

    /// Kill what may be left, wait for its death, and write the record that nobody else will write.
    pub(super) fn end_without_record(&self, id: &InstanceId, cause: ExitCause) -> ExitRecord {
        let name = id.as_str();
        if let Err(error) = self.driver.kill(name) {
            tracing::error!(instance = %id, %error, "cannot kill what is left");
        }
        let deadline = Instant::now() + DEATH_TIMEOUT;
        while !self.driver.is_empty(name).unwrap_or(true) {
            if Instant::now() > deadline {
                tracing::error!(instance = %id, "killed processes do not die");
                break;
            }
            if sys::poll(&mut [], Some(DEATH_LOOK)).is_err() {
                break;
            }
        }
        let oom_killed = self.driver.oom_kills(name).unwrap_or(0) > 0;
        let exit = ExitRecord {
            status: None,
            oom_killed,
            at: Timestamp::now(),
            cause,
        };
        if let Err(error) = self.state.instance(id).write_exit(&exit) {
            tracing::error!(instance = %id, %error, "cannot write the exit record");
        }
        exit
    }

    /// It is over, and on record.
    fn ended(&mut self, id: &InstanceId, exit: ExitRecord) {
        let Some(instance) = self.instances.get_mut(id) else {
            return;
        };
        let generation = instance.generation;
        let (client, errand) = match &mut instance.phase {
            Phase::Starting(starting) => (starting.client.take(), None),
            Phase::Running(running) => (None, running.errand.take()),
            Phase::Ended(_) => return,
        };
        instance.phase = Phase::Ended(exit.clone());
        self.remove_cgroup(id);
        if let Some(client) = client {
            let failure = match &exit.cause {
                ExitCause::LaunchFailed { failure } => failure.clone(),
                _ => LaunchFailure::Died,
            };
            self.reply(
                client,
                &Reply::Refused {
                    refusal: Refusal::Launch { failure },
                },
                Vec::new(),
            );
        }
        if let Some(errand) = errand {
            self.refuse_errand(errand, &Refusal::NotRunning { id: id.clone() });
        }
        tracing::info!(instance = %id, cause = ?exit.cause, status = ?exit.status, oom_killed = exit.oom_killed, "instance ended");
        self.broadcast(&Event::Exited {
            id: id.clone(),
            generation,
            exit,
        });
    }

    /// Remove an ended instance's cgroup, now or soon.
    pub(super) fn remove_cgroup(&mut self, id: &InstanceId) {
        if self.driver.remove(id.as_str()).is_err() {
            // Usually a process that is not quite gone. Kill again, in case one was forked meanwhile.
            let _ = self.driver.kill(id.as_str());
            self.busy_cgroups.push(id.clone());
        }
    }

    pub(super) fn on_oom(&mut self, id: &InstanceId) {
        if let Some(Instance {
            phase: Phase::Running(running),
            ..
        }) = self.instances.get_mut(id)
        {
            if let Some(watch) = &running.oom {
                watch.acknowledge();
            }
            running.look_for_oom_at = Some(Instant::now() + OOM_LOOK_AGAIN);
        }
        self.look_for_oom(id);
    }

    pub(super) fn look_for_oom(&mut self, id: &InstanceId) {
        let Some(Instance {
            phase: Phase::Running(running),
            ..
        }) = self.instances.get_mut(id)
        else {
            return;
        };
        let Ok(kills) = self.driver.oom_kills(id.as_str()) else {
            return;
        };
        if kills > running.oom_kills {
            running.oom_kills = kills;
            self.broadcast(&Event::Oom {
                id: id.clone(),
                kills,
            });
        }
    }
}

/// What the machine refused, with every cause.
pub(super) fn internal(what: &str, error: &dyn std::error::Error) -> Refusal {
    let mut reason = format!("cannot {what}: {error}");
    let mut source = error.source();
    while let Some(cause) = source {
        reason.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    Refusal::Internal { reason }
}
