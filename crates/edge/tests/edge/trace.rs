//! Traces: headers that pass through, and spans when asked for.

use std::sync::OnceLock;

use http::StatusCode;
use http_body_util::Full;
use opentelemetry::Value;
use opentelemetry::trace::SpanKind;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};
use tram_edge::link::{self, Client, Event};
use tram_types::routing::{Service, State};

use crate::harness::*;

const PARENT_SPAN: &str = "00f067aa0ba902b7";

/// Where this process's spans go: there is one provider for all tests, so each has a trace of its own.
fn spans_of(trace_id: &str) -> Vec<SpanData> {
    static SPANS: OnceLock<InMemorySpanExporter> = OnceLock::new();
    SPANS
        .get_or_init(|| {
            let exporter = InMemorySpanExporter::default();
            opentelemetry::global::set_tracer_provider(
                SdkTracerProvider::builder()
                    .with_simple_exporter(exporter.clone())
                    .build(),
            );
            opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
            exporter
        })
        .get_finished_spans()
        .expect("nobody panicked")
        .into_iter()
        .filter(|span| span.span_context.trace_id().to_string() == trace_id)
        .collect()
}

fn tracing_edge() -> Fixture {
    assert!(spans_of("none").is_empty());
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut config = config(dir.path());
    config.traces = true;
    Fixture::with(dir, config)
}

fn traced(trace_id: &str, flags: &str) -> http::Request<Full<bytes::Bytes>> {
    request("/a")
        .header("traceparent", format!("00-{trace_id}-{PARENT_SPAN}-{flags}"))
        .header("tracestate", "vendor=1")
        .body(Full::default())
        .expect("a request")
}

fn attribute(span: &SpanData, key: &str) -> Option<Value> {
    span.attributes
        .iter()
        .find(|attribute| attribute.key.as_str() == key)
        .map(|attribute| attribute.value.clone())
}

#[tokio::test]
async fn without_tracing_the_headers_pass_through_as_they_came() {
    let edge = Fixture::start();
    edge.apply(table(1, service(State::Ready, &[echo(false).await])));
    let trace_id = "10000000000000000000000000000001";
    let answer = send(edge.http, traced(trace_id, "01")).await;
    assert!(
        answer
            .text
            .contains(&format!("traceparent: 00-{trace_id}-{PARENT_SPAN}-01\n")),
        "{}",
        answer.text
    );
    assert!(answer.text.contains("tracestate: vendor=1"), "{}", answer.text);
    assert!(!get(edge.http, "/").await.text.contains("traceparent"));
}

#[tokio::test]
async fn a_request_is_one_span_below_its_clients_and_above_the_instances() {
    let edge = tracing_edge();
    let service = service(State::Ready, &[echo(false).await]);
    edge.apply(table(1, service.clone()));
    let trace_id = "10000000000000000000000000000002";
    let answer = send(edge.http, traced(trace_id, "01")).await;
    until("the span ended", || spans_of(trace_id).len() == 1).await;
    let span = &spans_of(trace_id)[0];
    assert_eq!(span.name, "GET /");
    assert_eq!(span.span_kind, SpanKind::Server);
    assert_eq!(span.parent_span_id.to_string(), PARENT_SPAN);
    assert_eq!(
        attribute(span, "http.response.status_code"),
        Some(Value::I64(200))
    );
    assert_eq!(
        attribute(span, "tram.service.id"),
        Some(Value::from(service.id.to_string()))
    );
    let passed_on = format!("traceparent: 00-{trace_id}-{}-01", span.span_context.span_id());
    assert!(answer.text.contains(&passed_on), "{}", answer.text);
    assert!(answer.text.contains("tracestate: vendor=1"), "{}", answer.text);
}

#[tokio::test]
async fn a_client_that_does_not_want_to_be_recorded_is_not() {
    let edge = tracing_edge();
    edge.apply(table(1, service(State::Ready, &[echo(false).await])));
    let trace_id = "10000000000000000000000000000003";
    let answer = send(edge.http, traced(trace_id, "00")).await;
    assert!(answer.text.contains(&format!("traceparent: 00-{trace_id}-")));
    let refused = "10000000000000000000000000000004";
    let mut unknown = traced(refused, "01");
    unknown
        .headers_mut()
        .insert("host", http::HeaderValue::from_static("other.test"));
    assert_eq!(send(edge.http, unknown).await.status, StatusCode::NOT_FOUND);
    until("the refusal is told", || spans_of(refused).len() == 1).await;
    assert_eq!(
        attribute(&spans_of(refused)[0], "tram.by_edge"),
        Some(Value::Bool(true))
    );
    assert!(spans_of(trace_id).is_empty(), "it was recorded all the same");
}

#[tokio::test]
async fn a_wake_is_demanded_in_the_name_of_the_caller_who_caused_it() {
    let edge = tracing_edge();
    let sleeping = service(State::Sleeping, &[]);
    edge.apply(table(1, sleeping.clone()));
    let (_client, mut events) = Client::connect(&link::socket_path(edge.dir.path()))
        .await
        .expect("the edge listens");
    let trace_id = "10000000000000000000000000000005";
    let http = edge.http;
    let caller = tokio::spawn(async move { send(http, traced(trace_id, "01")).await });
    let demand = loop {
        match tokio::time::timeout(PATIENCE, events.next())
            .await
            .expect("in time")
        {
            Some(Event::Wake(demand)) => break demand,
            Some(Event::Report(_)) => {}
            None => panic!("the link broke"),
        }
    };
    edge.apply(table(
        2,
        Service {
            state: State::Ready,
            endpoints: vec![endpoint(says("awake").await)],
            ..sleeping
        },
    ));
    assert_eq!(caller.await.expect("no panic").text, "awake");
    until("the span ended", || spans_of(trace_id).len() == 1).await;
    let span = &spans_of(trace_id)[0];
    let events: Vec<_> = span.events.iter().map(|event| event.name.to_string()).collect();
    assert_eq!(events, ["held", "released", "first byte"]);
    assert_eq!(
        demand.traceparent,
        Some(format!("00-{trace_id}-{}-01", span.span_context.span_id()))
    );
}
