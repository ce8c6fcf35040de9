//! The name server over real sockets, with a name server behind it that counts.

use std::net::SocketAddr;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use tram_types::OrganizationId;

use super::*;

// Sources are told by address, and everything in 127.0.0.0/8 is ours to send from.
const SHOP: Ipv4Addr = Ipv4Addr::new(127, 0, 5, 2);
const DATABASE: Ipv4Addr = Ipv4Addr::new(127, 0, 5, 3);
const SANDBOX: Ipv4Addr = Ipv4Addr::new(127, 0, 5, 4);
const STRANGER: Ipv4Addr = Ipv4Addr::new(127, 0, 5, 5);
const OTHER_DATABASE: Ipv4Addr = Ipv4Addr::new(127, 0, 5, 6);

/// A gate that remembers.
#[derive(Debug, Default)]
struct Open {
    reached: std::sync::Mutex<Vec<(Ipv4Addr, IpAddr, u64)>>,
    refused: std::sync::Mutex<Vec<String>>,
}

#[async_trait::async_trait]
impl Gate for Open {
    async fn let_reach(&self, asker: Ipv4Addr, found: &[(IpAddr, Duration)]) -> bool {
        let found = found
            .iter()
            .map(|(address, time)| (asker, *address, time.as_secs()));
        self.reached.lock().unwrap().extend(found);
        true
    }

    fn refused(&self, _asker: Ipv4Addr, name: &str) {
        self.refused.lock().unwrap().push(name.to_owned());
    }
}

struct Setup {
    server: Server,
    directory: Arc<Directory>,
}

/// Answers every question with its own bytes turned into a response that says NOTIMP, so that the test can tell.
async fn outside() -> SocketAddr {
    let (socket, listener) = loop {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        // A port that is free for one is not always free for the other.
        if let Ok(listener) = TcpListener::bind(socket.local_addr().unwrap()).await {
            break (socket, listener);
        }
    };
    let address = socket.local_addr().unwrap();
    let reply = |question: &[u8]| {
        let mut answer = question.to_vec();
        answer[2] |= 0x80;
        answer[3] = 4;
        answer
    };
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        loop {
            let (length, source) = socket.recv_from(&mut buffer).await.unwrap();
            socket.send_to(&reply(&buffer[..length]), source).await.unwrap();
        }
    });
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let question = read_framed(&mut stream).await.unwrap().unwrap();
            write_framed(&mut stream, &reply(&question)).await.unwrap();
        }
    });
    address
}

async fn setup() -> Setup {
    let directory = Arc::new(Directory::default());
    let (ours, theirs) = (OrganizationId::random(), OrganizationId::random());
    let entry = |organization, app: &str, service: &str, mesh| Entry {
        organization,
        app: app.to_owned(),
        service: service.to_owned(),
        mesh,
        healthy: true,
        outside: Names::All,
        networks: None,
        bound: Arc::default(),
    };
    directory.insert(SHOP, entry(ours, "shop", "web", true));
    directory.insert(DATABASE, entry(ours, "shop", "database", true));
    directory.insert(OTHER_DATABASE, entry(ours, "archive", "database", true));
    directory.insert(SANDBOX, entry(ours, "shop", "sandbox", false));
    directory.insert(STRANGER, entry(theirs, "shop", "web", true));
    let server = start(&directory, outside().await).await;
    Setup { server, directory }
}

async fn start(directory: &Arc<Directory>, outside: SocketAddr) -> Server {
    loop {
        let started = Server::start(
            "127.0.0.1:0".parse().unwrap(),
            Arc::clone(directory),
            vec![outside],
            Arc::new(Open::default()),
        )
        .await;
        match started {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            other => return other.unwrap(),
        }
    }
}

fn question(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::query();
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message.metadata.recursion_desired = true;
    message.to_vec().unwrap()
}

impl Setup {
    async fn raw(&self, from: Ipv4Addr, question: &[u8]) -> Vec<u8> {
        let socket = UdpSocket::bind((from, 0)).await.unwrap();
        socket.send_to(question, self.server.address()).await.unwrap();
        let mut buffer = vec![0; 4096];
        let length = tokio::time::timeout(Duration::from_secs(10), socket.recv(&mut buffer))
            .await
            .unwrap()
            .unwrap();
        buffer.truncate(length);
        buffer
    }

    async fn ask(&self, from: Ipv4Addr, name: &str, kind: RecordType) -> (ResponseCode, Vec<Ipv4Addr>) {
        let answer = Message::from_vec(&self.raw(from, &question(name, kind)).await).unwrap();
        let addresses = answer.answers.iter().map(|record| match &record.data {
            RData::A(address) => address.0,
            other => panic!("{other}"),
        });
        (answer.metadata.response_code, addresses.collect())
    }
}

#[tokio::test]
async fn every_form_of_a_name_leads_to_the_service() {
    let setup = setup().await;
    for name in [
        "database",
        "database.shop",
        "database.shop.internal.",
        "DataBase.shop.koyeb",
    ] {
        let found = setup.ask(SHOP, name, RecordType::A).await;
        assert_eq!(found, (ResponseCode::NoError, vec![DATABASE]), "{name}");
    }
    // The same app first, then the others of the organization.
    assert_eq!(
        setup.ask(OTHER_DATABASE, "database", RecordType::A).await.1,
        [OTHER_DATABASE]
    );
    assert_eq!(setup.ask(OTHER_DATABASE, "web", RecordType::A).await.1, [SHOP]);
}

#[tokio::test]
async fn a_name_that_exists_has_no_ipv6_but_is_not_denied() {
    let setup = setup().await;
    assert_eq!(
        setup.ask(SHOP, "database", RecordType::AAAA).await,
        (ResponseCode::NoError, vec![])
    );
    assert_eq!(
        setup.ask(SHOP, "nobody", RecordType::AAAA).await,
        (ResponseCode::NXDomain, vec![])
    );
}

#[tokio::test]
async fn organizations_do_not_see_each_other() {
    let setup = setup().await;
    assert_eq!(
        setup.ask(STRANGER, "web.shop.internal", RecordType::A).await.1,
        [STRANGER]
    );
    assert_eq!(
        setup
            .ask(STRANGER, "database.shop.internal", RecordType::A)
            .await
            .0,
        ResponseCode::NXDomain
    );
    assert_eq!(
        setup.ask(STRANGER, "database", RecordType::A).await.0,
        ResponseCode::NXDomain
    );
    // Without part in the private network there are no names of it, and nobody finds you.
    assert_eq!(
        setup.ask(SANDBOX, "web.shop.internal", RecordType::A).await.0,
        ResponseCode::NXDomain
    );
    assert_eq!(
        setup.ask(SHOP, "sandbox", RecordType::A).await.0,
        ResponseCode::NXDomain
    );
}

#[tokio::test]
async fn only_healthy_instances_are_found() {
    let setup = setup().await;
    setup.directory.set_healthy(DATABASE, false);
    assert_eq!(
        setup.ask(SHOP, "database.shop", RecordType::A).await.0,
        ResponseCode::NXDomain
    );
    setup.directory.set_healthy(DATABASE, true);
    assert_eq!(
        setup.ask(SHOP, "database.shop", RecordType::A).await.1,
        [DATABASE]
    );
    setup.directory.remove(DATABASE);
    assert_eq!(
        setup.ask(SHOP, "database.shop.internal", RecordType::A).await.0,
        ResponseCode::NXDomain
    );
}

#[tokio::test]
async fn everything_else_is_forwarded_as_it_came() {
    let setup = setup().await;
    for (name, kind) in [
        ("eXample.Org", RecordType::A),
        ("database.elsewhere", RecordType::A),
        ("www.example.org", RecordType::HTTPS),
        ("org", RecordType::NS),
    ] {
        let question = question(name, kind);
        let mut expected = question.clone();
        expected[2] |= 0x80;
        expected[3] = 4;
        assert_eq!(setup.raw(SHOP, &question).await, expected, "{name}");
    }
}

#[tokio::test]
async fn tcp_answers_and_forwards_on_one_connection() {
    let setup = setup().await;
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind((SHOP, 0).into()).unwrap();
    let mut stream = socket.connect(setup.server.address()).await.unwrap();
    for (name, code) in [
        ("database", ResponseCode::NoError),
        ("example.org", ResponseCode::NotImp),
    ] {
        write_framed(&mut stream, &question(name, RecordType::A))
            .await
            .unwrap();
        let answer = read_framed(&mut stream).await.unwrap().unwrap();
        assert_eq!(
            Message::from_vec(&answer).unwrap().metadata.response_code,
            code,
            "{name}"
        );
    }
}

#[tokio::test]
async fn nonsense_gets_no_answer_and_does_no_harm() {
    let setup = setup().await;
    let socket = UdpSocket::bind((SHOP, 0)).await.unwrap();
    let mut response = question("database", RecordType::A);
    response[2] |= 0x80;
    for nonsense in [b"".as_slice(), b"x", &[0xff; 600], &response] {
        socket.send_to(nonsense, setup.server.address()).await.unwrap();
    }
    assert_eq!(setup.ask(SHOP, "database", RecordType::A).await.1, [DATABASE]);
}

#[tokio::test]
async fn a_silent_outside_is_a_failure_not_a_hang() {
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let directory = Arc::new(Directory::default());
    directory.insert(SHOP, alone(Names::All));
    let server = start(&directory, silent.local_addr().unwrap()).await;
    let setup = Setup { server, directory };
    assert_eq!(
        setup.ask(SHOP, "example.org", RecordType::A).await.0,
        ResponseCode::ServFail
    );
}

#[tokio::test]
async fn one_instance_cannot_use_up_what_is_for_all() {
    let setup = setup().await;
    let connect = |from: Ipv4Addr| {
        let to = setup.server.address();
        async move {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind((from, 0).into()).unwrap();
            socket.connect(to).await.unwrap()
        }
    };
    let ask = async |stream: &mut TcpStream| {
        write_framed(stream, &question("database", RecordType::A)).await?;
        read_framed(stream).await
    };
    let mut held = Vec::new();
    for _ in 0..CONNECTIONS_PER_INSTANCE_MAX {
        let mut stream = connect(STRANGER).await;
        ask(&mut stream).await.unwrap().unwrap();
        held.push(stream);
    }
    let mut refused = connect(STRANGER).await;
    assert!(
        !matches!(ask(&mut refused).await, Ok(Some(_))),
        "closed without an answer"
    );
    ask(&mut connect(SHOP).await).await.unwrap().unwrap();
    drop(held);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !matches!(ask(&mut connect(STRANGER).await).await, Ok(Some(_))) {
        assert!(tokio::time::Instant::now() < deadline, "its share comes back");
    }
}

#[test]
fn a_share_comes_back_when_it_is_dropped() {
    let shares = Shares::new(2);
    let (one, other) = (IpAddr::V4(SHOP), IpAddr::V4(STRANGER));
    let held = [shares.take(one), shares.take(one)];
    assert!(held.iter().all(Option::is_some) && shares.take(one).is_none());
    assert!(shares.take(other).is_some(), "everybody has their own");
    drop(held);
    assert!(shares.take(one).is_some());
    assert!(shares.lock().is_empty(), "nobody is remembered for nothing");
}

/// A service in an organization of its own.
fn alone(outside: Names) -> Entry {
    Entry {
        organization: OrganizationId::random(),
        app: "app".to_owned(),
        service: "service".to_owned(),
        mesh: true,
        healthy: true,
        outside,
        networks: None,
        bound: Arc::default(),
    }
}

/// Where every name leads by IPv6.
const SERVER_V6: std::net::Ipv6Addr = std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x80);

/// Answers every question with an alias and the address it leads to, of the family that is asked for.
async fn world(address: Ipv4Addr, ttl: u32) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let listening = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        loop {
            let (length, source) = socket.recv_from(&mut buffer).await.unwrap();
            let question = Message::from_vec(&buffer[..length]).unwrap();
            let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
            let alias = Name::from_ascii("elsewhere.example.net.").unwrap();
            let asked = question.queries[0].name().clone();
            let to_address = match question.queries[0].query_type() {
                RecordType::AAAA => RData::AAAA(SERVER_V6.into()),
                _ => RData::A(address.into()),
            };
            let to_alias = RData::CNAME(hickory_proto::rr::rdata::CNAME(alias.clone()));
            answer.queries = question.queries;
            answer.answers = vec![
                hickory_proto::rr::Record::from_rdata(asked, 300, to_alias),
                hickory_proto::rr::Record::from_rdata(alias, ttl, to_address),
            ];
            socket.send_to(&answer.to_vec().unwrap(), source).await.unwrap();
        }
    });
    listening
}

/// A name server with a gate that tells what it was asked for, and a world outside in which every name leads to `server`.
async fn gated(directory: Arc<Directory>, server: Ipv4Addr) -> (Setup, Arc<Open>) {
    let gate = Arc::new(Open::default());
    let running = Server::start(
        "127.0.0.1:0".parse().unwrap(),
        Arc::clone(&directory),
        vec![world(server, 20).await],
        Arc::<Open>::clone(&gate),
    )
    .await
    .unwrap();
    let setup = Setup {
        server: running,
        directory,
    };
    (setup, gate)
}

#[tokio::test]
async fn a_policy_lets_listed_names_be_asked_for_and_reached_and_no_other() {
    use tram_types::egress::Destination;
    let server = Ipv4Addr::new(192, 0, 2, 80);
    let directory = Arc::new(Directory::default());
    let pattern = |text: &str| match Destination::parse(text) {
        Some(Destination::Name(name)) => name,
        other => panic!("{other:?}"),
    };
    let listed = vec![pattern("pypi.org"), pattern("*.pythonhosted.org")];
    directory.insert(SANDBOX, alone(Names::Listed(listed)));
    directory.insert(SHOP, alone(Names::All));
    let (setup, gate) = gated(directory, server).await;
    let code = async |from, name: &str| {
        let answer = setup.raw(from, &question(name, RecordType::A)).await;
        Message::from_vec(&answer).unwrap().metadata.response_code
    };
    for name in ["pypi.org", "PyPI.org.", "files.pythonhosted.org"] {
        assert_eq!(code(SANDBOX, name).await, ResponseCode::NoError, "{name}");
    }
    assert_eq!(*gate.reached.lock().unwrap(), [(SANDBOX, server.into(), 20); 3]);
    // A name of the private network's own kind, one that is not listed, and one that only looks like it.
    for name in [
        "evil.org",
        "pythonhosted.org",
        "pypi.org.evil.net",
        "secret.evil.org",
    ] {
        assert_eq!(code(SANDBOX, name).await, ResponseCode::Refused, "{name}");
    }
    assert_eq!(
        *gate.refused.lock().unwrap(),
        [
            "evil.org",
            "pythonhosted.org",
            "pypi.org.evil.net",
            "secret.evil.org"
        ]
    );
    // Names of services are answered all the same, and without a policy nothing needs to be let through.
    assert_eq!(code(SANDBOX, "service.app").await, ResponseCode::NoError);
    assert_eq!(code(SHOP, "evil.org").await, ResponseCode::NoError);
    assert_eq!(gate.reached.lock().unwrap().len(), 3);
}

#[tokio::test]
async fn listed_names_open_ipv6_too_and_where_one_family_is_open_every_name_may_be_asked_for() {
    use tram_types::egress::Destination;
    let server = Ipv4Addr::new(192, 0, 2, 80);
    let directory = Arc::new(Directory::default());
    let Some(Destination::Name(listed)) = Destination::parse("pypi.org") else {
        panic!("it is a name");
    };
    directory.insert(SANDBOX, alone(Names::Listed(vec![listed.clone()])));
    directory.insert(SHOP, alone(Names::AllOpening(vec![listed])));
    let (setup, gate) = gated(directory, server).await;
    let opened = async |from, name: &str, kind| {
        gate.reached.lock().unwrap().clear();
        let answer = setup.raw(from, &question(name, kind)).await;
        let code = Message::from_vec(&answer).unwrap().metadata.response_code;
        let reached = gate.reached.lock().unwrap().clone();
        (code, reached)
    };
    for from in [SANDBOX, SHOP] {
        for (kind, address) in [
            (RecordType::A, server.into()),
            (RecordType::AAAA, SERVER_V6.into()),
        ] {
            let expected = (ResponseCode::NoError, vec![(from, address, 20)]);
            assert_eq!(opened(from, "pypi.org", kind).await, expected, "{kind}");
        }
    }
    for kind in [RecordType::A, RecordType::AAAA] {
        let refused = (ResponseCode::Refused, vec![]);
        assert_eq!(opened(SANDBOX, "evil.org", kind).await, refused, "{kind}");
        let asked = (ResponseCode::NoError, vec![]);
        assert_eq!(
            opened(SHOP, "evil.org", kind).await,
            asked,
            "asked for, and opens nothing"
        );
    }
}

#[tokio::test]
async fn a_bound_host_leads_to_the_guard_by_its_ipv4_address_and_by_nothing_else() {
    let server = Ipv4Addr::new(192, 0, 2, 80);
    let directory = Arc::new(Directory::default());
    let mut entry = alone(Names::All);
    entry.bound = vec![tram_site::secrets::BoundSecret {
        id: tram_types::SecretId::random(),
        hosts: vec!["api.example.org".to_owned()],
    }]
    .into();
    directory.insert(SHOP, entry);
    directory.insert(DATABASE, alone(Names::All));
    let server_of_names = start(&directory, world(server, 20).await).await;
    let guard = match server_of_names.address().ip() {
        IpAddr::V4(address) => address,
        IpAddr::V6(address) => panic!("{address}"),
    };
    let setup = Setup {
        server: server_of_names,
        directory,
    };
    for name in ["api.example.org", "API.Example.ORG."] {
        let answer = setup.raw(SHOP, &question(name, RecordType::A)).await;
        assert_eq!(
            outside::addresses(&answer),
            [(guard.into(), Duration::from_secs(5))],
            "{name}"
        );
        for kind in [
            RecordType::AAAA,
            RecordType::HTTPS,
            RecordType::CNAME,
            RecordType::TXT,
        ] {
            let answer = setup.raw(SHOP, &question(name, kind)).await;
            let answer = Message::from_vec(&answer).unwrap();
            assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
            assert!(answer.answers.is_empty(), "{kind}");
        }
    }
    for (from, name) in [
        (SHOP, "example.org"),
        (SHOP, "v1.api.example.org"),
        (DATABASE, "api.example.org"),
    ] {
        let answer = setup.raw(from, &question(name, RecordType::A)).await;
        assert_eq!(outside::addresses(&answer)[0].0, server, "{name}");
    }
}

#[tokio::test]
async fn what_the_guard_carries_ends_with_the_instance_and_with_its_policy() {
    let directory = Directory::default();
    let mut entry = alone(Names::All);
    assert!(directory.guarded(SHOP).is_none());
    entry.bound = vec![tram_site::secrets::BoundSecret {
        id: tram_types::SecretId::random(),
        hosts: vec!["api.example.org".to_owned()],
    }]
    .into();
    directory.insert(SHOP, entry.clone());
    let first = directory.guarded(SHOP).unwrap();
    // It is told of again when it runs.
    directory.insert(SHOP, entry.clone());
    assert!(!first.over.is_cancelled());
    let (listed, other) = (Ipv4Addr::new(192, 0, 2, 80), Ipv4Addr::new(192, 0, 2, 81));
    assert!(first.may_reach("api.example.org", other));
    let networks = vec![crate::network::Ipv4Network::containing(listed, 32)];
    directory.set_outside(SHOP, Names::Listed(Vec::new()), Some(networks.into()));
    assert!(first.over.is_cancelled());
    let second = directory.guarded(SHOP).unwrap();
    assert!(second.may_reach("api.example.org", listed) && !second.may_reach("api.example.org", other));
    // A list that lets every name be asked for opens none.
    directory.set_outside(SHOP, Names::All, Some(Vec::new().into()));
    assert!(
        !directory
            .guarded(SHOP)
            .unwrap()
            .may_reach("api.example.org", listed)
    );
    let third = directory.guarded(SHOP).unwrap();
    directory.remove(SHOP);
    assert!(third.over.is_cancelled() && directory.guarded(SHOP).is_none());
}
