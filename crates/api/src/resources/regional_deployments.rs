//! Regional deployments: the projections of a deployment on each of its regions.

use tram_store::filter;
use tram_types::{DeploymentId, RegionalDeploymentId};

use crate::{
    endpoint::{Call, Endpoint, get},
    error::Error,
    query::Page,
    views::{self, count},
    wire::regional_deployment::{GetRegionalDeploymentReply, ListRegionalDeploymentsReply},
};

crate::query! {
    /// Which regional deployments.
    struct Filters {
        page: Page,
        deployment_id: Option<DeploymentId>,
        ids: Vec<RegionalDeploymentId>,
    }
}

pub(crate) fn endpoints() -> Vec<Endpoint> {
    vec![
        get("/v1/regional_deployments", "ListRegionalDeployments", list),
        get("/v1/regional_deployments/{id}", "GetRegionalDeployment", read),
    ]
}

async fn list(call: Call<Filters>) -> Result<ListRegionalDeploymentsReply, Error> {
    let page = call.query.page;
    let filter = filter::RegionalDeployments {
        deployment_id: call.query.deployment_id,
        ids: call.query.ids,
    };
    let listed = call
        .api
        .store
        .list_regional_deployments(call.caller.organization, &filter, page.stored())
        .await?;
    let total = count(listed.count);
    Ok(ListRegionalDeploymentsReply {
        regional_deployments: listed
            .items
            .iter()
            .map(views::deployment::regional_item)
            .collect(),
        limit: page.limit,
        offset: page.offset,
        count: total,
        has_next: page.has_next(total),
    })
}

async fn read(call: Call) -> Result<GetRegionalDeploymentReply, Error> {
    let id: RegionalDeploymentId = call.id("id")?;
    let organization = call.caller.organization;
    let store = &call.api.store;
    let regional = store.regional_deployment(organization, id).await?;
    let deployment = store.deployment(organization, regional.deployment_id).await?;
    let service = store.service(organization, regional.service_id).await?;
    let region = call.api.catalog.region(&regional.region);
    let datacenters = region
        .map(|region| region.datacenter.clone())
        .into_iter()
        .collect();
    Ok(GetRegionalDeploymentReply {
        regional_deployment: Some(views::deployment::regional(
            &regional,
            &deployment,
            Some(&service),
            datacenters,
        )),
    })
}
