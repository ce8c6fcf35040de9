//! Metrics of service pools: what each should have ready, what it has, and what claims of it took.
//!
//! The counts are the store's, read at each scrape; claims are told by the API. The one design choice to know: a pool that
//! is gone takes its series with it, so there are never more than there are pools.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use tram_api::ClaimObserver;
use tram_store::{Store, record::Desired};
use tram_types::ServicePoolId;

/// Upper bounds of the time of a claim, in seconds: one transaction, or two and what a service is made of.
const CLAIM_SECONDS: [f64; 9] = [0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.5];
/// Pools read at a time: bounds what is held in memory.
const PAGE: u32 = 256;
/// A member was ready, or none was and a service was made.
const OUTCOMES: [&str; 2] = ["ready", "made"];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PoolLabel {
    pool_id: String,
    pool: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClaimLabel {
    pool_id: String,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

/// What is known of pools.
#[derive(Debug)]
pub struct PoolMetrics {
    wanted: Family<PoolLabel, Gauge>,
    ready: Family<PoolLabel, Gauge>,
    claims: Family<ClaimLabel, Counter>,
    claim_seconds: Family<OutcomeLabel, Histogram>,
    /// The pools that have counters.
    known: Mutex<BTreeSet<ServicePoolId>>,
}

impl PoolMetrics {
    /// Nothing is known yet.
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let wanted = Family::default();
        registry.register(
            "pool_members_wanted",
            "Services that a pool should have ready",
            Family::clone(&wanted),
        );
        let ready = Family::default();
        registry.register(
            "pool_members_ready",
            "Services of a pool that can be claimed now",
            Family::clone(&ready),
        );
        let claims = Family::default();
        registry.register(
            "pool_claims",
            "Claims that were answered with a service, each once",
            Family::clone(&claims),
        );
        let claim_seconds =
            Family::<OutcomeLabel, Histogram>::new_with_constructor(|| Histogram::new(CLAIM_SECONDS));
        registry.register(
            "pool_claim_seconds",
            "From a claim to its answer",
            claim_seconds.clone(),
        );
        for outcome in OUTCOMES {
            // There from the start: a series that comes and goes is hard to alert on.
            drop(claim_seconds.get_or_create(&OutcomeLabel { outcome }));
        }
        Self {
            wanted,
            ready,
            claims,
            claim_seconds,
            known: Mutex::default(),
        }
    }

    /// Asks the store what there is of pools.
    pub(crate) async fn count(&self, store: &Store) -> Result<(), tram_store::Error> {
        let (mut pools, mut ready) = (Vec::new(), BTreeMap::new());
        let mut after = None;
        loop {
            let page = store.service_pools_unscoped(after, PAGE).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.id);
            pools.extend(page.into_iter().filter(|pool| pool.desired != Desired::Delete));
        }
        let organizations: BTreeSet<_> = pools.iter().map(|pool| pool.organization_id).collect();
        for organization in organizations {
            ready.extend(store.pool_ready_counts(organization).await?);
        }
        self.forget();
        for pool in &pools {
            let label = PoolLabel {
                pool_id: pool.id.to_string(),
                pool: pool.name.clone(),
            };
            self.wanted.get_or_create(&label).set(pool.size.into());
            let ready = ready.get(&pool.id).copied().unwrap_or_default();
            self.ready.get_or_create(&label).set(ready.into());
        }
        let there: BTreeSet<ServicePoolId> = pools.iter().map(|pool| pool.id).collect();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        for gone in known.difference(&there) {
            for outcome in OUTCOMES {
                self.claims.remove(&claim_label(*gone, outcome));
            }
        }
        for new in there.difference(&known) {
            for outcome in OUTCOMES {
                drop(self.claims.get_or_create(&claim_label(*new, outcome)));
            }
        }
        *known = there;
        Ok(())
    }

    /// What there was counts for nothing.
    pub(crate) fn forget(&self) {
        self.wanted.clear();
        self.ready.clear();
    }
}

impl ClaimObserver for PoolMetrics {
    fn claimed(&self, pool: ServicePoolId, prewarmed: bool, took: Duration) {
        let [ready, made] = OUTCOMES;
        let outcome = if prewarmed { ready } else { made };
        self.claim_seconds
            .get_or_create(&OutcomeLabel { outcome })
            .observe(took.as_secs_f64());
        // Known from here on: should the pool go before anybody scrapes, the next scrape takes the series away.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(pool);
        self.claims.get_or_create(&claim_label(pool, outcome)).inc();
    }
}

fn claim_label(pool: ServicePoolId, outcome: &'static str) -> ClaimLabel {
    ClaimLabel {
        pool_id: pool.to_string(),
        outcome,
    }
}
