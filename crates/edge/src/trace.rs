//! One span for each request, for OpenTelemetry: who asked what, how long it was held, which instance answered.
//!
//! `pipeline.rs` begins and ends spans, and only when the edge was told to trace: without, a request pays for one look
//! at an empty option, and the headers `traceparent` and `tracestate` pass through as any other. The choice to know:
//! where spans go is decided by the process's global tracer provider and propagator, which the composition root sets,
//! so that nothing here knows of collectors.

use http::{HeaderMap, HeaderName, HeaderValue, Request, Version};
use opentelemetry::global::{self, BoxedSpan, BoxedTracer};
use opentelemetry::propagation::{Extractor, Injector};
use opentelemetry::trace::{Span as _, SpanContext, SpanKind, Status, TraceContextExt, Tracer as _};
use opentelemetry::{Context, KeyValue};
use uuid::Uuid;

use crate::forwarded::Client;

/// Name of the instrumentation.
const SCOPE: &str = "tram-edge";

/// Begins spans.
#[derive(Debug)]
pub(crate) struct Tracer(BoxedTracer);

impl Tracer {
    pub(crate) fn new() -> Self {
        Self(global::tracer(SCOPE))
    }

    /// A span for a request, below the one that its client says it is part of.
    pub(crate) fn begin<B>(
        &self,
        request: &Request<B>,
        client: &Client,
        id: &HeaderValue,
    ) -> Box<RequestSpan> {
        let parent = global::get_text_map_propagator(|propagator| {
            propagator.extract_with_context(&Context::new(), &Headers(request.headers()))
        });
        // The method alone names a span whose route is not known yet; `routed` tells more.
        let method = request.method().as_str();
        let span = self
            .0
            .span_builder(method.to_owned())
            .with_kind(SpanKind::Server)
            .with_attributes([
                KeyValue::new("http.request.method", method.to_owned()),
                KeyValue::new("url.scheme", if client.tls { "https" } else { "http" }),
                KeyValue::new(
                    "network.protocol.version",
                    if request.version() == Version::HTTP_2 {
                        "2"
                    } else {
                        "1.1"
                    },
                ),
                KeyValue::new("tram.request.id", id.to_str().unwrap_or_default().to_owned()),
            ])
            .start_with_context(&self.0, &parent);
        Box::new(RequestSpan {
            span,
            method: method.to_owned(),
        })
    }
}

/// The span of one request. Ends when dropped.
pub(crate) struct RequestSpan {
    span: BoxedSpan,
    method: String,
}

impl std::fmt::Debug for RequestSpan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RequestSpan")
            .field("method", &self.method)
            .finish_non_exhaustive()
    }
}

impl RequestSpan {
    /// A route was found. `prefix` is the table's, without its final slash.
    pub(crate) fn routed(&mut self, service_id: Uuid, service: &str, prefix: &str) {
        let route = if prefix.is_empty() { "/" } else { prefix };
        self.span.update_name(format!("{} {route}", self.method));
        self.span
            .set_attribute(KeyValue::new("http.route", route.to_owned()));
        self.span
            .set_attribute(KeyValue::new("tram.service.id", service_id.to_string()));
        self.span
            .set_attribute(KeyValue::new("tram.service.name", service.to_owned()));
    }

    /// The service sleeps or starts, and the caller waits.
    pub(crate) fn held(&mut self) {
        self.span.add_event("held", Vec::new());
    }

    /// The wait is over, one way or another.
    pub(crate) fn released(&mut self) {
        self.span.add_event("released", Vec::new());
    }

    /// The head of the answer is here.
    pub(crate) fn answered(&mut self, status: u16, instance_id: Uuid) {
        self.span.add_event("first byte", Vec::new());
        self.span
            .set_attribute(KeyValue::new("tram.instance.id", instance_id.to_string()));
        self.status(status);
    }

    /// The edge answers itself.
    pub(crate) fn refused(&mut self, status: u16) {
        self.span.set_attribute(KeyValue::new("tram.by_edge", true));
        self.status(status);
    }

    /// The client left before the head of the answer was here.
    pub(crate) fn left(&mut self, status: u16, bytes_in: u64) {
        self.status(status);
        self.finish(bytes_in, 0, false);
    }

    fn status(&mut self, status: u16) {
        self.span
            .set_attribute(KeyValue::new("http.response.status_code", i64::from(status)));
        if status >= 500 {
            self.span.set_status(Status::error(status.to_string()));
        }
    }

    /// The last byte was passed on, or the client left.
    pub(crate) fn finish(&mut self, bytes_in: u64, bytes_out: u64, complete: bool) {
        let bytes = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        self.span
            .set_attribute(KeyValue::new("http.request.body.size", bytes(bytes_in)));
        self.span
            .set_attribute(KeyValue::new("http.response.body.size", bytes(bytes_out)));
        self.span.set_attribute(KeyValue::new("tram.complete", complete));
    }

    /// Tells the instance which span it is below.
    pub(crate) fn inject(&self, headers: &mut HeaderMap) {
        let context = Context::new().with_remote_span_context(self.span.span_context().clone());
        global::get_text_map_propagator(|propagator| {
            propagator.inject_context(&context, &mut HeadersOut(headers));
        });
    }

    /// This span as the value of a `traceparent` header; `None` when nobody records it.
    pub(crate) fn traceparent(&self) -> Option<String> {
        let context: &SpanContext = self.span.span_context();
        (context.is_valid() && context.is_sampled()).then(|| {
            format!(
                "00-{}-{}-{:02x}",
                context.trace_id(),
                context.span_id(),
                context.trace_flags().to_u8()
            )
        })
    }
}

struct Headers<'h>(&'h HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

struct HeadersOut<'h>(&'h mut HeaderMap);

impl Injector for HeadersOut<'_> {
    fn set(&mut self, key: &str, value: String) {
        let (Ok(name), Ok(value)) = (HeaderName::try_from(key), HeaderValue::try_from(value)) else {
            return;
        };
        // A propagator writes an empty state when there is none; a header is left out instead.
        if value.is_empty() {
            self.0.remove(name);
        } else {
            self.0.insert(name, value);
        }
    }
}
