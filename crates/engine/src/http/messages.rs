//! `POST /v1/messages` and `/v1/messages/count_tokens`: Anthropic's contract, from messages to a request of the engine.
//!
//! What is asked is brought into the form that the model's chat template knows (`chat`), so that a conversation gives the
//! same prompt by either contract. What this engine cannot do (images, thinking, tools of Anthropic's servers) is refused
//! by name. How the answer is written is in `shape`.

mod convert;
mod shape;

use serde_json::{Value, json};

use super::error::ApiError;
use super::fields::{Fields, wrong_type};
use super::parameters::{Parameters, top_k};
use super::told::Question;
use super::tools::Tools;
use super::{Caller, Served, chat};
use crate::cache::Token;
use crate::sample;

use convert::{messages, text_of};
use shape::Messages;

const FIELD: &str = "messages";
/// Stop sequences of one request. Anthropic's bound is not written down; each costs time in each token.
const STOPS_MAX: usize = 64;
/// Anthropic's bound.
const TEMPERATURE_MAX: f32 = 1.0;
/// What changes no answer here: what was computed is kept without being told, and there is one tier.
const HARMLESS: &[&str] = &["metadata", "service_tier", "cache_control"];

/// A conversation as the model gets it.
struct Conversation {
    tokens: Vec<Token>,
    tools: Option<Tools>,
    /// What the answer has to match.
    schema: Option<Value>,
}

/// Reads a request. Takes time for tokens and grammar: not on a thread that others wait for.
pub(super) fn read(served: &Served, body: &[u8], caller: &Caller) -> Result<Question, ApiError> {
    let model = &served.model;
    let mut fields = Fields::parse(body)?;
    let caller = &served.address(&mut fields, caller)?;
    let most = fields.count("max_tokens", 1, usize::MAX)?;
    let Some(most) = most else {
        return Err(ApiError::field("max_tokens", "max_tokens: Field required"));
    };
    let stops = fields.texts("stop_sequences", STOPS_MAX)?;
    let stream = fields.flag("stream")?.unwrap_or(false);
    let sampling = sample::Settings {
        temperature: fields
            .number("temperature", 0.0..=TEMPERATURE_MAX)?
            .unwrap_or(1.0),
        top_p: fields.number("top_p", 0.0..=1.0)?.unwrap_or(1.0),
        top_k: top_k(&mut fields, model)?,
        ..sample::Settings::default()
    };
    let Conversation {
        tokens,
        tools,
        schema,
    } = conversation(served, &mut fields)?;
    fields.finish(HARMLESS)?;
    let parameters = Parameters {
        tokens_max: Some(most.min(model.context_length)),
        sampling,
        stops: stops.clone(),
        ..Parameters::plain()
    };
    let grammar = served.grammar(schema)?;
    let (events, receiver) = tokio::sync::mpsc::unbounded_channel();
    let request = parameters.request(model, FIELD, tokens, None, None, grammar, caller, events)?;
    Ok(Question {
        request,
        receiver,
        tools,
        stream,
        shape: Box::new(Messages::new(served.called(caller.adapter), stops)),
    })
}

/// How many tokens a conversation has.
pub(super) fn count(served: &Served, body: &[u8], caller: &Caller) -> Result<Value, ApiError> {
    let mut fields = Fields::parse(body)?;
    served.address(&mut fields, caller)?;
    let conversation = conversation(served, &mut fields)?;
    fields.finish(HARMLESS)?;
    Ok(json!({"input_tokens": conversation.tokens.len()}))
}

fn conversation(served: &Served, fields: &mut Fields) -> Result<Conversation, ApiError> {
    let given = fields
        .array(FIELD)?
        .ok_or_else(|| ApiError::field(FIELD, format!("{FIELD}: Field required")))?;
    if given.is_empty() || given.len() > chat::MESSAGES_MAX {
        let message = format!("'{FIELD}' has to have from 1 to {} entries.", chat::MESSAGES_MAX);
        return Err(ApiError::field(FIELD, message));
    }
    let mut messages = messages(&given)?;
    // An answer that was begun by the client is gone on with.
    let begun = match messages.last() {
        Some(last) if last["role"] == "assistant" && last.get("tool_calls").is_none() => {
            let text = last["content"].as_str().unwrap_or_default().to_owned();
            if text.ends_with(char::is_whitespace) {
                let message = "messages: final assistant content cannot end with trailing whitespace";
                return Err(ApiError::field(FIELD, message));
            }
            messages.pop();
            Some(text)
        }
        _ => None,
    };
    if let Some(system) = fields.take("system") {
        let text = text_of("system", &system)?;
        messages.insert(0, json!({"role": "system", "content": text}));
    }
    let tools = tools(fields)?;
    thinking(fields)?;
    match fields.text("speed")?.as_deref() {
        None | Some("standard") => {}
        Some(_) => {
            return Err(ApiError::field(
                "speed",
                "'speed' has to be 'standard': there is no other here.",
            ));
        }
    }
    let schema = match tools.as_ref().and_then(Tools::schema) {
        Some(schema) => Some(schema),
        None => output_format(fields)?,
    };
    let tokens = chat::prompt(served, FIELD, messages, tools.as_ref(), begun.as_deref())?;
    Ok(Conversation {
        tokens,
        tools,
        schema,
    })
}

/// The tools, in OpenAI's form.
fn tools(fields: &mut Fields) -> Result<Option<Tools>, ApiError> {
    let given = fields.array("tools")?.unwrap_or_default();
    let tools: Vec<Value> = given
        .into_iter()
        .enumerate()
        .map(|(at, tool)| self::tool(at, tool))
        .collect::<Result<_, _>>()?;
    let mut choice = None;
    let mut one = false;
    if let Some(mut wanted) = fields.object("tool_choice")? {
        one = wanted.flag("disable_parallel_tool_use")? == Some(true);
        let name = wanted.text("name")?;
        choice = match (wanted.text("type")?.as_deref(), name) {
            (Some(word @ ("auto" | "any" | "none")), None) => Some(json!(word)),
            (Some("tool"), Some(name)) => Some(json!({"type": "function", "function": {"name": name}})),
            _ => {
                let message = "'tool_choice.type' has to be 'auto', 'any', 'none', or 'tool' with a 'name'.";
                return Err(ApiError::field("tool_choice", message));
            }
        };
        wanted.finish_within("tool_choice", &[])?;
    }
    let tools = Tools::new(Some(tools), choice)?;
    Ok(tools.map(|tools| tools.one_at_a_time(one)))
}

fn tool(at: usize, tool: Value) -> Result<Value, ApiError> {
    let field = format!("tools.{at}");
    let Value::Object(tool) = tool else {
        return Err(wrong_type(&field, "an object", &tool));
    };
    let mut tool = Fields::of(tool);
    match tool.text("type")?.as_deref() {
        None | Some("custom") => {}
        Some(kind) => {
            let message = format!(
                "Tools of type '{kind}' are run by Anthropic's servers, which this is not: give tools with an 'input_schema'."
            );
            return Err(ApiError::field(format!("{field}.type"), message));
        }
    }
    let name = tool
        .text("name")?
        .ok_or_else(|| ApiError::field(format!("{field}.name"), format!("{field}.name: Field required")))?;
    let mut function = json!({"name": name});
    if let Some(description) = tool.text("description")? {
        function["description"] = description.into();
    }
    match tool.take("input_schema") {
        Some(schema @ Value::Object(_)) => function["parameters"] = schema,
        _ => {
            let field = format!("{field}.input_schema");
            return Err(ApiError::field(
                field.as_str(),
                format!("'{field}' has to be an object."),
            ));
        }
    }
    // How a call is sent and cached is all the same here. A call is as the schema says when it is demanded, or nowhere.
    tool.finish_within(&field, &["cache_control", "strict", "eager_input_streaming"])?;
    Ok(json!({"type": "function", "function": function}))
}

fn thinking(fields: &mut Fields) -> Result<(), ApiError> {
    let Some(mut thinking) = fields.object("thinking")? else {
        return Ok(());
    };
    if thinking.text("type")?.as_deref() == Some("disabled") {
        return Ok(());
    }
    let message =
        "'thinking.type' has to be 'disabled': this engine shows no thinking apart from the answer.";
    Err(ApiError::field("thinking", message))
}

/// The schema that `output_config.format` asks for.
fn output_format(fields: &mut Fields) -> Result<Option<Value>, ApiError> {
    const FORMAT: &str = "output_config.format";
    let Some(mut config) = fields.object("output_config")? else {
        return Ok(None);
    };
    let format = config.object("format")?;
    config.finish_within("output_config", &[])?;
    let Some(mut format) = format else { return Ok(None) };
    let kind = format.text("type")?;
    match (kind.as_deref(), format.take("schema")) {
        (Some("json_schema"), Some(schema @ Value::Object(_))) => Ok(Some(schema)),
        _ => Err(ApiError::field(
            FORMAT,
            format!("'{FORMAT}' has to be of type 'json_schema' with a 'schema'."),
        )),
    }
}
