//! Registries on https: strangers are refused, authorities from the host files are trusted.

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tram_image::{Error, RegistryConfig};

use crate::support::{Archive, Compression, TestImage, is_root, pull, registry_reply, serve, store_with};

/// A registry with a certificate for 127.0.0.1 from an authority of its own. Gives the authority as PEM.
async fn start(image: TestImage) -> (SocketAddr, String, tokio::task::JoinSet<()>) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(["127.0.0.1".to_owned()])
        .unwrap()
        .signed_by(&key, &authority)
        .unwrap();
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        )
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move {
        let answer = Arc::new(move |request: &crate::support::Request| registry_reply(&image, request));
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, answer) = (acceptor.clone(), Arc::clone(&answer));
            connections.spawn(async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    serve(stream, answer, Arc::default()).await;
                }
            });
        }
    });
    (address, authority.pem(), tasks)
}

#[tokio::test]
async fn a_strange_certificate_is_refused_until_the_operator_trusts_it() {
    if !is_root("a_strange_certificate_is_refused_until_the_operator_trusts_it") {
        return;
    }
    let image = TestImage::new(&[(Archive::new().file("x", b"").build(), Compression::Gzip)]);
    let (address, pem, _tasks) = start(image).await;
    let hosts = tempfile::tempdir().unwrap();
    let place = hosts.path().join("secure.example");
    fs::create_dir(&place).unwrap();
    let with = |lines: &str| {
        fs::write(
            place.join("hosts.toml"),
            format!("server = \"https://{address}\"\n{lines}\n"),
        )
        .unwrap();
        let directory = tempfile::tempdir().unwrap();
        let store = store_with(&directory, RegistryConfig::from_directory(hosts.path()));
        async move {
            let outcome = pull(&store, "secure.example/app").await;
            drop((store, directory));
            outcome
        }
    };
    let error = with("").await.unwrap_err();
    assert!(matches!(error, Error::Transport { .. }), "{error}");
    assert!(
        error.user_message().contains("certificate"),
        "{}",
        error.user_message()
    );
    fs::write(place.join("authority.pem"), pem).unwrap();
    with("ca = \"authority.pem\"").await.unwrap();
    with("skip_verify = true").await.unwrap();
    let error = with("ca = \"missing.pem\"").await.unwrap_err();
    assert!(error.to_string().contains("missing.pem"), "{error}");
}
