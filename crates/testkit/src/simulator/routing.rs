//! Which replica of a model answers: the planner's choice by estimated time to first token, against those of SGLang's
//! router, Dynamo's KV router and the endpoint picker of the Gateway API inference extension.
//!
//! Each policy sees the same trace on the same [`workers`]; [`policies`] has what each knows. What is compared is the share
//! of requests whose first token comes in [`IN_TIME_SECONDS`].

pub mod policies;
pub mod workers;

use super::{
    Error, Rng,
    report::{Column, Report, Table},
    trace::mooncake::Request,
};
use policies::Router;
use workers::{Setup, Workers};

/// A first token that comes later than this is late.
pub const IN_TIME_SECONDS: f64 = 2.0;
/// Times of the speed of [`Setup::default`] that workers are tried with: from too slow for the trace to more than enough.
pub const SPEEDS: [f64; 5] = [0.7, 0.85, 1.0, 1.25, 1.6];
/// Tokens that a worker holds: with much room caches are good wherever prompts go, with little they are what counts.
pub const CELLS: [u64; 2] = [1_000_000, 400_000];
/// The policies there are.
pub const ALL: [&str; 6] = ["tram", "sglang", "dynamo", "epp", "least", "round-robin"];

/// What became of a trace.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The share of requests whose first token came in time.
    pub in_time: f64,
    /// Times to the first token, in seconds.
    pub p50: f64,
    /// The same.
    pub p99: f64,
    /// The share of tokens of prompts that were cached.
    pub cached: f64,
}

/// Replays a trace with one policy.
#[must_use]
pub fn replay(requests: &[Request], setup: &Setup, router: &mut dyn Router, seed: u64) -> Outcome {
    let mut rng = Rng::new(seed);
    let mut workers = Workers::new(setup);
    for (number, request) in requests.iter().enumerate() {
        #[expect(clippy::cast_precision_loss, reason = "milliseconds of an hour")]
        let now = request.at_ms as f64 / 1000.0;
        for event in workers.until(now, requests) {
            router.heard(&event, requests);
        }
        let chosen = router.choose(request, &workers, &mut rng);
        workers.send(number, chosen, now);
        router.sent(number, request, chosen);
    }
    for event in workers.until(f64::INFINITY, requests) {
        router.heard(&event, requests);
    }
    outcome(requests, &workers)
}

fn outcome(requests: &[Request], workers: &Workers) -> Outcome {
    let mut took: Vec<f64> = workers.first_tokens().collect();
    took.sort_by(f64::total_cmp);
    #[expect(clippy::cast_precision_loss, reason = "counts of requests and tokens")]
    let share = |part: usize, whole: usize| part as f64 / whole.max(1) as f64;
    let at = |quantile: usize| {
        let index = (took.len() * quantile / 100).min(took.len().saturating_sub(1));
        took.get(index).copied().unwrap_or(f64::NAN)
    };
    let input: usize = requests.iter().map(|request| request.input as usize).sum();
    Outcome {
        in_time: share(
            took.partition_point(|seconds| *seconds <= IN_TIME_SECONDS),
            requests.len(),
        ),
        p50: at(50),
        p99: at(99),
        cached: share(workers.cached_tokens(), input),
    }
}

/// Replays a trace with each policy, on workers of several speeds.
///
/// # Errors
/// When the trace is empty or a policy is unknown.
pub fn compare(name: &str, requests: &[Request], names: &[&str], seed: u64) -> Result<Report, Error> {
    if requests.is_empty() {
        return Err(Error::Argument {
            field: "TRACE",
            must: "a trace with at least one request".to_owned(),
        });
    }
    let mut tables = Vec::new();
    for (cells, speed) in CELLS.iter().flat_map(|cells| SPEEDS.map(|speed| (*cells, speed))) {
        let setup = Setup {
            cells,
            ..Setup::default().times(speed)
        };
        let mut rows = Vec::new();
        for name in names {
            let mut router = policies::named(name, &setup).ok_or_else(|| Error::Policy {
                name: (*name).to_owned(),
                known: format!("all, {}", ALL.join(", ")),
            })?;
            let outcome = replay(requests, &setup, router.as_mut(), seed);
            let figures = vec![outcome.in_time, outcome.p50, outcome.p99, outcome.cached];
            rows.push(((*name).to_owned(), figures));
        }
        tables.push(Table {
            title: format!("{:.0} tokens/s a worker, which holds {cells}", setup.prefill_rate),
            columns: vec![
                Column::new("in_time", "TTFT <= 2 s", 3),
                Column::new("p50_seconds", "p50 s", 2),
                Column::new("p99_seconds", "p99 s", 1),
                Column::new("cached", "cached", 3),
            ],
            rows,
        });
    }
    let setup = Setup::default();
    Ok(Report {
        title: format!("Routing: {name}, {} requests, {} workers, seed {seed}", requests.len(), setup.workers),
        notes: vec![
            format!(
                "Each worker reads one prompt after the other, {} tokens in a step, writes at most {} answers, and forgets \
                 what was used longest ago.",
                setup.step_tokens, setup.slots
            ),
            "With 6500 tokens/s and 1,000,000 tokens, about a server of eight A100 with a model of 70 billion parameters, \
             most requests can be in time and not all are; the other tables show how far the result depends on it."
                .to_owned(),
        ],
        tables,
        plots: Vec::new(),
    })
}

#[cfg(test)]
mod tests;
