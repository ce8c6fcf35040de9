//! The history that users read: one event for every change of a status, in words.

use serde_json::Value;
use tram_store::{intent::NewEvent, record::ObjectKind};
use tram_types::OrganizationId;
use uuid::Uuid;

/// An event of an object that became `status`, for a reason in words.
pub(super) fn event(
    organization: OrganizationId,
    kind: ObjectKind,
    id: Uuid,
    status: &str,
    reason: &str,
) -> NewEvent {
    let name = kind.as_str();
    NewEvent {
        organization_id: organization,
        object_kind: kind,
        object_id: id,
        kind: format!("{}_{status}", name.to_ascii_uppercase()),
        message: format!("{} is {}: {reason}", capital(name), status.to_ascii_lowercase()),
        metadata: Value::Object(serde_json::Map::new()),
    }
}

fn capital(name: &str) -> String {
    let words = name.replace('_', " ");
    let mut characters = words.chars();
    characters.next().map_or_else(String::new, |first| {
        first.to_uppercase().chain(characters).collect()
    })
}
