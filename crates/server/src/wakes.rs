//! Wakes under way: how long each took, and its spans in the trace of the request that caused it.
//!
//! `data_plane.rs` tells what it sees: a demand of the edge begins a wake, the routing tables that the controller pushes
//! say how far it is.
//!
//! ```text
//! demand -> plan -> table says starting -> start -> table says ready -> over
//!      \-> thawed, and the edge was told ---------------------------------^
//! ```

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use opentelemetry::{
    Context, KeyValue, global,
    trace::{SpanKind, Status, TraceContextExt, Tracer},
};
use tram_types::routing::{RoutingTable, State};
use uuid::Uuid;

/// Name of the instrumentation.
const SCOPE: &str = "tram-control-plane";

/// How a wake ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Instances take traffic.
    Ready,
    /// None came up, or the service was stopped or removed.
    Failed,
}

/// A wake that is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// How.
    pub outcome: Outcome,
    /// From the demand to the table that lets the callers go.
    pub took: Duration,
}

#[derive(Debug)]
struct Wake {
    since: Instant,
    /// The span of the whole.
    whole: Context,
    /// The span of the step under way.
    step: Context,
    starting: bool,
}

/// All wakes under way, at most one for each service.
#[derive(Debug, Default)]
pub struct Wakes(Mutex<HashMap<Uuid, Wake>>);

impl Wakes {
    /// The edge demands a wake, for the first time or again.
    pub fn demanded(&self, service_id: Uuid, traceparent: Option<&str>) {
        let mut wakes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        wakes.entry(service_id).or_insert_with(|| {
            let whole = begin(
                "wake",
                &caller(traceparent),
                vec![KeyValue::new("tram.service.id", service_id.to_string())],
            );
            Wake {
                since: Instant::now(),
                step: begin("plan", &whole, Vec::new()),
                whole,
                starting: false,
            }
        });
    }

    /// A table is in force. Returns the wakes that are over with it.
    pub fn in_force(&self, table: &RoutingTable) -> Vec<Ended> {
        let mut wakes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut ended = Vec::new();
        wakes.retain(|id, wake| {
            let service = table.services.iter().find(|service| service.id == *id);
            let outcome = match service.map(|service| &service.state) {
                Some(State::Sleeping) => return true,
                Some(State::Starting { .. }) => {
                    wake.begin_start();
                    return true;
                }
                Some(State::Ready) => Outcome::Ready,
                Some(State::Failed { .. } | State::Paused | State::Deploying) | None => Outcome::Failed,
            };
            wake.end(outcome);
            ended.push(Ended {
                outcome,
                took: wake.since.elapsed(),
            });
            false
        });
        ended
    }
}

impl Wakes {
    /// The edge lets callers through to instances that were thawed, without a table. Returns the wake that is over.
    pub fn opened(&self, service_id: Uuid) -> Option<Ended> {
        let mut wakes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let wake = wakes.remove(&service_id)?;
        wake.end(Outcome::Ready);
        Some(Ended {
            outcome: Outcome::Ready,
            took: wake.since.elapsed(),
        })
    }
}

impl Wake {
    fn begin_start(&mut self) {
        if !self.starting {
            self.starting = true;
            self.step.span().end();
            self.step = begin("start", &self.whole, Vec::new());
        }
    }

    fn end(&self, outcome: Outcome) {
        match outcome {
            Outcome::Ready => self.step.span().add_event("healthy", Vec::new()),
            Outcome::Failed => self
                .step
                .span()
                .set_status(Status::error("the service did not wake")),
        }
        self.step.span().end();
        if outcome == Outcome::Failed {
            self.whole
                .span()
                .set_status(Status::error("the service did not wake"));
        }
        self.whole.span().end();
    }
}

fn begin(name: &'static str, parent: &Context, attributes: Vec<KeyValue>) -> Context {
    let tracer = global::tracer(SCOPE);
    let span = tracer
        .span_builder(name)
        .with_kind(SpanKind::Internal)
        .with_attributes(attributes)
        .start_with_context(&tracer, parent);
    parent.with_span(span)
}

/// The context of the caller who caused the wake.
fn caller(traceparent: Option<&str>) -> Context {
    let carrier: HashMap<String, String> = traceparent
        .map(|value| ("traceparent".to_owned(), value.to_owned()))
        .into_iter()
        .collect();
    global::get_text_map_propagator(|propagator| propagator.extract_with_context(&Context::new(), &carrier))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tram_types::routing::Service;

    fn table(id: Uuid, state: State) -> RoutingTable {
        RoutingTable {
            services: vec![Service::new(id, "a/b", state)],
            ..RoutingTable::default()
        }
    }

    #[test]
    fn a_wake_is_over_once_the_table_says_so() {
        let (wakes, id) = (Wakes::default(), Uuid::new_v4());
        let starting = || State::Starting {
            since: jiff::Timestamp::now(),
        };
        assert!(
            wakes.in_force(&table(id, State::Ready)).is_empty(),
            "none was demanded"
        );
        wakes.demanded(id, None);
        wakes.demanded(id, None);
        assert!(wakes.in_force(&table(id, State::Sleeping)).is_empty());
        assert!(wakes.in_force(&table(id, starting())).is_empty());
        let ended = wakes.in_force(&table(id, State::Ready));
        assert_eq!(ended.len(), 1);
        assert_eq!(ended[0].outcome, Outcome::Ready);
        assert!(wakes.in_force(&table(id, State::Ready)).is_empty(), "told once");
        wakes.demanded(id, None);
        assert_eq!(wakes.opened(id).map(|ended| ended.outcome), Some(Outcome::Ready));
        assert_eq!(wakes.opened(id), None, "told once");
        wakes.demanded(id, None);
        assert_eq!(
            wakes.in_force(&RoutingTable::default())[0].outcome,
            Outcome::Failed
        );
    }
}
