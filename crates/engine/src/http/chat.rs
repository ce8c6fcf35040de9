//! `POST /v1/chat/completions`: from messages to a request of the engine.

use serde_json::{Value, json};

use super::error::ApiError;
use super::fields::{Fields, wrong_type};
use super::parameters::Parameters;
use super::reply::Kind;
use super::tools::Tools;
use super::{Asked, Caller, Served};
use crate::cache::Token;

/// Messages of one conversation. A template's time grows with them; longer conversations do not fit a context anyway.
pub(super) const MESSAGES_MAX: usize = 4096;
/// OpenAI's bound on `top_logprobs`.
const LIKELY_MAX: usize = 20;
const FIELD: &str = "messages";

/// Reads a request. Takes time for tokens and grammar: not on a thread that others wait for.
pub(super) fn read(served: &Served, body: &[u8], caller: &Caller) -> Result<Asked, ApiError> {
    let model = &served.model;
    let mut fields = Fields::parse(body)?;
    let caller = &served.address(&mut fields, caller)?;
    let messages = fields
        .array(FIELD)?
        .ok_or_else(|| ApiError::field(FIELD, format!("Missing required parameter: '{FIELD}'.")))?;
    if messages.is_empty() || messages.len() > MESSAGES_MAX {
        let message = format!("'{FIELD}' has to have from 1 to {MESSAGES_MAX} entries.");
        return Err(ApiError::field(FIELD, message));
    }
    let begun = begun(&messages)?;
    let said = messages.len() - usize::from(begun.is_some());
    let messages = messages
        .into_iter()
        .take(said)
        .enumerate()
        .map(|(at, message)| normal(at, message));
    let messages: Vec<Value> = messages.collect::<Result<_, _>>()?;
    let one_call = fields.flag("parallel_tool_calls")? == Some(false);
    let tools = Tools::new(fields.array("tools")?, fields.take("tool_choice"))?
        .map(|tools| tools.one_at_a_time(one_call));
    mistral(&mut fields)?;
    let parameters = Parameters::take(&mut fields, model, served.answers_max)?;
    let log_probabilities = log_probabilities(&mut fields)?;
    let predicted = prediction(&mut fields)?;
    let schema = tools
        .as_ref()
        .and_then(Tools::schema)
        .or(response_format(&mut fields)?);
    Parameters::finish(fields)?;

    let tokens = prompt(served, FIELD, messages, tools.as_ref(), begun.as_deref())?;
    let grammar = served.grammar(schema)?;
    let (events, receiver) = tokio::sync::mpsc::unbounded_channel();
    let mut request = parameters.request(
        model,
        FIELD,
        tokens,
        None,
        log_probabilities,
        grammar,
        caller,
        events,
    )?;
    if let Some(text) = predicted {
        // One that is longer than the context is no prediction of an answer.
        request.predicted = model.tokens(&text, false, false).unwrap_or_default();
    }
    Ok(Asked {
        kind: Kind::Chat,
        request,
        receiver,
        parameters,
        tools,
        echo: begun,
    })
}

/// The tokens of a conversation of [`normal`] messages, up to where the answer goes on: at its beginning, or after what
/// of it is there already. `field` is the one to name when it cannot be.
pub(super) fn prompt(
    served: &Served,
    field: &'static str,
    mut messages: Vec<Value>,
    tools: Option<&Tools>,
    begun: Option<&str>,
) -> Result<Vec<Token>, ApiError> {
    let model = &served.model;
    if model.embedding.is_some() {
        return Err(ApiError::embeds_only(&served.name));
    }
    let Some(template) = &model.template else {
        return Err(ApiError::bad(
            "This model has no chat template: use /v1/completions, or start it with one.",
        ));
    };
    if !template.knows_tools {
        for message in &mut messages {
            write_calls(message);
        }
        if let Some(tools) = tools {
            tell(&mut messages, &tools.instruction());
        }
    }
    let told = tools.filter(|_| template.knows_tools);
    let mut prompt = template
        .render(&messages, told.map(|tools| tools.definitions.as_slice()))
        .map_err(|error| ApiError::field(field, format!("The model's chat template refused: {error}.")))?;
    prompt.push_str(begun.unwrap_or_default());
    model
        .tokens(&prompt, !template.begins(&prompt), true)
        .ok_or_else(|| ApiError::context_length(field, model.context_length, None))
}

/// Calls that a template would leave out, as text.
fn write_calls(message: &mut Value) {
    let Some(calls) = message["tool_calls"].as_array() else {
        return;
    };
    let calls: Vec<String> = calls.iter().map(Tools::told).collect();
    let before = message["content"].as_str().unwrap_or_default();
    message["content"] = format!("{before}{}", calls.join("\n")).into();
}

/// What is there of the answer already: Mistral's `prefix` of the last message.
fn begun(messages: &[Value]) -> Result<Option<String>, ApiError> {
    for (at, message) in messages.iter().enumerate() {
        if message["prefix"] != true {
            continue;
        }
        let field = format!("{FIELD}[{at}].prefix");
        let text = message["content"].as_str();
        return match text.filter(|_| message["role"] == "assistant" && at + 1 == messages.len()) {
            Some(text) if at > 0 => Ok(Some(text.to_owned())),
            _ => {
                let message = format!("'{field}' is for the last message, the assistant's, after others.");
                Err(ApiError::field(field, message))
            }
        };
    }
    Ok(None)
}

/// Mistral's fields that are no wish when they say what is so anyway.
fn mistral(fields: &mut Fields) -> Result<(), ApiError> {
    if fields.flag("safe_prompt")? == Some(true) {
        let message =
            "'safe_prompt' is not available here: write what is asked of the model into a system message.";
        return Err(ApiError::field("safe_prompt", message));
    }
    fields.count("min_tokens", 0, 0)?;
    Ok(())
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

/// What the client thinks that the answer will be.
fn prediction(fields: &mut Fields) -> Result<Option<String>, ApiError> {
    const PREDICTION: &str = "prediction";
    let Some(prediction) = fields.take(PREDICTION) else {
        return Ok(None);
    };
    let content = (prediction["type"] == "content").then_some(&prediction["content"]);
    match content {
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(Value::Array(parts)) if parts.iter().all(|part| part["text"].is_string()) => Ok(Some(
            parts.iter().filter_map(|part| part["text"].as_str()).collect(),
        )),
        _ => {
            let message = "'prediction' has to be of type 'content', with text as its 'content'.";
            Err(ApiError::field(PREDICTION, message))
        }
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
