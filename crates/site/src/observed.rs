//! What a site sees.

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};
use tram_types::{DeploymentId, Generation, InstanceId, Timestamp};

/// Everything a site sees at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observation {
    /// Every instance the site has, ended ones included until they are forgotten.
    pub instances: BTreeMap<InstanceId, ObservedInstance>,
}

/// What is seen of one instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ObservedInstance {
    /// Which.
    pub id: InstanceId,
    /// The newest generation of an order for it.
    pub generation: Generation,
    /// Where it is in its life.
    pub phase: InstancePhase,
    /// Where its ports are reached from the edge, once it has an address.
    pub address: Option<IpAddr>,
    /// When the process started.
    pub started_at: Option<Timestamp>,
    /// As one of which deployment it runs: its policy holds. `None`: the site cannot change that while it runs.
    #[serde(default)]
    pub deployment: Option<DeploymentId>,
    /// Why it cannot be checkpointed as it is now, in the site's words; known once that was tried, and until it runs
    /// again.
    pub uncheckpointable: Option<String>,
}

/// Where an instance is in its life, as its site sees it.
///
/// ```text
/// Preparing -> Starting -> Running{healthy} <-> Running{unhealthy} -> Stopping -> Ended
///                  |            |  ^                                     ^
///                  |            v  ^                                     |
///                  |           Frozen -> Checkpointed                    |
///                  +-----------------------------------------------------+
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "phase")]
pub enum InstancePhase {
    /// The root file system and the network are being made.
    Preparing,
    /// The process runs; its checks have not passed yet.
    Starting {
        /// Why the last probe failed, if one did.
        last_failure: Option<String>,
    },
    /// The process runs and its checks have passed at least once.
    Running {
        /// Whether the checks pass now.
        healthy: bool,
        /// Probes that failed in a row.
        failures: u32,
        /// Why the last probe failed, if it did.
        last_failure: Option<String>,
    },
    /// Light sleep: it has its memory and no processor time.
    Frozen,
    /// Light sleep: its processes and memory are on disk.
    Checkpointed,
    /// The stop signal was sent.
    Stopping,
    /// Over.
    Ended {
        /// Why.
        cause: EndCause,
        /// When.
        at: Timestamp,
    },
}

impl InstancePhase {
    /// Whether the instance can take traffic.
    #[must_use]
    pub const fn is_healthy(&self) -> bool {
        matches!(self, Self::Running { healthy: true, .. })
    }

    /// Whether the instance sleeps lightly.
    #[must_use]
    pub const fn is_asleep(&self) -> bool {
        matches!(self, Self::Frozen | Self::Checkpointed)
    }

    /// Whether the instance is over.
    #[must_use]
    pub const fn is_ended(&self) -> bool {
        matches!(self, Self::Ended { .. })
    }
}

/// Why an instance is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "cause")]
pub enum EndCause {
    /// It was told to.
    Stopped,
    /// The process left.
    Exited {
        /// Its exit code.
        code: i32,
    },
    /// A signal that the platform did not send ended it.
    Killed {
        /// Which.
        signal: i32,
    },
    /// It wanted more memory than its instance type has.
    OutOfMemory {
        /// The limit, in bytes.
        limit_bytes: u64,
    },
    /// It could not be started; the text is for the user.
    FailedToStart {
        /// What is wrong and what to do.
        message: String,
    },
    /// The machine went down, or the start was cut in half.
    Interrupted,
}

impl std::fmt::Display for EndCause {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Stopped => write!(formatter, "the instance was stopped"),
            Self::Exited { code: 0 } => {
                write!(
                    formatter,
                    "the program left with exit code 0; a service has to keep running"
                )
            }
            Self::Exited { code: 127 } => {
                write!(
                    formatter,
                    "the program left with exit code 127: a command was not found"
                )
            }
            Self::Exited { code } => write!(formatter, "the program left with exit code {code}"),
            Self::Killed { signal } => write!(formatter, "the program was ended by signal {signal}"),
            Self::OutOfMemory { limit_bytes } => write!(
                formatter,
                "the program wanted more than the {} MiB of memory of its instance type: \
                 choose a larger one or make the program use less",
                limit_bytes / tram_types::units::MIB
            ),
            Self::FailedToStart { message } => write!(formatter, "{message}"),
            Self::Interrupted => write!(formatter, "the machine or the start was interrupted"),
        }
    }
}

/// How far an image is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum ObservedImage {
    /// On its way.
    Pulling {
        /// Bytes here.
        done_bytes: u64,
        /// Bytes in all, once known.
        total_bytes: Option<u64>,
        /// A few words for the user, such as `unpacking layer 3 of 5`.
        step: String,
    },
    /// Here.
    Ready {
        /// The manifest's digest.
        digest: String,
        /// Its size on disk, in bytes.
        size_bytes: u64,
        /// What its user must know, such as that it is not the image that was named.
        #[serde(default)]
        notice: Option<String>,
    },
    /// Cannot be had; the text is for the user.
    Failed {
        /// What is wrong and what to do.
        message: String,
        /// Whether trying again may help.
        retryable: bool,
    },
}

/// What an instance uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Processor time since the start, in microseconds.
    pub cpu_usec: u64,
    /// Memory in use without the page cache that could be dropped, in bytes.
    pub memory_bytes: u64,
    /// Processes and threads.
    pub pids: u64,
}
