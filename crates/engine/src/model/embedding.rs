//! What is known of a model that makes vectors of texts: an encoder (BERT and its kin), or a decoder that was trained for it.
//!
//! The file says how the vectors of a text's tokens become one (its pooling). Where it does not, they are averaged, as most
//! such models have it.

use llama_cpp_2::context::params::LlamaPoolingType;
use llama_cpp_2::model::LlamaModel;

/// Kinds of models that read a text as a whole and write none, beside those with `bert` in their name.
const ENCODERS: &[&str] = &["gemma-embedding", "t5encoder"];
/// Vocabularies in which a token may stand for any number of bytes: what is not in them is one token, however long.
const UNBOUNDED: &[&str] = &["bert", "t5"];

/// How vectors are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Embedding {
    /// It is an encoder: it keeps nothing of what it has read, and every token sees every other.
    pub(crate) encodes: bool,
    /// How the vectors of tokens become one, where the file does not say it.
    pub(crate) pooling: Option<LlamaPoolingType>,
    /// Numbers of a vector.
    pub(crate) dimensions: usize,
}

/// None for a model that generates text. `asked`: it is to make vectors, whatever it was made for.
///
/// # Errors
/// Why it cannot be served.
pub(super) fn of(model: &LlamaModel, architecture: &str, asked: bool) -> Result<Option<Embedding>, String> {
    let said = model
        .meta_val_str(&format!("{architecture}.pooling_type"))
        .ok()
        .and_then(|kind| kind.parse().ok())
        .map_or(LlamaPoolingType::Unspecified, |kind: i32| kind.into());
    let dimensions = usize::try_from(model.n_embd_out()).unwrap_or_default();
    plan(said, architecture, asked, dimensions)
}

/// The same of what was read.
fn plan(
    said: LlamaPoolingType,
    architecture: &str,
    asked: bool,
    dimensions: usize,
) -> Result<Option<Embedding>, String> {
    let encodes = architecture.contains("bert") || ENCODERS.contains(&architecture);
    let pooling = match said {
        LlamaPoolingType::Mean | LlamaPoolingType::Cls | LlamaPoolingType::Last => None,
        LlamaPoolingType::Rank => {
            return Err(
                "it is a reranker, which gives texts marks; this engine serves models that write text \
                        or make embeddings"
                    .to_owned(),
            );
        }
        LlamaPoolingType::None | LlamaPoolingType::Unspecified => Some(LlamaPoolingType::Mean),
    };
    // A file that says how its vectors are pooled was made for them.
    let embeds = asked || encodes || pooling.is_none();
    Ok(embeds.then_some(Embedding {
        encodes,
        pooling,
        dimensions,
    }))
}

/// Whether the length of a text in bytes says nothing of how many tokens it has at least.
pub(super) fn is_unbounded(model: &LlamaModel) -> bool {
    let vocabulary = model.meta_val_str("tokenizer.ggml.model").unwrap_or_default();
    UNBOUNDED.contains(&vocabulary.as_str())
}

#[cfg(test)]
mod tests {
    use LlamaPoolingType::{Cls, Last, Mean, None as Nothing, Rank, Unspecified};

    use super::*;

    #[test]
    fn what_the_file_says_is_kept_and_what_it_does_not_is_averaged() {
        let seen = |said, architecture, asked| plan(said, architecture, asked, 8).unwrap();
        let made = |encodes, pooling| {
            Some(Embedding {
                encodes,
                pooling,
                dimensions: 8,
            })
        };
        assert_eq!(seen(Mean, "bert", false), made(true, None));
        assert_eq!(seen(Cls, "nomic-bert", false), made(true, None));
        assert_eq!(seen(Nothing, "bert", false), made(true, Some(Mean)));
        assert_eq!(seen(Unspecified, "t5encoder", false), made(true, Some(Mean)));
        assert_eq!(
            seen(Last, "qwen3", false),
            made(false, None),
            "a decoder made for it"
        );
        assert_eq!(seen(Unspecified, "llama", false), None);
        assert_eq!(seen(Nothing, "llama", false), None);
        assert_eq!(seen(Unspecified, "llama", true), made(false, Some(Mean)));
        assert!(plan(Rank, "bert", true, 8).unwrap_err().contains("a reranker"));
    }
}
