//! What may be asked of models.

use tram_types::Timestamp;

tram_types::message! {
    /// What one token, project or organization may ask of models. A number that is 0 limits nothing.
    pub struct ModelLimit {
        /// Whose: the id of the organization, of a project or of a token.
        pub id: String,
        /// Which of these: `organization`, `project` or `credential`.
        pub scope: String,
        /// Its name.
        pub name: String,
        /// Questions in a minute.
        pub requests_per_minute: i64,
        /// Tokens of prompts and answers in a minute.
        pub tokens_per_minute: i64,
        /// Tokens of prompts and answers in a calendar month of UTC.
        pub tokens_per_month: i64,
        /// Of a token: how urgent its questions are, `low`, `normal` or `high`.
        pub priority: String,
        /// Tokens of this month, as far as they are counted.
        pub tokens_this_month: i64,
        pub created_at: Option<Timestamp>,
        pub updated_at: Option<Timestamp>,
    }

    /// A limit to set. What is left out limits nothing.
    pub struct SetModelLimit {
        pub requests_per_minute: i64,
        pub tokens_per_minute: i64,
        pub tokens_per_month: i64,
        /// `low`, `normal` (also when empty) or `high`; of a token alone.
        pub priority: String,
    }

    /// The answer of `list model limits`.
    pub struct ListModelLimitsReply {
        pub limits: Vec<ModelLimit>,
        pub count: i64,
    }

    /// The answer of `set model limit`.
    pub struct SetModelLimitReply {
        pub limit: Option<ModelLimit>,
    }

    /// The empty answer of `delete model limit`.
    pub struct DeleteModelLimitReply {}
}
