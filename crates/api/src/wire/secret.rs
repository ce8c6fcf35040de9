//! Secrets.

use tram_types::{Timestamp, status::SecretType};

tram_types::message! {
    /// A stored secret. Its value is never written, only read from updates.
    pub struct Secret {
        pub id: String,
        pub name: String,
        pub organization_id: String,
        pub r#type: SecretType,
        pub updated_at: Option<Timestamp>,
        pub created_at: Option<Timestamp>,
        pub project_id: String,
        /// The host names it is bound to, if it is. Programs get a placeholder, and requests to these hosts the value.
        /// Left out of an update, it stays; empty, the secret is not bound any more.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub hosts: Option<Vec<String>>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub value: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub docker_hub_registry: Option<DockerHubRegistryConfiguration>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub private_registry: Option<PrivateRegistryConfiguration>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub digital_ocean_registry: Option<DigitalOceanRegistryConfiguration>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub github_registry: Option<GitHubRegistryConfiguration>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub gitlab_registry: Option<GitLabRegistryConfiguration>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub gcp_container_registry: Option<GcpContainerRegistryConfiguration>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub azure_container_registry: Option<AzureContainerRegistryConfiguration>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub database_role_password: Option<DatabaseRolePassword>,
    }

    /// A secret to store.
    pub struct CreateSecret {
        pub name: String,
        pub r#type: SecretType,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub value: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub docker_hub_registry: Option<DockerHubRegistryConfiguration>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub private_registry: Option<PrivateRegistryConfiguration>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub digital_ocean_registry: Option<DigitalOceanRegistryConfiguration>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub github_registry: Option<GitHubRegistryConfiguration>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub gitlab_registry: Option<GitLabRegistryConfiguration>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub gcp_container_registry: Option<GcpContainerRegistryConfiguration>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub azure_container_registry: Option<AzureContainerRegistryConfiguration>,
        pub project_id: String,
        /// Host names to bind it to: programs get a placeholder, and requests to these hosts the value.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub hosts: Option<Vec<String>>,
    }

    /// Access to Docker Hub.
    pub struct DockerHubRegistryConfiguration {
        pub username: String,
        pub password: String,
    }

    /// Access to a registry of its own.
    pub struct PrivateRegistryConfiguration {
        pub username: String,
        pub password: String,
        pub url: String,
    }

    /// Access to DigitalOcean's registry.
    pub struct DigitalOceanRegistryConfiguration {
        pub username: String,
        pub password: String,
    }

    /// Access to GitHub's registry.
    pub struct GitHubRegistryConfiguration {
        pub username: String,
        pub password: String,
    }

    /// Access to GitLab's registry.
    pub struct GitLabRegistryConfiguration {
        pub username: String,
        pub password: String,
    }

    /// Access to Google's registry.
    #[schema(as = GCPContainerRegistryConfiguration)]
    pub struct GcpContainerRegistryConfiguration {
        pub keyfile_content: String,
        pub url: String,
    }

    /// Access to Azure's registry.
    pub struct AzureContainerRegistryConfiguration {
        pub registry_name: String,
        pub username: String,
        pub password: String,
    }

    /// A database role's password.
    pub struct DatabaseRolePassword {
        pub username: String,
        pub password: String,
    }

    /// The answer of `create secret`.
    pub struct CreateSecretReply {
        pub secret: Option<Secret>,
    }

    /// The answer of `get secret`.
    pub struct GetSecretReply {
        pub secret: Option<Secret>,
    }

    /// The answer of `list secrets`.
    pub struct ListSecretsReply {
        pub secrets: Vec<Secret>,
        pub limit: i64,
        pub offset: i64,
        pub count: i64,
    }

    /// The answer of `update secret`.
    pub struct UpdateSecretReply {
        pub secret: Option<Secret>,
    }

    /// The empty answer of `delete secret`.
    pub struct DeleteSecretReply {}

    /// The answer of `reveal secret`.
    pub struct RevealSecretReply {
        /// Text of a simple secret, the configuration of a registry's.
        pub value: serde_json::Value,
    }
}
