//! Figures of services and instances.

use std::time::Duration;

use tram_types::{FieldViolation, InstanceId, ServiceId, Timestamp, status::MetricName};

use crate::{
    endpoint::{Call, Endpoint, get},
    error::Error,
    state::MetricsQuery,
    wire::stream::{GetMetricsReply, GetMetricsReplyMetric, Sample},
};

/// How far back a query without a start looks.
const DEFAULT_WINDOW: Duration = Duration::from_secs(3600);
/// Distance of the points when the client does not say.
const DEFAULT_STEP: Duration = Duration::from_secs(300);
/// Most points of one series: more than any screen has pixels.
const POINTS_MAX: u128 = 11_000;

crate::query! {
    /// Which figures.
    struct Figures {
        service_id: Option<ServiceId>,
        instance_id: Option<InstanceId>,
        name: Option<MetricName>,
        start: Option<Timestamp>,
        end: Option<Timestamp>,
        step: Option<String>,
    }
}

pub(super) fn endpoints() -> Vec<Endpoint> {
    vec![get("/v1/streams/metrics", "GetMetrics", metrics)]
}

async fn metrics(call: Call<Figures>) -> Result<GetMetricsReply, Error> {
    let query = &call.query;
    let mut wrong = Vec::new();
    let name = query.name.unwrap_or(MetricName::Unknown);
    if name == MetricName::Unknown {
        wrong.push(FieldViolation::new(
            "name",
            "must name a metric, such as CPU_TOTAL_PERCENT",
        ));
    }
    let step = match query.step.as_deref() {
        None => Some(DEFAULT_STEP),
        Some(text) => step(text),
    };
    let end = query.end.unwrap_or_else(|| call.api.clock.now());
    let start = query.start.unwrap_or_else(|| end.minus(DEFAULT_WINDOW));
    match step {
        None => wrong.push(FieldViolation::new(
            "step",
            "must be a span such as `30s`, `5m` or `1h`",
        )),
        Some(step) if end.since(start).as_nanos() / step.as_nanos() > POINTS_MAX => {
            wrong.push(FieldViolation::new(
                "step",
                format!("is too small for this span of time: at most {POINTS_MAX} points are answered"),
            ));
        }
        Some(_) => {}
    }
    if query.service_id.is_none() && query.instance_id.is_none() {
        wrong.push(FieldViolation::new(
            "service_id",
            "give `service_id` or `instance_id`",
        ));
    }
    if !wrong.is_empty() {
        return Err(Error::InvalidParameters(wrong));
    }
    let organization = call.caller.organization;
    let (service, instances) = match (query.instance_id, query.service_id) {
        (Some(id), _) => {
            let instance = call.api.store.instance(organization, id).await?;
            (instance.service_id, vec![id])
        }
        (None, Some(id)) => (call.api.store.service(organization, id).await?.id, Vec::new()),
        (None, None) => return Ok(GetMetricsReply::default()),
    };
    let wanted = MetricsQuery {
        name,
        service,
        instances,
        start,
        end,
        step: step.unwrap_or(DEFAULT_STEP),
    };
    let series = call
        .api
        .metrics
        .query(&wanted)
        .await
        .map_err(|error| Error::Unavailable {
            message: "the figures cannot be had now: try again".to_owned(),
            source: Box::new(error),
        })?;
    Ok(GetMetricsReply {
        metrics: series
            .into_iter()
            .map(|series| GetMetricsReplyMetric {
                labels: series.labels,
                samples: series
                    .samples
                    .into_iter()
                    .map(|(at, value)| Sample {
                        timestamp: at.to_string(),
                        value,
                    })
                    .collect(),
            })
            .collect(),
    })
}

/// `30s`, `5m`, `1h`, or seconds without a unit.
fn step(text: &str) -> Option<Duration> {
    let (digits, unit) = match text.find(|c: char| !c.is_ascii_digit()) {
        Some(end) => text.split_at(end),
        None => (text, "s"),
    };
    let seconds_per_unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        _ => return None,
    };
    let seconds = digits.parse::<u64>().ok()?.checked_mul(seconds_per_unit)?;
    (seconds > 0).then(|| Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps() {
        for (text, seconds) in [("30", 30), ("30s", 30), ("5m", 300), ("1h", 3600), ("1d", 86400)] {
            assert_eq!(step(text), Some(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "0", "m", "-5m", "5x", "99999999999999999999h"] {
            assert_eq!(step(text), None, "{text}");
        }
    }
}
