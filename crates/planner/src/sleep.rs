//! When a service goes to sleep, how deep, and when it wakes.
//!
//! The idle clock starts at the first moment of health, at the last request, or with the newest deployment,
//! whichever is latest. Falling asleep is one transaction; what it means for the instances is the rung:
//!
//! | rung | the deployment | its instances | then, once the data plane holds new requests |
//! |---|---|---|---|
//! | light | SLEEPING | stay HEALTHY | ordered to freeze; SLEEPING when they are seen frozen; to disk later (`checkpoint`) |
//! | deep | SLEEPING | go STOPPING | ordered to stop |
//!
//! An instance of a sleeping deployment that is HEALTHY or SLEEPING in the store is therefore **kept**: it sleeps
//! lightly or is about to. One that is on its way up wakes the deployment, and so does a kept one that turns from
//! SLEEPING to HEALTHY: somebody thawed it, be it by our order or beside us, on the data plane's demand. Deep sleep
//! follows light sleep after its own delay.
//!
//! A model that should make room for another ([`crate::packing`]) goes to deep sleep without its delay, and as any other
//! only when nobody asks it anything.
//!
//! What cannot be frozen stays awake until deep sleep is due, and the deployment says so.

use std::time::Duration;

use tram_site::Capabilities;
use tram_types::{
    Timestamp,
    effective::Scale,
    status::{DeploymentStatus as D, InstanceStatus},
};

use crate::{
    checkpoint,
    draft::Draft,
    policy::Policy,
    reason::{self, Reason},
    restart::{self, Verdict},
    view::{Activity, Deployment, Instance, Intent, Region, ServiceView, SiteState},
};

/// How deep a service sleeps next, and after how much idle time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rung {
    /// It does not sleep.
    Awake,
    /// Its processes are frozen.
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
    let demanded = is_demanded(&draft.view, deployment);
    let awake = deployment.instances().any(|instance| {
        instance.status == InstanceStatus::Healthy && (demanded || !draft.was_healthy(instance.id))
    });
    if awake {
        let reason = draft.view.wake_reason();
        draft.set_deployment(index, D::Healthy, Vec::new(), &reason);
        draft.set_sleeping_since(None);
        return;
    }
    if has_kept(deployment) {
        if !demanded {
            sleep_on(draft, index);
        }
        return;
    }
    let rises = deployment.instances().any(Instance::is_live);
    let closed = draft.view.no_room(deployment.id);
    if let Some(reason) = closed.filter(|_| demanded && !rises) {
        no_room(draft, index, &reason);
        return;
    }
    let over = deployment.messages.iter().any(|it| reason::is_no_room(it));
    if over && !demanded {
        let messages = notes(&draft.view, deployment);
        draft.set_deployment(
            index,
            D::Sleeping,
            messages,
            &Reason::Seen("nobody waits any more"),
        );
    }
    let deployment = &draft.view.deployments[index];
    let demanded = demanded || rises;
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

/// Somebody waits for a deployment that sleeps, and there is no memory for it.
fn no_room(draft: &mut Draft<'_>, index: usize, reason: &Reason) {
    match reason {
        Reason::NeverRoom(why) => {
            let reason = Reason::NoneHealthy(format!("it could not be woken: {why}"));
            draft.set_deployment(index, D::Unhealthy, vec![reason.to_string()], &reason);
            draft.set_sleeping_since(None);
        }
        reason => draft.set_deployment(index, D::Sleeping, vec![reason.to_string()], reason),
    }
}

/// Whether somebody waits for a sleeping deployment. A request under way at one that sleeps lightly came in just
/// before the gate closed: it counts as the first one after.
pub(crate) fn is_demanded(view: &ServiceView, deployment: &Deployment) -> bool {
    let under_way = matches!(view.activity, Activity::Known { in_flight: 1.., .. });
    view.activity.demands_wake() || (under_way && has_kept(deployment))
}

/// Whether an instance of a sleeping deployment is frozen or about to be.
pub(crate) fn is_kept(instance: &Instance) -> bool {
    matches!(
        instance.status,
        InstanceStatus::Healthy | InstanceStatus::Sleeping
    )
}

fn has_kept(deployment: &Deployment) -> bool {
    deployment.status == D::Sleeping && deployment.instances().any(is_kept)
}

/// A deployment that sleeps lightly and is not wanted: awake again when it cannot be frozen, deep when that is due.
fn sleep_on(draft: &mut Draft<'_>, index: usize) {
    let deployment = &draft.view.deployments[index];
    if let Some(why) = unfreezable(deployment) {
        let reason = Reason::CannotFreeze(why);
        let messages = vec![reason.to_string()];
        draft.set_deployment(index, D::Healthy, messages, &reason);
        draft.set_sleeping_since(None);
        return;
    }
    if let Some(why) = checkpoint::obstacle(deployment) {
        let messages = notes(&draft.view, deployment);
        draft.set_deployment(index, D::Sleeping, messages, &Reason::CannotCheckpoint(why));
    }
    let deployment = &draft.view.deployments[index];
    let after = |delay: fn(&Scale) -> Option<Duration>| {
        let delays = deployment.regions.iter().map(|region| delay(&region.scale));
        delays.collect::<Option<Vec<_>>>()?.into_iter().max()
    };
    let (light, deep) = (after(|scale| scale.light_sleep), after(|scale| scale.deep_sleep));
    let since = draft.view.sleeping_since;
    let mut stop = None;
    if let (Some(light), Some(deep), Some(since)) = (light, deep, since) {
        // Both delays count from the last request, and sleep began when the first was over.
        let further = deep.saturating_sub(light);
        let due = since.plus(further);
        // Sleep that began in the future is of a clock that was set back: it is not made longer by that.
        if draft.now < due && since <= draft.now.plus(further) {
            draft.look_again(due);
        } else {
            stop = Some(Reason::Idle(deep));
        }
    }
    // What is frozen holds its memory; what is not frozen yet may have to answer somebody first.
    let quiet = matches!(draft.view.activity, Activity::Known { in_flight: 0, .. });
    if let Some(whose) = draft.view.gives_way.clone().filter(|_| quiet) {
        stop = Some(Reason::MadeRoom(whose));
    }
    let sick = |instance: &Instance| instance.status == InstanceStatus::Unhealthy;
    for at in draft.places() {
        let instance = draft.instance(at);
        let going = if stop.is_some() {
            instance.is_live()
        } else {
            sick(instance)
        };
        if at.deployment == index && going {
            let reason = stop.clone().unwrap_or(Reason::ScaledDown { wanted: 0 });
            draft.set_instance(at, InstanceStatus::Stopping, Vec::new(), &reason);
        }
    }
}

/// Why an instance of the deployment could not be frozen.
fn unfreezable(deployment: &Deployment) -> Option<String> {
    let mut live = deployment.instances().filter(|instance| instance.is_live());
    live.find_map(|instance| instance.unfreezable.clone())
}

/// What the owner of a deployment that serves or sleeps should know: light sleep was asked for and cannot be had.
pub(crate) fn notes(view: &ServiceView, deployment: &Deployment) -> Vec<String> {
    let asks = |region: &&Region| region.scale.min == 0 && region.scale.light_sleep.is_some();
    let mut asking = deployment.regions.iter().filter(asks).peekable();
    if !view.may_sleep || asking.peek().is_none() {
        return Vec::new();
    }
    if let Some(why) = unfreezable(deployment) {
        return vec![Reason::CannotFreeze(why).to_string()];
    }
    if let Some(why) = checkpoint::obstacle(deployment) {
        return vec![Reason::CannotCheckpoint(why).to_string()];
    }
    let unable = asking
        .find(|region| matches!(region.site, SiteState::Reachable(capabilities) if !capabilities.freeze));
    unable.map_or_else(Vec::new, |_| vec![Reason::LightSleepAsDeep.to_string()])
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
    let gives_way = draft.view.gives_way.clone();
    if let Some(due) = due.filter(|due| draft.now < *due && gives_way.is_none()) {
        draft.look_again(due.min(draft.now.plus(whole)));
        return;
    }
    let light = light && gives_way.is_none();
    let reason = match gives_way {
        Some(whose) => Reason::MadeRoom(whose),
        None if light => Reason::IdleLight(after),
        None => Reason::Idle(after),
    };
    let notes = notes(&draft.view, &draft.view.deployments[index]);
    draft.set_deployment(index, D::Sleeping, notes, &reason);
    for at in draft.places() {
        let instance = draft.instance(at);
        let stays = light && instance.status == InstanceStatus::Healthy;
        if at.deployment == index && instance.is_live() && !stays {
            draft.set_instance(at, InstanceStatus::Stopping, Vec::new(), &reason);
        }
    }
    draft.set_sleeping_since(Some(draft.now));
}

/// The idle time before the next sleep, and whether it is light; `None`: some region does not sleep, or nobody knows.
/// Light only if it is to be had in every region and there is something to freeze.
fn delay(deployment: &Deployment) -> Option<(Duration, bool)> {
    let (mut light, mut deep) = (Some(Duration::ZERO), Duration::ZERO);
    for region in &deployment.regions {
        let capabilities = match region.site {
            SiteState::Reachable(capabilities) => capabilities,
            SiteState::Unreachable | SiteState::Missing => return None,
        };
        light = match rung(&region.scale, capabilities) {
            Rung::Light(after) => light.map(|known| known.max(after)),
            Rung::Awake | Rung::Deep(_) => None,
        };
        let without_freeze = Capabilities {
            freeze: false,
            ..capabilities
        };
        match rung(&region.scale, without_freeze) {
            Rung::Deep(after) => deep = deep.max(after),
            Rung::Awake | Rung::Light(_) => return None,
        }
    }
    if deployment.regions.is_empty() {
        return None;
    }
    let freezable = deployment
        .instances()
        .any(|instance| instance.status == InstanceStatus::Healthy)
        && unfreezable(deployment).is_none();
    Some(match light.filter(|light| *light < deep && freezable) {
        Some(light) => (light, true),
        None => (deep, false),
    })
}

/// Whether a deployment goes to sleep when nobody calls.
pub(crate) fn sleeps(deployment: &Deployment) -> bool {
    delay(deployment).is_some()
}

/// When the deployment became healthy, at first and after it had not been running.
fn woken(deployment: &Deployment) -> impl Iterator<Item = Timestamp> + '_ {
    deployment
        .instances()
        .filter_map(|instance| instance.healthy_at)
        .chain(deployment.healthy_at)
}
