//! TLS: the local authority, given certificates by name, reloading, ALPN.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tram_types::routing::State;

use crate::harness::*;

fn trusting(roots: impl IntoIterator<Item = CertificateDer<'static>>, alpn: &[&[u8]]) -> TlsConnector {
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(root).expect("a root");
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring has them")
        .with_root_certificates(store)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    TlsConnector::from(Arc::new(config))
}

fn authority(edge: &Fixture) -> CertificateDer<'static> {
    tram_edge::ca::ensure(edge.dir.path(), "test")
        .expect("the edge made it")
        .certificate()
        .clone()
}

async fn handshake(
    edge: &Fixture,
    connector: &TlsConnector,
    name: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(edge.https).await.expect("listens");
    connector
        .connect(ServerName::try_from(name.to_owned()).expect("a name"), stream)
        .await
}

/// A self-signed certificate in the edge's directory.
fn give(dir: &Path, file: &str, name: &str) -> CertificateDer<'static> {
    let key = KeyPair::generate().expect("a key");
    let certificate = CertificateParams::new(vec![name.to_owned()])
        .expect("a name")
        .self_signed(&key)
        .expect("signs");
    fs::create_dir_all(dir.join("certs")).expect("writable");
    fs::write(dir.join(format!("certs/{file}.key")), key.serialize_pem()).expect("writable");
    fs::write(dir.join(format!("certs/{file}.crt")), certificate.pem()).expect("writable");
    certificate.der().clone()
}

#[tokio::test]
async fn the_local_authority_signs_for_hosts_of_the_table_and_no_others() {
    let edge = Fixture::start();
    edge.apply(table(1, service(State::Ready, &[echo(false).await])));
    let connector = trusting([authority(&edge)], &[]);
    let stream = handshake(&edge, &connector, "app.test").await.expect("trusted");
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .expect("HTTP/1.1");
    tokio::spawn(connection);
    let answer = Answer::read(
        sender
            .send_request(request("/").body(Full::<Bytes>::default()).expect("a request"))
            .await
            .expect("an answer"),
    )
    .await;
    assert!(
        answer.text.contains("x-forwarded-proto: https"),
        "{}",
        answer.text
    );
    handshake(&edge, &connector, "anything.test")
        .await
        .expect("under the base domain");
    handshake(&edge, &connector, "127.0.0.1")
        .await
        .expect("a client that names no host");
    handshake(&edge, &connector, "example.org")
        .await
        .expect_err("not ours to sign for");
}

#[tokio::test]
async fn a_custom_domain_is_served_by_a_certificate_that_trust_in_the_authority_does_not_cover() {
    let edge = Fixture::start();
    let mut source = table(1, service(State::Ready, &[echo(false).await]));
    source.hosts.push(Arc::new(tram_types::routing::Host {
        name: "shop.example".into(),
        routes: source.hosts[0].routes.clone(),
    }));
    edge.apply(source);
    let refused = handshake(&edge, &trusting([authority(&edge)], &[]), "shop.example").await;
    let error = refused.expect_err("not by the authority").to_string();
    assert!(
        error.contains("invalid peer certificate"),
        "one was shown: {error}"
    );
}

/// Whoever got at the key gets no further than the names of this installation.
#[tokio::test]
async fn clients_that_trust_the_authority_do_not_trust_it_for_other_names() {
    let edge = Fixture::start();
    let root = authority(&edge);
    let pem = fs::read_to_string(tram_edge::ca::certificate_path(edge.dir.path())).expect("the root");
    let key = fs::read_to_string(edge.dir.path().join("ca/root.key")).expect("its key");
    let issuer =
        rcgen::Issuer::from_ca_cert_pem(&pem, KeyPair::from_pem(&key).expect("a key")).expect("a root");
    let accepts = |names: &[&str]| {
        let pair = KeyPair::generate().expect("a key");
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let leaf = CertificateParams::new(names.clone())
            .and_then(|params| params.signed_by(&pair, &issuer))
            .expect("signs");
        let mut store = RootCertStore::empty();
        store.add(root.clone()).expect("a root");
        let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(
            Arc::new(store),
            Arc::new(rustls::crypto::ring::default_provider()),
        )
        .build()
        .expect("a verifier");
        let name = ServerName::try_from(names[0].clone()).expect("a name");
        rustls::client::danger::ServerCertVerifier::verify_server_cert(
            &*verifier,
            leaf.der(),
            &[],
            &name,
            &[],
            rustls::pki_types::UnixTime::now(),
        )
        .is_ok()
    };
    assert!(
        accepts(&["test"]) && accepts(&["a.b.test"]) && accepts(&["localhost"]) && accepts(&["127.0.0.1"])
    );
    assert!(!accepts(&["example.org"]) && !accepts(&["eviltest"]) && !accepts(&["10.0.0.1"]));
    assert!(!accepts(&["a.test", "example.org"]), "one foreign name spoils it");
}

#[tokio::test]
async fn alpn_chooses_http2() {
    let edge = Fixture::start();
    edge.apply(table(1, service(State::Ready, &[echo(false).await])));
    let stream = handshake(
        &edge,
        &trusting([authority(&edge)], &[b"h2", b"http/1.1"]),
        "app.test",
    )
    .await
    .expect("trusted");
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .expect("HTTP/2");
    tokio::spawn(connection);
    let asked = http::Request::builder()
        .uri("https://app.test/x")
        .body(Full::<Bytes>::default())
        .expect("a request");
    let answer = Answer::read(sender.send_request(asked).await.expect("an answer")).await;
    assert!(answer.text.starts_with("GET /x\n"), "{}", answer.text);
}

#[tokio::test]
async fn given_certificates_go_before_and_are_reloaded_when_they_change() {
    let edge = Fixture::start();
    edge.apply(table(1, service(State::Ready, &[echo(false).await])));
    let first = give(edge.dir.path(), "app.test", "app.test");
    let wildcard = give(edge.dir.path(), "_wildcard.shop.example", "*.shop.example");
    let served = async |name: &str, wanted: &CertificateDer<'static>| {
        let connector = trusting([wanted.clone()], &[]);
        let deadline = std::time::Instant::now() + PATIENCE;
        while handshake(&edge, &connector, name).await.is_err() {
            assert!(
                std::time::Instant::now() < deadline,
                "the certificate for {name} is never served"
            );
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    served("app.test", &first).await;
    served("a.shop.example", &wildcard).await;
    let second = give(edge.dir.path(), "app.test", "app.test");
    served("app.test", &second).await;
    // A key that does not fit must not take the site down.
    fs::write(
        edge.dir.path().join("certs/app.test.key"),
        KeyPair::generate().expect("a key").serialize_pem(),
    )
    .expect("writable");
    // What is given later is served, so the key has been looked at.
    let third = give(edge.dir.path(), "later.test", "later.test");
    served("later.test", &third).await;
    served("app.test", &second).await;
}
