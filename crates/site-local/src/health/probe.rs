//! One probe: from this machine to the instance's address.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use http_body_util::Empty;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tram_types::effective::{HealthCheck, Port, PortProtocol, Probe};

/// What the program's logs show as the one who asks, unless the check has a header for it.
const USER_AGENT: &str = "tramontane-health-check";

/// Why a probe failed; [`Failure::to_string`] is for the user.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("nothing listens on port {port}: connection refused")]
    Refused { port: u16 },
    #[error("port {port} does not answer within {} seconds", .timeout.as_secs_f32())]
    TimedOut { port: u16, timeout: Duration },
    #[error("cannot connect to port {port}: {source}")]
    Connect { port: u16, source: io::Error },
    #[error("{method} {path} on port {port} answered {status}")]
    Status {
        method: String,
        path: String,
        port: u16,
        status: u16,
    },
    #[error("{method} {path} on port {port} got no HTTP answer: {source}")]
    NoHttp {
        method: String,
        path: String,
        port: u16,
        source: hyper::Error,
    },
    #[error("the health check cannot be made: {reason}")]
    Impossible { reason: String },
}

/// Does what the check says, within its timeout.
pub(super) async fn probe(address: IpAddr, ports: &[Port], check: &HealthCheck) -> Result<(), Failure> {
    let port = match &check.probe {
        Probe::Tcp { port } | Probe::Http { port, .. } => *port,
    };
    let work = async {
        let connected = TcpStream::connect(SocketAddr::new(address, port)).await;
        let stream = connected.map_err(|source| match source.kind() {
            io::ErrorKind::ConnectionRefused => Failure::Refused { port },
            _ => Failure::Connect { port, source },
        })?;
        match &check.probe {
            Probe::Tcp { .. } => Ok(()),
            Probe::Http {
                path,
                method,
                headers,
                ..
            } => {
                let http2 = ports
                    .iter()
                    .any(|known| known.port == port && known.protocol == PortProtocol::Http2);
                ask(stream, address, port, path, method, headers, http2).await
            }
        }
    };
    tokio::time::timeout(check.timeout, work)
        .await
        .unwrap_or(Err(Failure::TimedOut {
            port,
            timeout: check.timeout,
        }))
}

async fn ask(
    stream: TcpStream,
    address: IpAddr,
    port: u16,
    path: &str,
    method: &str,
    headers: &[(String, String)],
    http2: bool,
) -> Result<(), Failure> {
    let authority = SocketAddr::new(address, port).to_string();
    let given = |name: &str| headers.iter().any(|(key, _)| key.eq_ignore_ascii_case(name));
    let target = if http2 {
        format!("http://{authority}{path}")
    } else {
        path.to_owned()
    };
    let mut request = http::Request::builder().method(method).uri(target);
    if !given("host") && !http2 {
        request = request.header(http::header::HOST, &authority);
    }
    if !given("user-agent") {
        request = request.header(http::header::USER_AGENT, USER_AGENT);
    }
    for (key, value) in headers {
        request = request.header(key, value);
    }
    let request = request
        .body(Empty::<bytes::Bytes>::new())
        .map_err(|error| Failure::Impossible {
            reason: error.to_string(),
        })?;
    let no_http = |source| Failure::NoHttp {
        method: method.to_owned(),
        path: path.to_owned(),
        port,
        source,
    };
    let stream = TokioIo::new(stream);
    // The body is not read: dropping the connection ends it.
    let response = if http2 {
        let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream)
            .await
            .map_err(no_http)?;
        let connection = Background(tokio::spawn(connection));
        let response = sender.send_request(request).await.map_err(no_http)?;
        drop(connection);
        response
    } else {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream)
            .await
            .map_err(no_http)?;
        let connection = Background(tokio::spawn(connection));
        let response = sender.send_request(request).await.map_err(no_http)?;
        drop(connection);
        response
    };
    let status = response.status();
    if status.is_success() || status.is_redirection() {
        return Ok(());
    }
    Err(Failure::Status {
        method: method.to_owned(),
        path: path.to_owned(),
        port,
        status: status.as_u16(),
    })
}

/// A task that ends with its handle, so that a probe given up leaves no connection.
struct Background<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for Background<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn run(probe_kind: impl FnOnce(u16) -> Probe, answer: &'static str) -> Result<(), String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = vec![0; 4096];
            let length = stream.read(&mut buffer).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&buffer[..length]).into_owned()
        });
        let check = HealthCheck {
            grace_period: Duration::ZERO,
            interval: Duration::from_secs(1),
            restart_limit: 3,
            timeout: Duration::from_secs(5),
            probe: probe_kind(port),
        };
        let result = probe("127.0.0.1".parse().unwrap(), &[], &check).await;
        if let Probe::Http { path, .. } = &check.probe {
            let seen = server.await.unwrap();
            assert!(seen.starts_with(&format!("HEAD {path} HTTP/1.1\r\n")), "{seen}");
            assert!(
                seen.contains("x-probe: yes") && seen.contains("host: 127.0.0.1:"),
                "{seen}"
            );
        }
        result.map_err(|failure| failure.to_string().replace(&port.to_string(), "PORT"))
    }

    fn http(port: u16) -> Probe {
        Probe::Http {
            port,
            path: "/health".to_owned(),
            method: "HEAD".to_owned(),
            headers: vec![("x-probe".to_owned(), "yes".to_owned())],
        }
    }

    #[tokio::test]
    async fn what_passes_and_what_fails() {
        assert_eq!(run(|port| Probe::Tcp { port }, "").await, Ok(()));
        assert_eq!(run(http, "HTTP/1.1 204 No Content\r\n\r\n").await, Ok(()));
        assert_eq!(
            run(
                http,
                "HTTP/1.1 302 Found\r\nlocation: /\r\ncontent-length: 0\r\n\r\n"
            )
            .await,
            Ok(())
        );
        let failed = run(http, "HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n").await;
        assert_eq!(failed.unwrap_err(), "HEAD /health on port PORT answered 500");
        let failed = run(http, "SSH-2.0-OpenSSH_9.2\r\n").await;
        assert!(
            failed
                .unwrap_err()
                .starts_with("HEAD /health on port PORT got no HTTP answer")
        );
    }

    #[tokio::test]
    async fn a_closed_port_and_a_silent_one() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut check = HealthCheck {
            grace_period: Duration::ZERO,
            interval: Duration::from_secs(1),
            restart_limit: 3,
            timeout: Duration::from_millis(200),
            probe: http(port),
        };
        let failure = probe("127.0.0.1".parse().unwrap(), &[], &check)
            .await
            .unwrap_err();
        assert_eq!(
            failure.to_string(),
            format!("port {port} does not answer within 0.2 seconds")
        );
        drop(listener);
        check.probe = Probe::Tcp { port };
        let failure = probe("127.0.0.1".parse().unwrap(), &[], &check)
            .await
            .unwrap_err();
        assert!(matches!(failure, Failure::Refused { .. }), "{failure}");
    }
}
