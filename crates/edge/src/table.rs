//! The routing table compiled for lookups. `control.rs` compiles a table that the controller pushed and swaps it in;
//! every request reads it.
//!
//! What lives longer than a table (counters, hold queues, pooled connections) is carried over by id, so that a swap
//! loses nothing: see [`Registry`].

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tram_types::routing::{self, Protocol, RoutingTable};
use uuid::Uuid;

use crate::account::{Live, Signals};
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

    /// Closes idle connections and forgets instances that have left and finished.
    pub(crate) fn prune(&self) {
        self.lock().retain(|_, endpoint| {
            endpoint.prune();
            !endpoint.is_gone()
        });
    }

    /// These instances slept until now: of connections that were idle while they did, nobody knows what becomes.
    pub(crate) fn woken(&self, endpoints: &[routing::Endpoint], now: Instant) {
        let known = self.lock();
        for endpoint in endpoints {
            let keys = endpoint
                .addresses
                .values()
                .map(|address| (endpoint.instance_id, *address));
            keys.filter_map(|key| known.get(&key))
                .for_each(|it| it.woken(now));
        }
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

/// One table, ready for requests.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) version: u64,
    pub(crate) base_domain: Box<str>,
    hosts: HashMap<Box<str>, Arc<[Arc<Route>]>>,
    public_hosts: HashSet<Box<str>>,
    keys: HashMap<Box<str>, Arc<[Arc<Route>]>>,
    services: HashMap<Uuid, Arc<Service>>,
    tcp_ports: HashMap<u16, Arc<Route>>,
    /// Any one route to each port of each service.
    targets: HashMap<(Uuid, u16), Arc<Route>>,
    /// As it came, for the disk.
    pub(crate) source: RoutingTable,
}

/// A service in one table: what the controller says of it, and the state that outlives the table.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) spec: routing::Service,
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
    pub(crate) endpoints: Box<[(Arc<Endpoint>, u32)]>,
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
            hosts: HashMap::new(),
            public_hosts: HashSet::new(),
            keys: HashMap::new(),
            services: HashMap::new(),
            tcp_ports: HashMap::new(),
            targets: HashMap::new(),
            source: RoutingTable::default(),
        }
    }

    /// Checks and compiles `source`, carrying over what `before` knows of the same services.
    pub(crate) fn compile(
        source: RoutingTable,
        before: &Table,
        registry: &Registry,
    ) -> Result<Self, TableError> {
        let mut endpoints = registry.lock();
        let mut services = HashMap::with_capacity(source.services.len());
        for spec in &source.services {
            let live = before.services.get(&spec.id).map_or_else(
                || Arc::new(Live::new(spec.id, &spec.name, Arc::clone(&registry.signals))),
                |known| Arc::clone(&known.live),
            );
            if services
                .insert(
                    spec.id,
                    Arc::new(Service {
                        spec: spec.clone(),
                        live,
                    }),
                )
                .is_some()
            {
                return Err(TableError::Twice {
                    what: format!("service {}", spec.id),
                });
            }
        }
        let mut compiler = Compiler {
            services: &services,
            endpoints: &mut endpoints,
            workers: registry.workers,
        };
        let mut hosts = HashMap::with_capacity(source.hosts.len());
        for host in &source.hosts {
            let name = host.name.to_ascii_lowercase().into_boxed_str();
            let routes = compiler.routes(&host.routes, || format!("host {}", host.name))?;
            if hosts.insert(name, routes).is_some() {
                return Err(TableError::Twice {
                    what: format!("host {}", host.name),
                });
            }
        }
        let mut keys = HashMap::with_capacity(source.routing_keys.len());
        for entry in &source.routing_keys {
            let routes = compiler.routes(&entry.routes, || "a routing key".to_owned())?;
            if keys.insert(entry.key.clone().into_boxed_str(), routes).is_some() {
                return Err(TableError::Twice {
                    what: "a routing key".to_owned(),
                });
            }
        }
        let mut tcp_ports = HashMap::with_capacity(source.tcp_ports.len());
        for entry in &source.tcp_ports {
            let as_route = routing::Route {
                prefix: "/".to_owned(),
                service_id: entry.service_id,
                port: entry.port,
                protocol: Protocol::Http,
                security: routing::Security::default(),
            };
            let route = compiler.route(&as_route, || format!("TCP port {}", entry.public_port))?;
            if tcp_ports.insert(entry.public_port, Arc::new(route)).is_some() {
                return Err(TableError::Twice {
                    what: format!("TCP port {}", entry.public_port),
                });
            }
        }
        let used: HashSet<(Uuid, SocketAddr)> = source
            .services
            .iter()
            .flat_map(|service| &service.endpoints)
            .flat_map(|endpoint| {
                endpoint
                    .addresses
                    .values()
                    .map(|address| (endpoint.instance_id, *address))
            })
            .collect();
        for (key, endpoint) in endpoints.iter() {
            endpoint.set_leaving(!used.contains(key));
        }
        endpoints.retain(|_, endpoint| !endpoint.is_gone());
        let targets = hosts
            .values()
            .chain(keys.values())
            .flat_map(|routes: &Arc<[Arc<Route>]>| routes.iter())
            .chain(tcp_ports.values())
            .map(|route| ((route.service.spec.id, route.port), Arc::clone(route)))
            .collect();
        Ok(Self {
            targets,
            version: source.version,
            base_domain: source.base_domain.to_ascii_lowercase().into_boxed_str(),
            hosts,
            public_hosts: source
                .public_hosts
                .iter()
                .map(|host| host.to_ascii_lowercase().into_boxed_str())
                .collect(),
            keys,
            services,
            tcp_ports,
            source,
        })
    }

    /// Routes of a host given in lower case, longest prefix first.
    pub(crate) fn host(&self, name: &str) -> Option<&[Arc<Route>]> {
        self.hosts.get(name).map(|routes| &**routes)
    }

    /// Routes of a sandbox's key, longest prefix first.
    pub(crate) fn key(&self, key: &str) -> Option<&[Arc<Route>]> {
        self.keys.get(key).map(|routes| &**routes)
    }

    /// Whether routing keys are honoured on a host given in lower case.
    pub(crate) fn is_public_host(&self, name: &str) -> bool {
        self.public_hosts.contains(name)
    }

    /// Whether certificates may be made for a name given in lower case.
    pub(crate) fn knows_host(&self, name: &str) -> bool {
        self.hosts.contains_key(name)
            || self.public_hosts.contains(name)
            || name == &*self.base_domain
            || name
                .strip_suffix(&*self.base_domain)
                .is_some_and(|label| !self.base_domain.is_empty() && label.len() > 1 && label.ends_with('.'))
    }

    pub(crate) fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    pub(crate) fn service(&self, id: Uuid) -> Option<&Arc<Service>> {
        self.services.get(&id)
    }

    /// A route to the same port of the same service as an older table's route.
    pub(crate) fn same_target(&self, route: &Route) -> Option<&Arc<Route>> {
        self.targets
            .get(&(route.service.spec.id, route.port))
            .filter(|found| found.protocol == route.protocol)
    }

    pub(crate) fn tcp_ports(&self) -> &HashMap<u16, Arc<Route>> {
        &self.tcp_ports
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
        for endpoint in &service.spec.endpoints {
            if let (Some(address), 1..) = (endpoint.addresses.get(&route.port), endpoint.weight) {
                let shared = self
                    .endpoints
                    .entry((endpoint.instance_id, *address))
                    .or_insert_with(|| Arc::new(Endpoint::new(endpoint.instance_id, *address, self.workers)));
                endpoints.push((Arc::clone(shared), endpoint.weight));
            }
        }
        Ok(Route {
            prefix: route.prefix.trim_end_matches('/').into(),
            service: Arc::clone(service),
            port: route.port,
            protocol: route.protocol,
            even: endpoints.windows(2).all(|pair| pair[0].1 == pair[1].1),
            endpoints: endpoints.into(),
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
