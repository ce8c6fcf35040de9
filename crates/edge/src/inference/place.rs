//! Where a question goes when the first choice failed it: another replica, or the wait for one.
//!
//! Instances that failed it are passed over for a while, those that cannot do it at all for good. When none is left the
//! question waits for the next routing table, or for the wake of a service that fell asleep, as any request does; an
//! instance that was passed over is tried again meanwhile, since it may only have dropped a connection.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tram_types::routing::State;

use crate::balance::Weighted;
use crate::page::Refusal;
use crate::pipeline::refusal_of;
use crate::pool::Endpoint;
use crate::table::{Gate, Route};
use crate::wake;
use crate::worker::Shared;

/// Rest before an instance that failed a question is tried again where no other is: an engine that says it stops or loads
/// says so for a while.
const PASS_OVER_FOR: Duration = Duration::from_millis(500);

/// Where to go.
#[derive(Debug)]
pub(super) struct Place {
    /// Of the table that `route` is of.
    pub(super) version: u64,
    pub(super) route: Arc<Route>,
    pub(super) endpoint: Arc<Endpoint>,
    /// Tokens that it has yet to read.
    pub(super) uncached_tokens: u32,
}

/// Why there is nowhere to go.
#[derive(Debug)]
pub(super) enum Missing {
    /// Every instance that is left has said that it cannot.
    NoneCan,
    /// As for any request.
    Refused(Refusal),
}

/// One question's search.
#[derive(Debug)]
pub(super) struct Search {
    begun: Instant,
    deadline: Instant,
    /// Not now.
    pub(super) passed_over: Vec<Arc<Endpoint>>,
    /// Not ever.
    pub(super) unfit: Vec<Arc<Endpoint>>,
}

impl Search {
    pub(super) fn within(patience: Duration) -> Self {
        let begun = Instant::now();
        Self {
            begun,
            deadline: begun + patience,
            passed_over: Vec::new(),
            unfit: Vec::new(),
        }
    }

    /// The next place, by `choose` among the fit instances of the table in force. `route` is any to the same service.
    pub(super) async fn next(
        &mut self,
        shared: &Shared,
        route: &Arc<Route>,
        choose: impl Fn(&Route, &[&Weighted]) -> Option<(Arc<Endpoint>, u32)>,
    ) -> Result<Place, Missing> {
        let name = || route.service.spec.name.clone();
        loop {
            let mut changed = shared.changed.subscribe();
            let table = shared.table.load_full();
            let version = table.version;
            let Some(route) = table.same_target(route) else {
                return Err(Missing::Refused(Refusal::NoHealthyInstance { name: name() }));
            };
            match route.gate(version) {
                Gate::Open => {
                    if let Some((endpoint, uncached_tokens)) = choose(route, &self.fit(route)) {
                        return Ok(Place {
                            version,
                            route: Arc::clone(route),
                            endpoint,
                            uncached_tokens,
                        });
                    }
                    if route.endpoints.iter().all(|(it, _)| is_in(&self.unfit, it)) {
                        return Err(Missing::NoneCan);
                    }
                }
                Gate::Hold => {
                    let closed =
                        || shared.table.load().version == version && route.gate(version) == Gate::Hold;
                    wake::hold(&route.service, closed, self.deadline.into_std(), None)
                        .await
                        .map_err(Missing::Refused)?;
                    continue;
                }
                // Its one instance died: the next is on its way.
                Gate::Refuse if matches!(route.service.spec.state, State::Ready | State::Deploying) => {}
                Gate::Refuse => return Err(Missing::Refused(refusal_of(route))),
            }
            let again = Instant::now() + PASS_OVER_FOR;
            tokio::select! {
                // The sender is shared with us.
                _ = changed.changed() => {}
                () = sleep_until(again.min(self.deadline)) => self.passed_over.clear(),
            }
            if Instant::now() >= self.deadline {
                let waited_ms = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
                return Err(Missing::Refused(Refusal::StillStarting {
                    name: name(),
                    waited_ms,
                }));
            }
        }
    }

    fn fit<'r>(&self, route: &'r Route) -> Vec<&'r Weighted> {
        let is_fit = |(endpoint, _): &&Weighted| {
            !is_in(&self.unfit, endpoint) && !is_in(&self.passed_over, endpoint) && !endpoint.is_avoided()
        };
        route.endpoints.iter().filter(is_fit).collect()
    }
}

fn is_in(list: &[Arc<Endpoint>], endpoint: &Arc<Endpoint>) -> bool {
    list.iter().any(|other| Arc::ptr_eq(other, endpoint))
}
