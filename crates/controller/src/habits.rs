//! When services are called, and waking them before.
//!
//! Each call that ends a minute of idleness or more is counted ([`Pattern`]); when a service falls asleep the planner's
//! rule says whether, and in which minute, it is worth waking although nobody has called. The operator's budget is the
//! price of that; without one nobody is woken. What was learned also tells which model is worth its memory
//! ([`crate::packing`]); where neither is asked nothing is learned. Only the data plane's reports count as calls: a
//! wake of ours must not teach us that somebody called.
//!
//! What was learned is kept once a minute and at the end, and read at the start. A crash loses a minute of it at most.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use tram_planner::{
    ServiceView, packing,
    prewake::{Budget, Pattern},
};
use tram_store::CallPattern;
use tram_types::{Clock, ServiceId, Timestamp, status::DeploymentStatus};

use crate::{Deps, activity::Activities, data_plane::ServiceActivity, light::Waker, queue::Key};

/// Idle times are counted by the minute.
const MINUTE: Duration = Duration::from_secs(60);
/// Many services are called at full hours. Their wakes are spread over so long a time before.
const SPREAD: Duration = Duration::from_secs(30);
/// How long a service counts as idle of which no call is known.
const LONG_IDLE: Duration = Duration::from_secs(7 * 24 * 3600);
/// Between two times that what was learned is kept.
const KEEP_PERIOD: Duration = Duration::from_secs(60);

/// The habits of all services.
#[derive(Debug)]
pub(crate) struct Habits {
    budget: Option<Budget>,
    /// Calls are counted.
    learns: bool,
    clock: Arc<dyn Clock>,
    services: Mutex<HashMap<ServiceId, Habit>>,
}

#[derive(Debug, Default)]
struct Habit {
    /// Nothing was counted yet: most services that are never idle, or always.
    pattern: Option<Box<Pattern>>,
    /// Calls, going by the last report.
    arrivals: Option<u64>,
    busy: bool,
    called_at: Option<Timestamp>,
    unkept: bool,
    /// The sleep that was thought about, by its beginning.
    sleep: Option<Timestamp>,
    /// When to wake it from that.
    due: Option<Timestamp>,
    /// It was woken for a call that has not come yet.
    expected: bool,
}

impl Habits {
    /// `budget`: nobody is woken without one.
    pub(crate) fn new(budget: Option<Budget>, clock: Arc<dyn Clock>) -> Self {
        let budget = budget.filter(|budget| budget.minutes_per_slow_wake > 0.0);
        Self {
            budget,
            learns: budget.is_some(),
            clock,
            services: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ServiceId, Habit>> {
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the calls of some services counted though nobody is woken before them: see [`Habits::watch`].
    pub(crate) fn learns(mut self, learns: bool) -> Self {
        self.learns = learns || self.budget.is_some();
        self
    }

    /// Has the calls of a service counted whose memory others may need.
    pub(crate) fn watch(&self, service: ServiceId) {
        if self.learns {
            self.lock().entry(service).or_default();
        }
    }

    /// When a service was last called, as far as is known, and the chance that it is called soon. `since`: when it woke.
    pub(crate) fn outlook(&self, service: ServiceId, since: Option<Timestamp>) -> (Option<Timestamp>, f64) {
        let services = self.lock();
        let habit = services.get(&service);
        let called_at = habit.and_then(|habit| habit.called_at);
        let now = self.clock.now();
        let idle = called_at.max(since).map_or(LONG_IDLE, |at| now.since(at));
        let pattern = habit.and_then(|habit| habit.pattern.as_deref());
        (called_at, packing::chance(pattern, idle))
    }

    /// The wake for a call that is expected came to nothing.
    pub(crate) fn give_up(&self, service: ServiceId) {
        if let Some(habit) = self.lock().get_mut(&service) {
            habit.expected = false;
        }
    }

    /// Takes in what the data plane says of a service. True: the call came for which it was woken.
    pub(crate) fn heard(&self, told: &ServiceActivity) -> bool {
        let Some(arrivals) = told.arrivals.filter(|_| self.learns) else {
            return false;
        };
        let mut services = self.lock();
        if self.budget.is_none() && !services.contains_key(&told.service) {
            return false;
        }
        let habit = services.entry(told.service).or_default();
        let called = habit.arrivals.is_some_and(|before| arrivals > before);
        let was_busy = std::mem::replace(&mut habit.busy, told.in_flight > 0);
        habit.arrivals = Some(arrivals);
        let before = habit.called_at;
        habit.called_at = told.last_at.max(before);
        if !called {
            return false;
        }
        habit.due = None;
        let idle = match (told.last_at, before) {
            (Some(at), Some(before)) if !was_busy => at.since(before),
            _ => Duration::ZERO,
        };
        if idle >= MINUTE {
            habit.pattern.get_or_insert_default().learn(idle);
            habit.unkept = true;
        }
        std::mem::take(&mut habit.expected)
    }

    /// The link to the data plane is lost: calls are counted anew.
    pub(crate) fn lost(&self) {
        for habit in self.lock().values_mut() {
            (habit.arrivals, habit.busy) = (None, false);
        }
    }

    /// The service is gone.
    pub(crate) fn remove(&self, service: ServiceId) {
        self.lock().remove(&service);
    }

    /// Whether the service was woken for a call that has not come yet.
    pub(crate) fn is_expected(&self, service: ServiceId) -> bool {
        self.lock().get(&service).is_some_and(|habit| habit.expected)
    }

    /// Takes in how a service was seen. True: it fell asleep again without the call for which it was woken.
    pub(crate) fn note(&self, view: &ServiceView) -> bool {
        let Some(budget) = self.budget else { return false };
        let mut services = self.lock();
        let Some(habit) = services.get_mut(&view.id) else {
            return false;
        };
        if habit.sleep == view.sleeping_since {
            return false;
        }
        habit.sleep = view.sleeping_since;
        habit.due = None;
        let Some(since) = view.sleeping_since else {
            return false;
        };
        let in_vain = std::mem::take(&mut habit.expected);
        if let (Some(pattern), Some(called_at)) = (&habit.pattern, habit.called_at) {
            let minute = pattern.wake_after(&budget, since.since(called_at), stays(view));
            let at = minute.map(|minute| called_at.plus(MINUTE.saturating_mul(minute)));
            habit.due = at.map(|at| at.minus(spread(view.id)));
        }
        in_vain
    }

    /// The services to wake now.
    fn due(&self, now: Timestamp) -> Vec<ServiceId> {
        let mut services = self.lock();
        let due = services
            .iter_mut()
            .filter(|(_, habit)| habit.due.is_some_and(|due| due <= now));
        let woken = due.map(|(id, habit)| {
            habit.due = None;
            habit.expected = true;
            *id
        });
        woken.collect()
    }

    /// Takes in what was kept. What was learned since is newer.
    fn restore(&self, kept: Vec<CallPattern>) {
        let mut services = self.lock();
        for one in kept {
            let habit = services.entry(one.service).or_default();
            habit
                .pattern
                .get_or_insert_with(|| Box::new(Pattern::of(one.counts)));
            habit.called_at = habit.called_at.max(Some(one.called_at));
            // The sleep that was looked at before this was known is looked at again.
            habit.sleep = None;
        }
    }

    /// What is to be kept.
    fn unkept(&self) -> Vec<CallPattern> {
        let mut services = self.lock();
        let unkept = services.iter_mut().filter(|(_, habit)| habit.unkept);
        let patterns = unkept.filter_map(|(id, habit)| {
            habit.unkept = false;
            Some(CallPattern {
                service: *id,
                called_at: habit.called_at?,
                counts: habit.pattern.as_ref()?.counts().collect(),
            })
        });
        patterns.collect()
    }

    fn keep_again(&self, patterns: &[CallPattern]) {
        let mut services = self.lock();
        for pattern in patterns {
            if let Some(habit) = services.get_mut(&pattern.service) {
                habit.unkept = true;
            }
        }
    }
}

/// How long the service stays awake when it is woken and nobody calls: its shortest delay before sleep.
fn stays(view: &ServiceView) -> Duration {
    let active = view
        .deployments
        .iter()
        .find(|it| Some(it.id) == view.active && it.status == DeploymentStatus::Sleeping);
    let regions = active.iter().flat_map(|deployment| &deployment.regions);
    let delays = regions.filter_map(|region| region.scale.light_sleep.or(region.scale.deep_sleep));
    delays.max().unwrap_or_default()
}

/// A service's own share of [`SPREAD`].
fn spread(service: ServiceId) -> Duration {
    let share = (service.uuid().as_u128() % 1024) as u32;
    SPREAD * share / 1024
}

/// Wakes services before they are called, and keeps what was learned, until `cancel`.
pub(crate) async fn follow(
    habits: Arc<Habits>,
    waker: Arc<Waker>,
    activities: Arc<Activities>,
    cancel: CancellationToken,
) {
    if !habits.learns {
        return;
    }
    let deps = &waker.deps;
    let mut restored = false;
    let mut kept = Instant::now();
    // Ends with this task: a process that died wakes nothing any more.
    let mut wakes = JoinSet::new();
    loop {
        tokio::select! {
            () = cancel.cancelled() => break,
            () = tokio::time::sleep(deps.settings.tick) => {}
            Some(_over) = wakes.join_next() => continue,
        }
        if !restored {
            match deps.store.call_patterns().await {
                Ok(patterns) => {
                    let known: Vec<ServiceId> = patterns.iter().map(|it| it.service).collect();
                    habits.restore(patterns);
                    // Those that sleep were looked at before this was known.
                    for service in known {
                        waker.queue.add(Key::Service(service));
                    }
                    restored = true;
                }
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "cannot read when services were called; trying again");
                }
            }
        }
        let now = habits.clock.now();
        for service in habits.due(now) {
            tracing::info!(%service, "a call is expected: waking the service");
            activities.wake(service, 0, now);
            let waker = Arc::clone(&waker);
            wakes.spawn(async move { waker.wake(service).await });
        }
        if restored && kept.elapsed() >= KEEP_PERIOD.min(deps.settings.sweep) {
            kept = Instant::now();
            keep(&habits, deps).await;
        }
    }
    keep(&habits, deps).await;
}

async fn keep(habits: &Habits, deps: &Deps) {
    let patterns = habits.unkept();
    if patterns.is_empty() {
        return;
    }
    if let Err(error) = deps.store.keep_call_patterns(&patterns).await {
        let error = &error as &dyn std::error::Error;
        tracing::warn!(error, "cannot keep when services are called; trying again");
        habits.keep_again(&patterns);
    }
}
