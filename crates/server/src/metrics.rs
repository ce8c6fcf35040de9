//! Prometheus metrics of the control plane, with the edge's beside them.

use std::{sync::Mutex, sync::PoisonError, time::Duration};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use tram_controller::{Observer, Outcome};

use crate::data_plane::EdgeLink;

/// Upper bounds of the time that a run of a reconciler takes, in seconds.
const RUN_SECONDS: [f64; 8] = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 10.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReconcilerLabel {
    reconciler: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    reconciler: &'static str,
    outcome: &'static str,
}

/// The control plane's metrics.
#[derive(Debug)]
pub struct Metrics {
    registry: Mutex<Registry>,
    runs: Family<OutcomeLabel, Counter>,
    run_seconds: Family<ReconcilerLabel, Histogram>,
    backlog: Gauge,
    edge_connected: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
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
        Self {
            registry: Mutex::new(registry),
            runs,
            run_seconds,
            backlog,
            edge_connected,
        }
    }
}

impl Metrics {
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
}

/// Everything in Prometheus' text format: ours, then the edge's.
pub async fn exposition(metrics: &Metrics, edge: &EdgeLink) -> String {
    metrics.edge_connected.set(i64::from(edge.is_connected().await));
    let mut text = String::new();
    // Writing into a string cannot fail.
    let _ = encode(
        &mut text,
        &metrics.registry.lock().unwrap_or_else(PoisonError::into_inner),
    );
    match edge.metrics().await {
        Some(of_edge) => format!("{}{of_edge}", text.strip_suffix("# EOF\n").unwrap_or(&text)),
        None => text,
    }
}
