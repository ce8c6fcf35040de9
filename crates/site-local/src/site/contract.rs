//! The contract of a site, order by order.
//!
//! Each order checks the generation, writes down what was wanted, acts, and leaves the rest to the news.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::broadcast;
use tram_site::{
    Capabilities, Changed, Continuation, Error, ExecRequest, ExecSession, ImageSpec, InstanceSpec, LogPage,
    LogQuery, Observation, ObservedImage, ObservedInstance, Site, Usage, Verdict,
};
use tram_types::{DeploymentId, Generation, InstanceId, InstanceSnapshotId, status::InstanceSnapshotType};

use super::entries::{self, EARLY_LINES_MAX, Entry, Live};
use super::{LocalSite, Shared, start};
use crate::cdi::Devices;
use crate::record::Record;
use crate::{devices, exec, logs};

/// Between two tries to send a stop that is on record: a supervisor that is being restarted is back by then.
const STOP_RETRY: Duration = Duration::from_secs(1);

#[async_trait]
impl Site for LocalSite {
    fn capabilities(&self) -> Capabilities {
        // Every cgroup version has a freezer, and the supervisor does not start without cgroups.
        Capabilities {
            freeze: true,
            checkpoint: self.shared.config.checkpoint.is_some(),
            memory_wanted: self.shared.memory_short.load(Ordering::Relaxed),
        }
    }

    fn volumes(&self) -> Option<&dyn tram_site::Volumes> {
        Some(self)
    }

    fn model_memory_bytes(&self, image: &ImageSpec, context_length: u64) -> Option<u64> {
        self.shared.images.model_memory_bytes(image, context_length)
    }

    async fn ensure_image(&self, image: &ImageSpec) -> Result<ObservedImage, Error> {
        self.shared.images.ensure(image).await
    }

    async fn release_image(&self, deployment: DeploymentId) -> Result<(), Error> {
        let entries = self.shared.lock();
        let runs = |entry: &Entry| {
            entry.record.spec.image.deployment == deployment && !matches!(entry.live, Live::Over)
        };
        if entries.values().any(runs) {
            return Err(Error::Refused {
                message: format!("an instance of deployment {deployment} still runs: stop it first"),
            });
        }
        self.shared.images.release(deployment)
    }

    async fn start(&self, instance: &InstanceSpec, generation: Generation) -> Result<(), Error> {
        let id = instance.id;
        // Refused before anything is written when it can never be.
        entries::member(instance, self.shared.network.gateway())?;
        self.shared.volumes.mounts(instance)?;
        let known_devices = match &instance.devices {
            Some(_) => Some(self.shared.known_devices().await?),
            None => None,
        };
        {
            let mut entries = self.shared.lock();
            if let Some(entry) = entries.get_mut(&id) {
                entry.guard(generation)?;
                self.shared.save(&entry.record);
                return Ok(());
            }
            if let Some(seen) = self.shared.store.kept_generation(id)
                && generation <= seen
            {
                return Err(Error::OldGeneration {
                    instance: id,
                    given: generation.0,
                    seen: seen.0,
                });
            }
            let devices = match (&instance.devices, &known_devices) {
                (Some(want), Some(known)) => {
                    let held = entries.values().filter_map(|entry| entry.record.devices.as_ref());
                    Some(devices::choose(
                        want,
                        known,
                        held.flat_map(|given| &given.devices),
                    )?)
                }
                _ => None,
            };
            let slot = self
                .shared
                .network
                .lease()
                .map_err(|error| Error::unavailable("cannot give the instance an address", error))?;
            let record = Record {
                spec: instance.clone(),
                generation,
                slot: Some(slot.0),
                devices,
                became_healthy: false,
                stop_ordered: false,
                end: None,
            };
            if let Err(error) = self.shared.store.save(&record) {
                self.shared.network.unlease(slot);
                return Err(Error::unavailable("cannot write the order down", error));
            }
            entries.insert(id, Entry::new(record));
        }
        self.shared.announce(id);
        self.shared.tasks.spawn(start::run(Arc::clone(&self.shared), id));
        Ok(())
    }

    async fn stop(&self, instance: InstanceId, grace: Duration, generation: Generation) -> Result<(), Error> {
        let running = {
            let mut entries = self.shared.lock();
            let Some(entry) = entries.get_mut(&instance) else {
                return Ok(());
            };
            entry.guard(generation)?;
            if matches!(entry.live, Live::Over) {
                return Ok(());
            }
            entry.record.stop_ordered = true;
            entry.stop_grace = Some(grace);
            // A full disk must not keep anything running: if this is lost too, the order comes again.
            self.shared.save(&entry.record);
            self.shared.refresh_name(entry);
            let running = matches!(entry.live, Live::Up(_));
            if !running {
                entry.halt.cancel();
            }
            running
        };
        self.shared.announce(instance);
        if !running {
            return Ok(());
        }
        match self
            .shared
            .call(instance, move |client, id| client.stop(id, grace))
            .await
        {
            // It ended by itself meanwhile; the news will say so.
            Err(Error::NoSuchInstance(_)) => Ok(()),
            Err(error) => {
                self.shared.take_stop_back(instance);
                Err(error)
            }
            Ok(()) => Ok(()),
        }
    }

    async fn forget(&self, instance: InstanceId, generation: Generation) -> Result<(), Error> {
        let (generation, lines) = {
            let mut entries = self.shared.lock();
            let Some(entry) = entries.get_mut(&instance) else {
                return Ok(());
            };
            entry.guard(generation)?;
            if !matches!(entry.live, Live::Over) {
                return Err(Error::Refused {
                    message: format!("instance {instance} has not ended yet: stop it first"),
                });
            }
            (entry.record.generation, std::mem::take(&mut entry.early_lines))
        };
        self.shared.write_lines(instance, lines).await;
        self.shared.give_place_back(instance).await;
        let kept = {
            let (store, logs) = (self.shared.store.clone(), self.shared.log_directory(instance));
            tokio::task::spawn_blocking(move || {
                store.keep(instance, generation)?;
                store.keep_logs(instance, &logs)
            })
        };
        kept.await
            .map_err(|error| Error::unavailable("cannot keep the logs", error))?
            .map_err(|error| Error::unavailable("cannot keep the logs", error))?;
        match self.shared.call(instance, |client, id| client.remove(id)).await {
            Ok(()) | Err(Error::NoSuchInstance(_)) => {}
            Err(error) => return Err(error),
        }
        {
            // Together, or whoever saves the record meanwhile would bring it back.
            let mut entries = self.shared.lock();
            self.shared
                .store
                .remove(instance)
                .map_err(|error| Error::unavailable("cannot remove the record", error))?;
            entries.remove(&instance);
        }
        self.shared.announce(instance);
        Ok(())
    }

    async fn freeze(&self, instance: InstanceId, generation: Generation) -> Result<(), Error> {
        self.shared.guard_running(instance, generation)?;
        if self.shared.has_devices(instance) {
            return Err(Error::Refused {
                message:
                    "what the devices of the instance hold cannot be frozen with its program: use deep sleep"
                        .to_owned(),
            });
        }
        // Left alone before it stops to answer, or a probe would fail for it.
        self.shared.frozen(instance, true);
        let frozen = self.shared.call(instance, |client, id| client.freeze(id)).await;
        if frozen.is_err() {
            self.shared.frozen(instance, false);
        } else if self.shared.config.reclaim_frozen {
            self.shared.reclaim(instance);
        }
        frozen
    }

    async fn checkpoint(&self, instance: InstanceId, generation: Generation) -> Result<(), Error> {
        self.shared.guard_running(instance, generation)?;
        self.shared.begin_checkpoint(instance)
    }

    async fn thaw(&self, instance: InstanceId, generation: Generation) -> Result<(), Error> {
        self.shared.guard_running(instance, generation)?;
        self.shared.call(instance, |client, id| client.thaw(id)).await?;
        self.shared.frozen(instance, false);
        if self.shared.config.reclaim_frozen {
            self.shared.bring_back(instance);
        }
        Ok(())
    }

    async fn continue_as(
        &self,
        instance: InstanceId,
        continuation: &Continuation,
        generation: Generation,
    ) -> Result<(), Error> {
        self.shared.guard_running(instance, generation)?;
        self.shared.continue_as(instance, continuation).await
    }

    async fn take_snapshot(
        &self,
        instance: InstanceId,
        snapshot: InstanceSnapshotId,
        kind: InstanceSnapshotType,
    ) -> Result<u64, Error> {
        self.shared.take_snapshot(instance, snapshot, kind).await
    }

    async fn verify_snapshot(&self, snapshot: InstanceSnapshotId) -> Result<Verdict, Error> {
        self.shared.verify_snapshot(snapshot).await
    }

    async fn remove_snapshot(&self, snapshot: InstanceSnapshotId) -> Result<(), Error> {
        self.shared.remove_snapshot(snapshot).await
    }

    async fn observe(&self) -> Result<Observation, Error> {
        self.shared.current().await?;
        let entries = self.shared.lock();
        let instances = entries
            .iter()
            .map(|(id, entry)| (*id, entry.observed(&self.shared.network)));
        Ok(Observation {
            instances: instances.collect(),
        })
    }

    async fn observe_instance(&self, instance: InstanceId) -> Result<Option<ObservedInstance>, Error> {
        self.shared.current().await?;
        Ok(self
            .shared
            .lock()
            .get(&instance)
            .map(|entry| entry.observed(&self.shared.network)))
    }

    fn changed(&self) -> broadcast::Receiver<Changed> {
        self.shared.changed.subscribe()
    }

    async fn usage(&self, instance: InstanceId) -> Result<Usage, Error> {
        self.shared.running(instance)?;
        let stats = self.shared.call(instance, |client, id| client.stats(id)).await?;
        Ok(Usage {
            cpu_usec: stats.cpu_usec,
            memory_bytes: stats.memory_working_set_bytes,
            pids: stats.pids,
        })
    }

    async fn checkpoint_bytes(&self) -> Result<HashMap<InstanceId, u64>, Error> {
        self.shared.checkpoint_bytes().await
    }

    async fn logs(&self, instance: InstanceId, query: &LogQuery) -> Result<LogPage, Error> {
        let (directory, query) = (self.shared.log_directory(instance), query.clone());
        let page = tokio::task::spawn_blocking(move || logs::read(instance, &directory, &query)).await;
        page.map_err(|error| Error::unavailable("cannot read the logs", error))?
            .map_err(|error| Error::unavailable("cannot read the logs", error))
    }

    async fn log_platform(&self, instance: InstanceId, message: &str) -> Result<(), Error> {
        let lines: Vec<String> = message.lines().map(ToOwned::to_owned).collect();
        {
            // Before the launch there is no log: the lines wait for it.
            let mut entries = self.shared.lock();
            match entries.get_mut(&instance) {
                Some(entry) if matches!(entry.live, Live::Preparing) => {
                    entry.early_lines.extend(lines);
                    entry.early_lines.truncate(EARLY_LINES_MAX);
                    return Ok(());
                }
                Some(_) => {}
                None if self.shared.store.kept_generation(instance).is_some() => {}
                None => return Err(Error::NoSuchInstance(instance)),
            }
        }
        self.shared.try_write_lines(instance, lines).await
    }

    async fn remove_logs(&self, instance: InstanceId) -> Result<(), Error> {
        if self.shared.lock().contains_key(&instance) {
            return Err(Error::Refused {
                message: format!("instance {instance} is still here: forget it before its logs"),
            });
        }
        let store = self.shared.store.clone();
        tokio::task::spawn_blocking(move || store.remove_kept(instance))
            .await
            .map_err(|error| Error::unavailable("cannot remove the logs", error))?
            .map_err(|error| Error::unavailable("cannot remove the logs", error))
    }

    async fn exec(&self, instance: InstanceId, request: &ExecRequest) -> Result<ExecSession, Error> {
        let (spec, image, devices) = {
            let entries = self.shared.lock();
            let entry = entries.get(&instance).ok_or(Error::NoSuchInstance(instance))?;
            if !matches!(entry.live, Live::Up(_)) {
                return Err(Error::NoSuchInstance(instance));
            }
            (
                entry.record.spec.clone(),
                entry.image.clone(),
                entry.record.devices.clone(),
            )
        };
        let wanted = exec::spec(&spec, devices.as_ref(), image, request).await?;
        let started = self
            .shared
            .call(instance, move |client, id| client.exec(id, wanted.clone()))
            .await?;
        exec::session(started, self.shared.end.clone())
            .map_err(|error| Error::unavailable("cannot talk to the command", error))
    }
}

impl Shared {
    /// The devices that this machine has now.
    async fn known_devices(&self) -> Result<Devices, Error> {
        let folders = self.config.cdi_directories.clone();
        tokio::task::spawn_blocking(move || Devices::read(&folders))
            .await
            .map_err(|error| Error::unavailable("cannot read the specifications of devices", error))
    }

    /// Whether what is known is current.
    async fn current(&self) -> Result<(), Error> {
        if self.supervisor.connected().await {
            return Ok(());
        }
        Err(Error::Unavailable {
            message: "the supervisor of instances cannot be reached; it is being restarted".to_owned(),
            source: None,
        })
    }

    fn has_devices(&self, id: InstanceId) -> bool {
        self.lock()
            .get(&id)
            .is_some_and(|entry| entry.record.devices.is_some())
    }

    fn running(&self, id: InstanceId) -> Result<(), Error> {
        match self.lock().get(&id) {
            Some(entry) if matches!(entry.live, Live::Up(_)) => Ok(()),
            _ => Err(Error::NoSuchInstance(id)),
        }
    }

    fn guard_running(&self, id: InstanceId, generation: Generation) -> Result<(), Error> {
        let mut entries = self.lock();
        let entry = entries.get_mut(&id).ok_or(Error::NoSuchInstance(id))?;
        let known = entry.record.generation;
        entry.guard(generation)?;
        if entry.record.generation != known {
            // Only then: somebody may be waiting for the thaw, and a disk takes longer than a thaw.
            self.save(&entry.record);
        }
        match entry.live {
            Live::Up(_) => Ok(()),
            Live::Preparing => Err(Error::Refused {
                message: "the instance has not started yet: wait until it has".to_owned(),
            }),
            Live::Over => Err(Error::NoSuchInstance(id)),
        }
    }

    pub(super) fn log_directory(&self, id: InstanceId) -> PathBuf {
        logs::directory(&self.store, &self.config.supervisor_dir, id)
    }

    /// Adds lines of the platform to an instance's log.
    async fn try_write_lines(&self, id: InstanceId, lines: Vec<String>) -> Result<(), Error> {
        let (store, directory) = (self.store.clone(), self.config.supervisor_dir.clone());
        tokio::task::spawn_blocking(move || logs::append(&store, &directory, id, &lines))
            .await
            .map_err(|error| Error::unavailable("cannot write to the log", error))?
    }

    /// The same where nobody waits for the outcome.
    pub(super) async fn write_lines(&self, id: InstanceId, lines: Vec<String>) {
        if !lines.is_empty()
            && let Err(error) = self.try_write_lines(id, lines).await
        {
            tracing::warn!(instance = %id, error = crate::chain(&error), "cannot write to an instance's log");
        }
    }

    /// Gives the memory of a frozen instance back, in the background and one instance at a time: it costs the machine
    /// more than a freeze does. One that was thawed meanwhile is left alone; what cannot be had stays where it is.
    pub(super) fn reclaim(self: &Arc<Self>, id: InstanceId) {
        let (shared, end) = (Arc::clone(self), self.end.clone());
        let reclaiming = async move {
            // Closed only with the site, whose end cancels this task.
            let _permit = shared.reclaims.acquire().await;
            let is_frozen = |entry: &Entry| matches!(&entry.live, Live::Up(up) if *up.frozen.borrow());
            let Ok(name) = super::wire_id(id) else { return };
            if !shared.lock().get(&id).is_some_and(is_frozen) {
                return;
            }
            let directory = shared.config.supervisor_dir.clone();
            let work = move || tram_sandbox::reclaim::reclaim(&directory, &name);
            match tokio::task::spawn_blocking(work).await {
                Ok(Ok(done)) => {
                    tracing::debug!(instance = %id, ?done, "gave memory of a frozen instance back")
                }
                Ok(Err(error)) => {
                    tracing::warn!(instance = %id, %error, "the memory of a frozen instance stays in use");
                }
                Err(error) => tracing::error!(instance = %id, %error, "giving memory back ended badly"),
            }
        };
        tokio::spawn(end.run_until_cancelled_owned(reclaiming));
    }

    /// Has what a woken instance has in swap read back in, in the background, beside its own faults. Not for more than
    /// [`super::RETURNS_MAX`] at a time: the device is busy with those, and the others get their pages one by one.
    fn bring_back(self: &Arc<Self>, id: InstanceId) {
        let (shared, end) = (Arc::clone(self), self.end.clone());
        let Ok(permit) = Arc::clone(&self.returns).try_acquire_owned() else {
            return;
        };
        let Ok(name) = super::wire_id(id) else { return };
        let work = move || {
            let _permit = permit;
            let runs = |entry: &Entry| matches!(&entry.live, Live::Up(up) if !*up.frozen.borrow());
            let goes_on = || !end.is_cancelled() && shared.lock().get(&id).is_some_and(runs);
            match tram_sandbox::reclaim::bring_back(&shared.config.supervisor_dir, &name, goes_on) {
                Ok(bytes) => tracing::debug!(instance = %id, bytes, "read an instance's memory back in"),
                // It ended meanwhile, or this kernel cannot: then it has its pages one by one.
                Err(error) => tracing::debug!(instance = %id, %error, "an instance reads its memory itself"),
            }
        };
        drop(tokio::task::spawn_blocking(work));
    }

    /// A stop that did not reach the supervisor: whoever looks must not take it for one under way, or nobody would
    /// order it again.
    fn take_stop_back(&self, id: InstanceId) {
        {
            let mut entries = self.lock();
            let Some(entry) = entries.get_mut(&id) else { return };
            if matches!(entry.live, Live::Over) {
                return;
            }
            entry.record.stop_ordered = false;
            self.save(&entry.record);
            self.refresh_name(entry);
        }
        self.announce(id);
    }

    /// Sends a stop in the background, until it has arrived or nothing is left to stop.
    pub(super) fn send_stop(self: &Arc<Self>, id: InstanceId, grace: Duration) {
        let shared = Arc::downgrade(self);
        let sending = async move {
            loop {
                {
                    let Some(shared) = shared.upgrade() else { return };
                    let wanted =
                        |entry: &Entry| entry.record.stop_ordered && !matches!(entry.live, Live::Over);
                    if !shared.lock().get(&id).is_some_and(wanted) {
                        return;
                    }
                    match shared
                        .call(id, move |client, name| client.stop(name, grace))
                        .await
                    {
                        Ok(()) | Err(Error::NoSuchInstance(_)) => return,
                        Err(error) => {
                            tracing::warn!(
                                instance = %id,
                                error = crate::chain(&error),
                                "cannot stop an instance yet; trying again"
                            );
                        }
                    }
                }
                tokio::time::sleep(STOP_RETRY).await;
            }
        };
        tokio::spawn(self.end.clone().run_until_cancelled_owned(sending));
    }

    /// Sends a recorded stop again. The grace that was ordered is not written down: after a restart of this process it
    /// is the usual one.
    pub(super) fn resend_stop(self: &Arc<Self>, id: InstanceId) {
        let ordered = self.lock().get(&id).and_then(|entry| entry.stop_grace);
        self.send_stop(id, ordered.unwrap_or(tram_site::spec::DEFAULT_STOP_GRACE));
    }
}
