//! `POST /v1/fim/completions`: Mistral's contract for the text between a prompt and a suffix.
//!
//! The tokens that mark the three places are the model's own, from its file (`Model::between`). The answer has the shape
//! of a chat completion, and a stream's last chunk says how many tokens it was, both as Mistral has it.

use serde_json::{Value, json};

use super::error::ApiError;
use super::fields::Fields;
use super::parameters::Parameters;
use super::told::{Lines, Question, Shape, Told};
use super::{Caller, Served};
use crate::request::End;

const FIELD: &str = "prompt";

/// Reads a request. Takes time for tokens: not on a thread that others wait for.
pub(super) fn read(served: &Served, body: &[u8], caller: &Caller) -> Result<Question, ApiError> {
    let model = &served.model;
    let mut fields = Fields::parse(body)?;
    let caller = &served.address(&mut fields, caller)?;
    if model.embedding.is_some() {
        return Err(ApiError::embeds_only(&served.name));
    }
    let Some(prompt) = fields.text(FIELD)? else {
        return Err(ApiError::field(
            FIELD,
            format!("Missing required parameter: '{FIELD}'."),
        ));
    };
    let suffix = fields.text("suffix")?;
    let parameters = Parameters::take(&mut fields, model, 1)?;
    fields.count("min_tokens", 0, 0)?;
    Parameters::finish(fields)?;
    let too_long = || ApiError::context_length(FIELD, model.context_length, None);
    let tokens = match suffix.filter(|suffix| !suffix.is_empty()) {
        // Without a suffix it is a completion of the prompt.
        None => model.tokens(&prompt, true, false),
        Some(suffix) => model.between(&prompt, &suffix).ok_or_else(|| {
            ApiError::field(
                "suffix",
                "This model cannot fill in text between a prompt and a suffix: its file names no tokens for it.",
            )
        })?,
    };
    let tokens = tokens.ok_or_else(too_long)?;
    let (events, receiver) = tokio::sync::mpsc::unbounded_channel();
    let stream = parameters.stream;
    let request = parameters.request(model, FIELD, tokens, None, None, None, caller, events)?;
    Ok(Question {
        request,
        receiver,
        tools: None,
        stream,
        shape: Box::new(Fim {
            id: uuid::Uuid::new_v4().simple().to_string(),
            model: served.called(caller.adapter).to_owned(),
            created: jiff::Timestamp::now().as_second(),
        }),
    })
}

/// One answer.
#[derive(Debug)]
struct Fim {
    id: String,
    model: String,
    created: i64,
}

impl Fim {
    fn object(&self, object: &str, choice: Value) -> Value {
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "choices": [choice],
        })
    }

    fn chunk(&self, delta: Value, reason: Option<&str>) -> Value {
        let choice = json!({"index": 0, "delta": delta, "finish_reason": reason});
        self.object("chat.completion.chunk", choice)
    }
}

impl Shape for Fim {
    fn head(&self) -> (&str, i64) {
        (&self.id, self.created)
    }

    fn goes_on(&mut self, id: &str, created: i64) {
        id.clone_into(&mut self.id);
        self.created = created;
    }

    fn whole(&mut self, told: &Told) -> Value {
        let message = json!({"role": "assistant", "content": told.said(), "tool_calls": null});
        let choice = json!({"index": 0, "message": message, "finish_reason": reason(told)});
        let mut whole = self.object("chat.completion", choice);
        whole["usage"] = told.usage.json();
        whole
    }

    fn open(&mut self, _told: &Told, lines: &mut Lines) {
        lines.plain(&self.chunk(json!({"role": "assistant", "content": ""}), None));
    }

    fn text(&mut self, text: &str, lines: &mut Lines) {
        lines.plain(&self.chunk(json!({"content": text}), None));
    }

    fn close(&mut self, told: &Told, lines: &mut Lines) {
        let mut last = self.chunk(json!({"content": ""}), Some(reason(told)));
        last["usage"] = told.usage.json();
        lines.plain(&last);
        lines.done();
    }

    fn fail(&mut self, error: &ApiError, lines: &mut Lines) {
        lines.plain(&error.body());
    }
}

fn reason(told: &Told) -> &'static str {
    match told.end {
        Some(End::Length) => "length",
        _ => "stop",
    }
}
