//! Laws of the choice of an instance.

use std::collections::HashMap;
use std::net::SocketAddr;

use tram_types::routing::{self, Host, Protocol, RoutingTable, Service, State};
use uuid::Uuid;

use super::*;
use crate::account::Signals;
use crate::table::Registry;

fn route(weights: &[u32]) -> Arc<Route> {
    route_with(weights, &[])
}

/// `canaries`: by their place among the weights.
fn route_with(weights: &[u32], canaries: &[usize]) -> Arc<Route> {
    let id = Uuid::new_v4();
    let endpoints = weights
        .iter()
        .enumerate()
        .map(|(index, weight)| routing::Endpoint {
            instance_id: Uuid::new_v4(),
            addresses: [(
                80,
                SocketAddr::from(([127, 0, 0, 1], u16::try_from(index + 1).expect("few"))),
            )]
            .into(),
            weight: *weight,
            canary: canaries.contains(&index),
            deployment_id: None,
        })
        .collect();
    let source = RoutingTable {
        version: 1,
        hosts: vec![
            Host {
                name: "a".into(),
                routes: vec![routing::Route {
                    prefix: "/".into(),
                    service_id: id,
                    port: 80,
                    protocol: Protocol::Http,
                    security: routing::Security::default(),
                }],
            }
            .into(),
        ],
        services: vec![
            Service {
                endpoints,
                ..Service::new(id, "a", State::Ready)
            }
            .into(),
        ],
        ..RoutingTable::default()
    };
    let table = Table::compile(
        source,
        &Table::empty(),
        &Registry::new(Arc::new(Signals::new()), 1),
    )
    .expect("a sound table");
    Arc::clone(&table.host("a").expect("there")[0])
}

/// Requests that never end, each where the policy puts it.
fn spread(route: &Route, requests: u32) -> HashMap<u16, u32> {
    let mut seats = Vec::new();
    let mut counts = HashMap::new();
    for _ in 0..requests {
        #[expect(clippy::cast_possible_truncation, reason = "any 32 bits")]
        let endpoint = pick(route, None, &[], random() as u32).expect("somebody");
        *counts.entry(endpoint.address.port()).or_default() += 1;
        seats.push(Seat::take(endpoint));
    }
    counts
}

#[test]
fn equals_share_evenly_and_weights_are_kept() {
    let counts = spread(&route(&[1, 1, 1]), 30);
    assert!(counts.values().all(|count| *count == 10), "{counts:?}");
}

#[test]
fn weights_are_shares_whatever_the_load() {
    // One canary of two beside three others, 10 % in all: 9 x 2 parts to each of three, 3 to each of the canaries.
    let route = route(&[18, 18, 18, 3, 3]);
    let canary = |counts: &HashMap<u16, u32>| {
        let of = |port| counts.get(&port).copied().unwrap_or_default();
        of(4) + of(5)
    };
    let busy = canary(&spread(&route, 4000));
    assert!((300..=500).contains(&busy), "{busy} of 4000 while all are busy");
    let mut idle: HashMap<u16, u32> = HashMap::new();
    for _ in 0..4000 {
        #[expect(clippy::cast_possible_truncation, reason = "any 32 bits")]
        let endpoint = pick(&route, None, &[], random() as u32).expect("somebody");
        *idle.entry(endpoint.address.port()).or_default() += 1;
    }
    let idle = canary(&idle);
    assert!((300..=500).contains(&idle), "{idle} of 4000 while all are idle");
    for endpoint in &route.endpoints[..3] {
        endpoint.0.avoid();
    }
    assert_eq!(canary(&spread(&route, 10)), 10, "the others refuse");
}

#[test]
fn a_weight_of_zero_takes_nothing() {
    assert_eq!(
        spread(&route(&[0, 1]), 5).keys().copied().collect::<Vec<_>>(),
        [2]
    );
    assert!(pick(&route(&[0]), None, &[], 0).is_none());
}

#[test]
fn two_choices_keep_many_instances_close() {
    let counts = spread(&route(&[1; 20]), 2000);
    assert_eq!(counts.len(), 20);
    assert!(
        counts.values().all(|count| (90..=110).contains(count)),
        "{counts:?}"
    );
}

#[test]
fn refusers_are_avoided_until_they_are_all_there_is() {
    let route = route(&[1, 1]);
    route.endpoints[0].0.avoid();
    assert_eq!(spread(&route, 6).keys().copied().collect::<Vec<_>>(), [2]);
    route.endpoints[1].0.avoid();
    assert!(pick(&route, None, &[], 7).is_some());
    let both = [
        Arc::clone(&route.endpoints[0].0),
        Arc::clone(&route.endpoints[1].0),
    ];
    assert!(pick(&route, None, &both, 7).is_none());
}

#[test]
fn a_request_that_chose_by_an_old_table_follows_the_new_one() {
    let registry = Registry::new(Arc::new(Signals::new()), 1);
    let id = Uuid::new_v4();
    let source = |version: u64, port: u16| RoutingTable {
        version,
        hosts: vec![
            Host {
                name: "a".into(),
                routes: vec![routing::Route {
                    prefix: "/".into(),
                    service_id: id,
                    port: 80,
                    protocol: Protocol::Http,
                    security: routing::Security::default(),
                }],
            }
            .into(),
        ],
        services: vec![
            Service {
                endpoints: vec![routing::Endpoint {
                    instance_id: Uuid::from_u64_pair(0, port.into()),
                    addresses: [(80, SocketAddr::from(([127, 0, 0, 1], port)))].into(),
                    weight: 1,
                    canary: false,
                    deployment_id: None,
                }],
                ..Service::new(id, "a", State::Ready)
            }
            .into(),
        ],
        ..RoutingTable::default()
    };
    let first = Arc::new(Table::compile(source(1, 1), &Table::empty(), &registry).expect("a sound table"));
    let route = Arc::clone(&first.host("a").expect("there")[0]);
    let tables = ArcSwap::new(Arc::clone(&first));
    let mut candidates = Candidates::new(&tables, 1, &route);
    let second = Arc::new(Table::compile(source(2, 2), &first, &registry).expect("a sound table"));
    // Between the making of a table and its coming into force the old one is followed: whoever is chosen by it counts.
    registry.prune(1);
    let early = candidates.next().expect("an endpoint");
    assert_eq!(early.endpoint.address.port(), 1);
    let (busy, leaving) = registry.busy();
    assert_eq!((busy.len(), leaving), (1, true), "it is known to be busy");
    drop(early);
    tables.store(second);
    registry.prune(2);
    let seat = candidates.next().expect("an endpoint");
    assert_eq!(seat.endpoint.address.port(), 2);
    assert_eq!(
        route.endpoints[0].0.in_flight(),
        0,
        "nothing is in flight on the instance that left"
    );
    let (busy, leaving) = registry.busy();
    assert_eq!((busy.len(), leaving), (1, false));
}

#[test]
fn a_request_may_choose_between_a_canary_and_the_others() {
    // The canary comes first in the table, and has the weight that makes it one of three.
    let route = route_with(&[2, 1, 1], &[0]);
    let ports = |group| {
        let picked = (0..64).filter_map(|turn: u32| pick(&route, group, &[], turn.wrapping_mul(0x9E37_79B9)));
        picked
            .map(|it| it.address.port())
            .collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(ports(Some(Group::Canary)), [1].into());
    assert_eq!(ports(Some(Group::Stable)), [2, 3].into());
    assert_eq!(ports(None), [1, 2, 3].into());
    // Without a canary there is nothing to choose.
    let route = route_with(&[1, 1], &[]);
    assert!(pick(&route, Some(Group::Canary), &[], 0).is_some());
    let route = route_with(&[1], &[0]);
    assert!(pick(&route, Some(Group::Stable), &[], 0).is_some());
}
