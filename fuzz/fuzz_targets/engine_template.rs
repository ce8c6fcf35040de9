//! A model's chat template and the messages it is given: a template is a program of strangers, and rendering it must not
//! panic, nor take time or memory without bound. The engine is a program and no library, so its file is taken in here.

#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

/// What the template's file knows of the engine.
mod http {
    pub(crate) const BODY_BYTES_MAX: usize = 4 << 20;
}

#[path = "../../crates/engine/src/template.rs"]
mod template;

use template::Template;

fuzz_target!(|data: &[u8]| {
    // The template, a zero, the messages.
    let Ok(input) = std::str::from_utf8(data) else { return };
    let (text, messages) = input.split_once('\0').unwrap_or((input, "hi"));
    let Ok(template) = Template::new(text.to_owned(), Some("<s>".to_owned()), Some("</s>".to_owned())) else {
        return;
    };
    let messages = match serde_json::from_str(messages) {
        Ok(Value::Array(messages)) => messages,
        _ => vec![json!({"role": "user", "content": messages})],
    };
    let tools = [json!({"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}})];
    let told = template.knows_tools.then_some(&tools[..]);
    if let Ok(prompt) = template.render(&messages, told) {
        assert!(prompt.len() <= 10 * http::BODY_BYTES_MAX);
        let _ = template.begins(&prompt);
    }
});
