//! From what the store holds and the sites say to the planner's view.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::IpAddr,
    time::Duration,
};

use tram_planner::{
    Deployment, Drain, Instance, Intent, Observed, Region, Room, ServiceView, SiteState, only_policy_differs,
};
use tram_site::{Capabilities, EndCause, InstancePhase, ObservedImage, ObservedInstance};
use tram_store::{ServiceState, filter, record};
use tram_types::{
    DeploymentId, InstanceId, ServiceId,
    definition::DeploymentDefinition,
    effective::{DEFAULT_RESTART_LIMIT, HealthCheck},
    status::{InstanceStatus, ServiceType},
};

use super::{Reconciler, freeze};
use crate::{
    error::Error,
    spec::{in_scope, source, takeover_here, written_region},
};

/// Ended instances of each replica that are read for the back-off: a few more than the ten failures in a row that its
/// longest wait takes.
const HISTORY_PER_REPLICA: u32 = 12;

/// A service as it was seen, with what the view was made of.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) state: ServiceState,
    pub(super) definitions: BTreeMap<DeploymentId, DeploymentDefinition>,
    pub(super) view: ServiceView,
    /// Its light sleep was known to be over.
    pub(super) over: bool,
}

impl Seen {
    /// Whether the wish to wake is being met.
    pub(super) fn is_waking_or_awake(&self) -> bool {
        let active = self
            .view
            .deployments
            .iter()
            .find(|it| Some(it.id) == self.view.active);
        active.is_none_or(|active| {
            let kept =
                |it: &Instance| matches!(it.status, InstanceStatus::Healthy | InstanceStatus::Sleeping);
            active.status != tram_types::status::DeploymentStatus::Sleeping
                || (active.instances().any(Instance::is_live) && !active.instances().any(kept))
        })
    }
}

impl Reconciler {
    /// Looks at everything the planner needs to know.
    pub(super) async fn view(&self, mut state: ServiceState) -> Result<Seen, Error> {
        self.load_left_behind(&mut state).await?;
        let definitions = read_definitions(&state)?;
        let mut instances: BTreeMap<DeploymentId, Vec<(record::Instance, Observed)>> = BTreeMap::new();
        let mut unreachable: Vec<String> = Vec::new();
        self.remember_owners(&state);
        for instance in &state.instances {
            let observed = self.observe(instance, &mut unreachable).await;
            let of = instances.entry(instance.deployment_id).or_default();
            of.push((instance.clone(), observed));
        }
        for deployment in &state.deployments {
            let of = instances.entry(deployment.id).or_default();
            if needs_history(deployment, of) {
                let ended = self.history(&state, deployment.id).await?;
                of.extend(ended.into_iter().map(|instance| (instance, Observed::Unknown)));
            }
        }
        let wanted = intent(&state);
        let service = &state.service;
        let mut deployments = Vec::with_capacity(state.deployments.len());
        for deployment in &state.deployments {
            let own = instances.remove(&deployment.id).unwrap_or_default();
            deployments.push(self.deployment(&state, deployment, &definitions, &own, &unreachable));
        }
        self.ask_load(service.id, wanted, &definitions, &mut deployments);
        let seconds = |seconds: u32| (seconds > 0).then(|| Duration::from_secs(u64::from(seconds)));
        let routed = !state.proxy_ports.is_empty()
            || definitions
                .values()
                .any(|definition| !definition.effective_routes().is_empty());
        // Before the activity is read: a wake that comes in between is then in one of both.
        let over = service
            .sleeping_since
            .is_some_and(|since| self.sleepers.is_over(service.id, since));
        let view = ServiceView {
            id: service.id,
            intent: wanted,
            status: service.status,
            messages: service.messages.clone(),
            created_at: service.created_at,
            sleeping_since: service.sleeping_since,
            active: service.active_deployment_id,
            delete_after_create: seconds(service.delete_after_create_seconds),
            delete_after_sleep: seconds(service.delete_after_sleep_seconds),
            routed,
            may_sleep: matches!(service.kind, ServiceType::Web | ServiceType::Sandbox)
                && !service.manual_scaling.iter().any(|scaling| scaling.keeps_awake),
            deployments,
            activity: freeze::activity(self.activities.of(service.id), over),
            edge: self.confirmed.of(service.id),
            expected: self.habits.is_expected(service.id),
            room: Room::Open,
            too_large: BTreeMap::new(),
            gives_way: None,
        };
        Ok(Seen {
            state,
            definitions,
            view,
            over,
        })
    }

    /// Reads the deployments that are over but have an instance that its site was not made to forget.
    async fn load_left_behind(&self, state: &mut ServiceState) -> Result<(), Error> {
        for place in 0..state.instances.len() {
            let id = state.instances[place].deployment_id;
            if state.deployments.iter().any(|deployment| deployment.id == id) {
                continue;
            }
            let deployment = self
                .deps
                .store
                .deployment_unscoped(id)
                .await
                .map_err(Error::store("read a deployment that is over"))?;
            let filter = filter::RegionalDeployments {
                deployment_id: Some(id),
                ..filter::RegionalDeployments::default()
            };
            let regional = self
                .deps
                .store
                .list_regional_deployments(state.service.organization_id, &filter, filter::Page::largest())
                .await
                .map_err(Error::store("read the regions of a deployment that is over"))?;
            state.deployments.push(deployment);
            state.regional_deployments.extend(regional.items);
        }
        Ok(())
    }

    fn remember_owners(&self, state: &ServiceState) {
        let id = state.service.id;
        let instances: HashSet<InstanceId> = state.instances.iter().map(|instance| instance.id).collect();
        let mut memory = self.memory();
        let memory = &mut *memory;
        let known = memory.services.entry(id).or_default();
        for gone in known.instances.difference(&instances) {
            memory.owners.remove(gone);
            known.refused.remove(gone);
            known.delayed.remove(gone);
            known.unfrozen.remove(gone);
        }
        for new in instances.difference(&known.instances) {
            memory.owners.insert(*new, id);
        }
        known.instances = instances;
        known
            .images
            .retain(|(deployment, _), _| state.deployments.iter().any(|it| it.id == *deployment));
    }

    async fn observe(&self, instance: &record::Instance, unreachable: &mut Vec<String>) -> Observed {
        if unreachable.contains(&instance.region) {
            return Observed::Unknown;
        }
        let Some(site) = self.deps.sites.for_region(&instance.region) else {
            return Observed::Unknown;
        };
        match site.observe_instance(instance.id).await {
            Ok(Some(seen)) => Observed::Seen(seen),
            Ok(None) => self.refused(instance).map_or(Observed::Absent, Observed::Seen),
            Err(error) => {
                tracing::warn!(
                    region = instance.region,
                    error = &error as &dyn std::error::Error,
                    "a site does not answer; what runs there is left as it is"
                );
                unreachable.push(instance.region.clone());
                Observed::Unknown
            }
        }
    }

    /// An instance that its site refused to start has ended, with the site's words as the cause.
    fn refused(&self, instance: &record::Instance) -> Option<ObservedInstance> {
        let message = self
            .memory()
            .services
            .get(&instance.service_id)?
            .refused
            .get(&instance.id)
            .cloned()?;
        Some(ObservedInstance {
            id: instance.id,
            generation: instance.generation,
            phase: InstancePhase::Ended {
                cause: EndCause::FailedToStart { message },
                at: self.deps.clock.now(),
            },
            address: None,
            started_at: None,
            deployment: Some(instance.deployment_id),
            uncheckpointable: None,
        })
    }

    async fn history(
        &self,
        state: &ServiceState,
        deployment: DeploymentId,
    ) -> Result<Vec<record::Instance>, Error> {
        let ended = self
            .deps
            .store
            .ended_instances_unscoped(deployment, HISTORY_PER_REPLICA)
            .await
            .map_err(Error::store("read the ended instances of a deployment"))?;
        let known: Vec<InstanceId> = state.instances.iter().map(|instance| instance.id).collect();
        Ok(ended.into_iter().filter(|it| !known.contains(&it.id)).collect())
    }

    fn deployment(
        &self,
        state: &ServiceState,
        deployment: &record::Deployment,
        definitions: &BTreeMap<DeploymentId, DeploymentDefinition>,
        instances: &[(record::Instance, Observed)],
        unreachable: &[String],
    ) -> Deployment {
        let definition = &definitions[&deployment.id];
        let active = state.service.active_deployment_id;
        let active = active.and_then(|id| definitions.get(&id));
        let limits = definition.effective_health_checks();
        let restart_limit = limits
            .iter()
            .map(|check: &HealthCheck| check.restart_limit)
            .min()
            .unwrap_or(DEFAULT_RESTART_LIMIT);
        let start_grace = limits
            .iter()
            .map(|check| check.grace_period)
            .max()
            .unwrap_or_default();
        let own = |regional: &&record::RegionalDeployment| regional.deployment_id == deployment.id;
        let regions = state.regional_deployments.iter().filter(own).map(|regional| {
            let written = written_region(&self.deps.catalog, definition, &regional.region);
            let manual = state
                .service
                .manual_scaling
                .iter()
                .find(|scaling| in_scope(&self.deps.catalog, &scaling.scopes, &regional.region));
            let here = instances
                .iter()
                .filter(|(instance, _)| instance.regional_deployment_id == regional.id);
            Region {
                id: regional.id,
                region: regional.region.clone(),
                scale: definition.effective_scale(written),
                manual: manual.map(|scaling| scaling.instances),
                load: None,
                restart_limit,
                start_grace,
                site: self.site_state(
                    &regional.region,
                    definition.effective_instance_type(written),
                    unreachable,
                ),
                image: self.image(state.service.id, deployment.id, &regional.region),
                instances: here
                    .map(|(row, observed)| self.instance(row, observed.clone()))
                    .collect(),
            }
        });
        Deployment {
            id: deployment.id,
            version: deployment.version,
            status: deployment.status,
            messages: deployment.messages.clone(),
            cancel_requested: deployment.cancel_requested,
            created_at: deployment.created_at,
            allocated_at: deployment.allocated_at,
            healthy_at: deployment.succeeded_at,
            source: source(definition),
            takeover: takeover_here(&self.deps.catalog, definition, active),
            continues: continues(state, definitions, deployment),
            regions: regions.collect(),
        }
    }

    fn instance(&self, row: &record::Instance, observed: Observed) -> Instance {
        let drain = match row.status {
            // A session is a task that was declared; who opened it would lose it like a request.
            InstanceStatus::Stopping if self.deps.sites.sessions().is_open(row.id) => Drain::Busy,
            InstanceStatus::Stopping => {
                let version = self.confirmed.version_of(row.service_id);
                version.map_or(Drain::Unknown, |version| self.activities.drain(row.id, version))
            }
            _ => Drain::Unknown,
        };
        Instance {
            id: row.id,
            replica_index: row.replica_index,
            status: row.status,
            messages: row.messages.clone(),
            generation: row.generation,
            address: row.address.parse::<IpAddr>().ok(),
            forgotten: row.forgotten,
            created_at: row.created_at,
            healthy_at: row.succeeded_at,
            ended_at: row.terminated_at,
            drain,
            tally: self.activities.tally(row.service_id, row.id),
            trouble: self.delayed(row).filter(|_| observed == Observed::Absent),
            unfreezable: self.unfreezable(row),
            observed,
        }
    }

    /// What keeps an instance from being started for now.
    fn delayed(&self, row: &record::Instance) -> Option<String> {
        if row.status != InstanceStatus::Allocating {
            return None;
        }
        let memory = self.memory();
        memory
            .services
            .get(&row.service_id)?
            .delayed
            .get(&row.id)
            .cloned()
    }

    /// What a region's site can do with instances of this type: what a device holds is not frozen with its program.
    fn site_state(&self, region: &str, kind: &str, unreachable: &[String]) -> SiteState {
        match self.deps.sites.for_region(region) {
            None => SiteState::Missing,
            Some(_) if unreachable.iter().any(|it| it == region) => SiteState::Unreachable,
            Some(site) if self.deps.catalog.has_gpu(kind) => SiteState::Reachable(Capabilities {
                freeze: false,
                checkpoint: false,
                ..site.capabilities()
            }),
            Some(site) => SiteState::Reachable(site.capabilities()),
        }
    }

    fn image(&self, service: ServiceId, deployment: DeploymentId, region: &str) -> Option<ObservedImage> {
        let memory = self.memory();
        let images = &memory.services.get(&service)?.images;
        images.get(&(deployment, region.to_owned())).cloned()
    }
}

/// The deployments before this one whose running instances can go on as its own: the definition differs in what may be
/// reached outside alone, and what its instances start from is the same.
fn continues(
    state: &ServiceState,
    definitions: &BTreeMap<DeploymentId, DeploymentDefinition>,
    this: &record::Deployment,
) -> BTreeSet<DeploymentId> {
    let new = &definitions[&this.id];
    let before = state.deployments.iter().filter(|it| {
        it.version < this.version
            && it.instance_snapshot_id == this.instance_snapshot_id
            && definitions
                .get(&it.id)
                .is_some_and(|old| only_policy_differs(old, new))
    });
    before.map(|it| it.id).collect()
}

/// The back-off is read off ended instances; a deployment whose replicas are all well has no use for them.
fn needs_history(deployment: &record::Deployment, instances: &[(record::Instance, Observed)]) -> bool {
    let runs = deployment.status.is_serving()
        || matches!(
            deployment.status,
            tram_types::status::DeploymentStatus::Allocating | tram_types::status::DeploymentStatus::Starting
        );
    let well = |(row, observed): &(record::Instance, Observed)| {
        let Observed::Seen(seen) = observed else {
            return false;
        };
        match row.status {
            InstanceStatus::Healthy => seen.phase.is_healthy(),
            InstanceStatus::Sleeping => seen.phase.is_asleep(),
            _ => false,
        }
    };
    runs && (instances.is_empty() || !instances.iter().all(well))
}

fn read_definitions(state: &ServiceState) -> Result<BTreeMap<DeploymentId, DeploymentDefinition>, Error> {
    state
        .deployments
        .iter()
        .map(|deployment| {
            let definition = serde::Deserialize::deserialize(&deployment.definition).map_err(|source| {
                Error::Definition {
                    deployment: deployment.id,
                    source,
                }
            })?;
            Ok((deployment.id, definition))
        })
        .collect()
}

/// The stricter of what the owners of the service and of its app want.
fn intent(state: &ServiceState) -> Intent {
    match (state.service.desired, state.app.desired) {
        (record::Desired::Delete, _) | (_, record::Desired::Delete) => Intent::Delete,
        (record::Desired::Pause, _) => Intent::Pause,
        (record::Desired::Run, _) => Intent::Run,
    }
}
