//! What operators see: the metrics that are documented are the metrics that are there, and one request is one trace
//! across the edge and the control plane.

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on says why and fails"
)]

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Json, Router, routing::post};
use serde_json::Value;
use tokio::{net::TcpListener, sync::oneshot};
use tram_api::ClaimObserver;
use tram_controller::{DataPlane, Observer, Outcome, data_plane::Event};
use tram_edge::{Config, Edge};
use tram_server::{
    data_plane::EdgeLink,
    figures::Figures,
    metrics::{Metrics, exposition},
    observe::{self, Observed},
    traces::Traces,
    usage::Counted,
};
use tram_store::{
    Attributed, NewServicePool, Options, Store,
    filter::{Organizations, Page},
    keyring,
};
use tram_types::routing::{Endpoint, Host, Protocol, Route, RoutingTable, Security, Service, State};
use tram_types::{
    OrganizationId, ProjectId, ServiceId, ServicePoolId, Timestamp,
    inference::{self, TokenRecord},
};
use uuid::Uuid;

/// Long enough for a busy machine, short enough to fail.
const PATIENCE: Duration = Duration::from_secs(30);
const PORT: u16 = 8000;

/// A real edge and the control plane's end of its link, over a store without services.
struct House {
    _directory: tempfile::TempDir,
    store: Store,
    http: SocketAddr,
    link: Arc<EdgeLink>,
    metrics: Arc<Metrics>,
    _stop: oneshot::Sender<()>,
}

impl House {
    async fn build(traces: bool) -> Self {
        // The binary does so first thing; a second time is refused, and as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let directory = tempfile::tempdir().expect("a temporary directory");
        let store = store(directory.path()).await;
        let state = directory.path().join("edge");
        let edge = Edge::bind(Config {
            workers: 1,
            traces,
            ..Config::loopback(&state, 0, 0)
        })
        .expect("an edge");
        let http = edge.addresses().http[0];
        let (stop, stopped) = oneshot::channel::<()>();
        tokio::spawn(edge.serve(async move {
            let _dropped = stopped.await;
        }));
        let metrics = Arc::new(Metrics::new(store.clone()));
        let link = Arc::new(EdgeLink::start(
            tram_edge::link::socket_path(&state),
            None,
            Arc::new(Figures::default()),
            Arc::clone(&metrics),
        ));
        Self {
            _directory: directory,
            store,
            http,
            link,
            metrics,
            _stop: stop,
        }
    }

    /// The next event of a kind.
    async fn hears(&self, wanted: impl Fn(&Event) -> bool) {
        let found = async {
            while let Some(event) = self.link.next_event().await {
                if wanted(&event) {
                    return;
                }
            }
            panic!("the link ended");
        };
        tokio::time::timeout(PATIENCE, found).await.expect("in time");
    }
}

async fn store(directory: &Path) -> Store {
    for room in ["database", "keys"] {
        std::fs::create_dir(directory.join(room)).expect("a directory");
    }
    Store::open(Options {
        database_url: format!("sqlite://{}", directory.join("database/tram.db").display()),
        keyring: keyring::Settings {
            path: directory.join("keys/keyring"),
            create: true,
        },
        proxy_ports: 30000..=30010,
        clock: Arc::new(tram_types::SystemClock),
    })
    .await
    .expect("a store")
}

fn table(version: u64, service: Service) -> RoutingTable {
    RoutingTable {
        version,
        base_domain: "localhost".into(),
        hosts: vec![
            Host {
                name: "shop.localhost".into(),
                routes: vec![Route {
                    prefix: "/".into(),
                    service_id: service.id,
                    port: PORT,
                    protocol: Protocol::Http,
                    security: Security::default(),
                }],
            }
            .into(),
        ],
        services: vec![service.into()],
        ..RoutingTable::default()
    }
}

/// The name, type and labels of every metric of an exposition. Fails on a line that is none.
fn parse(text: &str) -> BTreeMap<String, (String, BTreeSet<String>)> {
    let mut found: BTreeMap<String, (String, BTreeSet<String>)> = BTreeMap::new();
    let mut current = String::new();
    assert!(text.ends_with("# EOF\n"), "it ends in the middle");
    assert_eq!(text.matches("# EOF").count(), 1, "it ends twice");
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a name and a type");
            current = name.to_owned();
            let before = found.insert(current.clone(), (kind.to_owned(), BTreeSet::new()));
            assert!(before.is_none(), "{name} is there twice");
        } else if !line.starts_with('#') {
            let (series, value) = line.rsplit_once(' ').expect("a series and a value");
            value.parse::<f64>().expect("a number");
            let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
            assert!(name.starts_with(&current), "{name} has no type");
            for label in labels
                .trim_end_matches('}')
                .split("\",")
                .filter(|label| !label.is_empty())
            {
                let (key, _) = label.split_once("=\"").expect("a key and a value");
                if key != "le" {
                    found
                        .get_mut(&current)
                        .expect("it has a type")
                        .1
                        .insert(key.to_owned());
                }
            }
        }
    }
    found
}

/// The same from the tables of the documentation: `| name | type | labels | meaning |`.
fn documented() -> BTreeMap<String, (String, BTreeSet<String>)> {
    let path = Path::new("../../docs/reference/metrics.md");
    let text = std::fs::read_to_string(path).expect("the documentation");
    text.lines()
        .filter(|line| line.starts_with("| `tram_") || line.starts_with("| `vllm:"))
        .map(|line| {
            let cells: Vec<&str> = line
                .split('|')
                .map(|cell| cell.trim().trim_matches('`'))
                .collect();
            let labels = cells[3]
                .split(',')
                .map(|label| label.trim().trim_matches('`').to_owned())
                .filter(|label| !label.is_empty())
                .collect();
            let name = cells[1].strip_suffix("_total").unwrap_or(cells[1]);
            (name.to_owned(), (cells[2].to_owned(), labels))
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_is_documented_and_every_documented_metric_is_there() {
    let house = House::build(false).await;
    house
        .store
        .create_organization(OrganizationId::random(), "acme", ProjectId::random(), "default")
        .await
        .expect("an organization");
    let wanted = Service::new(Uuid::new_v4(), "shop/web", State::Sleeping);
    house
        .hears(|event| matches!(event, Event::Connected { .. }))
        .await;
    house
        .link
        .push(&table(1, wanted.clone()))
        .await
        .expect("in force");
    let http = house.http;
    let caller = tokio::spawn(async move { ask(http, None).await });
    house.hears(|event| matches!(event, Event::Wake { .. })).await;
    let failed = State::Failed {
        message: "no".into(),
        deployment_id: Uuid::new_v4(),
    };
    house
        .link
        .push(&table(
            2,
            Service {
                state: failed,
                ..wanted
            },
        ))
        .await
        .expect("in force");
    assert_eq!(caller.await.expect("no panic").0, 503);
    house
        .metrics
        .ran("services", Outcome::Changed, Duration::from_millis(3));
    house.metrics.set_backlog(2);
    let (gone, asleep, asked) = (ServiceId::random(), ServiceId::random(), ServiceId::random());
    house
        .metrics
        .set_checkpoints(&HashMap::from([(gone, 1), (asleep, 2)]));
    house.metrics.set_checkpoints(&HashMap::from([(asleep, 4096)]));

    house.metrics.counted(&[question(asked)]);
    let (all, first) = (Organizations::default(), Page { limit: 1, offset: 0 });
    let organizations = house.store.list_organizations_unscoped(&all, first).await;
    let organization = organizations.expect("a list").items[0].id;
    let pool = async |name: &str| {
        let new = NewServicePool {
            id: ServicePoolId::random(),
            organization_id: organization,
            name: name.to_owned(),
            size: 3,
            definition: serde_json::json!({"type": "SANDBOX"}),
            created_by: String::new(),
        };
        house
            .store
            .create_service_pool(new, 100)
            .await
            .expect("a pool")
            .id
    };
    let (kept, removed) = (pool("kept").await, pool("removed").await);
    for (pool, prewarmed) in [(kept, true), (kept, true), (kept, false), (removed, true)] {
        house.metrics.claimed(pool, prewarmed, Duration::from_millis(3));
    }
    house
        .store
        .delete_service_pool(organization, removed)
        .await
        .expect("on its way out");

    // Scraped as a scraper does, beside an API.
    let api = Router::new().route("/v1/apps/{id}", axum::routing::get(|| async { "app" }));
    let observed = Observed {
        store: house.store.clone(),
        edge: Arc::clone(&house.link),
        metrics: Arc::clone(&house.metrics),
    };
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let service = observe::around(api, observed).into_make_service_with_connect_info::<SocketAddr>();
    tokio::spawn(async move { axum::serve(listener, service).await });
    let client = reqwest::Client::new();
    for path in ["v1/apps/1", "v1/apps/2", "nowhere/at/all"] {
        client
            .get(format!("http://{address}/{path}"))
            .send()
            .await
            .expect("an answer");
    }
    let scraped = client
        .get(format!("http://{address}/metrics"))
        .send()
        .await
        .expect("an answer");
    assert_eq!(scraped.status(), 200);
    let text = scraped.text().await.expect("text");
    let one = "tram_api_requests_total{method=\"GET\",route=\"/v1/apps/{id}\",status=\"200\"} 2";
    assert!(text.contains(one), "{text}");
    assert!(text.contains("route=\"unmatched\",status=\"404\"} 1"), "{text}");
    assert!(text.contains("tram_reconciler_backlog 2"), "{text}");
    assert!(text.contains("tram_edge_connected 1"), "{text}");
    let on_disk = format!("tram_checkpoint_bytes{{service_id=\"{asleep}\"}} 4096");
    assert!(text.contains(&on_disk), "{text}");
    assert!(!text.contains(&gone.to_string()), "{text}");
    for (series, value) in [
        (
            format!("tram_pool_members_wanted{{pool_id=\"{kept}\",pool=\"kept\"}}"),
            3,
        ),
        (
            format!("tram_pool_members_ready{{pool_id=\"{kept}\",pool=\"kept\"}}"),
            0,
        ),
        (
            format!("tram_pool_claims_total{{pool_id=\"{kept}\",outcome=\"ready\"}}"),
            2,
        ),
        (
            format!("tram_pool_claims_total{{pool_id=\"{kept}\",outcome=\"made\"}}"),
            1,
        ),
        ("tram_pool_claim_seconds_count{outcome=\"ready\"}".to_owned(), 3),
    ] {
        assert!(
            text.contains(&format!("{series} {value}\n")),
            "{series} in {text}"
        );
    }
    assert!(!text.contains(&removed.to_string()), "{text}");
    let labels = format!("{{model_name=\"small\",service=\"ai/chat\",service_id=\"{asked}\"}}");
    for (name, value) in [
        ("generation_tokens_total", "11"),
        ("prefix_cache_hits_total", "4"),
        ("inter_token_latency_seconds_count", "10"),
        ("time_to_first_token_seconds_sum", "0.02"),
        ("num_requests_running", "0"),
    ] {
        let line = format!("vllm:{name}{labels} {value}");
        assert!(
            text.lines().any(|found| found.starts_with(&line)),
            "{line} is not in {text}"
        );
    }
    assert!(
        text.contains("tram_wake_seconds_count{outcome=\"failed\"} 1"),
        "{text}"
    );

    // A proxy's client, or a stranger, needs a token.
    let refused = client
        .get(format!("http://{address}/metrics"))
        .header("x-forwarded-for", "192.0.2.1")
        .send()
        .await
        .expect("an answer");
    assert_eq!(refused.status(), 401);

    assert_eq!(
        parse(&exposition(&house.metrics, &house.link).await),
        documented()
    );
}

/// A question that was counted.
fn question(service: ServiceId) -> Attributed {
    Attributed {
        record: TokenRecord {
            question_id: Uuid::new_v4(),
            request_id: String::new(),
            service_id: service,
            deployment_id: None,
            organization_id: None,
            tenant: None,
            endpoint: inference::Endpoint::ChatCompletions,
            model: "chat".to_owned(),
            asked: None,
            prompt_tokens: 7,
            completion_tokens: 11,
            cached_tokens: 4,
            queue_ms: 0,
            ttft_ms: Some(20),
            duration_ms: 120,
            status: 200,
            outcome: inference::Outcome::Complete,
            finished_at: Timestamp::EPOCH,
        },
        organization: None,
        project: None,
        app: None,
        service_path: "ai/chat".to_owned(),
        model: "small".to_owned(),
        served: "small".to_owned(),
    }
}

/// A request for the service, and its answer's status and text.
async fn ask(http: SocketAddr, traceparent: Option<&str>) -> (u16, String) {
    let mut request = reqwest::Client::new()
        .get(format!("http://{http}/hello"))
        .header("host", "shop.localhost");
    if let Some(traceparent) = traceparent {
        request = request.header("traceparent", traceparent);
    }
    let answer = tokio::time::timeout(PATIENCE, request.send())
        .await
        .expect("in time")
        .expect("an answer");
    (answer.status().as_u16(), answer.text().await.expect("text"))
}

/// A collector that takes OTLP in JSON.
async fn collector() -> (SocketAddr, Arc<Mutex<Vec<Value>>>) {
    let spans: Arc<Mutex<Vec<Value>>> = Arc::default();
    let kept = Arc::clone(&spans);
    let take = move |Json(message): Json<Value>| {
        let mut kept = kept.lock().expect("nobody panicked");
        for resource in message["resourceSpans"].as_array().into_iter().flatten() {
            for scope in resource["scopeSpans"].as_array().into_iter().flatten() {
                for span in scope["spans"].as_array().into_iter().flatten() {
                    let mut span = span.clone();
                    span["scope"] = scope["scope"]["name"].clone();
                    kept.push(span);
                }
            }
        }
        std::future::ready(Json(Value::Object(serde_json::Map::new())))
    };
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let router = Router::new().route("/v1/traces", post(take));
    tokio::spawn(async move { axum::serve(listener, router).await });
    (address, spans)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_request_of_a_sleeping_service_is_one_trace() {
    let (collector, spans) = collector().await;
    let _ = rustls::crypto::ring::default_provider().install_default();
    let traces = Traces::start(&format!("http://{collector}"), "tram-test")
        .expect("a good endpoint")
        .expect("on");
    let house = House::build(true).await;
    let program = Router::new().route("/hello", axum::routing::get(|| async { "awake" }));
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move { axum::serve(listener, program).await });

    let sleeping = Service::new(Uuid::new_v4(), "shop/web", State::Sleeping);
    house
        .hears(|event| matches!(event, Event::Connected { .. }))
        .await;
    house
        .link
        .push(&table(1, sleeping.clone()))
        .await
        .expect("in force");
    let trace_id = "4bf92f3577b34da6a3ce929d0e0e4736";
    let http = house.http;
    let caller =
        tokio::spawn(async move { ask(http, Some(&format!("00-{trace_id}-00f067aa0ba902b7-01"))).await });
    house.hears(|event| matches!(event, Event::Wake { .. })).await;
    let starting = State::Starting {
        since: jiff::Timestamp::now(),
    };
    let ready = Service {
        state: State::Ready,
        endpoints: vec![Endpoint {
            instance_id: Uuid::new_v4(),
            addresses: [(PORT, address)].into(),
            weight: 1,
            canary: false,
            deployment_id: None,
        }],
        ..sleeping.clone()
    };
    house
        .link
        .push(&table(
            2,
            Service {
                state: starting,
                ..sleeping
            },
        ))
        .await
        .expect("in force");
    house.link.push(&table(3, ready)).await.expect("in force");
    assert_eq!(caller.await.expect("no panic"), (200, "awake".to_owned()));

    let wanted: BTreeSet<(String, String)> = [
        ("tram-edge", "GET /"),
        ("tram-control-plane", "wake"),
        ("tram-control-plane", "plan"),
        ("tram-control-plane", "start"),
    ]
    .map(|(scope, name)| (scope.to_owned(), name.to_owned()))
    .into();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let seen: Vec<Value> = spans.lock().expect("nobody panicked").clone();
        let of_trace: BTreeMap<(String, String), &Value> = seen
            .iter()
            .filter(|span| span["traceId"] == trace_id)
            .map(|span| {
                let text = |key: &str| span[key].as_str().unwrap_or_default().to_owned();
                ((text("scope"), text("name")), span)
            })
            .collect();
        if of_trace.keys().cloned().collect::<BTreeSet<_>>() == wanted {
            let id = |scope: &str, name: &str, key: &str| {
                of_trace[&(scope.to_owned(), name.to_owned())][key].clone()
            };
            assert_eq!(
                id("tram-control-plane", "wake", "parentSpanId"),
                id("tram-edge", "GET /", "spanId")
            );
            assert_eq!(
                id("tram-control-plane", "start", "parentSpanId"),
                id("tram-control-plane", "wake", "spanId")
            );
            break;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "not the spans wanted: {seen:#?}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let flushed = tokio::task::spawn_blocking(move || traces.finish());
    tokio::time::timeout(PATIENCE, flushed)
        .await
        .expect("ends in time")
        .expect("no panic");
}
