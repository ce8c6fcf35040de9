//! The plan while it is being made: later stages see what earlier ones have decided.
//!
//! A draft holds its own copy of the view and changes it along with every write, so that one plan takes a service as
//! far as it can go without new knowledge. Statuses are moved here alone, along the arrows of the machines.

use std::net::IpAddr;

use tram_types::{
    InstanceId, Timestamp,
    status::{DeploymentStatus, InstanceStatus, ServiceStatus},
};

use crate::{
    plan::{InstanceWrite, Order, Plan, Write},
    policy::Policy,
    reason::Reason,
    view::{Deployment, Instance, Observed, ServiceView},
};

/// Where an instance is in the view: deployment, region, instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct At {
    pub(crate) deployment: usize,
    pub(crate) region: usize,
    pub(crate) instance: usize,
}

/// The plan while it is being made.
#[derive(Debug)]
pub(crate) struct Draft<'a> {
    pub(crate) view: ServiceView,
    /// The view as it came.
    seen: &'a ServiceView,
    pub(crate) policy: &'a Policy,
    pub(crate) now: Timestamp,
    plan: Plan,
    /// Which deployment waits for what.
    held: Vec<(usize, Reason)>,
}

impl<'a> Draft<'a> {
    pub(crate) fn new(view: &'a ServiceView, policy: &'a Policy, now: Timestamp) -> Self {
        Self {
            view: view.clone(),
            seen: view,
            policy,
            now,
            plan: Plan::default(),
            held: Vec::new(),
        }
    }

    pub(crate) fn finish(self) -> Plan {
        self.plan
    }

    /// Nothing is done for this reason.
    pub(crate) fn wait(&mut self, reason: Reason) {
        if !self.plan.waiting.contains(&reason) {
            self.plan.waiting.push(reason);
        }
    }

    /// The same, and this deployment is what it is about.
    pub(crate) fn wait_for(&mut self, deployment: usize, reason: Reason) {
        let held = (deployment, reason.clone());
        if !self.held.contains(&held) {
            self.held.push(held);
        }
        self.wait(reason);
    }

    /// What keeps a deployment from going further, in words.
    pub(crate) fn held(&self, deployment: usize) -> impl Iterator<Item = String> + '_ {
        let own = move |held: &&(usize, Reason)| held.0 == deployment;
        self.held.iter().filter(own).map(|(_, reason)| reason.to_string())
    }

    /// Something may be due then.
    pub(crate) fn look_again(&mut self, at: Timestamp) {
        let sooner = self.plan.look_again_at.is_none_or(|known| at < known);
        if sooner {
            self.plan.look_again_at = Some(at);
        }
    }

    /// Something is under way whose end should come by news: look anyway after a while.
    pub(crate) fn look_later(&mut self) {
        self.look_again(self.now.plus(self.policy.look));
    }

    pub(crate) fn order(&mut self, order: Order) {
        self.plan.orders.push(order);
    }

    pub(crate) fn write(&mut self, write: Write) {
        self.plan.writes.push(write);
    }

    pub(crate) fn instance(&self, at: At) -> &Instance {
        &self.view.deployments[at.deployment].regions[at.region].instances[at.instance]
    }

    fn instance_mut(&mut self, at: At) -> &mut Instance {
        &mut self.view.deployments[at.deployment].regions[at.region].instances[at.instance]
    }

    /// Whether an instance is HEALTHY in the store, whatever this plan makes of it.
    pub(crate) fn was_healthy(&self, id: InstanceId) -> bool {
        let mut known = self.seen.deployments.iter().flat_map(Deployment::instances);
        known.any(|instance| instance.id == id && instance.status == InstanceStatus::Healthy)
    }

    /// Every instance's place, in the order of the view.
    pub(crate) fn places(&self) -> Vec<At> {
        let mut places = Vec::new();
        for (deployment, it) in self.view.deployments.iter().enumerate() {
            for (region, it) in it.regions.iter().enumerate() {
                places.extend((0..it.instances.len()).map(|instance| At {
                    deployment,
                    region,
                    instance,
                }));
            }
        }
        places
    }

    /// Moves an instance to `to`, one arrow after the other. Does nothing when no arrows lead there.
    pub(crate) fn set_instance(
        &mut self,
        at: At,
        to: InstanceStatus,
        messages: Vec<String>,
        reason: &Reason,
    ) {
        let now = self.now;
        let from = self.instance(at).status;
        for next in path(from, to, InstanceStatus::ALL, InstanceStatus::may_become) {
            let last = next == to;
            let instance = self.instance_mut(at);
            // A site that does not have it has nothing to forget.
            let forgotten = next.is_final() && instance.observed == Observed::Absent;
            instance.forgotten |= forgotten;
            let write = InstanceWrite {
                id: instance.id,
                from: instance.status,
                to: next,
                messages: if last { messages.clone() } else { Vec::new() },
                address: None,
                started_at: None,
                forgotten,
                next_generation: next == InstanceStatus::Stopping,
                reason: reason.clone(),
            };
            instance.status = next;
            instance.messages.clone_from(&write.messages);
            if next == InstanceStatus::Stopping {
                instance.generation = instance.generation.next();
            }
            if next == InstanceStatus::Healthy {
                instance.healthy_at.get_or_insert(now);
            }
            if next.is_final() {
                instance.ended_at = Some(now);
            }
            self.plan.writes.push(Write::Instance(write));
        }
    }

    /// Ends an instance of which nothing will ever be heard again.
    pub(crate) fn give_up(&mut self, at: At, reason: &Reason) {
        self.instance_mut(at).observed = Observed::Absent;
        if !self.instance(at).status.is_final() {
            self.set_instance(at, InstanceStatus::Stopped, vec![reason.to_string()], reason);
        } else if !self.instance(at).forgotten {
            self.note_instance(at, None, None, None, true);
        }
    }

    /// Makes the site forget an instance that is over.
    pub(crate) fn forget(&mut self, at: At) {
        let instance = self.instance_mut(at);
        instance.forgotten = true;
        let instance = instance.id;
        self.plan.orders.push(Order::Forget { instance });
    }

    /// Notes what is new about an instance whose status stays.
    pub(crate) fn note_instance(
        &mut self,
        at: At,
        messages: Option<Vec<String>>,
        address: Option<IpAddr>,
        started_at: Option<Timestamp>,
        forgotten: bool,
    ) {
        let instance = self.instance_mut(at);
        if let Some(messages) = messages {
            instance.messages = messages;
        }
        if address.is_some() {
            instance.address = address;
        }
        instance.forgotten |= forgotten;
        let write = InstanceWrite {
            id: instance.id,
            from: instance.status,
            to: instance.status,
            messages: instance.messages.clone(),
            address,
            started_at,
            forgotten,
            next_generation: false,
            reason: Reason::Seen("its site says more of it"),
        };
        self.plan.writes.push(Write::Instance(write));
    }

    /// Moves a deployment to `to`, one arrow after the other; changes its messages alone when it is there already.
    pub(crate) fn set_deployment(
        &mut self,
        index: usize,
        to: DeploymentStatus,
        messages: Vec<String>,
        reason: &Reason,
    ) {
        let now = self.now;
        let deployment = &mut self.view.deployments[index];
        if deployment.status == to {
            if deployment.messages != messages {
                deployment.messages.clone_from(&messages);
                let write = Write::Deployment {
                    id: deployment.id,
                    from: to,
                    to,
                    messages,
                    reason: reason.clone(),
                };
                self.plan.writes.push(write);
            }
            return;
        }
        for next in path(
            deployment.status,
            to,
            DeploymentStatus::ALL,
            DeploymentStatus::may_become,
        ) {
            let last = next == to;
            let write = Write::Deployment {
                id: deployment.id,
                from: deployment.status,
                to: next,
                messages: if last {
                    messages.clone()
                } else {
                    deployment.messages.clone()
                },
                reason: reason.clone(),
            };
            deployment.status = next;
            if next == DeploymentStatus::Allocating {
                deployment.allocated_at = Some(now);
            }
            if next == DeploymentStatus::Healthy {
                deployment.healthy_at.get_or_insert(now);
            }
            if last {
                deployment.messages.clone_from(&messages);
            }
            self.plan.writes.push(write);
        }
    }

    /// Dates the first place of a deployment's instances anew.
    pub(crate) fn allocate_anew(&mut self, index: usize) {
        let now = self.now;
        let deployment = &mut self.view.deployments[index];
        deployment.allocated_at = Some(now);
        let write = Write::AllocatedAnew(deployment.id);
        self.plan.writes.push(write);
    }

    /// Makes the live instances of one deployment those of another, region by region.
    pub(crate) fn hand_over(&mut self, from: usize, to: usize) {
        for region in 0..self.view.deployments[from].regions.len() {
            let here = &mut self.view.deployments[from].regions[region];
            let name = here.region.clone();
            let (live, over) = std::mem::take(&mut here.instances)
                .into_iter()
                .partition::<Vec<_>, _>(Instance::is_live);
            here.instances = over;
            let deployment = &mut self.view.deployments[to];
            let id = deployment.id;
            // Both have the same definition, and so the same regions.
            let Some(there) = deployment.regions.iter_mut().find(|it| it.region == name) else {
                self.view.deployments[from].regions[region].instances.extend(live);
                continue;
            };
            let writes = live.iter().map(|instance| Write::HandOver {
                instance: instance.id,
                status: instance.status,
                deployment: id,
                regional: there.id,
            });
            self.plan.writes.extend(writes);
            there.instances.extend(live);
        }
    }

    /// Makes a deployment the one that serves, or none.
    pub(crate) fn activate(&mut self, index: Option<usize>, reason: Reason) {
        let deployment = index.map(|index| self.view.deployments[index].id);
        if self.view.active != deployment {
            self.view.active = deployment;
            self.plan.writes.push(Write::Activate { deployment, reason });
        }
    }

    /// Notes since when the service sleeps.
    pub(crate) fn set_sleeping_since(&mut self, since: Option<Timestamp>) {
        if self.view.sleeping_since != since {
            self.view.sleeping_since = since;
            self.plan.writes.push(Write::SleepingSince(since));
        }
    }

    /// Shows the service as `to`.
    pub(crate) fn set_service(&mut self, to: ServiceStatus, messages: Vec<String>) {
        if self.view.status != to || self.view.messages != messages {
            let from = self.view.status;
            self.view.status = to;
            self.view.messages.clone_from(&messages);
            self.plan.writes.push(Write::Service { from, to, messages });
        }
    }

    /// Whether a region's site answers.
    pub(crate) fn reachable(&self, at: At) -> bool {
        let region = &self.view.deployments[at.deployment].regions[at.region];
        matches!(region.site, crate::view::SiteState::Reachable(_))
    }

    /// The newest deployment that is not final and was never healthy.
    pub(crate) fn upcoming(&self) -> Option<&Deployment> {
        self.view
            .deployments
            .iter()
            .filter(|deployment| deployment.status.is_starting_up() && !deployment.cancel_requested)
            .max_by_key(|deployment| deployment.version)
    }

    /// The newest deployment that serves.
    pub(crate) fn serving(&self) -> Option<usize> {
        (0..self.view.deployments.len())
            .filter(|index| self.view.deployments[*index].status.is_serving())
            .max_by_key(|index| self.view.deployments[*index].version)
    }
}

/// The shortest way along the arrows, without its start. Empty when there is none or when it is there already.
fn path<S: Copy + PartialEq>(from: S, to: S, all: &[S], may_become: fn(S, S) -> bool) -> Vec<S> {
    let mut ways: Vec<Vec<S>> = vec![vec![from]];
    let mut next = 0;
    while next < ways.len() {
        let way = ways[next].clone();
        next += 1;
        let Some(end) = way.last().copied() else { continue };
        if end == to {
            return way.into_iter().skip(1).collect();
        }
        for state in all {
            let known = ways.iter().any(|way| way.contains(state));
            if !known && may_become(end, *state) {
                let mut longer = way.clone();
                longer.push(*state);
                ways.push(longer);
            }
        }
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_way_skips_scheduled_and_never_jumps() {
        use DeploymentStatus as D;
        let way = |from, to| path(from, to, D::ALL, D::may_become);
        assert_eq!(way(D::Pending, D::Allocating), [D::Provisioning, D::Allocating]);
        assert_eq!(way(D::Starting, D::Error), [D::Erroring, D::Error]);
        assert_eq!(way(D::Healthy, D::Error), []);
        assert_eq!(way(D::Healthy, D::Healthy), []);
    }
}
