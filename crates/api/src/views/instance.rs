//! Instances as clients see them.

use tram_store::record;

use crate::wire::instance::{Instance, InstanceListItem};

pub(crate) fn instance(instance: &record::Instance) -> Instance {
    Instance {
        id: instance.id.to_string(),
        created_at: Some(instance.created_at),
        updated_at: Some(instance.updated_at),
        organization_id: instance.organization_id.to_string(),
        app_id: instance.app_id.to_string(),
        service_id: instance.service_id.to_string(),
        regional_deployment_id: instance.regional_deployment_id.to_string(),
        allocation_id: instance.id.to_string(),
        r#type: instance.instance_type.clone(),
        replica_index: i64::from(instance.replica_index),
        region: instance.region.clone(),
        datacenter: instance.datacenter.clone(),
        hypervisor: instance.site.clone(),
        status: instance.status,
        messages: instance.messages.clone(),
        started_at: instance.started_at,
        succeeded_at: instance.succeeded_at,
        terminated_at: instance.terminated_at,
        xyz_deployment_id: instance.deployment_id.to_string(),
    }
}

pub(crate) fn item(instance: &record::Instance) -> InstanceListItem {
    InstanceListItem {
        id: instance.id.to_string(),
        created_at: Some(instance.created_at),
        updated_at: Some(instance.updated_at),
        organization_id: instance.organization_id.to_string(),
        app_id: instance.app_id.to_string(),
        service_id: instance.service_id.to_string(),
        regional_deployment_id: instance.regional_deployment_id.to_string(),
        allocation_id: instance.id.to_string(),
        r#type: instance.instance_type.clone(),
        replica_index: i64::from(instance.replica_index),
        region: instance.region.clone(),
        datacenter: instance.datacenter.clone(),
        status: instance.status,
        messages: instance.messages.clone(),
        xyz_deployment_id: instance.deployment_id.to_string(),
    }
}
