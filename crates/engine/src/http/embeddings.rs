//! `POST /v1/embeddings`: from texts to vectors.

use std::sync::Arc;
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Serialize;
use serde_json::Value;

use super::error::ApiError;
use super::fields::{Fields, wrong_type};
use super::{Caller, Served};
use crate::cache::Token;
use crate::engine::Embed;
use crate::request::Failure;

/// OpenAI's bound.
const TEXTS_MAX: usize = 2048;
const FIELD: &str = "input";

/// What was asked for.
struct Asked {
    texts: Vec<Vec<Token>>,
    base64: bool,
}

/// A vector as the caller wants it.
#[derive(Serialize)]
#[serde(untagged)]
enum Shown {
    Numbers(Vec<f32>),
    Base64(String),
}

#[derive(Serialize)]
struct Entry {
    object: &'static str,
    index: usize,
    embedding: Shown,
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
}

#[derive(Serialize)]
struct Answer<'name> {
    /// Mistral's clients want one.
    id: String,
    object: &'static str,
    data: Vec<Entry>,
    model: &'name str,
    usage: Usage,
}

/// The body of the answer.
pub(super) async fn answer(served: &Arc<Served>, body: Bytes, caller: Caller) -> Result<Bytes, ApiError> {
    let arrived = Instant::now();
    let reader = served.clone();
    let asked = super::reading(move || read(&reader, &body)).await?;
    let tokens: usize = asked.texts.iter().map(Vec::len).sum();
    let (sender, vectors) = tokio::sync::oneshot::channel();
    served.engine.embed(Embed {
        texts: asked.texts,
        tenant: caller.tenant,
        priority: caller.priority,
        arrived,
        vectors: sender,
    })?;
    let vectors = vectors.await.unwrap_or(Err(Failure::Stopping))?;
    let writer = served.clone();
    // Two thousand vectors are tens of megabytes of digits.
    super::reading(move || write(&writer.name, vectors, asked.base64, tokens)).await
}

fn write(name: &str, vectors: Vec<Vec<f32>>, base64: bool, tokens: usize) -> Result<Bytes, ApiError> {
    let shown = |vector: Vec<f32>| {
        if base64 {
            let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
            Shown::Base64(STANDARD.encode(bytes))
        } else {
            Shown::Numbers(vector)
        }
    };
    let data = vectors.into_iter().enumerate().map(|(index, vector)| Entry {
        object: "embedding",
        index,
        embedding: shown(vector),
    });
    let answer = Answer {
        id: format!("embd-{}", uuid::Uuid::new_v4().simple()),
        object: "list",
        data: data.collect(),
        model: name,
        usage: Usage {
            prompt_tokens: tokens,
            total_tokens: tokens,
        },
    };
    let written = serde_json::to_vec(&answer);
    written
        .map(Bytes::from)
        .map_err(|error| ApiError::internal(format!("The answer could not be written: {error}")))
}

fn read(served: &Served, body: &[u8]) -> Result<Asked, ApiError> {
    let mut fields = Fields::parse(body)?;
    if let Some(name) = fields.text("model")?
        && name != served.name
    {
        return Err(ApiError::no_such_model(&name));
    }
    let Some(embedding) = served.model.embedding else {
        return Err(ApiError::bad(
            "This model generates text and makes no embeddings: ask a model that was made for them, or start one with \
             `--embeddings`.",
        ));
    };
    let Some(input) = fields.take(FIELD) else {
        return Err(ApiError::field(
            FIELD,
            format!("Missing required parameter: '{FIELD}'."),
        ));
    };
    let base64 = match fields.text("encoding_format")?.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(_) => {
            let message = "'encoding_format' has to be 'float' or 'base64'.";
            return Err(ApiError::field("encoding_format", message));
        }
    };
    // OpenAI's words and Mistral's.
    let dimensions = match fields.count("dimensions", 1, usize::MAX)? {
        None => fields.count("output_dimension", 1, usize::MAX)?,
        given => given,
    };
    if let Some(wanted) = dimensions.filter(|wanted| *wanted != embedding.dimensions) {
        let message = format!(
            "This model makes vectors of {} dimensions, not of {wanted}: leave 'dimensions' out.",
            embedding.dimensions
        );
        return Err(ApiError::field("dimensions", message));
    }
    match fields.text("output_dtype")?.as_deref() {
        None | Some("float") => {}
        Some(_) => {
            let message = "'output_dtype' has to be 'float': this engine does not round vectors.";
            return Err(ApiError::field("output_dtype", message));
        }
    }
    fields.finish(&["user", "metadata"])?;
    let texts = match &input {
        Value::String(_) => vec![&input],
        Value::Array(values) if matches!(values.first(), Some(Value::Number(_))) => vec![&input],
        Value::Array(values) if (1..=TEXTS_MAX).contains(&values.len()) => values.iter().collect(),
        Value::Array(_) => {
            let message = format!("'{FIELD}' has to have from 1 to {TEXTS_MAX} entries.");
            return Err(ApiError::field(FIELD, message));
        }
        other => return Err(wrong_type(FIELD, "a string or an array of strings", other)),
    };
    let is_one = texts.len() == 1;
    let texts = texts
        .into_iter()
        .enumerate()
        .map(|(at, text)| {
            let field = if is_one {
                FIELD.to_owned()
            } else {
                format!("{FIELD}[{at}]")
            };
            tokens(served, text, &field)
        })
        .collect::<Result<_, _>>()?;
    Ok(Asked { texts, base64 })
}

/// The tokens of a text; `field` is what to call it when something is wrong.
fn tokens(served: &Served, text: &Value, field: &str) -> Result<Vec<Token>, ApiError> {
    let most = served.model.context_length;
    let tokens = match text {
        Value::String(text) if text.is_empty() => Vec::new(),
        Value::String(text) => served
            .model
            .tokens(text, true, false)
            .ok_or_else(|| ApiError::text_length(field, most, None))?,
        Value::Array(numbers) if numbers.len() > most => {
            return Err(ApiError::text_length(field, most, Some(numbers.len())));
        }
        Value::Array(_) => super::completions::tokens(served, field, text)?,
        other => return Err(wrong_type(FIELD, "a string or an array of strings", other)),
    };
    match tokens.len() {
        0 => Err(ApiError::field(field, format!("'{field}' may not be empty."))),
        length if length > most => Err(ApiError::text_length(field, most, Some(length))),
        _ => Ok(tokens),
    }
}
