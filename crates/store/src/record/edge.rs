//! How apps are reached and what they need to know: domains, public ports, secrets.

use serde_json::Value;
use tram_types::{
    AppId, DomainId, OrganizationId, ProjectId, SecretId, ServiceId, Timestamp,
    status::{DomainStatus, DomainType, SecretType},
};

use crate::record::records;

records! {
    /// A host name that leads to an app.
    pub struct Domain in "domains" as "domain" {
        /// Its id.
        pub id: DomainId,
        /// Its organization.
        pub organization_id: OrganizationId,
        /// Its project, if any.
        pub project_id: Option<ProjectId>,
        /// The app it leads to, if any.
        pub app_id: Option<AppId>,
        /// Unique on this installation, in lower case.
        pub name: String,
        /// Who chose it.
        pub kind: DomainType,
        /// What was confirmed.
        pub status: DomainStatus,
        /// What to know about the status.
        pub messages: Vec<String>,
        /// What a custom domain's CNAME must point to.
        pub intended_cname: String,
        /// The group of deployments it leads to, or empty.
        pub deployment_group: String,
        /// The load balancer's member of the wire contract: `{"cloudflare":{}}` or `{"koyeb":{…}}`.
        pub load_balancer: Value,
        /// Counts changes.
        pub version: i64,
        /// When its CNAME was last found.
        pub verified_at: Option<Timestamp>,
        /// When it was made.
        pub created_at: Timestamp,
        /// When a member last changed.
        pub updated_at: Timestamp,
    }

    /// A public TCP port that was given to one port of one service, for as long as the service lives.
    pub struct ProxyPort in "proxy_ports" as "proxy port" {
        /// Unique on this installation.
        pub public_port: u16,
        /// Its organization.
        pub organization_id: OrganizationId,
        /// The service.
        pub service_id: ServiceId,
        /// The service's port.
        pub port: u16,
        /// When it was given.
        pub created_at: Timestamp,
    }

    /// A stored secret, without its value: see [`Store::reveal_secret`](crate::Store::reveal_secret).
    pub struct Secret in "secrets" as "secret" {
        /// Its id.
        pub id: SecretId,
        /// Its organization.
        pub organization_id: OrganizationId,
        /// Its project; `None`: the whole organization may use it.
        pub project_id: Option<ProjectId>,
        /// Unique in the project, or among the organization's own.
        pub name: String,
        /// What it holds.
        pub kind: SecretType,
        /// When it was made.
        pub created_at: Timestamp,
        /// When a member or the value last changed.
        pub updated_at: Timestamp,
    }
}
