//! The endpoints, one file a resource: decode, call the store, show the answer.

use crate::endpoint::Endpoint;

pub(crate) mod accounts;
pub(crate) mod apps;
pub(crate) mod catalog;
pub(crate) mod compose;
pub(crate) mod credentials;
pub(crate) mod deployments;
pub(crate) mod domains;
pub(crate) mod events;
pub(crate) mod helpers;
pub(crate) mod instance_snapshots;
pub(crate) mod instances;
pub(crate) mod model_limits;
pub(crate) mod model_routes;
pub(crate) mod models;
pub(crate) mod neutral;
pub(crate) mod organizations;
pub(crate) mod pools;
pub(crate) mod projects;
pub(crate) mod quotas;
pub(crate) mod regional_deployments;
pub(crate) mod secrets;
pub(crate) mod services;
pub(crate) mod snapshots;
pub(crate) mod usages;
pub(crate) mod volumes;

/// Every endpoint of the contract.
pub(crate) fn endpoints() -> Vec<Endpoint> {
    [
        accounts::endpoints(),
        apps::endpoints(),
        catalog::endpoints(),
        compose::endpoints(),
        credentials::endpoints(),
        deployments::endpoints(),
        domains::endpoints(),
        instance_snapshots::endpoints(),
        events::endpoints(),
        helpers::endpoints(),
        instances::endpoints(),
        model_limits::endpoints(),
        model_routes::endpoints(),
        models::endpoints(),
        neutral::endpoints(),
        organizations::endpoints(),
        pools::endpoints(),
        projects::endpoints(),
        quotas::endpoints(),
        regional_deployments::endpoints(),
        secrets::endpoints(),
        services::endpoints(),
        snapshots::endpoints(),
        usages::endpoints(),
        volumes::endpoints(),
        crate::streams::endpoints(),
    ]
    .concat()
}
