//! The open store: the one handle the API and the controller share.

use std::{
    ops::RangeInclusive,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
};

use sqlx::{Any, AnyConnection, Transaction};
use tokio::{
    sync::{RwLock, broadcast},
    task::AbortHandle,
};
use tram_types::{AppId, Clock, OrganizationId, ProjectId, Timestamp};
use uuid::Uuid;

use crate::{
    change::{self, CHANGES_MAX, Change},
    column::Column,
    database::{Database, Kind, commit},
    error::{Error, Result},
    filter::{Listed, PAGE_ITEMS_MAX, Page},
    keyring::{self, Keyring},
    migrate,
    record::Record,
    sql::Sql,
};

/// Where things are kept.
#[derive(Debug, Clone)]
pub struct Options {
    /// `sqlite:///path/to/file.db`, or `postgres://user:password@host/database`.
    pub database_url: String,
    /// The keys of the secrets.
    pub keyring: keyring::Settings,
    /// Which public TCP ports may be given to services.
    pub proxy_ports: RangeInclusive<u16>,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
}

/// The open store. Cheap to clone; every clone is the same store.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    database: Database,
    keyring: RwLock<Keyring>,
    proxy_ports: RangeInclusive<u16>,
    clock: Arc<dyn Clock>,
    changes: broadcast::Sender<Change>,
    /// Tells this process's own announcements from those of other replicas.
    replica: Uuid,
    /// Hears what other replicas announce; ends with the store.
    listener: Option<AbortHandle>,
    /// The epoch of the leadership that this process took; 0: it never led.
    epoch: AtomicI64,
    /// See [`Store::revision`].
    revision: AtomicU64,
}

/// Counts a write when it is over.
struct Counted<'c>(&'c AtomicU64);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(listener) = &self.listener {
            listener.abort();
        }
    }
}

impl Store {
    /// Opens the database, brings its schema up to date and reads the keys.
    ///
    /// Flow: connect; migrate under a lock; refuse keys beside the database; check that no secret needs a key that
    /// is not there (so that a lost key file is noticed now and not at the next deployment).
    ///
    /// # Errors
    /// [`Error::NewerSchema`], [`Error::Setting`], [`Error::Keyring`], [`Error::Unavailable`].
    pub async fn open(options: Options) -> Result<Self> {
        const DOING: &str = "reading which keys are in use";
        let kind = Kind::of_url(&options.database_url)?;
        if let Kind::Sqlite { path } = &kind {
            check_apart(path, &options.keyring.path)?;
        }
        let database = Database::open(kind).await?;
        migrate::run(&database, options.clock.now()).await?;
        let key_ids: Vec<String> = Sql::new("SELECT DISTINCT key_id AS value FROM secrets")
            .values(&mut *database.read(DOING).await?, DOING)
            .await?;
        let create = options.keyring.create && key_ids.is_empty();
        let keyring = Keyring::open(&options.keyring.path, create)?;
        keyring.check(&key_ids)?;
        let (changes, _) = broadcast::channel(CHANGES_MAX);
        let replica = Uuid::new_v4();
        let listener = match &database.kind {
            Kind::Sqlite { .. } => None,
            Kind::Postgres { url } => Some(change::listen(url, replica, changes.clone()).await?),
        };
        Ok(Self {
            inner: Arc::new(Inner {
                database,
                keyring: RwLock::new(keyring),
                proxy_ports: options.proxy_ports,
                clock: options.clock,
                changes,
                replica,
                listener,
                epoch: AtomicI64::new(0),
                revision: AtomicU64::new(0),
            }),
        })
    }

    /// Ends every connection and waits for them. Later calls fail.
    pub async fn close(&self) {
        if let Some(listener) = &self.inner.listener {
            listener.abort();
        }
        self.inner.database.close().await;
    }

    /// Changes from now on, sent after their commit; with PostgreSQL those of other replicas too. A receiver that
    /// lags has missed some: sweep.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<Change> {
        self.inner.changes.subscribe()
    }

    /// Counts what this process wrote, whatever it was. What was read after this was asked, and is kept under the answer,
    /// still holds as long as the answer is the same, but for what others wrote: other replicas, and commands that open
    /// the same database.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.inner.revision.load(Ordering::SeqCst)
    }

    /// Commits. Whoever waits for it finds the next revision.
    pub(crate) async fn commit(
        &self,
        transaction: Transaction<'static, Any>,
        doing: &'static str,
    ) -> Result<()> {
        // Also when whoever waits for it goes away, or the answer of the database is lost: it may have happened.
        let _counted = Counted(&self.inner.revision);
        commit(transaction, doing).await
    }

    /// That the database answers.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn ping(&self) -> Result<()> {
        const DOING: &str = "asking the database whether it is there";
        Sql::new("SELECT 1 AS value")
            .run(&mut *self.database().read(DOING).await?, DOING)
            .await
            .map(drop)
    }

    /// `sqlite` or `postgres`.
    #[must_use]
    pub fn database_kind(&self) -> &'static str {
        if self.database().is_postgres() {
            "postgres"
        } else {
            "sqlite"
        }
    }

    pub(crate) fn database(&self) -> &Database {
        &self.inner.database
    }

    pub(crate) fn keyring(&self) -> &RwLock<Keyring> {
        &self.inner.keyring
    }

    pub(crate) fn proxy_port_range(&self) -> RangeInclusive<u16> {
        self.inner.proxy_ports.clone()
    }

    pub(crate) fn epoch(&self) -> i64 {
        self.inner.epoch.load(Ordering::SeqCst)
    }

    pub(crate) fn set_epoch(&self, epoch: i64) {
        self.inner.epoch.store(epoch, Ordering::SeqCst);
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.inner.clock.now()
    }

    /// Commits, and tells whoever listens, here and (PostgreSQL) in the other replicas.
    pub(crate) async fn finish(
        &self,
        mut transaction: Transaction<'static, Any>,
        changes: &[Change],
        doing: &'static str,
    ) -> Result<()> {
        if self.database().is_postgres() {
            change::announce(&mut transaction, changes, self.inner.replica, doing).await?;
        }
        self.commit(transaction, doing).await?;
        for change in changes {
            // Nobody listening is fine.
            let _ = self.inner.changes.send(*change);
        }
        Ok(())
    }

    /// One statement that reads one record.
    pub(crate) async fn find<R: Record>(&self, sql: Sql, doing: &'static str) -> Result<Option<R>> {
        sql.optional(&mut *self.database().read(doing).await?, doing)
            .await
    }

    /// One record of an organization.
    pub(crate) async fn get<R: Record, I: Column + std::fmt::Display>(
        &self,
        organization: OrganizationId,
        id: I,
        doing: &'static str,
    ) -> Result<R> {
        let sql = Sql::select::<R>("WHERE id = $1 AND organization_id = $2")
            .bind(&id)
            .bind(&organization);
        self.find(sql, doing)
            .await?
            .ok_or_else(|| Error::not_found(R::KIND, id))
    }

    /// One record, whosever it is.
    pub(crate) async fn get_unscoped<R: Record, I: Column + std::fmt::Display>(
        &self,
        id: I,
        doing: &'static str,
    ) -> Result<R> {
        let sql = Sql::select::<R>("WHERE id = $1").bind(&id);
        self.find(sql, doing)
            .await?
            .ok_or_else(|| Error::not_found(R::KIND, id))
    }

    /// A page of the records that meet a condition (`WHERE …`), and how many meet it.
    pub(crate) async fn list<R: Record>(
        &self,
        condition: Sql,
        order: &str,
        page: Page,
        doing: &'static str,
    ) -> Result<Listed<R>> {
        let mut snapshot = self.database().snapshot(doing).await?;
        let count = condition
            .behind(&format!("SELECT COUNT(*) AS value FROM {} ", R::TABLE))
            .value::<u64>(&mut snapshot, doing)
            .await?
            .unwrap_or(0);
        let items = if count > u64::from(page.offset) {
            condition
                .behind(&format!("SELECT {} FROM {} ", R::select_list(), R::TABLE))
                .with(
                    &format!(" ORDER BY {order} LIMIT "),
                    &page.limit.min(PAGE_ITEMS_MAX),
                )
                .with(" OFFSET ", &page.offset)
                .all(&mut snapshot, doing)
                .await?
        } else {
            Vec::new()
        };
        commit(snapshot, doing).await?;
        Ok(Listed { items, count })
    }

    /// That a project and an app, where named, are the organization's own: what is recorded under one tenant must
    /// never lead to another's. An id never changes hands, so this need not be in the transaction that follows.
    pub(crate) async fn check_owned(
        &self,
        organization: OrganizationId,
        project: Option<ProjectId>,
        app: Option<AppId>,
    ) -> Result<()> {
        if let Some(project) = project {
            self.project(organization, project).await?;
        }
        if let Some(app) = app {
            self.app(organization, app).await?;
        }
        Ok(())
    }

    /// One statement that writes one row of an organization; tells whether it was there.
    pub(crate) async fn write_one(&self, sql: Sql, changes: &[Change], doing: &'static str) -> Result<u64> {
        let mut transaction = self.database().write(doing).await?;
        let rows = sql.run(&mut transaction, doing).await?;
        let changes = if rows > 0 { changes } else { &[] };
        self.finish(transaction, changes, doing).await?;
        Ok(rows)
    }
}

/// Reads one record of an organization inside a transaction.
pub(crate) async fn get_in<R: Record, I: Column + std::fmt::Display>(
    connection: &mut AnyConnection,
    organization: OrganizationId,
    id: I,
    doing: &'static str,
) -> Result<R> {
    Sql::select::<R>("WHERE id = $1 AND organization_id = $2")
        .bind(&id)
        .bind(&organization)
        .optional(connection, doing)
        .await?
        .ok_or_else(|| Error::not_found(R::KIND, id))
}

/// A backup of the database's directory must not carry the keys of what is encrypted in it.
fn check_apart(database: &Path, keyring: &Path) -> Result<()> {
    let keyring = std::path::absolute(keyring)
        .map_err(|error| Error::unavailable("resolving the path of the key file", error))?;
    let resolve = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    match (database.parent(), keyring.parent()) {
        (Some(database), Some(keyring)) if resolve(keyring).starts_with(resolve(database)) => {
            Err(Error::Setting {
                setting: "keyring",
                problem: format!(
                    "the key file must not be in the database's directory {}, or a copy of that directory \
                     would hold both the secrets and their key; choose another directory",
                    database.display()
                ),
            })
        }
        _ => Ok(()),
    }
}
