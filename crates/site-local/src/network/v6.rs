//! IPv6 of instances: whether there is any, which address each has, and where it may lead at all.
//!
//! Used by the network when it opens, by the wiring of a namespace and by the firewall. The one design choice to know:
//! an instance's IPv6 address is its IPv4 address inside a prefix of the installation's own (a unique local one, RFC
//! 4193), so nothing more has to be leased, recorded or adopted, and each address says whose it is. Outside it is the
//! machine's: packets are masqueraded as for IPv4. Programs prefer IPv4 where a name has both, since a unique local
//! source does not match a global destination (RFC 6724); IPv6 is for what has nothing else.

mod host;

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;

use ipnet::Ipv6Net;
use sha2::{Digest, Sha256};

pub(super) use self::host::{decide, is_left, prepare, restore, tune_interface, tune_namespace};

/// Bits that all addresses of an installation share.
pub(crate) const PREFIX_BITS: u8 = 64;

/// All that instances may reach: global unicast addresses. Everything else is refused without being named, and so are
/// link-local, unique local and site-local addresses (where clouds have their metadata: `fd00:ec2::254`,
/// `fd20:ce::254`), multicast, and addresses that hold an IPv4 one: mapped, compatible, and those of NAT64
/// (`64:ff9b::/96`, `64:ff9b:1::/48`).
pub(crate) const REACHABLE: &str = "2000::/3";

/// What of it is refused all the same, because it leads to IPv4 addresses and so around what is said of those, or to no
/// place: Teredo, ORCHID (both generations) and 6to4.
pub(crate) const ROUND_ABOUT: [&str; 4] = ["2001::/32", "2001:10::/28", "2001:20::/28", "2002::/16"];

/// Whether instances have IPv6.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Ipv6 {
    /// None.
    #[default]
    Off,
    /// If the machine has a global address, a default route, and can forward without becoming a router.
    Auto,
    /// They have; a machine that cannot forward it is an error.
    On,
}

/// The addresses of an installation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Prefix([u8; 8]);

impl Prefix {
    /// That of the installation with this state directory: the same in every process of it.
    pub(crate) fn of(state_dir: &Path) -> Self {
        let mut hash = Sha256::new_with_prefix(b"tramontane: prefix of instances\0");
        hash.update(state_dir.as_os_str().as_encoded_bytes());
        let [a, b, c, d, e, ..]: [u8; 32] = hash.finalize().into();
        // Locally assigned, then 40 bits that nobody else is likely to have, then the first subnet.
        Self([0xfd, a, b, c, d, e, 0, 0])
    }

    /// The address beside an IPv4 address of the network.
    pub(crate) fn address(self, beside: Ipv4Addr) -> Ipv6Addr {
        let mut octets = [0; 16];
        let (front, back) = octets.split_at_mut(8);
        front.copy_from_slice(&self.0);
        if let Some(last) = back.last_chunk_mut::<4>() {
            *last = beside.octets();
        }
        octets.into()
    }

    /// The IPv4 address beside this one, if it is one of ours.
    pub(crate) fn beside(self, address: Ipv6Addr) -> Option<Ipv4Addr> {
        let [.., a, b, c, d] = address.octets();
        let beside = Ipv4Addr::new(a, b, c, d);
        (self.address(beside) == address).then_some(beside)
    }

    /// All of them.
    pub(crate) fn network(self) -> Ipv6Net {
        let first = self.address(Ipv4Addr::UNSPECIFIED);
        Ipv6Net::new_assert(first, PREFIX_BITS)
    }
}

/// Whether a block holds all that may be reached: allowed everywhere is not restricted.
pub(crate) fn is_everything(block: &Ipv6Net) -> bool {
    reachable().is_some_and(|all| block.contains(&all))
}

/// Whether any of a block may be reached.
pub(crate) fn is_reachable(block: &Ipv6Net) -> bool {
    let inside = |text: &str| text.parse::<Ipv6Net>().is_ok_and(|closed| closed.contains(block));
    reachable().is_some_and(|all| all.contains(block) || block.contains(&all))
        && !ROUND_ABOUT.iter().any(|text| inside(text))
}

fn reachable() -> Option<Ipv6Net> {
    REACHABLE.parse().ok()
}

#[cfg(test)]
mod tests;
