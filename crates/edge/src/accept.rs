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
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::admit::{H2_HEAD_MAX_BYTES, HEAD_MAX_BYTES};
use crate::forwarded::Client;
use crate::pipeline::{self, Context};
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
    let mut connection = std::pin::pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(IDLE_TIMEOUT)
            .max_header_size(HEAD_MAX_BYTES)
            .serve_connection(
                TokioIo::new(stream),
                service_fn(move |request| pipeline::boxed(Arc::clone(&context), request))
            )
            .with_upgrades()
    );
    tokio::select! {
        biased;
        outcome = connection.as_mut() => outcome?,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await?;
        }
    }
    Ok(())
}

async fn http2<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    context: Arc<Context>,
    stream: S,
    stop: CancellationToken,
) -> Outcome {
    let mut connection = std::pin::pin!(
        http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(H2_PING_INTERVAL)
            .max_concurrent_streams(H2_STREAMS_MAX)
            .max_header_list_size(H2_HEAD_MAX_BYTES)
            .adaptive_window(true)
            .serve_connection(
                TokioIo::new(stream),
                service_fn(move |request| pipeline::boxed(Arc::clone(&context), request))
            )
    );
    tokio::select! {
        biased;
        outcome = connection.as_mut() => outcome?,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await?;
        }
    }
    Ok(())
}

/// A first packet so short that it may be either; reads on to find out.
async fn either(context: Arc<Context>, stream: TcpStream, stop: CancellationToken) -> Outcome {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(H2_STREAMS_MAX)
        .max_header_list_size(H2_HEAD_MAX_BYTES);
    let mut connection = std::pin::pin!(builder.serve_connection_with_upgrades(
        TokioIo::new(stream),
        service_fn(move |request| pipeline::boxed(Arc::clone(&context), request))
    ));
    tokio::select! {
        biased;
        outcome = connection.as_mut() => outcome?,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of_result<A, B, F>(_: impl Fn(A, B) -> F) -> usize {
        size_of::<F>()
    }

    /// A connection keeps its future while idle, out of a budget of 16 KiB; a request's future is moved and freed
    /// each time.
    #[test]
    fn futures_stay_small() {
        let (request, open) = (size_of_result(pipeline::handle), size_of_result(connection));
        assert!(
            request <= 6 * 1024 && open <= 3 * 1024,
            "a request: {request} bytes, a connection: {open} bytes"
        );
    }
}
