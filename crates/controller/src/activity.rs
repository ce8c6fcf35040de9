//! What the data plane says of traffic, kept in memory by service.
//!
//! Unknown until the first complete report of a link, and again as soon as the link is lost.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tram_planner::{Activity, Drain, Tally};
use tram_types::{InstanceId, ServiceId, Timestamp};

use crate::{
    data_plane::{Event, Latency, ServiceActivity},
    light::Waker,
    queue::Key,
    service,
};

/// Traffic by service.
#[derive(Debug, Default)]
pub struct Activities {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    known: bool,
    /// The version in force, and the instances with requests under way then.
    busy: Option<(u64, HashSet<InstanceId>)>,
    services: HashMap<ServiceId, Entry>,
    /// Of services with a canary, as told last.
    tallies: HashMap<ServiceId, HashMap<InstanceId, Tally>>,
}

#[derive(Debug, Default, Clone)]
struct Entry {
    in_flight: u64,
    queued: u64,
    last_at: Option<Timestamp>,
    wake: bool,
    arrivals: Option<u64>,
    latency: Latency,
}

impl Activities {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of a service.
    #[must_use]
    pub fn of(&self, service: ServiceId) -> Activity {
        let state = self.lock();
        let entry = state.services.get(&service).cloned().unwrap_or_default();
        // Somebody who waits is believed even while the rest is unknown.
        if !state.known && !entry.wake {
            return Activity::Unknown;
        }
        Activity::Known {
            in_flight: entry.in_flight,
            queued: entry.queued,
            last_at: entry.last_at,
            wake: entry.wake,
        }
    }

    /// What a report would say of a service now; `None`: nobody knows.
    pub(crate) fn last_report(&self, service: ServiceId) -> Option<ServiceActivity> {
        let state = self.lock();
        let entry = state.services.get(&service).cloned().unwrap_or_default();
        state.known.then_some(ServiceActivity {
            service,
            in_flight: entry.in_flight,
            queued: entry.queued,
            last_at: entry.last_at,
            arrivals: entry.arrivals,
            latency: entry.latency,
        })
    }

    /// The demand was met: the service wakes or is awake.
    pub fn clear_wake(&self, service: ServiceId) {
        if let Some(entry) = self.lock().services.get_mut(&service) {
            entry.wake = false;
        }
    }

    /// The service is gone.
    pub fn remove(&self, service: ServiceId) {
        let mut state = self.lock();
        state.services.remove(&service);
        state.tallies.remove(&service);
    }

    /// How requests to an instance turned out while a canary was tried.
    pub(crate) fn tally(&self, service: ServiceId, instance: InstanceId) -> Tally {
        let state = self.lock();
        let tallies = state.tallies.get(&service);
        tallies
            .and_then(|it| it.get(&instance))
            .copied()
            .unwrap_or_default()
    }

    /// Takes in how requests turned out; true when more of them failed than was known.
    fn tallies(&self, service: ServiceId, instances: HashMap<InstanceId, Tally>) -> bool {
        let failures =
            |tallies: &HashMap<InstanceId, Tally>| tallies.values().map(|it| it.failures).sum::<u64>();
        let now = failures(&instances);
        let before = self.lock().tallies.insert(service, instances);
        before.as_ref().map_or(0, failures) != now
    }

    /// Somebody wants it awake, which is traffic like any other.
    pub(crate) fn wake(&self, service: ServiceId, waiting: u64, now: Timestamp) {
        let mut state = self.lock();
        let entry = state.services.entry(service).or_default();
        entry.wake = true;
        entry.queued = waiting;
        entry.last_at = Some(now);
    }

    fn lost(&self) {
        let mut state = self.lock();
        state.known = false;
        state.busy = None;
        state.services.clear();
        state.tallies.clear();
    }

    /// What is known of the requests of an instance that a table of this version took out.
    #[must_use]
    pub fn drain(&self, instance: InstanceId, taken_out_by: u64) -> Drain {
        match &self.lock().busy {
            Some((_, busy)) if busy.contains(&instance) => Drain::Busy,
            Some((version, _)) if *version >= taken_out_by => Drain::Done,
            Some(_) | None => Drain::Unknown,
        }
    }

    /// Takes in which instances are busy; gives those that no longer are.
    fn busy(&self, version: u64, instances: HashSet<InstanceId>) -> Vec<InstanceId> {
        let before = self.lock().busy.replace((version, instances.clone()));
        let before = before.map(|(_, busy)| busy).unwrap_or_default();
        before.difference(&instances).copied().collect()
    }

    /// Takes a report in; a wish to wake stays until it was met, since the report may be older than the wish. Gives the services about which something may have to be done.
    fn report(&self, complete: bool, services: &[ServiceActivity]) -> Vec<ServiceId> {
        let mut state = self.lock();
        if complete {
            state.known = true;
            let wakes: Vec<ServiceId> = state
                .services
                .iter()
                .filter(|it| it.1.wake)
                .map(|it| *it.0)
                .collect();
            state.services.clear();
            for service in wakes {
                state.services.entry(service).or_default().wake = true;
            }
        }
        let mut concerned = Vec::new();
        for told in services {
            let entry = state.services.entry(told.service).or_default();
            let turned = (entry.in_flight == 0) != (told.in_flight == 0) || entry.queued != told.queued;
            entry.in_flight = told.in_flight;
            entry.queued = told.queued;
            entry.last_at = told.last_at.max(entry.last_at);
            entry.arrivals = told.arrivals;
            entry.latency.clone_from(&told.latency);
            if turned {
                concerned.push(told.service);
            }
        }
        concerned
    }
}

/// Follows the data plane's news until `cancel`, or until there will be no more.
pub(crate) async fn follow_data_plane(
    waker: Arc<Waker>,
    reconciler: Arc<service::Reconciler>,
    activities: Arc<Activities>,
    cancel: CancellationToken,
) {
    let (scaling, habits) = (reconciler.scaling(), reconciler.habits());
    let (deps, routing, queue) = (&waker.deps, &waker.routing, &waker.queue);
    // Ends with this task: a process that died thaws nothing any more.
    let mut wakes = JoinSet::new();
    loop {
        let event = tokio::select! {
            () = cancel.cancelled() => return,
            event = deps.data_plane.next_event() => event,
            Some(_over) = wakes.join_next() => continue,
        };
        match event {
            None => return,
            Some(Event::Connected { held }) => {
                activities.lost();
                scaling.lost();
                habits.lost();
                routing.connected(held);
                waker.routing_signal.notify_one();
            }
            Some(Event::Lost) => {
                activities.lost();
                scaling.lost();
                habits.lost();
                routing.lost();
            }
            Some(Event::Wake { service, waiting }) => {
                activities.wake(service, waiting, deps.clock.now());
                let waker = Arc::clone(&waker);
                wakes.spawn(async move { waker.wake(service).await });
            }
            Some(Event::Report { complete, services }) => {
                for _call in services.iter().filter(|told| habits.heard(told)) {
                    deps.observer.prewoken(true);
                }
                for service in activities.report(complete, &services) {
                    queue.add(Key::Service(service));
                }
                for service in services.iter().filter(|told| scaling.heard(told)) {
                    queue.add(Key::Service(service.service));
                }
            }
            Some(Event::Tallies { service, instances }) => {
                if activities.tallies(service, instances) {
                    queue.add(Key::Service(service));
                }
            }
            Some(Event::Busy { version, instances }) => {
                for instance in activities.busy(version, instances) {
                    if let Some(owner) = reconciler.owner_of(instance) {
                        queue.add(Key::Service(owner));
                    }
                }
            }
        }
    }
}
