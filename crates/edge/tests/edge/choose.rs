//! Which instance a request goes to, over which connection, and when it is sent again.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use http::{Method, Response, StatusCode};
use http_body_util::Full;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tram_types::routing::State;

use crate::harness::*;

#[tokio::test]
async fn a_refused_connection_moves_on_to_the_next_instance_with_its_body() {
    let edge = Fixture::start();
    edge.apply(table(
        1,
        service(State::Ready, &[nobody().await, echo(false).await]),
    ));
    for _ in 0..8 {
        let answer = send(
            edge.http,
            request("/")
                .method("POST")
                .body(Full::from("payload"))
                .expect("a request"),
        )
        .await;
        assert_eq!(answer.status, StatusCode::OK);
        assert!(answer.text.ends_with("payload"));
    }
}

/// Answers one request on each connection, then reads the next one and hangs up on it.
async fn hangs_up_on_the_second() -> (std::net::SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let heads = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&heads);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.expect("accepts");
            let counted = Arc::clone(&counted);
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                if matches!(stream.read(&mut buffer).await, Ok(1..)) {
                    counted.fetch_add(1, SeqCst);
                    let _ = stream
                        .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                        .await;
                }
                if matches!(stream.read(&mut buffer).await, Ok(1..)) {
                    counted.fetch_add(1, SeqCst);
                }
            });
        }
    });
    (address, heads)
}

#[tokio::test]
async fn only_repeatable_requests_are_sent_again_when_a_kept_connection_dies() {
    let edge = Fixture::start();
    let (address, heads) = hangs_up_on_the_second().await;
    edge.apply(table(1, service(State::Ready, &[address])));
    let mut sender = connect(edge.http).await;
    let mut ask = async |method: Method, body: &'static str| {
        sender.ready().await.expect("kept");
        let asked = request("/")
            .method(method)
            .body(Full::from(body))
            .expect("a request");
        Answer::read(sender.send_request(asked).await.expect("an answer")).await
    };
    assert_eq!(ask(Method::GET, "").await.status, StatusCode::OK);
    assert_eq!(
        ask(Method::GET, "").await.status,
        StatusCode::OK,
        "sent again on a new connection"
    );
    assert_eq!(heads.load(SeqCst), 3);
    let answer = ask(Method::POST, "x").await;
    assert_eq!(
        (answer.status, answer.code()),
        (StatusCode::BAD_GATEWAY, "bad_answer"),
        "a POST may have been acted on"
    );
    assert_eq!(heads.load(SeqCst), 4);
}

#[tokio::test]
async fn an_answer_that_makes_no_sense_is_not_asked_for_again() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.expect("accepts");
            let count = Arc::clone(&count);
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                let mut first = true;
                while let Ok(1..) = stream.read(&mut buffer).await {
                    count.fetch_add(1, SeqCst);
                    let answer: &[u8] = if std::mem::take(&mut first) {
                        b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
                    } else {
                        b"this is no HTTP\r\n\r\n"
                    };
                    stream.write_all(answer).await.expect("writes");
                }
            });
        }
    });
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut config = config(dir.path());
    config.workers = 1;
    let edge = Fixture::with(dir, config);
    edge.apply(table(1, service(State::Ready, &[address])));
    assert_eq!(get(edge.http, "/").await.status, StatusCode::OK);
    assert_eq!(get(edge.http, "/").await.code(), "bad_answer");
    assert_eq!(asked.load(SeqCst), 2, "once each");
}

#[tokio::test]
async fn kept_connections_are_used_again() {
    let edge = Fixture::start();
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let accepted = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&accepted);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.expect("accepts");
            counted.fetch_add(1, SeqCst);
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                while matches!(stream.read(&mut buffer).await, Ok(1..)) {
                    let _ = stream
                        .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                        .await;
                }
            });
        }
    });
    edge.apply(table(1, service(State::Ready, &[address])));
    let mut sender = connect(edge.http).await;
    for _ in 0..50 {
        sender.ready().await.expect("kept");
        let answer = Answer::read(
            sender
                .send_request(request("/").body(Full::default()).expect("a request"))
                .await
                .expect("an answer"),
        )
        .await;
        assert_eq!(answer.text, "ok");
    }
    assert_eq!(accepted.load(SeqCst), 1);
}

#[tokio::test]
async fn load_goes_where_least_is_in_flight() {
    let edge = Fixture::start();
    let gate = Arc::new(Semaphore::new(0));
    let busy = Arc::clone(&gate);
    let counts = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
    let (slow_counts, fast_counts) = (Arc::clone(&counts), Arc::clone(&counts));
    let slow = upstream(false, move |_| {
        let (busy, counts) = (Arc::clone(&busy), Arc::clone(&slow_counts));
        async move {
            counts[0].fetch_add(1, SeqCst);
            busy.acquire().await.expect("open").forget();
            Response::new(full("slow"))
        }
    })
    .await;
    let fast = upstream(false, move |_| {
        let counts = Arc::clone(&fast_counts);
        async move {
            counts[1].fetch_add(1, SeqCst);
            Response::new(full("fast"))
        }
    })
    .await;
    edge.apply(table(1, service(State::Ready, &[slow, fast])));
    let http = edge.http;
    let mut waiting = Vec::new();
    while counts[0].load(SeqCst) == 0 {
        waiting.push(tokio::spawn(async move { get(http, "/").await }));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for _ in 0..20 {
        assert_eq!(get(http, "/").await.text, "fast");
    }
    gate.add_permits(1000);
    for task in waiting {
        task.await.expect("no panic");
    }
}
