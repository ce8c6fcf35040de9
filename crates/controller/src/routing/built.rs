//! The table as it is pushed, put together by service and by app: a push costs what changed since the last one, and not
//! what there is.
//!
//! What differs from the table that the data plane confirmed last is remembered by key until that confirmation, so a
//! push that fails loses nothing: the next change names it again, or the next whole table has it.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet, btree_map},
    sync::Arc,
};

use tram_types::{
    AppId, InstanceId, ServiceId, Timestamp,
    routing::{Host, Route, RoutingKey, RoutingTable, Service, State, TableChange, TcpPort},
};

use super::{Name, table::Entry};
use crate::Settings;

/// The parts of the table that come from the store.
#[derive(Debug, Default)]
pub(super) struct Built {
    services: BTreeMap<ServiceId, Arc<Service>>,
    /// With the app that has the name.
    hosts: BTreeMap<String, (AppId, Arc<Host>)>,
    hosts_of: BTreeMap<AppId, Vec<String>>,
    /// With the sandbox that has the key.
    keys: BTreeMap<String, (ServiceId, Arc<RoutingKey>)>,
    ports: BTreeMap<u16, TcpPort>,
    /// The key and the ports of each service that has any.
    claims: BTreeMap<ServiceId, Claims>,
    /// Services that sleep in it, since then.
    asleep: BTreeMap<ServiceId, Timestamp>,
    /// Services that take requests in it though they sleep in the store: they were thawed.
    woken: BTreeSet<ServiceId>,
    unconfirmed: Unconfirmed,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Claims {
    key: Option<String>,
    ports: Vec<u16>,
}

/// Keys of what is new, different or gone since the last confirmation.
#[derive(Debug, Default)]
struct Unconfirmed {
    services: BTreeSet<ServiceId>,
    hosts: BTreeSet<String>,
    keys: BTreeSet<String>,
    ports: BTreeSet<u16>,
}

impl Built {
    /// Takes a service as its entry has it now; `None`: it is gone. `names`: of its app. `thawed`: its instances that
    /// answer in spite of what the store says.
    pub(super) fn set_service(
        &mut self,
        id: ServiceId,
        entry: Option<&Entry>,
        names: &[Name],
        thawed: Option<&BTreeSet<InstanceId>>,
    ) {
        self.asleep.remove(&id);
        self.woken.remove(&id);
        // Named even when it looks the same: another sleep looks like the one before.
        self.unconfirmed.services.insert(id);
        let served = entry.and_then(|entry| entry.service.as_ref().map(|service| (entry, service)));
        let Some((entry, service)) = served else {
            self.services.remove(&id);
            self.claim(id, None, &[]);
            return;
        };
        let mut service = service.clone();
        // The table has one time-out a service: the longest that any of its app's domains asks for.
        let chosen = names.iter().filter_map(|name| name.request_timeout_ms).max();
        service.request_timeout_ms = chosen.unwrap_or(service.request_timeout_ms);
        if let (State::Sleeping, Some(since)) = (&service.state, entry.sleeping_since) {
            if thawed.is_some_and(|thawed| !thawed.is_empty() && thawed.is_superset(&entry.endpoints())) {
                service.state = State::Ready;
                self.woken.insert(id);
            } else {
                self.asleep.insert(id, since);
            }
        }
        self.services.insert(id, Arc::new(service));
        self.claim(id, entry.routing_key.as_ref(), &entry.tcp_ports);
    }

    /// Takes the key and the ports of a service. What another one has claimed since is left to it.
    fn claim(&mut self, id: ServiceId, key: Option<&RoutingKey>, ports: &[TcpPort]) {
        let claims = Claims {
            key: key.map(|key| key.key.clone()),
            ports: ports.iter().map(|port| port.public_port).collect(),
        };
        let before = self.claims.remove(&id).unwrap_or_default();
        if let Some(gone) = before.key.filter(|gone| claims.key.as_ref() != Some(gone)) {
            take_if(&mut self.keys, &gone, |(owner, _)| *owner == id);
            self.unconfirmed.keys.insert(gone);
        }
        for gone in before.ports.iter().filter(|port| !claims.ports.contains(port)) {
            take_if(&mut self.ports, gone, |port| port.service_id == id.uuid());
            self.unconfirmed.ports.insert(*gone);
        }
        if let Some(key) = key {
            let known = self.keys.get(&key.key);
            if known.is_none_or(|(owner, known)| *owner != id || **known != *key) {
                self.keys.insert(key.key.clone(), (id, Arc::new(key.clone())));
                self.unconfirmed.keys.insert(key.key.clone());
            }
        }
        for port in ports {
            let owner = self.ports.get(&port.public_port).map(|port| port.service_id);
            let lost = before.ports.contains(&port.public_port) && owner != Some(id.uuid());
            if !lost && self.ports.insert(port.public_port, port.clone()).as_ref() != Some(port) {
                self.unconfirmed.ports.insert(port.public_port);
            }
        }
        if claims != Claims::default() {
            self.claims.insert(id, claims);
        }
    }

    /// Takes the hosts of an app: each of its names leads to the routes of its services. `platform`: names that are the
    /// platform's own.
    pub(super) fn set_hosts(
        &mut self,
        app: AppId,
        names: &[Name],
        members: impl Iterator<Item = impl std::ops::Deref<Target = Entry>>,
        platform: &HashSet<&str>,
    ) {
        let mut members: Vec<_> = members.filter(|entry| entry.service.is_some()).collect();
        // Of two services that claim one path, the older one has it.
        members.sort_by_key(|entry| (entry.created_at, entry.id));
        let mut prefixes = HashSet::new();
        let mut routes: Vec<Route> = Vec::new();
        for route in members.iter().flat_map(|entry| &entry.routes) {
            if prefixes.insert(route.prefix.trim_end_matches('/')) {
                routes.push(route.clone());
            }
        }
        let names: Vec<String> = names
            .iter()
            .filter(|name| !platform.contains(name.name.as_str()))
            .map(|name| name.name.clone())
            .collect();
        for gone in self.hosts_of.remove(&app).unwrap_or_default() {
            if !names.contains(&gone) {
                take_if(&mut self.hosts, &gone, |(owner, _)| *owner == app);
                self.unconfirmed.hosts.insert(gone);
            }
        }
        for name in &names {
            let known = self.hosts.get(name);
            if known.is_none_or(|(owner, known)| *owner != app || known.routes != routes) {
                let host = Host {
                    name: name.clone(),
                    routes: routes.clone(),
                };
                self.hosts.insert(name.clone(), (app, Arc::new(host)));
                self.unconfirmed.hosts.insert(name.clone());
            }
        }
        if !names.is_empty() {
            self.hosts_of.insert(app, names);
        }
    }

    /// Services whose entry says nothing new, and that were taken in as thawed.
    pub(super) fn woken(&self) -> &BTreeSet<ServiceId> {
        &self.woken
    }

    /// Whether the service sleeps in it, in the sleep that began then.
    pub(super) fn sleeps(&self, id: ServiceId, since: Timestamp) -> bool {
        self.asleep.get(&id) == Some(&since)
    }

    /// The services that the next push says something new of, and whether each sleeps in it.
    pub(super) fn news(&self) -> impl Iterator<Item = (ServiceId, bool)> {
        let services = self.unconfirmed.services.iter();
        services.map(|id| (*id, self.asleep.contains_key(id)))
    }

    /// The data plane has it all.
    pub(super) fn confirmed(&mut self) {
        self.unconfirmed = Unconfirmed::default();
    }

    /// Which app has a name.
    pub(super) fn owner_of(&self, name: &str) -> Option<AppId> {
        self.hosts.get(name).map(|(owner, _)| *owner)
    }

    /// All of it, with the platform's own entries.
    pub(super) fn whole(&self, version: u64, settings: &Settings) -> RoutingTable {
        let mut table = RoutingTable {
            version,
            base_domain: settings.base_domain.clone(),
            public_hosts: settings.public_hosts.clone(),
            hosts: settings.platform_hosts.iter().cloned().map(Arc::new).collect(),
            services: settings.platform_services.iter().cloned().map(Arc::new).collect(),
            routing_keys: self.keys.values().map(|(_, key)| Arc::clone(key)).collect(),
            tcp_ports: self.ports.values().cloned().collect(),
        };
        let hosts = self.hosts.values().map(|(_, host)| Arc::clone(host));
        table.hosts.extend(hosts);
        table.services.extend(self.services.values().cloned());
        table
    }

    /// What makes the confirmed table, of version `base`, into this one.
    pub(super) fn change(&self, base: u64, version: u64) -> TableChange {
        let mut change = TableChange {
            base,
            version,
            ..TableChange::default()
        };
        for id in &self.unconfirmed.services {
            match self.services.get(id) {
                Some(service) => change.services.push(Arc::clone(service)),
                None => change.services_gone.push(id.uuid()),
            }
        }
        for name in &self.unconfirmed.hosts {
            match self.hosts.get(name) {
                Some((_, host)) => change.hosts.push(Arc::clone(host)),
                None => change.hosts_gone.push(name.clone()),
            }
        }
        for key in &self.unconfirmed.keys {
            match self.keys.get(key) {
                Some((_, key)) => change.routing_keys.push(Arc::clone(key)),
                None => change.routing_keys_gone.push(key.clone()),
            }
        }
        for port in &self.unconfirmed.ports {
            match self.ports.get(port) {
                Some(port) => change.tcp_ports.push(port.clone()),
                None => change.tcp_ports_gone.push(*port),
            }
        }
        change
    }
}

/// Takes a value out if it is whose it has to be.
fn take_if<K: Ord + Clone, V>(map: &mut BTreeMap<K, V>, key: &K, is_ours: impl FnOnce(&V) -> bool) {
    if let btree_map::Entry::Occupied(found) = map.entry(key.clone())
        && is_ours(found.get())
    {
        found.remove();
    }
}
