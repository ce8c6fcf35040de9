//! Compose: an app with its services in one call, all or nothing. What is there already is updated.

use std::collections::{BTreeMap, BTreeSet};

use tram_store::{
    intent::{AppEdit, ComposeApp, ComposeService, ServiceEdit},
    record,
};
use tram_types::{
    FieldViolation, ProjectId,
    definition::DeploymentDefinition,
    status::{DefinitionType, DeploymentStatus, TriggerType},
};

use super::{
    apps::{self, new_app},
    domains,
    organizations::project_of_service,
    services::{
        accept::{accept, name_of, new_service},
        claims::{self, Claims},
        created_by, latest,
    },
};
use crate::{
    definition::{self, Trigger},
    endpoint::{Call, Endpoint, post},
    error::Error,
    query::Nothing,
    views::{self, part},
    wire::{
        compose::{ComposeReply, CreateCompose},
        service::CreateService,
    },
};

/// Most services of one composition: far above real files, low enough for one transaction.
const SERVICES_MAX: usize = 100;

pub(crate) fn endpoints() -> Vec<Endpoint> {
    vec![post("/v1/compose", "Compose", compose)]
}

async fn compose(call: Call<Nothing, CreateCompose>) -> Result<ComposeReply, Error> {
    let organization = call.caller.organization;
    let Some(app) = &call.body.app else {
        return Err(Error::field("app", "must be given"));
    };
    if call.body.services.len() > SERVICES_MAX {
        return Err(Error::field(
            "services",
            format!("may have at most {SERVICES_MAX} entries"),
        ));
    }
    let existing = call.api.store.app_by_name(organization, &app.name).await?;
    let project = project_of_service(&call, &app.project_id).await?;
    // Of an app that this call makes nobody else knows.
    let _turn = match &existing {
        Some(app) => Some(call.api.turns.of(app.id).await),
        None => None,
    };
    let claims = match &existing {
        Some(app) => Some(Claims::read(&call.api, organization, app.id, None).await?),
        None => None,
    };
    let (composed_app, app_id) = match &existing {
        Some(known) => {
            let edit = AppEdit {
                delete_when_empty: app
                    .life_cycle
                    .as_ref()
                    .map(|life_cycle| life_cycle.delete_when_empty)
                    .filter(|wanted| *wanted != known.delete_when_empty),
                ..AppEdit::default()
            };
            (ComposeApp::Existing(organization, known.id, edit), known.id)
        }
        None => {
            let new = new_app(organization, app, "app.name")?;
            let id = new.id;
            let domain = domains::auto_assigned(&call.api, organization, id, &new.name).await?;
            (ComposeApp::New(new, Some(domain)), id)
        }
    };
    let mut services = Vec::with_capacity(call.body.services.len());
    let given: BTreeSet<&str> = call.body.services.iter().map(name_of).collect();
    let mut names = BTreeSet::new();
    let mut paths = BTreeSet::new();
    let mut unchanged = BTreeMap::new();
    for (index, body) in call.body.services.iter().enumerate() {
        let prefix = format!("services.{index}.");
        let known = match &existing {
            Some(app) => {
                let name = name_of(body);
                call.api.store.service_by_name(organization, app.id, name).await?
            }
            None => None,
        };
        let project = project_of_entry(&call, body, known.as_ref(), project, &prefix).await?;
        let accepted = accept(&call.api, organization, project, body, &prefix).await?;
        if !names.insert(accepted.name.clone()) {
            return Err(Error::field(format!("{prefix}name"), "already exists"));
        }
        // Sandboxes are reached by their key first of all, so several may lead to the same path.
        let is_sandbox = accepted.definition.r#type == DefinitionType::Sandbox;
        for route in accepted.definition.effective_routes() {
            if !is_sandbox && !paths.insert(claims::key(&route.path).to_owned()) {
                return Err(Error::Invalid(vec![FieldViolation::new(
                    format!("{prefix}definition.routes"),
                    format!("path `{}` is claimed by two services", route.path),
                )]));
            }
        }
        if let Some(claims) = &claims {
            // What the services of the file lead to now, they lead to no longer.
            claims.check(&accepted.definition, |name| given.contains(name), &prefix)?;
        }
        let Some(service) = known else {
            let new = new_service(&call, app_id, project, accepted)?;
            services.push(ComposeService::New(Box::new(new)));
            continue;
        };
        let newest = latest(&call.api, &service).await?;
        let life_cycle = (
            service.delete_after_create_seconds,
            service.delete_after_sleep_seconds,
        );
        if newest.status == DeploymentStatus::Healthy
            && part::<DeploymentDefinition>(&newest.definition) == accepted.definition
            && life_cycle == accepted.life_cycle
        {
            // Nothing to do, and nothing to wait for: the client polls until the newest deployment is healthy.
            unchanged.insert(index, service);
            continue;
        }
        let trigger = Trigger {
            kind: TriggerType::Unknown,
            created_by: created_by(&call),
            status: DeploymentStatus::Pending,
            skip_build: false,
        };
        let previous = part(&newest.metadata);
        let definition: DeploymentDefinition = accepted.definition;
        let edit = ServiceEdit {
            kind: Some(definition.r#type.into()),
            delete_after_create_seconds: Some(accepted.life_cycle.0),
            delete_after_sleep_seconds: Some(accepted.life_cycle.1),
            name: None,
        };
        let mut new = definition::deployment(&call.api, &definition, trigger, Some(&previous))?;
        new.instance_snapshot_id = accepted.instance_snapshot_id;
        services.push(ComposeService::Existing(service.id, edit, Box::new(new)));
    }
    let made = call.api.store.compose(composed_app, services).await?;
    let mut deployed = made.services.iter().map(|deployed| &deployed.service);
    let all = (0..call.body.services.len()).filter_map(|index| match unchanged.get(&index) {
        Some(service) => Some(service),
        None => deployed.next(),
    });
    Ok(ComposeReply {
        app: Some(apps::show(&call.api, &made.app).await?),
        services: all.map(views::service::service).collect(),
    })
}

/// The project of one of the services: its own when it is there already, else the one it names, else the file's.
async fn project_of_entry(
    call: &Call<Nothing, CreateCompose>,
    body: &CreateService,
    known: Option<&record::Service>,
    of_file: Option<ProjectId>,
    prefix: &str,
) -> Result<Option<ProjectId>, Error> {
    let named = match body.project_id.as_str() {
        "" => None,
        given => project_of_service(call, given)
            .await
            .map_err(|error| match error {
                Error::Invalid(mut wrong) => {
                    for violation in &mut wrong {
                        violation.field.insert_str(0, prefix);
                    }
                    Error::Invalid(wrong)
                }
                other => other,
            })?,
    };
    match known {
        Some(service) if named.is_some() && named != service.project_id => Err(Error::field(
            format!("{prefix}project_id"),
            format!(
                "service `{}` is in another project and cannot move: leave `project_id` out, or delete the service first",
                service.name
            ),
        )),
        Some(service) => Ok(service.project_id),
        None => Ok(named.or(of_file)),
    }
}
