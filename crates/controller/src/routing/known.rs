//! What was read for the table, by service and by app, and what of it was not put together yet.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    time::Duration,
};

use tokio::time::Instant;
use tram_store::RoutedDomain;
use tram_types::{AppId, DomainId, InstanceId, ServiceId, Timestamp, routing::REQUEST_TIMEOUT_SECONDS};

use super::{built::Built, table};
use crate::{Settings, light::Sleepers};

/// The table's parts.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) version: u64,
    /// The version that the data plane has on this link, as far as it said so: one to send a change to.
    pub(super) in_force: Option<u64>,
    pub(super) services: BTreeMap<ServiceId, table::Entry>,
    services_of: HashMap<AppId, BTreeSet<ServiceId>>,
    hosts_of: BTreeMap<AppId, Vec<Name>>,
    /// Which app each domain led to when it was read.
    app_of: HashMap<DomainId, AppId>,
    /// Services whose own data could not be read, and when that was tried last.
    pub(super) troubled: HashMap<ServiceId, Instant>,
    /// When everything was read last.
    pub(super) read_whole: Option<Instant>,
    pub(super) pushed: Option<Instant>,
    pub(super) pause: Duration,
    pub(super) built: Built,
    /// Services whose entry differs from what was put together.
    touched: BTreeSet<ServiceId>,
    /// Apps whose names do, or whose services.
    touched_apps: BTreeSet<AppId>,
    /// Of these the names: that concerns each of the services.
    renamed: BTreeSet<AppId>,
}

/// A host name of an app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Name {
    id: DomainId,
    pub(super) name: String,
    /// What its owner chose, in milliseconds.
    pub(super) request_timeout_ms: Option<u64>,
}

impl From<RoutedDomain> for Name {
    fn from(domain: RoutedDomain) -> Self {
        let (least, most) = REQUEST_TIMEOUT_SECONDS.into_inner();
        Self {
            id: domain.id,
            name: domain.name,
            request_timeout_ms: domain
                .request_timeout_seconds
                .map(|seconds| u64::from(seconds.clamp(least, most)) * 1000),
        }
    }
}

impl Known {
    /// Whether the names of an app were read.
    pub(super) fn knows_names_of(&self, app: AppId) -> bool {
        self.hosts_of.contains_key(&app)
    }

    /// The app that a domain led to when it was read.
    pub(super) fn app_of(&self, domain: DomainId) -> Option<AppId> {
        self.app_of.get(&domain).copied()
    }

    /// Takes the names of all apps.
    pub(super) fn take_hosts(&mut self, domains: &[RoutedDomain]) {
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
        let apps: BTreeSet<AppId> = hosts.keys().chain(self.hosts_of.keys()).copied().collect();
        let none = Vec::new();
        let different = apps
            .into_iter()
            .filter(|app| hosts.get(app).unwrap_or(&none) != self.hosts_of.get(app).unwrap_or(&none));
        self.renamed.extend(different);
        self.app_of = domains.iter().map(|domain| (domain.id, domain.app_id)).collect();
        self.hosts_of = hosts;
    }

    /// Takes the names of one app.
    pub(super) fn set_hosts(&mut self, app: AppId, names: Vec<Name>) {
        // Whoever had one of them has it no more, though that was not read yet.
        for name in &names {
            let before = self.built.owner_of(&name.name).filter(|owner| *owner != app);
            if let Some(others) = before.and_then(|owner| self.hosts_of.get_mut(&owner)) {
                others.retain(|other| other.name != name.name);
                self.renamed.extend(before);
            }
        }
        for name in self.hosts_of.get(&app).into_iter().flatten() {
            if self.app_of.get(&name.id) == Some(&app) {
                self.app_of.remove(&name.id);
            }
        }
        self.app_of.extend(names.iter().map(|name| (name.id, app)));
        let empty = names.is_empty();
        let before = self.hosts_of.insert(app, names);
        let same = before.as_ref() == self.hosts_of.get(&app) || (before.is_none() && empty);
        if empty && !self.services_of.contains_key(&app) {
            self.hosts_of.remove(&app);
        }
        if !same {
            self.renamed.insert(app);
        }
    }

    /// Takes the entry of a service; gives whether it is another than before.
    pub(super) fn set_service(&mut self, entry: table::Entry) -> bool {
        let (id, app) = (entry.id, entry.app_id);
        self.services_of.entry(app).or_default().insert(id);
        if self.services.get(&id) == Some(&entry) {
            return false;
        }
        self.touched.insert(id);
        self.touched_apps.insert(app);
        self.services.insert(id, entry);
        true
    }

    pub(super) fn remove(&mut self, id: ServiceId) -> bool {
        self.troubled.remove(&id);
        let Some(entry) = self.services.remove(&id) else {
            return false;
        };
        self.touched.insert(id);
        self.touched_apps.insert(entry.app_id);
        if let Some(services) = self.services_of.get_mut(&entry.app_id) {
            services.remove(&id);
            if services.is_empty() {
                self.services_of.remove(&entry.app_id);
            }
        }
        true
    }

    /// Whether something was read that is not put together yet.
    pub(super) fn is_touched(&self) -> bool {
        !(self.touched.is_empty() && self.touched_apps.is_empty() && self.renamed.is_empty())
    }

    pub(super) fn endpoints(&self, id: ServiceId) -> BTreeSet<InstanceId> {
        self.services
            .get(&id)
            .map(table::Entry::endpoints)
            .unwrap_or_default()
    }

    /// Since when a service sleeps, going by its entry.
    fn sleeping_since(&self, id: ServiceId) -> Option<Timestamp> {
        self.services.get(&id)?.sleeping_since
    }

    /// Puts together what was touched, and what is known of sleepers.
    pub(super) fn build(&mut self, settings: &Settings, sleepers: &Sleepers) {
        let mut services = std::mem::take(&mut self.touched);
        let mut apps = std::mem::take(&mut self.touched_apps);
        let renamed = std::mem::take(&mut self.renamed);
        services.extend(
            renamed
                .iter()
                .filter_map(|app| self.services_of.get(app))
                .flatten(),
        );
        apps.extend(renamed);
        services.extend(self.built.woken());
        let thawed: HashMap<ServiceId, BTreeSet<InstanceId>> = sleepers
            .all_thawed()
            .into_iter()
            .filter(|(id, since, _)| self.sleeping_since(*id) == Some(*since))
            .map(|(id, _, instances)| (id, instances))
            .collect();
        services.extend(thawed.keys());
        for id in services {
            let entry = self.services.get(&id);
            let names = entry.and_then(|entry| self.hosts_of.get(&entry.app_id));
            let names = names.map(Vec::as_slice).unwrap_or_default();
            self.built.set_service(id, entry, names, thawed.get(&id));
        }
        let platform: HashSet<&str> = settings
            .platform_hosts
            .iter()
            .map(|host| host.name.as_str())
            .collect();
        for app in apps {
            let names = self.hosts_of.get(&app).map(Vec::as_slice).unwrap_or_default();
            let members = self.services_of.get(&app).into_iter().flatten();
            let members = members.filter_map(|id| self.services.get(id));
            self.built.set_hosts(app, names, members, &platform);
        }
    }
}
