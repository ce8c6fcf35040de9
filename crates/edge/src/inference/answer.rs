//! An answer of a model on its way to the client, watched over until its last byte.
//!
//! What an engine streams and tells us about is [`Streamed`]; anything else passes as it comes, and what it cost is read
//! off its end. The record of it is written before the last byte goes out, so who has the whole answer was counted.

use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, StatusCode};
use http_body::{Body, Frame};
use hyper::body::Incoming;
use std::pin::Pin;
use tram_types::inference::{Endpoint, Outcome};

use crate::pipeline::Exchange;

use super::hidden::Hidden;
use super::question::Question;
use super::streamed::Streamed;
use super::told::Usage;

/// How much of an answer's end is kept to read what it cost, which comes last: a few hundred bytes.
const TAIL_BYTES: usize = 4096;
/// Bytes of an answer that count as a token where its engine says nothing of what it cost.
const BYTES_OF_A_TOKEN: usize = 4;

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
        let question_hides = question.hides_usage;
        Self(Kind::Passed(Passed {
            incoming: Some(incoming),
            question,
            exchange: Some(exchange),
            // An answer of a stated length keeps it.
            hidden: (events && question_hides && !headers.contains_key(CONTENT_LENGTH)).then(Hidden::default),
            events,
            status,
            counted: false,
            pieces: 0,
            bytes: 0,
            head: None,
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
    /// What it cost is known, or it cost nothing.
    counted: bool,
    /// Takes out what the caller did not ask for.
    hidden: Option<Hidden>,
    /// Events that came: each is a token at least.
    pieces: u64,
    /// Bytes that came.
    bytes: usize,
    /// What the first events say it costs, as far as they do.
    head: Option<Usage>,
    tail: BytesMut,
}

impl Passed {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        loop {
            let Some(incoming) = &mut self.incoming else {
                return Poll::Ready(None);
            };
            let frame = ready!(Pin::new(&mut *incoming).poll_frame(cx));
            let ends = incoming.is_end_stream();
            let passed = self.pass(frame, ends);
            // Of an event that is not whole nothing is shown yet.
            let shows = |frame: &Frame<Bytes>| frame.data_ref().is_none_or(|data| !data.is_empty());
            match passed {
                Some(Ok(frame)) if !shows(&frame) => {}
                passed => return Poll::Ready(passed),
            }
        }
    }

    /// Takes a frame in; what of it goes on. `ends`: it is the last.
    fn pass(
        &mut self,
        mut frame: Option<Result<Frame<Bytes>, hyper::Error>>,
        ends: bool,
    ) -> Option<Result<Frame<Bytes>, hyper::Error>> {
        match &mut frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.question.receipt.first_byte();
                    self.look(data);
                    self.keep(data);
                    let shown = match &mut self.hidden {
                        Some(hidden) if ends => [hidden.pass(data), hidden.rest().freeze()].concat().into(),
                        Some(hidden) => hidden.pass(data),
                        None => data.clone(),
                    };
                    if let Some(exchange) = &mut self.exchange {
                        exchange.bytes_out += u64::try_from(shown.len()).unwrap_or_default();
                    }
                    *frame = Frame::data(shown);
                }
                if ends {
                    self.finish();
                }
            }
            Some(Err(_)) => {
                self.incoming = None;
                self.exchange = None;
                self.question.reading = None;
                self.count_so_far();
                self.question.receipt.write(Outcome::Failed);
                if self.events {
                    return Some(Ok(Frame::data(super::streamed::broken(
                        self.question.kind,
                        self.pieces,
                        "the instance that wrote this answer is gone, and its engine cannot have another go on",
                    ))));
                }
            }
            None => {
                self.finish();
                let rest = self.hidden.as_mut().map(Hidden::rest).unwrap_or_default();
                if !rest.is_empty() {
                    return Some(Ok(Frame::data(rest.freeze())));
                }
            }
        }
        frame
    }

    /// Counts what passes.
    fn look(&mut self, data: &[u8]) {
        self.bytes = self.bytes.saturating_add(data.len());
        if !self.events {
            return;
        }
        const EVENT: &[u8] = b"data:";
        let events = data.windows(EVENT.len()).filter(|window| *window == EVENT);
        self.pieces += u64::try_from(events.count()).unwrap_or(u64::MAX);
        if self.head.is_none() && self.tail.is_empty() {
            self.head = usage(&data[..data.len().min(TAIL_BYTES)]);
        }
    }

    /// It ended before the engine said what it cost: what was written is counted, and the prompt by its length where
    /// nothing was said of it either.
    fn count_so_far(&mut self) {
        if std::mem::replace(&mut self.counted, true) || !self.status.is_success() {
            return;
        }
        let mut cost = usage(&self.tail)
            .or_else(|| self.head.take())
            .unwrap_or_else(|| self.question.estimate());
        let written = match self.events || self.question.kind == Endpoint::Embeddings {
            true => self.pieces,
            false => u64::try_from(self.bytes.div_ceil(BYTES_OF_A_TOKEN)).unwrap_or(u64::MAX),
        };
        cost.completion = cost.completion.max(written);
        self.question.counted_so_far(cost);
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
            self.counted = true;
            self.question.counted(usage);
        }
        let broke = self.events && says_error(&self.tail);
        // A foreign engine may say nothing at all, and costs all the same.
        self.count_so_far();
        self.counted = true;
        let outcome = if broke {
            Outcome::Failed
        } else if self.status.is_success() {
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

impl Drop for Passed {
    /// The client left: what was written until then is what it cost.
    fn drop(&mut self) {
        if self.incoming.is_some() {
            self.count_so_far();
        }
    }
}

/// Whether the last event of a stream says that it broke off.
fn says_error(tail: &[u8]) -> bool {
    let text = String::from_utf8_lossy(tail);
    let last = text
        .trim_end()
        .rsplit("\n\n")
        .find(|event| *event != "data: [DONE]");
    last.is_some_and(|event| {
        event.starts_with("event: error")
            || event.starts_with("data: {\"error\"")
            || event.contains("\"type\":\"error\"")
    })
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

    #[test]
    fn a_stream_that_broke_off_says_so_in_its_last_event() {
        assert!(says_error(
            b"data: {\"a\":1}\n\nevent: error\ndata: {\"type\":\"error\"}\n\n"
        ));
        assert!(says_error(b"data: {\"error\":{}}\n\ndata: [DONE]\n\n"));
        assert!(!says_error(
            b"data: {\"text\":\"event: error\"}\n\ndata: [DONE]\n\n"
        ));
        assert!(!says_error(b""));
    }
}
