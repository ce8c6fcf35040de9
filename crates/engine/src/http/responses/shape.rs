//! Answers in the shape of OpenAI's responses: one object with items, or the events that make it up.

use serde_json::{Value, json};

use crate::http::error::ApiError;
use crate::http::reply::{Call, Usage};
use crate::http::told::{Lines, Shape, Told};
use crate::request::End;

/// What was asked, as the answer says it back.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) model: String,
    pub(super) instructions: Option<String>,
    pub(super) tools: Vec<Value>,
    pub(super) tool_choice: Value,
    pub(super) parallel: bool,
    pub(super) temperature: f32,
    pub(super) top_p: f32,
    pub(super) most: Option<usize>,
    pub(super) metadata: Value,
    pub(super) format: Value,
}

/// One response.
#[derive(Debug)]
pub(super) struct Responses {
    asked: Asked,
    id: String,
    message: String,
    created: i64,
    /// Events that went out.
    sent: u64,
    /// The message was begun.
    open: bool,
}

impl Responses {
    pub(super) fn new(asked: Asked) -> Self {
        let id = format!("resp_{}", uuid::Uuid::new_v4().simple());
        Self {
            asked,
            message: message_id(&id),
            id,
            created: jiff::Timestamp::now().as_second(),
            sent: 0,
            open: false,
        }
    }

    fn response(&self, status: &str, output: Vec<Value>, usage: Value) -> Value {
        let asked = &self.asked;
        let incomplete = match status {
            "incomplete" => json!({"reason": "max_output_tokens"}),
            _ => Value::Null,
        };
        json!({
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "background": false,
            "error": null,
            "incomplete_details": incomplete,
            "instructions": asked.instructions,
            "max_output_tokens": asked.most,
            "metadata": asked.metadata,
            "model": asked.model,
            "output": output,
            "parallel_tool_calls": asked.parallel,
            "previous_response_id": null,
            "store": false,
            "temperature": rounded(asked.temperature),
            "text": {"format": asked.format},
            "tool_choice": asked.tool_choice,
            "tools": asked.tools,
            "top_p": rounded(asked.top_p),
            "truncation": "disabled",
            "usage": usage,
        })
    }

    fn ended(&self, told: &Told) -> Value {
        let status = status(told);
        let mut output = Vec::new();
        if told.calls.is_empty() {
            output.push(self.item(status, vec![part(told.said())]));
        }
        output.extend(told.calls.iter().map(|call| call_item(call, "completed")));
        self.response(status, output, usage(told.usage))
    }

    fn item(&self, status: &str, content: Vec<Value>) -> Value {
        json!({"id": self.message, "type": "message", "status": status, "role": "assistant", "content": content})
    }

    fn send(&mut self, kind: &str, mut event: Value, lines: &mut Lines) {
        event["type"] = format!("response.{kind}").into();
        self.number(event, lines);
    }

    fn number(&mut self, mut event: Value, lines: &mut Lines) {
        event["sequence_number"] = self.sent.into();
        self.sent += 1;
        lines.named(&event);
    }

    /// An event of the message's text.
    fn send_text(&mut self, kind: &str, name: &str, value: Value, lines: &mut Lines) {
        let mut event = json!({"item_id": self.message, "output_index": 0, "content_index": 0});
        event[name] = value;
        if name != "part" {
            event["logprobs"] = json!([]);
        }
        self.send(kind, event, lines);
    }

    fn begin(&mut self, lines: &mut Lines) {
        self.open = true;
        let item = self.item("in_progress", Vec::new());
        self.send(
            "output_item.added",
            json!({"output_index": 0, "item": item}),
            lines,
        );
        self.send_text("content_part.added", "part", part(""), lines);
    }
}

impl Shape for Responses {
    fn head(&self) -> (&str, i64) {
        (&self.id, self.created)
    }

    fn goes_on(&mut self, id: &str, created: i64) {
        id.clone_into(&mut self.id);
        self.message = message_id(id);
        self.created = created;
    }

    fn whole(&mut self, told: &Told) -> Value {
        self.ended(told)
    }

    fn open(&mut self, _told: &Told, lines: &mut Lines) {
        for kind in ["created", "in_progress"] {
            let response = self.response("in_progress", Vec::new(), Value::Null);
            self.send(kind, json!({"response": response}), lines);
        }
    }

    fn text(&mut self, text: &str, lines: &mut Lines) {
        if !self.open {
            self.begin(lines);
        }
        self.send_text("output_text.delta", "delta", text.into(), lines);
    }

    fn close(&mut self, told: &Told, lines: &mut Lines) {
        if told.calls.is_empty() {
            if !self.open {
                self.begin(lines);
            }
            self.send_text("output_text.done", "text", told.said().into(), lines);
            self.send_text("content_part.done", "part", part(told.said()), lines);
            let item = self.item(status(told), vec![part(told.said())]);
            self.send(
                "output_item.done",
                json!({"output_index": 0, "item": item}),
                lines,
            );
        }
        for (index, call) in told.calls.iter().enumerate() {
            let mut begun = call_item(call, "in_progress");
            begun["arguments"] = "".into();
            self.send(
                "output_item.added",
                json!({"output_index": index, "item": begun}),
                lines,
            );
            let mut event =
                json!({"item_id": call_item_id(call), "output_index": index, "delta": call.arguments});
            self.send("function_call_arguments.delta", event.clone(), lines);
            event["arguments"] = event["delta"].take();
            if let Some(event) = event.as_object_mut() {
                event.shift_remove("delta");
            }
            event["name"] = call.name.as_str().into();
            self.send("function_call_arguments.done", event, lines);
            let item = call_item(call, "completed");
            self.send(
                "output_item.done",
                json!({"output_index": index, "item": item}),
                lines,
            );
        }
        let response = self.ended(told);
        self.send(status(told), json!({"response": response}), lines);
    }

    fn fail(&mut self, error: &ApiError, lines: &mut Lines) {
        let body = error.body();
        let event = json!({
            "type": "error",
            "code": body["error"]["code"],
            "message": body["error"]["message"],
            "param": body["error"]["param"],
        });
        self.number(event, lines);
    }
}

/// The id of a response's one message: whoever goes on with the response has the same.
fn message_id(id: &str) -> String {
    format!("msg_{}", id.strip_prefix("resp_").unwrap_or(id))
}

fn status(told: &Told) -> &'static str {
    match told.end {
        Some(End::Length) if told.calls.is_empty() => "incomplete",
        _ => "completed",
    }
}

fn part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

fn call_item_id(call: &Call) -> String {
    format!("fc_{}", call.id.strip_prefix("call_").unwrap_or(&call.id))
}

fn call_item(call: &Call, status: &str) -> Value {
    json!({
        "id": call_item_id(call),
        "type": "function_call",
        "status": status,
        "call_id": call.id,
        "name": call.name,
        "arguments": call.arguments,
    })
}

fn usage(usage: Usage) -> Value {
    json!({
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt + usage.completion,
    })
}

/// As it was written: the settings are kept in 32 bits, whose digits beyond the seventh are noise.
fn rounded(value: f32) -> f64 {
    const DIGITS: f64 = 1e6;
    (f64::from(value) * DIGITS).round() / DIGITS
}
