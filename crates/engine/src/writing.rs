//! What a chosen token does to an answer: its grammar, its text, its end. And the same again for an answer that another
//! engine began.
//!
//! `engine` calls [`advance`] for each token it chooses. `http` calls [`replay`] when it is given the tokens of an answer
//! that broke off elsewhere: they go through the same function, so that what was held back, what the grammar allows and
//! where the seed stands are as they were. Only the cells of the cache are not there; the engine reads those tokens with
//! the prompt.

use llguidance::Matcher;

use crate::cache::Token;
use crate::model::Model;
use crate::output::{Output, Pushed};
use crate::request::{End, Failure, Request};
use crate::sample::Sampler;

/// An answer as it stood after its last token.
pub(crate) struct Resumed {
    /// What was generated, without the prompt.
    pub(crate) tokens: Vec<Token>,
    pub(crate) sampler: Sampler,
    pub(crate) output: Output,
    pub(crate) grammar: Option<Matcher>,
    /// The last token ended it: nothing is left to compute.
    pub(crate) end: Option<End>,
}

/// Why tokens are none of this request's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Misfit {
    /// The answer would have ended before this one of them, counted from 0.
    Ended(usize),
    /// Not one of the vocabulary.
    Unknown(Token),
    /// The grammar does not allow one of them.
    Grammar(String),
}

/// Takes in that `token` was chosen as number `generated` of the answer, counted from 1. The text that it gives free, and
/// why the answer ends with it, if it does.
///
/// # Errors
/// When the grammar does not allow the token.
pub(crate) fn advance(
    model: &Model,
    request: &Request,
    grammar: &mut Option<Matcher>,
    output: &mut Output,
    token: Token,
    generated: usize,
) -> Result<(String, Option<End>), Failure> {
    let ends = model.ends(token);
    let mut stop = None;
    if let Some(grammar) = grammar
        && !ends
    {
        grammar
            .consume_token(token.cast_unsigned())
            .map_err(|error| Failure::Grammar(error.to_string()))?;
        if grammar.is_stopped() {
            stop = Some(End::Stop);
        }
    }
    let mut text = String::new();
    if ends && !request.ignores_end {
        stop = Some(End::Stop);
    } else {
        match output.push(&model.piece(token)) {
            Pushed::Text(more) => text = more,
            Pushed::Stopped(last) => {
                text = last;
                stop = Some(End::Sequence(output.met()));
            }
        }
    }
    if stop.is_none() && generated >= request.tokens_max {
        stop = Some(End::Length);
    }
    if stop.is_some() {
        text.push_str(&output.finish());
    }
    Ok((text, stop))
}

/// The state of `request`'s one answer after `tokens`, and the text that each of them gave free. The request's grammar
/// goes into it. Takes time for the grammar: not on a thread that others wait for.
///
/// # Errors
/// When this request with this seed cannot have been answered so.
pub(crate) fn replay(
    model: &Model,
    request: &mut Request,
    tokens: Vec<Token>,
) -> Result<(Resumed, Vec<String>), Misfit> {
    let mut sampler = Sampler::new(
        request.sampling.clone(),
        request.seed,
        request.log_probabilities,
        &request.prompt,
    );
    let mut output = Output::new(request.stops.clone());
    let mut grammar = request.grammar.take();
    let (mut end, mut texts) = (None, Vec::with_capacity(tokens.len()));
    for (at, token) in tokens.iter().enumerate() {
        if end.is_some() {
            return Err(Misfit::Ended(at));
        }
        if !(0..model.vocabulary()).contains(token) {
            return Err(Misfit::Unknown(*token));
        }
        sampler.replay(*token);
        let (text, stop) = advance(model, request, &mut grammar, &mut output, *token, at + 1)
            .map_err(|failure| Misfit::Grammar(format!("{failure:?}")))?;
        texts.push(text);
        end = stop;
    }
    let resumed = Resumed {
        tokens,
        sampler,
        output,
        grammar,
        end,
    };
    Ok((resumed, texts))
}
