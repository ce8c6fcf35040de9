//! `POST /v1/embeddings`: from texts to vectors.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Value, json};

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
    dimensions: Option<usize>,
}

pub(super) async fn answer(served: &Arc<Served>, body: Bytes, caller: Caller) -> Result<Value, ApiError> {
    let reader = served.clone();
    let asked = tokio::task::spawn_blocking(move || read(&reader, &body))
        .await
        .map_err(|error| ApiError::internal(format!("The request could not be read: {error}")))??;
    let tokens: usize = asked.texts.iter().map(Vec::len).sum();
    let (sender, vectors) = tokio::sync::oneshot::channel();
    served.engine.embed(Embed {
        texts: asked.texts,
        tenant: caller.tenant,
        vectors: sender,
    })?;
    let vectors = vectors.await.unwrap_or(Err(Failure::Stopping))?;
    let data: Vec<Value> = vectors
        .iter()
        .enumerate()
        .map(|(index, vector)| {
            if let Some(wanted) = asked.dimensions.filter(|wanted| *wanted != vector.len()) {
                let message = format!(
                    "This model makes vectors of {} dimensions, not of {wanted}.",
                    vector.len()
                );
                return Err(ApiError::field("dimensions", message));
            }
            let vector: Value = if asked.base64 {
                let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
                STANDARD.encode(bytes).into()
            } else {
                json!(vector)
            };
            Ok(json!({"object": "embedding", "index": index, "embedding": vector}))
        })
        .collect::<Result<_, _>>()?;
    Ok(json!({
        // Mistral's clients want one.
        "id": format!("embd-{}", uuid::Uuid::new_v4().simple()),
        "object": "list",
        "data": data,
        "model": served.name,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }))
}

fn read(served: &Served, body: &[u8]) -> Result<Asked, ApiError> {
    let mut fields = Fields::parse(body)?;
    if let Some(name) = fields.text("model")?
        && name != served.name
    {
        return Err(ApiError::no_such_model(&name));
    }
    if !served.model.embeds {
        return Err(ApiError::bad(
            "This model generates text and makes no embeddings: start one with `--embeddings`.",
        ));
    }
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
    let texts = texts
        .into_iter()
        .map(|text| tokens(served, text))
        .collect::<Result<_, _>>()?;
    Ok(Asked {
        texts,
        base64,
        dimensions,
    })
}

fn tokens(served: &Served, text: &Value) -> Result<Vec<Token>, ApiError> {
    let most = served.model.context_length;
    let tokens = match text {
        Value::String(text) => served
            .model
            .tokens(text, true, false)
            .ok_or_else(|| ApiError::context_length(FIELD, most, None))?,
        Value::Array(_) => super::completions::tokens(served, FIELD, text)?,
        other => return Err(wrong_type(FIELD, "a string or an array of strings", other)),
    };
    match tokens.len() {
        0 => Err(ApiError::field(FIELD, format!("'{FIELD}' may not be empty."))),
        length if length > most => Err(ApiError::context_length(FIELD, most, Some(length))),
        _ => Ok(tokens),
    }
}
