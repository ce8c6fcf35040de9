//! One step: the plan, the batch, the kernels, the tokens.

use std::time::Instant;

use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::token::LlamaToken;

use super::Worker;
use crate::cache::{SequenceId, Token};
use crate::request::{Event, Failure, Likely};
use crate::sample::Choice;
use crate::schedule::{JobId, Needs, Plan};
use crate::writing::advance;

/// A row of logits that comes out of the batch, and for whom.
pub(super) struct Row {
    pub(super) job: JobId,
    /// Its index in the batch.
    pub(super) index: i32,
    /// The first after a prompt.
    first: bool,
    /// Tokens that were guessed to follow; their rows come after this one.
    pub(super) guess: Vec<Token>,
}

impl Worker<'_> {
    pub(super) fn step(&mut self) {
        if self.answers.is_empty() {
            return;
        }
        let (answers, cache) = (&self.answers, &self.cache);
        let plan = self.scheduler.plan(cache.cells_available(), |id| {
            let Some(answer) = answers.get(&id) else {
                return Needs { prefill: 1, cells: 1 };
            };
            let found = cache.find(answer.request.scope, &answer.tokens);
            let prefill = answer.tokens.len() - found.map_or(0, |found| found.tokens);
            let cells = prefill + found.map_or(0, |found| found.idle);
            Needs { prefill, cells }
        });
        for id in &plan.preempt {
            self.give_way(*id);
        }
        for id in &plan.admit {
            self.begin(*id);
        }
        let batches = self.by_adapter(&plan);
        self.apart = batches.len() > 1;
        for (adapter, plan) in batches {
            match self.wear(adapter) {
                Ok(()) => self.compute(&plan),
                Err(failure) => {
                    for id in jobs(&plan) {
                        self.fail(id, &failure);
                    }
                }
            }
        }
    }

    /// One batch, and what comes of it.
    fn compute(&mut self, plan: &Plan) {
        let began = Instant::now();
        let rows = self.fill(plan);
        if self.batch.n_tokens() == 0 {
            return;
        }
        if let Err(error) = self.context.decode(&mut self.batch) {
            // Nothing of this batch is in the cache for sure: whoever took part in it starts anew or fails.
            let failure = Failure::Kernels(error.to_string());
            tracing::error!(%error, tokens = self.batch.n_tokens(), "llama.cpp could not compute a step");
            for id in jobs(plan) {
                self.discard(id);
                self.fail(id, &failure);
            }
            return;
        }
        // The kernels may still run when `decode` returns; reading the logits waits for them.
        self.context.synchronize();
        let prompt_tokens: usize = plan.prefill.iter().map(|part| part.tokens).sum();
        let took = began.elapsed();
        self.shared
            .figures(|figures| figures.stepped(prompt_tokens, took));
        if prompt_tokens == 0 {
            self.stepped(&rows, took);
        }
        for row in rows {
            if row.first {
                self.split(&row);
            } else {
                self.go_on(&row);
            }
        }
    }

    /// Leaves the batch; what it has in the cache is kept for its return, as long as there is room.
    fn give_way(&mut self, id: JobId) {
        let Some(answer) = self.answers.get_mut(&id) else {
            return;
        };
        answer.computed = 0;
        if let Some(sequence) = answer.sequence.take() {
            self.end_sequence(sequence);
        }
        self.shared.figures(|figures| figures.preempted += 1);
    }

    /// Enters the batch, with the cells of whatever begins as its prompt does.
    fn begin(&mut self, id: JobId) {
        let Some(answer) = self.answers.get_mut(&id) else {
            return;
        };
        let found = self.cache.find(answer.request.scope, &answer.tokens);
        let Some(sequence) = self.cache.start(answer.request.scope, found) else {
            // There are as many sequences as slots and kept ones; without one it cannot go on.
            self.fail(id, &Failure::Kernels("no sequence is free".to_owned()));
            return;
        };
        let cached = found.map_or(0, |found| found.tokens);
        if let Some(found) = found {
            share(&mut self.context, found.sequence, sequence, Some(found.tokens));
        }
        answer.sequence = Some(sequence);
        answer.computed = cached;
        if !answer.admitted {
            answer.admitted = true;
            answer.cached = cached;
            let waited = answer.request.request.arrived.elapsed();
            let prompt = answer.request.prompt_tokens;
            self.shared.leave_queue(&answer.request.request.tenant);
            self.shared
                .figures(|figures| figures.admitted(prompt, cached, waited));
        }
    }

    /// Puts the plan's tokens into the batch, and makes room for them.
    fn fill(&mut self, plan: &Plan) -> Vec<Row> {
        let mut guesses = self.guess(plan);
        let tokens = plan.decode.len()
            + plan.prefill.iter().map(|part| part.tokens).sum::<usize>()
            + guesses.values().map(Vec::len).sum::<usize>();
        for gone in self.cache.evict(tokens) {
            self.clear(gone);
        }
        self.batch.clear();
        let mut rows = Vec::new();
        let reads = plan
            .prefill
            .iter()
            .map(|part| (part.job, part.tokens, part.last, true));
        let decodes = plan.decode.iter().map(|job| (*job, 1, true, false));
        for (job, count, wants_logits, first) in decodes.chain(reads) {
            let Some(answer) = self.answers.get_mut(&job) else {
                continue;
            };
            let Some(sequence) = answer.sequence else { continue };
            let until = (answer.computed + count).min(answer.tokens.len());
            let part = &answer.tokens[answer.computed..until];
            for (at, token) in (answer.computed..).zip(part) {
                let last = wants_logits && at + 1 == until;
                let position = i32::try_from(at).unwrap_or(i32::MAX);
                // The batch has room for a plan: the sum of the plan's limits.
                let _ = self.batch.add(LlamaToken(*token), position, &[sequence], last);
            }
            self.cache.extend(sequence, part);
            answer.computed = until;
            if wants_logits {
                let index = self.batch.n_tokens() - 1;
                let guess = guesses.remove(&job).unwrap_or_default();
                for (at, token) in (until..).zip(&guess) {
                    let position = i32::try_from(at).unwrap_or(i32::MAX);
                    // What a plan without prompts leaves free is more than all guesses.
                    let _ = self.batch.add(LlamaToken(*token), position, &[sequence], true);
                }
                rows.push(Row {
                    job,
                    index,
                    first,
                    guess,
                });
            }
        }
        rows
    }

    /// A prompt was read: each of its answers has its first token.
    fn split(&mut self, row: &Row) {
        let Some(answer) = self.answers.get_mut(&row.job) else {
            return;
        };
        let resumed = answer.begun();
        let Some(sequence) = answer.sequence else { return };
        let others = if resumed {
            0
        } else {
            answer.request.request.answers - 1
        };
        if !resumed {
            let cached = answer.cached;
            let _ = answer.events().send(Event::Read { cached });
        }
        let mut siblings = Vec::new();
        for number in 1..=others {
            let Some(fork) = self.cache.fork(sequence) else {
                break;
            };
            share(&mut self.context, sequence, fork, None);
            let id = self.number();
            if let Some(answer) = self.answers.get(&row.job) {
                let sibling = answer.sibling(number, fork);
                self.answers.insert(id, sibling);
            }
            siblings.push(id);
        }
        self.scheduler.split(row.job, &siblings);
        for job in std::iter::once(row.job).chain(siblings) {
            self.next_token(job, row.index);
        }
    }

    /// Chooses an answer's next token from its row of logits, and sends it.
    pub(super) fn next_token(&mut self, id: JobId, index: i32) {
        let Some(answer) = self.answers.get_mut(&id) else {
            return;
        };
        let logits = self.context.get_logits_ith(index);
        let choice = match &mut answer.grammar {
            None => answer.sampler.choose(logits, None),
            Some(grammar) => match grammar.compute_mask_or_eos() {
                Ok(mask) => {
                    let allows = |token: Token| mask.is_allowed(token.cast_unsigned());
                    answer.sampler.choose(logits, Some(&allows))
                }
                Err(error) => return self.fail(id, &Failure::Grammar(error.to_string())),
            },
        };
        let token = choice.token;
        let now = Instant::now();
        let since = answer.last_token.replace(now);
        let arrived = answer.request.request.arrived;
        self.shared.figures(|figures| {
            figures.generated_tokens += 1;
            match since {
                Some(since) => figures.between_tokens.add(now - since),
                None => figures.first_token.add(now - arrived),
            }
        });
        answer.tokens.push(token);
        let generated = answer.generated();
        let request = &answer.request.request;
        let advanced = advance(
            self.model,
            request,
            &mut answer.grammar,
            &mut answer.output,
            token,
            generated,
        );
        let (text, stop) = match advanced {
            Ok(advanced) => advanced,
            Err(failure) => return self.fail(id, &failure),
        };
        let likely = likely(self.model, &choice);
        let number = answer.number;
        let _ = answer.events().send(Event::Token {
            answer: number,
            token,
            text,
            likely,
        });
        if let Some(why) = stop {
            let _ = answer.events().send(Event::Ended {
                answer: number,
                why,
                tokens: generated,
            });
            let whole = now - arrived;
            self.shared.figures(|figures| figures.ended(why, whole));
            self.close(id);
        }
    }

    /// Forgets a sequence whose cells are not to be trusted.
    fn discard(&mut self, id: JobId) {
        if let Some(sequence) = self
            .answers
            .get_mut(&id)
            .and_then(|answer| answer.sequence.take())
        {
            self.cache.drop(sequence);
            self.clear(sequence);
        }
    }
}

/// Who takes part.
fn jobs(plan: &Plan) -> Vec<JobId> {
    let reads = plan.prefill.iter().map(|part| part.job);
    plan.decode.iter().copied().chain(reads).collect()
}

/// The cells of one sequence, up to a token, become another's as well; none is copied.
fn share(context: &mut LlamaContext<'_>, from: SequenceId, to: SequenceId, tokens: Option<usize>) {
    let end = tokens.and_then(|tokens| u32::try_from(tokens).ok());
    // Fails for positions beyond 2³¹ alone, more than any context.
    let _ = context.copy_kv_cache_seq(from, to, Some(0), end);
}

fn likely(model: &crate::model::Model, choice: &Choice) -> Option<Likely> {
    choice.log_probability.map(|log_probability| Likely {
        token: model.name(choice.token),
        log_probability,
        top: choice
            .top
            .iter()
            .map(|other| (model.name(other.token), other.log_probability))
            .collect(),
    })
}
