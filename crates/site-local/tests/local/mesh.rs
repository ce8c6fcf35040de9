//! Who reaches whom, and by which names.

use std::net::SocketAddr;

use tokio::net::TcpListener;
use tram_site::{InstanceSpec, Site};
use tram_site_local::LocalSite;

use crate::support::*;

#[tokio::test(flavor = "multi_thread")]
async fn services_of_an_organization_find_each_other_and_strangers_do_not() {
    let Some(machine) = Machine::new().await else {
        return;
    };
    let site = machine.open().await;
    let web = machine.spec("shop", "web");
    let api = InstanceSpec {
        organization_id: web.organization_id,
        ..machine.spec("shop", "api")
    };
    let archive = InstanceSpec {
        organization_id: web.organization_id,
        ..machine.spec("archive", "store")
    };
    let stranger = machine.spec("shop", "stranger");
    let sandbox = InstanceSpec {
        organization_id: web.organization_id,
        mesh: false,
        ..machine.spec("shop", "box")
    };
    let web_address = up(&site, &web).await;
    let api_address = up(&site, &api).await;
    for spec in [&archive, &stranger, &sandbox] {
        up(&site, spec).await;
    }
    for name in [
        "web",
        "web.shop",
        "web.shop.internal",
        "web.shop.koyeb",
        &web_address.to_string(),
    ] {
        assert_eq!(fetch(&site, &api, name).await, "it works\n", "{name}");
    }
    assert_eq!(fetch(&site, &archive, "web.shop.internal").await, "it works\n");
    assert_eq!(fetch(&site, &web, "store.archive").await, "it works\n");
    assert_eq!(fetch(&site, &web, &api_address.to_string()).await, "it works\n");

    // By name and by address, strangers and those outside of the private network get nothing.
    for outsider in [&stranger, &sandbox] {
        for host in ["web.shop.internal".to_owned(), web_address.to_string()] {
            let answer = fetch(&site, outsider, &host).await;
            assert!(
                !answer.contains("it works"),
                "{}: {host}: {answer}",
                outsider.service_name
            );
        }
    }
    // An instance reaches itself by its name and address.
    assert_eq!(fetch(&site, &web, "web").await, "it works\n");

    // An instance that ended is not found any more.
    site.stop(web.id, std::time::Duration::ZERO, NEWEST)
        .await
        .unwrap();
    ended(&site, web.id).await;
    assert!(!fetch(&site, &api, "web.shop.internal").await.contains("it works"));
    machine.finish(site).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_machine_is_out_of_reach() {
    let Some(machine) = Machine::new().await else {
        return;
    };
    let site = machine.open().await;
    let spec = machine.spec("shop", "web");
    up(&site, &spec).await;
    let gateway = machine.network.gateway();
    // What the control plane and the edge are: listeners on every address, and on the loopback.
    let everywhere = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let loopback = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (open, closed) = (
        everywhere.local_addr().unwrap().port(),
        loopback.local_addr().unwrap().port(),
    );
    let mut targets = vec![
        SocketAddr::new(gateway.into(), open),
        SocketAddr::new("127.0.0.1".parse().unwrap(), closed),
    ];
    if let Some(own) = own_address() {
        targets.push(SocketAddr::new(own, open));
    }
    for target in targets {
        let line = format!(
            "timeout 20 bash -c 'exec 3<>/dev/tcp/{}/{}' 2>&1",
            target.ip(),
            target.port()
        );
        let (said, code) = shell(&site, spec.id, &line).await;
        assert_eq!(code, 1, "{target} must not answer: {said}");
        assert!(
            said.contains("No route to host") || said.contains("Connection refused"),
            "{target}: {said}"
        );
    }
    let reached = tokio::time::timeout(std::time::Duration::from_millis(100), everywhere.accept()).await;
    assert!(reached.is_err(), "an instance reached the machine");
    // The metadata service of clouds, and addresses of the network that nobody has.
    for target in ["169.254.169.254".to_owned(), machine.network.nth(120).to_string()] {
        let (said, _) = shell(
            &site,
            spec.id,
            &format!("timeout 20 bash -c 'exec 3<>/dev/tcp/{target}/80' 2>&1"),
        )
        .await;
        assert!(said.contains("No route to host"), "{target}: {said}");
    }
    // There is no IPv6 but the loopback.
    let (interfaces, _) = shell(&site, spec.id, "ip -6 addr show dev eth0").await;
    assert!(!interfaces.contains("inet6"), "{interfaces}");
    machine.finish(site).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_address_cannot_be_made_up() {
    let Some(machine) = Machine::new().await else {
        return;
    };
    let site = machine.open().await;
    let web = machine.spec("shop", "web");
    let web_address = up(&site, &web).await;
    let stranger = machine.script("sleep 1000");
    start(&site, &stranger).await;
    healthy(&site, stranger.id).await;
    // As somebody who may change addresses: from this machine, in the stranger's namespace.
    let namespace = namespace_of(&site, stranger.id).await;
    let run = |line: &str| {
        let (line, namespace) = (line.to_owned(), namespace.clone());
        tram_sandbox::netns::run_in(namespace, move || {
            std::process::Command::new("sh")
                .args(["-c", &line])
                .output()
                .unwrap()
        })
        .unwrap()
    };
    let forged = machine.network.nth(77);
    assert!(run(&format!("ip addr add {forged}/32 dev eth0")).status.success());
    let heard = run(&format!(
        "busybox ping -c 1 -W 1 -I {forged} {}",
        machine.network.gateway()
    ));
    assert!(
        !heard.status.success(),
        "{}",
        String::from_utf8_lossy(&heard.stdout)
    );
    let heard = run(&format!("busybox ping -c 1 -W 1 -I {forged} {web_address}"));
    assert!(
        !heard.status.success(),
        "{}",
        String::from_utf8_lossy(&heard.stdout)
    );
    machine.finish(site).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_allow_list_holds_and_traffic_in_goes_on() {
    let Some(machine) = Machine::new().await else {
        return;
    };
    let site = machine.open().await;
    let web = machine.spec("shop", "web");
    let web_address = up(&site, &web).await;
    let shut = InstanceSpec {
        organization_id: web.organization_id,
        egress_allow: Some(Vec::new()),
        ..machine.spec("shop", "shut")
    };
    let shut_address = up(&site, &shut).await;
    let some = InstanceSpec {
        organization_id: web.organization_id,
        egress_allow: Some(vec![web_address.to_string(), "2001:db8::/32".to_owned()]),
        ..machine.spec("shop", "some")
    };
    up(&site, &some).await;
    // In works, also from instances; out does not, nor do names.
    assert!(get(shut_address).await.contains("it works"));
    assert_eq!(fetch(&site, &web, "shut.shop.internal").await, "it works\n");
    for host in ["web.shop.internal".to_owned(), web_address.to_string()] {
        assert!(!fetch(&site, &shut, &host).await.contains("it works"), "{host}");
    }
    // What is listed is reached, and nothing else.
    assert_eq!(fetch(&site, &some, &web_address.to_string()).await, "it works\n");
    assert!(
        !fetch(&site, &some, &shut_address.to_string())
            .await
            .contains("it works")
    );
    let mut broken = machine.spec("shop", "broken");
    broken.egress_allow = Some(vec!["nonsense".to_owned()]);
    assert!(site.start(&broken, NEWEST).await.is_err());
    machine.finish(site).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_outside_is_reached_through_the_machine() {
    let Some(machine) = Machine::new().await else {
        return;
    };
    let outside = Outside::new();
    let site = machine.open().await;
    let spec = machine.script("sleep 1000");
    start(&site, &spec).await;
    healthy(&site, spec.id).await;
    // It has a way back to the machine only: masquerading makes this work.
    assert_eq!(fetch(&site, &spec, &outside.address).await, "the outside\n");
    let shut = InstanceSpec {
        egress_allow: Some(vec!["192.0.2.99".to_owned()]),
        ..machine.script("sleep 1000")
    };
    start(&site, &shut).await;
    healthy(&site, shut.id).await;
    let refused = fetch(&site, &shut, &outside.address).await;
    assert!(
        refused.contains("No route to host"),
        "told at once, not after a silence: {refused}"
    );
    // And from there nobody gets in, though a route is there.
    let address = site
        .observe_instance(spec.id)
        .await
        .unwrap()
        .unwrap()
        .address
        .unwrap();
    assert!(!outside.reaches(&address.to_string()));
    drop(outside);
    machine.finish(site).await;
}

/// A network of its own behind a pair of interfaces: what the world is to the machine.
struct Outside {
    name: String,
    interface: String,
    address: String,
    server: Option<std::process::Child>,
    page: tempfile::TempDir,
}

impl Outside {
    fn new() -> Self {
        let pid = std::process::id();
        let (name, interface) = (format!("tramout{pid}"), format!("tro{pid}"));
        let subnet = format!("198.19.{}", pid % 256);
        let page = tempfile::tempdir().unwrap();
        std::fs::write(page.path().join("index.html"), "the outside\n").unwrap();
        let mut outside = Self {
            name,
            interface,
            address: format!("{subnet}.2"),
            server: None,
            page,
        };
        let (name, interface) = (&outside.name, &outside.interface);
        outside.run(&format!(
            "ip netns add {name} && ip link add {interface} type veth peer name eth0 netns {name} && \
             ip addr add {subnet}.1/24 dev {interface} && ip link set {interface} up && \
             ip -n {name} addr add {subnet}.2/24 dev eth0 && ip -n {name} link set eth0 up && \
             ip -n {name} route add default via {subnet}.1"
        ));
        std::fs::write(format!("/proc/sys/net/ipv4/conf/{interface}/forwarding"), "1").unwrap();
        let mut server = std::process::Command::new("ip");
        server
            .args([
                "netns", "exec", name, "busybox", "httpd", "-f", "-p", "8000", "-h",
            ])
            .arg(outside.page.path());
        outside.server = Some(server.spawn().unwrap());
        let deadline = std::time::Instant::now() + PATIENCE;
        while std::net::TcpStream::connect((outside.address.as_str(), 8000)).is_err() {
            assert!(
                std::time::Instant::now() < deadline,
                "the outside does not come up"
            );
        }
        outside
    }

    fn run(&self, line: &str) {
        let output = std::process::Command::new("sh")
            .args(["-c", line])
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{line}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    fn reaches(&self, address: &str) -> bool {
        let ping = format!("ip netns exec {} busybox ping -c 1 -W 1 {address}", self.name);
        std::process::Command::new("sh")
            .args(["-c", &ping])
            .output()
            .unwrap()
            .status
            .success()
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _gone = server.kill();
            let _gone = server.wait();
        }
        let (name, interface) = (&self.name, &self.interface);
        let line = format!("ip link delete {interface}; ip netns delete {name}");
        let _gone = std::process::Command::new("sh").args(["-c", &line]).output();
    }
}

fn own_address() -> Option<std::net::IpAddr> {
    // Nothing is sent: the kernel only chooses the address it would send from.
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.77:9").ok()?;
    Some(socket.local_addr().ok()?.ip())
}

async fn namespace_of(site: &LocalSite, id: tram_types::InstanceId) -> String {
    let address = site.observe_instance(id).await.unwrap().unwrap().address.unwrap();
    let output = std::process::Command::new("sh")
        .args(["-c", "cat /proc/self/mountinfo"])
        .output()
        .unwrap();
    let mounts = String::from_utf8(output.stdout).unwrap();
    // Places count from the begin of the block, and the tests' blocks have 128.
    let last: u32 = address.to_string().rsplit('.').next().unwrap().parse().unwrap();
    let place = last % 128;
    mounts
        .lines()
        .filter_map(|line| line.split_whitespace().nth(4))
        .filter(|path| path.contains("/local/netns/") && path.contains("tram-local-"))
        .filter(|path| path.ends_with(&format!("/{place:x}")))
        .find(|path| {
            let shown = tram_sandbox::netns::run_in(path, || {
                std::process::Command::new("ip").args(["addr"]).output().unwrap()
            });
            shown.is_ok_and(|shown| String::from_utf8_lossy(&shown.stdout).contains(&address.to_string()))
        })
        .unwrap()
        .to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_does_not_fit_is_refused() {
    let Some(machine) = Machine::new().await else {
        return;
    };
    let Some(own) = own_address() else { return };
    let mut config = machine.config();
    config.network.addresses = format!("{own}/16").parse().unwrap();
    let images = tram_image::ImageStore::open(
        machine.state().join("other-images"),
        tram_image::Settings::default(),
    );
    let error = LocalSite::open(config, images.unwrap()).await.unwrap_err();
    let text = format!("{error}: {}", std::error::Error::source(&error).unwrap());
    assert!(text.contains("is in use on this machine"), "{text}");
    // And one that instances of before are in is not left.
    let site = machine.open().await;
    up(&site, &machine.spec("shop", "web")).await;
    drop(site);
    let mut config = machine.config();
    config.network.addresses = "10.99.99.0/24".parse().unwrap();
    let images = tram_image::ImageStore::open(
        machine.state().join("third-images"),
        tram_image::Settings::default(),
    );
    let error = LocalSite::open(config, images.unwrap()).await.unwrap_err();
    let text = std::error::Error::source(&error).unwrap().to_string();
    assert!(
        text.starts_with(&format!("instances run in the network {}", machine.network)),
        "{text}"
    );
    let site = machine.open().await;
    machine.finish(site).await;
}
