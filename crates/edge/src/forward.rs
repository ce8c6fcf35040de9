//! One request to one instance and the head of its answer back; bodies stream on their own from there.
//!
//! The pipeline calls [`forward`] when a route is open. A request is sent again only where that is safe: when it
//! was never sent (no connection came about, or a kept one was dead already), or when it may be repeated by its
//! method, has no body, and either a kept connection died under it without a byte of answer or an HTTP/2 instance said
//! that it did not process it.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use http::header::{CONTENT_LENGTH, COOKIE, HOST, TRANSFER_ENCODING};
use http::{HeaderValue, Request, Response, Uri, Version, uri};
use hyper::body::{Body as _, Incoming};
use tokio::time::{Instant, sleep_until};
use tram_types::routing::Protocol;

use crate::alarm::Alarm;
use crate::balance::Candidates;
use crate::body::{Progress, RequestBody};
use crate::canary::Trial;
use crate::page::Refusal;
use crate::pool::{Http1, Seat, SharedStream};
use crate::spare::Spare;
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
    /// HTTP/2 only: its place on a connection.
    pub(crate) stream: Option<SharedStream>,
}

/// Sends `request` to an instance of `route`, which is of table `version`. The target and headers are those that the instance shall see.
/// Cancel-safe: dropping the future cuts the request off at the instance too.
pub(crate) fn forward(
    worker: &Worker,
    version: u64,
    route: &Arc<Route>,
    request: Request<RequestBody>,
    progress: Option<&Arc<Progress>>,
    alarm: Option<&Arc<Alarm>>,
) -> impl Future<Output = Result<Answer, Refusal>> {
    // No future of its own, which would hold the request a second time.
    let candidates = Candidates::asked_by(request.headers(), &worker.shared.table, version, route);
    forward_among(worker, route, candidates, request, progress, alarm)
}

/// [`forward`] to an instance of the caller's choice.
pub(crate) async fn forward_among(
    worker: &Worker,
    route: &Arc<Route>,
    candidates: Candidates<'_>,
    request: Request<RequestBody>,
    progress: Option<&Arc<Progress>>,
    alarm: Option<&Arc<Alarm>>,
) -> Result<Answer, Refusal> {
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
    within(Duration::from_millis(limit_ms), attempt, progress, alarm)
        .await
        .unwrap_or_else(|| {
            Err(Refusal::TimedOut {
                name: route.service.spec.name.clone(),
                waited_ms: limit_ms,
            })
        })
}

/// Bounds the wait for the first byte. The clock runs from the last byte of the request's body: a long upload is not a
/// slow instance.
async fn within<T>(
    limit: Duration,
    work: impl Future<Output = T>,
    progress: Option<&Arc<Progress>>,
    alarm: Option<&Arc<Alarm>>,
) -> Option<T> {
    let mut work = std::pin::pin!(work);
    let mut give_up = Instant::now() + limit;
    loop {
        let done = match alarm {
            Some(alarm) => before(alarm.until(give_up.into_std()), work.as_mut()).await,
            None => before(sleep_until(give_up), work.as_mut()).await,
        };
        if done.is_some() {
            return done;
        }
        give_up = progress?.last_moved() + limit;
        if give_up <= Instant::now() {
            return None;
        }
    }
}

/// What the work gives if it is done before `end`.
async fn before<T>(end: impl Future<Output = ()>, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        done = work => Some(done),
        () = end => None,
    }
}

fn bad_answer(route: &Route, error: &hyper::Error) -> Refusal {
    tracing::debug!(error = error as &dyn std::error::Error, service = %route.service.spec.name, "an instance did not answer");
    Refusal::BadAnswer {
        name: route.service.spec.name.clone(),
    }
}

/// Notes how a request turned out, where a canary is tried.
fn answered(trial: Option<Box<Trial>>, failed: bool) {
    if let Some(trial) = trial {
        trial.answered(failed);
    }
}

async fn over_http1(
    worker: usize,
    route: &Route,
    mut candidates: Candidates<'_>,
    mut request: Request<RequestBody>,
) -> Result<Answer, Refusal> {
    *request.version_mut() = Version::HTTP_11;
    frame_for_http1(&mut request);
    let mut kept_allowed = true;
    for _ in 0..SEND_ATTEMPTS {
        let (seat, mut connection, kept) = loop {
            let seat = candidates.next()?;
            if kept_allowed
                && let Some(connection) = seat.endpoint.checkout(worker, Spare::may_repeat(&request)).await
            {
                break (seat, connection, true);
            }
            match Box::pin(seat.endpoint.connect()).await {
                Ok(connection) => break (seat, connection, false),
                Err(error) => candidates.failed(seat, &error),
            }
        };
        let trial = candidates.watch(&seat);
        let mut spare = std::mem::take(&mut connection.spare);
        let may_repeat = kept && spare.take(&request);
        match connection.sender.try_send_request(request).await {
            Ok(response) => {
                answered(trial, response.status().is_server_error());
                spare.clear();
                connection.spare = spare;
                return Ok(Answer {
                    response,
                    seat,
                    connection: Some(connection),
                    stream: None,
                });
            }
            Err(mut failed) => match failed
                .take_message()
                .or_else(|| (may_repeat && is_connection_loss(failed.error())).then(|| spare.into_request()))
            {
                Some(again) if kept || !failed.error().is_user() => {
                    trial.into_iter().for_each(|trial| trial.moved());
                    request = again;
                    kept_allowed = false;
                }
                _ => {
                    answered(trial, true);
                    return Err(bad_answer(route, failed.error()));
                }
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
        let (seat, mut shared) = loop {
            let seat = candidates.next()?;
            match seat.endpoint.shared(worker).await {
                Ok(shared) => break (seat, shared),
                Err(error) => candidates.failed(seat, &error),
            }
        };
        if let Err(error) = shared.sender.ready().await {
            seat.endpoint.forget_shared(worker, &shared.stream);
            if shared.kept {
                continue;
            }
            return Err(bad_answer(route, &error));
        }
        let trial = candidates.watch(&seat);
        let mut spare = Spare::default();
        let repeatable = spare.take(&request);
        match shared.sender.try_send_request(request).await {
            Ok(response) => {
                answered(trial, response.status().is_server_error());
                return Ok(Answer {
                    response,
                    seat,
                    connection: None,
                    stream: Some(shared.stream),
                });
            }
            Err(mut failed) => {
                let unsent = failed.take_message();
                let fate = Fate::of(failed.error());
                // A refused stream says nothing of the others on its connection.
                if unsent.is_some() || fate != Fate::Refused {
                    seat.endpoint.forget_shared(worker, &shared.stream);
                }
                let unharmed = match fate {
                    Fate::Refused | Fate::Unprocessed => true,
                    Fate::Lost => shared.kept,
                    Fate::Other => false,
                };
                match unsent.or_else(|| (repeatable && unharmed).then(|| spare.into_request())) {
                    Some(again) => {
                        trial.into_iter().for_each(|trial| trial.moved());
                        request = again;
                    }
                    None => {
                        answered(trial, true);
                        return Err(bad_answer(route, failed.error()));
                    }
                }
            }
        }
    }
    Err(Refusal::BadAnswer {
        name: route.service.spec.name.clone(),
    })
}

/// What an error says of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// The instance did not take this one stream (RFC 9113, 8.7).
    Refused,
    /// The instance closes the connection in order, and this request came too late for it.
    Unprocessed,
    /// The connection went.
    Lost,
    Other,
}

impl Fate {
    fn of(error: &hyper::Error) -> Self {
        let h2 = error
            .source()
            .and_then(|source| source.downcast_ref::<h2::Error>());
        match h2 {
            Some(h2) if h2.is_reset() && h2.reason() == Some(h2::Reason::REFUSED_STREAM) => Self::Refused,
            Some(h2) if h2.is_go_away() && h2.reason() == Some(h2::Reason::NO_ERROR) => Self::Unprocessed,
            _ if is_connection_loss(error) => Self::Lost,
            _ => Self::Other,
        }
    }
}

/// Whether the connection went, rather than that the instance said something that makes no sense.
fn is_connection_loss(error: &hyper::Error) -> bool {
    error.is_closed()
        || error.is_canceled()
        || error.is_incomplete_message()
        || error.source().is_some_and(|source| source.is::<std::io::Error>())
}

/// HTTP/2 allows what HTTP/1.1 does not: a cookie in several crumbs (RFC 9113, 8.2.3), and a body of unknown length with
/// any method, which must be framed here for hyper not to leave it out.
fn frame_for_http1(request: &mut Request<RequestBody>) {
    let has_body = !matches!(request.body(), RequestBody::Empty);
    let unknown = has_body && request.body().size_hint().exact().is_none();
    let headers = request.headers_mut();
    if unknown && !headers.contains_key(CONTENT_LENGTH) {
        headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    let mut crumbs = headers.get_all(COOKIE).iter();
    if let (Some(first), Some(second)) = (crumbs.next(), crumbs.next()) {
        let mut whole = BytesMut::from(first.as_bytes());
        for crumb in std::iter::once(second).chain(crumbs) {
            whole.extend_from_slice(b"; ");
            whole.extend_from_slice(crumb.as_bytes());
        }
        if let Ok(whole) = HeaderValue::from_maybe_shared(whole.freeze()) {
            headers.insert(COOKIE, whole);
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alarm::watched;

    #[tokio::test(start_paused = true)]
    async fn the_clock_runs_from_the_last_byte_and_no_longer() {
        runs(None).await;
        let alarm = Arc::new(Alarm::default());
        watched(&alarm, runs(Some(&alarm))).await;
    }

    async fn runs(alarm: Option<&Arc<Alarm>>) {
        let limit = Duration::from_secs(10);
        let begun = Instant::now();
        let progress = Arc::new(Progress::new());
        let silent = within(limit, std::future::pending::<()>(), Some(&progress), alarm).await;
        assert!(
            silent.is_none() && begun.elapsed().as_secs() == 10,
            "{:?}",
            begun.elapsed()
        );
        let begun = Instant::now();
        let progress = Arc::new(Progress::new());
        let upload = async {
            tokio::time::sleep(limit / 2).await;
            progress.add(1);
            std::future::pending::<()>().await;
        };
        assert!(within(limit, upload, Some(&progress), alarm).await.is_none());
        assert_eq!(
            begun.elapsed().as_secs(),
            15,
            "from the last byte, and not twice as long"
        );
    }
}
