//! Replicas of a model, as far as the time to the first token depends on them.
//!
//! A worker reads prompts one after the other, in steps that also write a token for each answer under way; it begins with
//! one when the cells for prompt and answer are there. What it has read stays until the room is needed, the blocks that
//! were used longest ago first. What is left out: attention's growth with the length of a prompt, and the slowdown of
//! writing with the number of answers.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use crate::simulator::trace::mooncake::{BLOCK_TOKENS, Request};

/// What workers are like. By default about a server of eight A100 with a model of 70 billion parameters.
#[derive(Debug, Clone)]
pub struct Setup {
    /// How many.
    pub workers: usize,
    /// Tokens of prompts that one reads in a second.
    pub prefill_rate: f64,
    /// Seconds that a step takes longer for the answers that are written in it.
    pub step_seconds: f64,
    /// Tokens of a prompt that are read in a step.
    pub step_tokens: u32,
    /// Answers that one writes at once.
    pub slots: usize,
    /// Tokens that one holds, of prompts and answers.
    pub cells: u64,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            workers: 8,
            prefill_rate: 6_500.0,
            step_seconds: 0.03,
            step_tokens: 2048,
            slots: 64,
            cells: 1_000_000,
        }
    }
}

impl Setup {
    /// The same at another speed of reading.
    #[must_use]
    pub fn times(mut self, speed: f64) -> Self {
        self.prefill_rate *= speed;
        self
    }
}

/// What happened at a worker, as its answers tell.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Event {
    /// The first token of a request came.
    First {
        /// Which worker.
        worker: usize,
        /// Which request, by its place in the trace.
        request: usize,
        /// When.
        at: f64,
    },
    /// A request is answered.
    Ended {
        /// Which worker.
        worker: usize,
        /// Which request.
        request: usize,
    },
}

/// One worker.
#[derive(Debug, Default)]
pub struct Worker {
    waiting: VecDeque<usize>,
    /// Which is being read, and until when.
    reading: Option<(usize, f64)>,
    /// Answers under way, by their end in microseconds.
    writing: BTreeSet<(u64, usize)>,
    /// When each block was used last, and by how many requests it is used now.
    blocks: HashMap<u64, (u64, u32)>,
    /// Blocks that nobody uses now, by when they were used.
    unused: BTreeMap<u64, u64>,
    clock: u64,
    /// Cells of blocks and of answers.
    held: u64,
}

impl Worker {
    /// Requests that wait for their turn.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Requests that are here.
    #[must_use]
    pub fn present(&self) -> usize {
        self.waiting.len() + usize::from(self.reading.is_some()) + self.writing.len()
    }

    /// Tokens that are in use: those of requests that run.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.held - u64::from(BLOCK_TOKENS) * self.unused.len() as u64
    }

    /// Blocks of a prompt that are here.
    #[must_use]
    pub fn cached_blocks(&self, blocks: &[u64]) -> usize {
        blocks
            .iter()
            .take_while(|block| self.blocks.contains_key(block))
            .count()
    }

    fn take(&mut self, block: u64) {
        self.clock += 1;
        let entry = self.blocks.entry(block).or_insert_with(|| {
            self.held += u64::from(BLOCK_TOKENS);
            (0, 0)
        });
        if entry.1 == 0 {
            self.unused.remove(&entry.0);
        }
        *entry = (self.clock, entry.1 + 1);
    }

    fn give_back(&mut self, block: u64) {
        self.clock += 1;
        if let Some(entry) = self.blocks.get_mut(&block) {
            entry.1 -= 1;
            if entry.1 == 0 {
                entry.0 = self.clock;
                self.unused.insert(self.clock, block);
            }
        }
    }

    /// Makes room for so many tokens; whether there is.
    fn make_room(&mut self, tokens: u64, cells: u64) -> bool {
        while self.held + tokens > cells {
            let Some((_, block)) = self.unused.pop_first() else {
                return false;
            };
            self.blocks.remove(&block);
            self.held -= u64::from(BLOCK_TOKENS);
        }
        true
    }
}

/// All of them, and what became of each request.
#[derive(Debug)]
pub struct Workers {
    setup: Setup,
    all: Vec<Worker>,
    /// By request: when it came, and its time to the first token.
    requests: BTreeMap<usize, (f64, Option<f64>)>,
    cached_tokens: usize,
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "microseconds of some hours"
)]
fn micros(seconds: f64) -> u64 {
    (seconds * 1e6) as u64
}

#[expect(clippy::cast_precision_loss, reason = "microseconds of some hours")]
fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

impl Workers {
    pub(super) fn new(setup: &Setup) -> Self {
        Self {
            all: (0..setup.workers).map(|_| Worker::default()).collect(),
            setup: setup.clone(),
            requests: BTreeMap::new(),
            cached_tokens: 0,
        }
    }

    /// The workers.
    #[must_use]
    pub fn all(&self) -> &[Worker] {
        &self.all
    }

    /// What they are like.
    #[must_use]
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    pub(super) fn first_tokens(&self) -> impl Iterator<Item = f64> {
        self.requests.values().filter_map(|(_, took)| *took)
    }

    pub(super) fn cached_tokens(&self) -> usize {
        self.cached_tokens
    }

    pub(super) fn send(&mut self, request: usize, worker: usize, now: f64) {
        self.requests.insert(request, (now, None));
        self.all[worker].waiting.push_back(request);
    }

    /// Lets everything happen until `now`; what did, in its order at each worker.
    pub(super) fn until(&mut self, now: f64, requests: &[Request]) -> Vec<Event> {
        let mut events = Vec::new();
        for worker in 0..self.all.len() {
            self.one_until(worker, now, requests, &mut events);
        }
        events
    }

    fn one_until(&mut self, index: usize, now: f64, requests: &[Request], events: &mut Vec<Event>) {
        // What a worker does depends on nothing but itself and what was sent to it before.
        let mut clock = None;
        loop {
            // What ends at the same instant ends first: it makes room.
            let ends = self.all[index].writing.first().map(|(at, _)| seconds(*at));
            if !ends.zip(clock).is_some_and(|(ends, clock)| ends <= clock) {
                self.begin(index, clock, requests);
            }
            let worker = &mut self.all[index];
            let read_at = worker.reading.map_or(f64::INFINITY, |(_, at)| at);
            let ended_at = worker
                .writing
                .first()
                .map_or(f64::INFINITY, |(at, _)| seconds(*at));
            let next = read_at.min(ended_at);
            if next > now || !next.is_finite() {
                return;
            }
            clock = Some(next);
            if read_at <= ended_at {
                let Some((request, at)) = worker.reading.take() else {
                    return;
                };
                let output = f64::from(requests[request].output) * self.setup.step_seconds;
                worker.writing.insert((micros(at + output), request));
                if let Some((came, took)) = self.requests.get_mut(&request) {
                    *took = Some(at - *came);
                }
                events.push(Event::First {
                    worker: index,
                    request,
                    at,
                });
            } else if let Some((_, request)) = worker.writing.pop_first() {
                // The end of a prompt goes before its beginning, which others may share.
                for block in requests[request].blocks.iter().rev() {
                    worker.give_back(*block);
                }
                worker.held -= u64::from(requests[request].output);
                events.push(Event::Ended {
                    worker: index,
                    request,
                });
            }
        }
    }

    /// Begins to read the next prompt, if there is one, and a slot and the cells for it.
    fn begin(&mut self, index: usize, clock: Option<f64>, requests: &[Request]) {
        let worker = &mut self.all[index];
        if worker.reading.is_some() || worker.writing.len() >= self.setup.slots {
            return;
        }
        let Some(&number) = worker.waiting.front() else {
            return;
        };
        let request = &requests[number];
        let cached = worker.cached_blocks(&request.blocks);
        for block in &request.blocks[..cached] {
            worker.take(*block);
        }
        let new = u64::from(BLOCK_TOKENS) * (request.blocks.len() - cached) as u64;
        if !worker.make_room(new + u64::from(request.output), self.setup.cells) {
            for block in request.blocks[..cached].iter().rev() {
                worker.give_back(*block);
            }
            return;
        }
        worker.waiting.pop_front();
        for block in &request.blocks[cached..] {
            worker.take(*block);
        }
        worker.held += u64::from(request.output);
        let cached_tokens = u32::try_from(cached)
            .unwrap_or(u32::MAX)
            .saturating_mul(BLOCK_TOKENS)
            .min(request.input.saturating_sub(1));
        self.cached_tokens += cached_tokens as usize;
        let uncached = request.input - cached_tokens;
        let steps = if worker.writing.is_empty() {
            0
        } else {
            uncached.div_ceil(self.setup.step_tokens)
        };
        let came = self.requests.get(&number).map_or(0.0, |(came, _)| *came);
        let begins = clock.map_or(came, |clock| clock.max(came));
        let takes =
            f64::from(uncached) / self.setup.prefill_rate + f64::from(steps) * self.setup.step_seconds;
        worker.reading = Some((number, begins + takes));
    }
}
