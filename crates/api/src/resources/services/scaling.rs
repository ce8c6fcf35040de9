//! Scaling by hand: a number of instances that holds whatever the definition says.

use tram_store::record::ManualScaling;
use tram_types::{
    FieldViolation, ServiceId,
    definition::{DeploymentDefinition, REGION_SCOPE_PREFIX},
    validate::{LIST_MAX, SCALE_MAX, VIOLATIONS_MAX},
};

use super::latest;
use crate::{
    endpoint::Call,
    error::Error,
    query::Nothing,
    views::{self, part},
    wire::service::{
        DeleteServiceScalingReply, GetServiceScalingReply, UpdateServiceScalingReply,
        UpdateServiceScalingRequest,
    },
};

pub(super) async fn read_scaling(call: Call) -> Result<GetServiceScalingReply, Error> {
    let id: ServiceId = call.id("id")?;
    let service = call.api.store.service(call.caller.organization, id).await?;
    Ok(GetServiceScalingReply {
        scalings: views::service::scalings(&service),
    })
}

pub(super) async fn update_scaling(
    call: Call<Nothing, UpdateServiceScalingRequest>,
) -> Result<UpdateServiceScalingReply, Error> {
    let id: ServiceId = call.id("id")?;
    let organization = call.caller.organization;
    let service = call.api.store.service(organization, id).await?;
    let definition: DeploymentDefinition = part(&latest(&call.api, &service).await?.definition);
    let mut wrong = Vec::new();
    let scalings = &call.body.scalings;
    if !definition.volumes.is_empty() && scalings.iter().any(|scaling| scaling.instances > 1) {
        wrong.push(FieldViolation::new(
            "scalings",
            "a service with a volume has at most one instance, since a volume is used by one instance at a time",
        ));
    }
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
        if wrong.len() >= VIOLATIONS_MAX {
            break;
        }
        if !(1..=SCALE_MAX).contains(&scaling.instances) {
            wrong.push(FieldViolation::new(
                format!("scalings.{index}.instances"),
                format!("must be between 1 and {SCALE_MAX}"),
            ));
        }
        if scaling.scopes.len() > LIST_MAX {
            wrong.push(FieldViolation::new(
                format!("scalings.{index}.scopes"),
                format!("may have at most {LIST_MAX} entries"),
            ));
        }
        for (number, scope) in scaling.scopes.iter().enumerate().take(LIST_MAX) {
            let region = scope.strip_prefix(REGION_SCOPE_PREFIX);
            if !region.is_some_and(|region| definition.regions.iter().any(|known| known == region)) {
                wrong.push(FieldViolation::new(
                    format!("scalings.{index}.scopes.{number}"),
                    "must be `region:` and one of the service's regions",
                ));
            }
        }
        wanted.push(ManualScaling {
            keeps_awake: false,
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

pub(super) async fn remove_scaling(call: Call) -> Result<DeleteServiceScalingReply, Error> {
    let id: ServiceId = call.id("id")?;
    call.api
        .store
        .set_manual_scaling(call.caller.organization, id, Vec::new())
        .await?;
    Ok(DeleteServiceScalingReply {})
}
