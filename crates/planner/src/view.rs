//! Everything the planner may know of one service, as plain facts.
//!
//! The controller fills a [`ServiceView`] from the store, from what the sites say and from what the data plane
//! reports. Times come from the store; what is `None` has not happened.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use crate::reason::Reason;
use tram_site::{Capabilities, ObservedImage, ObservedInstance};
use tram_types::{
    DeploymentId, Generation, InstanceId, RegionalDeploymentId, ServiceId, Timestamp,
    effective::Scale,
    status::{DeploymentStatus, InstanceStatus, ServiceStatus},
};

/// What the owner wants of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Intent {
    /// It should run.
    Run,
    /// It should hold nothing, and can be resumed.
    Pause,
    /// It should be gone.
    Delete,
}

/// What the owner wants of an app.
pub type AppIntent = Intent;

/// One service at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct ServiceView {
    /// Which.
    pub id: ServiceId,
    /// What its owner wants; the stricter of the service's own and its app's.
    pub intent: Intent,
    /// What it is shown as.
    pub status: ServiceStatus,
    /// What is shown beside the status.
    pub messages: Vec<String>,
    /// When it was made.
    pub created_at: Timestamp,
    /// Since when it sleeps.
    pub sleeping_since: Option<Timestamp>,
    /// The deployment that serves.
    pub active: Option<DeploymentId>,
    /// Time after its creation at which it is deleted.
    pub delete_after_create: Option<Duration>,
    /// Time asleep after which it is deleted.
    pub delete_after_sleep: Option<Duration>,
    /// Whether requests can reach it through the edge: it has a route or a public TCP port.
    pub routed: bool,
    /// Whether its kind may sleep at all: workers and databases may not.
    pub may_sleep: bool,
    /// Every deployment that is not final, and the newest one that was not stashed, whatever its status.
    pub deployments: Vec<Deployment>,
    /// What the data plane says of its traffic.
    pub activity: Activity,
    /// What the data plane was told and has confirmed.
    pub edge: Edge,
    /// It was woken for a call that is expected and has not come yet.
    pub expected: bool,
    /// Whether there is memory for more instances of it.
    pub room: Room,
    /// Deployments of which no instance will ever find memory, as it is; why, in words.
    pub too_large: BTreeMap<DeploymentId, String>,
    /// What it should make room for, in words, if it rests.
    pub gives_way: Option<String>,
}

/// Whether there is memory for more instances of a service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Room {
    /// Nothing is in the way.
    #[default]
    Open,
    /// For so many, for now.
    Only {
        /// How many may be made.
        instances: u32,
        /// Why no more, in words.
        why: String,
    },
}

impl ServiceView {
    /// Why an instance of a deployment that is wanted is not made.
    pub(crate) fn no_room(&self, deployment: DeploymentId) -> Option<Reason> {
        if let Some(why) = self.too_large.get(&deployment) {
            return Some(Reason::NeverRoom(why.clone()));
        }
        match &self.room {
            Room::Open | Room::Only { instances: 1.., .. } => None,
            Room::Only { instances: 0, why } => Some(Reason::NoRoom(why.clone())),
        }
    }
}

impl ServiceView {
    /// Why it wakes.
    pub(crate) fn wake_reason(&self) -> Reason {
        if self.expected {
            Reason::WakeExpected
        } else {
            Reason::WakeRequested
        }
    }
}

/// One deployment.
#[derive(Debug, Clone, PartialEq)]
pub struct Deployment {
    /// Which.
    pub id: DeploymentId,
    /// 1, 2, 3 … in its service.
    pub version: i64,
    /// What it is shown as.
    pub status: DeploymentStatus,
    /// What is shown beside the status.
    pub messages: Vec<String>,
    /// Its owner wants it cancelled.
    pub cancel_requested: bool,
    /// When it was made.
    pub created_at: Timestamp,
    /// When its first instance was given a place.
    pub allocated_at: Option<Timestamp>,
    /// When it was first healthy.
    pub healthy_at: Option<Timestamp>,
    /// Where its code comes from.
    pub source: Source,
    /// How it takes over from the one before.
    pub takeover: Takeover,
    /// The deployments before it whose running instances can go on as its own: nothing differs but what they may reach
    /// outside (see [`crate::only_policy_differs`]).
    pub continues: BTreeSet<DeploymentId>,
    /// One a region.
    pub regions: Vec<Region>,
}

/// Where a deployment's code comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// An image that a site can fetch.
    Image,
    /// Something that cannot be carried out; the text tells the user why and what to do.
    Unusable(String),
}

/// How a deployment takes over from the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takeover {
    /// Instance by instance: each new one that takes requests replaces an old one.
    Rolling,
    /// One new instance takes a share of the requests first; when it stays healthy the rest comes up, and the new one
    /// takes over whole.
    Canary,
    /// The old one takes every request until the new one is there whole.
    BlueGreen,
    /// The old one is stopped as soon as the new one's image is there.
    Immediate,
    /// As `Immediate`, and the new one starts only when nothing of the old one is left: they share a volume, or a GPU.
    StopFirst,
}

impl Takeover {
    /// Whether the old deployment goes on until the new one serves.
    #[must_use]
    pub const fn keeps_old(self) -> bool {
        matches!(self, Self::Rolling | Self::Canary | Self::BlueGreen)
    }

    /// Whether instances of both deployments take requests meanwhile.
    #[must_use]
    pub const fn shares(self) -> bool {
        matches!(self, Self::Rolling | Self::Canary)
    }
}

/// A deployment in one region.
#[derive(Debug, Clone, PartialEq)]
pub struct Region {
    /// Which regional deployment.
    pub id: RegionalDeploymentId,
    /// The resolved region.
    pub region: String,
    /// How many instances, and when to sleep.
    pub scale: Scale,
    /// The owner's override of the number of instances.
    pub manual: Option<u32>,
    /// What [`crate::autoscale::decide`] said last; `None`: it has not been asked since the process started or the
    /// deployment slept.
    pub load: Option<u32>,
    /// Probes in a row that may fail before an instance is replaced.
    pub restart_limit: u32,
    /// The longest grace its checks give an instance that starts.
    pub start_grace: Duration,
    /// Whether its site answers.
    pub site: SiteState,
    /// What the site last said of the image; `None`: not asked yet.
    pub image: Option<ObservedImage>,
    /// Every instance that is not over, and the newest ended ones of each replica.
    pub instances: Vec<Instance>,
}

/// Whether a region's site answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SiteState {
    /// It answers.
    Reachable(Capabilities),
    /// It does not, for now: nothing may be concluded.
    Unreachable,
    /// No site serves the region.
    Missing,
}

/// One instance.
#[derive(Debug, Clone, PartialEq)]
pub struct Instance {
    /// Which.
    pub id: InstanceId,
    /// Which of the replicas.
    pub replica_index: u32,
    /// What it is shown as.
    pub status: InstanceStatus,
    /// What is shown beside the status. On a stopping or stopped instance: why, when nobody ordered it.
    pub messages: Vec<String>,
    /// The newest order for it.
    pub generation: Generation,
    /// Where it was last seen to listen.
    pub address: Option<IpAddr>,
    /// Its site has forgotten it.
    pub forgotten: bool,
    /// When its row was made.
    pub created_at: Timestamp,
    /// When it was first healthy.
    pub healthy_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// What the data plane says of requests it still serves, once no new ones go there.
    pub drain: Drain,
    /// How requests to it turned out while a canary was tried, its own or another's.
    pub tally: Tally,
    /// Why its site cannot start it just now, in the site's words; it is tried again.
    pub trouble: Option<String>,
    /// Why its site cannot freeze it, in the site's words; it is not tried again.
    pub unfreezable: Option<String>,
    /// What its site says now.
    pub observed: Observed,
}

/// What the data plane says of the requests of one instance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Drain {
    /// It has not said.
    #[default]
    Unknown,
    /// Some are under way, or a session is open in it.
    Busy,
    /// None is, and none will come.
    Done,
}

/// How requests to one instance turned out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Those that it answered or failed to.
    pub answers: u64,
    /// Those of them that it answered with 5xx or not at all, or that wait for far too long. May become fewer.
    pub failures: u64,
}

impl std::iter::Sum for Tally {
    fn sum<I: Iterator<Item = Self>>(tallies: I) -> Self {
        tallies.fold(Self::default(), |whole, it| Self {
            answers: whole.answers.saturating_add(it.answers),
            failures: whole.failures.saturating_add(it.failures),
        })
    }
}

/// What a site says of an instance.
#[derive(Debug, Clone, PartialEq)]
pub enum Observed {
    /// The site could not be asked.
    Unknown,
    /// The site answers and does not have it.
    Absent,
    /// The site has it.
    Seen(ObservedInstance),
}

/// Traffic of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// The data plane has not said, or cannot be reached: nothing is put to sleep.
    Unknown,
    /// What it said last.
    Known {
        /// Requests, streams and connections being served.
        in_flight: u64,
        /// Callers that wait for an instance.
        queued: u64,
        /// When the last request ended or began; `None`: none since the data plane started.
        last_at: Option<Timestamp>,
        /// Somebody waits for it to wake.
        wake: bool,
    },
}

impl Activity {
    /// Nothing going on, none ever seen.
    pub const QUIET: Self = Self::Known {
        in_flight: 0,
        queued: 0,
        last_at: None,
        wake: false,
    };

    /// Whether somebody waits for an instance.
    #[must_use]
    pub const fn demands_wake(self) -> bool {
        matches!(
            self,
            Self::Known { wake: true, .. } | Self::Known { queued: 1.., .. }
        )
    }
}

/// What the data plane has confirmed about this service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Edge {
    /// No table was confirmed since this process started, or the link is down.
    Unknown,
    /// The confirmed table.
    Known {
        /// The instances it may send new requests to.
        endpoints: BTreeSet<InstanceId>,
        /// When the service's entry in it last changed.
        since: Timestamp,
        /// No table with another entry of the service is on its way: it does send requests to all of them.
        settled: bool,
    },
}

impl Instance {
    /// Whether it counts as a replica: not over and not on its way out.
    #[must_use]
    pub fn is_live(&self) -> bool {
        !self.status.is_final() && self.status != InstanceStatus::Stopping
    }
}

impl Deployment {
    /// Whether it is on its way out.
    #[must_use]
    pub const fn is_going_down(&self) -> bool {
        matches!(
            self.status,
            DeploymentStatus::Canceling | DeploymentStatus::Stopping | DeploymentStatus::Erroring
        )
    }

    /// Whether no site has anything of it any more.
    #[must_use]
    pub fn is_forgotten(&self) -> bool {
        self.instances()
            .all(|instance| instance.status.is_final() && instance.forgotten)
    }

    /// Whether none of its instances is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.instances().all(|instance| instance.status.is_final())
    }

    /// Its instances in every region.
    pub fn instances(&self) -> impl Iterator<Item = &Instance> {
        self.regions.iter().flat_map(|region| &region.instances)
    }
}
