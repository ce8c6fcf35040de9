//! Addresses of this machine as its own programs use them, and as URLs say them.

use std::net::{IpAddr, SocketAddr};

use tram_cli::Settings;

/// Where this process reaches the edge, in the clear.
pub(crate) fn edge_address(settings: &Settings) -> SocketAddr {
    let ip = settings.http_listen.first().copied();
    let ip = ip.unwrap_or(IpAddr::from(std::net::Ipv4Addr::LOCALHOST));
    reachable(SocketAddr::new(ip, settings.http_port))
}

/// What a URL says of a port: nothing of the usual one.
pub(crate) fn port_suffix(port: u16, usual: u16) -> String {
    if port == usual {
        String::new()
    } else {
        format!(":{port}")
    }
}

/// An address that a client on this machine can use.
pub(crate) fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::from(std::net::Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::from(std::net::Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}
