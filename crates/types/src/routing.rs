//! The routing table: everything the edge must know to serve, as plain data.
//!
//! The controller builds it from the store, the edge swaps it in whole and keeps the last one on its
//! disk, so that an edge that restarts alone goes on serving. A table names no site and no image.
//! The one choice to know: a table holds no secret in the clear. Passwords and API keys are salted
//! hashes ([`SecretHash`], made by `tram_edge::secret`), because the table is written to disk.
//!
//! How a request finds its service: a routing key when the host is one of [`RoutingTable::public_hosts`],
//! else the host name, then the longest path prefix on a segment boundary. The prefix is always removed.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Koyeb's documented limit of requests in flight for one service.
pub const DEFAULT_MAX_CONCURRENT_REQUESTS: u32 = 10_000;

/// Time to the first byte of an answer; upstream's proxies give up after about this long too.
pub const DEFAULT_REQUEST_TIMEOUT_MS: u64 = 100_000;

/// Shortest and longest time-out that a domain may ask for, in seconds: the wire contract's.
pub const REQUEST_TIMEOUT_SECONDS: RangeInclusive<u32> = 100..=900;

/// How long a caller waits for a sleeping service: longer than a slow program's start,
/// shorter than the minute after which most HTTP clients give up by themselves.
pub const DEFAULT_HOLD_DEADLINE_MS: u64 = 55_000;

/// How many callers one sleeping service may hold: each costs a connection and a few KiB.
pub const DEFAULT_HOLD_QUEUE_MAX: u32 = 1_000;

/// One whole version of the routing table.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RoutingTable {
    /// Grows with every table. An edge refuses a version older than the one it holds.
    pub version: u64,
    /// The domain under which applications get their automatic names, such as `localhost`.
    pub base_domain: String,
    /// Hosts on which sandbox routing keys are honoured (header `X-Routing-Key` and `/r/<key>/…`).
    /// A request there that carries no key is routed by [`RoutingTable::hosts`] like any other.
    #[serde(default)]
    pub public_hosts: Vec<String>,
    /// Host names with their routes. The API and the console are entries like any other.
    #[serde(default)]
    pub hosts: Vec<Arc<Host>>,
    /// Every service that a route, a routing key or a TCP port names.
    #[serde(default)]
    pub services: Vec<Arc<Service>>,
    /// Sandboxes by their routing key.
    #[serde(default)]
    pub routing_keys: Vec<Arc<RoutingKey>>,
    /// Public TCP ports.
    #[serde(default)]
    pub tcp_ports: Vec<TcpPort>,
}

/// What makes one version of a table into the next. What is named is replaced or taken out; the rest stays.
///
/// A table of ten thousand services is megabytes, and one of them that wakes is a few hundred bytes of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TableChange {
    /// The version it applies to, and no other.
    pub base: u64,
    /// The version that it makes.
    pub version: u64,
    /// Hosts that are new or different.
    #[serde(default)]
    pub hosts: Vec<Arc<Host>>,
    /// Names of hosts that are gone.
    #[serde(default)]
    pub hosts_gone: Vec<String>,
    /// Services that are new or different.
    #[serde(default)]
    pub services: Vec<Arc<Service>>,
    /// Services that are gone.
    #[serde(default)]
    pub services_gone: Vec<Uuid>,
    /// Routing keys that are new or lead elsewhere.
    #[serde(default)]
    pub routing_keys: Vec<Arc<RoutingKey>>,
    /// Routing keys that are gone.
    #[serde(default)]
    pub routing_keys_gone: Vec<String>,
    /// Public TCP ports that are new or lead elsewhere.
    #[serde(default)]
    pub tcp_ports: Vec<TcpPort>,
    /// Public TCP ports that are gone.
    #[serde(default)]
    pub tcp_ports_gone: Vec<u16>,
}

/// A host name and what it serves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Host {
    /// Lower case, without a port: `shop-acme-0a1b2c3d.localhost`.
    pub name: String,
    /// In any order; the longest matching prefix wins.
    pub routes: Vec<Route>,
}

/// A path prefix on a host and where it leads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Route {
    /// Starts with `/`. `/api` and `/api/` mean the same: `/api` itself and everything below it.
    pub prefix: String,
    /// A service of this table.
    pub service_id: Uuid,
    /// The service's port, a key of [`Endpoint::addresses`].
    pub port: u16,
    /// What the instance speaks on that port.
    #[serde(default)]
    pub protocol: Protocol,
    /// Empty: everybody may come in.
    #[serde(default)]
    pub security: Security,
}

/// What an instance speaks on a port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP/1.1, WebSockets included.
    #[default]
    Http,
    /// HTTP/2 in the clear with prior knowledge; gRPC.
    Http2,
}

/// Who may use a route. A request that satisfies any one entry is let in.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Security {
    /// Names and passwords for `Authorization: Basic`.
    #[serde(default)]
    pub basic_auths: Vec<BasicAuth>,
    /// Keys for `Authorization: Bearer` or `X-API-Key`.
    #[serde(default)]
    pub api_keys: Vec<SecretHash>,
}

impl Security {
    /// Whether the route asks for nothing.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.basic_auths.is_empty() && self.api_keys.is_empty()
    }
}

/// One user of a route.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BasicAuth {
    /// As the client sends it.
    pub username: String,
    /// The password's salted hash.
    pub password: SecretHash,
}

/// A salted SHA-256 of a secret: `SHA-256(salt ‖ secret)`, both halves in lower-case hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretHash {
    /// 16 random bytes.
    pub salt: String,
    /// 32 bytes.
    pub sha256: String,
}

/// A service as the edge sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Service {
    /// The service's id.
    pub id: Uuid,
    /// For error pages, logs and metrics: `shop/web`, application and service.
    pub name: String,
    /// What may be done with a request for it.
    pub state: State,
    /// Running instances that may take traffic. See [`State`] for when they are used.
    #[serde(default)]
    pub endpoints: Vec<Endpoint>,
    /// From the end of the wait for an instance to the first byte of its answer; zero: no limit.
    #[serde(default = "default_request_timeout_ms")]
    pub request_timeout_ms: u64,
    /// Requests, streams and TCP connections in flight at once; one more is refused.
    #[serde(default = "default_max_concurrent_requests")]
    pub max_concurrent_requests: u32,
    /// How long one caller waits for a service that sleeps or starts.
    #[serde(default = "default_hold_deadline_ms")]
    pub hold_deadline_ms: u64,
    /// How many callers wait at once; one more is refused with an estimate of when to come back.
    #[serde(default = "default_hold_queue_max")]
    pub hold_queue_max: u32,
    /// What serves a model in its instances, such as `tram-engine`; absent: it serves no model. The edge takes part in
    /// what is asked of such a service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<String>,
    /// Its wake waits for memory that others hold: whoever has been held for long enough is told so.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub waits_for_memory: bool,
}

fn default_request_timeout_ms() -> u64 {
    DEFAULT_REQUEST_TIMEOUT_MS
}
fn default_max_concurrent_requests() -> u32 {
    DEFAULT_MAX_CONCURRENT_REQUESTS
}
fn default_hold_deadline_ms() -> u64 {
    DEFAULT_HOLD_DEADLINE_MS
}
fn default_hold_queue_max() -> u32 {
    DEFAULT_HOLD_QUEUE_MAX
}

impl Service {
    /// A service with the default limits and no endpoint.
    #[must_use]
    pub fn new(id: Uuid, name: impl Into<String>, state: State) -> Self {
        Self {
            id,
            name: name.into(),
            state,
            endpoints: Vec::new(),
            request_timeout_ms: DEFAULT_REQUEST_TIMEOUT_MS,
            max_concurrent_requests: DEFAULT_MAX_CONCURRENT_REQUESTS,
            hold_deadline_ms: DEFAULT_HOLD_DEADLINE_MS,
            hold_queue_max: DEFAULT_HOLD_QUEUE_MAX,
            engine: None,
            waits_for_memory: false,
        }
    }
}

impl Service {
    /// Whether a canary is tried.
    #[must_use]
    pub fn has_canary(&self) -> bool {
        self.endpoints.iter().any(|endpoint| endpoint.canary)
    }
}

/// What the edge does with a request for a service.
///
/// | state | endpoints that serve the port | none |
/// |---|---|---|
/// | `Ready` | forward | 503, no healthy instance |
/// | `Sleeping` | hold and wake (a light sleeper has an endpoint that does not answer) | hold and wake |
/// | `Starting` | forward | hold |
/// | `Failed` | forward | 503 with the cause, at once |
/// | `Paused` | 503, paused | 503, paused |
/// | `Deploying` | forward | 503, the first deployment is on its way |
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum State {
    /// Instances take traffic.
    Ready,
    /// No instance takes traffic until a wake.
    Sleeping,
    /// A wake is on its way.
    Starting {
        /// When the wake began.
        since: jiff::Timestamp,
    },
    /// The start failed, or the first deployment did.
    Failed {
        /// The cause in words for the service's user.
        message: String,
        /// The deployment whose logs tell more.
        deployment_id: Uuid,
    },
    /// Its owner stopped it.
    Paused,
    /// The first deployment has no healthy instance yet: it may be building or pulling an image.
    Deploying,
}

/// A running instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Endpoint {
    /// The instance's id.
    pub instance_id: Uuid,
    /// Service port to the address where this instance listens for it.
    pub addresses: BTreeMap<u16, SocketAddr>,
    /// Share of the traffic beside its siblings. Zero: takes nothing new, finishes what it has.
    #[serde(default = "default_weight")]
    pub weight: u32,
    /// It is of a deployment that is tried beside the one that serves: a request may ask for it, and its answers are
    /// counted apart.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub canary: bool,
    /// The deployment that it is an instance of; absent in tables of older controllers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deployment_id: Option<Uuid>,
}

fn default_weight() -> u32 {
    1
}

/// A sandbox's key and the routes below it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RoutingKey {
    /// As the client sends it; case matters.
    pub key: String,
    /// As on a host: `/koyeb-sandbox` to the executor, `/` to the program.
    pub routes: Vec<Route>,
}

/// A public TCP port and where its connections go.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TcpPort {
    /// The port on which the edge listens.
    pub public_port: u16,
    /// A service of this table.
    pub service_id: Uuid,
    /// The service's port.
    pub port: u16,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_survives_json_whole() {
        let service_id = Uuid::new_v4();
        let table = RoutingTable {
            version: 7,
            base_domain: "localhost".into(),
            public_hosts: vec!["sandbox.localhost".into()],
            hosts: vec![Arc::new(Host {
                name: "shop.localhost".into(),
                routes: vec![Route {
                    prefix: "/".into(),
                    service_id,
                    port: 8000,
                    protocol: Protocol::Http2,
                    security: Security {
                        basic_auths: vec![],
                        api_keys: vec![SecretHash {
                            salt: "00".into(),
                            sha256: "11".into(),
                        }],
                    },
                }],
            })],
            services: vec![Arc::new(Service {
                endpoints: vec![Endpoint {
                    instance_id: Uuid::new_v4(),
                    addresses: BTreeMap::from([(8000, SocketAddr::from(([127, 0, 0, 1], 9)))]),
                    weight: 1,
                    canary: false,
                    deployment_id: None,
                }],
                ..Service::new(
                    service_id,
                    "shop/web",
                    State::Failed {
                        message: "no".into(),
                        deployment_id: service_id,
                    },
                )
            })],
            routing_keys: vec![Arc::new(RoutingKey {
                key: "k".into(),
                routes: vec![],
            })],
            tcp_ports: vec![TcpPort {
                public_port: 1,
                service_id,
                port: 2,
            }],
        };
        let text = serde_json::to_string(&table).expect("plain data");
        assert_eq!(
            serde_json::from_str::<RoutingTable>(&text).expect("our own text"),
            table
        );
    }

    #[test]
    fn limits_left_out_take_their_defaults() {
        let service: Service = serde_json::from_str(&format!(
            r#"{{"id":"{}","name":"a/b","state":{{"is":"starting","since":"2026-01-02T03:04:05Z"}}}}"#,
            Uuid::nil()
        ))
        .expect("a valid service");
        assert_eq!(service.max_concurrent_requests, 10_000);
        assert_eq!(service.hold_queue_max, DEFAULT_HOLD_QUEUE_MAX);
        assert!(matches!(service.state, State::Starting { .. }));
    }
}
