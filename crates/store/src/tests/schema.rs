//! The schema: what the records say, what an upgrade leaves, and what is refused.

use std::collections::BTreeSet;

use sqlx::{AnyConnection, Connection as _};
use tram_types::Clock as _;

use super::fixture::Fixture;
use crate::{
    Error, Store,
    controller::{live_deployments, live_instances},
    database::{Database, Kind},
    migrate::{self, MIGRATIONS},
    record::{
        Activity, App, Claim, Credential, Deployment, Domain, Event, Instance, InstanceSnapshot, ModelLimit,
        ModelRoute, Organization, Project, ProxyPort, Record, RegionalDeployment, Secret, Service,
        ServicePool, Snapshot, Volume,
    },
    sql::{Sql, read},
};

const DOING: &str = "testing";

/// `table.column type nullable` and the definitions of indexes.
async fn shape(store: &Store) -> BTreeSet<String> {
    shape_of(store.database()).await
}

async fn shape_of(database: &Database) -> BTreeSet<String> {
    let columns = if database.is_postgres() {
        "SELECT CAST(table_name || '.' || column_name || ' ' || data_type || ' ' || is_nullable AS TEXT) AS value \
         FROM information_schema.columns WHERE table_schema = 'public'"
    } else {
        "SELECT tables.name || '.' || columns.name || ' ' || columns.type || ' ' || columns.\"notnull\" AS value \
         FROM sqlite_master tables, pragma_table_info(tables.name) columns WHERE tables.type = 'table'"
    };
    let indexes = if database.is_postgres() {
        "SELECT CAST(indexdef AS TEXT) AS value FROM pg_indexes WHERE schemaname = 'public'"
    } else {
        "SELECT COALESCE(sql, name) AS value FROM sqlite_master WHERE type = 'index'"
    };
    let mut all = BTreeSet::new();
    for sql in [columns, indexes] {
        let mut connection = database.read(DOING).await.unwrap();
        all.extend(
            Sql::new(sql)
                .values::<String>(&mut connection, DOING)
                .await
                .unwrap(),
        );
    }
    all
}

pub(super) async fn records_match_their_tables(fixture: &Fixture) {
    let shape = shape(&fixture.store).await;
    let check = |table: &str, columns: &[&str], hidden: &[&str]| {
        let kept: BTreeSet<&str> = shape
            .iter()
            .filter_map(|line| line.strip_prefix(table)?.strip_prefix('.')?.split(' ').next())
            .collect();
        let named: BTreeSet<&str> = columns.iter().chain(hidden).copied().collect();
        assert_eq!(kept, named, "{table}");
    };
    macro_rules! check {
        ($($record:ty),+ $(,)?) => {$( check(<$record>::TABLE, <$record>::COLUMNS, &[]); )+};
    }
    check!(
        Organization,
        Project,
        Credential,
        App,
        Service,
        Deployment,
        RegionalDeployment,
        Instance,
        Domain,
        ProxyPort,
        Event,
        Activity,
        Volume,
        Snapshot,
        ServicePool,
        Claim,
        InstanceSnapshot,
        ModelLimit,
        ModelRoute,
    );
    check(Secret::TABLE, Secret::COLUMNS, &["key_id", "ciphertext"]);
}

pub(super) async fn an_upgraded_database_equals_a_fresh_one(fixture: &Fixture) {
    let fresh = shape(&fixture.store).await;
    // Version after version, each in a run of its own, as an installation that never missed a release saw them.
    let url = sibling(fixture, "upgraded").await;
    let database = Database::open(Kind::of_url(&url).unwrap()).await.unwrap();
    for count in 1..=MIGRATIONS.len() {
        migrate::run_to(&database, fixture.clock.now(), &MIGRATIONS[..count])
            .await
            .unwrap();
    }
    assert_eq!(shape_of(&database).await, fresh);
    // Each statement may run again without harm: a restored `schema_version` does not break the start.
    let forget = Sql::new("DELETE FROM schema_version");
    forget
        .run(&mut database.writer(DOING).await.unwrap(), DOING)
        .await
        .unwrap();
    migrate::run(&database, fixture.clock.now()).await.unwrap();
    assert_eq!(shape_of(&database).await, fresh);
    database.close().await;
}

pub(super) async fn a_newer_database_is_refused(fixture: &Fixture) {
    let store = &fixture.store;
    let newer = Sql::new("INSERT INTO schema_version (version, name, applied_at) VALUES (9999, 'later', 0)");
    store.write_one(newer, &[], DOING).await.unwrap();
    let error = Store::open(fixture.options.clone()).await.unwrap_err();
    assert!(matches!(error, Error::NewerSchema { found: 9999, .. }), "{error}");
    assert!(error.to_string().contains("start the newer version"), "{error}");
}

/// Another, empty database beside the fixture's.
async fn sibling(fixture: &Fixture, name: &str) -> String {
    let Kind::Postgres { url } = &fixture.store.database().kind else {
        return format!("sqlite://{}", fixture.directory.path().join(name).display());
    };
    let mut connection = AnyConnection::connect(url).await.unwrap();
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}")))
        .execute(&mut connection)
        .await
        .unwrap();
    let row = Sql::new("SELECT CAST(current_database() AS TEXT) AS value")
        .rows(&mut connection, DOING)
        .await
        .unwrap();
    let current: String = read(&row[0], "value", DOING).unwrap();
    connection.close().await.unwrap();
    url.replace(&format!("/{current}?"), &format!("/{name}?"))
}

/// What is asked with every reconciliation must not slow down with the number of services or their past.
#[tokio::test]
async fn the_statements_of_one_service_use_their_indexes() {
    let fixture = Fixture::sqlite().await;
    let id = tram_types::ServiceId::random();
    for (sql, index) in [
        (live_deployments(id), "deployments_service_id_live"),
        (live_instances(id), "instances_service_id_live"),
    ] {
        let plan = sql.behind("EXPLAIN QUERY PLAN ");
        let rows = plan
            .rows(&mut fixture.store.database().read(DOING).await.unwrap(), DOING)
            .await
            .unwrap();
        let steps: Vec<String> = rows
            .iter()
            .map(|row| read(row, "detail", DOING).unwrap())
            .collect();
        assert_eq!(steps.len(), 1, "{steps:?}");
        assert!(
            steps[0].starts_with("SEARCH") && steps[0].contains(index),
            "{steps:?}"
        );
    }
}

#[test]
fn every_file_is_a_step_and_every_step_a_file() {
    let directory = "migrations";
    let files: BTreeSet<String> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let steps: BTreeSet<String> = MIGRATIONS
        .iter()
        .map(|step| format!("{}.sql", step.name))
        .collect();
    assert_eq!(files, steps);
    // A number may be left out. It must not be filled in later: who is past it would never run it.
    assert!(MIGRATIONS.is_sorted_by(|one, next| one.version < next.version));
    for step in MIGRATIONS {
        assert!(
            step.name.starts_with(&format!("{:04}_", step.version)),
            "{}",
            step.name
        );
        assert_eq!(
            step.statement.matches(';').count(),
            1,
            "{}: one statement a file",
            step.name
        );
        assert!(
            step.statement.contains("IF NOT EXISTS") || step.statement.starts_with("DELETE FROM"),
            "{}: twice does no harm",
            step.name
        );
    }
}
