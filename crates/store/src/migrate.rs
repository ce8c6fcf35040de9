//! Bringing a database to the schema this program knows.
//!
//! One statement a file under `migrations/`, numbered, never changed once released; all that are missing run in one
//! transaction under a lock, so a crash in the middle leaves the old schema and two replicas never race. Each is
//! written so that running it twice does no harm.

use sqlx::{Any, Transaction};
use tram_types::Timestamp;

use crate::{
    database::{Database, commit},
    error::{Error, Result},
    sql::Sql,
};

/// The advisory lock of PostgreSQL under which schemas change; the number spells `tram` and a counter.
const MIGRATION_LOCK: i64 = 0x7472_616d_0001;

/// One step.
#[derive(Debug)]
pub(crate) struct Migration {
    pub(crate) version: i64,
    pub(crate) name: &'static str,
    pub(crate) statement: &'static str,
}

macro_rules! migrations {
    ($($version:literal $name:literal),+ $(,)?) => {
        /// Every step, oldest first.
        pub(crate) const MIGRATIONS: &[Migration] = &[$(
            Migration {
                version: $version,
                name: $name,
                statement: include_str!(concat!("../migrations/", $name, ".sql")),
            }
        ),+];
    };
}

migrations! {
    1 "0001_create_settings",
    2 "0002_create_organizations",
    3 "0003_index_organizations_name",
    4 "0004_create_projects",
    5 "0005_index_projects_organization_id_name",
    6 "0006_create_credentials",
    7 "0007_index_credentials_token_sha256",
    8 "0008_index_credentials_organization_id_created_at",
    9 "0009_create_apps",
    10 "0010_index_apps_organization_id_name",
    11 "0011_index_apps_organization_id_created_at",
    12 "0012_create_services",
    13 "0013_index_services_app_id_name",
    14 "0014_index_services_organization_id_created_at",
    15 "0015_index_services_project_id",
    16 "0016_create_deployments",
    17 "0017_index_deployments_service_id_version",
    18 "0018_index_deployments_organization_id_created_at",
    19 "0019_index_deployments_app_id",
    20 "0020_index_deployments_service_id_live",
    21 "0021_index_deployments_project_id",
    22 "0022_create_regional_deployments",
    23 "0023_index_regional_deployments_deployment_id_region",
    24 "0024_index_regional_deployments_organization_id_created_at",
    25 "0025_index_regional_deployments_service_id",
    26 "0026_index_regional_deployments_app_id",
    27 "0027_index_regional_deployments_project_id",
    28 "0028_create_instances",
    29 "0029_index_instances_organization_id_created_at",
    30 "0030_index_instances_service_id_created_at",
    31 "0031_index_instances_service_id_live",
    32 "0032_index_instances_deployment_id",
    33 "0033_index_instances_regional_deployment_id",
    34 "0034_index_instances_app_id",
    35 "0035_create_secrets",
    36 "0036_index_secrets_scope_name",
    37 "0037_index_secrets_key_id",
    38 "0038_index_secrets_project_id",
    39 "0039_create_domains",
    40 "0040_index_domains_name",
    41 "0041_index_domains_organization_id_created_at",
    42 "0042_index_domains_app_id",
    43 "0043_index_domains_project_id",
    44 "0044_create_proxy_ports",
    45 "0045_index_proxy_ports_service_id_port",
    46 "0046_create_events",
    47 "0047_index_events_object_id_occurred_at",
    48 "0048_index_events_organization_id_object_kind_occurred_at",
    49 "0049_index_events_occurred_at",
    50 "0050_create_activities",
    51 "0051_index_activities_organization_id_created_at",
    52 "0052_index_activities_created_at",
    53 "0053_create_call_patterns",
    54 "0054_create_service_pools",
    55 "0055_index_service_pools_organization_id_name",
    56 "0056_create_pool_members",
    57 "0057_index_pool_members_pool_id",
    58 "0058_create_claims",
    59 "0059_index_claims_pool_id_request_id",
    60 "0060_create_volumes",
    61 "0061_index_volumes_scope_name",
    62 "0062_index_volumes_service_id",
    63 "0063_create_snapshots",
    64 "0064_index_snapshots_scope_name",
    65 "0065_create_instance_snapshots",
    66 "0066_index_instance_snapshots_organization_id_created_at",
    70 "0070_create_usage_positions",
    71 "0071_create_token_usages",
    72 "0072_index_token_usages_hour_at",
    73 "0073_create_model_limits",
    74 "0074_index_model_limits_organization_id",
    90 "0090_create_instance_snapshot_sizes",
    91 "0091_index_instance_snapshot_sizes_organization_id",
    92 "0092_forget_sizes_of_removed_instance_snapshots",
    97 "0097_create_secret_hosts",
    98 "0098_index_secret_hosts_organization_id",
    100 "0100_create_model_routes",
}

/// Brings the database up to date.
pub(crate) async fn run(database: &Database, now: Timestamp) -> Result<()> {
    run_to(database, now, MIGRATIONS).await
}

/// Brings the database to the last of these steps.
pub(crate) async fn run_to(database: &Database, now: Timestamp, steps: &[Migration]) -> Result<()> {
    const DOING: &str = "bringing the schema up to date";
    let mut transaction = database.write(DOING).await?;
    if database.is_postgres() {
        Sql::new("SELECT pg_advisory_xact_lock($1)")
            .bind(&MIGRATION_LOCK)
            .run(&mut transaction, DOING)
            .await?;
    }
    let found = version(&mut transaction).await?;
    let known = steps.last().map_or(0, |step| step.version);
    if found > known {
        return Err(Error::NewerSchema { found, known });
    }
    for step in steps.iter().filter(|step| step.version > found) {
        sqlx::raw_sql(step.statement)
            .execute(&mut *transaction)
            .await
            .map_err(|error| Error::unavailable(step.name, error))?;
        Sql::new("INSERT INTO schema_version (version, name, applied_at) VALUES ($1, $2, $3)")
            .bind(&step.version)
            .bind(&step.name.to_owned())
            .bind(&now)
            .run(&mut transaction, DOING)
            .await?;
    }
    commit(transaction, DOING).await?;
    if found < known {
        tracing::info!(from = found, to = known, "database schema brought up to date");
    }
    Ok(())
}

/// The version of the schema; makes the table that keeps it.
async fn version(transaction: &mut Transaction<'static, Any>) -> Result<i64> {
    const DOING: &str = "reading the version of the schema";
    Sql::new(
        "CREATE TABLE IF NOT EXISTS schema_version \
         (version BIGINT NOT NULL PRIMARY KEY, name TEXT NOT NULL, applied_at BIGINT NOT NULL)",
    )
    .run(transaction, DOING)
    .await?;
    Ok(
        Sql::new("SELECT COALESCE(MAX(version), 0) AS value FROM schema_version")
            .value(transaction, DOING)
            .await?
            .unwrap_or(0),
    )
}
