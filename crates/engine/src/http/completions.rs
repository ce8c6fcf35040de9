//! `POST /v1/completions`: from a prompt to a request of the engine.

use serde_json::Value;

use super::error::ApiError;
use super::fields::{Fields, wrong_type};
use super::parameters::Parameters;
use super::reply::Kind;
use super::{Asked, Caller, Served};
use crate::cache::Token;

/// OpenAI's default for this endpoint.
const TOKENS_DEFAULT: usize = 16;
/// OpenAI's bound on `logprobs` here.
const LIKELY_MAX: usize = 5;
const FIELD: &str = "prompt";

/// Reads a request. Takes time for tokens: not on a thread that others wait for.
pub(super) fn read(served: &Served, body: &[u8], caller: &Caller) -> Result<Asked, ApiError> {
    let model = &served.model;
    let mut fields = Fields::parse(body)?;
    let caller = &served.address(&mut fields, caller)?;
    if model.embedding.is_some() {
        return Err(ApiError::embeds_only(&served.name));
    }
    let Some(prompt) = fields.take(FIELD) else {
        return Err(ApiError::field(
            FIELD,
            format!("Missing required parameter: '{FIELD}'."),
        ));
    };
    let echo = fields.flag("echo")?.unwrap_or(false);
    let suffix = fields.text("suffix")?;
    let parameters = Parameters::take(&mut fields, model, served.answers_max)?;
    let log_probabilities = fields.count("logprobs", 0, LIKELY_MAX)?;
    if let Some(best) = fields.count("best_of", 1, usize::MAX)?
        && best != parameters.answers
    {
        let message = "'best_of' has to be 'n': this engine generates no answers that it does not show.";
        return Err(ApiError::field("best_of", message));
    }
    let schema = super::chat::response_format(&mut fields)?;
    Parameters::finish(fields)?;
    if echo && log_probabilities.is_some() {
        let message = "'echo' together with 'logprobs' is not supported: prompts have no log probabilities.";
        return Err(ApiError::field("echo", message));
    }

    let too_long = || ApiError::context_length(FIELD, model.context_length, None);
    let text = match &prompt {
        Value::String(text) => Some(text.clone()),
        Value::Array(parts) => match parts.as_slice() {
            [Value::String(text)] => Some(text.clone()),
            [Value::String(_), ..] | [Value::Array(_), _, ..] => {
                let message = "'prompt' may be one prompt; send a request for each of several.";
                return Err(ApiError::field(FIELD, message));
            }
            _ => None,
        },
        other => return Err(wrong_type(FIELD, "a string or an array of tokens", other)),
    };
    let tokens = match (&text, suffix) {
        (Some(text), None) => model.tokens(text, true, true).ok_or_else(too_long)?,
        (Some(text), Some(suffix)) => {
            let between = model.between(text, &suffix).ok_or_else(|| {
                ApiError::field(
                    "suffix",
                    "This model cannot fill in text between a prompt and a suffix.",
                )
            })?;
            between.ok_or_else(too_long)?
        }
        (None, Some(_)) => {
            return Err(ApiError::field(
                "suffix",
                "'suffix' needs a 'prompt' that is text.",
            ));
        }
        (None, None) => tokens(served, FIELD, &prompt)?,
    };
    let echo = echo.then(|| {
        text.unwrap_or_else(|| {
            let bytes: Vec<u8> = tokens.iter().flat_map(|token| model.piece(*token)).collect();
            String::from_utf8_lossy(&bytes).into_owned()
        })
    });
    let grammar = served.grammar(schema)?;
    let (events, receiver) = tokio::sync::mpsc::unbounded_channel();
    let default = Some(TOKENS_DEFAULT);
    let request = parameters.request(
        model,
        FIELD,
        tokens,
        default,
        log_probabilities,
        grammar,
        caller,
        events,
    )?;
    Ok(Asked {
        kind: Kind::Completion,
        request,
        receiver,
        parameters,
        tools: None,
        echo,
    })
}

/// A text that is tokens already: an array of numbers, or one such array in an array.
pub(super) fn tokens(served: &Served, field: &str, prompt: &Value) -> Result<Vec<Token>, ApiError> {
    let wrong = || {
        let message = format!(
            "'{field}' has to be a string, or an array of tokens from 0 to {}.",
            served.model.vocabulary() - 1
        );
        ApiError::field(field, message)
    };
    let mut numbers = prompt.as_array().ok_or_else(wrong)?;
    if let [Value::Array(inner)] = numbers.as_slice() {
        numbers = inner;
    }
    if numbers.len() > served.model.context_length {
        let most = served.model.context_length;
        return Err(ApiError::context_length(field, most, Some(numbers.len())));
    }
    let token = |number: &Value| {
        let token = number.as_i64().and_then(|number| Token::try_from(number).ok());
        token
            .filter(|token| (0..served.model.vocabulary()).contains(token))
            .ok_or_else(wrong)
    };
    numbers.iter().map(token).collect()
}
