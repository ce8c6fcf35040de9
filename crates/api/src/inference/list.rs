//! The models that a caller can ask, as OpenAI's, Mistral's and Anthropic's clients read them.

use std::collections::BTreeMap;

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use serde::Serialize;
use tram_model::memory::{DEFAULT_CONTEXT_LENGTH, context_length};
use tram_store::record;
use tram_types::engine::Engine;

use super::{
    error::Refusal,
    find::{ModelService, named, services},
    ways,
};
use crate::{auth::Caller, state::ApiState};

/// A model, by all three contracts: each client passes over what it does not know.
#[derive(Debug, Serialize)]
struct Shown {
    id: String,
    object: &'static str,
    /// Seconds since 1970.
    created: i64,
    /// Anthropic's: the same as a date.
    created_at: String,
    /// Anthropic's.
    display_name: String,
    owned_by: String,
    /// Mistral's: nobody trained it further here.
    r#type: &'static str,
    /// Mistral's: tokens of context.
    max_context_length: u64,
    /// The model that the service serves.
    root: String,
    /// Of an adapter: what it changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<String>,
    /// Mistral's.
    capabilities: Capabilities,
}

/// What a model can do, as Mistral has it.
#[derive(Debug, Serialize)]
struct Capabilities {
    completion_chat: bool,
    completion_fim: bool,
    function_calling: bool,
    fine_tuning: bool,
    vision: bool,
}

#[derive(Debug, Serialize)]
struct List {
    object: &'static str,
    data: Vec<Shown>,
    /// Anthropic's: all are here.
    has_more: bool,
    first_id: Option<String>,
    last_id: Option<String>,
}

pub(super) async fn all(api: &ApiState, caller: &Caller) -> Result<Response, Refusal> {
    let mut found = services(api, caller, None).await?;
    found.sort_by_key(ModelService::path);
    let mut times: BTreeMap<String, u32> = BTreeMap::new();
    for it in &found {
        *times.entry(it.service.name.clone()).or_default() += 1;
    }
    let id = |it: &ModelService| match times.get(&it.service.name) {
        Some(1) => it.service.name.clone(),
        _ => it.path(),
    };
    let mut data: Vec<Shown> = Vec::with_capacity(found.len());
    for it in &found {
        data.push(shown(api, it, id(it)));
        for adapter in it.adapters() {
            let it = ModelService {
                adapter: Some(adapter.to_owned()),
                ..it.clone()
            };
            data.push(shown(api, &it, format!("{}:{adapter}", id(&it))));
        }
    }
    for route in api.store.model_routes(caller.organization).await? {
        data.extend(of_route(api, caller, &route).await?);
    }
    let id = |model: Option<&Shown>| model.map(|model| model.id.clone());
    Ok(Json(List {
        object: "list",
        has_more: false,
        first_id: id(data.first()),
        last_id: id(data.last()),
        data,
    })
    .into_response())
}

/// A route is shown as the first model that it leads to, under its own name; one that leads nowhere is not there.
async fn of_route(
    api: &ApiState,
    caller: &Caller,
    route: &record::ModelRoute,
) -> Result<Option<Shown>, Refusal> {
    let ways = ways::read(route);
    for model in ways
        .targets
        .iter()
        .map(|target| &target.model)
        .chain(&ways.fallbacks)
    {
        if let [only] = named(api, caller, model).await?.as_slice() {
            return Ok(Some(shown(api, only, route.name.clone())));
        }
    }
    Ok(None)
}

pub(super) async fn one(api: &ApiState, caller: &Caller, name: &str) -> Result<Response, Refusal> {
    if let Some(route) = api.store.model_route(caller.organization, name).await? {
        return match of_route(api, caller, &route).await? {
            Some(shown) => Ok(Json(shown).into_response()),
            None => Err(Refusal::no_such_model(name)),
        };
    }
    let found = named(api, caller, name).await?;
    match found.as_slice() {
        [only] => Ok(Json(shown(api, only, name.to_owned())).into_response()),
        _ => Err(Refusal::no_such_model(name)),
    }
}

fn shown(api: &ApiState, it: &ModelService, id: String) -> Shown {
    const MICROS_OF_A_SECOND: i64 = 1_000_000;
    let known = api.models.as_ref().and_then(|models| models.find(it.source()));
    let chats = known
        .as_ref()
        .is_none_or(|model| model.gguf.has_chat_template && !model.gguf.is_embedding);
    let asked = it
        .definition
        .model
        .as_ref()
        .map_or(0, |model| model.context_length);
    let asked = u64::try_from(asked).unwrap_or(0);
    Shown {
        created_at: it.service.created_at.to_string(),
        display_name: id.clone(),
        id,
        object: "model",
        created: it.service.created_at.as_micros() / MICROS_OF_A_SECOND,
        owned_by: it.service.organization_id.to_string(),
        r#type: "base",
        max_context_length: known
            .as_ref()
            .map_or(DEFAULT_CONTEXT_LENGTH, |model| context_length(&model.gguf, asked)),
        root: it.source().to_owned(),
        parent: it.adapter.as_ref().map(|_| it.service.name.clone()),
        capabilities: Capabilities {
            completion_chat: chats,
            completion_fim: it.engine() == Engine::Tram
                && known.as_ref().is_some_and(|model| model.gguf.fills_in),
            function_calling: chats,
            fine_tuning: false,
            vision: false,
        },
    }
}
