//! The edge's metrics in Prometheus' text format, read from the same counters that the reports carry.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use http::header::CONTENT_TYPE;
use http::{HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

use crate::account::{LATENCY_BOUNDS_US, Live};
use crate::body::EdgeBody;
use crate::worker::Shared;

const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// All metrics as text.
pub(crate) fn encode(shared: &Arc<Shared>) -> String {
    let mut registry = Registry::with_prefix("tram_edge");
    registry.register_collector(Box::new(Edge(Arc::clone(shared))));
    let mut text = String::new();
    // Writing to a string does not fail.
    let _infallible = prometheus_client::encoding::text::encode(&mut text, &registry);
    text
}

#[derive(Debug)]
struct Edge(Arc<Shared>);

/// A metric of one number per service.
type Reading = fn(&Live) -> u64;

const COUNTERS: [(&str, &str, Reading); 6] = [
    ("arrivals", "Requests that came", |live| {
        live.arrivals.load(Relaxed)
    }),
    ("request_body_bytes", "Bytes from clients", |live| {
        live.bytes_in.load(Relaxed)
    }),
    ("response_body_bytes", "Bytes to clients", |live| {
        live.bytes_out.load(Relaxed)
    }),
    ("holds", "Callers who waited for a wake", |live| {
        live.holds.load(Relaxed)
    }),
    ("wakes", "Wakes demanded", |live| live.wakes.load(Relaxed)),
    ("requests_finished", "Requests answered", |live| {
        live.classes.iter().map(|class| class.load(Relaxed)).sum()
    }),
];

const GAUGES: [(&str, &str, Reading); 2] = [
    ("in_flight", "Requests, streams and connections now", |live| {
        live.in_flight().into()
    }),
    ("queued", "Callers who wait for a wake now", |live| {
        u64::try_from(live.queue.len()).unwrap_or(u64::MAX)
    }),
];

impl Collector for Edge {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let table = self.0.table.load();
        let lives: Vec<&Arc<Live>> = table.services().map(|service| &service.live).collect();
        let one = |metric: &mut MetricEncoder<'_>, value: u64| {
            metric.encode_counter::<NoLabelSet, _, u64>(&value, None)
        };
        for (name, help, read) in COUNTERS {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for live in &lives {
                one(&mut metric.encode_family(&labels(live))?, read(live))?;
            }
        }
        for (name, help, read) in GAUGES {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for live in &lives {
                metric
                    .encode_family(&labels(live))?
                    .encode_gauge(&i64::try_from(read(live)).unwrap_or(i64::MAX))?;
            }
        }
        let mut requests = encoder.encode_descriptor(
            "requests",
            "Requests answered by class",
            None,
            MetricType::Counter,
        )?;
        for live in &lives {
            for (class, count) in CLASSES.iter().zip(&live.classes) {
                let [id, name] = labels(live);
                one(
                    &mut requests.encode_family(&[id, name, ("class", (*class).to_owned())])?,
                    count.load(Relaxed),
                )?;
            }
        }
        let mut latency = encoder.encode_descriptor(
            "time_to_first_byte_seconds",
            "Arrival to the head of the answer",
            None,
            MetricType::Histogram,
        )?;
        for live in &lives {
            encode_latency(latency.encode_family(&labels(live))?, live)?;
        }
        let mut unrouted = encoder.encode_descriptor(
            "unrouted",
            "Requests that no service answers for",
            None,
            MetricType::Counter,
        )?;
        one(&mut unrouted, self.0.unrouted.load(Relaxed))?;
        let mut dropped = encoder.encode_descriptor(
            "access_log_dropped",
            "Log lines lost to a slow or full disk",
            None,
            MetricType::Counter,
        )?;
        one(
            &mut dropped,
            self.0
                .log
                .as_ref()
                .map_or(0, crate::access_log::AccessLog::dropped),
        )?;
        let usage = &self.0.usage;
        for (name, help, value) in [
            (
                "usage_records",
                "Questions to models whose cost was written down",
                usage.written(),
            ),
            (
                "usage_lost",
                "Questions to models whose cost found no room and is lost",
                usage.lost(),
            ),
        ] {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            one(&mut metric, value)?;
        }
        let mut waiting = encoder.encode_descriptor(
            "usage_waiting",
            "Questions to models whose cost waits for room on the disk",
            None,
            MetricType::Gauge,
        )?;
        waiting.encode_gauge(&i64::try_from(usage.waiting()).unwrap_or(i64::MAX))?;
        let mut version = encoder.encode_descriptor(
            "table_version",
            "The routing table in force",
            None,
            MetricType::Gauge,
        )?;
        version.encode_gauge(&i64::try_from(table.version).unwrap_or(i64::MAX))
    }
}

fn labels(live: &Live) -> [(&'static str, String); 2] {
    [
        ("service_id", live.id.to_string()),
        ("service", live.name.to_string()),
    ]
}

fn encode_latency(mut metric: MetricEncoder<'_>, live: &Live) -> Result<(), fmt::Error> {
    let seconds = |us: u64| std::time::Duration::from_micros(us).as_secs_f64();
    let counts: Vec<u64> = live
        .latency
        .buckets
        .iter()
        .map(|bucket: &AtomicU64| bucket.load(Relaxed))
        .collect();
    let buckets: Vec<(f64, u64)> = LATENCY_BOUNDS_US
        .iter()
        .map(|bound| seconds(*bound))
        .chain([f64::INFINITY])
        .zip(counts.iter().copied())
        .collect();
    metric.encode_histogram::<NoLabelSet>(
        seconds(live.latency.sum_us.load(Relaxed)),
        counts.iter().sum(),
        &buckets,
        None,
    )
}

/// Answers `GET /metrics` for scrapers.
pub(crate) async fn serve(shared: Arc<Shared>, listener: TcpListener) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                crate::accept::after_failed_accept(&error).await;
                continue;
            }
        };
        let shared = Arc::clone(&shared);
        let service = service_fn(move |request: Request<Incoming>| {
            std::future::ready(Ok::<_, Infallible>(answer(&shared, &request)))
        });
        tokio::spawn(async move {
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
            if let Err(error) = served {
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "a scraper's connection ended early"
                );
            }
        });
    }
}

fn answer(shared: &Arc<Shared>, request: &Request<Incoming>) -> Response<EdgeBody> {
    let mut response = if request.uri().path() == "/metrics" {
        Response::new(EdgeBody::full(encode(shared).into()))
    } else {
        let mut response = Response::new(EdgeBody::full("ask for /metrics\n".into()));
        *response.status_mut() = StatusCode::NOT_FOUND;
        response
    };
    response.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8"),
    );
    response
}
