//! Forgets what is over and old: ended instances and deployments, events, the audit feed.
//!
//! **Owns** when history is removed. **Does not own** what may be removed, which the store decides (what still serves
//! is never touched), nor the logs of instances, which their site keeps and ages. Runs by clock alone: nobody waits
//! for it. One run removes a bounded piece, so other writers never wait long; a report that is partial makes the
//! driver run it again at once.
//!
//! This is the reconciler to imitate: no argument, bounded work, may be repeated, a typed report.

use std::time::Duration;

use async_trait::async_trait;
use tram_store::{Pruned, Retention, Store};

use crate::{Deps, driver, error::Error};

/// Between two runs: history is kept for days, an hour more or less is nothing.
const PERIOD: Duration = Duration::from_secs(60 * 60);

/// Forgets what is over and old.
#[derive(Debug)]
pub struct Reconciler {
    store: Store,
    limits: Retention,
}

impl Reconciler {
    /// With the limits of the settings.
    #[must_use]
    pub fn new(deps: &Deps) -> Self {
        Self {
            store: deps.store.clone(),
            limits: deps.settings.retention,
        }
    }
}

#[async_trait]
impl driver::Reconciler for Reconciler {
    type Report = Pruned;

    fn name(&self) -> &'static str {
        "retention"
    }

    fn period(&self) -> Duration {
        PERIOD
    }

    async fn run(&self) -> Result<Pruned, Error> {
        self.store
            .prune(&self.limits)
            .await
            .map_err(Error::store("remove old history"))
    }
}

impl driver::Report for Pruned {
    fn is_quiet(&self) -> bool {
        *self == Self::default()
    }

    fn has_more(&self) -> bool {
        self.is_partial()
    }
}
