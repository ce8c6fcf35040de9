//! Tools that a model may call: what it is told of them, and what of its text is a call.
//!
//! A template that knows tools tells them in the model's own way; for any other the first message does. Models write
//! calls in few ways: between `<tool_call>` tags (Hermes, Qwen), after `[TOOL_CALLS]` (Mistral), or as bare JSON. All are
//! understood. When a call is demanded, the grammar leaves the model nothing else.

use serde_json::{Value, json};

use super::error::ApiError;
use super::reply::Call;

/// More tools than a prompt could sensibly tell of: OpenAI's bound.
const TOOLS_MAX: usize = 128;
const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";
const MISTRAL: &str = "[TOOL_CALLS]";

/// Whether a tool is to be called.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Choice {
    Auto,
    Required,
    Named(String),
}

/// The tools of one request.
#[derive(Debug, Clone)]
pub(crate) struct Tools {
    /// As the client sent them.
    pub(crate) definitions: Vec<Value>,
    choice: Choice,
    /// Of several calls only the first counts.
    at_most_one: bool,
}

impl Tools {
    /// None when there are none, or none may be called.
    pub(crate) fn new(tools: Option<Vec<Value>>, choice: Option<Value>) -> Result<Option<Self>, ApiError> {
        let definitions = tools.unwrap_or_default();
        if definitions.len() > TOOLS_MAX {
            let message = format!(
                "'tools' may have {TOOLS_MAX} entries, but has {}.",
                definitions.len()
            );
            return Err(ApiError::field("tools", message));
        }
        for (at, tool) in definitions.iter().enumerate() {
            if tool["type"] != "function" || name(tool).is_none() {
                let message = format!("'tools[{at}]' has to be of type 'function' and to have a name.");
                return Err(ApiError::field(format!("tools[{at}]"), message));
            }
        }
        let choice = match choice.as_ref() {
            None => Choice::Auto,
            Some(Value::String(word)) if word == "auto" => Choice::Auto,
            // OpenAI's word and Mistral's.
            Some(Value::String(word)) if word == "required" || word == "any" => Choice::Required,
            Some(Value::String(word)) if word == "none" => return Ok(None),
            Some(other) => match other["function"]["name"].as_str() {
                Some(wanted) if definitions.iter().any(|tool| name(tool) == Some(wanted)) => {
                    Choice::Named(wanted.to_owned())
                }
                _ => {
                    let message = "'tool_choice' has to be 'none', 'auto', 'required' or one of 'tools'.";
                    return Err(ApiError::field("tool_choice", message));
                }
            },
        };
        if definitions.is_empty() {
            return match choice {
                Choice::Auto => Ok(None),
                _ => Err(ApiError::field(
                    "tool_choice",
                    "'tool_choice' is only allowed when 'tools' are specified.",
                )),
            };
        }
        Ok(Some(Self {
            definitions,
            choice,
            at_most_one: false,
        }))
    }

    /// The same, for a client that takes one call at a time.
    pub(crate) fn one_at_a_time(self, one: bool) -> Self {
        Self {
            at_most_one: one,
            ..self
        }
    }

    /// How an earlier call is told to a model whose template knows no tools: as [`Self::instruction`] says.
    pub(crate) fn told(call: &Value) -> String {
        let (name, arguments) = (&call["function"]["name"], &call["function"]["arguments"]);
        format!("{OPEN}{{\"name\": {name}, \"arguments\": {arguments}}}{CLOSE}")
    }

    /// The schema of the only answer there may be, when a call is demanded.
    pub(crate) fn schema(&self) -> Option<Value> {
        let wanted: Vec<Value> = self
            .definitions
            .iter()
            .filter(|tool| match &self.choice {
                Choice::Auto => false,
                Choice::Required => true,
                Choice::Named(wanted) => name(tool) == Some(wanted),
            })
            .map(|tool| {
                let parameters = &tool["function"]["parameters"];
                let arguments = if parameters.is_object() {
                    parameters.clone()
                } else {
                    json!({"type": "object"})
                };
                json!({
                    "type": "object",
                    "properties": {"name": {"const": name(tool)}, "arguments": arguments},
                    "required": ["name", "arguments"],
                    "additionalProperties": false,
                })
            })
            .collect();
        match wanted.len() {
            0 => None,
            1 => wanted.into_iter().next(),
            _ => Some(json!({ "anyOf": wanted })),
        }
    }

    /// What a model is told whose template knows no tools.
    pub(crate) fn instruction(&self) -> String {
        let list: Vec<String> = self
            .definitions
            .iter()
            .map(|tool| tool["function"].to_string())
            .collect();
        format!(
            "You may call these functions:\n{}\nTo call one, answer with nothing but {OPEN}{{\"name\": NAME, \
             \"arguments\": OBJECT}}{CLOSE}.",
            list.join("\n")
        )
    }

    /// Whether a text that begins so may yet be a call.
    pub(crate) fn may_be_call(&self, text: &str) -> bool {
        let text = text.trim_start();
        let begins = |mark: &str| text.starts_with(mark) || mark.starts_with(text);
        self.choice != Choice::Auto
            || text.is_empty()
            || text.starts_with('{')
            || begins(OPEN)
            || begins(MISTRAL)
    }

    /// The calls that a whole text is; None when it is a text.
    pub(crate) fn calls(&self, text: &str) -> Option<Vec<Call>> {
        let text = text.trim();
        let values: Vec<Value> = if text.starts_with(OPEN) {
            let parts = text.split(OPEN).skip(1);
            parts
                .map(|part| serde_json::from_str(part.trim().trim_end_matches(CLOSE).trim()))
                .collect::<Result<_, _>>()
                .ok()?
        } else if let Some(rest) = text.strip_prefix(MISTRAL) {
            serde_json::from_str(rest.trim()).ok()?
        } else {
            vec![serde_json::from_str(text).ok()?]
        };
        let calls: Option<Vec<Call>> = values.iter().map(|value| self.call(value)).collect();
        let mut calls = calls.filter(|calls| !calls.is_empty())?;
        if self.at_most_one {
            calls.truncate(1);
        }
        Some(calls)
    }

    fn call(&self, value: &Value) -> Option<Call> {
        let called = value["name"].as_str()?;
        if !self.definitions.iter().any(|tool| name(tool) == Some(called)) {
            return None;
        }
        let arguments = value.get("arguments").or_else(|| value.get("parameters"))?;
        let arguments = match arguments {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        Some(Call {
            id: format!("call_{}", uuid::Uuid::new_v4().simple()),
            name: called.to_owned(),
            arguments,
        })
    }
}

fn name(tool: &Value) -> Option<&str> {
    tool["function"]["name"].as_str().filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tools(choice: Value) -> Tools {
        let tool = json!({"type": "function", "function": {"name": "weather", "parameters": {
            "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}});
        Tools::new(Some(vec![tool]), Some(choice)).unwrap().unwrap()
    }

    #[test]
    fn calls_are_understood_in_every_way_models_write_them() {
        let tools = tools(json!("auto"));
        for text in [
            r#"<tool_call>{"name": "weather", "arguments": {"city": "Lyon"}}</tool_call>"#,
            "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Lyon\"}}\n</tool_call>",
            r#" {"name": "weather", "parameters": {"city": "Lyon"}}"#,
            r#"[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Lyon"}}]"#,
        ] {
            let calls = tools.calls(text).expect(text);
            assert_eq!(calls[0].name, "weather");
            assert_eq!(calls[0].arguments, r#"{"city":"Lyon"}"#);
            for (at, _) in text.char_indices() {
                assert!(tools.may_be_call(&text[..at]), "{}", &text[..at]);
            }
        }
        for text in [
            "The weather is fine.",
            r#"{"city": "Lyon"}"#,
            r#"{"name": "rm", "arguments": {}}"#,
        ] {
            assert_eq!(tools.calls(text), None, "{text}");
        }
    }

    #[test]
    fn who_takes_one_call_gets_the_first() {
        let call = |city: &str| format!(r#"{{"name": "weather", "arguments": {{"city": "{city}"}}}}"#);
        let text = format!("[TOOL_CALLS][{}, {}]", call("Lyon"), call("Nice"));
        let tools = tools(json!("auto"));
        assert_eq!(tools.calls(&text).unwrap().len(), 2);
        let one = tools.one_at_a_time(true).calls(&text).unwrap();
        assert_eq!(one.len(), 1);
        assert!(one[0].arguments.contains("Lyon"));
        let told = json!({"function": {"name": "weather", "arguments": {"city": "Lyon"}}});
        let again = tools_of_weather().calls(&Tools::told(&told)).unwrap();
        assert_eq!(again[0].arguments, r#"{"city":"Lyon"}"#);
    }

    fn tools_of_weather() -> Tools {
        tools(json!("any"))
    }

    #[test]
    fn a_demanded_call_has_a_schema() {
        let schema = tools(json!("required")).schema().unwrap();
        assert_eq!(schema["properties"]["name"]["const"], "weather");
        assert_eq!(tools(json!("auto")).schema(), None);
        let none = Tools::new(None, Some(json!("required")));
        assert!(none.is_err());
        let unknown = json!({"type": "function", "function": {"name": "other"}});
        assert!(Tools::new(Some(tools(json!("auto")).definitions), Some(unknown)).is_err());
    }
}
