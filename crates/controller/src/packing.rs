//! The models of a machine, and the memory that they share.
//!
//! **Owns** what is known of models beside the store: which of them rest, which wait for memory, and which were asked to
//! make room. All of it in memory: the store says which instances there are, so a process that starts knows at once what
//! is held, takes none for idle that it has not looked at, and asks for a look at those.
//!
//! A look at a service whose plan makes an instance of a model takes its *turn* ([`Packing::turn`]) until that is
//! written, and asks [`tram_planner::packing::room`] first (`service::room`): two wakes never get the same room. Who does
//! not get any is planned anew without it, waits, and is looked at when another model has changed. The models that should
//! make room are looked at with that wish, which the planner grants or not; it is good for one look.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::MutexGuard as Turn;
use tram_planner::{Activity, Instance, ServiceView, packing::Rest};
use tram_site::Sites;
use tram_types::{DeploymentId, InstanceId, OrganizationId, ServiceId, Timestamp, status::InstanceStatus};

use crate::{
    activity::Activities,
    queue::{Key, Queue},
};

/// How long a wish to wake stays that nobody waits for any more: as long as the data plane would have held its caller.
const WISH_MAX: Duration = Duration::from_secs(60);

/// The memory that the models of a region have together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelMemory {
    /// Which region: one machine.
    pub region: String,
    /// How much, in bytes.
    pub bytes: u64,
}

/// What the models of a machine hold, for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// What they have together, in bytes; 0: nothing is bounded.
    pub budget_bytes: u64,
    /// What they held when it was last asked, in bytes.
    pub held_bytes: u64,
    /// Services that wait for memory.
    pub waiting: u64,
    /// Models put to sleep for others since the process started.
    pub put_to_sleep: u64,
}

/// The models of a machine.
#[derive(Debug)]
pub struct Packing {
    memory: Option<ModelMemory>,
    turn: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// What one instance of a deployment takes.
    sizes: HashMap<DeploymentId, u64>,
    known: HashMap<ServiceId, Facts>,
    waiting: BTreeMap<ServiceId, Waits>,
    asked: HashMap<ServiceId, Asked>,
    held: u64,
    put_to_sleep: u64,
}

/// What is known of a service with a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    /// It may be put to sleep when nobody asks it anything.
    may_rest: bool,
    /// Nobody did when it was last looked at.
    rested: bool,
    /// When it last woke.
    pub(crate) woken_at: Option<Timestamp>,
    /// What that took.
    pub(crate) wake: Option<Duration>,
    instances: Vec<(InstanceId, InstanceStatus)>,
}

/// A service that waits for memory.
#[derive(Debug, Clone)]
struct Waits {
    since: Timestamp,
    why: String,
    /// What others are giving up for it, in bytes.
    reserved: u64,
}

/// A model that should make room.
#[derive(Debug, Clone)]
struct Asked {
    by: ServiceId,
    name: String,
    organization: OrganizationId,
}

impl Packing {
    /// `memory`: nothing is bounded without.
    pub(crate) fn new(memory: Option<ModelMemory>) -> Self {
        Self {
            memory,
            turn: tokio::sync::Mutex::default(),
            state: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is bounded, and where.
    pub(crate) const fn memory(&self) -> Option<&ModelMemory> {
        self.memory.as_ref()
    }

    /// Waits until nobody else is being given room.
    pub(crate) async fn turn(&self) -> Turn<'_, ()> {
        self.turn.lock().await
    }

    /// Figures for metrics.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let state = self.lock();
        Totals {
            budget_bytes: self.memory.as_ref().map_or(0, |memory| memory.bytes),
            held_bytes: state.held,
            waiting: u64::try_from(state.waiting.len()).unwrap_or(u64::MAX),
            put_to_sleep: state.put_to_sleep,
        }
    }

    /// Takes in how a service with a model was seen; who waits is looked at when that is news.
    pub(crate) fn note(&self, view: &ServiceView, rest: Rest, queue: &Queue) {
        let facts = Facts::of(view, rest);
        let mut state = self.lock();
        let news = state.known.get(&view.id) != Some(&facts);
        state.known.insert(view.id, facts);
        let waiting: Vec<ServiceId> = state
            .waiting
            .keys()
            .copied()
            .filter(|id| *id != view.id)
            .collect();
        drop(state);
        for id in waiting.into_iter().filter(|_| news) {
            queue.add(Key::Service(id));
        }
    }

    /// The service is gone.
    pub(crate) fn remove(&self, service: ServiceId) {
        let mut state = self.lock();
        state.known.remove(&service);
        state.waiting.remove(&service);
        state.asked.remove(&service);
    }

    /// What is known of a service.
    pub(crate) fn facts(&self, service: ServiceId) -> Option<Facts> {
        self.lock().known.get(&service).cloned()
    }

    /// Why a service waits for memory, in words.
    pub(crate) fn waits(&self, service: ServiceId) -> Option<String> {
        self.lock().waiting.get(&service).map(|it| it.why.clone())
    }

    /// It waits, or still does, for memory of which others are giving so much up.
    pub(crate) fn wait(&self, service: ServiceId, why: &str, reserved: u64, now: Timestamp) {
        let mut state = self.lock();
        let waits = state.waiting.entry(service).or_insert_with(|| Waits {
            since: now,
            why: String::new(),
            reserved: 0,
        });
        why.clone_into(&mut waits.why);
        waits.reserved = reserved;
    }

    /// It does not wait (any more).
    pub(crate) fn content(&self, service: ServiceId) {
        let mut state = self.lock();
        if state.waiting.remove(&service).is_some() {
            state.asked.retain(|_, asked| asked.by != service);
        }
    }

    /// Whether a service has waited in vain for so long that its callers are gone: its wish to wake is over.
    pub(crate) fn is_in_vain(&self, view: &ServiceView, now: Timestamp) -> bool {
        let unheard = matches!(
            view.activity,
            Activity::Known {
                queued: 0,
                in_flight: 0,
                ..
            }
        );
        let state = self.lock();
        let waits = state.waiting.get(&view.id);
        // One that began in the future is of a clock that was set back.
        let long = waits.is_some_and(|it| now.since(it.since) >= WISH_MAX || it.since > now);
        unheard && long
    }

    /// What is being freed for services that asked before this one, in bytes.
    pub(crate) fn reserved_before(&self, service: ServiceId) -> u64 {
        let state = self.lock();
        let rank = |id: &ServiceId, waits: &Waits| (waits.since, *id);
        let own = state.waiting.get(&service).map(|waits| rank(&service, waits));
        let earlier = state
            .waiting
            .iter()
            .filter(|(id, waits)| **id != service && own.is_none_or(|own| rank(id, waits) < own));
        earlier
            .map(|(_, waits)| waits.reserved)
            .fold(0, u64::saturating_add)
    }

    /// Asks models to make room for another.
    pub(crate) fn ask(
        &self,
        models: &[ServiceId],
        by: ServiceId,
        name: &str,
        organization: OrganizationId,
        queue: &Queue,
    ) {
        let mut state = self.lock();
        for model in models {
            let asked = Asked {
                by,
                name: name.to_owned(),
                organization,
            };
            state.asked.insert(*model, asked);
        }
        drop(state);
        for model in models {
            queue.add(Key::Service(*model));
        }
    }

    /// What a service should make room for, in words for its owner; the wish is good for one look.
    pub(crate) fn take_asked(&self, service: ServiceId, owner: OrganizationId) -> Option<String> {
        let mut state = self.lock();
        let asked = state.asked.remove(&service)?;
        if !state.waiting.contains_key(&asked.by) {
            return None;
        }
        // What others have is not for everybody to know.
        Some(if asked.organization == owner {
            asked.name
        } else {
            "a model of another organization".to_owned()
        })
    }

    /// A model was put to sleep for another.
    pub(crate) fn slept(&self) {
        self.lock().put_to_sleep += 1;
    }

    /// What an instance of a deployment takes, if that was found out before.
    pub(crate) fn size(&self, deployment: DeploymentId) -> Option<u64> {
        self.lock().sizes.get(&deployment).copied()
    }

    /// The same, found out now.
    pub(crate) fn set_size(&self, deployment: DeploymentId, bytes: u64) {
        self.lock().sizes.insert(deployment, bytes);
    }

    /// Takes in what is held in all, and by which deployments: of others no size is kept.
    pub(crate) fn set_held(&self, bytes: u64, deployments: &[DeploymentId]) {
        let mut state = self.lock();
        state.held = bytes;
        state.sizes.retain(|id, _| deployments.contains(id));
    }
}

impl Facts {
    fn of(view: &ServiceView, rest: Rest) -> Self {
        let serving = view.deployments.iter().filter(|it| it.status.is_serving());
        let serving = serving.max_by_key(|it| it.version);
        let healthy = serving
            .iter()
            .flat_map(|it| it.instances())
            .filter(|it| it.is_live());
        let took = |it: &Instance| Some(it.healthy_at?.since(it.created_at));
        let wakes: Vec<&Instance> = healthy.collect();
        Self {
            may_rest: tram_planner::packing::may_rest(view),
            rested: rest == Rest::May,
            woken_at: wakes.iter().filter_map(|it| it.healthy_at).max(),
            wake: wakes.iter().filter_map(|it| took(it)).max(),
            instances: present(view),
        }
    }
}

/// Whether a model may be put to sleep now. `may_rest`: whether it may when nobody asks it anything. `instances`: those
/// that are not over.
pub(crate) fn rest(
    may_rest: bool,
    activity: Activity,
    instances: &[(InstanceId, InstanceStatus)],
    sites: &Sites,
) -> Rest {
    let in_session = instances.iter().any(|(id, _)| sites.sessions().is_open(*id));
    let rises =
        |status: &InstanceStatus| matches!(status, InstanceStatus::Allocating | InstanceStatus::Starting);
    let wakes = instances.iter().any(|(_, status)| rises(status));
    match activity {
        Activity::Unknown => Rest::Unknown,
        _ if !may_rest => Rest::Promised,
        Activity::Known {
            in_flight: 0,
            queued: 0,
            wake: false,
            ..
        } if !in_session && !wakes => Rest::May,
        Activity::Known { .. } => Rest::Busy,
    }
}

/// The instances of a service that are not over.
pub(crate) fn present(view: &ServiceView) -> Vec<(InstanceId, InstanceStatus)> {
    let all = view
        .deployments
        .iter()
        .flat_map(tram_planner::Deployment::instances);
    all.filter(|it| !it.status.is_final())
        .map(|it| (it.id, it.status))
        .collect()
}

impl Facts {
    /// Whether the service may be put to sleep now.
    pub(crate) fn rest(&self, service: ServiceId, activities: &Activities, sites: &Sites) -> Rest {
        rest(self.may_rest, activities.of(service), &self.instances, sites)
    }
}
