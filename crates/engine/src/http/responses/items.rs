//! From the items of a response's input to the messages of chat templates.

use serde_json::{Value, json};

use crate::http::chat;
use crate::http::error::ApiError;
use crate::http::fields::wrong_type;

const FIELD: &str = "input";

/// A text is one message of the user.
pub(super) fn messages(input: Value) -> Result<Vec<Value>, ApiError> {
    let items = match input {
        Value::String(text) => return Ok(vec![json!({"role": "user", "content": text})]),
        Value::Array(items) if (1..=chat::MESSAGES_MAX).contains(&items.len()) => items,
        Value::Array(_) => {
            let message = format!("'{FIELD}' has to have from 1 to {} entries.", chat::MESSAGES_MAX);
            return Err(ApiError::field(FIELD, message));
        }
        other => return Err(wrong_type(FIELD, "a string or an array of items", &other)),
    };
    let mut messages: Vec<Value> = Vec::new();
    for (at, item) in items.iter().enumerate() {
        let field = format!("{FIELD}[{at}]");
        match item["type"].as_str() {
            None | Some("message") => messages.push(message(&field, item)?),
            Some("function_call") => call(&field, item, &mut messages)?,
            Some("function_call_output") => {
                let Some(id) = item["call_id"].as_str() else {
                    return Err(missing(&field, "call_id"));
                };
                let text = content(&format!("{field}.output"), &item["output"])?;
                messages.push(json!({"role": "tool", "tool_call_id": id, "content": text}));
            }
            Some(kind) => {
                let message = format!(
                    "'{field}' is of type '{kind}': this model takes messages, and calls and outputs of functions."
                );
                return Err(ApiError::field(format!("{field}.type"), message));
            }
        }
    }
    Ok(messages)
}

fn message(field: &str, item: &Value) -> Result<Value, ApiError> {
    let role = match item["role"].as_str() {
        Some("developer" | "system") => "system",
        Some(role @ ("user" | "assistant")) => role,
        _ => {
            let field = format!("{field}.role");
            let message = format!("'{field}' has to be 'user', 'assistant', 'system' or 'developer'.");
            return Err(ApiError::field(field, message));
        }
    };
    let text = content(&format!("{field}.content"), &item["content"])?;
    Ok(json!({"role": role, "content": text}))
}

/// A call that the model made: part of what it said last, when that was the item before.
fn call(field: &str, item: &Value, messages: &mut Vec<Value>) -> Result<(), ApiError> {
    let (Some(id), Some(name), Some(arguments)) = (
        item["call_id"].as_str(),
        item["name"].as_str(),
        item["arguments"].as_str(),
    ) else {
        return Err(missing(field, "call_id, name and arguments"));
    };
    let arguments: Value = serde_json::from_str(arguments).unwrap_or_else(|_| json!(arguments));
    let call = json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
    if messages.last().is_none_or(|last| last["role"] != "assistant") {
        messages.push(json!({"role": "assistant", "content": ""}));
    }
    if let Some(last) = messages.last_mut() {
        match last["tool_calls"].as_array_mut() {
            Some(calls) => calls.push(call),
            None => last["tool_calls"] = json!([call]),
        }
    }
    Ok(())
}

/// A text, or parts that are texts.
fn content(field: &str, content: &Value) -> Result<String, ApiError> {
    let parts = match content {
        Value::String(text) => return Ok(text.clone()),
        Value::Array(parts) => parts,
        other => return Err(wrong_type(field, "a string or an array of parts", other)),
    };
    let mut all = String::new();
    for (at, part) in parts.iter().enumerate() {
        match (part["type"].as_str(), part["text"].as_str()) {
            (Some("input_text" | "output_text" | "text"), Some(text)) => all.push_str(text),
            (kind, _) => {
                let field = format!("{field}[{at}]");
                let kind = kind.unwrap_or("none");
                let message = format!("This model takes text alone; '{field}' is of type '{kind}'.");
                return Err(ApiError::field(field, message));
            }
        }
    }
    Ok(all)
}

fn missing(field: &str, name: &str) -> ApiError {
    let message = format!("Missing required parameter: '{field}' needs {name}.");
    ApiError::field(field, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_become_a_conversation() {
        let all = messages(json!([
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "input_text", "text": "weather?"}]},
            {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{\"city\": \"Lyon\"}"},
            {"type": "function_call", "call_id": "c2", "name": "weather", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Sunny."}]},
        ]))
        .unwrap();
        let roles: Vec<&str> = all.iter().map(|one| one["role"].as_str().unwrap()).collect();
        assert_eq!(roles, ["system", "user", "assistant", "tool", "assistant"]);
        assert_eq!(all[2]["tool_calls"].as_array().unwrap().len(), 2);
        assert_eq!(all[2]["tool_calls"][0]["function"]["arguments"]["city"], "Lyon");
        assert_eq!(messages(json!("hi")).unwrap()[0]["role"], "user");
    }

    #[test]
    fn what_is_no_text_is_refused_by_its_place() {
        for (item, place) in [
            (
                json!({"role": "user", "content": [{"type": "input_image"}]}),
                "input[0].content[0]",
            ),
            (json!({"role": "wizard", "content": "x"}), "input[0].role"),
            (json!({"type": "item_reference", "id": "x"}), "input[0].type"),
            (json!({"type": "function_call", "name": "x"}), "input[0]"),
        ] {
            let error = messages(json!([item])).unwrap_err();
            assert_eq!(error.body()["error"]["param"], place);
        }
        assert!(messages(json!([])).is_err() && messages(json!(7)).is_err());
    }
}
