//! What a GGUF file says of itself: architecture, parameters, quantization, context, and how large its cache is.
//!
//! The format is llama.cpp's (`ggml/docs/gguf.md`): a magic, a version, counted keys with typed values, counted tensors
//! with a shape, a type and a place, and then the data. Files come from strangers. So every length is bounded before
//! anything is read or kept for it, no value is kept but those asked for, and every tensor must lie within the file.
//! The engine reads the file again by its own rules, in isolation; a file that is refused here never gets that far.

mod embedding;
mod limits;
mod reader;
mod tensors;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeMap;
use std::io::{self, Read};

use serde::{Deserialize, Serialize};

use self::reader::{Reader, Value};

/// What one file says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gguf {
    /// Such as `llama`.
    pub architecture: String,
    /// As whoever made it calls it; empty when it does not say.
    pub name: String,
    /// Elements of all tensors.
    pub parameters: u64,
    /// The type that most bytes of the tensors have, such as `Q4_1`.
    pub quantization: String,
    /// Tokens it was trained to look back on; 0 when it does not say.
    pub context_length: u64,
    /// Bytes of key and value cache that one token of context takes in 16 bits; 0 when that cannot be told, and for
    /// encoders, which keep nothing of what they have read.
    pub cache_bytes_per_token: u64,
    /// Whether it says how a conversation is written for it.
    pub has_chat_template: bool,
    /// Whether it makes vectors of texts and does not write.
    pub is_embedding: bool,
    /// Whether it names the tokens by which it is asked for text between a prompt and a suffix. Models that only have them
    /// in their vocabulary are asked all the same, and are not seen here.
    #[serde(default)]
    pub fills_in: bool,
    /// Whether it is a change of another model's weights.
    #[serde(default)]
    pub is_adapter: bool,
    /// Bytes that a token of a text takes while the text is read, which such a model does at once; 0 for models that write.
    #[serde(default)]
    pub step_bytes_per_token: u64,
}

/// Why a file is no GGUF that can be served. The texts are for users.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another kind of file.
    #[error("the file is not a GGUF: it does not start with `GGUF`")]
    Magic,
    /// A kind of GGUF that this reader does not know.
    #[error("the file is a GGUF of version {0}, and only versions 2 and 3 can be read")]
    Version(u32),
    /// It ends too early.
    #[error("the file is cut off: it ends within {0}")]
    Truncated(&'static str),
    /// Tensors reach past the end.
    #[error("the file is cut off: its tensors need {needed} bytes and it has {has}")]
    Short {
        /// What they need.
        needed: u64,
        /// What there is.
        has: u64,
    },
    /// More than any real model has.
    #[error("the file is refused: {what} is {found}, and at most {max} is taken")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// How much.
        found: u64,
        /// How much is taken.
        max: u64,
    },
    /// It contradicts itself.
    #[error("the file is damaged: {0}")]
    Invalid(String),
    /// One of several files.
    #[error(
        "the file is one of {0} parts of a model: join them first with `llama-gguf-split --merge`, and import the result"
    )]
    Split(u64),
    /// It cannot be read.
    #[error("the file cannot be read")]
    Io(#[from] io::Error),
}

impl Gguf {
    /// Reads what a file of `size_bytes` says of itself. Reads its header alone.
    ///
    /// # Errors
    /// When it is no GGUF, is cut off, contradicts itself, or has more of something than any real model.
    pub fn read(file: impl Read, size_bytes: u64) -> Result<Self, Error> {
        let mut reader = Reader::new(file);
        let (tensor_count, key_count) = reader.start()?;
        let keys = reader.keys(key_count)?;
        let number = |key: &str| keys.get(key).and_then(Value::number);
        let text = |key: &str| keys.get(key).and_then(Value::text).unwrap_or_default();
        if let Some(parts @ 2..) = number("split.count") {
            return Err(Error::Split(parts));
        }
        let architecture = text("general.architecture").to_owned();
        if architecture.is_empty() {
            return Err(Error::Invalid(
                "it does not name its `general.architecture`".to_owned(),
            ));
        }
        let alignment = number("general.alignment").unwrap_or(limits::ALIGNMENT_DEFAULT);
        let tensors = tensors::read(&mut reader, tensor_count, alignment, size_bytes)?;
        let of_architecture = |key: &str| format!("{architecture}.{key}");
        let encodes = embedding::is_encoder(&architecture);
        let is_embedding = embedding::is_made_for(&architecture, number(&of_architecture("pooling_type")));
        Ok(Self {
            name: text("general.name").to_owned(),
            parameters: tensors.elements,
            quantization: tensors.main_type,
            context_length: number(&of_architecture("context_length")).unwrap_or(0),
            cache_bytes_per_token: match encodes {
                true => 0,
                false => cache_bytes_per_token(&keys, &architecture),
            },
            step_bytes_per_token: match is_embedding {
                true => embedding::step_bytes_per_token(&keys, &architecture),
                false => 0,
            },
            has_chat_template: keys.contains_key("tokenizer.chat_template"),
            is_embedding,
            is_adapter: text("general.type") == "adapter",
            // The newer name and the older one.
            fills_in: ["fim_pre_token_id", "prefix_token_id"]
                .iter()
                .any(|key| keys.contains_key(&format!("tokenizer.ggml.{key}"))),
            architecture,
        })
    }
}

/// Bytes of one element of the cache: 16 bits, as engines have it unless told otherwise.
const CACHE_ELEMENT_BYTES: u64 = 2;

/// Two vectors a layer and token: as many heads as keys have, each as long as a head is.
fn cache_bytes_per_token(keys: &BTreeMap<String, Value>, architecture: &str) -> u64 {
    let value = |key: &str| keys.get(&format!("{architecture}.{key}"));
    let number = |key: &str| value(key).and_then(Value::number);
    let (Some(layers), Some(heads)) = (number("block_count"), value("attention.head_count")) else {
        return 0;
    };
    let head_length = number("embedding_length")
        .zip(heads.largest())
        .and_then(|(width, heads)| width.checked_div(heads))
        .unwrap_or(0);
    let key_length = number("attention.key_length").unwrap_or(head_length);
    let value_length = number("attention.value_length").unwrap_or(head_length);
    // Some models give one number of heads for each layer.
    let heads_of_all_layers = value("attention.head_count_kv").unwrap_or(heads).sum_over(layers);
    heads_of_all_layers
        .saturating_mul(key_length.saturating_add(value_length))
        .saturating_mul(CACHE_ELEMENT_BYTES)
}
