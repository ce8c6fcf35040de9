//! `POST /v1/chat/completions`: from messages to a request of the engine.

use serde_json::{Value, json};

use super::error::ApiError;
use super::fields::{Fields, wrong_type};
use super::parameters::Parameters;
use super::reply::Kind;
use super::tools::Tools;
use super::{Asked, Caller, Served};

/// Messages of one conversation. A template's time grows with them; longer conversations do not fit a context anyway.
const MESSAGES_MAX: usize = 4096;
/// OpenAI's bound on `top_logprobs`.
const LIKELY_MAX: usize = 20;
const FIELD: &str = "messages";

/// Reads a request. Takes time for tokens and grammar: not on a thread that others wait for.
pub(super) fn read(served: &Served, body: &[u8], caller: &Caller) -> Result<Asked, ApiError> {
    let model = &served.model;
    let mut fields = Fields::parse(body)?;
    served.check_model(&mut fields)?;
    let Some(template) = model.template.as_ref().filter(|_| !model.embeds) else {
        return Err(ApiError::bad(
            "This model has no chat template: use /v1/completions, or start it with one.",
        ));
    };
    let messages = fields
        .array(FIELD)?
        .ok_or_else(|| ApiError::field(FIELD, format!("Missing required parameter: '{FIELD}'.")))?;
    if messages.is_empty() || messages.len() > MESSAGES_MAX {
        let message = format!("'{FIELD}' has to have from 1 to {MESSAGES_MAX} entries.");
        return Err(ApiError::field(FIELD, message));
    }
    let messages = messages
        .into_iter()
        .enumerate()
        .map(|(at, message)| normal(at, message));
    let mut messages: Vec<Value> = messages.collect::<Result<_, _>>()?;
    let tools = Tools::new(fields.array("tools")?, fields.take("tool_choice"))?;
    let parameters = Parameters::take(&mut fields, model, served.answers_max)?;
    let log_probabilities = log_probabilities(&mut fields)?;
    let schema = tools
        .as_ref()
        .and_then(Tools::schema)
        .or(response_format(&mut fields)?);
    Parameters::finish(fields)?;

    if let Some(tools) = tools.as_ref().filter(|_| !template.knows_tools) {
        tell(&mut messages, &tools.instruction());
    }
    let told = tools.as_ref().filter(|_| template.knows_tools);
    let prompt = template
        .render(&messages, told.map(|tools| tools.definitions.as_slice()))
        .map_err(|error| ApiError::field(FIELD, format!("The model's chat template refused: {error}.")))?;
    let tokens = model
        .tokens(&prompt, !template.begins(&prompt), true)
        .ok_or_else(|| ApiError::context_length(FIELD, model.context_length, None))?;
    let grammar = served.grammar(schema)?;
    let (events, receiver) = tokio::sync::mpsc::unbounded_channel();
    let request = parameters.request(
        model,
        FIELD,
        tokens,
        None,
        log_probabilities,
        grammar,
        caller,
        events,
    )?;
    Ok(Asked {
        kind: Kind::Chat,
        request,
        receiver,
        parameters,
        tools,
        echo: None,
    })
}

/// A message as templates know it: a role, a text, calls with their arguments as objects.
fn normal(at: usize, message: Value) -> Result<Value, ApiError> {
    let field = |name: &str| format!("{FIELD}[{at}].{name}");
    let Value::Object(fields) = &message else {
        return Err(wrong_type(&format!("{FIELD}[{at}]"), "an object", &message));
    };
    let role = match fields.get("role").and_then(Value::as_str) {
        Some("developer" | "system") => "system",
        Some(role @ ("user" | "assistant" | "tool")) => role,
        _ => {
            let message = format!(
                "Invalid value for '{}': expected 'system', 'developer', 'user', 'assistant' or 'tool'.",
                field("role")
            );
            return Err(ApiError::field(field("role"), message));
        }
    };
    let calls = fields.get("tool_calls").filter(|calls| !calls.is_null());
    let content = match fields.get("content") {
        None | Some(Value::Null) if calls.is_some() => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => parts
            .iter()
            .map(|part| match (part["type"].as_str(), part["text"].as_str()) {
                (Some("text"), Some(text)) => Ok(text),
                (Some("text"), None) | (None, _) => {
                    let message = format!(
                        "Every part of '{}' has to have a type and its text.",
                        field("content")
                    );
                    Err(ApiError::field(field("content"), message))
                }
                (Some(kind), _) => {
                    let message = format!(
                        "This model takes text alone; '{}' has a part of type '{kind}'.",
                        field("content")
                    );
                    Err(ApiError::field(field("content"), message))
                }
            })
            .collect::<Result<String, _>>()?,
        other => {
            let found = other.unwrap_or(&Value::Null);
            return Err(wrong_type(
                &field("content"),
                "a string or an array of parts",
                found,
            ));
        }
    };
    let mut normal = json!({"role": role, "content": content});
    for name in ["name", "tool_call_id"] {
        if let Some(text) = fields.get(name).and_then(Value::as_str) {
            normal[name] = text.into();
        }
    }
    if let Some(calls) = calls {
        let Value::Array(calls) = calls else {
            return Err(wrong_type(&field("tool_calls"), "an array", calls));
        };
        let mut calls = calls.clone();
        for call in &mut calls {
            if let Some(arguments) = call["function"]["arguments"].as_str()
                && let Ok(object) = serde_json::from_str::<Value>(arguments)
            {
                call["function"]["arguments"] = object;
            }
        }
        normal["tool_calls"] = calls.into();
    }
    Ok(normal)
}

/// Adds to what the model is told first.
fn tell(messages: &mut Vec<Value>, instruction: &str) {
    if let Some(first) = messages.first_mut().filter(|first| first["role"] == "system") {
        let before = first["content"].as_str().unwrap_or_default();
        first["content"] = format!("{before}\n\n{instruction}").into();
    } else {
        messages.insert(0, json!({"role": "system", "content": instruction}));
    }
}

fn log_probabilities(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    let asked = fields.flag("logprobs")?.unwrap_or(false);
    let top = fields.count("top_logprobs", 0, LIKELY_MAX)?;
    if top.is_some() && !asked {
        let message = "The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled.";
        return Err(ApiError::field("top_logprobs", message));
    }
    Ok(asked.then(|| top.unwrap_or(0)))
}

/// The schema that `response_format` asks for.
pub(super) fn response_format(fields: &mut Fields) -> Result<Option<Value>, ApiError> {
    const FORMAT: &str = "response_format";
    let Some(mut format) = fields.object(FORMAT)? else {
        return Ok(None);
    };
    let kind = format.text("type")?;
    match kind.as_deref() {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(json!({"type": "object"}))),
        Some("json_schema") => {
            let schema = match format.object("json_schema")? {
                Some(mut named) => named.take("schema"),
                None => None,
            };
            match schema {
                Some(schema @ Value::Object(_)) => Ok(Some(schema)),
                _ => Err(ApiError::field(
                    "response_format.json_schema.schema",
                    "'response_format.json_schema.schema' has to be an object.",
                )),
            }
        }
        _ => Err(ApiError::field(
            "response_format.type",
            "'response_format.type' has to be 'text', 'json_object' or 'json_schema'.",
        )),
    }
}
