//! HTTP/2, gRPC's trailers, WebSockets and event streams.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message;
use tram_types::routing::{Protocol, RoutingTable, State};

use crate::harness::*;

fn over_http2(mut source: RoutingTable) -> RoutingTable {
    Arc::make_mut(&mut source.hosts[0]).routes[0].protocol = Protocol::Http2;
    source
}

async fn h2_client(edge: std::net::SocketAddr) -> hyper::client::conn::http2::SendRequest<Full<Bytes>> {
    let stream = TcpStream::connect(edge).await.expect("listens");
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .expect("prior knowledge");
    tokio::spawn(connection);
    sender
}

#[tokio::test]
async fn http2_comes_in_with_prior_knowledge_and_goes_on_as_http1() {
    let edge = Fixture::start();
    edge.apply(table(1, service(State::Ready, &[echo(false).await])));
    let mut client = h2_client(edge.http).await;
    let asked = Request::builder()
        .method("POST")
        .uri("http://app.test/a?b")
        .body(Full::from("hello"))
        .expect("a request");
    let answer = Answer::read(client.send_request(asked).await.expect("an answer")).await;
    assert!(
        answer.text.starts_with("POST /a?b\n")
            && answer.text.contains("host: app.test")
            && answer.text.ends_with("hello"),
        "{}",
        answer.text
    );
}

#[tokio::test]
async fn the_crumbs_of_a_cookie_are_one_line_again_over_http1() {
    let edge = Fixture::start();
    edge.apply(table(1, service(State::Ready, &[echo(false).await])));
    let asked = Request::builder()
        .uri("http://app.test/")
        .header("cookie", "a=1")
        .header("cookie", "b=2; c=3")
        .header("cookie", "d=4")
        .body(Full::default())
        .expect("a request");
    let mut client = h2_client(edge.http).await;
    let answer = Answer::read(client.send_request(asked).await.expect("an answer")).await;
    let cookies: Vec<&str> = answer
        .text
        .lines()
        .filter(|line| line.starts_with("cookie"))
        .collect();
    assert_eq!(cookies, ["cookie: a=1; b=2; c=3; d=4"]);
}

#[tokio::test]
async fn trailers_pass_both_ways_over_http1() {
    let edge = Fixture::start();
    let server = upstream(false, |request| async move {
        let body = request.into_body().collect().await.expect("a whole body");
        let sum = body.trailers().and_then(|all| all.get("x-sum")).cloned();
        let trailers = HeaderMap::from_iter([(
            http::HeaderName::from_static("x-seen"),
            sum.unwrap_or(HeaderValue::from_static("none")),
        )]);
        let frames = [Frame::data(body.to_bytes()), Frame::trailers(trailers)].map(Ok::<_, Infallible>);
        let mut response = Response::new(BodyExt::boxed(StreamBody::new(futures_util::stream::iter(
            frames,
        ))));
        response
            .headers_mut()
            .insert("trailer", HeaderValue::from_static("x-seen"));
        response
    })
    .await;
    edge.apply(table(1, service(State::Ready, &[server])));
    let text = raw(
        edge.http,
        b"POST / HTTP/1.1\r\nhost: app.test\r\nte: trailers\r\nconnection: te\r\ntrailer: x-sum\r\n\
          transfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nx-sum: 42\r\n\r\n",
    )
    .await;
    assert!(text.to_ascii_lowercase().contains("\r\nx-seen: 42\r\n"), "{text}");
}

#[tokio::test]
async fn more_requests_than_an_http2_instance_takes_on_one_connection_go_on_more() {
    const STREAMS: u32 = 10;
    const ASKED: usize = 35;
    let mut source = over_http2(table(1, service(State::Ready, &[])));
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let arrived = Arc::new(tokio::sync::Barrier::new(ASKED));
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("accepts");
            let arrived = Arc::clone(&arrived);
            let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
                let arrived = Arc::clone(&arrived);
                async move {
                    if request.uri().path() != "/warm" {
                        arrived.wait().await;
                    }
                    Ok::<_, Infallible>(Response::new(full("all are here")))
                }
            });
            let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            builder.max_concurrent_streams(STREAMS);
            tokio::spawn(builder.serve_connection(TokioIo::new(stream), service));
        }
    });
    Arc::make_mut(&mut source.services[0])
        .endpoints
        .push(endpoint(address));
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut config = config(dir.path());
    config.workers = 1;
    let edge = Fixture::with(dir, config);
    edge.apply(source);
    // The instance has told its limit then.
    assert_eq!(get(edge.http, "/warm").await.text, "all are here");
    let http = edge.http;
    let all: Vec<_> = (0..ASKED)
        .map(|_| tokio::spawn(async move { get(http, "/").await.text }))
        .collect();
    for one in all {
        assert_eq!(one.await.expect("no panic"), "all are here");
    }
}

#[tokio::test]
async fn a_stream_that_an_instance_refused_is_sent_again_on_the_same_connection() {
    let edge = Fixture::start();
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        // One connection only: a second one would never be answered.
        let (stream, _) = listener.accept().await.expect("accepts");
        let mut connection = h2::server::handshake(stream).await.expect("HTTP/2");
        let mut refused = false;
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            if std::mem::replace(&mut refused, true) {
                let mut body = respond.send_response(Response::new(()), false).expect("sends");
                body.send_data(Bytes::from("taken"), true).expect("sends");
            } else {
                respond.send_reset(h2::Reason::REFUSED_STREAM);
            }
        }
    });
    edge.apply(over_http2(table(1, service(State::Ready, &[address]))));
    assert_eq!(get(edge.http, "/").await.text, "taken");
}

#[tokio::test]
async fn http1_clients_reach_http2_instances() {
    let edge = Fixture::start();
    edge.apply(over_http2(table(1, service(State::Ready, &[echo(true).await]))));
    let answer = send(
        edge.http,
        request("/a")
            .method("POST")
            .body(Full::from("x"))
            .expect("a request"),
    )
    .await;
    assert!(
        answer.text.starts_with("POST http://app.test/a\n") && answer.text.ends_with('x'),
        "{}",
        answer.text
    );
}

#[tokio::test]
async fn grpc_streams_and_trailers_pass_both_ways_over_http2() {
    let edge = Fixture::start();
    let server = upstream(true, |request| async move {
        assert_eq!(request.headers()["te"], "trailers");
        let body = request.into_body().collect().await.expect("a whole body");
        let asked = body
            .trailers()
            .and_then(|trailers| trailers.get("x-checksum"))
            .cloned()
            .unwrap_or(HeaderValue::from_static("none"));
        let trailers = HeaderMap::from_iter([
            (
                http::HeaderName::from_static("grpc-status"),
                HeaderValue::from_static("0"),
            ),
            (http::HeaderName::from_static("x-seen"), asked),
        ]);
        let frames = [Frame::data(body.to_bytes()), Frame::trailers(trailers)].map(Ok::<_, Infallible>);
        let mut response = Response::new(BodyExt::boxed(StreamBody::new(futures_util::stream::iter(
            frames,
        ))));
        response
            .headers_mut()
            .insert("content-type", HeaderValue::from_static("application/grpc"));
        response
    })
    .await;
    edge.apply(over_http2(table(1, service(State::Ready, &[server]))));
    let stream = TcpStream::connect(edge.http).await.expect("listens");
    let (mut client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .expect("prior knowledge");
    tokio::spawn(connection);
    let sum = HeaderMap::from_iter([(
        http::HeaderName::from_static("x-checksum"),
        HeaderValue::from_static("42"),
    )]);
    let frames = [Frame::data(Bytes::from("\0\0\0\0\x02hi")), Frame::trailers(sum)].map(Ok::<_, Infallible>);
    let asked = Request::builder()
        .method("POST")
        .uri("http://app.test/greeter/Hello")
        .header("te", "trailers")
        .header("content-type", "application/grpc")
        .body(StreamBody::new(futures_util::stream::iter(frames)))
        .expect("a request");
    let response = client.send_request(asked).await.expect("an answer");
    assert_eq!(
        (response.status(), &response.headers()["content-type"]),
        (StatusCode::OK, &HeaderValue::from_static("application/grpc"))
    );
    let body = response.into_body().collect().await.expect("a whole body");
    let trailers = body.trailers().expect("trailers").clone();
    assert_eq!(
        (&trailers["grpc-status"], &trailers["x-seen"]),
        (&HeaderValue::from_static("0"), &HeaderValue::from_static("42"))
    );
    assert_eq!(body.to_bytes(), "\0\0\0\0\x02hi");
}

#[tokio::test]
async fn many_http2_requests_are_carried_at_once() {
    let edge = Fixture::start();
    edge.apply(over_http2(table(1, service(State::Ready, &[echo(true).await]))));
    let client = h2_client(edge.http).await;
    let all = (0..100).map(|index| {
        let mut client = client.clone();
        async move {
            let asked = Request::builder()
                .uri(format!("http://app.test/{index}"))
                .body(Full::default())
                .expect("a request");
            Answer::read(client.send_request(asked).await.expect("an answer"))
                .await
                .status
        }
    });
    assert!(
        futures_util::future::join_all(all)
            .await
            .into_iter()
            .all(|status| status == StatusCode::OK)
    );
}

/// An HTTP/2 server on `address` that ends, connections and all, when the task does.
async fn mortal(
    address: std::net::SocketAddr,
    says: &'static str,
) -> (std::net::SocketAddr, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind(address).await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let task = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.expect("accepts");
            let service =
                hyper::service::service_fn(
                    move |_| async move { Ok::<_, Infallible>(Response::new(full(says))) },
                );
            connections.spawn(
                hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    (address, task)
}

#[tokio::test]
async fn a_restarted_http2_instance_is_reached_over_a_new_connection() {
    let edge = Fixture::start();
    let (address, first) = mortal(std::net::SocketAddr::from(([127, 0, 0, 1], 0)), "first").await;
    edge.apply(over_http2(table(1, service(State::Ready, &[address]))));
    assert_eq!(get(edge.http, "/").await.text, "first");
    first.abort();
    assert!(first.await.expect_err("aborted").is_cancelled());
    let (_, second) = mortal(address, "second").await;
    for _ in 0..10 {
        assert_eq!(get(edge.http, "/").await.text, "second");
    }
    second.abort();
}

/// A WebSocket server that returns every message with its path in front.
async fn websocket_echo() -> std::net::SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("accepts");
            tokio::spawn(async move {
                let mut path = String::new();
                #[expect(clippy::result_large_err, reason = "the callback's type is tungstenite's")]
                let note = |request: &tokio_tungstenite::tungstenite::handshake::server::Request,
                            response| {
                    path = request.uri().to_string();
                    Ok(response)
                };
                let Ok(mut socket) = tokio_tungstenite::accept_hdr_async(stream, note).await else {
                    return;
                };
                while let Some(Ok(message)) = socket.next().await {
                    if let Message::Text(text) = message {
                        let _gone = socket.send(Message::text(format!("{path} {text}"))).await;
                    }
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn websockets_pass_count_as_in_flight_and_end_when_either_side_leaves() {
    let edge = Fixture::start();
    let mut source = table(1, service(State::Ready, &[websocket_echo().await]));
    Arc::make_mut(&mut source.hosts[0]).routes[0].prefix = "/ws".into();
    edge.apply(source);
    let stream = TcpStream::connect(edge.http).await.expect("listens");
    let (mut socket, response) = tokio_tungstenite::client_async("ws://app.test/ws/room?id=1", stream)
        .await
        .expect("an upgrade");
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    socket.send(Message::text("hello")).await.expect("sends");
    let echoed = socket.next().await.expect("open").expect("a message");
    assert_eq!(echoed, Message::text("/room?id=1 hello"));
    let in_flight = || metric(&edge.handle.metrics(), "tram_edge_in_flight", "");
    assert_eq!(in_flight(), Some(1.0));
    let passed = metric(&edge.handle.metrics(), "tram_edge_response_body_bytes_total", "");
    assert!(passed > Some(0.0), "counted while it is open");
    drop(socket);
    until("the socket is no longer in flight", || in_flight() == Some(0.0)).await;
}

#[tokio::test]
async fn an_instance_that_declines_an_upgrade_is_heard() {
    let edge = Fixture::start();
    edge.apply(table(1, service(State::Ready, &[says("no sockets here").await])));
    let asked = request("/")
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .body(Full::default())
        .expect("a request");
    let answer = send(edge.http, asked).await;
    assert_eq!(
        (answer.status, answer.text.as_str()),
        (StatusCode::OK, "no sockets here")
    );
}

#[tokio::test]
async fn events_arrive_one_by_one() {
    let edge = Fixture::start();
    let (sender, receiver) = tokio::sync::mpsc::channel::<&'static str>(1);
    let receiver = Arc::new(std::sync::Mutex::new(Some(receiver)));
    let server = upstream(false, move |_| {
        let mut receiver = receiver
            .lock()
            .expect("not poisoned")
            .take()
            .expect("one request");
        async move {
            let frames = futures_util::stream::poll_fn(move |cx| {
                receiver
                    .poll_recv(cx)
                    .map(|event| event.map(|event| Ok::<_, Infallible>(Frame::data(Bytes::from(event)))))
            });
            Response::new(BodyExt::boxed(StreamBody::new(frames)))
        }
    })
    .await;
    edge.apply(table(1, service(State::Ready, &[server])));
    let mut client = TcpStream::connect(edge.http).await.expect("listens");
    client
        .write_all(b"GET /events HTTP/1.1\r\nhost: app.test\r\naccept: text/event-stream\r\n\r\n")
        .await
        .expect("writes");
    let mut seen = String::new();
    for event in ["data: one\n\n", "data: two\n\n"] {
        sender.send(event).await.expect("the stream is open");
        // Only this event can arrive: the next is not sent before.
        while !seen.contains(event) {
            let mut buffer = [0; 1024];
            let read = tokio::time::timeout(PATIENCE, client.read(&mut buffer))
                .await
                .expect("in time")
                .expect("reads");
            assert!(read > 0);
            seen.push_str(&String::from_utf8_lossy(&buffer[..read]));
        }
    }
}

#[tokio::test]
async fn a_first_packet_too_short_to_tell_the_protocol_is_waited_for() {
    let edge = Fixture::start();
    edge.apply(table(1, service(State::Ready, &[echo(false).await])));
    let mut client = TcpStream::connect(edge.http).await.expect("listens");
    client.set_nodelay(true).expect("a socket");
    for part in [
        "P",
        "O",
        "ST /dribble HTTP/1.1\r\nhost: app.test\r\nconnection: close\r\ncontent-length: 2\r\n\r\nhi",
    ] {
        client.write_all(part.as_bytes()).await.expect("writes");
        tokio::time::sleep(std::time::Duration::from_millis(30)).await;
    }
    let mut text = String::new();
    client.read_to_string(&mut text).await.expect("reads");
    assert!(text.contains("POST /dribble\n") && text.ends_with("hi"), "{text}");
    let mut client = TcpStream::connect(edge.http).await.expect("listens");
    client.set_nodelay(true).expect("a socket");
    for part in ["PR", "I * HTTP/2.0\r\n\r\nSM\r\n\r\n", "\0\0\0\x04\0\0\0\0\0"] {
        client.write_all(part.as_bytes()).await.expect("writes");
        tokio::time::sleep(std::time::Duration::from_millis(30)).await;
    }
    let mut head = [0; 9];
    tokio::time::timeout(PATIENCE, client.read_exact(&mut head))
        .await
        .expect("in time")
        .expect("reads");
    assert_eq!(head[3], 4, "the first frame is SETTINGS");
}
