//! Services: made, listed, paused, resumed, redeployed, scaled by hand, deleted. Updates are in [`update`].

use tram_store::{
    filter,
    intent::{NewDeployment, NewService},
    record::{self, Desired, ManualScaling},
};
use tram_types::{
    AppId, FieldViolation, OrganizationId, ProjectId, ServiceId,
    definition::{DeploymentDefinition, REGION_SCOPE_PREFIX},
    names::check_service_name,
    status::{DefinitionType, DeploymentStatus, ServiceStatus, ServiceType, TriggerType},
    validate::SCALE_MAX,
};

use super::organizations::project_of_service;
use crate::{
    definition::{self, Trigger, all_secrets},
    endpoint::{Call, Endpoint, delete, get, patch, post, put},
    error::Error,
    query::{Nothing, Page},
    state::ApiState,
    views::{self, count, deployment::Beside, part},
    wire::service::{
        AutocompleteReply, AutocompleteRequest, CreateService, CreateServiceReply, DeleteServiceReply,
        DeleteServiceScalingReply, GetServiceReply, GetServiceScalingReply, ListServicesReply,
        PauseServiceReply, RedeployReply, RedeployRequestInfo, ResumeServiceReply, Service, ServiceLifeCycle,
        UpdateServiceScalingReply, UpdateServiceScalingRequest,
    },
};

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
        get("/v1/services/{id}/scale", "GetServiceScaling", read_scaling),
        put("/v1/services/{id}/scale", "UpdateServiceScaling", update_scaling),
        delete("/v1/services/{id}/scale", "DeleteServiceScaling", remove_scaling),
        post("/v1/services-autocomplete", "Autocomplete", autocomplete),
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

/// What to make of a request for a service that is in order.
pub(crate) struct Accepted {
    pub(crate) name: String,
    pub(crate) definition: DeploymentDefinition,
    pub(crate) life_cycle: (u32, u32),
}

/// Checks a request for a service without the app's other services. Fields are prefixed with `prefix`.
pub(crate) async fn accept(
    api: &ApiState,
    organization: OrganizationId,
    project: Option<ProjectId>,
    body: &CreateService,
    prefix: &str,
) -> Result<Accepted, Error> {
    if !body.instance_snapshot_id.is_empty() {
        return Err(Error::NotImplemented(
            "starting from an instance snapshot is not available on this installation yet".to_owned(),
        ));
    }
    let Some(mut definition) = body.definition.clone() else {
        return Err(Error::field(format!("{prefix}definition"), "must be given"));
    };
    definition::check_supported(&definition)?;
    let mut wrong = Vec::new();
    let (field, name) = match body.name.as_str() {
        "" => ("definition.name", definition.name.clone()),
        name => ("name", name.to_owned()),
    };
    if let Err(rule) = check_service_name(&name) {
        wrong.push(FieldViolation::new(field, rule));
    }
    definition.name.clone_from(&name);
    let life_cycle = life_cycle(body.life_cycle.as_ref(), &mut wrong);
    wrong.extend(definition::violations(api, organization, project, &definition).await?);
    if wrong.is_empty() {
        return Ok(Accepted {
            name,
            definition,
            life_cycle,
        });
    }
    for violation in &mut wrong {
        violation.field.insert_str(0, prefix);
    }
    Err(Error::Invalid(wrong))
}

/// The delays after which a service goes: after its creation, after falling asleep.
pub(crate) fn life_cycle(given: Option<&ServiceLifeCycle>, wrong: &mut Vec<FieldViolation>) -> (u32, u32) {
    let given = given.cloned().unwrap_or_default();
    let mut seconds = |name: &str, value: i64| {
        u32::try_from(value)
            .ok()
            .filter(|seconds| *seconds <= LIFE_CYCLE_MAX_SECONDS)
            .unwrap_or_else(|| {
                wrong.push(FieldViolation::new(
                    format!("life_cycle.{name}"),
                    format!("must be between 0 (never) and {LIFE_CYCLE_MAX_SECONDS} seconds"),
                ));
                0
            })
    };
    (
        seconds("delete_after_create", given.delete_after_create),
        seconds("delete_after_sleep", given.delete_after_sleep),
    )
}

/// Longest delay before a service goes by itself: a year. More is meant as never.
pub(crate) const LIFE_CYCLE_MAX_SECONDS: u32 = 366 * 24 * 3600;

/// Refuses paths that another service of the app leads to. Sandboxes are reached by their key first of all, so
/// several of them may share an app.
pub(crate) async fn check_paths(
    api: &ApiState,
    organization: OrganizationId,
    app: AppId,
    service: Option<ServiceId>,
    wanted: &DeploymentDefinition,
    prefix: &str,
) -> Result<(), Error> {
    let routes = wanted.effective_routes();
    if routes.is_empty() {
        return Ok(());
    }
    let others: Vec<record::Service> = of_app(api, organization, app)
        .await?
        .into_iter()
        .filter(|other| Some(other.id) != service && other.desired != Desired::Delete)
        .filter(|other| wanted.r#type != DefinitionType::Sandbox || other.kind != ServiceType::Sandbox)
        .collect();
    let mut wrong = Vec::new();
    for chunk in others.chunks(filter::PAGE_ITEMS_MAX as usize) {
        let filter = filter::Deployments {
            ids: chunk
                .iter()
                .filter_map(|other| other.latest_deployment_id)
                .collect(),
            ..filter::Deployments::default()
        };
        if filter.ids.is_empty() {
            continue;
        }
        let deployments = api
            .store
            .list_deployments(organization, &filter, filter::Page::largest())
            .await?;
        for deployment in deployments.items {
            let claimed = part::<DeploymentDefinition>(&deployment.definition).effective_routes();
            let owner = chunk.iter().find(|other| other.id == deployment.service_id);
            for (index, route) in routes.iter().enumerate() {
                if claimed.iter().any(|other| same_path(&other.path, &route.path)) {
                    let field = match wanted.routes.is_empty() {
                        true => "definition.routes".to_owned(),
                        false => format!("definition.routes.{index}.path"),
                    };
                    wrong.push(FieldViolation::new(
                        format!("{prefix}{field}"),
                        format!(
                            "path `{}` already leads to service `{}` of this app",
                            route.path,
                            owner.map_or("", |owner| owner.name.as_str())
                        ),
                    ));
                }
            }
        }
    }
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(Error::Invalid(wrong))
    }
}

fn same_path(one: &str, other: &str) -> bool {
    one.trim_end_matches('/') == other.trim_end_matches('/')
}

/// What the store is to make of an accepted request.
pub(crate) fn new_service<Q, B>(
    call: &Call<Q, B>,
    app_id: AppId,
    project_id: Option<ProjectId>,
    accepted: Accepted,
) -> Result<NewService, Error> {
    let trigger = Trigger {
        kind: TriggerType::Unknown,
        created_by: created_by(call),
        status: DeploymentStatus::Pending,
        skip_build: false,
    };
    let definition = accepted.definition;
    Ok(NewService {
        id: ServiceId::random(),
        organization_id: call.caller.organization,
        project_id,
        app_id,
        name: accepted.name,
        kind: definition.r#type.into(),
        delete_after_create_seconds: accepted.life_cycle.0,
        delete_after_sleep_seconds: accepted.life_cycle.1,
        deployment: definition::deployment(&call.api, &definition, trigger, None)?,
        proxy_ports: definition::proxied_ports(&definition),
    })
}

async fn create(call: Call<DryRun, CreateService>) -> Result<CreateServiceReply, Error> {
    let organization = call.caller.organization;
    let project = project_of_service(&call, &call.body.project_id).await?;
    let accepted = accept(&call.api, organization, project, &call.body, "").await?;
    if call.query.dry_run {
        // Clients check before the app exists, with an id of their own making.
        return Ok(CreateServiceReply {
            service: Some(Service {
                name: accepted.name,
                r#type: accepted.definition.r#type.into(),
                organization_id: organization.to_string(),
                app_id: call.body.app_id.clone(),
                ..Service::default()
            }),
        });
    }
    let app: AppId = match call.body.app_id.parse() {
        Ok(id) => call.api.store.app(organization, id).await?.id,
        Err(error) => return Err(Error::field("app_id", format!("{error}"))),
    };
    let _turn = call.api.deploying.lock().await;
    check_paths(&call.api, organization, app, None, &accepted.definition, "").await?;
    let new = new_service(&call, app, project, accepted)?;
    let made = call.api.store.create_service(new).await?;
    Ok(CreateServiceReply {
        service: Some(views::service::service(&made.service)),
    })
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
) -> Result<NewDeployment, Error> {
    let latest = latest(&call.api, service).await?;
    let definition: DeploymentDefinition = part(&latest.definition);
    let trigger = Trigger {
        kind,
        created_by: created_by(call),
        status: DeploymentStatus::Pending,
        skip_build,
    };
    definition::deployment(&call.api, &definition, trigger, Some(&part(&latest.metadata)))
}

async fn resume(call: Call<Resume>) -> Result<ResumeServiceReply, Error> {
    let id: ServiceId = call.id("id")?;
    let organization = call.caller.organization;
    let service = call.api.store.service(organization, id).await?;
    let again = deployed_again(&call, &service, TriggerType::Resume, call.query.skip_build).await?;
    call.api.store.resume_service(organization, id, again).await?;
    Ok(ResumeServiceReply {})
}

async fn redeploy(call: Call<Nothing, RedeployRequestInfo>) -> Result<RedeployReply, Error> {
    let id: ServiceId = call.id("id")?;
    let organization = call.caller.organization;
    let service = call.api.store.service(organization, id).await?;
    if service.desired == Desired::Pause {
        return Err(Error::Precondition(
            "this service is paused: resume it, which deploys it again".to_owned(),
        ));
    }
    let again = deployed_again(&call, &service, TriggerType::Unknown, call.body.skip_build).await?;
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

async fn read_scaling(call: Call) -> Result<GetServiceScalingReply, Error> {
    let id: ServiceId = call.id("id")?;
    let service = call.api.store.service(call.caller.organization, id).await?;
    Ok(GetServiceScalingReply {
        scalings: views::service::scalings(&service),
    })
}

async fn update_scaling(
    call: Call<Nothing, UpdateServiceScalingRequest>,
) -> Result<UpdateServiceScalingReply, Error> {
    let id: ServiceId = call.id("id")?;
    let organization = call.caller.organization;
    let service = call.api.store.service(organization, id).await?;
    let definition: DeploymentDefinition = part(&latest(&call.api, &service).await?.definition);
    let mut wrong = Vec::new();
    let scalings = &call.body.scalings;
    if scalings.is_empty() {
        wrong.push(FieldViolation::new(
            "scalings",
            "must have at least one entry; DELETE ends the override",
        ));
    }
    if scalings.len() > definition.regions.len().saturating_add(1) {
        wrong.push(FieldViolation::new(
            "scalings",
            "may have one entry for each region of the service",
        ));
    }
    let mut wanted = Vec::with_capacity(scalings.len());
    for (index, scaling) in scalings.iter().enumerate().take(definition.regions.len() + 1) {
        if !(1..=SCALE_MAX).contains(&scaling.instances) {
            wrong.push(FieldViolation::new(
                format!("scalings.{index}.instances"),
                format!("must be between 1 and {SCALE_MAX}"),
            ));
        }
        for (number, scope) in scaling.scopes.iter().enumerate() {
            let region = scope.strip_prefix(REGION_SCOPE_PREFIX);
            if !region.is_some_and(|region| definition.regions.iter().any(|known| known == region)) {
                wrong.push(FieldViolation::new(
                    format!("scalings.{index}.scopes.{number}"),
                    "must be `region:` and one of the service's regions",
                ));
            }
        }
        wanted.push(ManualScaling {
            scopes: scaling.scopes.clone(),
            instances: u32::try_from(scaling.instances).unwrap_or(1),
        });
    }
    if !wrong.is_empty() {
        return Err(Error::Invalid(wrong));
    }
    call.api
        .store
        .set_manual_scaling(organization, id, wanted)
        .await?;
    Ok(UpdateServiceScalingReply {})
}

async fn remove_scaling(call: Call) -> Result<DeleteServiceScalingReply, Error> {
    let id: ServiceId = call.id("id")?;
    call.api
        .store
        .set_manual_scaling(call.caller.organization, id, Vec::new())
        .await?;
    Ok(DeleteServiceScalingReply {})
}

/// Names that may stand between `{{` and `}}` in a definition.
async fn autocomplete(call: Call<Nothing, AutocompleteRequest>) -> Result<AutocompleteReply, Error> {
    const SYSTEM: [&str; 25] = [
        "KOYEB_APP_ID",
        "KOYEB_APP_NAME",
        "KOYEB_DC",
        "KOYEB_DOCKER_REF",
        "KOYEB_GIT_BRANCH",
        "KOYEB_GIT_COMMIT_AUTHOR",
        "KOYEB_GIT_COMMIT_MESSAGE",
        "KOYEB_GIT_REPOSITORY",
        "KOYEB_GIT_SHA",
        "KOYEB_HYPERVISOR_ID",
        "KOYEB_INSTANCE_ID",
        "KOYEB_INSTANCE_MEMORY_MB",
        "KOYEB_INSTANCE_TYPE",
        "KOYEB_ORGANIZATION_ID",
        "KOYEB_ORGANIZATION_NAME",
        "KOYEB_PRIVILEGED",
        "KOYEB_PUBLIC_DOMAIN",
        "KOYEB_REGION",
        "KOYEB_REGIONAL_DEPLOYMENT_ID",
        "KOYEB_REPLICA_INDEX",
        "KOYEB_SERVICE_ID",
        "KOYEB_SERVICE_NAME",
        "KOYEB_SERVICE_PRIVATE_DOMAIN",
        "HOSTNAME",
        "PORT",
    ];
    let definition = call.body.definition.unwrap_or_default();
    let secrets = all_secrets(&call.api, call.caller.organization).await?;
    let mut system_env: Vec<String> = SYSTEM.map(str::to_owned).to_vec();
    let ports = definition.effective_ports();
    system_env.extend(
        ports
            .iter()
            .map(|port| format!("KOYEB_PORT_{}_PROTOCOL", port.port)),
    );
    Ok(AutocompleteReply {
        secrets: secrets.into_iter().map(|secret| secret.name).collect(),
        user_env: definition.env.into_iter().map(|entry| entry.key).collect(),
        system_env,
    })
}
