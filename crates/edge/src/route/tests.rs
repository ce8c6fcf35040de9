//! Laws of routing, against a slow and obvious model where one is at hand.

use std::sync::Arc;

use proptest::prelude::*;
use tram_types::routing::{
    Host, Protocol, Route as RouteSpec, RoutingKey, RoutingTable, Security, Service, State,
};
use uuid::Uuid;

use super::*;
use crate::account::Signals;
use crate::table::Registry;

fn spec(prefix: &str, service_id: Uuid) -> RouteSpec {
    RouteSpec {
        prefix: prefix.into(),
        service_id,
        port: 80,
        protocol: Protocol::Http,
        security: Security::default(),
    }
}

fn compile(source: RoutingTable) -> Table {
    Table::compile(
        source,
        &Table::empty(),
        &Registry::new(Arc::new(Signals::new()), 1),
    )
    .expect("a sound table")
}

/// One service for each prefix, so that the service tells which route matched.
fn table(hosts: &[(&str, &[&str])]) -> Table {
    let mut source = RoutingTable {
        version: 1,
        ..RoutingTable::default()
    };
    for (name, prefixes) in hosts {
        let mut routes = Vec::new();
        for prefix in *prefixes {
            let id = Uuid::new_v4();
            source
                .services
                .push(Service::new(id, format!("{name}{prefix}"), State::Ready).into());
            routes.push(spec(prefix, id));
        }
        source.hosts.push(
            Host {
                name: (*name).into(),
                routes,
            }
            .into(),
        );
    }
    compile(source)
}

/// Which service, and what it is asked for.
fn ask(table: &Table, host: &str, path: &str) -> Option<(String, String)> {
    let found = find(table, &canonical(host), path, None).ok()?;
    let target = stripped(path, None, found.rest_at).unwrap_or_else(|| path.to_owned());
    Some((found.route.service.spec.name.clone(), target))
}

#[test]
fn the_longest_prefix_wins_on_segment_bounds_and_goes_away() {
    let table = table(&[("a.test", &["/", "/api", "/api/v2/"])]);
    for (path, service, target) in [
        ("/", "a.test/", "/"),
        ("/apis", "a.test/", "/apis"),
        ("/api", "a.test/api", "/"),
        ("/api/", "a.test/api", "/"),
        ("/api/list", "a.test/api", "/list"),
        ("/api//list", "a.test/api", "//list"),
        ("/api/v2", "a.test/api/v2/", "/"),
        ("/api/v2/x", "a.test/api/v2/", "/x"),
        ("/api/v20", "a.test/api", "/v20"),
    ] {
        assert_eq!(
            ask(&table, "A.test:8080", path),
            Some((service.into(), target.into())),
            "{path}"
        );
    }
}

#[test]
fn the_query_stays() {
    assert_eq!(stripped("/api", Some("a=1"), 4).as_deref(), Some("/?a=1"));
    assert_eq!(stripped("/api/x", Some(""), 4).as_deref(), Some("/x?"));
    assert_eq!(stripped("/x", Some("a"), 0), None);
}

#[test]
fn an_unknown_host_and_an_unknown_path_are_told_apart() {
    let table = table(&[("a.test", &["/api"])]);
    assert!(matches!(
        find(&table, "b.test", "/", None),
        Err(Refusal::NoSuchApp { .. })
    ));
    assert!(matches!(
        find(&table, "a.test", "/other", None),
        Err(Refusal::NoSuchRoute { .. })
    ));
}

#[test]
fn hosts_lose_their_port_case_and_final_dot() {
    for (given, wanted) in [
        ("Example.COM:443", "example.com"),
        ("example.com.", "example.com"),
        ("[::1]:80", "::1"),
        ("127.0.0.1:80", "127.0.0.1"),
        ("user@example.com", "example.com"),
    ] {
        assert_eq!(canonical(given), wanted);
    }
}

fn sandboxes() -> Table {
    let (executor, program) = (Uuid::new_v4(), Uuid::new_v4());
    compile(RoutingTable {
        version: 1,
        public_hosts: vec!["box.test".into()],
        hosts: vec![
            Host {
                name: "box.test".into(),
                routes: vec![spec("/", executor)],
            }
            .into(),
        ],
        services: vec![
            Service::new(executor, "executor", State::Ready).into(),
            Service::new(program, "program", State::Ready).into(),
        ],
        routing_keys: vec![
            RoutingKey {
                key: "k1".into(),
                routes: vec![spec("/koyeb-sandbox/", executor), spec("/", program)],
            }
            .into(),
        ],
        ..RoutingTable::default()
    })
}

#[test]
fn routing_keys_lead_by_header_and_by_path() {
    let table = sandboxes();
    let ask = |path: &str, key: Option<&str>| {
        let found = find(&table, "box.test", path, key.map(str::as_bytes)).ok()?;
        assert!(found.by_key);
        Some((
            found.route.service.spec.name.clone(),
            stripped(path, None, found.rest_at).unwrap_or_else(|| path.to_owned()),
        ))
    };
    for (path, key, service, target) in [
        ("/koyeb-sandbox/health", Some("k1"), "executor", "/health"),
        ("/anything", Some("k1"), "program", "/anything"),
        ("/r/k1/anything", Some("k1"), "program", "/r/k1/anything"),
        ("/r/k1/anything", None, "program", "/anything"),
        ("/r/k1//test.html", None, "program", "/test.html"),
        ("/r/k1///a//b", None, "program", "/a//b"),
        ("/r/k1", None, "program", "/"),
        ("/r/k1/", None, "program", "/"),
        ("/r/k1/koyeb-sandbox/run", None, "executor", "/run"),
        ("/r/k1//koyeb-sandbox", None, "executor", "/"),
    ] {
        assert_eq!(
            ask(path, key),
            Some((service.into(), target.into())),
            "{path} {key:?}"
        );
    }
    assert!(matches!(
        find(&table, "box.test", "/r/k2/x", None),
        Err(Refusal::NoSuchSandbox)
    ));
    assert!(matches!(
        find(&table, "box.test", "/x", Some(b"K1")),
        Err(Refusal::NoSuchSandbox)
    ));
    assert!(
        !find(&table, "box.test", "/x", None)
            .expect("the host's own route")
            .by_key
    );
}

#[test]
fn keys_mean_nothing_on_other_hosts() {
    let mut source = sandboxes().source();
    let other = Host {
        name: "other.test".into(),
        routes: vec![source.hosts[0].routes[0].clone()],
    };
    source.hosts.push(other.into());
    source.version = 2;
    let table = compile(source);
    let found = find(&table, "other.test", "/r/k1/x", Some(b"k1")).expect("its own route");
    assert_eq!((found.by_key, found.rest_at), (false, 0));
}

fn segments() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "ab", "b", ""]), 0..4)
        .prop_map(|parts| format!("/{}", parts.join("/")))
}

proptest! {
    #[test]
    fn no_path_is_led_to_another_host_or_a_shorter_prefix(
        one in prop::collection::btree_set(segments().prop_map(|s| s.trim_end_matches('/').to_owned()), 1..5),
        two in prop::collection::btree_set(segments().prop_map(|s| s.trim_end_matches('/').to_owned()), 1..5),
        path in segments(),
        to_first in any::<bool>(),
    ) {
        let slashed = |set: &std::collections::BTreeSet<String>| set.iter().map(|p| if p.is_empty() { "/".to_owned() } else { p.clone() }).collect::<Vec<_>>();
        let (first, second) = (slashed(&one), slashed(&two));
        let (first, second): (Vec<&str>, Vec<&str>) = (first.iter().map(String::as_str).collect(), second.iter().map(String::as_str).collect());
        let table = table(&[("one.test", &first), ("two.test", &second)]);
        let (host, prefixes) = if to_first { ("one.test", &one) } else { ("two.test", &two) };
        // The model: all prefixes that the path equals or goes below, the longest of them.
        let wanted = prefixes.iter().filter(|prefix| path == ***prefix || path.starts_with(&format!("{prefix}/"))).max_by_key(|prefix| prefix.len());
        match (wanted, ask(&table, host, &path)) {
            (None, None) => {}
            (Some(prefix), Some((service, target))) => {
                let shown = if prefix.is_empty() { "/" } else { prefix };
                prop_assert_eq!(service, format!("{}{}", host, shown));
                let rest = &path[prefix.len()..];
                prop_assert_eq!(target, if rest.is_empty() { "/" } else { rest });
            }
            (wanted, got) => prop_assert!(false, "wanted {:?}, got {:?}", wanted, got),
        }
    }

    #[test]
    fn no_bytes_break_the_router(host in ".{0,40}", path in ".{0,40}", key in prop::option::of(prop::collection::vec(any::<u8>(), 0..8))) {
        let table = sandboxes();
        if let Ok(found) = find(&table, &canonical(&host), &path, key.as_deref()) {
            let target = stripped(&path, None, found.rest_at).unwrap_or_else(|| path.clone());
            prop_assert!(target.starts_with('/'));
        }
        for path in [format!("/r/k1{path}"), format!("/r/{path}"), format!("/r/k1/{path}")] {
            if let Ok(found) = find(&table, "box.test", &path, None) {
                prop_assert!(stripped(&path, None, found.rest_at).unwrap_or(path).starts_with('/'));
            }
        }
    }
}
