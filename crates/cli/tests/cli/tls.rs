//! HTTPS and WebSockets over TLS, with certificates from the system's store, in a process of its own.

use std::{net::TcpListener, process::Command, sync::Arc};

use rcgen::{CertifiedKey, generate_simple_self_signed};
use serde_json::json;
use tokio_rustls::{TlsAcceptor, rustls};
use tokio_tungstenite::tungstenite::Message;

use crate::{
    server::{Server, page},
    terminal::{ARGUMENTS, DIVIDER},
};

/// Speaks TLS in front of `server` until the test is over; gives back its port.
fn cover(server: &Server, key: &CertifiedKey<rcgen::KeyPair>) -> u16 {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![key.cert.der().clone()],
            rustls::pki_types::PrivateKeyDer::try_from(key.signing_key.serialize_der()).unwrap(),
        )
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let inner = server.url.trim_start_matches("http://").to_owned();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            loop {
                let (outside, _) = listener.accept().await.unwrap();
                let (acceptor, inner) = (acceptor.clone(), inner.clone());
                tokio::spawn(async move {
                    // A client that does not trust us leaves during the handshake.
                    let Ok(mut outside) = acceptor.accept(outside).await else {
                        return;
                    };
                    let mut inside = tokio::net::TcpStream::connect(inner).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
                });
            }
        });
    });
    port
}

fn run(port: u16, certificates: &std::path::Path, words: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "terminal::child", "--ignored", "--nocapture"])
        .env(ARGUMENTS, words.join(&DIVIDER.to_string()))
        .env("TRAM_URL", format!("https://localhost:{port}"))
        .env("TRAM_TOKEN", "token")
        .env("HOME", certificates.parent().unwrap())
        .env("SSL_CERT_FILE", certificates)
        .env_remove("SSL_CERT_DIR")
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn calls_and_streams_go_over_tls() {
    let server = Server::start().with_shop();
    server.answer(
        "GET /v1/streams/logs/query",
        json!({ "data": [], "pagination": { "has_more": false } }),
    );
    server.socket("/v1/streams/logs/tail", |mut socket| {
        let line =
            json!({ "result": { "msg": "over TLS", "created_at": "2026-03-01T12:00:00Z", "labels": {} } });
        socket.send(Message::text(line.to_string())).unwrap();
        socket.close(None).unwrap();
        while socket.read().is_ok() {}
    });
    let key = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let port = cover(&server, &key);
    let folder = tempfile::tempdir().unwrap();
    let trusted = folder.path().join("trusted.pem");
    std::fs::write(&trusted, key.cert.pem()).unwrap();
    let (code, out, err) = run(port, &trusted, &["logs", "web", "-f", "--raw"]);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert!(out.ends_with("over TLS\n"), "{out}");
    assert_eq!(
        server.calls("GET /v1/streams/logs/tail")[0].headers["authorization"],
        "Bearer token"
    );
}

#[test]
fn a_server_that_nobody_vouches_for_gets_no_token() {
    let server = Server::start();
    server.answer("GET /v1/apps", page("apps", json!([])));
    let key = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let other = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let port = cover(&server, &key);
    let folder = tempfile::tempdir().unwrap();
    let trusted = folder.path().join("trusted.pem");
    std::fs::write(&trusted, other.cert.pem()).unwrap();
    let (code, _, err) = run(port, &trusted, &["apps", "list"]);
    assert_eq!(code, Some(1));
    assert!(
        err.starts_with(&format!("error: cannot trust https://localhost:{port}\n")),
        "{err}"
    );
    assert!(err.contains("certificate"), "{err}");
    assert!(
        err.contains("hint: if it is this machine's own, `sudo tram trust`"),
        "{err}"
    );
    assert!(server.calls("GET /v1/apps").is_empty());
}
