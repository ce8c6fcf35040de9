//! The rules and sets of IPv6: the twins of those of IPv4, which pass IPv6 packets over.
//!
//! Used by `super`, which owns the table and its changes. Without IPv6 there is none of this, and the table drops what
//! is no IPv4 where it comes in. The one design choice to know: the chains end in a refusal, so that a packet must be
//! let through by a rule that speaks of it; where IPv4's rules name what is closed, these name the one block that is
//! open ([`REACHABLE`]). Instances do not reach each other by IPv6, nor the machine: names of services have IPv4
//! addresses alone.
//!
//! What an instance sends is TCP, UDP or an echo request right behind the header. Extension headers (a routing header
//! names another destination than the packet's own) are dropped where they enter, and fragments are put together
//! before that by connection tracking, so that no rule sees one.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::Ipv6Net;

use super::super::v6::{Prefix, REACHABLE, ROUND_ABOUT, is_everything, is_reachable};
use super::{Element, Member, Part, REFUSALS_MAX, REFUSALS_SECS, REFUSED_MAX, REFUSED_SECS};

/// What names led to, by instance; each element has its time.
pub(super) const NAMED_SET: &str = "outward_named6";
/// Packets refused, by instance.
pub(crate) const REFUSALS_SET: &str = "refusals6";
/// Packets refused, by instance and by where they went.
pub(crate) const REFUSED_SET: &str = "refused6";
/// A set that only tables with IPv6 have.
pub(super) const MARK_SET: &str = "outward6";
/// Blocks of addresses take this key and the instance's address in a set of intervals.
const ALLOWED_SET: &str = "outward_allowed6";

/// What the rules of IPv6 are about.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    pub(crate) prefix: Prefix,
    pub(crate) denied: Vec<Ipv6Net>,
    /// Interfaces that forward IPv6 only because we asked for it.
    pub(crate) uplinks: Vec<String>,
}

/// The parts of the table, each for its place in it.
pub(super) struct Rules {
    /// Sets, and the chains that are jumped to.
    pub(super) sets_and_chains: String,
    /// In `early`, before anything else.
    pub(super) early: String,
    /// In `forward`, before open connections are let through.
    pub(super) marked: String,
    /// In `forward`, at its end.
    pub(super) closed: String,
    /// At the head of `from_instance`.
    pub(super) from_instance: String,
    /// In `refuse`, before the word that is said.
    pub(super) refuse: String,
    /// In `count`.
    pub(super) count: String,
    /// In `outgoing`.
    pub(super) outgoing: String,
}

/// The rules of a table; `ours` are its interfaces, as nftables names them.
pub(super) fn rules(frame: Option<&Frame>, ours: &str, named_max: u32) -> Rules {
    let Some(frame) = frame else {
        return Rules {
            sets_and_chains: String::new(),
            early: format!("        iifname {ours} meta nfproto != ipv4 drop\n"),
            marked: String::new(),
            closed: String::new(),
            from_instance: String::new(),
            refuse: String::new(),
            count: String::new(),
            outgoing: String::new(),
        };
    };
    let prefix = frame.prefix.network();
    let denied: String = ROUND_ABOUT
        .map(str::to_owned)
        .into_iter()
        .chain(frame.denied.iter().map(|block| block.trunc().to_string()))
        .map(|block| format!("        ip6 daddr {block} goto refuse\n"))
        .collect();
    let closed = if frame.uplinks.is_empty() {
        String::new()
    } else {
        let names: Vec<String> = frame.uplinks.iter().map(|name| format!("\"{name}\"")).collect();
        let names = names.join(", ");
        format!(
            "        meta nfproto ipv6 iifname {{ {names} }} ct status dnat accept\n        \
             meta nfproto ipv6 iifname {{ {names} }} drop\n"
        )
    };
    Rules {
        sets_and_chains: format!(
            "    set {MARK_SET} {{ type ipv6_addr; }}
    set {ALLOWED_SET} {{ type ipv6_addr . ipv6_addr; flags interval; }}
    set listed6 {{ type ipv6_addr; }}
    map policy_of6 {{ type ipv6_addr : mark; }}
    set policies6 {{ type mark . ipv6_addr; }}
    set {NAMED_SET} {{ type ipv6_addr . ipv6_addr; size {named_max}; flags timeout; }}
    set {REFUSALS_SET} {{ type ipv6_addr; size {REFUSALS_MAX}; flags dynamic,timeout; }}
    set {REFUSED_SET} {{ type ipv6_addr . ipv6_addr . inet_proto . inet_service; size {REFUSED_MAX}; flags dynamic,timeout; }}

    chain early6 {{
        ip6 saddr != {prefix} drop
        fib saddr . iif oif 0 drop
        ip6 nexthdr != {{ tcp, udp, ipv6-icmp }} goto odd6
        icmpv6 type {{ 130-137, 143 }} drop
        ip6 daddr ff00::/8 goto odd6
        ip6 daddr fe80::/10 jump count
    }}
    chain odd6 {{
        jump count
        drop
    }}
    chain look_again6 {{
        ip6 saddr . ip6 daddr != @{ALLOWED_SET} ip6 saddr . ip6 daddr != @{NAMED_SET} goto cut
        ct mark set ip6 saddr map @policy_of6
        accept
    }}
    chain from_instance6 {{
        oifname {ours} goto refuse
        ip6 daddr != {REACHABLE} goto refuse
{denied}        meta l4proto != {{ tcp, udp, ipv6-icmp }} goto refuse
        meta l4proto ipv6-icmp icmpv6 type != echo-request goto refuse
        ip6 saddr @{MARK_SET} accept
        ip6 saddr . ip6 daddr @{ALLOWED_SET} goto let_through6
        ip6 saddr . ip6 daddr @{NAMED_SET} goto let_through6
        goto refuse
    }}
    chain let_through6 {{
        ct mark set ip6 saddr map @policy_of6
        accept
    }}
"
        ),
        // From outside, nobody has an address of ours: answers come to the machine's.
        early: format!(
            "        iifname {ours} meta nfproto ipv6 jump early6
        iifname != {{ \"lo\", {ours} }} ip6 daddr {prefix} drop
        iifname {ours} meta nfproto != {{ ipv4, ipv6 }} drop\n"
        ),
        marked: format!(
            "        iifname {ours} ct state established,related ct direction original ip6 saddr @listed6 \
             ct mark . ip6 saddr != @policies6 goto look_again6\n"
        ),
        closed,
        from_instance: "        meta nfproto ipv6 goto from_instance6\n".to_owned(),
        // The kernel of an instance hears of an error by ICMPv6 while it still holds the socket that connects, and heeds it
        // only when it tries again after a second. A reset is heeded at once.
        refuse: "        meta nfproto ipv6 meta l4proto tcp reject with tcp reset\n".to_owned(),
        count: format!(
            "        update @{REFUSALS_SET} {{ ip6 saddr timeout {REFUSALS_SECS}s counter }}
        meta l4proto {{ tcp, udp }} update @{REFUSED_SET} {{ ip6 saddr . ip6 daddr . meta l4proto . th dport timeout {REFUSED_SECS}s counter }}\n"
        ),
        outgoing: format!("        ip6 saddr {prefix} oifname != {{ \"lo\", {ours} }} masquerade\n"),
    }
}

/// Everything of IPv6 that a member is in.
pub(super) fn elements(member: &Member, prefix: Prefix) -> Vec<Element> {
    let address = Part::Ipv6(prefix.address(member.address));
    let element = |set: &'static str, key: &[Part], value: Option<u32>| Element {
        set,
        key: key.to_vec(),
        value,
    };
    let Some(allowed) = &member.egress_v6 else {
        return vec![element(MARK_SET, &[address], None)];
    };
    let mut elements = vec![
        element("listed6", &[address], None),
        element("policy_of6", &[address], Some(member.policy)),
        element("policies6", &[Part::Mark(member.policy), address], None),
    ];
    // Those that open nothing are not worth a place; one that opens everything is no list, see `Policy`.
    let kept = outermost(allowed);
    let open = kept
        .iter()
        .filter(|block| is_reachable(block) && !is_everything(block));
    elements.extend(open.map(|block| element(ALLOWED_SET, &[address, Part::Ipv6Block(*block)], None)));
    elements
}

/// That names led a member to an address.
pub(super) fn led(member: Ipv4Addr, address: Ipv6Addr, prefix: Prefix) -> Element {
    Element {
        set: NAMED_SET,
        key: vec![Part::Ipv6(prefix.address(member)), Part::Ipv6(address)],
        value: None,
    }
}

/// The blocks that are not inside another one: nftables refuses overlapping elements.
fn outermost(blocks: &[Ipv6Net]) -> Vec<Ipv6Net> {
    let mut sorted: Vec<Ipv6Net> = blocks.iter().map(Ipv6Net::trunc).collect();
    sorted.sort_by_key(|block| (block.prefix_len(), block.network()));
    let mut kept: Vec<Ipv6Net> = Vec::new();
    for block in sorted {
        if !kept.iter().any(|outer| outer.contains(&block)) {
            kept.push(block);
        }
    }
    kept
}
