//! Which paths of an app lead to which of its services: no two may claim the same one.

use std::collections::HashMap;

use tram_types::{
    AppId, FieldViolation, OrganizationId,
    definition::DeploymentDefinition,
    status::{DefinitionType, ServiceType},
};

use crate::{error::Error, state::ApiState, views::part};

/// The paths that an app's services lead to. Take the app's turn before it is read.
pub(crate) struct Claims(HashMap<String, Vec<Owner>>);

struct Owner {
    name: String,
    kind: ServiceType,
}

impl Claims {
    /// The claims on an app that may be in the way of definitions of this type.
    pub(crate) async fn read(
        api: &ApiState,
        organization: OrganizationId,
        app: AppId,
        against: Option<DefinitionType>,
    ) -> Result<Self, Error> {
        let without = (against == Some(DefinitionType::Sandbox)).then_some(ServiceType::Sandbox);
        let mut owners: HashMap<String, Vec<Owner>> = HashMap::new();
        for claimed in api.store.claimed_routes(organization, app, without).await? {
            for route in part::<DeploymentDefinition>(&claimed.definition).effective_routes() {
                owners
                    .entry(key(&route.path).to_owned())
                    .or_default()
                    .push(Owner {
                        name: claimed.name.clone(),
                        kind: claimed.kind,
                    });
            }
        }
        Ok(Self(owners))
    }

    /// Refuses paths that another service leads to; `replaced` are the services that the same call defines anew.
    /// Sandboxes are reached by their key first of all, so several of them may share an app. Fields are prefixed with
    /// `prefix`.
    pub(crate) fn check(
        &self,
        wanted: &DeploymentDefinition,
        replaced: impl Fn(&str) -> bool,
        prefix: &str,
    ) -> Result<(), Error> {
        let sandbox = wanted.r#type == DefinitionType::Sandbox;
        let mut wrong = Vec::new();
        for (index, route) in wanted.effective_routes().iter().enumerate() {
            let mut owners = self.0.get(key(&route.path)).into_iter().flatten();
            let Some(owner) = owners
                .find(|owner| !(replaced(&owner.name) || sandbox && owner.kind == ServiceType::Sandbox))
            else {
                continue;
            };
            let field = match wanted.routes.is_empty() {
                true => "definition.routes".to_owned(),
                false => format!("definition.routes.{index}.path"),
            };
            wrong.push(FieldViolation::new(
                format!("{prefix}{field}"),
                format!(
                    "path `{}` already leads to service `{}` of this app",
                    route.path, owner.name
                ),
            ));
        }
        match wrong.is_empty() {
            true => Ok(()),
            false => Err(Error::Invalid(wrong)),
        }
    }
}

/// A slash at the end makes no other path.
pub(crate) fn key(path: &str) -> &str {
    path.trim_end_matches('/')
}
