//! Whether an `update_mask` names members that there are.
//!
//! A name that nothing has would make an update that does nothing and says it went well. What there is, the schema of
//! the message says; [`crate::endpoint`] asks here before any handler runs.

use tram_types::FieldViolation;
use utoipa::openapi::{
    RefOr,
    schema::{AdditionalProperties, Object, Schema},
};

use crate::endpoint::Message;

/// Name of the parameter.
pub(crate) const UPDATE_MASK: &str = "update_mask";

/// What is wrong with the names of a mask over `message`.
pub(crate) fn violations(mask: &str, message: &Message) -> Vec<FieldViolation> {
    mask.split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty() && !has(message, &message.schema, name))
        .map(|name| {
            let shown: String = name.chars().take(SHOWN_CHARACTERS).collect();
            let known = members(message, &message.schema).join(", ");
            FieldViolation::new(
                UPDATE_MASK,
                format!("`{shown}` is no member that can be updated: those are {known}"),
            )
        })
        .collect()
}

/// Longest part of a wrong name that is repeated in a message, in characters.
const SHOWN_CHARACTERS: usize = 64;

fn has(message: &Message, schema: &RefOr<Schema>, path: &str) -> bool {
    let (first, rest) = path
        .split_once('.')
        .map_or((path, None), |(first, rest)| (first, Some(rest)));
    match object(message, schema) {
        Some(object) => match (object.properties.get(first), rest) {
            (Some(_), None) => true,
            (Some(below), Some(rest)) => has(message, below, rest),
            (None, _) => is_open(object),
        },
        None => false,
    }
}

/// Whether an object may have members that its schema does not name.
fn is_open(object: &Object) -> bool {
    match object.additional_properties.as_deref() {
        None => false,
        Some(AdditionalProperties::FreeForm(open)) => *open,
        Some(AdditionalProperties::RefOr(_)) => true,
    }
}

fn members(message: &Message, schema: &RefOr<Schema>) -> Vec<String> {
    object(message, schema)
        .map(|object| object.properties.keys().cloned().collect())
        .unwrap_or_default()
}

/// The object that a schema is, behind references and behind "null or that".
fn object<'m>(message: &'m Message, schema: &'m RefOr<Schema>) -> Option<&'m Object> {
    match schema {
        RefOr::Ref(reference) => {
            let name = reference.ref_location.rsplit('/').next()?;
            let (_, schema) = message.parts.iter().find(|(known, _)| known == name)?;
            object(message, schema)
        }
        RefOr::T(Schema::Object(found)) => Some(found),
        RefOr::T(Schema::OneOf(choice)) => choice.items.iter().find_map(|item| {
            object(message, item).filter(|found| !found.properties.is_empty() || is_open(found))
        }),
        RefOr::T(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{secret::Secret, service::UpdateService};

    #[test]
    fn names_are_looked_for_in_the_schema() {
        let service = Message::of::<UpdateService>();
        for good in [
            "",
            "definition",
            "definition.docker.image, life_cycle",
            "definition.env",
        ] {
            assert_eq!(violations(good, &service).len(), 0, "{good}");
        }
        for bad in [
            "nmae",
            "definition.dokcer",
            "definition.env.0",
            "definition.name.x",
            ".",
        ] {
            let found = violations(&format!("definition,{bad}"), &service);
            assert_eq!(found.len(), 1, "{bad}");
            assert!(found[0].description.contains(bad), "{found:?}");
        }
        let secret = Message::of::<Secret>();
        assert_eq!(violations("value,github_registry", &secret).len(), 0);
    }
}
