//! What each router knows and how it chooses.
//!
//! The baselines are written from their projects' documentation (2025 and 2026), with the defaults told there, and given
//! more than they have: they see queues and caches as they are, not as reported some time ago.

use std::collections::{HashMap, VecDeque};

use tram_planner::inference::{Prefixes, Replica, choose};

use super::workers::{Event, Setup, Workers};
use crate::simulator::{
    Rng,
    trace::mooncake::{BLOCK_TOKENS, Request},
};

/// A policy with what it remembers.
pub trait Router {
    /// The worker for a request.
    fn choose(&mut self, request: &Request, workers: &Workers, rng: &mut Rng) -> usize;
    /// It was sent there.
    fn sent(&mut self, number: usize, request: &Request, worker: usize) {
        let _ = (number, request, worker);
    }
    /// Something came back.
    fn heard(&mut self, event: &Event, requests: &[Request]) {
        let _ = (event, requests);
    }
}

/// A policy by its name.
#[must_use]
pub fn named(name: &str, setup: &Setup) -> Option<Box<dyn Router>> {
    Some(match name {
        "tram" => Box::new(Tram::new(setup)),
        "sglang" => Box::new(Sglang::new(setup)),
        "dynamo" => Box::new(Dynamo::new(setup)),
        "epp" => Box::new(Epp::new(setup)),
        "least" => Box::new(Least),
        "round-robin" => Box::new(RoundRobin(0)),
        _ => return None,
    })
}

/// The lowest by `value`; of equals a random one.
fn lowest(count: usize, rng: &mut Rng, value: impl Fn(usize) -> f64) -> usize {
    let values: Vec<f64> = (0..count).map(value).collect();
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let equal: Vec<usize> = (0..count).filter(|index| values[*index] <= least).collect();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a few workers"
    )]
    let at = (rng.uniform() * equal.len() as f64) as usize;
    equal.get(at).or(equal.last()).copied().unwrap_or_default()
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2⁵²")]
fn float(count: usize) -> f64 {
    count as f64
}

/// One after the other.
struct RoundRobin(usize);

impl Router for RoundRobin {
    fn choose(&mut self, _: &Request, workers: &Workers, _: &mut Rng) -> usize {
        self.0 += 1;
        self.0 % workers.all().len()
    }
}

/// The fewest requests, as the edge chooses for services that serve no model.
struct Least;

impl Router for Least {
    fn choose(&mut self, _: &Request, workers: &Workers, rng: &mut Rng) -> usize {
        let all = workers.all();
        lowest(all.len(), rng, |index| float(all[index].present()))
    }
}

/// The planner's choice with what the edge knows: what was sent and has no first token yet, what is being written, and
/// which prefixes were sent where. The speed is measured from the first tokens, as engines do.
struct Tram {
    prefixes: Prefixes,
    ahead: Vec<u32>,
    writing: Vec<u32>,
    /// Since when each reads the first of what is ahead.
    since: Vec<f64>,
    /// Of requests without a first token: tokens that were to be read.
    sent: HashMap<usize, u32>,
    chosen: u32,
    cached: Vec<u32>,
    setup: Setup,
}

impl Tram {
    /// Blocks that are remembered.
    const BLOCKS_MAX: usize = 1 << 20;

    fn new(setup: &Setup) -> Self {
        let mut prefixes = Prefixes::new(BLOCK_TOKENS, Self::BLOCKS_MAX);
        for worker in 0..setup.workers {
            prefixes.set_capacity(u16::try_from(worker).unwrap_or(u16::MAX), setup.cells);
        }
        Self {
            prefixes,
            ahead: vec![0; setup.workers],
            writing: vec![0; setup.workers],
            since: vec![0.0; setup.workers],
            sent: HashMap::new(),
            chosen: 0,
            cached: vec![0; setup.workers],
            setup: setup.clone(),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "milliseconds of an hour")]
fn seconds(request: &Request) -> f64 {
    request.at_ms as f64 / 1000.0
}

/// Numbers of blocks as names that are spread.
fn names(blocks: &[u64]) -> Vec<u64> {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    blocks.iter().map(|block| (block + 1).wrapping_mul(ODD)).collect()
}

impl Router for Tram {
    fn choose(&mut self, request: &Request, _: &Workers, rng: &mut Rng) -> usize {
        self.cached.fill(0);
        let cached = &mut self.cached;
        self.prefixes.find(&names(&request.blocks), |worker, tokens| {
            let most = &mut cached[usize::from(worker)];
            *most = tokens.max(*most);
        });
        #[expect(clippy::cast_possible_truncation, reason = "the model's own numbers")]
        let (rate, step) = (self.setup.prefill_rate as f32, self.setup.step_seconds as f32);
        let now = seconds(request);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "an estimate"
        )]
        let read = |since: f64| ((now - since) * self.setup.prefill_rate) as u32;
        let replicas = (0..self.ahead.len()).map(|worker| Replica {
            ahead_tokens: self.ahead[worker].saturating_sub(read(self.since[worker])),
            writing: self.writing[worker],
            prefill_rate: rate,
            step_seconds: step,
            step_tokens: self.setup.step_tokens,
            cached_tokens: self.cached[worker],
        });
        #[expect(clippy::cast_possible_truncation, reason = "any bits will do")]
        let rotation = rng.bits_128() as u32;
        let choice = choose(request.input, replicas, rotation);
        self.chosen = choice.map_or(0, |choice| choice.uncached_tokens);
        choice.map_or(0, |choice| choice.index)
    }

    fn sent(&mut self, number: usize, request: &Request, worker: usize) {
        if self.ahead[worker] == 0 {
            self.since[worker] = seconds(request);
        }
        self.ahead[worker] += self.chosen;
        self.sent.insert(number, self.chosen);
        let slot = u16::try_from(worker).unwrap_or(u16::MAX);
        self.prefixes.learn(&names(&request.blocks), slot, self.chosen);
    }

    fn heard(&mut self, event: &Event, requests: &[Request]) {
        match *event {
            Event::First { worker, request, at } => {
                let tokens = self.sent.remove(&request).unwrap_or(0);
                self.since[worker] = at;
                self.ahead[worker] = self.ahead[worker].saturating_sub(tokens);
                self.writing[worker] += 1;
            }
            Event::Ended { worker, request } => {
                self.writing[worker] = self.writing[worker].saturating_sub(1);
                let slot = u16::try_from(worker).unwrap_or(u16::MAX);
                self.prefixes.wrote(slot, requests[request].output);
            }
        }
    }
}

/// SGLang's router, policy `cache_aware`: when loads (requests under way) differ by more than an absolute and a relative
/// threshold, the least loaded; else the worker with the longest match in a tree of what was sent, when it is more than a
/// share of the prompt; else the one that was sent least.
struct Sglang {
    /// Which workers were sent each block.
    tree: HashMap<u64, u64>,
    /// Tokens in each worker's tree.
    sizes: Vec<usize>,
}

impl Sglang {
    const CACHE_THRESHOLD: f64 = 0.3;
    const BALANCE_ABSOLUTE: usize = 64;
    const BALANCE_RELATIVE: f64 = 1.5;

    fn new(setup: &Setup) -> Self {
        Self {
            tree: HashMap::new(),
            sizes: vec![0; setup.workers],
        }
    }

    fn matched(&self, request: &Request, worker: usize) -> usize {
        let has = |block: &&u64| self.tree.get(block).is_some_and(|set| set & (1 << worker) != 0);
        request.blocks.iter().take_while(has).count()
    }
}

impl Router for Sglang {
    fn choose(&mut self, request: &Request, workers: &Workers, rng: &mut Rng) -> usize {
        let all = workers.all();
        let loads: Vec<usize> = all.iter().map(super::workers::Worker::present).collect();
        let most = loads.iter().copied().max().unwrap_or(0);
        let least = loads.iter().copied().min().unwrap_or(0);
        let unbalanced =
            most - least > Self::BALANCE_ABSOLUTE && float(most) > Self::BALANCE_RELATIVE * float(least);
        if unbalanced {
            return lowest(all.len(), rng, |worker| float(loads[worker]));
        }
        let matched: Vec<usize> = (0..all.len())
            .map(|worker| self.matched(request, worker))
            .collect();
        let best = lowest(all.len(), rng, |worker| -float(matched[worker]));
        let share = float(matched[best]) / float(request.blocks.len().max(1));
        if share > Self::CACHE_THRESHOLD {
            best
        } else {
            lowest(all.len(), rng, |worker| float(self.sizes[worker]))
        }
    }

    fn sent(&mut self, _: usize, request: &Request, worker: usize) {
        for block in &request.blocks {
            let set = self.tree.entry(*block).or_default();
            if *set & (1 << worker) == 0 {
                *set |= 1 << worker;
                self.sizes[worker] += BLOCK_TOKENS as usize;
            }
        }
    }
}

/// Dynamo's KV router: the least sum of blocks of prompts to be read (those under way and this one's that are not cached,
/// with a weight of 1) and blocks of active requests, this one's among them; temperature 0.
struct Dynamo {
    /// Tokens of prompts under way.
    prefill: Vec<usize>,
    active: Vec<usize>,
    /// Of requests under way: tokens to be read and blocks.
    sent: HashMap<usize, (usize, usize)>,
    chosen: usize,
}

impl Dynamo {
    const OVERLAP_WEIGHT: f64 = 1.0;

    fn new(setup: &Setup) -> Self {
        Self {
            prefill: vec![0; setup.workers],
            active: vec![0; setup.workers],
            sent: HashMap::new(),
            chosen: 0,
        }
    }
}

impl Router for Dynamo {
    fn choose(&mut self, request: &Request, workers: &Workers, rng: &mut Rng) -> usize {
        let all = workers.all();
        let block = BLOCK_TOKENS as usize;
        let uncached = |worker: usize| {
            let cached = all[worker].cached_blocks(&request.blocks) * block;
            (request.input as usize).saturating_sub(cached)
        };
        let worker = lowest(all.len(), rng, |worker| {
            let prefill = float(self.prefill[worker] + uncached(worker)) / float(block);
            Self::OVERLAP_WEIGHT * prefill + float(self.active[worker] + request.blocks.len())
        });
        self.chosen = uncached(worker);
        worker
    }

    fn sent(&mut self, number: usize, request: &Request, worker: usize) {
        self.prefill[worker] += self.chosen;
        self.active[worker] += request.blocks.len();
        self.sent.insert(number, (self.chosen, request.blocks.len()));
    }

    fn heard(&mut self, event: &Event, _: &[Request]) {
        match *event {
            Event::First { worker, request, .. } => {
                if let Some((tokens, _)) = self.sent.get_mut(&request) {
                    self.prefill[worker] -= std::mem::take(tokens);
                }
            }
            Event::Ended { worker, request } => {
                if let Some((_, blocks)) = self.sent.remove(&request) {
                    self.active[worker] -= blocks;
                }
            }
        }
    }
}

/// When each block was sent last, and the blocks in their order.
type Known = (HashMap<u64, u64>, VecDeque<(u64, u64)>);

/// The Gateway API inference extension's endpoint picker with its default scorers: the queue (weight 1), free cache (1),
/// and the share of the prompt that was sent there (3), of which it looks at the first 256 blocks of 64 characters and
/// remembers 31,250 a server.
struct Epp {
    /// Of each worker: when a block was sent last, and the blocks in their order.
    known: Vec<Known>,
    clock: u64,
}

impl Epp {
    /// In blocks of the trace: 512 tokens are about 2048 characters, 32 of its blocks.
    const LOOKED_AT: usize = 256 / 32;
    const REMEMBERED: usize = 31_250 / 32;
    const WEIGHTS: [f64; 3] = [1.0, 1.0, 3.0];

    fn new(setup: &Setup) -> Self {
        Self {
            known: vec![(HashMap::new(), VecDeque::new()); setup.workers],
            clock: 0,
        }
    }

    fn looked_at(request: &Request) -> &[u64] {
        &request.blocks[..request.blocks.len().min(Self::LOOKED_AT)]
    }
}

impl Router for Epp {
    fn choose(&mut self, request: &Request, workers: &Workers, rng: &mut Rng) -> usize {
        let all = workers.all();
        let queues: Vec<usize> = all.iter().map(super::workers::Worker::waiting).collect();
        let most = queues.iter().copied().max().unwrap_or(0);
        let least = queues.iter().copied().min().unwrap_or(0);
        let blocks = Self::looked_at(request);
        let [queue, room, prefix] = Self::WEIGHTS;
        lowest(all.len(), rng, |worker| {
            let shorter = if most == least {
                1.0
            } else {
                float(most - queues[worker]) / float(most - least)
            };
            #[expect(clippy::cast_precision_loss, reason = "tokens")]
            let used = all[worker].used() as f64 / workers.setup().cells as f64;
            let has = |block: &&u64| self.known[worker].0.contains_key(block);
            let matched = float(blocks.iter().take_while(has).count()) / float(blocks.len().max(1));
            -(queue * shorter + room * (1.0 - used) + prefix * matched)
        })
    }

    fn sent(&mut self, _: usize, request: &Request, worker: usize) {
        let (known, order) = &mut self.known[worker];
        for block in Self::looked_at(request) {
            self.clock += 1;
            known.insert(*block, self.clock);
            order.push_back((*block, self.clock));
        }
        while known.len() > Self::REMEMBERED {
            let Some((block, at)) = order.pop_front() else {
                break;
            };
            // It was used again since.
            if known.get(&block) == Some(&at) {
                known.remove(&block);
            }
        }
    }
}
