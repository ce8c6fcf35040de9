//! From the bytes of a body to a message, with the exact path of whatever is wrong.
//!
//! A missing body reads as `{}`, since clients leave it out where the contract has an empty object. A member that the
//! contract does not have is accepted and named in the answer's `x-tram-warning`: newer clients send members that
//! older servers do not know.

use serde::de::DeserializeOwned;
use serde_json::Value;
use tram_types::FieldViolation;

use crate::{error::Error, strict::Strict};

/// Largest body: a definition with its config files (1 MiB each) fits, and a caller cannot fill the memory.
pub(crate) const BODY_MAX_BYTES: usize = 8 * 1024 * 1024;
/// Most unknown members that are named: a header has to stay short.
const NAMED_UNKNOWN_MEMBERS: usize = 10;

/// A message with what was noticed while reading it.
#[derive(Debug)]
pub(crate) struct Decoded<T> {
    pub(crate) message: T,
    /// The body as it came.
    pub(crate) given: Value,
    /// Paths of members that the contract does not have.
    pub(crate) unknown: Vec<String>,
}

/// Reads a message.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<Decoded<T>, Error> {
    let given = parse(bytes)?;
    let mut unknown = Vec::new();
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(Strict(&given), &mut track);
    let decoded = serde_ignored::deserialize(tracked, |path: serde_ignored::Path<'_>| {
        if unknown.len() < NAMED_UNKNOWN_MEMBERS {
            unknown.push(member_path(&path.to_string()));
        }
    });
    match decoded {
        Ok(message) => Ok(Decoded {
            message,
            given,
            unknown,
        }),
        Err(error) => Err(Error::field(
            field_path(&track.path().to_string()),
            explain(&error.to_string()),
        )),
    }
}

/// Reads a message out of a value that is already parsed.
pub(crate) fn decode_value<T: DeserializeOwned>(given: &Value) -> Result<T, Error> {
    serde_path_to_error::deserialize(Strict(given)).map_err(|error| {
        let field = field_path(&error.path().to_string());
        Error::field(field, explain(&error.into_inner().to_string()))
    })
}

fn parse(bytes: &[u8]) -> Result<Value, Error> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(Value::Object(serde_json::Map::new()));
    }
    let value: Value = serde_json::from_slice(bytes).map_err(|error| Error::Malformed(error.to_string()))?;
    match &value {
        Value::Null => return Ok(Value::Object(serde_json::Map::new())),
        Value::Object(_) => {}
        _ => return Err(Error::Malformed("expected an object".to_owned())),
    }
    match zero_byte(&value, String::new()) {
        None => Ok(value),
        Some(field) => Err(Error::Invalid(vec![FieldViolation::new(
            field,
            "must not contain a zero byte",
        )])),
    }
}

/// The path of the first text with a zero byte in it, which no database and no program takes.
fn zero_byte(value: &Value, path: String) -> Option<String> {
    let below = |key: &str| match path.is_empty() {
        true => key.to_owned(),
        false => format!("{path}.{key}"),
    };
    match value {
        Value::String(text) => text.contains('\0').then_some(path),
        Value::Array(entries) => entries
            .iter()
            .enumerate()
            .find_map(|(index, entry)| zero_byte(entry, below(&index.to_string()))),
        Value::Object(members) => members.iter().find_map(|(key, member)| {
            if key.contains('\0') {
                return Some(below("?"));
            }
            zero_byte(member, below(key))
        }),
        _ => None,
    }
}

/// `a[0].b` and `.` as the contract writes them: `a.0.b` and `body`.
fn field_path(path: &str) -> String {
    match path {
        "." | "" => "body".to_owned(),
        path => path.replace('[', ".").replace(']', ""),
    }
}

/// Without the marks that an optional member leaves in the path.
fn member_path(path: &str) -> String {
    path.split('.')
        .filter(|part| *part != "?")
        .collect::<Vec<_>>()
        .join(".")
}

/// A sentence for people out of the decoder's.
fn explain(error: &str) -> String {
    if let Some(rest) = error.strip_prefix("invalid type: ")
        && let Some((found, wanted)) = rest.split_once(", expected ")
    {
        return format!("must be {}, is {}", wanted_words(wanted), found_words(found));
    }
    if let Some(rest) = error.strip_prefix("unknown variant ")
        && let Some((found, wanted)) = rest.split_once(", expected ")
    {
        return format!("{found} is not {}", wanted.replace('`', ""));
    }
    if let Some(rest) = error.strip_prefix("invalid value: ")
        && let Some((found, wanted)) = rest.split_once(", expected ")
    {
        return format!("must be {}, is {}", wanted_words(wanted), found_words(found));
    }
    if error.starts_with("data did not match any variant") {
        return "must be a whole number, or one as text".to_owned();
    }
    error.to_owned()
}

fn found_words(found: &str) -> String {
    match found.split_once(' ') {
        None if found == "sequence" => "a list".to_owned(),
        None if found == "map" => "an object".to_owned(),
        Some(("integer" | "floating", rest)) => format!("the number {}", rest.trim_start_matches("point ")),
        Some(("boolean", rest)) => rest.to_owned(),
        Some(("string", rest)) => format!("the text {rest}"),
        _ => found.to_owned(),
    }
}

fn wanted_words(wanted: &str) -> &str {
    match wanted {
        "i64" | "i32" | "u64" | "u32" => "a whole number",
        "f64" | "f32" => "a number",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        "a map" => "an object",
        other if other.starts_with("struct ") => "an object",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::service::CreateService;

    fn failure(body: &str) -> (String, String) {
        match decode::<CreateService>(body.as_bytes()).unwrap_err() {
            Error::Invalid(fields) => (fields[0].field.clone(), fields[0].description.clone()),
            other => (String::new(), other.to_string()),
        }
    }

    #[test]
    fn a_type_error_names_its_path() {
        for (body, field, description) in [
            (
                r#"{"definition":{"env":[{"key":1}]}}"#,
                "definition.env.0.key",
                "must be a string, is the number `1`",
            ),
            (
                r#"{"definition":{"ports":[{},{"port":"80"}]}}"#,
                "definition.ports.1.port",
                r#"must be a whole number, is the text "80""#,
            ),
            (
                r#"{"definition":{"type":"WEBB"}}"#,
                "definition.type",
                "`WEBB` is not one of INVALID, WEB, WORKER, DATABASE, SANDBOX",
            ),
            (
                r#"{"definition":[]}"#,
                "definition",
                "must be an object, is a list",
            ),
            (r#"{"name":{}}"#, "name", "must be a string, is an object"),
            (r#"{"name":"a\u0000"}"#, "name", "must not contain a zero byte"),
        ] {
            assert_eq!(
                failure(body),
                (field.to_owned(), description.to_owned()),
                "{body}"
            );
        }
    }

    #[test]
    fn what_is_no_object_is_malformed() {
        for body in ["{", "[]", "1", "\"a\"", "{]"] {
            assert!(failure(body).1.contains("not valid JSON"), "{body}");
        }
        for body in ["", " \n", "null", "{}"] {
            assert!(decode::<CreateService>(body.as_bytes()).is_ok(), "{body}");
        }
    }

    #[test]
    fn unknown_members_are_accepted_and_named() {
        let decoded: Decoded<CreateService> =
            decode(br#"{"name":"a","nmae":"b","definition":{"dokcer":{},"env":[{"kye":"c"}]}}"#).unwrap();
        assert_eq!(decoded.message.name, "a");
        assert_eq!(
            decoded.unknown,
            ["definition.dokcer", "definition.env.0.kye", "nmae"]
        );
    }
}
