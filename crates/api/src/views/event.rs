//! Histories and the audit feed as clients see them.

use std::collections::BTreeMap;

use serde_json::Value;
use tram_store::record;

use super::part;
use crate::wire::activity::{Activity, ActivityObject};

pub(crate) fn activity(activity: &record::Activity) -> Activity {
    Activity {
        id: activity.id.to_string(),
        actor: Some(part::<ActivityObject>(&activity.actor)),
        object: Some(part::<ActivityObject>(&activity.object)),
        verb: activity.verb.clone(),
        metadata: members(&activity.metadata),
        created_at: Some(activity.created_at),
    }
}

/// The members of a stored object; none when it is something else.
pub(crate) fn members(value: &Value) -> BTreeMap<String, Value> {
    value
        .as_object()
        .map(|object| object.clone().into_iter().collect())
        .unwrap_or_default()
}
