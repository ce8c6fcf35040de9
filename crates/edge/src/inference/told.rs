//! What an engine says to us beside an answer: comments in its event stream that no client sees, and one header.
//!
//! The other half, with the form of the lines, is `crates/engine/src/http/handover.rs`. An event is one unit here: what it
//! says to us and what it shows are taken in together or, when it did not come whole, not at all.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue};
use serde::Deserialize;
use serde_json::value::RawValue;

/// By which an engine is asked to tell, and says that it does.
pub(crate) const TELL: &str = "x-tram-tell";
/// What it is asked for.
pub(crate) const TOKENS: HeaderValue = HeaderValue::from_static("tokens");
/// By which it is asked to go on with an answer.
pub(crate) const RESUME: &str = "x-tram-resume";
/// How full it is.
const STATE: &str = "x-tram-engine-state";
/// What a line for us begins with.
const MARK: &[u8] = b": tram ";
/// Events that count together or not at all: what one token gives free is three at most.
const TOGETHER_MAX: usize = 8;
/// Longest event: a call of a tool is one, and may be as long as an answer. Stops an engine that never ends one.
pub(super) const EVENT_MAX_BYTES: usize = 8 * 1024 * 1024;

/// What an answer cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "Said")]
pub(crate) struct Usage {
    /// Those of `cached` among them.
    pub(crate) prompt: u64,
    pub(crate) completion: u64,
    pub(crate) cached: u64,
}

/// The same in the words of OpenAI's older contracts, its newer one, and Anthropic's.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Said {
    prompt_tokens: u64,
    completion_tokens: u64,
    prompt_tokens_details: Option<Details>,
    input_tokens: u64,
    output_tokens: u64,
    input_tokens_details: Option<Details>,
    /// Anthropic's, which it does not count among `input_tokens`.
    cache_read_input_tokens: Option<u64>,
    cache_creation_input_tokens: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Details {
    cached_tokens: u64,
}

impl From<Said> for Usage {
    fn from(said: Said) -> Self {
        let details = said.prompt_tokens_details.or(said.input_tokens_details);
        let read = said.cache_read_input_tokens.unwrap_or(0);
        let apart = read.saturating_add(said.cache_creation_input_tokens.unwrap_or(0));
        let prompt = said.prompt_tokens.max(said.input_tokens);
        Self {
            prompt: prompt.saturating_add(apart),
            completion: said.completion_tokens.max(said.output_tokens),
            cached: details.map_or(read, |details| details.cached_tokens),
        }
    }
}

/// One line for us.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Told {
    /// What all of the answer has in common; goes back as it is to whoever goes on.
    pub(crate) begin: Option<Box<RawValue>>,
    pub(crate) tokens: Vec<u32>,
    pub(crate) end: Option<Usage>,
    /// The engine ends before the answer does.
    pub(crate) stopping: bool,
    /// What follows is the last event.
    pub(crate) done: bool,
    /// So many events count together with this, where it is more than one.
    events: usize,
}

/// A whole event, or several that count together.
#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) told: Option<Told>,
    /// What the client sees; may be empty.
    pub(crate) shown: Bytes,
}

/// Takes a stream apart.
#[derive(Debug, Default)]
pub(crate) struct Splitter {
    buffer: BytesMut,
    /// Up to where no event ends.
    looked: usize,
    /// What is here of events that count together, and how many of them are still to come.
    together: Option<(Event, usize)>,
}

/// What cannot be taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooLong;

impl Splitter {
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<(), TooLong> {
        let held = self.together.as_ref().map_or(0, |(event, _)| event.shown.len());
        if held + self.buffer.len() + bytes.len() > EVENT_MAX_BYTES {
            return Err(TooLong);
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    /// The next event that is here whole, with those that belong to it.
    pub(crate) fn next(&mut self) -> Option<Event> {
        loop {
            let next = self.next_one()?;
            let (event, missing) = match self.together.take() {
                None => {
                    let together = next.told.as_ref().map_or(0, |told| told.events);
                    (next, together.min(TOGETHER_MAX).saturating_sub(1))
                }
                Some((mut event, missing)) => {
                    event.shown = [event.shown, next.shown].concat().into();
                    (event, missing - 1)
                }
            };
            if missing == 0 {
                return Some(event);
            }
            self.together = Some((event, missing));
        }
    }

    fn next_one(&mut self) -> Option<Event> {
        let rest = &self.buffer[self.looked..];
        let Some(at) = rest.windows(2).position(|two| two == b"\n\n") else {
            self.looked = self.buffer.len().saturating_sub(1);
            return None;
        };
        let event = self.buffer.split_to(self.looked + at + 2).freeze();
        self.looked = 0;
        Some(Event::of(event))
    }

    /// Forgets what came in part.
    pub(crate) fn clear(&mut self) {
        self.buffer.clear();
        self.looked = 0;
        self.together = None;
    }
}

impl Event {
    fn of(event: Bytes) -> Self {
        let line = event
            .strip_prefix(MARK)
            .and_then(|rest| rest.iter().position(|byte| *byte == b'\n'));
        let Some(length) = line else {
            return Self {
                told: None,
                shown: event,
            };
        };
        let words: Range<usize> = MARK.len()..MARK.len() + length;
        let told = serde_json::from_slice(&event[words.clone()]).ok();
        let shown = event.slice(words.end + 1..);
        let is_empty = &shown[..] == b"\n";
        Self {
            told,
            shown: if is_empty { Bytes::new() } else { shown },
        }
    }
}

/// How full an engine is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct State {
    pub(crate) prompt_tokens_ahead: u32,
    pub(crate) running: u32,
    pub(crate) waiting: u32,
    pub(crate) cells: u64,
    pub(crate) prefill_tokens_per_second: Option<f32>,
    pub(crate) decode_step_seconds: Option<f32>,
}

/// Takes what is for us off an answer's headers: whether the engine tells, and how full it is.
pub(crate) fn take(headers: &mut HeaderMap) -> (bool, Option<State>) {
    let tells = headers.remove(TELL).is_some_and(|value| value == TOKENS);
    let state = headers
        .remove(STATE)
        .and_then(|value| serde_json::from_slice(value.as_bytes()).ok());
    (tells, state)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(splitter: &mut Splitter) -> Vec<(String, Vec<u32>)> {
        std::iter::from_fn(|| splitter.next())
            .map(|event| {
                let shown = String::from_utf8(event.shown.to_vec()).expect("text");
                (shown, event.told.map(|told| told.tokens).unwrap_or_default())
            })
            .collect()
    }

    /// What comes of a stream that is cut into pieces of so many bytes.
    fn events_of(stream: &str, size: usize) -> Vec<(String, Vec<u32>)> {
        let mut splitter = Splitter::default();
        let mut all = Vec::new();
        for part in stream.as_bytes().chunks(size) {
            splitter.push(part).expect("short");
            all.extend(events(&mut splitter));
        }
        all
    }

    const STREAM: &str = ": tram {\"begin\":{\"id\":\"a\"}}\n\ndata: {\"x\":1}\n\n: tram {\"tokens\":[5,6]}\ndata: \
                          {\"y\":\"€\"}\n\n: tram {\"tokens\":[7]}\n\n: a comment\n\ndata: [DONE]\n\n";

    #[test]
    fn lines_for_us_are_taken_out_wherever_the_stream_is_cut() {
        for size in 1..=STREAM.len() {
            let all = events_of(STREAM, size);
            let shown: String = all.iter().map(|(shown, _)| shown.as_str()).collect();
            assert_eq!(
                shown, "data: {\"x\":1}\n\ndata: {\"y\":\"€\"}\n\n: a comment\n\ndata: [DONE]\n\n",
                "cut each {size}"
            );
            let tokens: Vec<u32> = all.into_iter().flat_map(|(_, tokens)| tokens).collect();
            assert_eq!(tokens, [5, 6, 7]);
        }
    }

    #[test]
    fn events_that_belong_together_come_together_or_not_at_all() {
        const STREAM: &str =
            ": tram {\"tokens\":[5],\"events\":2}\nevent: a\ndata: 1\n\nevent: b\ndata: 2\n\ndata: 3\n\n";
        for size in 1..=STREAM.len() {
            let together = "event: a\ndata: 1\n\nevent: b\ndata: 2\n\n".to_owned();
            assert_eq!(
                events_of(STREAM, size),
                [(together, vec![5]), ("data: 3\n\n".to_owned(), Vec::new())]
            );
        }
        let mut splitter = Splitter::default();
        splitter.push(&STREAM.as_bytes()[..60]).expect("short");
        assert!(splitter.next().is_none(), "the second is not there");
        splitter.clear();
        splitter.push(b"data: 4\n\n").expect("short");
        assert_eq!(events(&mut splitter), [("data: 4\n\n".to_owned(), Vec::new())]);
    }

    #[test]
    fn usage_is_read_in_any_of_its_forms_and_an_endless_event_is_not() {
        let usage = |text| {
            let usage = serde_json::from_str::<Usage>(text).expect("usage");
            [usage.prompt, usage.completion, usage.cached]
        };
        assert_eq!(
            usage(r#"{"prompt_tokens":3,"prompt_tokens_details":null}"#),
            [3, 0, 0]
        );
        assert_eq!(
            usage(r#"{"prompt_tokens":3,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":2}}"#),
            [3, 4, 2]
        );
        assert_eq!(
            usage(r#"{"input_tokens":3,"output_tokens":4,"input_tokens_details":{"cached_tokens":2}}"#),
            [3, 4, 2]
        );
        assert_eq!(
            usage(r#"{"input_tokens":3,"output_tokens":4,"cache_read_input_tokens":2}"#),
            [5, 4, 2]
        );
        let mut splitter = Splitter::default();
        let part = vec![b'x'; EVENT_MAX_BYTES];
        assert_eq!(splitter.push(&part), Ok(()));
        assert!(splitter.next().is_none());
        assert_eq!(splitter.push(b"x"), Err(TooLong));
    }
}
