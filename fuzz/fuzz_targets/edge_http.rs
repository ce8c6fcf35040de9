//! Raw bytes on a client's connection to a whole edge: it answers or hangs up, and neither panics nor hangs.

#![no_main]

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::OnceLock,
    time::Duration,
};

use libfuzzer_sys::fuzz_target;
use tram_edge::{AccessLog, Config, Edge};
use tram_types::routing::{Host, Protocol, Route, RoutingTable, Security, Service, State};
use uuid::Uuid;

/// An edge that has every byte of a request and does not answer or hang up for so long hangs. No instance is
/// behind it, so nothing it does takes time.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

static EDGE: OnceLock<SocketAddr> = OnceLock::new();

/// One edge for all runs, with a host that refuses and one that has no instance.
fn start() -> SocketAddr {
    let state = tempfile::tempdir().expect("a temporary directory");
    let edge = Edge::bind(Config {
        state_dir: state.path().to_owned(),
        http: vec![SocketAddr::from(([127, 0, 0, 1], 0))],
        https: Vec::new(),
        tcp: Vec::new(),
        workers: 1,
        access_log: AccessLog::File("/dev/null".into()),
        ..Config::loopback(state.path(), 0, 0)
    })
    .expect("an edge");
    let mut table = RoutingTable {
        version: 1,
        base_domain: "localhost".into(),
        public_hosts: vec!["localhost".into()],
        ..RoutingTable::default()
    };
    for (name, state) in [("a", State::Paused), ("b", State::Ready)] {
        let service_id = Uuid::new_v4();
        table.services.push(Service::new(service_id, name, state));
        table.hosts.push(Host {
            name: name.into(),
            routes: vec![Route {
                prefix: "/".into(),
                service_id,
                port: 80,
                protocol: Protocol::Http,
                security: Security::default(),
            }],
        });
    }
    edge.handle().apply(table).expect("a sound table");
    let address = edge.addresses().http[0];
    std::thread::spawn(move || {
        let _state = state;
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime")
            .block_on(edge.serve(std::future::pending()))
    });
    address
}

fuzz_target!(|data: &[u8]| {
    let address = *EDGE.get_or_init(start);
    let mut client = TcpStream::connect(address).expect("the edge accepts");
    client.set_read_timeout(Some(ANSWER_TIMEOUT)).expect("a timeout");
    client.set_write_timeout(Some(ANSWER_TIMEOUT)).expect("a timeout");
    // It may hang up in the middle of nonsense.
    let _sent = client
        .write_all(data)
        .and_then(|()| client.shutdown(Shutdown::Write));
    let mut answer = Vec::new();
    if let Err(error) = client.read_to_end(&mut answer) {
        assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "the edge hangs");
    }
});
