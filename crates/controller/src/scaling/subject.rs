//! What a look says of one deployment in one region on which the load decides.

use std::time::Duration;

use tram_types::{DeploymentId, InstanceId, Timestamp, effective::Scale};

/// One deployment in one region, as it was last seen.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Subject {
    pub(crate) deployment: DeploymentId,
    pub(crate) region: String,
    /// Fewest, most, and what one instance should carry.
    pub(crate) scale: Scale,
    /// The owner's override.
    pub(crate) manual: Option<u32>,
    /// Whether it is the deployment that serves.
    pub(crate) serves: bool,
    /// Instances that there are or that are on their way.
    pub(crate) present: u32,
    /// Those of them that are healthy.
    pub(crate) ready: u32,
    /// The longest that one of them took to become healthy.
    pub(crate) start_time: Option<Duration>,
    /// The healthy ones.
    pub(crate) healthy: Vec<Measured>,
}

/// A healthy instance, and what it may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Measured {
    pub(crate) instance: InstanceId,
    pub(crate) healthy_at: Timestamp,
    /// In millionths of a processor a second.
    pub(crate) cpu_limit_usec: u64,
    pub(crate) memory_limit_bytes: u64,
}

impl Subject {
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.deployment == other.deployment && self.region == other.region
    }
}
