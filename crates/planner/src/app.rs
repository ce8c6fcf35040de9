//! What an app is shown as, and when it goes. Apps hold services; everything else is theirs.

use tram_types::status::{AppStatus, ServiceStatus};

use crate::view::Intent;

/// One app at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct AppView {
    /// What its owner wants.
    pub intent: Intent,
    /// What it is shown as.
    pub status: AppStatus,
    /// Whether it goes with its last service.
    pub goes_when_empty: bool,
    /// Whether it ever had a service.
    pub had_services: bool,
    /// The statuses of its services that are still there.
    pub services: Vec<ServiceStatus>,
}

/// What to do for one app.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppPlan {
    /// Nothing.
    Keep,
    /// Show it as this.
    Show(AppStatus),
    /// It is to go and holds nothing any more.
    Remove,
}

/// Decides for one app.
#[must_use]
pub fn plan_app(view: &AppView) -> AppPlan {
    let unwanted = view.intent == Intent::Delete || (view.goes_when_empty && view.had_services);
    if unwanted && view.services.is_empty() {
        return AppPlan::Remove;
    }
    let status = status(view);
    if status == view.status {
        AppPlan::Keep
    } else {
        AppPlan::Show(status)
    }
}

fn status(view: &AppView) -> AppStatus {
    use ServiceStatus as S;
    let any = |wanted: S| view.services.contains(&wanted);
    let all = |wanted: S| !view.services.is_empty() && view.services.iter().all(|it| *it == wanted);
    match view.intent {
        Intent::Delete => return AppStatus::Deleting,
        Intent::Pause if view.services.iter().all(|it| *it == S::Paused) => return AppStatus::Paused,
        Intent::Pause => return AppStatus::Pausing,
        Intent::Run => {}
    }
    if view.services.is_empty() {
        return AppStatus::Healthy;
    }
    if all(S::Paused) {
        return AppStatus::Paused;
    }
    // What is paused or leaves on its owner's wish says nothing about the rest.
    let rest: Vec<S> = view
        .services
        .iter()
        .copied()
        .filter(|it| !matches!(it, S::Paused | S::Pausing | S::Deleting | S::Deleted))
        .collect();
    if rest.is_empty() {
        return if any(S::Pausing) {
            AppStatus::Pausing
        } else if view.goes_when_empty {
            AppStatus::Deleting
        } else {
            AppStatus::Healthy
        };
    }
    let every = |wanted: S| rest.iter().all(|it| *it == wanted);
    if every(S::Unhealthy) {
        AppStatus::Unhealthy
    } else if any(S::Unhealthy) || any(S::Degraded) {
        AppStatus::Degraded
    } else if any(S::Resuming) {
        AppStatus::Resuming
    } else if any(S::Starting) {
        AppStatus::Starting
    } else {
        AppStatus::Healthy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(intent: Intent, services: &[ServiceStatus]) -> AppPlan {
        plan_app(&AppView {
            intent,
            status: AppStatus::Deleted,
            goes_when_empty: false,
            had_services: false,
            services: services.to_vec(),
        })
    }

    #[test]
    fn an_app_is_the_sum_of_its_services() {
        use ServiceStatus as S;
        assert_eq!(shown(Intent::Run, &[]), AppPlan::Show(AppStatus::Healthy));
        assert_eq!(
            shown(Intent::Run, &[S::Healthy, S::Starting]),
            AppPlan::Show(AppStatus::Starting)
        );
        assert_eq!(
            shown(Intent::Run, &[S::Healthy, S::Unhealthy]),
            AppPlan::Show(AppStatus::Degraded)
        );
        assert_eq!(
            shown(Intent::Run, &[S::Unhealthy]),
            AppPlan::Show(AppStatus::Unhealthy)
        );
        assert_eq!(shown(Intent::Run, &[S::Paused]), AppPlan::Show(AppStatus::Paused));
        assert_eq!(
            shown(Intent::Pause, &[S::Healthy]),
            AppPlan::Show(AppStatus::Pausing)
        );
        assert_eq!(
            shown(Intent::Delete, &[S::Deleting]),
            AppPlan::Show(AppStatus::Deleting)
        );
        assert_eq!(shown(Intent::Delete, &[]), AppPlan::Remove);
        assert_eq!(
            shown(Intent::Run, &[S::Deleting]),
            AppPlan::Show(AppStatus::Healthy)
        );
    }

    #[test]
    fn an_app_that_goes_with_its_last_service_stays_until_it_had_one() {
        let mut view = AppView {
            intent: Intent::Run,
            status: AppStatus::Healthy,
            goes_when_empty: true,
            had_services: false,
            services: Vec::new(),
        };
        assert_eq!(plan_app(&view), AppPlan::Keep);
        view.had_services = true;
        assert_eq!(plan_app(&view), AppPlan::Remove);
    }
}
