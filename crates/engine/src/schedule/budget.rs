//! How a step's tokens are shared out: everyone that decodes gets its token, prompts get what is left.

use std::cmp::Reverse;

use super::{JobId, Limits, Plan, Running};

/// So many tokens shorter a prompt counts for each step it has waited in the batch: short prompts overtake a long one,
/// but not for ever.
const AGING_TOKENS: u64 = 16;

/// A part of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Prefill {
    pub(crate) job: JobId,
    pub(crate) tokens: usize,
    /// The prompt ends here: the answer's first token comes out of this step.
    pub(crate) last: bool,
}

/// Fills the plan and takes what it plans off the prompts.
pub(super) fn share_out(step: u64, limits: &Limits, running: &mut [Running], plan: &mut Plan) {
    plan.decode = running
        .iter()
        .filter(|job| job.prefill_left == 0)
        .map(|job| job.entry.id)
        .collect();
    let mut budget = if plan.decode.is_empty() {
        limits.prefill_alone
    } else {
        limits.prefill_beside_decoding
    };
    let mut order: Vec<usize> = (0..running.len())
        .filter(|&at| running[at].prefill_left > 0)
        .collect();
    order.sort_by_key(|&at| {
        let job = &running[at];
        let waited = step.saturating_sub(job.since) * AGING_TOKENS;
        (
            Reverse(job.entry.priority),
            (job.prefill_left as u64).saturating_sub(waited),
            job.since,
        )
    });
    for at in order {
        if budget == 0 {
            break;
        }
        let job = &mut running[at];
        let tokens = job.prefill_left.min(budget);
        budget -= tokens;
        job.prefill_left -= tokens;
        plan.prefill.push(Prefill {
            job: job.entry.id,
            tokens,
            last: job.prefill_left == 0,
        });
    }
}
