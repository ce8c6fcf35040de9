//! What surrounds the API's router: each call is counted, timed and traced, and `GET /metrics` is answered.
//!
//! The choice to know: calls are told apart by the route's template, never by the path that was asked for, so that the
//! number of series is bounded by the API and not by its clients.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use axum::{
    Router,
    extract::{ConnectInfo, MatchedPath, Request, State},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use hyper::{
    HeaderMap, Method, StatusCode,
    header::{AUTHORIZATION, CONTENT_TYPE},
};
use opentelemetry::{
    Context, KeyValue,
    global::{self, BoxedSpan},
    propagation::Extractor,
    trace::{Span, SpanKind, Status, Tracer},
};
use tram_store::{Store, record::Role};

use crate::{data_plane::EdgeLink, metrics::Metrics};

/// Name of the instrumentation.
const SCOPE: &str = "tram-api";
/// Calls that no route is for.
const UNMATCHED: &str = "unmatched";
/// What Prometheus' text of this crate is.
const EXPOSITION_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What `GET /metrics` needs.
#[derive(Debug, Clone)]
pub struct Observed {
    /// For the tokens of scrapers.
    pub store: Store,
    /// The edge, for its metrics.
    pub edge: Arc<EdgeLink>,
    /// The control plane's own metrics.
    pub metrics: Arc<Metrics>,
}

/// The API's router with its calls observed, and `/metrics` beside it.
pub fn around(api: Router, observed: Observed) -> Router {
    let metrics = Arc::clone(&observed.metrics);
    let scrape = Router::new().route("/metrics", get(scrape)).with_state(observed);
    api.merge(scrape)
        .layer(middleware::from_fn_with_state(metrics, call))
}

/// One call. Its time ends with the head of the answer: a stream of logs goes on for as long as somebody reads.
async fn call(State(metrics): State<Arc<Metrics>>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let method = known(request.method());
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or(UNMATCHED, MatchedPath::as_str)
        .to_owned();
    let mut span = begin(method, &route, request.headers());
    let response = next.run(request).await;
    let status = response.status();
    metrics.called(method, &route, status.as_u16(), began.elapsed());
    span.set_attribute(KeyValue::new(
        "http.response.status_code",
        i64::from(status.as_u16()),
    ));
    if status.is_server_error() {
        span.set_status(Status::error(status.as_str().to_owned()));
    }
    span.end();
    response
}

/// Anybody may invent methods; they are one.
fn known(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        _ => "OTHER",
    }
}

fn begin(method: &'static str, route: &str, headers: &HeaderMap) -> BoxedSpan {
    let tracer = global::tracer(SCOPE);
    let parent = global::get_text_map_propagator(|propagator| {
        propagator.extract_with_context(&Context::new(), &Headers(headers))
    });
    tracer
        .span_builder(format!("{method} {route}"))
        .with_kind(SpanKind::Server)
        .with_attributes([
            KeyValue::new("http.request.method", method),
            KeyValue::new("http.route", route.to_owned()),
        ])
        .start_with_context(&tracer, &parent)
}

struct Headers<'h>(&'h HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(hyper::header::HeaderName::as_str).collect()
    }
}

/// Everything in Prometheus' text format, for a scraper on this machine or one with an owner's token.
async fn scrape(
    State(observed): State<Observed>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
) -> Response {
    if !is_local(peer, &headers) && !is_owner(&observed.store, &headers).await {
        let told = "metrics are for scrapers on this machine, or with the token of an owner: \
                    `Authorization: Bearer <token>`\n";
        return (StatusCode::UNAUTHORIZED, told).into_response();
    }
    let text = crate::metrics::exposition(&observed.metrics, &observed.edge).await;
    ([(CONTENT_TYPE, EXPOSITION_TYPE)], text).into_response()
}

/// Whether the scraper itself is on this machine, and not a proxy that speaks for somebody else.
fn is_local(peer: SocketAddr, headers: &HeaderMap) -> bool {
    peer.ip().to_canonical().is_loopback()
        && !headers.contains_key("x-forwarded-for")
        && !headers.contains_key("forwarded")
}

async fn is_owner(store: &Store, headers: &HeaderMap) -> bool {
    let token = headers
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim());
    match token {
        Some(token) => match store.credential_by_token(token).await {
            Ok(credential) => credential.is_some_and(|credential| credential.role == Role::Owner),
            Err(error) => {
                tracing::warn!(error = %crate::chain(&error), "a scraper's token could not be looked up");
                false
            }
        },
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_on_this_machine_does_not_make_strangers_local() {
        let local: SocketAddr = ([127, 0, 0, 1], 9).into();
        let mut headers = HeaderMap::new();
        assert!(is_local(local, &headers));
        assert!(!is_local(([10, 0, 0, 1], 9).into(), &headers));
        headers.insert(
            "x-forwarded-for",
            hyper::header::HeaderValue::from_static("1.2.3.4"),
        );
        assert!(!is_local(local, &headers));
    }
}
