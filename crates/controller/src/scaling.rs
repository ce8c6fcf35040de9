//! Services have as many instances as their load asks for.
//!
//! **Owns** what is known of the load of services with targets, and the last decision for each of their regional
//! deployments, all in memory: lost with the process, and then nothing goes down until it is known again. The looks
//! of [`crate::service`] say what there is ([`Scaling::note`]) and take the number from here; the data plane's reports
//! and a clock bring decisions about, and a number that changed asks for a look. [`tram_planner::autoscale`] decides.
//!
//! The one choice to know: only deployments that run and have a target are known here. A service that sleeps, or that
//! has no target, costs nothing, and without any the clock stands still.

mod measure;
mod subject;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tram_planner::autoscale::{self, Cause, Decision, Memory, Reading, Traffic, Usage};
use tram_types::{Clock, DeploymentId, ServiceId, Timestamp};

pub(crate) use measure::measure;
pub(crate) use subject::{Measured, Subject};

use crate::{
    Deps,
    data_plane::ServiceActivity,
    queue::{Key, Queue},
};

/// What the load decides on.
#[derive(Debug)]
pub struct Scaling {
    clock: Arc<dyn Clock>,
    policy: autoscale::Policy,
    state: Mutex<State>,
    /// There is something to decide on again.
    deciding: Notify,
    /// The same, for who measures.
    measuring: Notify,
}

#[derive(Debug, Default)]
struct State {
    services: HashMap<ServiceId, Service>,
    decisions: BTreeMap<Cause, u64>,
}

#[derive(Debug)]
struct Service {
    traffic: Traffic,
    regions: Vec<Regional>,
}

/// One deployment in one region.
#[derive(Debug)]
struct Regional {
    subject: Subject,
    memory: Memory,
    usage: Usage,
    decision: Decision,
    decided_at: Timestamp,
    last_change: Option<(Decision, Timestamp)>,
    /// The number that was told to its owner last, when the decision is another one.
    untold: Option<u32>,
}

/// The decision for one deployment in one region.
#[derive(Debug, Clone, PartialEq)]
pub struct Decided {
    /// Which region.
    pub region: String,
    /// Healthy instances.
    pub ready: u32,
    /// Fewest.
    pub min: u32,
    /// Most.
    pub max: u32,
    /// How many there should be, and why.
    pub decision: Decision,
    /// When it was last decided.
    pub at: Timestamp,
    /// The decision that last changed the number, and when that was.
    pub last_change: Option<(Decision, Timestamp)>,
}

/// A number that changed and was not told to its owner yet.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct News {
    pub(crate) deployment: DeploymentId,
    pub(crate) region: String,
    pub(crate) decision: Decision,
}

/// Totals for metrics.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Totals {
    /// Instances that the load asks for, of all services with targets.
    pub wanted: u64,
    /// Those of them that are healthy.
    pub ready: u64,
    /// Decisions since the process started that changed a number, by cause.
    pub changes: BTreeMap<Cause, u64>,
}

impl Regional {
    /// `alone`: no other deployment of the service shares the load in this region.
    fn decide(&mut self, traffic: &Traffic, alone: bool, policy: &autoscale::Policy, now: Timestamp) -> bool {
        let quantile = self
            .subject
            .scale
            .targets
            .response_time
            .map(|target| target.quantile);
        let signals = autoscale::Signals {
            concurrency: traffic.concurrency(now, policy),
            arrivals_per_second: traffic.arrivals_per_second(now, policy),
            // While one takes over from another, each sees what is on its own instances and not the load to come.
            cpu_percent: self.usage.cpu_percent(now, policy).filter(|_| alone),
            memory_percent: self.usage.memory_percent(now, policy).filter(|_| alone),
            measured: self.usage.measured(),
            response_time: quantile
                .and_then(|quantile| traffic.response_time(quantile, now, policy))
                .filter(|_| alone),
        };
        let input = autoscale::Input {
            scale: self.subject.scale,
            manual: self.subject.manual,
            current: self.decision.wanted,
            ready: self.subject.ready,
            start_time: self.subject.start_time,
            signals,
        };
        let decision = autoscale::decide(&input, &mut self.memory, policy, now);
        let changed = decision.is_change();
        if changed {
            self.untold.get_or_insert(decision.from);
            self.last_change = Some((decision, now));
        }
        self.decision = decision;
        self.decided_at = now;
        changed
    }
}

impl Scaling {
    pub(crate) fn new(deps: &Deps) -> Self {
        Self {
            clock: Arc::clone(&deps.clock),
            policy: deps.policy.scaling,
            state: Mutex::default(),
            deciding: Notify::new(),
            measuring: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of every deployment of the service on which its load decides, in place of those noted before.
    /// `last`: what the data plane last said of the service.
    pub(crate) fn note(&self, id: ServiceId, subjects: Vec<Subject>, last: Option<&ServiceActivity>) {
        let now = self.clock.now();
        let mut state = self.lock();
        let state = &mut *state;
        let service = state.services.entry(id).or_insert_with(|| {
            let mut traffic = Traffic::new(&self.policy);
            if let Some(last) = last {
                traffic.record(now, reading(last), &self.policy);
            }
            Service {
                traffic,
                regions: Vec::new(),
            }
        });
        let serving: HashMap<String, u32> = service
            .regions
            .iter()
            .filter(|known| known.subject.serves)
            .map(|known| (known.subject.region.clone(), known.decision.wanted))
            .collect();
        let mut before = std::mem::take(&mut service.regions);
        for subject in subjects {
            let known = before.iter().position(|known| known.subject.is_same(&subject));
            if let Some(known) = known {
                let known = before.swap_remove(known);
                service.regions.push(Regional { subject, ..known });
                continue;
            }
            // A new deployment begins with as many as the one that serves: it takes over its load.
            let from = serving.get(&subject.region).copied().unwrap_or_default();
            let mut new = Regional {
                memory: Memory::default(),
                usage: Usage::new(&self.policy),
                decision: Decision {
                    wanted: subject.present.max(from),
                    from: subject.present,
                    cause: Cause::Unknown,
                    observation: None,
                },
                decided_at: now,
                last_change: None,
                untold: None,
                subject,
            };
            let alone = !serving.contains_key(&new.subject.region);
            new.decide(&service.traffic, alone, &self.policy, now);
            // Its first number is no change of another one.
            new.untold = None;
            new.last_change = None;
            service.regions.push(new);
        }
        self.deciding.notify_one();
        self.measuring.notify_one();
    }

    /// How many instances the load asks for; `None`: it was not asked.
    pub(crate) fn wanted(&self, service: ServiceId, deployment: DeploymentId, region: &str) -> Option<u32> {
        let state = self.lock();
        let regions = &state.services.get(&service)?.regions;
        regions
            .iter()
            .find(|known| known.subject.deployment == deployment && known.subject.region == region)
            .map(|known| known.decision.wanted)
    }

    /// Takes in what the data plane says of a service. Whether a number changed.
    pub(crate) fn heard(&self, told: &ServiceActivity) -> bool {
        let now = self.clock.now();
        let mut state = self.lock();
        let State { services, decisions } = &mut *state;
        let Some(service) = services.get_mut(&told.service) else {
            return false;
        };
        service.traffic.record(now, reading(told), &self.policy);
        decide_all(service, decisions, &self.policy, now)
    }

    /// The link to the data plane is lost: no load is known.
    pub(crate) fn lost(&self) {
        for service in self.lock().services.values_mut() {
            service.traffic = Traffic::new(&self.policy);
        }
    }

    /// The service is gone, or its load has no say for now.
    pub(crate) fn remove(&self, service: ServiceId) {
        self.lock().services.remove(&service);
    }

    /// Decides on everything; gives the services with a number that changed.
    fn tick(&self) -> Vec<ServiceId> {
        let now = self.clock.now();
        let mut state = self.lock();
        let State { services, decisions } = &mut *state;
        services
            .iter_mut()
            .filter_map(|(id, service)| decide_all(service, decisions, &self.policy, now).then_some(*id))
            .collect()
    }

    fn is_idle(&self) -> bool {
        self.lock().services.is_empty()
    }

    /// What changed of a service's numbers since it was last told.
    pub(crate) fn news(&self, service: ServiceId) -> Vec<News> {
        let state = self.lock();
        let regions = state.services.get(&service).map(|it| it.regions.as_slice());
        regions
            .unwrap_or_default()
            .iter()
            .filter_map(|known| {
                let from = known.untold.filter(|from| *from != known.decision.wanted)?;
                Some(News {
                    deployment: known.subject.deployment,
                    region: known.subject.region.clone(),
                    decision: Decision {
                        from,
                        ..known.decision
                    },
                })
            })
            .collect()
    }

    /// These were told. What changed in between is told next.
    pub(crate) fn told(&self, service: ServiceId, news: &[News]) {
        let mut state = self.lock();
        let Some(service) = state.services.get_mut(&service) else {
            return;
        };
        for known in &mut service.regions {
            let told = news.iter().find(|told| {
                told.deployment == known.subject.deployment && told.region == known.subject.region
            });
            if let Some(told) = told {
                let wanted = told.decision.wanted;
                known.untold = (wanted != known.decision.wanted).then_some(wanted);
            }
        }
    }

    /// The decisions for a deployment, one a region. Empty: its load has no say, or it does not run.
    #[must_use]
    pub fn decided(&self, service: ServiceId, deployment: DeploymentId) -> Vec<Decided> {
        let state = self.lock();
        let regions = state.services.get(&service).map(|it| it.regions.as_slice());
        regions
            .unwrap_or_default()
            .iter()
            .filter(|known| known.subject.deployment == deployment)
            .map(|known| Decided {
                region: known.subject.region.clone(),
                ready: known.subject.ready,
                min: known.subject.scale.min,
                max: known.subject.scale.max,
                decision: known.decision,
                at: known.decided_at,
                last_change: known.last_change,
            })
            .collect()
    }

    /// Totals for metrics.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let state = self.lock();
        let mut totals = Totals {
            changes: state.decisions.clone(),
            ..Totals::default()
        };
        for known in state.services.values().flat_map(|service| &service.regions) {
            totals.wanted += u64::from(known.decision.wanted);
            totals.ready += u64::from(known.subject.ready);
        }
        totals
    }
}

fn decide_all(
    service: &mut Service,
    decisions: &mut BTreeMap<Cause, u64>,
    policy: &autoscale::Policy,
    now: Timestamp,
) -> bool {
    let mut changed = false;
    let names: Vec<String> = service
        .regions
        .iter()
        .map(|it| it.subject.region.clone())
        .collect();
    for region in &mut service.regions {
        let here = names.iter().filter(|name| **name == region.subject.region);
        if region.decide(&service.traffic, here.count() == 1, policy, now) {
            *decisions.entry(region.decision.cause).or_default() += 1;
            changed = true;
        }
    }
    changed
}

fn reading(told: &ServiceActivity) -> Reading<'_> {
    Reading {
        in_flight: told.in_flight,
        queued: told.queued,
        arrivals: told.arrivals,
        latency_bounds_us: &told.latency.bounds_us,
        latency_counts: &told.latency.counts,
    }
}

/// Decides by the clock, until `cancel`: what goes down goes down by silence, of which there are no reports.
pub(crate) async fn decide(scaling: Arc<Scaling>, queue: Arc<Queue>, deps: Deps, cancel: CancellationToken) {
    loop {
        let idle = scaling.is_idle();
        let next = async {
            if idle {
                scaling.deciding.notified().await;
            }
            tokio::time::sleep(deps.settings.tick).await;
        };
        tokio::select! {
            () = cancel.cancelled() => return,
            () = next => {}
        }
        for service in scaling.tick() {
            queue.add(Key::Service(service));
        }
    }
}
