//! Grammars that an answer has to match, made of JSON schemas.
//!
//! llguidance says after each token which may follow. It is given the vocabulary once, on first use: some hundred
//! milliseconds that no one pays who never asks for a schema. Its own limits bound what a schema may cost.

use std::sync::{Arc, OnceLock};

use llama_cpp_2::sampling::LlamaSampler;
use llguidance::api::TopLevelGrammar;
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};

use crate::model::Model;

/// What makes grammars for one model.
pub(crate) struct Grammars {
    model: Arc<Model>,
    factory: OnceLock<Result<ParserFactory, String>>,
}

impl std::fmt::Debug for Grammars {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Grammars").finish_non_exhaustive()
    }
}

impl Grammars {
    pub(crate) fn new(model: Arc<Model>) -> Self {
        Self {
            model,
            factory: OnceLock::new(),
        }
    }

    /// What an answer has to match to be JSON of this schema. Takes time: not on a thread that others wait for.
    ///
    /// # Errors
    /// Why the schema cannot be used: it is none, or it is too large.
    pub(crate) fn of_schema(&self, mut schema: Value) -> Result<Matcher, String> {
        if let Some(fields) = schema.as_object_mut() {
            // As models were taught to write it. Where any white space may be, a small one writes nothing else.
            fields.entry("x-guidance").or_insert_with(
                || json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "}),
            );
        }
        let factory = self.factory.get_or_init(|| {
            let vocabulary = LlamaSampler::llguidance_tok_env(&self.model.llama);
            let mut factory = ParserFactory::new_simple(&vocabulary).map_err(|error| error.to_string())?;
            factory.quiet();
            Ok(factory)
        });
        let factory = factory.as_ref().map_err(Clone::clone)?;
        let parser = factory
            .create_parser(TopLevelGrammar::from_json_schema(schema))
            .map_err(|error| error.to_string())?;
        Ok(Matcher::new(Ok(parser)))
    }
}
