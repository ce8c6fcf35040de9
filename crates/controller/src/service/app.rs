//! Apps: their status is the sum of their services', and they go when they should and hold nothing.

use tram_planner::{AppPlan, AppView, Intent, plan_app};
use tram_store::{
    Error as StoreError,
    intent::AppSet,
    record::{App, Desired, ObjectKind},
};
use tram_types::{AppId, status::AppStatus};

use super::{BREATHER, RETRY, Reconciler, event::event};
use crate::{
    driver::Outcome,
    error::Error,
    queue::{Key, Queue},
};

impl Reconciler {
    /// One look at an app.
    pub(super) async fn look_at_app(&self, queue: &Queue, id: AppId) -> Outcome {
        let again = |after| queue.set_alarm(Key::App(id), Some(self.deps.clock.now().plus(after)));
        match self.reconcile_app(queue, id).await {
            Ok(outcome) => outcome,
            Err(error) if error.is_conflict() => {
                again(BREATHER);
                Outcome::Conflict
            }
            Err(error) => {
                tracing::warn!(
                    app = %id,
                    error = &error as &dyn std::error::Error,
                    "an app could not be looked at and will be again"
                );
                again(RETRY);
                Outcome::Failed
            }
        }
    }

    async fn reconcile_app(&self, queue: &Queue, id: AppId) -> Result<Outcome, Error> {
        let store = &self.deps.store;
        let app = match store.app_unscoped(id).await {
            Ok(app) => app,
            Err(StoreError::NotFound { .. }) => return Ok(Outcome::Quiet),
            Err(error) => return Err(Error::store("read an app")(error)),
        };
        let services = store
            .services_of_app_unscoped(id)
            .await
            .map_err(Error::store("read the services of an app"))?;
        if app.desired == Desired::Delete {
            for service in &services {
                queue.add(Key::Service(service.id));
            }
        }
        let plan = plan_app(&AppView {
            intent: match app.desired {
                Desired::Run => Intent::Run,
                Desired::Pause => Intent::Pause,
                Desired::Delete => Intent::Delete,
            },
            status: app.status,
            goes_when_empty: app.delete_when_empty,
            had_services: app.started_at.is_some(),
            services: services.iter().map(|service| service.status).collect(),
        });
        match plan {
            AppPlan::Keep if services.is_empty() || app.started_at.is_some() => Ok(Outcome::Quiet),
            AppPlan::Keep => self.show(&app, app.status, !services.is_empty()).await,
            AppPlan::Show(status) => self.show(&app, status, !services.is_empty()).await,
            AppPlan::Remove => match store.remove_app(id).await {
                Ok(()) | Err(StoreError::NotFound { .. }) => Ok(Outcome::Changed),
                Err(error) => Err(Error::store("remove an app")(error)),
            },
        }
    }

    async fn show(&self, app: &App, status: AppStatus, has_services: bool) -> Result<Outcome, Error> {
        let now = self.deps.clock.now();
        let first = |known: Option<tram_types::Timestamp>, happened: bool| {
            (known.is_none() && happened).then_some(Some(now))
        };
        let set = AppSet {
            status: Some(status),
            started_at: first(app.started_at, has_services),
            succeeded_at: first(app.succeeded_at, has_services && status == AppStatus::Healthy),
            paused_at: (status == AppStatus::Paused && app.status != AppStatus::Paused).then_some(Some(now)),
            ..AppSet::default()
        };
        let changed = status != app.status;
        let told = || {
            event(
                app.organization_id,
                ObjectKind::App,
                app.id.uuid(),
                status.as_str(),
                "the sum of its services",
            )
        };
        let events = changed.then(told).into_iter().collect();
        self.deps
            .store
            .apply_app(app.id, app.status, set, events)
            .await
            .map_err(Error::store("show the status of an app"))?;
        Ok(Outcome::Changed)
    }
}
