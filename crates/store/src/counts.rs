//! How much an organization has: for quotas and dashboards.

use std::collections::BTreeMap;

use tram_types::{
    OrganizationId,
    status::{AppStatus, InstanceStatus, ServiceStatus},
};

use crate::{
    Store,
    column::Column,
    database::commit,
    error::Result,
    sql::{Sql, read},
};

/// How much of everything an organization has, as of one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Apps in each status; a status without any is left out.
    pub apps: BTreeMap<AppStatus, u64>,
    /// Services in each status.
    pub services: BTreeMap<ServiceStatus, u64>,
    /// Instances in each status, of those that were not forgotten.
    pub instances: BTreeMap<InstanceStatus, u64>,
    /// Instances of each instance type that are not over.
    pub instances_by_type: BTreeMap<String, u64>,
    /// Domains.
    pub domains: u64,
    /// Secrets.
    pub secrets: u64,
    /// Projects.
    pub projects: u64,
    /// Public TCP ports.
    pub proxy_ports: u64,
}

const DOING: &str = "counting what an organization has";

impl Store {
    /// How much an organization has.
    ///
    /// # Errors
    /// [`Error::Unavailable`](crate::Error::Unavailable).
    pub async fn counts(&self, organization: OrganizationId) -> Result<Counts> {
        let mut snapshot = self.database().snapshot(DOING).await?;
        let counts = Counts {
            apps: by(&mut snapshot, organization, "apps", "status", "").await?,
            services: by(&mut snapshot, organization, "services", "status", "").await?,
            instances: by(
                &mut snapshot,
                organization,
                "instances",
                "status",
                "AND forgotten = 0",
            )
            .await?,
            instances_by_type: by(
                &mut snapshot,
                organization,
                "instances",
                "instance_type",
                "AND forgotten = 0 AND status NOT IN ('STOPPED', 'ERROR')",
            )
            .await?,
            domains: of(&mut snapshot, organization, "domains").await?,
            secrets: of(&mut snapshot, organization, "secrets").await?,
            projects: of(&mut snapshot, organization, "projects").await?,
            proxy_ports: of(&mut snapshot, organization, "proxy_ports").await?,
        };
        commit(snapshot, DOING).await?;
        Ok(counts)
    }
}

async fn by<K: Column + Ord>(
    connection: &mut sqlx::AnyConnection,
    organization: OrganizationId,
    table: &'static str,
    column: &'static str,
    condition: &'static str,
) -> Result<BTreeMap<K, u64>> {
    let rows = Sql::new(format!(
        "SELECT {column} AS value, COUNT(*) AS rows_counted FROM {table} WHERE organization_id = $1 {condition} \
         GROUP BY {column}"
    ))
    .bind(&organization)
    .rows(connection, DOING)
    .await?;
    rows.iter()
        .map(|row| Ok((read(row, "value", DOING)?, read(row, "rows_counted", DOING)?)))
        .collect()
}

async fn of(
    connection: &mut sqlx::AnyConnection,
    organization: OrganizationId,
    table: &'static str,
) -> Result<u64> {
    let sql = Sql::new(format!(
        "SELECT COUNT(*) AS value FROM {table} WHERE organization_id = $1"
    ));
    Ok(sql
        .bind(&organization)
        .value(connection, DOING)
        .await?
        .unwrap_or(0))
}
