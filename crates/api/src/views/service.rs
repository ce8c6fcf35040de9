//! Services as clients see them.

use tram_store::record;
use tram_types::Int64;

use super::id;
use crate::wire::service::{
    AutoRelease, DesiredDeployment, DesiredDeploymentGroup, ManualServiceScaling, Service, ServiceLifeCycle,
    ServiceListItem, ServiceState,
};

/// The group of every deployment but a canary.
pub(crate) const DEPLOYMENT_GROUP: &str = "prod";
/// The group of a canary while it is tried.
pub(crate) const CANARY_GROUP: &str = "canary";

pub(crate) fn service(service: &record::Service) -> Service {
    Service {
        id: service.id.to_string(),
        created_at: Some(service.created_at),
        updated_at: Some(service.updated_at),
        started_at: service.started_at,
        succeeded_at: service.succeeded_at,
        paused_at: service.paused_at,
        resumed_at: service.resumed_at,
        terminated_at: service.terminated_at,
        name: service.name.clone(),
        r#type: service.kind,
        organization_id: service.organization_id.to_string(),
        app_id: service.app_id.to_string(),
        status: service.status,
        messages: service.messages.clone(),
        version: Int64(service.version),
        active_deployment_id: id(service.active_deployment_id),
        latest_deployment_id: id(service.latest_deployment_id),
        last_provisioned_deployment_id: id(service.last_provisioned_deployment_id),
        state: Some(state(service)),
        life_cycle: Some(life_cycle(service)),
        project_id: id(service.project_id),
        service_account_id: String::new(),
    }
}

pub(crate) fn item(service: &record::Service) -> ServiceListItem {
    ServiceListItem {
        id: service.id.to_string(),
        name: service.name.clone(),
        r#type: service.kind,
        organization_id: service.organization_id.to_string(),
        app_id: service.app_id.to_string(),
        updated_at: Some(service.updated_at),
        created_at: Some(service.created_at),
        status: service.status,
        messages: service.messages.clone(),
        version: Int64(service.version),
        state: Some(state(service)),
        active_deployment_id: id(service.active_deployment_id),
        latest_deployment_id: id(service.latest_deployment_id),
        life_cycle: Some(life_cycle(service)),
        project_id: id(service.project_id),
        service_account_id: String::new(),
    }
}

pub(crate) fn life_cycle(service: &record::Service) -> ServiceLifeCycle {
    ServiceLifeCycle {
        delete_after_sleep: i64::from(service.delete_after_sleep_seconds),
        delete_after_create: i64::from(service.delete_after_create_seconds),
    }
}

pub(crate) fn scalings(service: &record::Service) -> Vec<ManualServiceScaling> {
    service
        .manual_scaling
        .iter()
        .map(|scaling| ManualServiceScaling {
            scopes: scaling.scopes.clone(),
            instances: i64::from(scaling.instances),
        })
        .collect()
}

fn state(service: &record::Service) -> ServiceState {
    ServiceState {
        desired_deployment: Some(DesiredDeployment {
            groups: vec![DesiredDeploymentGroup {
                name: DEPLOYMENT_GROUP.to_owned(),
                deployment_ids: service
                    .latest_deployment_id
                    .iter()
                    .map(ToString::to_string)
                    .collect(),
            }],
        }),
        auto_release: Some(AutoRelease { groups: Vec::new() }),
    }
}
