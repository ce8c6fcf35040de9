//! The bodies that pass through: what goes to an instance and what comes back, streamed frame by frame so that a
//! slow reader holds its writer back, trailers included.
//!
//! [`EdgeBody`] carries the guards of its request; when it ends, whole or not, the request is accounted for.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Instant;

use crate::inference::Followed;
use crate::pipeline::Exchange;
use crate::streams::{self, Place};
use crate::waiting::{Next, Waiting};

/// How far a request body has come; the forwarder's clock and the access log read it.
#[derive(Debug)]
pub(crate) struct Progress {
    pub(crate) bytes: AtomicU64,
    pub(crate) done: AtomicBool,
    begun: Instant,
    /// When the last byte came, in milliseconds after `begun`.
    moved_ms: AtomicU64,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self {
            bytes: AtomicU64::new(0),
            done: AtomicBool::new(false),
            begun: Instant::now(),
            moved_ms: AtomicU64::new(0),
        }
    }

    pub(crate) fn add(&self, bytes: usize) {
        self.bytes
            .fetch_add(u64::try_from(bytes).unwrap_or_default(), Relaxed);
        let ms = self.begun.elapsed().as_millis();
        self.moved_ms
            .store(u64::try_from(ms).unwrap_or(u64::MAX), Relaxed);
    }

    /// When the last byte came; before the first, when the wait for it began.
    pub(crate) fn last_moved(&self) -> Instant {
        self.begun + Duration::from_millis(self.moved_ms.load(Relaxed))
    }
}

/// What goes to an instance.
#[derive(Debug)]
pub(crate) enum RequestBody {
    Empty,
    Stream {
        incoming: Incoming,
        progress: Arc<Progress>,
    },
    /// Read whole before it was sent.
    Whole(Bytes),
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Whole(bytes) => {
                let bytes = std::mem::take(bytes);
                Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
            }
            Self::Stream { incoming, progress } => {
                let frame = ready!(Pin::new(&mut *incoming).poll_frame(cx));
                if let Some(data) = frame
                    .as_ref()
                    .and_then(|frame| frame.as_ref().ok())
                    .and_then(Frame::data_ref)
                {
                    progress.add(data.len());
                }
                if frame.is_none() || incoming.is_end_stream() {
                    progress.done.store(true, Relaxed);
                }
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Whole(bytes) => bytes.is_empty(),
            Self::Stream { incoming, .. } => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Whole(bytes) => SizeHint::with_exact(u64::try_from(bytes.len()).unwrap_or_default()),
            Self::Stream { incoming, .. } => incoming.size_hint(),
        }
    }
}

/// What goes to a client.
#[derive(Debug)]
pub(crate) struct EdgeBody {
    inner: Inner,
    /// Its stream's, on an HTTP/2 connection.
    place: Option<Place>,
}

#[derive(Debug)]
enum Inner {
    Full(Option<Bytes>),
    Stream {
        incoming: Incoming,
        exchange: Option<Box<Exchange>>,
    },
    /// An event stream whose service still sleeps.
    Waiting(Box<Waiting>),
    /// What a model says, watched over.
    Model(Box<Followed>),
}

impl EdgeBody {
    /// Comments until the service's own stream comes.
    pub(crate) fn waiting(waiting: Waiting) -> Self {
        Self {
            inner: Inner::Waiting(Box::new(waiting)),
            place: None,
        }
    }

    /// The whole of a body that is here already.
    pub(crate) fn into_full(self) -> Option<Bytes> {
        match self.inner {
            Inner::Full(bytes) => bytes,
            Inner::Stream { .. } | Inner::Waiting(_) | Inner::Model(_) => None,
        }
    }

    pub(crate) fn full(bytes: Bytes) -> Self {
        Self {
            inner: Inner::Full((!bytes.is_empty()).then_some(bytes)),
            place: None,
        }
    }

    /// An instance's answer. `exchange` ends with it.
    pub(crate) fn stream(incoming: Incoming, exchange: Box<Exchange>) -> Self {
        let mut exchange = Some(exchange);
        if incoming.is_end_stream() {
            finish(&mut exchange);
        }
        Self {
            inner: Inner::Stream { incoming, exchange },
            place: None,
        }
    }

    /// A model's answer.
    pub(crate) fn model(followed: Followed) -> Self {
        Self {
            inner: Inner::Model(Box::new(followed)),
            place: None,
        }
    }

    /// Keeps a stream's place as long as this lasts.
    pub(crate) fn hold(&mut self, place: Place) {
        self.place = Some(place);
        if matches!(self.inner, Inner::Stream { .. } | Inner::Model(_)) {
            streams::body_begins();
        }
    }
}

fn finish(exchange: &mut Option<Box<Exchange>>) {
    if let Some(exchange) = exchange.take() {
        exchange.finish();
    }
}

impl Body for EdgeBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        if let Inner::Waiting(waiting) = &mut this.inner {
            this.inner = match ready!(waiting.poll_next(cx)) {
                Next::Comment(comment) => return Poll::Ready(Some(Ok(Frame::data(comment)))),
                Next::Stream(body) => body.inner,
                Next::Error(words) => Inner::Full(Some(words)),
            };
            if this.place.is_some() && matches!(this.inner, Inner::Stream { .. } | Inner::Model(_)) {
                streams::body_begins();
            }
        }
        match &mut this.inner {
            Inner::Waiting(_) => Poll::Pending,
            Inner::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Inner::Model(followed) => {
                let polled = followed.poll_frame(cx);
                streams::body_asked(polled.is_ready());
                polled
            }
            Inner::Stream { incoming, exchange } => {
                let polled = Pin::new(&mut *incoming).poll_frame(cx);
                streams::body_asked(polled.is_ready());
                let frame = ready!(polled);
                match &frame {
                    Some(Ok(frame)) => {
                        if let (Some(data), Some(exchange)) = (frame.data_ref(), exchange.as_mut()) {
                            exchange.bytes_out += u64::try_from(data.len()).unwrap_or_default();
                        }
                        if incoming.is_end_stream() {
                            finish(exchange);
                        }
                    }
                    Some(Err(_)) => drop(exchange.take()),
                    None => finish(exchange),
                }
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Inner::Full(bytes) => bytes.is_none(),
            Inner::Stream { incoming, .. } => incoming.is_end_stream(),
            Inner::Waiting(_) | Inner::Model(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Inner::Waiting(_) | Inner::Model(_) => SizeHint::new(),
            Inner::Full(bytes) => SizeHint::with_exact(
                bytes
                    .as_ref()
                    .map_or(0, |bytes| u64::try_from(bytes.len()).unwrap_or_default()),
            ),
            Inner::Stream { incoming, .. } => incoming.size_hint(),
        }
    }
}
