//! Domains as clients see them.

use tram_store::record;
use tram_types::{Int64, status::DomainType};

use super::{id, part};
use crate::{
    state::Settings,
    wire::domain::{Domain, DomainLoadBalancerCloudflare, DomainLoadBalancerKoyeb},
};

/// The port that clients use for a name alone.
const HTTPS_PORT: u16 = 443;

/// The load balancer's members as they are kept.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub(crate) struct LoadBalancer {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cloudflare: Option<DomainLoadBalancerCloudflare>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) koyeb: Option<DomainLoadBalancerKoyeb>,
}

pub(crate) fn domain(settings: &Settings, domain: &record::Domain) -> Domain {
    let balancer: LoadBalancer = part(&domain.load_balancer);
    // One official client looks for `cloudflare` before it lets a user rename an auto-assigned domain.
    let cloudflare = match domain.kind {
        DomainType::Autoassigned => balancer
            .cloudflare
            .or_else(|| Some(DomainLoadBalancerCloudflare::default())),
        DomainType::Custom => balancer.cloudflare,
    };
    Domain {
        id: domain.id.to_string(),
        organization_id: domain.organization_id.to_string(),
        name: domain.name.clone(),
        created_at: Some(domain.created_at),
        updated_at: Some(domain.updated_at),
        status: domain.status,
        r#type: domain.kind,
        app_id: id(domain.app_id),
        deployment_group: domain.deployment_group.clone(),
        verified_at: domain.verified_at,
        intended_cname: domain.intended_cname.clone(),
        messages: domain.messages.clone(),
        version: Int64(domain.version),
        cloudflare,
        koyeb: balancer.koyeb,
        project_id: id(domain.project_id),
        url: (settings.https_port != HTTPS_PORT)
            .then(|| format!("https://{}:{}", domain.name, settings.https_port)),
    }
}
