//! Forwarding over HTTP/1.1: what instances see, bodies, cancellation, limits.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc};
use tram_edge::AccessLog;
use tram_types::routing::{BasicAuth, Host, RoutingKey, Security, State};

use crate::harness::*;

#[tokio::test]
async fn a_request_goes_through_and_the_instance_sees_who_asked() {
    let edge = Fixture::start();
    edge.apply(table(1, service(State::Ready, &[echo(false).await])));
    let asked = request("/a?b=c")
        .header("x-request-id", "mine-1")
        .header("x-forwarded-host", "evil")
        .body(Full::from("hello"))
        .expect("a request");
    let answer = send(edge.http, asked).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.headers["x-request-id"], "mine-1");
    for line in [
        "GET /a?b=c",
        "host: app.test",
        "x-forwarded-for: 127.0.0.1",
        "x-forwarded-host: app.test",
        "x-forwarded-proto: http",
        "x-request-id: mine-1",
        "content-length: 5",
        "hello",
    ] {
        assert!(
            answer.text.lines().any(|seen| seen == line),
            "{line} in {}",
            answer.text
        );
    }
}

#[tokio::test]
async fn prefixes_are_removed_and_routing_keys_lead() {
    let edge = Fixture::start();
    let (web, api) = (
        service(State::Ready, &[echo(false).await]),
        service(State::Ready, &[echo(false).await]),
    );
    let mut source = table(1, web.clone());
    Arc::make_mut(&mut source.hosts[0])
        .routes
        .push(route("/api", api.id));
    source.public_hosts.push("box.test".into());
    source.routing_keys.push(Arc::new(RoutingKey {
        key: "k1".into(),
        routes: vec![route("/koyeb-sandbox/", api.id), route("/", web.id)],
    }));
    source.hosts.push(Arc::new(Host {
        name: "box.test".into(),
        routes: vec![],
    }));
    source.services.push(api.into());
    edge.apply(source);
    assert!(
        get(edge.http, "/api/list?x=1")
            .await
            .text
            .starts_with("GET /list?x=1\n")
    );
    assert!(get(edge.http, "/api").await.text.starts_with("GET /\n"));
    assert!(get(edge.http, "/apis").await.text.starts_with("GET /apis\n"));
    let by_path = http::Request::builder()
        .uri("/r/k1//test.html")
        .header("host", "box.test")
        .body(Full::default())
        .expect("a request");
    assert!(
        send(edge.http, by_path)
            .await
            .text
            .starts_with("GET /test.html\n")
    );
    let by_header = http::Request::builder()
        .uri("/koyeb-sandbox/health")
        .header("host", "box.test")
        .header("x-routing-key", "k1")
        .body(Full::default())
        .expect("a request");
    let answer = send(edge.http, by_header).await;
    assert!(
        answer.text.starts_with("GET /health\n") && !answer.text.contains("x-routing-key"),
        "{}",
        answer.text
    );
}

#[tokio::test]
async fn a_large_body_streams_both_ways() {
    const CHUNK: usize = 64 * 1024;
    const CHUNKS: usize = 512;
    let edge = Fixture::start();
    let mirror = upstream(false, |request| async move {
        let (sender, mut received) = mpsc::channel::<Bytes>(2);
        let mut incoming = request.into_body();
        tokio::spawn(async move {
            while let Some(Ok(frame)) = incoming.frame().await {
                if let Ok(data) = frame.into_data()
                    && sender.send(data).await.is_err()
                {
                    return;
                }
            }
        });
        let frames = futures_util::stream::poll_fn(move |cx| {
            received
                .poll_recv(cx)
                .map(|data| data.map(|data| Ok(Frame::data(data))))
        });
        Response::new(BodyExt::boxed(StreamBody::new(frames)))
    })
    .await;
    edge.apply(table(1, service(State::Ready, &[mirror])));
    let stream = TcpStream::connect(edge.http).await.expect("listens");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream))
            .await
            .expect("HTTP/1.1");
    tokio::spawn(connection);
    let frames = futures_util::stream::iter((0..CHUNKS).map(|index| {
        Ok::<_, std::convert::Infallible>(Frame::data(Bytes::from(vec![
            u8::try_from(index % 251)
                .expect("small");
            CHUNK
        ])))
    }));
    let response = sender
        .send_request(
            request("/")
                .method("POST")
                .body(StreamBody::new(frames))
                .expect("a request"),
        )
        .await
        .expect("an answer");
    let mut body = response.into_body();
    let (mut total, mut sum) = (0usize, 0u64);
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.expect("whole").into_data() {
            total += data.len();
            sum += data.iter().map(|byte| u64::from(*byte)).sum::<u64>();
        }
    }
    assert_eq!(total, CHUNK * CHUNKS);
    assert_eq!(
        sum,
        (0..CHUNKS)
            .map(|index| u64::try_from(index % 251 * CHUNK).expect("small"))
            .sum::<u64>()
    );
}

#[tokio::test]
async fn a_slow_reader_holds_the_instance_back() {
    let edge = Fixture::start();
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&sent);
    let flood = upstream(false, move |_| {
        let counted = Arc::clone(&counted);
        async move {
            let frames = futures_util::stream::iter(0..2048).map_frames(counted);
            Response::new(BodyExt::boxed(StreamBody::new(frames)))
        }
    })
    .await;
    edge.apply(table(1, service(State::Ready, &[flood])));
    let mut client = TcpStream::connect(edge.http).await.expect("listens");
    client
        .write_all(b"GET / HTTP/1.1\r\nhost: app.test\r\n\r\n")
        .await
        .expect("writes");
    // Nothing is read. What the instance can send is what fits into the buffers on the way, far from all of it.
    let mut last = usize::MAX;
    loop {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let now = sent.load(SeqCst);
        if now == last && now > 0 {
            break;
        }
        last = now;
    }
    assert!(
        last < 1024,
        "{last} of 2048 chunks of 64 KiB went out with nobody reading"
    );
    let mut buffer = vec![0; 1 << 20];
    while sent.load(SeqCst) <= last {
        assert!(client.read(&mut buffer).await.expect("reads") > 0);
    }
}

trait MapFrames {
    fn map_frames(
        self,
        counted: Arc<AtomicUsize>,
    ) -> impl futures_util::Stream<Item = Result<Frame<Bytes>, std::convert::Infallible>> + Send + Sync;
}

impl<S: futures_util::Stream<Item = i32> + Send + Sync> MapFrames for S {
    fn map_frames(
        self,
        counted: Arc<AtomicUsize>,
    ) -> impl futures_util::Stream<Item = Result<Frame<Bytes>, std::convert::Infallible>> + Send + Sync {
        futures_util::StreamExt::map(self, move |_| {
            counted.fetch_add(1, SeqCst);
            Ok(Frame::data(Bytes::from(vec![7; 64 * 1024])))
        })
    }
}

/// Counts how many of its futures were dropped.
struct OnDrop(Arc<AtomicUsize>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.fetch_add(1, SeqCst);
    }
}

#[tokio::test]
async fn a_client_that_leaves_is_noticed_by_the_instance_before_and_within_an_answer() {
    let edge = Fixture::start();
    let (arrived, dropped) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let (gate, count) = (Arc::clone(&arrived), Arc::clone(&dropped));
    let stuck = upstream(false, move |request| {
        let (gate, guard) = (Arc::clone(&gate), OnDrop(Arc::clone(&count)));
        async move {
            gate.add_permits(1);
            if request.uri().path() == "/never" {
                let _guard = guard;
                std::future::pending::<()>().await;
            } else {
                let frames = futures_util::stream::unfold((guard, false), |(guard, begun)| async move {
                    if begun {
                        std::future::pending::<()>().await;
                    }
                    Some((
                        Ok::<_, std::convert::Infallible>(Frame::data(Bytes::from("data: 1\n\n"))),
                        (guard, true),
                    ))
                });
                return Response::new(BodyExt::boxed(StreamBody::new(SyncStream(Box::pin(frames)))));
            }
            Response::new(full(""))
        }
    })
    .await;
    edge.apply(table(1, service(State::Ready, &[stuck])));
    for (path, wanted) in [("/never", 1), ("/stream", 2)] {
        let mut client = TcpStream::connect(edge.http).await.expect("listens");
        client
            .write_all(format!("GET {path} HTTP/1.1\r\nhost: app.test\r\n\r\n").as_bytes())
            .await
            .expect("writes");
        arrived.acquire().await.expect("open").forget();
        if path == "/stream" {
            let mut seen = String::new();
            while !seen.contains("data: 1") {
                let mut buffer = [0; 1024];
                let read = client.read(&mut buffer).await.expect("reads");
                assert!(read > 0);
                seen.push_str(&String::from_utf8_lossy(&buffer[..read]));
            }
        }
        drop(client);
        until("the instance saw the client leave", || {
            dropped.load(SeqCst) == wanted
        })
        .await;
    }
    until("nothing is in flight", || {
        metric(&edge.handle.metrics(), "tram_edge_in_flight", "shop/web") == Some(0.0)
    })
    .await;
}

/// A stream polled by one task at a time, as bodies are.
struct SyncStream<S>(std::pin::Pin<Box<S>>);

// Only `&mut self` reaches the stream, so sharing a reference to it shares nothing.
impl<S: futures_util::Stream> futures_util::Stream for SyncStream<S> {
    type Item = S::Item;
    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<S::Item>> {
        self.0.as_mut().poll_next(cx)
    }
}

#[tokio::test]
async fn a_body_of_unknown_length_goes_with_any_method() {
    let edge = Fixture::start();
    edge.apply(table(1, service(State::Ready, &[echo(false).await])));
    let text = raw(
        edge.http,
        b"GET /search HTTP/1.1\r\nhost: app.test\r\ntransfer-encoding: chunked\r\n\r\n5\r\nquery\r\n0\r\n\r\n",
    )
    .await;
    assert!(
        text.contains("GET /search\n") && text.contains("\n\nquery"),
        "{text}"
    );
}

#[tokio::test]
async fn a_client_that_leaves_before_the_answer_is_in_the_accounts() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (log, mut config) = (dir.path().join("access.log"), config(dir.path()));
    config.access_log = AccessLog::File(log.clone());
    let edge = Fixture::with(dir, config);
    let silent = upstream(false, |_| std::future::pending()).await;
    edge.apply(table(1, service(State::Ready, &[silent])));
    let mut client = TcpStream::connect(edge.http).await.expect("listens");
    client
        .write_all(b"GET /slow HTTP/1.1\r\nhost: app.test\r\n\r\n")
        .await
        .expect("writes");
    let read = |name: &str, labels: &str| metric(&edge.handle.metrics(), name, labels);
    until("it is in flight", || read("tram_edge_in_flight", "") == Some(1.0)).await;
    drop(client);
    until("it is counted", || {
        read("tram_edge_requests_total", "4xx") == Some(1.0)
    })
    .await;
    let text = || std::fs::read_to_string(&log).unwrap_or_default();
    until("it is logged", || text().ends_with('\n')).await;
    let line: serde_json::Value = serde_json::from_str(&text()).expect("one line");
    assert_eq!(
        (
            &line["status"],
            &line["complete"],
            &line["path"],
            &line["by_edge"]
        ),
        (&499.into(), &false.into(), &"/slow".into(), &false.into())
    );
}

#[tokio::test]
async fn the_clock_runs_to_the_first_byte_only() {
    let edge = Fixture::start();
    let slow = upstream(false, |request| async move {
        if request.uri().path() == "/stuck" {
            std::future::pending::<()>().await;
        }
        let frames = futures_util::stream::unfold(0, |sent| async move {
            if sent == 6 {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
            Some((
                Ok::<_, std::convert::Infallible>(Frame::data(Bytes::from("."))),
                sent + 1,
            ))
        });
        Response::new(BodyExt::boxed(StreamBody::new(SyncStream(Box::pin(frames)))))
    })
    .await;
    let mut limited = service(State::Ready, &[slow]);
    limited.request_timeout_ms = 300;
    edge.apply(table(1, limited));
    let begun = Instant::now();
    let answer = get(edge.http, "/stuck").await;
    assert_eq!(
        (answer.status, answer.code()),
        (StatusCode::GATEWAY_TIMEOUT, "request_timeout")
    );
    assert!(begun.elapsed() >= Duration::from_millis(300));
    assert_eq!(
        get(edge.http, "/stream").await.text,
        "......",
        "a stream may take longer than the limit"
    );
}

#[tokio::test]
async fn a_long_upload_is_not_a_slow_instance() {
    let edge = Fixture::start();
    let mut limited = service(State::Ready, &[echo(false).await]);
    limited.request_timeout_ms = 300;
    edge.apply(table(1, limited));
    let mut client = TcpStream::connect(edge.http).await.expect("listens");
    client
        .write_all(b"POST / HTTP/1.1\r\nhost: app.test\r\nconnection: close\r\ncontent-length: 8\r\n\r\n")
        .await
        .expect("writes");
    for _ in 0..8 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        client.write_all(b"x").await.expect("writes");
    }
    let mut text = String::new();
    client.read_to_string(&mut text).await.expect("reads");
    assert!(
        text.starts_with("HTTP/1.1 200") && text.contains("xxxxxxxx"),
        "{text}"
    );
}

#[tokio::test]
async fn one_request_more_than_the_limit_is_refused() {
    let edge = Fixture::start();
    let (arrived, gate) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let (seen, wait) = (Arc::clone(&arrived), Arc::clone(&gate));
    let slow = upstream(false, move |_| {
        let (seen, wait) = (Arc::clone(&seen), Arc::clone(&wait));
        async move {
            seen.add_permits(1);
            wait.acquire().await.expect("open").forget();
            Response::new(full("done"))
        }
    })
    .await;
    let mut small = service(State::Ready, &[slow]);
    small.max_concurrent_requests = 2;
    edge.apply(table(1, small));
    let http = edge.http;
    let first: Vec<_> = (0..2)
        .map(|_| tokio::spawn(async move { get(http, "/").await }))
        .collect();
    arrived.acquire_many(2).await.expect("open").forget();
    let refused = get(http, "/").await;
    assert_eq!(
        (refused.status, refused.code()),
        (StatusCode::SERVICE_UNAVAILABLE, "service_busy")
    );
    assert_eq!(refused.headers["retry-after"], "1");
    gate.add_permits(3);
    for task in first {
        assert_eq!(task.await.expect("no panic").text, "done");
    }
    assert_eq!(get(http, "/").await.text, "done", "there is room again");
}

#[tokio::test]
async fn protected_routes_ask_for_credentials() {
    let edge = Fixture::start();
    let guarded = service(State::Ready, &[says("in").await]);
    let mut source = table(1, guarded);
    Arc::make_mut(&mut source.hosts[0]).routes[0].security = Security {
        basic_auths: vec![BasicAuth {
            username: "ann".into(),
            password: tram_edge::secret::hash("secret"),
        }],
        api_keys: vec![tram_edge::secret::hash("key-1")],
    };
    edge.apply(source);
    let refused = get(edge.http, "/").await;
    assert_eq!(
        (refused.status, refused.code()),
        (StatusCode::UNAUTHORIZED, "unauthorized")
    );
    assert!(
        refused.headers["www-authenticate"]
            .to_str()
            .expect("text")
            .starts_with("Basic")
    );
    for (name, value) in [
        ("authorization", "Basic YW5uOnNlY3JldA=="),
        ("authorization", "Bearer key-1"),
        ("x-api-key", "key-1"),
    ] {
        let asked = request("/")
            .header(name, value)
            .body(Full::default())
            .expect("a request");
        assert_eq!(send(edge.http, asked).await.text, "in", "{name}: {value}");
    }
}

#[tokio::test]
async fn continue_is_answered_when_the_body_is_wanted_and_not_for_a_refusal() {
    let edge = Fixture::start();
    edge.apply(table(1, service(State::Ready, &[echo(false).await])));
    let mut client = TcpStream::connect(edge.http).await.expect("listens");
    client.write_all(b"POST / HTTP/1.1\r\nhost: app.test\r\nexpect: 100-continue\r\nconnection: close\r\ncontent-length: 4\r\n\r\n").await.expect("writes");
    let mut head = [0; 25];
    client.read_exact(&mut head).await.expect("reads");
    assert_eq!(&head, b"HTTP/1.1 100 Continue\r\n\r\n");
    client.write_all(b"body").await.expect("writes");
    let mut text = String::new();
    client.read_to_string(&mut text).await.expect("reads");
    assert!(
        text.starts_with("HTTP/1.1 200") && text.ends_with("body") && !text.contains("expect:"),
        "{text}"
    );
    let refused = raw(
        edge.http,
        b"POST / HTTP/1.1\r\nhost: other.test\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n",
    )
    .await;
    assert!(refused.starts_with("HTTP/1.1 404"), "{refused}");
}

#[tokio::test]
async fn finished_requests_are_logged_without_their_secrets() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("access.log");
    let mut config = config(dir.path());
    config.access_log = AccessLog::File(path.clone());
    let edge = Fixture::with(dir, config);
    edge.apply(table(1, service(State::Ready, &[says("hi").await])));
    get(edge.http, "/a?token=hush").await;
    let asked = http::Request::builder()
        .uri("/")
        .header("host", "no.test")
        .body(Full::default())
        .expect("a request");
    send(edge.http, asked).await;
    let read = || std::fs::read_to_string(&path).unwrap_or_default();
    until("two lines are written", || read().lines().count() == 2).await;
    let lines: Vec<serde_json::Value> = read()
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(
        (
            lines[0]["status"].as_u64(),
            lines[0]["path"].as_str(),
            lines[0]["bytes_out"].as_u64()
        ),
        (Some(200), Some("/a"), Some(2))
    );
    assert_eq!(
        (lines[1]["status"].as_u64(), lines[1]["by_edge"].as_bool()),
        (Some(404), Some(true))
    );
    assert!(!read().contains("hush"));
    let metrics = edge.handle.metrics();
    assert_eq!(
        metric(&metrics, "tram_edge_requests_total", "class=\"2xx\""),
        Some(1.0)
    );
    assert_eq!(metric(&metrics, "tram_edge_unrouted_total", ""), Some(1.0));
    assert_eq!(
        metric(&metrics, "tram_edge_time_to_first_byte_seconds_count", ""),
        Some(1.0)
    );
}

#[tokio::test]
async fn a_table_swapped_under_load_loses_nothing() {
    let edge = Fixture::start();
    let (one, two) = (says("one").await, says("two").await);
    let base = service(State::Ready, &[one]);
    edge.apply(table(1, base.clone()));
    let http = edge.http;
    let clients: Vec<_> = (0..8)
        .map(|_| {
            tokio::spawn(async move {
                let mut sender = connect(http).await;
                for _ in 0..300 {
                    sender.ready().await.expect("kept");
                    let response = sender
                        .send_request(request("/").body(Full::default()).expect("a request"))
                        .await
                        .expect("an answer");
                    let answer = Answer::read(response).await;
                    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
                }
            })
        })
        .collect();
    let mut version = 2;
    while clients.iter().any(|client| !client.is_finished()) {
        let mut next = base.clone();
        next.endpoints = vec![endpoint(if version % 2 == 0 { two } else { one })];
        edge.apply(table(version, next));
        version += 1;
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    for client in clients {
        client.await.expect("no request was lost");
    }
    assert!(version > 4, "the table did change under them");
    assert_eq!(
        metric(&edge.handle.metrics(), "tram_edge_arrivals_total", ""),
        Some(2400.0),
        "counters outlive tables"
    );
}

#[tokio::test]
async fn a_stopping_edge_finishes_what_it_began() {
    let mut edge = Fixture::start();
    let (arrived, gate) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let (seen, wait) = (Arc::clone(&arrived), Arc::clone(&gate));
    let slow = upstream(false, move |_| {
        let (seen, wait) = (Arc::clone(&seen), Arc::clone(&wait));
        async move {
            seen.add_permits(1);
            wait.acquire().await.expect("open").forget();
            Response::new(full("done"))
        }
    })
    .await;
    edge.apply(table(1, service(State::Ready, &[slow])));
    let http = edge.http;
    let open = tokio::spawn(async move { get(http, "/").await });
    let _idle = TcpStream::connect(http).await.expect("listens");
    arrived.acquire().await.expect("open").forget();
    edge.begin_stop();
    let deadline = Instant::now() + PATIENCE;
    while TcpStream::connect(http).await.is_ok() {
        assert!(Instant::now() < deadline, "still accepts");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    gate.add_permits(1);
    assert_eq!(open.await.expect("no panic").text, "done");
    edge.stop().await;
}
