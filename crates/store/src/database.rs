//! Connections: one writer and a few readers for SQLite, one pool for PostgreSQL.
//!
//! SQLite allows one writer at a time. Here writers queue, fairly, for the only connection that may write, instead
//! of finding the file locked; readers see the last committed snapshot and never wait for the writer (WAL).
//!
//! `synchronous = FULL`: with NORMAL, WAL loses the last commits at a power cut, and an intent that was answered
//! with 200 would be gone. The price is one `fsync` a commit (see docs/concepts/state.md for the measurement).

use std::{
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use sqlx::{Any, AnyConnection, AnyPool, Transaction, any::AnyPoolOptions, pool::PoolConnection};

use crate::error::{Error, Result};

/// How long SQLite waits for a lock that another process holds (a backup, an inspection with `sqlite3`); our own
/// writers queue before they come so far.
const SQLITE_BUSY_TIMEOUT_MS: u64 = 5_000;
/// Readers of SQLite: more than the cores of a small machine, few enough that their page caches stay small.
const SQLITE_READERS_MAX: u32 = 4;
/// Page cache of one SQLite connection, in KiB: the working set of some thousand services.
const SQLITE_CACHE_KIB: u32 = 8 * 1024;
/// What SQLite's log is cut back to after a burst of writes, in bytes; usually it is folded in at 4 MiB.
const SQLITE_LOG_BYTES_KEPT: u32 = 16 * 1024 * 1024;
/// Connections to PostgreSQL: far below its default limit of 100, which several replicas share.
const POSTGRES_CONNECTIONS_MAX: u32 = 16;
/// What every session of PostgreSQL says first. A statement that runs for longer, or waits for another's row for
/// longer, fails instead of holding its caller; a transaction whose process was cut off gives its locks back.
const POSTGRES_SESSION: &str = "SET statement_timeout = '30s'; SET lock_timeout = '10s'; \
     SET idle_in_transaction_session_timeout = '60s'";
/// How long a caller waits for a connection before it is told that the database is overloaded or gone.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);

/// Which database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A file on this machine.
    Sqlite {
        /// The file.
        path: PathBuf,
    },
    /// A server.
    Postgres {
        /// Where, with the credentials.
        url: String,
    },
}

impl Kind {
    /// What a URL means.
    pub(crate) fn of_url(url: &str) -> Result<Self> {
        if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            return Ok(Self::Postgres { url: url.to_owned() });
        }
        let path = url
            .strip_prefix("sqlite://")
            .or_else(|| url.strip_prefix("sqlite:"))
            .unwrap_or_default();
        if path.is_empty() || path.contains(['?', '#', '%']) {
            return Err(Error::Setting {
                setting: "database",
                problem: "give sqlite:///path/to/file.db or postgres://user:password@host/database; \
                          the path must not contain `?`, `#` or `%`"
                    .to_owned(),
            });
        }
        let path = std::path::absolute(path)
            .map_err(|error| Error::unavailable("resolving the path of the database", error))?;
        Ok(Self::Sqlite { path })
    }
}

/// The open database.
#[derive(Debug)]
pub(crate) struct Database {
    pub(crate) kind: Kind,
    writer: AnyPool,
    reader: AnyPool,
}

impl Database {
    /// Connects; makes SQLite's file when it is not there.
    pub(crate) async fn open(kind: Kind) -> Result<Self> {
        const DOING: &str = "connecting";
        sqlx::any::install_default_drivers();
        match &kind {
            Kind::Sqlite { path } => {
                prepare_file(path).map_err(|error| Error::unavailable("making the database file", error))?;
                let url = format!("sqlite://{}?mode=rw", path.display());
                let writer = sqlite_pool(1, false)
                    .connect(&url)
                    .await
                    .map_err(|error| Error::unavailable(DOING, error))?;
                let reader = sqlite_pool(SQLITE_READERS_MAX, true)
                    .connect(&url)
                    .await
                    .map_err(|error| Error::unavailable(DOING, error))?;
                Ok(Self { kind, writer, reader })
            }
            Kind::Postgres { url } => {
                let pool = AnyPoolOptions::new()
                    .max_connections(POSTGRES_CONNECTIONS_MAX)
                    .acquire_timeout(ACQUIRE_TIMEOUT)
                    .after_connect(|connection, _| {
                        Box::pin(async move {
                            sqlx::raw_sql(POSTGRES_SESSION)
                                .execute(connection)
                                .await
                                .map(drop)
                        })
                    })
                    .connect(url)
                    .await
                    .map_err(|error| Error::unavailable(DOING, error))?;
                Ok(Self {
                    kind,
                    writer: pool.clone(),
                    reader: pool,
                })
            }
        }
    }

    /// Whether this is PostgreSQL.
    pub(crate) const fn is_postgres(&self) -> bool {
        matches!(self.kind, Kind::Postgres { .. })
    }

    /// A transaction that writes. Dropped without a commit, it never happened.
    pub(crate) async fn write(&self, doing: &'static str) -> Result<Transaction<'static, Any>> {
        let begin = if self.is_postgres() {
            "BEGIN"
        } else {
            "BEGIN IMMEDIATE"
        };
        self.writer
            .begin_with(begin)
            .await
            .map_err(|error| Error::unavailable(doing, error))
    }

    /// A transaction that reads one consistent snapshot.
    pub(crate) async fn snapshot(&self, doing: &'static str) -> Result<Transaction<'static, Any>> {
        let begin = if self.is_postgres() {
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
        } else {
            "BEGIN"
        };
        self.reader
            .begin_with(begin)
            .await
            .map_err(|error| Error::unavailable(doing, error))
    }

    /// A connection for one statement that reads.
    pub(crate) async fn read(&self, doing: &'static str) -> Result<PoolConnection<Any>> {
        self.reader
            .acquire()
            .await
            .map_err(|error| Error::unavailable(doing, error))
    }

    /// A connection for a statement that cannot run in a transaction.
    pub(crate) async fn writer(&self, doing: &'static str) -> Result<PoolConnection<Any>> {
        self.writer
            .acquire()
            .await
            .map_err(|error| Error::unavailable(doing, error))
    }

    /// Ends every connection; SQLite folds its log into the file.
    pub(crate) async fn close(&self) {
        self.reader.close().await;
        self.writer.close().await;
    }
}

/// Makes the directory and the file, for their owner alone: hashes of tokens and encrypted secrets are inside.
fn prepare_file(path: &Path) -> std::io::Result<()> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)
        .map(drop)
}

fn sqlite_pool(connections_max: u32, read_only: bool) -> AnyPoolOptions {
    let settings = format!(
        "PRAGMA busy_timeout = {SQLITE_BUSY_TIMEOUT_MS}; \
         PRAGMA journal_mode = WAL; \
         PRAGMA synchronous = FULL; \
         PRAGMA foreign_keys = ON; \
         PRAGMA cache_size = -{SQLITE_CACHE_KIB}; \
         PRAGMA temp_store = MEMORY; \
         PRAGMA journal_size_limit = {SQLITE_LOG_BYTES_KEPT}; \
         PRAGMA query_only = {};",
        if read_only { "ON" } else { "OFF" }
    );
    AnyPoolOptions::new()
        .max_connections(connections_max)
        .min_connections(1)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .idle_timeout(None)
        .max_lifetime(None)
        .test_before_acquire(false)
        .after_connect(move |connection: &mut AnyConnection, _| {
            let settings = settings.clone();
            Box::pin(async move {
                sqlx::raw_sql(sqlx::AssertSqlSafe(settings))
                    .execute(connection)
                    .await
                    .map(drop)
            })
        })
}

/// Commits.
pub(crate) async fn commit(transaction: Transaction<'static, Any>, doing: &'static str) -> Result<()> {
    transaction
        .commit()
        .await
        .map_err(|error| Error::unavailable(doing, error))
}
