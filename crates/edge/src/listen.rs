//! Sockets to listen on, with errors that say which port and what to do, and the settings of every connection.
//!
//! Options set on a listener are inherited by the connections it accepts, so accepting costs no further calls.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, sockopt};

use crate::error::Error;

/// Connections that wait to be accepted: a burst at zero, several times over.
const BACKLOG: i32 = 4096;

/// Silence after which the kernel asks whether the peer is still there, and how often it asks. Together a dead peer
/// is noticed after two minutes.
const KEEP_ALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEP_ALIVE_PROBES: u32 = 4;

/// A client that acknowledges nothing for so long, or keeps its window closed, is cut off: what it does not read holds
/// a place in its service. A client that reads, however slowly, opens its window. As long as the keep-alive takes.
const CLIENT_STALL: Duration = Duration::from_secs(120);

/// Listens on one address. Does not share the port with anybody.
pub(crate) fn bind(address: SocketAddr) -> Result<TcpListener, Error> {
    open(address).map_err(|errno| {
        let source = io::Error::from(errno);
        match errno {
            rustix::io::Errno::ADDRINUSE => Error::PortTaken { address, source },
            rustix::io::Errno::ACCESS | rustix::io::Errno::PERM => {
                Error::PortNotPermitted { address, source }
            }
            _ => Error::Listen { address, source },
        }
    })
}

/// Listens on all of `addresses`, passing over IPv6 ones on a machine without IPv6.
pub(crate) fn bind_all(addresses: &[SocketAddr]) -> Result<Vec<TcpListener>, Error> {
    let mut listeners = Vec::with_capacity(addresses.len());
    for address in addresses {
        match bind(*address) {
            Ok(listener) => listeners.push(listener),
            Err(Error::Listen { source, .. })
                if is_absent(&source) && matches!(address.ip(), IpAddr::V6(_)) =>
            {
                tracing::warn!(%address, "this machine has no IPv6, so nothing listens there");
            }
            Err(error) => return Err(error),
        }
    }
    if listeners.is_empty() && !addresses.is_empty() {
        Err(Error::NoListener)
    } else {
        Ok(listeners)
    }
}

fn is_absent(error: &io::Error) -> bool {
    let absent =
        [rustix::io::Errno::ADDRNOTAVAIL, rustix::io::Errno::AFNOSUPPORT].map(|errno| errno.raw_os_error());
    error.raw_os_error().is_some_and(|raw| absent.contains(&raw))
}

fn open(address: SocketAddr) -> rustix::io::Result<TcpListener> {
    let family = if address.is_ipv6() {
        AddressFamily::INET6
    } else {
        AddressFamily::INET
    };
    let socket = rustix::net::socket_with(
        family,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        Some(ipproto::TCP),
    )?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    sockopt::set_socket_reuseaddr(&socket, true)?;
    set_options(&socket)?;
    let stall_ms = u32::try_from(CLIENT_STALL.as_millis()).unwrap_or(u32::MAX);
    sockopt::set_tcp_user_timeout(&socket, stall_ms)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(TcpListener::from(socket))
}

fn set_options(socket: impl AsFd) -> rustix::io::Result<()> {
    let socket = socket.as_fd();
    sockopt::set_tcp_nodelay(socket, true)?;
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, KEEP_ALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(socket, KEEP_ALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(socket, KEEP_ALIVE_PROBES)
}

/// Sets the same on a connection that we opened.
pub(crate) fn tune(socket: impl AsFd) {
    if let Err(errno) = set_options(socket) {
        tracing::debug!(%errno, "cannot set the options of a connection");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_named() {
        let first = bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a free port");
        let address = first.local_addr().expect("bound");
        let error = bind(address).expect_err("taken");
        assert!(matches!(error, Error::PortTaken { .. }));
        assert!(
            error
                .to_string()
                .contains(&format!("port {} on 127.0.0.1 is taken", address.port())),
            "{error}"
        );
    }

    #[test]
    fn clients_that_take_nothing_are_bounded_and_instances_are_not() {
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a free port");
        let to_instance =
            std::net::TcpStream::connect(listener.local_addr().expect("bound")).expect("listens");
        let (client, _) = listener.accept().expect("a client");
        tune(&to_instance);
        let bound = |socket: &std::net::TcpStream| sockopt::tcp_user_timeout(socket).expect("a socket");
        assert_eq!((bound(&client), bound(&to_instance)), (120_000, 0));
    }

    #[test]
    fn both_families_can_share_a_port_number() {
        let four = bind(SocketAddr::from(([0, 0, 0, 0], 0))).expect("a free port");
        let port = four.local_addr().expect("bound").port();
        match bind(SocketAddr::new(std::net::Ipv6Addr::UNSPECIFIED.into(), port)) {
            Ok(_) => {}
            Err(Error::Listen { source, .. }) if is_absent(&source) => eprintln!("skipped: no IPv6 here"),
            Err(error) => panic!("{error}"),
        }
    }
}
