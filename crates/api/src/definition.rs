//! From a definition that came in to what is kept of it.
//!
//! The definition itself is kept as it came. Beside it goes what is decided once, at the time a deployment is made:
//! the regions it resolves to, the flattened definition of each, and how a sandbox is reached.

use std::collections::{BTreeMap, BTreeSet};

use rand::RngExt;
use serde_json::Value;
use tram_model::memory;
use tram_store::{
    filter,
    intent::{NewDeployment, NewRegionalDeployment},
    record::{Secret, Volume},
};
use tram_types::{
    DeploymentId, FieldViolation, OrganizationId, ProjectId, RegionalDeploymentId, SecretId, ServiceId,
    VolumeId,
    catalog::Catalog,
    definition::{DeploymentDefinition, ModelSource, scoped_to},
    interpolate::{Piece, pieces},
    status::{
        ActorType, DefinitionType, DeploymentMesh, DeploymentStatus, PersistentVolumeStatus,
        RegionalDeploymentMesh, TriggerType,
    },
    validate,
};

use crate::{
    error::Error,
    serve::chain,
    state::ApiState,
    views::service::DEPLOYMENT_GROUP,
    wire::{
        deployment::{DeploymentMetadata, SandboxMetadata, TriggerDeploymentMetadata},
        regional_deployment::{
            Env, Port, RegionalDeploymentDefinition, RegionalDeploymentVolume, Route, Scaling,
        },
    },
};

/// Refuses what this installation cannot carry out yet, before anything else is looked at.
pub(crate) fn check_supported(definition: &DeploymentDefinition) -> Result<(), Error> {
    let missing = if definition.r#type == DefinitionType::Database || definition.database.is_some() {
        "managed databases are not available on this installation yet: run one as a service from an image"
    } else if definition.git.is_some() {
        "building from a git repository is not available on this installation yet: \
         build an image and deploy it with `docker`"
    } else if definition.archive.is_some() {
        "building from an uploaded archive is not available on this installation yet: \
         build an image and deploy it with `docker`"
    } else {
        return Ok(());
    };
    Err(Error::NotImplemented(missing.to_owned()))
}

/// Every rule a definition violates, those that only the store can tell included. `service` is whose it would be, if
/// that is there yet.
pub(crate) async fn violations(
    api: &ApiState,
    organization: OrganizationId,
    project: Option<ProjectId>,
    service: Option<ServiceId>,
    definition: &DeploymentDefinition,
) -> Result<Vec<FieldViolation>, Error> {
    let volumes = usable_volumes(api, organization, project, service, definition).await?;
    let secrets = usable_secrets(api, organization, project, definition).await?;
    let asked: Vec<SecretId> = credentials(definition)
        .flat_map(pieces)
        .filter_map(|piece| match piece {
            Piece::Secret(name) => secrets.get(name).map(|secret| secret.id),
            _ => None,
        })
        .collect();
    let bound = api.store.secret_hosts(organization, &asked).await?;
    Ok(validate::definition(
        definition,
        validate::Context {
            catalog: &api.catalog,
            secret_type: &|name| secrets.get(name).map(|secret| secret.kind),
            is_bound: &|name| {
                secrets
                    .get(name)
                    .is_some_and(|secret| bound.contains_key(&secret.id))
            },
            volume: &|id| volumes.get(id).cloned(),
            model: &|source| known_model(api, source),
            is_system_variable: &validate::is_system_variable,
        },
    ))
}

/// Templates of what callers of routes must know.
fn credentials(definition: &DeploymentDefinition) -> impl Iterator<Item = &str> {
    let policies = definition
        .routes
        .iter()
        .filter_map(|route| route.security_policies.as_ref());
    policies.flat_map(|policy| {
        let passwords = policy.basic_auths.iter().map(|basic| basic.password.as_str());
        passwords.chain(policy.api_keys.iter().map(String::as_str))
    })
}

/// What is known of the model that a definition means.
fn known_model(api: &ApiState, source: &ModelSource) -> Option<validate::KnownModel> {
    let models = api.models.as_ref()?;
    let model = models.find(&source.source)?;
    let context_length = u64::try_from(source.context_length).unwrap_or(0);
    let mut needed_bytes = memory::needed_bytes(&model, context_length);
    let mut adapters = Vec::with_capacity(source.adapters.len());
    for adapter in &source.adapters {
        adapters.push(match models.find(&adapter.source) {
            None => validate::KnownAdapter::Missing,
            Some(found) if !found.gguf.is_adapter => validate::KnownAdapter::Model,
            Some(found) if found.gguf.architecture != model.gguf.architecture => {
                validate::KnownAdapter::Other(found.gguf.architecture)
            }
            Some(found) => {
                needed_bytes = needed_bytes.saturating_add(found.size_bytes);
                validate::KnownAdapter::Fits
            }
        });
    }
    let draft = match Some(source.draft.as_str()).filter(|draft| !draft.is_empty()) {
        None => validate::KnownDraft::Fits,
        Some(name) => match models.find(name) {
            None => validate::KnownDraft::Missing,
            Some(found) if found.gguf.is_adapter => validate::KnownDraft::Adapter,
            Some(found) if found.gguf.is_embedding || model.gguf.is_embedding => {
                validate::KnownDraft::Embedding
            }
            Some(found) => {
                let draft_bytes = memory::draft_bytes(&found, &model.gguf, context_length);
                needed_bytes = needed_bytes.saturating_add(draft_bytes);
                validate::KnownDraft::Fits
            }
        },
    };
    Some(validate::KnownModel {
        draft,
        needed_bytes,
        is_adapter: model.gguf.is_adapter,
        adapters,
        context_length: model.gguf.context_length,
    })
}

/// The secrets a definition may use, by name; none are read when it uses none.
async fn usable_secrets(
    api: &ApiState,
    organization: OrganizationId,
    project: Option<ProjectId>,
    definition: &DeploymentDefinition,
) -> Result<BTreeMap<String, Secret>, Error> {
    if !uses_secrets(definition) {
        return Ok(BTreeMap::new());
    }
    let mut all = all_secrets(api, organization).await?;
    // Of two with one name, the project's own is meant.
    all.sort_by_key(|secret| secret.project_id.is_some());
    Ok(all
        .into_iter()
        .filter(|secret| secret.project_id.is_none() || secret.project_id == project)
        .map(|secret| (secret.name.clone(), secret))
        .collect())
}

/// Every secret of an organization.
pub(crate) async fn all_secrets(api: &ApiState, organization: OrganizationId) -> Result<Vec<Secret>, Error> {
    let mut all = Vec::new();
    let mut page = filter::Page::largest();
    loop {
        let listed = api
            .store
            .list_secrets(organization, &filter::Secrets::default(), page)
            .await?;
        let last = listed.items.len() < page.limit as usize;
        all.extend(listed.items);
        if last {
            return Ok(all);
        }
        page.offset = page.offset.saturating_add(page.limit);
    }
}

/// The volumes a definition names and may use, by id.
async fn usable_volumes(
    api: &ApiState,
    organization: OrganizationId,
    project: Option<ProjectId>,
    service: Option<ServiceId>,
    definition: &DeploymentDefinition,
) -> Result<BTreeMap<String, validate::KnownVolume>, Error> {
    let ids: Vec<VolumeId> = definition
        .volumes
        .iter()
        .filter_map(|volume| volume.id.parse().ok())
        .collect();
    if ids.is_empty() || ids.len() > validate::LIST_MAX {
        return Ok(BTreeMap::new());
    }
    let filter = filter::Volumes {
        ids,
        ..filter::Volumes::default()
    };
    let page = filter::Page::largest();
    let mut listed = api.store.list_volumes(organization, &filter, page).await?;
    let is_others = |volume: &Volume| volume.service_id.is_some_and(|other| Some(other) != service);
    if listed.items.iter().any(is_others) {
        // It may have had it and not want it any more.
        api.store.release_volumes().await?;
        listed = api.store.list_volumes(organization, &filter, page).await?;
    }
    let usable = listed
        .items
        .into_iter()
        .filter(|volume| volume.project_id.is_none() || volume.project_id == project);
    Ok(usable
        .map(|volume| {
            let obstacle = match volume.service_id {
                _ if volume.status == PersistentVolumeStatus::Deleting => Some("is being deleted".to_owned()),
                Some(other) if Some(other) != service => Some(format!(
                    "is still attached to service {other}, and a volume has one service"
                )),
                _ => None,
            };
            let known = validate::KnownVolume {
                name: volume.name,
                region: volume.region,
                obstacle,
            };
            (volume.id.to_string(), known)
        })
        .collect())
}

fn uses_secrets(definition: &DeploymentDefinition) -> bool {
    // A longer one is refused for its length.
    let in_template = |text: &str| {
        text.len() <= validate::CONFIG_FILE_MAX_BYTES
            && pieces(text).any(|piece| matches!(piece, Piece::Secret(_)))
    };
    let env = definition.env.iter().any(|entry| {
        entry.secret.as_deref().is_some_and(|name| !name.is_empty())
            || entry.value.as_deref().is_some_and(in_template)
    });
    let files = || {
        definition
            .config_files
            .iter()
            .any(|file| in_template(&file.content))
    };
    let policies = || {
        definition
            .routes
            .iter()
            .filter_map(|route| route.security_policies.as_ref())
            .any(|policy| {
                policy
                    .basic_auths
                    .iter()
                    .any(|basic| in_template(&basic.password))
                    || policy.api_keys.iter().any(|key| in_template(key))
            })
    };
    let docker = definition
        .docker
        .as_ref()
        .map(|docker| &docker.image_registry_secret);
    let model = definition
        .model
        .as_ref()
        .map(|model| &model.image_registry_secret);
    let registry = [docker, model]
        .into_iter()
        .flatten()
        .any(|secret| !secret.is_empty());
    registry || env || files() || policies()
}

/// Why a deployment is made, and by whom.
#[derive(Debug, Clone)]
pub(crate) struct Trigger {
    pub(crate) kind: TriggerType,
    pub(crate) created_by: String,
    pub(crate) status: DeploymentStatus,
    pub(crate) skip_build: bool,
}

/// What is kept of a definition that was found good. `previous` is the metadata of the deployment before it.
pub(crate) fn deployment(
    api: &ApiState,
    definition: &DeploymentDefinition,
    trigger: Trigger,
    previous: Option<&DeploymentMetadata>,
) -> Result<NewDeployment, Error> {
    let metadata = DeploymentMetadata {
        trigger: Some(TriggerDeploymentMetadata {
            r#type: trigger.kind,
            actor: ActorType::User,
            git: None,
        }),
        sandbox: sandbox(api, definition, previous),
        ..DeploymentMetadata::default()
    };
    Ok(NewDeployment {
        id: DeploymentId::random(),
        definition: value(definition)?,
        metadata: value(&metadata)?,
        status: trigger.status,
        skip_build: trigger.skip_build,
        deployment_group: DEPLOYMENT_GROUP.to_owned(),
        instance_snapshot_id: String::new(),
        created_by: trigger.created_by,
        regional: regional(&api.catalog, definition)?,
    })
}

/// How a sandbox is reached. The key stays the same for the life of the service: clients hold on to it.
fn sandbox(
    api: &ApiState,
    definition: &DeploymentDefinition,
    previous: Option<&DeploymentMetadata>,
) -> Option<SandboxMetadata> {
    if definition.r#type != DefinitionType::Sandbox {
        return None;
    }
    let known = previous
        .and_then(|metadata| metadata.sandbox.as_ref())
        .map(|sandbox| sandbox.routing_key.clone())
        .filter(|key| !key.is_empty());
    Some(SandboxMetadata {
        public_url: api.settings.sandbox_url.trim_end_matches('/').to_owned(),
        routing_key: known.unwrap_or_else(random_key),
    })
}

/// 128 random bits: the key alone opens the way to a sandbox's ports.
fn random_key() -> String {
    let mut bytes = [0_u8; 16];
    rand::rng().fill(&mut bytes);
    hex::encode(bytes)
}

/// One entry for each region that the definition's regions lead to.
fn regional(
    catalog: &Catalog,
    definition: &DeploymentDefinition,
) -> Result<Vec<NewRegionalDeployment>, Error> {
    let mut seen = BTreeSet::new();
    let mut entries = Vec::new();
    for given in &definition.regions {
        let Some(region) = catalog.region(given) else {
            continue;
        };
        if seen.insert(region.id.clone()) {
            entries.push(NewRegionalDeployment {
                id: RegionalDeploymentId::random(),
                region: region.id.clone(),
                definition: value(&flattened(definition, given, &region.id))?,
            });
        }
    }
    Ok(entries)
}

/// The definition as it holds in one region; scopes name the region as the client `given` it.
fn flattened(definition: &DeploymentDefinition, given: &str, resolved: &str) -> RegionalDeploymentDefinition {
    let scale = definition.effective_scale(given);
    let targets = definition
        .scalings
        .iter()
        .find(|scaling| !scaling.scopes.is_empty() && scoped_to(&scaling.scopes, given))
        .or_else(|| {
            definition
                .scalings
                .iter()
                .find(|scaling| scaling.scopes.is_empty())
        })
        .map(|scaling| scaling.targets.clone())
        .unwrap_or_default();
    RegionalDeploymentDefinition {
        name: definition.name.clone(),
        r#type: definition.r#type.into(),
        strategy: definition.strategy.clone(),
        routes: definition
            .routes
            .iter()
            .map(|route| Route {
                port: route.port,
                path: route.path.clone(),
                security_policies: route.security_policies.clone(),
            })
            .collect(),
        ports: definition
            .ports
            .iter()
            .map(|port| Port {
                port: port.port,
                protocol: port.protocol.clone(),
            })
            .collect(),
        env: validate::scoped_env(definition, given)
            .into_iter()
            .map(|entry| Env {
                key: entry.key.clone(),
                value: entry.value.clone().unwrap_or_default(),
                secret: entry.secret.clone().unwrap_or_default(),
            })
            .collect(),
        region: resolved.to_owned(),
        scaling: Some(Scaling {
            min: i64::from(scale.min),
            max: i64::from(scale.max),
            targets,
        }),
        instance_type: definition.effective_instance_type(given).to_owned(),
        deployment_group: DEPLOYMENT_GROUP.to_owned(),
        health_checks: definition.health_checks.clone(),
        volumes: definition
            .volumes
            .iter()
            .filter(|volume| scoped_to(&volume.scopes, given))
            .map(|volume| RegionalDeploymentVolume {
                id: volume.id.clone(),
                path: volume.path.clone(),
                replica_index: volume.replica_index,
            })
            .collect(),
        config_files: definition.config_files.clone(),
        skip_cache: definition.skip_cache,
        mesh: match definition.mesh {
            DeploymentMesh::Auto => RegionalDeploymentMesh::Auto,
            DeploymentMesh::Enabled => RegionalDeploymentMesh::Enabled,
            DeploymentMesh::Disabled => RegionalDeploymentMesh::Disabled,
        },
        docker: definition.docker.clone(),
        git: definition.git.clone(),
        archive: definition.archive.clone(),
        model: definition.model.clone(),
        network_policy: definition.network_policy.clone(),
    }
}

/// A message as JSON.
pub(crate) fn value(message: &impl serde::Serialize) -> Result<Value, Error> {
    serde_json::to_value(message).map_err(|error| {
        tracing::error!(error = %chain(&error), "a message cannot be written");
        Error::internal("writing a message", error)
    })
}

/// Ports of a definition that want a public TCP port.
pub(crate) fn proxied_ports(definition: &DeploymentDefinition) -> Vec<u16> {
    definition
        .proxy_ports
        .iter()
        .filter_map(|proxied| u16::try_from(proxied.port).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use tram_types::catalog::unlimited;

    use super::*;

    fn definition(json: &str) -> DeploymentDefinition {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn two_names_of_one_region_make_one_regional_deployment() {
        let given = definition(r#"{"type":"WEB","regions":["na","was","fra"]}"#);
        let made = regional(&unlimited(), &given).unwrap();
        assert_eq!(made.len(), 1);
        assert_eq!(made[0].region, "fra");
        assert_eq!(made[0].definition["region"], "fra");
        assert!(made[0].definition.get("docker").is_none());
    }

    #[test]
    fn entries_of_the_region_hold_under_the_name_that_was_given() {
        let given = definition(
            r#"{"regions":["na"],"scalings":[{"scopes":["region:na"],"min":2,"max":2}],
                "env":[{"key":"A","value":"x"},{"key":"A","value":"y","scopes":["region:na"]}]}"#,
        );
        let flat = flattened(&given, "na", "fra");
        assert_eq!(flat.scaling.as_ref().map(|scaling| scaling.min), Some(2));
        assert_eq!(flat.env[0].value, "y");
    }

    #[test]
    fn secrets_are_looked_up_only_when_used() {
        assert!(!uses_secrets(&definition(
            r#"{"env":[{"key":"A","value":"{{ B }}"}]}"#
        )));
        for used in [
            r#"{"env":[{"key":"A","value":"{{ secret.x }}"}]}"#,
            r#"{"env":[{"key":"A","secret":"x"}]}"#,
            r#"{"docker":{"image":"i","image_registry_secret":"x"}}"#,
            r#"{"model":{"source":"m","image_registry_secret":"x"}}"#,
            r#"{"config_files":[{"content":"{{secret.x}}"}]}"#,
            r#"{"routes":[{"security_policies":{"api_keys":["{{secret.x}}"]}}]}"#,
        ] {
            assert!(uses_secrets(&definition(used)), "{used}");
        }
    }
}
