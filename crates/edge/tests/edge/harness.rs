//! A running edge in a temporary directory, small servers to stand behind it, and plain clients.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tram_edge::{Config, Edge, Handle};
use tram_types::routing::{Endpoint, Host, Protocol, Route, RoutingTable, Security, Service, State};
use uuid::Uuid;

/// Long enough for a busy machine, short enough to fail.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The port that instances declare in these tests.
pub(crate) const PORT: u16 = 8000;

pub(crate) type Body = BoxBody<Bytes, Infallible>;

/// A running edge; stops when dropped.
pub(crate) struct Fixture {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) handle: Handle,
    pub(crate) http: SocketAddr,
    pub(crate) https: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    served: tokio::task::JoinHandle<Result<(), tram_edge::Error>>,
}

pub(crate) fn config(dir: &std::path::Path) -> Config {
    let mut config = Config::loopback(dir, 0, 0);
    config.base_domain = "test".into();
    config.http.truncate(1);
    config.https.truncate(1);
    config.tcp.truncate(1);
    config.workers = 2;
    config.drain = Duration::from_secs(5);
    config
}

impl Fixture {
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let config = config(dir.path());
        Self::with(dir, config)
    }

    pub(crate) fn with(dir: tempfile::TempDir, config: Config) -> Self {
        let edge = Edge::bind(config).expect("free ports");
        let (handle, addresses) = (edge.handle(), edge.addresses());
        let (stop, stopped) = oneshot::channel::<()>();
        let served = tokio::spawn(edge.serve(async move {
            let _dropped = stopped.await;
        }));
        Self {
            dir,
            handle,
            http: addresses.http[0],
            https: addresses.https[0],
            stop: Some(stop),
            served,
        }
    }

    pub(crate) fn apply(&self, table: RoutingTable) {
        self.handle.apply(table).expect("a sound table");
    }

    /// Begins to stop without waiting.
    pub(crate) fn begin_stop(&mut self) {
        drop(self.stop.take());
    }

    /// Stops and gives the directory back.
    pub(crate) async fn stop(mut self) -> tempfile::TempDir {
        self.begin_stop();
        tokio::time::timeout(PATIENCE, self.served)
            .await
            .expect("ends in time")
            .expect("no panic")
            .expect("ends well");
        self.dir
    }
}

/// A table with one host, `app.test`, one service and its instances.
pub(crate) fn table(version: u64, service: Service) -> RoutingTable {
    RoutingTable {
        version,
        base_domain: "test".into(),
        hosts: vec![
            Host {
                name: "app.test".into(),
                routes: vec![route("/", service.id)],
            }
            .into(),
        ],
        services: vec![service.into()],
        ..RoutingTable::default()
    }
}

pub(crate) fn route(prefix: &str, service_id: Uuid) -> Route {
    Route {
        prefix: prefix.into(),
        service_id,
        port: PORT,
        protocol: Protocol::Http,
        security: Security::default(),
    }
}

pub(crate) fn service(state: State, instances: &[SocketAddr]) -> Service {
    Service {
        endpoints: instances.iter().map(|address| endpoint(*address)).collect(),
        ..Service::new(Uuid::new_v4(), "shop/web", state)
    }
}

/// The same address is the same instance.
pub(crate) fn endpoint(address: SocketAddr) -> Endpoint {
    let instance_id = Uuid::from_u64_pair(7, u64::from(address.port()));
    Endpoint {
        instance_id,
        addresses: [(PORT, address)].into(),
        weight: 1,
        canary: false,
        deployment_id: None,
    }
}

/// A server that answers with what `answer` makes of each request. HTTP/1.1, or HTTP/2 with prior knowledge.
pub(crate) async fn upstream<F, A>(http2: bool, answer: F) -> SocketAddr
where
    F: Fn(Request<Incoming>) -> A + Send + Sync + 'static,
    A: Future<Output = Response<Body>> + Send + 'static,
{
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("accepts");
            let answer = Arc::clone(&answer);
            let service = service_fn(move |request| {
                let answer: Pin<Box<dyn Future<Output = Response<Body>> + Send>> = Box::pin(answer(request));
                async move { Ok::<_, Infallible>(answer.await) }
            });
            tokio::spawn(async move {
                if http2 {
                    let _ended = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                } else {
                    let _ended = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .with_upgrades()
                        .await;
                }
            });
        }
    });
    address
}

/// A server that says the same to everybody.
pub(crate) async fn says(text: &'static str) -> SocketAddr {
    upstream(false, move |_| async move { Response::new(full(text)) }).await
}

/// A server that tells what it was asked.
pub(crate) async fn echo(http2: bool) -> SocketAddr {
    upstream(http2, |request| async move {
        let headers: Vec<String> = request
            .headers()
            .iter()
            .map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())))
            .collect();
        let head = format!(
            "{} {}\n{}\n\n",
            request.method(),
            request.uri(),
            headers.join("\n")
        );
        let body = request
            .into_body()
            .collect()
            .await
            .map(|body| body.to_bytes())
            .unwrap_or_default();
        Response::new(full([head.as_bytes(), &body].concat()))
    })
    .await
}

pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).boxed()
}

/// An address on which nobody listens.
pub(crate) async fn nobody() -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
    listener.local_addr().expect("bound")
}

/// An answer read whole.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) async fn read(response: Response<Incoming>) -> Self {
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.expect("a whole body").to_bytes();
        Self {
            status: parts.status,
            headers: parts.headers,
            text: String::from_utf8_lossy(&bytes).into_owned(),
        }
    }

    pub(crate) fn code(&self) -> &str {
        self.headers
            .get("x-tram-error")
            .and_then(|code| code.to_str().ok())
            .unwrap_or_default()
    }
}

pub(crate) type Sender = hyper::client::conn::http1::SendRequest<Full<Bytes>>;

/// A connection to the edge.
pub(crate) async fn connect(edge: SocketAddr) -> Sender {
    let stream = TcpStream::connect(edge).await.expect("the edge listens");
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .expect("HTTP/1.1");
    tokio::spawn(connection.with_upgrades());
    sender
}

pub(crate) fn request(path: &str) -> http::request::Builder {
    Request::builder().uri(path).header("host", "app.test")
}

/// One request on its own connection.
pub(crate) async fn send(edge: SocketAddr, request: Request<Full<Bytes>>) -> Answer {
    let answer = async {
        Answer::read(
            connect(edge)
                .await
                .send_request(request)
                .await
                .expect("an answer"),
        )
        .await
    };
    tokio::time::timeout(PATIENCE, answer).await.expect("in time")
}

pub(crate) async fn get(edge: SocketAddr, path: &str) -> Answer {
    send(edge, request(path).body(Full::default()).expect("a request")).await
}

/// Bytes to the edge as they are, and all that comes back until it closes or has answered on a connection that stays.
pub(crate) async fn raw(edge: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(edge).await.expect("the edge listens");
    stream.write_all(bytes).await.expect("takes bytes");
    let mut got = Vec::new();
    let mut buffer = [0; 4096];
    let answer = async {
        while let Ok(read @ 1..) = stream.read(&mut buffer).await {
            got.extend_from_slice(&buffer[..read]);
            if stays_answered(&String::from_utf8_lossy(&got)) {
                break;
            }
        }
    };
    tokio::time::timeout(PATIENCE, answer)
        .await
        .expect("an answer or an end");
    String::from_utf8_lossy(&got).into_owned()
}

/// Whether this is a whole answer, by the length or the last chunk that it tells, and the connection stays open after it.
fn stays_answered(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
    let whole = match length {
        Some(length) => body.len() >= length,
        // The last chunk has no bytes; trailers may follow it, then an empty line.
        None if head.contains("\ntransfer-encoding: chunked") => {
            (body.starts_with("0\r\n") || body.contains("\r\n0\r\n")) && body.ends_with("\r\n\r\n")
        }
        None => false,
    };
    whole && !head.contains("\nconnection: close")
}

/// Polls until `condition` holds.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "never came true: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// The value of a metric's line that contains `labels`.
pub(crate) fn metric(text: &str, name: &str, labels: &str) -> Option<f64> {
    text.lines()
        .find(|line| line.starts_with(name) && line.contains(labels))
        .and_then(|line| line.rsplit(' ').next())
        .and_then(|value| value.parse().ok())
}
