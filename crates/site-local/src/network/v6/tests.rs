//! Addresses, and what really passes: a machine, its outside and its instances in namespaces of the test's own.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tram_sandbox::netns;

use super::*;
use crate::config::NetworkConfig;
use crate::dns::Gate;
use crate::network::firewall::Member;
use crate::network::{Held, Network, Slot};

#[test]
fn an_address_says_whose_it_is() {
    let prefix = Prefix::of(Path::new("/var/lib/tram/local"));
    let v4 = Ipv4Addr::new(10, 201, 0, 2);
    let address = prefix.address(v4);
    assert!(
        address.is_unique_local() && address.to_string().ends_with("::ac9:2"),
        "{address}"
    );
    assert_eq!(prefix.beside(address), Some(v4));
    assert!(prefix.network().contains(&address));
    assert_eq!(prefix, Prefix::of(Path::new("/var/lib/tram/local")));
    let other = Prefix::of(Path::new("/var/lib/tram2/local"));
    assert_eq!(other.beside(address), None);
    let odd = Ipv6Addr::from(u128::from(address) | 1 << 40);
    assert_eq!(prefix.beside(odd), None, "{odd}");
}

#[test]
fn only_global_addresses_can_be_reached_and_no_detour_to_ipv4() {
    let net = |text: &str| -> Ipv6Net { text.parse().unwrap() };
    for open in [
        "2001:db8::/32",
        "2000::/3",
        "::/0",
        "2606:4700::1111/128",
        "2001::/16",
    ] {
        assert!(is_reachable(&net(open)), "{open}");
    }
    for closed in [
        "::1/128",
        "::/96",
        "::ffff:0:0/96",
        "64:ff9b::/96",
        "64:ff9b:1::/48",
        "2002::/16",
        "2002:c000:204::/48",
        "2001::/32",
        "2001:0:4136::/48",
        "fe80::/10",
        "fec0::/10",
        "fc00::/7",
        "fd00:ec2::254/128",
        "fd20:ce::254/128",
        "ff02::1/128",
        "4000::/3",
    ] {
        assert!(!is_reachable(&net(closed)), "{closed}");
    }
    assert!(is_everything(&net("::/0")) && is_everything(&net("2000::/3")));
    assert!(!is_everything(&net("2000::/4")) && !is_everything(&net("fc00::/7")));
}

/// Set for the process that runs a test in namespaces of its own.
const INSIDE: &str = "TRAM_TEST_INSIDE";
/// Nothing here takes so long on a machine that works.
const PATIENCE: Duration = Duration::from_secs(10);
/// Servers outside: one that lists name, one that a name leads to, one that is denied, one that nobody names.
const LISTED: &str = "2001:db8:1::10";
const NAMED: &str = "2001:db8:1::11";
const DENIED: &str = "2001:db8:2::1";
const OTHER: &str = "2001:db8:1::12";
/// Where no instance may go, although somebody answers there.
const CLOSED: [&str; 10] = [
    "fd00:ec2::254",
    "fd20:ce::254",
    "fd12:3456::1",
    "fec0::1",
    "64:ff9b::c000:202",
    "64:ff9b:1::1",
    "2002:c000:202::1",
    "2001:0:c000:202::1",
    "2001:20::1",
    DENIED,
];
/// The addresses of the machine on its uplink.
const MACHINE: [&str; 2] = ["2001:db8:1::1", "fd77::1"];

/// Runs this test again in a process with a network and a `/run` of its own, where it returns true.
fn inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root");
        return false;
    }
    for tool in ["nft", "ip", "unshare", "python3"] {
        let path = std::env::var_os("PATH").unwrap_or_default();
        if !std::env::split_paths(&path).any(|path| path.join(tool).exists()) {
            println!("skipped: {tool} is not installed");
            return false;
        }
    }
    let done = Command::new("unshare")
        .args(["--net", "--mount", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", &format!("network::v6::tests::{test}"), "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let said = [&done.stdout[..], &done.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(done.status.success() && said.contains("1 passed"), "{said}");
    false
}

fn shell(line: &str) {
    let done = Command::new("sh").args(["-ec", line]).output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{line}: {said}");
}

/// A machine with an uplink, and an outside with servers at every address.
struct World {
    state: tempfile::TempDir,
    outside: std::path::PathBuf,
    /// What came in by UDP.
    heard: Arc<Mutex<BTreeSet<Vec<u8>>>>,
}

impl World {
    fn new() -> Self {
        shell(
            // Without a limit on what is said to one instance, so that no test waits for it.
            "mount -t tmpfs tmpfs /run; ip link set lo up; ip netns add out; sysctl -q -w net.ipv6.icmp.ratelimit=0
             ip link add up0 type veth peer name eth0 netns out
             ip addr add 192.0.2.1/24 dev up0; ip addr add 2001:db8:1::1/64 dev up0 nodad
             ip addr add fd77::1/64 dev up0 nodad
             ip link set up0 up; ip -n out link set lo up; ip -n out link set eth0 up
             ip -n out addr add 192.0.2.2/24 dev eth0; ip -n out addr add 2001:db8:1::2/64 dev eth0 nodad
             ip route add default via 192.0.2.2; ip route add default via 2001:db8:1::2 dev up0
             test -e /proc/sys/net/ipv6/conf/all/force_forwarding || sysctl -q -w net.ipv6.conf.all.forwarding=1",
        );
        for address in [LISTED, NAMED, OTHER].iter().chain(&CLOSED) {
            shell(&format!("ip -n out addr add {address}/128 dev lo"));
            shell(&format!("ip route add {address}/128 via 2001:db8:1::2 dev up0"));
        }
        let world = Self {
            state: tempfile::tempdir().unwrap(),
            outside: "/run/netns/out".into(),
            heard: Arc::default(),
        };
        serve(&world.outside);
        // One for each address, or an answer would come from another one than was asked.
        for address in [LISTED, NAMED, OTHER].iter().chain(&CLOSED) {
            let own = SocketAddr::new(address.parse().unwrap(), 53);
            let socket = netns::run_in(&world.outside, || UdpSocket::bind(own).unwrap()).unwrap();
            let heard = Arc::clone(&world.heard);
            std::thread::spawn(move || {
                let mut buffer = vec![0; 65536];
                while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                    heard.lock().unwrap().insert(buffer[..length].to_vec());
                    let _lost = socket.send_to(&buffer[..length.min(16)], from);
                }
            });
        }
        world
    }

    fn config(&self, v6: Ipv6) -> NetworkConfig {
        NetworkConfig {
            addresses: "10.77.0.0/24".parse().unwrap(),
            pool: 0,
            v6,
            denied_v6: vec!["2001:db8:2::/48".parse().unwrap()],
            ..NetworkConfig::default()
        }
    }

    async fn open(&self, v6: Ipv6, held: &[Held]) -> Network {
        Network::open(&self.config(v6), self.state.path(), held)
            .await
            .unwrap()
    }

    /// The address of an instance by IPv6, whoever made it.
    fn address(&self, network: &Network, slot: Slot) -> Ipv6Addr {
        Prefix::of(self.state.path()).address(network.address(slot))
    }
}

/// A server that sends back what it gets, on every address of a namespace.
fn serve(namespace: &Path) {
    let listener = netns::run_in(namespace, || TcpListener::bind("[::]:80").unwrap()).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut buffer = [0; 65536];
                while let Ok(length @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..length]).is_err() {
                        break;
                    }
                }
            });
        }
    });
}

/// An instance: its namespace, and what it does in there.
struct Instance {
    slot: Slot,
    member: Member,
    namespace: std::path::PathBuf,
}

impl Instance {
    async fn new(network: &Network, egress_v6: Option<&[&str]>) -> Self {
        let slot = network.lease().unwrap();
        let blocks = |list: &[&str]| {
            let block = |text: &&str| text.parse::<Ipv6Net>().unwrap();
            list.iter().map(block).collect()
        };
        let member = Member {
            address: network.address(slot),
            mesh: Some(tram_types::OrganizationId::from_uuid(uuid::Uuid::nil())),
            egress: egress_v6.map(|_| Vec::new()),
            egress_v6: egress_v6.map(blocks),
            policy: egress_v6.map_or(0, |list| 7 + u32::try_from(list.len()).unwrap()),
            guarded: false,
        };
        let namespace = network.ensure(slot).await.unwrap();
        network.admit(member.clone()).await.unwrap();
        Self {
            slot,
            member,
            namespace,
        }
    }

    fn held(&self) -> Held {
        Held {
            slot: self.slot,
            member: self.member.clone(),
        }
    }

    /// The same with another list.
    fn with(&self, list: Option<&[&str]>, policy: u32) -> Member {
        let blocks = |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect();
        Member {
            egress_v6: list.map(blocks),
            egress: list.map(|_| Vec::new()),
            policy,
            ..self.member.clone()
        }
    }

    fn connect(&self, address: &str) -> io::Result<TcpStream> {
        let to = SocketAddr::new(address.parse().unwrap(), 80);
        netns::run_in(&self.namespace, || {
            let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            echo(&mut stream, b"x")?;
            Ok(stream)
        })
        .unwrap()
    }

    fn reaches(&self, address: &str) -> bool {
        self.connect(address).is_ok()
    }

    /// Refused, and not by the other side, which listens.
    fn refused(&self, address: &str) {
        let error = self.connect(address).expect_err(address);
        assert!(
            matches!(error.kind(), io::ErrorKind::ConnectionRefused),
            "{address}: {error}"
        );
    }

    /// Sends a datagram to a server that listens everywhere, and waits for its answer.
    fn datagram(&self, address: &str, bytes: &[u8]) -> io::Result<()> {
        let to = SocketAddr::new(address.parse().unwrap(), 53);
        netns::run_in(&self.namespace, || {
            let socket = UdpSocket::bind("[::]:0")?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.connect(to)?;
            socket.send(bytes)?;
            socket.recv(&mut [0; 16]).map(drop)
        })
        .unwrap()
    }

    fn python(&self, script: &str) {
        let done = Command::new("nsenter")
            .arg(format!("--net={}", self.namespace.display()))
            .args(["python3", "-c", script])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{said}");
    }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "{what}");
        std::thread::yield_now();
    }
}

fn echo(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(bytes)?;
    stream.read_exact(&mut vec![0; bytes.len()])
}

/// Inside, with a runtime around it.
fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(test);
}

#[test]
fn an_instance_reaches_what_its_list_names_and_nothing_else() {
    if !inside("an_instance_reaches_what_its_list_names_and_nothing_else") {
        return;
    }
    run(async {
        let world = World::new();
        let network = world.open(Ipv6::Auto, &[]).await;
        assert!(network.has_v6(), "the machine has all that it takes");
        let open = Instance::new(&network, None).await;
        let listed = Instance::new(
            &network,
            Some(&["2001:db8:1::10/128", "2001:db8:2::/48", "fd00::/8"]),
        )
        .await;
        let shut = Instance::new(&network, Some(&[])).await;

        for address in [LISTED, NAMED, OTHER] {
            assert!(open.reaches(address), "{address}");
        }
        assert!(listed.reaches(LISTED));
        listed.datagram(LISTED, b"a question").unwrap();
        // Larger than any packet: it goes in fragments, and comes together before it is judged.
        listed.datagram(LISTED, &[7; 40_000]).unwrap();
        for address in [NAMED, OTHER] {
            listed.refused(address);
            assert!(listed.datagram(address, b"closed").is_err(), "{address}");
        }
        shut.refused(LISTED);
        // A way that carries less than the instance believes: it is told, and sends less.
        shell("ip link set up0 mtu 1400");
        let mut narrow = listed.connect(LISTED).unwrap();
        echo(&mut narrow, &[7; 100_000]).unwrap();
        // Neither the machine nor each other, by any address that is theirs, although all of them listen.
        let theirs = [open.slot, shut.slot].map(|slot| world.address(&network, slot).to_string());
        for served in [
            &open.namespace,
            &shut.namespace,
            Path::new("/proc/thread-self/ns/net"),
        ] {
            serve(served);
        }
        let gateway = Prefix::of(world.state.path())
            .address(network.gateway())
            .to_string();
        for address in [&theirs[0], &gateway] {
            listed.refused(address);
        }
        open.refused(&theirs[1]);
        for address in CLOSED.iter().chain(&MACHINE) {
            open.refused(address);
            listed.refused(address);
        }
        // The machine itself reaches it, and gets its answers.
        let own = SocketAddr::new(theirs[0].parse().unwrap(), 80);
        echo(&mut TcpStream::connect_timeout(&own, PATIENCE).unwrap(), b"x").unwrap();
        let told: Vec<String> = network
            .refusals()
            .await
            .unwrap()
            .into_iter()
            .filter(|(instance, _)| *instance == shut.member.address)
            .map(|(_, line)| line)
            .collect();
        assert_eq!(
            told,
            [format!("1 packet was refused on the way out: TCP [{LISTED}]:80")]
        );

        // What names lead to, for those with a list; nothing else changes.
        let server: IpAddr = NAMED.parse().unwrap();
        assert!(
            network
                .let_reach(listed.member.address, &[(server, Duration::from_secs(60))])
                .await
        );
        assert!(listed.reaches(NAMED));
        shut.refused(NAMED);

        // The next process finds all of it.
        drop(network);
        let held = [open.held(), listed.held(), shut.held()];
        let network = world.open(Ipv6::On, &held).await;
        assert!(listed.reaches(NAMED) && listed.reaches(LISTED) && open.reaches(OTHER));
        listed.refused(OTHER);
        shut.refused(NAMED);
        for one in [open, listed, shut] {
            network.release(one.slot, one.member).await.unwrap();
        }
        network.close().await.unwrap();
        let left = Command::new("sh")
            .args([
                "-c",
                "nft list tables; ip -6 addr show lo; ip -6 route; ls /run/tramontane",
            ])
            .output()
            .unwrap();
        let left = String::from_utf8_lossy(&left.stdout);
        for mine in ["tram_", "fd", "forwarding6"] {
            let strange = left
                .lines()
                .filter(|line| !line.contains("up0") && line.contains(mine));
            assert_eq!(strange.collect::<Vec<_>>(), Vec::<&str>::new());
        }
    });
}

#[test]
fn the_outside_gets_in_by_nothing_but_answers_and_the_machine_is_no_router() {
    if !inside("the_outside_gets_in_by_nothing_but_answers_and_the_machine_is_no_router") {
        return;
    }
    run(async {
        let world = World::new();
        // Another network of the machine, whose outside knows the way.
        shell(
            "ip netns add within; ip link add in0 type veth peer name eth0 netns within
             ip addr add 2001:db8:3::1/64 dev in0 nodad; ip link set in0 up
             ip -n within addr add 2001:db8:3::2/64 dev eth0 nodad; ip -n within link set eth0 up
             ip -n within route add default via 2001:db8:3::1
             ip -n out route add 2001:db8:3::/64 via 2001:db8:1::1
             if test -e /proc/sys/net/ipv6/conf/in0/force_forwarding; then
               sysctl -q -w net.ipv6.conf.in0.force_forwarding=1
             fi",
        );
        serve(Path::new("/run/netns/within"));
        let network = world.open(Ipv6::On, &[]).await;
        let instance = Instance::new(&network, None).await;
        serve(&instance.namespace);
        let own = world.address(&network, instance.slot);
        shell(&format!("ip -n out route add {own}/128 via 2001:db8:1::1"));
        let comes_in = |address: &str| {
            let to = SocketAddr::new(address.parse().unwrap(), 80);
            netns::run_in(&world.outside, || {
                TcpStream::connect_timeout(&to, Duration::from_millis(300)).is_ok()
            })
            .unwrap()
        };
        assert!(!comes_in(&own.to_string()));
        assert!(
            instance.reaches("2001:db8:3::2"),
            "the instance reaches what the machine does"
        );
        let single = Path::new("/proc/sys/net/ipv6/conf/up0/force_forwarding");
        if single.exists() {
            assert_eq!(std::fs::read_to_string(single).unwrap(), "1\n");
            assert!(!comes_in("2001:db8:3::2"), "it forwards only because we asked");
        }
        network.release(instance.slot, instance.member).await.unwrap();
        network.close().await.unwrap();
        if single.exists() {
            assert_eq!(std::fs::read_to_string(single).unwrap(), "0\n", "as it was");
        }
    });
}

#[test]
fn a_policy_is_changed_while_connections_are_open() {
    if !inside("a_policy_is_changed_while_connections_are_open") {
        return;
    }
    run(async {
        let world = World::new();
        let network = world.open(Ipv6::On, &[]).await;
        let instance = Instance::new(&network, None).await;
        let (mut kept, mut cut) = (
            instance.connect(LISTED).unwrap(),
            instance.connect(OTHER).unwrap(),
        );
        let change = async |list: Option<&[&str]>, policy| {
            network.replace(instance.with(list, policy), false).await.unwrap();
        };
        change(Some(&["2001:db8:1::10/128"]), 2).await;
        let error = echo(&mut cut, b"x").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
        for (list, policy) in [
            (Some(&["2001:db8:1::/64"][..]), 3),
            (None, 0),
            (Some(&["2001:db8:1::10/128"]), 4),
        ] {
            change(list, policy).await;
            echo(&mut kept, b"x").unwrap();
        }
        instance.refused(OTHER);
        // What a name led to goes with the list.
        let found = (NAMED.parse().unwrap(), Duration::from_secs(60));
        assert!(network.let_reach(instance.member.address, &[found]).await);
        let mut named = instance.connect(NAMED).unwrap();
        change(Some(&[]), 5).await;
        for stream in [&mut kept, &mut named] {
            let error = echo(stream, b"x").unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
        }
        instance.refused(NAMED);
        instance.refused(LISTED);
    });
}

/// What a program with every right in its own namespace may send: frames of its own making.
const FRAMES: &str = r#"
import socket, struct
def address(text): return socket.inet_pton(socket.AF_INET6, text)
raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
raw.bind(("eth0", 0))
own_hardware = raw.getsockname()[4]
def checksum(source, to, kind, body):
    data = address(source) + address(to) + struct.pack("!IHBB", len(body), 0, 0, kind) + body
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    while total >> 16: total = (total & 0xffff) + (total >> 16)
    return ~total & 0xffff
def udp(source, to, payload):
    head = struct.pack("!HHHH", 4444, 53, 8 + len(payload), 0)
    return head[:6] + struct.pack("!H", checksum(source, to, 17, head + payload)) + payload
def icmp(source, to, kind, body):
    head = struct.pack("!BBH", kind, 0, 0)
    return struct.pack("!BBH", kind, 0, checksum(source, to, 58, head + body)) + body
def send(source, to, kind, body):
    head = struct.pack("!IHBB", 6 << 28, len(body), kind, 255) + address(source) + address(to)
    raw.send(bytes.fromhex("0254fffffffe") + own_hardware + b"\x86\xdd" + head + body)
"#;

#[test]
fn forged_sources_headers_and_neighbours_lead_nowhere() {
    if !inside("forged_sources_headers_and_neighbours_lead_nowhere") {
        return;
    }
    run(async {
        let world = World::new();
        let network = world.open(Ipv6::On, &[]).await;
        let victim = Instance::new(&network, None).await;
        let instance = Instance::new(&network, Some(&["2001:db8:1::10/128"])).await;
        let own = world.address(&network, instance.slot);
        let theirs = world.address(&network, victim.slot);
        let gateway = Prefix::of(world.state.path()).address(network.gateway());
        let machines = "ip -6 neigh show nud permanent; ip -6 route; ip -6 addr";
        let before = Command::new("sh").args(["-c", machines]).output().unwrap().stdout;
        instance.datagram(LISTED, b"first").unwrap();
        shell(&format!(
            "ip netns exec out nft 'table inet errors {{ chain seen {{ type filter hook prerouting priority raw; \
             ip6 daddr {LISTED} icmpv6 type destination-unreachable counter; \
             ip6 daddr != {LISTED} icmpv6 type destination-unreachable counter; }}; }}'"
        ));
        instance.python(&format!(
            r#"{FRAMES}
own, theirs, gateway, to, other = "{own}", "{theirs}", "{gateway}", "{LISTED}", "{OTHER}"
def option(kind): return struct.pack("!BB", 17, 0) + b"\x01\x04\0\0\0\0"
# Somebody else's addresses: another instance's, the machine's, link-local ones, outside's, none.
for source in (theirs, gateway, "2001:db8:1::1", "2001:db8:9::9", "fe80::1", "::", "::ffff:10.77.0.2", "ff02::1"):
    send(source, to, 17, udp(source, to, b"forged from " + source.encode()))
# Headers in between, on a connection that is open too.
for kind in (0, 60):
    send(own, to, kind, option(kind) + udp(own, to, b"behind options"))
routing = lambda kind, last: struct.pack("!BBBBI", 17, 2, kind, 1, 0) + address(last)
for kind in (0, 2, 4):
    send(own, to, 43, routing(kind, other) + udp(own, other, b"by a routing header"))
    send(own, other, 43, routing(kind, to) + udp(own, to, b"by a routing header"))
# Fragments that come together to something refused, and one that never does.
body = udp(own, other, b"in fragments" * 10)
for to_, body in ((other, body), (to, option(60) + udp(own, to, b"options in fragments"))):
    kind = 17 if to_ == other else 60
    for offset, more in ((0, 1), (16, 0)):
        part = body[offset:offset + 16] if more else body[offset:]
        send(own, to_, 44, struct.pack("!BBHI", kind, 0, offset | more, 7) + part)
send(own, other, 44, struct.pack("!BBHI", 17, 0, 0, 9) + udp(own, other, b"atomic fragment"))
# Packets in packets.
inner = lambda source, to, body: struct.pack("!IHBB", 6 << 28, len(body), 17, 64) + address(source) + address(to) + body
send(own, to, 41, inner(own, other, udp(own, other, b"in a packet")))
# To the link, and to addresses that hold one of IPv4.
for where in ("ff02::1", "ff0e::1", "fe80::1", "::ffff:192.0.2.2", "::192.0.2.2"):
    send(own, where, 17, udp(own, where, b"to " + where.encode()))
# Neighbours and routers that are none; an error about nothing, with a packet of an open connection in it.
target = lambda which: b"\0\0\0\0" + address(which)
for source in (own, "fe80::1", gateway):
    send(source, "ff02::1", 58, icmp(source, "ff02::1", 134, struct.pack("!BBHII", 64, 0, 1800, 0, 0)))
    for which in (theirs, gateway, "2001:db8:1::2"):
        claim = struct.pack("!I", 0x20000000) + address(which) + b"\2\1" + own_hardware
        send(source, gateway, 58, icmp(source, gateway, 136, claim))
        send(source, gateway, 58, icmp(source, gateway, 137, b"\0" * 4 + address(which) + address("2001:db8:5::5")))
send(own, to, 17, udp(own, to, b"a flow"))
flow = inner(to, own, struct.pack("!HHHH", 53, 4444, 8, 0))
for where in (to, other, "fd00:ec2::254"):
    send(own, where, 58, icmp(own, where, 1, b"\0" * 4 + flow))
"#
        ));
        instance.datagram(LISTED, b"last").unwrap();
        let heard = world.heard.lock().unwrap().clone();
        let heard: Vec<_> = heard.iter().map(|bytes| String::from_utf8_lossy(bytes)).collect();
        assert_eq!(heard, ["a flow", "first", "last"]);
        let errors = || {
            let list = "ip netns exec out nft list chain inet errors seen | grep -o 'packets [0-9]*'";
            let listed = Command::new("sh").args(["-c", list]).output().unwrap();
            let listed = String::from_utf8(listed.stdout).unwrap();
            listed.lines().map(|line| line != "packets 0").collect::<Vec<_>>()
        };
        until("an error about its own flow comes through", || errors()[0]);
        assert_eq!(errors(), [true, false], "and to nobody else");
        let after = Command::new("sh").args(["-c", machines]).output().unwrap().stdout;
        assert_eq!(
            String::from_utf8_lossy(&after),
            String::from_utf8_lossy(&before),
            "the machine believes nothing of it"
        );
        assert!(victim.reaches(OTHER), "the neighbour is not disturbed");
        // Only echo requests go out of what is no TCP and no UDP: a question for the name of a machine does not.
        network.refusals().await.unwrap();
        let before = network.refused().packets;
        instance.python(&format!(
            "{FRAMES}\nfor _ in range(3): send('{own}', '{LISTED}', 58, icmp('{own}', '{LISTED}', 139, bytes(16)))"
        ));
        let begun = Instant::now();
        while network.refused().packets < before + 3 {
            assert!(begun.elapsed() < PATIENCE, "each is refused");
            network.refusals().await.unwrap();
        }
        let pings = |address: &str| {
            let line = format!(
                "nsenter --net={} python3 -c '
import socket, struct
ping = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM, 58)
ping.settimeout(5)
ping.connect((\"{address}\", 0))
ping.send(struct.pack(\"!BBHHH\", 128, 0, 0, 1, 1))
ping.recv(64)'",
                instance.namespace.display()
            );
            Command::new("sh")
                .args(["-c", &line])
                .output()
                .unwrap()
                .status
                .success()
        };
        assert!(pings(LISTED) && !pings(OTHER));
    });
}

#[test]
fn without_ipv6_there_is_none_and_what_was_there_is_gone() {
    if !inside("without_ipv6_there_is_none_and_what_was_there_is_gone") {
        return;
    }
    run(async {
        let world = World::new();
        let network = world.open(Ipv6::On, &[]).await;
        let before = Instance::new(&network, None).await;
        assert!(before.reaches(OTHER));
        drop(network);
        let network = world.open(Ipv6::Off, &[before.held()]).await;
        let after = Instance::new(&network, None).await;
        let silent = netns::run_in(&before.namespace, || {
            let to = SocketAddr::new(OTHER.parse().unwrap(), 80);
            TcpStream::connect_timeout(&to, Duration::from_millis(300)).is_err()
        });
        assert!(silent.unwrap(), "nothing of it passes any more");
        let none = after.connect(OTHER).unwrap_err();
        assert!(
            matches!(
                none.kind(),
                io::ErrorKind::NetworkUnreachable | io::ErrorKind::AddrNotAvailable
            ),
            "{none}"
        );
        let table = Command::new("sh")
            .args(["-c", "nft list ruleset; ip -6 addr show dev lo"])
            .output()
            .unwrap();
        let table = String::from_utf8_lossy(&table.stdout);
        assert!(
            table.contains("meta nfproto != ipv4 drop") && !table.contains("ip6"),
            "{table}"
        );
        assert!(!table.contains("inet6 fd"), "{table}");
        assert!(!Path::new("/run/tramontane/forwarding6.json").exists());
        assert!(
            !network
                .let_reach(after.member.address, &[(OTHER.parse().unwrap(), PATIENCE)])
                .await
                || !after.reaches(OTHER)
        );
    });
}
