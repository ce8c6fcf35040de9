//! Names that lead to models.

use serde_json::Value;
use tram_types::{OrganizationId, Timestamp};

use crate::record::records;

records! {
    /// A name by which an organization's models are asked, and what it leads to.
    pub struct ModelRoute in "model_routes" as "model route" {
        /// Whose.
        pub organization_id: OrganizationId,
        /// What requests call it.
        pub name: String,
        /// Where it leads, as the API has it; the store does not look into it.
        pub ways: Value,
        /// When it was made.
        pub created_at: Timestamp,
        /// When a member last changed.
        pub updated_at: Timestamp,
    }
}
