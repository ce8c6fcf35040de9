//! The HTTP side: connections, requests, and the endpoints, one file each.
//!
//! It runs on one thread beside the engine's; what takes time (templates, tokens, grammars) runs on a few others. The
//! order of a request: `http` (routes, limits, who asks), `fields` (what is in the body), `chat`, `completions` or
//! `embeddings` (the request), the engine, `stream` and `reply` (the answer). Contracts of other vendors, and OpenAI's newer
//! one, are read by `messages`, `responses` and `fim`, and their answers written by `told`.

mod chat;
mod completions;
mod connections;
mod embeddings;
mod error;
mod fields;
mod fim;
mod handover;
mod messages;
mod parameters;
mod reply;
mod responses;
mod state;
mod stream;
mod told;
mod tools;

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::Frame;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Method, Request as HttpRequest, Response, StatusCode};
use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedReceiver;

pub(crate) use connections::serve;

use crate::engine::Engine;
use crate::grammar::Grammars;
use crate::model::Model;
use crate::request::{Event, Request};
use crate::schedule::Priority;

use error::ApiError;
use fields::Fields;
use handover::{Begin, Continued, Handover};
use parameters::Parameters;
use reply::{Head, Kind};
use stream::{Answers, Stream};
use told::{Question, Telling};
use tools::Tools;

/// Longest body. A context of 128,000 tokens is about half a megabyte of text, so this leaves room for any request that
/// can be answered, and 64 connections cannot fill the memory.
pub(crate) const BODY_BYTES_MAX: usize = 4 << 20;

const JSON: HeaderValue = HeaderValue::from_static("application/json");
/// Whose request it is, for fairness and for the scope of the prefix cache. The platform's edge sets it.
const TENANT: &str = "x-tram-tenant";
/// Anthropic's endpoints, which have errors of their own shape.
const MESSAGES: &str = "/v1/messages";
const COUNT_TOKENS: &str = "/v1/messages/count_tokens";
const RESPONSES: &str = "/v1/responses";
const FIM: &str = "/v1/fim/completions";
/// `low`, `normal` or `high`.
const PRIORITY: &str = "x-tram-priority";
/// Longest name of a tenant.
const TENANT_BYTES_MAX: usize = 256;

/// What the handlers serve.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) name: String,
    pub(crate) model: Arc<Model>,
    pub(crate) engine: Engine,
    pub(crate) grammars: Grammars,
    /// Answers that one request may ask for.
    pub(crate) answers_max: usize,
    pub(crate) created: i64,
}

/// From the start of the program to its end.
#[derive(Debug, Default)]
pub(crate) struct Front {
    /// Empty while the model loads.
    pub(crate) served: OnceLock<Arc<Served>>,
    /// Nothing new is taken.
    pub(crate) stopping: std::sync::atomic::AtomicBool,
}

/// Who asks.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) tenant: Arc<str>,
    pub(crate) priority: Priority,
    /// Which of the model's adapters is asked; the body says so.
    pub(crate) adapter: Option<usize>,
}

/// A request that was read and not yet handed over.
struct Asked {
    kind: Kind,
    request: Request,
    receiver: UnboundedReceiver<Event>,
    parameters: Parameters,
    tools: Option<Tools>,
    /// Text that comes before the answer.
    echo: Option<String>,
}

/// A body of an answer.
#[derive(Debug)]
pub(crate) enum Body {
    Whole(Option<Bytes>),
    Stream(Box<Stream>),
    Told(Box<Telling>),
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut *self {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream(stream) => Pin::new(&mut **stream).poll_frame(context),
            Self::Told(telling) => Pin::new(&mut **telling).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> http_body::SizeHint {
        match self {
            Self::Whole(bytes) => {
                http_body::SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64)
            }
            Self::Stream(_) | Self::Told(_) => http_body::SizeHint::default(),
        }
    }
}

impl Served {
    /// The model's name in a request, when there is one, has to be this model's, or that of one of its adapters: then the
    /// caller asks that one.
    fn address(&self, fields: &mut Fields, caller: &Caller) -> Result<Caller, ApiError> {
        let adapter = match fields.text("model")? {
            Some(name) if name != self.name => {
                let known = self.model.adapters.iter().position(|one| one.name == name);
                Some(known.ok_or_else(|| ApiError::no_such_model(&name))?)
            }
            _ => None,
        };
        Ok(Caller {
            adapter,
            ..caller.clone()
        })
    }

    /// What a model is called, with an adapter or without.
    fn called(&self, adapter: Option<usize>) -> &str {
        let known = adapter.and_then(|at| self.model.adapters.get(at));
        known.map_or(&self.name, |adapter| &adapter.name)
    }

    fn grammar(&self, schema: Option<Value>) -> Result<Option<llguidance::Matcher>, ApiError> {
        let Some(schema) = schema else { return Ok(None) };
        let grammar = self.grammars.of_schema(schema);
        grammar
            .map(Some)
            .map_err(|why| ApiError::field("response_format", format!("The schema cannot be used: {why}")))
    }

    fn models(&self) -> Value {
        let adapters = (0..self.model.adapters.len()).map(Some);
        let all: Vec<Value> = std::iter::once(None)
            .chain(adapters)
            .map(|adapter| self.describe(adapter))
            .collect();
        json!({"object": "list", "data": all})
    }

    fn describe(&self, adapter: Option<usize>) -> Value {
        json!({
            "id": self.called(adapter),
            "parent": adapter.map(|_| &self.name),
            "object": "model",
            "created": self.created,
            "owned_by": "tram-engine",
            "max_model_len": self.model.context_length,
        })
    }
}

/// One request, answered.
async fn answer(front: Arc<Front>, request: HttpRequest<Incoming>) -> Result<Response<Body>, Infallible> {
    let of_anthropic = request.uri().path().starts_with(MESSAGES);
    Ok(route(&front, request).await.unwrap_or_else(|error| {
        let body = if of_anthropic {
            error.anthropic()
        } else {
            error.body()
        };
        refuse(&error, &body)
    }))
}

async fn route(front: &Front, request: HttpRequest<Incoming>) -> Result<Response<Body>, ApiError> {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let reads = method == Method::GET || method == Method::HEAD;
    let posts = method == Method::POST;
    let path = path.as_str();
    match path {
        "/health" | "/metrics" | "/v1/engine/state" | "/v1/models" if !reads => {
            return Err(ApiError::wrong_method(method.as_str(), path));
        }
        "/v1/chat/completions"
        | "/v1/completions"
        | "/v1/embeddings"
        | MESSAGES
        | COUNT_TOKENS
        | RESPONSES
        | FIM
            if !posts =>
        {
            return Err(ApiError::wrong_method(method.as_str(), path));
        }
        _ => {}
    }
    let served = front.served.get();
    let loading = || ApiError::unavailable("The model is being loaded.");
    match path {
        "/health" => {
            let served = served.ok_or_else(loading)?;
            if served.engine.ended() {
                return Err(ApiError::internal("The engine's thread has ended.".to_owned()));
            }
            Ok(json_body(&json!({"status": "ok"})))
        }
        "/metrics" => Ok(text(state::metrics(served.map(Arc::as_ref)))),
        "/v1/engine/state" => Ok(json_body(&state::state(served.ok_or_else(loading)?))),
        "/v1/models" => Ok(json_body(&served.ok_or_else(loading)?.models())),
        "/v1/chat/completions" | "/v1/completions" => {
            let served = served.ok_or_else(loading)?;
            front.check_stopping()?;
            let caller = caller(&request)?;
            let handover = Handover::of(request.headers())?;
            let chat = path == "/v1/chat/completions";
            let body = body(request).await?;
            let response = generate(served, chat, body, caller, handover).await?;
            Ok(says_more(response, handover, served))
        }
        MESSAGES | RESPONSES | FIM => {
            let served = served.ok_or_else(loading)?;
            front.check_stopping()?;
            let caller = caller(&request)?;
            let handover = Handover::of(request.headers())?;
            let read: Read = match path {
                MESSAGES => messages::read,
                RESPONSES => responses::read,
                _ => fim::read,
            };
            let body = body(request).await?;
            let response = tell(served, read, body, caller, handover).await?;
            Ok(says_more(response, handover, served))
        }
        COUNT_TOKENS => {
            let served = served.ok_or_else(loading)?;
            let caller = caller(&request)?;
            let (reader, body) = (served.clone(), body(request).await?);
            let count = move || messages::count(&reader, &body, &caller);
            Ok(json_body(&reading(count).await?))
        }
        "/v1/embeddings" => {
            let served = served.ok_or_else(loading)?;
            front.check_stopping()?;
            let caller = caller(&request)?;
            let body = body(request).await?;
            Ok(json_bytes(embeddings::answer(served, body, caller).await?))
        }
        _ => match path.strip_prefix("/v1/models/") {
            Some(name) if reads => {
                let served = served.ok_or_else(loading)?;
                let mut all = std::iter::once(None).chain((0..served.model.adapters.len()).map(Some));
                match all.find(|adapter| served.called(*adapter) == name) {
                    Some(adapter) => Ok(json_body(&served.describe(adapter))),
                    None => Err(ApiError::no_such_model(name)),
                }
            }
            _ => Err(ApiError::no_such_path(method.as_str(), path)),
        },
    }
}

/// Runs what takes time on a thread that nobody else waits for.
async fn reading<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(read)
        .await
        .map_err(|error| ApiError::internal(format!("The request could not be read: {error}")))?
}

/// Reads a request of one of the contracts that `told` writes.
type Read = fn(&Served, &[u8], &Caller) -> Result<Question, ApiError>;

/// Says to an edge that asks that it is told beside the answer, and how full the engine is.
fn says_more(mut response: Response<Body>, handover: Handover, served: &Served) -> Response<Body> {
    if handover.asks {
        let headers = response.headers_mut();
        headers.insert(handover::ASK, handover::TOKENS);
        if let Some(state) = state::header(&served.engine.figures()) {
            headers.insert(handover::STATE, state);
        }
    }
    response
}

async fn tell(
    served: &Arc<Served>,
    read: Read,
    body: Bytes,
    caller: Caller,
    handover: Handover,
) -> Result<Response<Body>, ApiError> {
    let reader = served.clone();
    let read = move || {
        let (body, state) = handover.split(&body)?;
        let mut question = read(&reader, &body, &caller)?;
        let may_call = question.tools.is_some();
        let resume = |state| {
            handover::resume(
                &reader.model,
                &mut question.request,
                question.stream,
                may_call,
                state,
            )
        };
        let resumed = state.map(resume).transpose()?;
        Ok::<_, ApiError>((question, resumed))
    };
    let (question, resumed) = reading(read).await?;
    let (prompt, seed) = (question.request.prompt.len(), question.request.seed);
    served.engine.submit(question.request)?;
    let mut telling = Telling::new(question.receiver, prompt, question.tools, question.shape);
    telling.begun().await?;
    let replayed = resumed.map(|Continued { begin, texts }| {
        telling.goes_on(&begin);
        texts
    });
    if question.stream {
        let told = handover
            .asks
            .then(|| telling.begin(seed, served.model.identity.clone()));
        let telling = telling.stream(told.as_ref(), replayed);
        Ok(events(Body::Told(Box::new(telling))))
    } else {
        Ok(json_body(&telling.whole().await?))
    }
}

async fn generate(
    served: &Arc<Served>,
    chat: bool,
    body: Bytes,
    caller: Caller,
    handover: Handover,
) -> Result<Response<Body>, ApiError> {
    let reader = served.clone();
    let read = move || {
        let (body, state) = handover.split(&body)?;
        let mut asked = if chat {
            chat::read(&reader, &body, &caller)
        } else {
            completions::read(&reader, &body, &caller)
        }?;
        let (stream, may_call) = (asked.parameters.stream, asked.tools.is_some());
        let resume = |state| handover::resume(&reader.model, &mut asked.request, stream, may_call, state);
        let resumed = state.map(resume).transpose()?;
        Ok::<_, ApiError>((asked, resumed))
    };
    let (asked, resumed) = reading(read).await?;
    let Asked {
        kind,
        request,
        receiver,
        parameters,
        tools,
        echo,
    } = asked;
    let prompt = request.prompt.len();
    let likely = request.log_probabilities.is_some();
    let seed = request.seed;
    let mut head = Head::new(kind, served.called(request.adapter));
    served.engine.submit(request)?;
    let (begun, replayed) = match resumed {
        Some(Continued { begin, texts }) => {
            head.id.clone_from(&begin.id);
            head.created = begin.created;
            (Some(begin), Some(texts))
        }
        None => (None, None),
    };
    let mut answers = Answers::new(head, receiver, prompt, parameters.answers, likely, tools, echo);
    answers.begun().await?;
    if let Some(begun) = begun {
        answers.usage.cached = begun.cached;
    }
    if parameters.stream {
        let told = handover.asks.then(|| Begin {
            id: answers.head.id.clone(),
            created: answers.head.created,
            seed,
            prompt_tokens: answers.usage.prompt,
            cached: answers.usage.cached,
            model: served.model.identity.clone(),
        });
        let stream = answers.stream(parameters.stream_usage, told.as_ref(), replayed);
        let body = Body::Stream(Box::new(stream));
        Ok(events(body))
    } else {
        Ok(json_body(&answers.whole().await?))
    }
}

impl Front {
    fn check_stopping(&self) -> Result<(), ApiError> {
        if self.stopping.load(std::sync::atomic::Ordering::Relaxed) {
            Err(ApiError::unavailable("The engine is stopping."))
        } else {
            Ok(())
        }
    }
}

fn caller(request: &HttpRequest<Incoming>) -> Result<Caller, ApiError> {
    let header = |name: &str| match request.headers().get(name) {
        None => Ok(None),
        Some(value) => match value.to_str() {
            Ok(text) if text.len() <= TENANT_BYTES_MAX => Ok(Some(text)),
            _ => {
                let message =
                    format!("The header '{name}' has to be text of at most {TENANT_BYTES_MAX} characters.");
                Err(ApiError::field(name, message))
            }
        },
    };
    let priority = match header(PRIORITY)? {
        None | Some("normal") => Priority::Normal,
        Some("low") => Priority::Low,
        Some("high") => Priority::High,
        Some(_) => {
            let message = format!("The header '{PRIORITY}' has to be 'low', 'normal' or 'high'.");
            return Err(ApiError::field(PRIORITY, message));
        }
    };
    Ok(Caller {
        tenant: header(TENANT)?.unwrap_or_default().into(),
        priority,
        adapter: None,
    })
}

async fn body(request: HttpRequest<Incoming>) -> Result<Bytes, ApiError> {
    match Limited::new(request.into_body(), BODY_BYTES_MAX).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(ApiError::too_large(BODY_BYTES_MAX)),
        Err(error) => Err(ApiError::bad(format!(
            "The body of the request broke off: {error}"
        ))),
    }
}

/// A stream of events.
fn events(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/event-stream; charset=utf-8"),
    );
    headers.insert("cache-control", HeaderValue::from_static("no-cache"));
    response
}

fn refuse(error: &ApiError, body: &Value) -> Response<Body> {
    let mut response = json_body(body);
    *response.status_mut() = error.status;
    if let Some(after) = error.retry_after {
        let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
        response.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    if error.status == StatusCode::PAYLOAD_TOO_LARGE {
        // What is left of the body is not read: the connection is of no more use.
        response
            .headers_mut()
            .insert("connection", HeaderValue::from_static("close"));
    }
    response
}

fn json_body(value: &Value) -> Response<Body> {
    json_bytes(Bytes::from(value.to_string()))
}

fn json_bytes(bytes: Bytes) -> Response<Body> {
    let mut response = Response::new(Body::Whole(Some(bytes)));
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    response
}

fn text(text: String) -> Response<Body> {
    let mut response = Response::new(Body::Whole(Some(Bytes::from(text))));
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}
