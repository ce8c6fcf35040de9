//! Carries a plan out: one transaction for what it writes, then its orders, and nothing of its own.

use std::collections::{HashMap, HashSet};

use tokio::sync::MutexGuard;
use tram_planner::{Order, Plan, Write};
use tram_site::ObservedImage;
use tram_store::{
    Error as StoreError, filter,
    intent::{InstanceSet, Update},
    record,
};
use tram_types::{AppId, DeploymentId, InstanceId, status::DeploymentStatus};

use super::{
    Reconciler, ServiceReport,
    batch::{Batch, Written},
    view::Seen,
};
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
    /// `room`: the turn to speak for memory, given back when what was spoken for is written down.
    pub(super) async fn execute(
        &self,
        seen: &Seen,
        plan: &Plan,
        room: Option<MutexGuard<'_, ()>>,
        report: &mut ServiceReport,
    ) -> Result<Done, Error> {
        if let Some(done) = self.request_delete(seen, plan).await? {
            return Ok(done);
        }
        let sleeper = self.sleepers.get(seen.view.id);
        let turn = match &sleeper {
            Some(sleeper) => match self.send_away(seen, plan, sleeper).await {
                Ok(turn) => turn,
                Err(conflict) => return Ok(conflict),
            },
            None => None,
        };
        let mut batch = Batch::new(self, seen);
        for write in &plan.writes {
            batch.add(write);
        }
        let news = self.scaling.news(seen.view.id);
        batch.tell_scaled(&news);
        let written = batch.written();
        let updates = batch.finish();
        if !updates.is_empty() {
            report.writes += u32::try_from(plan.writes.len()).unwrap_or(u32::MAX);
            let applied = self.deps.store.apply(seen.view.id, updates).await;
            if !matches!(applied, Err(StoreError::Conflict { .. })) {
                // After a failure too: a commit may have been carried out and its answer lost.
                self.routing.dirty(seen.view.id);
                self.routing_signal.notify_one();
            }
            match applied {
                Ok(()) => self.scaling.told(seen.view.id, &news),
                Err(StoreError::Conflict { .. }) => return Ok(Done::Conflict),
                Err(error) => return Err(Error::store("record a plan")(error)),
            }
        } else if !plan.orders.is_empty() {
            // A former leader must not give orders that the plans of the new one know nothing of.
            match self.deps.store.confirm_leadership().await {
                Ok(()) => {}
                Err(StoreError::Conflict { .. }) => return Ok(Done::Conflict),
                Err(error) => return Err(Error::store("look whether this process leads")(error)),
            }
        }
        drop(room);
        drop(turn);
        // Words about something that is under way change all the time; they are no reason to look again at once.
        let mut done = if plan.writes.iter().all(only_words) {
            Done::Waits
        } else {
            Done::Progress
        };
        self.tell(seen, plan).await;
        let mut forgotten = Vec::new();
        let mut gone = HashSet::new();
        let mut failed = false;
        for order in &plan.orders {
            if matches!(order, Order::RemoveService) && failed {
                // Something of it may still be there.
                continue;
            }
            report.orders += 1;
            if matches!(order, Order::RemoveService) {
                gone.extend(ids(&forgotten));
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
                    // What one site cannot do now keeps no other from doing its own.
                    failed = true;
                }
            }
        }
        if failed {
            done = Done::Failed;
        }
        gone.extend(ids(&forgotten));
        self.release_images(seen, plan, &gone).await;
        self.record_forgotten(seen, forgotten).await?;
        Ok(done)
    }

    /// Lets the images go of deployments that are over and that no site has anything of any more, when this plan
    /// made them so. What is missed here is found by whoever collects images.
    async fn release_images(&self, seen: &Seen, plan: &Plan, gone: &HashSet<InstanceId>) {
        for deployment in &seen.view.deployments {
            let ended = plan.writes.iter().find_map(|write| match write {
                Write::Deployment { id, to, .. } if *id == deployment.id => Some(*to),
                _ => None,
            });
            let status = ended.unwrap_or(deployment.status);
            let news = ended.is_some() || deployment.instances().any(|instance| gone.contains(&instance.id));
            let left = deployment
                .instances()
                .any(|instance| !instance.forgotten && !gone.contains(&instance.id));
            if !news || left || !status.is_final() || status == DeploymentStatus::Stashed {
                continue;
            }
            for (region, site) in self.deps.sites.iter() {
                if let Err(error) = site.release_image(deployment.id).await {
                    tracing::debug!(
                        deployment = %deployment.id,
                        region,
                        error = &error as &dyn std::error::Error,
                        "an image is kept for a deployment that is over"
                    );
                }
            }
        }
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
        match self.deps.store.expire_service(service.id, service.version).await {
            Ok(()) => {
                tracing::info!(service = %service.id, %reason, "deleting a service");
                Ok(Some(Done::Progress))
            }
            // Its owner wants something else since it was looked at.
            Err(StoreError::Conflict { .. }) => Ok(Some(Done::Conflict)),
            Err(error) => Err(Error::store("record that a service should go")(error)),
        }
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
            Order::Continue { instance, deployment } => {
                self.continue_as(seen, *instance, *deployment, written).await
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
            Order::Freeze { instance } => self.freeze(seen, *instance).await,
            Order::Checkpoint { instance } => self.checkpoint(seen, *instance).await,
            Order::Thaw { instance } => self.thaw(seen, *instance).await,
            Order::RemoveService => self.remove(seen).await,
        }
    }

    pub(super) fn row<'a>(
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
            Err(error) => {
                self.delay(seen, instance, Some(&error));
                return Err(Error::site("get the image of an instance")(error));
            }
        }
        match site.start(&spec, row.generation).await {
            // The site's news may have come before we listened for this instance; one more look is cheap.
            Ok(()) => {
                self.delay(seen, instance, None);
                Ok(Some(Done::Progress))
            }
            Err(tram_site::Error::Refused { message }) => refuse(message),
            Err(error) => {
                self.delay(seen, instance, Some(&error));
                Err(Error::site("start an instance")(error))
            }
        }
    }

    /// Remembers what keeps an instance from being started for now: its owner waits for it.
    fn delay(&self, seen: &Seen, instance: InstanceId, error: Option<&tram_site::Error>) {
        let mut memory = self.memory();
        let known = memory.services.entry(seen.view.id).or_default();
        match error {
            Some(error) => known.delayed.insert(instance, words(error)),
            None => known.delayed.remove(&instance),
        };
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

/// An error with its causes, in one line.
pub(super) fn words(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
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

/// The instances that are forgotten.
fn ids(forgotten: &[Update]) -> impl Iterator<Item = InstanceId> {
    forgotten.iter().filter_map(|update| match update {
        Update::Instance { id, .. } => Some(*id),
        _ => None,
    })
}
