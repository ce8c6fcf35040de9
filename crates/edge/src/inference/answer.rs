//! An answer of a model on its way to the client, watched over until its last byte.
//!
//! What an engine streams and tells us about is [`Streamed`]; anything else passes as it comes, and what it cost is read
//! off its end. The record of it is written before the last byte goes out, so who has the whole answer was counted.

use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, StatusCode};
use http_body::{Body, Frame};
use hyper::body::Incoming;
use std::pin::Pin;
use tram_types::inference::Outcome;

use crate::pipeline::Exchange;

use super::question::Question;
use super::streamed::Streamed;
use super::told::Usage;

/// How much of an answer's end is kept to read what it cost, which comes last: a few hundred bytes.
const TAIL_BYTES: usize = 4096;

/// A body of an answer.
#[derive(Debug)]
pub(crate) struct Followed(Kind);

#[derive(Debug)]
enum Kind {
    Passed(Passed),
    Streamed(Box<Streamed>),
}

impl Followed {
    /// Follows an answer that `question` got. `tells`: the engine says beside it what another needs to go on.
    pub(crate) fn new(
        question: Box<Question>,
        tells: bool,
        head: (StatusCode, &HeaderMap),
        incoming: Incoming,
        exchange: Box<Exchange>,
    ) -> Self {
        let (status, headers) = head;
        let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
        let events = kind.is_some_and(|kind| kind.starts_with("text/event-stream"));
        if tells && events && status == StatusCode::OK && question.streams {
            return Self(Kind::Streamed(Box::new(Streamed::new(
                question, incoming, exchange,
            ))));
        }
        Self(Kind::Passed(Passed {
            incoming: Some(incoming),
            question,
            exchange: Some(exchange),
            events,
            status,
            tail: BytesMut::new(),
        }))
    }

    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.0 {
            Kind::Passed(passed) => passed.poll_frame(cx),
            Kind::Streamed(streamed) => streamed
                .poll_next(cx)
                .map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes)))),
        }
    }
}

/// An answer that passes as it comes.
#[derive(Debug)]
struct Passed {
    incoming: Option<Incoming>,
    question: Box<Question>,
    exchange: Option<Box<Exchange>>,
    events: bool,
    status: StatusCode,
    tail: BytesMut,
}

impl Passed {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(incoming) = &mut self.incoming else {
            return Poll::Ready(None);
        };
        let frame = ready!(Pin::new(&mut *incoming).poll_frame(cx));
        let ends = incoming.is_end_stream();
        match &frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.question.receipt.first_byte();
                    self.keep(data);
                    if let Some(exchange) = &mut self.exchange {
                        exchange.bytes_out += u64::try_from(data.len()).unwrap_or_default();
                    }
                }
                if ends {
                    self.finish();
                }
            }
            Some(Err(_)) => {
                self.incoming = None;
                self.exchange = None;
                self.question.reading = None;
                self.question.receipt.write(Outcome::Failed);
                if self.events {
                    return Poll::Ready(Some(Ok(Frame::data(super::streamed::broken(
                        "the instance that wrote this answer is gone, and its engine cannot have another go on",
                    )))));
                }
            }
            None => self.finish(),
        }
        Poll::Ready(frame)
    }

    fn keep(&mut self, data: &[u8]) {
        if data.len() >= TAIL_BYTES {
            self.tail.clear();
            self.tail.extend_from_slice(&data[data.len() - TAIL_BYTES..]);
            return;
        }
        let over = (self.tail.len() + data.len()).saturating_sub(TAIL_BYTES);
        let _ = self.tail.split_to(over.min(self.tail.len()));
        self.tail.extend_from_slice(data);
    }

    fn finish(&mut self) {
        self.incoming = None;
        self.question.reading = None;
        if let Some(usage) = usage(&self.tail) {
            self.question.counted(usage);
        }
        let outcome = if self.status.is_success() {
            Outcome::Complete
        } else if self.status.is_client_error() {
            Outcome::Refused
        } else {
            Outcome::Failed
        };
        self.question.receipt.write(outcome);
        if let Some(exchange) = self.exchange.take() {
            exchange.finish();
        }
    }
}

/// The usage at the end of an answer. Within a text the name would stand between escaped quotes.
fn usage(tail: &[u8]) -> Option<Usage> {
    const NAME: &[u8] = b"\"usage\":";
    let starts = tail.windows(NAME.len()).enumerate();
    let mut found = starts
        .filter(|(_, window)| *window == NAME)
        .map(|(at, _)| at + NAME.len());
    let last = found.rfind(|at| tail[*at..].trim_ascii_start().starts_with(b"{"))?;
    let mut values = serde_json::Deserializer::from_slice(&tail[last..]).into_iter::<Usage>();
    values.next()?.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_it_cost_is_read_off_the_end_alone() {
        let whole = br#"{"choices":[{"text":"\"usage\":{\"prompt_tokens\":9}"}],"usage":{"prompt_tokens":3,"completion_tokens":2},"x":1}"#;
        let found = usage(whole).expect("usage");
        assert_eq!((found.prompt, found.completion), (3, 2));
        let events = b"data: {\"usage\":{\"prompt_tokens\":3}}\n\ndata: {\"usage\":null}\n\ndata: [DONE]\n\n";
        assert_eq!(usage(events).map(|usage| usage.prompt), Some(3));
        assert_eq!(usage(br#"{"error":{}}"#), None);
        assert_eq!(usage(br#"{"usage":{"prompt_tok"#), None);
    }
}
