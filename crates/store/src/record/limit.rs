//! How much may be asked of models.

use tram_types::{OrganizationId, Timestamp, inference::Priority};

use crate::record::{LimitScope, records};

records! {
    /// What one token, project or organization may ask of models. A number that is 0 limits nothing.
    pub struct ModelLimit in "model_limits" as "limit" {
        /// Whose.
        pub organization_id: OrganizationId,
        /// Whose questions count.
        pub scope: LimitScope,
        /// The id of the organization, project or token.
        pub subject_id: String,
        /// Questions in a minute.
        pub requests_per_minute: u64,
        /// Tokens of prompts and answers in a minute.
        pub tokens_per_minute: u64,
        /// Tokens of prompts and answers in a calendar month of UTC.
        pub tokens_per_month: u64,
        /// How urgent the questions of a token are.
        pub priority: Priority,
        /// When it was made.
        pub created_at: Timestamp,
        /// When a member last changed.
        pub updated_at: Timestamp,
    }
}
