//! OpenTelemetry: where the spans of this process go.
//!
//! Off without an `otlp_endpoint`: then no provider is set, and every span that other files begin costs nothing and goes
//! nowhere. The choice to know: spans go to a queue with a bound and from there by a thread of its own, so that a slow
//! or dead collector delays no request; what does not fit is lost.

use std::time::Duration;

use opentelemetry::{KeyValue, global};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig};
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    trace::{BatchConfigBuilder, BatchSpanProcessor, SdkTracerProvider},
};

/// Where a collector takes traces in, below its endpoint.
const TRACES_PATH: &str = "/v1/traces";
/// Spans that wait for the collector: some MiB, a second of a busy machine.
const QUEUE_MAX_SPANS: usize = 8192;
/// Spans of one message: some hundred KiB.
const BATCH_MAX_SPANS: usize = 512;
/// Longest wait for a batch to fill.
const BATCH_DELAY: Duration = Duration::from_secs(1);
/// A collector that does not take a batch in this time does not get it.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);
/// The last spans get this long when the process ends; a dead collector must not hold up a stop.
const FLUSH_PATIENCE: Duration = Duration::from_secs(2);

/// Why no traces can be sent.
#[derive(Debug, thiserror::Error)]
#[error("cannot send traces to `{endpoint}`: write `otlp_endpoint` as http://HOST:4318")]
pub struct Error {
    endpoint: String,
    #[source]
    source: Box<dyn std::error::Error + Send + Sync>,
}

/// Traces of this process are on. [`Traces::finish`] sends the last ones.
#[derive(Debug)]
pub struct Traces(SdkTracerProvider);

impl Traces {
    /// Sends the spans of this process to `endpoint` under the name `service`; `None` when it is empty.
    ///
    /// # Errors
    /// When the endpoint is none.
    pub fn start(endpoint: &str, service: &'static str) -> Result<Option<Self>, Error> {
        if endpoint.is_empty() {
            return Ok(None);
        }
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| Error {
            endpoint: endpoint.to_owned(),
            source,
        };
        reqwest::Url::parse(endpoint).map_err(|error| failed(error.into()))?;
        let exporter = SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpJson)
            .with_endpoint(traces_url(endpoint))
            .with_timeout(EXPORT_TIMEOUT)
            .build()
            .map_err(|error| failed(error.into()))?;
        let processor = BatchSpanProcessor::builder(exporter)
            .with_batch_config(
                BatchConfigBuilder::default()
                    .with_max_queue_size(QUEUE_MAX_SPANS)
                    .with_max_export_batch_size(BATCH_MAX_SPANS)
                    .with_scheduled_delay(BATCH_DELAY)
                    .build(),
            )
            .build();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(processor)
            .with_resource(
                Resource::builder()
                    .with_service_name(service)
                    .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
                    .build(),
            )
            .build();
        global::set_text_map_propagator(TraceContextPropagator::new());
        global::set_tracer_provider(provider.clone());
        Ok(Some(Self(provider)))
    }

    /// Sends what waits, for a bounded time. Blocks.
    pub fn finish(&self) {
        if let Err(error) = self.0.shutdown_with_timeout(FLUSH_PATIENCE) {
            tracing::warn!(error = %crate::chain(&error), "the last traces were not sent");
        }
    }
}

/// The endpoint as OpenTelemetry's own settings write it, without a path, or with the whole path.
fn traces_url(endpoint: &str) -> String {
    let endpoint = endpoint.trim_end_matches('/');
    if endpoint.ends_with(TRACES_PATH) {
        endpoint.to_owned()
    } else {
        format!("{endpoint}{TRACES_PATH}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_is_added_once() {
        for endpoint in ["http://c:4318", "http://c:4318/", "http://c:4318/v1/traces"] {
            assert_eq!(traces_url(endpoint), "http://c:4318/v1/traces");
        }
    }

    #[test]
    fn nothing_starts_without_an_endpoint_and_nonsense_is_refused() {
        assert!(Traces::start("", "tram").expect("off is fine").is_none());
        let refused = Traces::start("collector", "tram").expect_err("no URL");
        assert!(refused.to_string().contains("http://HOST:4318"));
    }
}
