//! What a request for a service must be like, whatever else its app has. See [`super::claims`] for the rest.

use tram_store::intent::NewService;
use tram_types::{
    AppId, FieldViolation, OrganizationId, ProjectId, ServiceId,
    definition::DeploymentDefinition,
    names::check_service_name,
    status::{DeploymentStatus, TriggerType},
};

use super::{super::instance_snapshots, created_by};
use crate::{
    definition::{self, Trigger},
    endpoint::Call,
    error::Error,
    state::ApiState,
    wire::service::{CreateService, ServiceLifeCycle},
};

/// What to make of a request for a service that is in order.
pub(crate) struct Accepted {
    pub(crate) name: String,
    pub(crate) definition: DeploymentDefinition,
    pub(crate) life_cycle: (u32, u32),
    /// What its instances start from; empty: from the image.
    pub(crate) instance_snapshot_id: String,
}

/// The name a request gives its service: its own, or the definition's.
pub(crate) fn name_of(body: &CreateService) -> &str {
    match (body.name.as_str(), &body.definition) {
        ("", Some(definition)) => &definition.name,
        (name, _) => name,
    }
}

/// Checks a request for a service without the app's other services. Fields are prefixed with `prefix`.
pub(crate) async fn accept(
    api: &ApiState,
    organization: OrganizationId,
    project: Option<ProjectId>,
    body: &CreateService,
    prefix: &str,
) -> Result<Accepted, Error> {
    let mut definition = match &body.definition {
        Some(definition) => definition.clone(),
        None => instance_snapshots::definition_of(api, organization, &body.instance_snapshot_id)
            .await?
            .ok_or_else(|| Error::field(format!("{prefix}definition"), "must be given"))?,
    };
    if !body.instance_snapshot_id.is_empty() {
        let snapshot = &body.instance_snapshot_id;
        instance_snapshots::start_from(api, organization, snapshot, &mut definition, prefix).await?;
    }
    definition::check_supported(&definition)?;
    let mut wrong = Vec::new();
    let name = name_of(body).to_owned();
    if let Err(rule) = check_service_name(&name) {
        let field = match body.name.as_str() {
            "" => "definition.name",
            _ => "name",
        };
        wrong.push(FieldViolation::new(field, rule));
    }
    if !body.service_account_id.is_empty() {
        wrong.push(FieldViolation::new(
            "service_account_id",
            "service accounts are not available on this installation: leave it out",
        ));
    }
    definition.name.clone_from(&name);
    let life_cycle = life_cycle(body.life_cycle.as_ref(), &mut wrong);
    wrong.extend(definition::violations(api, organization, project, None, &definition).await?);
    if wrong.is_empty() {
        return Ok(Accepted {
            name,
            definition,
            life_cycle,
            instance_snapshot_id: body.instance_snapshot_id.clone(),
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
    let mut deployment = definition::deployment(&call.api, &definition, trigger, None)?;
    deployment.instance_snapshot_id = accepted.instance_snapshot_id;
    Ok(NewService {
        id: ServiceId::random(),
        organization_id: call.caller.organization,
        project_id,
        app_id,
        name: accepted.name,
        kind: definition.r#type.into(),
        delete_after_create_seconds: accepted.life_cycle.0,
        delete_after_sleep_seconds: accepted.life_cycle.1,
        deployment,
        proxy_ports: definition::proxied_ports(&definition),
    })
}
