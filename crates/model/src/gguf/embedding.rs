//! Models that make vectors of texts: which they are, and what reading a text takes.
//!
//! The engine decides by the same rules (its `model/embedding.rs`) what it serves a file as.

use std::collections::BTreeMap;

use super::reader::Value;

/// Kinds of models that read a text as a whole and write none, beside those with `bert` in their name.
const ENCODERS: &[&str] = &["gemma-embedding", "t5encoder"];
/// Kinds of pooling, as the format numbers them: mean, the first token, the last. The one after them ranks.
const POOLED: std::ops::RangeInclusive<u64> = 1..=3;

/// Bytes of a number while a text is read.
const NUMBER_BYTES: u64 = 4;
/// Vectors as wide as the model that a token has in one layer at once: what comes in, what attention makes of it, and what
/// goes out.
const VECTORS: u64 = 8;
/// Vectors as wide as the model's inner layer.
const INNER_VECTORS: u64 = 2;

/// Whether a model of this kind keeps nothing of what it has read.
pub(super) fn is_encoder(architecture: &str) -> bool {
    architecture.contains("bert") || ENCODERS.contains(&architecture)
}

/// Whether a model makes vectors and does not write.
pub(super) fn is_made_for(architecture: &str, pooling: Option<u64>) -> bool {
    match pooling {
        Some(kind) if POOLED.contains(&kind) => true,
        // What ranks makes no vectors, and what does not say how they are pooled has them averaged.
        None | Some(0) => is_encoder(architecture),
        Some(_) => false,
    }
}

/// Bytes that a token takes while its text is read: llama.cpp has a row of the whole vocabulary for it, beside what the
/// model needs.
pub(super) fn step_bytes_per_token(keys: &BTreeMap<String, Value>, architecture: &str) -> u64 {
    let number = |key: &str| {
        let value = keys.get(&format!("{architecture}.{key}"));
        value.and_then(Value::largest).unwrap_or(0)
    };
    let vocabulary = keys
        .get("tokenizer.ggml.tokens")
        .and_then(Value::count)
        .unwrap_or(0);
    vocabulary
        .saturating_add(number("embedding_length").saturating_mul(VECTORS))
        .saturating_add(number("feed_forward_length").saturating_mul(INNER_VECTORS))
        .saturating_mul(NUMBER_BYTES)
}
