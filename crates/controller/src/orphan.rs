//! Sites run nothing that the store does not know.
//!
//! A stray is left by a crash at the wrong moment, never by design. It is stopped only when two looks in a row find
//! it, and only a few at a time: a database restored from a backup must not empty a site at one blow.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tram_site::{InstancePhase, Observation, Site, Sites, spec::DEFAULT_STOP_GRACE};
use tram_store::Store;
use tram_types::InstanceId;

use crate::{Deps, driver, error::Error};

/// Between two looks: a stray costs memory, not correctness.
const PERIOD: Duration = Duration::from_secs(60);
/// Strays stopped in one run.
const STOPPED_MAX: usize = 16;
/// Ids read from the store at a time.
const PAGE_IDS: u32 = 1000;

/// Stops what the store does not know.
#[derive(Debug)]
pub struct Reconciler {
    store: Store,
    sites: Sites,
    /// Strays of the last look.
    suspects: Mutex<BTreeSet<InstanceId>>,
}

/// What one run did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// Strays seen.
    pub strays: usize,
    /// Told to stop.
    pub stopped: usize,
    /// Ended ones that their site forgot.
    pub forgotten: usize,
    /// Could not be ended now.
    pub failed: usize,
    /// Sites that did not answer.
    pub unreachable: usize,
}

impl driver::Report for Report {
    fn is_quiet(&self) -> bool {
        *self == Self::default()
    }
}

impl Reconciler {
    /// For these sites.
    #[must_use]
    pub fn new(deps: &Deps) -> Self {
        Self {
            store: deps.store.clone(),
            sites: deps.sites.clone(),
            suspects: Mutex::default(),
        }
    }

    async fn known(&self) -> Result<BTreeSet<InstanceId>, Error> {
        let mut known = BTreeSet::new();
        let mut after = None;
        loop {
            let page = self
                .store
                .known_instances_unscoped(after, PAGE_IDS)
                .await
                .map_err(Error::store("read the known instances"))?;
            known.extend(page.iter().map(|instance| instance.id));
            match page.last() {
                Some(last) if page.len() == PAGE_IDS as usize => after = Some(last.id),
                _ => return Ok(known),
            }
        }
    }

    async fn end(
        &self,
        site: &dyn Site,
        seen: &tram_site::ObservedInstance,
        report: &mut Report,
    ) -> Result<(), Error> {
        let generation = seen.generation.next();
        if seen.phase.is_ended() {
            site.forget(seen.id, generation)
                .await
                .map_err(Error::site("make a site forget a stray instance"))?;
            report.forgotten += 1;
            // Its owner may still want to read the logs of an instance that has a row.
            match self.store.instance_unscoped(seen.id).await {
                Ok(_) => {}
                Err(tram_store::Error::NotFound { .. }) => site
                    .remove_logs(seen.id)
                    .await
                    .map_err(Error::site("remove the logs of a stray instance"))?,
                Err(error) => return Err(Error::store("look whether an instance is known")(error)),
            }
        } else if seen.phase != InstancePhase::Stopping && report.stopped < STOPPED_MAX {
            tracing::warn!(instance = %seen.id, "stopping an instance that the store does not know");
            site.stop(seen.id, DEFAULT_STOP_GRACE, generation)
                .await
                .map_err(Error::site("stop a stray instance"))?;
            report.stopped += 1;
        }
        Ok(())
    }
}

#[async_trait]
impl driver::Reconciler for Reconciler {
    type Report = Report;

    fn name(&self) -> &'static str {
        "orphan"
    }

    fn period(&self) -> Duration {
        PERIOD
    }

    async fn run(&self) -> Result<Report, Error> {
        let mut report = Report::default();
        let mut observed: Vec<(&dyn Site, Observation)> = Vec::new();
        // Sites first: whatever a site has now was in the store before it was started.
        for (region, site) in self.sites.iter() {
            match site.observe().await {
                Ok(observation) => observed.push((site.as_ref(), observation)),
                Err(error) => {
                    report.unreachable += 1;
                    tracing::debug!(
                        region,
                        error = &error as &dyn std::error::Error,
                        "a site does not answer"
                    );
                }
            }
        }
        let known = self.known().await?;
        let before = self
            .suspects
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let mut suspects = BTreeSet::new();
        for (site, observation) in observed {
            for (id, seen) in observation.instances.iter().filter(|(id, _)| !known.contains(id)) {
                report.strays += 1;
                suspects.insert(*id);
                if !before.contains(id) {
                    continue;
                }
                if let Err(error) = self.end(site, seen, &mut report).await {
                    // The others are ended all the same, and this one in a later look.
                    report.failed += 1;
                    tracing::warn!(
                        instance = %id,
                        error = &error as &dyn std::error::Error,
                        "a stray instance could not be ended"
                    );
                }
            }
        }
        *self.suspects.lock().unwrap_or_else(PoisonError::into_inner) = suspects;
        Ok(report)
    }
}
