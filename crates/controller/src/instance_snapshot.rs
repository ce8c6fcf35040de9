//! Takes the snapshots of instances that are wanted, and removes those that are not any more.
//!
//! **Owns** the way from CREATING to AVAILABLE or ERROR, and from DELETING to DELETED. **Does not own** whether a snapshot
//! may be taken or removed, which the API and the store decide. A few at a time ([`TAKES_MAX`]), so that nobody waits for the
//! gigabytes of a stranger; those of one instance one after the other, since it stands still for each.
//!
//! The one design choice to know: a run goes on for as long as something is being taken, and looks for more work
//! whenever it is told of some. What was taken is recorded one by one, so that two that fit alone, and not together, are
//! never both kept. A run that was cut off finds the same work again: the site takes a snapshot once, however often it is
//! asked. What is given up is recorded as that first, and then what there is of it is removed: nobody would record it any
//! more, so whatever the site still had of it would lie there uncounted.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::{sync::Notify, time::Instant};
use tram_site::Sites;
use tram_store::{Store, record::InstanceSnapshot};
use tram_types::{
    Clock, InstanceId, InstanceSnapshotId, Timestamp, status::InstanceSnapshotStatus as Status, units::MIB,
};

use crate::{Deps, driver, error::Error};

/// Between two looks when nobody says that there is work: finds what waits for a site that was away.
const PERIOD: Duration = Duration::from_secs(30);
/// For so long after the first try an instance that is starting, or a site that is away, is waited for. Not after the
/// order: whoever waits behind others would be given up before it was tried.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two tries.
const RETRY: Duration = Duration::from_millis(500);
/// Snapshots that are taken at a time. They share what the machine's disk gives; four keep a small one from waiting for
/// a large one, and leave the site calls for all else it does.
const TAKES_MAX: usize = 4;
/// So many of the largest snapshots are named where there is no room.
const NAMED: u32 = 3;
/// For so long a removed snapshot can still be looked up, by clients that wait for its end.
const REMEMBERED: Duration = Duration::from_secs(60 * 60);

/// Takes and removes snapshots.
#[derive(Debug)]
pub struct Reconciler {
    store: Store,
    sites: Sites,
    clock: Arc<dyn Clock>,
    signal: Arc<Notify>,
    bytes_max: Option<u64>,
    /// When what is not taken yet was first tried. Another process begins to count anew.
    begun: Mutex<BTreeMap<InstanceSnapshotId, Timestamp>>,
    /// Those that were given up and of which nothing is left.
    cleared: Mutex<BTreeSet<InstanceSnapshotId>>,
}

/// What one run did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// Snapshots that can be used now.
    pub taken: usize,
    /// Snapshots that could not be taken.
    pub failed: usize,
    /// Snapshots that are gone.
    pub removed: usize,
}

impl driver::Report for Report {
    fn is_quiet(&self) -> bool {
        *self == Self::default()
    }
}

/// How an attempt went.
enum Outcome {
    /// It takes so many bytes.
    Taken(u64),
    /// The words are for the owner.
    Failed(String),
    Later,
}

type Attempt<'a> = Pin<Box<dyn Future<Output = (InstanceSnapshot, Outcome)> + Send + 'a>>;

/// What is being taken.
#[derive(Default)]
struct Taking<'a> {
    under_way: FuturesUnordered<Attempt<'a>>,
    snapshots: BTreeSet<InstanceSnapshotId>,
    instances: BTreeSet<InstanceId>,
    /// What could not be taken yet, and when it is to be tried again.
    waiting: BTreeMap<InstanceSnapshotId, Instant>,
}

/// What became of an attempt.
enum Recorded {
    ForGood,
    /// It is to be tried again.
    Later,
}

impl Taking<'_> {
    fn done(&mut self, snapshot: &InstanceSnapshot) {
        self.snapshots.remove(&snapshot.id);
        self.instances.remove(&snapshot.instance_id);
    }

    fn wait_for(&mut self, snapshot: &InstanceSnapshot) {
        self.waiting.insert(snapshot.id, Instant::now() + RETRY);
    }

    /// When what waits is to be tried again.
    fn again_at(&self) -> Instant {
        let first = self.waiting.values().min().copied();
        first.unwrap_or_else(|| Instant::now() + PERIOD)
    }
}

impl Reconciler {
    /// `signal`: there is work.
    pub fn new(deps: &Deps, signal: Arc<Notify>) -> Self {
        Self {
            store: deps.store.clone(),
            sites: deps.sites.clone(),
            clock: Arc::clone(&deps.clock),
            signal,
            bytes_max: deps.settings.snapshot_bytes_max,
            begun: Mutex::default(),
            cleared: Mutex::default(),
        }
    }

    /// When this one was first tried; notes that it is tried now if it was not before.
    fn begun(&self, snapshot: InstanceSnapshotId) -> Timestamp {
        let now = self.clock.now();
        *lock(&self.begun).entry(snapshot).or_insert(now)
    }

    async fn take(&self, snapshot: &InstanceSnapshot) -> Outcome {
        let begun = self.begun(snapshot.id);
        let Some(site) = self.sites.for_region(&snapshot.region) else {
            return Outcome::Failed(format!("there is no region {} any more", snapshot.region));
        };
        match site
            .take_snapshot(snapshot.instance_id, snapshot.id, snapshot.kind)
            .await
        {
            Ok(bytes) => Outcome::Taken(bytes),
            Err(tram_site::Error::Refused { message }) => Outcome::Failed(message),
            Err(error) => {
                if self.clock.now().since(begun) < PATIENCE {
                    return Outcome::Later;
                }
                tracing::warn!(
                    snapshot = %snapshot.id,
                    error = &error as &dyn std::error::Error,
                    "a snapshot of an instance cannot be taken"
                );
                Outcome::Failed(error.to_string())
            }
        }
    }

    /// Whether there is room for a snapshot of this size; if not, what to remove, for the owner.
    async fn over_limit(&self, snapshot: &InstanceSnapshot, bytes: u64) -> Result<Option<String>, Error> {
        let Some(max) = self.bytes_max else {
            return Ok(None);
        };
        let doing = "add up what snapshots take";
        let taken = self
            .store
            .instance_snapshot_bytes(snapshot.organization_id)
            .await
            .map_err(Error::store(doing))?;
        if taken.saturating_add(bytes) <= max {
            return Ok(None);
        }
        let largest = self
            .store
            .largest_instance_snapshots(snapshot.organization_id, NAMED)
            .await
            .map_err(Error::store(doing))?;
        Ok(Some(no_room(taken, bytes, max, &largest)))
    }

    /// Takes what is wanted, and removes what is not, until nothing is being taken. After an error the next look is a moment
    /// later, and what is under way is seen to its end.
    async fn work(&self, report: &mut Report) -> Result<(), Error> {
        let mut taking = Taking::default();
        let mut failed = Ok(());
        let mut rest_until: Option<Instant> = None;
        loop {
            if rest_until.is_none_or(|until| Instant::now() >= until) {
                failed = self.look(&mut taking, report).await;
                rest_until = failed.is_err().then(|| Instant::now() + RETRY);
            }
            if taking.under_way.is_empty() {
                break;
            }
            let again = taking.again_at();
            let again = rest_until.map_or(again, |until| until.min(again));
            tokio::select! {
                Some((snapshot, outcome)) = taking.under_way.next() => {
                    match self.record(&snapshot, outcome, report).await {
                        Ok(Recorded::ForGood) => {}
                        Ok(Recorded::Later) => taking.wait_for(&snapshot),
                        // The site has it, and says so again when it is asked.
                        Err(error) => {
                            tracing::warn!(
                                snapshot = %snapshot.id,
                                error = &error as &dyn std::error::Error,
                                "what became of a snapshot cannot be recorded, trying again"
                            );
                            taking.wait_for(&snapshot);
                        }
                    }
                    taking.done(&snapshot);
                }
                () = self.signal.notified() => {}
                () = tokio::time::sleep_until(again) => taking.waiting.retain(|_, at| *at > again),
            }
        }
        if !taking.waiting.is_empty() {
            let signal = Arc::clone(&self.signal);
            tokio::spawn(async move {
                tokio::time::sleep(RETRY).await;
                signal.notify_one();
            });
        }
        failed
    }

    async fn look<'a>(&'a self, taking: &mut Taking<'a>, report: &mut Report) -> Result<(), Error> {
        self.begin(taking).await?;
        self.remove_all(&taking.snapshots, report).await
    }

    /// Begins to take what is wanted, the oldest first, as far as there are places.
    async fn begin<'a>(&'a self, taking: &mut Taking<'a>) -> Result<(), Error> {
        let wanted = self
            .store
            .instance_snapshots_to_take_unscoped()
            .await
            .map_err(Error::store("read the snapshots that are wanted"))?;
        let ids: BTreeSet<InstanceSnapshotId> = wanted.iter().map(|snapshot| snapshot.id).collect();
        lock(&self.begun).retain(|id, _| ids.contains(id) || taking.snapshots.contains(id));
        for snapshot in wanted {
            if taking.under_way.len() >= TAKES_MAX {
                break;
            }
            if taking.waiting.contains_key(&snapshot.id) || !taking.instances.insert(snapshot.instance_id) {
                continue;
            }
            taking.snapshots.insert(snapshot.id);
            taking.under_way.push(Box::pin(async move {
                let outcome = self.take(&snapshot).await;
                (snapshot, outcome)
            }));
        }
        Ok(())
    }

    /// Records how an attempt went.
    async fn record(
        &self,
        snapshot: &InstanceSnapshot,
        outcome: Outcome,
        report: &mut Report,
    ) -> Result<Recorded, Error> {
        let outcome = match outcome {
            Outcome::Taken(bytes) => match self.over_limit(snapshot, bytes).await? {
                None => Outcome::Taken(bytes),
                Some(message) => Outcome::Failed(message),
            },
            other => other,
        };
        // Unless it is to be removed meanwhile: then what was taken is removed by the next look.
        match outcome {
            Outcome::Taken(bytes) => {
                let moved = self
                    .store
                    .instance_snapshot_taken(snapshot, bytes)
                    .await
                    .map_err(Error::store("record that a snapshot was taken"))?;
                report.taken += usize::from(moved);
            }
            Outcome::Failed(message) => {
                let moved = self
                    .store
                    .move_instance_snapshot(snapshot.id, Status::Creating, Status::Error, &vec![message])
                    .await
                    .map_err(Error::store("record that a snapshot was not taken"))?;
                report.failed += usize::from(moved);
                // Only now: until then it may have been recorded yet. What cannot be removed is removed by a later run.
                if moved && self.forget(snapshot).await {
                    lock(&self.cleared).insert(snapshot.id);
                }
            }
            Outcome::Later => return Ok(Recorded::Later),
        }
        Ok(Recorded::ForGood)
    }

    /// Removes what was taken of a snapshot that is not to be; whether it is gone.
    async fn forget(&self, snapshot: &InstanceSnapshot) -> bool {
        let Some(site) = self.sites.for_region(&snapshot.region) else {
            return true;
        };
        let removed = site.remove_snapshot(snapshot.id).await;
        if let Err(error) = &removed {
            tracing::warn!(
                snapshot = %snapshot.id,
                error = error as &dyn std::error::Error,
                "a snapshot cannot be removed now and will be later"
            );
        }
        removed.is_ok()
    }

    /// Removes what is not wanted, but for what is being `taken`: whoever takes it would go on writing.
    async fn remove_all(
        &self,
        taken: &BTreeSet<InstanceSnapshotId>,
        report: &mut Report,
    ) -> Result<(), Error> {
        let unwanted = self
            .store
            .instance_snapshots_to_remove_unscoped()
            .await
            .map_err(Error::store("read the snapshots to remove"))?;
        for snapshot in &unwanted {
            if taken.contains(&snapshot.id) || !self.forget(snapshot).await {
                continue;
            }
            self.store
                .move_instance_snapshot(snapshot.id, Status::Deleting, Status::Deleted, &Vec::new())
                .await
                .map_err(Error::store("record that a snapshot is gone"))?;
            report.removed += 1;
        }
        Ok(())
    }

    /// Removes what there still is of those that were given up: whoever gave them up was cut off, or the site was away or
    /// still writing.
    async fn clear(&self) -> Result<(), Error> {
        let mut after = None;
        let mut all = BTreeSet::new();
        loop {
            let given_up = self
                .store
                .instance_snapshots_given_up_unscoped(after)
                .await
                .map_err(Error::store("read the snapshots that were given up"))?;
            let Some(last) = given_up.last() else { break };
            after = Some(last.id);
            for snapshot in &given_up {
                all.insert(snapshot.id);
                if !lock(&self.cleared).contains(&snapshot.id) && self.forget(snapshot).await {
                    lock(&self.cleared).insert(snapshot.id);
                }
            }
        }
        lock(&self.cleared).retain(|id| all.contains(id));
        Ok(())
    }
}

/// What is noted changes in single steps, so what a panic leaves is whole.
fn lock<T>(noted: &Mutex<T>) -> MutexGuard<'_, T> {
    noted.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why there is no room, with what to remove.
fn no_room(taken: u64, wanted: u64, max: u64, largest: &[(String, u64)]) -> String {
    let mib = |bytes: u64| bytes.div_ceil(MIB);
    let mut text = format!(
        "it takes {} MiB, and the organization's snapshots take {} of the {} MiB that they may (`snapshot_space_max`)",
        mib(wanted),
        mib(taken),
        max / MIB
    );
    if !largest.is_empty() {
        let names: Vec<String> = largest
            .iter()
            .map(|(name, bytes)| format!("`{name}` ({} MiB)", mib(*bytes)))
            .collect();
        text.push_str(&format!(": remove some, the largest are {}", names.join(", ")));
    }
    text
}

#[async_trait]
impl driver::Reconciler for Reconciler {
    type Report = Report;

    fn name(&self) -> &'static str {
        "instance_snapshot"
    }

    fn period(&self) -> Duration {
        PERIOD
    }

    async fn run(&self) -> Result<Report, Error> {
        let mut report = Report::default();
        self.work(&mut report).await?;
        self.clear().await?;
        let before = self.clock.now().minus(REMEMBERED);
        self.store
            .forget_instance_snapshots(before)
            .await
            .map_err(Error::store("forget the snapshots that are gone"))?;
        Ok(report)
    }
}
