//! How a new deployment gets from accepted to serving, and when it has failed.
//!
//! It starts beside the old one, how is for [`handover`]. Its first moment of whole health makes it the active one, in
//! the same transaction; if it never comes, it ends in ERROR and the old one gets back what it had handed over.

use std::time::Duration;

use tram_site::{InstancePhase, ObservedImage};
use tram_types::{
    Timestamp,
    status::{DeploymentStatus as D, InstanceStatus},
};

use crate::{
    canary,
    draft::Draft,
    handover, in_place,
    plan::Order,
    policy::Policy,
    reason::Reason,
    restart, scale,
    view::{Deployment, Edge, Observed, Region, ServiceView, SiteState, Source, Takeover},
};

/// Takes every deployment that starts up as far as it can go now.
pub(crate) fn advance(draft: &mut Draft<'_>) {
    let heir = in_place::heir(&draft.view);
    for index in 0..draft.view.deployments.len() {
        if heir.is_some_and(|heir| heir.new == index) {
            continue;
        }
        if draft.view.deployments[index].status == D::Pending {
            draft.set_deployment(index, D::Provisioning, Vec::new(), &Reason::Accepted);
        }
        if matches!(
            draft.view.deployments[index].status,
            D::Provisioning | D::Scheduled
        ) {
            provision(draft, index);
        }
        if matches!(draft.view.deployments[index].status, D::Allocating | D::Starting) {
            start(draft, index);
        }
    }
}

/// How far the image of a region is.
enum Image {
    Ready,
    Coming(Reason),
    Failed(Reason),
}

fn image(region: &Region) -> Image {
    match (&region.site, &region.image) {
        (SiteState::Missing, _) => Image::Failed(Reason::Failed(format!(
            "no machines serve region {}: choose another region",
            region.region
        ))),
        (SiteState::Unreachable, _) => Image::Coming(Reason::SiteUnreachable {
            region: region.region.clone(),
        }),
        (_, Some(ObservedImage::Ready { .. })) => Image::Ready,
        (
            _,
            Some(ObservedImage::Failed {
                message,
                retryable: false,
            }),
        ) => Image::Failed(Reason::Failed(message.clone())),
        (_, Some(ObservedImage::Failed { message, .. })) => Image::Coming(Reason::Fetching {
            step: format!("{message}; trying again"),
        }),
        (_, Some(ObservedImage::Pulling { step, .. })) => {
            Image::Coming(Reason::Fetching { step: step.clone() })
        }
        (_, None) => Image::Coming(Reason::Fetching { step: String::new() }),
    }
}

fn provision(draft: &mut Draft<'_>, index: usize) {
    let (policy, now) = (draft.policy, draft.now);
    let deployment = &draft.view.deployments[index];
    if let Source::Unusable(why) = &deployment.source {
        let reason = Reason::Failed(why.clone());
        return fail(draft, index, &reason);
    }
    if deployment.regions.is_empty() {
        let reason = Reason::Failed("the definition names no region: choose one".to_owned());
        return fail(draft, index, &reason);
    }
    let (id, age) = (deployment.id, now.since(deployment.created_at));
    let mut orders = Vec::new();
    let mut coming = Vec::new();
    let mut failure = None;
    for region in &deployment.regions {
        match image(region) {
            Image::Ready => {}
            Image::Failed(reason) => failure = Some(reason),
            Image::Coming(reason) => {
                let passing = match &region.image {
                    Some(ObservedImage::Failed { message, .. }) => Some(message),
                    _ => None,
                };
                let known = matches!(region.site, SiteState::Reachable(_));
                if let Some(message) = passing.filter(|_| known && age >= policy.provision_retry) {
                    failure = Some(Reason::Failed(message.clone()));
                } else if known && age >= policy.provision_deadline {
                    failure = Some(Reason::Failed(format!(
                        "the image was not ready in time; the last step was: {reason}"
                    )));
                } else if known {
                    orders.push(Order::EnsureImage {
                        deployment: id,
                        region: region.region.clone(),
                    });
                }
                coming.push(reason);
            }
        }
    }
    if let Some(reason) = failure {
        return fail(draft, index, &reason);
    }
    if coming.is_empty() {
        let notice = deployment.regions.iter().find_map(|region| match &region.image {
            Some(ObservedImage::Ready { notice, .. }) => notice.clone(),
            _ => None,
        });
        let reason = notice.map_or(Reason::ImageReady, Reason::ImageStandsIn);
        return draft.set_deployment(index, D::Allocating, Vec::new(), &reason);
    }
    let messages = coming.iter().map(ToString::to_string).collect();
    if let Some(first) = coming.first().cloned() {
        draft.set_deployment(index, D::Provisioning, messages, &first);
    }
    for reason in coming {
        draft.wait(reason);
    }
    for order in orders {
        draft.order(order);
    }
    draft.look_again(now.plus(policy.image_look));
}

fn start(draft: &mut Draft<'_>, index: usize) {
    let (policy, now) = (draft.policy, draft.now);
    let allocated_at = draft.view.deployments[index].allocated_at;
    if allocated_at.is_some_and(|allocated_at| allocated_at > now) {
        draft.allocate_anew(index);
    }
    let deployment = &draft.view.deployments[index];
    let running = deployment.instances().any(|instance| {
        matches!(
            instance.status,
            InstanceStatus::Starting | InstanceStatus::Healthy | InstanceStatus::Unhealthy
        )
    });
    if running && deployment.status == D::Allocating {
        draft.set_deployment(
            index,
            D::Starting,
            Vec::new(),
            &Reason::Seen("its instances are starting"),
        );
    }
    let deployment = &draft.view.deployments[index];
    let all_healthy = deployment.regions.iter().all(|region| {
        let healthy = region
            .instances
            .iter()
            .filter(|instance| instance.status == InstanceStatus::Healthy)
            .count();
        let required =
            usize::try_from(scale::required(&draft.view, deployment, region)).unwrap_or(usize::MAX);
        healthy >= required
    });
    let bakes = Some(deployment)
        .filter(|it| it.takeover == Takeover::Canary && handover::predecessor(&draft.view, it).is_some())
        .map(|it| handover::baked_at(policy, it));
    let bakes_until = bakes.flatten().filter(|until| now < *until);
    if bakes.is_some()
        && let Some(cause) = canary::trouble(&draft.view, deployment)
    {
        return fail(draft, index, &Reason::CanaryFailed { cause });
    }
    let reachable = !all_healthy || is_reachable(&draft.view, deployment);
    if all_healthy && bakes_until.is_none() && reachable {
        draft.set_deployment(index, D::Healthy, Vec::new(), &Reason::AllHealthy);
        draft.activate(Some(index), Reason::AllHealthy);
        return;
    }
    let answering = |region: &&Region| matches!(region.site, SiteState::Reachable(_));
    let no_room = draft.view.no_room(deployment.id);
    if let Some(Reason::NeverRoom(why)) = no_room {
        return fail(draft, index, &Reason::Failed(why));
    }
    let exhausted = deployment
        .regions
        .iter()
        .filter(answering)
        .find_map(|region| restart::exhausted(region, policy));
    let within = start_deadline(deployment, policy);
    let moved_at = moved_at(deployment, now);
    let due = bakes_until
        .map_or(moved_at, |until| until.max(moved_at))
        .plus(within);
    // Neither a site nor a data plane that cannot be asked is the fault of the deployment.
    let answered = reachable || draft.view.edge != Edge::Unknown;
    let late = now >= due && answered && deployment.regions.iter().all(|region| answering(&region));
    let overdue = late.then(|| {
        if !reachable {
            return Reason::NeverRouted { within };
        }
        let trouble = deployment
            .instances()
            .find_map(|instance| instance.trouble.clone())
            .or_else(|| no_room.as_ref().map(ToString::to_string));
        match trouble {
            Some(cause) => Reason::NeverStarted {
                within,
                cause: Some(cause),
            },
            None => Reason::NeverHealthy {
                within,
                last: last_words(deployment),
            },
        }
    });
    if let Some(reason) = exhausted.or(overdue) {
        return fail(draft, index, &reason);
    }
    draft.look_again(bakes_until.unwrap_or(due));
    let mut messages = progress(draft, index);
    if !reachable {
        messages.push(Reason::WaitsForEdge.to_string());
        draft.wait_for(index, Reason::WaitsForEdge);
    }
    if bakes_until.is_some() {
        let reason = Reason::CanaryBaking {
            over: policy.canary_bake,
        };
        messages.push(reason.to_string());
        draft.wait_for(index, reason);
    }
    messages.extend(no_room.map(|reason| reason.to_string()));
    let status = draft.view.deployments[index].status;
    draft.set_deployment(index, status, messages, &Reason::Seen("its instances say more"));
}

/// Whether the data plane sends requests to a deployment that is about to be shown HEALTHY: whoever reads that asks at
/// once. Beside one that serves already it is not waited for, since somebody answers in any case; nor for one that a
/// newer one has overtaken, whose routes are those that count.
fn is_reachable(view: &ServiceView, deployment: &Deployment) -> bool {
    let kept = |it: &&Deployment| it.status != D::Stashed;
    let newest = view.deployments.iter().filter(kept).map(|it| it.version).max();
    if !view.routed || view.active.is_some() || newest != Some(deployment.version) {
        return true;
    }
    let mut healthy = deployment
        .instances()
        .filter(|it| it.status == InstanceStatus::Healthy);
    match &view.edge {
        Edge::Known {
            endpoints, settled, ..
        } => *settled && healthy.all(|it| endpoints.contains(&it.id)),
        Edge::Unknown => healthy.next().is_none(),
    }
}

/// When a deployment last came a step further: when its first instance got its place, or the newest one its health. It
/// may come up a few instances at a time, and each has its own time for it.
fn moved_at(deployment: &Deployment, now: Timestamp) -> Timestamp {
    let begun = deployment.allocated_at.unwrap_or(deployment.created_at);
    let healthy = deployment.instances().filter_map(|instance| instance.healthy_at);
    // What lies ahead is of a clock that was set back since, and says nothing.
    healthy.filter(|at| *at <= now).fold(begun, Timestamp::max)
}

/// Time from the first instance to healthy: what the policy gives, and the grace its own checks ask for.
fn start_deadline(deployment: &Deployment, policy: &Policy) -> Duration {
    let grace = deployment.regions.iter().map(|region| region.start_grace).max();
    policy.start_deadline.saturating_add(grace.unwrap_or_default())
}

/// What keeps a deployment from being healthy, for its owner.
fn progress(draft: &Draft<'_>, index: usize) -> Vec<String> {
    let mut messages = Vec::new();
    let deployment = &draft.view.deployments[index];
    for region in &deployment.regions {
        if region.site == SiteState::Unreachable {
            let region = region.region.clone();
            messages.push(Reason::SiteUnreachable { region }.to_string());
        }
        for instance in region.instances.iter().filter(|instance| instance.is_live()) {
            if let Some(trouble) = &instance.trouble {
                messages.push(format!(
                    "replica {}: {trouble}; trying again",
                    instance.replica_index
                ));
            }
        }
        let replicas: std::collections::BTreeSet<u32> = region
            .instances
            .iter()
            .map(|instance| instance.replica_index)
            .collect();
        for replica in replicas {
            let live = region.instances.iter().any(|instance| {
                instance.replica_index == replica && instance.status == InstanceStatus::Healthy
            });
            let verdict = restart::verdict(region, replica, draft.policy, draft.now);
            if let (false, Some(cause)) = (live, restart::last_failure(region, replica)) {
                messages.push(match verdict {
                    restart::Verdict::Wait { delay, attempt, .. } => Reason::BackingOff {
                        replica,
                        attempt,
                        delay,
                        cause,
                    }
                    .to_string(),
                    restart::Verdict::TryAgain { attempt, .. } => Reason::TryAgain {
                        replica,
                        attempt,
                        cause,
                    }
                    .to_string(),
                    restart::Verdict::Start => cause,
                });
            }
        }
    }
    // A probe that fails in the first seconds is what a start looks like; later it is what people look for.
    let long = deployment
        .allocated_at
        .is_some_and(|at| draft.now.since(at) >= draft.policy.look);
    messages.extend(last_words(deployment).filter(|_| long));
    messages
}

/// What the last probe of an instance that does not become healthy said.
fn last_words(deployment: &Deployment) -> Option<String> {
    deployment
        .instances()
        .find_map(|instance| match &instance.observed {
            Observed::Seen(seen) => match &seen.phase {
                InstancePhase::Starting { last_failure } | InstancePhase::Running { last_failure, .. } => {
                    last_failure.clone()
                }
                _ => None,
            },
            _ => None,
        })
}

fn fail(draft: &mut Draft<'_>, index: usize, reason: &Reason) {
    draft.set_deployment(index, D::Erroring, vec![reason.to_string()], reason);
}
