//! The state of one answer between two steps.

use std::sync::Arc;
use std::time::Instant;

use llguidance::Matcher;
use tokio::sync::mpsc::UnboundedSender;

use super::lookup::Lookup;
use crate::cache::{SequenceId, Token};
use crate::output::Output;
use crate::request::{Event, Request};
use crate::sample::Sampler;

/// One answer; of a request for several, all of them until its prompt was read.
pub(super) struct Answer {
    /// What all answers of the request have in common; its prompt is in `tokens`.
    pub(super) request: Arc<Common>,
    /// Which answer it is.
    pub(super) number: usize,
    /// The prompt and what was generated.
    pub(super) tokens: Vec<Token>,
    /// How many of them are in the cache.
    pub(super) computed: usize,
    /// None while it waits.
    pub(super) sequence: Option<SequenceId>,
    pub(super) sampler: Sampler,
    pub(super) lookup: Lookup,
    pub(super) output: Output,
    pub(super) grammar: Option<Matcher>,
    /// It was in the batch once, so it does not count as waiting for its turn.
    pub(super) admitted: bool,
    /// Tokens of the prompt that were in the cache when it was.
    pub(super) cached: usize,
    /// When its last token came.
    pub(super) last_token: Option<Instant>,
}

/// What a request's answers share.
pub(super) struct Common {
    pub(super) request: Request,
    pub(super) prompt_tokens: usize,
    /// Scope of the prefix cache.
    pub(super) scope: u64,
}

impl Answer {
    /// `guess` is how many tokens may be guessed at a time.
    pub(super) fn new(mut request: Request, guess: usize) -> Self {
        let mut tokens = std::mem::take(&mut request.prompt);
        let prompt_tokens = tokens.len();
        let (sampler, output, grammar) = match request.resumed.take() {
            Some(resumed) => {
                // Read like a part of the prompt, and counted as generated.
                tokens.extend(&resumed.tokens);
                (resumed.sampler, resumed.output, resumed.grammar)
            }
            None => {
                let sampler = Sampler::new(
                    request.sampling.clone(),
                    request.seed,
                    request.log_probabilities,
                    &tokens,
                );
                let output = Output::new(request.stops.clone());
                (sampler, output, request.grammar.take())
            }
        };
        Self {
            number: 0,
            computed: 0,
            sequence: None,
            sampler,
            lookup: Lookup::new(guess),
            output,
            grammar,
            admitted: false,
            cached: 0,
            last_token: None,
            request: Arc::new(Common {
                prompt_tokens,
                scope: scope(&request.tenant, request.adapter),
                request,
            }),
            tokens,
        }
    }

    /// Another answer to the same prompt, which goes on from here with a seed of its own.
    pub(super) fn sibling(&self, number: usize, sequence: SequenceId) -> Self {
        let request = &self.request.request;
        Self {
            request: self.request.clone(),
            number,
            tokens: self.tokens.clone(),
            computed: self.computed,
            sequence: Some(sequence),
            sampler: Sampler::new(
                request.sampling.clone(),
                request.seed.wrapping_add(number as u64),
                request.log_probabilities,
                &self.tokens,
            ),
            lookup: self.lookup.clone(),
            output: Output::new(request.stops.clone()),
            grammar: self.grammar.as_ref().map(Matcher::deep_clone),
            admitted: true,
            cached: self.cached,
            last_token: None,
        }
    }

    pub(super) fn events(&self) -> &UnboundedSender<Event> {
        &self.request.request.events
    }

    /// Nobody listens.
    pub(super) fn abandoned(&self) -> bool {
        self.events().is_closed()
    }

    /// A token came out already.
    pub(super) fn begun(&self) -> bool {
        self.last_token.is_some()
    }

    pub(super) fn generated(&self) -> usize {
        self.tokens.len() - self.request.prompt_tokens
    }
}

/// Prompts of one tenant are not found for another's: how soon the first token comes would tell what the other asked.
/// Nor are those of another adapter, which would have computed something else.
fn scope(tenant: &str, adapter: Option<usize>) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    (tenant, adapter).hash(&mut hasher);
    hasher.finish()
}
