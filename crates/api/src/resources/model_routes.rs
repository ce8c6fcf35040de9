//! Names that lead to models: listed, set, taken away. The front follows them (`crate::inference`).
//!
//! A route is named by what requests give as `model`. What it leads to are names as well, which are understood anew for
//! each question: a service that is replaced by another of its name stays where it was.

use tram_store::record;
use tram_types::{FieldViolation, names::check_secret_name};

use crate::{
    endpoint::{Call, Endpoint, delete, get, put},
    error::Error,
    inference::{FALLBACKS_MAX, TARGETS_MAX, WEIGHT_MAX, leads_to},
    query::Nothing,
    views::count,
    wire::model_route::{
        DeleteModelRouteReply, ListModelRoutesReply, ModelRoute, SetModelRoute, SetModelRouteReply,
    },
};

pub(crate) fn endpoints() -> Vec<Endpoint> {
    vec![
        get("/v1/model_routes", "ListModelRoutes", list),
        put("/v1/model_routes/{id}", "SetModelRoute", set),
        delete("/v1/model_routes/{id}", "DeleteModelRoute", remove),
    ]
}

/// Most regions that one names: more than any installation has.
const REGIONS_MAX: usize = 100;

fn shown(route: &record::ModelRoute) -> ModelRoute {
    let ways: SetModelRoute = serde_json::from_value(route.ways.clone()).unwrap_or_default();
    ModelRoute {
        name: route.name.clone(),
        targets: ways.targets,
        fallbacks: ways.fallbacks,
        regions: ways.regions,
        created_at: Some(route.created_at),
        updated_at: Some(route.updated_at),
    }
}

async fn list(call: Call) -> Result<ListModelRoutesReply, Error> {
    let kept = call.api.store.model_routes(call.caller.organization).await?;
    Ok(ListModelRoutesReply {
        count: count(kept.len() as u64),
        routes: kept.iter().map(shown).collect(),
    })
}

async fn set(call: Call<Nothing, SetModelRoute>) -> Result<SetModelRouteReply, Error> {
    let name = call.text("id").to_owned();
    let mut ways = call.body.clone();
    let mut wrong = Vec::new();
    if let Err(rule) = check_secret_name(&name) {
        wrong.push(FieldViolation::new("name", rule));
    }
    if ways.targets.is_empty() || ways.targets.len() > TARGETS_MAX {
        let rule = format!("must be from 1 to {TARGETS_MAX}");
        wrong.push(FieldViolation::new("targets", rule));
    }
    if ways.fallbacks.len() > FALLBACKS_MAX {
        let rule = format!("may be at most {FALLBACKS_MAX}");
        wrong.push(FieldViolation::new("fallbacks", rule));
    }
    if ways.regions.len() > REGIONS_MAX {
        wrong.push(FieldViolation::new(
            "regions",
            format!("may be at most {REGIONS_MAX}"),
        ));
    }
    if !wrong.is_empty() {
        return Err(Error::Invalid(wrong));
    }
    for (index, target) in ways.targets.iter_mut().enumerate() {
        if target.weight == 0 {
            target.weight = 1;
        }
        if !(1..=i64::from(WEIGHT_MAX)).contains(&target.weight) {
            let rule = format!("must be from 1 to {WEIGHT_MAX}");
            wrong.push(FieldViolation::new(format!("targets.{index}.weight"), rule));
        }
        if let Some(rule) = leads_to(&call.api, &call.caller, &target.model).await? {
            wrong.push(FieldViolation::new(format!("targets.{index}.model"), rule));
        }
    }
    for (index, model) in ways.fallbacks.iter().enumerate() {
        if let Some(rule) = leads_to(&call.api, &call.caller, model).await? {
            wrong.push(FieldViolation::new(format!("fallbacks.{index}"), rule));
        }
    }
    for (index, region) in ways.regions.iter_mut().enumerate() {
        match call.api.catalog.region(region) {
            Some(known) => region.clone_from(&known.id),
            None => {
                let rule = format!("there is no region `{region}` here");
                wrong.push(FieldViolation::new(format!("regions.{index}"), rule));
            }
        }
    }
    if !wrong.is_empty() {
        return Err(Error::Invalid(wrong));
    }
    let (store, organization) = (&call.api.store, call.caller.organization);
    let kept = store
        .set_model_route(organization, &name, crate::definition::value(&ways)?)
        .await?;
    Ok(SetModelRouteReply {
        route: Some(shown(&kept)),
    })
}

async fn remove(call: Call) -> Result<DeleteModelRouteReply, Error> {
    let (organization, name) = (call.caller.organization, call.text("id").to_owned());
    call.api.store.delete_model_route(organization, &name).await?;
    Ok(DeleteModelRouteReply {})
}
