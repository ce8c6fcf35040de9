//! Which instance has which address.
//!
//! Used by the pool of namespaces. An address is `first + index`; indices 0 and 1 are the network's own and the
//! gateway. The one design choice to know: there is no file of leases. The index stands in each instance's record,
//! so a restart reads the records, holds what is in them, and nothing can disagree. Freed addresses come back last
//! (round robin), because caches and connections elsewhere remember them for a while. So that this holds across a
//! restart too, the caller keeps a mark that the round has not reached yet ([`Addresses::due_mark`]) and begins there
//! the next time.

use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest prefix that leaves room for a few instances.
const PREFIX_MAX: u8 = 28;
/// Shortest prefix: sixteen million addresses are more than one machine runs.
const PREFIX_MIN: u8 = 8;
/// The first index an instance can have.
const FIRST_INDEX: u32 = 2;
/// The mark is this far ahead of the round: one small write for so many addresses, and so many are passed over at a
/// restart.
const MARK_STEP: u32 = 64;
/// In a small block the mark is this part of it ahead, so that it stays ahead.
const MARK_PART: u32 = 4;

/// A block of IPv4 addresses, such as `10.201.0.0/16`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ipv4Network {
    first: Ipv4Addr,
    prefix: u8,
}

/// What was given as a block of addresses is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a block of IPv4 addresses: expected something like `10.201.0.0/16`")]
pub struct InvalidNetwork(String);

impl Ipv4Network {
    /// What [`crate::config::DEFAULT_NETWORK`] says.
    pub const DEFAULT: Self = Self {
        first: Ipv4Addr::new(10, 201, 0, 0),
        prefix: 16,
    };

    /// The block that `address` is in.
    #[must_use]
    pub fn containing(address: Ipv4Addr, prefix: u8) -> Self {
        let prefix = prefix.min(32);
        Self {
            first: Ipv4Addr::from_bits(address.to_bits() & mask(prefix)),
            prefix,
        }
    }

    /// Whether `address` is in the block.
    #[must_use]
    pub fn contains(self, address: Ipv4Addr) -> bool {
        address.to_bits() & mask(self.prefix) == self.first.to_bits()
    }

    /// Whether all of `other` is in the block.
    #[must_use]
    pub fn covers(self, other: Self) -> bool {
        self.prefix <= other.prefix && self.contains(other.first)
    }

    /// The first address.
    #[must_use]
    pub const fn first(self) -> Ipv4Addr {
        self.first
    }

    /// Bits that all addresses share.
    #[must_use]
    pub const fn prefix(self) -> u8 {
        self.prefix
    }

    /// The machine's own address in the block.
    #[must_use]
    pub fn gateway(self) -> Ipv4Addr {
        self.nth(1)
    }

    /// The address at `index`.
    #[must_use]
    pub fn nth(self, index: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.first.to_bits().wrapping_add(index))
    }

    fn size(self) -> u64 {
        1 << (32 - u32::from(self.prefix))
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

impl fmt::Display for Ipv4Network {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.first, self.prefix)
    }
}

impl FromStr for Ipv4Network {
    type Err = InvalidNetwork;

    /// Reads `address/prefix`; an address alone is a block of one.
    fn from_str(text: &str) -> Result<Self, InvalidNetwork> {
        let invalid = || InvalidNetwork(text.chars().take(64).collect());
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, prefix.parse::<u8>().map_err(|_| invalid())?),
            None => (text, 32),
        };
        if prefix > 32 {
            return Err(invalid());
        }
        Ok(Self::containing(address.parse().map_err(|_| invalid())?, prefix))
    }
}

impl TryFrom<String> for Ipv4Network {
    type Error = InvalidNetwork;

    fn try_from(text: String) -> Result<Self, InvalidNetwork> {
        text.parse()
    }
}

impl From<Ipv4Network> for String {
    fn from(network: Ipv4Network) -> Self {
        network.to_string()
    }
}

/// Hands out indices.
#[derive(Debug)]
pub(crate) struct Addresses {
    used: BTreeSet<u32>,
    next: u32,
    end: u32,
    /// Addresses that may be handed out before the mark must be moved on.
    before_mark: u32,
    /// Whether the round began at a mark: it says more than the records do.
    resumed: bool,
}

impl Addresses {
    /// All of `network` but what is never handed out, or nothing when the block is too small or too large.
    pub(crate) fn new(network: Ipv4Network) -> Option<Self> {
        if !(PREFIX_MIN..=PREFIX_MAX).contains(&network.prefix) {
            return None;
        }
        // The last one is the broadcast address to whoever looks at the block as a whole.
        let end = u32::try_from(network.size() - 1).ok()?;
        Some(Self {
            used: BTreeSet::new(),
            next: FIRST_INDEX,
            end,
            before_mark: 0,
            resumed: false,
        })
    }

    /// Begins the round at a mark kept by an earlier process; one outside of the block says nothing.
    pub(crate) fn resume(&mut self, mark: u32) {
        if (FIRST_INDEX..self.end).contains(&mark) {
            self.next = mark;
            self.resumed = true;
        }
    }

    /// The mark to write down before the index that was just taken is used, if it must move.
    pub(crate) fn due_mark(&mut self) -> Option<u32> {
        if self.before_mark > 0 {
            return None;
        }
        let room = self.end - FIRST_INDEX;
        let step = MARK_STEP.min(room / MARK_PART);
        self.before_mark = step;
        Some(FIRST_INDEX + (self.next - FIRST_INDEX + step) % room)
    }

    /// A free index, or `None` when there is none.
    pub(crate) fn take(&mut self) -> Option<u32> {
        let free = (self.next..self.end)
            .chain(FIRST_INDEX..self.next)
            .find(|index| !self.used.contains(index))?;
        self.used.insert(free);
        // Those passed over, because they are in use, count too.
        let room = self.end - FIRST_INDEX;
        let passed = (free + room - self.next) % room + 1;
        self.before_mark = self.before_mark.saturating_sub(passed);
        self.next = if free + 1 < self.end {
            free + 1
        } else {
            FIRST_INDEX
        };
        Some(free)
    }

    /// Marks an index of a record as taken. False when somebody has it already, or it is outside.
    pub(crate) fn hold(&mut self, index: u32) -> bool {
        if !(FIRST_INDEX..self.end).contains(&index) || !self.used.insert(index) {
            return false;
        }
        if index >= self.next && !self.resumed {
            self.next = if index + 1 < self.end {
                index + 1
            } else {
                FIRST_INDEX
            };
        }
        true
    }

    /// Gives an index back.
    pub(crate) fn release(&mut self, index: u32) {
        self.used.remove(&index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Ipv4Network {
        text.parse().unwrap()
    }

    #[test]
    fn reads_what_it_prints_and_cuts_host_bits() {
        assert_eq!(network("10.1.2.3/16").to_string(), "10.1.0.0/16");
        assert_eq!(network("10.1.2.3").to_string(), "10.1.2.3/32");
        assert_eq!(network("1.2.3.4/0").to_string(), "0.0.0.0/0");
        for bad in ["", "10.0.0.0/33", "10.0.0/8", "::/0", "10.0.0.0/x"] {
            assert!(bad.parse::<Ipv4Network>().is_err(), "{bad}");
        }
        assert!(network("10.0.0.0/8").covers(network("10.9.0.0/16")));
        assert!(!network("10.9.0.0/16").covers(network("10.0.0.0/8")));
        assert!(network("0.0.0.0/0").contains(Ipv4Addr::BROADCAST));
    }

    #[test]
    fn hands_out_every_address_once_and_the_freed_one_last() {
        let block = network("10.5.0.0/28");
        let mut addresses = Addresses::new(block).unwrap();
        let mut seen = BTreeSet::new();
        while let Some(index) = addresses.take() {
            assert!(seen.insert(index));
            assert!(block.contains(block.nth(index)));
            assert_ne!(block.nth(index), block.gateway());
        }
        assert_eq!(seen.len(), 16 - 3);
        addresses.release(4);
        addresses.release(3);
        assert_eq!(
            (addresses.take(), addresses.take(), addresses.take()),
            (Some(3), Some(4), None)
        );
    }

    #[test]
    fn what_a_record_holds_is_not_given_away() {
        let mut addresses = Addresses::new(network("10.5.0.0/28")).unwrap();
        assert!(addresses.hold(2));
        assert!(addresses.hold(5));
        assert!(!addresses.hold(5), "two records with one address");
        assert!(!addresses.hold(1) && !addresses.hold(15) && !addresses.hold(4000));
        assert_eq!(addresses.take(), Some(6), "after the newest one held");
        let mut rest: Vec<u32> = std::iter::from_fn(|| addresses.take()).collect();
        rest.sort_unstable();
        assert_eq!(rest, [3, 4, 7, 8, 9, 10, 11, 12, 13, 14]);
    }

    #[test]
    fn a_restart_hands_out_nothing_that_was_handed_out_shortly_before() {
        for (block, taken) in [("10.5.0.0/16", 200), ("10.5.0.0/16", 65_600), ("10.5.0.0/28", 5)] {
            let (mut addresses, mut mark, mut last) = (Addresses::new(network(block)).unwrap(), None, None);
            for _ in 0..taken {
                last = addresses.take();
                mark = addresses.due_mark().or(mark);
                addresses.release(last.unwrap());
            }
            let mut again = Addresses::new(network(block)).unwrap();
            again.resume(mark.expect("the first address moves the mark"));
            assert!(
                again.hold(last.unwrap()),
                "an adopted one does not move the round"
            );
            let next = again.take().unwrap();
            let room = again.end - FIRST_INDEX;
            let ahead = (next + room - last.unwrap()) % room;
            assert!((1..=MARK_STEP + 1).contains(&ahead), "{block}: {ahead} ahead");
        }
    }

    #[test]
    fn a_mark_of_another_block_is_ignored() {
        let mut addresses = Addresses::new(network("10.5.0.0/28")).unwrap();
        addresses.resume(4000);
        addresses.resume(0);
        assert_eq!(addresses.take(), Some(FIRST_INDEX));
    }

    #[test]
    fn a_block_must_have_a_sensible_size() {
        assert!(Addresses::new(network("10.0.0.0/29")).is_none());
        assert!(Addresses::new(network("0.0.0.0/0")).is_none());
    }
}
