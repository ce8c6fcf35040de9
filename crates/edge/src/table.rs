//! The routing table compiled for lookups. `control.rs` compiles a table that the controller pushed and swaps it in;
//! every request reads it.
//!
//! What lives longer than a table (counters, hold queues, pooled connections) is carried over by id, so that a swap
//! loses nothing: see [`Registry`].

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::Hash;
use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tram_types::routing::{self, Protocol, RoutingTable, TableChange};
use uuid::Uuid;

use crate::account::{LATENCY_BOUNDS_US, Live, Signals};
use crate::canary::{self, Group};
use crate::pool::Endpoint;
use crate::secret;

/// Why a table was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TableError {
    /// Older than the one we hold.
    #[error("table version {offered} is older than the held version {held}")]
    Older {
        /// What was pushed.
        offered: u64,
        /// What we serve.
        held: u64,
    },
    /// A change of another table than the one we hold.
    #[error("the change begins with table version {base}, and version {held} is held")]
    OtherBase {
        /// What it begins with.
        base: u64,
        /// What we serve.
        held: u64,
    },
    /// A route, key or port names a service that the table lacks.
    #[error("{place} names service {service_id}, which the table does not have")]
    UnknownService {
        /// Where the name stands.
        place: String,
        /// The service that is missing.
        service_id: Uuid,
    },
    /// Prefixes start with a slash.
    #[error("the route prefix {prefix:?} does not start with a slash")]
    BadPrefix {
        /// As given.
        prefix: String,
    },
    /// A secret's hash is not one.
    #[error("a credential of the route {prefix:?} is not a salted SHA-256")]
    BadSecret {
        /// The route's prefix.
        prefix: String,
    },
    /// Two tables of the same version that differ would make versions useless.
    #[error("two entries claim {what}")]
    Twice {
        /// Host, routing key or TCP port.
        what: String,
    },
}

/// Services and instances as they outlive tables.
#[derive(Debug)]
pub(crate) struct Registry {
    signals: Arc<Signals>,
    workers: usize,
    endpoints: Mutex<HashMap<(Uuid, SocketAddr), Arc<Endpoint>>>,
}

impl Registry {
    pub(crate) fn new(signals: Arc<Signals>, workers: usize) -> Self {
        Self {
            signals,
            workers,
            endpoints: Mutex::default(),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<(Uuid, SocketAddr), Arc<Endpoint>>> {
        self.endpoints.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes idle connections and forgets instances that have left and finished, while the table of this version is in
    /// force.
    pub(crate) fn prune(&self, in_force: u64) {
        self.lock().retain(|_, endpoint| {
            endpoint.prune();
            !endpoint.is_gone(in_force)
        });
    }

    /// These instances slept until now: of connections that were idle while they did, nobody knows what becomes.
    pub(crate) fn woken(&self, endpoints: &[routing::Endpoint], now: Instant) {
        let known = self.lock();
        keys(endpoints)
            .filter_map(|key| known.get(&key))
            .for_each(|it| it.woken(now));
    }

    /// Requests to each of these instances since the trial of a canary among them began, and those that failed or wait
    /// for longer than those to the others take.
    pub(crate) fn tallies(&self, endpoints: &[routing::Endpoint]) -> BTreeMap<Uuid, (u64, u64)> {
        let now = Instant::now();
        let known = self.lock();
        let others = endpoints.iter().filter(|it| !it.canary);
        let mut took = [0; LATENCY_BOUNDS_US.len() + 1];
        for key in others.flat_map(|it| keys(std::slice::from_ref(it))) {
            let counts = known.get(&key).map(|it| it.tally.took()).unwrap_or_default();
            took.iter_mut()
                .zip(counts)
                .for_each(|(whole, count)| *whole += count);
        }
        let tail = canary::tail(&took);
        let mut tallies = BTreeMap::new();
        for key in keys(endpoints) {
            if let Some(endpoint) = known.get(&key) {
                endpoint.tally.set_tail(tail);
                let (answers, failures) = endpoint.tally.read(now);
                let whole: &mut (u64, u64) = tallies.entry(key.0).or_default();
                *whole = (whole.0 + answers, whole.1 + failures);
            }
        }
        tallies
    }

    /// Requests in flight on each instance that has any, and whether an instance that left is among them.
    pub(crate) fn busy(&self) -> (BTreeMap<Uuid, u32>, bool) {
        let (mut busy, mut leaving) = (BTreeMap::new(), false);
        for endpoint in self.lock().values() {
            let in_flight = endpoint.in_flight();
            if in_flight > 0 {
                *busy.entry(endpoint.instance_id).or_default() += in_flight;
                leaving |= endpoint.is_leaving();
            }
        }
        (busy, leaving)
    }
}

/// What a registry knows endpoints by.
fn keys(endpoints: &[routing::Endpoint]) -> impl Iterator<Item = (Uuid, SocketAddr)> {
    endpoints.iter().flat_map(|endpoint| {
        let addresses = endpoint.addresses.values();
        addresses.map(|address| (endpoint.instance_id, *address))
    })
}

/// One table, ready for requests.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) version: u64,
    pub(crate) base_domain: Box<str>,
    public_hosts: Arc<HashSet<Box<str>>>,
    entries: Entries,
    /// Any one route to each port of each service.
    targets: HashMap<(Uuid, u16), Arc<Route>>,
}

/// What a change replaces one by one. Keys and values are shared with the tables before and after.
#[derive(Debug, Default, Clone)]
struct Entries {
    services: HashMap<Uuid, Arc<Service>>,
    hosts: HashMap<Arc<str>, Led<routing::Host>>,
    keys: HashMap<Arc<str>, Led<routing::RoutingKey>>,
    tcp_ports: HashMap<u16, Arc<Route>>,
}

/// Something that leads to services: as it came, and its routes, longest prefix first.
#[derive(Debug)]
struct Led<T> {
    source: Arc<T>,
    routes: Arc<[Arc<Route>]>,
}

impl<T> Clone for Led<T> {
    fn clone(&self) -> Self {
        Self {
            source: Arc::clone(&self.source),
            routes: Arc::clone(&self.routes),
        }
    }
}

impl<T> Led<T> {
    fn names_any(&self, services: &HashSet<Uuid>) -> bool {
        self.routes
            .iter()
            .any(|route| services.contains(&route.service.spec.id))
    }
}

/// A service in one table: what the controller says of it, and the state that outlives the table.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) spec: Arc<routing::Service>,
    pub(crate) live: Arc<Live>,
}

/// A prefix and where it leads, with the endpoints that serve its port.
#[derive(Debug)]
pub(crate) struct Route {
    /// Without its last slash; empty for the root.
    pub(crate) prefix: Box<str>,
    pub(crate) service: Arc<Service>,
    pub(crate) port: u16,
    pub(crate) protocol: Protocol,
    /// Canaries are the last.
    pub(crate) endpoints: Box<[(Arc<Endpoint>, u32)]>,
    /// How many of them are no canaries.
    pub(crate) stable: usize,
    /// Whether all of them have the same weight.
    pub(crate) even: bool,
    pub(crate) security: Option<Box<Security>>,
}

/// Credentials of a route; any one lets in.
#[derive(Debug)]
pub(crate) struct Security {
    pub(crate) basic_auths: Vec<(String, secret::Compiled)>,
    pub(crate) api_keys: Vec<secret::Compiled>,
}

/// What may be done with a request for a route now.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Gate {
    /// An endpoint takes it.
    Open,
    /// Wait for a wake.
    Hold,
    /// Tell the caller why not.
    Refuse,
}

impl Route {
    /// Whether a canary is tried here beside others.
    pub(crate) fn has_canary(&self) -> bool {
        (1..self.endpoints.len()).contains(&self.stable)
    }

    /// Those of a group; all, when it is not there.
    pub(crate) fn of_group(&self, group: Option<Group>) -> &[(Arc<Endpoint>, u32)] {
        let (stable, canaries) = self.endpoints.split_at(self.stable);
        match group.filter(|_| self.has_canary()) {
            Some(Group::Stable) => stable,
            Some(Group::Canary) => canaries,
            None => &self.endpoints,
        }
    }

    /// The table of [`routing::State`]. `version`: of the table that the route is of.
    pub(crate) fn gate(&self, version: u64) -> Gate {
        use routing::State;
        match (&self.service.spec.state, self.endpoints.is_empty()) {
            (State::Sleeping, false) if self.service.live.is_open_under(version) => Gate::Open,
            (State::Sleeping, _) | (State::Starting { .. }, true) => Gate::Hold,
            (State::Ready | State::Starting { .. } | State::Failed { .. } | State::Deploying, false) => {
                Gate::Open
            }
            (State::Paused, _) | (State::Ready | State::Failed { .. } | State::Deploying, true) => {
                Gate::Refuse
            }
        }
    }
}

impl Table {
    /// A table that knows nothing, held until the first one comes.
    pub(crate) fn empty() -> Self {
        Self {
            version: 0,
            base_domain: "".into(),
            public_hosts: Arc::default(),
            entries: Entries::default(),
            targets: HashMap::new(),
        }
    }

    /// Checks and compiles `source`, carrying over what `before` knows of the same services.
    pub(crate) fn compile(
        source: RoutingTable,
        before: &Table,
        registry: &Registry,
    ) -> Result<Self, TableError> {
        let lower = |host: &String| host.to_ascii_lowercase().into_boxed_str();
        let public_hosts = source.public_hosts.iter().map(lower).collect();
        let head = (source.version, lower(&source.base_domain), Arc::new(public_hosts));
        let whole = TableChange {
            services: source.services,
            hosts: source.hosts,
            routing_keys: source.routing_keys,
            tcp_ports: source.tcp_ports,
            ..TableChange::default()
        };
        Self::put(head, Entries::default(), whole, before, registry)
    }

    /// The table that a change makes of this one.
    pub(crate) fn change(&self, change: TableChange, registry: &Registry) -> Result<Self, TableError> {
        if change.base != self.version {
            return Err(TableError::OtherBase {
                base: change.base,
                held: self.version,
            });
        }
        let head = (
            change.version,
            self.base_domain.clone(),
            Arc::clone(&self.public_hosts),
        );
        Self::put(head, self.entries.clone(), change, self, registry)
    }

    /// Puts a change into `entries`.
    fn put(
        (version, base_domain, public_hosts): (u64, Box<str>, Arc<HashSet<Box<str>>>),
        mut entries: Entries,
        change: TableChange,
        before: &Table,
        registry: &Registry,
    ) -> Result<Self, TableError> {
        let mut touched: HashSet<Uuid> = change.services_gone.iter().copied().collect();
        entries.services.retain(|id, _| !touched.contains(id));
        // Services of which a canary is tried from this table on.
        let mut trials = Vec::new();
        for spec in change.services {
            if !touched.insert(spec.id) {
                return Err(TableError::Twice {
                    what: format!("service {}", spec.id),
                });
            }
            if spec.has_canary() && !before.service(spec.id).is_some_and(|it| it.spec.has_canary()) {
                trials.push(Arc::clone(&spec));
            }
            let live = before.service(spec.id).map_or_else(
                || Arc::new(Live::new(spec.id, &spec.name, Arc::clone(&registry.signals))),
                |known| Arc::clone(&known.live),
            );
            live.waits_for_memory.store(spec.waits_for_memory, Relaxed);
            entries.services.insert(spec.id, Arc::new(Service { spec, live }));
        }
        let mut endpoints = registry.lock();
        for spec in &trials {
            for key in keys(&spec.endpoints) {
                if let Some(endpoint) = endpoints.get(&key) {
                    endpoint.tally.reset();
                }
            }
        }
        let mut compiler = Compiler {
            services: &entries.services,
            endpoints: &mut endpoints,
            workers: registry.workers,
        };
        for name in change.hosts_gone {
            entries.hosts.remove(&*name.to_ascii_lowercase());
        }
        for key in change.routing_keys_gone {
            entries.keys.remove(&*key);
        }
        for port in change.tcp_ports_gone {
            entries.tcp_ports.remove(&port);
        }
        // What stays and leads to a service that did not: a route holds the endpoints of its service.
        let led = |hosts: &HashMap<Arc<str>, Led<routing::Host>>| -> Vec<_> {
            let led = hosts.values().filter(|host| host.names_any(&touched));
            led.map(|host| Arc::clone(&host.source)).collect()
        };
        let keyed = |keys: &HashMap<Arc<str>, Led<routing::RoutingKey>>| -> Vec<_> {
            let led = keys.values().filter(|key| key.names_any(&touched));
            led.map(|key| Arc::clone(&key.source)).collect()
        };
        let ports = entries.tcp_ports.iter();
        let ports = ports.filter(|(_, route)| touched.contains(&route.service.spec.id));
        let ports: Vec<_> = ports.map(|(port, route)| as_source(*port, route)).collect();
        let (again_hosts, again_keys, again_ports) = (led(&entries.hosts), keyed(&entries.keys), ports);

        let named = |host: &routing::Host| host.name.to_ascii_lowercase();
        let new = unique(change.hosts.iter().map(|host| named(host)), |name| {
            format!("host {name}")
        })?;
        let again = again_hosts.iter().filter(|host| !new.contains(&named(host)));
        for host in change.hosts.iter().chain(again) {
            let routes = compiler.routes(&host.routes, || format!("host {}", host.name))?;
            let source = Arc::clone(host);
            entries.hosts.insert(named(host).into(), Led { source, routes });
        }
        let new = unique(change.routing_keys.iter().map(|key| &key.key), |_| {
            "a routing key".to_owned()
        })?;
        let again = again_keys.iter().filter(|key| !new.contains(&key.key));
        for key in change.routing_keys.iter().chain(again) {
            let routes = compiler.routes(&key.routes, || "a routing key".to_owned())?;
            let source = Arc::clone(key);
            entries
                .keys
                .insert(key.key.as_str().into(), Led { source, routes });
        }
        let new = unique(change.tcp_ports.iter().map(|port| port.public_port), |port| {
            format!("TCP port {port}")
        })?;
        let again = again_ports.iter().filter(|port| !new.contains(&port.public_port));
        for entry in change.tcp_ports.iter().chain(again) {
            let as_route = routing::Route {
                prefix: "/".to_owned(),
                service_id: entry.service_id,
                port: entry.port,
                protocol: Protocol::Http,
                security: routing::Security::default(),
            };
            let route = compiler.route(&as_route, || format!("TCP port {}", entry.public_port))?;
            entries.tcp_ports.insert(entry.public_port, Arc::new(route));
        }
        let used: HashSet<(Uuid, SocketAddr)> = entries
            .services
            .values()
            .flat_map(|service| keys(&service.spec.endpoints))
            .collect();
        for (key, endpoint) in endpoints.iter() {
            endpoint.told(version, used.contains(key));
        }
        // Not those that this change takes out: it is not in force yet.
        endpoints.retain(|_, endpoint| !endpoint.is_gone(before.version));
        drop(endpoints);
        Ok(Self {
            targets: entries.targets(),
            version,
            base_domain,
            public_hosts,
            entries,
        })
    }

    /// As the controller would push it whole.
    pub(crate) fn source(&self) -> RoutingTable {
        let entries = &self.entries;
        let ports = entries.tcp_ports.iter();
        RoutingTable {
            version: self.version,
            base_domain: self.base_domain.clone().into(),
            public_hosts: self.public_hosts.iter().map(|host| (**host).to_owned()).collect(),
            hosts: entries
                .hosts
                .values()
                .map(|host| Arc::clone(&host.source))
                .collect(),
            services: self.services().map(|service| Arc::clone(&service.spec)).collect(),
            routing_keys: entries.keys.values().map(|key| Arc::clone(&key.source)).collect(),
            tcp_ports: ports.map(|(port, route)| as_source(*port, route)).collect(),
        }
    }

    /// Routes of a host given in lower case, longest prefix first.
    pub(crate) fn host(&self, name: &str) -> Option<&[Arc<Route>]> {
        self.entries.hosts.get(name).map(|host| &*host.routes)
    }

    /// Routes of a sandbox's key, longest prefix first.
    pub(crate) fn key(&self, key: &str) -> Option<&[Arc<Route>]> {
        self.entries.keys.get(key).map(|key| &*key.routes)
    }

    /// Whether routing keys are honoured on a host given in lower case.
    pub(crate) fn is_public_host(&self, name: &str) -> bool {
        self.public_hosts.contains(name)
    }

    /// Whether certificates may be made for a name given in lower case.
    pub(crate) fn knows_host(&self, name: &str) -> bool {
        self.entries.hosts.contains_key(name)
            || self.public_hosts.contains(name)
            || name == &*self.base_domain
            || name
                .strip_suffix(&*self.base_domain)
                .is_some_and(|label| !self.base_domain.is_empty() && label.len() > 1 && label.ends_with('.'))
    }

    pub(crate) fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.entries.services.values()
    }

    pub(crate) fn service(&self, id: Uuid) -> Option<&Arc<Service>> {
        self.entries.services.get(&id)
    }

    /// A route to the same port of the same service as an older table's route.
    pub(crate) fn same_target(&self, route: &Route) -> Option<&Arc<Route>> {
        self.targets
            .get(&(route.service.spec.id, route.port))
            .filter(|found| found.protocol == route.protocol)
    }

    pub(crate) fn tcp_ports(&self) -> &HashMap<u16, Arc<Route>> {
        &self.entries.tcp_ports
    }
}

impl Entries {
    fn targets(&self) -> HashMap<(Uuid, u16), Arc<Route>> {
        let hosts = self.hosts.values().flat_map(|host| host.routes.iter());
        let keys = self.keys.values().flat_map(|key| key.routes.iter());
        hosts
            .chain(keys)
            .chain(self.tcp_ports.values())
            .map(|route| ((route.service.spec.id, route.port), Arc::clone(route)))
            .collect()
    }
}

/// The keys, unless one comes twice.
fn unique<K: Eq + Hash>(
    keys: impl Iterator<Item = K>,
    what: impl Fn(&K) -> String,
) -> Result<HashSet<K>, TableError> {
    let mut seen = HashSet::new();
    for key in keys {
        if seen.contains(&key) {
            return Err(TableError::Twice { what: what(&key) });
        }
        seen.insert(key);
    }
    Ok(seen)
}

fn as_source(public_port: u16, route: &Route) -> routing::TcpPort {
    routing::TcpPort {
        public_port,
        service_id: route.service.spec.id,
        port: route.port,
    }
}

struct Compiler<'a> {
    services: &'a HashMap<Uuid, Arc<Service>>,
    endpoints: &'a mut HashMap<(Uuid, SocketAddr), Arc<Endpoint>>,
    workers: usize,
}

impl Compiler<'_> {
    fn routes(
        &mut self,
        routes: &[routing::Route],
        place: impl Fn() -> String,
    ) -> Result<Arc<[Arc<Route>]>, TableError> {
        let mut compiled = routes
            .iter()
            .map(|route| self.route(route, &place).map(Arc::new))
            .collect::<Result<Vec<_>, _>>()?;
        compiled.sort_by_key(|route| std::cmp::Reverse(route.prefix.len()));
        if let Some(pair) = compiled.windows(2).find(|pair| pair[0].prefix == pair[1].prefix) {
            return Err(TableError::Twice {
                what: format!("{}/ of {}", pair[0].prefix, place()),
            });
        }
        Ok(compiled.into())
    }

    fn route(&mut self, route: &routing::Route, place: impl Fn() -> String) -> Result<Route, TableError> {
        let service = self
            .services
            .get(&route.service_id)
            .ok_or_else(|| TableError::UnknownService {
                place: place(),
                service_id: route.service_id,
            })?;
        if !route.prefix.starts_with('/') {
            return Err(TableError::BadPrefix {
                prefix: route.prefix.clone(),
            });
        }
        let mut endpoints = Vec::with_capacity(service.spec.endpoints.len());
        let mut stable = 0;
        let (canaries, others): (Vec<_>, Vec<_>) = service.spec.endpoints.iter().partition(|it| it.canary);
        for endpoint in others.into_iter().chain(canaries) {
            if let (Some(address), 1..) = (endpoint.addresses.get(&route.port), endpoint.weight) {
                let shared = self
                    .endpoints
                    .entry((endpoint.instance_id, *address))
                    .or_insert_with(|| Arc::new(Endpoint::new(endpoint.instance_id, *address, self.workers)));
                endpoints.push((Arc::clone(shared), endpoint.weight));
                stable += usize::from(!endpoint.canary);
            }
        }
        Ok(Route {
            prefix: route.prefix.trim_end_matches('/').into(),
            service: Arc::clone(service),
            port: route.port,
            protocol: route.protocol,
            even: endpoints.windows(2).all(|pair| pair[0].1 == pair[1].1),
            endpoints: endpoints.into(),
            stable,
            security: compile_security(route)?,
        })
    }
}

fn compile_security(route: &routing::Route) -> Result<Option<Box<Security>>, TableError> {
    if route.security.is_open() {
        return Ok(None);
    }
    let compile = |hash| {
        secret::Compiled::new(hash).ok_or_else(|| TableError::BadSecret {
            prefix: route.prefix.clone(),
        })
    };
    Ok(Some(Box::new(Security {
        basic_auths: route
            .security
            .basic_auths
            .iter()
            .map(|user| Ok((user.username.clone(), compile(&user.password)?)))
            .collect::<Result<_, TableError>>()?,
        api_keys: route
            .security
            .api_keys
            .iter()
            .map(compile)
            .collect::<Result<_, _>>()?,
    })))
}

#[cfg(test)]
mod tests;
