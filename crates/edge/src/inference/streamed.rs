//! A streamed answer that outlives the replica that writes it.
//!
//! ```text
//! reading ──event──▶ reading                    what it shows goes on, what it tells is kept
//!    │ the connection broke, or the engine stops
//!    ▼
//! continuing ──another replica has it──▶ reading
//!    │ none can, or none came in time
//!    ▼
//! ended, with an error event
//! ```
//!
//! An event counts when it is here whole: what a broken connection leaves of one is forgotten, its tokens with it, and the
//! next replica writes it anew. After an engine has told the end, nothing is shown before all of the end is there; so it
//! is shown once, whoever writes it. An answer that breaks is never cut in silence.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::Body;
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::{json, value::RawValue};
use tokio::time::{Sleep, sleep};
use tram_types::inference::{Endpoint, Outcome};

use crate::forward::Answer;
use crate::pipeline::Exchange;

use super::question::{GiveUp, Question};
use super::told::{Event, Splitter, Told, Usage};

/// Tokens that are kept of one answer, 256 KiB: more than models write at once. A longer answer goes on as long as its
/// replica does.
const TOKENS_MAX: usize = 65_536;
/// Replicas that one answer goes on at: a deployment that is scaled and rolled all day moves an answer a few times.
const CONTINUATIONS_MAX: usize = 64;
/// Replicas in a row that die under an answer before they wrote a token of it: it may be the answer that kills them.
const FRUITLESS_MAX: usize = 2;
/// Between two comments while no replica is there: below the 15 seconds after which the strictest proxies call a stream
/// dead.
const COMMENT_PERIOD: Duration = Duration::from_secs(10);
const COMMENT: &[u8] = b": continuing\n\n";
const DONE: &[u8] = b"data: [DONE]\n\n";
/// What an event that says an error begins with: in OpenAI's older contracts, and in its newer one and Anthropic's.
const ERRORS: [&[u8]; 2] = [b"data: {\"error\"", b"event: error"];

type Continuing = Pin<Box<dyn Future<Output = (Box<Question>, Result<Answer, GiveUp>)> + Send>>;

enum At {
    Reading {
        question: Box<Question>,
        incoming: Incoming,
    },
    Continuing {
        future: Continuing,
        comment: Pin<Box<Sleep>>,
    },
    Ended,
}

/// One streamed answer.
pub(super) struct Streamed {
    at: At,
    exchange: Option<Box<Exchange>>,
    splitter: Splitter,
    ready: VecDeque<Bytes>,
    /// What is shown once all of the end is there.
    held: Option<Vec<Bytes>>,
    /// As the first engine told it.
    begin: Option<Box<RawValue>>,
    tokens: Vec<u32>,
    /// Several answers are written side by side, whose tokens are not told.
    several: bool,
    /// Events shown that no tokens were told for: each is a token at least.
    untold: u64,
    /// Events shown, where they are numbered.
    events: u64,
    /// More tokens came than are kept.
    too_long: bool,
    continuations: usize,
    /// Of them, those at the end of which nothing was gained.
    fruitless: usize,
    /// Tokens when the last continuation began.
    gained_from: usize,
    /// How it went, once the engine said so.
    outcome: Option<Outcome>,
}

impl std::fmt::Debug for Streamed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Streamed")
            .field("tokens", &self.tokens.len())
            .field("continuations", &self.continuations)
            .finish_non_exhaustive()
    }
}

/// The last event of an answer that cannot go on, as clients of `endpoint` read it. `events` came before it.
pub(super) fn broken(endpoint: Endpoint, events: u64, why: &str) -> Bytes {
    const CODE: &str = "stream_broken";
    let message = format!("The answer broke off: {why}.");
    let (name, error) = match endpoint {
        Endpoint::Messages => (
            "event: error\n",
            json!({"type": "error", "error": {"type": "api_error", "message": message}}),
        ),
        Endpoint::Responses => (
            "event: error\n",
            json!({
                "type": "error", "code": CODE, "message": message, "param": null, "sequence_number": events,
            }),
        ),
        _ => (
            "",
            json!({"error": {"message": message, "type": "server_error", "param": null, "code": CODE}}),
        ),
    };
    // Ends what may have come of an event.
    Bytes::from(format!("\n\n{name}data: {error}\n\n"))
}

/// Events in what is shown: of those that count together each has data of its own.
fn count(shown: &[u8]) -> u64 {
    let data = shown
        .split(|byte| *byte == b'\n')
        .filter(|line| line.starts_with(b"data:"));
    u64::try_from(data.count()).unwrap_or(u64::MAX)
}

/// What the first line of an answer says that we understand.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Begin {
    prompt_tokens: u64,
    cached: u64,
}

impl Streamed {
    pub(super) fn new(question: Box<Question>, incoming: Incoming, exchange: Box<Exchange>) -> Self {
        Self {
            several: question.answers != 1,
            untold: 0,
            events: 0,
            at: At::Reading { question, incoming },
            exchange: Some(exchange),
            splitter: Splitter::default(),
            ready: VecDeque::new(),
            held: None,
            begin: None,
            tokens: Vec::new(),
            too_long: false,
            continuations: 0,
            fruitless: 0,
            gained_from: 0,
            outcome: None,
        }
    }

    /// What the client reads next; `None` at the end.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            if let Some(bytes) = self.ready.pop_front() {
                if let Some(exchange) = &mut self.exchange {
                    exchange.bytes_out += u64::try_from(bytes.len()).unwrap_or_default();
                }
                return Poll::Ready(Some(bytes));
            }
            match &mut self.at {
                At::Ended => return Poll::Ready(None),
                At::Reading { incoming, .. } => {
                    let frame = ready!(Pin::new(incoming).poll_frame(cx));
                    match frame {
                        Some(Ok(frame)) => {
                            if let Some(data) = frame.data_ref() {
                                self.read(data);
                            }
                        }
                        Some(Err(_)) => self.over(false),
                        None => self.over(true),
                    }
                }
                At::Continuing { future, comment } => {
                    if let Poll::Ready((question, went)) = future.as_mut().poll(cx) {
                        self.continued(question, went);
                        continue;
                    }
                    ready!(comment.as_mut().poll(cx));
                    comment.set(sleep(COMMENT_PERIOD));
                    self.ready.push_back(Bytes::from_static(COMMENT));
                }
            }
        }
    }

    fn read(&mut self, data: &[u8]) {
        if self.splitter.push(data).is_err() {
            return self.fail("the engine's stream makes no sense");
        }
        while let Some(event) = self.splitter.next() {
            if !self.take(event) {
                return;
            }
        }
    }

    /// Takes in an event; false when the rest of the stream is of no use.
    fn take(&mut self, event: Event) -> bool {
        let At::Reading { question, .. } = &mut self.at else {
            return false;
        };
        let (mut is_told, mut is_last) = (false, &event.shown[..] == DONE);
        if let Some(told) = event.told {
            let Told {
                begin,
                tokens,
                end,
                stopping,
                done,
                ..
            } = told;
            is_last |= done;
            if stopping {
                self.broke();
                return false;
            }
            if self.begin.is_none() && begin.is_some() {
                self.begin = begin;
            }
            if !tokens.is_empty() {
                is_told = true;
                question.receipt.first_byte();
                if self.tokens.len() + tokens.len() > TOKENS_MAX {
                    self.too_long = true;
                } else {
                    self.tokens.extend(tokens);
                }
            }
            if let Some(usage) = end {
                question.counted(usage);
                self.held = Some(Vec::new());
            }
        }
        if event.shown.is_empty() {
            return true;
        }
        if ERRORS.iter().any(|error| event.shown.starts_with(error)) {
            self.outcome = Some(Outcome::Failed);
        }
        if !is_told && self.held.is_none() {
            self.untold += 1;
        }
        match &mut self.held {
            Some(held) => held.push(event.shown),
            None => {
                // Which number the next one has, where they have any.
                if question.kind == Endpoint::Responses {
                    self.events += count(&event.shown);
                }
                self.ready.push_back(event.shown);
            }
        }
        if is_last {
            self.outcome = Some(Outcome::Complete);
            // Before the client has it whole.
            question.receipt.write(Outcome::Complete);
            self.ready.extend(self.held.take().unwrap_or_default());
        }
        true
    }

    /// The stream is over; `whole`: as its engine meant it.
    fn over(&mut self, whole: bool) {
        match self.outcome {
            Some(outcome) => {
                let so_far = self.so_far();
                if let At::Reading { question, .. } = &mut self.at {
                    if outcome == Outcome::Failed && self.held.is_none() {
                        question.counted_so_far(so_far);
                    }
                    question.receipt.write(outcome);
                }
                self.at = At::Ended;
                if let Some(exchange) = self.exchange.take().filter(|_| whole) {
                    exchange.finish();
                }
            }
            None => self.broke(),
        }
    }

    /// The replica is gone, or goes: another is to go on.
    fn broke(&mut self) {
        self.splitter.clear();
        // The engine has said what all of it costs.
        let is_counted = self.held.take().is_some();
        let At::Reading { mut question, .. } = std::mem::replace(&mut self.at, At::Ended) else {
            return;
        };
        if let Some(exchange) = &mut self.exchange {
            exchange.lost();
        }
        question.reading = None;
        // Should the client leave before another goes on.
        if !is_counted {
            question.counted_so_far(self.so_far());
        }
        self.fruitless = match self.tokens.len() > self.gained_from || self.continuations == 0 {
            true => 0,
            false => self.fruitless + 1,
        };
        let why = if self.begin.is_none() {
            Some("the instance that wrote it is gone before it said anything that another could go on from")
        } else if question.answers != 1 {
            Some(
                "the instance that wrote it is gone, and of several answers to one question none can go on elsewhere",
            )
        } else if self.too_long {
            Some("the instance that wrote it is gone, and the answer is too long to go on elsewhere")
        } else if self.fruitless >= FRUITLESS_MAX {
            Some(
                "the instances that were to go on with it ended one after the other before they wrote anything",
            )
        } else if self.continuations >= CONTINUATIONS_MAX {
            Some("the instances that wrote it ended too often")
        } else {
            None
        };
        let dead = question.endpoint.take();
        let (None, Some(dead), Some(state)) = (why, dead, self.state()) else {
            self.end(&mut question, why.unwrap_or("the instance that wrote it is gone"));
            return;
        };
        self.continuations += 1;
        self.gained_from = self.tokens.len();
        tracing::info!(
            instance = %dead.instance_id,
            tokens = self.tokens.len(),
            "a replica is gone in the midst of an answer; another is asked to go on"
        );
        self.at = At::Continuing {
            future: Box::pin(async move {
                let went = question.go_on(&state, Arc::clone(&dead)).await;
                (question, went)
            }),
            comment: Box::pin(sleep(COMMENT_PERIOD)),
        };
    }

    /// What the next engine needs: what the first told, and all tokens.
    fn state(&self) -> Option<Vec<u8>> {
        let begin = self.begin.as_ref()?.get();
        let open = begin.trim_end().strip_suffix('}')?;
        let tokens = serde_json::to_string(&self.tokens).ok()?;
        Some(format!("{open},\"tokens\":{tokens}}}").into_bytes())
    }

    fn continued(&mut self, mut question: Box<Question>, went: Result<Answer, GiveUp>) {
        let why = match went {
            Ok(answer) => {
                let (_, incoming) = answer.response.into_parts();
                if let Some(exchange) = &mut self.exchange {
                    exchange.moved(answer.seat, answer.connection, answer.stream);
                }
                self.at = At::Reading { question, incoming };
                return;
            }
            Err(GiveUp::NoneCan(words)) if words.is_empty() => {
                "the instance that wrote it is gone, and none that is left can go on with it".to_owned()
            }
            Err(GiveUp::NoneCan(words)) => format!(
                "the instance that wrote it is gone, and none that is left can go on with it ({})",
                words.trim_end_matches('.')
            ),
            Err(GiveUp::Nowhere(refusal)) => {
                format!(
                    "the instance that wrote it is gone, and no other came: {}",
                    refusal.said()
                )
            }
            Err(GiveUp::Refused(status)) => {
                format!(
                    "the instance that wrote it is gone, and another refused with status {status} to go on"
                )
            }
        };
        self.end(&mut question, &why);
    }

    fn fail(&mut self, why: &str) {
        if let At::Reading { mut question, .. } = std::mem::replace(&mut self.at, At::Ended) {
            self.end(&mut question, why);
        }
    }

    /// Ends with an error event. What was written is counted, since it was sent.
    fn end(&mut self, question: &mut Question, why: &str) {
        tracing::warn!(why, tokens = self.tokens.len(), "an answer broke off");
        if self.held.take().is_none() {
            question.counted_so_far(self.so_far());
        }
        question.receipt.write(Outcome::Failed);
        self.ready.push_back(broken(question.kind, self.events, why));
        self.at = At::Ended;
    }

    fn so_far(&self) -> Usage {
        let begin = self.begin.as_ref();
        let begin: Begin = begin
            .and_then(|begin| serde_json::from_str(begin.get()).ok())
            .unwrap_or_default();
        Usage {
            prompt: begin.prompt_tokens,
            completion: match self.several {
                true => self.untold,
                false => u64::try_from(self.tokens.len()).unwrap_or(u64::MAX),
            },
            cached: begin.cached,
        }
    }
}

impl Drop for Streamed {
    /// The client left: what was written until then is what it cost.
    fn drop(&mut self) {
        let so_far = self.so_far();
        if let At::Reading { question, .. } = &mut self.at
            && self.outcome.is_none()
            && self.held.is_none()
        {
            question.counted_so_far(so_far);
        }
    }
}
