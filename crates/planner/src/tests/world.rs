//! A store, a site and an edge in a few lines, with every chance to go wrong: orders get lost, the site falls silent,
//! clocks jump. Every plan is checked as it is carried out.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use tram_site::{Capabilities, EndCause, InstancePhase, ObservedImage, ObservedInstance};
use tram_types::{
    DeploymentId, Generation, InstanceId, RegionalDeploymentId, ServiceId, Timestamp,
    effective::{Scale, Targets},
    status::{DeploymentStatus, InstanceStatus, ServiceStatus},
};
use uuid::Uuid;

use crate::{
    Activity, Deployment, Drain, Edge, Instance, Intent, Observed, Order, Plan, Policy, Reason, Region, Room,
    ServiceView, SiteState, Source, Takeover, Tally, Write, plan,
};

/// What the instances of a deployment do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Program {
    Good,
    Crashes,
    Hangs,
    NoImage,
    /// Its site cannot start it for now.
    NoRoom,
}

/// What a site without room says.
pub(super) const NO_ROOM: &str = "the disk is full";

#[derive(Debug)]
struct Run {
    seen: ObservedInstance,
    program: Program,
}

#[derive(Debug)]
pub(super) struct World {
    pub(super) store: ServiceView,
    pub(super) now: Timestamp,
    pub(super) reachable: bool,
    /// No site serves the region any more.
    pub(super) missing: bool,
    pub(super) edge_up: bool,
    pub(super) removed: bool,
    pub(super) policy: Policy,
    pub(super) history: Vec<String>,
    pub(super) capabilities: Capabilities,
    /// Why nothing can be frozen.
    pub(super) unfreezable: Option<String>,
    /// Why nothing can be moved to disk.
    pub(super) uncheckpointable: Option<String>,
    programs: BTreeMap<DeploymentId, Program>,
    site: BTreeMap<InstanceId, Run>,
    ids: u128,
}

pub(super) const START: i64 = 1_767_225_600_000_000;

impl World {
    pub(super) fn new() -> Self {
        let now = Timestamp::from_micros(START);
        Self {
            store: ServiceView {
                id: ServiceId::from_uuid(Uuid::from_u128(1)),
                intent: Intent::Run,
                status: ServiceStatus::Starting,
                messages: Vec::new(),
                created_at: now,
                expected: false,
                room: Room::Open,
                too_large: BTreeMap::new(),
                gives_way: None,
                sleeping_since: None,
                active: None,
                delete_after_create: None,
                delete_after_sleep: None,
                routed: true,
                may_sleep: true,
                deployments: Vec::new(),
                activity: Activity::QUIET,
                edge: Edge::Known {
                    endpoints: BTreeSet::new(),
                    since: now,
                    settled: true,
                },
            },
            now,
            reachable: true,
            missing: false,
            edge_up: true,
            removed: false,
            policy: Policy::default(),
            history: Vec::new(),
            capabilities: Capabilities::default(),
            unfreezable: None,
            uncheckpointable: None,
            programs: BTreeMap::new(),
            site: BTreeMap::new(),
            ids: 100,
        }
    }

    fn uuid(&mut self) -> Uuid {
        self.ids += 1;
        Uuid::from_u128(self.ids)
    }

    pub(super) fn deploy(&mut self, program: Program, min: u32, takeover: Takeover) -> DeploymentId {
        let id = DeploymentId::from_uuid(self.uuid());
        let regional = RegionalDeploymentId::from_uuid(self.uuid());
        let version = self
            .store
            .deployments
            .iter()
            .map(|it| it.version)
            .max()
            .unwrap_or(0)
            + 1;
        self.programs.insert(id, program);
        self.store.deployments.push(Deployment {
            id,
            version,
            status: DeploymentStatus::Pending,
            messages: Vec::new(),
            cancel_requested: false,
            created_at: self.now,
            allocated_at: None,
            healthy_at: None,
            source: Source::Image,
            takeover,
            continues: BTreeSet::new(),
            regions: vec![Region {
                id: regional,
                region: "fra".to_owned(),
                scale: Scale {
                    min,
                    max: min.max(1),
                    targets: Targets::default(),
                    deep_sleep: (min == 0).then(|| Duration::from_secs(300)),
                    light_sleep: None,
                },
                manual: None,
                load: None,
                restart_limit: 3,
                start_grace: Duration::ZERO,
                site: SiteState::Reachable(Capabilities::default()),
                image: None,
                instances: Vec::new(),
            }],
        });
        id
    }

    /// Deploys anew what the newest deployment has, with another network policy.
    pub(super) fn change_policy(&mut self) -> DeploymentId {
        let newest = self.store.deployments.iter().max_by_key(|it| it.version);
        let (region, takeover, of, mut continues) = newest
            .map(|it| (it.regions[0].clone(), it.takeover, it.id, it.continues.clone()))
            .unwrap();
        continues.insert(of);
        let id = self.deploy(self.programs[&of], region.scale.min, takeover);
        let new = self.store.deployments.last_mut().unwrap();
        new.continues = continues;
        new.regions[0].scale = region.scale;
        new.regions[0].manual = region.manual;
        id
    }

    /// As one of which deployment the site runs each instance that is not over.
    pub(super) fn policies(&self) -> BTreeMap<InstanceId, Option<DeploymentId>> {
        let running = self.site.iter().filter(|(_, run)| !run.seen.phase.is_ended());
        running.map(|(id, run)| (*id, run.seen.deployment)).collect()
    }

    /// What the instances of a deployment do from now on.
    pub(super) fn turn(&mut self, id: DeploymentId, program: Program) {
        self.programs.insert(id, program);
    }

    pub(super) fn cancel(&mut self, id: DeploymentId) {
        let mut all = self.store.deployments.iter_mut();
        all.find(|it| it.id == id).expect("it is there").cancel_requested = true;
    }

    pub(super) fn deployment(&self, id: DeploymentId) -> &Deployment {
        self.store.deployments.iter().find(|it| it.id == id).unwrap()
    }

    pub(super) fn running(&self) -> Vec<InstanceId> {
        self.site
            .iter()
            .filter(|(_, run)| !run.seen.phase.is_ended())
            .map(|(id, _)| *id)
            .collect()
    }

    pub(super) fn nth_running(&self, index: usize) -> Option<InstanceId> {
        let running = self.running();
        (!running.is_empty()).then(|| running[index % running.len()])
    }

    pub(super) fn end(&mut self, id: InstanceId, cause: EndCause) {
        let at = self.now;
        if let Some(run) = self.site.get_mut(&id) {
            run.seen.phase = InstancePhase::Ended { cause, at };
        }
    }

    pub(super) fn lose(&mut self, id: InstanceId) {
        self.site.remove(&id);
    }

    pub(super) fn sicken(&mut self, id: InstanceId) {
        if let Some(run) = self.site.get_mut(&id).filter(|run| run.seen.phase.is_healthy()) {
            run.seen.phase = InstancePhase::Running {
                healthy: false,
                failures: 3,
                last_failure: Some("status 500".to_owned()),
            };
        }
    }

    pub(super) fn recover(&mut self, id: InstanceId) {
        if let Some(run) = self.site.get_mut(&id) {
            run.seen.uncheckpointable = None;
            run.seen.phase = InstancePhase::Running {
                healthy: true,
                failures: 0,
                last_failure: None,
            };
        }
    }

    /// Light sleep after `light` of idle time, on a site that can freeze.
    pub(super) fn sleeps_lightly(&mut self, light: Duration) {
        self.capabilities.freeze = true;
        for region in self.store.deployments.iter_mut().flat_map(|it| &mut it.regions) {
            region.scale.light_sleep = Some(light);
        }
    }

    /// Gives an instance its processor time back, as an order or somebody beside us does.
    pub(super) fn thaw(&mut self, id: InstanceId) {
        if self.site.get(&id).is_some_and(|run| run.seen.phase.is_asleep()) {
            self.recover(id);
        }
    }

    /// Takes it, whatever anybody wants.
    pub(super) fn freeze(&mut self, id: InstanceId) {
        if let Some(run) = self.site.get_mut(&id) {
            run.seen.phase = InstancePhase::Frozen;
        }
    }

    pub(super) fn frozen(&self) -> Vec<InstanceId> {
        let frozen = self
            .site
            .iter()
            .filter(|(_, run)| run.seen.phase == InstancePhase::Frozen);
        frozen.map(|(id, _)| *id).collect()
    }

    pub(super) fn checkpointed(&self) -> Vec<InstanceId> {
        let asleep = self
            .site
            .iter()
            .filter(|(_, run)| run.seen.phase == InstancePhase::Checkpointed);
        asleep.map(|(id, _)| *id).collect()
    }

    pub(super) fn advance(&mut self, by: Duration) {
        self.now = self.now.plus(by);
    }

    /// Every program takes a step.
    pub(super) fn step_site(&mut self) {
        let at = self.now;
        for run in self.site.values_mut() {
            run.seen.phase = match (&run.seen.phase, run.program) {
                (InstancePhase::Preparing, _) => InstancePhase::Starting { last_failure: None },
                (InstancePhase::Starting { .. }, Program::Good) => InstancePhase::Running {
                    healthy: true,
                    failures: 0,
                    last_failure: None,
                },
                (InstancePhase::Starting { .. }, Program::Crashes) => InstancePhase::Ended {
                    cause: EndCause::Exited { code: 1 },
                    at,
                },
                (InstancePhase::Stopping, _) => InstancePhase::Ended {
                    cause: EndCause::Stopped,
                    at,
                },
                (other, _) => other.clone(),
            };
        }
    }

    /// The edge takes over and confirms what the store says now.
    pub(super) fn sync_edge(&mut self) {
        if !self.edge_up {
            self.store.edge = Edge::Unknown;
            self.store.activity = Activity::Unknown;
            return;
        }
        let served: BTreeSet<InstanceId> = self
            .store
            .deployments
            .iter()
            .filter(|it| self.takes_requests(it))
            .flat_map(Deployment::instances)
            .filter(|it| it.status == InstanceStatus::Healthy)
            .map(|it| it.id)
            .collect();
        let same = matches!(&self.store.edge, Edge::Known { endpoints, .. } if *endpoints == served);
        if !same {
            self.store.edge = Edge::Known {
                endpoints: served,
                since: self.now,
                settled: true,
            };
        }
        if self.store.activity == Activity::Unknown {
            self.store.activity = Activity::QUIET;
        }
    }

    /// The active deployment, and newer ones beside it that share its requests.
    fn takes_requests(&self, this: &Deployment) -> bool {
        let awake =
            |it: &Deployment| Some(it.id) == self.store.active && it.status != DeploymentStatus::Sleeping;
        let shared = |it: &Deployment| awake(it) && it.version < this.version;
        let beside = this.takeover.shares()
            && (this.is_going_down()
                || matches!(
                    this.status,
                    DeploymentStatus::Allocating | DeploymentStatus::Starting
                ));
        let first = self.store.active.is_none()
            && self.newest() == Some(this.version)
            && matches!(
                this.status,
                DeploymentStatus::Allocating | DeploymentStatus::Starting
            );
        first || awake(this) || (beside && self.store.deployments.iter().any(shared))
    }

    fn newest(&self) -> Option<i64> {
        let kept = |it: &&Deployment| it.status != DeploymentStatus::Stashed;
        let versions = self.store.deployments.iter().filter(kept);
        versions.map(|it| it.version).max()
    }

    pub(super) fn view(&self) -> ServiceView {
        let mut view = self.store.clone();
        for deployment in &mut view.deployments {
            for region in &mut deployment.regions {
                region.site = match (self.missing, self.reachable) {
                    (true, _) => SiteState::Missing,
                    (false, true) => SiteState::Reachable(self.capabilities),
                    (false, false) => SiteState::Unreachable,
                };
                let answers = self.reachable && !self.missing;
                for instance in &mut region.instances {
                    instance.observed = match (answers, self.site.get(&instance.id)) {
                        (false, _) => Observed::Unknown,
                        (true, None) => Observed::Absent,
                        (true, Some(run)) => Observed::Seen(run.seen.clone()),
                    };
                }
            }
        }
        view
    }

    /// Plans, checks the plan, carries out its writes and, unless the controller dies in between, its orders.
    pub(super) fn reconcile(&mut self, dies_after_writes: bool) -> Plan {
        if self.removed {
            return Plan::default();
        }
        let view = self.view();
        let made = plan(&view, &self.policy, self.now);
        assert_eq!(
            made,
            plan(&view, &self.policy, self.now),
            "the same view gives the same plan"
        );
        self.history.push(format!("{:?} at {}", made, self.now));
        let served_before = view.deployments.iter().any(|it| it.status.is_serving());
        for write in &made.writes {
            self.write(write);
        }
        self.check(&view, &made, served_before);
        if !dies_after_writes {
            for order in &made.orders {
                self.order(order);
            }
        }
        made
    }

    fn check(&self, before: &ServiceView, made: &Plan, served_before: bool) {
        let serving = |it: &&Deployment| it.status.is_serving();
        assert!(
            self.store.deployments.iter().filter(serving).count() <= 1,
            "two deployments serve"
        );
        let hurried = before
            .deployments
            .iter()
            .any(|it| !it.takeover.keeps_old() && it.status.is_starting_up());
        if served_before && before.intent == Intent::Run && self.store.intent == Intent::Run && !hurried {
            assert!(
                self.store.deployments.iter().any(|it| it.status.is_serving()),
                "the old deployment was stopped before the new one was healthy"
            );
        }
        for deployment in &self.store.deployments {
            let mut live: BTreeSet<u32> = BTreeSet::new();
            for instance in deployment.instances().filter(|it| it.is_live()) {
                assert!(
                    live.insert(instance.replica_index),
                    "two live instances of one replica"
                );
            }
        }
        let made_new = made
            .writes
            .iter()
            .filter(|it| matches!(it, Write::CreateInstance { .. }));
        if let Room::Only { instances, .. } = &before.room {
            assert!(
                made_new.count() <= usize::try_from(*instances).unwrap(),
                "an instance without room"
            );
        }
        let calm = matches!(
            before.activity,
            Activity::Known {
                in_flight: 0,
                queued: 0,
                wake: false,
                ..
            }
        );
        for write in &made.writes {
            if let Write::Deployment { reason, .. } = write {
                assert!(
                    calm || !matches!(reason, Reason::MadeRoom(_)),
                    "put to sleep under a request"
                );
            }
        }
        if !self.reachable {
            assert!(
                made.orders.iter().all(|it| matches!(it, Order::RemoveService)),
                "an order while the site does not answer"
            );
            for write in &made.writes {
                if let Write::Instance(write) = write {
                    assert!(
                        !write.to.is_final(),
                        "declared over while the site does not answer"
                    );
                }
                assert!(!matches!(write, Write::CreateInstance { .. }));
            }
        }
    }

    fn find(&mut self, id: InstanceId) -> &mut Instance {
        self.store
            .deployments
            .iter_mut()
            .flat_map(|it| &mut it.regions)
            .flat_map(|it| &mut it.instances)
            .find(|it| it.id == id)
            .unwrap()
    }

    pub(super) fn set_tally(&mut self, id: InstanceId, tally: Tally) {
        self.find(id).tally = tally;
    }

    pub(super) fn set_drain(&mut self, id: InstanceId, drain: Drain) {
        self.find(id).drain = drain;
    }

    fn write(&mut self, write: &Write) {
        let now = self.now;
        match write {
            Write::Service { from, to, messages } => {
                assert_eq!(self.store.status, *from);
                self.store.status = *to;
                self.store.messages.clone_from(messages);
            }
            Write::Activate { deployment, .. } => self.store.active = *deployment,
            Write::SleepingSince(since) => self.store.sleeping_since = *since,
            Write::RequestDelete(_) => self.store.intent = Intent::Delete,
            Write::Deployment {
                id,
                from,
                to,
                messages,
                ..
            } => {
                let deployment = self.store.deployments.iter_mut().find(|it| it.id == *id).unwrap();
                assert_eq!(deployment.status, *from);
                assert!(from.may_become(*to), "{from} -> {to}");
                if matches!(to, DeploymentStatus::Degraded | DeploymentStatus::Unhealthy) {
                    assert!(
                        deployment.healthy_at.is_some(),
                        "in trouble before it was ever healthy"
                    );
                }
                assert_ne!(*to, DeploymentStatus::Scheduled, "SCHEDULED is skipped");
                deployment.status = *to;
                deployment.messages.clone_from(messages);
                if *to == DeploymentStatus::Allocating {
                    deployment.allocated_at = Some(now);
                }
                if *to == DeploymentStatus::Healthy {
                    deployment.healthy_at.get_or_insert(now);
                }
                if matches!(to, DeploymentStatus::Error) {
                    assert!(!deployment.messages.is_empty(), "an error without a cause");
                }
            }
            Write::AllocatedAnew(id) => {
                let deployment = self.store.deployments.iter_mut().find(|it| it.id == *id).unwrap();
                deployment.allocated_at = Some(now);
            }
            Write::CreateInstance {
                regional,
                replica_index,
                ..
            } => {
                // As the controller does it: which one came last is told by this, whatever the clock does.
                let newest = self.store.deployments.iter().flat_map(Deployment::instances);
                let newest = newest
                    .map(|it| it.created_at.plus(Duration::from_micros(1)))
                    .max();
                let created_at = newest.map_or(now, |newest| now.max(newest));
                let id = InstanceId::from_uuid(self.uuid());
                let region = self
                    .store
                    .deployments
                    .iter_mut()
                    .flat_map(|it| &mut it.regions)
                    .find(|it| it.id == *regional)
                    .unwrap();
                region.instances.push(Instance {
                    id,
                    replica_index: *replica_index,
                    status: InstanceStatus::Allocating,
                    messages: Vec::new(),
                    generation: Generation(1),
                    address: None,
                    forgotten: false,
                    created_at,
                    healthy_at: None,
                    ended_at: None,
                    drain: Drain::Unknown,
                    tally: Tally::default(),
                    trouble: None,
                    unfreezable: None,
                    observed: Observed::Unknown,
                });
            }
            Write::HandOver {
                instance,
                status,
                deployment,
                regional,
            } => {
                assert_eq!(self.find(*instance).status, *status);
                let confirmed = self
                    .site
                    .get(instance)
                    .is_some_and(|run| run.seen.deployment == Some(*deployment));
                assert!(confirmed, "handed over before its policy holds");
                let mut moved = None;
                for region in self.store.deployments.iter_mut().flat_map(|it| &mut it.regions) {
                    if let Some(place) = region.instances.iter().position(|it| it.id == *instance) {
                        moved = Some(region.instances.remove(place));
                    }
                }
                let mut regions = self.store.deployments.iter_mut().flat_map(|it| &mut it.regions);
                let region = regions.find(|it| it.id == *regional).unwrap();
                region.instances.extend(moved);
            }
            Write::Instance(write) => {
                let instance = self.find(write.id);
                assert_eq!(instance.status, write.from);
                assert!(write.from.may_become(write.to), "{} -> {}", write.from, write.to);
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
        }
    }

    fn order(&mut self, order: &Order) {
        match order {
            Order::EnsureImage { deployment, .. } => {
                let program = self.programs[deployment];
                let region = self
                    .store
                    .deployments
                    .iter_mut()
                    .find(|it| it.id == *deployment)
                    .map(|it| &mut it.regions[0])
                    .unwrap();
                region.image = Some(match program {
                    Program::NoImage => ObservedImage::Failed {
                        message: "there is no such image".to_owned(),
                        retryable: false,
                    },
                    _ => ObservedImage::Ready {
                        digest: "sha256:00".to_owned(),
                        size_bytes: 1,
                        notice: None,
                    },
                });
            }
            Order::Start { instance } => {
                let deployment = self
                    .store
                    .deployments
                    .iter()
                    .find(|it| it.instances().any(|it| it.id == *instance))
                    .unwrap();
                let program = self.programs[&deployment.id];
                let row = deployment.instances().find(|it| it.id == *instance).unwrap();
                assert_eq!(
                    row.status,
                    InstanceStatus::Allocating,
                    "started without the intent"
                );
                if program == Program::NoRoom {
                    self.find(*instance).trouble = Some(NO_ROOM.to_owned());
                    return;
                }
                let seen = ObservedInstance {
                    id: *instance,
                    generation: row.generation,
                    phase: InstancePhase::Preparing,
                    address: Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
                    started_at: Some(self.now),
                    deployment: Some(deployment.id),
                    uncheckpointable: None,
                };
                self.find(*instance).trouble = None;
                self.site.entry(*instance).or_insert(Run { seen, program });
            }
            Order::Stop { instance, .. } => {
                assert_eq!(
                    self.find(*instance).status,
                    InstanceStatus::Stopping,
                    "stopped without the intent"
                );
                if let Some(run) = self.site.get_mut(instance).filter(|it| !it.seen.phase.is_ended()) {
                    run.seen.phase = InstancePhase::Stopping;
                }
            }
            Order::Freeze { instance } => {
                assert_eq!(self.find(*instance).status, InstanceStatus::Healthy);
                if let Edge::Known { endpoints, .. } = &self.store.edge {
                    assert!(!endpoints.contains(instance), "frozen under the data plane");
                }
                assert!(
                    !matches!(self.store.activity, Activity::Known { in_flight: 1.., .. }),
                    "frozen under a request"
                );
                if let Some(why) = self.unfreezable.clone() {
                    self.find(*instance).unfreezable = Some(why);
                } else if let Some(run) = self
                    .site
                    .get_mut(instance)
                    .filter(|it| it.seen.phase.is_healthy())
                {
                    run.seen.phase = InstancePhase::Frozen;
                }
            }
            Order::Checkpoint { instance } => {
                assert_eq!(self.find(*instance).status, InstanceStatus::Sleeping);
                let why = self.uncheckpointable.clone();
                if let Some(run) = self
                    .site
                    .get_mut(instance)
                    .filter(|it| it.seen.phase == InstancePhase::Frozen)
                {
                    if why.is_none() {
                        run.seen.phase = InstancePhase::Checkpointed;
                    }
                    run.seen.uncheckpointable = why;
                }
            }
            Order::Thaw { instance } => self.thaw(*instance),
            Order::Continue { instance, deployment } => {
                if let Some(run) = self.site.get_mut(instance).filter(|it| !it.seen.phase.is_ended()) {
                    run.seen.deployment = Some(*deployment);
                }
            }
            Order::Forget { instance } => {
                assert!(self.site.get(instance).is_none_or(|it| it.seen.phase.is_ended()));
                self.site.remove(instance);
                self.find(*instance).forgotten = true;
            }
            Order::RemoveService => {
                assert!(
                    self.missing || self.running().is_empty(),
                    "removed while something of it runs"
                );
                self.removed = true;
            }
        }
    }

    /// Lets the world be well and quiet until nothing is left to do; panics when that does not come.
    pub(super) fn settle(&mut self) {
        const ROUNDS: usize = 3000;
        self.reachable = true;
        self.edge_up = true;
        let mut idle = 0;
        for _ in 0..ROUNDS {
            self.step_site();
            self.sync_edge();
            let made = self.reconcile(false);
            if made.is_empty() {
                idle += 1;
                if idle > 4
                    && made
                        .look_again_at
                        .is_none_or(|at| at.since(self.now) > Duration::from_secs(86400))
                {
                    return;
                }
                let pause = made
                    .look_again_at
                    .map_or(Duration::from_secs(1), |at| at.since(self.now))
                    .max(Duration::from_millis(1));
                self.advance(pause);
            } else {
                idle = 0;
                self.advance(Duration::from_millis(10));
            }
        }
        panic!(
            "never quiet; the last plans: {:#?}",
            &self.history[self.history.len() - 3..]
        );
    }

    /// A few rounds without letting time pass much.
    pub(super) fn rounds(&mut self, count: usize) {
        for _ in 0..count {
            self.step_site();
            self.sync_edge();
            self.reconcile(false);
            self.advance(Duration::from_millis(10));
        }
    }
}
