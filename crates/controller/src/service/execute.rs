//! Carries a plan out: one transaction for what it writes, then its orders, and nothing of its own.

use std::collections::HashMap;

use tram_planner::{InstanceWrite, Order, Plan, Write};
use tram_site::ObservedImage;
use tram_store::{
    Error as StoreError, filter,
    intent::{DeploymentSet, InstanceSet, RegionalDeploymentSet, ServiceSet, Update},
    record::{self, Desired, ObjectKind},
};
use tram_types::{
    AppId, DeploymentId, Generation, InstanceId, RegionalDeploymentId, Timestamp,
    status::{DeploymentStatus, InstanceStatus, RegionalDeploymentStatus, ServiceStatus},
};

use super::{Reconciler, ServiceReport, event::event, view::Seen};
use crate::{
    error::Error,
    spec::{Problem, Subject},
};

/// How far a plan was carried out.
pub(super) enum Done {
    /// Something changed: look again at once.
    Progress,
    /// All is ordered; news will come.
    Waits,
    /// Somebody else changed what the plan was made from.
    Conflict,
    /// An order failed for now.
    Failed,
    /// The service is gone.
    Removed(AppId),
}

impl Reconciler {
    pub(super) async fn execute(
        &self,
        seen: &Seen,
        plan: &Plan,
        report: &mut ServiceReport,
    ) -> Result<Done, Error> {
        if let Some(done) = self.request_delete(seen, plan).await? {
            return Ok(done);
        }
        let mut batch = Batch::new(self, seen);
        for write in &plan.writes {
            batch.add(write);
        }
        let written = batch.written();
        let updates = batch.finish();
        if !updates.is_empty() {
            report.writes += u32::try_from(plan.writes.len()).unwrap_or(u32::MAX);
            match self.deps.store.apply(seen.view.id, updates).await {
                Ok(()) => {
                    self.routing.dirty(seen.view.id);
                    self.routing_signal.notify_one();
                }
                Err(StoreError::Conflict { .. }) => return Ok(Done::Conflict),
                Err(error) => return Err(Error::store("record a plan")(error)),
            }
        }
        // Words about something that is under way change all the time; they are no reason to look again at once.
        let mut done = if plan.writes.iter().all(only_words) {
            Done::Waits
        } else {
            Done::Progress
        };
        self.tell(seen, plan).await;
        let mut forgotten = Vec::new();
        for order in &plan.orders {
            report.orders += 1;
            if matches!(order, Order::RemoveService) {
                self.record_forgotten(seen, std::mem::take(&mut forgotten))
                    .await?;
            }
            match self.order(seen, order, &written, &mut forgotten).await {
                Ok(None) => {}
                Ok(Some(better)) => done = better,
                Err(error) => {
                    report.failures += 1;
                    tracing::warn!(
                        service = %seen.view.id,
                        ?order,
                        error = &error as &dyn std::error::Error,
                        "an order was not carried out and will be repeated"
                    );
                    done = Done::Failed;
                    break;
                }
            }
        }
        self.record_forgotten(seen, forgotten).await?;
        Ok(done)
    }

    /// Writes the cause of every failure into the log of the instance, where its owner looks first. Nothing depends
    /// on it.
    async fn tell(&self, seen: &Seen, plan: &Plan) {
        for write in &plan.writes {
            let Write::Instance(write) = write else { continue };
            if write.from == write.to || !write.to.is_final() || write.messages.is_empty() {
                continue;
            }
            let Some((_, site)) = self.row(seen, write.id) else {
                continue;
            };
            if let Err(error) = site.log_platform(write.id, &write.messages.join("; ")).await {
                tracing::debug!(
                    instance = %write.id,
                    error = &error as &dyn std::error::Error,
                    "the cause of a failure is not in the instance's log"
                );
            }
        }
    }

    /// A service that asks for its own deletion: recorded as its owner's wish would be, then planned anew.
    async fn request_delete(&self, seen: &Seen, plan: &Plan) -> Result<Option<Done>, Error> {
        let reason = plan.writes.iter().find_map(|write| match write {
            Write::RequestDelete(reason) => Some(reason),
            _ => None,
        });
        let Some(reason) = reason else { return Ok(None) };
        let service = &seen.state.service;
        tracing::info!(service = %service.id, %reason, "deleting a service");
        self.deps
            .store
            .set_service_desired(service.organization_id, service.id, Desired::Delete)
            .await
            .map_err(Error::store("record that a service should go"))?;
        Ok(Some(Done::Progress))
    }

    async fn order(
        &self,
        seen: &Seen,
        order: &Order,
        written: &HashMap<InstanceId, Written>,
        forgotten: &mut Vec<Update>,
    ) -> Result<Option<Done>, Error> {
        match order {
            Order::EnsureImage { deployment, region } => self.ensure_image(seen, *deployment, region).await,
            Order::Start { instance } => self.start(seen, *instance).await,
            Order::Stop { instance, grace, .. } => {
                let Some((row, site)) = self.row(seen, *instance) else {
                    return Ok(None);
                };
                let now = Written::of(row, written);
                site.stop(*instance, *grace, now.generation)
                    .await
                    .map_err(Error::site("stop an instance"))?;
                Ok(None)
            }
            Order::Forget { instance } => {
                let Some((row, site)) = self.row(seen, *instance) else {
                    return Ok(None);
                };
                let now = Written::of(row, written);
                site.forget(*instance, now.generation)
                    .await
                    .map_err(Error::site("make a site forget an instance"))?;
                let set = InstanceSet {
                    forgotten: Some(true),
                    ..InstanceSet::default()
                };
                forgotten.push(Update::Instance {
                    id: *instance,
                    expected: now.status,
                    set: Box::new(set),
                });
                Ok(None)
            }
            Order::RemoveService => self.remove(seen).await,
        }
    }

    fn row<'a>(
        &'a self,
        seen: &'a Seen,
        instance: InstanceId,
    ) -> Option<(&'a record::Instance, &'a std::sync::Arc<dyn tram_site::Site>)> {
        let row = seen.state.instances.iter().find(|row| row.id == instance)?;
        Some((row, self.deps.sites.for_region(&row.region)?))
    }

    fn subject<'a>(&'a self, seen: &'a Seen, deployment: DeploymentId, region: &str) -> Option<Subject<'a>> {
        let state = &seen.state;
        Some(Subject {
            store: &self.deps.store,
            catalog: &self.deps.catalog,
            app: &state.app,
            service: &state.service,
            deployment: state.deployments.iter().find(|it| it.id == deployment)?,
            regional: state
                .regional_deployments
                .iter()
                .find(|it| it.deployment_id == deployment && it.region == region)?,
            definition: seen.definitions.get(&deployment)?,
        })
    }

    async fn ensure_image(
        &self,
        seen: &Seen,
        deployment: DeploymentId,
        region: &str,
    ) -> Result<Option<Done>, Error> {
        let Some(subject) = self.subject(seen, deployment, region) else {
            return Ok(None);
        };
        let Some(site) = self.deps.sites.for_region(region) else {
            return Ok(None);
        };
        // What is wrong with the definition is told before anything is fetched for it.
        let image = match subject.check().await {
            Ok(()) => subject.image().await,
            Err(problem) => Err(problem),
        };
        let observed = match image {
            Err(Problem::Passing(error)) => return Err(error),
            Err(Problem::Wrong(message)) => failed(message),
            Ok(image) => {
                // Before asking, so that no news are missed.
                self.memory().wait_for(&image.reference, seen.view.id);
                match site.ensure_image(&image).await {
                    Ok(observed) => observed,
                    Err(tram_site::Error::Refused { message }) => failed(message),
                    Err(error) => return Err(Error::site("get an image")(error)),
                }
            }
        };
        let settled = matches!(
            observed,
            ObservedImage::Ready { .. } | ObservedImage::Failed { retryable: false, .. }
        );
        let mut memory = self.memory();
        if settled {
            memory.stop_waiting(seen.view.id);
        }
        let images = &mut memory.services.entry(seen.view.id).or_default().images;
        let before = images.insert((deployment, region.to_owned()), observed.clone());
        let news = before.as_ref() != Some(&observed);
        // The first words about an image on its way are worth a message; later ones wait for the next look.
        Ok((settled || (news && before.is_none())).then_some(Done::Progress))
    }

    async fn start(&self, seen: &Seen, instance: InstanceId) -> Result<Option<Done>, Error> {
        let Some((row, site)) = self.row(seen, instance) else {
            return Ok(None);
        };
        let Some(subject) = self.subject(seen, row.deployment_id, &row.region) else {
            return Ok(None);
        };
        // What can never work is remembered as how the instance ended, and planned with.
        let refuse = |message: String| {
            let mut memory = self.memory();
            let known = memory.services.entry(seen.view.id).or_default();
            known.refused.insert(instance, message);
            Ok(Some(Done::Progress))
        };
        let spec = match subject.instance(row).await {
            Ok(spec) => spec,
            Err(Problem::Wrong(message)) => return refuse(message),
            Err(Problem::Passing(error)) => return Err(error),
        };
        // It was ready once, but an image that nothing used may have been removed since.
        match site.ensure_image(&spec.image).await {
            Ok(ObservedImage::Ready { .. }) => {}
            Ok(ObservedImage::Pulling { .. }) => {
                self.memory().wait_for(&spec.image.reference, seen.view.id);
                return Ok(None);
            }
            Ok(ObservedImage::Failed { message, .. }) | Err(tram_site::Error::Refused { message }) => {
                return refuse(message);
            }
            Err(error) => return Err(Error::site("get the image of an instance")(error)),
        }
        match site.start(&spec, row.generation).await {
            // The site's news may have come before we listened for this instance; one more look is cheap.
            Ok(()) => Ok(Some(Done::Progress)),
            Err(tram_site::Error::Refused { message }) => refuse(message),
            Err(error) => Err(Error::site("start an instance")(error)),
        }
    }

    async fn record_forgotten(&self, seen: &Seen, forgotten: Vec<Update>) -> Result<(), Error> {
        self.deps
            .store
            .apply(seen.view.id, forgotten)
            .await
            .map_err(Error::store("record that instances were forgotten"))
    }

    /// Nothing of the service runs: its logs go, then its rows.
    async fn remove(&self, seen: &Seen) -> Result<Option<Done>, Error> {
        let service = &seen.state.service;
        let filter = filter::Instances {
            service_id: Some(service.id),
            ..filter::Instances::default()
        };
        let mut page = filter::Page::largest();
        loop {
            let listed = self
                .deps
                .store
                .list_instances(service.organization_id, &filter, page)
                .await
                .map_err(Error::store("read the instances of a deleted service"))?;
            for instance in &listed.items {
                if let Some(site) = self.deps.sites.for_region(&instance.region) {
                    site.remove_logs(instance.id)
                        .await
                        .map_err(Error::site("remove the logs of an instance"))?;
                }
            }
            if listed.items.len() < page.limit as usize {
                break;
            }
            page.offset += page.limit;
        }
        match self.deps.store.remove_service(service.id).await {
            Ok(removed) => Ok(Some(Done::Removed(removed.app_id))),
            Err(StoreError::NotFound { .. }) => Ok(Some(Done::Removed(service.app_id))),
            Err(error) => Err(Error::store("remove a service")(error)),
        }
    }
}

/// An instance's row as a plan left it.
#[derive(Debug, Clone, Copy)]
struct Written {
    status: InstanceStatus,
    generation: Generation,
}

impl Written {
    fn of(row: &record::Instance, written: &HashMap<InstanceId, Self>) -> Self {
        written.get(&row.id).copied().unwrap_or(Self {
            status: row.status,
            generation: row.generation,
        })
    }
}

/// Whether a write changes nothing but what is said.
fn only_words(write: &Write) -> bool {
    match write {
        Write::Deployment { from, to, .. } => from == to,
        Write::Service { from, to, .. } => from == to,
        _ => false,
    }
}

fn failed(message: String) -> ObservedImage {
    ObservedImage::Failed {
        message,
        retryable: false,
    }
}

/// The writes of a plan as one batch: one update a row, whatever the number of steps it takes.
struct Batch<'a> {
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
    fn new(reconciler: &'a Reconciler, seen: &'a Seen) -> Self {
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

    fn add(&mut self, write: &Write) {
        match write {
            Write::Service { from, to, messages } => self.set_service(*from, *to, messages),
            Write::Activate { deployment, .. } => self.service.active_deployment_id = Some(*deployment),
            Write::SleepingSince(since) => self.service.sleeping_since = Some(*since),
            Write::RequestDelete(_) => {}
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
        }
    }

    fn event(&mut self, kind: ObjectKind, id: uuid::Uuid, status: &str, reason: &tram_planner::Reason) {
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
        let reason = tram_planner::Reason::Failed(message.to_owned());
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
        let place = self
            .deployments
            .iter()
            .position(|(known, ..)| *known == id)
            .unwrap_or_else(|| {
                self.deployments.push((id, from, DeploymentSet::default()));
                self.deployments.len() - 1
            });
        let row = self.seen.state.deployments.iter().find(|row| row.id == id);
        let set = &mut self.deployments[place].2;
        set.status = Some(to);
        set.messages = Some(messages.to_vec());
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
            _ if to.is_final() && from != to => set.terminated_at = now,
            _ => {}
        }
    }

    fn set_instance(&mut self, write: &InstanceWrite) {
        let now = Some(Some(self.now));
        let row = self.seen.state.instances.iter().find(|row| row.id == write.id);
        let place = self
            .instances
            .iter()
            .position(|(known, ..)| *known == write.id)
            .unwrap_or_else(|| {
                self.instances
                    .push((write.id, write.from, InstanceSet::default()));
                self.instances.len() - 1
            });
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
            created_at: self.now,
            updated_at: self.now,
            started_at: None,
            succeeded_at: None,
            terminated_at: None,
        })
    }

    /// What becomes of the rows of instances.
    fn written(&self) -> HashMap<InstanceId, Written> {
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
    fn finish(self) -> Vec<Update> {
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
