//! What one instance should carry: the targets of the definition with their defaults applied.
//!
//! The sleep delays stand in the same list on the wire and are in [`super::Scale`]: they are no load.

use serde::{Deserialize, Serialize};

use crate::definition::{DeploymentScalingTarget, ScalingTargetValue};

/// The quantile of a response time whose target names none, in percent (digest, section 3.2).
pub const DEFAULT_QUANTILE: u8 = 95;

/// What one instance should carry. Every one that is set is looked at; the largest answer wins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Targets {
    /// Requests in flight for each instance; at least 1.
    pub concurrent_requests: Option<u32>,
    /// Requests that come in a second for each instance; at least 1.
    pub requests_per_second: Option<u32>,
    /// Processor time in percent of what an instance may use, 1 to 100, as the mean of the instances.
    pub cpu_percent: Option<u32>,
    /// Memory in percent of what an instance may use, 1 to 100, as the mean of the instances.
    pub memory_percent: Option<u32>,
    /// How soon the service answers.
    pub response_time: Option<ResponseTimeTarget>,
}

/// How soon a service should answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResponseTimeTarget {
    /// From the arrival of a request to the head of its answer; at least 1.
    pub millis: u32,
    /// Which share of the requests has to be answered in that time, in percent, 1 to 100.
    pub quantile: u8,
}

impl Targets {
    /// The targets of a definition. Of two targets of one kind the stricter counts; validation refuses them.
    #[must_use]
    pub fn of(targets: &[DeploymentScalingTarget]) -> Self {
        let least = |pick: fn(&DeploymentScalingTarget) -> Option<&ScalingTargetValue>| {
            targets
                .iter()
                .filter_map(pick)
                .filter_map(|target| positive(target.value))
                .min()
        };
        let response_time = targets
            .iter()
            .filter_map(|target| target.requests_response_time.as_ref())
            .filter_map(|target| {
                let quantile = u8::try_from(target.quantile).ok();
                Some(ResponseTimeTarget {
                    millis: positive(target.value)?,
                    quantile: quantile
                        .filter(|quantile| (1..=100).contains(quantile))
                        .unwrap_or(DEFAULT_QUANTILE),
                })
            })
            .min_by_key(|target| target.millis);
        Self {
            concurrent_requests: least(|target| target.concurrent_requests.as_ref()),
            requests_per_second: least(|target| target.requests_per_second.as_ref()),
            cpu_percent: least(|target| target.average_cpu.as_ref()).map(|percent| percent.min(100)),
            memory_percent: least(|target| target.average_mem.as_ref()).map(|percent| percent.min(100)),
            response_time,
        }
    }

    /// Whether the load has no say.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.concurrent_requests.is_none()
            && self.requests_per_second.is_none()
            && self.response_time.is_none()
            && !self.needs_usage()
    }

    /// Whether it takes what the sites say of processor and memory.
    #[must_use]
    pub const fn needs_usage(&self) -> bool {
        self.cpu_percent.is_some() || self.memory_percent.is_some()
    }
}

/// A target's value; larger ones than fit are as good as the largest. `None`: there is no such target.
fn positive(value: i64) -> Option<u32> {
    (value > 0).then(|| u32::try_from(value).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(json: &str) -> Targets {
        Targets::of(&serde_json::from_str::<Vec<DeploymentScalingTarget>>(json).unwrap())
    }

    #[test]
    fn sleep_is_no_load() {
        let none = targets(r#"[{"sleep_idle_delay":{"deep_sleep_value":5}}]"#);
        assert!(none.is_empty() && !none.needs_usage());
        let cpu = targets(r#"[{"average_cpu":{"value":80}}]"#);
        assert!(!cpu.is_empty() && cpu.needs_usage());
    }

    #[test]
    fn a_quantile_that_is_left_out_is_95() {
        let time = targets(r#"[{"requests_response_time":{"value":300}}]"#);
        let expected = ResponseTimeTarget {
            millis: 300,
            quantile: 95,
        };
        assert_eq!(time.response_time, Some(expected));
    }

    #[test]
    fn values_that_make_no_sense_are_no_targets_and_huge_ones_are_the_largest() {
        let odd = targets(
            r#"[{"concurrent_requests":{"value":0}},{"requests_per_second":{"value":9999999999}},{"average_mem":{"value":400}}]"#,
        );
        assert_eq!(odd.concurrent_requests, None);
        assert_eq!(odd.requests_per_second, Some(u32::MAX));
        assert_eq!(odd.memory_percent, Some(100));
    }
}
