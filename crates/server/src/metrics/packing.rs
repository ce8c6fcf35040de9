//! Figures of the memory that the models of this machine share.

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};
use tram_controller::packing::Totals;

/// What the models of this machine hold, and what they wait for.
#[derive(Debug, Default)]
pub(super) struct Packing {
    budget: Gauge,
    held: Gauge,
    waiting: Gauge,
    put_to_sleep: Counter,
}

impl Packing {
    pub(super) fn registered(registry: &mut Registry) -> Self {
        let own = Self::default();
        registry.register(
            "models_memory_budget_bytes",
            "Memory that the models of this machine have together; 0: nothing is bounded",
            own.budget.clone(),
        );
        registry.register(
            "models_memory_held_bytes",
            "Memory that the instances of models count for",
            own.held.clone(),
        );
        registry.register(
            "models_memory_waiting",
            "Models that wait for memory to start or wake",
            own.waiting.clone(),
        );
        registry.register(
            "models_put_to_sleep",
            "Models that were put to sleep to make room for others",
            own.put_to_sleep.clone(),
        );
        own
    }

    pub(super) fn set(&self, totals: Totals) {
        let gauge = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        self.budget.set(gauge(totals.budget_bytes));
        self.held.set(gauge(totals.held_bytes));
        self.waiting.set(gauge(totals.waiting));
        let more = totals.put_to_sleep.saturating_sub(self.put_to_sleep.get());
        self.put_to_sleep.inc_by(more);
    }
}
