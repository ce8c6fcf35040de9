//! What the kernel is told, and what it makes of it.

use super::*;

fn member(mesh: bool, egress: Option<&[&str]>) -> Member {
    Member {
        address: Ipv4Addr::new(10, 1, 0, 2),
        mesh: mesh.then(|| OrganizationId::from_uuid(uuid::Uuid::nil())),
        egress: egress.map(|list| list.iter().filter_map(|text| text.parse().ok()).collect()),
        egress_v6: egress.map(|list| list.iter().filter_map(|text| text.parse().ok()).collect()),
        policy: egress.map_or(0, |list| 7 + u32::try_from(list.len()).unwrap()),
        guarded: false,
    }
}

/// A table of a test's own.
fn frame() -> Frame {
    Frame {
        table: format!("tram_test_{}", uuid::Uuid::new_v4().simple()),
        interface_prefix: "trtest-".to_owned(),
        network: "10.77.0.0/24".parse().unwrap(),
        denied: Vec::new(),
        uplinks: Vec::new(),
        guard_port: 9999,
        v6: None,
    }
}

#[test]
fn a_member_is_admitted_by_elements_alone() {
    let mut groups = Groups::default();
    let mut added = |member| {
        let elements = elements(&member, &mut groups).into_iter();
        text("t", &elements.map(Line::Add).collect::<Vec<_>>())
    };
    assert_eq!(
        added(member(true, None)),
        "add element inet t group_of { 10.1.0.2 : 1 }\n\
         add element inet t members { 1 . 10.1.0.2 }\n\
         add element inet t outward { 10.1.0.2 }\n"
    );
    assert_eq!(
        added(member(false, Some(&[]))),
        "add element inet t listed { 10.1.0.2 }\n\
             add element inet t policy_of { 10.1.0.2 : 7 }\n\
             add element inet t policies { 7 . 10.1.0.2 }\n"
    );
}

#[test]
fn ipv6_has_elements_of_its_own_and_none_for_what_cannot_be_reached() {
    let prefix = Prefix::of(std::path::Path::new("/state"));
    let own = prefix.address(Ipv4Addr::new(10, 1, 0, 2));
    let added = |list: Option<&[&str]>| {
        let elements = v6::elements(&member(false, list), prefix).into_iter();
        text("t", &elements.map(Line::Add).collect::<Vec<_>>())
    };
    assert_eq!(added(None), format!("add element inet t outward6 {{ {own} }}\n"));
    let listed = [
        "2001:db8:1::/48",
        "2001:db8::/32",
        "fd00::/8",
        "64:ff9b::/96",
        "2002::/16",
        "10.0.0.0/8",
    ];
    assert_eq!(
        added(Some(&listed)),
        format!(
            "add element inet t listed6 {{ {own} }}\n\
             add element inet t policy_of6 {{ {own} : 13 }}\n\
             add element inet t policies6 {{ 13 . {own} }}\n\
             add element inet t outward_allowed6 {{ {own} . 2001:db8::/32 }}\n"
        )
    );
}

#[test]
fn without_ipv6_the_table_knows_nothing_of_it() {
    let script = frame_script(&frame());
    assert!(
        script.contains("meta nfproto != ipv4 drop"),
        "what is no IPv4 goes nowhere: {script}"
    );
    assert!(!script.contains("ip6") && !script.contains("ipv6"), "{script}");
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
    let frame = Frame {
        denied: vec!["192.168.0.0/16".parse().unwrap()],
        uplinks: vec!["eth9".to_owned()],
        ..frame()
    };
    let table = frame.table.clone();
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
    let server: IpAddr = "192.0.2.7".parse().unwrap();
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

#[tokio::test]
async fn the_kernel_takes_elements_without_the_tool() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root");
        return;
    }
    let prefix = Prefix::of(std::path::Path::new("/state"));
    let frame = Frame {
        v6: Some(v6::Frame {
            prefix,
            denied: vec!["2001:db8:7::/48".parse().unwrap()],
            uplinks: vec!["eth9".to_owned()],
        }),
        ..frame()
    };
    let table = frame.table.clone();
    let (firewall, _) = Firewall::install(&frame, &[]).await.unwrap();
    let mut groups = Groups {
        prefix: Some(prefix),
        ..Groups::default()
    };
    let shut = member(true, Some(&[]));
    let mut all = elements(&member(true, None), &mut groups);
    let more = elements(&shut, &mut groups);
    all.extend(more.into_iter().skip(2));
    let server: IpAddr = "192.0.2.7".parse().unwrap();
    let server_v6: IpAddr = "2001:db8::7".parse().unwrap();
    let mut lines: Vec<Line> = all.iter().cloned().map(Line::Add).collect();
    lines.push(Line::AddFor(
        led(shut.address, server, None).unwrap(),
        Duration::from_secs(100),
    ));
    let led_v6 = led(shut.address, server_v6, Some(prefix)).unwrap();
    lines.push(Line::AddFor(led_v6.clone(), Duration::from_secs(100)));
    let own = prefix.address(shut.address).to_string();
    let own = own.as_str();
    let send = |lines: &[Line]| netfilter::send(&netfilter::batch(&table, lines).unwrap());
    // Twice, as after a crash between the kernel and the record.
    for _ in 0..2 {
        send(&lines).unwrap();
        let listed = printed(&table).await;
        for said in [
            "10.1.0.2 : 0x00000001",
            "0x00000001 . 10.1.0.2",
            "10.1.0.2 : 0x00000007",
            "0x00000007 . 10.1.0.2",
            "10.1.0.2 . 192.0.2.7 timeout 1m40s",
            &format!("{own} : 0x00000007"),
            &format!("0x00000007 . {own}"),
            &format!("{own} . 2001:db8::7 timeout 1m40s"),
        ] {
            assert!(listed.contains(said), "{said} in {listed}");
        }
    }
    // The tool reads what was written, and the other way round.
    run(&text(&table, &lines[..2])).await.unwrap();
    // One that fails takes the others back with it.
    let deleted: Vec<Line> = all.iter().cloned().map(Line::Delete).collect();
    let twice = [&deleted[..], &deleted[..1]].concat();
    assert_eq!(send(&twice).unwrap_err().kind(), std::io::ErrorKind::NotFound);
    assert!(printed(&table).await.contains("10.1.0.2 : 0x00000001"));
    send(&deleted).unwrap();
    send(&Line::remove(led(shut.address, server, None).unwrap())).unwrap();
    send(&Line::remove(led_v6)).unwrap();
    assert!(
        !printed(&table).await.contains("elements"),
        "{}",
        printed(&table).await
    );
    firewall.remove().await.unwrap();
    assert!(send(&lines).is_err(), "there is no table");
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
        guard_port: 9999,
        v6: None,
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
        guard_port: 9999,
        v6: None,
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

#[tokio::test]
async fn a_policy_is_replaced_whole_and_nothing_of_it_is_left() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root");
        return;
    }
    let frame = frame();
    let table = frame.table.clone();
    let (firewall, _) = Firewall::install(&frame, &[]).await.unwrap();
    let stranger = member(true, Some(&["10.0.0.0/8"]));
    assert!(
        firewall.replace(stranger, Vec::new()).await.is_err(),
        "it was not admitted"
    );
    let first = member(true, Some(&["10.0.0.0/8", "192.0.2.0/24"]));
    firewall.admit(first.clone()).await.unwrap();
    let server: IpAddr = "198.51.100.7".parse().unwrap();
    let found = vec![(server, Duration::from_secs(100))];
    firewall.reach(first.address, found.clone()).await.unwrap();
    // Narrower, wider, none, and all kinds of overlap in between.
    let lists: [Option<&[&str]>; 6] = [
        Some(&["10.3.0.0/16", "192.0.2.0/24"]),
        Some(&["10.0.0.0/8"]),
        Some(&["10.0.0.0/9", "10.128.0.0/9"]),
        None,
        Some(&[]),
        Some(&["192.0.2.128/25"]),
    ];
    for list in lists {
        let new = member(true, list);
        firewall.replace(new.clone(), vec![server]).await.unwrap();
        let mut groups = Groups::default();
        let listed = printed(&table).await;
        for element in elements(&new, &mut groups) {
            let named = element.key.iter().filter(|part| !matches!(part, Part::Mark(_)));
            let key: Vec<String> = named.map(ToString::to_string).collect();
            assert!(listed.contains(&key.join(" . ")), "{key:?}: {listed}");
        }
        let allowed = firewall.list("outward_allowed").await.unwrap().len();
        assert_eq!(allowed, list.map_or(0, <[&str]>::len), "{listed}");
        assert_eq!(
            firewall.list("policies").await.unwrap().len(),
            usize::from(list.is_some())
        );
        assert!(firewall.list(NAMED_SET).await.unwrap().is_empty(), "{listed}");
        if list.is_some() {
            firewall.reach(first.address, found.clone()).await.unwrap();
        }
    }
    // Whoever revokes may believe in a policy of before.
    firewall.revoke(first, vec![server]).await.unwrap();
    assert!(
        !printed(&table).await.contains("elements"),
        "{}",
        printed(&table).await
    );
    firewall.remove().await.unwrap();
}
