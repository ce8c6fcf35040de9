//! Models that this installation has. Ours: upstream has none.

use tram_types::{Int64, Timestamp};

tram_types::message! {
    /// A model that services can be made of.
    pub struct StoredModel {
        /// What `definition.model.source` says.
        pub name: String,
        /// `sha256:` and the file's digest.
        pub digest: String,
        /// Size of the file.
        pub size_bytes: Int64,
        /// Where it was fetched from; empty for a file of the operator's.
        pub origin: String,
        pub added_at: Option<Timestamp>,
        /// Such as `llama`.
        pub architecture: String,
        /// As whoever made it calls it.
        pub title: String,
        pub parameters: Int64,
        /// The type of most of its numbers, such as `Q4_1`.
        pub quantization: String,
        /// Tokens it was trained to look back on.
        pub context_length: Int64,
        /// Memory that an instance needs with the usual context and number of conversations.
        pub needed_bytes: Int64,
        /// Whether it makes vectors of texts and does not write.
        pub is_embedding: bool,
        /// Whether it is a change of another model's weights, to be given to one among its `adapters`.
        pub is_adapter: bool,
    }

    /// A well-known model that could be fetched.
    pub struct CatalogModel {
        /// What `tram models pull` takes.
        pub name: String,
        pub title: String,
        pub maker: String,
        /// As SPDX has it, or the licence's own name.
        pub licence: String,
        /// Whether the licence allows any use, business too.
        pub is_open: bool,
        /// `chat`, `code` or `embeddings`.
        pub purpose: String,
        pub parameters: Int64,
        /// The type of most of its numbers, such as `Q4_K`.
        pub quantization: String,
        /// Tokens it was trained to look back on.
        pub context_length: Int64,
        /// Size of the file, rounded.
        pub size_bytes: Int64,
        /// Memory that an instance needs with the usual context, about.
        pub needed_bytes: Int64,
        /// What serves it here.
        pub engine: String,
        /// Where the file is.
        pub source: String,
        /// Whether the file of this place is here.
        pub is_stored: bool,
    }

    /// What may serve models, and what is known of it.
    pub struct ModelEngine {
        /// What `definition.model.engine` says.
        pub name: String,
        /// An image that has it; empty: the platform carries it.
        pub image_example: String,
        /// Answers with 200 once the model is loaded.
        pub ready_path: String,
        /// Where Prometheus reads it, on the service's own URL; empty: not known.
        pub metrics_path: String,
        /// Whether a streamed answer goes on at another instance when the one that writes it dies.
        pub streams_survive: bool,
        /// Whether answers say how much of a prompt was read before.
        pub tells_cached_tokens: bool,
        /// Whether nothing of one caller's prompts hurries another's.
        pub separates_callers: bool,
        /// Whether it takes adapters, asked for by their names.
        pub takes_adapters: bool,
        /// Whether it takes a smaller model that guesses for it.
        pub takes_drafts: bool,
        /// Paths of the platform's own address that it does not serve.
        pub lacks: Vec<String>,
    }

    /// The answer of `list model engines`.
    pub struct ListModelEnginesReply {
        pub engines: Vec<ModelEngine>,
    }

    /// The answer of `list model catalog`.
    pub struct ListModelCatalogReply {
        pub models: Vec<CatalogModel>,
    }

    /// The answer of `list stored models`.
    pub struct ListStoredModelsReply {
        pub models: Vec<StoredModel>,
    }
}
