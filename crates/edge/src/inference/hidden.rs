//! The count that an engine is asked for and its caller did not ask for.
//!
//! Engines of the contract of OpenAI's older paths say what a streamed answer cost only when asked
//! (`stream_options.include_usage`), in a chunk of its own at the end. [`ask`] asks; [`Hidden`] takes that chunk out again.
//! Every other event passes byte for byte, whole ones at a time.

use bytes::{Bytes, BytesMut};
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::told::{EVENT_MAX_BYTES, Usage};

/// A member that is there, `null` too: `Option` alone would take that for one that is not.
pub(super) fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    Deserialize::deserialize(deserializer).map(Some)
}

/// The body that asks, where `body` does not. `options`: its `stream_options`, a part of it. `None`: it asks already, or is
/// not what the contract has, which the engine is to judge.
pub(super) fn ask(body: &Bytes, options: Option<&RawValue>) -> Option<Bytes> {
    let Some(options) = options.filter(|options| options.get() != "null") else {
        if let Some(null) = options {
            return replaced(body, null.get(), r#"{"include_usage":true}"#);
        }
        let rest = body.trim_ascii_start().strip_prefix(b"{")?;
        let comma: &[u8] = match rest.trim_ascii_start().first() {
            Some(b'}') | None => b"",
            Some(_) => b",",
        };
        return Some(
            [br#"{"stream_options":{"include_usage":true}"#, comma, rest]
                .concat()
                .into(),
        );
    };
    let mut given: serde_json::Map<String, serde_json::Value> = serde_json::from_str(options.get()).ok()?;
    match given.get("include_usage") {
        None | Some(serde_json::Value::Null | serde_json::Value::Bool(false)) => {}
        Some(_) => return None,
    }
    given.insert("include_usage".to_owned(), true.into());
    replaced(body, options.get(), &serde_json::to_string(&given).ok()?)
}

/// `part` lies within `body`; the same with `other` in its place.
fn replaced(body: &Bytes, part: &str, other: &str) -> Option<Bytes> {
    let start = (part.as_ptr() as usize).checked_sub(body.as_ptr() as usize)?;
    let (before, rest) = body.split_at_checked(start)?;
    let after = rest.strip_prefix(part.as_bytes())?;
    Some([before, other.as_bytes(), after].concat().into())
}

/// Takes the chunk that tells the usage alone out of a stream of events.
#[derive(Debug, Default)]
pub(super) struct Hidden {
    buffer: BytesMut,
    /// Up to where no event ends.
    looked: usize,
}

/// What tells the usage and nothing else.
#[derive(Deserialize)]
struct Chunk {
    choices: Vec<IgnoredAny>,
    #[expect(dead_code, reason = "that it is there is what matters")]
    usage: Usage,
}

impl Hidden {
    /// What of the stream may go on, once these bytes have come.
    pub(super) fn pass(&mut self, bytes: &[u8]) -> Bytes {
        self.buffer.extend_from_slice(bytes);
        let mut shown = BytesMut::new();
        while let Some(end) = self.event_end() {
            let event = self.buffer.split_to(end);
            self.looked = 0;
            if !is_usage_alone(&event) {
                shown.unsplit(event);
            }
        }
        if self.buffer.len() > EVENT_MAX_BYTES {
            // No chunk that tells the usage is so long.
            shown.unsplit(self.rest());
        }
        shown.freeze()
    }

    /// What came behind the last whole event.
    pub(super) fn rest(&mut self) -> BytesMut {
        self.looked = 0;
        self.buffer.split()
    }

    /// Where the first event ends: behind an empty line, whichever way lines end.
    fn event_end(&mut self) -> Option<usize> {
        for at in self.looked..self.buffer.len() {
            let rest = &self.buffer[at..];
            if rest.starts_with(b"\n\n") {
                return Some(at + 2);
            }
            if rest.starts_with(b"\n\r\n") {
                return Some(at + 3);
            }
        }
        // The last two may be the beginning of an end.
        self.looked = self.buffer.len().saturating_sub(2);
        None
    }
}

fn is_usage_alone(event: &[u8]) -> bool {
    const DATA: &[u8] = b"data:";
    let Some(data) = event.trim_ascii().strip_prefix(DATA) else {
        return false;
    };
    serde_json::from_slice::<Chunk>(data).is_ok_and(|chunk| chunk.choices.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Peek<'b> {
        #[serde(borrow, default, deserialize_with = "present")]
        stream_options: Option<&'b RawValue>,
    }

    fn asked(body: &'static str) -> Option<String> {
        let body = Bytes::from_static(body.as_bytes());
        let peek: Peek<'_> = serde_json::from_slice(&body).expect("JSON");
        let whole = ask(&body, peek.stream_options)?;
        serde_json::from_slice::<serde_json::Value>(&whole).expect("still JSON");
        Some(String::from_utf8(whole.to_vec()).expect("text"))
    }

    #[test]
    fn an_engine_is_asked_once_and_all_else_keeps_its_bytes() {
        assert_eq!(
            asked(r#" {"a" : 1.50}"#).as_deref(),
            Some(r#"{"stream_options":{"include_usage":true},"a" : 1.50}"#)
        );
        assert_eq!(
            asked("{ }").as_deref(),
            Some(r#"{"stream_options":{"include_usage":true} }"#)
        );
        assert_eq!(
            asked(r#"{"stream_options": null,"a":"é"}"#).as_deref(),
            Some(r#"{"stream_options": {"include_usage":true},"a":"é"}"#)
        );
        assert_eq!(
            asked(r#"{"stream_options":{"include_usage":false,"x":1},"a":2}"#).as_deref(),
            Some(r#"{"stream_options":{"include_usage":true,"x":1},"a":2}"#)
        );
        assert_eq!(asked(r#"{"stream_options":{"include_usage":true}}"#), None);
        assert_eq!(asked(r#"{"stream_options":7}"#), None);
        assert_eq!(asked(r#"{"stream_options":{"include_usage":"yes"}}"#), None);
    }

    #[test]
    fn the_chunk_is_taken_out_wherever_the_stream_is_cut() {
        let shown_part = "data: {\"choices\":[{\"text\":\"usage\"}],\"usage\":null}\r\n\r\n: comment\n\n";
        let usage = "data: {\"choices\": [], \"usage\":{\"prompt_tokens\":3}}\n\n";
        let stream = format!("{shown_part}{usage}data: [DONE]\n\ndata: cut");
        for size in 1..=stream.len() {
            let mut hidden = Hidden::default();
            let mut shown = BytesMut::new();
            for part in stream.as_bytes().chunks(size) {
                shown.extend_from_slice(&hidden.pass(part));
            }
            shown.unsplit(hidden.rest());
            let shown = String::from_utf8(shown.to_vec()).expect("text");
            assert_eq!(
                shown,
                format!("{shown_part}data: [DONE]\n\ndata: cut"),
                "cut each {size}"
            );
        }
    }

    #[test]
    fn what_is_too_long_passes() {
        let mut hidden = Hidden::default();
        assert!(hidden.pass(&vec![b'x'; EVENT_MAX_BYTES]).is_empty());
        assert_eq!(hidden.pass(b"x").len(), EVENT_MAX_BYTES + 1);
    }
}
