//! Sleep: freezing and thawing, and what shims are sent to do for deeper sleep.
//!
//! A frozen instance is thawed by the supervisor itself, in a millisecond. A checkpoint and a restore take longer and need
//! the instance's parent, so its shim is given an **errand** and the loop goes on; the answer comes by
//! `Ready::Errand`.
//!
//! The one design choice to know: a wake always wins. One that comes during a checkpoint calls it off, and where it is
//! too late for that, the answer is followed by a restore. Nothing is frozen while it is being woken.

use std::os::fd::OwnedFd;

use jiff::Timestamp;
use rustix::net::RecvFlags;

use super::Supervisor;
use super::instance::{Depth, Errand, Instance, Phase, Running};
use super::launch::internal;
use super::requests::{Answer, running};
use crate::protocol::{CheckpointSpec, Event, InstanceId, KeepSpec, Refusal, Reply};
use crate::shim::control::{self, ShimAnswer, ShimOrder};
use crate::state::ProcessIdentity;
use crate::sys;

impl Supervisor {
    pub(super) fn freeze(&mut self, id: &InstanceId) -> Result<(), Refusal> {
        let running = running(&mut self.instances, id)?;
        if running
            .errand
            .as_ref()
            .is_some_and(|errand| errand.wake || errand.keep)
        {
            return Err(Refusal::Waking { id: id.clone() });
        }
        if running.depth != Depth::Awake {
            return Ok(());
        }
        self.driver
            .freeze(id.as_str())
            .map_err(|error| internal("freeze the instance", &error))?;
        running.depth = Depth::Frozen;
        self.broadcast(&Event::Frozen { id: id.clone() });
        Ok(())
    }

    /// `client` is answered when it runs, if that is not at once.
    pub(super) fn thaw(&mut self, id: &InstanceId, client: Option<u64>) -> Result<Answer, Refusal> {
        let on_errand = self.instances.get(id).is_some_and(|it| it.dir.on_errand());
        let running = running(&mut self.instances, id)?;
        if let Some(errand) = &mut running.errand {
            if errand.checkpoint && !errand.wake {
                // Too late is found out by the answer.
                let _ = control::send(&errand.connection, &ShimOrder::CallOff);
            }
            errand.wake = true;
            errand.wakers.extend(client);
            return Ok(Answer::Later);
        }
        match running.depth {
            Depth::Awake => return Ok(Answer::Now(Reply::Done)),
            Depth::Frozen if !on_errand => {}
            Depth::Frozen | Depth::Checkpointed => {
                self.send(id, &ShimOrder::Wake, None, client.into_iter().collect())?;
                return Ok(Answer::Later);
            }
        }
        self.driver
            .thaw(id.as_str())
            .map_err(|error| internal("thaw the instance", &error))?;
        running.depth = Depth::Awake;
        let pid = Some(running.init.pid);
        self.broadcast(&Event::Thawed { id: id.clone(), pid });
        Ok(Answer::Now(Reply::Done))
    }

    pub(super) fn checkpoint(
        &mut self,
        client: u64,
        id: &InstanceId,
        spec: CheckpointSpec,
    ) -> Result<Answer, Refusal> {
        let running = running(&mut self.instances, id)?;
        match (running.depth, &running.errand) {
            (Depth::Checkpointed, None) => return Ok(Answer::Now(Reply::Done)),
            (Depth::Awake, _) => return Err(Refusal::NotFrozen { id: id.clone() }),
            (_, Some(_)) => return Err(Refusal::Waking { id: id.clone() }),
            (Depth::Frozen, None) => {}
        }
        self.send(id, &ShimOrder::Checkpoint(spec), Some(client), Vec::new())?;
        Ok(Answer::Later)
    }

    /// Its shim freezes it, writes it down, and has it as it was again.
    pub(super) fn keep(&mut self, client: u64, id: &InstanceId, spec: KeepSpec) -> Result<Answer, Refusal> {
        let running = running(&mut self.instances, id)?;
        if running.errand.is_some() {
            return Err(Refusal::Waking { id: id.clone() });
        }
        self.send(id, &ShimOrder::Keep(spec), Some(client), Vec::new())?;
        Ok(Answer::Later)
    }

    /// A checkpointed instance is not wanted any more. It is not restored for its end.
    pub(super) fn end_checkpointed(&mut self, id: &InstanceId) {
        if let Err(error) = self.send(id, &ShimOrder::End, None, Vec::new()) {
            tracing::error!(instance = %id, %error, "cannot tell a shim that its instance is over; ending the shim");
            if let Ok(running) = running(&mut self.instances, id) {
                let _ = sys::send_signal(&running.shim, libc::SIGKILL);
            }
        }
    }

    /// A shim that an earlier supervisor sent is still at it: ask what came of it.
    pub(super) fn ask_after_errand(&mut self, id: &InstanceId) {
        let Some(instance) = self.instances.get(id) else {
            return;
        };
        if instance.dir.on_errand()
            && let Err(error) = self.send(id, &ShimOrder::Tell, None, Vec::new())
        {
            tracing::warn!(instance = %id, %error, "cannot ask a shim what it is doing");
        }
    }

    /// An earlier supervisor's instance whose processes are on disk.
    pub(super) fn found_checkpointed(
        &mut self,
        id: &InstanceId,
        init: ProcessIdentity,
        shim: OwnedFd,
        started_at: Timestamp,
    ) {
        self.runs(id, init, None, shim, started_at, Depth::Checkpointed);
        self.ask_after_errand(id);
    }

    fn send(
        &mut self,
        id: &InstanceId,
        order: &ShimOrder,
        client: Option<u64>,
        wakers: Vec<u64>,
    ) -> Result<(), Refusal> {
        let Some(Instance {
            dir,
            phase: Phase::Running(running),
            ..
        }) = self.instances.get_mut(id)
        else {
            return Err(Refusal::NotRunning { id: id.clone() });
        };
        let connection =
            control::order(dir, order).map_err(|error| internal("reach the instance's keeper", &error))?;
        running.errand = Some(Errand {
            connection,
            client,
            wakers,
            wake: matches!(order, ShimOrder::Wake),
            checkpoint: matches!(order, ShimOrder::Checkpoint(_)),
            keep: matches!(order, ShimOrder::Keep(_)),
        });
        Ok(())
    }

    /// A shim answered, or closed its end without a word.
    pub(super) fn on_errand(&mut self, id: &InstanceId) {
        let Ok(running) = running(&mut self.instances, id) else {
            return;
        };
        let Some(mut errand) = running.errand.take() else {
            return;
        };
        let answer = match control::receive(&errand.connection, RecvFlags::DONTWAIT) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                running.errand = Some(errand);
                return;
            }
            answer => answer,
        };
        if let Ok(ShimAnswer::Kept { reason, frozen }) = answer {
            return self.kept(id, errand, reason, frozen);
        }
        let before = running.depth;
        let client = errand.client.take();
        let told = match answer {
            Ok(ShimAnswer::Awake { init }) => {
                awake(running, init);
                Err(Refusal::Waking { id: id.clone() })
            }
            Ok(ShimAnswer::Frozen) => {
                running.depth = Depth::Frozen;
                Err(Refusal::Waking { id: id.clone() })
            }
            Ok(ShimAnswer::Refused { reason }) => {
                running.depth = Depth::Frozen;
                Err(Refusal::CannotCheckpoint { reason })
            }
            Ok(ShimAnswer::Checkpointed) => {
                running.depth = Depth::Checkpointed;
                running.process = None;
                Ok(())
            }
            // Its end comes by the shim's own.
            Ok(ShimAnswer::Ending | ShimAnswer::Kept { .. }) | Err(_) => {
                errand.client = client;
                self.refuse_errand(errand, &Refusal::NotRunning { id: id.clone() });
                return;
            }
        };
        let (after, init, stopping) = (running.depth, running.init, running.kill_at_boottime_ms.is_some());
        if before != after {
            let id = id.clone();
            self.broadcast(&match after {
                Depth::Awake => Event::Thawed {
                    id,
                    pid: Some(init.pid),
                },
                Depth::Frozen => Event::Frozen { id },
                Depth::Checkpointed => Event::Checkpointed { id },
            });
        }
        if let Some(client) = client {
            let reply = match told {
                Ok(()) => Reply::Done,
                Err(refusal) => Reply::Refused { refusal },
            };
            self.reply(client, &reply, Vec::new());
        }
        if after == Depth::Awake {
            tracing::debug!(instance = %id, pid = init.pid, "runs again");
            for waker in errand.wakers {
                self.reply(waker, &Reply::Done, Vec::new());
            }
            if stopping {
                self.signal_stop(id);
            }
        } else if stopping && after == Depth::Checkpointed {
            self.end_checkpointed(id);
        } else if errand.wake {
            self.wake_after_all(id, errand.wakers);
        }
    }

    /// It was written down for others, or could not be, and is as it was before.
    fn kept(&mut self, id: &InstanceId, errand: Errand, reason: Option<String>, frozen: bool) {
        if let Some(client) = errand.client {
            let reply = match reason {
                None => Reply::Done,
                Some(reason) => Reply::Refused {
                    refusal: Refusal::CannotCheckpoint { reason },
                },
            };
            self.reply(client, &reply, Vec::new());
        }
        if !errand.wake {
            return;
        }
        if frozen {
            return self.wake_after_all(id, errand.wakers);
        }
        for waker in errand.wakers {
            self.reply(waker, &Reply::Done, Vec::new());
        }
    }

    /// A wake overtook what has just come to its end.
    fn wake_after_all(&mut self, id: &InstanceId, wakers: Vec<u64>) {
        let mut wakers = wakers.into_iter();
        let first = wakers.next();
        let answer = match self.thaw(id, first) {
            Ok(Answer::Later) => {
                for waker in wakers {
                    // Joins the errand that the first has begun.
                    if let Ok(Answer::Now(reply)) = self.thaw(id, Some(waker)) {
                        self.reply(waker, &reply, Vec::new());
                    }
                }
                return;
            }
            Ok(Answer::Now(reply)) => reply,
            Err(refusal) => Reply::Refused { refusal },
        };
        for waker in first.into_iter().chain(wakers) {
            self.reply(waker, &answer, Vec::new());
        }
    }

    /// Nothing came of it.
    pub(super) fn refuse_errand(&mut self, errand: Errand, refusal: &Refusal) {
        for client in errand.client.into_iter().chain(errand.wakers) {
            let refusal = refusal.clone();
            self.reply(client, &Reply::Refused { refusal }, Vec::new());
        }
    }
}

fn awake(running: &mut Running, init: ProcessIdentity) {
    running.depth = Depth::Awake;
    running.init = init;
    running.process = sys::pidfd_of(init.pid, init.start_ticks);
}
