//! Which deployments go on and which go down, and how going down ends.

use std::collections::BTreeSet;

use tram_types::{
    InstanceId,
    status::{DeploymentStatus as D, InstanceStatus},
};

use crate::{
    draft::Draft,
    handover,
    plan::{Order, Write},
    reason::Reason,
    view::{Deployment, Intent, ServiceView},
};

/// Asks for the service's deletion when its own rules say so.
pub(crate) fn expire(draft: &mut Draft<'_>) {
    if draft.view.intent == Intent::Delete {
        return;
    }
    let created = draft
        .view
        .delete_after_create
        .map(|after| (draft.view.created_at.plus(after), Reason::LivedLongEnough(after)));
    // What is paused or being deployed anew does not sleep, whatever it did before.
    let asleep = draft.view.intent == Intent::Run
        && draft.upcoming().is_none()
        && draft.view.deployments.iter().any(|it| it.status == D::Sleeping);
    let slept = draft
        .view
        .delete_after_sleep
        .zip(draft.view.sleeping_since.filter(|_| asleep))
        .map(|(after, since)| (since.plus(after), Reason::SleptLongEnough(after)));
    for (due, reason) in [created, slept].into_iter().flatten() {
        if draft.now < due {
            draft.look_again(due);
        } else if draft.view.intent != Intent::Delete {
            draft.view.intent = Intent::Delete;
            draft.write(Write::RequestDelete(reason));
        }
    }
}

/// What is to become of a deployment.
#[derive(Debug, Clone, PartialEq)]
enum Fate {
    /// It goes on, or is down already.
    GoesOn,
    /// It never ran and will not.
    Cancel(Reason),
    /// It ran, or may have.
    Stop(Reason),
}

fn fate(view: &ServiceView, deployment: &Deployment) -> Fate {
    if deployment.status.is_final() || deployment.is_going_down() {
        return Fate::GoesOn;
    }
    let down = |reason: Reason| {
        if deployment.status.is_cancelable() {
            Fate::Cancel(reason)
        } else {
            Fate::Stop(reason)
        }
    };
    match view.intent {
        Intent::Delete => return down(Reason::DeleteRequested),
        Intent::Pause => return down(Reason::PauseRequested),
        Intent::Run => {}
    }
    if deployment.status.is_starting_up() && deployment.cancel_requested {
        return Fate::Cancel(Reason::CancelRequested);
    }
    let newer = |that: &&Deployment| that.version > deployment.version && !that.cancel_requested;
    for that in view.deployments.iter().filter(newer) {
        let by_version = that.version;
        if deployment.status.is_starting_up() && (that.status.is_starting_up() || that.status.is_serving()) {
            return down(Reason::Superseded { by_version });
        }
        if that.status.is_serving() {
            return Fate::Stop(Reason::Replaced { by_version });
        }
        let under_way = matches!(that.status, D::Allocating | D::Starting);
        if under_way && !that.takeover.keeps_old() {
            return Fate::Stop(Reason::StoppedForStrategy { by_version });
        }
    }
    Fate::GoesOn
}

/// Sends down what should not go on.
pub(crate) fn send_down(draft: &mut Draft<'_>) {
    for index in 0..draft.view.deployments.len() {
        match fate(&draft.view, &draft.view.deployments[index]) {
            Fate::GoesOn => {}
            Fate::Cancel(reason) => {
                draft.set_deployment(index, D::Canceling, vec![reason.to_string()], &reason);
            }
            Fate::Stop(reason) => {
                draft.set_deployment(index, D::Stopping, vec![reason.to_string()], &reason);
            }
        }
    }
}

/// Stops the instances of what goes down; when none is left, says so; removes a deleted service that holds nothing.
pub(crate) fn wind_down(draft: &mut Draft<'_>) {
    let view = &draft.view;
    let stand_ins: BTreeSet<InstanceId> = view
        .deployments
        .iter()
        .flat_map(|it| it.regions.iter().map(move |region| (it, region)))
        .flat_map(|(it, region)| handover::stand_ins(view, it, region))
        .collect();
    for at in draft.places() {
        if stand_ins.contains(&draft.instance(at).id) {
            draft.wait_for(at.deployment, Reason::StandsIn);
            continue;
        }
        let deployment = &draft.view.deployments[at.deployment];
        // A final deployment holds nothing; an instance beside one is what a crash left half done.
        let over = deployment.is_going_down() || deployment.status.is_final();
        if over && draft.instance(at).is_live() {
            draft.set_instance(at, InstanceStatus::Stopping, Vec::new(), &Reason::Stopping);
        }
        let instance = draft.instance(at);
        let never_ran =
            instance.status == InstanceStatus::Stopping && instance.observed == crate::view::Observed::Absent;
        if over && never_ran {
            let messages = instance.messages.clone();
            let to = if messages.is_empty() {
                InstanceStatus::Stopped
            } else {
                InstanceStatus::Error
            };
            draft.set_instance(at, to, messages, &Reason::Gone);
        }
    }
    for index in 0..draft.view.deployments.len() {
        let deployment = &draft.view.deployments[index];
        if !deployment.is_going_down() {
            continue;
        }
        if !deployment.is_empty() {
            draft.wait(Reason::Stopping);
            draft.look_later();
            continue;
        }
        let to = match deployment.status {
            D::Canceling => D::Canceled,
            D::Erroring => D::Error,
            _ => D::Stopped,
        };
        // The first one says why; what it waited for on the way is over.
        let (messages, was_active) = (
            deployment.messages.iter().take(1).cloned().collect(),
            draft.view.active == Some(deployment.id),
        );
        draft.set_deployment(index, to, messages, &Reason::Gone);
        if was_active {
            draft.activate(None, Reason::Gone);
        }
    }
    let held = draft
        .view
        .deployments
        .iter()
        .any(|deployment| !deployment.status.is_final() || !deployment.is_forgotten());
    if draft.view.intent == Intent::Delete && !held {
        draft.order(Order::RemoveService);
    }
}
