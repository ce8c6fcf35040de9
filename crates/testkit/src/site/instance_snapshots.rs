//! Snapshots of instances of the site in memory: each is under way until the test lets it be taken, or fail.

use std::collections::{BTreeMap, BTreeSet};

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
    /// What lies there: whole, or what a failed try left.
    pub there: BTreeSet<InstanceSnapshotId>,
    /// How often each was asked for.
    pub tries: BTreeMap<InstanceSnapshotId, u32>,
    allowed: BTreeSet<InstanceSnapshotId>,
    failing: BTreeMap<InstanceSnapshotId, Failure>,
    busy: bool,
    kept: bool,
}

/// How a try fails. Something of the snapshot is left.
#[derive(Debug, Clone)]
pub enum Failure {
    /// For now.
    Unavailable,
    /// For good, with these words.
    Refused(String),
}

impl FakeSite {
    /// Snapshots of instances can be taken from now on; each waits for [`FakeSite::let_be_taken`].
    pub fn keep_instance_snapshots(&self) {
        self.taking.send_modify(|taking| taking.kept = true);
    }

    /// Lets this one be taken, also if it failed before.
    pub fn let_be_taken(&self, snapshot: InstanceSnapshotId) {
        self.taking.send_modify(|taking| {
            taking.failing.remove(&snapshot);
            taking.allowed.insert(snapshot);
        });
    }

    /// Every try of this one fails from now on.
    pub fn let_fail(&self, snapshot: InstanceSnapshotId, how: Failure) {
        self.taking.send_modify(|taking| {
            taking.failing.insert(snapshot, how);
        });
    }

    /// Nothing can be removed now, or again.
    pub fn keep_busy(&self, busy: bool) {
        self.taking.send_modify(|taking| taking.busy = busy);
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
            *taking.tries.entry(snapshot).or_default() += 1;
        });
        let mut seen = self.taking.subscribe();
        let allowed = seen
            .wait_for(|taking| taking.allowed.contains(&snapshot) || taking.failing.contains_key(&snapshot));
        let failure = match allowed.await {
            Ok(taking) => taking.failing.get(&snapshot).cloned(),
            Err(error) => return Err(Error::unavailable("the site is gone", error)),
        };
        self.taking.send_modify(|taking| {
            taking.under_way.remove(&snapshot);
            taking.there.insert(snapshot);
        });
        match failure {
            None => Ok(BYTES),
            Some(Failure::Refused(message)) => Err(Error::Refused { message }),
            Some(Failure::Unavailable) => Err(not_now()),
        }
    }

    pub(super) fn remove(&self, snapshot: InstanceSnapshotId) -> Result<(), Error> {
        if self.taking.borrow().busy {
            return Err(not_now());
        }
        self.taking.send_modify(|taking| {
            taking.there.remove(&snapshot);
        });
        Ok(())
    }
}

fn not_now() -> Error {
    Error::Unavailable {
        message: "not now".to_owned(),
        source: None,
    }
}
