//! The thread that owns llama.cpp's context: takes requests in, does one step after the other, sends tokens out.
//!
//! Nothing else touches the context. What a step does is decided by `schedule` and `cache`, which are pure; this carries
//! it out. A step reads parts of prompts and decodes a token for each running answer, all in one batch (continuous
//! batching). Requests of clients that left are dropped between two steps.
//!
//! The files: `handle` (how others reach the thread), `step` (one step), `answers` (the state of one answer), `lookup` and
//! `draft` (who guesses tokens: the text itself, or a smaller model), `speculate` (what becomes of guesses), `adapters`
//! (which weights are put on), `figures` (what is counted), `keep` (what the next start finds), `embed` (the thread of a
//! model that makes embeddings instead).

mod adapters;
mod answers;
mod draft;
mod embed;
mod figures;
mod handle;
mod keep;
mod lookup;
mod speculate;
mod step;

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};

use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::LlamaContextParams;
use llama_cpp_2::llama_batch::LlamaBatch;

use crate::cache::{Cache, SequenceId};
use crate::logs;
use crate::model::{Draft, Model, Problem};
use crate::request::{Event, Failure, Request};
use crate::schedule::{Entry, JobId, Limits, Names, Scheduler};

use answers::Answer;
pub(crate) use embed::Embed;
pub(crate) use figures::{Figures, Histogram};
pub(crate) use handle::{Engine, Refusal};
pub(crate) use keep::Keep;

/// Ended sequences kept beside the running ones for prompts that begin so. Each costs llama.cpp a row of logits (4 bytes
/// for each token of the vocabulary), and most workloads have fewer beginnings in common.
const KEPT_MAX: SequenceId = 32;
/// Tokens of prompts in a step beside answers that decode: on two cores and a small model about 100 ms, the longest gap
/// that a reader of a stream does not mind.
const PREFILL_BESIDE_DECODING: usize = 128;
/// Tokens of prompts in a step in which nobody decodes: the kernels get little faster with more, and a request that comes
/// meanwhile waits for these.
const PREFILL_ALONE: usize = 256;

/// What the engine's thread is set up with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setup {
    /// Answers that decode at once.
    pub(crate) parallel: usize,
    /// Threads of the kernels.
    pub(crate) threads: usize,
    /// Tokens that fit into the cache, all sequences together.
    pub(crate) cells: usize,
    /// Tokens of an answer that are guessed at a time, at most; 0 for none.
    pub(crate) guess: usize,
}

/// What reaches the thread.
enum Command {
    Generate(Box<Request>),
    Embed(Box<Embed>),
    /// Takes nothing more, finishes what runs; what waits fails.
    Stop,
}

/// Everything of the thread.
struct Worker<'model> {
    model: &'model Model,
    context: LlamaContext<'model>,
    batch: LlamaBatch<'static>,
    scheduler: Scheduler,
    cache: Cache,
    answers: HashMap<JobId, Answer>,
    names: Names,
    next: JobId,
    guess: usize,
    price: lookup::Price,
    /// How likely guesses were to be right of late.
    trust: lookup::Trust,
    /// The small model that guesses, where there is one.
    companion: Option<draft::Companion<'model>>,
    /// The adapter that is on.
    adapter: Option<usize>,
    /// The step has a batch for each of several adapters.
    apart: bool,
    /// None: nothing outlives the program.
    keeper: Option<keep::Keeper>,
    commands: Receiver<Command>,
    shared: Arc<figures::Shared>,
    stopping: bool,
}

/// Runs until all handles are gone or it was told to stop. `ready` hears whether the context could be made.
fn run(
    model: &Arc<Model>,
    draft: Option<&Draft>,
    setup: Setup,
    keep: Option<Keep>,
    commands: Receiver<Command>,
    shared: Arc<figures::Shared>,
    ready: impl FnOnce(Result<(), Problem>),
) {
    let sequences = SequenceId::try_from(setup.parallel).unwrap_or(SequenceId::MAX / 2) + KEPT_MAX;
    let batch_tokens = setup.parallel + PREFILL_ALONE;
    let both = context(model, setup, sequences, batch_tokens).and_then(|context| {
        let companion = draft.map(|draft| draft::Companion::new(model, draft, setup));
        Ok((context, companion.transpose()?))
    });
    let (context, companion) = match both {
        Ok(both) => {
            ready(Ok(()));
            both
        }
        Err(problem) => return ready(Err(problem)),
    };
    let mut worker = Worker {
        model,
        context,
        batch: LlamaBatch::new(batch_tokens, 1),
        scheduler: Scheduler::new(Limits {
            slots: setup.parallel,
            prefill_beside_decoding: PREFILL_BESIDE_DECODING,
            prefill_alone: PREFILL_ALONE,
        }),
        cache: Cache::new(setup.cells, sequences, model.shares_prefixes),
        answers: HashMap::new(),
        names: Names::default(),
        next: 0,
        guess: setup.guess,
        price: lookup::Price::default(),
        trust: lookup::Trust::default(),
        companion,
        adapter: None,
        apart: false,
        keeper: keep.and_then(|keep| keep::Keeper::open(keep, model)),
        commands,
        shared,
        stopping: false,
    };
    while worker.listen() {
        worker.drop_abandoned();
        worker.step();
        worker.report();
    }
    worker.fail_all(&Failure::Stopping);
    worker.keep();
}

fn context<'model>(
    model: &'model Model,
    setup: Setup,
    sequences: SequenceId,
    batch_tokens: usize,
) -> Result<LlamaContext<'model>, Problem> {
    let number = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
    let threads = i32::try_from(setup.threads).unwrap_or(i32::MAX);
    let parameters = LlamaContextParams::default()
        .with_n_ctx(NonZeroU32::new(number(setup.cells)))
        .with_n_batch(number(batch_tokens))
        .with_n_ubatch(number(batch_tokens))
        .with_n_seq_max(sequences.cast_unsigned())
        // One pool of cells for all sequences: they share beginnings, and one may be long while others are short.
        .with_kv_unified(true)
        .with_n_threads(threads)
        .with_n_threads_batch(threads)
        .with_no_perf(true);
    model
        .llama
        .new_context(&model.backend, parameters)
        .map_err(|error| Problem::Context {
            tokens: setup.cells,
            why: logs::last_error().unwrap_or_else(|| error.to_string()),
        })
}

impl Worker<'_> {
    /// Takes in what came; waits for something when there is nothing to do. False at the end.
    fn listen(&mut self) -> bool {
        loop {
            let idle = self.answers.is_empty();
            if idle && self.stopping {
                return false;
            }
            let command = if idle {
                self.report();
                match self.commands.recv() {
                    Ok(command) => command,
                    Err(_) => return false,
                }
            } else {
                match self.commands.try_recv() {
                    Ok(command) => command,
                    Err(TryRecvError::Empty) => return true,
                    Err(TryRecvError::Disconnected) => return false,
                }
            };
            match command {
                Command::Generate(request) => self.take(*request),
                // The front sends none to this thread; the sender of the vectors closes and says so.
                Command::Embed(request) => self.shared.leave_queue(&request.tenant),
                Command::Stop => self.stop(),
            }
        }
    }

    fn take(&mut self, request: Request) {
        if self.stopping {
            self.shared.leave_queue(&request.tenant);
            let _ = request.events.send(Event::Failed(Failure::Stopping));
            return;
        }
        let begun = request.resumed.as_ref();
        let generated = begun.map_or(0, |resumed| resumed.tokens.len());
        if let Some(why) = begun.and_then(|resumed| resumed.end) {
            // All that is left is to say so.
            self.shared.leave_queue(&request.tenant);
            let _ = request.events.send(Event::Read { cached: 0 });
            let _ = request.events.send(Event::Ended {
                answer: 0,
                why,
                tokens: generated,
            });
            return;
        }
        let id = self.number();
        let tenant = self.names.number(&request.tenant);
        self.scheduler.submit(Entry {
            id,
            tenant,
            priority: request.priority,
            tokens: request.prompt.len() + generated,
            slots: request.answers,
        });
        let answer = Answer::new(request, self.guess);
        self.recall(answer.request.scope, &answer.tokens);
        self.answers.insert(id, answer);
    }

    fn number(&mut self) -> JobId {
        self.next += 1;
        self.next
    }

    fn stop(&mut self) {
        self.stopping = true;
        let waiting: Vec<JobId> = self.scheduler.waiting().map(|entry| entry.id).collect();
        for id in waiting {
            // What gave way has sent tokens already and is finished as a running one.
            if self.answers.get(&id).is_some_and(|answer| !answer.admitted) {
                self.fail(id, &Failure::Stopping);
            }
        }
    }

    /// Requests whose client is gone cost nothing more.
    fn drop_abandoned(&mut self) {
        let gone: Vec<JobId> = self
            .answers
            .iter()
            .filter(|(_, answer)| answer.abandoned())
            .map(|(id, _)| *id)
            .collect();
        for id in gone {
            self.shared.figures(|figures| figures.cancelled += 1);
            self.close(id);
        }
    }

    /// Ends an answer, well or not: its slot is free, its cells are kept for others or cleared.
    fn close(&mut self, id: JobId) {
        self.scheduler.remove(id);
        let Some(answer) = self.answers.remove(&id) else {
            return;
        };
        if !answer.admitted {
            self.shared.leave_queue(&answer.request.request.tenant);
        }
        if let Some(sequence) = answer.sequence {
            self.end_sequence(sequence);
        }
    }

    fn end_sequence(&mut self, sequence: SequenceId) {
        if !self.cache.end(sequence) {
            self.clear(sequence);
        }
        let over = self
            .cache
            .kept()
            .saturating_sub(usize::try_from(KEPT_MAX).unwrap_or_default());
        if over > 0 {
            for gone in self.cache.evict_sequences(over) {
                self.clear(gone);
            }
        }
    }

    fn clear(&mut self, sequence: SequenceId) {
        // Whole sequences always can be cleared; the id was given out by `cache`, so it is no negative number.
        let _ = self
            .context
            .clear_kv_cache_seq(Some(sequence.cast_unsigned()), None, None);
    }

    fn fail(&mut self, id: JobId, failure: &Failure) {
        if let Some(answer) = self.answers.get(&id) {
            let _ = answer.events().send(Event::Failed(failure.clone()));
        }
        self.close(id);
    }

    fn fail_all(&mut self, failure: &Failure) {
        let all: Vec<JobId> = self.answers.keys().copied().collect();
        for id in all {
            self.fail(id, failure);
        }
    }

    fn report(&self) {
        let running = self.scheduler.running();
        let queued: usize = self.scheduler.waiting().map(|entry| entry.tokens).sum();
        let prefill: usize = running.iter().map(|job| job.prefill_left).sum();
        self.shared.figures(|figures| {
            figures.running = running.len();
            figures.waiting = self.scheduler.waiting().count();
            figures.prompt_tokens_ahead = queued + prefill;
            figures.cells = self.cache.cells();
            figures.cells_free = self.cache.cells_free();
            figures.cells_available = self.cache.cells_available();
            figures.prefixes_kept = self.cache.kept();
        });
    }
}

#[cfg(test)]
mod tests;
