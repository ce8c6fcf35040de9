//! Where a question may go: to the service that `model` names or, when it names a route, to those that the route leads to,
//! in the order in which they are tried.
//!
//! A route comes before a service of its name, so that it can be put in front of one. It leads to services alone, never to
//! another route, and only to those that the caller could name: one who is limited to a project stays in it. A service
//! that runs outside of the route's regions is passed over, whatever its definition was when the route was made.

use rand::RngExt as _;
use tram_planner::model_route;
use tram_store::record;

use super::{
    error::Refusal,
    find::{self, ModelService, Target},
};
use crate::{auth::Caller, error::Error, state::ApiState, wire::model_route::SetModelRoute};

/// Most targets of a route, and most fallbacks: each is looked up for each question.
pub(crate) const TARGETS_MAX: usize = 16;
/// See [`TARGETS_MAX`].
pub(crate) const FALLBACKS_MAX: usize = 8;
/// Largest weight: a thousandth is as fine as traffic is divided.
pub(crate) const WEIGHT_MAX: u32 = 1000;

/// Where a question may go.
#[derive(Debug)]
pub(super) struct Ways {
    /// In the order in which they are tried; at least one.
    pub(super) targets: Vec<Target>,
    /// What records call the model, where that is not what its engine calls it.
    pub(super) asked: Option<String>,
}

/// All ways of a question to `model`.
pub(super) async fn ways(api: &ApiState, caller: &Caller, model: &str) -> Result<Ways, Refusal> {
    let Some(route) = api.store.model_route(caller.organization, model).await? else {
        let service = find::find(api, caller, model).await?;
        return Ok(Ways {
            asked: service.adapter.as_ref().map(|_| model.to_owned()),
            targets: vec![service.target(api).await?],
        });
    };
    let known = read(&route);
    let mut weights = Vec::new();
    let mut services = Vec::new();
    let mut why = String::new();
    for target in &known.targets {
        match allowed(api, caller, &known, &target.model).await? {
            Ok(service) => {
                services.push(service);
                weights.push(u32::try_from(target.weight).unwrap_or(1));
            }
            Err(reason) => why = reason,
        }
    }
    let mut fallbacks = 0;
    for model in &known.fallbacks {
        match allowed(api, caller, &known, model).await? {
            Ok(service) => {
                services.push(service);
                fallbacks += 1;
            }
            Err(reason) => why = reason,
        }
    }
    let draw = rand::rng().random::<f64>();
    let mut targets = Vec::new();
    for at in model_route::order(&weights, fallbacks, draw) {
        if let Some(service) = services.get(at) {
            match service.target(api).await {
                Ok(target) => targets.push(target),
                // The others can be asked all the same.
                Err(refusal) if refusal.status.is_client_error() => why = refusal.message,
                Err(refusal) => return Err(refusal),
            }
        }
    }
    if targets.is_empty() {
        let message = format!("route `{model}` leads to no model that can be asked: {why}");
        let status = http::StatusCode::SERVICE_UNAVAILABLE;
        return Err(Refusal::new(status, message)
            .of("model")
            .coded("route_leads_nowhere"));
    }
    Ok(Ways {
        targets,
        asked: Some(model.to_owned()),
    })
}

/// What is kept of a route.
pub(super) fn read(route: &record::ModelRoute) -> SetModelRoute {
    serde_json::from_value(route.ways.clone()).unwrap_or_else(|error| {
        tracing::warn!(route = %route.name, %error, "a stored route to models cannot be read");
        SetModelRoute::default()
    })
}

/// The one service that a place of a route means, if the route may lead there, else why not.
async fn allowed(
    api: &ApiState,
    caller: &Caller,
    route: &SetModelRoute,
    model: &str,
) -> Result<Result<ModelService, String>, Refusal> {
    let service = match find::find(api, caller, model).await {
        Ok(service) => service,
        Err(refusal) if refusal.status.is_client_error() => return Ok(Err(refusal.message)),
        Err(refusal) => return Err(refusal),
    };
    let is_within = |written: &String| {
        let region = api.catalog.region(written).map_or(written, |region| &region.id);
        route.regions.contains(region)
    };
    if !route.regions.is_empty() && !service.definition.regions.iter().all(is_within) {
        let regions = route.regions.join(", ");
        return Ok(Err(format!("model `{model}` runs outside of {regions}")));
    }
    Ok(Ok(service))
}

/// Why a route cannot lead to `model`, if it cannot.
pub(crate) async fn leads_to(api: &ApiState, caller: &Caller, model: &str) -> Result<Option<String>, Error> {
    match find::find(api, caller, model).await {
        Ok(_) => Ok(None),
        Err(refusal) if refusal.status.is_client_error() => Ok(Some(refusal.message)),
        Err(refusal) => Err(Error::internal(
            "looking for a model",
            std::io::Error::other(refusal.message),
        )),
    }
}
