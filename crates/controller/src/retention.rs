//! Forgets what is over and old: ended instances and deployments, events, the audit feed.
//!
//! **Owns** when history is removed. **Does not own** what may be removed, which the store decides (what still serves
//! is never touched). Runs by clock alone: nobody waits for it. One run removes a bounded piece, so other writers never
//! wait long; a report that is partial makes the driver run it again at once.
//!
//! The logs of an instance go before its row: once the row is gone, nobody knows any more that there are logs. What is
//! at a site that does not answer waits for a later run.
//!
//! This is the reconciler to imitate: no argument, bounded work, may be repeated, a typed report.

use std::{collections::BTreeSet, time::Duration};

use async_trait::async_trait;
use tram_site::Sites;
use tram_store::{PrunableInstance, Pruned, Retention, Store};
use tram_types::InstanceId;

use crate::{Deps, driver, error::Error};

/// Between two runs: history is kept for days, an hour more or less is nothing.
const PERIOD: Duration = Duration::from_secs(60 * 60);

/// Forgets what is over and old.
#[derive(Debug)]
pub struct Reconciler {
    store: Store,
    sites: Sites,
    limits: Retention,
}

impl Reconciler {
    /// With the limits of the settings.
    #[must_use]
    pub fn new(deps: &Deps) -> Self {
        Self {
            store: deps.store.clone(),
            sites: deps.sites.clone(),
            limits: deps.settings.retention,
        }
    }

    /// Removes the logs of instances; gives those that have none any more. Regions whose site cannot do it now are
    /// added to `away`.
    async fn remove_logs(
        &self,
        instances: Vec<PrunableInstance>,
        away: &mut BTreeSet<String>,
    ) -> Vec<InstanceId> {
        let mut gone = Vec::with_capacity(instances.len());
        for PrunableInstance { id, region } in instances {
            if away.contains(&region) {
                continue;
            }
            let Some(site) = self.sites.for_region(&region) else {
                gone.push(id);
                continue;
            };
            match site.remove_logs(id).await {
                // A refusal: the site still has the instance, which is a stray once its row is gone.
                Ok(()) | Err(tram_site::Error::Refused { .. }) => gone.push(id),
                Err(error) => {
                    tracing::warn!(
                        region,
                        error = &error as &dyn std::error::Error,
                        "old logs cannot be removed now and will be later"
                    );
                    away.insert(region);
                }
            }
        }
        gone
    }

    async fn prune_instances(&self, away: &mut BTreeSet<String>) -> Result<u64, Error> {
        let mut removed = 0;
        loop {
            let known = away.len();
            let page = self
                .store
                .prunable_instances(&self.limits, away)
                .await
                .map_err(Error::store("look for old instances"))?;
            let gone = self.remove_logs(page, away).await;
            removed += self
                .store
                .remove_instances(&gone)
                .await
                .map_err(Error::store("remove old instances"))?;
            // With one site away, the page may have been full of what is there.
            if away.len() == known {
                return Ok(removed);
            }
        }
    }

    /// Removes a piece of the deployments; gives how many, and how many of their instances.
    async fn prune_deployments(&self, away: &mut BTreeSet<String>) -> Result<(u64, u64), Error> {
        let old = self
            .store
            .prunable_deployments(&self.limits)
            .await
            .map_err(Error::store("look for old deployments"))?;
        let instances = self
            .store
            .instances_of_deployments(&old, away)
            .await
            .map_err(Error::store("look for the instances of old deployments"))?;
        let gone = self.remove_logs(instances, away).await;
        let instances = self
            .store
            .remove_instances(&gone)
            .await
            .map_err(Error::store("remove the instances of old deployments"))?;
        let deployments = self
            .store
            .remove_deployments(&old)
            .await
            .map_err(Error::store("remove old deployments"))?;
        Ok((deployments, instances))
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
        let mut pruned = self
            .store
            .prune(&self.limits)
            .await
            .map_err(Error::store("remove old history"))?;
        let mut away = BTreeSet::new();
        pruned.instances = self.prune_instances(&mut away).await?;
        let (deployments, instances) = self.prune_deployments(&mut away).await?;
        pruned.deployments = deployments;
        pruned.instances += instances;
        Ok(pruned)
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
