//! A question: its body, read whole, and the asking of it, once or again.
//!
//! The body keeps every byte; of what stands in it only a few members are looked at, and one that cannot be read goes on as
//! it is, for the engine to judge.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header::{ACCEPT_ENCODING, CONTENT_LENGTH, TRANSFER_ENCODING};
use http::request::Parts;
use http::{HeaderValue, Request, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body as _, Incoming};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::OwnedSemaphorePermit;
use tram_types::engine::Engine;
use tram_types::inference::{Endpoint as Kind, Outcome, TokenRecord};
use tram_types::{DeploymentId, ServiceId};

use crate::alarm::Alarm;
use crate::balance::{Candidates, Weighted};
use crate::body::{Progress, RequestBody};
use crate::canary::Group;
use crate::forward::{Answer, forward_among};
use crate::page::Refusal;
use crate::pool::Endpoint;
use crate::table::Route;
use crate::worker::Worker;

use super::load::{BLOCK_BYTES, Prompt, Reading, Router};
use super::place::{Missing, Place, Search};
use super::receipt::{Receipt, model_name};
use super::told::{self, RESUME, TELL, TOKENS};
use super::{Asks, Caller, PAGE_BYTES, hidden};

/// Largest body of a question, the same as at the platform's own address.
pub(crate) const BODY_MAX_BYTES: usize = 32 * 1024 * 1024;
/// What is looked at of a prompt, to know who has read its beginning: some hundred thousand tokens.
const SAID_MAX_BYTES: usize = 8192 * BLOCK_BYTES;
/// Time for a whole body: one that comes slower holds memory that others need.
const BODY_PATIENCE: Duration = Duration::from_secs(60);
/// Times a question is sent before any answer: one that kills the instance that reads it must not kill all of them.
const ASKED_MAX: usize = 2;

/// Bytes of a prompt that count as a token where its reader left before the engine said what it cost.
const BYTES_OF_A_TOKEN: usize = 4;

/// What is looked at.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Peek<'b> {
    #[serde(borrow)]
    model: Option<Cow<'b, str>>,
    stream: Option<bool>,
    n: Option<u32>,
    #[serde(borrow)]
    messages: Option<&'b RawValue>,
    #[serde(borrow)]
    prompt: Option<&'b RawValue>,
    #[serde(borrow)]
    input: Option<&'b RawValue>,
    #[serde(borrow)]
    tools: Option<&'b RawValue>,
    #[serde(borrow)]
    system: Option<&'b RawValue>,
    #[serde(borrow)]
    instructions: Option<&'b RawValue>,
    #[serde(borrow, deserialize_with = "hidden::present")]
    stream_options: Option<&'b RawValue>,
}

/// One question, for as long as its answer may have to be asked for again.
#[derive(Debug)]
pub(crate) struct Question {
    pub(super) worker: Arc<Worker>,
    route: Arc<Route>,
    parts: Parts,
    body: Bytes,
    _memory: OwnedSemaphorePermit,
    pub(super) prompt: Prompt,
    /// Its answer comes as events.
    pub(super) streams: bool,
    /// The engine is asked to say what it costs, and the caller did not ask.
    pub(super) hides_usage: bool,
    /// What it asks for.
    pub(super) kind: Kind,
    /// Answers to the one prompt.
    pub(super) answers: u32,
    pub(super) receipt: Receipt,
    pub(super) reading: Option<Reading>,
    /// Who has it.
    pub(super) endpoint: Option<Arc<Endpoint>>,
}

/// Why an answer cannot go on.
#[derive(Debug)]
pub(super) enum GiveUp {
    /// All that is left serves another model, or cannot go on with this answer.
    NoneCan(String),
    /// No instance came.
    Nowhere(Refusal),
    /// The engine refused for another reason.
    Refused(StatusCode),
}

/// How a first answer came about.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) answer: Answer,
    /// The engine tells what another needs to go on.
    pub(crate) tells: bool,
}

/// Reads a body to its end, within bounds.
async fn read(shared: &super::Shared, incoming: Incoming) -> Result<(Bytes, OwnedSemaphorePermit), Refusal> {
    let most = u64::try_from(BODY_MAX_BYTES).unwrap_or(u64::MAX);
    let announced = incoming.size_hint().exact();
    if announced.is_some_and(|length| length > most) {
        return Err(Refusal::BodyTooLarge { most });
    }
    let pages = |bytes: usize| u32::try_from(bytes.div_ceil(PAGE_BYTES).max(1)).unwrap_or(u32::MAX);
    let busy = |_| Refusal::BodiesBusy;
    // Taken as the bytes come: what was only announced keeps nobody else out.
    let take = |count: u32| {
        Arc::clone(&shared.memory)
            .try_acquire_many_owned(count)
            .map_err(busy)
    };
    let mut memory = take(1)?;
    let until = tokio::time::Instant::now() + BODY_PATIENCE;
    let mut incoming = Limited::new(incoming, BODY_MAX_BYTES);
    let mut body = BytesMut::new();
    loop {
        match tokio::time::timeout_at(until, incoming.frame()).await {
            Ok(None) => break,
            Ok(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    let held = u32::try_from(memory.num_permits()).unwrap_or(u32::MAX);
                    let more = pages(body.len() + data.len()).saturating_sub(held);
                    if more > 0 {
                        memory.merge(take(more)?);
                    }
                    body.extend_from_slice(data);
                }
            }
            Ok(Some(Err(error))) if error.is::<LengthLimitError>() => {
                return Err(Refusal::BodyTooLarge { most });
            }
            Ok(Some(Err(_))) => return Err(Refusal::BodyBroken),
            Err(_) => return Err(Refusal::BodyBroken),
        }
    }
    Ok((body.freeze(), memory))
}

/// A body in which no member stands twice; of two the last stays. `None`: it is no object.
fn said_once(body: &[u8]) -> Option<Bytes> {
    let whole: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(body).ok()?;
    Some(serde_json::to_vec(&whole).ok()?.into())
}

impl Question {
    /// Reads the question. `parts` are as the instance shall see them. `progress` hears of the body's bytes.
    #[expect(clippy::too_many_arguments, reason = "each comes from another stage")]
    pub(crate) async fn read(
        asks: Asks,
        caller: Box<Caller>,
        worker: &Arc<Worker>,
        route: &Arc<Route>,
        mut parts: Parts,
        incoming: Incoming,
        progress: &Progress,
        started: Instant,
    ) -> Result<Box<Self>, Refusal> {
        let upload = Instant::now();
        let (mut body, memory) = read(&worker.shared.inference, incoming).await?;
        let upload = upload.elapsed();
        progress.add(body.len());
        progress.done.store(true, std::sync::atomic::Ordering::Relaxed);
        let understood;
        let peek: Peek<'_> = match serde_json::from_slice(&body) {
            Ok(peek) => peek,
            Err(_) => {
                // Something is said twice, perhaps. The engine is to hear what is understood here, and nothing else.
                understood = said_once(&body).unwrap_or_else(|| body.clone());
                body = understood.clone();
                serde_json::from_slice(&understood).unwrap_or_default()
            }
        };
        let mut said = Vec::new();
        let parts_of_prompt = [
            peek.tools,
            peek.system,
            peek.instructions,
            peek.messages,
            peek.prompt,
            peek.input,
        ];
        for part in parts_of_prompt.into_iter().flatten() {
            said.extend_from_slice(part.get().as_bytes());
        }
        let prompt_bytes = said.len();
        said.truncate(SAID_MAX_BYTES);
        let seed = tram_planner::inference::chain(0, caller.scope(), caller.scope().len());
        let chain = tram_planner::inference::chain(seed.first().copied().unwrap_or(0), &said, BLOCK_BYTES);
        let request_id = parts.headers.get(crate::forwarded::X_REQUEST_ID);
        let record = TokenRecord {
            question_id: caller.question_id,
            request_id: request_id
                .and_then(|id| id.to_str().ok())
                .unwrap_or_default()
                .to_owned(),
            service_id: ServiceId::from_uuid(route.service.spec.id),
            deployment_id: None,
            organization_id: None,
            tenant: caller.credential,
            endpoint: asks.0,
            model: model_name(peek.model.as_deref().unwrap_or_default()),
            asked: caller.model.as_deref().map(model_name),
            prompt_tokens: 0,
            completion_tokens: 0,
            cached_tokens: 0,
            queue_ms: 0,
            ttft_ms: None,
            duration_ms: 0,
            status: 0,
            outcome: Outcome::Failed,
            finished_at: super::receipt::now(),
        };
        let (streams, answers) = (peek.stream == Some(true), peek.n.unwrap_or(1));
        let engine = Engine::named(route.service.spec.engine.as_deref().unwrap_or_default());
        let facts = engine.unwrap_or(Engine::OpenAi).facts();
        let asks_for_usage = match streams && !facts.tells_usage && asks.has_stream_options() {
            true => hidden::ask(&body, peek.stream_options),
            false => None,
        };
        let hides_usage = asks_for_usage.is_some();
        if let Some(asking) = asks_for_usage {
            body = asking;
        }
        let prompt = Prompt {
            chain,
            bytes: prompt_bytes,
        };
        // The body is framed anew, and what belongs to the client's connection does not come along.
        parts.headers.remove(CONTENT_LENGTH);
        parts.headers.remove(TRANSFER_ENCODING);
        parts.extensions.clear();
        if asks.can_move() && facts.streams_survive {
            parts.headers.insert(TELL, TOKENS);
        }
        // What it costs must be readable here.
        parts.headers.remove(ACCEPT_ENCODING);
        Ok(Box::new(Self {
            receipt: Receipt::new(worker.shared.usage.clone(), record, started, upload),
            worker: Arc::clone(worker),
            route: Arc::clone(route),
            parts,
            body,
            _memory: memory,
            prompt,
            streams,
            hides_usage,
            kind: asks.0,
            answers,
            reading: None,
            endpoint: None,
        }))
    }

    /// Asks an instance of the route that let the question in, which is of table `version`; another one if that fails
    /// before it answered.
    pub(crate) async fn ask(&mut self, version: u64, alarm: Option<&Arc<Alarm>>) -> Result<Asked, Refusal> {
        self.receipt.sent();
        let asked = self.try_ask(version, alarm).await;
        match &asked {
            Ok(asked) => {
                let status = asked.answer.response.status();
                let instance = asked.answer.seat.endpoint.instance_id;
                self.receipt.answered(status, self.deployment(instance));
            }
            Err(refusal) => self.receipt.refused(refusal.status()),
        }
        asked
    }

    async fn try_ask(&mut self, version: u64, alarm: Option<&Arc<Alarm>>) -> Result<Asked, Refusal> {
        let patience = Duration::from_millis(self.route.service.spec.hold_deadline_ms);
        let mut search = Search::within(patience);
        let mut place = self.first_place(version);
        for times in 1.. {
            let found = match place.take() {
                Some(place) => place,
                None => self.search(&mut search).await.map_err(|missing| match missing {
                    Missing::Refused(refusal) => refusal,
                    Missing::NoneCan => Refusal::NoHealthyInstance {
                        name: self.route.service.spec.name.clone(),
                    },
                })?,
            };
            let endpoint = Arc::clone(&found.endpoint);
            match self.send(found, &search, None, alarm).await {
                Ok(asked) if times < ASKED_MAX && self.turned_away(&asked) => {
                    search.passed_over.push(Arc::clone(&asked.answer.seat.endpoint));
                    self.reading = None;
                }
                Err(Refusal::BadAnswer { .. } | Refusal::Unreachable { .. }) if times < ASKED_MAX => {
                    search.passed_over.push(endpoint);
                    self.reading = None;
                }
                done => return done,
            }
        }
        Err(Refusal::NoHealthyInstance {
            name: self.route.service.spec.name.clone(),
        })
    }

    /// Whether an engine that loads or stops sent the question away while others may take it.
    fn turned_away(&self, asked: &Asked) -> bool {
        asked.answer.response.status() == StatusCode::SERVICE_UNAVAILABLE && self.route.endpoints.len() > 1
    }

    /// By the table that let it in. `None`: no instance is there, or all were refused lately.
    fn first_place(&self, version: u64) -> Option<Place> {
        let fit: Vec<&Weighted> = self
            .route
            .endpoints
            .iter()
            .filter(|(endpoint, _)| !endpoint.is_avoided())
            .collect();
        let (endpoint, uncached_tokens) = self.choose(&self.route, &fit)?;
        Some(Place {
            version,
            route: Arc::clone(&self.route),
            endpoint,
            uncached_tokens,
        })
    }

    fn router(&self) -> &Router {
        self.route.service.live.router.get_or_init(Router::default)
    }

    fn choose(&self, route: &Route, fit: &[&Weighted]) -> Option<(Arc<Endpoint>, u32)> {
        // Where two deployments answer, a request may ask for one of them.
        let asked = route.has_canary().then(|| Group::asked(&self.parts.headers));
        let Some(group) = asked.flatten() else {
            return self.router().choose(route, fit, &self.prompt);
        };
        let of_group = route.of_group(Some(group));
        let is_of_it = |(endpoint, _): &&Weighted| of_group.iter().any(|(it, _)| Arc::ptr_eq(it, endpoint));
        let fit: Vec<&Weighted> = fit.iter().copied().filter(is_of_it).collect();
        self.router().choose(route, &fit, &self.prompt)
    }

    async fn search(&self, search: &mut Search) -> Result<Place, Missing> {
        let choose = |route: &Route, fit: &[&Weighted]| self.choose(route, fit);
        search.next(&self.worker.shared, &self.route, choose).await
    }

    /// Sends it there, with the state of an answer to go on with, if any.
    async fn send(
        &mut self,
        place: Place,
        search: &Search,
        state: Option<&[u8]>,
        alarm: Option<&Arc<Alarm>>,
    ) -> Result<Asked, Refusal> {
        self.route = place.route;
        let mut parts = self.parts.clone();
        let mut body = self.body.clone();
        if let Some(state) = state {
            parts.headers.insert(RESUME, HeaderValue::from(self.body.len()));
            let mut whole = BytesMut::with_capacity(self.body.len() + state.len());
            whole.extend_from_slice(&self.body);
            whole.extend_from_slice(state);
            body = whole.freeze();
        }
        let request = Request::from_parts(parts, RequestBody::Whole(body));
        let mut over = search.passed_over.clone();
        over.extend(search.unfit.iter().cloned());
        let candidates = Candidates::asked_by(
            request.headers(),
            &self.worker.shared.table,
            place.version,
            &self.route,
        )
        .prefer(Arc::clone(&place.endpoint), over);
        self.reading = Some(Reading::begin(&place.endpoint, place.uncached_tokens));
        let mut answer = forward_among(&self.worker, &self.route, candidates, request, None, alarm).await?;
        let (tells, engine) = told::take(answer.response.headers_mut());
        let endpoint = Arc::clone(&answer.seat.endpoint);
        if !Arc::ptr_eq(&endpoint, &place.endpoint) {
            // It did not accept a connection, and another did.
            self.reading = Some(Reading::begin(&endpoint, place.uncached_tokens));
        }
        // Its head comes when the prompt was read.
        if let Some(reading) = &mut self.reading {
            reading.read();
        }
        if let Some(engine) = engine {
            endpoint.model.told(&engine, Instant::now());
        }
        self.endpoint = Some(endpoint);
        Ok(Asked { answer, tells })
    }

    /// Asks another instance to go on with the answer that `dead` began. `state`: what it told, and all tokens so far.
    pub(super) async fn go_on(&mut self, state: &[u8], dead: Arc<Endpoint>) -> Result<Answer, GiveUp> {
        self.reading = None;
        let mut search = Search::within(Duration::from_millis(self.route.service.spec.hold_deadline_ms));
        search.passed_over.push(dead);
        let mut said = String::new();
        loop {
            let place = self.search(&mut search).await.map_err(|missing| match missing {
                Missing::NoneCan => GiveUp::NoneCan(std::mem::take(&mut said)),
                Missing::Refused(refusal) => GiveUp::Nowhere(refusal),
            })?;
            let endpoint = Arc::clone(&place.endpoint);
            let Ok(asked) = self.send(place, &search, Some(state), None).await else {
                self.reading = None;
                search.passed_over.push(endpoint);
                continue;
            };
            let endpoint = Arc::clone(&asked.answer.seat.endpoint);
            match asked.answer.response.status() {
                StatusCode::OK if asked.tells => return Ok(asked.answer),
                StatusCode::OK => search.unfit.push(endpoint),
                StatusCode::CONFLICT => {
                    said = reason(asked.answer.response.into_body()).await;
                    search.unfit.push(endpoint);
                }
                StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                    search.passed_over.push(endpoint);
                }
                other => return Err(GiveUp::Refused(other)),
            }
            self.reading = None;
        }
    }

    /// Takes in what it cost.
    pub(super) fn counted(&mut self, usage: told::Usage) {
        self.receipt.counted(usage);
        if let Some(endpoint) = &self.endpoint {
            self.router().counted(endpoint, self.prompt.bytes, &usage);
        }
    }

    /// Takes in what it cost until it broke off.
    pub(super) fn counted_so_far(&mut self, usage: told::Usage) {
        self.receipt.counted(usage);
    }

    /// What the prompt costs as long as no engine has said so: a token for so many bytes.
    pub(super) fn estimate(&self) -> told::Usage {
        let tokens = self.prompt.bytes.div_ceil(BYTES_OF_A_TOKEN);
        told::Usage {
            prompt: u64::try_from(tokens).unwrap_or(u64::MAX),
            ..told::Usage::default()
        }
    }

    fn deployment(&self, instance: uuid::Uuid) -> Option<DeploymentId> {
        let endpoints = &self.route.service.spec.endpoints;
        let endpoint = endpoints.iter().find(|it| it.instance_id == instance)?;
        endpoint.deployment_id.map(DeploymentId::from_uuid)
    }
}

impl Drop for Question {
    /// The client left while an engine read the prompt: that was computed.
    fn drop(&mut self) {
        if self.reading.is_some() && self.receipt.is_open() {
            let estimate = self.estimate();
            self.counted_so_far(estimate);
        }
    }
}

/// Longest refusal of an engine that is read: it writes a few hundred bytes.
const REASON_MAX_BYTES: usize = 16 * 1024;

/// An engine's own words.
async fn reason(body: Incoming) -> String {
    #[derive(Default, Deserialize)]
    struct Said {
        error: Words,
    }
    #[derive(Default, Deserialize)]
    struct Words {
        message: String,
    }
    let read = Limited::new(body, REASON_MAX_BYTES).collect().await;
    let bytes = read.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let said: Said = serde_json::from_slice(&bytes).unwrap_or_default();
    said.error.message
}
