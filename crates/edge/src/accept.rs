//! Connections in: accept, TLS, which HTTP it speaks, and its requests to the pipeline.
//!
//! In the clear the first bytes tell HTTP/2 with prior knowledge from HTTP/1; under TLS ALPN does. A connection
//! that has sent nothing yet has no buffers.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::admit::{H2_HEAD_MAX_BYTES, HEAD_MAX_BYTES};
use crate::alarm::{Timer, watched};
use crate::forwarded::Client;
use crate::gather::Gather;
use crate::pipeline::{self, Context};
use crate::streams::{Impatient, Streams};
use crate::worker::{Shared, Worker};

/// From the first byte of a TLS connection to the end of its handshake; stops clients that open and say nothing.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a client may take over a request's head, and how long a kept connection may idle. nginx's keep-alive
/// default, so that clients tuned for it never race with our close.
const IDLE_TIMEOUT: Duration = Duration::from_secs(75);

/// Streams one HTTP/2 connection may have open: above browsers' and gRPC's habit of about 100.
const H2_STREAMS_MAX: u32 = 250;

/// A dead HTTP/2 client is noticed by a ping after this silence.
const H2_PING_INTERVAL: Duration = Duration::from_secs(60);

/// How long a client whose first HTTP/2 request may be on its way is waited for when the edge stops.
const FIRST_REQUEST_GRACE: Duration = Duration::from_secs(1);

/// Rest after the kernel had no descriptor for us; others must close first.
const ACCEPT_BACK_OFF: Duration = Duration::from_millis(50);

/// Share of the process's file descriptors that clients may hold, in percent: each may need one more at an instance, and
/// the rest is for everything else. Past it new clients wait in the kernel's queue.
const CLIENTS_SHARE_PERCENT: u64 = 45;

/// What an HTTP/2 connection with prior knowledge begins with, as far as it differs from every method.
const H2_PREFACE: &[u8] = b"PRI";

/// How many clients there is room for at a time.
pub(crate) fn connections_max() -> usize {
    // No limit is as good as one that nothing reaches.
    let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile)
        .current
        .unwrap_or(u64::from(u32::MAX));
    usize::try_from(descriptors * CLIENTS_SHARE_PERCENT / 100).unwrap_or(usize::MAX)
}

/// The next connection, once there is room for it.
pub(crate) async fn next(shared: &Shared, listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    while shared.open.len() >= shared.connections_max {
        tokio::time::sleep(ACCEPT_BACK_OFF).await;
    }
    listener.accept().await
}

/// Accepts until told to stop.
pub(crate) async fn run(worker: Arc<Worker>, listener: TcpListener, tls: bool, until: CancellationToken) {
    let port = listener.local_addr().map_or(0, |address| address.port());
    loop {
        let accepted = tokio::select! {
            biased;
            () = until.cancelled() => return,
            accepted = next(&worker.shared, &listener) => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let context = Arc::new(Context {
                    client: Client::new(peer.ip(), port, tls),
                    worker: Arc::clone(&worker),
                    alarm: Arc::default(),
                });
                worker.shared.open.spawn(connection(context, stream));
            }
            Err(error) => after_failed_accept(&error).await,
        }
    }
}

/// A connection reset before we took it is nobody's trouble; anything else is the machine's and needs a rest.
pub(crate) async fn after_failed_accept(error: &io::Error) {
    if !matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
    ) {
        tracing::warn!(
            error = error as &dyn std::error::Error,
            "cannot accept connections for the moment"
        );
        tokio::time::sleep(ACCEPT_BACK_OFF).await;
    }
}

async fn connection(context: Arc<Context>, stream: TcpStream) {
    let stop = context.worker.shared.stop.clone();
    let outcome = if context.client.tls {
        over_tls(context, stream, stop).await
    } else {
        in_the_clear(context, stream, stop).await
    };
    if let Err(error) = outcome {
        tracing::debug!(error = &*error, "a client's connection ended early");
    }
}

type Outcome = Result<(), Box<dyn std::error::Error + Send + Sync>>;

async fn in_the_clear(context: Arc<Context>, stream: TcpStream, stop: CancellationToken) -> Outcome {
    let mut first = [0; H2_PREFACE.len()];
    let seen = tokio::select! {
        biased;
        seen = tokio::time::timeout(IDLE_TIMEOUT, stream.peek(&mut first)) => match seen {
            Ok(seen) => seen?,
            Err(_) => return Ok(()),
        },
        () = stop.cancelled() => return Ok(()),
    };
    match &first[..seen] {
        [] => Ok(()),
        H2_PREFACE => Box::pin(http2(context, stream, stop)).await,
        begun if H2_PREFACE.starts_with(begun) => Box::pin(either(context, stream, stop)).await,
        _ => http1(context, stream, stop).await,
    }
}

async fn over_tls(context: Arc<Context>, stream: TcpStream, stop: CancellationToken) -> Outcome {
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::clone(&context.worker.shared.tls));
    let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await??;
    if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
        Box::pin(http2(context, stream, stop)).await
    } else {
        Box::pin(http1(context, stream, stop)).await
    }
}

async fn http1<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    context: Arc<Context>,
    stream: S,
    stop: CancellationToken,
) -> Outcome {
    let alarm = Arc::clone(&context.alarm);
    let mut connection = std::pin::pin!(
        http1::Builder::new()
            .timer(Timer(Arc::clone(&alarm)))
            .header_read_timeout(IDLE_TIMEOUT)
            .max_header_size(HEAD_MAX_BYTES)
            .serve_connection(
                Gather(TokioIo::new(stream)),
                service_fn(move |request| pipeline::boxed(Arc::clone(&context), request, None))
            )
            .with_upgrades()
    );
    watched(&alarm, async {
        tokio::select! {
            biased;
            outcome = connection.as_mut() => outcome?,
            () = stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await?;
            }
        }
        Ok(())
    })
    .await
}

async fn http2<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    context: Arc<Context>,
    stream: S,
    stop: CancellationToken,
) -> Outcome {
    let streams = Streams::new();
    let counted = Arc::clone(&streams);
    let mut connection = std::pin::pin!(
        http2::Builder::new(Impatient)
            .timer(TokioTimer::new())
            .keep_alive_interval(H2_PING_INTERVAL)
            .max_concurrent_streams(H2_STREAMS_MAX)
            .max_header_list_size(H2_HEAD_MAX_BYTES)
            .adaptive_window(true)
            .serve_connection(
                TokioIo::new(stream),
                service_fn(move |request| {
                    pipeline::boxed(Arc::clone(&context), request, Some(counted.place()))
                })
            )
    );
    tokio::select! {
        biased;
        outcome = connection.as_mut() => return Ok(outcome?),
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            if !streams.any() {
                // Nothing may ever come: a client that is only connected must not hold the stop up.
                let first = tokio::time::timeout(FIRST_REQUEST_GRACE, connection.as_mut()).await;
                match first {
                    Ok(outcome) => return Ok(outcome?),
                    Err(_) if !streams.any() => return Ok(()),
                    Err(_) => {}
                }
            }
        }
        () = streams.idle(IDLE_TIMEOUT) => {
            if !streams.any() {
                return Ok(());
            }
            connection.as_mut().graceful_shutdown();
        }
    }
    // Who does not take the last bytes, or does not hear the good-bye, is cut off when nothing is open any more.
    let cut = async {
        tokio::time::sleep(IDLE_TIMEOUT).await;
        streams.idle(IDLE_TIMEOUT).await;
    };
    tokio::select! {
        biased;
        outcome = connection => Ok(outcome?),
        () = cut => Ok(()),
    }
}

/// A first packet so short that it may be either; reads on to find out.
async fn either<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    context: Arc<Context>,
    mut stream: S,
    stop: CancellationToken,
) -> Outcome {
    let mut first = [0; H2_PREFACE.len()];
    let mut seen = 0;
    let read_on = async {
        while seen < first.len() && H2_PREFACE.starts_with(&first[..seen]) {
            match stream.read(&mut first[seen..]).await? {
                0 => break,
                more => seen += more,
            }
        }
        Ok::<_, io::Error>(())
    };
    tokio::select! {
        biased;
        outcome = tokio::time::timeout(IDLE_TIMEOUT, read_on) => match outcome {
            Ok(outcome) => outcome?,
            Err(_) => return Ok(()),
        },
        () = stop.cancelled() => return Ok(()),
    }
    let (read, write) = tokio::io::split(stream);
    let stream = tokio::io::join(
        AsyncReadExt::chain(io::Cursor::new(first[..seen].to_vec()), read),
        write,
    );
    if first == H2_PREFACE {
        http2(context, stream, stop).await
    } else {
        http1(context, stream, stop).await
    }
}

#[cfg(test)]
mod tests {
    use arc_swap::ArcSwap;
    use http::Request;
    use http_body_util::{BodyExt as _, Empty};
    use hyper_util::rt::TokioExecutor;
    use tokio::io::{AsyncWriteExt as _, DuplexStream};
    use tokio::time::Instant;
    use tokio_util::task::TaskTracker;

    use super::*;
    use crate::account::Signals;
    use crate::certificates::{self, Certificates};
    use crate::table::Table;

    fn size_of_result<A, B, F>(_: impl Fn(A, B) -> F) -> usize {
        size_of::<F>()
    }

    fn size_of_answer<A, B, C, F>(_: impl Fn(A, B, C) -> F) -> usize {
        size_of::<F>()
    }

    /// A connection keeps its future while idle, out of a budget of 16 KiB; a request's future is moved and freed
    /// each time.
    #[test]
    fn futures_stay_small() {
        let (request, open) = (size_of_answer(pipeline::handle), size_of_result(connection));
        assert!(
            request <= 6 * 1024 + 256 && open <= 3 * 1024,
            "a request: {request} bytes, a connection: {open} bytes"
        );
    }

    /// A connection to an edge that serves nothing.
    fn context() -> Arc<Context> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let table = Arc::new(ArcSwap::from_pointee(Table::empty()));
        let authority = crate::ca::ensure(dir.path(), "test").expect("an authority");
        let certificates = Arc::new(Certificates::new(dir.path(), authority, Arc::clone(&table)));
        let shared = Shared {
            table,
            signals: Arc::new(Signals::new()),
            log: None,
            usage: crate::usage::Journal::open(dir.path()).expect("nothing is there"),
            inference: crate::inference::Shared::new(),
            changed: tokio::sync::watch::Sender::new(0),
            tracer: None,
            unrouted: std::sync::atomic::AtomicU64::new(0),
            tls: Arc::new(certificates::server_config(certificates).expect("settings")),
            stop: CancellationToken::new(),
            end: CancellationToken::new(),
            connections_max: 9,
            open: TaskTracker::new(),
        };
        Arc::new(Context {
            worker: Arc::new(Worker {
                index: 0,
                shared: Arc::new(shared),
            }),
            client: Client::new([127, 0, 0, 1].into(), 80, false),
            alarm: Arc::default(),
        })
    }

    /// How long a connection lasted; fails when it lasts for ever.
    async fn lasted(connection: impl Future<Output = Outcome>) -> Duration {
        let begun = Instant::now();
        let ended = tokio::time::timeout(IDLE_TIMEOUT * 10, connection).await;
        let _how = ended.expect("the connection ends");
        begun.elapsed()
    }

    /// A client that asks once and then only answers pings.
    fn asks_once(io: DuplexStream) -> tokio::task::JoinHandle<()> {
        tokio::spawn(async move {
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(io))
                    .await
                    .expect("HTTP/2");
            tokio::spawn(connection);
            let asked = Request::get("http://a.test/").body(Empty::<bytes::Bytes>::new());
            let answer = sender
                .send_request(asked.expect("a request"))
                .await
                .expect("an answer");
            answer.into_body().collect().await.expect("a whole body");
            std::future::pending::<()>().await;
        })
    }

    #[tokio::test(start_paused = true)]
    async fn http2_clients_that_ask_nothing_do_not_stay() {
        let stop = CancellationToken::new();
        let (_silent, io) = tokio::io::duplex(1 << 16);
        assert_eq!(lasted(http2(context(), io, stop.clone())).await.as_secs(), 75);
        let (client, io) = tokio::io::duplex(1 << 16);
        let client = asks_once(client);
        assert_eq!(
            lasted(http2(context(), io, stop)).await.as_secs(),
            75,
            "after a request"
        );
        client.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_first_packet_that_does_not_go_on_ends() {
        let (mut client, io) = tokio::io::duplex(1 << 16);
        client.write_all(b"P").await.expect("room");
        assert_eq!(
            lasted(either(context(), io, CancellationToken::new()))
                .await
                .as_secs(),
            75
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_is_only_connected_does_not_hold_a_stop_up() {
        let stop = CancellationToken::new();
        stop.cancel();
        let (_silent, io) = tokio::io::duplex(1 << 16);
        let took = lasted(http2(context(), io, stop.clone())).await;
        assert!(took <= FIRST_REQUEST_GRACE, "{took:?}");
        let (_silent, io) = tokio::io::duplex(1 << 16);
        assert_eq!(lasted(either(context(), io, stop)).await.as_secs(), 0);
    }
}
