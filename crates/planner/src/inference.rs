//! Which replica of a model answers first: the one with the least estimated time to the first token.
//!
//! The edge calls this for each question, and the simulator with the same code. The estimate is the work that the first
//! token waits for: what the replica has yet to read of others' prompts, and what of this prompt it does not hold
//! already, at the speed at which it reads, slowed by the answers that it writes meanwhile.
//!
//! The one choice to know: what a replica holds is learned from what was sent to it ([`Prefixes`]), and believed as long
//! as a cache of its size that forgets what was used longest ago would hold it.

mod prefixes;

pub use prefixes::{Prefixes, chain};

/// Tokens in a second that a replica is taken to read before anything of it was measured: a small model on a processor.
/// Where nothing was measured of any, only the order of the estimates counts.
const RATE_UNKNOWN: f32 = 500.0;

/// How much a second of reading counts beside a second of waiting: what one reads anew that another holds also keeps
/// those waiting that come after. Found by simulation on Mooncake's conversations (docs/concepts/simulator.md): with 1,
/// prompts move to idle replicas that must read all of them and the work of all grows; from 3 on it makes no difference.
const READING_WEIGHT: f32 = 3.0;

/// What is known of a replica when a question comes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Replica {
    /// Tokens of prompts that it has yet to read, of whoever waits or is being read.
    pub ahead_tokens: u32,
    /// Answers that it writes.
    pub writing: u32,
    /// Tokens of prompts that it reads in a second; zero: not measured.
    pub prefill_rate: f32,
    /// Seconds of a step that writes a token for each answer; zero: not measured.
    pub step_seconds: f32,
    /// Tokens of a prompt that are read in one step beside answers that are written; zero: it does not share steps.
    pub step_tokens: u32,
    /// Tokens of this prompt that it holds.
    pub cached_tokens: u32,
}

/// The replica for a question.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// Its place among those that were given.
    pub index: usize,
    /// The time to the first token, in seconds.
    pub seconds: f32,
    /// Tokens of the prompt that it has yet to read.
    pub uncached_tokens: u32,
}

#[expect(clippy::cast_precision_loss, reason = "an estimate of tokens")]
fn float(tokens: u32) -> f32 {
    tokens as f32
}

fn rate(replica: &Replica) -> f32 {
    if replica.prefill_rate > 0.0 {
        replica.prefill_rate
    } else {
        RATE_UNKNOWN
    }
}

/// The time to read what it does not hold of the prompt, in seconds.
fn reading(prompt_tokens: u32, replica: &Replica) -> f32 {
    float(prompt_tokens.saturating_sub(replica.cached_tokens)) / rate(replica)
}

/// The time to the first token of a prompt of `prompt_tokens` there, in seconds.
#[must_use]
pub fn seconds(prompt_tokens: u32, replica: &Replica) -> f32 {
    let rate = rate(replica);
    // The last token is always read: the first of the answer comes from it.
    let uncached = prompt_tokens.saturating_sub(replica.cached_tokens).max(1);
    let read = float(uncached.saturating_add(replica.ahead_tokens));
    let reading = read / rate;
    // Each step also writes for those who are being answered; without any the steps are for prompts alone.
    let steps = match (replica.writing, replica.step_tokens) {
        (0, _) => 0.0,
        (_, 0) => 1.0,
        (_, tokens) => (read / float(tokens)).ceil(),
    };
    reading + steps * replica.step_seconds
}

/// The replica whose first token comes soonest, where those that would read much anew count as later than they are (see
/// [`READING_WEIGHT`]). `rotation` is random: of equals, it says who is looked at first. `None`:
/// there are none.
#[must_use]
pub fn choose(
    prompt_tokens: u32,
    replicas: impl ExactSizeIterator<Item = Replica>,
    rotation: u32,
) -> Option<Choice> {
    let count = replicas.len();
    let begin = usize::try_from(rotation).unwrap_or_default() % count.max(1);
    let mut best: Option<(f32, usize, Choice)> = None;
    for (index, replica) in replicas.enumerate() {
        let seconds = seconds(prompt_tokens, &replica);
        let cost = seconds + (READING_WEIGHT - 1.0) * reading(prompt_tokens, &replica);
        let turn = (index + count - begin) % count;
        let is_better = best.is_none_or(|(least, at, _)| match cost.total_cmp(&least) {
            std::cmp::Ordering::Less => true,
            std::cmp::Ordering::Equal => turn < at,
            std::cmp::Ordering::Greater => false,
        });
        if is_better {
            let uncached_tokens = prompt_tokens.saturating_sub(replica.cached_tokens);
            let choice = Choice {
                index,
                seconds,
                uncached_tokens,
            };
            best = Some((cost, turn, choice));
        }
    }
    best.map(|(_, _, choice)| choice)
}

#[cfg(test)]
mod tests;
