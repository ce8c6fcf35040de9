//! The host's standard output as the async writer that the protocol wants.
//!
//! Writes block, as all of this program's do: there is one agent, and while it reads nothing there is nothing to say.

use std::{
    io,
    pin::Pin,
    sync::PoisonError,
    task::{Context, Poll},
};

use tokio::io::AsyncWrite;

use crate::host::Sink;

/// Standard output.
pub(super) struct Output(pub(super) Sink);

impl AsyncWrite for Output {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut sink = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Poll::Ready(sink.write(bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut sink = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Poll::Ready(sink.flush())
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(context)
    }
}
