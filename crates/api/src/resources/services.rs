//! Services: made, listed, paused, resumed, redeployed, scaled by hand, deleted. Updates are in [`update`].

use tokio::sync::OwnedMutexGuard;
use tram_store::{
    filter,
    intent::NewDeployment,
    record::{self, Desired},
};
use tram_types::{
    AppId, OrganizationId, ProjectId, ServiceId,
    definition::{DeploymentDefinition, DeploymentStrategy},
    status::{DeploymentStatus, DeploymentStrategyType, ServiceStatus, ServiceType, TriggerType},
};

use self::{
    accept::{Accepted, accept, new_service},
    claims::Claims,
};
use super::organizations::project_of_service;
use crate::{
    definition::{self, Trigger},
    endpoint::{Call, Endpoint, delete, get, patch, post, put},
    error::Error,
    query::{Nothing, Page},
    state::ApiState,
    views::{
        self, count,
        deployment::Beside,
        part,
        service::{CANARY_GROUP, DEPLOYMENT_GROUP},
    },
    wire::service::{
        CreateService, CreateServiceReply, DeleteServiceReply, GetServiceReply, ListServicesReply,
        PauseServiceReply, RedeployReply, RedeployRequestInfo, ResumeServiceReply, Service,
    },
};

pub(crate) mod accept;
mod autocomplete;
pub(crate) mod claims;
mod scaling;
pub(crate) mod update;

crate::query! {
    /// Which services.
    struct Filters {
        page: Page,
        app_id: Option<AppId>,
        name: Option<String>,
        types: Vec<ServiceType>,
        statuses: Vec<ServiceStatus>,
        regions: Vec<String>,
        project_id: Option<ProjectId>,
        ids: Vec<ServiceId>,
    }
    /// Whether to check only.
    struct DryRun {
        dry_run: bool,
    }
    /// How to resume.
    struct Resume {
        skip_build: bool,
        use_cache: bool,
    }
}

pub(crate) fn endpoints() -> Vec<Endpoint> {
    vec![
        get("/v1/services", "ListServices", list),
        post("/v1/services", "CreateService", create),
        get("/v1/services/{id}", "GetService", read),
        put("/v1/services/{id}", "UpdateService", update::update),
        patch("/v1/services/{id}", "UpdateService2", update::update),
        delete("/v1/services/{id}", "DeleteService", remove),
        post("/v1/services/{id}/pause", "PauseService", pause),
        post("/v1/services/{id}/resume", "ResumeService", resume),
        post("/v1/services/{id}/redeploy", "ReDeploy", redeploy),
        get(
            "/v1/services/{id}/scale",
            "GetServiceScaling",
            scaling::read_scaling,
        ),
        put(
            "/v1/services/{id}/scale",
            "UpdateServiceScaling",
            scaling::update_scaling,
        ),
        delete(
            "/v1/services/{id}/scale",
            "DeleteServiceScaling",
            scaling::remove_scaling,
        ),
        post(
            "/v1/services-autocomplete",
            "Autocomplete",
            autocomplete::autocomplete,
        ),
    ]
}

async fn list(call: Call<Filters>) -> Result<ListServicesReply, Error> {
    let query = call.query;
    let resolved = |id: &String| {
        let region = call.api.catalog.region(id);
        region.map_or_else(|| id.clone(), |region| region.id.clone())
    };
    let filter = filter::Services {
        app_id: query.app_id,
        project_id: query.project_id.or(call.caller.project),
        name: query.name,
        kinds: query.types,
        statuses: query.statuses,
        regions: query.regions.iter().map(resolved).collect(),
        ids: query.ids,
    };
    let page = query.page;
    let listed = call
        .api
        .store
        .list_services(call.caller.organization, &filter, page.stored())
        .await?;
    let total = count(listed.count);
    Ok(ListServicesReply {
        services: listed.items.iter().map(views::service::item).collect(),
        limit: page.limit,
        offset: page.offset,
        count: total,
        has_next: page.has_next(total),
    })
}

/// Every service of an app.
pub(crate) async fn of_app(
    api: &ApiState,
    organization: OrganizationId,
    app: AppId,
) -> Result<Vec<record::Service>, Error> {
    let filter = filter::Services {
        app_id: Some(app),
        ..filter::Services::default()
    };
    let mut all = Vec::new();
    let mut page = filter::Page::largest();
    loop {
        let listed = api.store.list_services(organization, &filter, page).await?;
        let last = listed.items.len() < page.limit as usize;
        all.extend(listed.items);
        if last {
            return Ok(all);
        }
        page.offset = page.offset.saturating_add(page.limit);
    }
}

/// Who asks, as deployments remember it.
pub(crate) fn created_by<Q, B>(call: &Call<Q, B>) -> String {
    match call.caller.user.as_str() {
        "" => call.caller.credential.to_string(),
        user => user.to_owned(),
    }
}

async fn create(call: Call<DryRun, CreateService>) -> Result<CreateServiceReply, Error> {
    let organization = call.caller.organization;
    let project = project_of_service(&call, &call.body.project_id).await?;
    let accepted = accept(&call.api, organization, project, &call.body, "").await?;
    let Some(app) = app_of(&call).await? else {
        return Ok(would_make(&call, accepted));
    };
    let _turn = call.api.turns.of(app).await;
    let definition = &accepted.definition;
    Claims::read(&call.api, organization, app, Some(definition.r#type))
        .await?
        .check(definition, |_| false, "")?;
    if call.query.dry_run {
        check_name_free(&call.api, organization, app, &accepted.name).await?;
        return Ok(would_make(&call, accepted));
    }
    let new = new_service(&call, app, project, accepted)?;
    let made = call.api.store.create_service(new).await?;
    Ok(CreateServiceReply {
        service: Some(views::service::service(&made.service)),
    })
}

/// The app of a new service. Clients check before the app exists, with an id of their own making or none: a dry run
/// may have no app.
async fn app_of(call: &Call<DryRun, CreateService>) -> Result<Option<AppId>, Error> {
    let given = call.body.app_id.as_str();
    if call.query.dry_run && given.is_empty() {
        return Ok(None);
    }
    let id = given
        .parse::<AppId>()
        .map_err(|error| Error::field("app_id", format!("{error}")))?;
    match call.api.store.app(call.caller.organization, id).await {
        Ok(app) => Ok(Some(app.id)),
        Err(tram_store::Error::NotFound { .. }) if call.query.dry_run => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// What a dry run shows of a service that could be made.
fn would_make(call: &Call<DryRun, CreateService>, accepted: Accepted) -> CreateServiceReply {
    CreateServiceReply {
        service: Some(Service {
            name: accepted.name,
            r#type: accepted.definition.r#type.into(),
            organization_id: call.caller.organization.to_string(),
            app_id: call.body.app_id.clone(),
            ..Service::default()
        }),
    }
}

/// Refuses, as the store does when it records, a name that another service of the app has.
pub(crate) async fn check_name_free(
    api: &ApiState,
    organization: OrganizationId,
    app: AppId,
    name: &str,
) -> Result<(), Error> {
    match api.store.service_by_name(organization, app, name).await? {
        Some(_) => Err(Error::field("name", "already exists")),
        None => Ok(()),
    }
}

async fn read(call: Call) -> Result<GetServiceReply, Error> {
    let id: ServiceId = call.id("id")?;
    let service = call.api.store.service(call.caller.organization, id).await?;
    Ok(GetServiceReply {
        service: Some(views::service::service(&service)),
    })
}

async fn remove(call: Call) -> Result<DeleteServiceReply, Error> {
    let id: ServiceId = call.id("id")?;
    call.api
        .store
        .set_service_desired(call.caller.organization, id, Desired::Delete)
        .await?;
    Ok(DeleteServiceReply {})
}

async fn pause(call: Call) -> Result<PauseServiceReply, Error> {
    let id: ServiceId = call.id("id")?;
    call.api
        .store
        .set_service_desired(call.caller.organization, id, Desired::Pause)
        .await?;
    Ok(PauseServiceReply {})
}

/// A service, and its app's turn to change it: nobody records another deployment of it until the turn is dropped.
pub(crate) async fn at_its_turn(
    api: &ApiState,
    organization: OrganizationId,
    id: ServiceId,
) -> Result<(record::Service, OwnedMutexGuard<()>), Error> {
    let app = api.store.service(organization, id).await?.app_id;
    let turn = api.turns.of(app).await;
    Ok((api.store.service(organization, id).await?, turn))
}

/// The newest deployment of a service.
pub(crate) async fn latest(api: &ApiState, service: &record::Service) -> Result<record::Deployment, Error> {
    let id = service.latest_deployment_id.ok_or(Error::Internal {
        doing: "looking for the newest deployment of a service",
        source: None,
    })?;
    Ok(api.store.deployment(service.organization_id, id).await?)
}

/// A deployment of what a service was last defined as.
pub(crate) async fn deployed_again<Q, B>(
    call: &Call<Q, B>,
    service: &record::Service,
    kind: TriggerType,
    skip_build: bool,
    strategy: Option<DeploymentStrategyType>,
) -> Result<NewDeployment, Error> {
    let latest = latest(&call.api, service).await?;
    let mut definition: DeploymentDefinition = part(&latest.definition);
    if let Some(r#type) = strategy {
        definition.strategy = Some(DeploymentStrategy { r#type });
    }
    let trigger = Trigger {
        kind,
        created_by: created_by(call),
        status: DeploymentStatus::Pending,
        skip_build,
    };
    let mut again = definition::deployment(&call.api, &definition, trigger, Some(&part(&latest.metadata)))?;
    again.instance_snapshot_id = latest.instance_snapshot_id;
    Ok(again)
}

async fn resume(call: Call<Resume>) -> Result<ResumeServiceReply, Error> {
    let id: ServiceId = call.id("id")?;
    let organization = call.caller.organization;
    let (service, _turn) = at_its_turn(&call.api, organization, id).await?;
    if service.desired == Desired::Run && service.sleeping_since.is_some() {
        // Asleep and not paused: it goes on from where it is, without a deployment.
        call.api.store.wake_service(id).await?;
        return Ok(ResumeServiceReply {});
    }
    let again = deployed_again(&call, &service, TriggerType::Resume, call.query.skip_build, None).await?;
    call.api.store.resume_service(organization, id, again).await?;
    Ok(ResumeServiceReply {})
}

async fn redeploy(call: Call<Nothing, RedeployRequestInfo>) -> Result<RedeployReply, Error> {
    let id: ServiceId = call.id("id")?;
    let organization = call.caller.organization;
    let (service, _turn) = at_its_turn(&call.api, organization, id).await?;
    if service.desired == Desired::Pause {
        return Err(Error::Precondition(
            "this service is paused: resume it, which deploys it again".to_owned(),
        ));
    }
    let strategy = match call.body.deployment_group.as_str() {
        "" | DEPLOYMENT_GROUP => None,
        CANARY_GROUP => Some(DeploymentStrategyType::Canary),
        _ => {
            return Err(Error::field(
                "deployment_group",
                format!(
                    "must be `{DEPLOYMENT_GROUP}`, or `{CANARY_GROUP}` to try it on a tenth of the requests first"
                ),
            ));
        }
    };
    let again = deployed_again(
        &call,
        &service,
        TriggerType::Unknown,
        call.body.skip_build,
        strategy,
    )
    .await?;
    let made = call
        .api
        .store
        .add_deployment(
            organization,
            id,
            &tram_store::intent::ServiceEdit::default(),
            again,
            &[],
        )
        .await?;
    let beside = Beside {
        proxy_ports: &made.proxy_ports,
        proxy_host: &call.api.settings.proxy_host,
    };
    Ok(RedeployReply {
        deployment: Some(views::deployment::deployment(
            &made.deployment,
            Some(&made.service),
            beside,
        )),
    })
}
