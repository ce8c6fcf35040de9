//! The engine's thread of a model that makes embeddings: batches of whole texts, one request after the other.
//!
//! Such a model reads a text as a whole, so there is nothing to cut into steps: what bounds a step is the length of a
//! text, which is the context's. A request whose client left is dropped between two batches.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Instant;

use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::{LlamaContextParams, LlamaPoolingType};
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::token::LlamaToken;
use tokio::sync::oneshot;

use super::{Command, Setup, figures};
use crate::cache::Token;
use crate::logs;
use crate::model::{Model, Problem};
use crate::request::Failure;

/// Texts in one batch. Each costs a row of results; short texts gain little from more.
const TEXTS_MAX: i32 = 32;

/// Texts to be made into vectors.
pub(crate) struct Embed {
    /// Each has from one token to the context's.
    pub(crate) texts: Vec<Vec<Token>>,
    pub(crate) tenant: Arc<str>,
    /// One vector of length 1 for each text, in order.
    pub(crate) vectors: oneshot::Sender<Result<Vec<Vec<f32>>, Failure>>,
}

/// Runs until all handles are gone or it was told to stop. `ready` hears whether the context could be made.
pub(super) fn run(
    model: &Arc<Model>,
    setup: Setup,
    commands: &Receiver<Command>,
    shared: &figures::Shared,
    ready: impl FnOnce(Result<(), Problem>),
) {
    let mut context = match context(model, setup) {
        Ok(context) => {
            ready(Ok(()));
            context
        }
        Err(problem) => return ready(Err(problem)),
    };
    let mut batch = LlamaBatch::new(model.context_length, 1);
    while let Ok(command) = commands.recv() {
        match command {
            Command::Embed(request) => {
                shared.leave_queue(&request.tenant);
                shared.figures(|figures| figures.running = 1);
                let began = Instant::now();
                let outcome = embed(model, &mut context, &mut batch, &request);
                let tokens = request.texts.iter().map(Vec::len).sum();
                shared.figures(|figures| {
                    figures.running = 0;
                    figures.stepped(tokens, began.elapsed());
                    figures.prompt_tokens += tokens as u64;
                    match outcome {
                        Some(Ok(_)) => figures.ended_stop += 1,
                        Some(Err(_)) => {}
                        None => figures.cancelled += 1,
                    }
                });
                if let Some(outcome) = outcome {
                    let _ = request.vectors.send(outcome);
                }
            }
            // The front sends none to this thread; the sender of events closes and says so.
            Command::Generate(request) => shared.leave_queue(&request.tenant),
            Command::Stop => return,
        }
    }
}

fn context<'model>(model: &'model Model, setup: Setup) -> Result<LlamaContext<'model>, Problem> {
    let tokens = u32::try_from(model.context_length).unwrap_or(u32::MAX);
    let threads = i32::try_from(setup.threads).unwrap_or(i32::MAX);
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
    if !model.pools {
        parameters = parameters.with_pooling_type(LlamaPoolingType::Mean);
    }
    model
        .llama
        .new_context(&model.backend, parameters)
        .map_err(|error| Problem::Context {
            tokens: model.context_length,
            why: logs::last_error().unwrap_or_else(|| error.to_string()),
        })
}

/// None when nobody waits any more.
fn embed(
    model: &Model,
    context: &mut LlamaContext<'_>,
    batch: &mut LlamaBatch<'_>,
    request: &Embed,
) -> Option<Result<Vec<Vec<f32>>, Failure>> {
    let mut vectors = Vec::with_capacity(request.texts.len());
    let mut texts = request.texts.iter().peekable();
    while texts.peek().is_some() {
        if request.vectors.is_closed() {
            return None;
        }
        batch.clear();
        let mut count = 0;
        let mut room = model.context_length;
        while count < TEXTS_MAX
            && let Some(text) = texts.next_if(|text| text.len() <= room)
        {
            room -= text.len();
            for (position, token) in (0..).zip(text) {
                // There is room for it: it was counted.
                let _ = batch.add(LlamaToken(*token), position, &[count], true);
            }
            count += 1;
        }
        let failed = |error: String| Some(Err(Failure::Kernels(error)));
        if count == 0 {
            return failed("a text is longer than the context".to_owned());
        }
        context.clear_kv_cache();
        if let Err(error) = context.decode(batch) {
            return failed(error.to_string());
        }
        for text in 0..count {
            match context.embeddings_seq_ith(text) {
                Ok(vector) => vectors.push(unit(vector)),
                Err(error) => return failed(error.to_string()),
            }
        }
    }
    Some(Ok(vectors))
}

/// The vector in its direction with length 1, as OpenAI's are; one of no length stays as it is.
fn unit(vector: &[f32]) -> Vec<f32> {
    let length = vector.iter().map(|value| value * value).sum::<f32>().sqrt();
    let scale = if length > 0.0 { length.recip() } else { 1.0 };
    vector.iter().map(|value| value * scale).collect()
}
