//! Domains: one name on the whole installation, at most one app each.

use tram_types::{AppId, DomainId, OrganizationId, Timestamp};

use crate::{
    Change, Store,
    error::{Error, Result},
    filter::{self, Listed, Page},
    intent::{DomainEdit, NewDomain},
    record::Domain,
    sql::Sql,
};

impl Store {
    /// Makes a domain.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] for the name, [`Error::NotFound`] for the app or the project.
    pub async fn create_domain(&self, new: NewDomain) -> Result<Domain> {
        self.check_owned(new.organization_id, new.project_id, new.app_id)
            .await?;
        let domain = domain_of(new, self.now());
        self.write_one(
            Sql::insert(&domain),
            &[Change::Domain(domain.id)],
            "making a domain",
        )
        .await?;
        Ok(domain)
    }

    /// One domain.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn domain(&self, organization: OrganizationId, id: DomainId) -> Result<Domain> {
        self.get(organization, id, "reading a domain").await
    }

    /// The domain with this name, whosever it is: names are unique on the installation.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn domain_by_name_unscoped(&self, name: &str) -> Result<Option<Domain>> {
        let sql = Sql::select::<Domain>("WHERE name = $1").bind(&name.to_ascii_lowercase());
        self.find(sql, "looking up a domain by name").await
    }

    /// Domains, newest first.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn list_domains(
        &self,
        organization: OrganizationId,
        filter: &filter::Domains,
        page: Page,
    ) -> Result<Listed<Domain>> {
        let condition = Sql::default().with("WHERE organization_id = ", &organization);
        self.list(
            restrict(condition, filter),
            "created_at DESC, id DESC",
            page,
            "listing domains",
        )
        .await
    }

    /// Domains of every organization, newest first: for who verifies them.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn list_domains_unscoped(
        &self,
        filter: &filter::Domains,
        page: Page,
    ) -> Result<Listed<Domain>> {
        self.list(
            restrict(Sql::new("WHERE 1 = 1"), filter),
            "created_at DESC, id DESC",
            page,
            "listing domains",
        )
        .await
    }

    /// The domains that lead to an app, oldest first.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn domains_of_app_unscoped(&self, app: AppId) -> Result<Vec<Domain>> {
        const DOING: &str = "reading the domains of an app";
        Sql::select::<Domain>("")
            .with("WHERE app_id = ", &app)
            .with(" ORDER BY created_at, id LIMIT ", &filter::PAGE_ITEMS_MAX)
            .all(&mut *self.database().read(DOING).await?, DOING)
            .await
    }

    /// Changes a domain.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::AlreadyExists`] for the name.
    pub async fn update_domain(
        &self,
        organization: OrganizationId,
        id: DomainId,
        edit: &DomainEdit,
    ) -> Result<Domain> {
        self.check_owned(organization, edit.project_id.flatten(), edit.app_id.flatten())
            .await?;
        let mut edit = edit.clone();
        if let Some(name) = &mut edit.name {
            name.make_ascii_lowercase();
        }
        let mut sql = Sql::update::<Domain>(edit.cells(), self.now());
        sql.add(", version = version + 1");
        let sql = sql
            .with(" WHERE id = ", &id)
            .with(" AND organization_id = ", &organization);
        match self
            .write_one(sql, &[Change::Domain(id)], "changing a domain")
            .await?
        {
            0 => Err(Error::not_found("domain", id)),
            _ => self.domain(organization, id).await,
        }
    }

    /// Removes a domain.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn delete_domain(&self, organization: OrganizationId, id: DomainId) -> Result<()> {
        let sql = Sql::new("DELETE FROM domains WHERE id = $1 AND organization_id = $2")
            .bind(&id)
            .bind(&organization);
        match self
            .write_one(sql, &[Change::Domain(id)], "removing a domain")
            .await?
        {
            0 => Err(Error::not_found("domain", id)),
            _ => Ok(()),
        }
    }
}

fn restrict(mut condition: Sql, filter: &filter::Domains) -> Sql {
    condition.push_any_of("kind", &filter.kinds);
    condition.push_any_of("status", &filter.statuses);
    condition.push_any_of("app_id", &filter.app_ids);
    condition.push_some(" AND project_id = ", filter.project_id.as_ref());
    let name = filter.name.as_ref().map(|name| name.to_ascii_lowercase());
    condition.push_some(" AND name = ", name.as_ref());
    condition.push_any_of("id", &filter.ids);
    condition
}

pub(crate) fn domain_of(new: NewDomain, now: Timestamp) -> Domain {
    Domain {
        id: new.id,
        organization_id: new.organization_id,
        project_id: new.project_id,
        app_id: new.app_id,
        name: new.name.to_ascii_lowercase(),
        kind: new.kind,
        status: new.status,
        messages: Vec::new(),
        intended_cname: new.intended_cname,
        deployment_group: String::new(),
        load_balancer: new.load_balancer,
        version: 1,
        verified_at: None,
        created_at: now,
        updated_at: now,
    }
}
