//! Questions to the name servers outside.
//!
//! Each question goes out over a socket of its own with a random port and a random id, so that a forged answer has
//! both to guess. The name servers are those given, or those of `/etc/resolv.conf`, read again when it changes.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Name, RecordType};
use tokio::net::{TcpStream, UdpSocket};

use super::{DATAGRAM_BYTES_MAX, PORT, Transport, read_framed, write_framed};

/// Where a machine says who its name servers are.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// How old a reading of that file may be.
const RESOLV_CONF_AGE: Duration = Duration::from_secs(5);
/// One name server has so long; resolvers in instances wait 2 s before they ask again.
const ATTEMPT_TIMEOUT: Duration = Duration::from_millis(1500);
/// As many as the C library uses.
const NAME_SERVERS_MAX: usize = 3;
/// The bit of a header's third byte that says that the answer was cut to fit a datagram.
const TRUNCATED: u8 = 0b10;
/// Id and flags; shorter is no message.
const HEADER_BYTES: usize = 12;

/// Looks names of the outside up for the site itself.
#[derive(Debug)]
pub(crate) struct Resolver(Forwarder);

impl Resolver {
    /// Asks `given`, or with none the machine's name servers; never `own`.
    pub(crate) fn new(given: Vec<SocketAddr>, own: IpAddr) -> Self {
        Self(Forwarder::new(given, own))
    }

    /// The IPv4 addresses of a name; none when it has none, or nobody answers.
    pub(crate) async fn addresses(&self, name: &str) -> Vec<Ipv4Addr> {
        let Ok(mut name) = Name::from_ascii(name) else {
            return Vec::new();
        };
        name.set_fqdn(true);
        let mut question = Message::query();
        question.metadata.recursion_desired = true;
        question.add_query(Query::query(name, RecordType::A));
        let Ok(question) = question.to_vec() else {
            return Vec::new();
        };
        let mut answer = self.0.ask(&question, Transport::Udp).await;
        let is_cut = |answer: &Vec<u8>| answer.get(2).is_some_and(|flags| flags & TRUNCATED != 0);
        if answer.as_ref().is_some_and(is_cut) {
            answer = self.0.ask(&question, Transport::Tcp).await.or(answer);
        }
        let found = super::outside::addresses(&answer.unwrap_or_default());
        found
            .into_iter()
            .filter_map(|(address, _)| match address {
                IpAddr::V4(address) => Some(address),
                IpAddr::V6(_) => None,
            })
            .collect()
    }
}

#[derive(Debug)]
pub(super) struct Forwarder {
    given: Vec<SocketAddr>,
    /// Ourselves: a machine that uses this very server must not make it ask itself.
    own: IpAddr,
    read: Mutex<Option<(Instant, Vec<SocketAddr>)>>,
}

impl Forwarder {
    pub(super) fn new(given: Vec<SocketAddr>, own: IpAddr) -> Self {
        Self {
            given,
            own,
            read: Mutex::default(),
        }
    }

    /// The answer of the first name server that gives one.
    pub(super) async fn ask(&self, question: &[u8], transport: Transport) -> Option<Vec<u8>> {
        for server in self.name_servers().await {
            let attempt = async {
                match transport {
                    Transport::Udp => ask_udp(question, server).await,
                    Transport::Tcp => ask_tcp(question, server).await,
                }
            };
            match tokio::time::timeout(ATTEMPT_TIMEOUT, attempt).await {
                Ok(Ok(answer)) => return Some(answer),
                Ok(Err(error)) => tracing::debug!(%server, %error, "a name server cannot be asked"),
                Err(_) => tracing::debug!(%server, "a name server does not answer"),
            }
        }
        None
    }

    async fn name_servers(&self) -> Vec<SocketAddr> {
        if !self.given.is_empty() {
            return self.given.clone();
        }
        let known = self.read.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((at, servers)) = known
            && at.elapsed() < RESOLV_CONF_AGE
        {
            return servers;
        }
        let text = tokio::fs::read_to_string(RESOLV_CONF).await.unwrap_or_default();
        let mut servers = parse(&text);
        servers.retain(|server| server.ip() != self.own);
        servers.truncate(NAME_SERVERS_MAX);
        *self.read.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), servers.clone()));
        servers
    }
}

/// The `nameserver` lines; with none, the one on this machine, as the C library does.
fn parse(text: &str) -> Vec<SocketAddr> {
    let mut servers: Vec<SocketAddr> = text
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            if words.next() != Some("nameserver") {
                return None;
            }
            let address = words.next()?.parse::<IpAddr>().ok()?;
            Some(SocketAddr::new(address, PORT))
        })
        .collect();
    if servers.is_empty() {
        servers.push(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), PORT));
    }
    servers
}

async fn ask_udp(question: &[u8], server: SocketAddr) -> io::Result<Vec<u8>> {
    let any: IpAddr = if server.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    let (sent, id) = with_random_id(question)?;
    socket.send(&sent).await?;
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let answer = buffer.get(..length).unwrap_or_default();
        // Anything else is late or forged.
        if answer.len() >= HEADER_BYTES && answer.starts_with(&id) {
            return Ok(with_id_of(answer, question));
        }
    }
}

async fn ask_tcp(question: &[u8], server: SocketAddr) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let (sent, id) = with_random_id(question)?;
    write_framed(&mut stream, &sent).await?;
    let answer = read_framed(&mut stream)
        .await?
        .ok_or(io::ErrorKind::UnexpectedEof)?;
    if answer.len() >= HEADER_BYTES && answer.starts_with(&id) {
        Ok(with_id_of(&answer, question))
    } else {
        Err(io::ErrorKind::InvalidData.into())
    }
}

fn with_random_id(question: &[u8]) -> io::Result<(Vec<u8>, [u8; 2])> {
    let [a, b, ..] = uuid::Uuid::new_v4().into_bytes();
    let mut sent = question.to_vec();
    match sent.get_mut(..2) {
        Some(id) if question.len() >= HEADER_BYTES => id.copy_from_slice(&[a, b]),
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    }
    Ok((sent, [a, b]))
}

fn with_id_of(answer: &[u8], question: &[u8]) -> Vec<u8> {
    let mut answer = answer.to_vec();
    if let (Some(id), Some(original)) = (answer.get_mut(..2), question.get(..2)) {
        id.copy_from_slice(original);
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_machines_name_servers() {
        let text = "# comment\nsearch example.org\nnameserver 192.0.2.53\nnameserver fd00::53\nnameserver nonsense\n";
        assert_eq!(
            parse(text),
            ["192.0.2.53:53".parse().unwrap(), "[fd00::53]:53".parse().unwrap()]
        );
        assert_eq!(parse(""), ["127.0.0.1:53".parse().unwrap()]);
    }
}
