//! Services that sleep lightly, and their short way awake: thaw, tell the data plane, and let the records follow.
//!
//! A caller of a frozen service should pay for a thaw and not for a read, a plan, a transaction and a table. So what is
//! needed to thaw is kept here in memory, by service, from the looks of `service`: which instances were kept, with the
//! generation of their newest order. On the data plane's demand [`Sleepers::wake`] thaws them and says that they
//! answer; the look that follows sees them run and records what is true already.
//!
//! **Why nothing is frozen, stopped or forgotten under a request.** One sleep is named by the moment it began,
//! `sleeping_since`, which is in the store and new with every sleep. Everything that touches the instances of a sleeping
//! service takes its *turn* ([`Sleeper::turn`]): a wake, an order to freeze, and a transaction that sends kept instances
//! away. So the cases are few:
//!
//! - *A wake before the freeze.* The sleep is over from then on ([`Sleepers::is_over`]), which the order finds in its
//!   turn, and nothing is frozen; the next look plans with the wake.
//! - *A freeze before the wake.* The wake waits for its turn, a millisecond, then thaws. Its caller is held meanwhile.
//! - *A request without a wake*, admitted under the table before: the order asks the data plane, in its turn, whether
//!   all is quiet under the table in force, and is not carried out otherwise.
//! - *A wake before kept instances are sent away* (deep sleep, pause, fewer replicas): the transaction is not written,
//!   and planned anew. *After*: they are unknown here, so the caller waits for what the plan brings.
//! - *A table made before the wake and in force after it* still says "sleeping". The data plane opens a gate for one
//!   version alone, so it closes again; `routing` says so once more for the new version as soon as that is in force, and
//!   puts every later table together with what is known here.
//! - *This process dies.* The next one knows nothing of a wake and pushes a table of its own, under which every gate is
//!   closed. It freezes under that table, or sees the instances run and wakes the service.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{MutexGuard as Turn, Notify};
use tram_planner::ServiceView;
use tram_types::{
    Generation, InstanceId, ServiceId, Timestamp,
    status::{DeploymentStatus, InstanceStatus},
};

use crate::{
    Deps,
    queue::{Key, Queue},
    routing::{self, Confirmed},
};

/// Services that sleep lightly.
#[derive(Debug, Default)]
pub struct Sleepers {
    services: Mutex<HashMap<ServiceId, Arc<Sleeper>>>,
}

/// One of them.
#[derive(Debug, Default)]
pub(crate) struct Sleeper {
    turn: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

#[derive(Debug, Clone, Default)]
struct State {
    /// Which sleep this is about.
    since: Option<Timestamp>,
    kept: Vec<Kept>,
    /// The instances that answer again in spite of what the store says.
    thawed: Option<BTreeSet<InstanceId>>,
}

/// An instance that is frozen or about to be.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Kept {
    id: InstanceId,
    region: String,
    generation: Generation,
}

impl Sleeper {
    /// Waits until nobody else touches the service's instances.
    pub(crate) async fn turn(&self) -> Turn<'_, ()> {
        self.turn.lock().await
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the sleep that began then has ended, though the store may not say so yet.
    pub(crate) fn is_over(&self, since: Timestamp) -> bool {
        let state = self.state();
        state.since == Some(since) && state.thawed.is_some()
    }

    /// These are on their way out: nobody thaws them for a caller any more.
    pub(crate) fn send_away(&self, instances: &[InstanceId]) {
        self.state().kept.retain(|kept| !instances.contains(&kept.id));
    }
}

impl Sleepers {
    fn lock(&self) -> MutexGuard<'_, HashMap<ServiceId, Arc<Sleeper>>> {
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The service, if it sleeps lightly.
    pub(crate) fn get(&self, service: ServiceId) -> Option<Arc<Sleeper>> {
        self.lock().get(&service).cloned()
    }

    /// Takes in what the store said of a service.
    pub(crate) fn note(&self, view: &ServiceView) {
        let sleeping = view
            .deployments
            .iter()
            .find(|it| Some(it.id) == view.active && it.status == DeploymentStatus::Sleeping);
        let regions = sleeping.iter().flat_map(|deployment| &deployment.regions);
        let kept: Vec<Kept> = regions
            .flat_map(|region| {
                let kept = region.instances.iter().filter(|instance| {
                    matches!(
                        instance.status,
                        InstanceStatus::Healthy | InstanceStatus::Sleeping
                    )
                });
                kept.map(|instance| Kept {
                    id: instance.id,
                    region: region.region.clone(),
                    generation: instance.generation,
                })
            })
            .collect();
        let mut services = self.lock();
        let (Some(since), false) = (view.sleeping_since, kept.is_empty()) else {
            services.remove(&view.id);
            return;
        };
        let sleeper = Arc::clone(services.entry(view.id).or_default());
        drop(services);
        let mut state = sleeper.state();
        if state.since != Some(since) {
            *state = State {
                since: Some(since),
                ..State::default()
            };
        }
        state.kept = kept;
    }

    /// The service is gone.
    pub(crate) fn remove(&self, service: ServiceId) {
        self.lock().remove(&service);
    }

    /// Whether the sleep of a service that began then has ended, though the store may not say so yet.
    #[must_use]
    pub fn is_over(&self, service: ServiceId, since: Timestamp) -> bool {
        self.get(service).is_some_and(|sleeper| sleeper.is_over(since))
    }

    /// The instances that answer again, of every sleep that has ended though the store may not say so yet, with when
    /// that sleep began.
    pub(crate) fn all_thawed(&self) -> Vec<(ServiceId, Timestamp, BTreeSet<InstanceId>)> {
        let services = self.lock();
        let thawed = services.iter().filter_map(|(id, sleeper)| {
            let state = sleeper.state();
            Some((*id, state.since?, state.thawed.clone()?))
        });
        thawed.collect()
    }

    /// Thaws the service and tells the data plane. False when it does not sleep lightly as far as is known, when it
    /// cannot be thawed, or when the data plane needs a table to know of it: then the usual way has to do.
    pub(crate) async fn wake(&self, deps: &Deps, confirmed: &Confirmed, service: ServiceId) -> bool {
        let Some(sleeper) = self.get(service) else {
            return false;
        };
        let _turn = sleeper.turn().await;
        let before = sleeper.state().clone();
        if before.kept.is_empty() {
            return false;
        }
        let thaws = before.kept.iter().map(|kept| async move {
            let site = deps.sites.for_region(&kept.region)?;
            let thawed = site.thaw(kept.id, kept.generation).await;
            if let Err(error) = &thawed {
                tracing::warn!(
                    instance = %kept.id,
                    error = error as &dyn std::error::Error,
                    "an instance was not thawed at once; trying again"
                );
            }
            thawed.ok().map(|()| kept.id)
        });
        let thawed: Option<BTreeSet<InstanceId>> =
            futures_util::future::join_all(thaws).await.into_iter().collect();
        let Some(thawed) = thawed else { return false };
        {
            let mut state = sleeper.state();
            if state.since != before.since {
                return false;
            }
            state.thawed = Some(thawed.clone());
        }
        announce(deps, confirmed, service, thawed).await
    }
}

/// What a wake goes through. It is not written down: whoever dies before its records follow is found out by the next
/// look.
#[derive(Debug)]
pub(crate) struct Waker {
    pub(crate) deps: Deps,
    pub(crate) sleepers: Arc<Sleepers>,
    pub(crate) confirmed: Arc<Confirmed>,
    pub(crate) routing: Arc<routing::Reconciler>,
    pub(crate) routing_signal: Arc<Notify>,
    pub(crate) queue: Arc<Queue>,
}

impl Waker {
    /// Wakes a service that somebody waits for: at once when it sleeps lightly, by a look at it in any case.
    pub(crate) async fn wake(&self, service: ServiceId) {
        if self.sleepers.get(service).is_some()
            && !self.sleepers.wake(&self.deps, &self.confirmed, service).await
        {
            self.routing.dirty_sleepers();
            self.routing_signal.notify_one();
        }
        // What is written down about it is no caller's wait.
        self.queue.add(Key::Service(service));
    }
}

/// Tells the data plane that instances of a sleeping service answer. False when it did not take it: it holds another
/// table by now, or needs a whole one.
pub(crate) async fn announce(
    deps: &Deps,
    confirmed: &Confirmed,
    service: ServiceId,
    instances: BTreeSet<InstanceId>,
) -> bool {
    // Before it is told: from then on requests may be on their way there.
    let Some(version) = confirmed.open(service, &instances) else {
        return false;
    };
    let told = deps
        .data_plane
        .thawed(service, version, instances.into_iter().collect());
    match told.await {
        Ok(open) => open,
        Err(error) => {
            tracing::debug!(
                %service,
                error = &error as &dyn std::error::Error,
                "the data plane was not told of a wake; the next table does"
            );
            false
        }
    }
}
