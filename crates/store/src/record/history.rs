//! What happened: events of objects, the audit feed.

use serde_json::Value;
use tram_types::{ActivityId, EventId, OrganizationId, Timestamp};
use uuid::Uuid;

use crate::record::{ObjectKind, records};

records! {
    /// One entry of an object's history. One table holds the history of every kind of object.
    pub struct Event in "events" as "event" {
        /// Its id.
        pub id: EventId,
        /// The organization of the object.
        pub organization_id: OrganizationId,
        /// What kind of object.
        pub object_kind: ObjectKind,
        /// Which object.
        pub object_id: Uuid,
        /// What happened, as an upper-case word.
        pub kind: String,
        /// The same in a sentence.
        pub message: String,
        /// What more there is to know.
        pub metadata: Value,
        /// When.
        pub occurred_at: Timestamp,
    }

    /// One entry of the audit feed: who did what.
    pub struct Activity in "activities" as "activity" {
        /// Its id.
        pub id: ActivityId,
        /// The organization.
        pub organization_id: OrganizationId,
        /// Who, as the wire contract has it.
        pub actor: Value,
        /// Did what.
        pub verb: String,
        /// To what, as the wire contract has it.
        pub object: Value,
        /// What more there is to know.
        pub metadata: Value,
        /// When.
        pub created_at: Timestamp,
    }
}
