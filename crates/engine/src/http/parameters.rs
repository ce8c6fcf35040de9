//! What chat and plain completions have in common: how tokens are chosen, where an answer ends, how it is sent.

use std::time::Instant;

use tokio::sync::mpsc::UnboundedSender;

use super::Caller;
use super::error::ApiError;
use super::fields::{Fields, wrong_type};
use crate::cache::Token;
use crate::model::Model;
use crate::request::{Event, Request};
use crate::sample;

/// OpenAI's bound.
const STOPS_MAX: usize = 4;
/// OpenAI's bound, and where a distribution is as good as even.
pub(super) const TEMPERATURE_MAX: f32 = 2.0;
/// OpenAI's bound on penalties, above and below.
const PENALTY_MAX: f32 = 2.0;
/// OpenAI's bound on biases, above and below: it forces a token or rules it out.
const BIAS_MAX: f64 = 100.0;
/// Biases of one request. OpenAI's bound is not written down; each costs time in each token.
const BIASES_MAX: usize = 1024;
/// Factor that repetition is punished by; more makes nonsense.
const REPETITION_MAX: f32 = 10.0;
/// Fields that change no answer of one model on one engine.
const HARMLESS: &[&str] = &[
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
];

/// How to answer, whatever the question.
#[derive(Debug)]
pub(crate) struct Parameters {
    pub(crate) answers: usize,
    pub(super) tokens_max: Option<usize>,
    pub(super) sampling: sample::Settings,
    pub(super) seed: u64,
    pub(super) stops: Vec<String>,
    pub(super) ignores_end: bool,
    pub(crate) stream: bool,
    /// A last chunk of a stream says how many tokens it was.
    pub(crate) stream_usage: bool,
}

impl Parameters {
    /// Takes the fields that it knows. `answers_max` are the answers one request may ask for.
    pub(crate) fn take(fields: &mut Fields, model: &Model, answers_max: usize) -> Result<Self, ApiError> {
        let context = model.context_length;
        let most = fields.count("max_completion_tokens", 1, usize::MAX)?;
        let tokens_max = match most {
            Some(most) => {
                fields.take("max_tokens");
                Some(most)
            }
            None => fields.count("max_tokens", 1, usize::MAX)?,
        };
        let answers = fields.count("n", 1, answers_max)?.unwrap_or(1);
        let sampling = sample::Settings {
            temperature: fields
                .number("temperature", 0.0..=TEMPERATURE_MAX)?
                .unwrap_or(1.0),
            top_p: fields.number("top_p", 0.0..=1.0)?.unwrap_or(1.0),
            top_k: top_k(fields, model)?,
            min_p: fields.number("min_p", 0.0..=1.0)?.unwrap_or(0.0),
            frequency_penalty: fields
                .number("frequency_penalty", -PENALTY_MAX..=PENALTY_MAX)?
                .unwrap_or(0.0),
            presence_penalty: fields
                .number("presence_penalty", -PENALTY_MAX..=PENALTY_MAX)?
                .unwrap_or(0.0),
            repetition_penalty: fields
                .number("repetition_penalty", f32::MIN_POSITIVE..=REPETITION_MAX)?
                .unwrap_or(1.0),
            bias: bias(fields, model)?,
        };
        let seed = seed(fields)?;
        let stream = fields.flag("stream")?.unwrap_or(false);
        let mut stream_usage = false;
        if let Some(mut options) = fields.object("stream_options")? {
            if !stream {
                let message = "The 'stream_options' parameter is only allowed when 'stream' is enabled.";
                return Err(ApiError::field("stream_options", message));
            }
            stream_usage = options.flag("include_usage")?.unwrap_or(false);
            options.finish(&["include_obfuscation"])?;
        }
        Ok(Self {
            answers,
            tokens_max: tokens_max.map(|most| most.min(context)),
            sampling,
            seed,
            stops: fields.texts("stop", STOPS_MAX)?,
            ignores_end: fields.flag("ignore_eos")?.unwrap_or(false),
            stream,
            stream_usage,
        })
    }

    /// One answer, as the model gives it by itself, with a seed of its own.
    pub(super) fn plain() -> Self {
        Self {
            answers: 1,
            tokens_max: None,
            sampling: sample::Settings::default(),
            seed: unforeseen(),
            stops: Vec::new(),
            ignores_end: false,
            stream: false,
            stream_usage: false,
        }
    }

    /// Refuses what is left.
    pub(crate) fn finish(fields: Fields) -> Result<(), ApiError> {
        fields.finish(HARMLESS)
    }

    /// The request for the engine. `tokens_default` is the length of an answer when none is asked for; the context's end
    /// without.
    #[expect(clippy::too_many_arguments, reason = "each comes from another place")]
    pub(crate) fn request(
        &self,
        model: &Model,
        field: &'static str,
        prompt: Vec<Token>,
        tokens_default: Option<usize>,
        log_probabilities: Option<usize>,
        grammar: Option<llguidance::Matcher>,
        caller: &Caller,
        events: UnboundedSender<Event>,
    ) -> Result<Request, ApiError> {
        let room = model.context_length.saturating_sub(prompt.len());
        if room == 0 {
            return Err(ApiError::context_length(
                field,
                model.context_length,
                Some(prompt.len()),
            ));
        }
        if prompt.is_empty() {
            return Err(ApiError::field(field, format!("'{field}' makes no tokens.")));
        }
        let tokens_max = self.tokens_max.or(tokens_default).unwrap_or(room);
        Ok(Request {
            prompt,
            answers: self.answers,
            tokens_max: tokens_max.min(room),
            sampling: self.sampling.clone(),
            seed: self.seed,
            stops: self.stops.clone(),
            ignores_end: self.ignores_end,
            log_probabilities,
            predicted: Vec::new(),
            adapter: caller.adapter,
            grammar,
            resumed: None,
            tenant: caller.tenant.clone(),
            priority: caller.priority,
            arrived: Instant::now(),
            events,
        })
    }
}

/// OpenAI's `seed` or Mistral's `random_seed`; one of its own without.
fn seed(fields: &mut Fields) -> Result<u64, ApiError> {
    const MISTRAL: &str = "random_seed";
    let all = i64::MIN..=i64::MAX;
    match (
        fields.integer("seed", all.clone())?,
        fields.integer(MISTRAL, all)?,
    ) {
        (Some(_), Some(_)) => Err(ApiError::field(
            MISTRAL,
            "Give 'seed' or 'random_seed', not both.",
        )),
        (Some(seed), None) | (None, Some(seed)) => Ok(seed.cast_unsigned()),
        (None, None) => Ok(unforeseen()),
    }
}

pub(super) fn top_k(fields: &mut Fields, model: &Model) -> Result<usize, ApiError> {
    let vocabulary = usize::try_from(model.vocabulary()).unwrap_or_default();
    // -1 is no cut in vLLM's words, 0 in llama.cpp's.
    let top_k = fields.integer("top_k", -1..=i64::MAX)?.unwrap_or(0).max(0);
    Ok(usize::try_from(top_k).unwrap_or(vocabulary).min(vocabulary))
}

fn bias(fields: &mut Fields, model: &Model) -> Result<Vec<(Token, f32)>, ApiError> {
    const FIELD: &str = "logit_bias";
    let Some(value) = fields.take(FIELD) else {
        return Ok(Vec::new());
    };
    let Some(biases) = value.as_object() else {
        return Err(wrong_type(FIELD, "an object of tokens and numbers", &value));
    };
    if biases.len() > BIASES_MAX {
        let message = format!(
            "'{FIELD}' may have {BIASES_MAX} entries, but has {}.",
            biases.len()
        );
        return Err(ApiError::field(FIELD, message));
    }
    biases
        .iter()
        .map(|(token, bias)| {
            let number = token
                .parse::<Token>()
                .ok()
                .filter(|token| (0..model.vocabulary()).contains(token));
            let amount = bias.as_f64().filter(|bias| bias.abs() <= BIAS_MAX);
            #[expect(clippy::cast_possible_truncation, reason = "a bias needs no more precision")]
            match (number, amount) {
                (Some(token), Some(bias)) => Ok((token, bias as f32)),
                _ => Err(ApiError::field(
                    FIELD,
                    format!("'{FIELD}' takes numbers of tokens and biases from -{BIAS_MAX} to {BIAS_MAX}."),
                )),
            }
        })
        .collect()
}

/// A seed for those who gave none.
fn unforeseen() -> u64 {
    let (high, low) = uuid::Uuid::new_v4().as_u64_pair();
    high ^ low
}
