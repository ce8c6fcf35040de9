//! The way to the edge and back.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{body::Body, response::Response};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Uri,
    header::{ACCEPT, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, RETRY_AFTER, TRANSFER_ENCODING},
    request::Parts,
};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use tram_types::{
    CredentialId,
    inference::{MODEL_HEADER, PRIORITY_HEADER, QUESTION_HEADER, TENANT_HEADER},
};

use super::{budget::Admitted, error::Refusal, find::Target};
use crate::auth::client_address;

/// Largest body of a question: 128 thousand tokens are about half a megabyte, a page of a scan as an image about ten.
pub(super) const BODY_MAX_BYTES: usize = 32 * 1024 * 1024;
/// Bytes of all bodies that are held at a time: a flood of large ones is refused, not kept.
const HELD_MAX_BYTES: usize = 256 * 1024 * 1024;
/// What memory is counted in: a semaphore counts no further than 32 bits.
const PAGE_BYTES: usize = 4096;
/// A client that sends nothing for so long has gone.
const BODY_PATIENCE: Duration = Duration::from_secs(60);
/// Kept connections to the edge are given up sooner than the edge gives them up (75 seconds).
const IDLE: Duration = Duration::from_secs(60);
/// Largest refusal of the edge that is read; it writes a few hundred bytes.
const REFUSAL_MAX_BYTES: usize = 64 * 1024;
/// By which the edge marks an answer of its own.
const EDGE_ERROR: HeaderName = HeaderName::from_static("x-tram-error");
/// When to come again when too much is under way.
const BUSY_RETRY_SECONDS: u64 = 1;

/// What goes along of a caller's headers. Never a credential.
const PASSED_ON: [HeaderName; 3] = [
    ACCEPT,
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
];
/// Whose question it is, for an engine that treats all alike.
const TENANT: HeaderName = HeaderName::from_static(TENANT_HEADER);
/// By which the edge knows us.
const FRONT: HeaderName = HeaderName::from_static("x-tram-front");
/// What the edge calls the question when it says what it cost.
const QUESTION: HeaderName = HeaderName::from_static(QUESTION_HEADER);
/// What records call its model.
const MODEL: HeaderName = HeaderName::from_static(MODEL_HEADER);
/// How urgent it is.
const PRIORITY: HeaderName = HeaderName::from_static(PRIORITY_HEADER);
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The edge, and the connections to it.
#[derive(Debug)]
pub(super) struct Edge {
    address: SocketAddr,
    /// By which the edge knows that we say who asks.
    proof: HeaderValue,
    client: Client<HttpConnector, Full<Bytes>>,
    /// Pages of memory for bodies.
    memory: Arc<Semaphore>,
}

/// A body, and the memory that is counted for it.
#[derive(Debug)]
pub(super) struct Held {
    bytes: Bytes,
    _memory: OwnedSemaphorePermit,
}

impl Held {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl Edge {
    pub(super) fn new(address: SocketAddr, secret: &str) -> Self {
        let mut proof = HeaderValue::from_str(secret).unwrap_or(HeaderValue::from_static(""));
        proof.set_sensitive(true);
        let mut connector = HttpConnector::new();
        // Tokens of a stream are small and each is awaited.
        connector.set_nodelay(true);
        Self {
            address,
            proof,
            client: Client::builder(TokioExecutor::new())
                .pool_idle_timeout(IDLE)
                .pool_timer(hyper_util::rt::TokioTimer::new())
                .build(connector),
            memory: Arc::new(Semaphore::new(HELD_MAX_BYTES / PAGE_BYTES)),
        }
    }

    /// Reads a body whole: which service it is for stands in it.
    pub(super) async fn read(&self, parts: &Parts, body: Body) -> Result<Held, Refusal> {
        let announced = parts
            .headers
            .get(CONTENT_LENGTH)
            .and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
        let expected = announced.unwrap_or(BODY_MAX_BYTES);
        if expected > BODY_MAX_BYTES {
            return Err(too_large());
        }
        // Twice, since what is sent on is another copy.
        let pages = u32::try_from((2 * expected).div_ceil(PAGE_BYTES)).unwrap_or(u32::MAX);
        let memory = Arc::clone(&self.memory)
            .try_acquire_many_owned(pages)
            .map_err(|_| busy())?;
        let reading = Limited::new(body, expected).collect();
        let bytes = match tokio::time::timeout(BODY_PATIENCE, reading).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => return Err(too_large()),
            Ok(Err(_)) => return Err(Refusal::bad("the body ended before it was complete")),
            Err(_) => {
                return Err(Refusal::new(
                    StatusCode::REQUEST_TIMEOUT,
                    "the body did not arrive in time",
                ));
            }
        };
        Ok(Held {
            bytes,
            _memory: memory,
        })
    }

    /// Sends a question to a service, and gives back the answer as it comes. `recorded`: what records call the model, where
    /// that is not what the engine does.
    pub(super) async fn send(
        &self,
        parts: &Parts,
        target: &Target,
        tenant: CredentialId,
        mut admitted: Admitted,
        body: Bytes,
        recorded: Option<&str>,
    ) -> Result<Response, Refusal> {
        let internal = |_| {
            Refusal::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the question cannot be sent on",
            )
        };
        let uri = Uri::builder()
            .scheme("http")
            .authority(self.address.to_string())
            .path_and_query(format!("{}{}", target.prefix, parts.uri.path()))
            .build()
            .map_err(internal)?;
        let mut request = Request::post(uri).body(Full::new(body)).map_err(internal)?;
        let headers = request.headers_mut();
        for name in PASSED_ON {
            if let Some(value) = parts.headers.get(&name) {
                headers.insert(name, value.clone());
            }
        }
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(
            HOST,
            HeaderValue::from_str(&target.host).map_err(|error| internal(error.into()))?,
        );
        for (name, value) in [
            (TENANT, tenant.to_string()),
            (QUESTION, admitted.question.to_string()),
        ] {
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.insert(name, value);
            }
        }
        if let Some(Ok(value)) = recorded.map(HeaderValue::from_str) {
            headers.insert(MODEL, value);
        }
        headers.insert(FRONT, self.proof.clone());
        headers.insert(PRIORITY, HeaderValue::from_static(admitted.priority.as_str()));
        if let Ok(address) = HeaderValue::from_str(&client_address(parts)) {
            headers.insert(X_FORWARDED_FOR, address);
        }
        let reply = match self.client.request(request).await {
            Ok(reply) => reply,
            Err(error) => {
                admitted.undo();
                return Err(unreachable(&error));
            }
        };
        let (mut head, answer) = reply.into_parts();
        if head.headers.contains_key(EDGE_ERROR) {
            admitted.undo();
            return Err(refused(head.status, &head.headers, answer).await);
        }
        if tram_planner::model_route::goes_on(head.status.as_u16()) {
            admitted.give_back();
        }
        for name in [CONNECTION, TRANSFER_ENCODING] {
            head.headers.remove(name);
        }
        admitted.told.write(&mut head.headers);
        // It is under way for as long as its answer is.
        let answer = answer.map_frame(move |frame| {
            let _ = &admitted;
            frame
        });
        Ok(Response::from_parts(head, Body::new(answer)))
    }
}

fn unreachable(error: &hyper_util::client::legacy::Error) -> Refusal {
    tracing::warn!(error = %crate::serve::chain(error), "the edge did not answer a question");
    let mut refusal = Refusal::new(
        StatusCode::BAD_GATEWAY,
        "the edge of this installation did not answer: try again",
    )
    .coded("edge_unreachable");
    refusal.retry_after = Some(HeaderValue::from(BUSY_RETRY_SECONDS));
    refusal
}

fn too_large() -> Refusal {
    let message = format!("the body may have at most {BODY_MAX_BYTES} bytes");
    Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, message)
}

fn busy() -> Refusal {
    let mut refusal = Refusal::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "too many large questions are under way: try again",
    )
    .coded("busy");
    refusal.retry_after = Some(HeaderValue::from(BUSY_RETRY_SECONDS));
    refusal
}

/// What the edge says when it has no answer of an engine.
async fn refused(status: StatusCode, headers: &HeaderMap, body: hyper::body::Incoming) -> Refusal {
    #[derive(Default, serde::Deserialize)]
    #[serde(default)]
    struct Said {
        code: String,
        message: String,
    }
    let read = Limited::new(body, REFUSAL_MAX_BYTES).collect().await;
    let bytes = read.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let said: Said = serde_json::from_slice(&bytes).unwrap_or_default();
    let message = match said.message.as_str() {
        "" => "the model cannot be reached".to_owned(),
        words => words.to_owned(),
    };
    let mut refusal = Refusal::new(status, message);
    refusal.code = Some(said.code).filter(|code| !code.is_empty());
    refusal.retry_after = headers.get(RETRY_AFTER).cloned();
    refusal
}
