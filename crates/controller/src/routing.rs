//! The data plane serves what the store says.
//!
//! The table is kept by service and by app in memory; a change reloads the one service it concerns, and the whole
//! table is put together from there and pushed whole. Pushes are coalesced: while one is under way or has just been,
//! changes gather. Every push gets a higher version; the data plane says which one it holds when the link comes up,
//! so versions grow across restarts without being kept.
//!
//! What was confirmed is kept in [`Confirmed`]: an instance may be stopped only when no confirmed table and none
//! under way names it.

mod confirmed;
mod security;
mod table;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tokio::time::Instant;
use tram_store::{RoutedDomain, RoutedService};
use tram_types::{
    AppId, InstanceId, ServiceId, Timestamp,
    routing::{self, Host, REQUEST_TIMEOUT_SECONDS, RoutingTable},
};

pub use confirmed::Confirmed;

use crate::{
    Deps, data_plane, driver,
    error::Error,
    light::{self, Sleepers},
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

/// Pushes in one run: the second one goes on from the version that the data plane says it holds.
const PUSH_TRIES: u32 = 2;

/// Keeps the data plane's table up to date.
#[derive(Debug)]
pub struct Reconciler {
    deps: Deps,
    confirmed: Arc<Confirmed>,
    sleepers: Arc<Sleepers>,
    queue: Arc<Queue>,
    hasher: security::Hasher,
    dirty: Mutex<Dirty>,
    known: tokio::sync::Mutex<Known>,
}

/// What has to be read again.
#[derive(Debug)]
struct Dirty {
    everything: bool,
    domains: bool,
    secrets: bool,
    push: bool,
    held: u64,
    services: HashSet<ServiceId>,
    apps: HashSet<AppId>,
}

/// The table's parts.
#[derive(Debug, Default)]
struct Known {
    version: u64,
    services: BTreeMap<ServiceId, table::Entry>,
    services_of: HashMap<AppId, BTreeSet<ServiceId>>,
    hosts_of: BTreeMap<AppId, Vec<Name>>,
    /// Services whose own data could not be read, and when that was tried last.
    troubled: HashMap<ServiceId, Instant>,
    /// When everything was read last.
    read_whole: Option<Instant>,
    pushed: Option<Instant>,
    pause: Duration,
}

/// What a table makes of services that sleep in the store.
#[derive(Debug, Default)]
struct Asleep {
    /// They sleep in it too, since then.
    sleepers: BTreeMap<ServiceId, Timestamp>,
    /// They take requests: they were thawed, and the store does not say so yet.
    woken: Vec<ServiceId>,
}

/// A host name of an app.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Name {
    name: String,
    /// What its owner chose, in milliseconds.
    request_timeout_ms: Option<u64>,
}

impl From<RoutedDomain> for Name {
    fn from(domain: RoutedDomain) -> Self {
        let (least, most) = REQUEST_TIMEOUT_SECONDS.into_inner();
        Self {
            name: domain.name,
            request_timeout_ms: domain
                .request_timeout_seconds
                .map(|seconds| u64::from(seconds.clamp(least, most)) * 1000),
        }
    }
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
        queue: Arc<Queue>,
    ) -> Self {
        Self {
            deps,
            confirmed,
            sleepers,
            queue,
            hasher: security::Hasher::new(),
            dirty: Mutex::new(Dirty {
                everything: true,
                domains: false,
                secrets: false,
                push: true,
                held: 0,
                services: HashSet::new(),
                apps: HashSet::new(),
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
    pub fn dirty_domains(&self) {
        self.dirty_state().domains = true;
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
                domains: false,
                secrets: false,
                push: false,
                held,
                services: HashSet::new(),
                apps: HashSet::new(),
            },
        )
    }

    /// What was taken was not carried out: the next run has to.
    fn give_back(&self, taken: Dirty) {
        let mut dirty = self.dirty_state();
        dirty.everything |= taken.everything;
        dirty.domains |= taken.domains;
        dirty.secrets |= taken.secrets;
        dirty.push |= taken.push;
        dirty.services.extend(taken.services);
        dirty.apps.extend(taken.apps);
    }

    /// Reads what is dirty; gives the services whose entry changed, and whether hosts did. `signalled`: everything is
    /// read for a reason, and not because it is time again.
    async fn read(
        &self,
        known: &mut Known,
        dirty: &Dirty,
        signalled: bool,
        report: &mut Report,
    ) -> Result<(BTreeSet<ServiceId>, bool), Error> {
        let mut changed = BTreeSet::new();
        let mut hosts_changed = false;
        if dirty.everything || dirty.domains {
            let snapshot = self
                .deps
                .store
                .routing_snapshot()
                .await
                .map_err(Error::store("read the routes"))?;
            hosts_changed |= known.take_hosts(&snapshot.domains);
            if dirty.everything {
                let there: HashSet<ServiceId> = snapshot.services.iter().map(|service| service.id).collect();
                let gone: Vec<ServiceId> = known
                    .services
                    .keys()
                    .filter(|id| !there.contains(id))
                    .copied()
                    .collect();
                for id in gone {
                    known.remove(id);
                    changed.insert(id);
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
                    if self.take_service(known, service).await? {
                        changed.insert(service.id);
                    }
                }
            }
        }
        for app in &dirty.apps {
            let domains = self
                .deps
                .store
                .routed_domains_of_app(*app)
                .await
                .map_err(Error::store("read the domains of an app"))?;
            hosts_changed |= known.set_hosts(*app, domains.into_iter().map(Name::from).collect());
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
                    if known.remove(id) {
                        changed.insert(id);
                    }
                }
                Some(service) => {
                    if !known.hosts_of.contains_key(&service.app_id) {
                        let domains = self
                            .deps
                            .store
                            .routed_domains_of_app(service.app_id)
                            .await
                            .map_err(Error::store("read the domains of an app"))?;
                        let names = domains.into_iter().map(Name::from).collect();
                        hosts_changed |= known.set_hosts(service.app_id, names);
                    }
                    if self.take_service(known, &service).await? {
                        changed.insert(id);
                    }
                }
            }
        }
        Ok((changed, hosts_changed))
    }

    /// Takes what a service adds to the table. What is wrong with one service's own data is that service's trouble:
    /// every other one is served.
    async fn take_service(&self, known: &mut Known, service: &RoutedService) -> Result<bool, Error> {
        let entry = match table::entry(service, &self.hasher, &self.deps.store).await {
            Ok(entry) => {
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
        known
            .services_of
            .entry(service.app_id)
            .or_default()
            .insert(service.id);
        let same = known.services.get(&service.id) == Some(&entry);
        known.services.insert(service.id, entry);
        Ok(!same)
    }

    /// Pushes the table. A link that is down is no failure: the news that it is up wakes us.
    async fn push(
        &self,
        known: &mut Known,
        changed: BTreeSet<ServiceId>,
        mut held: u64,
        report: &mut Report,
    ) -> Result<(), Error> {
        let mut tries = PUSH_TRIES;
        loop {
            tries -= 1;
            known.version = known.version.max(held) + 1;
            let began = Instant::now();
            let (table, asleep) = known.table(&self.deps, &self.sleepers);
            for id in changed.iter().chain(&asleep.woken) {
                let endpoints = if asleep.sleepers.contains_key(id) {
                    BTreeSet::new()
                } else {
                    known.endpoints(*id)
                };
                self.confirmed.offer(*id, endpoints);
            }
            let pushed = self.deps.data_plane.push(&table).await;
            known.pause = began.elapsed().saturating_mul(PAUSE_FACTOR).min(PAUSE_MAX);
            known.pushed = Some(Instant::now());
            match pushed {
                Ok(()) => {
                    report.pushed = Some(known.version);
                    for service in self.confirmed.confirm(known.version, self.deps.clock.now()) {
                        self.queue.add(Key::Service(service));
                    }
                    // Whoever woke after this table was made is asleep in it.
                    for (service, since) in asleep.sleepers {
                        let thawed = self.sleepers.thawed(service, since);
                        if let Some(thawed) = thawed.filter(|it| it.is_superset(&known.endpoints(service))) {
                            light::announce(&self.deps, &self.confirmed, service, thawed).await;
                        }
                    }
                    return Ok(());
                }
                // It holds a table of an earlier life of ours: go on from there.
                Err(data_plane::Error::Refused { held: newer, .. })
                    if newer >= known.version && tries > 0 =>
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
        let (changed, hosts_changed) = match self.read(known, &dirty, signalled, &mut report).await {
            Ok(read) => read,
            Err(error) => {
                self.give_back(dirty);
                // Entries may have been taken in part; a whole read sorts that out.
                self.dirty_all();
                return Err(error);
            }
        };
        report.changed = changed.len();
        if dirty.push || hosts_changed || !changed.is_empty() {
            self.push(known, changed, dirty.held, &mut report).await?;
        }
        let waits = self.dirty_state();
        // A push that waits for the link is woken by it.
        let pushable = waits.push && report.pushed.is_some();
        report.more = pushable || waits.domains || waits.everything || !waits.services.is_empty();
        Ok(report)
    }
}

impl Known {
    fn take_hosts(&mut self, domains: &[RoutedDomain]) -> bool {
        let mut hosts: BTreeMap<AppId, Vec<Name>> = BTreeMap::new();
        for domain in domains {
            hosts
                .entry(domain.app_id)
                .or_default()
                .push(domain.clone().into());
        }
        for app in self.services_of.keys() {
            hosts.entry(*app).or_default();
        }
        let same = hosts == self.hosts_of;
        self.hosts_of = hosts;
        !same
    }

    fn set_hosts(&mut self, app: AppId, names: Vec<Name>) -> bool {
        let empty = names.is_empty();
        let before = self.hosts_of.insert(app, names);
        let same = before.as_ref() == self.hosts_of.get(&app) || (before.is_none() && empty);
        if empty && !self.services_of.contains_key(&app) {
            self.hosts_of.remove(&app);
        }
        !same
    }

    fn remove(&mut self, id: ServiceId) -> bool {
        self.troubled.remove(&id);
        let Some(entry) = self.services.remove(&id) else {
            return false;
        };
        if let Some(services) = self.services_of.get_mut(&entry.app_id) {
            services.remove(&id);
            if services.is_empty() {
                self.services_of.remove(&entry.app_id);
            }
        }
        true
    }

    fn endpoints(&self, id: ServiceId) -> BTreeSet<InstanceId> {
        self.services
            .get(&id)
            .map(table::Entry::endpoints)
            .unwrap_or_default()
    }

    /// The table, and who sleeps in it.
    fn table(&self, deps: &Deps, sleepers: &Sleepers) -> (RoutingTable, Asleep) {
        let settings = &deps.settings;
        let mut asleep = Asleep::default();
        let mut table = RoutingTable {
            version: self.version,
            base_domain: settings.base_domain.clone(),
            public_hosts: settings.public_hosts.clone(),
            hosts: settings.platform_hosts.clone(),
            services: settings.platform_services.clone(),
            ..RoutingTable::default()
        };
        let taken: HashSet<String> = table.hosts.iter().map(|host| host.name.clone()).collect();
        for (app, names) in &self.hosts_of {
            let mut members: Vec<&table::Entry> = self
                .services_of
                .get(app)
                .into_iter()
                .flatten()
                .filter_map(|id| self.services.get(id))
                .filter(|entry| entry.service.is_some())
                .collect();
            // Of two services that claim one path, the older one has it.
            members.sort_by_key(|entry| (entry.created_at, entry.id));
            let mut prefixes = HashSet::new();
            let routes: Vec<_> = members
                .into_iter()
                .flat_map(|entry| &entry.routes)
                .filter(|route| prefixes.insert(route.prefix.trim_end_matches('/').to_owned()))
                .cloned()
                .collect();
            for name in names.iter().filter(|name| !taken.contains(&name.name)) {
                table.hosts.push(Host {
                    name: name.name.clone(),
                    routes: routes.clone(),
                });
            }
        }
        for entry in self.services.values() {
            let Some(service) = &entry.service else { continue };
            let names = self.hosts_of.get(&entry.app_id).into_iter().flatten();
            // The table has one time-out a service: the longest that any of its app's domains asks for.
            let chosen = names.filter_map(|name| name.request_timeout_ms).max();
            let mut service = service.clone();
            if let (routing::State::Sleeping, Some(since)) = (&service.state, entry.sleeping_since) {
                let thawed = sleepers.thawed(entry.id, since);
                if thawed.is_some_and(|thawed| thawed.is_superset(&entry.endpoints()) && !thawed.is_empty()) {
                    service.state = routing::State::Ready;
                    asleep.woken.push(entry.id);
                } else {
                    asleep.sleepers.insert(entry.id, since);
                }
            }
            service.request_timeout_ms = chosen.unwrap_or(service.request_timeout_ms);
            table.services.push(service);
            table.routing_keys.extend(entry.routing_key.clone());
            table.tcp_ports.extend(entry.tcp_ports.iter().cloned());
        }
        (table, asleep)
    }
}
