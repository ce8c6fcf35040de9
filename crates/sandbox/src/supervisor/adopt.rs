//! A new supervisor over an old state directory.
//!
//! For every instance directory one of four things is true, and the disk, the shim's lock and the
//! kernel tell which: it ended; a shim looks after it and it runs; a shim is still launching it; or no
//! shim is left, and what remains of it must go.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;

use jiff::Timestamp;

use super::Supervisor;
use super::instance::{Instance, Phase, Starting};
use crate::protocol::{Event, ExitCause, ExitRecord, InstanceId};
use crate::state::{InstanceDir, ProcessIdentity};
use crate::sys;

/// What an instance directory and the kernel say together.
enum Found {
    Ended(ExitRecord),
    Running {
        init: ProcessIdentity,
        shim: OwnedFd,
        started_at: Timestamp,
    },
    /// A shim lives, but has not yet written that the program runs.
    Launching,
    /// No shim and no record.
    Abandoned {
        had_started: bool,
    },
}

impl Supervisor {
    pub(super) fn adopt_all(&mut self) -> io::Result<()> {
        let ids = self.state.instance_ids()?;
        for id in &ids {
            if let Err(error) = self.adopt(id) {
                tracing::error!(instance = %id, %error, "cannot adopt");
            }
        }
        // Cgroups whose directory is gone: a removal that was cut in half.
        let known: BTreeSet<&str> = ids.iter().map(InstanceId::as_str).collect();
        for name in self.driver.names()? {
            if let Ok(id) = InstanceId::new(name.as_str())
                && !known.contains(name.as_str())
            {
                let _ = self.driver.kill(&name);
                self.remove_cgroup(&id);
            }
        }
        self.sweep();
        Ok(())
    }

    fn adopt(&mut self, id: &InstanceId) -> io::Result<()> {
        let dir = self.state.instance(id);
        let Ok(Some(spec)) = dir.spec() else {
            // Cut off before the order was recorded, so nobody was promised anything.
            let _ = self.driver.kill(id.as_str());
            self.remove_cgroup(id);
            return self.state.discard(&dir);
        };
        let starting = Starting {
            report: None,
            shim: None,
            client: None,
        };
        let created_at = dir.created_at()?;
        let instance = Instance::new(dir, &spec, created_at, Phase::Starting(starting));
        self.instances.insert(id.clone(), instance);
        self.recheck(id);
        Ok(())
    }

    /// Look at an instance that another supervisor began to launch.
    pub(super) fn recheck(&mut self, id: &InstanceId) {
        let Some(instance) = self.instances.get_mut(id) else {
            return;
        };
        let found = match examine(&instance.dir, &self.boot_id) {
            Ok(found) => found,
            Err(error) => {
                tracing::error!(instance = %id, %error, "cannot examine; will look again");
                return;
            }
        };
        match found {
            Found::Running {
                init,
                shim,
                started_at,
            } => self.started(id, init, shim, started_at),
            Found::Launching => {}
            Found::Ended(exit) => {
                instance.started_at = instance.dir.run().ok().flatten().map(|run| run.started_at);
                let _ = self.driver.kill(id.as_str());
                self.found_ended(id, exit);
            }
            Found::Abandoned { had_started } => {
                let cause = if had_started {
                    ExitCause::Lost
                } else {
                    ExitCause::Interrupted
                };
                let exit = self.end_without_record(id, cause);
                self.found_ended(id, exit);
            }
        }
    }

    /// It ended while nobody watched, or before we looked again.
    fn found_ended(&mut self, id: &InstanceId, exit: ExitRecord) {
        self.remove_cgroup(id);
        let Some(instance) = self.instances.get_mut(id) else {
            return;
        };
        instance.phase = Phase::Ended(exit.clone());
        let generation = instance.generation;
        let id = id.clone();
        self.broadcast(&Event::Exited { id, generation, exit });
    }
}

fn examine(dir: &InstanceDir, boot_id: &str) -> io::Result<Found> {
    // The lock before the record: a shim writes the record first and leaves afterwards, so without a
    // lock holder the record is either there or will never be.
    let abandoned = dir.try_lock_shim()?.is_some();
    if let Some(exit) = dir.exit()? {
        return Ok(Found::Ended(exit));
    }
    let run = dir.run()?;
    if abandoned {
        return Ok(Found::Abandoned {
            had_started: run.is_some(),
        });
    }
    // Not yet written.
    let Some(run) = run.filter(|run| run.boot_id == boot_id) else {
        return Ok(Found::Launching);
    };
    match sys::pidfd_of(run.shim.pid, run.shim.start_ticks) {
        Some(shim) => Ok(Found::Running {
            init: run.init,
            shim,
            started_at: run.started_at,
        }),
        // It left between the look at the lock and now; the next look finds its record.
        None => Ok(Found::Launching),
    }
}
