//! What is told to an edge that asks, beside the answer, so that another engine can go on where this one ended.
//!
//! An edge asks by the header [`ASK`] and is the only one that may: it takes the header off what clients send. What it is
//! told stands in comments of the event stream, each a line of its own that begins with [`MARK`], which the edge takes out
//! again: what a client reads is the same, byte by byte, whether an edge asked or not.
//!
//! ```text
//! : tram {"begin":{"id":…,"created":…,"seed":…,"cached":…,"model":…}}   with the first chunk, if there is one
//! : tram {"tokens":[…]}      before the text that they gave free; alone where they gave none
//! : tram {"tokens":[…],"events":2}   the same before two events, which count together or not at all
//! : tram {"end":{…}}         nothing that follows is to be shown before all of it is there
//! : tram {"done":true}       before the last event, where it is not OpenAI's `[DONE]`
//! : tram {"stopping":true}   the engine ends: go on elsewhere
//! ```
//!
//! To go on, the edge sends the same body, behind it a [`State`] as JSON, and in the header [`RESUME`] the length of the
//! body without the state.

use bytes::Bytes;
use hyper::header::{HeaderMap, HeaderValue};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::error::ApiError;
use super::reply::Usage;
use crate::cache::Token;
use crate::model::Model;
use crate::request::Request;
use crate::writing::{Misfit, replay};

/// What an edge asks by, and what the answer says when it is told.
pub(super) const ASK: &str = "x-tram-tell";
/// The only thing there is to ask for.
pub(super) const TOKENS: HeaderValue = HeaderValue::from_static("tokens");
/// Where in the body the state begins that is to be gone on from.
pub(super) const RESUME: &str = "x-tram-resume";
/// How full the engine is, on every answer to an edge that asks.
pub(super) const STATE: &str = "x-tram-engine-state";
/// What a line for the edge begins with.
const MARK: &str = ": tram ";

/// What an edge knows of an answer that broke off.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct State {
    #[serde(flatten)]
    pub(super) begin: Begin,
    /// All that were generated, in their order.
    pub(super) tokens: Vec<Token>,
}

/// What all parts of an answer have in common, whoever writes them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Begin {
    pub(super) id: String,
    pub(super) created: i64,
    pub(super) seed: u64,
    pub(super) prompt_tokens: usize,
    /// Those of them that were cached when it was read first.
    pub(super) cached: usize,
    /// Which model: one engine does not go on where another model ended.
    pub(super) model: String,
}

/// What a request says for the engine alone.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Handover {
    /// An edge wants to be told.
    pub(super) asks: bool,
    /// Where the state begins in the body.
    pub(super) resume_at: Option<usize>,
}

impl Handover {
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, ApiError> {
        let resume_at = headers.get(RESUME).map(|value| {
            let number = value.to_str().ok().and_then(|text| text.parse().ok());
            number.ok_or_else(|| ApiError::field(RESUME, format!("'{RESUME}' has to be a number of bytes.")))
        });
        Ok(Self {
            asks: headers.get(ASK).is_some_and(|value| value == TOKENS),
            resume_at: resume_at.transpose()?,
        })
    }

    /// The body as the client sent it, and the state behind it.
    pub(super) fn split(self, body: &Bytes) -> Result<(Bytes, Option<State>), ApiError> {
        let Some(at) = self.resume_at else {
            return Ok((body.clone(), None));
        };
        if at > body.len() {
            return Err(ApiError::field(
                RESUME,
                format!("'{RESUME}' is beyond the end of the body."),
            ));
        }
        let state = serde_json::from_slice(&body[at..])
            .map_err(|error| ApiError::field(RESUME, format!("The state cannot be read: {error}")))?;
        Ok((body.slice(..at), Some(state)))
    }
}

/// An answer that goes on: its head, and what its tokens so far gave free.
pub(super) struct Continued {
    pub(super) begin: Begin,
    pub(super) texts: Vec<(Token, String)>,
}

/// Puts the request where the other engine left it. Takes time for the grammar. `stream`: it is to be streamed;
/// `may_call`: it may call tools.
pub(super) fn resume(
    model: &Model,
    request: &mut Request,
    stream: bool,
    may_call: bool,
    state: State,
) -> Result<Continued, ApiError> {
    if state.begin.model != model.identity {
        return Err(ApiError::cannot_resume(
            "this engine serves another model than the one that began the answer",
        ));
    }
    if request.answers != 1 || !stream {
        return Err(ApiError::cannot_resume("only one streamed answer can go on"));
    }
    if may_call && request.log_probabilities.is_some() {
        return Err(ApiError::cannot_resume(
            "log probabilities of a possible call are not known any more",
        ));
    }
    request.seed = state.begin.seed;
    let tokens = state.tokens.clone();
    let (resumed, texts) = replay(model, request, state.tokens).map_err(|misfit| {
        let why = match misfit {
            Misfit::Ended(at) => format!("the answer ends before token {at} of those given"),
            Misfit::Unknown(token) => format!("token {token} is not one of this model"),
            Misfit::Grammar(why) => format!("its tokens do not match the request: {why}"),
        };
        ApiError::cannot_resume(&why)
    })?;
    request.resumed = Some(Box::new(resumed));
    Ok(Continued {
        begin: state.begin,
        texts: tokens.into_iter().zip(texts).collect(),
    })
}

/// The first line, before `events` that belong to it.
pub(super) fn begin(begin: &Begin, events: usize) -> String {
    line(json!({ "begin": begin }), events)
}

/// The line for tokens; what they gave free follows it as `events`, or an empty line.
pub(super) fn tokens(tokens: &[Token], events: usize) -> String {
    line(json!({ "tokens": tokens }), events)
}

fn line(mut told: Value, events: usize) -> String {
    if events > 1 {
        told["events"] = events.into();
    }
    format!("{MARK}{told}\n")
}

/// The line before the last event.
pub(super) fn done() -> String {
    line(json!({"done": true}), 1)
}

/// The line before the end.
pub(super) fn end(usage: Usage) -> Bytes {
    Bytes::from(format!("{MARK}{}\n\n", json!({ "end": usage.json() })))
}

/// The line of an engine that ends.
pub(super) const STOPPING: &[u8] = b": tram {\"stopping\":true}\n\n";
