//! `POST /v1/responses`: OpenAI's newer contract, from items to a request of the engine.
//!
//! Nothing is stored: an answer says `store: false`, whoever asks for `store: true` or goes on from an earlier answer is
//! refused, and so is each field that this engine would obey only in part. How the answer is written is in `shape`.

mod items;
mod shape;

use serde_json::{Value, json};

use super::error::ApiError;
use super::fields::{Fields, wrong_type};
use super::parameters::{Parameters, TEMPERATURE_MAX};
use super::told::Question;
use super::tools::Tools;
use super::{Caller, Served, chat};
use crate::sample;

use shape::{Asked, Responses};

const FIELD: &str = "input";
/// What changes no answer of one model on one engine. Tools of OpenAI's own are not here to be counted.
const HARMLESS: &[&str] = &[
    "user",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "max_tool_calls",
];

/// Reads a request. Takes time for tokens and grammar: not on a thread that others wait for.
pub(super) fn read(served: &Served, body: &[u8], caller: &Caller) -> Result<Question, ApiError> {
    let model = &served.model;
    let mut fields = Fields::parse(body)?;
    let caller = &served.address(&mut fields, caller)?;
    refuse_state(&mut fields)?;
    let Some(input) = fields.take(FIELD) else {
        let message = format!("Missing required parameter: '{FIELD}'.");
        return Err(ApiError::field(FIELD, message));
    };
    let mut messages = items::messages(input)?;
    let instructions = fields.text("instructions")?;
    if let Some(text) = &instructions {
        messages.insert(0, json!({"role": "system", "content": text}));
    }
    let given_tools = fields.array("tools")?.unwrap_or_default();
    let given_choice = fields.take("tool_choice");
    let parallel = fields.flag("parallel_tool_calls")?.unwrap_or(true);
    let tools = tools(&given_tools, given_choice.as_ref())?.map(|tools| tools.one_at_a_time(!parallel));
    let stream = fields.flag("stream")?.unwrap_or(false);
    if let Some(options) = fields.object("stream_options")? {
        options.finish_within("stream_options", &["include_obfuscation"])?;
    }
    let temperature = fields.number("temperature", 0.0..=TEMPERATURE_MAX)?;
    let top_p = fields.number("top_p", 0.0..=1.0)?;
    let most = fields.count("max_output_tokens", 1, usize::MAX)?;
    let metadata = fields.take("metadata");
    let (format, wanted) = text(&mut fields)?;
    fields.finish(HARMLESS)?;

    let schema = tools.as_ref().and_then(Tools::schema).or(wanted);
    let parameters = Parameters {
        tokens_max: most.map(|most| most.min(model.context_length)),
        sampling: sample::Settings {
            temperature: temperature.unwrap_or(1.0),
            top_p: top_p.unwrap_or(1.0),
            ..sample::Settings::default()
        },
        ..Parameters::plain()
    };
    let tokens = chat::prompt(served, FIELD, messages, tools.as_ref(), None)?;
    let grammar = served.grammar(schema)?;
    let (events, receiver) = tokio::sync::mpsc::unbounded_channel();
    let request = parameters.request(model, FIELD, tokens, None, None, grammar, caller, events)?;
    let asked = Asked {
        model: served.called(caller.adapter).to_owned(),
        instructions,
        tools: given_tools,
        tool_choice: given_choice.unwrap_or_else(|| json!("auto")),
        parallel,
        temperature: parameters.sampling.temperature,
        top_p: parameters.sampling.top_p,
        most,
        metadata: metadata.unwrap_or_else(|| json!({})),
        format,
    };
    Ok(Question {
        request,
        receiver,
        tools,
        stream,
        shape: Box::new(Responses::new(asked)),
    })
}

/// What would need an answer to be kept, or a text to be cut.
fn refuse_state(fields: &mut Fields) -> Result<(), ApiError> {
    if fields.flag("store")? == Some(true) {
        let message = "'store' has to be false: this engine keeps no answers.";
        return Err(ApiError::field("store", message));
    }
    if fields.flag("background")? == Some(true) {
        let message = "'background' has to be false: this engine keeps no answers to fetch later.";
        return Err(ApiError::field("background", message));
    }
    for name in ["previous_response_id", "conversation"] {
        if fields.take(name).is_some() {
            let message = format!(
                "'{name}' is not available: this engine keeps no answers. Send all items as 'input'."
            );
            return Err(ApiError::field(name, message));
        }
    }
    match fields.text("truncation")?.as_deref() {
        None | Some("disabled") => {}
        Some(_) => {
            let message = "'truncation' has to be 'disabled': what is too long is refused, not cut.";
            return Err(ApiError::field("truncation", message));
        }
    }
    // There is no reasoning apart from the answer, so there is none to encrypt.
    let include = fields.texts("include", usize::MAX)?;
    if let Some(other) = include.iter().find(|name| *name != "reasoning.encrypted_content") {
        let message = format!("'include' names '{other}', which this engine does not have.");
        return Err(ApiError::field("include", message));
    }
    Ok(())
}

/// The tools, in the form of chat completions.
fn tools(given: &[Value], choice: Option<&Value>) -> Result<Option<Tools>, ApiError> {
    let mut tools = Vec::new();
    for (at, tool) in given.iter().enumerate() {
        let field = format!("tools[{at}]");
        let Value::Object(members) = tool else {
            return Err(wrong_type(&field, "an object", tool));
        };
        if tool["type"] != "function" {
            let message = format!(
                "'{field}.type' has to be 'function': tools of {} are run by OpenAI's servers, which this is not.",
                tool["type"]
            );
            return Err(ApiError::field(format!("{field}.type"), message));
        }
        let mut function = members.clone();
        function.shift_remove("type");
        tools.push(json!({"type": "function", "function": function}));
    }
    let choice = match choice {
        None => None,
        Some(Value::String(word)) => Some(json!(word)),
        Some(named) if named["type"] == "function" => {
            Some(json!({"type": "function", "function": {"name": named["name"]}}))
        }
        Some(_) => {
            let message = "'tool_choice' has to be 'none', 'auto', 'required' or one of 'tools'.";
            return Err(ApiError::field("tool_choice", message));
        }
    };
    Tools::new(Some(tools), choice)
}

/// `text`: the format as it is said back, and the schema that it asks for.
fn text(fields: &mut Fields) -> Result<(Value, Option<Value>), ApiError> {
    const FORMAT: &str = "text.format";
    let plain = || Ok((json!({"type": "text"}), None));
    let Some(mut text) = fields.object("text")? else {
        return plain();
    };
    match text.text("verbosity")?.as_deref() {
        None | Some("medium") => {}
        Some(_) => {
            let message =
                "'text.verbosity' has to be 'medium': say in 'instructions' how long an answer is to be.";
            return Err(ApiError::field("text.verbosity", message));
        }
    }
    let format = text.take("format");
    text.finish_within("text", &[])?;
    let Some(format) = format else { return plain() };
    match format["type"].as_str() {
        Some("text") => plain(),
        Some("json_object") => Ok((format, Some(json!({"type": "object"})))),
        Some("json_schema") => {
            let schema = format["schema"].clone();
            if !schema.is_object() {
                let field = "text.format.schema";
                return Err(ApiError::field(field, format!("'{field}' has to be an object.")));
            }
            Ok((format, Some(schema)))
        }
        _ => {
            let message = format!("'{FORMAT}.type' has to be 'text', 'json_object' or 'json_schema'.");
            Err(ApiError::field(format!("{FORMAT}.type"), message))
        }
    }
}
