//! What the engine does in its next step: who is admitted, who gives way, how much of which prompt is read, who decodes.
//!
//! Pure: it knows numbers of tokens, never a token. The engine's thread calls [`Scheduler::plan`] once a step, carries
//! the plan out and says what ended. The one choice to know: fairness is by **tokens served**. Each tenant has a counter
//! of the tokens its requests cost; whoever has the least is next, and a tenant that was away starts at the least of
//! those who are there, so that absence saves up nothing (a virtual token counter: Sheng et al., "Fairness in Serving
//! Large Language Models", OSDI 2024). Round robin with deficits needs a request's cost beforehand; that of a
//! generation is known only as it goes.
//!
//! The files: `tenants` (the counters), `names` (their numbers), `share` (who gives way to whom), `budget` (a step's tokens),
//! `texts` (the steps of a model that makes embeddings).

mod budget;
mod names;
mod share;
mod tenants;
mod texts;

use std::collections::VecDeque;

pub(crate) use budget::Prefill;
pub(crate) use names::Names;
use tenants::Tenants;
pub(crate) use texts::{Text, Texts};

/// One request, from its arrival to its last token.
pub(crate) type JobId = u64;
/// One tenant, numbered by the engine.
pub(crate) type TenantId = u32;

/// Which requests go first, whatever their tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) enum Priority {
    Low,
    #[default]
    Normal,
    High,
}

/// What the steps are bounded by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Sequences that decode at once.
    pub(crate) slots: usize,
    /// Tokens of prompts in a step while others decode: their next token waits for these.
    pub(crate) prefill_beside_decoding: usize,
    /// Tokens of prompts in a step in which nobody decodes; a request that arrives meanwhile waits for these.
    pub(crate) prefill_alone: usize,
}

/// A request that waits, or waits again after it gave way.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) id: JobId,
    pub(crate) tenant: TenantId,
    pub(crate) priority: Priority,
    /// Tokens to be in the cache before the first token comes out: the prompt and what was generated already.
    pub(crate) tokens: usize,
    /// Sequences it decodes at once: its answers (`n`).
    pub(crate) slots: usize,
}

/// What a waiting request would take now.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Needs {
    /// Tokens that are not in the cache.
    pub(crate) prefill: usize,
    /// Cells for them, and those it would share that nobody runs: they could not be freed any more.
    pub(crate) cells: usize,
}

/// A request in the batch.
#[derive(Debug, Clone)]
pub(crate) struct Running {
    pub(crate) entry: Entry,
    /// Tokens of the prompt that are not in the cache yet; zero while it decodes.
    pub(crate) prefill_left: usize,
    /// Cells that are its alone, so that come back when it gives way.
    held: usize,
    /// The step in which it was admitted.
    since: u64,
}

/// The next step.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Leave the batch and wait again; before everything else.
    pub(crate) preempt: Vec<JobId>,
    /// Enter the batch, in this order.
    pub(crate) admit: Vec<JobId>,
    /// How many tokens of whose prompts are read.
    pub(crate) prefill: Vec<Prefill>,
    /// Whose sequences decode one token each.
    pub(crate) decode: Vec<JobId>,
}

/// The queue and the batch.
#[derive(Debug)]
pub(crate) struct Scheduler {
    limits: Limits,
    waiting: VecDeque<Entry>,
    running: Vec<Running>,
    tenants: Tenants,
    step: u64,
}

impl Scheduler {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            waiting: VecDeque::new(),
            running: Vec::new(),
            tenants: Tenants::default(),
            step: 0,
        }
    }

    /// A request arrived.
    pub(crate) fn submit(&mut self, entry: Entry) {
        self.tenants.enter(entry.tenant);
        self.waiting.push_back(entry);
    }

    /// A request is over: it ended, failed or nobody waits for it any more. Unknown ones are ignored.
    pub(crate) fn remove(&mut self, id: JobId) {
        let tenant = if let Some(at) = self.running.iter().position(|job| job.entry.id == id) {
            Some(self.running.remove(at).entry.tenant)
        } else if let Some(at) = self.waiting.iter().position(|entry| entry.id == id) {
            self.waiting.remove(at).map(|entry| entry.tenant)
        } else {
            None
        };
        if let Some(tenant) = tenant {
            self.tenants.leave(tenant);
        }
    }

    /// The prompt of a running request was read, and each of its answers goes on by itself from here.
    pub(crate) fn split(&mut self, id: JobId, others: &[JobId]) {
        let Some(at) = self.running.iter().position(|job| job.entry.id == id) else {
            return;
        };
        self.running[at].entry.slots = 1;
        for other in others {
            let mut job = self.running[at].clone();
            job.entry.id = *other;
            job.held = 0;
            self.tenants.enter(job.entry.tenant);
            self.running.push(job);
        }
    }

    /// A running request got so many tokens more in the step than its plan said.
    pub(crate) fn went_on(&mut self, id: JobId, tokens: usize) {
        if let Some(job) = self.running.iter_mut().find(|job| job.entry.id == id) {
            job.entry.tokens += tokens;
            job.held += tokens;
            self.tenants.charge(job.entry.tenant, tokens);
        }
    }

    /// The next step, as if it was carried out.
    ///
    /// `available` is the number of cells of the cache that are free or can be made free. `needs` says what a waiting
    /// request takes; the answer holds for this step alone.
    pub(crate) fn plan(&mut self, available: usize, needs: impl Fn(JobId) -> Needs) -> Plan {
        self.step += 1;
        let mut plan = Plan::default();
        let mut available = self.make_room_for_decoding(available, &mut plan);
        available = available.saturating_sub(self.promised());
        self.admit(&mut available, &needs, &mut plan);
        budget::share_out(self.step, &self.limits, &mut self.running, &mut plan);
        for job in &mut self.running {
            let tokens = if plan.decode.contains(&job.entry.id) {
                job.entry.tokens += 1;
                self.tenants.charge(job.entry.tenant, 1);
                1
            } else {
                let read = plan.prefill.iter().find(|part| part.job == job.entry.id);
                read.map_or(0, |part| part.tokens)
            };
            job.held += tokens;
        }
        plan
    }

    /// What was begun has to come to its end: when the cells will not do for all of the batch, someone gives way.
    fn make_room_for_decoding(&mut self, mut available: usize, plan: &mut Plan) -> usize {
        while self.promised() > available && self.running.len() > 1 {
            let Some(victim) = share::out_of_room(&self.running, &self.tenants) else {
                break;
            };
            available += self.preempt(victim, plan);
        }
        available
    }

    /// Cells that the batch needs beyond those it has: the rest of its prompts, and a token for each that decodes.
    fn promised(&self) -> usize {
        self.decoding() + self.running.iter().map(|job| job.prefill_left).sum::<usize>()
    }

    fn decoding(&self) -> usize {
        self.running.iter().filter(|job| job.prefill_left == 0).count()
    }

    fn admit(&mut self, available: &mut usize, needs: &impl Fn(JobId) -> Needs, plan: &mut Plan) {
        while let Some(at) = share::next(&self.waiting, &self.running, &self.tenants) {
            let candidate = &self.waiting[at];
            if plan.preempt.contains(&candidate.id) {
                return;
            }
            let needs = needs(candidate.id);
            // One token for each answer beside the prompt: admitted to give way at once would be work for nothing.
            let cells = needs.cells + candidate.slots;
            // Alone in the batch everyone fits: a prompt is no longer than the cache, and several answers take turns.
            let fits = *available >= cells || self.running.is_empty();
            if self.slots_free() < candidate.slots || !fits {
                let victim = share::gives_way(
                    candidate,
                    &self.running,
                    &self.tenants,
                    self.limits.slots,
                    self.step,
                );
                match victim {
                    Some(victim) => {
                        *available += self.preempt(victim, plan);
                        continue;
                    }
                    // Nobody overtakes: what waits for much room would wait for ever.
                    None => return,
                }
            }
            let Some(entry) = self.waiting.remove(at) else {
                return;
            };
            *available = available.saturating_sub(cells);
            // Paid for at once, or a tenant's next request would come in before its first was counted.
            self.tenants.charge(entry.tenant, needs.prefill);
            plan.admit.push(entry.id);
            self.running.push(Running {
                prefill_left: needs.prefill.max(1),
                held: 0,
                since: self.step,
                entry,
            });
        }
    }

    /// Puts one request of the batch back into the queue, as the first of its tenant.
    fn preempt(&mut self, at: usize, plan: &mut Plan) -> usize {
        let job = self.running.remove(at);
        plan.preempt.push(job.entry.id);
        self.tenants.refund(job.entry.tenant, job.prefill_left);
        self.waiting.push_front(job.entry);
        job.held
    }

    fn slots_free(&self) -> usize {
        let taken: usize = self.running.iter().map(|job| job.entry.slots).sum();
        self.limits.slots.saturating_sub(taken)
    }

    /// Requests that wait.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = &Entry> {
        self.waiting.iter()
    }

    /// Requests in the batch.
    pub(crate) fn running(&self) -> &[Running] {
        &self.running
    }
}

#[cfg(test)]
mod tests;
