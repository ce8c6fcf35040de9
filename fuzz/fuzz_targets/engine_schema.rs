//! JSON schemas that an answer has to match, as the engine makes grammars of them: no panic and no unbounded work,
//! whatever the schema, and whatever bytes the model would say. Bytes take the place of a vocabulary.

#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use llguidance::{Matcher, ParserFactory, api::TopLevelGrammar, toktrie::ApproximateTokEnv};
use serde_json::{Value, json};

/// Tokens of an answer; the mask of each is computed.
const TOKENS_MAX: usize = 64;

fn factory() -> &'static ParserFactory {
    static FACTORY: OnceLock<ParserFactory> = OnceLock::new();
    FACTORY.get_or_init(|| {
        let bytes = ApproximateTokEnv::single_byte_env();
        let mut factory = ParserFactory::new_simple(&bytes).expect("bytes are a vocabulary");
        factory.quiet();
        factory
    })
}

fuzz_target!(|data: &[u8]| {
    // The schema, a zero, what is said.
    let end = data.iter().position(|byte| *byte == 0).unwrap_or(data.len());
    let (schema, said) = (&data[..end], data.get(end + 1..).unwrap_or_default());
    let Ok(mut schema) = serde_json::from_slice::<Value>(schema) else {
        return;
    };
    if let Some(fields) = schema.as_object_mut() {
        fields.entry("x-guidance").or_insert_with(
            || json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "}),
        );
    }
    let Ok(parser) = factory().create_parser(TopLevelGrammar::from_json_schema(schema)) else {
        return;
    };
    let mut matcher = Matcher::new(Ok(parser));
    for byte in said.iter().take(TOKENS_MAX) {
        let Ok(mask) = matcher.compute_mask_or_eos() else {
            return;
        };
        let allowed = mask.is_allowed(u32::from(*byte));
        let took = matcher.consume_token(u32::from(*byte));
        assert!(!allowed || took.is_ok(), "what is allowed is taken");
        if took.is_err() || matcher.is_stopped() {
            return;
        }
    }
});
