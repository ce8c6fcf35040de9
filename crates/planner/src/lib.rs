//! Decides: (what is wanted, what was seen, the policy, the time) -> a plan with its reasons.
//!
//! Pure and synchronous: no I/O, no clock, no randomness, no memory between calls. Whatever must survive a restart is
//! in the store and comes in by the [`ServiceView`]; the same view always gives the same [`Plan`]. The controller
//! builds views and carries plans out without deciding anything; the simulator runs the same code.
//!
//! One service at a time, so the cost of a decision does not grow with the number of services. One file a concern,
//! in the order in which [`plan`] asks them:
//!
//! | file | what it decides |
//! |---|---|
//! | `observe` | what became of each instance, from what its site says |
//! | `lifecycle` | which deployments go on and which go down: delete, pause, cancel, superseded, replaced |
//! | `canary` | whether a canary may go on |
//! | `handover` | how many instances the old and the new deployment have while one takes over from the other |
//! | `in_place` | which changes take effect in the instances that run, and how |
//! | `rollout` | how a new deployment gets from accepted to serving, and when it has failed |
//! | `sleep` | when to sleep and when to wake |
//! | `scale` | how many replicas, with `restart` deciding when a failed one is tried again |
//! | [`autoscale`] | how many the load asks for; called before, since it needs a memory |
//! | `orders` | what the site is told, and when an instance may really be stopped |
//! | `prewake` | when a service is worth keeping awake, from its pattern of calls |
//! | [`packing`] | which models sleep so that another one has room; apart from the others, too |
//! | [`pool`] | which services a pool makes and gives up; apart from the others, as it decides about several |
//! | `status` | what deployments and the service are shown as, and what they wait for |
//!
//! Two rules hold everywhere. A status only moves along the arrows of [`tram_types::machine`]; and **unknown is a
//! state**: while a site cannot be reached, nothing of its is started, stopped or declared dead.

mod app;
pub mod autoscale;
mod canary;
mod checkpoint;
mod draft;
mod handover;
mod in_place;
pub mod inference;
mod lifecycle;
pub mod model_route;
mod observe;
mod orders;
pub mod packing;
mod plan;
mod policy;
pub mod pool;
pub mod prewake;
mod reason;
mod restart;
mod rollout;
mod scale;
mod sleep;
mod status;
mod view;

pub use app::{AppPlan, AppView, plan_app};
pub use in_place::only_policy_differs;
pub use plan::{InstanceWrite, Order, Plan, Write};
pub use policy::Policy;
pub use reason::Reason;
pub use sleep::{Rung, rung};
pub use view::{
    Activity, AppIntent, Deployment, Drain, Edge, Instance, Intent, Observed, Region, Room, ServiceView,
    SiteState, Source, Takeover, Tally,
};

use draft::Draft;
use tram_types::Timestamp;

/// What to do for one service now.
///
/// The writes belong into one transaction, before any of the orders is given: intent first. An empty plan means that
/// nothing is to be done before `look_again_at` or before something changes.
#[must_use]
pub fn plan(view: &ServiceView, policy: &Policy, now: Timestamp) -> Plan {
    let mut draft = Draft::new(view, policy, now);
    observe::apply(&mut draft);
    lifecycle::expire(&mut draft);
    lifecycle::send_down(&mut draft);
    in_place::apply(&mut draft);
    rollout::advance(&mut draft);
    // A promotion in this very plan replaces the deployment that served before.
    lifecycle::send_down(&mut draft);
    sleep::apply(&mut draft);
    scale::apply(&mut draft);
    lifecycle::wind_down(&mut draft);
    orders::issue(&mut draft);
    // Last: what is shown includes what is waited for.
    status::apply(&mut draft);
    draft.finish()
}

#[cfg(test)]
mod tests;
