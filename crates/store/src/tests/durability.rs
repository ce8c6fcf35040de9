//! An intent that was answered survives the death of the process, and what it costs.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Command, Stdio},
    time::Instant,
};

use tram_types::OrganizationId;

use super::fixture::{Fixture, new_app};
use crate::{Options, Page, Store, filter, keyring};

/// Where the child keeps its database.
const CHILD_DIRECTORY: &str = "TRAM_STORE_TEST_DIRECTORY";
/// Answers before the kill: enough that the log was folded into the file at least once in some runs.
const ANSWERS: usize = 40;

fn options(directory: &std::path::Path) -> Options {
    Options {
        database_url: format!("sqlite://{}", directory.join("state/tram.db").display()),
        keyring: keyring::Settings {
            path: directory.join("keys/keyring"),
            create: true,
        },
        proxy_ports: 20_000..=20_010,
        clock: std::sync::Arc::new(tram_types::SystemClock),
    }
}

/// Not a test of its own: the process that the next one kills. Makes apps and prints the name of each once the store
/// has accepted it.
#[tokio::test]
async fn child_that_is_killed() {
    let Some(directory) = std::env::var_os(CHILD_DIRECTORY) else {
        return;
    };
    let store = Store::open(options(directory.as_ref())).await.unwrap();
    let organization = OrganizationId::random();
    store
        .create_organization(organization, "org", tram_types::ProjectId::random(), "default")
        .await
        .unwrap();
    let mut out = std::io::stdout();
    writeln!(out, "\norganization {organization}").unwrap();
    for index in 0_u64.. {
        let name = format!("app-{index}");
        store.create_app(new_app(organization, &name)).await.unwrap();
        writeln!(out, "accepted {name}").unwrap();
        out.flush().unwrap();
    }
}

#[tokio::test]
async fn an_accepted_intent_survives_kill_9() {
    let directory = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "tests::durability::child_that_is_killed",
            "--nocapture",
        ])
        .env(CHILD_DIRECTORY, directory.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut organization = None;
    let mut accepted = Vec::new();
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        if let Some(id) = line.strip_prefix("organization ") {
            organization = Some(id.parse::<OrganizationId>().unwrap());
        }
        if let Some(name) = line.strip_prefix("accepted ") {
            accepted.push(name.to_owned());
        }
        if accepted.len() == ANSWERS {
            child.kill().unwrap();
            break;
        }
    }
    child.wait().unwrap();
    assert_eq!(accepted.len(), ANSWERS, "the child ended too early");
    let store = Store::open(options(directory.path())).await.unwrap();
    for name in &accepted {
        let found = store.app_by_name(organization.unwrap(), name).await.unwrap();
        assert!(found.is_some(), "{name} was accepted and is gone");
    }
    let all = store
        .list_apps(
            organization.unwrap(),
            &filter::Apps::default(),
            Page { limit: 1, offset: 0 },
        )
        .await
        .unwrap();
    assert!(all.count >= ANSWERS as u64);
}

/// Figures for docs/concepts/state.md: `cargo nextest run -p tram-store --run-ignored only figures --no-capture`.
#[tokio::test]
#[ignore = "prints figures, proves nothing"]
async fn figures() {
    const SERVICES: u32 = 1_000;
    const COMMITS: u32 = 500;
    const READS: u32 = 500;
    let fixture = Fixture::sqlite().await;
    let (organization, _) = fixture.organization().await;
    for mode in ["FULL", "NORMAL"] {
        let mut connection = fixture.store.database().writer("testing").await.unwrap();
        sqlx::raw_sql(sqlx::AssertSqlSafe(format!("PRAGMA synchronous = {mode}")))
            .execute(&mut *connection)
            .await
            .unwrap();
        drop(connection);
        let start = Instant::now();
        for _ in 0..COMMITS {
            fixture.app(organization).await;
        }
        println!("synchronous = {mode}: {:?} a commit", start.elapsed() / COMMITS);
    }
    for count in 1..=SERVICES {
        let made = fixture.service(organization).await;
        fixture.instance(&made).await;
        if count == 10 || count == SERVICES {
            let id = made.service.id;
            let start = Instant::now();
            for _ in 0..READS {
                fixture.store.load_service_state(id).await.unwrap();
            }
            println!(
                "{count} services: load_service_state {:?}",
                start.elapsed() / READS
            );
            let start = Instant::now();
            for _ in 0..READS {
                fixture.store.routed_service(id).await.unwrap();
            }
            println!("{count} services: routed_service {:?}", start.elapsed() / READS);
            let start = Instant::now();
            fixture.store.routing_snapshot().await.unwrap();
            println!("{count} services: routing_snapshot {:?}", start.elapsed());
            let start = Instant::now();
            fixture.store.services_needing_attention(None, 100).await.unwrap();
            println!(
                "{count} services: services_needing_attention(100) {:?}",
                start.elapsed()
            );
        }
    }
}
