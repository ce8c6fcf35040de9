//! What became of each instance, from what its site says.
//!
//! An instance that failed by itself ends as ERROR with its cause; one that was stopped on purpose ends as STOPPED
//! without messages; one that was interrupted from outside (the machine went down) ends as STOPPED with a message.
//! `restart` tells them apart by that.

use std::time::Duration;

use tram_site::{EndCause, InstancePhase, ObservedInstance};
use tram_types::{
    Timestamp,
    status::{DeploymentStatus, InstanceStatus as S},
};

use crate::{
    draft::{At, Draft},
    reason::Reason,
    view::{Intent, Observed, SiteState},
};

pub(crate) fn apply(draft: &mut Draft<'_>) {
    for at in draft.places() {
        let instance = draft.instance(at);
        match instance.observed.clone() {
            Observed::Unknown => unknown(draft, at),
            Observed::Absent => absent(draft, at),
            Observed::Seen(seen) => self::seen(draft, at, &seen),
        }
    }
}

fn unknown(draft: &mut Draft<'_>, at: At) {
    let deployment = &draft.view.deployments[at.deployment];
    let region = &deployment.regions[at.region];
    let over = deployment.is_going_down() || deployment.status.is_final();
    let name = region.region.clone();
    match region.site {
        SiteState::Unreachable if !draft.instance(at).status.is_final() => {
            draft.wait_for(at.deployment, Reason::SiteUnreachable { region: name });
            draft.look_later();
        }
        // Nobody will ever say what became of it. What still runs there is a stray once the region is served again.
        SiteState::Missing if over || draft.view.intent == Intent::Delete => {
            draft.give_up(at, &Reason::NotServed { region: name });
        }
        _ => {}
    }
}

fn absent(draft: &mut Draft<'_>, at: At) {
    let instance = draft.instance(at);
    match instance.status {
        // Never started, or the order was lost: `orders` gives it (again), for a while.
        S::Allocating => {
            if let Some(within) = overdue(draft, at, None) {
                let reason = never_started(draft, at, within);
                draft.set_instance(at, S::Error, vec![reason.to_string()], &reason);
            }
        }
        S::Stopping => settle(draft, at),
        S::Stopped | S::Error => {
            if !instance.forgotten {
                draft.note_instance(at, None, None, None, true);
            }
        }
        S::Starting | S::Healthy | S::Unhealthy | S::Sleeping => {
            let reason = Reason::Lost;
            draft.set_instance(at, S::Stopped, vec![reason.to_string()], &reason);
        }
    }
}

fn seen(draft: &mut Draft<'_>, at: At, seen: &ObservedInstance) {
    let instance = draft.instance(at);
    let status = instance.status;
    if status.is_final() {
        if seen.phase.is_ended() && !instance.forgotten {
            draft.forget(at);
        }
        return;
    }
    if let InstancePhase::Ended { cause, .. } = &seen.phase {
        if status == S::Stopping {
            settle(draft, at);
        } else {
            ended(draft, at, cause);
        }
        draft.forget(at);
        return;
    }
    if status == S::Stopping {
        return;
    }
    alive(draft, at, seen);
    let instance = draft.instance(at);
    if instance.is_live() && seen.address.is_some() && instance.address != seen.address {
        draft.note_instance(at, None, seen.address, seen.started_at, false);
    }
}

/// A stop that was ordered has come to its end.
fn settle(draft: &mut Draft<'_>, at: At) {
    let messages = draft.instance(at).messages.clone();
    let to = if messages.is_empty() { S::Stopped } else { S::Error };
    draft.set_instance(at, to, messages, &Reason::Seen("the instance has stopped"));
}

/// An instance ended without an order of ours.
fn ended(draft: &mut Draft<'_>, at: At, cause: &EndCause) {
    let reason = Reason::Ended(cause.clone());
    let to = match cause {
        EndCause::Interrupted | EndCause::Stopped => S::Stopped,
        EndCause::Exited { .. }
        | EndCause::Killed { .. }
        | EndCause::OutOfMemory { .. }
        | EndCause::FailedToStart { .. } => S::Error,
    };
    draft.set_instance(at, to, vec![reason.to_string()], &reason);
}

fn alive(draft: &mut Draft<'_>, at: At, seen: &ObservedInstance) {
    let status = draft.instance(at).status;
    match &seen.phase {
        InstancePhase::Stopping | InstancePhase::Ended { .. } => {}
        InstancePhase::Preparing => {
            if let Some(within) = overdue(draft, at, None) {
                let reason = never_started(draft, at, within);
                draft.set_instance(at, S::Stopping, vec![reason.to_string()], &reason);
            }
        }
        InstancePhase::Starting { last_failure } => {
            if status == S::Allocating {
                draft.set_instance(
                    at,
                    S::Starting,
                    Vec::new(),
                    &Reason::Seen("its program was started"),
                );
            }
            if let Some(within) = overdue(draft, at, seen.started_at) {
                let last = last_failure.clone();
                let reason = Reason::NeverHealthy { within, last };
                draft.set_instance(at, S::Stopping, vec![reason.to_string()], &reason);
            }
        }
        InstancePhase::Running { healthy: true, .. } => {
            draft.set_instance(at, S::Healthy, Vec::new(), &Reason::Seen("its checks pass"));
        }
        InstancePhase::Running {
            healthy: false,
            failures,
            last_failure,
        } => {
            let limit = draft.view.deployments[at.deployment].regions[at.region].restart_limit;
            let reason = Reason::Failing {
                failures: *failures,
                last: last_failure.clone(),
            };
            let to = if *failures >= limit {
                S::Stopping
            } else {
                S::Unhealthy
            };
            draft.set_instance(at, to, vec![reason.to_string()], &reason);
        }
        // Frozen while it should be awake: `orders` has it thawed, and until then its status says nothing new.
        InstancePhase::Frozen | InstancePhase::Checkpointed
            if status == S::Healthy
                && draft.view.deployments[at.deployment].status == DeploymentStatus::Sleeping =>
        {
            draft.set_instance(at, S::Sleeping, Vec::new(), &Reason::Seen("it is frozen"));
        }
        InstancePhase::Frozen | InstancePhase::Checkpointed => {}
    }
}

/// The time an instance had to become healthy, when that is over and it is to be replaced. Only once its deployment
/// was healthy: before that, the deadline is the deployment's own, in `rollout`.
fn overdue(draft: &mut Draft<'_>, at: At, started_at: Option<Timestamp>) -> Option<Duration> {
    draft.view.deployments[at.deployment].healthy_at?;
    let region = &draft.view.deployments[at.deployment].regions[at.region];
    let within = draft.policy.start_deadline.saturating_add(region.start_grace);
    let created_at = draft.instance(at).created_at;
    // A row that was made after the clock had been set back may be dated ahead.
    let since = started_at.map_or(created_at, |started_at| started_at.min(created_at));
    let due = since.plus(within);
    if draft.now < due {
        draft.look_again(due);
        return None;
    }
    Some(within)
}

fn never_started(draft: &Draft<'_>, at: At, within: Duration) -> Reason {
    let cause = draft.instance(at).trouble.clone();
    Reason::NeverStarted { within, cause }
}
