//! What each request does.
//!
//! The one design choice to know: nothing here waits for an instance. Launch and exec are answered by
//! their reports, a checkpoint and a restore by the shim (see `errand`), a stop by its start; only a freeze is waited
//! for, and that is bounded.

use std::io;

use rustix::event::PollFlags;

use super::Supervisor;
use super::instance::{Depth, Instance, Phase, Running};
use super::launch::internal;
use crate::protocol::{InstanceId, PROTOCOL_VERSION, Refusal, Reply, Request};
use crate::state::{StopKind, StopOrder};
use crate::sys;

/// Who answers.
pub(super) enum Answer {
    Now(Reply),
    /// A report will.
    Later,
}

impl Supervisor {
    pub(super) fn on_client(&mut self, client: u64, flags: PollFlags) {
        self.clients.turn(client, flags);
        while let Some(request) = self.clients.request(client) {
            match request {
                Ok(request) => match self.handle(client, request) {
                    Ok(Answer::Now(reply)) => self.reply(client, &reply, Vec::new()),
                    Ok(Answer::Later) => {}
                    Err(refusal) => self.reply(client, &Reply::Refused { refusal }, Vec::new()),
                },
                Err(error) => {
                    // The stream is out of step: answer and hang up.
                    let Refusal::Internal { reason } = internal("read the request", &error) else {
                        return;
                    };
                    self.reply(
                        client,
                        &Reply::Refused {
                            refusal: Refusal::Malformed { reason },
                        },
                        Vec::new(),
                    );
                    self.clients.drop_client(client);
                }
            }
        }
    }

    fn handle(&mut self, client: u64, request: Request) -> Result<Answer, Refusal> {
        let reply = match request {
            Request::Ping { version } if version != PROTOCOL_VERSION => {
                return Err(Refusal::Version {
                    ours: PROTOCOL_VERSION,
                    theirs: version,
                });
            }
            Request::Ping { .. } => Reply::Pong {
                version: PROTOCOL_VERSION,
                pid: rustix::process::getpid().as_raw_nonzero().get(),
            },
            Request::Launch { spec } | Request::LaunchGvisor { spec } => {
                return self.launch(client, &spec).map(|()| Answer::Later);
            }
            Request::Exec { id, exec } => return self.exec(client, &id, &exec).map(|()| Answer::Later),
            Request::Stop { id, grace_ms } => done(self.stop(&id, StopKind::Stop, grace_ms))?,
            Request::Kill { id } => done(self.stop(&id, StopKind::Kill, 0))?,
            Request::Signal { id, signal } => {
                let running = running(&mut self.instances, &id)?;
                let process = running
                    .process
                    .as_ref()
                    .ok_or_else(|| Refusal::Frozen { id: id.clone() })?;
                done(sys::send_signal(process, signal).map_err(|error| internal("send the signal", &error)))?
            }
            Request::Freeze { id } => done(self.freeze(&id))?,
            Request::Thaw { id } => return self.thaw(&id, Some(client)),
            Request::Checkpoint { id, checkpoint } => return self.checkpoint(client, &id, checkpoint),
            Request::Keep { id, keep } => return self.keep(client, &id, keep),
            Request::List => Reply::Instances {
                instances: self
                    .instances
                    .iter()
                    .map(|(id, instance)| instance.info(id))
                    .collect(),
            },
            Request::Stats { id } => {
                running(&mut self.instances, &id)?;
                let mut stats = self
                    .driver
                    .stats(id.as_str())
                    .map_err(|error| internal("read the statistics", &error))?;
                stats.checkpoint_bytes = self
                    .state
                    .instance(&id)
                    .image()
                    .bytes()
                    .map_err(|error| internal("read the size of the checkpoint", &error))?;
                Reply::Stats { stats }
            }
            Request::Remove { id } => done(self.remove(&id))?,
            Request::Watch => Reply::Watching,
        };
        Ok(Answer::Now(reply))
    }

    /// Write the order down, then act: whoever comes after us finishes it.
    fn stop(&mut self, id: &InstanceId, kind: StopKind, grace_ms: u64) -> Result<(), Refusal> {
        let instance = self
            .instances
            .get_mut(id)
            .ok_or_else(|| Refusal::UnknownInstance { id: id.clone() })?;
        let mut kill_at = sys::boottime_ms().saturating_add(grace_ms);
        match &mut instance.phase {
            Phase::Ended(_) => return Err(Refusal::NotRunning { id: id.clone() }),
            Phase::Starting(_) => kill_at = 0,
            // A second stop may shorten the grace, never lengthen it.
            Phase::Running(running) => kill_at = kill_at.min(running.kill_at_boottime_ms.unwrap_or(u64::MAX)),
        }
        let order = StopOrder {
            kind,
            kill_at_boottime_ms: kill_at,
        };
        if let Err(error) = instance.dir.write_stop(&order) {
            // A full disk must not keep anything running. Only a supervisor that dies within the grace would have
            // read it, and whoever ordered the stop knows why the program ends.
            tracing::error!(instance = %id, %error, "cannot record the order to stop");
        }
        if let Phase::Running(Running {
            depth: Depth::Checkpointed,
            errand: None,
            ..
        }) = &instance.phase
        {
            self.end_checkpointed(id);
            return Ok(());
        }
        let Phase::Running(running) = &mut instance.phase else {
            // It has no program yet that could handle a signal.
            return self
                .driver
                .kill(id.as_str())
                .map_err(|error| internal("kill the instance", &error));
        };
        if kind == StopKind::Kill || grace_ms == 0 {
            return self
                .driver
                .kill(id.as_str())
                .map_err(|error| internal("kill the instance", &error));
        }
        running.kill_at_boottime_ms = Some(kill_at);
        if running.process.is_none() {
            // The signal is sent when it is there to hear it.
            return Ok(());
        }
        self.signal_stop(id);
        Ok(())
    }

    /// Send the stop signal, and let it be heard.
    pub(super) fn signal_stop(&mut self, id: &InstanceId) {
        let Some(Instance {
            stop_signal,
            phase: Phase::Running(running),
            ..
        }) = self.instances.get_mut(id)
        else {
            return;
        };
        if let Some(process) = &running.process
            && let Err(error) = sys::send_signal(process, *stop_signal)
            // Dead already: its end is about to be reported.
            && error.raw_os_error() != Some(libc::ESRCH)
        {
            tracing::error!(instance = %id, %error, "cannot send the stop signal; it will be killed after its grace");
        }
        if let Err(error) = self.thaw(id, None) {
            tracing::error!(instance = %id, %error, "cannot thaw for a stop");
        }
    }

    fn remove(&mut self, id: &InstanceId) -> Result<(), Refusal> {
        match self.instances.get(id) {
            None => return Ok(()),
            Some(Instance {
                phase: Phase::Ended(_),
                ..
            }) => {}
            Some(_) => return Err(Refusal::NotEnded { id: id.clone() }),
        }
        let dir = self.state.instance(id);
        self.remove_cgroup(id);
        self.state
            .discard(&dir)
            .map_err(|error: io::Error| internal("remove the directory", &error))?;
        self.instances.remove(id);
        self.sweep();
        Ok(())
    }
}

fn done(result: Result<(), Refusal>) -> Result<Reply, Refusal> {
    result.map(|()| Reply::Done)
}

/// The instance, if its program runs.
pub(super) fn running<'a>(
    instances: &'a mut std::collections::BTreeMap<InstanceId, Instance>,
    id: &InstanceId,
) -> Result<&'a mut Running, Refusal> {
    match instances.get_mut(id) {
        None => Err(Refusal::UnknownInstance { id: id.clone() }),
        Some(Instance {
            phase: Phase::Running(running),
            ..
        }) => Ok(running),
        Some(_) => Err(Refusal::NotRunning { id: id.clone() }),
    }
}
