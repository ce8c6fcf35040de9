//! How many instances the old and the new deployment have while one takes over from the other.
//!
//! With `Rolling` the new one gets a few instances more than it has healthy ones, and the old one loses one for each of
//! the new that the data plane has confirmed to send requests to: so there are never fewer that take requests than
//! before, and never many more than are wanted. With `Canary` the new one has a single instance in each region until
//! that has stayed healthy for a while. Nothing is remembered: the numbers are read off the instances each time. A
//! rolling deployment that fails half way, is cancelled or is superseded gives back what it took in the same manner: its
//! instances that take requests go as those of the old one, or of the newer one, come.

use std::collections::BTreeSet;

use tram_types::{
    InstanceId, Timestamp,
    status::{DeploymentStatus as D, InstanceStatus},
};

use crate::{
    policy::Policy,
    restart, scale,
    view::{Deployment, Edge, Instance, Intent, Region, ServiceView, Takeover},
};

/// The deployment that takes the requests while this one comes up beside it.
pub(crate) fn predecessor<'v>(view: &'v ServiceView, this: &Deployment) -> Option<&'v Deployment> {
    let beside = this.takeover.keeps_old() && matches!(this.status, D::Allocating | D::Starting);
    let serving = view.deployments.iter().filter(|it| serves_before(it, this));
    serving.max_by_key(|it| it.version).filter(|_| beside)
}

/// Whether a deployment serves that came before this one.
fn serves_before(it: &Deployment, this: &Deployment) -> bool {
    it.version < this.version && it.status.is_serving() && it.status != D::Sleeping && takes(it)
}

/// Whether anything of a deployment takes requests.
fn takes(deployment: &Deployment) -> bool {
    deployment.instances().any(is_healthy)
}

fn is_healthy(instance: &Instance) -> bool {
    instance.status == InstanceStatus::Healthy
}

/// Of the `whole` number of replicas in a region, how many a deployment that comes up may have so far. What there is
/// stays: one that would be started again in a moment is not stopped.
pub(crate) fn so_far(
    view: &ServiceView,
    policy: &Policy,
    now: Timestamp,
    this: &Deployment,
    region: &Region,
    whole: u32,
) -> u32 {
    if !this.takeover.shares() || predecessor(view, this).is_none() {
        return whole;
    }
    let live = region.instances.iter().filter(|instance| instance.is_live());
    let present = live
        .map(|instance| instance.replica_index.saturating_add(1))
        .max()
        .unwrap_or_default();
    let allowed = match this.takeover {
        Takeover::Canary if baked_at(policy, this).is_some_and(|at| at <= now) => whole,
        Takeover::Canary => 1,
        _ => count(region.instances.iter().filter(|it| is_healthy(it))).saturating_add(surge(policy, whole)),
    };
    allowed.max(present).min(whole)
}

fn surge(policy: &Policy, whole: u32) -> u32 {
    whole
        .saturating_mul(policy.rolling_surge_percent)
        .div_ceil(100)
        .max(1)
}

fn count<'i>(instances: impl Iterator<Item = &'i Instance>) -> u32 {
    u32::try_from(instances.count()).unwrap_or(u32::MAX)
}

/// When the canaries of every region have been healthy for long enough; `None`: some region has none yet.
pub(crate) fn baked_at(policy: &Policy, this: &Deployment) -> Option<Timestamp> {
    let mut last: Option<Timestamp> = None;
    for region in &this.regions {
        let healthy = region.instances.iter().filter(|it| is_healthy(it));
        let first = healthy.filter_map(|instance| instance.healthy_at).min()?;
        last = last.max(Some(first));
    }
    Some(last?.plus(policy.canary_bake))
}

/// The instances of a rolling deployment that goes down before it served that have to go on for now, by their place in the
/// region: those that stand in for instances of the old one that are not back yet. A replica of the old one that failed
/// meanwhile is not waited for, nor is one that a newer deployment has taken over already.
pub(crate) fn stand_ins(view: &ServiceView, this: &Deployment, region: &Region) -> BTreeSet<InstanceId> {
    let gives_back = this.takeover == Takeover::Rolling
        && this.healthy_at.is_none()
        && this.is_going_down()
        && view.intent == Intent::Run
        && view.routed;
    let old = view.deployments.iter().filter(|it| serves_before(it, this));
    let Some(old) = old.max_by_key(|it| it.version).filter(|_| gives_back) else {
        return BTreeSet::new();
    };
    let Some(its) = old.regions.iter().find(|it| it.region == region.region) else {
        return BTreeSet::new();
    };
    let takes_requests = |instance: &&Instance| {
        is_healthy(instance)
            && match &view.edge {
                Edge::Known { endpoints, .. } => endpoints.contains(&instance.id),
                Edge::Unknown => false,
            }
    };
    let back: BTreeSet<u32> = its
        .instances
        .iter()
        .filter(takes_requests)
        .map(|instance| instance.replica_index)
        .collect();
    let whole = scale::whole(view, old, its);
    let kept = match &view.edge {
        Edge::Known { .. } => left(view, old, its, whole),
        Edge::Unknown => whole,
    };
    let missing =
        (0..kept).filter(|replica| !back.contains(replica) && restart::last_failure(its, *replica).is_none());
    let healthy = region.instances.iter().filter(|instance| match &view.edge {
        Edge::Known { .. } => takes_requests(instance),
        // Nobody knows who takes requests.
        Edge::Unknown => is_healthy(instance),
    });
    healthy
        .map(|instance| instance.id)
        .take(missing.count())
        .collect()
}

/// Of the `whole` number of replicas in a region, how many a deployment keeps that another one replaces. The last one
/// stays until the other serves.
pub(crate) fn left(view: &ServiceView, this: &Deployment, region: &Region, whole: u32) -> u32 {
    let replaces = |it: &&Deployment| {
        it.takeover == Takeover::Rolling
            && !it.cancel_requested
            && predecessor(view, it).is_some_and(|old| old.id == this.id)
    };
    let Some(successor) = view
        .deployments
        .iter()
        .filter(replaces)
        .max_by_key(|it| it.version)
    else {
        return whole;
    };
    let present = count(region.instances.iter().filter(|it| it.is_live()));
    let takes_requests = |instance: &&Instance| match &view.edge {
        _ if !view.routed => is_healthy(instance),
        Edge::Known { endpoints, .. } => is_healthy(instance) && endpoints.contains(&instance.id),
        Edge::Unknown => false,
    };
    if view.routed && view.edge == Edge::Unknown {
        // Nobody knows who takes requests: nothing is stopped, and nothing that was is started again.
        return present.clamp(1, whole.max(1));
    }
    let same = successor.regions.iter().filter(|it| it.region == region.region);
    let taken = count(same.flat_map(|it| &it.instances).filter(takes_requests));
    whole.saturating_sub(taken).max(1)
}
