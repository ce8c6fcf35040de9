//! Bytes both ways between a client and an instance, counted as they pass: upgraded connections (`tunnel.rs`) and
//! public TCP ports (`tcp.rs`).
//!
//! No limit on silence while both sides are open: a WebSocket may wait for days. Once one side has closed its half
//! there is one, since the other may have been forgotten.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::account::Live;

/// After this silence a connection with one half closed ends. Longer than a slow answer to a request that ended with
/// the half.
const HALF_CLOSED_SILENCE: Duration = Duration::from_secs(10 * 60);

/// What has passed.
#[derive(Debug)]
pub(crate) struct Passed {
    live: Arc<Live>,
    from_client: AtomicU64,
    to_client: AtomicU64,
    half_closed: AtomicBool,
}

impl Passed {
    pub(crate) fn new(live: &Arc<Live>) -> Arc<Self> {
        Arc::new(Self {
            live: Arc::clone(live),
            from_client: AtomicU64::new(0),
            to_client: AtomicU64::new(0),
            half_closed: AtomicBool::new(false),
        })
    }

    /// From the client.
    pub(crate) fn bytes_in(&self) -> u64 {
        self.from_client.load(Relaxed)
    }

    /// To the client.
    pub(crate) fn bytes_out(&self) -> u64 {
        self.to_client.load(Relaxed)
    }

    /// Ends when one half is closed and nothing passes by the other.
    async fn forgotten(&self) {
        let mut before = None;
        loop {
            tokio::time::sleep(HALF_CLOSED_SILENCE).await;
            let now = self
                .half_closed
                .load(Relaxed)
                .then(|| self.bytes_in().wrapping_add(self.bytes_out()));
            if now.is_some() && now == before {
                return;
            }
            before = now;
        }
    }
}

/// Copies both ways until both sides have closed.
pub(crate) async fn relay(
    client: impl AsyncRead + AsyncWrite + Unpin,
    instance: impl AsyncRead + AsyncWrite + Unpin,
    passed: &Passed,
) -> io::Result<()> {
    let mut client = Counted {
        io: client,
        passed,
        is_client: true,
    };
    let mut instance = Counted {
        io: instance,
        passed,
        is_client: false,
    };
    tokio::select! {
        outcome = tokio::io::copy_bidirectional(&mut client, &mut instance) => outcome.map(|_| ()),
        () = passed.forgotten() => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "one side closed its half and the other said nothing more",
        )),
    }
}

/// One side; what is read from it is counted.
struct Counted<'p, S> {
    io: S,
    passed: &'p Passed,
    is_client: bool,
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<'_, S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buffer))?;
        let read = u64::try_from(buffer.filled().len() - before).unwrap_or_default();
        let passed = self.passed;
        if read == 0 {
            passed.half_closed.store(true, Relaxed);
        } else if self.is_client {
            passed.from_client.fetch_add(read, Relaxed);
            passed.live.bytes_in.fetch_add(read, Relaxed);
        } else {
            passed.to_client.fetch_add(read, Relaxed);
            passed.live.bytes_out.fetch_add(read, Relaxed);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<'_, S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;
    use crate::account::Signals;

    #[tokio::test(start_paused = true)]
    async fn silence_ends_a_half_closed_connection_and_no_other() {
        let live = Arc::new(Live::new(uuid::Uuid::new_v4(), "a/b", Arc::new(Signals::new())));
        let passed = Passed::new(&live);
        let ((mut client, outer), (inner, _instance)) = (tokio::io::duplex(64), tokio::io::duplex(64));
        let mut relayed = std::pin::pin!(relay(outer, inner, &passed));
        client.write_all(b"hello").await.expect("room");
        tokio::time::timeout(HALF_CLOSED_SILENCE * 10, relayed.as_mut())
            .await
            .expect_err("both are open");
        assert_eq!(live.bytes_in.load(Relaxed), 5, "counted while it is open");
        client.shutdown().await.expect("closes its half");
        let ended = tokio::time::timeout(HALF_CLOSED_SILENCE * 3, relayed).await;
        let error = ended.expect("ends").expect_err("by the silence");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
