//! What one choice among a thousand replicas of a model costs: to find who holds how much of the prompt, and to estimate
//! the time to the first token of each.
//!
//! `cargo run --release -p tram-testkit --example routing_choice`: prompts of up to 128,000 tokens, of conversations that
//! begin alike and were sent to replicas at random. Prints one JSON object.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "random numbers, and estimates of which some bits do"
)]

use std::{hint::black_box, io::Write as _, time::Instant};

use tram_planner::inference::{Prefixes, Replica, chain, choose};
use tram_testkit::simulator::Rng;

const REPLICAS: u16 = 1000;
/// Beginnings that many conversations have in common.
const INSTRUCTIONS: u64 = 20;
const CONVERSATIONS: usize = 5_000;
/// Bytes of a block, as the edge has them, and the tokens that it takes them for.
const BLOCK_BYTES: usize = 64;
const BLOCK_TOKENS: u32 = 16;
/// Blocks of an instruction and of the longest prompt: 2,000 and 128,000 tokens.
const INSTRUCTION_BLOCKS: u64 = 125;
const BLOCKS_MAX: u64 = 8_000;
const CHOICES: usize = 50_000;

fn prompt(rng: &mut Rng) -> Vec<u64> {
    let below = |rng: &mut Rng, bound: u64| (rng.bits_128() % u128::from(bound)) as u64;
    let instruction = below(rng, INSTRUCTIONS);
    // Lengths spread evenly in their logarithm: most are short.
    let length = (INSTRUCTION_BLOCKS as f64
        * (BLOCKS_MAX as f64 / INSTRUCTION_BLOCKS as f64).powf(rng.uniform())) as u64;
    let talk = rng.bits_128() as u64;
    let mut bytes = Vec::new();
    for block in 0..length {
        let own = if block < INSTRUCTION_BLOCKS {
            instruction
        } else {
            talk
        };
        for word in 0..(BLOCK_BYTES / 8) as u64 {
            bytes.extend_from_slice(&(own ^ (block << 20) ^ (word << 50)).to_le_bytes());
        }
    }
    chain(1, &bytes, BLOCK_BYTES)
}

fn main() -> std::io::Result<()> {
    let mut rng = Rng::new(1);
    let mut prefixes = Prefixes::new(BLOCK_TOKENS, 1 << 23);
    for replica in 0..REPLICAS {
        prefixes.set_capacity(replica, 1_000_000);
    }
    let talks: Vec<Vec<u64>> = (0..CONVERSATIONS).map(|_| prompt(&mut rng)).collect();
    for talk in &talks {
        let replica = (rng.bits_128() % u128::from(REPLICAS)) as u16;
        prefixes.learn(talk, replica, 1000);
    }
    let replicas: Vec<Replica> = (0..REPLICAS)
        .map(|_| Replica {
            ahead_tokens: (rng.uniform() * 50_000.0) as u32,
            writing: (rng.uniform() * 30.0) as u32,
            prefill_rate: 6000.0,
            step_seconds: 0.03,
            step_tokens: 2048,
            cached_tokens: 0,
        })
        .collect();
    let mut cached = vec![0_u32; usize::from(REPLICAS)];
    let mut took: Vec<f64> = (0..CHOICES)
        .map(|number| {
            let talk = &talks[(rng.bits_128() % talks.len() as u128) as usize];
            let tokens = BLOCK_TOKENS * u32::try_from(talk.len()).unwrap_or(u32::MAX);
            let began = Instant::now();
            cached.fill(0);
            prefixes.find(talk, |replica, tokens| {
                let most = &mut cached[usize::from(replica)];
                *most = tokens.max(*most);
            });
            let known = replicas.iter().zip(&cached).map(|(replica, held)| Replica {
                cached_tokens: *held,
                ..*replica
            });
            black_box(choose(tokens, known, number as u32));
            began.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    took.sort_by(f64::total_cmp);
    let at = |share: f64| took[(took.len() as f64 * share) as usize];
    writeln!(
        std::io::stdout(),
        "{{\"replicas\": {REPLICAS}, \"choices\": {CHOICES}, \"p50_us\": {:.2}, \"p99_us\": {:.2}}}",
        at(0.5),
        at(0.99)
    )
}
