//! What comes out: writes for the store, orders for the sites, and why.

use std::{net::IpAddr, time::Duration};

use tram_types::{
    DeploymentId, InstanceId, RegionalDeploymentId, Timestamp,
    status::{DeploymentStatus, InstanceStatus, ServiceStatus},
};

use crate::reason::Reason;

/// What to do for one service.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// For the store, in this order and in one transaction, before any order is given.
    pub writes: Vec<Write>,
    /// For the sites. Each may be repeated without harm.
    pub orders: Vec<Order>,
    /// Why nothing is done where something might be expected.
    pub waiting: Vec<Reason>,
    /// When to look again if nothing changes before.
    pub look_again_at: Option<Timestamp>,
}

impl Plan {
    /// Whether there is nothing to carry out.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty() && self.orders.is_empty()
    }
}

/// A change of what the store holds. `from` is the status the decision was made on: the store refuses the
/// transaction when it finds another.
#[derive(Debug, Clone, PartialEq)]
pub enum Write {
    /// The service's status.
    Service {
        /// The status that was seen.
        from: ServiceStatus,
        /// The new one.
        to: ServiceStatus,
        /// What is shown beside it.
        messages: Vec<String>,
    },
    /// Which deployment serves; `None`: none does.
    Activate {
        /// Which.
        deployment: Option<DeploymentId>,
        /// Why.
        reason: Reason,
    },
    /// Since when the service sleeps; `None`: it does not.
    SleepingSince(Option<Timestamp>),
    /// The service's own rules ask for its deletion: record it as its owner's wish.
    RequestDelete(Reason),
    /// A deployment's status, or its messages alone when the status stays.
    Deployment {
        /// Which.
        id: DeploymentId,
        /// The status that was seen.
        from: DeploymentStatus,
        /// The new one.
        to: DeploymentStatus,
        /// What is shown beside it.
        messages: Vec<String>,
        /// Why.
        reason: Reason,
    },
    /// The time at which a deployment's first instance got its place lies in the future, since the clock was set back:
    /// it is now.
    AllocatedAnew(DeploymentId),
    /// A new instance, ALLOCATING.
    CreateInstance {
        /// Of which deployment.
        deployment: DeploymentId,
        /// Of which regional deployment.
        regional: RegionalDeploymentId,
        /// Which of the replicas.
        replica_index: u32,
        /// Why.
        reason: Reason,
    },
    /// An instance's status, or its address alone when the status stays.
    Instance(InstanceWrite),
    /// A running instance becomes one of another deployment.
    HandOver {
        /// Which instance.
        instance: InstanceId,
        /// Its status, which stays.
        status: InstanceStatus,
        /// To which deployment.
        deployment: DeploymentId,
        /// To which regional deployment.
        regional: RegionalDeploymentId,
    },
}

/// What changes of an instance.
#[derive(Debug, Clone, PartialEq)]
pub struct InstanceWrite {
    /// Which.
    pub id: InstanceId,
    /// The status that was seen.
    pub from: InstanceStatus,
    /// The new one.
    pub to: InstanceStatus,
    /// What is shown beside it.
    pub messages: Vec<String>,
    /// Where it listens, when that is news.
    pub address: Option<IpAddr>,
    /// When its process started, when that is news.
    pub started_at: Option<Timestamp>,
    /// Its site does not have it (any more).
    pub forgotten: bool,
    /// The next orders have a generation of their own.
    pub next_generation: bool,
    /// Why.
    pub reason: Reason,
}

/// Something a site is told.
#[derive(Debug, Clone, PartialEq)]
pub enum Order {
    /// Make the image of a deployment ready, and say how far it is.
    EnsureImage {
        /// Which deployment.
        deployment: DeploymentId,
        /// Where.
        region: String,
    },
    /// Run an instance.
    Start {
        /// Which.
        instance: InstanceId,
    },
    /// Stop an instance.
    Stop {
        /// Which.
        instance: InstanceId,
        /// Between the stop signal and the end by force.
        grace: Duration,
        /// Why.
        reason: Reason,
    },
    /// Take an instance's processor time away: light sleep. Not to be carried out once somebody demanded a wake that
    /// this plan did not know of.
    Freeze {
        /// Which.
        instance: InstanceId,
    },
    /// Move a frozen instance's memory to disk. A wake overtakes it.
    Checkpoint {
        /// Which.
        instance: InstanceId,
    },
    /// Give the processor time back, and the memory.
    Thaw {
        /// Which.
        instance: InstanceId,
    },
    /// Have an instance go on as one of this deployment, which differs from its own in what may be reached outside and
    /// in nothing else.
    Continue {
        /// Which instance.
        instance: InstanceId,
        /// As one of which deployment.
        deployment: DeploymentId,
    },
    /// Forget an instance that is over.
    Forget {
        /// Which.
        instance: InstanceId,
    },
    /// Nothing of the service runs any more: remove its logs and its rows.
    RemoveService,
}
