//! Secrets: their values are encrypted before they reach the database and decrypted for who may see them.
//!
//! Which host names a secret is bound to is in a table of its own, written in the same transaction as the secret, and
//! read with its value in one statement: nobody ever sees a value without what it is bound to.

use std::collections::BTreeMap;

use tram_types::{OrganizationId, ProjectId, SecretId};

use crate::{
    Change, Store,
    column::Column as _,
    error::{Error, Result},
    filter::{self, Listed, Page},
    intent::{NewSecret, SecretEdit},
    keyring::{self, Sealed},
    record::{Record as _, Secret},
    sql::{Sql, read},
};

/// Secrets that are encrypted anew in one transaction: short enough that other writers hardly wait.
const ROTATION_BATCH_SECRETS: u32 = 200;
/// Secrets that a rotation passes over: one or a few were damaged; more, and something is wrong with the key file.
const UNREADABLE_SECRETS_MAX: usize = 100;

/// The column with what a secret is bound to, in a query of `secrets`; NULL: it is not bound.
const HOSTS: &str = "(SELECT hosts FROM secret_hosts WHERE secret_hosts.secret_id = secrets.id) AS hosts";

/// A secret with its value.
#[derive(Clone, PartialEq)]
pub struct Revealed {
    /// The secret.
    pub secret: Secret,
    /// Its value, as it was given to [`Store::create_secret`].
    pub value: Vec<u8>,
    /// The host names it is bound to; none: it may be used anywhere.
    pub hosts: Vec<String>,
}

impl std::fmt::Debug for Revealed {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Revealed")
            .field("secret", &self.secret)
            .field("hosts", &self.hosts)
            .finish_non_exhaustive()
    }
}

/// What a rotation of the keys did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotated {
    /// The id of the new key.
    pub key_id: String,
    /// How many secrets were encrypted anew.
    pub secrets: u64,
    /// Secrets that could not be decrypted and stay as they are: their owners have to write them anew.
    pub unreadable: Vec<SecretId>,
}

impl Store {
    /// Makes a secret with its value, which is opaque here (the API keeps a JSON document).
    ///
    /// # Errors
    /// [`Error::AlreadyExists`] for the name, [`Error::Keyring`].
    pub async fn create_secret(&self, new: NewSecret, value: &[u8]) -> Result<Secret> {
        const DOING: &str = "making a secret";
        self.check_owned(new.organization_id, new.project_id, None)
            .await?;
        let now = self.now();
        let secret = Secret {
            id: new.id,
            organization_id: new.organization_id,
            project_id: new.project_id,
            name: new.name,
            kind: new.kind,
            created_at: now,
            updated_at: now,
        };
        let sealed = self.seal(secret.organization_id, secret.id, value).await?;
        let mut transaction = self.database().write(DOING).await?;
        Sql::insert(&secret)
            .also("key_id", &sealed.key_id)
            .also("ciphertext", &sealed.ciphertext)
            .run(&mut transaction, DOING)
            .await?;
        bind(
            &mut transaction,
            secret.organization_id,
            secret.id,
            &new.hosts,
            DOING,
        )
        .await?;
        self.finish(transaction, &[Change::Secret(secret.id)], DOING)
            .await?;
        Ok(secret)
    }

    /// One secret, without its value.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn secret(&self, organization: OrganizationId, id: SecretId) -> Result<Secret> {
        self.get(organization, id, "reading a secret").await
    }

    /// Secrets without their values, newest first.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn list_secrets(
        &self,
        organization: OrganizationId,
        filter: &filter::Secrets,
        page: Page,
    ) -> Result<Listed<Secret>> {
        let mut condition = Sql::default().with("WHERE organization_id = ", &organization);
        condition.push_some(" AND name = ", filter.name.as_ref());
        condition.push_any_of("kind", &filter.kinds);
        condition.push_some(" AND project_id = ", filter.project_id.as_ref());
        condition.push_any_of("id", &filter.ids);
        self.list(condition, "created_at DESC, id DESC", page, "listing secrets")
            .await
    }

    /// The host names that each of these secrets is bound to; one that is not bound is left out.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn secret_hosts(
        &self,
        organization: OrganizationId,
        ids: &[SecretId],
    ) -> Result<BTreeMap<SecretId, Vec<String>>> {
        const DOING: &str = "reading what secrets are bound to";
        if ids.is_empty() {
            return Ok(BTreeMap::new());
        }
        let mut sql = Sql::new("SELECT secret_id, hosts FROM secret_hosts")
            .with(" WHERE organization_id = ", &organization);
        sql.push_any_of("secret_id", ids);
        let rows = sql.rows(&mut *self.database().read(DOING).await?, DOING).await?;
        rows.iter()
            .map(|row| Ok((read(row, "secret_id", DOING)?, read(row, "hosts", DOING)?)))
            .collect()
    }

    /// Changes a secret, and its value and what it is bound to when they are given.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::AlreadyExists`] for the name, [`Error::Keyring`].
    pub async fn update_secret(
        &self,
        organization: OrganizationId,
        id: SecretId,
        edit: &SecretEdit,
        value: Option<&[u8]>,
        hosts: Option<&[String]>,
    ) -> Result<Secret> {
        const DOING: &str = "changing a secret";
        self.check_owned(organization, edit.project_id.flatten(), None)
            .await?;
        let mut cells = edit.cells();
        if let Some(value) = value {
            let sealed = self.seal(organization, id, value).await?;
            cells.push(("key_id", sealed.key_id.to_cell()));
            cells.push(("ciphertext", sealed.ciphertext.to_cell()));
        }
        let sql = Sql::update::<Secret>(cells, self.now())
            .with(" WHERE id = ", &id)
            .with(" AND organization_id = ", &organization);
        let mut transaction = self.database().write(DOING).await?;
        if sql.run(&mut transaction, DOING).await? == 0 {
            return Err(Error::not_found("secret", id));
        }
        if let Some(hosts) = hosts {
            bind(&mut transaction, organization, id, hosts, DOING).await?;
        }
        self.finish(transaction, &[Change::Secret(id)], DOING).await?;
        self.secret(organization, id).await
    }

    /// Removes a secret.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn delete_secret(&self, organization: OrganizationId, id: SecretId) -> Result<()> {
        const DOING: &str = "removing a secret";
        let mut transaction = self.database().write(DOING).await?;
        let removed = Sql::new("DELETE FROM secrets WHERE id = $1 AND organization_id = $2")
            .bind(&id)
            .bind(&organization)
            .run(&mut transaction, DOING)
            .await?;
        if removed == 0 {
            return Err(Error::not_found("secret", id));
        }
        bind(&mut transaction, organization, id, &[], DOING).await?;
        self.finish(transaction, &[Change::Secret(id)], DOING).await
    }

    /// A secret with its value.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Keyring`] when it cannot be decrypted.
    pub async fn reveal_secret(&self, organization: OrganizationId, id: SecretId) -> Result<Revealed> {
        const DOING: &str = "revealing a secret";
        let rows = Sql::new(revealing())
            .with(" WHERE id = ", &id)
            .with(" AND organization_id = ", &organization)
            .rows(&mut *self.database().read(DOING).await?, DOING)
            .await?;
        let row = rows.first().ok_or_else(|| Error::not_found("secret", id))?;
        let (secret, sealed, hosts) = kept(row, DOING)?;
        let value = self.unseal(organization, id, &sealed).await?;
        Ok(Revealed { secret, value, hosts })
    }

    /// Secrets and their values by name, as a service of a project sees them: a project's own secret hides the
    /// organization's with the same name. Names that are not there are left out of the answer.
    ///
    /// # Errors
    /// [`Error::Keyring`] when one cannot be decrypted.
    pub async fn reveal_secrets_by_name(
        &self,
        organization: OrganizationId,
        project: Option<ProjectId>,
        names: &[String],
    ) -> Result<BTreeMap<String, Revealed>> {
        const DOING: &str = "revealing secrets";
        if names.is_empty() {
            return Ok(BTreeMap::new());
        }
        let mut sql = Sql::new(revealing()).with(" WHERE organization_id = ", &organization);
        match &project {
            Some(project) => {
                sql.push(" AND (project_id IS NULL OR project_id = ", project);
                sql.add(")");
            }
            None => sql.add(" AND project_id IS NULL"),
        }
        sql.push_any_of("name", names);
        let rows = sql.rows(&mut *self.database().read(DOING).await?, DOING).await?;
        let mut chosen: BTreeMap<String, (Secret, Sealed, Vec<String>)> = BTreeMap::new();
        for row in &rows {
            let (secret, sealed, hosts) = kept(row, DOING)?;
            if secret.project_id.is_some() || !chosen.contains_key(&secret.name) {
                chosen.insert(secret.name.clone(), (secret, sealed, hosts));
            }
        }
        let mut revealed = BTreeMap::new();
        for (name, (secret, sealed, hosts)) in chosen {
            let value = self.unseal(organization, secret.id, &sealed).await?;
            let one = Revealed { secret, value, hosts };
            revealed.insert(name, one);
        }
        Ok(revealed)
    }

    /// Adds a key and encrypts every secret with it, in small transactions, while everything goes on. The old keys
    /// stay in the file: backups of the database need them. A rotation that was cut off is finished by the next.
    ///
    /// Caveat: with several replicas, put the new key file on each of them; a replica that meets a key it does not
    /// know reads its file again.
    ///
    /// A secret that was damaged is left as it is and told of; it keeps no other from being encrypted anew.
    ///
    /// # Errors
    /// [`Error::Keyring`], [`Error::Unavailable`].
    pub async fn rotate_secrets(&self) -> Result<Rotated> {
        const DOING: &str = "encrypting secrets with a new key";
        self.keyring().write().await.add_key()?;
        let mut secrets = 0;
        let mut unreadable = Vec::new();
        let key_id = loop {
            // Another rotation may have added a newer key meanwhile; both then work towards that one.
            let key_id = self.keyring().read().await.newest().to_owned();
            let mut transaction = self.database().write(DOING).await?;
            let mut sql = Sql::default().with(
                "SELECT id, organization_id, key_id, ciphertext FROM secrets WHERE key_id <> ",
                &key_id,
            );
            for id in &unreadable {
                sql.push(" AND id <> ", id);
            }
            let rows = sql
                .with(" ORDER BY id LIMIT ", &ROTATION_BATCH_SECRETS)
                .rows(&mut transaction, DOING)
                .await?;
            if rows.is_empty() {
                break key_id;
            }
            for row in &rows {
                let id: SecretId = read(row, "id", DOING)?;
                let organization: OrganizationId = read(row, "organization_id", DOING)?;
                let old = Sealed {
                    key_id: read(row, "key_id", DOING)?,
                    ciphertext: read(row, "ciphertext", DOING)?,
                };
                let value = match self.unseal(organization, id, &old).await {
                    Ok(value) => value,
                    Err(Error::Keyring(error @ keyring::Error::Altered { .. }))
                        if unreadable.len() < UNREADABLE_SECRETS_MAX =>
                    {
                        tracing::error!(
                            secret = %id,
                            error = &error as &dyn std::error::Error,
                            "a secret cannot be decrypted and stays under its old key"
                        );
                        unreadable.push(id);
                        continue;
                    }
                    Err(error) => return Err(error),
                };
                let new = self.seal(organization, id, &value).await?;
                // A value that its owner changed meanwhile is already under the new key.
                secrets += Sql::new(
                    "UPDATE secrets SET key_id = $1, ciphertext = $2 WHERE id = $3 AND ciphertext = $4",
                )
                .bind(&new.key_id)
                .bind(&new.ciphertext)
                .bind(&id)
                .bind(&old.ciphertext)
                .run(&mut transaction, DOING)
                .await?;
            }
            self.commit(transaction, DOING).await?;
        };
        Ok(Rotated {
            key_id,
            secrets,
            unreadable,
        })
    }

    async fn seal(&self, organization: OrganizationId, id: SecretId, value: &[u8]) -> Result<Sealed> {
        Ok(self.keyring().read().await.seal(organization, id, value)?)
    }

    async fn unseal(&self, organization: OrganizationId, id: SecretId, sealed: &Sealed) -> Result<Vec<u8>> {
        {
            let keyring = self.keyring().read().await;
            if keyring.has(&sealed.key_id) {
                return Ok(keyring.open_sealed(organization, id, sealed)?);
            }
        }
        let mut keyring = self.keyring().write().await;
        keyring.reload()?;
        Ok(keyring.open_sealed(organization, id, sealed)?)
    }

    /// The secret with this name in a project, or among the organization's own.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn secret_by_name(
        &self,
        organization: OrganizationId,
        project: Option<ProjectId>,
        name: &str,
    ) -> Result<Option<Secret>> {
        let mut sql = Sql::select::<Secret>("")
            .with("WHERE organization_id = ", &organization)
            .with(" AND name = ", &name.to_owned());
        match &project {
            Some(project) => sql.push(" AND project_id = ", project),
            None => sql.add(" AND project_id IS NULL"),
        }
        self.find(sql, "looking up a secret by name").await
    }
}

/// The beginning of a query of secrets with all that revealing one takes.
fn revealing() -> String {
    format!(
        "SELECT {}, key_id, ciphertext, {HOSTS} FROM secrets",
        Secret::COLUMNS.join(", ")
    )
}

/// A row of such a query.
fn kept(row: &sqlx::any::AnyRow, doing: &'static str) -> Result<(Secret, Sealed, Vec<String>)> {
    let secret = Secret::from_row(row).map_err(|error| Error::unavailable(doing, error))?;
    let sealed = Sealed {
        key_id: read(row, "key_id", doing)?,
        ciphertext: read(row, "ciphertext", doing)?,
    };
    let hosts: Option<Vec<String>> = read(row, "hosts", doing)?;
    Ok((secret, sealed, hosts.unwrap_or_default()))
}

/// Writes down what a secret is bound to.
async fn bind(
    connection: &mut sqlx::AnyConnection,
    organization: OrganizationId,
    id: SecretId,
    hosts: &[String],
    doing: &'static str,
) -> Result<()> {
    Sql::new("DELETE FROM secret_hosts")
        .with(" WHERE secret_id = ", &id)
        .run(connection, doing)
        .await?;
    if hosts.is_empty() {
        return Ok(());
    }
    Sql::new("INSERT INTO secret_hosts (secret_id, organization_id, hosts)")
        .with(" VALUES (", &id)
        .with(", ", &organization)
        .with(", ", &hosts.to_vec())
        .with_text(")")
        .run(connection, doing)
        .await?;
    Ok(())
}
