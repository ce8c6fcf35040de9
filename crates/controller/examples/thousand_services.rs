//! How fast the control plane makes services healthy and deletes them, and whether the cost of one grows with their
//! number. A real SQLite store, a site in memory, no data plane.
//!
//! `cargo run --release -p tram-controller --example thousand_services [-- COUNT]`: prints a line a batch and, last,
//! one JSON object.

use std::{
    error::Error,
    io::Write as _,
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tram_controller::{Controller, Deps, Detached, NoObserver, Settings, domain::SystemResolver};
use tram_planner::Policy;
use tram_site::Sites;
use tram_store::{
    Options, Store, filter,
    intent::{NewApp, NewDeployment, NewRegionalDeployment, NewService},
    keyring,
    record::Desired,
};
use tram_testkit::FakeSite;
use tram_types::{
    AppId, Clock, DeploymentId, OrganizationId, ProjectId, RegionalDeploymentId, ServiceId, SystemClock,
    status::{AppStatus, DeploymentStatus, ServiceStatus, ServiceType},
};

/// Services of one app: apps of a thousand services are nobody's use.
const SERVICES_PER_APP: usize = 10;
/// Services made at a time.
const BATCH: usize = 100;
/// Between two looks at how far a batch is.
const POLL: Duration = Duration::from_millis(5);
/// A batch that takes longer than this will never be done.
const DEADLINE: Duration = Duration::from_secs(300);

type Outcome<T> = Result<T, Box<dyn Error>>;

struct Bench {
    store: Store,
    organization: OrganizationId,
    project: ProjectId,
}

fn main() -> Outcome<()> {
    let count = std::env::args()
        .nth(1)
        .map_or(Ok(1000), |text| text.parse::<usize>())?;
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(run(count))
}

async fn run(count: usize) -> Outcome<()> {
    let directory = tempfile::tempdir()?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    for folder in ["data", "keys"] {
        std::fs::create_dir(directory.path().join(folder))?;
    }
    let store = Store::open(Options {
        database_url: format!("sqlite://{}", directory.path().join("data/tram.db").display()),
        keyring: keyring::Settings {
            path: directory.path().join("keys/secrets.key"),
            create: true,
        },
        proxy_ports: 30_000..=30_100,
        clock: Arc::clone(&clock),
    })
    .await?;
    let bench = Bench {
        store: store.clone(),
        organization: OrganizationId::random(),
        project: ProjectId::random(),
    };
    store
        .create_organization(bench.organization, "acme", bench.project, "default")
        .await?;
    let site = FakeSite::new(Arc::clone(&clock));
    let controller = Controller::start(Deps {
        store,
        sites: Sites::single("fra", Arc::new(site.clone())),
        data_plane: Arc::new(Detached),
        resolver: Arc::new(SystemResolver),
        clock,
        catalog: Arc::new(tram_types::catalog::unlimited()),
        policy: Policy::default(),
        settings: Settings::default(),
        observer: Arc::new(NoObserver),
    });
    let mut out = std::io::stdout();
    let mut services: Vec<ServiceId> = Vec::with_capacity(count);
    let mut per_batch = Vec::new();
    let began = Instant::now();
    while services.len() < count {
        let batch = BATCH.min(count - services.len());
        let started = Instant::now();
        for number in 0..batch {
            let number = services.len() + number;
            bench.create_app(number).await?;
        }
        let made = bench.create(services.len(), batch).await?;
        bench.wait(&made, ServiceStatus::Healthy).await?;
        services.extend(made);
        let took = started.elapsed();
        per_batch.push(milliseconds_each(took, batch));
        writeln!(
            out,
            "{:5} healthy: the last {batch} took {:6.0} ms, {:5.2} ms each",
            services.len(),
            took.as_secs_f64() * 1e3,
            milliseconds_each(took, batch)
        )?;
    }
    let healthy_took = began.elapsed();
    let began = Instant::now();
    let mut deleted_per_batch = Vec::new();
    for batch in services.chunks(BATCH) {
        let started = Instant::now();
        for id in batch {
            bench
                .store
                .set_service_desired(bench.organization, *id, Desired::Delete)
                .await?;
        }
        bench.wait_gone(batch).await?;
        deleted_per_batch.push(milliseconds_each(started.elapsed(), batch.len()));
    }
    let deleted_took = began.elapsed();
    if !site.is_empty() {
        return Err(format!("{} instances were left on the site", site.len()).into());
    }
    controller.shutdown().await;
    let rate = |took: Duration| count as f64 / took.as_secs_f64();
    let growth = match (per_batch.first(), per_batch.last()) {
        (Some(first), Some(last)) if *first > 0.0 => last / first,
        _ => 1.0,
    };
    let result = json!({
        "name": "thousand-services-controller",
        "services": count,
        "healthy_per_second": rate(healthy_took),
        "deleted_per_second": rate(deleted_took),
        "milliseconds_each_healthy": per_batch,
        "milliseconds_each_deleted": deleted_per_batch,
        "growth_last_over_first": growth,
    });
    writeln!(out, "{result}")?;
    Ok(())
}

fn milliseconds_each(took: Duration, count: usize) -> f64 {
    took.as_secs_f64() * 1e3 / count as f64
}

/// The same id for the same number, so that services find their app without keeping it.
fn app_id(number: usize) -> AppId {
    AppId::from_uuid(uuid::Uuid::from_u128(1 + (number / SERVICES_PER_APP) as u128))
}

impl Bench {
    async fn create_app(&self, number: usize) -> Outcome<()> {
        if !number.is_multiple_of(SERVICES_PER_APP) {
            return Ok(());
        }
        let app = NewApp {
            id: app_id(number),
            organization_id: self.organization,
            name: format!("app-{number}"),
            status: AppStatus::Healthy,
            delete_when_empty: false,
        };
        self.store.create_app(app).await?;
        Ok(())
    }

    async fn create(&self, from: usize, count: usize) -> Outcome<Vec<ServiceId>> {
        let mut made = Vec::with_capacity(count);
        for number in from..from + count {
            let service = NewService {
                id: ServiceId::random(),
                organization_id: self.organization,
                project_id: Some(self.project),
                app_id: app_id(number),
                name: format!("web-{number}"),
                kind: ServiceType::Web,
                delete_after_create_seconds: 0,
                delete_after_sleep_seconds: 0,
                deployment: deployment(number),
                proxy_ports: Vec::new(),
            };
            made.push(self.store.create_service(service).await?.service.id);
        }
        Ok(made)
    }

    async fn listed(&self, ids: &[ServiceId]) -> Outcome<Vec<tram_store::record::Service>> {
        let filter = filter::Services {
            ids: ids.to_vec(),
            ..filter::Services::default()
        };
        Ok(self
            .store
            .list_services(self.organization, &filter, filter::Page::largest())
            .await?
            .items)
    }

    async fn wait(&self, ids: &[ServiceId], status: ServiceStatus) -> Outcome<()> {
        let began = Instant::now();
        loop {
            let listed = self.listed(ids).await?;
            if listed.len() == ids.len() && listed.iter().all(|service| service.status == status) {
                return Ok(());
            }
            if began.elapsed() > DEADLINE {
                return Err(format!("services never became {status}").into());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn wait_gone(&self, ids: &[ServiceId]) -> Outcome<()> {
        let began = Instant::now();
        while !self.listed(ids).await?.is_empty() {
            if began.elapsed() > DEADLINE {
                return Err("services never went".into());
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }
}

fn deployment(number: usize) -> NewDeployment {
    NewDeployment {
        id: DeploymentId::random(),
        definition: definition(number),
        metadata: json!({}),
        status: DeploymentStatus::Pending,
        skip_build: false,
        deployment_group: "prod".to_owned(),
        instance_snapshot_id: String::new(),
        created_by: String::new(),
        regional: vec![NewRegionalDeployment {
            id: RegionalDeploymentId::random(),
            region: "fra".to_owned(),
            definition: json!({}),
        }],
    }
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
