//! What callers are told, and what bad input gets.

use http::StatusCode;
use http_body_util::Full;
use std::sync::Arc;
use tram_types::routing::State;
use uuid::Uuid;

use crate::harness::*;

async fn code_for(state: State, instances: &[std::net::SocketAddr]) -> (u16, String, String) {
    let edge = Fixture::start();
    edge.apply(table(1, service(state, instances)));
    let answer = get(edge.http, "/").await;
    (answer.status.as_u16(), answer.code().to_owned(), answer.text)
}

#[tokio::test]
async fn each_state_has_its_own_answer() {
    let failed = State::Failed {
        message: "exit code 3".into(),
        deployment_id: Uuid::from_u64_pair(1, 2),
    };
    let (status, code, text) = code_for(failed.clone(), &[]).await;
    assert_eq!((status, code.as_str()), (503, "deployment_failed"));
    assert!(
        text.contains("exit code 3") && text.contains(&Uuid::from_u64_pair(1, 2).to_string()),
        "{text}"
    );
    assert_eq!(
        code_for(State::Paused, &[says("x").await]).await.1,
        "service_paused"
    );
    assert_eq!(code_for(State::Deploying, &[]).await.1, "still_deploying");
    let none = code_for(State::Ready, &[]).await;
    assert_eq!((none.0, none.1.as_str()), (503, "no_healthy_instance"));
    let refused = code_for(State::Ready, &[nobody().await, nobody().await]).await;
    assert_eq!((refused.0, refused.1.as_str()), (502, "instance_unreachable"));
    assert_eq!(
        code_for(failed, &[says("old").await]).await.2,
        "old",
        "an old deployment serves on"
    );
    assert_eq!(code_for(State::Deploying, &[says("up").await]).await.2, "up");
}

#[tokio::test]
async fn browsers_and_programs_get_pages_of_their_own() {
    let edge = Fixture::start();
    edge.apply(table(1, service(State::Ready, &[])));
    let ask = async |host: &str, accept: &str| {
        send(
            edge.http,
            http::Request::builder()
                .uri("/x")
                .header("host", host)
                .header("accept", accept)
                .body(Full::default())
                .expect("a request"),
        )
        .await
    };
    let page = ask("gone.test", "text/html,*/*;q=0.8").await;
    assert_eq!((page.status, page.code()), (StatusCode::NOT_FOUND, "no_such_app"));
    assert!(
        page.text.starts_with("<!doctype html>")
            && page.text.contains("gone.test")
            && page.text.contains("</html>")
    );
    let json: serde_json::Value = serde_json::from_str(&ask("gone.test", "*/*").await.text).expect("JSON");
    assert_eq!(
        (json["status"].as_u64(), json["code"].as_str()),
        (Some(404), Some("no_such_app"))
    );
    let mut source = table(2, service(State::Ready, &[]));
    Arc::make_mut(&mut source.hosts[0]).routes[0].prefix = "/api".into();
    edge.apply(source);
    assert_eq!(ask("app.test", "*/*").await.code(), "no_such_route");
}

#[tokio::test]
async fn an_instance_that_hangs_up_or_babbles_is_a_bad_gateway() {
    for words in [
        &b""[..],
        b"SSH-2.0-x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
    ] {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
            .await
            .expect("a free port");
        let address = listener.local_addr().expect("bound");
        tokio::spawn(async move {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            loop {
                let (mut stream, _) = listener.accept().await.expect("accepts");
                let _head = stream.read(&mut [0; 4096]).await;
                let _gone = stream.write_all(words).await;
            }
        });
        let (status, code, _) = code_for(State::Ready, &[address]).await;
        assert_eq!((status, code.as_str()), (502, "bad_answer"), "{words:?}");
    }
}

#[tokio::test]
async fn smuggled_requests_do_not_get_through() {
    let edge = Fixture::start();
    edge.apply(table(1, service(State::Ready, &[echo(false).await])));
    let attempts: [(&str, &str); 11] = [
        (
            "two lengths",
            "POST / HTTP/1.1\r\nhost: app.test\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        ),
        (
            "chunks not last",
            "POST / HTTP/1.1\r\nhost: app.test\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        ),
        (
            "an unknown coding",
            "POST / HTTP/1.1\r\nhost: app.test\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
        ),
        (
            "a space before the colon",
            "POST / HTTP/1.1\r\nhost: app.test\r\ncontent-length : 5\r\n\r\nhello",
        ),
        (
            "a folded header",
            "GET / HTTP/1.1\r\nhost: app.test\r\nx: a\r\n b\r\n\r\n",
        ),
        (
            "a signed length",
            "POST / HTTP/1.1\r\nhost: app.test\r\ncontent-length: +5\r\n\r\nhello",
        ),
        (
            "a bare return in a value",
            "GET / HTTP/1.1\r\nhost: app.test\r\nx: a\rb\r\n\r\n",
        ),
        (
            "two hosts",
            "GET / HTTP/1.1\r\nhost: app.test\r\nhost: other.test\r\n\r\n",
        ),
        ("no host", "GET / HTTP/1.1\r\n\r\n"),
        ("a host with a path", "GET / HTTP/1.1\r\nhost: app.test/x\r\n\r\n"),
        (
            "chunks in HTTP/1.0",
            "POST / HTTP/1.0\r\nhost: app.test\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
    ];
    for (what, bytes) in attempts {
        let seen = raw(edge.http, bytes.as_bytes()).await;
        assert!(!seen.contains(" 200 "), "{what}: {seen}");
        assert!(
            seen.is_empty() || seen.starts_with("HTTP/1.1 400") || seen.starts_with("HTTP/1.0 400"),
            "{what}: {seen}"
        );
    }
    // Read by its chunks, the length dropped: the instance must see one request and no such length.
    for lengths in [
        "transfer-encoding: chunked\r\ncontent-length: 43",
        "content-length: 43\r\ntransfer-encoding: chunked",
    ] {
        let smuggled = "GET /smuggled HTTP/1.1\r\nhost: app.test\r\n\r\n";
        let bytes = format!(
            "POST / HTTP/1.1\r\nhost: app.test\r\n{lengths}\r\nconnection: close\r\n\r\n0\r\n\r\n{smuggled}"
        );
        let seen = raw(edge.http, bytes.as_bytes()).await;
        assert!(
            seen.contains("POST /\n") && !seen.contains("/smuggled") && !seen.contains("content-length: 43"),
            "{seen}"
        );
    }
}

#[tokio::test]
async fn oversized_heads_and_targets_are_refused() {
    let edge = Fixture::start();
    edge.apply(table(1, service(State::Ready, &[echo(false).await])));
    let long = raw(
        edge.http,
        format!("GET /{} HTTP/1.1\r\nhost: app.test\r\n\r\n", "x".repeat(20_000)).as_bytes(),
    )
    .await;
    assert!(
        long.starts_with("HTTP/1.1 414"),
        "{}",
        &long[..long.len().min(200)]
    );
    let wide = raw(
        edge.http,
        format!(
            "GET / HTTP/1.1\r\nhost: app.test\r\nx: {}\r\n\r\n",
            "x".repeat(70_000)
        )
        .as_bytes(),
    )
    .await;
    assert!(
        wide.starts_with("HTTP/1.1 431"),
        "{}",
        &wide[..wide.len().min(200)]
    );
    let many: String = (0..120).map(|index| format!("x-{index}: y\r\n")).collect();
    let many = raw(
        edge.http,
        format!("GET / HTTP/1.1\r\nhost: app.test\r\n{many}\r\n").as_bytes(),
    )
    .await;
    assert!(
        many.starts_with("HTTP/1.1 431"),
        "{}",
        &many[..many.len().min(200)]
    );
}

#[tokio::test]
async fn a_target_with_a_user_in_it_is_refused() {
    let edge = Fixture::start();
    edge.apply(table(1, service(State::Ready, &[echo(false).await])));
    let ask = async |target: &str| {
        let head = format!("GET {target} HTTP/1.1\r\nhost: app.test\r\nconnection: close\r\n\r\n");
        raw(edge.http, head.as_bytes()).await
    };
    assert!(ask("http://app.test/").await.starts_with("HTTP/1.1 200"));
    let refused = ask("http://user@app.test/").await;
    assert!(
        refused.starts_with("HTTP/1.1 400") && refused.contains("no_host"),
        "{refused}"
    );
}
