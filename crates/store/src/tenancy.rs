//! Organizations, projects and API tokens.

use std::collections::HashMap;

use sha2::{Digest as _, Sha256};
use tram_types::{CredentialId, OrganizationId, ProjectId, Timestamp};

use crate::{
    Store,
    database::commit,
    error::{Error, Result},
    filter::{self, Listed, Page},
    intent::{CredentialEdit, NewCredential, OrganizationEdit, ProjectEdit},
    record::{Credential, Organization, Project},
    sql::{Sql, read},
};

/// What is kept of a token: its SHA-256 in lower-case hexadecimal. A token has 64 random characters, so a slow hash
/// would protect nothing and cost every request.
#[must_use]
pub fn token_sha256(token: &str) -> String {
    hex::encode(Sha256::digest(token.as_bytes()))
}

/// A user of an organization: whoever has a token in its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The user.
    pub user_id: String,
    /// When its first token was made that is still kept.
    pub joined_at: Timestamp,
}

impl Store {
    /// Makes an organization with its default project.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] for the name.
    pub async fn create_organization(
        &self,
        id: OrganizationId,
        name: &str,
        project: ProjectId,
        project_name: &str,
    ) -> Result<Organization> {
        const DOING: &str = "making an organization";
        let now = self.now();
        let organization = Organization {
            id,
            name: name.to_owned(),
            default_project_id: Some(project),
            created_at: now,
            updated_at: now,
        };
        let project = Project {
            id: project,
            organization_id: id,
            name: project_name.to_owned(),
            description: String::new(),
            created_at: now,
            updated_at: now,
        };
        let mut transaction = self.database().write(DOING).await?;
        Sql::insert(&organization).run(&mut transaction, DOING).await?;
        Sql::insert(&project).run(&mut transaction, DOING).await?;
        self.commit(transaction, DOING).await?;
        Ok(organization)
    }

    /// One organization.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn organization(&self, id: OrganizationId) -> Result<Organization> {
        self.get_unscoped(id, "reading an organization").await
    }

    /// Every organization, for the operator and the controller. Newest first.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn list_organizations_unscoped(
        &self,
        filter: &filter::Organizations,
        page: Page,
    ) -> Result<Listed<Organization>> {
        let mut condition = Sql::new("WHERE 1 = 1");
        condition.push_some(" AND name = ", filter.name.as_ref());
        condition.push_any_of("id", &filter.ids);
        self.list(
            condition,
            "created_at DESC, id DESC",
            page,
            "listing organizations",
        )
        .await
    }

    /// Changes an organization.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::AlreadyExists`] for the name.
    pub async fn update_organization(
        &self,
        id: OrganizationId,
        edit: &OrganizationEdit,
    ) -> Result<Organization> {
        const DOING: &str = "changing an organization";
        self.check_owned(id, edit.default_project_id.flatten(), None)
            .await?;
        let sql = Sql::update::<Organization>(edit.cells(), self.now()).with(" WHERE id = ", &id);
        if self.write_one(sql, &[], DOING).await? == 0 {
            return Err(Error::not_found("organization", id));
        }
        self.organization(id).await
    }

    /// Makes a project.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] for the name, [`Error::NotFound`] for the organization.
    pub async fn create_project(
        &self,
        organization: OrganizationId,
        id: ProjectId,
        name: &str,
        description: &str,
    ) -> Result<Project> {
        self.organization(organization).await?;
        let now = self.now();
        let project = Project {
            id,
            organization_id: organization,
            name: name.to_owned(),
            description: description.to_owned(),
            created_at: now,
            updated_at: now,
        };
        self.write_one(Sql::insert(&project), &[], "making a project")
            .await?;
        Ok(project)
    }

    /// One project.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn project(&self, organization: OrganizationId, id: ProjectId) -> Result<Project> {
        self.get(organization, id, "reading a project").await
    }

    /// Projects, newest first.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn list_projects(
        &self,
        organization: OrganizationId,
        filter: &filter::Projects,
        page: Page,
    ) -> Result<Listed<Project>> {
        let mut condition = Sql::default().with("WHERE organization_id = ", &organization);
        condition.push_some(" AND name = ", filter.name.as_ref());
        condition.push_any_of("id", &filter.ids);
        self.list(condition, "created_at DESC, id DESC", page, "listing projects")
            .await
    }

    /// How many services each project has; projects without any are left out.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn project_service_counts(
        &self,
        organization: OrganizationId,
    ) -> Result<HashMap<ProjectId, u64>> {
        const DOING: &str = "counting the services of projects";
        let rows = Sql::new(
            "SELECT project_id, COUNT(*) AS services FROM services \
             WHERE organization_id = $1 AND project_id IS NOT NULL GROUP BY project_id",
        )
        .bind(&organization)
        .rows(&mut *self.database().read(DOING).await?, DOING)
        .await?;
        rows.iter()
            .map(|row| Ok((read(row, "project_id", DOING)?, read(row, "services", DOING)?)))
            .collect()
    }

    /// Changes a project.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::AlreadyExists`] for the name.
    pub async fn update_project(
        &self,
        organization: OrganizationId,
        id: ProjectId,
        edit: &ProjectEdit,
    ) -> Result<Project> {
        let sql = Sql::update::<Project>(edit.cells(), self.now())
            .with(" WHERE id = ", &id)
            .with(" AND organization_id = ", &organization);
        if self.write_one(sql, &[], "changing a project").await? == 0 {
            return Err(Error::not_found("project", id));
        }
        self.project(organization, id).await
    }

    /// Removes a project that holds nothing and is not the default one.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Conflict`] when it is the default or still holds something.
    pub async fn delete_project(&self, organization: OrganizationId, id: ProjectId) -> Result<()> {
        const DOING: &str = "removing a project";
        let mut transaction = self.database().write(DOING).await?;
        crate::store::get_in::<Project, _>(&mut transaction, organization, id, DOING).await?;
        for (condition, reason) in [
            (
                "organizations WHERE default_project_id = ",
                "it is the organization's default project; choose another default first",
            ),
            (
                "services WHERE project_id = ",
                "it still has services; delete them first",
            ),
            (
                "secrets WHERE project_id = ",
                "it still has secrets; delete them first",
            ),
            (
                "domains WHERE project_id = ",
                "it still has domains; delete them first",
            ),
        ] {
            let held = Sql::default()
                .with(&format!("SELECT COUNT(*) AS value FROM {condition}"), &id)
                .value::<u64>(&mut transaction, DOING)
                .await?;
            if held != Some(0) {
                return Err(Error::conflict("project", id, reason));
            }
        }
        Sql::new("DELETE FROM projects WHERE id = $1")
            .bind(&id)
            .run(&mut transaction, DOING)
            .await?;
        self.commit(transaction, DOING).await
    }

    /// Makes a token.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] for the hash.
    pub async fn create_credential(&self, new: NewCredential) -> Result<Credential> {
        let now = self.now();
        let credential = Credential {
            id: new.id,
            organization_id: new.organization_id,
            user_id: new.user_id,
            kind: new.kind,
            role: new.role,
            name: new.name,
            description: new.description,
            token_sha256: new.token_sha256,
            expires_at: new.expires_at,
            last_used_at: None,
            created_at: now,
            updated_at: now,
        };
        self.write_one(Sql::insert(&credential), &[], "making a token")
            .await?;
        Ok(credential)
    }

    /// The token that a request carries, when it is known and has not expired.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn credential_by_token(&self, token: &str) -> Result<Option<Credential>> {
        let sql =
            Sql::select::<Credential>("WHERE token_sha256 = $1 AND (expires_at IS NULL OR expires_at > $2)")
                .bind(&token_sha256(token))
                .bind(&self.now());
        self.find(sql, "looking up a token").await
    }

    /// Notes when a token was last used. The caller should do so rarely, not with every request.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn touch_credential(&self, id: CredentialId, at: Timestamp) -> Result<()> {
        let sql = Sql::new(
            "UPDATE credentials SET last_used_at = $1 WHERE id = $2 AND (last_used_at IS NULL OR last_used_at < $1)",
        )
        .bind(&at)
        .bind(&id);
        self.write_one(sql, &[], "noting the use of a token")
            .await
            .map(drop)
    }

    /// One token.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn credential(&self, organization: OrganizationId, id: CredentialId) -> Result<Credential> {
        self.get(organization, id, "reading a token").await
    }

    /// Tokens, newest first.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn list_credentials(
        &self,
        organization: OrganizationId,
        filter: &filter::Credentials,
        page: Page,
    ) -> Result<Listed<Credential>> {
        let mut condition = Sql::default().with("WHERE organization_id = ", &organization);
        condition.push_some(" AND kind = ", filter.kind.as_ref());
        condition.push_some(" AND name = ", filter.name.as_ref());
        condition.push_some(" AND user_id = ", filter.user_id.as_ref());
        condition.push_any_of("id", &filter.ids);
        self.list(condition, "created_at DESC, id DESC", page, "listing tokens")
            .await
    }

    /// The users that have tokens, by name, each with the time of its first one.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn list_members(
        &self,
        organization: OrganizationId,
        user_id: Option<&str>,
        page: Page,
    ) -> Result<Listed<Member>> {
        const DOING: &str = "listing members";
        let mut condition = Sql::default().with("WHERE kind = 'USER' AND organization_id = ", &organization);
        condition.push_some(" AND user_id = ", user_id.map(str::to_owned).as_ref());
        let mut snapshot = self.database().snapshot(DOING).await?;
        let count = condition
            .clone()
            .behind("SELECT COUNT(DISTINCT user_id) AS value FROM credentials ")
            .value::<u64>(&mut snapshot, DOING)
            .await?;
        let rows = condition
            .behind("SELECT user_id, MIN(created_at) AS joined_at FROM credentials ")
            .with(
                " GROUP BY user_id ORDER BY user_id LIMIT ",
                &page.limit.min(filter::PAGE_ITEMS_MAX),
            )
            .with(" OFFSET ", &page.offset)
            .rows(&mut snapshot, DOING)
            .await?;
        commit(snapshot, DOING).await?;
        let items: Result<_> = rows
            .iter()
            .map(|row| {
                Ok(Member {
                    user_id: read(row, "user_id", DOING)?,
                    joined_at: read(row, "joined_at", DOING)?,
                })
            })
            .collect();
        Ok(Listed {
            items: items?,
            count: count.unwrap_or(0),
        })
    }

    /// Changes what a token is called, what it may do and when it ends.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn update_credential(
        &self,
        organization: OrganizationId,
        id: CredentialId,
        edit: &CredentialEdit,
    ) -> Result<Credential> {
        let sql = Sql::update::<Credential>(edit.cells(), self.now())
            .with(" WHERE id = ", &id)
            .with(" AND organization_id = ", &organization);
        if self.write_one(sql, &[], "changing a token").await? == 0 {
            return Err(Error::not_found("credential", id));
        }
        self.credential(organization, id).await
    }

    /// Revokes a token: it stops to work at once.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn delete_credential(&self, organization: OrganizationId, id: CredentialId) -> Result<()> {
        let sql = Sql::new("DELETE FROM credentials WHERE id = $1 AND organization_id = $2")
            .bind(&id)
            .bind(&organization);
        match self.write_one(sql, &[], "revoking a token").await? {
            0 => Err(Error::not_found("credential", id)),
            _ => Ok(()),
        }
    }
}
