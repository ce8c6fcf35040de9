//! The writes of a plan as one batch for the store: one update a row, whatever the number of steps it takes.
//!
//! Times are set here, from the status a row gets; so are events, one for every change of a status.

use std::collections::HashMap;

use tram_planner::{InstanceWrite, Reason, Write};
use tram_store::{
    intent::{DeploymentSet, InstanceSet, NewEvent, RegionalDeploymentSet, ServiceSet, Update},
    record::{self, ObjectKind},
};
use tram_types::{
    DeploymentId, Generation, InstanceId, RegionalDeploymentId, Timestamp,
    status::{DeploymentStatus, InstanceStatus, RegionalDeploymentStatus, ServiceStatus},
};

use super::{Reconciler, event::event, view::Seen};
use crate::scaling::News;

/// An instance's row as a plan left it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Written {
    pub(super) status: InstanceStatus,
    pub(super) generation: Generation,
}

impl Written {
    pub(super) fn of(row: &record::Instance, written: &HashMap<InstanceId, Self>) -> Self {
        written.get(&row.id).copied().unwrap_or(Self {
            status: row.status,
            generation: row.generation,
        })
    }
}

/// The writes of a plan as one batch: one update a row, whatever the number of steps it takes.
pub(super) struct Batch<'a> {
    reconciler: &'a Reconciler,
    seen: &'a Seen,
    now: Timestamp,
    service: ServiceSet,
    /// In the order in which they were first touched.
    deployments: Vec<(DeploymentId, DeploymentStatus, DeploymentSet)>,
    instances: Vec<(InstanceId, InstanceStatus, InstanceSet)>,
    inserts: Vec<record::Instance>,
    events: Vec<Update>,
}

impl<'a> Batch<'a> {
    pub(super) fn new(reconciler: &'a Reconciler, seen: &'a Seen) -> Self {
        Self {
            reconciler,
            seen,
            now: reconciler.deps.clock.now(),
            service: ServiceSet::default(),
            deployments: Vec::new(),
            instances: Vec::new(),
            inserts: Vec::new(),
            events: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, write: &Write) {
        match write {
            Write::Service { from, to, messages } => self.set_service(*from, *to, messages),
            Write::Activate { deployment, .. } => self.service.active_deployment_id = Some(*deployment),
            Write::SleepingSince(since) => self.service.sleeping_since = Some(*since),
            Write::RequestDelete(_) => {}
            Write::AllocatedAnew(id) => {
                let place = self.deployment_place(*id, None);
                if let Some(place) = place {
                    self.deployments[place].2.allocated_at = Some(Some(self.now));
                }
            }
            Write::Deployment {
                id,
                from,
                to,
                messages,
                reason,
            } => {
                self.set_deployment(*id, *from, *to, messages);
                if from != to {
                    self.event(ObjectKind::Deployment, id.uuid(), to.as_str(), reason);
                }
            }
            Write::CreateInstance {
                deployment,
                regional,
                replica_index,
                reason,
            } => {
                if let Some(row) = self.new_instance(*deployment, *regional, *replica_index) {
                    self.event(ObjectKind::Instance, row.id.uuid(), row.status.as_str(), reason);
                    self.inserts.push(row);
                }
            }
            Write::Instance(write) => self.set_instance(write),
            Write::HandOver {
                instance,
                status,
                deployment,
                regional,
            } => {
                let place = self.instance_place(*instance, *status);
                let set = &mut self.instances[place].2;
                set.deployment_id = Some(*deployment);
                set.regional_deployment_id = Some(*regional);
            }
        }
    }

    /// Tells the owner of every number of instances that changed with the load.
    pub(super) fn tell_scaled(&mut self, news: &[News]) {
        for told in news {
            let row = self
                .seen
                .state
                .deployments
                .iter()
                .find(|row| row.id == told.deployment);
            let regions = row.map_or(0, |row| {
                let regions = &self.seen.state.regional_deployments;
                regions.iter().filter(|it| it.deployment_id == row.id).count()
            });
            let place = if regions > 1 {
                format!(" in {}", told.region)
            } else {
                String::new()
            };
            self.events.push(Update::Event(Box::new(NewEvent {
                organization_id: self.seen.state.service.organization_id,
                object_kind: ObjectKind::Deployment,
                object_id: told.deployment.uuid(),
                kind: "DEPLOYMENT_SCALED".to_owned(),
                message: format!("Deployment{place} {}", told.decision),
                metadata: serde_json::Value::Object(serde_json::Map::new()),
            })));
        }
    }

    fn event(&mut self, kind: ObjectKind, id: uuid::Uuid, status: &str, reason: &Reason) {
        let organization = self.seen.state.service.organization_id;
        let event = event(organization, kind, id, status, &reason.to_string());
        self.events.push(Update::Event(Box::new(event)));
    }

    fn set_service(&mut self, from: ServiceStatus, to: ServiceStatus, messages: &[String]) {
        let service = &self.seen.state.service;
        self.service.status = Some(to);
        self.service.messages = Some(messages.to_vec());
        if from == to {
            return;
        }
        let now = Some(Some(self.now));
        match to {
            ServiceStatus::Healthy if service.succeeded_at.is_none() => self.service.succeeded_at = now,
            ServiceStatus::Paused => self.service.paused_at = now,
            _ => {}
        }
        if from == ServiceStatus::Resuming {
            self.service.resumed_at = now;
        }
        let id = service.id.uuid();
        let otherwise = match to {
            ServiceStatus::Healthy => "its active deployment is healthy",
            ServiceStatus::Starting | ServiceStatus::Resuming => "a deployment is on its way",
            ServiceStatus::Degraded | ServiceStatus::Unhealthy => "its deployments are in trouble",
            _ => "its owner asked for it",
        };
        let message = messages.first().map_or(otherwise, String::as_str);
        let reason = Reason::Failed(message.to_owned());
        self.event(ObjectKind::Service, id, to.as_str(), &reason);
    }

    fn set_deployment(
        &mut self,
        id: DeploymentId,
        from: DeploymentStatus,
        to: DeploymentStatus,
        messages: &[String],
    ) {
        let now = Some(Some(self.now));
        let Some(place) = self.deployment_place(id, Some(from)) else {
            return;
        };
        let row = self.seen.state.deployments.iter().find(|row| row.id == id);
        let set = &mut self.deployments[place].2;
        set.status = Some(to);
        set.messages = Some(messages.to_vec());
        if from == to {
            return;
        }
        match to {
            DeploymentStatus::Allocating => {
                set.allocated_at = now;
                self.service.last_provisioned_deployment_id = Some(Some(id));
            }
            DeploymentStatus::Starting => {
                set.started_at = now;
                if self.seen.state.service.started_at.is_none() {
                    self.service.started_at = now;
                }
            }
            DeploymentStatus::Healthy if row.is_some_and(|row| row.succeeded_at.is_none()) => {
                set.succeeded_at = now;
            }
            _ if to.is_final() => set.terminated_at = now,
            _ => {}
        }
    }

    /// Where the changes of a deployment are gathered. `from` is what it was seen as, when that is not its row.
    fn deployment_place(&mut self, id: DeploymentId, from: Option<DeploymentStatus>) -> Option<usize> {
        if let Some(place) = self.deployments.iter().position(|(known, ..)| *known == id) {
            return Some(place);
        }
        let row = self.seen.state.deployments.iter().find(|row| row.id == id);
        let from = from.or(row.map(|row| row.status))?;
        self.deployments.push((id, from, DeploymentSet::default()));
        Some(self.deployments.len() - 1)
    }

    fn set_instance(&mut self, write: &InstanceWrite) {
        let now = Some(Some(self.now));
        let row = self.seen.state.instances.iter().find(|row| row.id == write.id);
        let place = self.instance_place(write.id, write.from);
        let set = &mut self.instances[place].2;
        if write.forgotten {
            set.forgotten = Some(true);
        }
        if let Some(address) = write.address {
            set.address = Some(address.to_string());
        }
        if write.started_at.is_some() {
            set.started_at = Some(write.started_at);
        }
        set.status = Some(write.to);
        set.messages = Some(write.messages.clone());
        if write.next_generation {
            let known = set
                .generation
                .or(row.map(|row| row.generation))
                .unwrap_or_default();
            set.generation = Some(known.next());
        }
        if write.from == write.to {
            return;
        }
        match write.to {
            InstanceStatus::Starting if set.started_at.is_none() => set.started_at = now,
            InstanceStatus::Healthy if row.is_some_and(|row| row.succeeded_at.is_none()) => {
                set.succeeded_at = now;
            }
            _ if write.to.is_final() => set.terminated_at = now,
            _ => {}
        }
        self.event(
            ObjectKind::Instance,
            write.id.uuid(),
            write.to.as_str(),
            &write.reason,
        );
    }

    /// Where the changes of an instance are gathered. `from` is what it was seen as, unless it was changed before.
    fn instance_place(&mut self, id: InstanceId, from: InstanceStatus) -> usize {
        let known = self.instances.iter().position(|(known, ..)| *known == id);
        known.unwrap_or_else(|| {
            self.instances.push((id, from, InstanceSet::default()));
            self.instances.len() - 1
        })
    }

    fn new_instance(
        &self,
        deployment: DeploymentId,
        regional: RegionalDeploymentId,
        replica_index: u32,
    ) -> Option<record::Instance> {
        let state = &self.seen.state;
        let regional = state.regional_deployments.iter().find(|it| it.id == regional)?;
        let definition = self.seen.definitions.get(&deployment)?;
        let catalog = &self.reconciler.deps.catalog;
        let written = crate::spec::written_region(catalog, definition, &regional.region);
        let datacenter = catalog
            .region(&regional.region)
            .map(|region| region.datacenter.clone());
        let created_at = self.newest().map_or(self.now, |newest| {
            self.now.max(Timestamp::from_micros(newest.as_micros() + 1))
        });
        Some(record::Instance {
            id: InstanceId::random(),
            organization_id: state.service.organization_id,
            app_id: state.app.id,
            service_id: state.service.id,
            deployment_id: deployment,
            regional_deployment_id: regional.id,
            region: regional.region.clone(),
            datacenter: datacenter.unwrap_or_default(),
            site: regional.region.clone(),
            instance_type: definition.effective_instance_type(written).to_owned(),
            replica_index,
            status: InstanceStatus::Allocating,
            messages: Vec::new(),
            generation: Generation(1),
            address: String::new(),
            forgotten: false,
            created_at,
            updated_at: self.now,
            started_at: None,
            succeeded_at: None,
            terminated_at: None,
        })
    }

    /// When the newest instance was made. A later one is dated after it though the clock was set back: which one came
    /// last decides how long a failed replica waits.
    fn newest(&self) -> Option<Timestamp> {
        let known = self
            .seen
            .view
            .deployments
            .iter()
            .flat_map(tram_planner::Deployment::instances)
            .map(|instance| instance.created_at);
        known.chain(self.inserts.iter().map(|row| row.created_at)).max()
    }

    /// What becomes of the rows of instances.
    pub(super) fn written(&self) -> HashMap<InstanceId, Written> {
        let mut written = HashMap::new();
        for (id, _, set) in &self.instances {
            let Some(row) = self.seen.state.instances.iter().find(|row| row.id == *id) else {
                continue;
            };
            let now = Written {
                status: set.status.unwrap_or(row.status),
                generation: set.generation.unwrap_or(row.generation),
            };
            written.insert(*id, now);
        }
        written
    }

    /// Everything as updates, the check of the intent first.
    pub(super) fn finish(self) -> Vec<Update> {
        let state = &self.seen.state;
        let mut updates = Vec::new();
        let touches_service = self.service != ServiceSet::default();
        for (id, expected, set) in self.deployments {
            for regional in state
                .regional_deployments
                .iter()
                .filter(|it| it.deployment_id == id)
            {
                updates.push(mirror(regional, &set));
            }
            updates.push(Update::Deployment {
                id,
                expected,
                set: Box::new(set),
            });
        }
        updates.extend(
            self.inserts
                .into_iter()
                .map(|row| Update::InsertInstance(Box::new(row))),
        );
        for (id, expected, set) in self.instances {
            updates.push(Update::Instance {
                id,
                expected,
                set: Box::new(set),
            });
        }
        if touches_service {
            updates.push(Update::Service {
                expected: state.service.status,
                set: Box::new(self.service),
            });
        }
        updates.extend(self.events);
        if !updates.is_empty() {
            updates.insert(0, Update::ExpectVersion(state.service.version));
        }
        updates
    }
}

/// A deployment in its regions is shown as the deployment is.
fn mirror(regional: &record::RegionalDeployment, set: &DeploymentSet) -> Update {
    let scheduled = set.allocated_at.filter(|_| regional.scheduled_at.is_none());
    Update::RegionalDeployment {
        id: regional.id,
        expected: regional.status,
        set: Box::new(RegionalDeploymentSet {
            status: set.status.map(RegionalDeploymentStatus::from),
            messages: set.messages.clone(),
            scheduled_at: scheduled,
            allocated_at: set.allocated_at,
            started_at: set.started_at,
            succeeded_at: set.succeeded_at,
            terminated_at: set.terminated_at,
        }),
    }
}
