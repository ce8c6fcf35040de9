//! When a frozen instance is moved to disk.
//!
//! After a delay of its own, or at once when its site is short of memory. What cannot be moved stays frozen until deep
//! sleep is due, and the deployment says why; it is tried again after its next wake.

use tram_site::ObservedInstance;

use crate::{
    draft::{At, Draft},
    plan::Order,
    view::{Deployment, Observed, SiteState},
};

/// Orders it for an instance that is seen frozen and that nobody waits for, or notes when to look again.
pub(crate) fn consider(draft: &mut Draft<'_>, at: At, seen: &ObservedInstance) {
    let region = &draft.view.deployments[at.deployment].regions[at.region];
    let SiteState::Reachable(capabilities) = region.site else {
        return;
    };
    if !capabilities.checkpoint || seen.uncheckpointable.is_some() {
        return;
    }
    let after = draft.policy.checkpoint_after;
    let due = after.and_then(|after| Some(draft.view.sleeping_since?.plus(after)));
    let whole = after.map(|after| draft.now.plus(after));
    match due {
        _ if capabilities.memory_wanted => {}
        // Further ahead than the whole delay is of a clock that was set back since.
        Some(due) if draft.now < due && Some(due) <= whole => return draft.look_again(due),
        Some(_) => {}
        None => return,
    }
    draft.order(Order::Checkpoint { instance: seen.id });
    // News say how it went.
    draft.look_later();
}

/// Why an instance of the deployment could not be moved to disk.
pub(crate) fn obstacle(deployment: &Deployment) -> Option<String> {
    let mut live = deployment.instances().filter(|instance| instance.is_live());
    live.find_map(|instance| match &instance.observed {
        Observed::Seen(seen) => seen.uncheckpointable.clone(),
        Observed::Unknown | Observed::Absent => None,
    })
}
