//! Names that lead to models. One route a name; what is not there leads nowhere.

use serde_json::Value;
use tram_types::OrganizationId;

use crate::{
    Store,
    column::Column as _,
    error::{Error, Result},
    record::ModelRoute,
    sql::Sql,
};

/// Most routes of an organization: they are listed whole.
const ROUTES_MAX: u64 = 1000;

impl Store {
    /// Every route of an organization, by name.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn model_routes(&self, organization: OrganizationId) -> Result<Vec<ModelRoute>> {
        const DOING: &str = "reading routes to models";
        Sql::select::<ModelRoute>("WHERE organization_id = $1 ORDER BY name")
            .bind(&organization)
            .all(&mut *self.database().read(DOING).await?, DOING)
            .await
    }

    /// The route of this name; `None`: there is none.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn model_route(&self, organization: OrganizationId, name: &str) -> Result<Option<ModelRoute>> {
        const DOING: &str = "reading a route to models";
        let mut found = Sql::select::<ModelRoute>("WHERE organization_id = $1 AND name = $2")
            .bind(&organization)
            .bind(&name.to_owned())
            .all(&mut *self.database().read(DOING).await?, DOING)
            .await?;
        Ok(found.pop())
    }

    /// Keeps a route in place of the one before; when that was made stays.
    ///
    /// # Errors
    /// [`Error::Exhausted`], [`Error::Unavailable`].
    pub async fn set_model_route(
        &self,
        organization: OrganizationId,
        name: &str,
        ways: Value,
    ) -> Result<ModelRoute> {
        const DOING: &str = "keeping a route to models";
        let mut transaction = self.database().write(DOING).await?;
        let name = name.to_owned();
        let rows = Sql::update::<ModelRoute>(vec![("ways", ways.to_cell())], self.now())
            .with(" WHERE organization_id = ", &organization)
            .with(" AND name = ", &name)
            .run(&mut transaction, DOING)
            .await?;
        if rows == 0 {
            let held = Sql::new("SELECT COUNT(*) AS value FROM model_routes WHERE organization_id = $1")
                .bind(&organization)
                .value::<u64>(&mut transaction, DOING)
                .await?;
            if held.is_some_and(|held| held >= ROUTES_MAX) {
                return Err(Error::Exhausted {
                    what: "route to models",
                    hint: format!("an organization may have {ROUTES_MAX}; remove some first"),
                });
            }
            let now = self.now();
            let new = ModelRoute {
                organization_id: organization,
                name: name.clone(),
                ways,
                created_at: now,
                updated_at: now,
            };
            Sql::insert(&new).run(&mut transaction, DOING).await?;
        }
        self.commit(transaction, DOING).await?;
        self.model_route(organization, &name)
            .await?
            .ok_or_else(|| Error::not_found("model route", &name))
    }

    /// Removes a route.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn delete_model_route(&self, organization: OrganizationId, name: &str) -> Result<()> {
        let sql = Sql::default()
            .with("DELETE FROM model_routes WHERE organization_id = ", &organization)
            .with(" AND name = ", &name.to_owned());
        match self.write_one(sql, &[], "removing a route to models").await? {
            0 => Err(Error::not_found("model route", name)),
            _ => Ok(()),
        }
    }
}
