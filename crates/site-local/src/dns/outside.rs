//! Names of the outside: who may ask for which, and letting through what was answered.
//!
//! An instance with a network policy learns the names its list holds and no other. The addresses in an answer are let
//! through in the firewall before the answer is sent, so a program never meets a door that opens a moment later. The
//! one design choice to know: nothing but an answer of this server opens anything, so an instance cannot widen its
//! list by asking somebody else.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use async_trait::async_trait;
use hickory_proto::op::Message;
use hickory_proto::rr::RData;
use tram_types::egress::NamePattern;

/// Addresses of one answer that are let through: more than any resolver gives a program, and a bound on what one
/// answer may cost the firewall.
const ADDRESSES_MAX: usize = 64;

/// Which names of the outside an instance may ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Names {
    /// Every name.
    All,
    /// Those listed, and what they lead to is let through.
    Listed(Vec<NamePattern>),
    /// Every name, since one family of addresses is open; what those listed lead to is let through in the other one.
    AllOpening(Vec<NamePattern>),
}

impl Names {
    /// Whether an answer for a name opens what it leads to; `None`: the name may not be asked for.
    pub(super) fn opens(&self, name: Option<&str>) -> Option<bool> {
        let listed = |patterns: &[NamePattern]| {
            name.is_some_and(|name| patterns.iter().any(|pattern| pattern.matches(name)))
        };
        match self {
            Self::All => Some(false),
            Self::Listed(patterns) => listed(patterns).then_some(true),
            Self::AllOpening(patterns) => Some(listed(patterns)),
        }
    }
}

/// What the rest of the site does for the name server.
#[async_trait]
pub(crate) trait Gate: Send + Sync + std::fmt::Debug {
    /// Lets `asker` reach what a listed name led to, each for at least as long as its answer is good. False when that
    /// could not be done.
    async fn let_reach(&self, asker: Ipv4Addr, found: &[(IpAddr, Duration)]) -> bool;

    /// Takes notice that `asker` wanted a name that it may not have.
    fn refused(&self, asker: Ipv4Addr, name: &str);
}

/// The name that is asked for, in lower case and without the dot at the end.
pub(super) fn asked_name(question: &Message) -> Option<String> {
    let name = question.queries.first()?.name().to_ascii();
    Some(name.strip_suffix('.').unwrap_or(&name).to_ascii_lowercase())
}

/// The addresses in an answer, whichever of its names they belong to: aliases lead from one to the next.
pub(super) fn addresses(answer: &[u8]) -> Vec<(IpAddr, Duration)> {
    let Ok(message) = Message::from_vec(answer) else {
        return Vec::new();
    };
    message
        .answers
        .iter()
        .filter_map(|record| {
            let address = match &record.data {
                RData::A(address) => address.0.into(),
                RData::AAAA(address) => address.0.into(),
                _ => return None,
            };
            Some((address, Duration::from_secs(record.ttl.into())))
        })
        .take(ADDRESSES_MAX)
        .collect()
}
