//! One request to one instance and the head of its answer back; bodies stream on their own from there.
//!
//! The pipeline calls [`forward`] when a route is open. A request is sent again only where that is safe: when it
//! was never sent (no connection came about, or a kept one was dead already), or when it may be repeated by its
//! method, has no body, and a kept connection died under it without a byte of answer.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use http::header::HOST;
use http::{HeaderValue, Method, Request, Response, Uri, Version, uri};
use hyper::body::Incoming;
use tram_types::routing::Protocol;

use crate::balance::Candidates;
use crate::body::{Progress, RequestBody};
use crate::page::Refusal;
use crate::pool::{Http1, Seat};
use crate::table::Route;
use crate::worker::Worker;

/// Times one request is sent: once on a kept connection that may be dead, once more on a new one, and one spare.
const SEND_ATTEMPTS: usize = 3;

/// An answer's head, and what must live as long as its body.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) response: Response<Incoming>,
    pub(crate) seat: Seat,
    /// HTTP/1.1 only: to be kept for the next request when the body was read whole.
    pub(crate) connection: Option<Http1>,
}

/// Sends `request` to an instance of `route`, which is of table `version`. The target and headers are those that the instance shall see.
/// Cancel-safe: dropping the future cuts the request off at the instance too.
pub(crate) async fn forward(
    worker: &Worker,
    version: u64,
    route: &Arc<Route>,
    request: Request<RequestBody>,
    progress: Option<&Arc<Progress>>,
) -> Result<Answer, Refusal> {
    let candidates = Candidates::new(&worker.shared.table, version, route);
    let attempt = async {
        match route.protocol {
            Protocol::Http => over_http1(worker.index, route, candidates, request).await,
            Protocol::Http2 => Box::pin(over_http2(worker.index, route, candidates, request)).await,
        }
    };
    let limit_ms = route.service.spec.request_timeout_ms;
    if limit_ms == 0 {
        return attempt.await;
    }
    within(Duration::from_millis(limit_ms), attempt, progress)
        .await
        .unwrap_or_else(|| {
            Err(Refusal::TimedOut {
                name: route.service.spec.name.clone(),
                waited_ms: limit_ms,
            })
        })
}

/// Bounds the wait for the first byte. The clock starts anew while the request's body still moves: a long upload
/// is not a slow instance.
async fn within<T>(
    limit: Duration,
    work: impl Future<Output = T>,
    progress: Option<&Arc<Progress>>,
) -> Option<T> {
    let mut work = std::pin::pin!(work);
    let mut moved = 0;
    loop {
        if let Ok(done) = tokio::time::timeout(limit, work.as_mut()).await {
            return Some(done);
        }
        let now = progress.map_or(0, |progress| progress.bytes.load(Relaxed));
        if now == moved {
            return None;
        }
        moved = now;
    }
}

fn bad_answer(route: &Route, error: &hyper::Error) -> Refusal {
    tracing::debug!(error = error as &dyn std::error::Error, service = %route.service.spec.name, "an instance did not answer");
    Refusal::BadAnswer {
        name: route.service.spec.name.clone(),
    }
}

/// Whether a request may be sent twice (RFC 9110, 9.2.2).
fn is_idempotent(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE
    )
}

/// A second copy of a request without a body.
fn copy(request: &Request<RequestBody>) -> Option<Request<RequestBody>> {
    if !matches!(request.body(), RequestBody::Empty) || !is_idempotent(request.method()) {
        return None;
    }
    let mut copy = Request::new(RequestBody::Empty);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    Some(copy)
}

async fn over_http1(
    worker: usize,
    route: &Route,
    mut candidates: Candidates<'_>,
    mut request: Request<RequestBody>,
) -> Result<Answer, Refusal> {
    *request.version_mut() = Version::HTTP_11;
    let mut kept_allowed = true;
    for _ in 0..SEND_ATTEMPTS {
        let (seat, mut connection, kept) = loop {
            let seat = candidates.next()?;
            if kept_allowed && let Some(connection) = seat.endpoint.checkout(worker).await {
                break (seat, connection, true);
            }
            match Box::pin(seat.endpoint.connect()).await {
                Ok(connection) => break (seat, connection, false),
                Err(error) => candidates.failed(seat, &error),
            }
        };
        let spare = if kept { copy(&request) } else { None };
        match connection.sender.try_send_request(request).await {
            Ok(response) => {
                return Ok(Answer {
                    response,
                    seat,
                    connection: Some(connection),
                });
            }
            Err(mut failed) => match failed.take_message().or(spare) {
                Some(again) if kept || !failed.error().is_user() => {
                    request = again;
                    kept_allowed = false;
                }
                _ => return Err(bad_answer(route, failed.error())),
            },
        }
    }
    Err(Refusal::BadAnswer {
        name: route.service.spec.name.clone(),
    })
}

async fn over_http2(
    worker: usize,
    route: &Route,
    mut candidates: Candidates<'_>,
    mut request: Request<RequestBody>,
) -> Result<Answer, Refusal> {
    *request.version_mut() = Version::HTTP_2;
    address_for_http2(&mut request)?;
    for _ in 0..SEND_ATTEMPTS {
        let (seat, mut sender, kept) = loop {
            let seat = candidates.next()?;
            match seat.endpoint.shared(worker).await {
                Ok((sender, kept)) => break (seat, sender, kept),
                Err(error) => candidates.failed(seat, &error),
            }
        };
        if let Err(error) = sender.ready().await {
            seat.endpoint.forget_shared(worker);
            if kept {
                continue;
            }
            return Err(bad_answer(route, &error));
        }
        let spare = if kept { copy(&request) } else { None };
        match sender.try_send_request(request).await {
            Ok(response) => {
                return Ok(Answer {
                    response,
                    seat,
                    connection: None,
                });
            }
            Err(mut failed) => match failed
                .take_message()
                .or_else(|| spare.filter(|_| is_connection_loss(failed.error())))
            {
                Some(again) => {
                    seat.endpoint.forget_shared(worker);
                    request = again;
                }
                None => return Err(bad_answer(route, failed.error())),
            },
        }
    }
    Err(Refusal::BadAnswer {
        name: route.service.spec.name.clone(),
    })
}

/// Whether the connection went, and not just the one stream.
fn is_connection_loss(error: &hyper::Error) -> bool {
    error.is_closed() || error.is_canceled() || error.is_incomplete_message()
}

/// HTTP/2 says in the target whom it speaks to.
fn address_for_http2(request: &mut Request<RequestBody>) -> Result<(), Refusal> {
    let host: HeaderValue = request.headers_mut().remove(HOST).ok_or(Refusal::NoHost)?;
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    parts.scheme = Some(uri::Scheme::HTTP);
    parts.authority = Some(uri::Authority::try_from(host.as_bytes()).map_err(|_| Refusal::NoHost)?);
    *request.uri_mut() = Uri::from_parts(parts).map_err(|_| Refusal::NoHost)?;
    Ok(())
}
