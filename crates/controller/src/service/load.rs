//! What the load is asked: which deployments it decides on, and what there is of them.

use std::collections::BTreeMap;

use tram_planner::{Deployment, Intent, Region};
use tram_types::{
    DeploymentId, ServiceId,
    definition::DeploymentDefinition,
    status::{DeploymentStatus, InstanceStatus},
};

use super::Reconciler;
use crate::{
    scaling::{Measured, Subject},
    spec::written_region,
};

impl Reconciler {
    /// Says what there is of every deployment that the load decides on, and takes the numbers that it asks for.
    pub(super) fn ask_load(
        &self,
        service: ServiceId,
        intent: Intent,
        definitions: &BTreeMap<DeploymentId, DeploymentDefinition>,
        deployments: &mut [Deployment],
    ) {
        let mut subjects = Vec::new();
        for deployment in deployments.iter().filter(|it| intent == Intent::Run && runs(it)) {
            let definition = definitions.get(&deployment.id);
            for region in deployment
                .regions
                .iter()
                .filter(|it| !it.scale.targets.is_empty())
            {
                if let Some(definition) = definition {
                    subjects.push(self.subject_of(deployment, region, definition));
                }
            }
        }
        if subjects.is_empty() {
            self.scaling.remove(service);
            return;
        }
        let last = self.activities.last_report(service);
        self.scaling.note(service, subjects, last.as_ref());
        for deployment in deployments {
            for region in &mut deployment.regions {
                region.load = self.scaling.wanted(service, deployment.id, &region.region);
            }
        }
    }

    fn subject_of(
        &self,
        deployment: &Deployment,
        region: &Region,
        definition: &DeploymentDefinition,
    ) -> Subject {
        let live = || region.instances.iter().filter(|instance| instance.is_live());
        let written = written_region(&self.deps.catalog, definition, &region.region);
        let kind = self
            .deps
            .catalog
            .instance_type(definition.effective_instance_type(written));
        let healthy: Vec<Measured> = live()
            .filter(|instance| instance.status == InstanceStatus::Healthy)
            .map(|instance| Measured {
                instance: instance.id,
                healthy_at: instance.healthy_at.unwrap_or(instance.created_at),
                cpu_limit_usec: kind.map_or(0, |kind| u64::from(kind.cpu_millis) * 1000),
                memory_limit_bytes: kind.map_or(0, |kind| kind.memory_bytes),
            })
            .collect();
        let started =
            |instance: &tram_planner::Instance| Some(instance.healthy_at?.since(instance.created_at));
        Subject {
            deployment: deployment.id,
            region: region.region.clone(),
            scale: region.scale,
            manual: region.manual,
            serves: deployment.status.is_serving(),
            present: live()
                .map(|instance| instance.replica_index.saturating_add(1))
                .max()
                .unwrap_or_default(),
            ready: u32::try_from(healthy.len()).unwrap_or(u32::MAX),
            start_time: live().filter_map(started).max(),
            healthy,
        }
    }
}

/// Whether a deployment runs or comes up: one that sleeps has no load, and one that wakes has callers that wait.
fn runs(deployment: &Deployment) -> bool {
    match deployment.status {
        // Frozen instances carry nothing.
        DeploymentStatus::Sleeping => deployment
            .instances()
            .any(|it| it.is_live() && it.status != InstanceStatus::Sleeping),
        DeploymentStatus::Allocating | DeploymentStatus::Starting => true,
        status => status.is_serving(),
    }
}
