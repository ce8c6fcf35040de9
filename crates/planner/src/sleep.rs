//! When a service goes to sleep and when it wakes.
//!
//! The idle clock starts at the first moment of health, at the last request, or with the newest deployment,
//! whichever is latest. Falling asleep is one transaction: the deployment shows SLEEPING and its instances go
//! STOPPING; the orders to stop wait, in `orders`, until the data plane has confirmed that it holds new requests.
//! So a live instance of a sleeping deployment is always one that wakes it.

use std::time::Duration;

use tram_site::Capabilities;
use tram_types::{
    Timestamp,
    effective::Scale,
    status::{DeploymentStatus as D, InstanceStatus},
};

use crate::{
    draft::Draft,
    policy::Policy,
    reason::Reason,
    restart::{self, Verdict},
    view::{Activity, Deployment, Intent, Region, SiteState},
};

/// How deep a service sleeps next, and after how much idle time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rung {
    /// It does not sleep.
    Awake,
    /// Its processes are frozen. Chosen, but not carried out yet.
    Light(Duration),
    /// Its instances are stopped.
    Deep(Duration),
}

/// The rung that a region's scaling and its site's abilities lead to.
#[must_use]
pub fn rung(scale: &Scale, capabilities: Capabilities) -> Rung {
    match (scale.light_sleep, scale.deep_sleep) {
        (Some(light), _) if scale.min == 0 && capabilities.freeze => Rung::Light(light),
        (_, Some(deep)) if scale.min == 0 => Rung::Deep(deep),
        _ => Rung::Awake,
    }
}

/// Puts the serving deployment to sleep, or notes when to look again; shows it awake once an instance is healthy.
pub(crate) fn apply(draft: &mut Draft<'_>) {
    let Some(index) = draft.serving().filter(|_| draft.view.intent == Intent::Run) else {
        draft.set_sleeping_since(None);
        return;
    };
    if draft.view.deployments[index].status == D::Sleeping {
        wake(draft, index);
    } else {
        draft.set_sleeping_since(None);
        fall_asleep(draft, index);
    }
}

fn wake(draft: &mut Draft<'_>, index: usize) {
    let deployment = &draft.view.deployments[index];
    let healthy = deployment
        .instances()
        .any(|instance| instance.status == InstanceStatus::Healthy);
    if healthy {
        draft.set_deployment(index, D::Healthy, Vec::new(), &Reason::WakeRequested);
        draft.set_sleeping_since(None);
        return;
    }
    let demanded =
        draft.view.activity.demands_wake() || deployment.instances().any(crate::view::Instance::is_live);
    let cause = deployment
        .regions
        .iter()
        .find_map(|region| cannot_wake(region, draft.policy, draft.now));
    if let Some(cause) = cause.filter(|_| demanded) {
        let reason = Reason::NoneHealthy(format!("it could not be woken: {cause}"));
        draft.set_deployment(index, D::Unhealthy, vec![reason.to_string()], &reason);
        draft.set_sleeping_since(None);
    }
}

/// Why nothing comes up in a region now: its site cannot start it, or it failed and waits for its next try. A failure
/// whose pause is over says nothing: the next try is part of this wake.
fn cannot_wake(region: &Region, policy: &Policy, now: Timestamp) -> Option<String> {
    let mut live = region.instances.iter().filter(|instance| instance.is_live());
    let trouble = live.find_map(|instance| instance.trouble.clone());
    trouble.or_else(|| match restart::verdict(region, 0, policy, now) {
        Verdict::Wait { cause, .. } => Some(cause),
        Verdict::Start | Verdict::TryAgain { .. } => None,
    })
}

fn fall_asleep(draft: &mut Draft<'_>, index: usize) {
    let deployment = &draft.view.deployments[index];
    if !draft.view.may_sleep || draft.upcoming().is_some() {
        return;
    }
    let Some((after, light)) = delay(deployment) else {
        return;
    };
    if light {
        draft.wait(Reason::LightSleepAsDeep);
    }
    let Activity::Known {
        in_flight: 0,
        queued: 0,
        last_at,
        wake: false,
    } = draft.view.activity
    else {
        // Traffic, or nobody knows: look again when the whole delay has passed anew.
        draft.look_again(draft.now.plus(after));
        return;
    };
    let visible = draft.policy.healthy_visible;
    let whole = after.max(visible);
    let woken: Vec<Timestamp> = woken(&draft.view.deployments[index]).collect();
    if woken.is_empty() {
        return;
    }
    // What lies further ahead than the whole delay is of a clock that was set back since, and says nothing.
    let credible = |at: &Timestamp| *at <= draft.now.plus(whole);
    let healthy = woken.into_iter().filter(credible).max();
    let idle_since = healthy.max(last_at.filter(credible));
    let due = idle_since
        .map(|since| since.plus(after))
        .max(healthy.map(|healthy| healthy.plus(visible)));
    if let Some(due) = due.filter(|due| draft.now < *due) {
        draft.look_again(due.min(draft.now.plus(whole)));
        return;
    }
    let reason = Reason::Idle(after);
    draft.set_deployment(index, D::Sleeping, Vec::new(), &reason);
    for at in draft.places() {
        if at.deployment == index && draft.instance(at).is_live() {
            draft.set_instance(at, InstanceStatus::Stopping, Vec::new(), &reason);
        }
    }
    draft.set_sleeping_since(Some(draft.now));
}

/// The idle time before deep sleep in every region, and whether light sleep would come first; `None`: some region
/// does not sleep.
fn delay(deployment: &Deployment) -> Option<(Duration, bool)> {
    let mut longest = Duration::ZERO;
    let mut light = false;
    for region in &deployment.regions {
        let capabilities = match region.site {
            SiteState::Reachable(capabilities) => capabilities,
            SiteState::Unreachable | SiteState::Missing => return None,
        };
        light |= matches!(rung(&region.scale, capabilities), Rung::Light(_));
        let without_freeze = Capabilities {
            freeze: false,
            ..capabilities
        };
        match rung(&region.scale, without_freeze) {
            Rung::Deep(after) => longest = longest.max(after),
            Rung::Awake | Rung::Light(_) => return None,
        }
    }
    (!deployment.regions.is_empty()).then_some((longest, light))
}

/// When the deployment became healthy, at first and after it had not been running.
fn woken(deployment: &Deployment) -> impl Iterator<Item = Timestamp> + '_ {
    deployment
        .instances()
        .filter_map(|instance| instance.healthy_at)
        .chain(deployment.healthy_at)
}
