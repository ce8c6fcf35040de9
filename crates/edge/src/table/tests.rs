//! A table changed step by step is the table compiled whole.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tram_types::routing::{
    Endpoint, Host, Protocol, Route, RoutingKey, RoutingTable, Security, Service, State, TableChange, TcpPort,
};
use uuid::Uuid;

use super::{Registry, Table, TableError};
use crate::account::Signals;

/// Changes in one history.
const STEPS: u64 = 60;

fn registry() -> Registry {
    Registry::new(Arc::new(Signals::new()), 1)
}

fn route(service: &Service, port: u16) -> Route {
    Route {
        prefix: "/".into(),
        service_id: service.id,
        port,
        protocol: Protocol::Http,
        security: Security::default(),
    }
}

/// What a controller knows, by key. Host, key and port of one number lead to the service of that number.
#[derive(Default)]
struct Model {
    version: u64,
    services: BTreeMap<u16, Arc<Service>>,
}

impl Model {
    fn host(number: u16, service: &Service) -> Arc<Host> {
        Arc::new(Host {
            name: format!("Host-{number}.test"),
            routes: vec![route(service, 80)],
        })
    }

    fn key(number: u16, service: &Service) -> Arc<RoutingKey> {
        Arc::new(RoutingKey {
            key: format!("key-{number}"),
            routes: vec![route(service, 81)],
        })
    }

    fn port(number: u16, service: &Service) -> TcpPort {
        TcpPort {
            public_port: 9000 + number,
            service_id: service.id,
            port: 82,
        }
    }

    fn whole(&self) -> RoutingTable {
        let each = || self.services.iter();
        RoutingTable {
            version: self.version,
            base_domain: "test".into(),
            public_hosts: vec!["box.test".into()],
            hosts: each().map(|(number, it)| Self::host(*number, it)).collect(),
            services: self.services.values().cloned().collect(),
            routing_keys: each().map(|(number, it)| Self::key(*number, it)).collect(),
            tcp_ports: each().map(|(number, it)| Self::port(*number, it)).collect(),
        }
    }

    /// Some services come, go, or get another instance. Of those that stay only the service is named, not what leads
    /// to it.
    fn step(&mut self, random: &mut StdRng) -> TableChange {
        let mut change = TableChange {
            base: self.version,
            version: self.version + random.random_range(1..4),
            ..TableChange::default()
        };
        self.version = change.version;
        for number in 0..6 {
            match (random.random_range(0..6), self.services.get_mut(&number)) {
                (0, Some(service)) => {
                    change.services_gone.push(service.id);
                    change.hosts_gone.push(Self::host(number, service).name.clone());
                    change
                        .routing_keys_gone
                        .push(Self::key(number, service).key.clone());
                    change
                        .tcp_ports_gone
                        .push(Self::port(number, service).public_port);
                    self.services.remove(&number);
                }
                (1, Some(service)) => {
                    let address = SocketAddr::from(([10, 0, 0, random.random_range(1..9)], 80));
                    Arc::make_mut(service).endpoints = vec![Endpoint {
                        instance_id: Uuid::from_u128(random.random_range(0..9)),
                        addresses: [80, 81, 82].map(|port| (port, address)).into(),
                        weight: 1,
                        canary: false,
                        deployment_id: None,
                    }];
                    change.services.push(Arc::clone(service));
                }
                (2, None) => {
                    let service = Arc::new(Service::new(
                        Uuid::from_u128(random.random()),
                        "a/b",
                        State::Ready,
                    ));
                    change.services.push(Arc::clone(&service));
                    change.hosts.push(Self::host(number, &service));
                    change.routing_keys.push(Self::key(number, &service));
                    change.tcp_ports.push(Self::port(number, &service));
                    self.services.insert(number, service);
                }
                _ => {}
            }
        }
        change
    }
}

fn sorted(mut table: RoutingTable) -> RoutingTable {
    table.hosts.sort_by(|a, b| a.name.cmp(&b.name));
    table.services.sort_by_key(|it| it.id);
    table.routing_keys.sort_by(|a, b| a.key.cmp(&b.key));
    table.tcp_ports.sort_by_key(|it| it.public_port);
    table
}

/// Where everything leads, down to the addresses.
fn leads(table: &Table) -> BTreeMap<String, Vec<(Uuid, Vec<SocketAddr>)>> {
    let of = |routes: &[Arc<super::Route>]| {
        let each = routes.iter().map(|route| {
            let endpoints = route.endpoints.iter().map(|(endpoint, _)| endpoint.address);
            (route.service.spec.id, endpoints.collect())
        });
        each.collect::<Vec<_>>()
    };
    let entries = &table.entries;
    let hosts = entries
        .hosts
        .iter()
        .map(|(name, it)| (name.to_string(), of(&it.routes)));
    let keys = entries
        .keys
        .iter()
        .map(|(key, it)| (key.to_string(), of(&it.routes)));
    let ports = entries.tcp_ports.iter();
    let ports = ports.map(|(port, route)| (port.to_string(), of(std::slice::from_ref(route))));
    hosts.chain(keys).chain(ports).collect()
}

#[test]
fn a_table_changed_step_by_step_is_the_table_compiled_whole() {
    for seed in 0..20 {
        let mut random = StdRng::seed_from_u64(seed);
        let (mut model, registry) = (Model::default(), registry());
        let mut table = Table::compile(model.whole(), &Table::empty(), &registry).expect("sound");
        for step in 0..STEPS {
            let before = leads(&table);
            let change = model.step(&mut random);
            let next = table.change(change, &registry).expect("sound");
            let whole = Table::compile(model.whole(), &table, &registry).expect("sound");
            assert_eq!(leads(&next), leads(&whole), "seed {seed}, step {step}");
            assert_eq!(
                sorted(next.source()),
                sorted(model.whole()),
                "seed {seed}, step {step}"
            );
            assert_eq!(next.targets.len(), whole.targets.len());
            assert_eq!(leads(&table), before, "the table before is left as it was");
            let lives = |table: &Table| {
                let each = table.services().map(|it| (it.spec.id, Arc::as_ptr(&it.live)));
                each.collect::<BTreeMap<_, _>>()
            };
            let known = lives(&table);
            for (id, live) in lives(&next) {
                assert!(
                    known.get(&id).is_none_or(|before| *before == live),
                    "counters are carried over"
                );
            }
            table = next;
        }
    }
}

#[test]
fn a_change_that_does_not_fit_is_refused() {
    let (mut model, registry) = (Model::default(), registry());
    let service = Arc::new(Service::new(Uuid::from_u128(1), "a/b", State::Ready));
    model.services.insert(1, Arc::clone(&service));
    model.version = 4;
    let table = Table::compile(model.whole(), &Table::empty(), &registry).expect("sound");
    let change = |base| TableChange {
        base,
        version: 9,
        ..TableChange::default()
    };
    assert!(matches!(
        table.change(change(3), &registry),
        Err(TableError::OtherBase { base: 3, held: 4 })
    ));
    // Its host still leads there.
    let gone = TableChange {
        services_gone: vec![service.id],
        ..change(4)
    };
    assert!(matches!(
        table.change(gone, &registry),
        Err(TableError::UnknownService { .. })
    ));
    let twice = TableChange {
        services: vec![Arc::clone(&service), service],
        ..change(4)
    };
    assert!(matches!(
        table.change(twice, &registry),
        Err(TableError::Twice { .. })
    ));
    assert!(
        table
            .change(change(4), &registry)
            .is_ok_and(|next| next.version == 9)
    );
}
