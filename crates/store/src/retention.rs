//! What is forgotten with time, so that the database does not grow for ever. What still serves is never touched.

use std::{collections::BTreeSet, time::Duration};

use tram_types::{DeploymentId, InstanceId, Timestamp};

use crate::{
    Store,
    error::Result,
    sql::{Sql, read},
};

/// How long, and how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Ended deployments younger than this stay.
    pub deployments_age: Duration,
    /// So many of the newest deployments of a service stay, whatever their age: what people roll back to.
    pub deployments_per_service: u32,
    /// Ended, forgotten instances younger than this stay.
    pub instances_age: Duration,
    /// So many of the newest instances of a service may stay, however young: a crash loop makes thousands a week.
    pub instances_per_service: u32,
    /// Events younger than this stay.
    pub events_age: Duration,
    /// Entries of the audit feed younger than this stay.
    pub activities_age: Duration,
    /// What questions to models cost younger than this stays.
    pub usages_age: Duration,
    /// Tokens that expired less than this ago stay: who wonders why one stopped to work still finds it.
    pub credentials_age: Duration,
}

/// A day.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

impl Default for Retention {
    /// As long as upstream keeps build logs, and a year of audit.
    fn default() -> Self {
        Self {
            deployments_age: DAY.saturating_mul(30),
            deployments_per_service: 20,
            instances_age: DAY.saturating_mul(30),
            instances_per_service: 200,
            events_age: DAY.saturating_mul(30),
            activities_age: DAY.saturating_mul(365),
            // What `GET /v1/usages` adds up in one answer: three years.
            usages_age: DAY.saturating_mul(3 * 366),
            credentials_age: DAY,
        }
    }
}

/// Rows that one statement removes: other writers wait for it, so it must be short.
const PRUNE_ROWS_MAX: u32 = 500;

/// An instance that may be removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrunableInstance {
    /// Which.
    pub id: InstanceId,
    /// Where its logs are.
    pub region: String,
}

/// What one call removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Deployments.
    pub deployments: u64,
    /// Instances.
    pub instances: u64,
    /// Events.
    pub events: u64,
    /// Entries of the audit feed.
    pub activities: u64,
    /// Expired tokens.
    pub credentials: u64,
    /// Hours of what questions to models cost, and journals that nobody writes any more.
    pub usages: u64,
}

impl Pruned {
    /// Whether there may be more to remove: call again.
    #[must_use]
    pub fn is_partial(&self) -> bool {
        [
            self.deployments,
            self.instances,
            self.events,
            self.activities,
            self.credentials,
            self.usages,
        ]
        .into_iter()
        .any(|rows| rows >= u64::from(PRUNE_ROWS_MAX))
    }
}

impl Store {
    /// Removes history that is older than the limits: a bounded piece a call. Instances and deployments have logs at
    /// their sites, which have to go first: see [`Store::prunable_instances`] and [`Store::prunable_deployments`].
    ///
    /// # Errors
    /// [`Error::Unavailable`](crate::Error::Unavailable).
    pub async fn prune(&self, limits: &Retention) -> Result<Pruned> {
        let now = self.now();
        Ok(Pruned {
            events: self
                .prune_by_age("events", "occurred_at", now.minus(limits.events_age))
                .await?,
            activities: self
                .prune_by_age("activities", "created_at", now.minus(limits.activities_age))
                .await?,
            // Those without an end have none to be past.
            credentials: self
                .prune_by_age("credentials", "expires_at", now.minus(limits.credentials_age))
                .await?,
            usages: self.prune_usages(now.minus(limits.usages_age)).await?,
            ..Pruned::default()
        })
    }

    /// Ended instances beyond the limits, a bounded number, but none in the regions `away`, whose sites do not answer.
    ///
    /// # Errors
    /// [`Error::Unavailable`](crate::Error::Unavailable).
    pub async fn prunable_instances(
        &self,
        limits: &Retention,
        away: &BTreeSet<String>,
    ) -> Result<Vec<PrunableInstance>> {
        let mut sql = Sql::new(
            "SELECT id, region FROM (SELECT id, region, created_at, forgotten, status, \
             ROW_NUMBER() OVER (PARTITION BY service_id ORDER BY created_at DESC, id DESC) AS place \
             FROM instances) AS ranked WHERE forgotten = 1 AND status IN ('STOPPED', 'ERROR') \
             AND (created_at < $1 OR place > $2)",
        )
        .bind(&self.now().minus(limits.instances_age))
        .bind(&limits.instances_per_service);
        self.prunable(&mut sql, away).await
    }

    /// Ended deployments beyond the limits that nothing refers to, a bounded number.
    ///
    /// # Errors
    /// [`Error::Unavailable`](crate::Error::Unavailable).
    pub async fn prunable_deployments(&self, limits: &Retention) -> Result<Vec<DeploymentId>> {
        const DOING: &str = "looking for old deployments";
        Sql::new(
            "SELECT id AS value FROM (SELECT deployments.id, deployments.created_at, deployments.status, \
             deployments.service_id, ROW_NUMBER() OVER (PARTITION BY deployments.service_id \
             ORDER BY deployments.version DESC) AS place FROM deployments) AS ranked \
             WHERE status IN ('CANCELED', 'STOPPED', 'ERROR', 'STASHED') AND created_at < $1 AND place > $2 \
             AND NOT EXISTS (SELECT 1 FROM services WHERE services.id = ranked.service_id AND \
             (services.active_deployment_id = ranked.id OR services.latest_deployment_id = ranked.id \
             OR services.last_provisioned_deployment_id = ranked.id)) \
             AND NOT EXISTS (SELECT 1 FROM instances WHERE instances.deployment_id = ranked.id \
             AND instances.forgotten = 0) LIMIT $3",
        )
        .bind(&self.now().minus(limits.deployments_age))
        .bind(&limits.deployments_per_service)
        .bind(&PRUNE_ROWS_MAX)
        .values(&mut *self.database().read(DOING).await?, DOING)
        .await
    }

    /// Instances of deployments that are to go, a bounded number, but none in the regions `away`.
    ///
    /// # Errors
    /// [`Error::Unavailable`](crate::Error::Unavailable).
    pub async fn instances_of_deployments(
        &self,
        deployments: &[DeploymentId],
        away: &BTreeSet<String>,
    ) -> Result<Vec<PrunableInstance>> {
        if deployments.is_empty() {
            return Ok(Vec::new());
        }
        let mut sql = Sql::new("SELECT id, region FROM instances WHERE forgotten = 1");
        sql.push_any_of("deployment_id", deployments);
        self.prunable(&mut sql, away).await
    }

    async fn prunable(&self, sql: &mut Sql, away: &BTreeSet<String>) -> Result<Vec<PrunableInstance>> {
        const DOING: &str = "looking for old instances";
        for region in away {
            sql.push(" AND region <> ", region);
        }
        sql.push(" LIMIT ", &PRUNE_ROWS_MAX);
        // Not where others wait to write: the ranking reads the whole table.
        let rows = sql.rows(&mut *self.database().read(DOING).await?, DOING).await?;
        rows.iter()
            .map(|row| {
                Ok(PrunableInstance {
                    id: read(row, "id", DOING)?,
                    region: read(row, "region", DOING)?,
                })
            })
            .collect()
    }

    /// Removes ended instances whose logs are gone; tells how many.
    ///
    /// # Errors
    /// [`Error::Unavailable`](crate::Error::Unavailable).
    pub async fn remove_instances(&self, ids: &[InstanceId]) -> Result<u64> {
        if ids.is_empty() {
            return Ok(0);
        }
        let mut sql =
            Sql::new("DELETE FROM instances WHERE forgotten = 1 AND status IN ('STOPPED', 'ERROR')");
        sql.push_any_of("id", ids);
        self.write_one(sql, &[], "pruning instances").await
    }

    /// Removes ended deployments that have no instances any more; tells how many.
    ///
    /// # Errors
    /// [`Error::Unavailable`](crate::Error::Unavailable).
    pub async fn remove_deployments(&self, ids: &[DeploymentId]) -> Result<u64> {
        const DOING: &str = "pruning deployments";
        if ids.is_empty() {
            return Ok(0);
        }
        let mut transaction = self.database().write(DOING).await?;
        let mut sql = Sql::new(
            "SELECT id AS value FROM deployments WHERE status IN ('CANCELED', 'STOPPED', 'ERROR', 'STASHED') \
             AND NOT EXISTS (SELECT 1 FROM instances WHERE instances.deployment_id = deployments.id)",
        );
        sql.push_any_of("id", ids);
        let empty: Vec<DeploymentId> = sql.values(&mut transaction, DOING).await?;
        let mut rows = 0;
        if !empty.is_empty() {
            for (table, column) in [("regional_deployments", "deployment_id"), ("deployments", "id")] {
                let mut sql = Sql::new(format!("DELETE FROM {table} WHERE 1 = 1"));
                sql.push_any_of(column, &empty);
                rows = sql.run(&mut transaction, DOING).await?;
            }
        }
        self.commit(transaction, DOING).await?;
        Ok(rows)
    }

    async fn prune_by_age(
        &self,
        table: &'static str,
        column: &'static str,
        before: Timestamp,
    ) -> Result<u64> {
        let sql = Sql::new(format!(
            "DELETE FROM {table} WHERE id IN (SELECT id FROM {table} WHERE {column} < $1 ORDER BY {column} LIMIT $2)"
        ))
        .bind(&before)
        .bind(&PRUNE_ROWS_MAX);
        self.write_one(sql, &[], "pruning history").await
    }
}
