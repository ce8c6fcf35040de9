//! Domains.

use tram_types::{
    Int64, Timestamp,
    status::{DomainStatus, DomainType},
};

tram_types::message! {
    /// A host name that leads to an app.
    pub struct Domain {
        pub id: String,
        pub organization_id: String,
        pub name: String,
        pub created_at: Option<Timestamp>,
        pub updated_at: Option<Timestamp>,
        pub status: DomainStatus,
        pub r#type: DomainType,
        pub app_id: String,
        pub deployment_group: String,
        pub verified_at: Option<Timestamp>,
        pub intended_cname: String,
        pub messages: Vec<String>,
        pub version: Int64,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub cloudflare: Option<DomainLoadBalancerCloudflare>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub koyeb: Option<DomainLoadBalancerKoyeb>,
        pub project_id: String,
        /// Where it is reached, when that is not on the usual port of HTTPS. Ours; clients that do not know it use the name.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub url: Option<String>,
    }

    /// The mark of an auto-assigned domain.
    #[schema(as = Domain::LoadBalancerCloudflare)]
    pub struct DomainLoadBalancerCloudflare {}

    /// The platform's own load balancer.
    #[schema(as = Domain::LoadBalancerKoyeb)]
    pub struct DomainLoadBalancerKoyeb {
        pub request_timeout_seconds: i64,
    }

    /// A domain to add.
    pub struct CreateDomain {
        pub name: String,
        pub r#type: DomainType,
        pub app_id: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub cloudflare: Option<DomainLoadBalancerCloudflare>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub koyeb: Option<DomainLoadBalancerKoyeb>,
        pub project_id: String,
    }

    /// What to change of a domain.
    pub struct UpdateDomain {
        pub app_id: Option<String>,
        pub subdomain: Option<String>,
    }

    /// The answer of `create domain`.
    pub struct CreateDomainReply {
        pub domain: Option<Domain>,
    }

    /// The answer of `get domain`.
    pub struct GetDomainReply {
        pub domain: Option<Domain>,
    }

    /// The answer of `list domains`.
    pub struct ListDomainsReply {
        pub domains: Vec<Domain>,
        pub limit: i64,
        pub offset: i64,
        pub count: i64,
    }

    /// The answer of `update domain`.
    pub struct UpdateDomainReply {
        pub domain: Option<Domain>,
    }

    /// The empty answer of `delete domain`.
    pub struct DeleteDomainReply {}

    /// The empty answer of `refresh domain status`.
    pub struct RefreshDomainStatusReply {}
}
