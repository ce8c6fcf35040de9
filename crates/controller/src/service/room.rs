//! Plans a service whose instances share the memory of a machine with other models: see [`crate::packing`].

use serde::Deserialize as _;
use tokio::sync::MutexGuard as Turn;
use tram_planner::{
    Activity, Plan, Reason, Room, Write,
    packing::{self, Full, Rest, Verdict},
};
use tram_types::{
    DeploymentId, ServiceId, definition::DeploymentDefinition, status::InstanceStatus, units::amount,
};

use super::{Reconciler, freeze, view::Seen};
use crate::{
    error::Error,
    packing::{ModelMemory, present, rest},
    queue::Key,
    spec::{model, written_region},
};

/// What a plan needs, and what there is.
struct Asks<'a> {
    seen: &'a Seen,
    memory: &'a ModelMemory,
    /// Of each new instance, in bytes; each would fit by itself.
    new: Vec<u64>,
}

impl Reconciler {
    /// Plans a service. The turn, where there is one, is to be held until the plan is written.
    pub(super) async fn plan(&self, seen: &mut Seen) -> Result<(Plan, Option<Turn<'_, ()>>), Error> {
        let plan = |seen: &Seen| tram_planner::plan(&seen.view, &self.deps.policy, self.deps.clock.now());
        let is_model = seen.definitions.values().any(|it| it.model.is_some());
        let Some(memory) = self.packing.memory().filter(|_| is_model) else {
            return Ok((plan(seen), None));
        };
        let id = seen.view.id;
        self.note_model(seen);
        let owner = seen.state.service.organization_id;
        seen.view.gives_way = self.packing.take_asked(id, owner);
        if let Some(why) = self.packing.waits(id) {
            if self.packing.is_in_vain(&seen.view, self.deps.clock.now()) {
                self.activities.clear_wake(id);
                self.habits.give_up(id);
                seen.view.activity = freeze::activity(self.activities.of(id), seen.over);
                seen.view.expected = false;
            }
            // Whether it still wants what it waits for shows in a plan that does not get it.
            seen.view.room = Room::Only { instances: 0, why };
            let without = plan(seen);
            if !without.waiting.iter().any(|it| matches!(it, Reason::NoRoom(_))) {
                self.packing.content(id);
                return Ok((without, None));
            }
            seen.view.room = Room::Open;
        }
        let (whole, new) = loop {
            let whole = plan(seen);
            let new = self.new_instances(seen, &whole, memory);
            let large = new.iter().filter(|(_, bytes)| *bytes > memory.bytes);
            let never: Vec<_> = large
                .map(|(deployment, bytes)| (*deployment, never(*bytes, memory.bytes)))
                .collect();
            if never.is_empty() {
                break (whole, new.into_iter().map(|(_, bytes)| bytes).collect::<Vec<_>>());
            }
            // Each at most once: nothing is made of it then.
            seen.view.too_large.extend(never);
        };
        if new.is_empty() {
            self.packing.content(id);
            return Ok((whole, None));
        }
        let turn = self.packing.turn().await;
        seen.view.room = self.room(&Asks { seen, memory, new }).await?;
        if seen.view.room == Room::Open {
            return Ok((whole, Some(turn)));
        }
        Ok((plan(seen), Some(turn)))
    }

    fn note_model(&self, seen: &Seen) {
        let view = &seen.view;
        let may_rest = packing::may_rest(view);
        let rest = rest(may_rest, view.activity, &present(view), &self.deps.sites);
        self.habits.watch(view.id);
        self.packing.note(view, rest, &self.queue);
    }

    /// What each new instance of a plan needs there, in bytes, and of which deployment it is.
    fn new_instances(&self, seen: &Seen, plan: &Plan, memory: &ModelMemory) -> Vec<(DeploymentId, u64)> {
        let new = plan.writes.iter().filter_map(|write| match write {
            Write::CreateInstance {
                deployment, regional, ..
            } => Some((*deployment, *regional)),
            _ => None,
        });
        let here = new.filter(|(_, regional)| {
            let regions = &seen.state.regional_deployments;
            let own = regions.iter().find(|it| it.id == *regional);
            own.is_some_and(|it| it.region == memory.region)
        });
        let bytes = |deployment| {
            let definition = seen.definitions.get(&deployment)?;
            let bytes = self.model_bytes(deployment, definition, &memory.region)?;
            Some((deployment, bytes))
        };
        here.filter_map(|(deployment, _)| bytes(deployment)).collect()
    }

    /// What an instance of a deployment takes at most, in bytes: what serving its model needs, or all that its type has
    /// where nobody knows that. `None`: it serves no model.
    fn model_bytes(
        &self,
        deployment: DeploymentId,
        definition: &DeploymentDefinition,
        region: &str,
    ) -> Option<u64> {
        let source = definition.model.as_ref()?;
        if let Some(known) = self.packing.size(deployment) {
            return Some(known);
        }
        let catalog = &self.deps.catalog;
        let kind = definition.effective_instance_type(written_region(catalog, definition, region));
        let most = catalog.instance_type(kind).map_or(0, |kind| kind.memory_bytes);
        let needed = self.deps.sites.for_region(region).and_then(|site| {
            let context_length = u64::try_from(source.context_length).unwrap_or(0);
            site.model_memory_bytes(&model::image(source, None, deployment), context_length)
        });
        let bytes = needed.map_or(most, |needed| needed.min(most));
        self.packing.set_size(deployment, bytes);
        Some(bytes)
    }

    /// What every model there holds, as the store says.
    async fn residents(&self, memory: &ModelMemory) -> Result<Vec<packing::Resident>, Error> {
        let counted = self
            .deps
            .store
            .model_instances_unscoped(&memory.region)
            .await
            .map_err(Error::store("count the instances of models"))?;
        let mut residents: Vec<packing::Resident> = Vec::new();
        for row in &counted {
            let bytes = match self.packing.size(row.deployment_id) {
                Some(bytes) => bytes,
                None => self.bytes_of(row.deployment_id, &memory.region).await?,
            };
            let bytes = bytes.saturating_mul(row.count);
            let at = match residents.iter().position(|it| it.service == row.service_id) {
                Some(at) => at,
                None => {
                    residents.push(self.resident(row.service_id));
                    residents.len() - 1
                }
            };
            let resident = &mut residents[at];
            resident.held = resident.held.saturating_add(bytes);
            if row.status == InstanceStatus::Stopping {
                resident.leaving = resident.leaving.saturating_add(bytes);
            }
        }
        let held = residents.iter().map(|it| it.held).fold(0, u64::saturating_add);
        let deployments: Vec<DeploymentId> = counted.iter().map(|row| row.deployment_id).collect();
        self.packing.set_held(held, &deployments);
        Ok(residents)
    }

    /// Counts what models hold, for metrics; nothing else depends on it.
    pub(crate) async fn count_models(&self) {
        let Some(memory) = self.packing.memory() else {
            return;
        };
        if let Err(error) = self.residents(memory).await {
            let error = &error as &dyn std::error::Error;
            tracing::debug!(error, "cannot count what models hold; trying again");
        }
    }

    /// The same as [`Self::model_bytes`], of a service that was not looked at since this process started.
    async fn bytes_of(&self, deployment: DeploymentId, region: &str) -> Result<u64, Error> {
        let row = self
            .deps
            .store
            .deployment_unscoped(deployment)
            .await
            .map_err(Error::store("read the deployment of a model"))?;
        let definition = DeploymentDefinition::deserialize(&row.definition)
            .map_err(|source| Error::Definition { deployment, source })?;
        Ok(self.model_bytes(deployment, &definition, region).unwrap_or(0))
    }

    fn resident(&self, service: ServiceId) -> packing::Resident {
        let facts = self.packing.facts(service);
        if facts.is_none() {
            self.queue.add(Key::Service(service));
        }
        let woken_at = facts.as_ref().and_then(|facts| facts.woken_at);
        let (called_at, chance) = self.habits.outlook(service, woken_at);
        packing::Resident {
            service,
            held: 0,
            leaving: 0,
            rest: facts.as_ref().map_or(Rest::Unknown, |facts| {
                facts.rest(service, &self.activities, &self.deps.sites)
            }),
            woken_at,
            called_at,
            chance,
            wake: facts.and_then(|facts| facts.wake),
        }
    }

    /// How many of the new instances find room; asks others to make some.
    async fn room(&self, asks: &Asks<'_>) -> Result<Room, Error> {
        let (view, budget) = (&asks.seen.view, asks.memory.bytes);
        let first = asks.new.first().copied().unwrap_or(0);
        let mut wanted = asks.new.clone();
        // What could never be there all at once is not waited for.
        while wanted.len() > 1 && wanted.iter().sum::<u64>() > budget {
            wanted.pop();
        }
        let needs: u64 = wanted.iter().sum();
        let residents = self.residents(asks.memory).await?;
        let now = self.deps.clock.now();
        let reserved = self.packing.reserved_before(view.id);
        let waited_for = !view.expected || !matches!(view.activity, Activity::Known { queued: 0, .. });
        let verdict = packing::room(budget, needs, view.id, reserved, &residents, waited_for, now);
        let held = residents
            .iter()
            .map(|it| it.held)
            .fold(reserved, u64::saturating_add);
        let base = format!(
            "{} needed, and models have {} on this machine (`models_memory`), {} of it in use",
            amount(first),
            amount(budget),
            amount(held),
        );
        let mut displaced = Vec::new();
        let (why, coming) = match verdict {
            Verdict::Free if wanted.len() == asks.new.len() => {
                self.packing.content(view.id);
                return Ok(Room::Open);
            }
            // Each fits by itself: see the caller.
            Verdict::Never => (never(needs, budget), 0),
            Verdict::Free => (
                format!("{base}, and all its instances need more than there is"),
                0,
            ),
            Verdict::Coming => (format!("{base}; what makes room is on its way out"), needs),
            Verdict::Sleep(models) => {
                displaced = models;
                (format!("{base}; what rests is being put to sleep"), needs)
            }
            Verdict::Full(full) => (format!("{base}{}", words(full)), 0),
        };
        // Before they are asked: what is asked for nobody is not done.
        self.packing.wait(view.id, &why, coming, now);
        let name = format!("{}/{}", asks.seen.state.app.name, asks.seen.state.service.name);
        let owner = asks.seen.state.service.organization_id;
        self.packing.ask(&displaced, view.id, &name, owner, &self.queue);
        let mut free = budget.saturating_sub(held);
        let fits = asks.new.iter().take_while(|bytes| {
            let fits = **bytes <= free;
            free = free.saturating_sub(**bytes);
            fits
        });
        Ok(Room::Only {
            instances: u32::try_from(fits.count()).unwrap_or(u32::MAX),
            why,
        })
    }
}

/// Why an instance never finds room.
fn never(bytes: u64, budget: u64) -> String {
    format!(
        "the model needs {} of memory, and all models of this machine have {} together: the operator can raise \
         `models_memory`",
        amount(bytes),
        amount(budget)
    )
}

/// Whether a plan puts a model to sleep for another.
pub(super) fn makes_room(plan: &Plan) -> bool {
    plan.writes.iter().any(|write| match write {
        Write::Deployment { reason, .. } => matches!(reason, Reason::MadeRoom(_)),
        Write::Instance(write) => matches!(write.reason, Reason::MadeRoom(_)),
        _ => false,
    })
}

/// What is in the way, counted: whose models these are is not for everybody to know.
fn words(full: Full) -> String {
    let mut parts = Vec::new();
    for (count, one, several) in [
        (full.busy, "answers or is waited for", "answer or are waited for"),
        (full.fresh, "was woken just now", "were woken just now"),
        (
            full.promised,
            "has to run or is being deployed",
            "have to run or are being deployed",
        ),
        (
            full.other,
            "could go and would not do",
            "could go and would not do",
        ),
    ] {
        match count {
            0 => {}
            1 => parts.push(format!("1 {one}")),
            count => parts.push(format!("{count} {several}")),
        }
    }
    if parts.is_empty() {
        return " by itself".to_owned();
    }
    format!("; of the others {}", parts.join(", "))
}
