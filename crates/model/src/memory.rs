//! How much memory serving a model takes: an estimate, before anything is started.

use tram_types::units::MIB;

use crate::{gguf::Gguf, store::Model};

/// What an engine takes beside weights and cache: its program, its buffers for one step, its tables of tokens.
/// SmolLM2-135M takes about 90 MiB of this; the buffers grow with the width of a model, hence the share.
const ENGINE_BYTES: u64 = 96 * MIB;
/// What a draft takes in an engine beside its weights and its cache: its buffers and its tables of tokens. SmolLM2-135M takes
/// about 10 MiB of this.
const DRAFT_BYTES: u64 = 16 * MIB;
/// One part in so many of the weights, for the buffers of one step.
const BUFFERS_SHARE: u64 = 16;
/// Context when nobody says, unless the model was trained for less: the engine's own default. It bounds what the cache
/// takes: models say 128 thousand and more.
pub const DEFAULT_CONTEXT_LENGTH: u64 = 8192;

/// The same of a model that makes embeddings, which reads a text as a whole: what that takes grows with its length.
pub const DEFAULT_EMBEDDING_LENGTH: u64 = 2048;

/// Tokens of context that an instance works with; 0 is unset. Of a model that makes embeddings: tokens of a text.
#[must_use]
pub fn context_length(gguf: &Gguf, asked: u64) -> u64 {
    let usual = match gguf.is_embedding {
        true => DEFAULT_EMBEDDING_LENGTH,
        false => DEFAULT_CONTEXT_LENGTH,
    };
    match (asked, gguf.context_length) {
        (0, 0) => usual,
        (0, trained) => trained.min(usual),
        (asked, _) => asked,
    }
}

/// Bytes that an instance needs to serve a model with `asked_context_length` tokens; 0 is unset. However many answers it
/// writes at once, they share one cache of that length.
#[must_use]
pub fn needed_bytes(model: &Model, asked_context_length: u64) -> u64 {
    needed_by(&model.gguf, model.size_bytes, asked_context_length)
}

/// Bytes that an instance needs beside that for a draft of the model. The draft has a cache of its own, as long as one answer
/// of the model may be.
#[must_use]
pub fn draft_bytes(draft: &Model, model: &Gguf, asked_context_length: u64) -> u64 {
    let context =
        context_length(model, asked_context_length).saturating_mul(draft.gguf.cache_bytes_per_token);
    with_buffers(draft.size_bytes, context).saturating_add(DRAFT_BYTES)
}

/// The same of a file that is not in the store.
#[must_use]
pub fn needed_by(gguf: &Gguf, size_bytes: u64, asked_context_length: u64) -> u64 {
    let per_token = gguf
        .cache_bytes_per_token
        .saturating_add(gguf.step_bytes_per_token);
    let context = context_length(gguf, asked_context_length).saturating_mul(per_token);
    needed(size_bytes, context)
}

/// The same of a file of which only its size and what its context takes are known.
pub(crate) fn needed(size_bytes: u64, context: u64) -> u64 {
    with_buffers(size_bytes, context).saturating_add(ENGINE_BYTES)
}

fn with_buffers(size_bytes: u64, context: u64) -> u64 {
    size_bytes
        .saturating_add(context)
        .saturating_add(size_bytes / BUFFERS_SHARE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::model;

    #[test]
    fn the_cache_counts() {
        let model = model("a", 160 * MIB, 8192, 1024);
        let least = needed_bytes(&model, 1);
        assert_eq!(least, 160 * MIB + 10 * MIB + ENGINE_BYTES + 1024);
        assert_eq!(needed_bytes(&model, 2048), least - 1024 + 2 * MIB);
        assert_eq!(
            needed_bytes(&model, 0),
            needed_bytes(&model, DEFAULT_CONTEXT_LENGTH)
        );
    }

    #[test]
    fn a_model_that_reads_texts_as_a_whole_needs_room_for_one() {
        let mut model = model("a", 40 * MIB, 8192, 0);
        model.gguf.is_embedding = true;
        model.gguf.step_bytes_per_token = 1024;
        assert_eq!(context_length(&model.gguf, 0), DEFAULT_EMBEDDING_LENGTH);
        let least = needed_bytes(&model, 1);
        assert_eq!(needed_bytes(&model, 0), least - 1024 + 2 * MIB);
    }

    #[test]
    fn a_draft_needs_a_cache_as_long_as_the_models() {
        let large = model("large", 1600 * MIB, 32_768, 8192);
        let draft = model("draft", 160 * MIB, 2048, 1024);
        let least = 160 * MIB + 10 * MIB + DRAFT_BYTES;
        assert_eq!(draft_bytes(&draft, &large.gguf, 1024), least + MIB);
        assert_eq!(draft_bytes(&draft, &large.gguf, 0), least + 8 * MIB);
    }

    #[test]
    fn a_model_trained_for_less_gets_less() {
        assert_eq!(context_length(&model("a", 1, 512, 1).gguf, 0), 512);
        assert_eq!(
            context_length(&model("a", 1, 0, 1).gguf, 0),
            DEFAULT_CONTEXT_LENGTH
        );
        assert_eq!(context_length(&model("a", 1, 512, 1).gguf, 700), 700);
    }
}
