//! The engine's thread of a model that makes embeddings: steps of whole texts, those of several requests together.
//!
//! Such a model reads a text at once, so there is nothing to cut into parts: a step is as many texts as fit, and which
//! they are is decided by `schedule`'s `Texts`, by the same fairness as for answers. Requests whose client left are dropped
//! between two steps. A text's vector depends on that text alone: in a batch, none sees another.

use std::collections::{BTreeSet, HashMap};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Instant;

use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::LlamaContextParams;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::token::LlamaToken;
use tokio::sync::oneshot;

use super::{Command, figures};
use crate::cache::Token;
use crate::logs;
use crate::model::{Embedding, Model, Problem};
use crate::request::{End, Failure};
use crate::schedule::{JobId, Names, Priority, Text, Texts};

/// Texts in a step. Each costs a row of results; lines of few words fill a step's tokens before this.
const TEXTS_MAX: i32 = 64;
/// Tokens in a step, unless a single text has more. The kernels get no faster with more; whoever comes meanwhile waits
/// for these, and llama.cpp clears a row of the whole vocabulary for each.
const STEP_TOKENS: usize = 256;

/// Texts to be made into vectors.
pub(crate) struct Embed {
    /// Each has from one token to the context's.
    pub(crate) texts: Vec<Vec<Token>>,
    pub(crate) tenant: Arc<str>,
    pub(crate) priority: Priority,
    pub(crate) arrived: Instant,
    /// One vector of length 1 for each text, in order.
    pub(crate) vectors: oneshot::Sender<Result<Vec<Vec<f32>>, Failure>>,
}

/// A request and what was made of it.
struct Job {
    request: Box<Embed>,
    /// Empty where a text was not read yet.
    vectors: Vec<Vec<f32>>,
    left: usize,
    /// It was taken out of the queue.
    admitted: bool,
}

/// Everything of the thread.
struct Worker<'model> {
    model: &'model Model,
    embedding: Embedding,
    context: LlamaContext<'model>,
    batch: LlamaBatch<'static>,
    texts: Texts,
    jobs: HashMap<JobId, Job>,
    names: Names,
    last: JobId,
    commands: Receiver<Command>,
    shared: Arc<figures::Shared>,
    stopping: bool,
}

/// Runs until all handles are gone or it was told to stop. `ready` hears whether the context could be made.
pub(super) fn run(
    model: &Arc<Model>,
    embedding: Embedding,
    threads: usize,
    commands: Receiver<Command>,
    shared: Arc<figures::Shared>,
    ready: impl FnOnce(Result<(), Problem>),
) {
    let context = match context(model, embedding, threads) {
        Ok(context) => {
            ready(Ok(()));
            context
        }
        Err(problem) => return ready(Err(problem)),
    };
    let mut worker = Worker {
        model,
        embedding,
        context,
        batch: LlamaBatch::new(model.context_length, 1),
        texts: Texts::default(),
        jobs: HashMap::new(),
        names: Names::default(),
        last: 0,
        commands,
        shared,
        stopping: false,
    };
    while worker.listen() {
        worker.drop_abandoned();
        worker.step();
        worker.report();
    }
    worker.fail(worker.jobs.keys().copied().collect(), &Failure::Stopping);
}

fn context(model: &Model, embedding: Embedding, threads: usize) -> Result<LlamaContext<'_>, Problem> {
    let tokens = u32::try_from(model.context_length).unwrap_or(u32::MAX);
    let threads = i32::try_from(threads).unwrap_or(i32::MAX);
    let mut parameters = LlamaContextParams::default()
        .with_n_ctx(NonZeroU32::new(tokens))
        .with_n_batch(tokens)
        // A text is read as a whole: it may not be cut into smaller batches within llama.cpp either.
        .with_n_ubatch(tokens)
        .with_n_seq_max(TEXTS_MAX.cast_unsigned())
        .with_kv_unified(true)
        .with_n_threads(threads)
        .with_n_threads_batch(threads)
        .with_no_perf(true)
        .with_embeddings(true);
    if let Some(pooling) = embedding.pooling {
        parameters = parameters.with_pooling_type(pooling);
    }
    model
        .llama
        .new_context(&model.backend, parameters)
        .map_err(|error| Problem::Context {
            tokens: model.context_length,
            why: logs::last_error().unwrap_or_else(|| error.to_string()),
        })
}

impl Worker<'_> {
    /// Takes in what came; waits for something when there is nothing to do. False at the end.
    fn listen(&mut self) -> bool {
        loop {
            let idle = self.jobs.is_empty();
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
                Command::Embed(request) => self.take(request),
                // The front sends none to this thread; the sender of events closes and says so.
                Command::Generate(request) => self.shared.leave_queue(&request.tenant),
                Command::Stop => {
                    self.stopping = true;
                    let waiting = self.texts.waiting().collect();
                    self.fail(waiting, &Failure::Stopping);
                }
            }
        }
    }

    fn take(&mut self, request: Box<Embed>) {
        if self.stopping {
            self.shared.leave_queue(&request.tenant);
            let _ = request.vectors.send(Err(Failure::Stopping));
            return;
        }
        self.last += 1;
        let lengths: Vec<usize> = request.texts.iter().map(Vec::len).collect();
        let tenant = self.names.number(&request.tenant);
        let job = Job {
            vectors: vec![Vec::new(); lengths.len()],
            left: lengths.len(),
            admitted: false,
            request,
        };
        self.texts
            .submit(self.last, tenant, job.request.priority, lengths);
        self.jobs.insert(self.last, job);
    }

    /// Requests whose client is gone cost nothing more.
    fn drop_abandoned(&mut self) {
        let gone: Vec<JobId> = self
            .jobs
            .iter()
            .filter(|(_, job)| job.request.vectors.is_closed())
            .map(|(id, _)| *id)
            .collect();
        for id in gone {
            self.shared.figures(|figures| figures.cancelled += 1);
            self.close(id);
        }
    }

    /// Takes a request out, whatever became of it.
    fn close(&mut self, id: JobId) -> Option<Job> {
        self.texts.remove(id);
        let job = self.jobs.remove(&id)?;
        if !job.admitted {
            self.shared.leave_queue(&job.request.tenant);
        }
        Some(job)
    }

    fn fail(&mut self, ids: Vec<JobId>, failure: &Failure) {
        for id in ids {
            if let Some(job) = self.close(id) {
                let _ = job.request.vectors.send(Err(failure.clone()));
            }
        }
    }

    /// Reads as many texts as fit.
    fn step(&mut self) {
        let room = STEP_TOKENS.min(self.model.context_length);
        let texts = self
            .texts
            .step(room, usize::try_from(TEXTS_MAX).unwrap_or_default());
        if texts.is_empty() {
            return;
        }
        self.admit(&texts);
        let began = Instant::now();
        let outcome = self.read(&texts);
        let took = began.elapsed();
        match outcome {
            Ok(tokens) => {
                self.shared.figures(|figures| figures.stepped(tokens, took));
                for id in texts.iter().map(|text| text.job).collect::<BTreeSet<_>>() {
                    self.answer(id);
                }
            }
            Err(why) => {
                let theirs: BTreeSet<JobId> = texts.iter().map(|text| text.job).collect();
                self.fail(theirs.into_iter().collect(), &Failure::Kernels(why));
            }
        }
    }

    /// Those of which something is read for the first time are not in the queue any more.
    fn admit(&mut self, texts: &[Text]) {
        for text in texts {
            let Some(job) = self.jobs.get_mut(&text.job).filter(|job| !job.admitted) else {
                continue;
            };
            job.admitted = true;
            self.shared.leave_queue(&job.request.tenant);
            let tokens = job.request.texts.iter().map(Vec::len).sum();
            let waited = job.request.arrived.elapsed();
            self.shared.figures(|figures| figures.admitted(tokens, 0, waited));
        }
    }

    /// Computes the vectors of some texts. How many tokens they have, or what llama.cpp says is wrong.
    fn read(&mut self, texts: &[Text]) -> Result<usize, String> {
        self.batch.clear();
        let mut tokens = 0;
        for (row, text) in (0..).zip(texts) {
            let of_job = self.jobs.get(&text.job);
            let text = of_job.map_or(&[][..], |job| job.request.texts[text.index].as_slice());
            for (position, token) in (0..).zip(text) {
                self.batch
                    .add(LlamaToken(*token), position, &[row], true)
                    .map_err(|error| error.to_string())?;
            }
            tokens += text.len();
        }
        if self.embedding.encodes {
            self.context
                .encode(&mut self.batch)
                .map_err(|error| error.to_string())?;
        } else {
            self.context.clear_kv_cache();
            self.context
                .decode(&mut self.batch)
                .map_err(|error| error.to_string())?;
        }
        for (row, text) in (0..).zip(texts) {
            let vector = self
                .context
                .embeddings_seq_ith(row)
                .map_err(|error| error.to_string())?;
            if let Some(job) = self.jobs.get_mut(&text.job) {
                job.vectors[text.index] = unit(vector);
                job.left -= 1;
            }
        }
        Ok(tokens)
    }

    /// Sends what was made, when all of it was.
    fn answer(&mut self, id: JobId) {
        if self.jobs.get(&id).is_some_and(|job| job.left == 0)
            && let Some(job) = self.close(id)
        {
            let whole = job.request.arrived.elapsed();
            self.shared.figures(|figures| figures.ended(End::Stop, whole));
            let _ = job.request.vectors.send(Ok(job.vectors));
        }
    }

    fn report(&self) {
        let (running, waiting) = (self.texts.running(), self.texts.waiting().count());
        let ahead = self.texts.tokens_ahead();
        self.shared.figures(|figures| {
            figures.running = running;
            figures.waiting = waiting;
            figures.prompt_tokens_ahead = ahead;
        });
    }
}

/// The vector in its direction with length 1, as OpenAI's are; one of no length stays as it is.
fn unit(vector: &[f32]) -> Vec<f32> {
    let length = vector.iter().map(|value| value * value).sum::<f32>().sqrt();
    let scale = if length > 0.0 { length.recip() } else { 1.0 };
    vector.iter().map(|value| value * scale).collect()
}
