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
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use opentelemetry::{
    Context, KeyValue, global,
    trace::{SpanKind, Status, TraceContextExt, Tracer},
};
use tram_types::routing::{Service, State};
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
pub struct Wakes(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    under_way: HashMap<Uuid, Wake>,
    /// Services that take requests in the table in force. A demand for one of them was on its way while that came.
    ready: HashSet<Uuid>,
}

impl Wakes {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The edge demands a wake, for the first time or again.
    pub fn demanded(&self, service_id: Uuid, traceparent: Option<&str>) {
        let mut known = self.lock();
        if known.ready.contains(&service_id) {
            return;
        }
        known.under_way.entry(service_id).or_insert_with(|| {
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

    /// A table with these services is in force. Returns the wakes that are over with it.
    pub fn in_force(&self, services: &[Arc<Service>]) -> Vec<Ended> {
        let mut known = self.lock();
        let ids: HashSet<Uuid> = services.iter().map(|service| service.id).collect();
        let gone = known.under_way.keys().filter(|id| !ids.contains(id));
        let gone: Vec<Uuid> = gone.copied().collect();
        known.ready.clear();
        known.take(services, &gone)
    }

    /// A table is in force in which these services are new or different, and those gone. Returns the wakes that are over
    /// with it.
    pub fn changed(&self, services: &[Arc<Service>], gone: &[Uuid]) -> Vec<Ended> {
        self.lock().take(services, gone)
    }
}

impl Known {
    fn take(&mut self, services: &[Arc<Service>], gone: &[Uuid]) -> Vec<Ended> {
        let states = services.iter().map(|service| (service.id, Some(&service.state)));
        let states = states.chain(gone.iter().map(|id| (*id, None)));
        states.filter_map(|(id, state)| self.see(id, state)).collect()
    }

    /// `state`: `None` when the service is gone.
    fn see(&mut self, id: Uuid, state: Option<&State>) -> Option<Ended> {
        if state == Some(&State::Ready) {
            self.ready.insert(id);
        } else {
            self.ready.remove(&id);
        }
        let outcome = match state {
            Some(State::Sleeping) => return None,
            Some(State::Starting { .. }) => {
                self.under_way.get_mut(&id)?.begin_start();
                return None;
            }
            Some(State::Ready) => Outcome::Ready,
            Some(State::Failed { .. } | State::Paused | State::Deploying) | None => Outcome::Failed,
        };
        Some(self.under_way.remove(&id)?.end(outcome))
    }
}

impl Wakes {
    /// The edge lets callers through to instances that were thawed, without a table. Returns the wake that is over.
    pub fn opened(&self, service_id: Uuid) -> Option<Ended> {
        let wake = self.lock().under_way.remove(&service_id)?;
        Some(wake.end(Outcome::Ready))
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

    fn end(self, outcome: Outcome) -> Ended {
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
        Ended {
            outcome,
            took: self.since.elapsed(),
        }
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

    fn services(id: Uuid, state: State) -> [Arc<Service>; 1] {
        [Arc::new(Service::new(id, "a/b", state))]
    }

    fn starting() -> State {
        State::Starting {
            since: jiff::Timestamp::now(),
        }
    }

    #[test]
    fn a_wake_is_over_once_the_table_says_so() {
        let (wakes, id) = (Wakes::default(), Uuid::new_v4());
        assert!(wakes.in_force(&services(id, State::Sleeping)).is_empty());
        wakes.demanded(id, None);
        wakes.demanded(id, None);
        assert!(wakes.in_force(&services(id, State::Sleeping)).is_empty());
        assert!(wakes.in_force(&services(id, starting())).is_empty());
        let ended = wakes.in_force(&services(id, State::Ready));
        assert_eq!(ended.len(), 1);
        assert_eq!(ended[0].outcome, Outcome::Ready);
        assert!(
            wakes.in_force(&services(id, State::Ready)).is_empty(),
            "told once"
        );
        wakes.in_force(&services(id, State::Sleeping));
        wakes.demanded(id, None);
        assert_eq!(wakes.opened(id).map(|ended| ended.outcome), Some(Outcome::Ready));
        assert_eq!(wakes.opened(id), None, "told once");
        wakes.demanded(id, None);
        assert_eq!(wakes.in_force(&[])[0].outcome, Outcome::Failed);
    }

    #[test]
    fn a_change_ends_the_wakes_of_the_services_that_it_names() {
        let (wakes, id, other) = (Wakes::default(), Uuid::new_v4(), Uuid::new_v4());
        wakes.demanded(id, None);
        wakes.demanded(other, None);
        assert!(wakes.changed(&services(id, starting()), &[]).is_empty());
        assert_eq!(wakes.changed(&services(id, State::Ready), &[]).len(), 1);
        assert_eq!(wakes.changed(&[], &[other])[0].outcome, Outcome::Failed);
    }

    #[test]
    fn a_demand_that_comes_after_the_table_that_answers_it_begins_no_wake() {
        let (wakes, id) = (Wakes::default(), Uuid::new_v4());
        wakes.changed(&services(id, State::Ready), &[]);
        wakes.demanded(id, None);
        wakes.changed(&services(id, State::Sleeping), &[]);
        assert!(wakes.changed(&services(id, State::Ready), &[]).is_empty());
    }
}
