//! What questions cost is counted once, whoever is killed: the edge that writes, and the control plane that counts.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says why and fails")]

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tram_edge::usage::Journal;
use tram_server::usage::{self, Counted};
use tram_store::{
    Attributed, Options, Store, Tokens,
    intent::{NewApp, NewDeployment, NewService},
    keyring,
};
use tram_types::{
    AppId, DeploymentId, OrganizationId, ProjectId, ServiceId, SystemClock, Timestamp,
    inference::{Endpoint, Outcome, TokenRecord},
    status::{AppStatus, DeploymentStatus, ServiceType},
};
use uuid::Uuid;

/// Long enough for a busy machine, short enough to fail.
const PATIENCE: Duration = Duration::from_secs(60);
const DIRECTORY: &str = "TRAM_USAGE_TEST_DIRECTORY";
const SERVICE: &str = "TRAM_USAGE_TEST_SERVICE";
const SEED: &str = "TRAM_TEST_SEED";
/// Times that each of the two is killed.
const ROUNDS: u32 = 12;

fn record(service: ServiceId) -> TokenRecord {
    TokenRecord {
        question_id: Uuid::new_v4(),
        request_id: String::new(),
        service_id: service,
        deployment_id: None,
        organization_id: None,
        tenant: None,
        endpoint: Endpoint::ChatCompletions,
        model: "chat".to_owned(),
        asked: None,
        prompt_tokens: 3,
        completion_tokens: 2,
        cached_tokens: 1,
        queue_ms: 0,
        ttft_ms: Some(1),
        duration_ms: 2,
        status: 200,
        outcome: Outcome::Complete,
        finished_at: Timestamp::from(jiff::Timestamp::now()),
    }
}

/// Counts what it is told.
#[derive(Debug, Default)]
struct Ear(AtomicU64);

impl Counted for Ear {
    fn counted(&self, records: &[Attributed]) {
        self.0.fetch_add(records.len() as u64, Ordering::SeqCst);
    }
}

async fn open(directory: &Path) -> Store {
    Store::open(Options {
        database_url: format!("sqlite://{}", directory.join("database/tram.db").display()),
        keyring: keyring::Settings {
            path: directory.join("keys/keyring"),
            create: true,
        },
        proxy_ports: 30000..=30010,
        clock: Arc::new(SystemClock),
    })
    .await
    .unwrap()
}

/// An organization with a service.
async fn house(store: &Store) -> (OrganizationId, ServiceId) {
    let (organization, service) = (OrganizationId::random(), ServiceId::random());
    store
        .create_organization(organization, "acme", ProjectId::random(), "default")
        .await
        .unwrap();
    let app = NewApp {
        id: AppId::random(),
        organization_id: organization,
        name: "ai".to_owned(),
        status: AppStatus::Healthy,
        delete_when_empty: false,
    };
    let app = store.create_app(app).await.unwrap();
    let new = NewService {
        id: service,
        organization_id: organization,
        project_id: None,
        app_id: app.id,
        name: "chat".to_owned(),
        kind: ServiceType::Web,
        delete_after_create_seconds: 0,
        delete_after_sleep_seconds: 0,
        deployment: NewDeployment {
            id: DeploymentId::random(),
            definition: json!({"name": "chat", "model": {"source": "small"}}),
            metadata: json!({}),
            status: DeploymentStatus::Pending,
            skip_build: false,
            deployment_group: "prod".to_owned(),
            instance_snapshot_id: String::new(),
            created_by: String::new(),
            regional: Vec::new(),
        },
        proxy_ports: Vec::new(),
    };
    store.create_service(new).await.unwrap();
    (organization, service)
}

async fn total(store: &Store, organization: OrganizationId) -> Tokens {
    let end = Timestamp::from_micros(i64::MAX);
    let sums = store.token_usages(organization, Timestamp::EPOCH, end, &[]).await;
    sums.unwrap()[0].tokens
}

/// The edge of this test: a process that appends as fast as it can and says so.
fn append_for_ever() -> bool {
    let Ok(directory) = std::env::var(DIRECTORY) else {
        return false;
    };
    let service: ServiceId = std::env::var(SERVICE).unwrap().parse().unwrap();
    let journal = Journal::open(Path::new(&directory)).unwrap();
    let mut stdout = std::io::stdout();
    loop {
        journal.append(&record(service));
        if writeln!(stdout, "appended")
            .and_then(|()| stdout.flush())
            .is_err()
        {
            return true;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_question_counts_once_whoever_is_killed() {
    if append_for_ever() {
        return;
    }
    let seed: u64 = std::env::var(SEED)
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(rand::random);
    let mut random = StdRng::seed_from_u64(seed);
    let directory = tempfile::tempdir().unwrap();
    let edge = directory.path().join("edge");
    let mut store = open(directory.path()).await;
    let (organization, service) = house(&store).await;
    let ear = Arc::new(Ear::default());
    let mut appended = 0_u64;
    for _ in 0..ROUNDS {
        let mut writer = Command::new(std::env::current_exe().unwrap())
            .args([
                "each_question_counts_once_whoever_is_killed",
                "--exact",
                "--nocapture",
            ])
            .env(DIRECTORY, &edge)
            .env(SERVICE, service.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(writer.stdout.take().unwrap()).lines();
        // The control plane, cut off in the midst of whatever it does, and begun anew, while the edge writes.
        let (counting, from) = (edge.clone(), store.clone());
        let listener = Arc::clone(&ear);
        let counter = tokio::spawn(async move {
            usage::run(&counting, from, vec![listener], CancellationToken::new()).await;
        });
        for _ in 0..random.random_range(1..400) {
            let line = lines.next().unwrap().unwrap();
            appended += u64::from(line.ends_with("appended"));
        }
        tokio::time::sleep(Duration::from_micros(random.random_range(0..700_000))).await;
        counter.abort();
        drop(counter.await);
        writer.kill().unwrap();
        writer.wait().unwrap();
        for line in lines.map_while(Result::ok) {
            appended += u64::from(line.ends_with("appended"));
        }
        // What it had open is gone with it; a commit under way happened or not.
        store.close().await;
        store = open(directory.path()).await;
    }
    let (counting, from) = (edge.clone(), store.clone());
    let stop = CancellationToken::new();
    let counter = tokio::spawn({
        let stop = stop.clone();
        async move { usage::run(&counting, from, vec![Arc::new(Ear::default())], stop).await }
    });
    let counted = async {
        loop {
            let sum = total(&store, organization).await;
            if sum.requests >= appended {
                return sum;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let sum = tokio::time::timeout(PATIENCE, counted).await;
    let sum = sum.unwrap_or_else(|_| panic!("seed {seed}: something that was appended is not counted"));
    stop.cancel();
    counter.await.unwrap();
    // Each writer may have written one more than it lived to say; nothing is there twice.
    assert!(
        sum.requests <= appended + u64::from(ROUNDS),
        "seed {seed}: {sum:?} of {appended}"
    );
    assert_eq!(
        (sum.prompt_tokens, sum.completion_tokens, sum.cached_tokens),
        (3 * sum.requests, 2 * sum.requests, sum.requests),
        "seed {seed}"
    );
    assert!(ear.0.load(Ordering::SeqCst) <= sum.requests, "seed {seed}");
}
