//! What the executor answers: one piece of text or JSON, or a stream of events.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::{Body, Bytes, Frame, SizeHint};
use hyper::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;
use tokio::sync::mpsc;

/// The body of an answer.
#[derive(Debug)]
pub(crate) enum Content {
    /// All of it, once.
    Whole(Option<Bytes>),
    /// Each piece is sent on at once.
    Events(mpsc::Receiver<Bytes>),
}

/// An answer.
pub(crate) type Reply = Response<Content>;

/// Why a request cannot be answered as asked.
#[derive(Debug)]
pub(crate) struct Wrong {
    status: StatusCode,
    words: String,
}

impl Wrong {
    pub(crate) fn new(status: StatusCode, words: impl Into<String>) -> Self {
        Self {
            status,
            words: words.into(),
        }
    }
}

impl From<Wrong> for Reply {
    fn from(wrong: Wrong) -> Self {
        text(wrong.status, wrong.words)
    }
}

impl Body for Content {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Events(events) => events
                .poll_recv(context)
                .map(|event| event.map(|bytes| Ok(Frame::data(bytes)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Events(_) => SizeHint::default(),
        }
    }
}

fn whole(status: StatusCode, kind: &'static str, bytes: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Content::Whole(Some(bytes.into())));
    *reply.status_mut() = status;
    reply
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    reply
}

/// A JSON answer.
pub(crate) fn json(status: StatusCode, value: &impl Serialize) -> Reply {
    match serde_json::to_vec(value) {
        Ok(bytes) => whole(status, "application/json", bytes),
        Err(error) => text(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("the answer cannot be written as JSON: {error}"),
        ),
    }
}

/// A text answer, as for requests that cannot be understood.
pub(crate) fn text(status: StatusCode, text: impl Into<String>) -> Reply {
    whole(status, "text/plain; charset=utf-8", text.into())
}

/// A stream of events (`text/event-stream`); it ends when the other end is dropped.
pub(crate) fn events(events: mpsc::Receiver<Bytes>) -> Reply {
    let mut reply = Response::new(Content::Events(events));
    let headers = reply.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    reply
}

/// Bytes as they come. An end before the `length` that was promised breaks the connection off.
pub(crate) fn bytes(pieces: mpsc::Receiver<Bytes>, length: Option<u64>) -> Reply {
    let mut reply = Response::new(Content::Events(pieces));
    let headers = reply.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    if let Some(length) = length {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    reply
}

/// One event. JSON escapes line ends, so its data is always one line.
pub(crate) fn event(name: &str, data: &impl Serialize) -> Bytes {
    let mut frame = format!("event: {name}\ndata: ").into_bytes();
    if serde_json::to_writer(&mut frame, data).is_err() {
        frame.extend_from_slice(b"{}");
    }
    frame.extend_from_slice(b"\n\n");
    frame.into()
}

/// A comment: nothing for the reader, and a sign of life for whoever is in between.
pub(crate) const KEEP_ALIVE: Bytes = Bytes::from_static(b": keep-alive\n\n");
