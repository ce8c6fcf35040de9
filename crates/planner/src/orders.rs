//! What the sites are told: starts that were lost or not given yet, stops whose time has come, and what light sleep
//! takes and gives back.
//!
//! A stop of an instance that takes requests waits until the data plane has confirmed a table without it, and then
//! until its requests are done or have had their time. One that is stopped because fewer are wanted has all the time
//! that its requests take. Nothing waits for an instance that is sick or deleted.

use tram_site::InstancePhase;
use tram_types::status::{DeploymentStatus, InstanceStatus};

use crate::{
    checkpoint,
    draft::{At, Draft},
    handover,
    plan::Order,
    reason::Reason,
    sleep,
    view::{Activity, Drain, Edge, Intent, Observed},
};

pub(crate) fn issue(draft: &mut Draft<'_>) {
    for at in draft.places() {
        if !draft.reachable(at) {
            continue;
        }
        let instance = draft.instance(at);
        let (id, status, observed) = (instance.id, instance.status, instance.observed.clone());
        match (status, observed) {
            (InstanceStatus::Allocating, Observed::Absent) => {
                draft.order(Order::Start { instance: id });
                draft.look_later();
            }
            // Asleep, and somebody needs it.
            (_, Observed::Seen(seen)) if seen.phase.is_asleep() && is_needed(draft, at) => {
                draft.order(Order::Thaw { instance: id });
                draft.look_later();
            }
            (InstanceStatus::Healthy, Observed::Seen(seen))
                if seen.phase.is_healthy() && falls_asleep(draft, at) =>
            {
                freeze(draft, at);
            }
            (InstanceStatus::Sleeping, Observed::Seen(seen))
                if seen.phase == InstancePhase::Frozen && falls_asleep(draft, at) =>
            {
                checkpoint::consider(draft, at, &seen);
            }
            (InstanceStatus::Allocating | InstanceStatus::Starting, _) => draft.look_later(),
            (InstanceStatus::Stopping, Observed::Seen(seen)) => {
                draft.look_later();
                if !matches!(seen.phase, InstancePhase::Stopping | InstancePhase::Ended { .. }) {
                    stop(draft, at);
                }
            }
            _ => {}
        }
    }
}

/// Whether an instance that counts should have its processor time.
fn is_needed(draft: &Draft<'_>, at: At) -> bool {
    let deployment = &draft.view.deployments[at.deployment];
    let sleeps =
        deployment.status == DeploymentStatus::Sleeping && !sleep::is_demanded(&draft.view, deployment);
    draft.instance(at).is_live() && !sleeps
}

/// Whether an instance is kept for light sleep and nobody waits for it.
fn falls_asleep(draft: &Draft<'_>, at: At) -> bool {
    let deployment = &draft.view.deployments[at.deployment];
    deployment.status == DeploymentStatus::Sleeping && !sleep::is_demanded(&draft.view, deployment)
}

/// Freezes an instance once the data plane has confirmed that it holds new requests, and had the time to say that one
/// is still under way. Whoever carries the order out makes sure of it once more.
fn freeze(draft: &mut Draft<'_>, at: At) {
    let id = draft.instance(at).id;
    if draft.view.routed {
        let reason = match &draft.view.edge {
            Edge::Unknown => Some(Reason::EdgeUnknown),
            Edge::Known { endpoints, .. } if endpoints.contains(&id) => Some(Reason::EdgeStillRoutes),
            Edge::Known { since, .. } => {
                let due = since.plus(draft.policy.settle);
                // A confirmation in the future means that the clock was set back.
                let waits = draft.now < due && draft.now >= *since;
                if waits {
                    draft.look_again(due);
                }
                waits.then_some(Reason::Draining)
            }
        };
        if let Some(reason) = reason {
            draft.look_later();
            return draft.wait(reason);
        }
    }
    draft.order(Order::Freeze { instance: id });
    draft.look_later();
}

/// Whether an instance may be stopped now.
enum Gate {
    Open(Reason),
    Closed(Reason),
}

fn stop(draft: &mut Draft<'_>, at: At) {
    let grace = draft.policy.stop_grace;
    let id = draft.instance(at).id;
    match gate(draft, at) {
        Gate::Open(reason) => draft.order(Order::Stop {
            instance: id,
            grace,
            reason,
        }),
        Gate::Closed(reason) => draft.wait_for(at.deployment, reason),
    }
}

fn gate(draft: &mut Draft<'_>, at: At) -> Gate {
    let instance = draft.instance(at);
    let id = instance.id;
    let deployment = &draft.view.deployments[at.deployment];
    let sick = !instance.messages.is_empty();
    // Before its first health a deployment takes requests only where it shares them, or where there is no other.
    let shared =
        deployment.healthy_at.is_some() || deployment.takeover.shares() || draft.view.active.is_none();
    let never_served = instance.healthy_at.is_none() || !shared;
    if sick || never_served || !draft.view.routed || draft.view.intent == Intent::Delete {
        return Gate::Open(Reason::Stopping);
    }
    let Edge::Known { endpoints, since, .. } = &draft.view.edge else {
        return if draft.view.intent == Intent::Pause {
            Gate::Open(Reason::PauseRequested)
        } else {
            Gate::Closed(Reason::EdgeUnknown)
        };
    };
    if endpoints.contains(&id) {
        return Gate::Closed(Reason::EdgeStillRoutes);
    }
    let idle = matches!(draft.view.activity, Activity::Known { in_flight: 0, .. });
    let patience = match draft.instance(at).drain {
        Drain::Done => return Gate::Open(Reason::Stopping),
        Drain::Unknown if idle => draft.policy.settle,
        // Nothing presses: its deployment goes on, and a stream on it may be somebody's work of an hour.
        Drain::Busy if goes_on(draft, at) => return Gate::Closed(Reason::DrainingForLoad),
        Drain::Unknown if goes_on(draft, at) => {
            // The next report says which instances are busy.
            draft.look_again(draft.now.plus(draft.policy.settle));
            return Gate::Closed(Reason::DrainingForLoad);
        }
        Drain::Unknown | Drain::Busy => draft.policy.drain,
    };
    let due = since.plus(patience);
    // A confirmation in the future means that the clock was set back.
    if draft.now >= due || draft.now < *since {
        Gate::Open(Reason::Stopping)
    } else {
        draft.look_again(due);
        Gate::Closed(Reason::Draining)
    }
}

/// Whether the deployment of an instance that is on its way out goes on without it: there are fewer wanted, or none for
/// as long as it sleeps, and no other deployment relieves it.
fn goes_on(draft: &Draft<'_>, at: At) -> bool {
    let view = &draft.view;
    let deployment = &view.deployments[at.deployment];
    let relieved = view
        .deployments
        .iter()
        .filter_map(|newer| handover::predecessor(view, newer))
        .any(|old| old.id == deployment.id);
    view.intent == Intent::Run && deployment.status.is_serving() && !relieved
}
