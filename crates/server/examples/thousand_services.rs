//! How fast services are created, become healthy and are deleted through the API, and whether the cost of one grows
//! with their number. The API and the controller as `tram up` connects them, on a real SQLite store; the site is in
//! memory, and there is no data plane. Every step is an HTTP request on loopback.
//!
//! `cargo run --release -p tram-server --example thousand_services [-- COUNT]`: prints a line a batch and, last, one
//! JSON object.

use std::{
    error::Error,
    io::Write as _,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tram_api::{ApiState, ImageVerdict, ImageVerifier};
use tram_controller::{
    Controller, ControllerHandle, Deps, Detached, NoObserver,
    domain::{Checker, Resolver, SystemResolver},
};
use tram_planner::Policy;
use tram_server::{bootstrap, figures::Figures, verifier::Domains};
use tram_site::{RegistryCredentials, Sites};
use tram_store::{Options, Store, keyring};
use tram_testkit::FakeSite;
use tram_types::{Clock, SystemClock};

/// Services of one app: apps of a thousand services are nobody's use.
const SERVICES_PER_APP: usize = 10;
/// Services made at a time.
const BATCH: usize = 100;
/// Between two looks at how far an app is.
const POLL: Duration = Duration::from_millis(5);
/// A batch that takes longer than this will never be done.
const DEADLINE: Duration = Duration::from_secs(300);

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let count = std::env::args()
        .nth(1)
        .map_or(Ok(1000), |text| text.parse::<usize>())?;
    // The client of the figures speaks plain HTTP, but is not made without this.
    let _ = rustls::crypto::ring::default_provider().install_default();
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(run(count))
}

async fn run(count: usize) -> Outcome<()> {
    let directory = tempfile::tempdir()?;
    let cloud = Cloud::start(directory.path()).await?;
    let mut out = std::io::stdout();
    let mut apps: Vec<App> = Vec::with_capacity(count.div_ceil(SERVICES_PER_APP));
    let (mut made, mut healthy_each) = (0, Vec::new());
    let began = Instant::now();
    while made < count {
        let batch = BATCH.min(count - made);
        let started = Instant::now();
        let first = apps.len();
        for _ in 0..batch.div_ceil(SERVICES_PER_APP) {
            let services = SERVICES_PER_APP.min(count - made);
            apps.push(cloud.create(apps.len(), services).await?);
            made += services;
        }
        for app in apps.iter().skip(first) {
            cloud
                .wait(app, |services| {
                    services.len() == app.services.len()
                        && services.iter().all(|service| service["status"] == "HEALTHY")
                })
                .await?;
        }
        healthy_each.push(milliseconds_each(started.elapsed(), batch));
        writeln!(
            out,
            "{made:5} healthy, {:6.2} ms each",
            healthy_each.last().unwrap_or(&0.0)
        )?;
    }
    let healthy_took = began.elapsed();
    let (mut left, mut deleted_each) = (made, Vec::new());
    let began = Instant::now();
    for batch in apps.chunks(BATCH / SERVICES_PER_APP) {
        let started = Instant::now();
        let mut deleted = 0;
        for app in batch {
            for service in &app.services {
                cloud
                    .call(Method::DELETE, &format!("/v1/services/{service}"), None)
                    .await?;
                deleted += 1;
            }
        }
        for app in batch {
            cloud.wait(app, <[Value]>::is_empty).await?;
        }
        left -= deleted;
        deleted_each.push(milliseconds_each(started.elapsed(), deleted));
        writeln!(
            out,
            "{left:5} left, {:6.2} ms each",
            deleted_each.last().unwrap_or(&0.0)
        )?;
    }
    let deleted_took = began.elapsed();
    cloud.stop().await?;
    let result = json!({
        "services": count,
        "healthy_per_second": count as f64 / healthy_took.as_secs_f64(),
        "deleted_per_second": count as f64 / deleted_took.as_secs_f64(),
        "milliseconds_each_healthy": healthy_each,
        "milliseconds_each_deleted": deleted_each,
    });
    writeln!(out, "{result}")?;
    Ok(())
}

fn milliseconds_each(took: Duration, count: usize) -> f64 {
    took.as_secs_f64() * 1e3 / count as f64
}

/// An app and the ids of its services.
struct App {
    id: String,
    services: Vec<String>,
}

/// API and controller on one store, and a client of theirs.
struct Cloud {
    client: reqwest::Client,
    url: String,
    token: String,
    site: FakeSite,
    controller: ControllerHandle,
    api: tokio::task::JoinHandle<std::io::Result<()>>,
}

impl Cloud {
    async fn start(directory: &std::path::Path) -> Outcome<Self> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        for folder in ["data", "keys"] {
            std::fs::create_dir(directory.join(folder))?;
        }
        let store = Store::open(Options {
            database_url: format!("sqlite://{}", directory.join("data/tram.db").display()),
            keyring: keyring::Settings {
                path: directory.join("keys/secrets.key"),
                create: true,
            },
            proxy_ports: 30_000..=30_100,
            clock: Arc::clone(&clock),
        })
        .await?;
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let url = format!("http://{}", listener.local_addr()?);
        let context = directory.join("context.toml");
        let access = bootstrap::ensure(&store, "acme", &url, || Ok(context)).await?;
        let token = access.token.ok_or("a new store makes a token")?;
        let site = FakeSite::new(Arc::clone(&clock));
        let sites = Sites::single("fra", Arc::new(site.clone()));
        let catalog = Arc::new(tram_types::catalog::unlimited());
        let resolver: Arc<dyn Resolver> = Arc::new(SystemResolver);
        let domains = Checker::new(
            store.clone(),
            Arc::clone(&resolver),
            Arc::clone(&clock),
            "localhost",
        );
        let controller = Controller::start(Deps {
            store: store.clone(),
            sites: sites.clone(),
            data_plane: Arc::new(Detached),
            resolver,
            clock: Arc::clone(&clock),
            catalog: Arc::clone(&catalog),
            policy: Policy::default(),
            settings: tram_controller::Settings::default(),
            observer: Arc::new(NoObserver),
        });
        let settings = tram_api::Settings {
            base_domain: "localhost".to_owned(),
            api_url: url.clone(),
            sandbox_url: url.clone(),
            https_port: 443,
            proxy_host: "localhost".to_owned(),
            allowed_origins: Vec::new(),
            logs_retention_days: 1,
            metrics_retention_days: 1,
            snapshot_bytes_max: None,
            pool_members_max: 1000,
            snapshots_max: 1000,
        };
        let state = ApiState::new(
            store,
            sites,
            catalog,
            clock,
            settings,
            Arc::new(AnyImage),
            Arc::new(Domains(domains)),
            Arc::new(Figures::default()),
        );
        let service = tram_api::router(state).into_make_service_with_connect_info::<SocketAddr>();
        let api = tokio::spawn(async move { axum::serve(listener, service).await });
        let client = reqwest::Client::builder().build()?;
        Ok(Self {
            client,
            url,
            token,
            site,
            controller,
            api,
        })
    }

    async fn stop(self) -> Outcome<()> {
        if !self.site.is_empty() {
            return Err(format!("{} instances were left on the site", self.site.len()).into());
        }
        self.controller.shutdown().await;
        self.api.abort();
        Ok(())
    }

    /// One request; anything but 200 is an error.
    async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Outcome<Value> {
        let told = format!("{method} {path}");
        let mut request = self
            .client
            .request(method, format!("{}{path}", self.url))
            .bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let reply = request.send().await?;
        let status = reply.status();
        let body: Value = reply.json().await?;
        if status != reqwest::StatusCode::OK {
            return Err(format!("{told}: {status}: {body}").into());
        }
        Ok(body)
    }

    /// An app with services.
    async fn create(&self, number: usize, services: usize) -> Outcome<App> {
        let body = json!({ "name": format!("app-{number}") });
        let made = self.call(Method::POST, "/v1/apps", Some(body)).await?;
        let mut app = App {
            id: id(&made["app"])?,
            services: Vec::with_capacity(services),
        };
        for number in 0..services {
            let body = json!({ "app_id": app.id, "definition": definition(number) });
            let made = self.call(Method::POST, "/v1/services", Some(body)).await?;
            app.services.push(id(&made["service"])?);
        }
        Ok(app)
    }

    /// Until the services of an app are as wanted.
    async fn wait(&self, app: &App, wanted: impl Fn(&[Value]) -> bool) -> Outcome<()> {
        let began = Instant::now();
        loop {
            let path = format!("/v1/services?app_id={}&limit=100", app.id);
            let listed = self.call(Method::GET, &path, None).await?;
            let services = listed["services"].as_array().ok_or("a list has `services`")?;
            if wanted(services) {
                return Ok(());
            }
            if began.elapsed() > DEADLINE {
                return Err(format!("it never came true; last seen: {listed}").into());
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

fn id(object: &Value) -> Outcome<String> {
    let id = object["id"]
        .as_str()
        .ok_or_else(|| format!("no id in {object}"))?;
    Ok(id.to_owned())
}

fn definition(number: usize) -> Value {
    json!({
        "name": format!("web-{number}"), "type": "WEB", "regions": ["fra"],
        "docker": {"image": "nginx"},
        "ports": [{"port": 8000, "protocol": "http"}],
        "routes": [{"port": 8000, "path": format!("/{number}")}],
        "scalings": [{"min": 1, "max": 1}],
        "instance_types": [{"type": "micro"}],
    })
}

/// Images are not looked at: the site has none.
#[derive(Debug)]
struct AnyImage;

#[async_trait]
impl ImageVerifier for AnyImage {
    async fn verify(&self, _image: &str, _credentials: Option<RegistryCredentials>) -> ImageVerdict {
        ImageVerdict::Good
    }
}
