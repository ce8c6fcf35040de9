//! Answers in Anthropic's shape: one message of blocks, or the events that make it up.

use serde_json::{Value, json};

use crate::http::error::ApiError;
use crate::http::reply::{Call, Usage};
use crate::http::told::{Lines, Shape, Told};
use crate::request::End;

/// One message.
#[derive(Debug)]
pub(super) struct Messages {
    id: String,
    model: String,
    stops: Vec<String>,
    /// A block of text is open.
    open: bool,
    /// Blocks that were begun.
    blocks: usize,
}

impl Messages {
    pub(super) fn new(model: &str, stops: Vec<String>) -> Self {
        Self {
            id: format!("msg_{}", uuid::Uuid::new_v4().simple()),
            model: model.to_owned(),
            stops,
            open: false,
            blocks: 0,
        }
    }

    fn message(&self, content: Vec<Value>, reason: Value, sequence: Value, usage: Value) -> Value {
        json!({
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": sequence,
            "usage": usage,
        })
    }

    /// Why it ended, and the stop sequence that ended it.
    fn end(&self, told: &Told) -> (Value, Value) {
        match told.end {
            _ if !told.calls.is_empty() => ("tool_use".into(), Value::Null),
            Some(End::Length) => ("max_tokens".into(), Value::Null),
            Some(End::Sequence(number)) => (
                "stop_sequence".into(),
                self.stops.get(number).cloned().map_or(Value::Null, Value::from),
            ),
            Some(End::Stop) | None => ("end_turn".into(), Value::Null),
        }
    }

    fn start_block(&mut self, block: &Value, lines: &mut Lines) {
        lines.named(&json!({"type": "content_block_start", "index": self.blocks, "content_block": block}));
        self.blocks += 1;
    }

    fn delta(&self, delta: &Value, lines: &mut Lines) {
        let index = self.blocks.saturating_sub(1);
        lines.named(&json!({"type": "content_block_delta", "index": index, "delta": delta}));
    }

    fn stop_block(&self, lines: &mut Lines) {
        let index = self.blocks.saturating_sub(1);
        lines.named(&json!({"type": "content_block_stop", "index": index}));
    }
}

impl Shape for Messages {
    fn head(&self) -> (&str, i64) {
        // Messages have no time.
        (&self.id, 0)
    }

    fn goes_on(&mut self, id: &str, _created: i64) {
        id.clone_into(&mut self.id);
    }

    fn whole(&mut self, told: &Told) -> Value {
        let mut content: Vec<Value> = Vec::new();
        if !told.said().is_empty() {
            content.push(json!({"type": "text", "text": told.said()}));
        }
        content.extend(told.calls.iter().map(|call| block(call, arguments(call))));
        let (reason, sequence) = self.end(told);
        self.message(content, reason, sequence, usage(told.usage))
    }

    fn open(&mut self, told: &Told, lines: &mut Lines) {
        let message = self.message(Vec::new(), Value::Null, Value::Null, usage(told.usage));
        lines.named(&json!({"type": "message_start", "message": message}));
        lines.named(&json!({"type": "ping"}));
    }

    fn text(&mut self, text: &str, lines: &mut Lines) {
        if !self.open {
            self.open = true;
            self.start_block(&json!({"type": "text", "text": ""}), lines);
        }
        self.delta(&json!({"type": "text_delta", "text": text}), lines);
    }

    fn close(&mut self, told: &Told, lines: &mut Lines) {
        if self.open {
            self.stop_block(lines);
        }
        for call in &told.calls {
            self.start_block(&block(call, json!({})), lines);
            let delta = json!({"type": "input_json_delta", "partial_json": arguments(call).to_string()});
            self.delta(&delta, lines);
            self.stop_block(lines);
        }
        let (reason, sequence) = self.end(told);
        lines.named(&json!({
            "type": "message_delta",
            "delta": {"stop_reason": reason, "stop_sequence": sequence},
            "usage": usage(told.usage),
        }));
        lines.named(&json!({"type": "message_stop"}));
    }

    fn fail(&mut self, error: &ApiError, lines: &mut Lines) {
        lines.named(&error.anthropic());
    }
}

/// Anthropic counts what was read from the cache apart.
fn usage(usage: Usage) -> Value {
    json!({
        "input_tokens": usage.prompt.saturating_sub(usage.cached),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached,
        "output_tokens": usage.completion,
    })
}

fn block(call: &Call, input: Value) -> Value {
    let id = call.id.strip_prefix("call_").unwrap_or(&call.id);
    json!({"type": "tool_use", "id": format!("toolu_{id}"), "name": call.name, "input": input})
}

/// What a tool is called with, which Anthropic's contract has as an object.
fn arguments(call: &Call) -> Value {
    let object = serde_json::from_str(&call.arguments).ok();
    object.filter(Value::is_object).unwrap_or_else(|| json!({}))
}
