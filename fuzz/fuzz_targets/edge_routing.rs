//! Any table and any request: compiling and routing never panic, and no request reaches a service of another host.

#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use tram_edge::fuzzing::Router;
use tram_types::routing::{Host, Protocol, Route, RoutingKey, RoutingTable, Security, Service, State};
use uuid::Uuid;

#[derive(Debug, Arbitrary)]
struct Input {
    hosts: Vec<(String, Vec<String>)>,
    public_hosts: Vec<String>,
    keys: Vec<(String, Vec<String>)>,
    requests: Vec<Request>,
}

#[derive(Debug, Arbitrary)]
struct Request {
    host: Choice,
    path: Vec<Choice>,
    key: Option<Choice>,
}

/// Something that the table holds, or anything.
#[derive(Debug, Arbitrary)]
enum Choice {
    Host(u8),
    Public(u8),
    Key(u8),
    Prefix(u8),
    KeyPath,
    Text(String),
}

impl Input {
    fn text(&self, choice: &Choice) -> String {
        let pick = |list: Vec<&String>, index: u8| {
            list.get(usize::from(index) % list.len().max(1))
                .map_or_else(String::new, |text| (*text).clone())
        };
        match choice {
            Choice::Host(index) => pick(self.hosts.iter().map(|host| &host.0).collect(), *index),
            Choice::Public(index) => pick(self.public_hosts.iter().collect(), *index),
            Choice::Key(index) => pick(self.keys.iter().map(|key| &key.0).collect(), *index),
            Choice::Prefix(index) => pick(self.hosts.iter().flat_map(|host| &host.1).collect(), *index),
            Choice::KeyPath => "/r/".to_owned(),
            Choice::Text(text) => text.clone(),
        }
    }
}

/// A service that says where it may be reached: by host or key, and by which of them.
fn service_id(by_key: bool, owner: usize, route: usize) -> Uuid {
    Uuid::from_u64_pair(u64::from(by_key), ((owner as u64) << 32) | route as u64)
}

fn routes(by_key: bool, owner: usize, prefixes: &[String]) -> Vec<Route> {
    prefixes
        .iter()
        .enumerate()
        .map(|(index, prefix)| Route {
            prefix: prefix.clone(),
            service_id: service_id(by_key, owner, index),
            port: 80,
            protocol: Protocol::Http,
            security: Security::default(),
        })
        .collect()
}

fuzz_target!(|input: Input| {
    let mut table = RoutingTable {
        version: 1,
        base_domain: "localhost".into(),
        public_hosts: input.public_hosts.clone(),
        ..RoutingTable::default()
    };
    for (by_key, owners) in [(false, &input.hosts), (true, &input.keys)] {
        for (owner, (name, prefixes)) in owners.iter().enumerate() {
            let routes = routes(by_key, owner, prefixes);
            table.services.extend(
                routes
                    .iter()
                    .map(|route| Service::new(route.service_id, "a/b", State::Ready)),
            );
            if by_key {
                table.routing_keys.push(RoutingKey {
                    key: name.clone(),
                    routes,
                });
            } else {
                table.hosts.push(Host {
                    name: name.clone(),
                    routes,
                });
            }
        }
    }
    let Ok(router) = Router::compile(table) else {
        return;
    };
    for request in &input.requests {
        let host = input.text(&request.host);
        let path: String = request.path.iter().map(|piece| input.text(piece)).collect();
        let key = request.key.as_ref().map(|key| input.text(key));
        let Some(found) = router.find(&host, &path, key.as_deref().map(str::as_bytes)) else {
            continue;
        };
        let (by_key, place) = found.service_id.as_u64_pair();
        let (owner, route) = ((place >> 32) as usize, (place & 0xffff_ffff) as usize);
        assert_eq!(found.by_key, by_key == 1);
        let (name, prefixes) = if found.by_key {
            &input.keys[owner]
        } else {
            &input.hosts[owner]
        };
        let prefix = prefixes[route].trim_end_matches('/');
        if found.by_key {
            let in_path = path.strip_prefix("/r/").and_then(|rest| rest.split('/').next());
            assert!(
                key.as_deref() == Some(name) || (key.is_none() && in_path == Some(name)),
                "a wrong key"
            );
        } else {
            assert_eq!(found.host, name.to_ascii_lowercase(), "a wrong host");
            assert!(path.starts_with(prefix), "`{path}` is not below `{prefix}`");
        }
        assert!(path.is_char_boundary(found.rest_at));
        let target = found.target.unwrap_or(path);
        assert!(target.starts_with('/'), "`{target}` is no path");
    }
});
