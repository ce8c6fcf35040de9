//! The name server of the private network.
//!
//! Listens on the gateway address, UDP and TCP, and tells who asks by the source address, which the firewall
//! vouches for. Names of services are answered from the [`Directory`], for the asking instance's organization
//! alone; everything else goes to the machine's own name servers.
//!
//! The one design choice to know: a question that is forwarded is forwarded as it came, byte for byte but for its
//! id, so nothing that this server does not know (new record types, the case of letters) is lost on the way.

mod answer;
mod directory;
mod forward;
mod outside;

use std::collections::HashMap;
use std::hash::Hash;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;

use self::answer::Verdict;
pub(crate) use self::directory::{Directory, Entry, Guarded};
use self::forward::Forwarder;
pub(crate) use self::forward::Resolver;
pub(crate) use self::outside::{Gate, Names};

/// Largest question or answer over UDP; the usual bound of resolvers that know EDNS is 1232 to 4096.
const DATAGRAM_BYTES_MAX: usize = 4096;
/// Questions under way at once: bounds sockets and memory when the name servers outside are slow.
const IN_FLIGHT_MAX: usize = 512;
/// The same for one instance, so that one cannot use up everybody's.
const IN_FLIGHT_PER_INSTANCE_MAX: usize = 64;
/// Datagrams of one instance being answered: more than it may have forwarded, so that names of services are still
/// found when the name servers outside are slow. What comes beyond is dropped; it will be asked again.
const DATAGRAMS_PER_INSTANCE_MAX: usize = 128;
/// Connections at once: TCP is for the rare answer that is too long.
const CONNECTIONS_MAX: usize = 128;
/// The same for one instance: what comes beyond is closed at once.
const CONNECTIONS_PER_INSTANCE_MAX: usize = 8;
/// A connection that says nothing for so long is closed.
const CONNECTION_IDLE: Duration = Duration::from_secs(10);
/// After a failed receive (out of memory, say) the server does not spin.
const ERROR_PAUSE: Duration = Duration::from_millis(100);

/// Name server port.
pub(crate) const PORT: u16 = 53;

/// A running name server; [`Server::close`] or dropping ends it.
#[derive(Debug)]
pub(crate) struct Server {
    end: CancellationToken,
    address: SocketAddr,
}

impl Server {
    /// Begins to listen. `name_servers` empty means those of this machine.
    pub(crate) async fn start(
        address: SocketAddr,
        directory: Arc<Directory>,
        name_servers: Vec<SocketAddr>,
        gate: Arc<dyn Gate>,
    ) -> io::Result<Self> {
        let udp = Arc::new(UdpSocket::bind(address).await?);
        // Port 0 in tests: both must have the same one.
        let address = udp.local_addr()?;
        let tcp = TcpListener::bind(address).await?;
        let end = CancellationToken::new();
        let shared = Arc::new(Shared {
            forwarder: Forwarder::new(name_servers, address.ip()),
            gateway: address.ip(),
            directory,
            gate,
            in_flight: Semaphore::new(IN_FLIGHT_MAX),
            forwarded: Shares::new(IN_FLIGHT_PER_INSTANCE_MAX),
            datagrams: Shares::new(DATAGRAMS_PER_INSTANCE_MAX),
            connections: Shares::new(CONNECTIONS_PER_INSTANCE_MAX),
        });
        tokio::spawn(
            end.clone()
                .run_until_cancelled_owned(serve_udp(Arc::clone(&shared), udp)),
        );
        tokio::spawn(end.clone().run_until_cancelled_owned(serve_tcp(shared, tcp)));
        Ok(Self { end, address })
    }

    #[cfg(test)]
    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends the server.
    pub(crate) fn close(&self) {
        tracing::debug!(address = %self.address, "the name server of the private network ends");
        self.end.cancel();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

#[derive(Debug)]
struct Shared {
    forwarder: Forwarder,
    gateway: IpAddr,
    directory: Arc<Directory>,
    gate: Arc<dyn Gate>,
    in_flight: Semaphore,
    /// Questions that are forwarded.
    forwarded: Arc<Shares>,
    datagrams: Arc<Shares>,
    connections: Arc<Shares>,
}

/// Counts what each instance has of something, so that one cannot use up everybody's.
#[derive(Debug)]
pub(crate) struct Shares<K: Eq + Hash = IpAddr> {
    each: usize,
    taken: std::sync::Mutex<HashMap<K, usize>>,
}

/// One of somebody's share, given back when dropped.
#[derive(Debug)]
pub(crate) struct Share<K: Eq + Hash = IpAddr> {
    of: Arc<Shares<K>>,
    source: K,
}

impl<K: Eq + Hash> Shares<K> {
    pub(crate) fn new(each: usize) -> Arc<Self> {
        Arc::new(Self {
            each,
            taken: std::sync::Mutex::default(),
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<K, usize>> {
        self.taken
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// `None` when this one has all that it may.
    pub(crate) fn take(self: &Arc<Self>, source: K) -> Option<Share<K>>
    where
        K: Copy,
    {
        let mut taken = self.lock();
        let count = taken.entry(source).or_default();
        if *count >= self.each {
            return None;
        }
        *count += 1;
        Some(Share {
            of: Arc::clone(self),
            source,
        })
    }
}

impl<K: Eq + Hash> Drop for Share<K> {
    fn drop(&mut self) {
        let mut taken = self.of.lock();
        if let Some(count) = taken.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.source);
            }
        }
    }
}

impl Shared {
    /// `None` when too many questions are under way: the asker will ask again.
    fn turn(&self, source: IpAddr) -> Option<(SemaphorePermit<'_>, Share)> {
        Some((self.in_flight.try_acquire().ok()?, self.forwarded.take(source)?))
    }

    /// The answer to one question, or `None` when there is none to give.
    async fn answer(&self, question: &[u8], source: IpAddr, transport: Transport) -> Option<Vec<u8>> {
        let IpAddr::V4(asker) = source else { return None };
        match answer::judge(question, &self.directory, asker)? {
            Verdict::Answer(answer) => Some(answer),
            Verdict::Forward => {
                // One that the site does not know of yet asks again.
                let names = self.directory.outside(asker)?;
                let name = outside::asked_name(&Message::from_vec(question).ok()?);
                let Some(opens) = names.opens(name.as_deref()) else {
                    self.gate.refused(asker, &name?);
                    return answer::refusal(question);
                };
                // The guard is to be found at the gateway, which is our own address.
                if let (Some(guarded), IpAddr::V4(gateway)) = (self.directory.guarded(asker), self.gateway)
                    && name.is_some_and(|name| guarded.is_bound(&name))
                {
                    return answer::guarded(question, gateway);
                }
                let Some(_turn) = self.turn(source) else {
                    return answer::server_failure(question);
                };
                let Some(answer) = self.forwarder.ask(question, transport).await else {
                    return answer::server_failure(question);
                };
                if self.directory.outside(asker).as_ref() != Some(&names) {
                    // Its policy changed meanwhile: it asks again, and is judged by the new one.
                    return answer::server_failure(question);
                }
                if opens {
                    let found = outside::addresses(&answer);
                    if !found.is_empty() && !self.gate.let_reach(asker, &found).await {
                        return answer::server_failure(question);
                    }
                }
                Some(answer)
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transport {
    Udp,
    Tcp,
}

async fn serve_udp(shared: Arc<Shared>, socket: Arc<UdpSocket>) {
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        let (length, source) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                tracing::warn!(%error, "the name server cannot receive");
                tokio::time::sleep(ERROR_PAUSE).await;
                continue;
            }
        };
        let Some(share) = shared.datagrams.take(source.ip()) else {
            continue;
        };
        let question = buffer.get(..length).unwrap_or_default().to_vec();
        let (shared, socket) = (Arc::clone(&shared), Arc::clone(&socket));
        tokio::spawn(async move {
            let _share = share;
            if let Some(answer) = shared.answer(&question, source.ip(), Transport::Udp).await {
                // A lost answer is asked for again.
                let _lost = socket.send_to(&answer, source).await;
            }
        });
    }
}

async fn serve_tcp(shared: Arc<Shared>, listener: TcpListener) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&connections).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, source)) => {
                let Some(share) = shared.connections.take(source.ip()) else {
                    continue;
                };
                let shared = Arc::clone(&shared);
                tokio::spawn(async move {
                    let _held = (permit, share);
                    let _closed = converse(&shared, stream, source.ip()).await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the name server cannot accept");
                tokio::time::sleep(ERROR_PAUSE).await;
            }
        }
    }
}

/// Questions and answers with their length before them, until the other side is done.
async fn converse(shared: &Shared, mut stream: TcpStream, source: IpAddr) -> io::Result<()> {
    loop {
        let Some(question) = timed(read_framed(&mut stream)).await? else {
            return Ok(());
        };
        let Some(answer) = shared.answer(&question, source, Transport::Tcp).await else {
            return Ok(());
        };
        timed(write_framed(&mut stream, &answer)).await?;
    }
}

async fn timed<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(CONNECTION_IDLE, work)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn read_framed(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let length = match stream.read_u16().await {
        Ok(length) => length,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut message = vec![0; usize::from(length)];
    stream.read_exact(&mut message).await?;
    Ok(Some(message))
}

async fn write_framed(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    let mut framed = Vec::with_capacity(message.len() + 2);
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(message);
    stream.write_all(&framed).await
}

/// The contents of `/etc/resolv.conf` of an instance. `ndots:1` so that `service.app` is asked as it is.
pub(crate) fn resolv_conf(gateway: Ipv4Addr) -> String {
    format!("nameserver {gateway}\noptions ndots:1 timeout:2 attempts:3\n")
}

#[cfg(test)]
mod tests;
