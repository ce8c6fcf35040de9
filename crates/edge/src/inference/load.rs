//! What the edge knows of replicas: what it sent them and has not heard of yet, what they said of themselves, and which
//! beginnings of prompts they hold. The choice itself is the planner's (`tram_planner::inference`).
//!
//! The edge counts no tokens of prompts: it knows their bytes, and how many bytes a token of this service's questions had
//! of late. What an engine says comes with its answers (a header), so a replica that is asked often is known well, and no
//! one is polled. What it says of others' questions (it may have callers that the edge does not see) counts less the older
//! it is.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tram_planner::inference::{self as planner, Prefixes, Replica};
use uuid::Uuid;

use crate::balance::{Weighted, draw};
use crate::forwarded::random;
use crate::pool::{Endpoint, ms_since_epoch};
use crate::table::Route;

use super::told::{State, Usage};

/// Bytes of a block of a prompt: about 16 tokens, which is what engines share.
pub(super) const BLOCK_BYTES: usize = 64;
const BLOCK_TOKENS: u32 = 16;
/// Blocks that are remembered for one service, of all its replicas: a million tokens, about 4 MiB.
const BLOCKS_MAX: usize = 65_536;
/// Numbers given to the instances of a service before the table is begun anew: instances come and go.
const SLOTS_MAX: usize = 4096;
/// Tokens that a replica is taken to hold before it said so: the context that the platform's engine takes by default.
const CELLS_UNKNOWN: u64 = 8192;
/// Bytes of a token before any was counted: what English text has.
const TOKEN_BYTES_UNKNOWN: f32 = 4.0;
/// Weight of the newest question in the bytes of a token.
const NEWEST: f32 = 0.1;
/// Tokens of prompts that the platform's engine reads in a step beside answers that it writes.
const STEP_TOKENS: u32 = 128;
/// How long what an engine said of questions that are not ours is believed, less and less.
const FOREIGN_FOR: Duration = Duration::from_secs(2);

/// What is known of one instance, shared by all workers.
#[derive(Debug, Default)]
pub(crate) struct Load {
    /// Tokens of prompts that were sent and are not answered yet.
    ahead: AtomicU32,
    /// Since when it reads the first of them: when it got it idle, or when another's first token came. In milliseconds
    /// after the epoch.
    since_ms: AtomicU64,
    /// Answers that are being written.
    writing: AtomicU32,
    /// As the engine measured them: `f32` by their bits, zero before.
    rate: AtomicU32,
    step: AtomicU32,
    cells: AtomicU64,
    /// Tokens ahead that are none of ours, when it said so last.
    foreign: AtomicU32,
    told_ms: AtomicU64,
}

impl Load {
    /// It begins with the next prompt.
    fn begins(&self) {
        self.since_ms.store(ms_since_epoch(Instant::now()), Relaxed);
    }

    /// Takes in what the engine said of itself.
    pub(super) fn told(&self, state: &State, now: Instant) {
        if let Some(rate) = state.prefill_tokens_per_second {
            self.rate.store(rate.to_bits(), Relaxed);
        }
        if let Some(step) = state.decode_step_seconds {
            self.step.store(step.to_bits(), Relaxed);
        }
        self.cells.store(state.cells, Relaxed);
        let ours = self.ahead.load(Relaxed);
        self.foreign
            .store(state.prompt_tokens_ahead.saturating_sub(ours), Relaxed);
        self.told_ms.store(ms_since_epoch(now), Relaxed);
    }

    fn replica(&self, cached_tokens: u32, now_ms: u64) -> Replica {
        let age = now_ms.saturating_sub(self.told_ms.load(Relaxed));
        let whole = u64::try_from(FOREIGN_FOR.as_millis()).unwrap_or(u64::MAX);
        let left = whole.saturating_sub(age);
        let foreign = u64::from(self.foreign.load(Relaxed)) * left / whole;
        // What it has read since of the prompt that it is at, of which no answer has told yet.
        let rate = f32::from_bits(self.rate.load(Relaxed));
        let ahead = self.ahead.load(Relaxed);
        let reading_ms = now_ms.saturating_sub(self.since_ms.load(Relaxed));
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "an estimate, and `as` keeps it within bounds"
        )]
        let read = (rate * reading_ms as f32 / 1000.0) as u32;
        Replica {
            ahead_tokens: ahead
                .saturating_sub(read)
                .saturating_add(u32::try_from(foreign).unwrap_or(u32::MAX)),
            writing: self.writing.load(Relaxed),
            prefill_rate: rate,
            step_seconds: f32::from_bits(self.step.load(Relaxed)),
            step_tokens: STEP_TOKENS,
            cached_tokens,
        }
    }
}

/// A question on its way through an instance: what it adds to the load there, until it is dropped.
#[derive(Debug)]
pub(super) struct Reading {
    endpoint: Arc<Endpoint>,
    /// Zero once the prompt was read.
    tokens: u32,
    writes: bool,
}

impl Reading {
    pub(super) fn begin(endpoint: &Arc<Endpoint>, tokens: u32) -> Self {
        if endpoint.model.ahead.fetch_add(tokens, Relaxed) == 0 {
            endpoint.model.begins();
        }
        Self {
            endpoint: Arc::clone(endpoint),
            tokens,
            writes: false,
        }
    }

    /// The prompt was read; from now on the answer is written.
    pub(super) fn read(&mut self) {
        let tokens = std::mem::take(&mut self.tokens);
        self.endpoint.model.ahead.fetch_sub(tokens, Relaxed);
        self.endpoint.model.begins();
        if !std::mem::replace(&mut self.writes, true) {
            self.endpoint.model.writing.fetch_add(1, Relaxed);
        }
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.endpoint.model.ahead.fetch_sub(self.tokens, Relaxed);
        if self.writes {
            self.endpoint.model.writing.fetch_sub(1, Relaxed);
        }
    }
}

/// What the choice needs to know of a question.
#[derive(Debug)]
pub(super) struct Prompt {
    /// Its beginnings, of one who asks.
    pub(super) chain: Vec<u64>,
    pub(super) bytes: usize,
}

/// What is known of one service, from table to table.
#[derive(Debug)]
pub(crate) struct Router(Mutex<Known>);

#[derive(Debug)]
struct Known {
    prefixes: Prefixes,
    slots: HashMap<Uuid, u16>,
    token_bytes: f32,
    /// Room for one choice.
    cached: Vec<u32>,
}

impl Default for Router {
    fn default() -> Self {
        Self(Mutex::new(Known::new()))
    }
}

impl Known {
    fn new() -> Self {
        Self {
            prefixes: Prefixes::new(BLOCK_TOKENS, BLOCKS_MAX),
            slots: HashMap::new(),
            token_bytes: TOKEN_BYTES_UNKNOWN,
            cached: Vec::new(),
        }
    }

    fn slot(&mut self, endpoint: &Endpoint) -> u16 {
        if let Some(slot) = self.slots.get(&endpoint.instance_id) {
            return *slot;
        }
        if self.slots.len() >= SLOTS_MAX {
            *self = Self::new();
        }
        let slot = u16::try_from(self.slots.len()).unwrap_or(u16::MAX);
        self.slots.insert(endpoint.instance_id, slot);
        slot
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an estimate of a bounded number"
    )]
    fn tokens(&self, bytes: usize) -> u32 {
        (bytes as f32 / self.token_bytes) as u32
    }
}

impl Router {
    /// The instance of `fit` whose first token comes soonest, and the tokens that it has yet to read of the prompt. Where
    /// weights differ (a canary has its share) the weight is drawn first.
    pub(super) fn choose(
        &self,
        route: &Route,
        fit: &[&Weighted],
        prompt: &Prompt,
    ) -> Option<(Arc<Endpoint>, u32)> {
        let now_ms = ms_since_epoch(Instant::now());
        let known = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        #[expect(clippy::cast_possible_truncation, reason = "any 32 of 64 random bits will do")]
        let rotation = random() as u32;
        let drawn = (!route.even).then(|| draw(&route.endpoints, rotation));
        let mut of_weight: Vec<&Arc<Endpoint>> = fit
            .iter()
            .filter(|(_, weight)| drawn.is_none_or(|drawn| drawn == *weight))
            .map(|(endpoint, _)| endpoint)
            .collect();
        if of_weight.is_empty() {
            of_weight = fit.iter().map(|(endpoint, _)| endpoint).collect();
        }
        let tokens = known.tokens(prompt.bytes);
        let slots: Vec<u16> = of_weight
            .iter()
            .map(|endpoint| {
                let slot = known.slot(endpoint);
                let cells = match endpoint.model.cells.load(Relaxed) {
                    0 => CELLS_UNKNOWN,
                    cells => cells,
                };
                known.prefixes.set_capacity(slot, cells);
                slot
            })
            .collect();
        let mut cached = std::mem::take(&mut known.cached);
        cached.clear();
        cached.resize(known.slots.len(), 0);
        known.prefixes.find(&prompt.chain, |slot, held| {
            if let Some(most) = cached.get_mut(usize::from(slot)) {
                *most = held.max(*most);
            }
        });
        let replicas = of_weight.iter().zip(&slots).map(|(endpoint, slot)| {
            let held = cached.get(usize::from(*slot)).copied().unwrap_or_default();
            endpoint.model.replica(held.min(tokens), now_ms)
        });
        let choice = planner::choose(tokens, replicas, rotation);
        known.cached = cached;
        let choice = choice?;
        known
            .prefixes
            .learn(&prompt.chain, slots[choice.index], choice.uncached_tokens);
        Some((Arc::clone(of_weight[choice.index]), choice.uncached_tokens))
    }

    /// Takes in what a question turned out to be.
    pub(super) fn counted(&self, endpoint: &Endpoint, prompt_bytes: usize, usage: &Usage) {
        let known = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let bytes = prompt_bytes as f32 / usage.prompt.max(1) as f32;
        if usage.prompt > 0 && bytes >= 1.0 {
            known.token_bytes += NEWEST * (bytes - known.token_bytes);
        }
        let slot = known.slot(endpoint);
        let written = u32::try_from(usage.completion).unwrap_or(u32::MAX);
        known.prefixes.wrote(slot, written);
    }
}
