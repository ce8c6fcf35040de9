//! What happens to every request around its endpoint: a name, authentication, failures turned into answers, the log.

use std::{fmt, panic::AssertUnwindSafe, sync::Arc, time::Instant};

use axum::{
    body::Body,
    extract::{RawPathParams, Request, rejection::RawPathParamsRejection},
    middleware::Next,
    response::Response,
};
use futures_util::FutureExt;
use http::{HeaderMap, HeaderName, HeaderValue, request::Parts};
use tracing::Instrument;
use tram_types::FieldViolation;

use crate::{
    auth::{Access, authenticate},
    endpoint::{Endpoint, Incoming},
    error::Error,
    state::ApiState,
};

/// Names a request in our log and in messages.
pub(crate) const REQUEST_ID_HEADER: HeaderName = HeaderName::from_static("x-request-id");
/// Longest request id that is taken over from a client.
const REQUEST_ID_MAX_BYTES: usize = 64;

/// Carries out a request: authenticates, runs, turns failures into answers, logs.
pub(crate) async fn serve(
    api: ApiState,
    endpoint: Arc<Endpoint>,
    path: Result<RawPathParams, RawPathParamsRejection>,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let named = parts.extensions.get::<RequestId>().cloned();
    let request_id = named.unwrap_or_else(|| request_id(&parts.headers));
    let span = tracing::info_span!("request", id = %request_id, operation = endpoint.operation);
    let path = path.map(|path| {
        path.iter()
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    });
    let began = Instant::now();
    let work = run(api, &endpoint, parts, body, path);
    let outcome = AssertUnwindSafe(work)
        .catch_unwind()
        .instrument(span.clone())
        .await;
    let _entered = span.entered();
    let response = match outcome {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => {
            if error.is_ours() {
                tracing::error!(error = %chain(&error), "request failed");
            }
            error.respond(&request_id.0)
        }
        Err(panic) => {
            let text = panic.downcast_ref::<&str>().copied();
            let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
            tracing::error!(panic = text.unwrap_or("without a message"), "a handler panicked");
            Error::Internal {
                doing: "handling a request",
                source: None,
            }
            .respond(&request_id.0)
        }
    };
    tracing::debug!(
        status = response.status().as_u16(),
        elapsed_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        "answered"
    );
    response
}

/// Gives a request its name, and the answer too, whoever makes it.
pub(crate) async fn name_request(mut request: Request, next: Next) -> Response {
    let request_id = request_id(request.headers());
    request.extensions_mut().insert(request_id.clone());
    let mut response = next.run(request).await;
    if let Ok(value) = HeaderValue::from_str(&request_id.0) {
        response.headers_mut().insert(REQUEST_ID_HEADER, value);
    }
    response
}

async fn run(
    api: ApiState,
    endpoint: &Endpoint,
    parts: Parts,
    body: Body,
    path: Result<Vec<(String, String)>, RawPathParamsRejection>,
) -> Result<Response, Error> {
    let caller = match endpoint.access {
        Access::Anonymous => None,
        access => Some(authenticate(&api, &parts, access).await?),
    };
    let path = path.map_err(|_| {
        let rule = "is not valid UTF-8 once its percent signs are decoded";
        Error::InvalidParameters(vec![FieldViolation::new("path", rule)])
    })?;
    endpoint
        .run(Incoming {
            api,
            caller,
            parts,
            body,
            path,
        })
        .await
}

/// An error with its causes, for the log.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(current) = cause {
        text.push_str(": ");
        text.push_str(&current.to_string());
        cause = current.source();
    }
    text
}

/// The name of a request.
#[derive(Debug, Clone)]
pub(crate) struct RequestId(pub(crate) String);

impl fmt::Display for RequestId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

fn request_id(headers: &HeaderMap) -> RequestId {
    let given = headers
        .get(REQUEST_ID_HEADER)
        .and_then(|value| value.to_str().ok())
        .filter(|id| {
            !id.is_empty()
                && id.len() <= REQUEST_ID_MAX_BYTES
                && id
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        });
    RequestId(given.map_or_else(|| uuid::Uuid::new_v4().to_string(), str::to_owned))
}
