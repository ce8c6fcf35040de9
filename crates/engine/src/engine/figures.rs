//! What the engine counts and how full it is, as the thread last said.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::request::End;

/// Weight of the newest step in the measured speed: about the last ten steps count.
const NEWEST: f64 = 0.1;

/// Upper bounds of the buckets, in seconds. vLLM's, so that its dashboards fit.
const FIRST_TOKEN: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0,
];
const BETWEEN_TOKENS: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];
const REQUEST: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
];

/// A histogram of durations.
#[derive(Debug, Clone)]
pub(crate) struct Histogram {
    pub(crate) bounds: &'static [f64],
    /// One for each bound and one for all above; not cumulative.
    pub(crate) counts: Vec<u64>,
    pub(crate) sum: f64,
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Self {
        Self {
            bounds,
            counts: vec![0; bounds.len() + 1],
            sum: 0.0,
        }
    }

    pub(super) fn add(&mut self, value: Duration) {
        let seconds = value.as_secs_f64();
        let at = self.bounds.partition_point(|bound| *bound < seconds);
        self.counts[at] += 1;
        self.sum += seconds;
    }
}

/// Counters since the start, and what is now.
#[derive(Debug, Clone)]
pub(crate) struct Figures {
    /// Answers in the batch; those whose prompt is still being read count one for all.
    pub(crate) running: usize,
    pub(crate) waiting: usize,
    /// Tokens of prompts that are still to be read, of whoever waits or runs.
    pub(crate) prompt_tokens_ahead: usize,
    pub(crate) cells: usize,
    pub(crate) cells_free: usize,
    /// Free, or kept for prompts that may come.
    pub(crate) cells_available: usize,
    pub(crate) prefixes_kept: usize,
    /// Tokens of prompts read in a second, lately; None before the first.
    pub(crate) prefill_rate: Option<f64>,
    /// Seconds of a step in which only answers decode, lately; None before the first.
    pub(crate) decode_step: Option<f64>,
    pub(crate) prompt_tokens: u64,
    pub(crate) cached_tokens: u64,
    pub(crate) generated_tokens: u64,
    /// Of them, and of those that were not, tokens that were guessed.
    pub(crate) guessed_tokens: u64,
    /// Guessed tokens that the answers really have.
    pub(crate) right_tokens: u64,
    /// Of the guessed tokens, those of a draft.
    pub(crate) drafted_tokens: u64,
    /// Of the tokens guessed right, those of a draft.
    pub(crate) drafted_right_tokens: u64,
    /// Seconds that the draft has computed.
    pub(crate) draft_seconds: f64,
    /// Tokens that were computed before the start, and taken up.
    pub(crate) recalled_tokens: u64,
    pub(crate) steps: u64,
    pub(crate) preempted: u64,
    pub(crate) cancelled: u64,
    pub(crate) ended_stop: u64,
    pub(crate) ended_length: u64,
    pub(crate) first_token: Histogram,
    pub(crate) between_tokens: Histogram,
    pub(crate) queued: Histogram,
    pub(crate) request: Histogram,
}

impl Figures {
    fn new() -> Self {
        Self {
            running: 0,
            waiting: 0,
            prompt_tokens_ahead: 0,
            cells: 0,
            cells_free: 0,
            cells_available: 0,
            prefixes_kept: 0,
            prefill_rate: None,
            decode_step: None,
            prompt_tokens: 0,
            cached_tokens: 0,
            generated_tokens: 0,
            guessed_tokens: 0,
            right_tokens: 0,
            drafted_tokens: 0,
            drafted_right_tokens: 0,
            draft_seconds: 0.0,
            recalled_tokens: 0,
            steps: 0,
            preempted: 0,
            cancelled: 0,
            ended_stop: 0,
            ended_length: 0,
            first_token: Histogram::new(FIRST_TOKEN),
            between_tokens: Histogram::new(BETWEEN_TOKENS),
            queued: Histogram::new(FIRST_TOKEN),
            request: Histogram::new(REQUEST),
        }
    }

    /// The time to the first token of a request that came now, in which `prompt` tokens are not cached: what is ahead of
    /// it and itself at the speed of late. None as long as nothing was measured.
    pub(crate) fn first_token_estimate(&self, prompt: usize) -> Option<Duration> {
        let rate = self.prefill_rate?;
        #[expect(clippy::cast_precision_loss, reason = "numbers of tokens are far below 2⁵²")]
        let tokens = (self.prompt_tokens_ahead + prompt) as f64;
        let step = self.decode_step.unwrap_or_default();
        Some(Duration::from_secs_f64(
            (tokens / rate + step).clamp(0.0, ESTIMATE_MAX),
        ))
    }

    pub(super) fn stepped(&mut self, prompt_tokens: usize, took: Duration) {
        self.steps += 1;

        let seconds = took.as_secs_f64().max(f64::EPSILON);
        let lately =
            |before: Option<f64>, now: f64| before.map_or(now, |before| before + NEWEST * (now - before));
        if prompt_tokens > 0 {
            #[expect(clippy::cast_precision_loss, reason = "tokens of one step")]
            let rate = prompt_tokens as f64 / seconds;
            self.prefill_rate = Some(lately(self.prefill_rate, rate));
        } else {
            self.decode_step = Some(lately(self.decode_step, seconds));
        }
    }

    /// Of so many tokens that the text or a draft guessed, the first `right` were right.
    pub(super) fn guessed(&mut self, by_draft: bool, tokens: usize, right: usize) {
        let (tokens, right) = (tokens as u64, right as u64);
        self.guessed_tokens += tokens;
        self.right_tokens += right;
        if by_draft {
            self.drafted_tokens += tokens;
            self.drafted_right_tokens += right;
        }
    }

    pub(super) fn admitted(&mut self, prompt: usize, cached: usize, waited: Duration) {
        self.prompt_tokens += prompt as u64;
        self.cached_tokens += cached as u64;
        self.queued.add(waited);
    }

    pub(super) fn ended(&mut self, why: End, whole: Duration) {
        match why {
            End::Stop | End::Sequence(_) => self.ended_stop += 1,
            End::Length => self.ended_length += 1,
        }
        self.request.add(whole);
    }
}

/// An estimate above a day says no more than a day.
const ESTIMATE_MAX: f64 = 86_400.0;

/// Requests that were let in and are not in the batch yet.
#[derive(Debug, Default)]
struct Queue {
    requests: usize,
    /// Of each tenant that has some.
    tenants: HashMap<Arc<str>, usize>,
}

/// What the thread and the others both see.
#[derive(Debug)]
pub(super) struct Shared {
    queue: Mutex<Queue>,
    figures: Mutex<Figures>,
}

impl Shared {
    pub(super) fn new() -> Self {
        Self {
            queue: Mutex::default(),
            figures: Mutex::new(Figures::new()),
        }
    }

    /// Changes the figures; a lock that a panicking thread left is taken over.
    pub(super) fn figures<T>(&self, change: impl FnOnce(&mut Figures) -> T) -> T {
        let mut figures = self.figures.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut figures)
    }

    /// Takes a place in the queue, if there is one of `most`. A tenant that has less than its share of them gets one
    /// beyond: whoever filled the queue keeps nobody else out. There are never more than twice as many.
    pub(super) fn enter_queue(&self, tenant: &Arc<str>, most: usize) -> bool {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let its = queue.tenants.get(tenant).copied().unwrap_or_default();
        let tenants = queue.tenants.len() + usize::from(its == 0);
        let below_share = its < most / tenants && queue.requests < 2 * most;
        if queue.requests >= most && !below_share {
            return false;
        }
        queue.requests += 1;
        *queue.tenants.entry(tenant.clone()).or_default() += 1;
        true
    }

    /// Gives a place in the queue back.
    pub(super) fn leave_queue(&self, tenant: &Arc<str>) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.requests = queue.requests.saturating_sub(1);
        if let Some(its) = queue.tenants.get_mut(tenant) {
            *its -= 1;
            if *its == 0 {
                queue.tenants.remove(tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_filled_the_queue_keeps_nobody_else_out() {
        let shared = Shared::new();
        let [crowd, person]: [Arc<str>; 2] = ["crowd".into(), "person".into()];
        assert_eq!((0..20).filter(|_| shared.enter_queue(&crowd, 8)).count(), 8);
        assert_eq!(
            (0..20).filter(|_| shared.enter_queue(&person, 8)).count(),
            4,
            "its share"
        );
        shared.leave_queue(&crowd);
        assert!(!shared.enter_queue(&crowd, 8), "it has more than its share");
        let strangers = (0..100)
            .filter(|name| shared.enter_queue(&name.to_string().into(), 8))
            .count();
        assert!(
            strangers <= 16,
            "names cost nothing, places are bounded: {strangers}"
        );
    }
}
