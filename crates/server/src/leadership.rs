//! One control plane works on a database at a time: this one takes the leadership when it starts, with some patience,
//! and watches it from then on.
//!
//! Used by [`crate::up`]. With SQLite the leadership goes with the process. With PostgreSQL it goes with a session,
//! which the network or the server may end: whoever lost it must stop to decide, and the process manager starts it
//! again.

use std::time::Duration;

use anyhow::{Context, bail};
use tokio::{task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;
use tram_store::{Leadership, Store};

/// Between two looks whether the leadership is still held: a session that was cut is noticed before another control
/// plane has done much.
const LOOK: Duration = Duration::from_secs(5);
/// How long a start waits for the leadership: a database server takes up to 25 seconds to notice that the machine of
/// the control plane before this one is gone.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two tries to take it.
const RETRY: Duration = Duration::from_millis(500);

/// What is said when the leadership was lost.
pub const LOST: &str = "the database let go of this control plane, so that another one may work on it; the edge and \
                        the instances go on. Start it again, or see why the connection to the database was cut";

/// This process leads. Dropping it lets the leadership go.
#[derive(Debug)]
pub struct Leader {
    watching: JoinHandle<()>,
    lost: CancellationToken,
}

impl Leader {
    /// Takes the leadership, and watches it.
    ///
    /// # Errors
    /// When another control plane keeps it, or the database does not answer.
    pub async fn take(store: &Store) -> anyhow::Result<Self> {
        Self::take_within(store, PATIENCE).await
    }

    async fn take_within(store: &Store, patience: Duration) -> anyhow::Result<Self> {
        let deadline = Instant::now() + patience;
        let mut told = false;
        loop {
            let taken = store.acquire_leadership().await;
            if let Some(leadership) = taken.context("cannot take the leadership")? {
                return Ok(Self::watch(leadership, LOOK));
            }
            if Instant::now() >= deadline {
                bail!("another control plane works on this database: stop it first");
            }
            if !told {
                told = true;
                tracing::info!("another control plane works on this database; waiting until it lets go");
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    fn watch(mut leadership: impl Held, look: Duration) -> Self {
        let lost = CancellationToken::new();
        let tell = lost.clone();
        let watching = tokio::spawn(async move {
            loop {
                tokio::time::sleep(look).await;
                if !leadership.is_held().await {
                    break;
                }
            }
            tracing::error!("{LOST}");
            tell.cancel();
        });
        Self { watching, lost }
    }

    /// Waits until the leadership is lost.
    pub async fn lost(&self) {
        self.lost.cancelled().await;
    }

    /// Whether it is lost.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.lost.is_cancelled()
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        self.watching.abort();
    }
}

/// What can be lost.
trait Held: Send + 'static {
    fn is_held(&mut self) -> impl Future<Output = bool> + Send;
}

impl Held for Leadership {
    fn is_held(&mut self) -> impl Future<Output = bool> + Send {
        Self::is_held(self)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tram_store::{Options, keyring};
    use tram_types::SystemClock;

    use super::*;

    #[tokio::test]
    async fn a_start_waits_until_the_one_before_has_let_go() {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path().join("data");
        std::fs::create_dir(&data).unwrap();
        let options = Options {
            database_url: format!("sqlite://{}", data.join("tram.db").display()),
            keyring: keyring::Settings {
                path: directory.path().join("keys/keyring"),
                create: true,
            },
            proxy_ports: 20_000..=20_001,
            clock: Arc::new(SystemClock),
        };
        let first = Store::open(options.clone()).await.unwrap();
        let second = Store::open(options).await.unwrap();
        let leader = Leader::take(&first).await.unwrap();
        assert!(!leader.is_lost());
        let refused = Leader::take_within(&second, Duration::ZERO).await.unwrap_err();
        assert!(refused.to_string().contains("another control plane"), "{refused}");
        let (next, ()) = tokio::join!(Leader::take(&second), async { drop(leader) });
        next.unwrap();
    }

    /// Held for so many looks.
    struct For(u32);

    impl Held for For {
        async fn is_held(&mut self) -> bool {
            self.0 = self.0.saturating_sub(1);
            self.0 > 0
        }
    }

    #[tokio::test]
    async fn a_leadership_that_is_lost_is_noticed() {
        let leader = Leader::watch(For(3), Duration::from_millis(1));
        assert!(!leader.is_lost());
        leader.lost().await;
        assert!(leader.is_lost());
    }
}
