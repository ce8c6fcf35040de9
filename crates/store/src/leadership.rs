//! One process at a time carries decisions out.
//!
//! The lock belongs to the process's file handle (SQLite) or session (PostgreSQL): it ends with the process, however
//! that ends. Each leadership has a higher epoch than the one before, and [`Store::apply`](crate::Store::apply)
//! refuses a process whose epoch is not the newest, so that a leader that was cut off and comes back does no harm.

use std::{fs, path::PathBuf, time::Duration};

use sqlx::{AnyConnection, Connection as _};

use crate::{
    Store,
    database::Kind,
    error::{Error, Result},
    settings,
    sql::Sql,
};

/// The advisory lock of PostgreSQL that the leader holds.
const LEADER_LOCK: i64 = 0x7472_616d_0003;
/// How long the leader waits for its session to answer before it takes itself for cut off.
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// What the leader's session says first: a machine that vanished without a word gives the lock back after 10 s of
/// silence and three questions 5 s apart, and not after the two hours that are the system's default.
const LEADER_SESSION: &str =
    "SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3";
/// The setting that counts leaderships.
const LEADER_EPOCH: &str = "leader_epoch";

/// This process leads, for as long as this is not dropped and [`Leadership::is_held`] says so.
#[derive(Debug)]
pub struct Leadership {
    epoch: i64,
    guard: Guard,
}

#[derive(Debug)]
enum Guard {
    /// Held open; the kernel lets the lock go when it is closed.
    File { _file: fs::File },
    /// A session of its own: the lock goes with it.
    Session { connection: Box<AnyConnection> },
}

impl Leadership {
    /// Which leadership this is: higher than every one before.
    #[must_use]
    pub const fn epoch(&self) -> i64 {
        self.epoch
    }

    /// Whether the lock is still held. With PostgreSQL, ask before each round of work: a session may be cut.
    pub async fn is_held(&mut self) -> bool {
        match &mut self.guard {
            Guard::File { .. } => true,
            Guard::Session { connection } => matches!(
                tokio::time::timeout(PING_TIMEOUT, connection.ping()).await,
                Ok(Ok(()))
            ),
        }
    }
}

impl Store {
    /// That nobody took the leadership after this process did: ask before orders that go with no write.
    ///
    /// # Errors
    /// [`Error::Conflict`] when somebody did; [`Error::Unavailable`].
    pub async fn confirm_leadership(&self) -> Result<()> {
        const DOING: &str = "looking who leads";
        if self.epoch() == 0 {
            return Ok(());
        }
        check_epoch(&mut *self.database().read(DOING).await?, self.epoch(), DOING).await
    }

    /// Takes the leadership when nobody has it; `None` when somebody has. Try again from time to time.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    pub async fn acquire_leadership(&self) -> Result<Option<Leadership>> {
        const DOING: &str = "taking the leadership";
        let guard = match &self.database().kind {
            Kind::Sqlite { path } => {
                let mut beside = path.clone().into_os_string();
                beside.push(".leader");
                lock_file(PathBuf::from(beside))?
            }
            Kind::Postgres { url } => {
                let mut connection = AnyConnection::connect(url)
                    .await
                    .map_err(|error| Error::unavailable(DOING, error))?;
                sqlx::raw_sql(LEADER_SESSION)
                    .execute(&mut connection)
                    .await
                    .map_err(|error| Error::unavailable(DOING, error))?;
                let got = Sql::new("SELECT CASE WHEN pg_try_advisory_lock($1) THEN 1 ELSE 0 END AS value")
                    .bind(&LEADER_LOCK)
                    .value::<u32>(&mut connection, DOING)
                    .await?;
                (got == Some(1)).then(|| Guard::Session {
                    connection: Box::new(connection),
                })
            }
        };
        let Some(guard) = guard else {
            return Ok(None);
        };
        let mut transaction = self.database().write(DOING).await?;
        let epoch = settings::value::<String>(&mut transaction, LEADER_EPOCH, DOING)
            .await?
            .and_then(|text| text.parse::<i64>().ok())
            .unwrap_or(0)
            + 1;
        Sql::new(
            "INSERT INTO settings (name, content) VALUES ($1, $2) \
             ON CONFLICT (name) DO UPDATE SET content = EXCLUDED.content",
        )
        .bind(&LEADER_EPOCH.to_owned())
        .bind(&epoch.to_string())
        .run(&mut transaction, DOING)
        .await?;
        self.commit(transaction, DOING).await?;
        self.set_epoch(epoch);
        Ok(Some(Leadership { epoch, guard }))
    }
}

fn lock_file(path: PathBuf) -> Result<Option<Guard>> {
    const DOING: &str = "locking the leader's file";
    let file = fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(|error| Error::unavailable(DOING, error))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(Guard::File { _file: file })),
        Err(fs::TryLockError::WouldBlock) => Ok(None),
        Err(fs::TryLockError::Error(error)) => Err(Error::unavailable(DOING, error)),
    }
}

/// That nobody took the leadership after this process did. A process that never led (a tool, a test) is not held to
/// it: it has no decisions to carry out.
pub(crate) async fn check_epoch(
    connection: &mut AnyConnection,
    epoch: i64,
    doing: &'static str,
) -> Result<()> {
    if epoch == 0 {
        return Ok(());
    }
    let newest = settings::value::<String>(connection, LEADER_EPOCH, doing).await?;
    if newest.as_deref() == Some(epoch.to_string().as_str()) {
        return Ok(());
    }
    Err(Error::conflict(
        "leadership",
        epoch,
        "another process has taken the leadership",
    ))
}
