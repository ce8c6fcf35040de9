//! Deployments: listed, shown, cancelled; which instances make up each replica.

use std::collections::BTreeMap;

use tram_store::{
    filter,
    record::{self, ProxyPort},
};
use tram_types::{
    AppId, DeploymentId, ServiceId,
    definition::DeploymentDefinition,
    status::{DeploymentStatus, InstanceStatus},
};

use crate::{
    endpoint::{Call, Endpoint, get, post},
    error::Error,
    query::Page,
    resources::instances::LIVE,
    scaling,
    views::{self, count, deployment::Beside},
    wire::deployment::{
        CancelDeploymentReply, DeploymentScalingDecision, GetDeploymentReply, GetDeploymentScalingReply,
        GetDeploymentScalingReplyItem, ListDeploymentsReply,
    },
};

crate::query! {
    /// Which deployments.
    struct Filters {
        page: Page,
        app_id: Option<AppId>,
        service_id: Option<ServiceId>,
        statuses: Vec<DeploymentStatus>,
        ids: Vec<DeploymentId>,
    }
    /// Which replicas.
    struct Replicas {
        region: Option<String>,
        replica_index: Option<u32>,
    }
}

pub(crate) fn endpoints() -> Vec<Endpoint> {
    vec![
        get("/v1/deployments", "ListDeployments", list),
        get("/v1/deployments/{id}", "GetDeployment", read),
        post("/v1/deployments/{id}/cancel", "CancelDeployment", cancel),
        get("/v1/deployment/{id}/scaling", "GetDeploymentScaling", scaling),
    ]
}

async fn list(call: Call<Filters>) -> Result<ListDeploymentsReply, Error> {
    let query = call.query;
    let organization = call.caller.organization;
    let filter = filter::Deployments {
        app_id: query.app_id,
        service_id: query.service_id,
        project_id: call.caller.project,
        statuses: query.statuses,
        ids: query.ids,
    };
    let page = query.page;
    let store = &call.api.store;
    let listed = store
        .list_deployments(organization, &filter, page.stored())
        .await?;
    let mut services: Vec<ServiceId> = listed
        .items
        .iter()
        .filter(|deployment| proxies(deployment))
        .map(|deployment| deployment.service_id)
        .collect();
    services.sort_unstable();
    services.dedup();
    let proxy_ports = match services.is_empty() {
        true => Vec::new(),
        false => store.proxy_ports(organization, &services).await?,
    };
    let beside = Beside {
        proxy_ports: &proxy_ports,
        proxy_host: &call.api.settings.proxy_host,
    };
    let total = count(listed.count);
    Ok(ListDeploymentsReply {
        deployments: listed
            .items
            .iter()
            .map(|deployment| views::deployment::item(deployment, beside))
            .collect(),
        limit: page.limit,
        offset: page.offset,
        count: total,
        has_next: page.has_next(total),
    })
}

/// Whether a definition asks for public TCP ports at all.
fn proxies(deployment: &record::Deployment) -> bool {
    deployment
        .definition
        .get("proxy_ports")
        .and_then(serde_json::Value::as_array)
        .is_some_and(|ports| !ports.is_empty())
}

async fn read(call: Call) -> Result<GetDeploymentReply, Error> {
    let id: DeploymentId = call.id("id")?;
    let organization = call.caller.organization;
    let store = &call.api.store;
    let deployment = store.deployment(organization, id).await?;
    let service = store.service(organization, deployment.service_id).await?;
    let proxy_ports: Vec<ProxyPort> = match proxies(&deployment) {
        true => store.proxy_ports(organization, &[service.id]).await?,
        false => Vec::new(),
    };
    let beside = Beside {
        proxy_ports: &proxy_ports,
        proxy_host: &call.api.settings.proxy_host,
    };
    Ok(GetDeploymentReply {
        deployment: Some(views::deployment::deployment(&deployment, Some(&service), beside)),
    })
}

async fn cancel(call: Call) -> Result<CancelDeploymentReply, Error> {
    let id: DeploymentId = call.id("id")?;
    call.api
        .store
        .request_cancel(call.caller.organization, id)
        .await?;
    Ok(CancelDeploymentReply {})
}

async fn scaling(call: Call<Replicas>) -> Result<GetDeploymentScalingReply, Error> {
    let id: DeploymentId = call.id("id")?;
    let organization = call.caller.organization;
    let deployment = call.api.store.deployment(organization, id).await?;
    let filter = filter::Instances {
        deployment_id: Some(id),
        replica_index: call.query.replica_index,
        statuses: LIVE.to_vec(),
        ..filter::Instances::default()
    };
    let listed = call
        .api
        .store
        .list_instances(organization, &filter, filter::Page::largest())
        .await?;
    let region = call.query.region.as_deref().map(|given| {
        let known = call.api.catalog.region(given);
        known.map_or(given, |region| region.id.as_str())
    });
    let asked = |it: &str| region.is_none_or(|region| region == it);
    let mut replicas: BTreeMap<(&str, u32), Vec<_>> = BTreeMap::new();
    for instance in &listed.items {
        if asked(&instance.region) {
            replicas
                .entry((&instance.region, instance.replica_index))
                .or_default()
                .push(views::instance::instance(instance));
        }
    }
    let mut decisions = decisions(&call, &deployment).await?;
    decisions.retain(|decision| asked(&decision.region));
    Ok(GetDeploymentScalingReply {
        replicas: replicas
            .into_iter()
            .map(
                |((region, replica_index), instances)| GetDeploymentScalingReplyItem {
                    region: region.to_owned(),
                    replica_index: i64::from(replica_index),
                    instances,
                },
            )
            .collect(),
        decisions,
    })
}

/// How many instances there should be in each region of a deployment, and why.
async fn decisions(
    call: &Call<Replicas>,
    deployment: &record::Deployment,
) -> Result<Vec<DeploymentScalingDecision>, Error> {
    let organization = call.caller.organization;
    let store = &call.api.store;
    let service = store.service(organization, deployment.service_id).await?;
    let definition: DeploymentDefinition =
        serde::Deserialize::deserialize(&deployment.definition).unwrap_or_default();
    let of_it = filter::RegionalDeployments {
        deployment_id: Some(deployment.id),
        ..filter::RegionalDeployments::default()
    };
    let regional = store
        .list_regional_deployments(organization, &of_it, filter::Page::largest())
        .await?;
    let healthy = filter::Instances {
        deployment_id: Some(deployment.id),
        statuses: vec![InstanceStatus::Healthy],
        ..filter::Instances::default()
    };
    let healthy = store
        .list_instances(organization, &healthy, filter::Page::largest())
        .await?;
    let mut by_load = call.api.scaling.decisions(service.id, deployment.id);
    let mut decisions = Vec::new();
    for region in regional.items.iter().map(|it| it.region.as_str()) {
        let known = by_load.iter().position(|it| it.region == region);
        if let Some(known) = known {
            decisions.push(scaling::told(by_load.swap_remove(known)));
            continue;
        }
        let ready = healthy.items.iter().filter(|it| it.region == region).count();
        let ready = i64::try_from(ready).unwrap_or(i64::MAX);
        decisions.extend(scaling::without_load(
            &service,
            deployment,
            &definition,
            &call.api.catalog,
            region,
            ready,
        ));
    }
    Ok(decisions)
}
