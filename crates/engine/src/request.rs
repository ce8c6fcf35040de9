//! What a request asks of the engine's thread, and what it hears back.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc::UnboundedSender;

use crate::cache::Token;
use crate::sample;
use crate::schedule::Priority;
use crate::writing::Resumed;

/// One prompt and how to answer it.
pub(crate) struct Request {
    pub(crate) prompt: Vec<Token>,
    /// Answers to the one prompt; at least 1.
    pub(crate) answers: usize,
    /// Tokens of each answer, at most; at least 1.
    pub(crate) tokens_max: usize,
    pub(crate) sampling: sample::Settings,
    /// The first answer's; each of the others has the next.
    pub(crate) seed: u64,
    pub(crate) stops: Vec<String>,
    /// The end-of-text token does not end an answer: for measuring.
    pub(crate) ignores_end: bool,
    /// Log probabilities of the tokens, and so many of the likeliest; None for none.
    pub(crate) log_probabilities: Option<usize>,
    /// What the client thinks that the answer will be; it may come sooner for that, and is no other.
    pub(crate) predicted: Vec<Token>,
    /// Which of the model's adapters is put on.
    pub(crate) adapter: Option<usize>,
    /// What the answer has to match.
    pub(crate) grammar: Option<llguidance::Matcher>,
    /// The answer was begun by another engine and goes on from there; only with one answer.
    pub(crate) resumed: Option<Box<Resumed>>,
    pub(crate) tenant: Arc<str>,
    pub(crate) priority: Priority,
    pub(crate) arrived: Instant,
    /// Bounded by what it carries: an answer has at most as many events as tokens. When nobody listens any more, the
    /// request is dropped within a step.
    pub(crate) events: UnboundedSender<Event>,
}

/// What happens to a request, in this order.
#[derive(Debug)]
pub(crate) enum Event {
    /// The prompt was read; `cached` of its tokens were there already.
    Read { cached: usize },
    /// A token of an answer. The text may be empty (a part of a character), or longer than the token.
    Token {
        answer: usize,
        token: Token,
        text: String,
        likely: Option<Likely>,
    },
    /// An answer is whole: so many tokens.
    Ended { answer: usize, why: End, tokens: usize },
    /// The request failed, whatever was sent before.
    Failed(Failure),
}

/// A token with its log probability, and the likeliest in its place.
#[derive(Debug, Clone)]
pub(crate) struct Likely {
    pub(crate) token: Vec<u8>,
    pub(crate) log_probability: f32,
    pub(crate) top: Vec<(Vec<u8>, f32)>,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The model was done.
    Stop,
    /// A stop sequence was met: which of the request's.
    Sequence(usize),
    /// No more tokens were allowed.
    Length,
}

/// Why a request failed in the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// llama.cpp could not compute a step.
    Kernels(String),
    /// The grammar fell into an error.
    Grammar(String),
    /// The engine ends.
    Stopping,
}
