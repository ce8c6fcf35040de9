//! From logits to the next token.
//!
//! Pure: the same logits, settings and seed give the same token. Order as in OpenAI's and llama.cpp's servers: bias and
//! penalties, what the grammar allows, temperature, then the cuts (`top_k`, `top_p`, `min_p`), then the draw. Written
//! here rather than taken from llama.cpp's chain: greedy decoding needs one pass over the vocabulary and no copy, and
//! the log probabilities come from the same pass.

mod random;

use std::collections::HashMap;

pub(crate) use random::Random;

use crate::cache::Token;

/// How an answer's tokens are chosen.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Settings {
    /// Zero takes the likeliest token always.
    pub(crate) temperature: f32,
    /// The least set of likeliest tokens with this much probability; 1 is no cut.
    pub(crate) top_p: f32,
    /// The so many likeliest tokens; 0 is no cut.
    pub(crate) top_k: usize,
    /// What is less likely than this times the likeliest is cut; 0 is no cut.
    pub(crate) min_p: f32,
    /// Off the logit of what the answer has, for each time.
    pub(crate) frequency_penalty: f32,
    /// Off the logit of what the answer has.
    pub(crate) presence_penalty: f32,
    /// Divides or multiplies the logit of what the prompt or the answer has; 1 is none.
    pub(crate) repetition_penalty: f32,
    /// Added to the logits of these tokens.
    pub(crate) bias: Vec<(Token, f32)>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            repetition_penalty: 1.0,
            bias: Vec::new(),
        }
    }
}

/// A token and how likely the model held it, as the natural logarithm of its probability. Before temperature and cuts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Likely {
    pub(crate) token: Token,
    pub(crate) log_probability: f32,
}

/// What was chosen.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Choice {
    pub(crate) token: Token,
    /// Of the chosen token; only when asked for.
    pub(crate) log_probability: Option<f32>,
    /// The likeliest, in order; as many as asked for.
    pub(crate) top: Vec<Likely>,
}

/// One answer's state.
#[derive(Debug, Clone)]
pub(crate) struct Sampler {
    settings: Settings,
    random: Random,
    /// How often each token was generated; kept only when a penalty asks.
    counts: HashMap<Token, u32>,
    /// Of the prompt; kept only when a penalty asks.
    prompt: Vec<Token>,
    /// Log probabilities asked for: None, or how many of the likeliest.
    log_probabilities: Option<usize>,
    scratch: Vec<f32>,
    candidates: Vec<(f32, Token)>,
}

impl Sampler {
    pub(crate) fn new(
        settings: Settings,
        seed: u64,
        log_probabilities: Option<usize>,
        prompt: &[Token],
    ) -> Self {
        let mut seen = Vec::new();
        if settings.repetition_penalty != 1.0 {
            seen.extend_from_slice(prompt);
            seen.sort_unstable();
            seen.dedup();
        }
        Self {
            settings,
            random: Random::new(seed),
            counts: HashMap::new(),
            prompt: seen,
            log_probabilities,
            scratch: Vec::new(),
            candidates: Vec::new(),
        }
    }

    /// Chooses; `allows` says whether the grammar does, and is None without one. Counts the choice for the penalties.
    pub(crate) fn choose(&mut self, logits: &[f32], allows: Option<&dyn Fn(Token) -> bool>) -> Choice {
        let plain = allows.is_none() && !self.adjusts();
        let mut adjusted = std::mem::take(&mut self.scratch);
        let used: &[f32] = if plain {
            logits
        } else {
            adjusted.clear();
            adjusted.extend_from_slice(logits);
            self.adjust(&mut adjusted);
            if let Some(allows) = allows {
                for (token, logit) in indexed(&mut adjusted) {
                    if !allows(token) {
                        *logit = f32::NEG_INFINITY;
                    }
                }
            }
            &adjusted
        };
        let token = if self.settings.temperature <= 0.0 {
            greatest(used)
        } else {
            self.draw(used)
        };
        let choice = self.describe(token, logits);
        self.scratch = adjusted;
        if self.counts_tokens() {
            *self.counts.entry(token).or_default() += 1;
        }
        choice
    }

    /// Takes in a token that was chosen elsewhere, as [`Sampler::choose`] would have with the same seed.
    pub(crate) fn replay(&mut self, token: Token) {
        if self.settings.temperature > 0.0 {
            self.random.unit();
        }
        if self.counts_tokens() {
            *self.counts.entry(token).or_default() += 1;
        }
    }

    fn counts_tokens(&self) -> bool {
        let settings = &self.settings;
        settings.frequency_penalty != 0.0
            || settings.presence_penalty != 0.0
            || settings.repetition_penalty != 1.0
    }

    fn adjusts(&self) -> bool {
        self.counts_tokens() || !self.settings.bias.is_empty()
    }

    fn adjust(&self, logits: &mut [f32]) {
        let at = |token: Token| usize::try_from(token).ok();
        for (token, bias) in &self.settings.bias {
            if let Some(logit) = at(*token).and_then(|at| logits.get_mut(at)) {
                *logit += bias;
            }
        }
        if !self.counts_tokens() {
            return;
        }
        let repetition = self.settings.repetition_penalty;
        let only_prompt = self
            .prompt
            .iter()
            .filter(|token| !self.counts.contains_key(token));
        for token in only_prompt.chain(self.counts.keys()) {
            if let Some(logit) = at(*token).and_then(|at| logits.get_mut(at)) {
                *logit = if *logit > 0.0 {
                    *logit / repetition
                } else {
                    *logit * repetition
                };
            }
        }
        for (token, count) in &self.counts {
            if let Some(logit) = at(*token).and_then(|at| logits.get_mut(at)) {
                #[expect(clippy::cast_precision_loss, reason = "a count of tokens of one answer")]
                let times = *count as f32;
                *logit -= self.settings.presence_penalty + self.settings.frequency_penalty * times;
            }
        }
    }

    fn draw(&mut self, logits: &[f32]) -> Token {
        let settings = &self.settings;
        let greatest_logit = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if !greatest_logit.is_finite() {
            return greatest(logits);
        }
        let scale = settings.temperature.recip();
        // Below this the probability is lost in the rounding of a sum of 32-bit floats.
        let floor = greatest_logit - settings.temperature * NEGLIGIBLE;
        self.candidates.clear();
        let candidates = (0..).zip(logits).filter(|(_, logit)| **logit >= floor);
        self.candidates
            .extend(candidates.map(|(token, logit)| (((logit - greatest_logit) * scale).exp(), token)));
        if settings.top_k > 0 || settings.top_p < 1.0 {
            // Equal ones in the order of the vocabulary, so that the same seed gives the same answer.
            self.candidates
                .sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        }
        if settings.top_k > 0 {
            self.candidates.truncate(settings.top_k);
        }
        if settings.min_p > 0.0 {
            // The likeliest weighs 1.
            let least = settings.min_p.min(1.0);
            self.candidates.retain(|(weight, _)| *weight >= least);
        }
        let mut total: f32 = self.candidates.iter().map(|(weight, _)| weight).sum();
        if settings.top_p < 1.0 {
            let enough = total * settings.top_p;
            let mut sum = 0.0;
            let cut = self.candidates.iter().position(|(weight, _)| {
                sum += weight;
                sum >= enough
            });
            if let Some(cut) = cut {
                self.candidates.truncate(cut + 1);
                total = sum;
            }
        }
        let mut left = self.random.unit() * total;
        let drawn = self.candidates.iter().find(|(weight, _)| {
            left -= weight;
            left < 0.0
        });
        // Rounding may leave a trifle over: then it is the last.
        drawn
            .or(self.candidates.last())
            .map_or_else(|| greatest(logits), |(_, token)| *token)
    }

    fn describe(&self, token: Token, logits: &[f32]) -> Choice {
        let Some(count) = self.log_probabilities else {
            return Choice {
                token,
                log_probability: None,
                top: Vec::new(),
            };
        };
        let greatest_logit = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f32 = logits.iter().map(|logit| (logit - greatest_logit).exp()).sum();
        let whole = greatest_logit + sum.ln();
        let of = |token: Token| {
            let logit = usize::try_from(token).ok().and_then(|at| logits.get(at));
            logit.copied().unwrap_or(f32::NEG_INFINITY) - whole
        };
        let mut top: Vec<Likely> = Vec::new();
        if count > 0 {
            let mut all: Vec<Token> = (0..).take(logits.len()).collect();
            let order = |a: &Token, b: &Token| of(*b).total_cmp(&of(*a)).then(a.cmp(b));
            let count = count.min(all.len());
            if count < all.len() {
                all.select_nth_unstable_by(count, order);
                all.truncate(count);
            }
            all.sort_unstable_by(order);
            top.extend(all.into_iter().map(|token| Likely {
                token,
                log_probability: of(token),
            }));
        }
        Choice {
            token,
            log_probability: Some(of(token)),
            top,
        }
    }
}

/// Natural logarithm of how much less likely than the likeliest a token may be and still count: about 1 in 10⁷.
const NEGLIGIBLE: f32 = 16.0;

/// The likeliest token and how likely it is.
pub(crate) fn likeliest(logits: &[f32]) -> (Token, f64) {
    let token = greatest(logits);
    let most = usize::try_from(token).ok().and_then(|at| logits.get(at));
    let most = most.copied().unwrap_or_default();
    // What is too little to count is most of the vocabulary.
    let sum: f32 = logits
        .iter()
        .filter(|logit| **logit > most - NEGLIGIBLE)
        .map(|logit| (logit - most).exp())
        .sum();
    (token, f64::from(sum.max(1.0).recip()))
}

/// The first of the greatest; token 0 of nothing.
///
/// In two passes, since a maximum alone is found many lanes at a time: half the time of one that keeps the place.
fn greatest(logits: &[f32]) -> Token {
    const LANES: usize = 32;
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (chunks, rest) = logits.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for (lane, logit) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, *logit);
        }
    }
    let most = lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, larger);
    let found = (0..).zip(logits).find(|(_, logit)| **logit == most);
    found.map_or(0, |(token, _)| token)
}

fn indexed(logits: &mut [f32]) -> impl Iterator<Item = (Token, &mut f32)> {
    (0..).zip(logits)
}

#[cfg(test)]
mod tests;
