//! What deployments and the service are shown as (digest, sections 2.2 to 2.6).
//!
//! A deployment that starts up is moved by `rollout` alone and never shown DEGRADED or UNHEALTHY, which clients take
//! for the end. A service that sleeps is HEALTHY: there is no sleeping service.

use tram_types::status::{DeploymentStatus as D, InstanceStatus, ServiceStatus};

use crate::{
    draft::Draft,
    reason::Reason,
    restart, scale, sleep,
    view::{Deployment, Intent, Region, ServiceView},
};

pub(crate) fn apply(draft: &mut Draft<'_>) {
    for index in 0..draft.view.deployments.len() {
        serving_deployment(draft, index);
        leaving_deployment(draft, index);
    }
    if let Some(index) = draft.serving().filter(|_| draft.view.intent == Intent::Run) {
        draft.activate(Some(index), Reason::AllHealthy);
    }
    let mut waits: Vec<String> = Vec::new();
    for index in 0..draft.view.deployments.len() {
        for words in draft.held(index) {
            if !waits.contains(&words) {
                waits.push(words);
            }
        }
    }
    let (status, messages) = service(&draft.view, waits);
    draft.set_service(status, messages);
}

/// The replicas of a deployment, counted.
#[derive(Debug, Default)]
struct Tally {
    healthy: u32,
    coming: u32,
    troubles: Vec<String>,
}

fn tally(draft: &Draft<'_>, deployment: &Deployment) -> Tally {
    let mut tally = Tally::default();
    for region in &deployment.regions {
        let wanted = scale::wanted(&draft.view, draft.policy, draft.now, deployment, region);
        for replica in 0..wanted {
            count(&mut tally, region, replica);
        }
    }
    tally
}

fn count(tally: &mut Tally, region: &Region, replica: u32) {
    let mut live = region
        .instances
        .iter()
        .filter(|instance| instance.replica_index == replica && instance.is_live());
    let of = |what: &str| format!("replica {replica}: {what}");
    let live = live.next();
    if let Some(trouble) = live.and_then(|instance| instance.trouble.as_ref()) {
        tally.troubles.push(of(trouble));
        return;
    }
    match live.map(|instance| (instance.status, &instance.messages)) {
        Some((InstanceStatus::Healthy | InstanceStatus::Sleeping, _)) => tally.healthy += 1,
        Some((InstanceStatus::Unhealthy, messages)) => tally.troubles.push(of(&messages.join("; "))),
        _ => match restart::last_failure(region, replica) {
            Some(cause) => tally.troubles.push(of(&cause)),
            None => tally.coming += 1,
        },
    }
}

fn serving_deployment(draft: &mut Draft<'_>, index: usize) {
    let deployment = &draft.view.deployments[index];
    if !deployment.status.is_serving() || deployment.status == D::Sleeping {
        return;
    }
    let tally = tally(draft, deployment);
    // One that serves with fewer instances than it should have is well, as long as it is only for want of memory.
    let no_room = draft.view.no_room(deployment.id).filter(|_| tally.coming > 0);
    let reason = match (tally.healthy, tally.troubles.is_empty()) {
        (1.., true) => Reason::AllHealthy,
        (1.., false) => Reason::SomeInTrouble(tally.troubles.join("; ")),
        (0, false) => Reason::NoneHealthy(tally.troubles.join("; ")),
        (0, true) if no_room.is_some() => {
            Reason::NoneHealthy(no_room.as_ref().map(ToString::to_string).unwrap_or_default())
        }
        (0, true) => Reason::NoneHealthy("its instances are starting".to_owned()),
    };
    let (to, messages) = match &reason {
        Reason::AllHealthy => {
            let mut messages = sleep::notes(&draft.view, deployment);
            messages.extend(no_room.map(|reason| reason.to_string()));
            (D::Healthy, messages)
        }
        Reason::SomeInTrouble(_) => (D::Degraded, vec![reason.to_string()]),
        _ => (D::Unhealthy, vec![reason.to_string()]),
    };
    draft.set_deployment(index, to, messages, &reason);
}

/// One that goes down shows why, and then what keeps it from being gone.
fn leaving_deployment(draft: &mut Draft<'_>, index: usize) {
    let deployment = &draft.view.deployments[index];
    if !deployment.is_going_down() {
        return;
    }
    let mut messages: Vec<String> = deployment.messages.iter().take(1).cloned().collect();
    messages.extend(draft.held(index));
    let status = deployment.status;
    draft.set_deployment(index, status, messages, &Reason::Stopping);
}

/// What the service is shown as. `waits`: what keeps its deployments from going further.
fn service(view: &ServiceView, waits: Vec<String>) -> (ServiceStatus, Vec<String>) {
    let down = |deployment: &&Deployment| !deployment.status.is_final() || !deployment.is_empty();
    match view.intent {
        Intent::Delete => return (ServiceStatus::Deleting, waits),
        Intent::Pause if view.deployments.iter().any(|it| down(&it)) => {
            return (ServiceStatus::Pausing, waits);
        }
        Intent::Pause => return (ServiceStatus::Paused, Vec::new()),
        Intent::Run => {}
    }
    let newest = view
        .deployments
        .iter()
        .filter(|deployment| deployment.status != D::Stashed)
        .max_by_key(|deployment| deployment.version);
    let Some(newest) = newest else {
        return (ServiceStatus::Starting, Vec::new());
    };
    let failed = matches!(newest.status, D::Error | D::Erroring);
    let serving = view
        .deployments
        .iter()
        .filter(|deployment| deployment.status.is_serving())
        .max_by_key(|deployment| deployment.version);
    if let Some(serving) = serving {
        return match serving.status {
            D::Degraded => (ServiceStatus::Degraded, serving.messages.clone()),
            D::Unhealthy => (ServiceStatus::Unhealthy, serving.messages.clone()),
            _ if failed => (
                ServiceStatus::Degraded,
                vec![format!(
                    "version {} failed and version {} still serves: {}",
                    newest.version,
                    serving.version,
                    newest.messages.join("; ")
                )],
            ),
            _ => (ServiceStatus::Healthy, Vec::new()),
        };
    }
    let resuming = matches!(
        view.status,
        ServiceStatus::Resuming | ServiceStatus::Paused | ServiceStatus::Pausing
    );
    if newest.status.is_starting_up() {
        let status = if resuming {
            ServiceStatus::Resuming
        } else {
            ServiceStatus::Starting
        };
        return (status, newest.messages.clone());
    }
    (ServiceStatus::Unhealthy, newest.messages.clone())
}
