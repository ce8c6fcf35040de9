//! The data plane serves what the store says.
//!
//! The table is kept by service and by app in memory; a change reloads the one service it concerns, and what became of
//! it is pushed as a change of the table that the data plane confirmed last. The whole table is pushed on a new link,
//! and whenever the data plane holds another one than we think. Pushes are coalesced: while one is under way or has just
//! been, changes gather. Every push gets a higher version; the data plane says which one it holds when the link comes
//! up, so versions grow across restarts without being kept.
//!
//! What was confirmed is kept in [`Confirmed`]: an instance may be stopped only when no confirmed table and none
//! under way names it.

mod built;
mod confirmed;
mod known;
mod security;
mod table;

use std::{
    collections::{BTreeSet, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tokio::time::Instant;
use tram_store::RoutedService;
use tram_types::{AppId, DomainId, ServiceId};

pub use confirmed::Confirmed;
use known::{Known, Name};

use crate::{
    Deps, data_plane, driver,
    error::Error,
    light::{self, Sleepers},
    packing::Packing,
    queue::{Key, Queue},
};

/// Without a signal nothing has changed; this only makes up for one that was lost.
const PERIOD: Duration = Duration::from_secs(30);
/// Sweeps between two reads of everything. A change whose commit was not answered is signalled to nobody, and this is
/// what finds it; with the usual sweep that is within ten minutes, for four statements each time.
const WHOLE_SWEEPS: u32 = 5;
/// A pause after a push of so many times the push's own length, putting the table together included: a fifth of one
/// processor at most, however large the table and however fast things change.
const PAUSE_FACTOR: u32 = 4;
/// Longest such pause: a service that wakes waits for the next push.
const PAUSE_MAX: Duration = Duration::from_millis(250);

/// Pushes in one run: a change, the whole table when the data plane did not take it, and once more from the version that
/// it says it holds.
const PUSH_TRIES: u32 = 3;

/// Keeps the data plane's table up to date.
#[derive(Debug)]
pub struct Reconciler {
    deps: Deps,
    confirmed: Arc<Confirmed>,
    sleepers: Arc<Sleepers>,
    packing: Arc<Packing>,
    queue: Arc<Queue>,
    hasher: security::Hasher,
    dirty: Mutex<Dirty>,
    known: tokio::sync::Mutex<Known>,
}

/// What has to be read again.
#[derive(Debug)]
struct Dirty {
    everything: bool,
    secrets: bool,
    push: bool,
    /// The link is new: nothing is known of the table in force.
    relinked: bool,
    held: u64,
    services: HashSet<ServiceId>,
    apps: HashSet<AppId>,
    domains: HashSet<DomainId>,
}

/// What one run did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// Services read again.
    pub read: usize,
    /// Services whose entry changed.
    pub changed: usize,
    /// The version pushed, if one was.
    pub pushed: Option<u64>,
    /// Changes came while it ran.
    pub more: bool,
}

impl driver::Report for Report {
    fn is_quiet(&self) -> bool {
        self.pushed.is_none()
    }

    fn has_more(&self) -> bool {
        self.more
    }
}

impl Reconciler {
    pub(crate) fn new(
        deps: Deps,
        confirmed: Arc<Confirmed>,
        sleepers: Arc<Sleepers>,
        packing: Arc<Packing>,
        queue: Arc<Queue>,
    ) -> Self {
        Self {
            deps,
            confirmed,
            sleepers,
            packing,
            queue,
            hasher: security::Hasher::new(),
            dirty: Mutex::new(Dirty {
                everything: true,
                secrets: false,
                push: true,
                relinked: true,
                held: 0,
                services: HashSet::new(),
                apps: HashSet::new(),
                domains: HashSet::new(),
            }),
            known: tokio::sync::Mutex::default(),
        }
    }

    fn dirty_state(&self) -> MutexGuard<'_, Dirty> {
        self.dirty.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A service changed.
    pub fn dirty(&self, service: ServiceId) {
        self.dirty_state().services.insert(service);
    }

    /// An app changed: its name, its domains, or it is gone.
    pub fn dirty_app(&self, app: AppId) {
        self.dirty_state().apps.insert(app);
    }

    /// A domain changed.
    pub fn dirty_domain(&self, domain: DomainId) {
        self.dirty_state().domains.insert(domain);
    }

    /// A secret changed.
    pub fn dirty_secrets(&self) {
        self.dirty_state().secrets = true;
    }

    /// Signals were lost.
    pub fn dirty_all(&self) {
        self.dirty_state().everything = true;
    }

    /// What is known of sleepers changed, and the data plane was not told by a message.
    pub(crate) fn dirty_sleepers(&self) {
        self.dirty_state().push = true;
    }

    /// The link is up, and the data plane serves this version.
    pub fn connected(&self, held: u64) {
        let mut dirty = self.dirty_state();
        dirty.held = dirty.held.max(held);
        dirty.push = true;
        dirty.relinked = true;
    }

    /// The link is down.
    pub fn lost(&self) {
        self.confirmed.lost();
    }

    /// Between two runs without a signal.
    fn pace(&self) -> Duration {
        PERIOD.min(self.whole())
    }

    /// Between two reads of everything.
    fn whole(&self) -> Duration {
        self.deps.settings.sweep.saturating_mul(WHOLE_SWEEPS)
    }

    fn take_dirty(&self) -> Dirty {
        let mut dirty = self.dirty_state();
        let held = dirty.held;
        std::mem::replace(
            &mut *dirty,
            Dirty {
                everything: false,
                secrets: false,
                push: false,
                relinked: false,
                held,
                services: HashSet::new(),
                apps: HashSet::new(),
                domains: HashSet::new(),
            },
        )
    }

    /// What was taken was not carried out: the next run has to.
    fn give_back(&self, taken: Dirty) {
        let mut dirty = self.dirty_state();
        dirty.everything |= taken.everything;
        dirty.secrets |= taken.secrets;
        dirty.push |= taken.push;
        dirty.relinked |= taken.relinked;
        dirty.services.extend(taken.services);
        dirty.apps.extend(taken.apps);
        dirty.domains.extend(taken.domains);
    }

    /// Reads what is dirty. `signalled`: everything is read for a reason, and not because it is time again.
    async fn read(
        &self,
        known: &mut Known,
        dirty: &Dirty,
        signalled: bool,
        report: &mut Report,
    ) -> Result<(), Error> {
        if dirty.everything {
            let snapshot = self
                .deps
                .store
                .routing_snapshot()
                .await
                .map_err(Error::store("read the routes"))?;
            known.take_hosts(&snapshot.domains);
            let there: HashSet<ServiceId> = snapshot.services.iter().map(|service| service.id).collect();
            let gone: Vec<ServiceId> = known
                .services
                .keys()
                .filter(|id| !there.contains(id))
                .copied()
                .collect();
            for id in gone {
                report.changed += usize::from(known.remove(id));
            }
            known.read_whole = Some(Instant::now());
            for service in &snapshot.services {
                if signalled {
                    // Once at the start, and after signals were lost: services at rest have alarms too, such as
                    // the time of their deletion, and a sweep passes them over.
                    self.queue.add(Key::Service(service.id));
                    // Its app may be shown as it was before a crash, which nothing else would find.
                    self.queue.add(Key::App(service.app_id));
                }
                report.read += 1;
                report.changed += usize::from(self.take_service(known, service).await?);
            }
        }
        let mut apps = dirty.apps.clone();
        for id in &dirty.domains {
            let domain = self
                .deps
                .store
                .routed_domain(*id)
                .await
                .map_err(Error::store("read a domain"))?;
            apps.extend(domain.map(|domain| domain.app_id));
            // It may have led elsewhere before.
            apps.extend(known.app_of(*id));
        }
        for app in apps {
            let domains = self
                .deps
                .store
                .routed_domains_of_app(app)
                .await
                .map_err(Error::store("read the domains of an app"))?;
            known.set_hosts(app, domains.into_iter().map(Name::from).collect());
        }
        let mut services = dirty.services.clone();
        let pace = self.pace();
        let again = known.troubled.iter().filter(|(_, tried)| tried.elapsed() >= pace);
        services.extend(again.map(|(id, _)| *id));
        if dirty.secrets {
            services.extend(known.troubled.keys());
            let guarded = known.services.iter().filter(|(_, entry)| entry.is_guarded());
            services.extend(guarded.map(|(id, _)| *id));
        }
        // An app that is new to us brings its domains along.
        for id in services {
            report.read += 1;
            let service = self
                .deps
                .store
                .routed_service(id)
                .await
                .map_err(Error::store("read the routes of a service"))?;
            match service {
                None => {
                    self.confirmed.remove(id);
                    report.changed += usize::from(known.remove(id));
                }
                Some(service) => {
                    if !known.knows_names_of(service.app_id) {
                        let domains = self
                            .deps
                            .store
                            .routed_domains_of_app(service.app_id)
                            .await
                            .map_err(Error::store("read the domains of an app"))?;
                        let names = domains.into_iter().map(Name::from).collect();
                        known.set_hosts(service.app_id, names);
                    }
                    report.changed += usize::from(self.take_service(known, &service).await?);
                }
            }
        }
        Ok(())
    }

    /// Takes what a service adds to the table. What is wrong with one service's own data is that service's trouble:
    /// every other one is served.
    async fn take_service(&self, known: &mut Known, service: &RoutedService) -> Result<bool, Error> {
        let entry = match table::entry(service, &self.hasher, &self.deps.store).await {
            Ok(mut entry) => {
                if let Some(service) = &mut entry.service {
                    service.waits_for_memory = self.packing.waits(entry.id).is_some();
                }
                known.troubled.remove(&service.id);
                entry
            }
            Err(error) if error.is_of_one_object() => {
                if known.troubled.insert(service.id, Instant::now()).is_none() {
                    tracing::error!(
                        service = %service.id,
                        error = &error as &dyn std::error::Error,
                        "the routes of a service cannot be read; they are tried again from time to time"
                    );
                }
                table::unreadable(service, known.services.get(&service.id))
            }
            Err(error) => return Err(error),
        };
        Ok(known.set_service(entry))
    }

    /// Pushes what is new. A link that is down is no failure: the news that it is up wakes us.
    async fn push(&self, known: &mut Known, mut held: u64, report: &mut Report) -> Result<(), Error> {
        let mut tries = PUSH_TRIES;
        loop {
            tries -= 1;
            let began = Instant::now();
            known.build(&self.deps.settings, &self.sleepers);
            known.version = known.version.max(held) + 1;
            for (id, asleep) in known.built.news() {
                let endpoints = if asleep {
                    BTreeSet::new()
                } else {
                    known.endpoints(id)
                };
                self.confirmed.offer(id, endpoints);
            }
            let base = known.in_force.take();
            let pushed = self.send(known, base).await;
            known.pause = began.elapsed().saturating_mul(PAUSE_FACTOR).min(PAUSE_MAX);
            known.pushed = Some(Instant::now());
            match pushed {
                Ok(true) => {
                    report.pushed = Some(known.version);
                    known.in_force = Some(known.version);
                    known.built.confirmed();
                    for service in self.confirmed.confirm(known.version, self.deps.clock.now()) {
                        self.queue.add(Key::Service(service));
                    }
                    // Whoever woke after this table was made is asleep in it.
                    for (service, since, thawed) in self.sleepers.all_thawed() {
                        if known.built.sleeps(service, since) && thawed.is_superset(&known.endpoints(service))
                        {
                            light::announce(&self.deps, &self.confirmed, service, thawed).await;
                        }
                    }
                    return Ok(());
                }
                // It takes whole tables.
                Ok(false) => {}
                // It holds another table than we thought, or one of an earlier life of ours: go on from there.
                Err(data_plane::Error::Refused { held: newer, .. })
                    if tries > 0 && (base.is_some() || newer >= known.version) =>
                {
                    held = newer;
                }
                Err(data_plane::Error::Lost(cause)) => {
                    self.confirmed.lost();
                    self.dirty_state().push = true;
                    let cause = cause.as_deref().map(|cause| cause as &dyn std::error::Error);
                    tracing::debug!(
                        cause,
                        "the data plane cannot be reached; it goes on with the table it has"
                    );
                    return Ok(());
                }
                Err(refused) => {
                    self.dirty_state().push = true;
                    return Err(Error::DataPlane(refused));
                }
            }
        }
    }

    /// Sends the change since `base`, or the whole table when there is none. False: the data plane takes no changes.
    async fn send(&self, known: &Known, base: Option<u64>) -> Result<bool, data_plane::Error> {
        match base {
            Some(base) => {
                let change = known.built.change(base, known.version);
                self.deps.data_plane.change(&change).await
            }
            None => {
                let table = known.built.whole(known.version, &self.deps.settings);
                self.deps.data_plane.push(&table).await.map(|()| true)
            }
        }
    }
}

#[async_trait]
impl driver::Reconciler for Reconciler {
    type Report = Report;

    fn name(&self) -> &'static str {
        "routing"
    }

    fn period(&self) -> Duration {
        self.pace()
    }

    async fn run(&self) -> Result<Report, Error> {
        let mut known = self.known.lock().await;
        let known = &mut *known;
        // Changes gather while the data plane gets a rest.
        if let Some(pushed) = known.pushed {
            tokio::time::sleep_until(pushed + known.pause).await;
        }
        let mut dirty = self.take_dirty();
        let signalled = dirty.everything;
        dirty.everything |= known.read_whole.is_some_and(|at| at.elapsed() >= self.whole());
        let mut report = Report::default();
        if dirty.relinked {
            known.in_force = None;
        }
        if let Err(error) = self.read(known, &dirty, signalled, &mut report).await {
            self.give_back(dirty);
            // Entries may have been taken in part; a whole read sorts that out.
            self.dirty_all();
            return Err(error);
        }
        if dirty.push || known.is_touched() {
            self.push(known, dirty.held, &mut report).await?;
        }
        let waits = self.dirty_state();
        // A push that waits for the link is woken by it.
        let pushable = waits.push && report.pushed.is_some();
        report.more = pushable
            || waits.everything
            || !(waits.services.is_empty() && waits.apps.is_empty() && waits.domains.is_empty());
        Ok(report)
    }
}
