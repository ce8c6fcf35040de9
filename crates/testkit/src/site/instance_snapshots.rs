//! Snapshots of instances of the site in memory: each is under way until the test lets it be taken.

use std::collections::BTreeSet;

use tokio::sync::watch;
use tram_site::Error;
use tram_types::InstanceSnapshotId;

use super::FakeSite;

/// What every snapshot takes, in bytes.
const BYTES: u64 = 1 << 20;

/// What is under way, and what the test let go on.
#[derive(Debug, Default)]
pub struct Taking {
    /// Asked for and not taken yet.
    pub under_way: BTreeSet<InstanceSnapshotId>,
    allowed: BTreeSet<InstanceSnapshotId>,
    kept: bool,
}

impl FakeSite {
    /// Snapshots of instances can be taken from now on; each waits for [`FakeSite::let_be_taken`].
    pub fn keep_instance_snapshots(&self) {
        self.taking.send_modify(|taking| taking.kept = true);
    }

    /// Lets this one be taken.
    pub fn let_be_taken(&self, snapshot: InstanceSnapshotId) {
        self.taking.send_modify(|taking| {
            taking.allowed.insert(snapshot);
        });
    }

    /// What is under way, for who waits for a change of it.
    #[must_use]
    pub fn instance_snapshots(&self) -> watch::Receiver<Taking> {
        self.taking.subscribe()
    }

    pub(super) async fn take(&self, snapshot: InstanceSnapshotId) -> Result<u64, Error> {
        if !self.taking.borrow().kept {
            return Err(Error::Refused {
                message: "this region keeps no snapshots of instances".to_owned(),
            });
        }
        self.taking.send_modify(|taking| {
            taking.under_way.insert(snapshot);
        });
        let mut seen = self.taking.subscribe();
        let allowed = seen.wait_for(|taking| taking.allowed.contains(&snapshot)).await;
        drop(allowed.map_err(|error| Error::unavailable("the site is gone", error))?);
        self.taking.send_modify(|taking| {
            taking.under_way.remove(&snapshot);
        });
        Ok(BYTES)
    }
}
