//! Registries on https: strangers are refused, authorities from the host files are trusted.

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use tram_image::{Error, RegistryConfig};

use crate::support::{Archive, Compression, TestImage, is_root, pull, registry_reply, serve, store_with};

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap()
}

/// A registry with a certificate for 127.0.0.1 from `authority`, which may want one from its clients too.
async fn start(
    image: TestImage,
    authority: &Authority,
    wants_certificate: bool,
) -> (SocketAddr, tokio::task::JoinSet<()>) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(["127.0.0.1".to_owned()])
        .unwrap()
        .signed_by(&key, authority)
        .unwrap();
    let config = ServerConfig::builder();
    let config = if wants_certificate {
        let mut roots = RootCertStore::empty();
        roots.add(authority.der().clone()).unwrap();
        config.with_client_cert_verifier(WebPkiClientVerifier::builder(Arc::new(roots)).build().unwrap())
    } else {
        config.with_no_client_auth()
    };
    let config = config
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
    (address, tasks)
}

#[tokio::test]
async fn a_strange_certificate_is_refused_until_the_operator_trusts_it() {
    if !is_root("a_strange_certificate_is_refused_until_the_operator_trusts_it") {
        return;
    }
    let image = TestImage::new(&[(Archive::new().file("x", b"").build(), Compression::Gzip)]);
    let authority = authority();
    let (address, _tasks) = start(image, &authority, false).await;
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
    fs::write(place.join("authority.pem"), authority.pem()).unwrap();
    with("ca = \"authority.pem\"").await.unwrap();
    with("skip_verify = true").await.unwrap();
    let error = with("ca = \"missing.pem\"").await.unwrap_err();
    assert!(error.to_string().contains("missing.pem"), "{error}");
}

#[tokio::test]
async fn a_client_certificate_is_shown_and_renewed_files_are_read() {
    if !is_root("a_client_certificate_is_shown_and_renewed_files_are_read") {
        return;
    }
    let image = TestImage::new(&[(Archive::new().file("x", b"").build(), Compression::Gzip)]);
    let (authority, stranger) = (authority(), authority());
    let (address, _tasks) = start(image, &authority, true).await;
    let hosts = tempfile::tempdir().unwrap();
    let place = hosts.path().join("secure.example");
    fs::create_dir(&place).unwrap();
    let show = |issuer: &Authority| {
        let key = KeyPair::generate().unwrap();
        let own = CertificateParams::new(["this-machine".to_owned()]).unwrap();
        let own = own.signed_by(&key, issuer).unwrap();
        fs::write(place.join("own.cert"), own.pem()).unwrap();
        fs::write(place.join("own.key"), key.serialize_pem()).unwrap();
    };
    let configure = |lines: &str| {
        let text = format!("server = \"https://{address}\"\nca = \"authority.pem\"\n{lines}\n");
        fs::write(place.join("hosts.toml"), text).unwrap();
    };
    // One store throughout, as one control plane has.
    let directory = tempfile::tempdir().unwrap();
    let store = store_with(&directory, RegistryConfig::from_directory(hosts.path()));
    fs::write(place.join("authority.pem"), authority.pem()).unwrap();
    configure("");
    let refused = pull(&store, "secure.example/app").await;
    assert!(matches!(refused, Err(Error::Transport { .. })), "{refused:?}");
    configure("client = [[\"own.cert\", \"own.key\"]]\ndial_timeout = \"1500ms\"");
    show(&stranger);
    let refused = pull(&store, "secure.example/app").await;
    assert!(matches!(refused, Err(Error::Transport { .. })), "{refused:?}");
    // Renewed in place, under the same names.
    show(&authority);
    pull(&store, "secure.example/app").await.unwrap();
    fs::write(place.join("authority.pem"), stranger.pem()).unwrap();
    let refused = pull(&store, "secure.example/other").await;
    assert!(matches!(refused, Err(Error::Transport { .. })), "{refused:?}");
    fs::write(place.join("own.key"), "no key").unwrap();
    let refused = pull(&store, "secure.example/app").await.unwrap_err();
    assert!(
        matches!(refused, Error::Configuration { .. }) && refused.to_string().contains("own.cert"),
        "{refused}"
    );
}
