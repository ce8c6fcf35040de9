//! How many replicas, and which instances make them up.
//!
//! The number is the owner's override, else what the load asks for ([`crate::autoscale`]), else the minimum, and at
//! least one while awake.

use tram_types::{
    Timestamp,
    status::{DeploymentStatus as D, InstanceStatus},
};

use crate::{
    draft::{At, Draft},
    handover,
    plan::Write,
    policy::Policy,
    reason::Reason,
    restart::{self, Verdict},
    sleep,
    view::{Deployment, Instance, Region, Room, ServiceView, SiteState, Takeover},
};

/// What the load asks for; `None`: it has no say. While nobody has said, what there is stays.
fn wanted_by_load(region: &Region) -> Option<u32> {
    if region.scale.targets.is_empty() {
        return None;
    }
    let live = region.instances.iter().filter(|instance| instance.is_live());
    let present = || {
        live.map(|instance| instance.replica_index.saturating_add(1))
            .max()
    };
    let wanted = region.load.or_else(present).unwrap_or_default();
    Some(wanted.clamp(region.scale.min, region.scale.max))
}

/// How many replicas the region of this deployment should have now.
pub(crate) fn wanted(
    view: &ServiceView,
    policy: &Policy,
    now: Timestamp,
    deployment: &Deployment,
    region: &Region,
) -> u32 {
    let whole = whole(view, deployment, region);
    if whole == 0 {
        return 0;
    }
    let kept = handover::left(view, deployment, region, whole);
    handover::so_far(view, policy, now, deployment, region, kept)
}

/// The same once nothing is being replaced any more.
pub(crate) fn whole(view: &ServiceView, deployment: &Deployment, region: &Region) -> u32 {
    let runs = deployment.status.is_serving() || matches!(deployment.status, D::Allocating | D::Starting);
    if !runs {
        return 0;
    }
    let awake = awake_count(region);
    if deployment.status != D::Sleeping {
        return awake;
    }
    if is_waking(view, deployment, region) {
        awake
    } else {
        kept_count(region)
    }
}

/// Whether a region of a sleeping deployment is on its way up: one that is live and was not kept for light sleep is.
fn is_waking(view: &ServiceView, deployment: &Deployment, region: &Region) -> bool {
    let rising = |instance: &Instance| instance.is_live() && !sleep::is_kept(instance);
    sleep::is_demanded(view, deployment) || region.instances.iter().any(rising)
}

/// How many replicas a region has while its deployment sleeps and nobody waits: those it kept, or what its owner sets
/// by hand while it sleeps lightly.
fn kept_count(region: &Region) -> u32 {
    let kept = region
        .instances
        .iter()
        .filter(|instance| sleep::is_kept(instance));
    let last = kept.map(|instance| instance.replica_index).max();
    last.map_or(0, |last| region.manual.unwrap_or_else(|| last.saturating_add(1)))
}

fn awake_count(region: &Region) -> u32 {
    region
        .manual
        .or_else(|| wanted_by_load(region))
        .unwrap_or(region.scale.min)
        .max(1)
}

/// How many of them must be healthy before the deployment may serve: all, when it takes over from one that does;
/// else as many as serve without load, by hand or by the definition.
pub(crate) fn required(view: &ServiceView, deployment: &Deployment, region: &Region) -> u32 {
    let whole = whole(view, deployment, region);
    if handover::predecessor(view, deployment).is_some() {
        return whole;
    }
    whole.min(region.manual.unwrap_or(region.scale.min).max(1))
}

/// Makes the instances fit the numbers.
pub(crate) fn apply(draft: &mut Draft<'_>) {
    for deployment in 0..draft.view.deployments.len() {
        let it = &draft.view.deployments[deployment];
        let runs = it.status.is_serving() || matches!(it.status, D::Allocating | D::Starting);
        if !runs {
            continue;
        }
        if it.takeover == Takeover::StopFirst && others_hold(&draft.view, it) {
            draft.wait(Reason::WaitsForOld);
            draft.look_later();
            continue;
        }
        for region in 0..it.regions.len() {
            fit(draft, deployment, region);
        }
    }
}

fn others_hold(view: &ServiceView, this: &Deployment) -> bool {
    view.deployments
        .iter()
        .any(|other| other.id != this.id && !other.is_empty())
}

fn fit(draft: &mut Draft<'_>, deployment: usize, region: usize) {
    let it = &draft.view.deployments[deployment];
    let here = &it.regions[region];
    let wanted = wanted(&draft.view, draft.policy, draft.now, it, here);
    let asleep = it.status == D::Sleeping;
    // A replica that ended in light sleep comes back with the wake, unless its owner set the number by hand.
    let rests = asleep && here.manual.is_none() && !is_waking(&draft.view, it, here);
    let mut surplus: Vec<(At, Reason)> = Vec::new();
    let mut best: std::collections::BTreeMap<u32, At> = std::collections::BTreeMap::new();
    for instance in 0..here.instances.len() {
        let at = At {
            deployment,
            region,
            instance,
        };
        let this = draft.instance(at);
        if !this.is_live() {
            continue;
        }
        if this.replica_index >= wanted {
            surplus.push((at, Reason::ScaledDown { wanted }));
            continue;
        }
        match best.get(&this.replica_index).copied() {
            None => {
                best.insert(this.replica_index, at);
            }
            Some(other) => {
                let rank = |at: At| {
                    let it = draft.instance(at);
                    (
                        it.status == InstanceStatus::Healthy,
                        std::cmp::Reverse(it.created_at),
                    )
                };
                let (keep, lose) = if rank(at) > rank(other) {
                    (at, other)
                } else {
                    (other, at)
                };
                best.insert(this.replica_index, keep);
                surplus.push((lose, Reason::Duplicate));
            }
        }
    }
    for (at, reason) in surplus {
        draft.set_instance(at, InstanceStatus::Stopping, Vec::new(), &reason);
    }
    for replica in (0..wanted).filter(|replica| !rests && !best.contains_key(replica)) {
        ensure_replica(draft, deployment, region, replica, wanted, asleep);
    }
}

fn ensure_replica(
    draft: &mut Draft<'_>,
    deployment: usize,
    region: usize,
    replica: u32,
    wanted: u32,
    asleep: bool,
) {
    let it = &draft.view.deployments[deployment];
    let here = &it.regions[region];
    if !matches!(here.site, SiteState::Reachable(_)) {
        let region = here.region.clone();
        draft.wait(Reason::SiteUnreachable { region });
        draft.look_later();
        return;
    }
    let reason = match restart::verdict(here, replica, draft.policy, draft.now) {
        Verdict::Start if asleep => draft.view.wake_reason(),
        Verdict::Start => Reason::ReplicaWanted { replica, wanted },
        Verdict::TryAgain { attempt, cause } => Reason::TryAgain {
            replica,
            attempt,
            cause,
        },
        Verdict::Wait {
            until,
            delay,
            attempt,
            cause,
        } => {
            draft.wait(Reason::BackingOff {
                replica,
                attempt,
                delay,
                cause,
            });
            draft.look_again(until);
            return;
        }
    };
    let (id, regional) = (it.id, here.id);
    if let Some(reason) = draft.view.no_room(id) {
        draft.wait_for(deployment, reason);
        draft.look_again(draft.now.plus(draft.policy.room_look));
        return;
    }
    if let Room::Only { instances, .. } = &mut draft.view.room {
        *instances = instances.saturating_sub(1);
    }
    let write = Write::CreateInstance {
        deployment: id,
        regional,
        replica_index: replica,
        reason,
    };
    draft.write(write);
}
