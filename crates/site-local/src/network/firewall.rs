//! Who may talk to whom: one nftables table.
//!
//! The table holds the rules once and the instances in sets, so that a start or an end changes a few elements.
//! Changes go through one task, and those that wait together share a transaction of the kernel. It gets them straight
//! (`netfilter`), which takes a part of a millisecond; a run of `nft -f -`, which takes several, puts the table in place,
//! adds blocks of addresses, and says what was wrong when the kernel refused. The one design choice to know: an instance
//! is nothing until it is admitted. Traffic between instances needs an entry in `members`, traffic to the outside an entry
//! in `outward` or in `outward_allowed`, so that one whose admission is late or lost is shut in, not let out.
//!
//! ```text
//! instance -> machine    name server on the gateway address, answers to what the machine asked; with bound secrets,
//!                        every other TCP port of that address is the guard; else refused
//! instance -> instance   same organization, both in the private network; else refused
//! instance -> outside    not link-local, metadata, multicast or denied; all, or its allow list, or what names of the
//!                        list led to; masqueraded
//! outside  -> instance   answers only
//! machine  -> instance   everything
//! ```
//!
//! A policy may change while its instance runs. So a connection that an instance with a list opens is marked with the
//! policy it was let through under; when a packet of it shows another mark, it is looked at as a new one would be, and
//! marked anew or cut.
//!
//! What is refused is counted by instance, and by where it went (see `refusals`).

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Stdio;
use std::time::Duration;

use ipnet::Ipv6Net;
use tokio::io::AsyncWriteExt;
use tokio::sync::{mpsc, oneshot};
use tram_types::OrganizationId;

use super::v6::Prefix;
use super::{Error, Ipv4Network};

mod netfilter;
pub(crate) mod v6;

/// A transaction takes milliseconds; one that takes so long hangs.
const NFT_TIMEOUT: Duration = Duration::from_secs(10);
/// Changes that may wait: more starts at once than a machine carries out.
const QUEUE: usize = 1024;
/// Changes in one transaction: keeps one bad run from failing everybody.
const BATCH: usize = 64;

/// Where clouds tell a machine who it is, and give it credentials, outside of the link-local block: Azure, Alibaba,
/// Oracle.
pub(crate) const METADATA: [&str; 3] = ["168.63.129.16", "100.100.100.200", "192.0.0.192"];

/// What names led to, by instance; each element has its time.
const NAMED_SET: &str = "outward_named";
/// Bounds what names may cost the kernel, all instances together.
const NAMED_MAX: u32 = 262_144;
/// Packets refused, by instance.
pub(crate) const REFUSALS_SET: &str = "refusals";
/// As many as a machine has instances, and more.
const REFUSALS_MAX: u32 = 65_536;
/// An instance that was refused nothing for so long is counted from zero again.
pub(crate) const REFUSALS_SECS: u32 = 3600;
/// Packets refused, by instance and by where they went: a sample, since whoever scans fills it.
pub(crate) const REFUSED_SET: &str = "refused";
/// Bounds the sample.
const REFUSED_MAX: u32 = 4096;
/// Long enough to be read a few times, short enough that one scan does not hide the next instance's packets for long.
const REFUSED_SECS: u32 = 60;

/// An instance as the firewall knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) address: Ipv4Addr,
    /// Whose private network it is in, if in any.
    pub(crate) mesh: Option<OrganizationId>,
    /// What it may reach outside. `None`: everything.
    pub(crate) egress: Option<Vec<Ipv4Network>>,
    /// The same by IPv6; means nothing where instances have none.
    pub(crate) egress_v6: Option<Vec<Ipv6Net>>,
    /// Tells its policy from others; means nothing where everything may be reached. Connections are marked with it.
    pub(crate) policy: u32,
    /// Whether secrets of its are bound to hosts, which it reaches by way of the guard.
    pub(crate) guarded: bool,
}

/// What names led to, by instance, and for how long that holds.
pub(crate) type Named = HashMap<Ipv4Addr, Vec<(IpAddr, Duration)>>;

/// What the rules are about.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    /// Unique on this machine for the state directory.
    pub(crate) table: String,
    /// How the names of our interfaces begin.
    pub(crate) interface_prefix: String,
    pub(crate) network: Ipv4Network,
    pub(crate) denied: Vec<Ipv4Network>,
    /// Interfaces that forward only because we asked for it: nothing that comes in there is carried on, but answers
    /// and what another program of this machine translated on purpose.
    pub(crate) uplinks: Vec<String>,
    /// Where the guard of bound secrets listens, on the gateway's address.
    pub(crate) guard_port: u16,
    /// Absent: instances have no IPv6.
    pub(crate) v6: Option<v6::Frame>,
}

impl Frame {
    fn prefix(&self) -> Option<Prefix> {
        self.v6.as_ref().map(|frame| frame.prefix)
    }
}

/// Organizations as small numbers, which nftables can put in a set. Never reused while the process lives.
#[derive(Debug, Default)]
struct Groups {
    numbers: HashMap<OrganizationId, u32>,
    /// Of the IPv6 addresses, if there are any.
    prefix: Option<Prefix>,
}

impl Groups {
    fn number(&mut self, organization: OrganizationId) -> u32 {
        let next = u32::try_from(self.numbers.len()).unwrap_or(u32::MAX - 1) + 1;
        *self.numbers.entry(organization).or_insert(next)
    }
}

/// The running firewall. Dropping it ends its task and leaves the table in place: instances outlive this process.
#[derive(Debug, Clone)]
pub(crate) struct Firewall {
    table: String,
    jobs: mpsc::Sender<Job>,
}

#[derive(Debug)]
struct Job {
    change: Change,
    done: oneshot::Sender<Result<(), Error>>,
}

#[derive(Debug, Clone)]
enum Change {
    Admit(Member),
    /// Another policy for one that was admitted, in one transaction; with what names had led to and no longer do.
    Replace(Member, Vec<IpAddr>),
    Revoke(Member, Vec<IpAddr>),
    /// Lets an instance reach addresses for a time.
    Reach(Ipv4Addr, Vec<(IpAddr, Duration)>),
}

impl Firewall {
    /// Puts the table in place, whole, with these members and no others. Also tells what names had led to for them,
    /// which stays.
    pub(crate) async fn install(frame: &Frame, members: &[Member]) -> Result<(Self, Named), Error> {
        let mut groups = Groups {
            prefix: frame.prefix(),
            ..Groups::default()
        };
        let named = kept_named(frame, members).await;
        let mut script = frame_script(frame);
        let mut lines = Vec::new();
        for member in members {
            lines.extend(elements(member, &mut groups).into_iter().map(Line::Add));
        }
        for (member, found) in &named {
            lines.extend(reach(*member, found, groups.prefix));
        }
        script.push_str(&text(&frame.table, &lines));
        run(&script).await?;
        let (jobs, queue) = mpsc::channel(QUEUE);
        let admitted = members
            .iter()
            .map(|member| (member.address, member.clone()))
            .collect();
        tokio::spawn(work(frame.table.clone(), groups, admitted, queue));
        let firewall = Self {
            table: frame.table.clone(),
            jobs,
        };
        Ok((firewall, named))
    }

    /// Lets an instance out of its shell. Returns when the kernel has it.
    pub(crate) async fn admit(&self, member: Member) -> Result<(), Error> {
        self.change(Change::Admit(member)).await
    }

    /// Gives an instance that was admitted another policy, at once and whole. Connections that it may not have any more
    /// are cut with their next packet. `named` is what [`Firewall::reach`] gave and is taken back.
    pub(crate) async fn replace(&self, member: Member, named: Vec<IpAddr>) -> Result<(), Error> {
        self.change(Change::Replace(member, named)).await
    }

    /// Lets an instance reach these addresses, each for so long from now.
    pub(crate) async fn reach(&self, member: Ipv4Addr, found: Vec<(IpAddr, Duration)>) -> Result<(), Error> {
        self.change(Change::Reach(member, found)).await
    }

    /// What a set of the table holds.
    pub(crate) async fn list(&self, set: &str) -> Result<Vec<serde_json::Value>, Error> {
        list(&self.table, set).await
    }

    /// Takes everything back that [`Firewall::admit`] gave.
    ///
    /// `named` is what [`Firewall::reach`] gave.
    pub(crate) async fn revoke(&self, member: Member, named: Vec<IpAddr>) -> Result<(), Error> {
        self.change(Change::Revoke(member, named)).await
    }

    async fn change(&self, change: Change) -> Result<(), Error> {
        let (done, answer) = oneshot::channel();
        self.jobs
            .send(Job { change, done })
            .await
            .map_err(|_| Error::Closed)?;
        answer.await.map_err(|_| Error::Closed)?
    }

    /// Removes the table.
    pub(crate) async fn remove(&self) -> Result<(), Error> {
        // Adding first makes the removal of a table that is gone succeed.
        let table = &self.table;
        run(&format!("add table inet {table}\ndelete table inet {table}\n")).await
    }
}

/// Members by their address: what the kernel was told last, whatever whoever revokes believes.
type Admitted = HashMap<Ipv4Addr, Member>;

async fn work(table: String, mut groups: Groups, mut admitted: Admitted, mut queue: mpsc::Receiver<Job>) {
    let mut jobs = Vec::with_capacity(BATCH);
    while queue.recv_many(&mut jobs, BATCH).await > 0 {
        let mut changes = Vec::with_capacity(jobs.len());
        // What a name led to, or a policy, for an instance that ended meanwhile is nobody's: the next one with its
        // address must not have it. Whoever waits is told by the dropped answer.
        jobs.retain(|job| {
            let lines = lines(&job.change, &mut groups, &mut admitted);
            let concerns_somebody = lines.is_some();
            changes.extend(lines);
            concerns_somebody
        });
        match apply(&table, changes.concat()).await {
            Ok(()) => {
                for job in jobs.drain(..) {
                    let _gone = job.done.send(Ok(()));
                }
            }
            // One of them spoiled the transaction: each on its own, so that the others get through.
            Err(_) => {
                for (job, lines) in jobs.drain(..).zip(changes) {
                    let _gone = job.done.send(apply(&table, lines).await);
                }
            }
        }
    }
}

/// Carries out a transaction: straight, or by the tool where that cannot be, or to learn what was wrong with it.
async fn apply(table: &str, lines: Vec<Line>) -> Result<(), Error> {
    if lines.is_empty() {
        return Ok(());
    }
    let script = text(table, &lines);
    if let Some(batch) = netfilter::batch(table, &lines) {
        match tokio::task::spawn_blocking(move || netfilter::send(&batch)).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => {
                tracing::debug!(%error, "the kernel refused a change of the firewall, trying by nft")
            }
            Err(error) => tracing::debug!(%error, "a change of the firewall was not tried, trying by nft"),
        }
    }
    run(&script).await
}

/// What is to be told for a change; `None` when it is about nobody (any more).
fn lines(change: &Change, groups: &mut Groups, admitted: &mut Admitted) -> Option<Vec<Line>> {
    Some(match change {
        Change::Admit(member) => {
            admitted.insert(member.address, member.clone());
            elements(member, groups).into_iter().map(Line::Add).collect()
        }
        Change::Replace(member, named) => {
            let before = admitted.insert(member.address, member.clone());
            let Some(before) = before else {
                admitted.remove(&member.address);
                return None;
            };
            let (old, new) = (elements(&before, groups), elements(member, groups));
            let gone = old.iter().filter(|one| !new.contains(one)).cloned();
            let come = new.iter().filter(|one| !old.contains(one)).cloned();
            let mut lines: Vec<Line> = gone.flat_map(Line::remove).chain(come.map(Line::Add)).collect();
            lines.extend(unnamed(member.address, named, groups.prefix));
            lines
        }
        Change::Revoke(member, named) => {
            // The same, unless its policy was replaced and that was not recorded.
            let member = admitted.remove(&member.address).unwrap_or_else(|| member.clone());
            let elements = elements(&member, groups).into_iter();
            elements
                .flat_map(Line::remove)
                .chain(unnamed(member.address, named, groups.prefix))
                .collect()
        }
        Change::Reach(member, found) => {
            admitted.get(member)?;
            reach(*member, found, groups.prefix)
        }
    })
}

/// One order of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Line {
    Add(Element),
    /// For so long.
    AddFor(Element, Duration),
    Delete(Element),
}

impl Line {
    /// `destroy` would do without the `add`, but is newer than the oldest nftables we meet. Adding an element that is
    /// there changes nothing; deleting one that is not there would fail the transaction.
    fn remove(element: Element) -> [Self; 2] {
        [Self::Add(element.clone()), Self::Delete(element)]
    }
}

/// An element of one of the table's sets or maps.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Element {
    set: &'static str,
    key: Vec<Part>,
    /// Of a map.
    value: Option<u32>,
}

/// A part of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Address(Ipv4Addr),
    Mark(u32),
    Block(Ipv4Network),
    Ipv6(Ipv6Addr),
    Ipv6Block(Ipv6Net),
}

impl std::fmt::Display for Part {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address(address) => address.fmt(out),
            Self::Mark(mark) => mark.fmt(out),
            Self::Block(block) => block.fmt(out),
            Self::Ipv6(address) => address.fmt(out),
            Self::Ipv6Block(block) => block.fmt(out),
        }
    }
}

/// The same for the tool.
fn text(table: &str, lines: &[Line]) -> String {
    let mut script = String::new();
    for line in lines {
        let (verb, element, more) = match line {
            Line::Add(element) => ("add", element, None),
            Line::AddFor(element, time) => ("add", element, Some(time)),
            Line::Delete(element) => ("delete", element, None),
        };
        let key: Vec<String> = element.key.iter().map(ToString::to_string).collect();
        let _infallible = write!(
            script,
            "{verb} element inet {table} {} {{ {}",
            element.set,
            key.join(" . ")
        );
        if let (Some(value), "add") = (element.value, verb) {
            let _infallible = write!(script, " : {value}");
        }
        if let Some(time) = more {
            let _infallible = write!(script, " timeout {}s", time.as_secs());
        }
        script.push_str(" }\n");
    }
    script
}

/// Everything that a member is in.
fn elements(member: &Member, groups: &mut Groups) -> Vec<Element> {
    let address = Part::Address(member.address);
    let mut elements = Vec::new();
    let mut element = |set: &'static str, key: &[Part], value: Option<u32>| {
        let key = key.to_vec();
        elements.push(Element { set, key, value });
    };
    if let Some(organization) = member.mesh {
        let group = groups.number(organization);
        element("group_of", &[address], Some(group));
        element("members", &[Part::Mark(group), address], None);
    }
    if member.guarded {
        element("guarded", &[address], None);
    }
    match &member.egress {
        None => element("outward", &[address], None),
        Some(allowed) => {
            element("listed", &[address], None);
            element("policy_of", &[address], Some(member.policy));
            element("policies", &[Part::Mark(member.policy), address], None);
            for network in outermost(allowed) {
                element("outward_allowed", &[address, Part::Block(network)], None);
            }
        }
    }
    if let Some(prefix) = groups.prefix {
        elements.extend(v6::elements(member, prefix));
    }
    elements
}

/// That names led a member to an address; `None` for one of IPv6 where instances have none.
fn led(member: Ipv4Addr, address: IpAddr, prefix: Option<Prefix>) -> Option<Element> {
    match address {
        IpAddr::V4(address) => Some(Element {
            set: NAMED_SET,
            key: vec![Part::Address(member), Part::Address(address)],
            value: None,
        }),
        IpAddr::V6(address) => prefix.map(|prefix| v6::led(member, address, prefix)),
    }
}

/// Takes back what names led to.
fn unnamed(member: Ipv4Addr, named: &[IpAddr], prefix: Option<Prefix>) -> impl Iterator<Item = Line> {
    named
        .iter()
        .filter_map(move |address| led(member, *address, prefix))
        .flat_map(Line::remove)
}

/// An element that is there keeps its time unless it is taken out first; kernels before 6.12 cannot change it.
fn reach(member: Ipv4Addr, found: &[(IpAddr, Duration)], prefix: Option<Prefix>) -> Vec<Line> {
    let lines = |(address, time): &(IpAddr, Duration)| {
        let element = led(member, *address, prefix)?;
        let [add, delete] = Line::remove(element.clone());
        Some([add, delete, Line::AddFor(element, *time)])
    };
    found.iter().filter_map(lines).flatten().collect()
}

/// What names led to before this process, for those that are still here: they must not be shut out by our restart.
async fn kept_named(frame: &Frame, members: &[Member]) -> Named {
    let mut kept = Named::new();
    let sets = [NAMED_SET, v6::NAMED_SET];
    for set in sets.into_iter().take(if frame.v6.is_some() { 2 } else { 1 }) {
        // Without a table, or with one of an older version, there is nothing to keep.
        let listed = list(&frame.table, set).await.unwrap_or_default();
        for element in &listed {
            let read = |index: usize| {
                let text = element.pointer(&format!("/elem/val/concat/{index}"))?.as_str()?;
                text.parse::<IpAddr>().ok()
            };
            let member = match read(0) {
                Some(IpAddr::V4(address)) => Some(address),
                Some(IpAddr::V6(address)) => frame.prefix().and_then(|prefix| prefix.beside(address)),
                None => None,
            };
            let left = element
                .pointer("/elem/expires")
                .and_then(serde_json::Value::as_u64);
            if let (Some(member), Some(address), Some(left @ 1..)) = (member, read(1), left)
                && members.iter().any(|one| {
                    let listed = if address.is_ipv4() {
                        one.egress.is_some()
                    } else {
                        one.egress_v6.is_some()
                    };
                    one.address == member && listed
                })
            {
                kept.entry(member)
                    .or_default()
                    .push((address, Duration::from_secs(left)));
            }
        }
    }
    kept
}

/// Whether a site of this machine has a table with IPv6. One that is gone, or has none, was changed before.
pub(super) async fn another_has_ipv6() -> bool {
    let mark = format!("set {} {{", v6::MARK_SET);
    let listed = nft(&["list", "sets", "inet"], "").await;
    // One that cannot be asked is taken to be there: what it guards stays as it is.
    listed.map_or(true, |said| String::from_utf8_lossy(&said).contains(&mark))
}

/// The elements of a set, as nftables prints them.
async fn list(table: &str, set: &str) -> Result<Vec<serde_json::Value>, Error> {
    let said = nft(&["-j", "list", "set", "inet", table, set], "").await?;
    let unreadable = |message: &str| Error::Firewall {
        message: format!("cannot read the set {set}: {message}"),
        source: None,
    };
    let mut told: serde_json::Value =
        serde_json::from_slice(&said).map_err(|error| unreadable(&error.to_string()))?;
    let sets = told
        .get_mut("nftables")
        .and_then(serde_json::Value::as_array_mut)
        .ok_or_else(|| unreadable("it is not as nftables writes it"))?;
    let elements = sets.iter_mut().find_map(|one| one.pointer_mut("/set/elem"));
    match elements.map(serde_json::Value::take) {
        Some(serde_json::Value::Array(elements)) => Ok(elements),
        // An empty set has no such member.
        _ => Ok(Vec::new()),
    }
}

/// The blocks that are not inside another one: nftables refuses overlapping elements.
fn outermost(networks: &[Ipv4Network]) -> Vec<Ipv4Network> {
    let mut kept: Vec<Ipv4Network> = Vec::new();
    let mut sorted = networks.to_vec();
    sorted.sort_by_key(|network| (network.prefix(), network.first()));
    for network in sorted {
        if !kept.iter().any(|outer| outer.covers(network)) {
            kept.push(network);
        }
    }
    kept
}

/// The table without instances; replaces an older one in the same transaction.
fn frame_script(frame: &Frame) -> String {
    let Frame {
        table,
        interface_prefix,
        network,
        denied,
        uplinks,
        guard_port,
        v6,
    } = frame;
    let gateway = network.gateway();
    let ours = format!("\"{interface_prefix}*\"");
    let v6::Rules {
        sets_and_chains,
        early,
        marked,
        closed: closed_v6,
        from_instance,
        refuse,
        count,
        outgoing,
    } = v6::rules(v6.as_ref(), &ours, NAMED_MAX);
    let denied = [
        "169.254.0.0/16".to_owned(),
        "224.0.0.0/4".to_owned(),
        "255.255.255.255".to_owned(),
        network.to_string(),
    ]
    .into_iter()
    .chain(METADATA.map(str::to_owned))
    .chain(denied.iter().map(ToString::to_string))
    .map(|network| format!("        ip daddr {network} goto refuse\n"))
    .collect::<String>();
    let closed = if uplinks.is_empty() {
        String::new()
    } else {
        let names = uplinks
            .iter()
            .map(|name| format!("\"{name}\""))
            .collect::<Vec<_>>()
            .join(", ");
        // An answer was let through before. Translated is what somebody published, such as a port of a container.
        format!("        iifname {{ {names} }} ct status dnat accept\n        iifname {{ {names} }} drop\n")
    };
    format!(
        r#"add table inet {table}
delete table inet {table}
table inet {table} {{
    map group_of {{ type ipv4_addr : mark; }}
    set members {{ type mark . ipv4_addr; }}
    set outward {{ type ipv4_addr; }}
    set outward_allowed {{ type ipv4_addr . ipv4_addr; flags interval; }}
    set listed {{ type ipv4_addr; }}
    set guarded {{ type ipv4_addr; }}
    map policy_of {{ type ipv4_addr : mark; }}
    set policies {{ type mark . ipv4_addr; }}
    set {NAMED_SET} {{ type ipv4_addr . ipv4_addr; size {NAMED_MAX}; flags timeout; }}
    set {REFUSALS_SET} {{ type ipv4_addr; size {REFUSALS_MAX}; flags dynamic,timeout; }}
    set {REFUSED_SET} {{ type ipv4_addr . ipv4_addr . inet_proto . inet_service; size {REFUSED_MAX}; flags dynamic,timeout; }}
{sets_and_chains}
    chain early {{
        type filter hook prerouting priority raw; policy accept;
{early}        iifname {ours} fib saddr . iif oif 0 drop
        iifname != {{ "lo", {ours} }} ip daddr {gateway} drop
    }}
    chain to_guard {{
        type nat hook prerouting priority dstnat - 5; policy accept;
        iifname {ours} ip saddr @guarded ip daddr {gateway} tcp dport != 53 dnat ip to {gateway}:{guard_port}
    }}
    chain input {{
        type filter hook input priority filter - 5; policy accept;
        iifname {ours} jump to_machine
    }}
    chain to_machine {{
        ct state established,related accept
        ip daddr {gateway} meta l4proto {{ tcp, udp }} th dport 53 ip saddr @outward accept
        ip daddr {gateway} meta l4proto {{ tcp, udp }} th dport 53 ip saddr @listed accept
        ip daddr {gateway} tcp dport {guard_port} ct status dnat ip saddr @guarded accept
        goto refuse
    }}
    chain forward {{
        type filter hook forward priority filter - 5; policy accept;
        iifname {ours} ct state established,related ct direction original ip saddr @listed ct mark . ip saddr != @policies goto look_again
{marked}        ct state established,related accept
        iifname {ours} jump from_instance
        oifname {ours} drop
{closed}{closed_v6}    }}
    chain look_again {{
        ip saddr . ip daddr != @outward_allowed ip saddr . ip daddr != @{NAMED_SET} goto cut
        ct mark set ip saddr map @policy_of
        accept
    }}
    chain from_instance {{
        ct state invalid drop
{from_instance}        ip saddr != @outward ip saddr . ip daddr != @outward_allowed ip saddr . ip daddr != @{NAMED_SET} goto refuse
        ip saddr @listed ct mark set ip saddr map @policy_of
        oifname {ours} goto between
{denied}        accept
    }}
    chain between {{
        meta mark set ip saddr map @group_of meta mark . ip daddr @members meta mark set 0 accept
        goto refuse
    }}
    chain refuse {{
        jump count
{refuse}        reject with icmpx admin-prohibited
    }}
    chain cut {{
        jump count
        meta l4proto tcp reject with tcp reset
        reject with icmpx admin-prohibited
    }}
    chain count {{
        update @{REFUSALS_SET} {{ ip saddr timeout {REFUSALS_SECS}s counter }}
        meta l4proto {{ tcp, udp }} update @{REFUSED_SET} {{ ip saddr . ip daddr . meta l4proto . th dport timeout {REFUSED_SECS}s counter }}
{count}    }}
    chain outgoing {{
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr {network} ip saddr != {gateway} oifname != {{ "lo", {ours} }} masquerade
{outgoing}    }}
}}
"#
    )
}

async fn run(script: &str) -> Result<(), Error> {
    if script.is_empty() {
        return Ok(());
    }
    nft(&["-f", "-"], script).await.map(drop)
}

/// Runs the tool; returns what it printed.
async fn nft(arguments: &[&str], input: &str) -> Result<Vec<u8>, Error> {
    let start = |source| Error::Firewall {
        message: "cannot run nft: install nftables".to_owned(),
        source: Some(source),
    };
    let mut child = tokio::process::Command::new("nft")
        .args(arguments)
        .env("PATH", crate::programs::path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(start)?;
    let work = async {
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes()).await?;
            drop(stdin);
        }
        child.wait_with_output().await
    };
    let output = match tokio::time::timeout(NFT_TIMEOUT, work).await {
        Ok(output) => output.map_err(start)?,
        Err(_) => {
            return Err(Error::Firewall {
                message: "nft did not end in time".to_owned(),
                source: None,
            });
        }
    };
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.lines().next().unwrap_or("no reason given").to_owned();
    Err(Error::Firewall {
        message: format!("nft refused a change: {said}"),
        source: None,
    })
}

#[cfg(test)]
mod tests;
