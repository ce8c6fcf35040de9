//! Small typed views of the API's JSON: absent, `null` and of another type all read as empty.

use serde_json::{Value, json};

use crate::resolve::names_id;

/// The text of a member.
pub(crate) fn text<'v>(value: &'v Value, member: &str) -> &'v str {
    value.get(member).and_then(Value::as_str).unwrap_or("")
}

/// The number of a member, whether written as a number or as a string.
pub(crate) fn number(value: &Value, member: &str) -> i64 {
    match value.get(member) {
        Some(Value::String(text)) => text.parse().unwrap_or(0),
        Some(other) => other.as_i64().unwrap_or(0),
        None => 0,
    }
}

/// The elements of a member.
pub(crate) fn list<'v>(value: &'v Value, member: &str) -> &'v [Value] {
    value
        .get(member)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

/// The elements of a member that are text.
pub(crate) fn texts(value: &Value, member: &str) -> Vec<String> {
    list(value, member)
        .iter()
        .filter_map(|item| item.as_str().map(str::to_owned))
        .collect()
}

/// A member, taken out; `null` when it is not there.
pub(crate) fn take(value: &mut Value, member: &str) -> Value {
    value.get_mut(member).map(Value::take).unwrap_or_default()
}

/// What programs get of an order that the API answers with nothing: what was done to which thing. `given` is what the
/// user called it; where that was its id, no name is known and none is told.
pub(crate) fn acted(action: &str, id: &str, given: &str) -> Value {
    if names_id(given, id) {
        json!({ "id": id, "action": action })
    } else {
        json!({ "id": id, "name": given, "action": action })
    }
}

/// How many characters of an id people are shown: enough to be told apart, and what the API takes as a prefix.
pub(crate) const SHORT_ID_CHARACTERS: usize = 8;

/// The first characters of an id; `-` for none.
pub(crate) fn short(id: &str) -> String {
    if id.is_empty() {
        return "-".to_owned();
    }
    id.chars().take(SHORT_ID_CHARACTERS).collect()
}
