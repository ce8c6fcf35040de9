//! Answers in OpenAI's shapes, whole or in chunks.

use serde_json::{Value, json};

use crate::request::{End, Likely};

/// What the engine calls itself in answers: the same seed gives the same answer as long as this is the same.
const FINGERPRINT: &str = concat!("tram-engine-", env!("CARGO_PKG_VERSION"));

/// Which of the two endpoints that generate text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Chat,
    Completion,
}

/// What all chunks of an answer repeat.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    pub(crate) kind: Kind,
    pub(crate) id: String,
    pub(crate) created: i64,
    model: String,
}

/// Tokens of a request, as they are counted for the client.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    pub(crate) prompt: usize,
    pub(crate) cached: usize,
    pub(crate) completion: usize,
}

impl Usage {
    pub(super) fn json(self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        })
    }
}

/// One answer, as far as it came.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) text: String,
    /// Bytes of it that went out already, in a stream.
    pub(crate) sent: usize,
    pub(crate) likely: Vec<Likely>,
    pub(crate) end: Option<End>,
    /// What the assistant calls instead of saying something.
    pub(crate) calls: Vec<Call>,
}

/// A call of a tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) id: String,
    pub(crate) name: String,
    /// JSON.
    pub(crate) arguments: String,
}

impl Call {
    fn json(&self) -> Value {
        json!({
            "id": self.id,
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        })
    }
}

impl Head {
    pub(crate) fn new(kind: Kind, model: &str) -> Self {
        let prefix = match kind {
            Kind::Chat => "chatcmpl",
            Kind::Completion => "cmpl",
        };
        Self {
            kind,
            id: format!("{prefix}-{}", uuid::Uuid::new_v4().simple()),
            created: jiff::Timestamp::now().as_second(),
            model: model.to_owned(),
        }
    }

    fn object(&self, object: &str, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": FINGERPRINT,
            "choices": choices,
        })
    }

    /// The whole answer. `asked` is whether log probabilities were asked for.
    pub(crate) fn whole(&self, answers: &[Answer], usage: Usage, asked: bool) -> Value {
        let choices = answers.iter().enumerate().map(|(index, answer)| {
            let reason = reason(answer.end, !answer.calls.is_empty());
            let likely = if asked {
                self.likely(&answer.likely, 0)
            } else {
                Value::Null
            };
            match self.kind {
                Kind::Chat => {
                    let mut message = json!({"role": "assistant", "content": answer.text, "refusal": null});
                    if !answer.calls.is_empty() {
                        message["content"] = Value::Null;
                        message["tool_calls"] = answer.calls.iter().map(Call::json).collect();
                    }
                    json!({"index": index, "message": message, "logprobs": likely, "finish_reason": reason})
                }
                Kind::Completion => {
                    json!({"index": index, "text": answer.text, "logprobs": likely, "finish_reason": reason})
                }
            }
        });
        let object = match self.kind {
            Kind::Chat => "chat.completion",
            Kind::Completion => "text_completion",
        };
        let mut whole = self.object(object, choices.collect());
        whole["usage"] = usage.json();
        whole
    }

    fn chunk(&self, choices: Vec<Value>, with_usage: bool) -> Value {
        let object = match self.kind {
            Kind::Chat => "chat.completion.chunk",
            Kind::Completion => "text_completion",
        };
        let mut chunk = self.object(object, choices);
        if with_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    /// The first chunk of an answer; plain completions have none.
    pub(crate) fn opening(&self, index: usize, with_usage: bool) -> Option<Value> {
        (self.kind == Kind::Chat).then(|| {
            let delta = json!({"role": "assistant", "content": "", "refusal": null});
            let choice = json!({"index": index, "delta": delta, "logprobs": null, "finish_reason": null});
            self.chunk(vec![choice], with_usage)
        })
    }

    /// A chunk with text. `offset` is the number of characters of the answer before it.
    pub(crate) fn text(
        &self,
        index: usize,
        text: &str,
        likely: &[Likely],
        offset: usize,
        with_usage: bool,
    ) -> Value {
        let likely = if likely.is_empty() {
            Value::Null
        } else {
            self.likely(likely, offset)
        };
        let choice = match self.kind {
            Kind::Chat => {
                json!({"index": index, "delta": {"content": text}, "logprobs": likely, "finish_reason": null})
            }
            Kind::Completion => {
                json!({"index": index, "text": text, "logprobs": likely, "finish_reason": null})
            }
        };
        self.chunk(vec![choice], with_usage)
    }

    /// A chunk with calls of tools, whole.
    pub(crate) fn calls(&self, index: usize, calls: &[Call], with_usage: bool) -> Value {
        let calls: Vec<Value> = calls
            .iter()
            .enumerate()
            .map(|(at, call)| {
                let mut call = call.json();
                call["index"] = at.into();
                call
            })
            .collect();
        let choice =
            json!({"index": index, "delta": {"tool_calls": calls}, "logprobs": null, "finish_reason": null});
        self.chunk(vec![choice], with_usage)
    }

    /// The last chunk of an answer.
    pub(crate) fn closing(&self, index: usize, end: End, calls: bool, with_usage: bool) -> Value {
        let reason = reason(Some(end), calls);
        let choice = match self.kind {
            Kind::Chat => json!({"index": index, "delta": {}, "logprobs": null, "finish_reason": reason}),
            Kind::Completion => {
                json!({"index": index, "text": "", "logprobs": null, "finish_reason": reason})
            }
        };
        self.chunk(vec![choice], with_usage)
    }

    /// The last chunk of all, for those who asked for it.
    pub(crate) fn usage(&self, usage: Usage) -> Value {
        let mut chunk = self.chunk(Vec::new(), true);
        chunk["usage"] = usage.json();
        chunk
    }

    fn likely(&self, likely: &[Likely], offset: usize) -> Value {
        match self.kind {
            Kind::Chat => {
                json!({"content": likely.iter().map(chat_likely).collect::<Vec<_>>(), "refusal": null})
            }
            Kind::Completion => completion_likely(likely, offset),
        }
    }
}

fn reason(end: Option<End>, calls: bool) -> &'static str {
    match end {
        Some(End::Length) => "length",
        _ if calls => "tool_calls",
        _ => "stop",
    }
}

fn chat_likely(likely: &Likely) -> Value {
    let one = |token: &[u8], log_probability: f32| {
        json!({
            "token": String::from_utf8_lossy(token),
            "logprob": finite(log_probability),
            "bytes": token,
        })
    };
    let mut entry = one(&likely.token, likely.log_probability);
    entry["top_logprobs"] = likely
        .top
        .iter()
        .map(|(token, likely)| one(token, *likely))
        .collect();
    entry
}

fn completion_likely(likely: &[Likely], mut offset: usize) -> Value {
    let name = |token: &[u8]| String::from_utf8_lossy(token).into_owned();
    let mut offsets = Vec::new();
    for one in likely {
        offsets.push(offset);
        offset += name(&one.token).chars().count();
    }
    let top = likely.iter().map(|one| {
        let entries = one
            .top
            .iter()
            .map(|(token, likely)| (name(token), finite(*likely).into()));
        Value::Object(entries.collect())
    });
    json!({
        "tokens": likely.iter().map(|one| name(&one.token)).collect::<Vec<_>>(),
        "token_logprobs": likely.iter().map(|one| finite(one.log_probability)).collect::<Vec<_>>(),
        "top_logprobs": top.collect::<Vec<_>>(),
        "text_offset": offsets,
    })
}

/// JSON has no infinity: OpenAI writes this for what cannot come.
fn finite(log_probability: f32) -> f32 {
    const NEVER: f32 = -9999.0;
    if log_probability.is_finite() {
        log_probability
    } else {
        NEVER
    }
}
