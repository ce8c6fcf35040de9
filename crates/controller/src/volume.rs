//! Volumes and snapshots are what their owners want: made, grown, taken, removed.
//!
//! **Owns** the way from what was asked for to what a site confirmed, and the statuses ATTACHED and DETACHED, which say
//! what a site sees. **Does not own** which service has a volume, which the store decides with the deployment, nor when
//! an instance gets it, which follows from the instance.
//!
//! The whole of a run is bounded by the number of volumes; each is dealt with by itself, several at a time, since making
//! one from a snapshot takes as long as copying. A site that does not answer holds back its own volumes alone, and they
//! stay what they were last seen to be. Nothing at a site is ever removed that its owner did not ask to delete.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{
    sync::{
        Notify,
        broadcast::{Receiver, error::RecvError},
    },
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tram_site::{Changed, ObservedVolume, Site, Sites, VolumeSpec};
use tram_store::{
    Change, Store,
    intent::{NewEvent, VolumeSeen},
    record::{ObjectKind, Snapshot, Volume},
};
use tram_types::{
    Clock, Timestamp,
    status::{PersistentVolumeStatus, SnapshotStatus},
    units::GIB,
};
use uuid::Uuid;

use crate::{Deps, driver, error::Error, follow::follow_store};

/// Between two runs without a signal: how full volumes are is told so often.
const PERIOD: Duration = Duration::from_secs(30);
/// Volumes or snapshots that are worked on at a time: a copy keeps a disk busy by itself.
const AT_A_TIME: usize = 4;
/// A snapshot that cannot be taken is given up after this time; its owner may ask again.
const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(10 * 60);
/// How much more or less of a volume must be in use before that is written down.
const USED_STEP_BYTES: u64 = 16 << 20;

/// Carries out what is wanted of volumes.
#[derive(Debug)]
pub struct Reconciler {
    work: Arc<Work>,
}

#[derive(Debug)]
struct Work {
    store: Store,
    sites: Sites,
    clock: Arc<dyn Clock>,
    /// What was last in the way, so that it is told once.
    told: Mutex<HashMap<Uuid, String>>,
}

/// What one run did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// Volumes and snapshots that were brought a step on.
    pub changed: usize,
    /// Those that wait for something.
    pub waiting: usize,
}

impl driver::Report for Report {
    fn is_quiet(&self) -> bool {
        self.changed == 0
    }
}

impl Reconciler {
    /// With the sites and the store of the house.
    #[must_use]
    pub fn new(deps: &Deps) -> Self {
        let work = Work {
            store: deps.store.clone(),
            sites: deps.sites.clone(),
            clock: Arc::clone(&deps.clock),
            told: Mutex::default(),
        };
        Self { work: Arc::new(work) }
    }
}

#[async_trait]
impl driver::Reconciler for Reconciler {
    type Report = Report;

    fn name(&self) -> &'static str {
        "volume"
    }

    fn period(&self) -> Duration {
        PERIOD
    }

    async fn run(&self) -> Result<Report, Error> {
        let work = &self.work;
        let volumes = work
            .store
            .volumes_unscoped()
            .await
            .map_err(Error::store("read the volumes"))?;
        let snapshots = work
            .store
            .snapshots_under_way()
            .await
            .map_err(Error::store("read the snapshots on their way"))?;
        if volumes.is_empty() && snapshots.is_empty() {
            return Ok(Report::default());
        }
        let mut seen = BTreeMap::new();
        for (region, site) in self.work.sites.iter() {
            let Some(keeper) = site.volumes() else { continue };
            match keeper.observe_volumes().await {
                Ok(observed) => {
                    let observed = observed.into_iter().map(|volume| (volume.id, volume));
                    seen.insert(region.to_owned(), observed.collect::<HashMap<_, _>>());
                }
                Err(error) => tracing::warn!(
                    region,
                    error = &error as &dyn std::error::Error,
                    "a site cannot say what volumes it has; they stay what they were"
                ),
            }
        }
        let mut report = Report::default();
        let mut tasks: JoinSet<Result<Step, Error>> = JoinSet::new();
        let mut failed = None;
        let mut count = |ended: Option<Result<Result<Step, Error>, tokio::task::JoinError>>| match ended {
            Some(Ok(Ok(Step::Rest))) | None => {}
            Some(Ok(Ok(Step::Changed))) => report.changed += 1,
            Some(Ok(Ok(Step::Waits))) => report.waiting += 1,
            // Somebody changed it meanwhile; the next run, for which there was a signal, reads it again.
            Some(Ok(Err(error))) if error.is_conflict() => report.waiting += 1,
            Some(Ok(Err(error))) => failed = Some(error),
            Some(Err(error)) => tracing::error!(%error, "the work on a volume ended badly"),
        };
        let held = volumes.iter().any(|volume| volume.service_id.is_some());
        for volume in volumes {
            let Some(seen) = seen.get(&volume.region) else {
                continue;
            };
            if tasks.len() >= AT_A_TIME {
                count(tasks.join_next().await);
            }
            let (work, observed) = (Arc::clone(work), seen.get(&volume.id).copied());
            tasks.spawn(async move { work.volume(volume, observed).await });
        }
        for snapshot in snapshots {
            if !seen.contains_key(&snapshot.region) {
                continue;
            }
            if tasks.len() >= AT_A_TIME {
                count(tasks.join_next().await);
            }
            let work = Arc::clone(work);
            tasks.spawn(async move { work.snapshot(snapshot).await });
        }
        while let Some(ended) = tasks.join_next().await {
            count(Some(ended));
        }
        if held {
            let released = work.store.release_volumes().await;
            let released = released.map_err(Error::store("let volumes go"))?;
            report.changed += usize::try_from(released).unwrap_or(usize::MAX);
        }
        match failed {
            Some(error) => Err(error),
            None => Ok(report),
        }
    }
}

/// What came of one volume or snapshot.
enum Step {
    /// It is as it should be.
    Rest,
    /// It was brought on.
    Changed,
    /// Something is in the way.
    Waits,
}

impl Work {
    fn site(&self, region: &str) -> Option<Arc<dyn Site>> {
        self.sites.for_region(region).cloned()
    }

    async fn volume(&self, volume: Volume, seen: Option<ObservedVolume>) -> Result<Step, Error> {
        let Some(site) = self.site(&volume.region) else {
            return Ok(Step::Waits);
        };
        let Some(keeper) = site.volumes() else {
            return Ok(Step::Waits);
        };
        if volume.status == PersistentVolumeStatus::Deleting {
            return match keeper.remove_volume(volume.id).await {
                Ok(()) => {
                    let removed = self.store.remove_volume(volume.id).await;
                    removed.map_err(Error::store("forget a volume"))?;
                    self.forget(volume.id.uuid());
                    Ok(Step::Changed)
                }
                Err(error) => Ok(self.waits(&volume, "delete", &error).await),
            };
        }
        let size_bytes = u64::from(volume.max_size) * GIB;
        let lacks = match seen {
            None if volume.made_size > 0 => {
                // Never made anew: an empty one in its place would look as if all had been deleted.
                let lost = tram_site::Error::Refused {
                    message: "its site does not have it any more".to_owned(),
                };
                return Ok(self.waits(&volume, "find", &lost).await);
            }
            None => true,
            Some(seen) => seen.size_bytes < size_bytes,
        };
        if lacks {
            let spec = VolumeSpec {
                id: volume.id,
                size_bytes,
                from: volume.snapshot_id.filter(|_| seen.is_none()),
            };
            if let Err(error) = keeper.ensure_volume(&spec).await {
                let doing = if seen.is_none() { "make" } else { "grow" };
                return Ok(self.waits(&volume, doing, &error).await);
            }
            self.forget(volume.id.uuid());
        }
        self.note(&volume, seen).await
    }

    /// Writes down what is true at the site.
    async fn note(&self, volume: &Volume, seen: Option<ObservedVolume>) -> Result<Step, Error> {
        let attached = seen.is_some_and(|seen| seen.attached_to.is_some());
        let status = if attached {
            PersistentVolumeStatus::Attached
        } else {
            PersistentVolumeStatus::Detached
        };
        let used = seen.and_then(|seen| seen.used_bytes).unwrap_or(volume.used_bytes);
        let mut events = Vec::new();
        if volume.made_size == 0 {
            let message = format!("the volume was made with {} GB", volume.max_size);
            events.push(event(volume, "CREATED", message));
        } else if volume.made_size < volume.max_size {
            let message = format!("the volume was grown to {} GB", volume.max_size);
            events.push(event(volume, "GROWN", message));
        }
        if status != volume.status {
            let (kind, message) = match seen.and_then(|seen| seen.attached_to) {
                Some(instance) => (
                    "ATTACHED",
                    format!("the volume was attached to instance {instance}"),
                ),
                None => ("DETACHED", "the volume was detached".to_owned()),
            };
            events.push(event(volume, kind, message));
        }
        if events.is_empty() && used.abs_diff(volume.used_bytes) < USED_STEP_BYTES {
            return Ok(Step::Rest);
        }
        let set = VolumeSeen {
            status: Some(status),
            made_size: Some(volume.max_size),
            used_bytes: Some(used),
        };
        self.store
            .apply_volume(volume, &set, events)
            .await
            .map_err(Error::store("record what was seen of a volume"))?;
        Ok(Step::Changed)
    }

    async fn snapshot(&self, snapshot: Snapshot) -> Result<Step, Error> {
        let Some(site) = self.site(&snapshot.region) else {
            return Ok(Step::Waits);
        };
        let Some(keeper) = site.volumes() else {
            return Ok(Step::Waits);
        };
        if snapshot.status == SnapshotStatus::Deleting {
            if let Err(error) = keeper.remove_snapshot(snapshot.id).await {
                tracing::warn!(snapshot = %snapshot.id, error = &error as &dyn std::error::Error, "cannot remove a snapshot yet");
                return Ok(Step::Waits);
            }
            let removed = self.store.remove_snapshot(snapshot.id, Vec::new()).await;
            removed.map_err(Error::store("forget a snapshot"))?;
            return Ok(Step::Changed);
        }
        match keeper.ensure_snapshot(snapshot.id, snapshot.volume_id).await {
            Ok(()) => {
                let message = format!("snapshot `{}` was taken", snapshot.name);
                let taken = snapshot_event(&snapshot, "SNAPSHOT_TAKEN", message);
                let confirmed = self.store.confirm_snapshot(snapshot.id, taken).await;
                confirmed.map_err(Error::store("record that a snapshot is there"))?;
                Ok(Step::Changed)
            }
            Err(error) if is_for_good(&error) || self.is_late(snapshot.created_at) => {
                tracing::warn!(snapshot = %snapshot.id, error = &error as &dyn std::error::Error, "a snapshot is given up");
                let message = format!("snapshot `{}` could not be taken: {error}", snapshot.name);
                let given_up = snapshot_event(&snapshot, "SNAPSHOT_FAILED", message);
                keeper
                    .remove_snapshot(snapshot.id)
                    .await
                    .map_err(Error::site("remove a snapshot that is given up"))?;
                let removed = self.store.remove_snapshot(snapshot.id, vec![given_up]).await;
                removed.map_err(Error::store("forget a snapshot that is given up"))?;
                Ok(Step::Changed)
            }
            Err(error) => {
                tracing::info!(snapshot = %snapshot.id, error = &error as &dyn std::error::Error, "a snapshot cannot be taken yet");
                Ok(Step::Waits)
            }
        }
    }

    fn is_late(&self, since: Timestamp) -> bool {
        self.clock.now().since(since) > SNAPSHOT_PATIENCE
    }

    /// Something is in the way: told to the owner once.
    async fn waits(&self, volume: &Volume, doing: &str, error: &tram_site::Error) -> Step {
        let message = format!("cannot {doing} the volume: {error}");
        let known = self.told().insert(volume.id.uuid(), message.clone());
        if known.as_ref() != Some(&message) {
            tracing::warn!(volume = %volume.id, error = error as &dyn std::error::Error, "cannot {doing} a volume");
            let told = self
                .store
                .add_events(vec![event(volume, "WAITING", message)])
                .await;
            if let Err(error) = told {
                tracing::warn!(error = &error as &dyn std::error::Error, "an event was not kept");
            }
        }
        Step::Waits
    }

    fn forget(&self, id: Uuid) {
        self.told().remove(&id);
    }

    fn told(&self) -> MutexGuard<'_, HashMap<Uuid, String>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the same order can never succeed.
const fn is_for_good(error: &tram_site::Error) -> bool {
    !error.is_retryable()
}

fn event(volume: &Volume, kind: &str, message: String) -> NewEvent {
    NewEvent {
        organization_id: volume.organization_id,
        object_kind: ObjectKind::Volume,
        object_id: volume.id.uuid(),
        kind: kind.to_owned(),
        message,
        metadata: serde_json::json!({}),
    }
}

fn snapshot_event(snapshot: &Snapshot, kind: &str, message: String) -> NewEvent {
    NewEvent {
        organization_id: snapshot.organization_id,
        object_kind: ObjectKind::Volume,
        object_id: snapshot.volume_id.uuid(),
        kind: kind.to_owned(),
        message,
        metadata: serde_json::json!({ "snapshot_id": snapshot.id }),
    }
}

/// Wakes the reconciler when a volume is wanted otherwise, and when an instance may have got or left one, until `cancel`.
pub(crate) async fn follow(
    changes: Receiver<Change>,
    sites: Sites,
    signal: Arc<Notify>,
    cancel: CancellationToken,
) {
    let mut followers = JoinSet::new();
    for (_, site) in sites.iter().filter(|(_, site)| site.volumes().is_some()) {
        let (mut news, signal) = (site.changed(), Arc::clone(&signal));
        followers.spawn(async move {
            loop {
                match news.recv().await {
                    Ok(Changed::Instance(_)) | Err(RecvError::Lagged(_)) => signal.notify_one(),
                    Ok(Changed::Image(_)) => {}
                    Err(RecvError::Closed) => return,
                }
            }
        });
    }
    follow_store(changes, signal, cancel, |change| {
        matches!(change, Change::Volume(_))
    })
    .await;
}
