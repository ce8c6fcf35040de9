//! Deployments, and regional ones, as clients see them.

use tram_store::record::{self, ProxyPort, Service};
use tram_types::{
    DeploymentId, Int64,
    definition::DeploymentDefinition,
    status::{
        DeploymentRole, DeploymentStatus, DeploymentStrategyType, ProxyPortProtocol, RegionalDeploymentRole,
    },
};

use super::{id, part, service::CANARY_GROUP};
use crate::wire::{
    deployment::{Deployment, DeploymentListItem, DeploymentMetadata, DeploymentProxyPortMetadata},
    regional_deployment::{RegionalDeployment, RegionalDeploymentListItem, RegionalDeploymentMetadata},
};

/// What a deployment's view needs beside its record.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Beside<'a> {
    /// Public ports of the services shown.
    pub(crate) proxy_ports: &'a [ProxyPort],
    /// Host of the public ports.
    pub(crate) proxy_host: &'a str,
}

pub(crate) fn deployment(
    deployment: &record::Deployment,
    service: Option<&Service>,
    beside: Beside<'_>,
) -> Deployment {
    let definition: DeploymentDefinition = part(&deployment.definition);
    Deployment {
        id: deployment.id.to_string(),
        created_at: Some(deployment.created_at),
        updated_at: Some(deployment.updated_at),
        allocated_at: deployment.allocated_at,
        started_at: deployment.started_at,
        succeeded_at: deployment.succeeded_at,
        terminated_at: deployment.terminated_at,
        organization_id: deployment.organization_id.to_string(),
        app_id: deployment.app_id.to_string(),
        service_id: deployment.service_id.to_string(),
        parent_id: id(deployment.parent_id),
        child_id: id(deployment.child_id),
        status: deployment.status,
        metadata: Some(metadata(deployment, &definition, beside)),
        messages: deployment.messages.clone(),
        provisioning_info: part(&deployment.provisioning_info),
        database_info: None,
        skip_build: deployment.skip_build,
        role: role(deployment.id, deployment.status, service),
        version: Int64(deployment.version),
        deployment_group: group(deployment, &definition).to_owned(),
        definition: Some(definition),
        project_id: id(deployment.project_id),
        instance_snapshot_id: deployment.instance_snapshot_id.clone(),
        created_by: deployment.created_by.clone(),
    }
}

pub(crate) fn item(deployment: &record::Deployment, beside: Beside<'_>) -> DeploymentListItem {
    let definition: DeploymentDefinition = part(&deployment.definition);
    DeploymentListItem {
        id: deployment.id.to_string(),
        created_at: Some(deployment.created_at),
        updated_at: Some(deployment.updated_at),
        allocated_at: deployment.allocated_at,
        started_at: deployment.started_at,
        succeeded_at: deployment.succeeded_at,
        terminated_at: deployment.terminated_at,
        organization_id: deployment.organization_id.to_string(),
        app_id: deployment.app_id.to_string(),
        service_id: deployment.service_id.to_string(),
        parent_id: id(deployment.parent_id),
        child_id: id(deployment.child_id),
        status: deployment.status,
        metadata: Some(metadata(deployment, &definition, beside)),
        messages: deployment.messages.clone(),
        provisioning_info: part(&deployment.provisioning_info),
        database_info: None,
        version: Int64(deployment.version),
        deployment_group: group(deployment, &definition).to_owned(),
        definition: Some(definition),
        project_id: id(deployment.project_id),
        instance_snapshot_id: deployment.instance_snapshot_id.clone(),
        created_by: deployment.created_by.clone(),
    }
}

/// The group that a request may ask for while two deployments answer: a canary is one of its own until it has taken
/// over.
fn group<'a>(deployment: &'a record::Deployment, definition: &DeploymentDefinition) -> &'a str {
    let is_canary = definition.effective_strategy() == DeploymentStrategyType::Canary;
    if is_canary && deployment.status.is_starting_up() {
        CANARY_GROUP
    } else {
        &deployment.deployment_group
    }
}

fn metadata(
    deployment: &record::Deployment,
    definition: &DeploymentDefinition,
    beside: Beside<'_>,
) -> DeploymentMetadata {
    let mut metadata: DeploymentMetadata = part(&deployment.metadata);
    metadata.proxy_ports = beside
        .proxy_ports
        .iter()
        .filter(|given| given.service_id == deployment.service_id)
        .filter(|given| {
            definition
                .proxy_ports
                .iter()
                .any(|wanted| wanted.port == i64::from(given.port))
        })
        .map(|given| DeploymentProxyPortMetadata {
            host: beside.proxy_host.to_owned(),
            public_port: i64::from(given.public_port),
            port: i64::from(given.port),
            protocol: ProxyPortProtocol::Tcp,
        })
        .collect();
    metadata
}

/// What part a deployment plays: the one that serves is active, a newer one that may still come to serve is next.
fn role(id: DeploymentId, status: DeploymentStatus, service: Option<&Service>) -> DeploymentRole {
    match service {
        Some(service) if service.active_deployment_id == Some(id) => DeploymentRole::Active,
        Some(service) if service.latest_deployment_id == Some(id) && !status.is_final() => {
            DeploymentRole::Upcoming
        }
        _ => DeploymentRole::Invalid,
    }
}

pub(crate) fn regional(
    regional: &record::RegionalDeployment,
    deployment: &record::Deployment,
    service: Option<&Service>,
    datacenters: Vec<String>,
) -> RegionalDeployment {
    RegionalDeployment {
        id: regional.id.to_string(),
        created_at: Some(regional.created_at),
        updated_at: Some(regional.updated_at),
        scheduled_at: regional.scheduled_at,
        allocated_at: regional.allocated_at,
        started_at: regional.started_at,
        succeeded_at: regional.succeeded_at,
        terminated_at: regional.terminated_at,
        organization_id: regional.organization_id.to_string(),
        app_id: regional.app_id.to_string(),
        service_id: regional.service_id.to_string(),
        region: regional.region.clone(),
        parent_id: String::new(),
        child_id: String::new(),
        status: regional.status,
        messages: regional.messages.clone(),
        definition: Some(part(&regional.definition)),
        datacenters,
        metadata: Some(RegionalDeploymentMetadata {}),
        provisioning_info: part(&deployment.provisioning_info),
        role: match role(deployment.id, deployment.status, service) {
            DeploymentRole::Active => RegionalDeploymentRole::Active,
            DeploymentRole::Upcoming => RegionalDeploymentRole::Upcoming,
            DeploymentRole::Current => RegionalDeploymentRole::Current,
            DeploymentRole::Invalid => RegionalDeploymentRole::Invalid,
        },
        version: Int64(regional.version),
        deployment_group: group(deployment, &part(&deployment.definition)).to_owned(),
        deployment_id: regional.deployment_id.to_string(),
        instance_snapshot_id: deployment.instance_snapshot_id.clone(),
    }
}

pub(crate) fn regional_item(regional: &record::RegionalDeployment) -> RegionalDeploymentListItem {
    RegionalDeploymentListItem {
        id: regional.id.to_string(),
        created_at: Some(regional.created_at),
        updated_at: Some(regional.updated_at),
        region: regional.region.clone(),
        status: regional.status,
        messages: regional.messages.clone(),
        definition: Some(part(&regional.definition)),
        instance_snapshot_id: String::new(),
    }
}
