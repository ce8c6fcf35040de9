//! Updates of services: what changes, and whether that needs a deployment.
//!
//! A definition that stays the same makes no deployment, so that changing only the life cycle leaves the running
//! instances and their connections alone. One exception: when the newest deployment has ended without success, the
//! same definition is a request to try again.

use serde_json::{Value, json};
use tram_store::{intent::ServiceEdit, record};
use tram_types::{
    FieldViolation, ServiceId,
    definition::DeploymentDefinition,
    names::check_service_name,
    status::{DeploymentStatus, TriggerType},
};

use super::{accept::life_cycle, at_its_turn, check_name_free, claims::Claims, created_by, latest};
use crate::{
    body::decode_value,
    definition::{self, Trigger},
    endpoint::Call,
    error::Error,
    merge::{masked, patch},
    views::{self, part},
    wire::service::{UpdateService, UpdateServiceReply},
};

crate::query! {
    /// How to update.
    struct Update {
        update_mask: Option<String>,
        dry_run: bool,
    }
}

pub(crate) async fn update(call: Call<Update, UpdateService>) -> Result<UpdateServiceReply, Error> {
    let id: ServiceId = call.id("id")?;
    let organization = call.caller.organization;
    let (service, _turn) = at_its_turn(&call.api, organization, id).await?;
    let newest = latest(&call.api, &service).await?;
    let wanted = wanted(&call, &newest)?;
    if !wanted.instance_snapshot_id.is_empty() {
        return Err(Error::NotImplemented(
            "a service cannot be moved to an instance snapshot: create another service from it".to_owned(),
        ));
    }
    let mut wrong = Vec::new();
    let mut edit = ServiceEdit::default();
    if wanted.life_cycle.is_some() {
        let (after_create, after_sleep) = life_cycle(wanted.life_cycle.as_ref(), &mut wrong);
        edit.delete_after_create_seconds = Some(after_create);
        edit.delete_after_sleep_seconds = Some(after_sleep);
    }
    let current: DeploymentDefinition = part(&newest.definition);
    let mut definition = wanted.definition.unwrap_or_else(|| current.clone());
    definition::check_supported(&definition)?;
    if definition.name.is_empty() {
        definition.name.clone_from(&service.name);
    }
    if definition.name != service.name {
        if let Err(rule) = check_service_name(&definition.name) {
            wrong.push(FieldViolation::new("definition.name", rule));
        }
        edit.name = Some(definition.name.clone());
    }
    if service.kind != definition.r#type.into() {
        edit.kind = Some(definition.r#type.into());
    }
    let deploys = definition != current || again(&newest) && wanted.given || wanted.save_only;
    if definition != current {
        let project = service.project_id;
        wrong.extend(definition::violations(&call.api, organization, project, Some(id), &definition).await?);
    }
    if !wrong.is_empty() {
        return Err(Error::Invalid(wrong));
    }
    if definition != current {
        Claims::read(&call.api, organization, service.app_id, Some(definition.r#type))
            .await?
            .check(&definition, |name| name == service.name, "")?;
    }
    if call.query.dry_run {
        if let Some(name) = &edit.name {
            check_name_free(&call.api, organization, service.app_id, name).await?;
        }
        return Ok(UpdateServiceReply {
            service: Some(views::service::service(&service)),
        });
    }
    let service = if deploys {
        let trigger = Trigger {
            kind: TriggerType::Unknown,
            created_by: created_by(&call),
            status: match wanted.save_only {
                true => DeploymentStatus::Stashed,
                false => DeploymentStatus::Pending,
            },
            skip_build: wanted.skip_build,
        };
        let previous = part(&newest.metadata);
        let mut new = definition::deployment(&call.api, &definition, trigger, Some(&previous))?;
        // A disk fits its image alone: over another one the service starts afresh.
        let image = |definition: &DeploymentDefinition| definition.docker.as_ref().map(|it| it.image.clone());
        if image(&definition) == image(&current) {
            new.instance_snapshot_id.clone_from(&newest.instance_snapshot_id);
        }
        let ports = definition::proxied_ports(&definition);
        call.api
            .store
            .add_deployment(organization, id, &edit, new, &ports)
            .await?
            .service
    } else if edit == ServiceEdit::default() {
        service
    } else {
        call.api.store.update_service(organization, id, &edit).await?
    };
    Ok(UpdateServiceReply {
        service: Some(views::service::service(&service)),
    })
}

/// Whether the same definition is worth another deployment: the newest one will never serve.
fn again(newest: &record::Deployment) -> bool {
    matches!(
        newest.status,
        DeploymentStatus::Error | DeploymentStatus::Canceled | DeploymentStatus::Stashed
    )
}

/// What a request asks for, after mask and merge.
struct Wanted {
    definition: Option<DeploymentDefinition>,
    /// Whether the request has a definition at all.
    given: bool,
    life_cycle: Option<crate::wire::service::ServiceLifeCycle>,
    save_only: bool,
    skip_build: bool,
    instance_snapshot_id: String,
}

fn wanted(call: &Call<Update, UpdateService>, newest: &record::Deployment) -> Result<Wanted, Error> {
    let mask = call.query.update_mask.as_deref().unwrap_or_default();
    let replaces = call.method == http::Method::PUT && mask.is_empty();
    let mut given = masked(&call.given, mask);
    if !replaces
        && let Some(definition) = given
            .get_mut("definition")
            .filter(|definition| !definition.is_null())
    {
        *definition = patch(&newest.definition, definition);
    }
    let has_definition = given
        .get("definition")
        .is_some_and(|definition| !definition.is_null());
    let body: UpdateService = match given {
        Value::Object(_) => decode_value(&given)?,
        _ => decode_value(&json!({}))?,
    };
    Ok(Wanted {
        definition: body.definition,
        given: has_definition,
        life_cycle: body.life_cycle,
        save_only: call.body.save_only,
        skip_build: call.body.skip_build,
        instance_snapshot_id: body.instance_snapshot_id,
    })
}
