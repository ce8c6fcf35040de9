//! Who may talk to whom: one nftables table.
//!
//! The table holds the rules once and the instances in sets, so that a start or an end changes a few elements.
//! Changes go through one task that runs `nft -f -`: each run is one transaction of the kernel, and changes that
//! wait together share a run. The one design choice to know: an instance is nothing until it is admitted. Traffic
//! between instances needs an entry in `members`, traffic to the outside an entry in `outward` or in
//! `outward_allowed`, so that one whose admission is late or lost is shut in, not let out.
//!
//! ```text
//! instance -> machine    name server on the gateway address, answers to what the machine asked; else refused
//! instance -> instance   same organization, both in the private network; else refused
//! instance -> outside    not link-local, metadata, multicast or denied; all, or its allow list, or what names of the
//!                        list led to; masqueraded
//! outside  -> instance   answers only
//! machine  -> instance   everything
//! ```
//!
//! What is refused is counted by instance, and by where it went (see `refusals`).

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::sync::{mpsc, oneshot};
use tram_types::OrganizationId;

use super::{Error, Ipv4Network};

/// A transaction takes milliseconds; one that takes so long hangs.
const NFT_TIMEOUT: Duration = Duration::from_secs(10);
/// Changes that may wait: more starts at once than a machine carries out.
const QUEUE: usize = 1024;
/// Changes in one transaction: keeps one bad run from failing everybody.
const BATCH: usize = 64;

/// Where clouds tell a machine who it is, and give it credentials, outside of the link-local block: Azure, Alibaba,
/// Oracle.
const METADATA: [&str; 3] = ["168.63.129.16", "100.100.100.200", "192.0.0.192"];

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
}

/// What names led to, by instance, and for how long that holds.
pub(crate) type Named = HashMap<Ipv4Addr, Vec<(Ipv4Addr, Duration)>>;

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
}

/// Organizations as small numbers, which nftables can put in a set. Never reused while the process lives.
#[derive(Debug, Default)]
struct Groups {
    numbers: HashMap<OrganizationId, u32>,
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
    Revoke(Member, Vec<Ipv4Addr>),
    /// Lets an instance reach addresses for a time.
    Reach(Ipv4Addr, Vec<(Ipv4Addr, Duration)>),
}

impl Firewall {
    /// Puts the table in place, whole, with these members and no others. Also tells what names had led to for them,
    /// which stays.
    pub(crate) async fn install(frame: &Frame, members: &[Member]) -> Result<(Self, Named), Error> {
        let mut groups = Groups::default();
        let named = kept_named(&frame.table, members).await;
        let mut script = frame_script(frame);
        for member in members {
            script.push_str(&elements("add", &frame.table, member, &mut groups));
        }
        for (member, found) in &named {
            script.push_str(&reach(&frame.table, *member, found));
        }
        run(&script).await?;
        let (jobs, queue) = mpsc::channel(QUEUE);
        let admitted = members.iter().map(|member| member.address).collect();
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

    /// Lets an instance reach these addresses, each for so long from now.
    pub(crate) async fn reach(
        &self,
        member: Ipv4Addr,
        found: Vec<(Ipv4Addr, Duration)>,
    ) -> Result<(), Error> {
        self.change(Change::Reach(member, found)).await
    }

    /// What a set of the table holds.
    pub(crate) async fn list(&self, set: &str) -> Result<Vec<serde_json::Value>, Error> {
        list(&self.table, set).await
    }

    /// Takes everything back that [`Firewall::admit`] gave.
    ///
    /// `named` is what [`Firewall::reach`] gave.
    pub(crate) async fn revoke(&self, member: Member, named: Vec<Ipv4Addr>) -> Result<(), Error> {
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

async fn work(
    table: String,
    mut groups: Groups,
    mut admitted: HashSet<Ipv4Addr>,
    mut queue: mpsc::Receiver<Job>,
) {
    let mut jobs = Vec::with_capacity(BATCH);
    while queue.recv_many(&mut jobs, BATCH).await > 0 {
        // What a name led to for an instance that ended meanwhile is nobody's: the next one with its address must not
        // have it. Whoever waits is told by the dropped answer.
        jobs.retain(|job| match &job.change {
            Change::Admit(member) => {
                admitted.insert(member.address);
                true
            }
            Change::Revoke(member, _) => {
                admitted.remove(&member.address);
                true
            }
            Change::Reach(member, _) => admitted.contains(member),
        });
        let scripts: Vec<String> = jobs
            .iter()
            .map(|job| script(&table, &job.change, &mut groups))
            .collect();
        match run(&scripts.concat()).await {
            Ok(()) => {
                for job in jobs.drain(..) {
                    let _gone = job.done.send(Ok(()));
                }
            }
            // One of them spoiled the transaction: each on its own, so that the others get through.
            Err(_) => {
                for (job, script) in jobs.drain(..).zip(scripts) {
                    let _gone = job.done.send(run(&script).await);
                }
            }
        }
    }
}

fn script(table: &str, change: &Change, groups: &mut Groups) -> String {
    match change {
        Change::Admit(member) => elements("add", table, member, groups),
        // `destroy` would do without the `add`, but is newer than the oldest nftables we meet. Adding an element
        // that is there changes nothing; deleting one that is not there would fail the transaction.
        Change::Revoke(member, named) => {
            let named: String = named
                .iter()
                .map(|address| {
                    let element = format!(
                        "element inet {table} {NAMED_SET} {{ {} . {address} }}",
                        member.address
                    );
                    format!("add {element}\ndelete {element}\n")
                })
                .collect();
            elements("add", table, member, groups) + &elements("delete", table, member, groups) + &named
        }
        Change::Reach(member, found) => reach(table, *member, found),
    }
}

fn elements(verb: &str, table: &str, member: &Member, groups: &mut Groups) -> String {
    let address = member.address;
    let mut script = String::new();
    let mut element = |set: &str, element: String| {
        let _infallible = writeln!(script, "{verb} element inet {table} {set} {{ {element} }}");
    };
    if let Some(organization) = member.mesh {
        let group = groups.number(organization);
        match verb {
            "delete" => element("group_of", address.to_string()),
            _ => element("group_of", format!("{address} : {group}")),
        }
        element("members", format!("{group} . {address}"));
    }
    match &member.egress {
        None => element("outward", address.to_string()),
        Some(allowed) => {
            element("listed", address.to_string());
            for network in outermost(allowed) {
                element("outward_allowed", format!("{address} . {network}"));
            }
        }
    }
    script
}

/// An element that is there keeps its time unless it is taken out first; kernels before 6.12 cannot change it.
fn reach(table: &str, member: Ipv4Addr, found: &[(Ipv4Addr, Duration)]) -> String {
    let mut script = String::new();
    for (address, time) in found {
        let element = format!("element inet {table} {NAMED_SET} {{ {member} . {address}");
        let _infallible = writeln!(
            script,
            "add {element} }}\ndelete {element} }}\nadd {element} timeout {}s }}",
            time.as_secs()
        );
    }
    script
}

/// What names led to before this process, for those that are still here: they must not be shut out by our restart.
async fn kept_named(table: &str, members: &[Member]) -> Named {
    // Without a table, or with one of an older version, there is nothing to keep.
    let listed = list(table, NAMED_SET).await.unwrap_or_default();
    let mut kept = Named::new();
    for element in &listed {
        let read = |index: usize| {
            let text = element.pointer(&format!("/elem/val/concat/{index}"))?.as_str()?;
            text.parse::<Ipv4Addr>().ok()
        };
        let left = element
            .pointer("/elem/expires")
            .and_then(serde_json::Value::as_u64);
        if let (Some(member), Some(address), Some(left @ 1..)) = (read(0), read(1), left)
            && members
                .iter()
                .any(|one| one.address == member && one.egress.is_some())
        {
            kept.entry(member)
                .or_default()
                .push((address, Duration::from_secs(left)));
        }
    }
    kept
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
    } = frame;
    let gateway = network.gateway();
    let ours = format!("\"{interface_prefix}*\"");
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
    set {NAMED_SET} {{ type ipv4_addr . ipv4_addr; size {NAMED_MAX}; flags timeout; }}
    set {REFUSALS_SET} {{ type ipv4_addr; size {REFUSALS_MAX}; flags dynamic,timeout; }}
    set {REFUSED_SET} {{ type ipv4_addr . ipv4_addr . inet_proto . inet_service; size {REFUSED_MAX}; flags dynamic,timeout; }}

    chain early {{
        type filter hook prerouting priority raw; policy accept;
        iifname {ours} meta nfproto != ipv4 drop
        iifname {ours} fib saddr . iif oif 0 drop
        iifname != {{ "lo", {ours} }} ip daddr {gateway} drop
    }}
    chain input {{
        type filter hook input priority filter - 5; policy accept;
        iifname {ours} jump to_machine
    }}
    chain to_machine {{
        ct state established,related accept
        ip daddr {gateway} meta l4proto {{ tcp, udp }} th dport 53 ip saddr @outward accept
        ip daddr {gateway} meta l4proto {{ tcp, udp }} th dport 53 ip saddr @listed accept
        goto refuse
    }}
    chain forward {{
        type filter hook forward priority filter - 5; policy accept;
        ct state established,related accept
        iifname {ours} jump from_instance
        oifname {ours} drop
{closed}    }}
    chain from_instance {{
        ct state invalid drop
        ip saddr != @outward ip saddr . ip daddr != @outward_allowed ip saddr . ip daddr != @{NAMED_SET} goto refuse
        oifname {ours} goto between
{denied}        accept
    }}
    chain between {{
        meta mark set ip saddr map @group_of meta mark . ip daddr @members meta mark set 0 accept
        goto refuse
    }}
    chain refuse {{
        update @{REFUSALS_SET} {{ ip saddr timeout {REFUSALS_SECS}s counter }}
        meta l4proto {{ tcp, udp }} update @{REFUSED_SET} {{ ip saddr . ip daddr . meta l4proto . th dport timeout {REFUSED_SECS}s counter }}
        reject with icmpx admin-prohibited
    }}
    chain outgoing {{
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr {network} ip saddr != {gateway} oifname != {{ "lo", {ours} }} masquerade
    }}
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
mod tests {
    use super::*;

    fn member(mesh: bool, egress: Option<&[&str]>) -> Member {
        Member {
            address: Ipv4Addr::new(10, 1, 0, 2),
            mesh: mesh.then(|| OrganizationId::from_uuid(uuid::Uuid::nil())),
            egress: egress.map(|list| list.iter().map(|text| text.parse().unwrap()).collect()),
        }
    }

    #[test]
    fn a_member_is_admitted_by_elements_alone() {
        let mut groups = Groups::default();
        assert_eq!(
            elements("add", "t", &member(true, None), &mut groups),
            "add element inet t group_of { 10.1.0.2 : 1 }\n\
             add element inet t members { 1 . 10.1.0.2 }\n\
             add element inet t outward { 10.1.0.2 }\n"
        );
        assert_eq!(
            elements("add", "t", &member(false, Some(&[])), &mut groups),
            "add element inet t listed { 10.1.0.2 }\n"
        );
    }

    #[test]
    fn blocks_inside_others_are_left_out() {
        let listed = member(
            false,
            Some(&["10.1.0.0/16", "10.0.0.0/8", "10.0.0.0/8", "192.0.2.1"]),
        )
        .egress
        .unwrap();
        let kept: Vec<String> = outermost(&listed).iter().map(ToString::to_string).collect();
        assert_eq!(kept, ["10.0.0.0/8", "192.0.2.1/32"]);
    }

    #[tokio::test]
    async fn the_kernel_takes_the_table_and_its_changes() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: needs root");
            return;
        }
        let table = format!("tram_test_{}", uuid::Uuid::new_v4().simple());
        let frame = Frame {
            table: table.clone(),
            interface_prefix: "trtest-".to_owned(),
            network: "10.77.0.0/24".parse().unwrap(),
            denied: vec!["192.168.0.0/16".parse().unwrap()],
            uplinks: vec!["eth9".to_owned()],
        };
        let open = member(true, None);
        let (firewall, _) = Firewall::install(&frame, std::slice::from_ref(&open))
            .await
            .unwrap();
        let mut shut = member(true, Some(&["10.0.0.0/8", "10.3.0.0/16"]));
        shut.address = Ipv4Addr::new(10, 77, 0, 3);
        firewall.admit(shut.clone()).await.unwrap();
        let listed = printed(&table).await;
        assert!(listed.contains("10.77.0.3 . 10.0.0.0/8"), "{listed}");
        // What a name led to is let through for a time, and outlives this process and its table.
        let server: Ipv4Addr = "192.0.2.7".parse().unwrap();
        for secs in [100, 3000] {
            let found = vec![(server, Duration::from_secs(secs))];
            firewall.reach(shut.address, found).await.unwrap();
        }
        let stranger = Ipv4Addr::new(10, 77, 0, 9);
        let found = vec![(server, Duration::from_secs(100))];
        assert!(
            firewall.reach(stranger, found).await.is_err(),
            "it was not admitted"
        );
        let (firewall, named) = Firewall::install(&frame, &[open.clone(), shut.clone()])
            .await
            .unwrap();
        let [(kept, left)] = named[&shut.address][..] else {
            panic!("{named:?}");
        };
        assert!(kept == server && left > Duration::from_secs(2900), "{named:?}");
        assert_eq!(firewall.list(NAMED_SET).await.unwrap().len(), 1);
        // Twice, as after a crash between the kernel and the record.
        for _ in 0..2 {
            firewall.revoke(shut.clone(), vec![server]).await.unwrap();
            firewall.revoke(open.clone(), Vec::new()).await.unwrap();
        }
        assert!(
            !printed(&table).await.contains("elements"),
            "{}",
            printed(&table).await
        );
        firewall.remove().await.unwrap();
        firewall.remove().await.unwrap();
        assert_eq!(printed(&table).await, "");
    }

    /// A machine with an uplink and another network, in namespaces of its own. Removed with the value.
    struct Router(String);

    impl Router {
        /// `None`, with the reason printed, where it cannot be.
        fn new() -> Option<Self> {
            for tool in ["nft", "busybox", "ip"] {
                if !std::env::split_paths(&std::env::var_os("PATH")?).any(|path| path.join(tool).exists()) {
                    println!("skipped: {tool} is not installed");
                    return None;
                }
            }
            let name = format!("tramrouter{}", std::process::id());
            let router = Self(name.clone());
            let line = format!(
                "set -e; for n in {name} {name}up {name}in; do ip netns add $n; done; n=0; \
                 for side in up in; do n=$((n + 1)); link=to$side; \
                 ip -n {name} link add $link type veth peer name eth0 netns {name}$side; \
                 ip -n {name} addr add 10.78.$n.1/24 dev $link; ip -n {name} link set $link up; \
                 ip netns exec {name} sysctl -q -w net.ipv4.conf.$link.forwarding=1; \
                 ip -n {name}$side addr add 10.78.$n.2/24 dev eth0; ip -n {name}$side link set eth0 up; \
                 ip -n {name}$side route add default via 10.78.$n.1; done"
            );
            let (made, said) = router.shell(&line, "");
            assert!(made, "{said}");
            Some(router)
        }

        fn shell(&self, line: &str, input: &str) -> (bool, String) {
            let mut child = std::process::Command::new("sh")
                .args(["-c", line])
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes()).unwrap();
            let output = child.wait_with_output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            (output.status.success(), said)
        }

        fn reaches(&self, from: &str, address: &str) -> bool {
            let Self(name) = self;
            let ping = format!("ip netns exec {name}{from} busybox ping -c 1 -W 1 {address}");
            self.shell(&ping, "").0
        }
    }

    impl Drop for Router {
        fn drop(&mut self) {
            let Self(name) = self;
            let line = format!("for n in {name} {name}up {name}in; do ip netns delete $n; done");
            let _gone = self.shell(&line, "");
        }
    }

    #[test]
    fn a_machine_does_not_become_a_router_for_its_uplink() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: needs root");
            return;
        }
        let Some(router) = Router::new() else { return };
        assert!(router.reaches("up", "10.78.2.2"), "it forwards");
        let mut frame = Frame {
            table: "tram_test".to_owned(),
            interface_prefix: "trtest-".to_owned(),
            network: "10.77.0.0/24".parse().unwrap(),
            denied: Vec::new(),
            uplinks: vec!["toup".to_owned()],
        };
        let install = |script: &str| {
            let nft = format!("ip netns exec {} nft -f -", router.0);
            let (done, said) = router.shell(&nft, script);
            assert!(done, "{said}");
        };
        install(&frame_script(&frame));
        assert!(!router.reaches("up", "10.78.2.2"), "only because we asked");
        assert!(router.reaches("in", "10.78.1.2"), "answers come in");
        install(
            "table inet other {\n chain published {\n type nat hook prerouting priority dstnat;\n \
             ip daddr 10.78.9.9 dnat ip to 10.78.2.2\n }\n }\n",
        );
        assert!(router.reaches("up", "10.78.9.9"), "somebody let it in on purpose");
        // It forwarded before us: other programs' affair.
        frame.uplinks.clear();
        install(&frame_script(&frame));
        assert!(router.reaches("up", "10.78.2.2"));
    }

    #[test]
    fn metadata_is_refused_wherever_a_cloud_has_it() {
        let script = frame_script(&Frame {
            table: "t".to_owned(),
            interface_prefix: "tr-".to_owned(),
            network: "10.77.0.0/24".parse().unwrap(),
            denied: Vec::new(),
            uplinks: Vec::new(),
        });
        for address in [
            "169.254.0.0/16",
            "168.63.129.16",
            "100.100.100.200",
            "192.0.0.192",
        ] {
            assert!(
                script.contains(&format!("ip daddr {address} goto refuse")),
                "{address}: {script}"
            );
        }
    }

    async fn printed(table: &str) -> String {
        let output = tokio::process::Command::new("nft")
            .args(["list", "table", "inet", table])
            .output()
            .await
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    }
}
