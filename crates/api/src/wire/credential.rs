//! Credentials.

use tram_types::{Timestamp, status::CredentialType};

tram_types::message! {
    /// An API token.
    pub struct Credential {
        pub id: String,
        pub r#type: CredentialType,
        pub name: String,
        pub token: String,
        pub description: String,
        pub user_id: String,
        pub organization_id: String,
        pub updated_at: Option<Timestamp>,
        pub created_at: Option<Timestamp>,
        pub expires_at: Option<Timestamp>,
        /// Ours: `OWNER`, `READ_ONLY`, or `MODELS`, which may ask models and nothing else.
        pub role: String,
    }

    /// A token to make.
    pub struct CreateCredential {
        pub name: String,
        pub description: String,
        pub r#type: CredentialType,
        pub organization_id: String,
        /// Ours: `OWNER` (also when empty), `READ_ONLY`, or `MODELS`, which may ask models and nothing else.
        pub role: String,
        /// Ours: when the token stops to work; `null` is never.
        pub expires_at: Option<Timestamp>,
    }

    /// The answer of `create credential`.
    pub struct CreateCredentialReply {
        pub credential: Option<Credential>,
    }

    /// The answer of `get credential`.
    pub struct GetCredentialReply {
        pub credential: Option<Credential>,
    }

    /// The answer of `list credentials`.
    pub struct ListCredentialsReply {
        pub credentials: Vec<Credential>,
        pub limit: i64,
        pub offset: i64,
        pub count: i64,
    }

    /// The answer of `update credential`.
    pub struct UpdateCredentialReply {
        pub credential: Option<Credential>,
    }

    /// The empty answer of `delete credential`.
    pub struct DeleteCredentialReply {}
}
