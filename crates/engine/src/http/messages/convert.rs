//! From Anthropic's messages, whose content is blocks, to the messages of chat templates.

use serde_json::{Value, json};

use crate::http::error::ApiError;
use crate::http::fields::wrong_type;

/// The messages in the form of templates. Two of one role in a row are one turn, as Anthropic has it: many templates
/// take no other.
pub(super) fn messages(given: &[Value]) -> Result<Vec<Value>, ApiError> {
    let mut all: Vec<Value> = Vec::new();
    for (at, message) in given.iter().enumerate() {
        let field = format!("messages.{at}");
        let mut turn = match message["role"].as_str() {
            Some("user") => user(&field, message)?,
            Some("assistant") => vec![assistant(&field, message)?],
            _ => {
                let message = format!("'{field}.role' has to be 'user' or 'assistant'.");
                return Err(ApiError::field(format!("{field}.role"), message));
            }
        };
        if let (Some(last), Some(first)) = (all.last_mut(), turn.first())
            && last["role"] == first["role"]
            && first["role"] != "tool"
        {
            let first = turn.remove(0);
            join(last, &first);
        }
        all.append(&mut turn);
    }
    if all.first().is_some_and(|first| first["role"] != "user") {
        let message = "messages: first message must use the \"user\" role";
        return Err(ApiError::field("messages", message));
    }
    Ok(all)
}

fn join(last: &mut Value, more: &Value) {
    let (before, after) = (
        last["content"].as_str().unwrap_or_default(),
        more["content"].as_str().unwrap_or_default(),
    );
    let between = if before.is_empty() || after.is_empty() {
        ""
    } else {
        "\n"
    };
    last["content"] = format!("{before}{between}{after}").into();
    if let Some(calls) = more["tool_calls"].as_array() {
        match last["tool_calls"].as_array_mut() {
            Some(earlier) => earlier.extend(calls.iter().cloned()),
            None => last["tool_calls"] = calls.clone().into(),
        }
    }
}

/// What a user says, and what tools gave: each result is a message of its own.
fn user(field: &str, message: &Value) -> Result<Vec<Value>, ApiError> {
    let mut turn: Vec<Value> = Vec::new();
    for (at, block) in blocks(field, message)?.iter().enumerate() {
        let field = format!("{field}.content.{at}");
        if block["type"] == "tool_result" {
            let Some(id) = block["tool_use_id"].as_str() else {
                return Err(required(&field, "tool_use_id"));
            };
            let mut text = match block.get("content").filter(|content| !content.is_null()) {
                Some(content) => text_of(&format!("{field}.content"), content)?,
                None => String::new(),
            };
            if block["is_error"] == true {
                // Templates have no other place for it.
                text.insert_str(0, "Error: ");
            }
            turn.push(json!({"role": "tool", "tool_call_id": id, "content": text}));
            continue;
        }
        let text = text_block(&field, block)?;
        match turn.last_mut().filter(|last| last["role"] == "user") {
            Some(last) => {
                let before = last["content"].as_str().unwrap_or_default();
                last["content"] = format!("{before}{text}").into();
            }
            None => turn.push(json!({"role": "user", "content": text})),
        }
    }
    if turn.is_empty() {
        turn.push(json!({"role": "user", "content": ""}));
    }
    Ok(turn)
}

fn assistant(field: &str, message: &Value) -> Result<Value, ApiError> {
    let (mut text, mut calls) = (String::new(), Vec::new());
    for (at, block) in blocks(field, message)?.iter().enumerate() {
        let field = format!("{field}.content.{at}");
        if block["type"] == "tool_use" {
            let (Some(id), Some(name)) = (block["id"].as_str(), block["name"].as_str()) else {
                return Err(required(&field, "id and name"));
            };
            let Value::Object(input) = &block["input"] else {
                return Err(wrong_type(
                    &format!("{field}.input"),
                    "an object",
                    &block["input"],
                ));
            };
            calls.push(json!({"id": id, "type": "function", "function": {"name": name, "arguments": input}}));
        } else {
            text.push_str(text_block(&field, block)?);
        }
    }
    let mut turn = json!({"role": "assistant", "content": text});
    if !calls.is_empty() {
        turn["tool_calls"] = calls.into();
    }
    Ok(turn)
}

/// The blocks of a message; a text is one.
fn blocks(field: &str, message: &Value) -> Result<Vec<Value>, ApiError> {
    match &message["content"] {
        Value::String(text) => Ok(vec![json!({"type": "text", "text": text})]),
        Value::Array(blocks) => Ok(blocks.clone()),
        other => Err(wrong_type(
            &format!("{field}.content"),
            "a string or an array of blocks",
            other,
        )),
    }
}

/// A text, or blocks that are texts.
pub(super) fn text_of(field: &str, content: &Value) -> Result<String, ApiError> {
    match content {
        Value::String(text) => Ok(text.clone()),
        Value::Array(blocks) => {
            let texts = blocks.iter().enumerate();
            texts
                .map(|(at, block)| text_block(&format!("{field}.{at}"), block))
                .collect()
        }
        other => Err(wrong_type(field, "a string or an array of text blocks", other)),
    }
}

fn text_block<'b>(field: &str, block: &'b Value) -> Result<&'b str, ApiError> {
    match (block["type"].as_str(), block["text"].as_str()) {
        (Some("text"), Some(text)) => Ok(text),
        (Some("text"), None) => Err(required(field, "text")),
        (kind, _) => {
            let kind = kind.unwrap_or("none");
            let message = format!(
                "'{field}' is of type '{kind}': this model takes text, and calls and results of tools."
            );
            Err(ApiError::field(format!("{field}.type"), message))
        }
    }
}

fn required(field: &str, name: &str) -> ApiError {
    ApiError::field(
        format!("{field}.{name}"),
        format!("{field}.{name}: Field required"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_joined_and_results_of_tools_are_messages() {
        let given = json!([
            {"role": "user", "content": "a"},
            {"role": "user", "content": [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]},
            {"role": "assistant", "content": [
                {"type": "text", "text": "let me see"},
                {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Lyon"}}]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "is_error": true,
                 "content": [{"type": "text", "text": "no such city"}]},
                {"type": "text", "text": "and now?"}]},
        ]);
        let all = messages(given.as_array().unwrap()).unwrap();
        let roles: Vec<&str> = all.iter().map(|one| one["role"].as_str().unwrap()).collect();
        assert_eq!(roles, ["user", "assistant", "tool", "user"]);
        assert_eq!(all[0]["content"], "a\nbc");
        assert_eq!(
            all[1]["tool_calls"][0]["function"]["arguments"],
            json!({"city": "Lyon"})
        );
        assert_eq!(all[2]["content"], "Error: no such city");
        assert_eq!(all[3]["content"], "and now?");
    }

    #[test]
    fn what_is_no_text_is_refused_by_its_place() {
        for (content, place) in [
            (json!([{"type": "image"}]), "messages.0.content.0.type"),
            (json!([{"type": "text"}]), "messages.0.content.0.text"),
            (
                json!([{"type": "tool_result"}]),
                "messages.0.content.0.tool_use_id",
            ),
            (json!(7), "messages.0.content"),
        ] {
            let error = messages(&[json!({"role": "user", "content": content})]).unwrap_err();
            assert_eq!(error.body()["error"]["param"], place);
        }
        assert!(messages(&[json!({"role": "assistant", "content": "x"})]).is_err());
        assert!(messages(&[json!({"role": "system", "content": "x"})]).is_err());
    }
}
