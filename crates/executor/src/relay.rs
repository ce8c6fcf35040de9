//! The one port of the sandbox that is shown outside: bytes of the proxy port go to the port that is bound.
//!
//! One binding at a time. With none, a connection is accepted, held for a moment and closed: a TCP health check then
//! says that the sandbox is there.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::StatusCode;
use serde::{Deserialize, Serialize};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

use crate::accept::Connections;
use crate::reply::{Reply, json, text};

/// How long a connection is held while nothing is bound.
const UNBOUND_HOLD: Duration = Duration::from_millis(100);
/// Connections relayed at once: two descriptors each, far below what the sandbox may open.
const CONNECTIONS_MAX: usize = 8192;

/// Which port is bound.
#[derive(Debug, Clone, Default)]
pub(crate) struct Binding(Arc<Mutex<Option<u16>>>);

/// A port as clients send it: text, or a number.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Port {
    Number(u64),
    Text(String),
}

/// The body of a request to bind or unbind.
#[derive(Debug, Deserialize)]
pub(crate) struct Wanted {
    port: Option<Port>,
}

#[derive(Debug, Serialize)]
struct Done {
    success: bool,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<String>,
}

#[derive(Debug, Serialize)]
struct Taken {
    success: bool,
    error: String,
    current_port: String,
}

#[derive(Debug, Serialize)]
struct Status {
    bound: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<String>,
}

impl Binding {
    fn current(&self) -> Option<u16> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Binds a port, when none is.
    pub(crate) fn bind(&self, wanted: &Wanted) -> Reply {
        let port = match &wanted.port {
            Some(Port::Number(number)) => u16::try_from(*number).ok(),
            Some(Port::Text(text)) => text.parse().ok(),
            None => None,
        };
        let Some(port) = port.filter(|port| *port > 0) else {
            return text(StatusCode::BAD_REQUEST, "`port` must be a number from 1 to 65535");
        };
        let mut bound = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(current) = *bound {
            let taken = Taken {
                success: false,
                error: format!("port {current} is bound already: unbind it first"),
                current_port: current.to_string(),
            };
            return json(StatusCode::CONFLICT, &taken);
        }
        *bound = Some(port);
        let done = Done {
            success: true,
            message: format!("port {port} is bound"),
            port: Some(port.to_string()),
        };
        json(StatusCode::OK, &done)
    }

    /// Unbinds whatever is bound. Connections that are open stay.
    pub(crate) fn unbind(&self) -> Reply {
        let before = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        let message = before.map_or_else(
            || "no port was bound".to_owned(),
            |port| format!("port {port} is no longer bound"),
        );
        let done = Done {
            success: true,
            message,
            port: None,
        };
        json(StatusCode::OK, &done)
    }

    /// What is bound.
    pub(crate) fn status(&self) -> Reply {
        let port = self.current();
        let status = Status {
            bound: port.is_some(),
            port: port.map(|port| port.to_string()),
        };
        json(StatusCode::OK, &status)
    }

    /// Relays connections, for ever.
    pub(crate) async fn relay(self, listener: TcpListener) {
        let connections = Connections::of(listener, CONNECTIONS_MAX);
        while let Some((stream, place)) = connections.next().await {
            let port = self.current();
            tokio::spawn(async move {
                match port {
                    Some(port) => pass(stream, port).await,
                    None => tokio::time::sleep(UNBOUND_HOLD).await,
                }
                drop(place);
            });
        }
    }
}

/// Both ways, until both have ended. Servers may listen on either loopback address.
async fn pass(mut client: TcpStream, port: u16) {
    let addresses = [
        SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        SocketAddr::from((Ipv6Addr::LOCALHOST, port)),
    ];
    for address in addresses {
        if let Ok(mut server) = TcpStream::connect(address).await {
            // Small answers go out at once; a relay that waits for more adds 40 ms to each.
            let _ = client.set_nodelay(true);
            let _ = server.set_nodelay(true);
            let _ = copy_bidirectional(&mut client, &mut server).await;
            return;
        }
    }
}
