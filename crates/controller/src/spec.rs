//! From a stored definition to what a site is told to run: everything resolved.
//!
//! Secrets are read here and nowhere else in the controller but in `routing::security`; their values go to the site
//! and are never kept or logged.

pub(crate) mod credentials;
mod environment;
pub(crate) mod model;

use std::collections::BTreeMap;

use tram_planner as planner;
use tram_site::{
    DeviceShare, DeviceSpec, ImageSpec, InstanceSpec, MountSpec, RegistryCredentials,
    secrets::BoundSecret,
    spec::{EXECUTOR_PORT, EXECUTOR_PROXY_PORT, ExecutorAccess, ExecutorSpec, FileSpec, Limits},
};
use tram_store::{Revealed, Store, record};
use tram_types::{
    InstanceSnapshotId, bound,
    catalog::{Catalog, InstanceType},
    definition::{ConfigFile, DeploymentDefinition, REGION_SCOPE_PREFIX},
    interpolate::{self, Piece, UnknownName, pieces},
    status::{DefinitionType, DeploymentMesh, DeploymentStrategyType, EgressPolicyMode, SecretType},
};

use crate::error::Error;

/// Why an instance cannot be described. `Wrong` is for the user.
#[derive(Debug)]
pub(crate) enum Problem {
    /// The user must change something; the text says what.
    Wrong(String),
    /// The store failed: try again.
    Passing(Error),
}

impl From<UnknownName> for Problem {
    fn from(name: UnknownName) -> Self {
        Self::Wrong(name.to_string())
    }
}

/// What a description is made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subject<'a> {
    pub(crate) store: &'a Store,
    pub(crate) catalog: &'a Catalog,
    pub(crate) app: &'a record::App,
    pub(crate) service: &'a record::Service,
    pub(crate) deployment: &'a record::Deployment,
    pub(crate) regional: &'a record::RegionalDeployment,
    pub(crate) definition: &'a DeploymentDefinition,
}

/// The secrets a definition names, by name.
#[derive(Debug, Default)]
pub(crate) struct Secrets(BTreeMap<String, Revealed>);

/// How the API keeps a secret's value: the one member of the contract's `oneof`.
#[derive(serde::Deserialize)]
struct Kept {
    value: Option<String>,
}

impl Secrets {
    /// Reads the secrets with these names that a service of the project may use.
    pub(crate) async fn read(
        store: &Store,
        organization: tram_types::OrganizationId,
        project: Option<tram_types::ProjectId>,
        names: &[String],
    ) -> Result<Self, Error> {
        let found = store
            .reveal_secrets_by_name(organization, project, names)
            .await
            .map_err(Error::store("read the secrets of a service"))?;
        Ok(Self(found))
    }

    /// What an instance is shown of a simple secret: its text, or the placeholder of one that is bound to hosts.
    pub(crate) fn shown(&self, name: &str) -> Option<String> {
        let found = self.0.get(name)?;
        let text = serde_json::from_slice::<Kept>(&found.value).ok()?.value?;
        Some(if found.hosts.is_empty() {
            text
        } else {
            bound::placeholder(found.secret.id)
        })
    }

    /// The text of a simple secret for use on this side: one that is bound to hosts may be used with them alone.
    pub(crate) fn text(&self, name: &str) -> Option<String> {
        let free = self.0.get(name).is_some_and(|found| found.hosts.is_empty());
        free.then(|| self.shown(name)).flatten()
    }

    /// The secrets whose placeholders are in what an instance is given.
    fn bound(&self, env: &BTreeMap<String, String>, files: &[FileSpec]) -> Vec<BoundSecret> {
        let given = |placeholder: &str| {
            let mut texts = env.values().chain(files.iter().map(|file| &file.content));
            texts.any(|text| text.contains(placeholder))
        };
        let bound = self.0.values().filter(|found| !found.hosts.is_empty());
        bound
            .filter(|found| given(&bound::placeholder(found.secret.id)))
            .map(|found| BoundSecret {
                id: found.secret.id,
                hosts: found.hosts.clone(),
            })
            .collect()
    }
}

/// Names of the secrets in a template.
pub(crate) fn secrets_in(template: &str) -> impl Iterator<Item = String> + '_ {
    pieces(template).filter_map(|piece| match piece {
        Piece::Secret(name) => Some(name.to_owned()),
        _ => None,
    })
}

/// The region as the definition writes it: scopes are written with the same words, and `na` may lead to `fra`.
pub(crate) fn written_region<'a>(
    catalog: &Catalog,
    definition: &'a DeploymentDefinition,
    region: &'a str,
) -> &'a str {
    definition
        .regions
        .iter()
        .find(|written| catalog.region(written).is_some_and(|it| it.id == region))
        .map_or(region, String::as_str)
}

/// Whether an entry with these scopes holds in the resolved region.
pub(crate) fn in_scope(catalog: &Catalog, scopes: &[String], region: &str) -> bool {
    scopes.is_empty()
        || scopes.iter().any(|scope| {
            scope.strip_prefix(REGION_SCOPE_PREFIX).is_some_and(|written| {
                written == region || catalog.region(written).is_some_and(|it| it.id == region)
            })
        })
}

impl Subject<'_> {
    async fn secrets(&self) -> Result<Secrets, Error> {
        let definition = self.definition;
        let mut names: Vec<String> = Vec::new();
        for entry in &definition.env {
            names.extend(entry.value.as_deref().into_iter().flat_map(secrets_in));
            names.extend(entry.secret.clone().filter(|name| !name.is_empty()));
        }
        for file in &definition.config_files {
            names.extend(secrets_in(&file.content));
        }
        names.sort_unstable();
        names.dedup();
        Secrets::read(
            self.store,
            self.service.organization_id,
            self.service.project_id,
            &names,
        )
        .await
    }

    /// The image, with what its registry asks for.
    pub(crate) async fn image(&self) -> Result<ImageSpec, Problem> {
        if let Some(source) = &self.definition.model {
            let credentials = self.registry(&source.image_registry_secret).await?;
            return Ok(model::image(source, credentials, self.deployment.id));
        }
        let docker = self.definition.docker.as_ref().ok_or_else(|| {
            Problem::Wrong("only images and models can be deployed here: set `docker` or `model`".to_owned())
        })?;
        Ok(ImageSpec {
            reference: docker.image.clone(),
            credentials: self.registry(&docker.image_registry_secret).await?,
            model: None,
            adapters: Vec::new(),
            draft: None,
            keeps: false,
            deployment: self.deployment.id,
        })
    }

    /// What the registry of an image asks for, by the name of its secret; empty: nothing.
    async fn registry(&self, name: &String) -> Result<Option<RegistryCredentials>, Problem> {
        if name.is_empty() {
            return Ok(None);
        }
        let found = self
            .store
            .reveal_secrets_by_name(
                self.service.organization_id,
                self.service.project_id,
                std::slice::from_ref(name),
            )
            .await
            .map_err(|source| Problem::Passing(Error::store("read a registry's secret")(source)))?;
        let found = found
            .get(name)
            .ok_or_else(|| Problem::from(UnknownName::Secret(name.clone())))?;
        if found.secret.kind != SecretType::Registry {
            let wrong = format!("secret `{name}` is not of type REGISTRY: choose one that is");
            return Err(Problem::Wrong(wrong));
        }
        let login = credentials::registry_login(name, &found.value).map_err(Problem::Wrong)?;
        Ok(Some(login))
    }

    /// The whole description of one instance.
    pub(crate) async fn instance(&self, instance: &record::Instance) -> Result<InstanceSpec, Problem> {
        let image = self.image().await?;
        let definition = self.definition;
        let secrets = self.secrets().await.map_err(Problem::Passing)?;
        let domains = self
            .store
            .routed_domains_of_app(self.app.id)
            .await
            .map_err(|source| Problem::Passing(Error::store("read the domains of an app")(source)))?;
        let organization = self
            .store
            .organization(self.service.organization_id)
            .await
            .map_err(|source| Problem::Passing(Error::store("read an organization")(source)))?;
        let kind = self
            .catalog
            .instance_type(&instance.instance_type)
            .ok_or_else(|| {
                Problem::Wrong(format!(
                    "instance type `{}` is not on offer here: choose one of {}",
                    instance.instance_type,
                    self.catalog.instance_type_ids()
                ))
            })?;
        if let Some(reason) = &kind.unusable {
            return Err(Problem::Wrong(format!(
                "instance type `{}` cannot be used: {reason}",
                kind.id
            )));
        }
        let public_domain = domains.first().map_or("", |domain| domain.name.as_str());
        let env = environment::build(self, instance, kind, &organization.name, public_domain, &secrets)?;
        let files = definition
            .config_files
            .iter()
            .map(|file| config_file(file, &secrets, &env))
            .collect::<Result<Vec<_>, _>>()?;
        let docker = definition.docker.clone().unwrap_or_default();
        let (entrypoint, args) = match &definition.model {
            Some(source) => (
                model::entrypoint(source),
                model::args(source, definition, &self.service.name, kind),
            ),
            None => (docker.entrypoint, docker.args),
        };
        Ok(InstanceSpec {
            id: instance.id,
            organization_id: self.service.organization_id,
            app_id: self.app.id,
            app_name: self.app.name.clone(),
            service_id: self.service.id,
            service_name: self.service.name.clone(),
            deployment_id: self.deployment.id,
            regional_deployment_id: self.regional.id,
            replica_index: instance.replica_index,
            image,
            entrypoint,
            command: docker.command,
            args,
            executor: executor(definition, &env)?,
            bound_secrets: secrets.bound(&env, &files),
            env,
            files,
            ports: definition.effective_ports(),
            health_checks: definition.effective_health_checks(),
            limits: Limits {
                cpu_millis: kind.cpu_millis,
                memory_bytes: kind.memory_bytes,
                disk_bytes: kind.disk_bytes,
            },
            isolation: kind.isolation,
            devices: devices(kind),
            volumes: self.volumes().await?,
            mesh: mesh(definition),
            egress_allow: egress(definition),
            untrusted: definition.r#type == DefinitionType::Sandbox,
            snapshot: self.snapshot()?,
        })
    }

    /// The volumes it is shown in this region. They are the service's own: that was seen to when the deployment was
    /// recorded.
    async fn volumes(&self) -> Result<Vec<MountSpec>, Problem> {
        let mut mounts = Vec::new();
        for volume in &self.definition.volumes {
            if !in_scope(self.catalog, &volume.scopes, &self.regional.region) {
                continue;
            }
            let gone = || Problem::Wrong(format!("there is no volume `{}` any more", volume.id));
            let id = volume.id.parse().map_err(|_| gone())?;
            match self.store.volume(self.service.organization_id, id).await {
                Ok(found) if found.service_id == Some(self.service.id) => mounts.push(MountSpec {
                    volume: id,
                    path: volume.path.clone(),
                    read_only: found.read_only,
                }),
                Ok(found) => {
                    let wrong = format!("volume `{}` is not this service's any more", found.name);
                    return Err(Problem::Wrong(wrong));
                }
                Err(tram_store::Error::NotFound { .. }) => return Err(gone()),
                Err(source) => return Err(Problem::Passing(Error::store("read a volume")(source))),
            }
        }
        Ok(mounts)
    }

    /// What the disks of the deployment's instances start as.
    fn snapshot(&self) -> Result<Option<InstanceSnapshotId>, Problem> {
        match self.deployment.instance_snapshot_id.as_str() {
            "" => Ok(None),
            id => id
                .parse()
                .map(Some)
                .map_err(|_| Problem::Wrong(format!("`{id}` is no id of an instance snapshot"))),
        }
    }

    /// What is wrong with the definition's templates, before anything is fetched for it.
    pub(crate) async fn check(&self) -> Result<(), Problem> {
        let secrets = self.secrets().await.map_err(Problem::Passing)?;
        let system = |name: &str| tram_types::validate::is_system_variable(name).then(String::new);
        let own = |name: &str| {
            let known = self.definition.env.iter().any(|entry| entry.key == name);
            known.then(String::new).or_else(|| system(name))
        };
        for entry in &self.definition.env {
            if !in_scope(self.catalog, &entry.scopes, &self.regional.region) {
                continue;
            }
            if let Some(name) = entry.secret.as_deref().filter(|name| !name.is_empty()) {
                secrets
                    .shown(name)
                    .ok_or_else(|| Problem::from(UnknownName::Secret(name.to_owned())))?;
            }
            interpolate::expand(
                entry.value.as_deref().unwrap_or(""),
                |name| secrets.shown(name),
                own,
            )?;
        }
        for file in &self.definition.config_files {
            interpolate::expand(&file.content, |name| secrets.shown(name), own)?;
        }
        Ok(())
    }
}

/// The devices that an instance of this type has.
fn devices(kind: &InstanceType) -> Option<DeviceSpec> {
    let gpu = kind.gpu.as_ref()?;
    Some(DeviceSpec {
        instance_type: kind.id.to_string(),
        among: gpu.devices.clone(),
        count: gpu.count,
        share: gpu
            .share_bytes
            .zip(gpu.memory_bytes)
            .map(|(bytes, of_bytes)| DeviceShare { bytes, of_bytes }),
    })
}

/// Permission bits of a file whose definition names none.
const FILE_MODE: u32 = 0o644;

fn config_file(
    file: &ConfigFile,
    secrets: &Secrets,
    env: &BTreeMap<String, String>,
) -> Result<FileSpec, Problem> {
    let content = interpolate::expand(
        &file.content,
        |name| secrets.shown(name),
        |name| env.get(name).cloned(),
    )?;
    Ok(FileSpec {
        path: file.path.clone(),
        content,
        mode: u32::from_str_radix(&file.permissions, 8).unwrap_or(FILE_MODE),
    })
}

/// AUTO: on for web services and workers, off for sandboxes.
fn mesh(definition: &DeploymentDefinition) -> bool {
    match definition.mesh {
        DeploymentMesh::Enabled => true,
        DeploymentMesh::Disabled => false,
        DeploymentMesh::Auto => definition.r#type != DefinitionType::Sandbox,
    }
}

/// The variable with the secret of a sandbox's executor.
const SANDBOX_SECRET: &str = "SANDBOX_SECRET";
/// Set for what waits in a pool: it has no secret yet.
const SANDBOX_AUTH_MODE: &str = "SANDBOX_AUTH_MODE";

/// What a sandbox is driven by. Clients have its ports written into them.
fn executor(
    definition: &DeploymentDefinition,
    env: &BTreeMap<String, String>,
) -> Result<Option<ExecutorSpec>, Problem> {
    if definition.r#type != DefinitionType::Sandbox {
        return Ok(None);
    }
    let given = |name: &str| {
        env.get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    };
    if given(SANDBOX_SECRET).is_some_and(|value| value.contains(bound::PLACEHOLDER_PREFIX)) {
        return Err(Problem::Wrong(format!(
            "{SANDBOX_SECRET} is a secret that is bound to hosts, and the sandbox has to know it: use another one"
        )));
    }
    let access = match (given(SANDBOX_AUTH_MODE), given(SANDBOX_SECRET)) {
        (Some("pool"), None) => ExecutorAccess::Pool,
        (_, Some(_)) => ExecutorAccess::Static,
        (_, None) => {
            return Err(Problem::Wrong(format!(
                "a sandbox needs the environment variable {SANDBOX_SECRET}: clients show its value to the sandbox"
            )));
        }
    };
    Ok(Some(ExecutorSpec {
        port: EXECUTOR_PORT,
        proxy_port: EXECUTOR_PROXY_PORT,
        access,
    }))
}

/// What instances of a definition may reach outside; `None`: everything.
pub(crate) fn egress(definition: &DeploymentDefinition) -> Option<Vec<String>> {
    let egress = definition.network_policy.as_ref()?.egress.as_ref()?;
    match egress.mode {
        EgressPolicyMode::Default => None,
        EgressPolicyMode::DenyAll => Some(egress.allow_list.iter().map(|rule| rule.cidr.clone()).collect()),
    }
}

/// How a deployment takes over from the one that serves, `active`. One place, since the planner and the routing table
/// have to agree on who takes requests meanwhile.
pub(crate) fn takeover(
    definition: &DeploymentDefinition,
    active: Option<&DeploymentDefinition>,
) -> planner::Takeover {
    use planner::Takeover;
    let interchangeable = active.is_none_or(|active| definition.is_interchangeable_with(active));
    match definition.effective_strategy() {
        _ if !definition.volumes.is_empty() => Takeover::StopFirst,
        DeploymentStrategyType::Immediate => Takeover::Immediate,
        // What the paths of the old one lead to, the new one would not answer.
        _ if !interchangeable => Takeover::BlueGreen,
        DeploymentStrategyType::BlueGreen => Takeover::BlueGreen,
        DeploymentStrategyType::Canary => Takeover::Canary,
        _ => Takeover::Rolling,
    }
}

/// The same where the installation is known. A new version of what has GPUs waits for those of the old one, unless the
/// definition names a strategy: a machine has few, and the two would wait for each other. It differs from [`takeover`] only
/// in what is up at a time, which the routing table sees for itself.
pub(crate) fn takeover_here(
    catalog: &Catalog,
    definition: &DeploymentDefinition,
    active: Option<&DeploymentDefinition>,
) -> planner::Takeover {
    let has_gpu = |definition: &DeploymentDefinition| {
        let mut regions = definition.regions.iter();
        regions.any(|region| catalog.has_gpu(definition.effective_instance_type(region)))
    };
    let named = definition.strategy.as_ref().map(|strategy| strategy.r#type);
    let named = named.is_some_and(|strategy| {
        !matches!(
            strategy,
            DeploymentStrategyType::Invalid | DeploymentStrategyType::Default
        )
    });
    if !named && has_gpu(definition) && active.is_some_and(has_gpu) {
        return planner::Takeover::StopFirst;
    }
    takeover(definition, active)
}

/// Where a definition's code comes from, as the planner sees it.
pub(crate) fn source(definition: &DeploymentDefinition) -> planner::Source {
    match &definition.docker {
        Some(docker) if !docker.image.is_empty() => planner::Source::Image,
        // The engine is an image too.
        None if definition.model.is_some() => planner::Source::Image,
        _ => planner::Source::Unusable(
            "only images and models can be deployed on this installation yet: build an image and deploy it with `docker`"
                .to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_hold_in_the_region_they_lead_to() {
        let catalog = tram_types::catalog::unlimited();
        let scope = |region: &str| vec![format!("region:{region}")];
        assert!(in_scope(&catalog, &[], "fra"));
        assert!(in_scope(&catalog, &scope("na"), "fra"));
        assert!(in_scope(&catalog, &scope("fra"), "fra"));
        assert!(!in_scope(&catalog, &scope("nowhere"), "fra"));
        let definition = DeploymentDefinition {
            regions: vec!["was".to_owned()],
            ..DeploymentDefinition::default()
        };
        assert_eq!(written_region(&catalog, &definition, "fra"), "was");
    }

    #[test]
    fn a_sandbox_is_driven_by_whoever_has_its_secret() {
        let sandbox = DeploymentDefinition {
            r#type: DefinitionType::Sandbox,
            ..DeploymentDefinition::default()
        };
        let access = |definition: &DeploymentDefinition, env: &[(&str, &str)]| {
            let env = env
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            executor(definition, &env.collect()).map(|spec| spec.map(|spec| spec.access))
        };
        let secret = access(
            &sandbox,
            &[("SANDBOX_SECRET", "s"), ("SANDBOX_AUTH_MODE", "pool")],
        );
        assert_eq!(secret.unwrap(), Some(ExecutorAccess::Static), "a secret wins");
        let pool = access(&sandbox, &[("SANDBOX_AUTH_MODE", "pool")]);
        assert_eq!(pool.unwrap(), Some(ExecutorAccess::Pool));
        assert!(
            matches!(access(&sandbox, &[]), Err(Problem::Wrong(words)) if words.contains("SANDBOX_SECRET"))
        );
        assert_eq!(access(&DeploymentDefinition::default(), &[]).unwrap(), None);
    }

    fn with_gpu() -> Catalog {
        let mut catalog = tram_types::catalog::unlimited();
        let mut kind = catalog.instance_type("small").unwrap().clone();
        kind.id = "gpu-mine".into();
        kind.gpu = Some(tram_types::gpu::Gpu {
            brand: String::new(),
            name: "mine".to_owned(),
            count: 1,
            memory_bytes: Some(24),
            share_bytes: Some(6),
            devices: vec!["acme.com/gpu=0".to_owned()],
        });
        catalog.instance_types.push(kind);
        catalog
    }

    #[test]
    fn an_instance_has_the_devices_of_its_type() {
        let catalog = with_gpu();
        let of = |id: &str| devices(catalog.instance_type(id).unwrap());
        assert_eq!(of("small"), None);
        assert_eq!(
            of("gpu-mine"),
            Some(DeviceSpec {
                instance_type: "gpu-mine".to_owned(),
                among: vec!["acme.com/gpu=0".to_owned()],
                count: 1,
                share: Some(DeviceShare {
                    bytes: 6,
                    of_bytes: 24
                }),
            })
        );
    }

    #[test]
    fn a_new_version_waits_for_the_gpus_of_the_old_one_unless_it_says_how() {
        let catalog = with_gpu();
        let of = |kind: &str, strategy: &str| -> DeploymentDefinition {
            serde_json::from_str(&format!(
                r#"{{"type":"WEB","regions":["fra"],"instance_types":[{{"type":"{kind}"}}],
                    "strategy":{{"type":"DEPLOYMENT_STRATEGY_TYPE_{strategy}"}}}}"#
            ))
            .unwrap()
        };
        let over =
            |new: &DeploymentDefinition, old: &DeploymentDefinition| takeover_here(&catalog, new, Some(old));
        let (gpu, cpu) = (of("gpu-mine", "DEFAULT"), of("small", "DEFAULT"));
        assert_eq!(over(&gpu, &gpu), planner::Takeover::StopFirst);
        assert_eq!(over(&gpu, &cpu), planner::Takeover::Rolling);
        assert_eq!(over(&cpu, &gpu), planner::Takeover::Rolling);
        assert_eq!(
            over(&of("gpu-mine", "BLUE_GREEN"), &gpu),
            planner::Takeover::BlueGreen
        );
        assert_eq!(takeover_here(&catalog, &gpu, None), planner::Takeover::Rolling);
    }

    #[test]
    fn only_what_is_denied_is_denied() {
        let policy = |json: &str| -> DeploymentDefinition {
            serde_json::from_str(&format!(r#"{{"network_policy":{{"egress":{json}}}}}"#)).unwrap()
        };
        let denied = policy(r#"{"mode":"EGRESS_POLICY_MODE_DENY_ALL","allow_list":[{"cidr":"10.0.0.0/8"}]}"#);
        assert_eq!(egress(&denied), Some(vec!["10.0.0.0/8".to_owned()]));
        let open = policy(r#"{"mode":"EGRESS_POLICY_MODE_DEFAULT","allow_list":[{"cidr":"10.0.0.0/8"}]}"#);
        assert_eq!(egress(&open), None);
        assert_eq!(egress(&DeploymentDefinition::default()), None);
    }
}
