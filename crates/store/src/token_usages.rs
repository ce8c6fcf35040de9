//! What questions to models cost, added up: by the hour, service, model, project and token.
//!
//! The choice to know: what an edge's journal says and how far it was read are written in one transaction, and only if
//! it had been read exactly so far. So a record counts once, however often the reader is killed, and a second reader is
//! refused.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use sqlx::AnyConnection;
use tram_types::{
    AppId, CredentialId, DeploymentId, OrganizationId, ProjectId, ServiceId, Timestamp,
    inference::{JournalPosition, MODEL_MAX_BYTES, Outcome, TokenRecord},
};
use uuid::Uuid;

use crate::{
    Store,
    column::Column,
    error::{Error, Result},
    record::LimitScope,
    sql::{Sql, read},
};

/// An hour, in which everything is added up.
const HOUR_MICROS: i64 = 3_600_000_000;
/// Values that one statement looks up: below what both databases take as parameters.
const LOOKED_UP_MAX: usize = 1000;

/// What questions cost together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Questions.
    pub requests: u64,
    /// Those of them that were refused by the engine or broke off on our side.
    pub failed_requests: u64,
    /// Tokens of prompts, the cached ones among them.
    pub prompt_tokens: u64,
    /// Tokens of answers.
    pub completion_tokens: u64,
    /// Tokens of prompts that had not to be computed.
    pub cached_tokens: u64,
    /// Time that they waited for an instance, in milliseconds.
    pub queue_ms: u64,
    /// Questions that had a first byte of an answer.
    pub answered_requests: u64,
    /// Time until then, of those that had one, in milliseconds.
    pub ttft_ms: u64,
    /// Time until their end, in milliseconds.
    pub duration_ms: u64,
}

impl Tokens {
    /// The columns, in the order of [`Tokens::values`].
    const COLUMNS: [&'static str; 9] = [
        "requests",
        "failed_requests",
        "prompt_tokens",
        "completion_tokens",
        "cached_tokens",
        "queue_ms",
        "answered_requests",
        "ttft_ms",
        "duration_ms",
    ];

    const fn values(&self) -> [u64; 9] {
        [
            self.requests,
            self.failed_requests,
            self.prompt_tokens,
            self.completion_tokens,
            self.cached_tokens,
            self.queue_ms,
            self.answered_requests,
            self.ttft_ms,
            self.duration_ms,
        ]
    }

    /// One more question.
    fn add(&mut self, record: &TokenRecord) {
        let failed = matches!(record.outcome, Outcome::Failed | Outcome::Refused);
        for (sum, more) in [
            (&mut self.requests, 1),
            (&mut self.failed_requests, u64::from(failed)),
            (&mut self.prompt_tokens, record.prompt_tokens),
            (&mut self.completion_tokens, record.completion_tokens),
            (&mut self.cached_tokens, record.cached_tokens),
            (&mut self.queue_ms, record.queue_ms),
            (&mut self.answered_requests, u64::from(record.ttft_ms.is_some())),
            (&mut self.ttft_ms, record.ttft_ms.unwrap_or(0)),
            (&mut self.duration_ms, record.duration_ms),
        ] {
            *sum = sum.saturating_add(more.min(COUNT_MAX));
        }
    }
}

/// Most of anything that one question can be said to cost: a mad engine must not fill a sum of 63 bits.
const COUNT_MAX: u64 = 1 << 40;

/// A record, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attributed {
    /// What the edge wrote.
    pub record: TokenRecord,
    /// Whose service answered; none when the service and the token are gone.
    pub organization: Option<OrganizationId>,
    /// The service's project.
    pub project: Option<ProjectId>,
    /// The service's app.
    pub app: Option<AppId>,
    /// `app/service`; empty when it is gone.
    pub service_path: String,
    /// The model, as the question named it where that was an alias or an adapter; else as `served`.
    pub model: String,
    /// The model, as the deployment names it; else as the edge does.
    pub served: String,
}

/// By what usage is told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum By {
    /// The service, with its app.
    Service,
    /// The model.
    Model,
    /// The token that asked.
    Credential,
    /// The service's project.
    Project,
}

impl By {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Service, Self::Model, Self::Credential, Self::Project];

    const fn columns(self) -> &'static [&'static str] {
        match self {
            Self::Service => &["app_id", "service_id"],
            Self::Model => &["model"],
            Self::Credential => &["credential_id"],
            Self::Project => &["project_id"],
        }
    }
}

/// A sum. What it is not told apart by, and what is not known, is none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenUsage {
    /// The service.
    pub service: Option<ServiceId>,
    /// Its app.
    pub app: Option<AppId>,
    /// The model.
    pub model: Option<String>,
    /// The token that asked; none: somebody who reached the service's own URL.
    pub credential: Option<CredentialId>,
    /// The project.
    pub project: Option<ProjectId>,
    /// How much.
    pub tokens: Tokens,
}

/// What is told apart in a row.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    organization: String,
    hour: Timestamp,
    service: ServiceId,
    project: String,
    credential: String,
    model: String,
    app: String,
}

/// What is known of a service.
#[derive(Debug, Clone)]
struct Known {
    organization: OrganizationId,
    project: Option<ProjectId>,
    app: AppId,
    /// `app/service`.
    path: String,
    active: Option<DeploymentId>,
}

fn text<T: ToString>(id: Option<&T>) -> String {
    id.map(ToString::to_string).unwrap_or_default()
}

/// The first moment of the hour.
fn hour(at: Timestamp) -> Timestamp {
    let micros = at.as_micros();
    Timestamp::from_micros(micros.saturating_sub(micros.rem_euclid(HOUR_MICROS)))
}

impl Store {
    /// How far a journal was read.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn usage_position(&self, journal: Uuid) -> Result<JournalPosition> {
        const DOING: &str = "reading how far usage was counted";
        let rows = Sql::new("SELECT segment, read_bytes FROM usage_positions WHERE journal = $1")
            .bind(&journal)
            .rows(&mut *self.database().read(DOING).await?, DOING)
            .await?;
        match rows.first() {
            None => Ok(JournalPosition::start(journal)),
            Some(row) => Ok(JournalPosition {
                journal,
                segment: read(row, "segment", DOING)?,
                offset: read(row, "read_bytes", DOING)?,
            }),
        }
    }

    /// Adds up what stands in a journal between two positions, and remembers the second. Gives the records back with
    /// what is known of whose they are.
    ///
    /// # Errors
    /// [`Error::Conflict`] when it was not read exactly to `from`: nothing is added then, ask again for the position.
    /// [`Error::Unavailable`]: it may have been added all the same; ask again for the position.
    pub async fn add_usage(
        &self,
        records: Vec<TokenRecord>,
        from: JournalPosition,
        to: JournalPosition,
    ) -> Result<Vec<Attributed>> {
        const DOING: &str = "adding usage up";
        let mut transaction = self.database().write(DOING).await?;
        self.advance(&mut transaction, from, to, DOING).await?;
        let attributed = attribute(&mut transaction, records, DOING).await?;
        let mut sums: BTreeMap<Key, Tokens> = BTreeMap::new();
        for it in &attributed {
            let key = Key {
                organization: text(it.organization.as_ref()),
                hour: hour(it.record.finished_at),
                service: it.record.service_id,
                project: text(it.project.as_ref()),
                credential: text(it.record.tenant.as_ref()),
                model: it.model.clone(),
                app: text(it.app.as_ref()),
            };
            sums.entry(key).or_default().add(&it.record);
        }
        // In the order of their keys: two who write the same rows must not wait for each other.
        for (key, tokens) in &sums {
            add_row(&mut transaction, key, tokens, DOING).await?;
        }
        self.commit(transaction, DOING).await?;
        Ok(attributed)
    }

    /// Moves the position, if it is where it should be.
    async fn advance(
        &self,
        transaction: &mut AnyConnection,
        from: JournalPosition,
        to: JournalPosition,
        doing: &'static str,
    ) -> Result<()> {
        let moved = Sql::default()
            .with("UPDATE usage_positions SET segment = ", &to.segment)
            .with(", read_bytes = ", &to.offset)
            .with(", updated_at = ", &self.now())
            .with(" WHERE journal = ", &from.journal)
            .with(" AND segment = ", &from.segment)
            .with(" AND read_bytes = ", &from.offset)
            .run(transaction, doing)
            .await?;
        if moved == 1 {
            return Ok(());
        }
        let is_start = from == JournalPosition::start(from.journal);
        let begun = match is_start {
            false => 0,
            true => {
                Sql::new(
                    "INSERT INTO usage_positions (journal, segment, read_bytes, updated_at) \
                     VALUES ($1, $2, $3, $4) ON CONFLICT (journal) DO NOTHING",
                )
                .bind(&to.journal)
                .bind(&to.segment)
                .bind(&to.offset)
                .bind(&self.now())
                .run(transaction, doing)
                .await?
            }
        };
        match begun {
            1 => Ok(()),
            _ => Err(Error::conflict(
                "usage journal",
                from.journal,
                "somebody else counts it too",
            )),
        }
    }

    /// Sums of an organization, the largest first, of whole hours: those that begin before `to`, from the one on in which
    /// `from` lies.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn token_usages(
        &self,
        organization: OrganizationId,
        from: Timestamp,
        to: Timestamp,
        by: &[By],
    ) -> Result<Vec<TokenUsage>> {
        const DOING: &str = "reading usage";
        let columns: Vec<&str> = By::ALL
            .iter()
            .filter(|kind| by.contains(kind))
            .flat_map(|kind| kind.columns().iter().copied())
            .collect();
        let group = columns.join(", ");
        let sums: Vec<String> = Tokens::COLUMNS
            .iter()
            .map(|column| format!("CAST(COALESCE(SUM({column}), 0) AS BIGINT) AS {column}"))
            .collect();
        let separator = if group.is_empty() { "" } else { ", " };
        let mut sql = Sql::new(format!(
            "SELECT {group}{separator}{} FROM token_usages",
            sums.join(", ")
        ))
        .with(" WHERE organization_id = ", &organization)
        .with(" AND hour_at >= ", &hour(from))
        .with(" AND hour_at < ", &to);
        if !group.is_empty() {
            sql.add(&format!(
                " GROUP BY {group} ORDER BY SUM(prompt_tokens + completion_tokens) DESC, {group}"
            ));
        }
        let rows = sql.rows(&mut *self.database().read(DOING).await?, DOING).await?;
        rows.iter()
            .map(|row| {
                let mut usage = TokenUsage::default();
                for column in &columns {
                    match *column {
                        "service_id" => usage.service = id(row, "service_id", DOING)?,
                        "app_id" => usage.app = id(row, "app_id", DOING)?,
                        "credential_id" => usage.credential = id(row, "credential_id", DOING)?,
                        "project_id" => usage.project = id(row, "project_id", DOING)?,
                        _ => usage.model = Some(read(row, "model", DOING)?),
                    }
                }
                usage.tokens = Tokens {
                    requests: read(row, "requests", DOING)?,
                    failed_requests: read(row, "failed_requests", DOING)?,
                    prompt_tokens: read(row, "prompt_tokens", DOING)?,
                    completion_tokens: read(row, "completion_tokens", DOING)?,
                    cached_tokens: read(row, "cached_tokens", DOING)?,
                    queue_ms: read(row, "queue_ms", DOING)?,
                    answered_requests: read(row, "answered_requests", DOING)?,
                    ttft_ms: read(row, "ttft_ms", DOING)?,
                    duration_ms: read(row, "duration_ms", DOING)?,
                };
                Ok(usage)
            })
            .collect()
    }

    /// Tokens of prompts and answers in the hours from `since` on, of those that a limit counts.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn tokens_spent(
        &self,
        organization: OrganizationId,
        scope: LimitScope,
        subject: &str,
        since: Timestamp,
    ) -> Result<u64> {
        const DOING: &str = "reading what was spent";
        let mut sql = Sql::new(
            "SELECT CAST(COALESCE(SUM(prompt_tokens + completion_tokens), 0) AS BIGINT) AS value FROM token_usages",
        )
        .with(" WHERE organization_id = ", &organization)
        .with(" AND hour_at >= ", &since);
        let column = match scope {
            LimitScope::Organization => None,
            LimitScope::Project => Some(" AND project_id = "),
            LimitScope::Credential => Some(" AND credential_id = "),
        };
        if let Some(column) = column {
            sql.push(column, &subject.to_owned());
        }
        let spent = sql.value(&mut *self.database().read(DOING).await?, DOING).await?;
        Ok(spent.unwrap_or(0))
    }

    /// The same of an organization, its projects and its tokens, by their ids; who spent nothing is not there.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn tokens_spent_by_all(
        &self,
        organization: OrganizationId,
        since: Timestamp,
    ) -> Result<BTreeMap<String, u64>> {
        const DOING: &str = "reading what was spent";
        let mut connection = self.database().read(DOING).await?;
        let mut spent = BTreeMap::new();
        for column in ["organization_id", "project_id", "credential_id"] {
            let sql = Sql::new(format!(
                "SELECT COALESCE({column}, '') AS subject, \
                 CAST(SUM(prompt_tokens + completion_tokens) AS BIGINT) AS spent FROM token_usages"
            ))
            .with(" WHERE organization_id = ", &organization)
            .with(" AND hour_at >= ", &since);
            let sql = sql.with_text(&format!(" GROUP BY {column}"));
            for row in sql.rows(&mut connection, DOING).await? {
                let subject: String = read(&row, "subject", DOING)?;
                if !subject.is_empty() {
                    spent.insert(subject, read(&row, "spent", DOING)?);
                }
            }
        }
        Ok(spent)
    }

    /// Removes what is too old, and limits of tokens and projects that are gone; tells how many.
    pub(crate) async fn prune_usages(&self, before: Timestamp) -> Result<u64> {
        const DOING: &str = "pruning usage";
        // An hour's rows a time, when it runs by the hour.
        let old = Sql::default().with("DELETE FROM token_usages WHERE hour_at < ", &before);
        let limits = Sql::new(
            "DELETE FROM model_limits WHERE \
             (scope = 'credential' AND NOT EXISTS (SELECT 1 FROM credentials WHERE id = model_limits.subject_id)) \
             OR (scope = 'project' AND NOT EXISTS (SELECT 1 FROM projects WHERE id = model_limits.subject_id))",
        );
        Ok(self.write_one(old, &[], DOING).await? + self.write_one(limits, &[], DOING).await?)
    }
}

/// An id, where the text is not empty.
fn id<T: Column + std::str::FromStr>(
    row: &sqlx::any::AnyRow,
    name: &'static str,
    doing: &'static str,
) -> Result<Option<T>> {
    let text: String = read(row, name, doing)?;
    Ok(text.parse().ok())
}

async fn add_row(
    transaction: &mut AnyConnection,
    key: &Key,
    tokens: &Tokens,
    doing: &'static str,
) -> Result<()> {
    let sums: Vec<String> = Tokens::COLUMNS
        .iter()
        .map(|column| format!("{column} = token_usages.{column} + EXCLUDED.{column}"))
        .collect();
    let mut sql = Sql::new(format!(
        "INSERT INTO token_usages (organization_id, hour_at, service_id, project_id, credential_id, model, app_id, {}) \
         VALUES (",
        Tokens::COLUMNS.join(", ")
    ))
    .with("", &key.organization)
    .with(", ", &key.hour)
    .with(", ", &key.service)
    .with(", ", &key.project)
    .with(", ", &key.credential)
    .with(", ", &key.model)
    .with(", ", &key.app);
    for value in tokens.values() {
        sql.push(", ", &value);
    }
    sql.add(&format!(
        ") ON CONFLICT (organization_id, hour_at, service_id, project_id, credential_id, model) DO UPDATE SET {}",
        sums.join(", ")
    ));
    sql.run(transaction, doing).await.map(drop)
}

/// Says whose the records are, by what is kept now.
async fn attribute(
    transaction: &mut AnyConnection,
    records: Vec<TokenRecord>,
    doing: &'static str,
) -> Result<Vec<Attributed>> {
    let services = services(transaction, &records, doing).await?;
    let deployments: BTreeSet<DeploymentId> = records
        .iter()
        .filter_map(|record| deployment(record, &services))
        .collect();
    let models = models(transaction, deployments, doing).await?;
    let mut credentials: BTreeMap<CredentialId, OrganizationId> = BTreeMap::new();
    let homeless: BTreeSet<CredentialId> = records
        .iter()
        .filter(|record| !services.contains_key(&record.service_id))
        .filter_map(|record| record.tenant)
        .collect();
    let homeless: Vec<CredentialId> = homeless.into_iter().collect();
    for ids in homeless.chunks(LOOKED_UP_MAX) {
        let mut sql = Sql::new("SELECT id, organization_id FROM credentials WHERE 1 = 1");
        sql.push_any_of("id", ids);
        for row in sql.rows(transaction, doing).await? {
            credentials.insert(read(&row, "id", doing)?, read(&row, "organization_id", doing)?);
        }
    }
    let attributed = records.into_iter().map(|record| {
        let known = services.get(&record.service_id);
        let model = deployment(&record, &services).and_then(|id| models.get(&id).cloned());
        let served = name(model.unwrap_or_else(|| record.model.clone()));
        Attributed {
            organization: known
                .map(|known| known.organization)
                .or_else(|| credentials.get(&record.tenant?).copied())
                .or(record.organization_id),
            project: known.and_then(|known| known.project),
            app: known.map(|known| known.app),
            service_path: known.map(|known| known.path.clone()).unwrap_or_default(),
            model: record.asked.clone().map_or_else(|| served.clone(), name),
            served,
            record,
        }
    });
    Ok(attributed.collect())
}

/// A model's name as it is kept.
fn name(mut model: String) -> String {
    let end = (0..=MODEL_MAX_BYTES.min(model.len()))
        .rev()
        .find(|end| model.is_char_boundary(*end));
    model.truncate(end.unwrap_or(0));
    // A text of a database may not have it.
    model.replace('\0', "")
}

/// The deployment that answered, as far as one can know.
fn deployment(record: &TokenRecord, services: &BTreeMap<ServiceId, Known>) -> Option<DeploymentId> {
    record
        .deployment_id
        .or_else(|| services.get(&record.service_id)?.active)
}

async fn services(
    transaction: &mut AnyConnection,
    records: &[TokenRecord],
    doing: &'static str,
) -> Result<BTreeMap<ServiceId, Known>> {
    let ids: BTreeSet<ServiceId> = records.iter().map(|record| record.service_id).collect();
    let ids: Vec<ServiceId> = ids.into_iter().collect();
    let mut found = BTreeMap::new();
    for ids in ids.chunks(LOOKED_UP_MAX) {
        let mut sql = Sql::new(
            "SELECT services.id, services.organization_id, services.project_id, services.app_id, \
             services.active_deployment_id, apps.name || '/' || services.name AS path \
             FROM services JOIN apps ON apps.id = services.app_id WHERE 1 = 1",
        );
        sql.push_any_of("services.id", ids);
        for row in sql.rows(transaction, doing).await? {
            let known = Known {
                organization: read(&row, "organization_id", doing)?,
                project: read(&row, "project_id", doing)?,
                app: read(&row, "app_id", doing)?,
                path: read(&row, "path", doing)?,
                active: read(&row, "active_deployment_id", doing)?,
            };
            found.insert(read(&row, "id", doing)?, known);
        }
    }
    Ok(found)
}

/// Which model each of these deployments serves, as its definition names it.
async fn models(
    transaction: &mut AnyConnection,
    deployments: BTreeSet<DeploymentId>,
    doing: &'static str,
) -> Result<BTreeMap<DeploymentId, String>> {
    let ids: Vec<DeploymentId> = deployments.into_iter().collect();
    let mut found = BTreeMap::new();
    for ids in ids.chunks(LOOKED_UP_MAX) {
        let mut sql = Sql::new("SELECT id, definition FROM deployments WHERE 1 = 1");
        sql.push_any_of("id", ids);
        for row in sql.rows(transaction, doing).await? {
            let definition: Value = read(&row, "definition", doing)?;
            if let Some(source) = definition["model"]["source"].as_str() {
                found.insert(read(&row, "id", doing)?, source.to_owned());
            }
        }
    }
    Ok(found)
}
