//! Which service a model's name means: one of the caller's organization that serves a model.
//!
//! A name is the service's, the service's with its app before it (`app/service`), or the model's own where one service
//! serves it; an adapter of it stands behind a colon (`service:adapter`). A name that can mean several is refused with all of them, never guessed.

use tram_store::{
    filter::{self, Page},
    record::{App, Deployment, Service},
};
use tram_types::{
    AppId, ProjectId,
    definition::DeploymentDefinition,
    engine::Engine,
    status::{DefinitionType, ServiceType},
};

use super::error::Refusal;
use crate::{auth::Caller, state::ApiState};

/// Longest name that is looked for: sources of models are paths and URLs.
const NAME_MAX_BYTES: usize = 4096;

/// A service that serves a model.
#[derive(Debug, Clone)]
pub(super) struct ModelService {
    pub(super) app: App,
    pub(super) service: Service,
    pub(super) definition: DeploymentDefinition,
    /// Which of its adapters is meant; none: the model as it is.
    pub(super) adapter: Option<String>,
}

/// Where a question goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    /// The host by which the edge knows the service.
    pub(super) host: String,
    /// What comes before the path of the question, without a slash at the end.
    pub(super) prefix: String,
    /// What the engine calls its model.
    pub(super) served_name: String,
    /// What answers.
    pub(super) engine: Engine,
    /// The service's project.
    pub(super) project: Option<ProjectId>,
}

/// The service that `model` means.
pub(super) async fn find(api: &ApiState, caller: &Caller, model: &str) -> Result<ModelService, Refusal> {
    let mut found = named(api, caller, model).await?;
    match (found.pop(), found.is_empty()) {
        (Some(only), true) => Ok(only),
        (None, _) => Err(Refusal::no_such_model(model)),
        (Some(last), false) => {
            found.push(last);
            let mut names: Vec<String> = found.iter().map(ModelService::path).collect();
            names.sort_unstable();
            let message = format!("`model` can mean {}: give one of these", names.join(", "));
            Err(Refusal::bad(message).of("model").coded("ambiguous_model"))
        }
    }
}

/// Every service that a name can mean.
pub(super) async fn named(
    api: &ApiState,
    caller: &Caller,
    model: &str,
) -> Result<Vec<ModelService>, Refusal> {
    let found = without_adapter(api, caller, model).await?;
    let Some((base, adapter)) = model.rsplit_once(':').filter(|_| found.is_empty()) else {
        return Ok(found);
    };
    let mut found = without_adapter(api, caller, base).await?;
    found.retain(|it| it.adapters().any(|known| known == adapter));
    for it in &mut found {
        it.adapter = Some(adapter.to_owned());
    }
    Ok(found)
}

/// The same of a name that means no adapter.
async fn without_adapter(api: &ApiState, caller: &Caller, model: &str) -> Result<Vec<ModelService>, Refusal> {
    if model.len() > NAME_MAX_BYTES {
        return Ok(Vec::new());
    }
    let (app, name) = match model.split_once('/') {
        Some((app, name)) if !name.contains('/') => (Some(app), name),
        _ => (None, model),
    };
    let mut found = services(api, caller, Some(name)).await?;
    found.retain(|it| app.is_none_or(|app| it.app.name == app));
    if found.is_empty() {
        found = services(api, caller, None).await?;
        found.retain(|it| it.source() == model);
    }
    Ok(found)
}

/// The services of the caller that serve models, by name where one is given.
pub(super) async fn services(
    api: &ApiState,
    caller: &Caller,
    name: Option<&str>,
) -> Result<Vec<ModelService>, Refusal> {
    let filter = filter::Services {
        name: name.map(str::to_owned),
        kinds: vec![ServiceType::Web],
        project_id: caller.project,
        ..filter::Services::default()
    };
    let mut page = Page::largest();
    let mut found = Vec::new();
    loop {
        let listed = api
            .store
            .list_services(caller.organization, &filter, page)
            .await?;
        let last = listed.items.len() < page.limit as usize;
        for service in listed.items {
            found.extend(of_model(api, caller, service).await?);
        }
        if last {
            return Ok(found);
        }
        page.offset = page.offset.saturating_add(page.limit);
    }
}

/// The service, if it serves a model. What serves is what counts; before anything did, what is to serve.
async fn of_model(
    api: &ApiState,
    caller: &Caller,
    service: Service,
) -> Result<Option<ModelService>, Refusal> {
    let Some(id) = service.active_deployment_id.or(service.latest_deployment_id) else {
        return Ok(None);
    };
    let deployment: Deployment = match api.store.deployment(caller.organization, id).await {
        Ok(deployment) => deployment,
        // It went while we looked.
        Err(tram_store::Error::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let definition: DeploymentDefinition = match serde_json::from_value(deployment.definition) {
        Ok(definition) => definition,
        Err(error) => {
            tracing::warn!(deployment = %deployment.id, %error, "a stored definition cannot be read");
            return Ok(None);
        }
    };
    if definition.model.is_none() || definition.r#type != DefinitionType::Web {
        return Ok(None);
    }
    match api.store.app(caller.organization, service.app_id).await {
        Ok(app) => Ok(Some(ModelService {
            app,
            service,
            definition,
            adapter: None,
        })),
        Err(tram_store::Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

impl ModelService {
    /// `app/service`, with the adapter behind it.
    pub(super) fn path(&self) -> String {
        let adapter = self.adapter.as_ref().map(|name| format!(":{name}"));
        format!(
            "{}/{}{}",
            self.app.name,
            self.service.name,
            adapter.unwrap_or_default()
        )
    }

    /// The names of its adapters.
    pub(super) fn adapters(&self) -> impl Iterator<Item = &str> {
        let model = self.definition.model.as_ref();
        model
            .into_iter()
            .flat_map(|model| model.adapters.iter().map(|adapter| adapter.name.as_str()))
    }

    /// The model, as its definition names it.
    pub(super) fn source(&self) -> &str {
        self.definition
            .model
            .as_ref()
            .map_or("", |model| model.source.as_str())
    }

    /// What serves it.
    pub(super) fn engine(&self) -> Engine {
        let named = self.definition.model.as_ref().map(|model| model.engine.as_str());
        Engine::named(named.unwrap_or_default()).unwrap_or(Engine::OpenAi)
    }

    /// What its engine calls its model.
    fn served_name(&self) -> &str {
        if let Some(adapter) = &self.adapter {
            return adapter;
        }
        let named = self
            .definition
            .model
            .as_ref()
            .map(|model| model.served_name.as_str());
        named
            .filter(|name| !name.is_empty())
            .unwrap_or(&self.service.name)
    }

    pub(super) async fn target(&self, api: &ApiState) -> Result<Target, Refusal> {
        let Some(host) = host(api, self.app.id).await? else {
            let message = format!("model `{}` has no domain by which it is reached", self.path());
            return Err(Refusal::bad(message).of("model"));
        };
        let routes = self.definition.effective_routes();
        let main = self.definition.main_port();
        let route = routes.iter().find(|route| Some(route.port) == main);
        let Some(route) = route else {
            let message = format!("model `{}` has no route that leads to its engine", self.path());
            return Err(Refusal::bad(message).of("model"));
        };
        Ok(Target {
            host,
            prefix: route.path.trim_end_matches('/').to_owned(),
            served_name: self.served_name().to_owned(),
            engine: self.engine(),
            project: self.service.project_id,
        })
    }
}

/// The domain of the app that is always there comes first: the owner's own may be taken away at any time.
async fn host(api: &ApiState, app: AppId) -> Result<Option<String>, Refusal> {
    let mut domains = api.store.routed_domains_of_app(app).await?;
    let own = format!(".{}", api.settings.base_domain);
    domains.sort_by_key(|domain| !domain.name.ends_with(&own));
    Ok(domains.into_iter().next().map(|domain| domain.name))
}
