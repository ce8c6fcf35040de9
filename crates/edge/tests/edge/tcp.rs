//! Public TCP ports.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tram_types::routing::{RoutingTable, Service, State, TcpPort};

use crate::harness::*;

/// Reads to the end, then answers with what it read, reversed, and closes.
async fn reverser() -> std::net::SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.expect("accepts");
            tokio::spawn(async move {
                let mut bytes = Vec::new();
                let _gone = stream.read_to_end(&mut bytes).await;
                bytes.reverse();
                let _gone = stream.write_all(&bytes).await;
            });
        }
    });
    address
}

fn with_port(mut source: RoutingTable, public_port: u16) -> RoutingTable {
    let service_id = source.services[0].id;
    source.tcp_ports.push(TcpPort {
        public_port,
        service_id,
        port: PORT,
    });
    source
}

async fn ask(port: u16, text: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port))
        .await
        .expect("the port is open");
    stream.write_all(text.as_bytes()).await.expect("writes");
    stream.shutdown().await.expect("closes its half");
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer))
        .await
        .expect("in time")
        .expect("reads");
    answer
}

#[tokio::test]
async fn ports_open_and_close_with_the_table_and_halves_close_apart() {
    let edge = Fixture::start();
    let port = nobody().await.port();
    let ready = service(State::Ready, &[reverser().await]);
    edge.apply(with_port(table(1, ready.clone()), port));
    assert_eq!(ask(port, "stressed").await, "desserts");
    edge.apply(table(2, ready));
    let deadline = std::time::Instant::now() + PATIENCE;
    while TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
        assert!(std::time::Instant::now() < deadline, "the port is still open");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_connection_wakes_a_sleeper_and_counts_as_in_flight() {
    let edge = Fixture::start();
    let port = nobody().await.port();
    let sleeping = service(State::Sleeping, &[]);
    edge.apply(with_port(table(1, sleeping.clone()), port));
    let asking = tokio::spawn(async move { ask(port, "abc").await });
    until("it waits", || {
        metric(&edge.handle.metrics(), "tram_edge_queued", "") == Some(1.0)
    })
    .await;
    assert_eq!(
        metric(&edge.handle.metrics(), "tram_edge_wakes_total", ""),
        Some(1.0)
    );
    let awake = Service {
        state: State::Ready,
        endpoints: vec![endpoint(reverser().await)],
        ..sleeping
    };
    edge.apply(with_port(table(2, awake), port));
    assert_eq!(asking.await.expect("no panic"), "cba");
    let open = TcpStream::connect(("127.0.0.1", port)).await.expect("open");
    let in_flight = || metric(&edge.handle.metrics(), "tram_edge_in_flight", "");
    until("it is in flight", || in_flight() == Some(1.0)).await;
    drop(open);
    until("it is not", || in_flight() == Some(0.0)).await;
}

#[tokio::test]
async fn connections_are_logged_and_their_bytes_counted_as_they_pass() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (log, mut config) = (dir.path().join("access.log"), config(dir.path()));
    config.access_log = tram_edge::AccessLog::File(log.clone());
    let edge = Fixture::with(dir, config);
    let port = nobody().await.port();
    let ready = service(State::Ready, &[reverser().await]);
    edge.apply(with_port(table(1, ready), port));
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("open");
    stream.write_all(b"abc").await.expect("writes");
    until("what passed is counted", || {
        metric(&edge.handle.metrics(), "tram_edge_request_body_bytes_total", "") == Some(3.0)
    })
    .await;
    stream.shutdown().await.expect("closes its half");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("reads");
    assert_eq!(answer, "cba");
    let text = || std::fs::read_to_string(&log).unwrap_or_default();
    until("the connection is logged", || text().ends_with('\n')).await;
    let line: serde_json::Value = serde_json::from_str(&text()).expect("one line");
    assert_eq!(
        (
            &line["protocol"],
            &line["host"],
            &line["status"],
            &line["complete"]
        ),
        (
            &"tcp".into(),
            &format!(":{port}").into(),
            &200.into(),
            &true.into()
        )
    );
    assert_eq!((&line["bytes_in"], &line["bytes_out"]), (&3.into(), &3.into()));
    assert!(line["service_id"].is_string() && line["instance_id"].is_string());
}

#[tokio::test]
async fn a_taken_port_is_reported_and_tried_again() {
    let edge = Fixture::start();
    let holder = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
    let port = holder.local_addr().expect("bound").port();
    let (client, mut events) =
        tram_edge::link::Client::connect(&tram_edge::link::socket_path(edge.dir.path()))
            .await
            .expect("the edge listens");
    let ready = service(State::Ready, &[reverser().await]);
    client
        .push_table(&with_port(table(1, ready), port))
        .await
        .expect("accepted");
    let reported = async {
        loop {
            if let Some(tram_edge::link::Event::Report(report)) = events.next().await
                && let Some(closed) = report.closed_ports.first()
            {
                return closed.clone();
            }
        }
    };
    let closed = tokio::time::timeout(PATIENCE, reported).await.expect("in time");
    assert!(
        closed.public_port == port && closed.reason.contains("is taken"),
        "{closed:?}"
    );
    drop(holder);
    let deadline = std::time::Instant::now() + PATIENCE;
    while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
        assert!(std::time::Instant::now() < deadline, "never opened");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(ask(port, "xy").await, "yx");
}
