//! The guard: carries requests of instances to the hosts that their secrets are bound to, and puts the values in.
//!
//! Started by the site. The name server gives an instance the gateway's address for such a host, and the firewall leads
//! what the instance sends there to the guard's port, for instances with bound secrets alone. The guard ends TLS with a
//! certificate of the host that only these instances trust (see `authority`), looks at each request (see `head`), and
//! carries it on over TLS to the real host, whose certificate has to be good by the machine's authorities.
//!
//! The one design choice to know: what a secret may be put into is decided by the name under which the connection to
//! the host was verified, and by nothing that a request says.

pub(crate) mod authority;
mod forward;
mod head;
mod outside;
pub(crate) mod trust;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::crypto::CryptoProvider;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::LazyConfigAcceptor;
use tokio_util::sync::CancellationToken;
use tram_site::secrets::SecretValues;
use tram_types::OrganizationId;

use self::authority::Authority;
use self::forward::Conversation;
pub(crate) use self::outside::{Outside, own_roots};
use crate::dns::{Directory, Guarded, Share, Shares};
use crate::network::Network;

/// Connections at once: each holds some tens of KiB.
const CONNECTIONS_MAX: usize = 2048;
/// The same for one instance; what comes beyond is closed at once.
const CONNECTIONS_PER_INSTANCE_MAX: usize = 128;
/// The same for all instances of an organization: none keeps the others from their hosts, nor do two.
const CONNECTIONS_PER_ORGANIZATION_MAX: usize = CONNECTIONS_MAX / 4;
/// A program on this machine says hello and agrees on keys within this time, however busy it is.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may be idle, and how long a head may take: beyond what clients keep connections for.
const HEAD_TIMEOUT: Duration = Duration::from_secs(90);
/// Head of a request, with what goes in place of placeholders: what large servers take is 8 to 32 KiB.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// After a failed accept (no descriptors left, say) the guard does not spin.
const ERROR_PAUSE: Duration = Duration::from_millis(100);
/// The first byte of a TLS handshake.
const TLS_HANDSHAKE: u8 = 22;

/// How often, since the site was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Guard {
    /// Requests that a value was put into.
    pub filled: u64,
    /// Requests and connections to hosts of secrets that were refused.
    pub refused: u64,
}

#[derive(Debug, Default)]
struct Counts {
    filled: AtomicU64,
    refused: AtomicU64,
}

/// What the guard works with.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) authority: Arc<Authority>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) outside: Outside,
    pub(crate) network: Network,
    /// Absent: no value can be had, and requests that need one are refused.
    pub(crate) values: Option<Arc<dyn SecretValues>>,
}

#[derive(Debug)]
struct Shared {
    parts: Parts,
    counts: Counts,
}

/// A running guard; dropping it ends it, and cuts what it carries.
#[derive(Debug)]
pub(crate) struct Server {
    shared: Arc<Shared>,
    end: CancellationToken,
}

impl Server {
    pub(crate) fn start(listener: TcpListener, parts: Parts) -> Self {
        let shared = Arc::new(Shared {
            parts,
            counts: Counts::default(),
        });
        let end = CancellationToken::new();
        tokio::spawn(end.clone().run_until_cancelled_owned(listen(
            Arc::clone(&shared),
            listener,
            end.clone(),
        )));
        Self { shared, end }
    }

    pub(crate) fn counts(&self) -> Guard {
        Guard {
            filled: self.shared.counts.filled.load(Ordering::Relaxed),
            refused: self.shared.counts.refused.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn close(&self) {
        self.end.cancel();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

/// The cryptography of both sides.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// A connection's places: among all, among those of its organization, and of its instance.
type Held = (OwnedSemaphorePermit, Share<OrganizationId>, Share);

/// Who may have how many connections.
#[derive(Debug)]
struct Places {
    all: Arc<Semaphore>,
    organizations: Arc<Shares<OrganizationId>>,
    instances: Arc<Shares>,
}

impl Places {
    fn new() -> Self {
        Self {
            all: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            organizations: Shares::new(CONNECTIONS_PER_ORGANIZATION_MAX),
            instances: Shares::new(CONNECTIONS_PER_INSTANCE_MAX),
        }
    }

    /// `None` when there are too many.
    fn take(&self, organization: OrganizationId, instance: IpAddr) -> Option<Held> {
        let instance = self.instances.take(instance)?;
        let organization = self.organizations.take(organization)?;
        let all = Arc::clone(&self.all).try_acquire_owned().ok()?;
        Some((all, organization, instance))
    }
}

async fn listen(shared: Arc<Shared>, listener: TcpListener, end: CancellationToken) {
    let places = Places::new();
    loop {
        let (stream, source) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "the guard of bound secrets cannot accept");
                tokio::time::sleep(ERROR_PAUSE).await;
                continue;
            }
        };
        let IpAddr::V4(asker) = source.ip() else { continue };
        let Some(guarded) = shared.parts.directory.guarded(asker) else {
            continue;
        };
        let Some(held) = places.take(guarded.organization, source.ip()) else {
            shared.refuse(asker, "too many connections at once");
            continue;
        };
        let shared = Arc::clone(&shared);
        // It goes when the instance goes, or when the guard ends.
        let over = guarded.over.clone();
        let end = end.child_token();
        tokio::spawn(async move {
            let held = Arc::new(held);
            // Boxed: with its buffers for a head it is large.
            let conversation = Box::pin(converse(&shared, stream, asker, &guarded, held, end.clone()));
            let work = over.run_until_cancelled(conversation);
            if let Some(Some(Err(error))) = end.run_until_cancelled(work).await {
                tracing::debug!(%asker, %error, "a connection to a host of bound secrets ended badly");
            }
        });
    }
}

async fn converse(
    shared: &Arc<Shared>,
    mut stream: TcpStream,
    asker: Ipv4Addr,
    guarded: &Guarded,
    held: Arc<Held>,
    end: CancellationToken,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let port = wanted_port(&stream)?;
    let mut first = [0];
    timed(stream.peek(&mut first)).await?;
    if first != [TLS_HANDSHAKE] {
        shared.refuse(asker, "not TLS");
        return refuse_plain(&mut stream).await;
    }
    let acceptor = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream);
    let start = timed(acceptor).await?;
    let host = start
        .client_hello()
        .server_name()
        .unwrap_or_default()
        .to_ascii_lowercase();
    if !guarded.is_bound(&host) {
        shared.refuse(asker, "TLS without the name of a host that a secret is bound to");
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    let config = shared.parts.authority.server(&host).map_err(io::Error::other)?;
    let stream = timed(start.into_stream(config)).await?;
    let conversation = Conversation::new(Arc::clone(shared), asker, (host, port), held, end);
    let conversation = Arc::new(conversation);
    let service = hyper::service::service_fn(move |request| {
        let conversation = Arc::clone(&conversation);
        async move { Ok::<_, std::convert::Infallible>(conversation.answer(request).await) }
    });
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await
        .map_err(io::Error::other)
}

/// The port that the program meant; the firewall sent it to ours.
fn wanted_port(stream: &TcpStream) -> io::Result<u16> {
    let address = nix::sys::socket::getsockopt(stream, nix::sys::socket::sockopt::OriginalDst)?;
    Ok(u16::from_be(address.sin_port))
}

/// What is said to a program that speaks without TLS.
async fn refuse_plain(stream: &mut TcpStream) -> io::Result<()> {
    const SAID: &str = "a secret is bound to this host, which is therefore reached over HTTPS alone\n";
    // What it sent is read, or the kernel would answer with a reset before the refusal is read.
    let mut head = [0; 4096];
    let _some = timed(stream.read(&mut head)).await?;
    let answer = format!(
        "HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{SAID}",
        SAID.len()
    );
    timed(stream.write_all(answer.as_bytes())).await?;
    stream.shutdown().await
}

async fn timed<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(HANDSHAKE_TIMEOUT, work)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

impl Shared {
    /// Counts a refusal and has the owner told. `why` holds nothing that a program chose but names of its own secrets'
    /// hosts.
    fn refuse(&self, asker: Ipv4Addr, why: &str) {
        self.counts.refused.fetch_add(1, Ordering::Relaxed);
        self.parts.network.tell_guarded(asker, why);
    }
}

/// Where the guard listens before it is asked by anybody.
pub(crate) async fn bind(gateway: Ipv4Addr) -> io::Result<TcpListener> {
    TcpListener::bind(SocketAddr::from((gateway, 0))).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_organization_keeps_the_others_from_their_hosts() {
        let places = Places::new();
        let [greedy, other] = [OrganizationId::random(), OrganizationId::random()];
        let address = |last: u8| IpAddr::from([10, 201, 0, last]);
        let mut held = Vec::new();
        for instance in 0..20 {
            while let Some(place) = places.take(greedy, address(instance)) {
                held.push(place);
            }
        }
        assert_eq!(held.len(), CONNECTIONS_PER_ORGANIZATION_MAX);
        let others: Vec<Held> = std::iter::from_fn(|| places.take(other, address(100))).collect();
        assert_eq!(others.len(), CONNECTIONS_PER_INSTANCE_MAX);
        // One that was refused holds nothing, and what is given back can be had again.
        held.pop();
        assert!(places.take(greedy, address(50)).is_some());
    }
}
