//! Services run as their owners want: load, observe, plan, execute, for one service at a time.
//!
//! **Owns** the statuses of services, deployments and instances, their events, and every order to a site about an
//! instance that the store knows. Woken by the store's signals, by the sites' news, by the data plane's reports, by
//! alarms that plans ask for, and by a sweep that makes up for whatever signal was lost.
//!
//! The one choice to know: a look repeats itself until its plan is empty or waits for something outside, so one
//! signal takes a service as far as it can go.

mod app;
mod batch;
mod carry_on;
mod event;
mod execute;
mod follow;
mod freeze;
mod load;
mod room;
mod view;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;
use tram_planner::{Activity, Plan, Reason, Write};
use tram_site::ObservedImage;
use tram_types::{AppId, DeploymentId, InstanceId, ServiceId};

pub(crate) use follow::{follow_site, follow_store, tell_time};

use crate::{
    Deps,
    activity::Activities,
    driver::Outcome,
    error::Error,
    habits::Habits,
    light::{Sleepers, Waker},
    packing::Packing,
    queue::{Key, Queue},
    routing::{self, Confirmed},
    scaling::Scaling,
};

/// Plans carried out in one look before others get their turn. The longest way without waiting, from accepted to
/// healthy, takes six.
const ROUNDS_MAX: usize = 12;
/// Pause before a look that failed is repeated.
const RETRY: Duration = Duration::from_secs(2);
/// Pause after a look that used up its rounds: it would spin otherwise.
const BREATHER: Duration = Duration::from_millis(200);

/// What one look at a service did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ServiceReport {
    /// Plans made.
    pub rounds: u32,
    /// Changes written.
    pub writes: u32,
    /// Orders given.
    pub orders: u32,
    /// Somebody else changed what was read.
    pub conflicts: u32,
    /// Orders or reads that failed and will be repeated.
    pub failures: u32,
    /// The service is shown as something else, which concerns this app.
    pub concerns: Option<AppId>,
}

/// Keeps services as their owners want them.
#[derive(Debug)]
pub struct Reconciler {
    deps: Deps,
    activities: Arc<Activities>,
    confirmed: Arc<Confirmed>,
    sleepers: Arc<Sleepers>,
    routing: Arc<routing::Reconciler>,
    routing_signal: Arc<Notify>,
    scaling: Arc<Scaling>,
    habits: Arc<Habits>,
    packing: Arc<Packing>,
    queue: Arc<Queue>,
    memory: Mutex<Memory>,
}

/// What sites said that they do not repeat. Lost with the process, and asked for again then.
#[derive(Debug, Default)]
struct Memory {
    services: HashMap<ServiceId, Remembered>,
    /// Which service an instance belongs to, for the sites' news.
    owners: HashMap<InstanceId, ServiceId>,
    /// Which services wait for an image.
    image_waits: HashMap<String, HashSet<ServiceId>>,
}

/// The same, of one service.
#[derive(Debug, Default)]
struct Remembered {
    instances: HashSet<InstanceId>,
    images: HashMap<(DeploymentId, String), ObservedImage>,
    /// Images it waits for.
    waits_for: HashSet<String>,
    /// Instances that their site refused to start, with its words.
    refused: HashMap<InstanceId, String>,
    /// Instances that could not be started for now, with what is in the way.
    delayed: HashMap<InstanceId, String>,
    /// Instances that could not be frozen: how often in a row, and why.
    unfrozen: HashMap<InstanceId, freeze::Failures>,
}

impl Memory {
    fn wait_for(&mut self, reference: &str, service: ServiceId) {
        self.image_waits
            .entry(reference.to_owned())
            .or_default()
            .insert(service);
        let waits = &mut self.services.entry(service).or_default().waits_for;
        waits.insert(reference.to_owned());
    }

    fn stop_waiting(&mut self, service: ServiceId) {
        let Some(known) = self.services.get_mut(&service) else {
            return;
        };
        for reference in std::mem::take(&mut known.waits_for) {
            if let Some(waiting) = self.image_waits.get_mut(&reference) {
                waiting.remove(&service);
                if waiting.is_empty() {
                    self.image_waits.remove(&reference);
                }
            }
        }
    }
}

/// How a look ended.
enum Next {
    /// When to look again, if nothing happens before.
    At(Option<tram_types::Timestamp>),
    /// The service is gone.
    Gone(AppId),
    /// Something failed: soon.
    Retry,
    /// The rounds were used up: at once, after the others.
    Continue,
}

impl Reconciler {
    pub(crate) fn new(
        waker: &Waker,
        activities: Arc<Activities>,
        scaling: Arc<Scaling>,
        habits: Arc<Habits>,
        packing: Arc<Packing>,
    ) -> Self {
        Self {
            deps: waker.deps.clone(),
            activities,
            confirmed: Arc::clone(&waker.confirmed),
            sleepers: Arc::clone(&waker.sleepers),
            routing: Arc::clone(&waker.routing),
            routing_signal: Arc::clone(&waker.routing_signal),
            scaling,
            habits,
            packing,
            queue: Arc::clone(&waker.queue),
            memory: Mutex::default(),
        }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the load decides on.
    pub(crate) fn scaling(&self) -> &Scaling {
        &self.scaling
    }

    /// When services are called.
    pub(crate) fn habits(&self) -> &Habits {
        &self.habits
    }

    /// The service that an instance belongs to, if it has been looked at.
    pub(crate) fn owner_of(&self, instance: InstanceId) -> Option<ServiceId> {
        self.memory().owners.get(&instance).copied()
    }

    /// One look at a service.
    async fn look(&self, id: ServiceId, report: &mut ServiceReport) -> Result<Next, Error> {
        let mut last_app = None;
        if let Some(sleeper) = self.sleepers.get(id) {
            // A caller waits for its wake: what is to be written down about it can wait for the caller.
            drop(sleeper.turn().await);
        }
        for _ in 0..ROUNDS_MAX {
            report.rounds += 1;
            let state = match self.deps.store.load_service_state(id).await {
                Ok(state) => state,
                Err(tram_store::Error::NotFound { .. }) => {
                    self.forget(id);
                    return Ok(last_app.map_or(Next::At(None), Next::Gone));
                }
                Err(error) => return Err(Error::store("read a service")(error)),
            };
            last_app = Some(state.app.id);
            let mut seen = self.view(state).await?;
            self.sleepers.note(&seen.view);
            if self.habits.note(&seen.view) {
                self.deps.observer.prewoken(false);
            }
            if !matches!(seen.view.activity, Activity::Unknown) && seen.is_waking_or_awake() {
                self.activities.clear_wake(id);
            }
            let (plan, room) = self.plan(&mut seen).await?;
            if plan.waiting.contains(&Reason::EdgeStillRoutes) {
                // It may be our own table that is behind: the write that took the instance out was a process's last.
                self.routing.dirty(id);
                self.routing_signal.notify_one();
            }
            if plan.is_empty() {
                return Ok(Next::At(plan.look_again_at));
            }
            trace(id, &plan);
            if plan
                .writes
                .iter()
                .any(|write| matches!(write, Write::Service { from, to, .. } if from != to))
            {
                report.concerns = last_app;
            }
            let done = self.execute(&seen, &plan, room, report).await?;
            if room::makes_room(&plan) && !matches!(done, execute::Done::Conflict) {
                tracing::info!(service = %id, "put to sleep to make room for another model");
                self.packing.slept();
            }
            match done {
                execute::Done::Progress => {}
                execute::Done::Waits => return Ok(Next::At(plan.look_again_at)),
                execute::Done::Conflict => report.conflicts += 1,
                execute::Done::Failed => return Ok(Next::Retry),
                execute::Done::Removed(app) => {
                    self.forget(id);
                    return Ok(Next::Gone(app));
                }
            }
        }
        Ok(Next::Continue)
    }

    /// Drops what is remembered of a service that is gone.
    fn forget(&self, id: ServiceId) {
        self.activities.remove(id);
        self.scaling.remove(id);
        self.sleepers.remove(id);
        self.habits.remove(id);
        self.packing.remove(id);
        let mut memory = self.memory();
        memory.stop_waiting(id);
        if let Some(gone) = memory.services.remove(&id) {
            for instance in gone.instances {
                memory.owners.remove(&instance);
            }
        }
        drop(memory);
        self.routing.dirty(id);
        self.routing_signal.notify_one();
    }
}

fn trace(id: ServiceId, plan: &Plan) {
    tracing::debug!(
        service = %id,
        writes = plan.writes.len(),
        orders = ?plan.orders,
        waiting = %plan.waiting.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
        "planned"
    );
}

/// Looks at what the queue holds, one after the other, until `cancel`. Several of these run side by side.
pub(crate) async fn work(
    services: Arc<Reconciler>,
    queue: Arc<Queue>,
    deps: Deps,
    cancel: CancellationToken,
) {
    loop {
        let key = tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            key = queue.next() => key,
        };
        let began = Instant::now();
        let (name, outcome) = match key {
            Key::Service(id) => ("service", look_at(&services, &queue, &deps, id).await),
            Key::App(id) => ("app", services.look_at_app(&queue, id).await),
        };
        queue.done(key);
        deps.observer.ran(name, outcome, began.elapsed());
    }
}

async fn look_at(services: &Reconciler, queue: &Queue, deps: &Deps, id: ServiceId) -> Outcome {
    let key = Key::Service(id);
    let mut report = ServiceReport::default();
    let soon = |after: Duration| Some(deps.clock.now().plus(after));
    let outcome = match services.look(id, &mut report).await {
        Ok(Next::At(at)) => {
            queue.set_alarm(key, at);
            if report.writes + report.orders == 0 {
                Outcome::Quiet
            } else {
                Outcome::Changed
            }
        }
        Ok(Next::Gone(app)) => {
            queue.set_alarm(key, None);
            queue.add(Key::App(app));
            Outcome::Changed
        }
        Ok(Next::Retry) => {
            queue.set_alarm(key, soon(RETRY));
            Outcome::Failed
        }
        Ok(Next::Continue) => {
            queue.set_alarm(key, soon(BREATHER));
            Outcome::Changed
        }
        Err(error) if error.is_conflict() => {
            queue.set_alarm(key, soon(BREATHER));
            Outcome::Conflict
        }
        Err(error) => {
            tracing::warn!(
                service = %id,
                error = &error as &dyn std::error::Error,
                "a service could not be looked at and will be again"
            );
            queue.set_alarm(key, soon(RETRY));
            Outcome::Failed
        }
    };
    if let Some(app) = report.concerns {
        queue.add(Key::App(app));
    }
    if report.writes > 0 {
        tracing::debug!(service = %id, ?report, "reconciled");
    }
    outcome
}
