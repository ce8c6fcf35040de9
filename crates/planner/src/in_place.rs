//! Which changes of a definition take effect in the instances that run, and how: those of the network policy alone.
//!
//! The new deployment starts nothing. The sites are told, one instance after the other, that it goes on as one of the new
//! deployment; when all have confirmed that, the instances become the new one's, it serves, and the old one has nothing
//! left and ends. Nobody sees a policy as deployed that does not hold everywhere yet.
//!
//! Nothing is remembered: which deployment an instance runs as is what its site says. So an attempt that was cut off, or
//! whose owner cancelled it, is taken back the same way: an instance that runs as one of another deployment than its own
//! is given back.

use tram_site::InstancePhase;
use tram_types::{
    DeploymentId,
    definition::DeploymentDefinition,
    status::{DeploymentStatus as D, InstanceStatus},
};

use crate::{
    draft::{At, Draft},
    plan::Order,
    reason::Reason,
    view::{Instance, Intent, Observed, ServiceView},
};

/// Whether two definitions differ in what may be reached outside, and in nothing else: then running instances can go on
/// under the other one. Two that are the same do not: who deploys the same again wants new instances.
#[must_use]
pub fn only_policy_differs(old: &DeploymentDefinition, new: &DeploymentDefinition) -> bool {
    old != new && without_egress(old) == without_egress(new)
}

/// The definition with nothing said of egress; an empty policy is none.
fn without_egress(definition: &DeploymentDefinition) -> DeploymentDefinition {
    let mut rest = definition.clone();
    if let Some(policy) = &mut rest.network_policy {
        policy.egress = None;
    }
    rest.network_policy = rest
        .network_policy
        .filter(|policy| *policy != tram_types::definition::NetworkPolicy::default());
    rest
}

/// A deployment that takes over what runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Heir {
    /// Its place in the view.
    pub(crate) new: usize,
    /// That of the deployment whose instances it takes over.
    old: usize,
}

/// The deployment that takes over what runs, if the newest one may.
pub(crate) fn heir(view: &ServiceView) -> Option<Heir> {
    if view.intent != Intent::Run {
        return None;
    }
    let deployments = || view.deployments.iter().enumerate();
    let (new, upcoming) = deployments()
        .filter(|(_, it)| it.status.is_starting_up() && !it.cancel_requested)
        .max_by_key(|(_, it)| it.version)?;
    let (old, serving) = deployments()
        .filter(|(_, it)| it.status.is_serving())
        .max_by_key(|(_, it)| it.version)?;
    let live = || serving.instances().filter(|instance| instance.is_live());
    // One in trouble gets new instances, as with any other change; so does one of which nothing runs.
    let may = matches!(upcoming.status, D::Pending | D::Provisioning | D::Scheduled)
        && matches!(serving.status, D::Healthy | D::Sleeping)
        && serving.version < upcoming.version
        && upcoming.continues.contains(&serving.id)
        && live().next().is_some()
        && live().all(may_be_taken_over);
    may.then_some(Heir { new, old })
}

/// Whether an instance can go on under another deployment, as far as is known now: it runs or sleeps, and its site can do
/// that. One that nobody can ask about now is waited for, and so is one that is about to start.
fn may_be_taken_over(instance: &Instance) -> bool {
    match &instance.observed {
        Observed::Unknown => true,
        Observed::Absent => instance.status == InstanceStatus::Allocating,
        Observed::Seen(seen) => seen.deployment.is_some() && !is_over(&seen.phase),
    }
}

fn is_over(phase: &InstancePhase) -> bool {
    matches!(phase, InstancePhase::Stopping | InstancePhase::Ended { .. })
}

/// Has every instance go on as one of the deployment that it should be one of.
pub(crate) fn apply(draft: &mut Draft<'_>) {
    let heir = heir(&draft.view);
    let mut waits = false;
    for at in draft.places() {
        if !draft.instance(at).is_live() {
            continue;
        }
        let inherited = heir.filter(|heir| heir.old == at.deployment);
        let wanted = draft.view.deployments[inherited.map_or(at.deployment, |heir| heir.new)].id;
        let confirmed = confirm(draft, at, wanted);
        waits |= inherited.is_some() && !confirmed;
    }
    let Some(Heir { new, old }) = heir else { return };
    if waits {
        draft.wait_for(new, Reason::PolicyOnItsWay);
        draft.look_later();
        let words = vec![Reason::PolicyOnItsWay.to_string()];
        return draft.set_deployment(new, D::Provisioning, words, &Reason::PolicyOnItsWay);
    }
    let sleeps = draft.view.deployments[old].status == D::Sleeping;
    draft.hand_over(old, new);
    draft.set_deployment(new, D::Healthy, Vec::new(), &Reason::PolicyApplied);
    if sleeps {
        draft.set_deployment(new, D::Sleeping, Vec::new(), &Reason::PolicyApplied);
    }
    draft.activate(Some(new), Reason::PolicyApplied);
}

/// Whether an instance is known to run as one of this deployment; its site is told when it is known not to.
fn confirm(draft: &mut Draft<'_>, at: At, deployment: DeploymentId) -> bool {
    let reachable = draft.reachable(at);
    let instance = draft.instance(at);
    let id = instance.id;
    let Observed::Seen(seen) = &instance.observed else {
        return false;
    };
    match seen.deployment {
        Some(known) if known == deployment => true,
        Some(_) if reachable && !is_over(&seen.phase) => {
            draft.order(Order::Continue {
                instance: id,
                deployment,
            });
            draft.look_later();
            false
        }
        _ => false,
    }
}
