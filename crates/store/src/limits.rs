//! What may be asked of models. One limit a subject; what is not there limits nothing.

use tram_types::OrganizationId;

use crate::{
    Store,
    column::Column as _,
    error::{Error, Result},
    record::{LimitScope, ModelLimit},
    sql::Sql,
};

/// Most limits of an organization: they are kept in memory whole, and looked through for each question.
const LIMITS_MAX: u64 = 10_000;

impl Store {
    /// Every limit of an organization.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn model_limits(&self, organization: OrganizationId) -> Result<Vec<ModelLimit>> {
        const DOING: &str = "reading limits of models";
        Sql::select::<ModelLimit>("WHERE organization_id = $1 ORDER BY scope, created_at, subject_id")
            .bind(&organization)
            .all(&mut *self.database().read(DOING).await?, DOING)
            .await
    }

    /// Keeps a limit in place of the one before; when that was made stays. That the subject is the organization's own is
    /// the caller's to know.
    ///
    /// # Errors
    /// [`Error::Exhausted`], [`Error::Unavailable`].
    pub async fn set_model_limit(&self, limit: &ModelLimit) -> Result<()> {
        const DOING: &str = "keeping a limit of models";
        let mut transaction = self.database().write(DOING).await?;
        let rows = Sql::update::<ModelLimit>(
            vec![
                ("requests_per_minute", limit.requests_per_minute.to_cell()),
                ("tokens_per_minute", limit.tokens_per_minute.to_cell()),
                ("tokens_per_month", limit.tokens_per_month.to_cell()),
                ("priority", limit.priority.to_cell()),
            ],
            self.now(),
        )
        .with(" WHERE organization_id = ", &limit.organization_id)
        .with(" AND scope = ", &limit.scope)
        .with(" AND subject_id = ", &limit.subject_id)
        .run(&mut transaction, DOING)
        .await?;
        if rows == 0 {
            let held = Sql::new("SELECT COUNT(*) AS value FROM model_limits WHERE organization_id = $1")
                .bind(&limit.organization_id)
                .value::<u64>(&mut transaction, DOING)
                .await?;
            if held.is_some_and(|held| held >= LIMITS_MAX) {
                return Err(Error::Exhausted {
                    what: "limit of models",
                    hint: format!("an organization may have {LIMITS_MAX}; remove some first"),
                });
            }
            let now = self.now();
            let new = ModelLimit {
                created_at: now,
                updated_at: now,
                ..limit.clone()
            };
            Sql::insert(&new).run(&mut transaction, DOING).await?;
        }
        self.commit(transaction, DOING).await
    }

    /// Removes a limit.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn delete_model_limit(
        &self,
        organization: OrganizationId,
        scope: LimitScope,
        subject: &str,
    ) -> Result<()> {
        let sql = Sql::default()
            .with("DELETE FROM model_limits WHERE organization_id = ", &organization)
            .with(" AND scope = ", &scope)
            .with(" AND subject_id = ", &subject.to_owned());
        match self.write_one(sql, &[], "removing a limit of models").await? {
            0 => Err(Error::not_found("limit", subject)),
            _ => Ok(()),
        }
    }
}
