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

use ipnet::Ipv6Net;
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
use crate::network::{Ipv4Network, Network, Slot, is_everything, is_reachable};
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
    let policy = policy(spec)?;
    Ok(Member {
        address,
        mesh: spec.mesh.then_some(spec.organization_id),
        egress: policy.v4,
        egress_v6: policy.v6,
        policy: spec.egress_allow.as_deref().map_or(0, policy_mark),
        guarded: !spec.bound_secrets.is_empty(),
    })
}

/// An instance as the name server is to know it, before it is healthy. `has_v6`: instances have IPv6.
pub(crate) fn names(spec: &InstanceSpec, gateway: Ipv4Addr, has_v6: bool) -> Result<dns::Entry, Error> {
    let Policy { v4, v6, names } = policy(spec)?;
    let outside = match &v4 {
        // A list that holds the name server says so on purpose, as Koyeb has it.
        Some(networks) if networks.iter().any(|network| network.contains(gateway)) => dns::Names::All,
        // Who may send anything anywhere by one family is not kept from asking.
        Some(_) if has_v6 && v6.is_none() => dns::Names::AllOpening(names),
        None if has_v6 && v6.is_some() => dns::Names::AllOpening(names),
        Some(_) => dns::Names::Listed(names),
        None => dns::Names::All,
    };
    let networks = v4.map(Into::into);
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

/// What the owner of an instance should know of its list, if anything. `has_v6`: instances have IPv6.
pub(crate) fn note(list: Option<&[String]>, has_v6: bool) -> Option<String> {
    let opens_nothing = |text: &&String| match Destination::parse(text) {
        Some(Destination::Network {
            address: IpAddr::V6(address),
            bits,
        }) => !has_v6 || Ipv6Net::new(address, bits).is_ok_and(|block| !is_reachable(&block.trunc())),
        _ => false,
    };
    let open_nothing: Vec<&str> = list?
        .iter()
        .filter(opens_nothing)
        .map(String::as_str)
        .take(NOTED_MAX)
        .collect();
    let why = if has_v6 {
        "instances reach global addresses alone by IPv6"
    } else {
        "instances have no IPv6"
    };
    (!open_nothing.is_empty()).then(|| {
        format!(
            "{why}: these entries of the network policy open nothing: {}",
            open_nothing.join(", ")
        )
    })
}

/// What may be reached, by family; `None`: everything.
#[derive(Debug)]
struct Policy {
    v4: Option<Vec<Ipv4Network>>,
    v6: Option<Vec<Ipv6Net>>,
    names: Vec<NamePattern>,
}

fn policy(spec: &InstanceSpec) -> Result<Policy, Error> {
    let Some(list) = &spec.egress_allow else {
        return Ok(Policy {
            v4: None,
            v6: None,
            names: Vec::new(),
        });
    };
    let (mut v4, mut v6, mut names) = (Vec::new(), Vec::new(), Vec::new());
    let refused = |text: &str| Error::Refused {
        message: format!(
            "the network policy cannot be applied: `{text}` is no address, no network and no name"
        ),
    };
    for text in list {
        match Destination::parse(text).ok_or_else(|| refused(text))? {
            Destination::Network {
                address: IpAddr::V4(address),
                bits,
            } => v4.push(Ipv4Network::containing(address, bits)),
            Destination::Network {
                address: IpAddr::V6(address),
                bits,
            } => {
                let block = Ipv6Net::new(address, bits).map_err(|_| refused(text))?;
                v6.push(block.trunc());
            }
            Destination::Name(name) => names.push(name),
        }
    }
    // Allowed everywhere is not restricted, each family for itself: one that is open says nothing of the other one.
    Ok(Policy {
        v4: (!v4.iter().any(|network| network.prefix() == 0)).then_some(v4),
        v6: (!v6.iter().any(is_everything)).then_some(v6),
        names,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::instance_spec;

    const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 201, 0, 1);

    fn listing(list: &[&str]) -> InstanceSpec {
        InstanceSpec {
            egress_allow: Some(list.iter().map(ToString::to_string).collect()),
            ..instance_spec("shop", "web")
        }
    }

    /// Whether a family is open, by IPv4 and by IPv6.
    fn open(list: &[&str]) -> (bool, bool) {
        let member = member(&listing(list), Ipv4Addr::new(10, 201, 0, 2)).unwrap();
        (member.egress.is_none(), member.egress_v6.is_none())
    }

    #[test]
    fn each_family_is_open_for_itself_alone() {
        assert_eq!(open(&[]), (false, false));
        assert_eq!(open(&["0.0.0.0/0"]), (true, false));
        assert_eq!(open(&["::/0"]), (false, true));
        assert_eq!(open(&["2000::/3", "0.0.0.0/0"]), (true, true));
        assert_eq!(open(&["2000::/4", "fc00::/7", "0.0.0.0/1"]), (false, false));
        let free = member(&instance_spec("shop", "web"), GATEWAY).unwrap();
        assert!(free.egress.is_none() && free.egress_v6.is_none());
        let listed = member(&listing(&["2001:db8::7/32", "10.1.2.3"]), GATEWAY).unwrap();
        assert_eq!(
            listed.egress_v6.unwrap(),
            ["2001:db8::/32".parse::<Ipv6Net>().unwrap()]
        );
        assert_eq!(listed.egress.unwrap(), ["10.1.2.3/32".parse().unwrap()]);
    }

    #[test]
    fn every_name_may_be_asked_for_where_a_family_is_open_and_there() {
        let asked = |list: &[&str], has_v6| names(&listing(list), GATEWAY, has_v6).unwrap().outside;
        let Some(Destination::Name(name)) = Destination::parse("pypi.org") else {
            panic!("it is a name");
        };
        let name = vec![name];
        assert_eq!(
            asked(&["::/0", "pypi.org"], false),
            dns::Names::Listed(name.clone())
        );
        assert_eq!(
            asked(&["::/0", "pypi.org"], true),
            dns::Names::AllOpening(name.clone())
        );
        assert_eq!(asked(&["0.0.0.0/0", "pypi.org"], false), dns::Names::All);
        assert_eq!(
            asked(&["0.0.0.0/0", "pypi.org"], true),
            dns::Names::AllOpening(name.clone())
        );
        assert_eq!(asked(&["0.0.0.0/0", "::/0"], true), dns::Names::All);
        assert_eq!(asked(&["pypi.org"], true), dns::Names::Listed(name));
        assert_eq!(asked(&["10.201.0.1"], true), dns::Names::All);
        let free = names(&instance_spec("shop", "web"), GATEWAY, true).unwrap();
        assert_eq!(free.outside, dns::Names::All);
        assert!(free.networks.is_none());
    }

    #[test]
    fn the_owner_is_told_which_entries_open_nothing() {
        let list = [
            "2001:db8::/32",
            "fd00::/8",
            "64:ff9b::/96",
            "10.0.0.0/8",
            "pypi.org",
        ]
        .map(str::to_owned);
        assert_eq!(
            note(Some(&list), false).unwrap(),
            "instances have no IPv6: these entries of the network policy open nothing: 2001:db8::/32, fd00::/8, \
             64:ff9b::/96"
        );
        assert_eq!(
            note(Some(&list), true).unwrap(),
            "instances reach global addresses alone by IPv6: these entries of the network policy open nothing: \
             fd00::/8, 64:ff9b::/96"
        );
        assert_eq!(note(Some(&list[..1]), true), None);
        assert_eq!(note(None, true), None);
    }
}
