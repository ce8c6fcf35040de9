//! Where a question may go: to the service that `model` names or, when it names a route, to those that the route leads to,
//! in the order in which they are tried.
//!
//! A route comes before a service of its name, so that it can be put in front of one. It leads to services alone, never to
//! another route, and only to those that the caller could name: one who is limited to a project stays in it. A service
//! that runs outside of the route's regions is passed over, whatever its definition was when the route was made.

use std::sync::Arc;

use rand::RngExt as _;
use tram_planner::model_route;
use tram_store::record;

use super::{
    error::Refusal,
    find::{self, Target},
};
use crate::{auth::Caller, error::Error, known::Reading, state::ApiState, wire::model_route::SetModelRoute};

/// Most targets of a route, and most fallbacks: each is looked up when one of them may have changed.
pub(crate) const TARGETS_MAX: usize = 16;
/// See [`TARGETS_MAX`].
pub(crate) const FALLBACKS_MAX: usize = 8;
/// Largest weight: a thousandth is as fine as traffic is divided.
pub(crate) const WEIGHT_MAX: u32 = 1000;

/// Longest name whose places are kept: names of services and routes are shorter, sources of models mostly.
const KNOWN_NAME_MAX_BYTES: usize = 256;

/// Where a question may go.
#[derive(Debug)]
pub(super) struct Ways {
    /// In the order in which they are tried; at least one.
    pub(super) targets: Vec<Target>,
    /// What records call the model, where that is not what its engine calls it.
    pub(super) asked: Option<String>,
}

/// Where a name leads, before chance decides. The same for all who ask in an organization or a project of it.
#[derive(Debug)]
pub(crate) struct Places {
    /// Of those among which a question draws, before the fallbacks.
    weights: Vec<u32>,
    /// Those with weights, then the fallbacks in their order; at least one.
    targets: Vec<Target>,
    /// What records call the model, where that is not what its engine calls it.
    asked: Option<String>,
}

/// All ways of a question to `model`.
pub(super) async fn ways(api: &ApiState, caller: &Caller, model: &str) -> Result<Ways, Refusal> {
    let places = places(api, caller, model).await?;
    let fallbacks = places.targets.len().saturating_sub(places.weights.len());
    let draw = rand::rng().random::<f64>();
    let order = model_route::order(&places.weights, fallbacks, draw);
    Ok(Ways {
        targets: order
            .into_iter()
            .filter_map(|at| places.targets.get(at).cloned())
            .collect(),
        asked: places.asked.clone(),
    })
}

/// Where `model` leads, by what the store says now.
async fn places(api: &ApiState, caller: &Caller, model: &str) -> Result<Arc<Places>, Refusal> {
    let reading = Reading::begin(api.store.revision());
    let key = (caller.organization, caller.project, model.to_owned());
    if let Some(known) = api.known.places.get(reading, &key) {
        return Ok(known);
    }
    let found = Arc::new(match api.store.model_route(caller.organization, model).await? {
        Some(route) => of_route(api, caller, &route).await?,
        None => of_service(api, caller, model).await?,
    });
    if model.len() <= KNOWN_NAME_MAX_BYTES {
        api.known.places.keep(reading, key, Arc::clone(&found));
    }
    Ok(found)
}

async fn of_service(api: &ApiState, caller: &Caller, model: &str) -> Result<Places, Refusal> {
    let service = find::find(api, caller, model).await?;
    Ok(Places {
        weights: vec![1],
        asked: service.adapter.as_ref().map(|_| model.to_owned()),
        targets: vec![service.target(api).await?],
    })
}

async fn of_route(api: &ApiState, caller: &Caller, route: &record::ModelRoute) -> Result<Places, Refusal> {
    let known = read(route);
    let mut places = Places {
        weights: Vec::new(),
        targets: Vec::new(),
        asked: Some(route.name.clone()),
    };
    let mut why = String::new();
    for target in &known.targets {
        match allowed(api, caller, &known, &target.model).await? {
            Ok(found) => {
                places.targets.push(found);
                places.weights.push(u32::try_from(target.weight).unwrap_or(1));
            }
            Err(reason) => why = reason,
        }
    }
    for model in &known.fallbacks {
        match allowed(api, caller, &known, model).await? {
            Ok(found) => places.targets.push(found),
            Err(reason) => why = reason,
        }
    }
    if places.targets.is_empty() {
        let message = format!(
            "route `{}` leads to no model that can be asked: {why}",
            route.name
        );
        let status = http::StatusCode::SERVICE_UNAVAILABLE;
        return Err(Refusal::new(status, message)
            .of("model")
            .coded("route_leads_nowhere"));
    }
    Ok(places)
}

/// What is kept of a route.
pub(super) fn read(route: &record::ModelRoute) -> SetModelRoute {
    serde_json::from_value(route.ways.clone()).unwrap_or_else(|error| {
        tracing::warn!(route = %route.name, %error, "a stored route to models cannot be read");
        SetModelRoute::default()
    })
}

/// Where a place of a route leads, if the route may lead there and somebody can be asked, else why not.
async fn allowed(
    api: &ApiState,
    caller: &Caller,
    route: &SetModelRoute,
    model: &str,
) -> Result<Result<Target, String>, Refusal> {
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
    match service.target(api).await {
        Ok(target) => Ok(Ok(target)),
        // The others can be asked all the same.
        Err(refusal) if refusal.status.is_client_error() => Ok(Err(refusal.message)),
        Err(refusal) => Err(refusal),
    }
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
