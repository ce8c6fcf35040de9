//! Small writes in one piece.
//!
//! A head and a short body are two slices. The kernel takes a list of slices by a longer way than it takes one: putting
//! up to [`SMALL`] bytes side by side first costs less. Larger writes go out as they are, without a copy.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::rt::{Read, ReadBufCursor, Write};

/// What is put together: most answers to API calls with their heads, and a copy of it stays in the nearest cache.
const SMALL: usize = 1024;

/// A connection whose small writes are single.
#[derive(Debug)]
pub(crate) struct Gather<S>(pub(crate) S);

impl<S: Read + Unpin> Read for Gather<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl<S: Write + Unpin> Write for Gather<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let io = Pin::new(&mut self.0);
        if let [only] = slices {
            return io.poll_write(cx, only);
        }
        let mut whole = [0; SMALL];
        let mut length = 0;
        for slice in slices {
            let end = length + slice.len();
            let Some(room) = whole.get_mut(length..end) else {
                return io.poll_write_vectored(cx, slices);
            };
            room.copy_from_slice(slice);
            length = end;
        }
        io.poll_write(cx, &whole[..length])
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use hyper_util::rt::TokioIo;

    use super::*;

    /// Takes a limited number of bytes a write, and remembers in how many slices they came.
    #[derive(Debug, Default)]
    struct Sink {
        taken: Vec<u8>,
        writes: Vec<usize>,
        limit: usize,
    }

    impl tokio::io::AsyncWrite for Sink {
        fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            self.poll_write_vectored(cx, &[IoSlice::new(buf)])
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn is_write_vectored(&self) -> bool {
            true
        }
        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            slices: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let all: Vec<u8> = slices.iter().flat_map(|slice| slice.to_vec()).collect();
            let taken = all.len().min(self.limit);
            self.taken.extend(&all[..taken]);
            self.writes.push(slices.len());
            Poll::Ready(Ok(taken))
        }
    }

    async fn write(limit: usize, parts: &[&[u8]]) -> (usize, Sink) {
        let mut gather = Gather(TokioIo::new(Sink {
            limit,
            ..Sink::default()
        }));
        let slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let written = poll_fn(|cx| Pin::new(&mut gather).poll_write_vectored(cx, &slices)).await;
        (written.expect("never fails"), gather.0.into_inner())
    }

    #[tokio::test]
    async fn small_parts_go_out_as_one_and_large_ones_as_they_are() {
        let (written, sink) = write(usize::MAX, &[b"head", b"", b"body"]).await;
        assert_eq!(
            (written, &*sink.taken, &*sink.writes),
            (8, &b"headbody"[..], &[1][..])
        );
        let large = vec![7; SMALL];
        let (written, sink) = write(usize::MAX, &[b"head", &large]).await;
        assert_eq!((written, &*sink.writes), (4 + SMALL, &[2][..]));
        let (written, sink) = write(usize::MAX, &[&large[..1], &large[1..]]).await;
        assert_eq!((written, &*sink.writes), (SMALL, &[1][..]), "exactly as much");
    }

    #[tokio::test]
    async fn a_write_that_is_cut_short_says_so() {
        let (written, sink) = write(6, &[b"head", b"body"]).await;
        assert_eq!((written, &*sink.taken), (6, &b"headbo"[..]));
    }
}
