//! What can keep an edge from starting or serving. Refusals of single requests are pages (`page.rs`), not errors.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Why the edge did not start, or stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Somebody else listens there.
    #[error("port {} on {} is taken: stop the program that holds it (`ss -ltnp 'sport = :{}'` names it) or choose another port", .address.port(), .address.ip(), .address.port())]
    PortTaken {
        /// Where we wanted to listen.
        address: SocketAddr,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Ports below 1024 want a privilege.
    #[error("not permitted to listen on port {} of {}: run as root, grant the binary CAP_NET_BIND_SERVICE (`setcap cap_net_bind_service+ep`), or choose a port of 1024 or more", .address.port(), .address.ip())]
    PortNotPermitted {
        /// Where we wanted to listen.
        address: SocketAddr,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Any other refusal to listen.
    #[error("cannot listen on {address}")]
    Listen {
        /// Where we wanted to listen.
        address: SocketAddr,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// No address was left to listen on.
    #[error("nothing to listen on: every configured address is absent on this machine")]
    NoListener,
    /// A second edge on the same state directory.
    #[error("another edge serves {}: stop it first", .state_dir.display())]
    AlreadyRunning {
        /// Whose lock is held.
        state_dir: PathBuf,
    },
    /// Reading or writing our own files.
    #[error("cannot {doing} {}", .path.display())]
    File {
        /// What we were doing: "create", "read"…
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The kernel refused a thread or a runtime.
    #[error("cannot start worker {index}")]
    Worker {
        /// Which worker.
        index: usize,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The local certificate authority.
    #[error("the local certificate authority is not usable")]
    Authority(#[from] crate::ca::Error),
    /// rustls did not take our settings.
    #[error("cannot set up TLS")]
    Tls(#[from] rustls::Error),
    /// A table that does not hold together.
    #[error("cannot use the routing table")]
    Table(#[from] crate::TableError),
}
