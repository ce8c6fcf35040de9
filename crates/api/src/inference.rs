//! Models on the platform's own address, by OpenAI's contract: one base URL and one token for all of them.
//!
//! ```text
//! authenticate -> read (bounded) -> find the ways that `model` leads -> admit by the budgets -> send to the edge
//!   -> the next way if that one refused -> pass the answer on
//! ```
//!
//! Who asks, and where a name leads, is what the store said at this very state of it, not read anew for each question:
//! [`crate::known`].
//!
//! This is a client of the edge, and keeps nothing: waking, holding, balancing and accounting are the edge's, computing is
//! the engine's. The answer passes through byte by byte, so a stream is a stream; a caller that leaves takes the request
//! to the engine along. The caller's token ends here: an engine never sees it.
//!
//! Most paths are OpenAI's, and so are their errors. Mistral's clients use the same paths; what they name differently is
//! translated in [`body`]. Anthropic's have paths, a header and errors of their own: [`anthropic`].

mod anthropic;
mod body;
mod budget;
mod error;
mod find;
mod forward;
mod list;
mod ways;

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Router,
    body::Body,
    extract::{Path, Request, State},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use http::request::Parts;

pub use self::budget::Budgets;
pub(crate) use self::ways::{FALLBACKS_MAX, Places, TARGETS_MAX, WEIGHT_MAX, leads_to};
use self::{budget::Asker, error::Refusal, find::Target, forward::Edge};
use crate::{
    auth::{Access, Caller, authenticate},
    state::ApiState,
};

/// Where the edge takes requests for services, and what is kept of the way there. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Front(Arc<Edge>);

impl Front {
    /// A front of the edge at this address, which speaks HTTP there without TLS and believes who has `secret`.
    #[must_use]
    pub fn new(edge: SocketAddr, secret: &str) -> Self {
        Self(Arc::new(Edge::new(edge, secret)))
    }
}

/// The endpoints.
pub(crate) fn router(api: ApiState) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(ask))
        .route("/v1/completions", post(ask))
        .route("/v1/embeddings", post(ask))
        .route("/v1/responses", post(ask))
        .route("/v1/fim/completions", post(ask))
        .route("/v1/messages", post(ask_as_anthropic))
        .route("/v1/messages/count_tokens", post(ask_as_anthropic))
        .route("/v1/models", get(models))
        .route("/v1/models/{*model}", get(model))
        .with_state(api)
}

async fn ask(State(api): State<ApiState>, request: Request) -> Response {
    answer(Box::pin(try_ask(&api, request)).await)
}

async fn ask_as_anthropic(State(api): State<ApiState>, request: Request) -> Response {
    Box::pin(try_ask(&api, request))
        .await
        .unwrap_or_else(anthropic::refuse)
}

/// A request whose token is where all have it.
fn parts(request: Request) -> (Parts, Body) {
    let (mut parts, body) = request.into_parts();
    anthropic::take_key(&mut parts.headers);
    (parts, body)
}

async fn try_ask(api: &ApiState, request: Request) -> Result<Response, Refusal> {
    let (parts, incoming) = parts(request);
    let caller = admit(api, &parts, Access::Ask).await?;
    let Some(front) = &api.front else {
        return Err(Refusal::no_models());
    };
    let held = front.0.read(&parts, incoming).await?;
    let asked = body::Asked::read(held.bytes())?;
    let ways = ways::ways(api, &caller, asked.model()).await?;
    let last = ways.targets.len().saturating_sub(1);
    for target in ways.targets.iter().take(last) {
        let went = send(api, front, &parts, &caller, &asked, target, ways.asked.as_deref()).await;
        let status = match &went {
            Ok(response) => response.status(),
            // What the caller may spend is the same everywhere.
            Err(refusal) if refusal.limited.is_some() => return went,
            Err(refusal) => refusal.status,
        };
        if !tram_planner::model_route::goes_on(status.as_u16()) {
            return went;
        }
        tracing::debug!(service = %target.served_name, %status, "a question goes on to a fallback");
    }
    let Some(target) = ways.targets.get(last) else {
        return Err(Refusal::no_such_model(asked.model()));
    };
    // The body's memory is held until the answer begins, as it may be asked for again until then.
    let answer = send(api, front, &parts, &caller, &asked, target, ways.asked.as_deref()).await;
    drop(held);
    answer
}

/// Sends a question to one service. `recorded`: what records call the model.
async fn send(
    api: &ApiState,
    front: &Front,
    parts: &Parts,
    caller: &Caller,
    asked: &body::Asked<'_>,
    target: &Target,
    recorded: Option<&str>,
) -> Result<Response, Refusal> {
    let facts = target.engine.facts();
    if facts.lacks.contains(&parts.uri.path()) {
        let message = format!(
            "model `{}` is served by `{}`, which does not have {}",
            asked.model(),
            facts.name,
            parts.uri.path()
        );
        return Err(Refusal::bad(message).of("model").coded("not_served"));
    }
    let bytes = asked.for_engine(&target.served_name)?;
    let asker = Asker {
        organization: caller.organization,
        credential: caller.credential,
        project: target.project,
    };
    let admitted = api
        .budgets
        .admit(asker, asked.cost_estimate(parts.uri.path()))
        .await?;
    front
        .0
        .send(parts, target, caller.credential, admitted, bytes, recorded)
        .await
}

async fn models(State(api): State<ApiState>, request: Request) -> Response {
    let (parts, _) = parts(request);
    let listed = async {
        let caller = admit(&api, &parts, Access::List).await?;
        list::all(&api, &caller).await
    };
    answer(listed.await)
}

async fn model(State(api): State<ApiState>, Path(name): Path<String>, request: Request) -> Response {
    let (parts, _) = parts(request);
    let found = async {
        let caller = admit(&api, &parts, Access::List).await?;
        list::one(&api, &caller, &name).await
    };
    answer(found.await)
}

async fn admit(api: &ApiState, parts: &Parts, access: Access) -> Result<Caller, Refusal> {
    Ok(authenticate(api, parts, access).await?)
}

fn answer(outcome: Result<impl IntoResponse, Refusal>) -> Response {
    match outcome {
        Ok(reply) => reply.into_response(),
        Err(refusal) => refusal.into_response(),
    }
}
