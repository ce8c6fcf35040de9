//! Services that sleep lightly: their instances are there and do not answer until they are said to.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use http::StatusCode;
use http_body_util::Full;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tram_edge::link::{self, Client, Event, Events};
use tram_types::routing::{RoutingTable, Service, State, TcpPort};

use crate::harness::*;

async fn linked(edge: &Fixture) -> (Client, Events) {
    let path = link::socket_path(edge.dir.path());
    let linked = Client::connect(&path).await.expect("the edge listens");
    assert!(linked.0.hello().light_sleep);
    linked
}

async fn demand(events: &mut Events) -> link::WakeDemand {
    let demand = async {
        loop {
            match events.next().await.expect("the link is up") {
                Event::Wake(demand) => return demand,
                Event::Report(_) => {}
            }
        }
    };
    tokio::time::timeout(PATIENCE, demand).await.expect("in time")
}

fn instances(service: &Service) -> Vec<uuid::Uuid> {
    service
        .endpoints
        .iter()
        .map(|endpoint| endpoint.instance_id)
        .collect()
}

#[tokio::test]
async fn callers_go_on_by_a_message_and_without_a_new_table() {
    let edge = Fixture::start();
    let sleeping = service(State::Sleeping, &[says("thawed").await]);
    edge.apply(table(1, sleeping.clone()));
    let (client, mut events) = linked(&edge).await;
    let http = edge.http;
    let callers: Vec<_> = (0..20)
        .map(|_| tokio::spawn(async move { get(http, "/").await }))
        .collect();
    assert_eq!(demand(&mut events).await.service_id, sleeping.id);
    let open = client.thawed(sleeping.id, 1, instances(&sleeping)).await;
    assert!(open.expect("the link is up"));
    for caller in callers {
        assert_eq!(caller.await.expect("no panic").text, "thawed");
    }
    // Open for whoever comes later under the same table.
    assert_eq!(get(http, "/").await.text, "thawed");
    assert_eq!(edge.handle.table_version(), 1);
}

#[tokio::test]
async fn a_message_of_another_table_or_about_other_instances_opens_nothing() {
    let edge = Fixture::start();
    let sleeping = service(State::Sleeping, &[says("one").await, says("two").await]);
    edge.apply(table(2, sleeping.clone()));
    let (client, mut events) = linked(&edge).await;
    let http = edge.http;
    let caller = tokio::spawn(async move { get(http, "/").await });
    demand(&mut events).await;
    let one = instances(&sleeping)[..1].to_vec();
    for (version, instances) in [(1, instances(&sleeping)), (3, instances(&sleeping)), (2, one)] {
        let open = client.thawed(sleeping.id, version, instances).await;
        assert!(!open.expect("the link is up"));
    }
    assert_eq!(
        metric(&edge.handle.metrics(), "tram_edge_queued", "shop/web"),
        Some(1.0)
    );
    let open = client.thawed(sleeping.id, 2, instances(&sleeping)).await;
    assert!(open.expect("the link is up"));
    assert_eq!(caller.await.expect("no panic").status, StatusCode::OK);
}

#[tokio::test]
async fn a_newer_table_that_says_sleeping_closes_it_and_who_comes_then_demands_anew() {
    let edge = Fixture::start();
    let sleeping = service(State::Sleeping, &[says("thawed").await]);
    edge.apply(table(1, sleeping.clone()));
    let (client, mut events) = linked(&edge).await;
    let open = client.thawed(sleeping.id, 1, instances(&sleeping)).await;
    assert!(open.expect("the link is up"), "though nobody waits");
    assert_eq!(get(edge.http, "/").await.text, "thawed");
    edge.apply(table(2, sleeping.clone()));
    let http = edge.http;
    let caller = tokio::spawn(async move { get(http, "/").await });
    assert_eq!(demand(&mut events).await.waiting, 1);
    let late = client.thawed(sleeping.id, 1, instances(&sleeping)).await;
    assert!(!late.expect("the link is up"));
    let open = client.thawed(sleeping.id, 2, instances(&sleeping)).await;
    assert!(open.expect("the link is up"));
    assert_eq!(caller.await.expect("no panic").text, "thawed");
}

#[tokio::test]
async fn it_is_quiet_once_it_sleeps_and_the_last_request_is_over() {
    let edge = Fixture::start();
    let (arrived, leave) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (told, wait) = (Arc::clone(&arrived), Arc::clone(&leave));
    let address = upstream(false, move |_| {
        let (told, wait) = (Arc::clone(&told), Arc::clone(&wait));
        async move {
            told.notify_one();
            wait.notified().await;
            http::Response::new(full("done"))
        }
    })
    .await;
    let awake = service(State::Ready, &[address]);
    edge.apply(table(1, awake.clone()));
    let (client, _events) = linked(&edge).await;
    assert!(!client.is_quiet(awake.id).await.expect("up"), "it is awake");
    let http = edge.http;
    let caller = tokio::spawn(async move { get(http, "/").await });
    arrived.notified().await;
    let sleeping = Service {
        state: State::Sleeping,
        ..awake
    };
    edge.apply(table(2, sleeping.clone()));
    assert!(
        !client.is_quiet(sleeping.id).await.expect("up"),
        "a request is under way"
    );
    leave.notify_one();
    assert_eq!(caller.await.expect("no panic").text, "done");
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !client.is_quiet(sleeping.id).await.expect("up") {
        assert!(tokio::time::Instant::now() < deadline, "never quiet");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let open = client.thawed(sleeping.id, 2, instances(&sleeping)).await;
    assert!(open.expect("up"));
    assert!(
        !client.is_quiet(sleeping.id).await.expect("up"),
        "anybody may come in"
    );
}

#[tokio::test]
async fn a_tcp_connection_is_held_and_goes_on_with_its_bytes() {
    let edge = Fixture::start();
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("accepts");
        let mut word = [0; 5];
        stream.read_exact(&mut word).await.expect("the client's bytes");
        stream.write_all(&word).await.expect("an echo");
    });
    let sleeping = service(State::Sleeping, &[address]);
    let port = nobody().await.port();
    edge.apply(RoutingTable {
        tcp_ports: vec![TcpPort {
            public_port: port,
            service_id: sleeping.id,
            port: PORT,
        }],
        ..table(1, sleeping.clone())
    });
    let (client, mut events) = linked(&edge).await;
    let mut stream = TcpStream::connect(("127.0.0.1", port))
        .await
        .expect("the edge listens");
    stream.write_all(b"hello").await.expect("takes bytes");
    demand(&mut events).await;
    let open = client.thawed(sleeping.id, 1, instances(&sleeping)).await;
    assert!(open.expect("up"));
    let mut word = [0; 5];
    stream.read_exact(&mut word).await.expect("the echo");
    assert_eq!(&word, b"hello");
}

#[tokio::test]
async fn only_what_can_be_sent_again_goes_on_a_connection_that_was_idle_in_the_sleep() {
    let edge = Fixture::start();
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connections);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.expect("accepts");
            counted.fetch_add(1, SeqCst);
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                while let Ok(1..) = stream.read(&mut buffer).await {
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                    stream.write_all(answer).await.expect("takes the answer");
                }
            });
        }
    });
    let awake = service(State::Ready, &[address]);
    edge.apply(table(1, awake.clone()));
    // On one connection to the edge, so that one worker has them all.
    let mut sender = connect(edge.http).await;
    let (client, _events) = linked(&edge).await;
    let mut ask = async |method: &str| {
        let request = request("/")
            .method(method)
            .body(Full::default())
            .expect("a request");
        let answer = Answer::read(sender.send_request(request).await.expect("an answer")).await;
        assert_eq!(answer.status, StatusCode::OK);
        connections.load(SeqCst)
    };
    assert_eq!(ask("POST").await, 1);
    assert_eq!(ask("POST").await, 1, "kept");
    for (version, method, expected) in [(2, "GET", 1), (3, "POST", 2)] {
        let sleeping = Service {
            state: State::Sleeping,
            ..awake.clone()
        };
        edge.apply(table(version, sleeping.clone()));
        let open = client.thawed(sleeping.id, version, instances(&sleeping)).await;
        assert!(open.expect("up"));
        assert_eq!(ask(method).await, expected, "{method}");
    }
    assert_eq!(ask("POST").await, 2, "a new one is as good as ever");
}
