//! A new supervisor over an old state directory.
//!
//! For every instance directory one of four things is true, and the disk, the shim's lock and the
//! kernel tell which: it ended; a shim looks after it and it runs; a shim is still launching it; or no
//! shim is left, and what remains of it must go.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::Supervisor;
use super::instance::{Instance, Phase, Starting};
use crate::protocol::{Event, ExitCause, ExitRecord, InstanceId};
use crate::state::{InstanceDir, ProcessIdentity};
use crate::sys;

/// An instance that cannot be examined is looked at again after this: long enough not to fill a log.
const RECHECK_AFTER_ERROR: Duration = Duration::from_secs(5);

/// What an instance directory and the kernel say together.
enum Found {
    Ended(ExitRecord),
    Running {
        init: ProcessIdentity,
        shim: OwnedFd,
        started_at: Timestamp,
        checkpointed: bool,
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
            // One left out would be taken for gone, and be replaced while it runs. Without a supervisor nothing is
            // concluded, and whoever keeps it tries again.
            self.adopt(id)
                .map_err(|error| io::Error::new(error.kind(), format!("instance {id}: {error}")))?;
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
        let spec = match dir.spec() {
            Ok(Some(spec)) => spec,
            Ok(None) => return self.discard_cut_off(id, &dir),
            // A file that a power cut tore, of a process that is gone with it.
            Err(error) if error.kind() == io::ErrorKind::InvalidData && dir.try_lock_shim()?.is_some() => {
                tracing::error!(instance = %id, %error, "its order cannot be read and nothing of it runs; removing it");
                return self.discard_cut_off(id, &dir);
            }
            // It may well run: out of descriptors, a disk that fails, an order of another version of ours.
            Err(error) => return Err(error),
        };
        let starting = Starting {
            report: None,
            shim: None,
            client: None,
            not_before: None,
        };
        let created_at = dir.created_at()?;
        let instance = Instance::new(dir, &spec, created_at, Phase::Starting(starting));
        self.instances.insert(id.clone(), instance);
        self.recheck(id);
        Ok(())
    }

    /// Cut off before the order was recorded, so nobody was promised anything.
    fn discard_cut_off(&mut self, id: &InstanceId, dir: &InstanceDir) -> io::Result<()> {
        let _ = self.driver.kill(id.as_str());
        self.remove_cgroup(id);
        self.state.discard(dir)
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
                if let Phase::Starting(starting) = &mut instance.phase {
                    starting.not_before = Some(Instant::now() + RECHECK_AFTER_ERROR);
                }
                return;
            }
        };
        match found {
            Found::Running {
                init,
                shim,
                started_at,
                checkpointed: false,
            } => self.started(id, init, shim, started_at),
            Found::Running {
                init,
                shim,
                started_at,
                checkpointed: true,
            } => self.found_checkpointed(id, init, shim, started_at),
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
    if abandoned {
        // A record that a power cut tore tells as much: it was begun when the program ran.
        return Ok(Found::Abandoned {
            had_started: !matches!(dir.run(), Ok(None)),
        });
    }
    let run = dir.run()?;
    // Not yet written.
    let Some(run) = run.filter(|run| run.boot_id == boot_id) else {
        return Ok(Found::Launching);
    };
    match sys::pidfd_of(run.shim.pid, run.shim.start_ticks) {
        Some(shim) => Ok(Found::Running {
            init: run.init,
            shim,
            started_at: run.started_at,
            checkpointed: run.checkpointed,
        }),
        // It left between the look at the lock and now; the next look finds its record.
        None => Ok(Found::Launching),
    }
}
