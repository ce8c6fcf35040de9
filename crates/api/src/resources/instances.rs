//! Instances: listed and shown. Commands in them are in [`crate::streams`].

use tram_store::filter;
use tram_types::{
    AppId, DeploymentId, InstanceId, RegionalDeploymentId, ServiceId, Timestamp, status::InstanceStatus,
};

use crate::{
    endpoint::{Call, Endpoint, get},
    error::Error,
    query::{Order, Page},
    views::{self, count},
    wire::instance::{GetInstanceReply, ListInstancesReply},
};

/// Statuses of instances that hold something.
pub(crate) const LIVE: [InstanceStatus; 5] = [
    InstanceStatus::Allocating,
    InstanceStatus::Starting,
    InstanceStatus::Healthy,
    InstanceStatus::Unhealthy,
    InstanceStatus::Sleeping,
];

crate::query! {
    /// Which instances.
    struct Filters {
        page: Page,
        app_id: Option<AppId>,
        service_id: Option<ServiceId>,
        deployment_id: Option<DeploymentId>,
        regional_deployment_id: Option<RegionalDeploymentId>,
        allocation_id: Option<InstanceId>,
        replica_index: Option<u32>,
        statuses: Vec<InstanceStatus>,
        order: Order,
        starting_time: Option<Timestamp>,
        ending_time: Option<Timestamp>,
        ids: Vec<InstanceId>,
    }
}

pub(crate) fn endpoints() -> Vec<Endpoint> {
    vec![
        get("/v1/instances", "ListInstances", list),
        get("/v1/instances/{id}", "GetInstance", read),
    ]
}

async fn list(call: Call<Filters>) -> Result<ListInstancesReply, Error> {
    let query = call.query;
    let mut ids = query.ids;
    if let Some(id) = query.allocation_id {
        if !ids.is_empty() && !ids.contains(&id) {
            return Ok(ListInstancesReply {
                limit: query.page.limit,
                offset: query.page.offset,
                order: query.order.as_str().to_owned(),
                ..ListInstancesReply::default()
            });
        }
        ids = vec![id];
    }
    let filter = filter::Instances {
        app_id: query.app_id,
        service_id: query.service_id,
        deployment_id: query.deployment_id,
        regional_deployment_id: query.regional_deployment_id,
        replica_index: query.replica_index,
        statuses: query.statuses,
        ids,
        starting_time: query.starting_time,
        ending_time: query.ending_time,
        order: query.order.stored(),
    };
    let page = query.page;
    let listed = call
        .api
        .store
        .list_instances(call.caller.organization, &filter, page.stored())
        .await?;
    Ok(ListInstancesReply {
        instances: listed.items.iter().map(views::instance::item).collect(),
        limit: page.limit,
        offset: page.offset,
        count: count(listed.count),
        order: query.order.as_str().to_owned(),
    })
}

async fn read(call: Call) -> Result<GetInstanceReply, Error> {
    let id: InstanceId = call.id("id")?;
    let instance = call.api.store.instance(call.caller.organization, id).await?;
    Ok(GetInstanceReply {
        instance: Some(views::instance::instance(&instance)),
    })
}
