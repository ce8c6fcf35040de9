//! One service: what the store holds of it, what its site runs, and who waits at the edge.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use tram_planner::{
    Activity, Deployment, Drain, Edge, Instance, Intent, Observed, Region, Room, ServiceView, SiteState,
    Source, Takeover, Tally, Write,
};
use tram_site::{Capabilities, EndCause, InstancePhase, ObservedImage, ObservedInstance};
use tram_types::{
    DeploymentId, Generation, InstanceId, RegionalDeploymentId, ServiceId, Timestamp,
    effective::{Scale, Targets},
    status::{DeploymentStatus, InstanceStatus, ServiceStatus},
};
use uuid::Uuid;

use super::{
    Choose, MINUTE,
    site::{STOPPING, Site, Step},
};
use crate::simulator::{Rng, trace::azure_functions::Function};

/// Ended instances that are kept: the planner asks the newest ones why they ended.
const ENDED_KEPT: usize = 2;
/// Most instances of a service.
const MAX: u32 = 1;
/// What each instance counts for in the choice of one.
const WEIGHT: u32 = 1;

/// An instance at its site.
#[derive(Debug)]
struct Run {
    seen: ObservedInstance,
    in_flight: u32,
}

/// One service.
#[derive(Debug)]
pub(super) struct Service<'t> {
    store: ServiceView,
    runs: BTreeMap<InstanceId, Run>,
    waiting: VecDeque<Timestamp>,
    last_at: Option<Timestamp>,
    arrived: u64,
    answered: u64,
    /// The newest look that was planned: older ones are void.
    pub(super) look: u64,
    /// A confirmation is on its way.
    confirming: bool,
    memory_mib: f64,
    call_seconds: f64,
    arrivals: Arrivals<'t>,
}

/// The calls of a function as instants.
#[derive(Debug)]
struct Arrivals<'t> {
    calls: &'t [(u32, u32)],
    start: Timestamp,
    /// Where in `calls` a shifted day begins, and the minutes it is shifted by.
    next: usize,
    left: usize,
    shift: u32,
    minutes: u32,
    /// Of the minute that is being played, latest first.
    here: Vec<Timestamp>,
    rng: Rng,
}

impl Arrivals<'_> {
    fn next(&mut self) -> Option<Timestamp> {
        while self.here.is_empty() {
            self.left = self.left.checked_sub(1)?;
            let (minute, count) = *self.calls.get(self.next)?;
            self.next = (self.next + 1) % self.calls.len();
            let minute = f64::from((minute + self.shift) % self.minutes.max(1)) * MINUTE;
            for _ in 0..count {
                let seconds = minute + self.rng.uniform() * MINUTE;
                let at = self
                    .start
                    .plus(Duration::try_from_secs_f64(seconds).unwrap_or_default());
                self.here.push(at);
            }
            self.here.sort_unstable_by(|a, b| b.cmp(a));
        }
        self.here.pop()
    }
}

impl<'t> Service<'t> {
    /// A service that was deployed before and sleeps deeply.
    pub(super) fn new(
        function: &'t Function,
        shift: u32,
        minutes: u32,
        start: Timestamp,
        deep_sleep: Duration,
        mut rng: Rng,
    ) -> Self {
        let store = asleep(start, deep_sleep, &mut rng);
        // A shifted day begins with the calls that the shift brings over midnight.
        let wraps = |(minute, _): &(u32, u32)| minute + shift >= minutes;
        let first = function.calls.iter().position(wraps).unwrap_or(0);
        Self {
            store,
            runs: BTreeMap::new(),
            waiting: VecDeque::new(),
            last_at: None,
            arrived: 0,
            answered: 0,
            look: 0,
            confirming: false,
            memory_mib: function.memory_mib,
            call_seconds: function.duration_ms / 1000.0,
            arrivals: Arrivals {
                calls: &function.calls,
                start,
                next: first,
                left: function.calls.len(),
                shift,
                minutes,
                here: Vec::new(),
                rng,
            },
        }
    }

    pub(super) fn view(&self) -> &ServiceView {
        &self.store
    }

    pub(super) const fn call_seconds(&self) -> f64 {
        self.call_seconds
    }

    pub(super) fn next_arrival(&mut self) -> Option<Timestamp> {
        self.arrivals.next()
    }

    pub(super) fn waits(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// A caller comes. True when nobody waited before and there is no instance: the service has to be woken.
    pub(super) fn arrive(&mut self, now: Timestamp) -> bool {
        let first = self.waiting.is_empty();
        self.arrived += 1;
        self.last_at = Some(now);
        self.waiting.push_back(now);
        first && self.endpoints().is_empty()
    }

    fn endpoints(&self) -> &BTreeSet<InstanceId> {
        static NONE: BTreeSet<InstanceId> = BTreeSet::new();
        match &self.store.edge {
            Edge::Known { endpoints, .. } => endpoints,
            Edge::Unknown => &NONE,
        }
    }

    /// Sends the caller who waits longest to an instance; `None` when there is none.
    pub(super) fn send(
        &mut self,
        choose: Choose,
        rotation: u32,
        now: Timestamp,
    ) -> Result<Option<(InstanceId, Timestamp)>, String> {
        let endpoints: Vec<InstanceId> = self.endpoints().iter().copied().collect();
        let in_flight = |id: &InstanceId| self.runs.get(id).map_or(0, |run| run.in_flight);
        let loads: Vec<(u32, u32)> = endpoints.iter().map(|id| (in_flight(id), WEIGHT)).collect();
        let Some(id) = choose(&loads, rotation).and_then(|index| endpoints.get(index)) else {
            return Ok(None);
        };
        let run = self.runs.get_mut(id);
        let run = run.filter(|run| matches!(run.seen.phase, InstancePhase::Running { healthy: true, .. }));
        let Some(run) = run else {
            return Err(format!("a request was sent to instance {id}, which does not run"));
        };
        let Some(arrived_at) = self.waiting.pop_front() else {
            return Ok(None);
        };
        run.in_flight += 1;
        self.last_at = Some(now);
        Ok(Some((*id, arrived_at)))
    }

    /// A call has been answered. True when an instance that is to stop has nothing more to do.
    pub(super) fn done(&mut self, instance: InstanceId, now: Timestamp) -> Result<bool, String> {
        self.answered += 1;
        self.last_at = Some(now);
        let left = !self.endpoints().contains(&instance);
        let run = self.runs.get_mut(&instance);
        let run = run.ok_or_else(|| format!("instance {instance} was forgotten with a request in flight"))?;
        run.in_flight = run
            .in_flight
            .checked_sub(1)
            .ok_or_else(|| format!("instance {instance} answered more than it was asked"))?;
        Ok(left && run.in_flight == 0)
    }

    /// Puts what site and edge say now into the view.
    pub(super) fn observe(&mut self) {
        let in_flight = self.runs.values().map(|run| u64::from(run.in_flight)).sum();
        let queued = self.waiting.len() as u64;
        let endpoints = self.endpoints().clone();
        self.store.activity = Activity::Known {
            in_flight,
            queued,
            last_at: self.last_at,
            wake: queued > 0 && endpoints.is_empty(),
        };
        for instance in instances_mut(&mut self.store) {
            let run = self.runs.get(&instance.id);
            instance.observed = run.map_or(Observed::Absent, |run| Observed::Seen(run.seen.clone()));
            instance.drain = match run {
                Some(run) if !endpoints.contains(&instance.id) && run.in_flight == 0 => Drain::Done,
                Some(run) if run.in_flight > 0 => Drain::Busy,
                _ => Drain::Unknown,
            };
        }
    }

    /// The instances that new requests should go to.
    fn served(&self) -> BTreeSet<InstanceId> {
        let active = |it: &&Deployment| match self.store.active {
            Some(active) => active == it.id && it.status != DeploymentStatus::Sleeping,
            None => it.status == DeploymentStatus::Starting,
        };
        let deployments = self.store.deployments.iter().filter(active);
        let healthy = deployments
            .flat_map(Deployment::instances)
            .filter(|it| it.status == InstanceStatus::Healthy);
        healthy.map(|it| it.id).collect()
    }

    /// Whether the edge has to be told something new, which is then on its way.
    pub(super) fn must_confirm(&mut self) -> bool {
        let must = !self.confirming && *self.endpoints() != self.served();
        self.confirming |= must;
        must
    }

    /// The edge goes by what the store says now.
    pub(super) fn confirm(&mut self, now: Timestamp) {
        self.confirming = false;
        self.store.edge = Edge::Known {
            endpoints: self.served(),
            since: now,
            settled: true,
        };
    }

    /// The site starts an instance.
    pub(super) fn start(
        &mut self,
        id: InstanceId,
        now: Timestamp,
        site: &mut Site,
    ) -> Result<Option<(Duration, Step)>, String> {
        let memory_mib = self.memory_mib;
        let instance = instance_mut(&mut self.store, id)?;
        if instance.status != InstanceStatus::Allocating {
            return Err(format!("instance {id} is {} and was started", instance.status));
        }
        let Some(next) = site.place(id, memory_mib, now)? else {
            instance.trouble = Some("no machine has room for it".to_owned());
            return Ok(None);
        };
        instance.trouble = None;
        let seen = ObservedInstance {
            id,
            generation: instance.generation,
            phase: InstancePhase::Preparing,
            address: Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            started_at: Some(now),
            deployment: None,
            uncheckpointable: None,
        };
        self.runs.insert(id, Run { seen, in_flight: 0 });
        Ok(Some(next))
    }

    /// The site stops an instance.
    pub(super) fn stop(&mut self, id: InstanceId) -> Result<Option<(Duration, Step)>, String> {
        let status = instance_mut(&mut self.store, id)?.status;
        if status != InstanceStatus::Stopping {
            return Err(format!("instance {id} is {status} and was stopped"));
        }
        let run = self.runs.get_mut(&id);
        let run = run.ok_or_else(|| format!("instance {id} does not run and was stopped"))?;
        if run.in_flight > 0 {
            return Err(format!(
                "instance {id} was stopped with {} requests in flight",
                run.in_flight
            ));
        }
        if matches!(
            run.seen.phase,
            InstancePhase::Stopping | InstancePhase::Ended { .. }
        ) {
            return Ok(None);
        }
        run.seen.phase = InstancePhase::Stopping;
        Ok(Some((STOPPING, Step::Ends)))
    }

    /// The site forgets an instance.
    pub(super) fn forget(&mut self, id: InstanceId) -> Result<(), String> {
        if self.runs.get(&id).is_some_and(|run| !run.seen.phase.is_ended()) {
            return Err(format!("instance {id} runs and was forgotten"));
        }
        self.runs.remove(&id);
        instance_mut(&mut self.store, id)?.forgotten = true;
        Ok(())
    }

    /// Time has done something to an instance; what comes next, and when.
    pub(super) fn step(
        &mut self,
        id: InstanceId,
        step: Step,
        now: Timestamp,
        site: &mut Site,
    ) -> Result<Option<(Duration, Step)>, String> {
        let run = self.runs.get_mut(&id);
        let run = run.ok_or_else(|| format!("instance {id} was forgotten before its time"))?;
        let stopping = matches!(run.seen.phase, InstancePhase::Stopping);
        match step {
            Step::Starts(takes) if !stopping => {
                run.seen.phase = InstancePhase::Starting { last_failure: None };
                return Ok(Some((takes, Step::IsHealthy)));
            }
            Step::IsHealthy if !stopping => {
                run.seen.phase = InstancePhase::Running {
                    healthy: true,
                    failures: 0,
                    last_failure: None,
                };
            }
            Step::Starts(_) | Step::IsHealthy => {}
            Step::Ends => {
                run.seen.phase = InstancePhase::Ended {
                    cause: EndCause::Stopped,
                    at: now,
                };
                site.release(id, now)?;
            }
        }
        Ok(None)
    }

    /// What must hold after every event.
    pub(super) fn check(&self) -> Result<(), String> {
        let in_flight: u64 = self.runs.values().map(|run| u64::from(run.in_flight)).sum();
        let known = self.answered + in_flight + self.waiting.len() as u64;
        if self.arrived != known {
            return Err(format!("{} requests came and {known} are known of", self.arrived));
        }
        let serving = self
            .store
            .deployments
            .iter()
            .filter(|it| it.status.is_serving())
            .count();
        if serving > 1 {
            return Err(format!("{serving} deployments serve"));
        }
        let mut replicas = BTreeSet::new();
        let live = self.store.deployments.iter().flat_map(Deployment::instances);
        for instance in live.filter(|it| it.is_live()) {
            if instance.replica_index >= MAX {
                return Err(format!(
                    "replica {} is beyond the maximum of {MAX}",
                    instance.replica_index
                ));
            }
            if !replicas.insert(instance.replica_index) {
                return Err(format!(
                    "replica {} has two live instances",
                    instance.replica_index
                ));
            }
        }
        Ok(())
    }

    /// The store takes a write.
    pub(super) fn write(&mut self, write: &Write, now: Timestamp, rng: &mut Rng) -> Result<(), String> {
        match write {
            Write::Service { from, to, messages } => {
                expect(self.store.status, *from)?;
                self.store.status = *to;
                self.store.messages.clone_from(messages);
            }
            Write::Activate { deployment, .. } => self.store.active = *deployment,
            Write::SleepingSince(since) => self.store.sleeping_since = *since,
            Write::Deployment {
                id,
                from,
                to,
                messages,
                ..
            } => {
                let deployment = self.store.deployments.iter_mut().find(|it| it.id == *id);
                let deployment = deployment.ok_or_else(|| format!("there is no deployment {id}"))?;
                expect(deployment.status, *from)?;
                if !from.may_become(*to) {
                    return Err(format!("deployment {id}: {from} -> {to} is no arrow"));
                }
                deployment.status = *to;
                deployment.messages.clone_from(messages);
                if *to == DeploymentStatus::Healthy {
                    deployment.healthy_at.get_or_insert(now);
                }
            }
            Write::CreateInstance {
                regional,
                replica_index,
                ..
            } => {
                let id = InstanceId::from_uuid(Uuid::from_u128(rng.bits_128()));
                let regions = self.store.deployments.iter_mut().flat_map(|it| &mut it.regions);
                let region = regions.into_iter().find(|it| it.id == *regional);
                let region = region.ok_or_else(|| format!("there is no regional deployment {regional}"))?;
                let over = |it: &Instance| it.status.is_final() && it.forgotten;
                while region.instances.iter().filter(|it| over(it)).count() >= ENDED_KEPT {
                    let Some(oldest) = region.instances.iter().position(over) else {
                        break;
                    };
                    region.instances.remove(oldest);
                }
                region.instances.push(new_instance(id, *replica_index, now));
            }
            Write::Instance(write) => {
                let instance = instance_mut(&mut self.store, write.id)?;
                expect(instance.status, write.from)?;
                if !write.from.may_become(write.to) {
                    return Err(format!(
                        "instance {}: {} -> {} is no arrow",
                        write.id, write.from, write.to
                    ));
                }
                instance.status = write.to;
                instance.messages.clone_from(&write.messages);
                instance.forgotten |= write.forgotten;
                if write.next_generation {
                    instance.generation = instance.generation.next();
                }
                if write.address.is_some() {
                    instance.address = write.address;
                }
                if write.to == InstanceStatus::Healthy {
                    instance.healthy_at.get_or_insert(now);
                }
                if write.to.is_final() {
                    instance.ended_at.get_or_insert(now);
                }
            }
            other => {
                return Err(format!(
                    "a write that no simulated service gives rise to: {other:?}"
                ));
            }
        }
        Ok(())
    }
}

/// A service that was deployed before and sleeps deeply, as the planner sees it.
#[must_use]
pub fn asleep(start: Timestamp, deep_sleep: Duration, rng: &mut Rng) -> ServiceView {
    let mut uuid = || Uuid::from_u128(rng.bits_128());
    let deployment = DeploymentId::from_uuid(uuid());
    let region = Region {
        id: RegionalDeploymentId::from_uuid(uuid()),
        region: "sim".to_owned(),
        scale: Scale {
            min: 0,
            max: MAX,
            targets: Targets::default(),
            deep_sleep: Some(deep_sleep),
            light_sleep: None,
        },
        manual: None,
        load: None,
        restart_limit: 3,
        start_grace: Duration::ZERO,
        site: SiteState::Reachable(Capabilities::default()),
        image: Some(ObservedImage::Ready {
            digest: "sha256:00".to_owned(),
            size_bytes: 1,
            notice: None,
        }),
        instances: Vec::new(),
    };
    ServiceView {
        id: ServiceId::from_uuid(uuid()),
        intent: Intent::Run,
        status: ServiceStatus::Healthy,
        messages: Vec::new(),
        created_at: start,
        expected: false,
        room: Room::Open,
        too_large: BTreeMap::new(),
        gives_way: None,
        sleeping_since: Some(start),
        active: Some(deployment),
        delete_after_create: None,
        delete_after_sleep: None,
        routed: true,
        may_sleep: true,
        deployments: vec![Deployment {
            id: deployment,
            version: 1,
            status: DeploymentStatus::Sleeping,
            messages: Vec::new(),
            cancel_requested: false,
            created_at: start,
            allocated_at: Some(start),
            healthy_at: Some(start),
            source: Source::Image,
            takeover: Takeover::Rolling,
            continues: BTreeSet::new(),
            regions: vec![region],
        }],
        activity: Activity::QUIET,
        edge: Edge::Known {
            endpoints: BTreeSet::new(),
            since: start,
            settled: true,
        },
    }
}

/// The store refuses a write that was decided on another status.
fn expect<S: PartialEq + std::fmt::Display>(found: S, from: S) -> Result<(), String> {
    if found == from {
        Ok(())
    } else {
        Err(format!("decided on {from} and found {found}"))
    }
}

fn instances_mut(store: &mut ServiceView) -> impl Iterator<Item = &mut Instance> {
    let regions = store.deployments.iter_mut().flat_map(|it| &mut it.regions);
    regions.flat_map(|it| &mut it.instances)
}

fn instance_mut(store: &mut ServiceView, id: InstanceId) -> Result<&mut Instance, String> {
    let found = instances_mut(store).find(|it| it.id == id);
    found.ok_or_else(|| format!("there is no instance {id}"))
}

fn new_instance(id: InstanceId, replica_index: u32, now: Timestamp) -> Instance {
    Instance {
        id,
        replica_index,
        status: InstanceStatus::Allocating,
        messages: Vec::new(),
        generation: Generation(1),
        address: None,
        forgotten: false,
        created_at: now,
        healthy_at: None,
        ended_at: None,
        drain: Drain::Unknown,
        tally: Tally::default(),
        trouble: None,
        unfreezable: None,
        observed: Observed::Unknown,
    }
}
