//! The signal that something changed, for whoever reconciles.
//!
//! Sent after the commit and never relied on: a receiver that lags, a replica that was cut off or a process that was
//! down finds the same work by the clock. With PostgreSQL a change is also announced (`NOTIFY`) to the other
//! replicas, so that an intent that one of them took wakes the leader at once, wherever it is.

use std::{fmt, str::FromStr, time::Duration};

use sqlx::{AnyConnection, postgres::PgListener};
use tokio::{sync::broadcast, task::AbortHandle};
use tram_types::{AppId, DomainId, InstanceSnapshotId, SecretId, ServiceId, ServicePoolId, VolumeId};
use uuid::Uuid;

use crate::{
    error::{Error, Result},
    sql::Sql,
};

/// What changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Change {
    /// A service: its intent, its deployments, its scaling, its ports.
    Service(ServiceId),
    /// Nothing of what is kept: somebody wants a service awake now, as a caller would.
    Wake(ServiceId),
    /// An app: its intent or its name.
    App(AppId),
    /// A domain: made, changed, removed.
    Domain(DomainId),
    /// A secret: made, changed, removed.
    Secret(SecretId),
    /// A volume or a snapshot of it: wanted, to be changed, to be removed.
    Volume(VolumeId),
    /// A service pool: its intent, or what was taken from it.
    Pool(ServicePoolId),
    /// A snapshot of an instance: wanted, made, removed.
    InstanceSnapshot(InstanceSnapshotId),
}

/// Changes that wait for a slow receiver; one more and it is told that it lagged, and sweeps.
pub(crate) const CHANGES_MAX: usize = 1024;
/// The channel on which replicas announce changes.
const CHANNEL: &str = "tram_changes";
/// Before the listener tries again after a failure: the clock finds the work meanwhile.
const LISTEN_AGAIN_AFTER: Duration = Duration::from_secs(1);

impl fmt::Display for Change {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(id) => write!(formatter, "service {id}"),
            Self::Wake(id) => write!(formatter, "wake {id}"),
            Self::App(id) => write!(formatter, "app {id}"),
            Self::Domain(id) => write!(formatter, "domain {id}"),
            Self::Secret(id) => write!(formatter, "secret {id}"),
            Self::Volume(id) => write!(formatter, "volume {id}"),
            Self::Pool(id) => write!(formatter, "pool {id}"),
            Self::InstanceSnapshot(id) => write!(formatter, "instance-snapshot {id}"),
        }
    }
}

/// What a replica announces: who it is and what changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Announcement {
    replica: Uuid,
    change: Change,
}

impl fmt::Display for Announcement {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.replica, self.change)
    }
}

impl FromStr for Announcement {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut words = text.split(' ');
        let mut next = || words.next().ok_or(());
        let replica = next()?.parse().map_err(|_| ())?;
        let kind = next()?;
        let id: Uuid = next()?.parse().map_err(|_| ())?;
        let change = match kind {
            "service" => Change::Service(ServiceId::from_uuid(id)),
            "wake" => Change::Wake(ServiceId::from_uuid(id)),
            "app" => Change::App(AppId::from_uuid(id)),
            "domain" => Change::Domain(DomainId::from_uuid(id)),
            "secret" => Change::Secret(SecretId::from_uuid(id)),
            "volume" => Change::Volume(VolumeId::from_uuid(id)),
            "pool" => Change::Pool(ServicePoolId::from_uuid(id)),
            "instance-snapshot" => Change::InstanceSnapshot(InstanceSnapshotId::from_uuid(id)),
            _ => return Err(()),
        };
        Ok(Self { replica, change })
    }
}

/// Announces changes; PostgreSQL delivers them when the transaction commits, and not if it does not.
pub(crate) async fn announce(
    transaction: &mut AnyConnection,
    changes: &[Change],
    replica: Uuid,
    doing: &'static str,
) -> Result<()> {
    for change in changes {
        let announcement = Announcement {
            replica,
            change: *change,
        };
        Sql::new("SELECT pg_notify($1, $2)")
            .bind(&CHANNEL.to_owned())
            .bind(&announcement.to_string())
            .run(transaction, doing)
            .await?;
    }
    Ok(())
}

/// Passes on what other replicas announce, for as long as it is not aborted. It connects again by itself; what was
/// announced meanwhile is lost.
pub(crate) async fn listen(
    url: &str,
    replica: Uuid,
    changes: broadcast::Sender<Change>,
) -> Result<AbortHandle> {
    const DOING: &str = "listening for changes of other replicas";
    let mut listener = PgListener::connect(url)
        .await
        .map_err(|error| Error::unavailable(DOING, error))?;
    listener
        .listen(CHANNEL)
        .await
        .map_err(|error| Error::unavailable(DOING, error))?;
    let task = tokio::spawn(async move {
        loop {
            match listener.recv().await {
                Ok(notification) => {
                    let announcement = notification.payload().parse::<Announcement>();
                    if let Ok(Announcement {
                        replica: from,
                        change,
                    }) = announcement
                        && from != replica
                    {
                        // Nobody listening is fine.
                        let _ = changes.send(change);
                    }
                }
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "listening for changes failed"
                    );
                    tokio::time::sleep(LISTEN_AGAIN_AFTER).await;
                }
            }
        }
    });
    Ok(task.abort_handle())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_announcement_reads_back_and_nonsense_does_not() {
        for change in [
            Change::Service(ServiceId::random()),
            Change::App(AppId::random()),
            Change::Domain(DomainId::random()),
            Change::Pool(ServicePoolId::random()),
            Change::Secret(SecretId::random()),
            Change::Volume(VolumeId::random()),
            Change::InstanceSnapshot(InstanceSnapshotId::random()),
        ] {
            let announcement = Announcement {
                replica: Uuid::new_v4(),
                change,
            };
            assert_eq!(announcement.to_string().parse(), Ok(announcement));
        }
        for text in ["", "x", "a b c", &format!("{} nap {}", Uuid::nil(), Uuid::nil())] {
            assert!(text.parse::<Announcement>().is_err(), "{text}");
        }
    }
}
