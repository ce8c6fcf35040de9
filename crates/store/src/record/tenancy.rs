//! Who uses the platform: organizations, projects, API tokens.

use tram_types::{CredentialId, OrganizationId, ProjectId, Timestamp, status::CredentialType};

use crate::record::{Role, records};

records! {
    /// A tenant.
    pub struct Organization in "organizations" as "organization" {
        /// Its id.
        pub id: OrganizationId,
        /// Unique on this installation.
        pub name: String,
        /// Where services go that name no project.
        pub default_project_id: Option<ProjectId>,
        /// When it was made.
        pub created_at: Timestamp,
        /// When a member last changed.
        pub updated_at: Timestamp,
    }

    /// A group of services, secrets and domains inside an organization.
    pub struct Project in "projects" as "project" {
        /// Its id.
        pub id: ProjectId,
        /// Its organization.
        pub organization_id: OrganizationId,
        /// Unique in the organization.
        pub name: String,
        /// Free text.
        pub description: String,
        /// When it was made.
        pub created_at: Timestamp,
        /// When a member last changed.
        pub updated_at: Timestamp,
    }

    /// An API token. The token itself is never kept, only its SHA-256.
    pub struct Credential in "credentials" as "credential" {
        /// Its id.
        pub id: CredentialId,
        /// Its organization.
        pub organization_id: OrganizationId,
        /// The user it speaks for; empty for an organization's token.
        pub user_id: String,
        /// Whom it speaks for.
        pub kind: CredentialType,
        /// What it may do.
        pub role: Role,
        /// For people.
        pub name: String,
        /// For people.
        pub description: String,
        /// SHA-256 of the 64-character token, in lower-case hexadecimal; see [`crate::token_sha256`].
        pub token_sha256: String,
        /// When it stops to work; `None`: never.
        pub expires_at: Option<Timestamp>,
        /// When it was last used, to the minute or so.
        pub last_used_at: Option<Timestamp>,
        /// When it was made.
        pub created_at: Timestamp,
        /// When a member last changed.
        pub updated_at: Timestamp,
    }
}
