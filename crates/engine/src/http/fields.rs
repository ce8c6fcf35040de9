//! The fields of a JSON body: each is taken once, checked, and what is left over is refused.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::error::ApiError;

/// The fields not yet taken.
#[derive(Debug)]
pub(crate) struct Fields(Map<String, Value>);

impl Fields {
    pub(crate) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let value: Value = serde_json::from_slice(body).map_err(|error| {
            ApiError::bad(format!(
                "We could not parse the JSON body of your request: {error}"
            ))
        })?;
        match value {
            Value::Object(fields) => Ok(Self(fields)),
            _ => Err(ApiError::bad("The body of the request has to be a JSON object.")),
        }
    }

    /// The fields of an object within.
    pub(crate) fn of(fields: Map<String, Value>) -> Self {
        Self(fields)
    }

    /// The value of a field; none when it is absent or null.
    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        // The order of what is left does not matter.
        self.0.swap_remove(name).filter(|value| !value.is_null())
    }

    pub(crate) fn number(&mut self, name: &str, range: RangeInclusive<f32>) -> Result<Option<f32>, ApiError> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        #[expect(
            clippy::cast_possible_truncation,
            reason = "settings of sampling need no more precision"
        )]
        let number = value.as_f64().map(|number| number as f32);
        match number.filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(ApiError::field(
                name,
                format!(
                    "Invalid value for '{name}': expected a number from {} to {}, but got {}.",
                    range.start(),
                    range.end(),
                    short(&value)
                ),
            )),
        }
    }

    pub(crate) fn integer(
        &mut self,
        name: &str,
        range: RangeInclusive<i64>,
    ) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        match value.as_i64().filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(ApiError::field(
                name,
                format!(
                    "Invalid value for '{name}': expected an integer from {} to {}, but got {}.",
                    range.start(),
                    range.end(),
                    short(&value)
                ),
            )),
        }
    }

    /// A number of things, at least `least`.
    pub(crate) fn count(&mut self, name: &str, least: usize, most: usize) -> Result<Option<usize>, ApiError> {
        let bound = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        let number = self.integer(name, bound(least)..=bound(most))?;
        Ok(number.map(|number| usize::try_from(number).unwrap_or_default()))
    }

    pub(crate) fn flag(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(wrong_type(name, "true or false", &other)),
        }
    }

    pub(crate) fn text(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong_type(name, "a string", &other)),
        }
    }

    /// A string or an array of strings.
    pub(crate) fn texts(&mut self, name: &str, most: usize) -> Result<Vec<String>, ApiError> {
        let values = match self.take(name) {
            None => return Ok(Vec::new()),
            Some(Value::String(text)) => return Ok(vec![text]),
            Some(Value::Array(values)) if values.len() <= most => values,
            Some(Value::Array(values)) => {
                let message = format!("'{name}' may have {most} entries, but has {}.", values.len());
                return Err(ApiError::field(name, message));
            }
            Some(other) => return Err(wrong_type(name, "a string or an array of strings", &other)),
        };
        let text = |value: Value| match value {
            Value::String(text) => Ok(text),
            other => Err(wrong_type(name, "a string or an array of strings", &other)),
        };
        values.into_iter().map(text).collect()
    }

    pub(crate) fn array(&mut self, name: &str) -> Result<Option<Vec<Value>>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Array(values)) => Ok(Some(values)),
            Some(other) => Err(wrong_type(name, "an array", &other)),
        }
    }

    pub(crate) fn object(&mut self, name: &str) -> Result<Option<Self>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Object(fields)) => Ok(Some(Self(fields))),
            Some(other) => Err(wrong_type(name, "an object", &other)),
        }
    }

    /// Nothing else may be there but what changes no answer.
    pub(crate) fn finish(self, harmless: &[&str]) -> Result<(), ApiError> {
        match self.left(harmless) {
            Some(name) => Err(ApiError::unknown_field(&name)),
            None => Ok(()),
        }
    }

    /// The same for an object that is the field `of` of another.
    pub(crate) fn finish_within(self, of: &str, harmless: &[&str]) -> Result<(), ApiError> {
        match self.left(harmless) {
            Some(name) => Err(ApiError::unknown_field(&format!("{of}.{name}"))),
            None => Ok(()),
        }
    }

    fn left(mut self, harmless: &[&str]) -> Option<String> {
        for name in harmless {
            self.0.swap_remove(*name);
        }
        let mut left = self.0.into_iter().filter(|(_, value)| !value.is_null());
        left.next().map(|(name, _)| name)
    }
}

/// A field with a value of another type.
pub(crate) fn wrong_type(name: &str, expected: &str, found: &Value) -> ApiError {
    let message = format!(
        "Invalid type for '{name}': expected {expected}, but got {}.",
        short(found)
    );
    ApiError::field(name, message)
}

/// Characters of a wrong value that are repeated to whoever sent it.
const SHOWN: usize = 40;

fn short(value: &Value) -> String {
    match value {
        Value::Array(_) => "an array".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        Value::String(text) => format!("{:?}", text.chars().take(SHOWN).collect::<String>()),
        other => other.to_string(),
    }
}
