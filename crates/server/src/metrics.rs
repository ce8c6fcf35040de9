//! Prometheus metrics of the control plane, with the edge's beside them.

mod packing;

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use tokio::sync::Mutex;
use tram_api::ClaimObserver;
use tram_controller::{Observer, Outcome, scaling::Totals};
use tram_planner::autoscale::Cause;
use tram_store::{
    Attributed, Store,
    filter::{Organizations, PAGE_ITEMS_MAX, Page},
};
use tram_types::{
    ServiceId, ServicePoolId,
    status::{InstanceStatus, ServiceStatus},
};

use packing::Packing;

use crate::{
    data_plane::EdgeLink, model_metrics::ModelMetrics, pool_metrics::PoolMetrics, usage::Counted, wakes,
};

/// Upper bounds of the time that a run of a reconciler takes, in seconds.
const RUN_SECONDS: [f64; 8] = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 10.0];
/// Upper bounds of the time to the head of an API call's answer, in seconds.
const CALL_SECONDS: [f64; 8] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 10.0];
/// Upper bounds of the time of a wake, in seconds: from a thaw to the deadline of those who wait.
const WAKE_SECONDS: [f64; 11] = [0.002, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReconcilerLabel {
    reconciler: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    reconciler: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StatusLabel {
    status: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabel {
    method: &'static str,
    route: String,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabel {
    method: &'static str,
    route: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WakeLabel {
    outcome: &'static str,
}

/// The call came, or the service fell asleep again without one.
const PREWAKE_OUTCOMES: [&str; 2] = ["called", "in_vain"];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ServiceLabel {
    service_id: String,
}

/// The last line of an exposition.
const END: &str = "# EOF\n";

/// The control plane's metrics.
#[derive(Debug)]
pub struct Metrics {
    store: Store,
    /// Locked for a whole exposition, so that two scrapers do not see each other's half-read counts.
    registry: Mutex<Registry>,
    services: Family<StatusLabel, Gauge>,
    instances: Family<StatusLabel, Gauge>,
    calls: Family<CallLabel, Counter>,
    call_seconds: Family<RouteLabel, Histogram>,
    wake_seconds: Family<WakeLabel, Histogram>,
    runs: Family<OutcomeLabel, Counter>,
    run_seconds: Family<ReconcilerLabel, Histogram>,
    backlog: Gauge,
    edge_connected: Gauge,
    scaled_wanted: Gauge,
    scaled_ready: Gauge,
    scalings: Family<ReasonLabel, Counter>,
    prewakes: Family<WakeLabel, Counter>,
    packing: Packing,
    refused_packets: Counter,
    refused_names: Counter,
    guarded_filled: Counter,
    guarded_refused: Counter,
    checkpoints: Family<ServiceLabel, Gauge>,
    uncounted: Counter,
    models: ModelMetrics,
    pools: PoolMetrics,
}

impl Metrics {
    /// Nothing happened yet; what there is, is asked of the store at each scrape.
    #[must_use]
    pub fn new(store: Store) -> Self {
        let mut registry = Registry::with_prefix("tram");
        let runs = Family::default();
        registry.register("reconciler_runs", "Runs of a reconciler", runs.clone());
        let run_seconds =
            Family::<ReconcilerLabel, Histogram>::new_with_constructor(|| Histogram::new(RUN_SECONDS));
        registry.register(
            "reconciler_run_seconds",
            "How long a run of a reconciler took",
            run_seconds.clone(),
        );
        let backlog = Gauge::default();
        registry.register(
            "reconciler_backlog",
            "Services that wait to be looked at",
            backlog.clone(),
        );
        let edge_connected = Gauge::default();
        registry.register(
            "edge_connected",
            "Whether the link to the edge is up",
            edge_connected.clone(),
        );
        let services = Family::<StatusLabel, Gauge>::default();
        registry.register("services", "Services by status", services.clone());
        let instances = Family::<StatusLabel, Gauge>::default();
        registry.register("instances", "Instances by status", instances.clone());
        let calls = Family::<CallLabel, Counter>::default();
        registry.register(
            "api_requests",
            "Calls of the API by route and status",
            calls.clone(),
        );
        let call_seconds =
            Family::<RouteLabel, Histogram>::new_with_constructor(|| Histogram::new(CALL_SECONDS));
        registry.register(
            "api_request_seconds",
            "From a call of the API to the head of its answer",
            call_seconds.clone(),
        );
        let wake_seconds =
            Family::<WakeLabel, Histogram>::new_with_constructor(|| Histogram::new(WAKE_SECONDS));
        registry.register(
            "wake_seconds",
            "From the demand of a wake to the routing table that lets its callers go",
            wake_seconds.clone(),
        );
        let scaled_wanted = Gauge::default();
        registry.register(
            "autoscaling_instances_wanted",
            "Instances that the load asks for, of all services that scale on it",
            scaled_wanted.clone(),
        );
        let scaled_ready = Gauge::default();
        registry.register(
            "autoscaling_instances_ready",
            "Instances of these services that are healthy",
            scaled_ready.clone(),
        );
        let scalings = Family::<ReasonLabel, Counter>::default();
        for cause in Cause::ALL {
            // Every reason is there from the start: a series that comes and goes is hard to alert on.
            drop(scalings.get_or_create(&ReasonLabel {
                reason: cause.as_str(),
            }));
        }
        let refused_packets = Counter::default();
        registry.register(
            "network_refused_packets",
            "Packets of instances that were refused on the way out",
            refused_packets.clone(),
        );
        let guarded_filled = Counter::default();
        registry.register(
            "network_secret_requests",
            "Requests of instances that the value of a bound secret was put into",
            guarded_filled.clone(),
        );
        let guarded_refused = Counter::default();
        registry.register(
            "network_secret_refusals",
            "Requests and connections of instances to hosts of bound secrets that were refused",
            guarded_refused.clone(),
        );
        let refused_names = Counter::default();
        registry.register(
            "network_refused_names",
            "Names that a network policy does not list and that were not looked up",
            refused_names.clone(),
        );
        let prewakes = Family::<WakeLabel, Counter>::default();
        for outcome in PREWAKE_OUTCOMES {
            drop(prewakes.get_or_create(&WakeLabel { outcome }));
        }
        registry.register(
            "prewakes",
            "Wakes of services for a call that was expected",
            prewakes.clone(),
        );
        let checkpoints = Family::<ServiceLabel, Gauge>::default();
        registry.register(
            "checkpoint_bytes",
            "What the instances of a service that are asleep on disk take there",
            checkpoints.clone(),
        );
        registry.register(
            "autoscaling_changes",
            "Decisions that changed the number of instances of a deployment in a region",
            scalings.clone(),
        );
        let packing = Packing::registered(&mut registry);
        let uncounted = Counter::default();
        registry.register(
            "usage_damaged",
            "Lines of a journal of what questions to models cost that cannot be read",
            uncounted.clone(),
        );
        let pools = PoolMetrics::new(&mut registry);
        Self {
            store,
            registry: Mutex::new(registry),
            services,
            instances,
            calls,
            call_seconds,
            wake_seconds,
            runs,
            run_seconds,
            backlog,
            edge_connected,
            scaled_wanted,
            scaled_ready,
            scalings,
            prewakes,
            packing,
            refused_packets,
            refused_names,
            guarded_filled,
            guarded_refused,
            checkpoints,
            uncounted,
            models: ModelMetrics::new(),
            pools,
        }
    }

    /// Those of models.
    #[must_use]
    pub const fn models(&self) -> &ModelMetrics {
        &self.models
    }

    /// A call of the API was answered. `route` is a template.
    pub fn called(&self, method: &'static str, route: &str, status: u16, took: Duration) {
        let route = route.to_owned();
        self.call_seconds
            .get_or_create(&RouteLabel {
                method,
                route: route.clone(),
            })
            .observe(took.as_secs_f64());
        self.calls
            .get_or_create(&CallLabel {
                method,
                route,
                status,
            })
            .inc();
    }

    /// What the models of this machine hold.
    pub fn set_packing(&self, totals: tram_controller::packing::Totals) {
        self.packing.set(totals);
    }

    /// A wake is over.
    pub fn woke(&self, ended: wakes::Ended) {
        let outcome = match ended.outcome {
            wakes::Outcome::Ready => "ready",
            wakes::Outcome::Failed => "failed",
        };
        self.wake_seconds
            .get_or_create(&WakeLabel { outcome })
            .observe(ended.took.as_secs_f64());
    }

    /// Asks the store how many there are of what.
    async fn count(&self) -> Result<(), tram_store::Error> {
        // Every status is there from the start: a series that comes and goes is hard to alert on.
        let mut services: BTreeMap<&str, u64> = ServiceStatus::ALL
            .iter()
            .map(|status| (status.as_str(), 0))
            .collect();
        let mut instances: BTreeMap<&str, u64> = InstanceStatus::ALL
            .iter()
            .map(|status| (status.as_str(), 0))
            .collect();
        let mut page = Page {
            limit: PAGE_ITEMS_MAX,
            offset: 0,
        };
        loop {
            let found = self
                .store
                .list_organizations_unscoped(&Organizations::default(), page)
                .await?;
            for organization in &found.items {
                let counts = self.store.counts(organization.id).await?;
                for (status, count) in counts.services {
                    *services.entry(status.as_str()).or_default() += count;
                }
                for (status, count) in counts.instances {
                    *instances.entry(status.as_str()).or_default() += count;
                }
            }
            page.offset = page.offset.saturating_add(page.limit);
            if found.items.is_empty() || u64::from(page.offset) >= found.count {
                break;
            }
        }
        for (family, counts) in [(&self.services, services), (&self.instances, instances)] {
            family.clear();
            for (status, count) in counts {
                family
                    .get_or_create(&StatusLabel {
                        status: status.to_owned(),
                    })
                    .set(i64::try_from(count).unwrap_or(i64::MAX));
            }
        }
        self.pools.count(&self.store).await
    }

    /// What the load decided so far.
    pub fn set_scaling(&self, totals: &Totals) {
        let whole = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        self.scaled_wanted.set(whole(totals.wanted));
        self.scaled_ready.set(whole(totals.ready));
        for (cause, count) in &totals.changes {
            let counter = self.scalings.get_or_create(&ReasonLabel {
                reason: cause.as_str(),
            });
            counter.inc_by(count.saturating_sub(counter.get()));
        }
    }

    /// What instances were refused on their way out so far.
    pub fn set_refused(&self, packets: u64, names: u64) {
        for (counter, count) in [(&self.refused_packets, packets), (&self.refused_names, names)] {
            counter.inc_by(count.saturating_sub(counter.get()));
        }
    }

    /// What became of requests to hosts that secrets are bound to so far.
    pub fn set_guarded(&self, filled: u64, refused: u64) {
        for (counter, count) in [(&self.guarded_filled, filled), (&self.guarded_refused, refused)] {
            counter.inc_by(count.saturating_sub(counter.get()));
        }
    }

    /// What the checkpoints of each service take; those of no other take anything.
    pub fn set_checkpoints(&self, bytes: &HashMap<ServiceId, u64>) {
        self.checkpoints.clear();
        for (service, bytes) in bytes {
            let service_id = service.to_string();
            let gauge = self.checkpoints.get_or_create(&ServiceLabel { service_id });
            gauge.set(i64::try_from(*bytes).unwrap_or(i64::MAX));
        }
    }

    /// Nobody knows what checkpoints take.
    pub fn forget_checkpoints(&self) {
        self.checkpoints.clear();
    }

    /// How many services wait to be looked at.
    pub fn set_backlog(&self, waiting: usize) {
        self.backlog.set(i64::try_from(waiting).unwrap_or(i64::MAX));
    }
}

impl Observer for Metrics {
    fn ran(&self, name: &'static str, outcome: Outcome, took: Duration) {
        let outcome = match outcome {
            Outcome::Changed => "changed",
            Outcome::Quiet => "quiet",
            Outcome::Conflict => "conflict",
            Outcome::Failed => "failed",
        };
        self.runs
            .get_or_create(&OutcomeLabel {
                reconciler: name,
                outcome,
            })
            .inc();
        self.run_seconds
            .get_or_create(&ReconcilerLabel { reconciler: name })
            .observe(took.as_secs_f64());
    }

    fn prewoken(&self, called: bool) {
        let [came, in_vain] = PREWAKE_OUTCOMES;
        let outcome = if called { came } else { in_vain };
        self.prewakes.get_or_create(&WakeLabel { outcome }).inc();
    }
}

impl ClaimObserver for Metrics {
    fn claimed(&self, pool: ServicePoolId, prewarmed: bool, took: Duration) {
        self.pools.claimed(pool, prewarmed, took);
    }
}

impl Counted for Metrics {
    fn counted(&self, records: &[Attributed]) {
        self.models.counted(records);
    }

    fn damaged(&self, lines: u64) {
        self.uncounted.inc_by(lines);
    }
}

/// Everything in Prometheus' text format: ours, those of models, then the edge's.
pub async fn exposition(metrics: &Metrics, edge: &EdgeLink) -> String {
    metrics.edge_connected.set(i64::from(edge.is_connected().await));
    let ours = metrics.encode().await;
    let ours = ours.strip_suffix(END).unwrap_or(&ours);
    let of_models = metrics.models.encode();
    let of_edge = edge.metrics().await.unwrap_or_else(|| END.to_owned());
    format!("{ours}{of_models}{of_edge}")
}

impl Metrics {
    async fn encode(&self) -> String {
        let registry = self.registry.lock().await;
        if let Err(error) = self.count().await {
            // The old counts would pass for true ones.
            self.services.clear();
            self.instances.clear();
            self.pools.forget();
            tracing::warn!(error = %crate::chain(&error), "services, instances and pools could not be counted for metrics");
        }
        let mut text = String::new();
        // Writing into a string cannot fail.
        let _ = encode(&mut text, &registry);
        text
    }
}
