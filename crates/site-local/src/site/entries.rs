//! The table of instances, and what is seen of each.
//!
//! ```text
//! Preparing -> Up (Starting, Running, Frozen, Stopping by what is known of it) -> Over
//!      \________________________________________________________________________^
//! ```
//!
//! One lock around the table, held for look-ups and small file writes, never across an await.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tram_image::Image;
use tram_site::{Error, InstancePhase, InstanceSpec, ObservedInstance};
use tram_types::egress::{Destination, NamePattern};
use tram_types::{Generation, Timestamp};

use crate::dns;
use crate::health::View;
use crate::network::firewall::Member;
use crate::network::{Ipv4Network, Network, Slot};
use crate::record::Record;

/// Platform lines that wait for the instance's log to exist.
pub(crate) const EARLY_LINES_MAX: usize = 64;

/// Entries of a list that are named in one line.
const NOTED_MAX: usize = 6;

#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) record: Record,
    pub(crate) live: Live,
    /// Keeps the layers from being collected.
    pub(crate) image: Option<Image>,
    /// What the platform had to say before there was a log.
    pub(crate) early_lines: Vec<String>,
    /// Ends the preparation.
    pub(crate) halt: CancellationToken,
    /// How long a stop that came while preparing gives.
    pub(crate) stop_grace: Option<Duration>,
}

#[derive(Debug)]
pub(crate) enum Live {
    Preparing,
    Up(Up),
    Over,
}

/// The program runs.
#[derive(Debug)]
pub(crate) struct Up {
    /// Its first process, if that is known.
    pub(crate) pid: watch::Sender<Option<i32>>,
    pub(crate) started_at: Timestamp,
    /// When this process learnt that it runs: a list asked for earlier may lack it.
    pub(crate) known_since: Instant,
    pub(crate) view: View,
    pub(crate) frozen: watch::Sender<bool>,
    /// How deep it sleeps; means nothing while it runs.
    pub(crate) asleep: Asleep,
    /// What its checkpoint takes on the disk; means nothing while it has none. `None`: not asked yet.
    pub(crate) checkpoint_bytes: Option<u64>,
    /// Ends the health checks when the instance is over.
    pub(crate) _watcher: DropGuard,
}

/// How deep an instance sleeps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Asleep {
    /// It has its memory.
    #[default]
    Frozen,
    /// It is being written to disk, or about to be.
    OnItsWay,
    /// Its processes and memory are on disk.
    Checkpointed,
    /// It has its memory and keeps it, for this reason.
    Stuck(String),
    /// The same, until other checkpoints leave room for the bytes of its own.
    NoRoom { why: String, bytes: u64 },
}

impl Entry {
    pub(crate) fn new(record: Record) -> Self {
        let live = if record.end.is_some() {
            Live::Over
        } else {
            Live::Preparing
        };
        Self {
            record,
            live,
            image: None,
            early_lines: Vec::new(),
            halt: CancellationToken::new(),
            stop_grace: None,
        }
    }

    /// Refuses an order that is older than one seen. A newer one is remembered by the caller's write.
    pub(crate) fn guard(&mut self, given: Generation) -> Result<(), Error> {
        let seen = self.record.generation;
        if given < seen {
            return Err(Error::OldGeneration {
                instance: self.record.spec.id,
                given: given.0,
                seen: seen.0,
            });
        }
        self.record.generation = given;
        Ok(())
    }

    pub(crate) fn slot(&self) -> Option<Slot> {
        self.record.slot.map(Slot)
    }

    pub(crate) fn phase(&self) -> InstancePhase {
        if let Some(end) = &self.record.end {
            return InstancePhase::Ended {
                cause: end.cause.clone(),
                at: end.at,
            };
        }
        if self.record.stop_ordered {
            return InstancePhase::Stopping;
        }
        match &self.live {
            Live::Preparing | Live::Over => InstancePhase::Preparing,
            Live::Up(up) if *up.frozen.borrow() => match up.asleep {
                Asleep::Checkpointed => InstancePhase::Checkpointed,
                Asleep::Frozen | Asleep::OnItsWay | Asleep::Stuck(_) | Asleep::NoRoom { .. } => {
                    InstancePhase::Frozen
                }
            },
            Live::Up(up) if up.view.became_healthy => InstancePhase::Running {
                healthy: up.view.healthy,
                failures: up.view.failures,
                last_failure: up.view.last_failure.clone(),
            },
            Live::Up(up) => InstancePhase::Starting {
                last_failure: up.view.last_failure.clone(),
            },
        }
    }

    pub(crate) fn observed(&self, network: &Network) -> ObservedInstance {
        ObservedInstance {
            id: self.record.spec.id,
            generation: self.record.generation,
            phase: self.phase(),
            address: self.slot().map(|slot| network.address(slot).into()),
            started_at: match &self.live {
                Live::Up(up) => Some(up.started_at),
                Live::Preparing | Live::Over => None,
            },
            deployment: Some(self.record.spec.deployment_id),
            uncheckpointable: match &self.live {
                Live::Up(Up {
                    asleep: Asleep::Stuck(why) | Asleep::NoRoom { why, .. },
                    ..
                }) => Some(why.clone()),
                _ => None,
            },
        }
    }

    /// Whether names may lead to it.
    pub(crate) fn takes_traffic(&self) -> bool {
        self.phase().is_healthy()
    }
}

/// An instance as the firewall is to know it.
pub(crate) fn member(spec: &InstanceSpec, address: Ipv4Addr) -> Result<Member, Error> {
    Ok(Member {
        address,
        mesh: spec.mesh.then_some(spec.organization_id),
        egress: policy(spec)?.map(|policy| policy.networks),
        policy: spec.egress_allow.as_deref().map_or(0, policy_mark),
        guarded: !spec.bound_secrets.is_empty(),
    })
}

/// An instance as the name server is to know it, before it is healthy.
pub(crate) fn names(spec: &InstanceSpec, gateway: Ipv4Addr) -> Result<dns::Entry, Error> {
    let policy = policy(spec)?;
    let networks = policy.as_ref().map(|policy| policy.networks.clone().into());
    let outside = match policy {
        None => dns::Names::All,
        // A list that holds the name server says so on purpose, as Koyeb has it.
        Some(policy) if policy.networks.iter().any(|network| network.contains(gateway)) => dns::Names::All,
        Some(policy) => dns::Names::Listed(policy.names),
    };
    Ok(dns::Entry {
        organization: spec.organization_id,
        app: spec.app_name.clone(),
        service: spec.service_name.clone(),
        mesh: spec.mesh,
        healthy: false,
        outside,
        networks,
        bound: spec.bound_secrets.clone().into(),
    })
}

/// Tells one list from another: the same in every process, so that a restart cuts nothing (FNV-1a).
fn policy_mark(list: &[String]) -> u32 {
    let bytes = list.iter().flat_map(|entry| entry.bytes().chain([0]));
    bytes
        .fold(0x811c_9dc5_u32, |hash, byte| {
            (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
        })
        // What no policy marked has none.
        .max(1)
}

/// Whether every name of the first list is in the second: what the names led to can stay then.
pub(crate) fn keeps_names(before: &InstanceSpec, after: &InstanceSpec) -> bool {
    let Some(after) = &after.egress_allow else {
        return false;
    };
    let mut names = before
        .egress_allow
        .iter()
        .flatten()
        .filter(|text| matches!(Destination::parse(text), Some(Destination::Name(_))));
    names.all(|name| after.contains(name))
}

/// What the owner of an instance should know of its list, if anything: instances have no IPv6.
pub(crate) fn note(list: Option<&[String]>) -> Option<String> {
    let is_v6 = |text: &&String| {
        matches!(
            Destination::parse(text),
            Some(Destination::Network {
                address: IpAddr::V6(_),
                ..
            })
        )
    };
    let open_nothing: Vec<&str> = list?
        .iter()
        .filter(is_v6)
        .map(String::as_str)
        .take(NOTED_MAX)
        .collect();
    (!open_nothing.is_empty()).then(|| {
        format!(
            "instances have no IPv6: these entries of the network policy open nothing: {}",
            open_nothing.join(", ")
        )
    })
}

struct Policy {
    networks: Vec<Ipv4Network>,
    names: Vec<NamePattern>,
}

/// `None` when everything may be reached.
fn policy(spec: &InstanceSpec) -> Result<Option<Policy>, Error> {
    let Some(list) = &spec.egress_allow else {
        return Ok(None);
    };
    let (mut networks, mut names) = (Vec::new(), Vec::new());
    for text in list {
        match Destination::parse(text) {
            Some(Destination::Network {
                address: IpAddr::V4(address),
                bits,
            }) => networks.push(Ipv4Network::containing(address, bits)),
            // Instances have no IPv6, so there is nothing to allow.
            Some(Destination::Network { .. }) => {}
            Some(Destination::Name(name)) => names.push(name),
            None => {
                return Err(Error::Refused {
                    message: format!(
                        "the network policy cannot be applied: `{text}` is no address, no network and no name"
                    ),
                });
            }
        }
    }
    // Allowed everywhere is not restricted.
    if networks.iter().any(|network| network.prefix() == 0) {
        return Ok(None);
    }
    Ok(Some(Policy { networks, names }))
}
