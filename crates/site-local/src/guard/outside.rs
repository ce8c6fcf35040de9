//! The way from the guard to the real host: its addresses, which of them may be reached, TLS.
//!
//! The one design choice to know: the guard stands on the machine, where more can be reached than from an instance. So
//! it refuses by itself what the firewall refuses to instances: the machine, its private network, metadata, what the
//! operator denies, and what the instance's policy does not list.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::authority::PROTOCOL;
use super::head::Refusal;
use crate::dns::{Guarded, Resolver};
use crate::network::Ipv4Network;
use crate::network::firewall::METADATA;

/// To reach one address of a host.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// To agree on keys with it.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Addresses that are tried: a host that is away is given up in time.
const ADDRESSES_TRIED_MAX: usize = 3;

/// How to reach hosts.
#[derive(Debug)]
pub(crate) struct Outside {
    resolver: Resolver,
    network: Ipv4Network,
    denied: Vec<Ipv4Network>,
    /// Authorities beside the machine's.
    more_roots: Vec<CertificateDer<'static>>,
    /// Read when it is first needed, which takes tens of milliseconds.
    client: OnceCell<Arc<ClientConfig>>,
}

/// The authorities in a file.
pub(crate) fn own_roots(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let roots: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(io::Error::other)?;
    if roots.is_empty() {
        return Err(io::Error::other("there is no certificate in it"));
    }
    Ok(roots)
}

impl Outside {
    pub(crate) fn new(
        resolver: Resolver,
        network: Ipv4Network,
        denied: &[Ipv4Network],
        more_roots: Vec<CertificateDer<'static>>,
    ) -> Self {
        Self {
            resolver,
            network,
            denied: denied.to_vec(),
            more_roots,
            client: OnceCell::new(),
        }
    }

    /// A connection to the real host, verified.
    pub(super) async fn connect(
        &self,
        guarded: &Guarded,
        host: &str,
        port: u16,
    ) -> Result<TlsStream<TcpStream>, Refusal> {
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| Refusal::new(StatusCode::BAD_GATEWAY, "the host's name is none of the DNS"))?;
        let found = self.resolver.addresses(host).await;
        if found.is_empty() {
            return Err(away(host, "its name leads nowhere now"));
        }
        let mut allowed = found
            .into_iter()
            .filter(|address| guarded.may_reach(host, *address) && !self.is_closed(*address))
            .peekable();
        if allowed.peek().is_none() {
            return Err(Refusal::new(
                StatusCode::FORBIDDEN,
                format!("{host} is not among what this instance may reach"),
            ));
        }
        let mut last = String::new();
        for address in allowed.take(ADDRESSES_TRIED_MAX) {
            let attempt = TcpStream::connect(SocketAddr::from((address, port)));
            match tokio::time::timeout(CONNECT_TIMEOUT, attempt).await {
                Ok(Ok(stream)) => return self.agree(stream, name, host).await,
                Ok(Err(error)) => last = error.to_string(),
                Err(_) => "it does not answer".clone_into(&mut last),
            }
        }
        Err(away(host, &last))
    }

    async fn agree(
        &self,
        stream: TcpStream,
        name: ServerName<'static>,
        host: &str,
    ) -> Result<TlsStream<TcpStream>, Refusal> {
        stream
            .set_nodelay(true)
            .map_err(|error| away(host, &error.to_string()))?;
        let client = self
            .client
            .get_or_try_init(async || {
                let more = self.more_roots.clone();
                tokio::task::spawn_blocking(move || client(more))
                    .await
                    .map_err(|error| error.to_string())?
            })
            .await
            .map_err(|error| Refusal::new(StatusCode::BAD_GATEWAY, error))?;
        let connector = TlsConnector::from(Arc::clone(client));
        match tokio::time::timeout(HANDSHAKE_TIMEOUT, connector.connect(name, stream)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(away(host, &error.to_string())),
            Err(_) => Err(away(host, "it does not agree on keys in time")),
        }
    }

    /// What no instance may reach, wherever a name leads.
    fn is_closed(&self, address: Ipv4Addr) -> bool {
        let metadata = METADATA.iter().any(|text| text.parse() == Ok(address));
        address.is_unspecified()
            || address.is_loopback()
            || address.is_link_local()
            || address.is_multicast()
            || address.is_broadcast()
            || metadata
            || self.network.contains(address)
            || self.denied.iter().any(|network| network.contains(address))
            || is_this_machines(address)
    }
}

/// Nobody can listen on an address of another machine.
fn is_this_machines(address: Ipv4Addr) -> bool {
    // Any other failure says nothing of whose it is, and then it is not gone to.
    !matches!(UdpSocket::bind((address, 0)), Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable)
}

fn away(host: &str, why: &str) -> Refusal {
    Refusal::new(
        StatusCode::BAD_GATEWAY,
        format!("{host} cannot be reached: {why}"),
    )
}

/// Trusts the machine's authorities, and `more`.
fn client(more: Vec<CertificateDer<'static>>) -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(found.certs);
    roots.add_parsable_certificates(more);
    if roots.is_empty() {
        return Err(
            "this machine knows no certificate authority: install the package ca-certificates".to_owned(),
        );
    }
    let mut config = ClientConfig::builder_with_provider(super::provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    Ok(Arc::new(config))
}
