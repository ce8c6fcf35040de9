//! Decisions in the words of events, of the API and of metrics.

use std::fmt;

use super::{Cause, Decision, Observation, Signal};

impl Signal {
    /// As the definition calls its target.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ConcurrentRequests => "concurrent_requests",
            Self::RequestsPerSecond => "requests_per_second",
            Self::Cpu => "average_cpu",
            Self::Memory => "average_mem",
            Self::ResponseTime => "requests_response_time",
        }
    }
}

impl Cause {
    /// Every cause.
    pub const ALL: [Self; 11] = [
        Self::Manual,
        Self::Fixed,
        Self::Above,
        Self::Burst,
        Self::Below,
        Self::OnTarget,
        Self::Settling,
        Self::Waiting,
        Self::AtMax,
        Self::AtMin,
        Self::Unknown,
    ];

    /// For the API and for labels of metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Manual => "manual",
            Self::Fixed => "fixed",
            Self::Above => "above_target",
            Self::Burst => "burst",
            Self::Below => "below_target",
            Self::OnTarget => "on_target",
            Self::Settling => "settling",
            Self::Waiting => "waiting",
            Self::AtMax => "at_maximum",
            Self::AtMin => "at_minimum",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for Observation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (observed, target) = (self.observed, self.target);
        match self.signal {
            Signal::ConcurrentRequests => {
                write!(
                    f,
                    "{observed:.1} requests in flight per instance, target {target}"
                )
            }
            Signal::RequestsPerSecond => {
                write!(
                    f,
                    "{observed:.1} requests per second per instance, target {target}"
                )
            }
            Signal::Cpu => write!(f, "{observed:.0} % CPU per instance, target {target} %"),
            Signal::Memory => write!(f, "{observed:.0} % memory per instance, target {target} %"),
            Signal::ResponseTime => write!(
                f,
                "response time {observed:.0} ms at p{}, target {target} ms",
                self.quantile.unwrap_or(tram_types::effective::DEFAULT_QUANTILE)
            ),
        }
    }
}

impl Decision {
    /// Whether the number changes.
    #[must_use]
    pub const fn is_change(&self) -> bool {
        self.wanted != self.from
    }
}

/// `scaled 2 to 5: 14.2 requests in flight per instance, target 3`, or `stays at 2: …` when the number stays.
impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_change() {
            write!(f, "scaled {} to {}: ", self.from, self.wanted)?;
        } else {
            write!(f, "stays at {}: ", self.wanted)?;
        }
        let why = match self.cause {
            Cause::Manual => "set by hand",
            Cause::Fixed => "fixed by the definition",
            Cause::Above | Cause::Below | Cause::OnTarget => "",
            Cause::Burst => "a burst",
            Cause::Settling => "waiting whether the load stays lower",
            Cause::Waiting => "waiting what the last change does",
            Cause::AtMax => "that is the maximum",
            Cause::AtMin => "that is the minimum",
            Cause::Unknown => "not all of the load is known, so the number is kept",
        };
        match (self.observation, why) {
            (Some(observation), "") => write!(f, "{observation}"),
            (Some(observation), why) => write!(f, "{observation} ({why})"),
            (None, why) => write!(f, "{why}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decisions_read_as_sentences() {
        let mut decision = Decision {
            wanted: 5,
            from: 2,
            cause: Cause::Above,
            observation: Some(Observation {
                signal: Signal::ConcurrentRequests,
                observed: 14.2,
                target: 3,
                quantile: None,
            }),
        };
        assert_eq!(
            decision.to_string(),
            "scaled 2 to 5: 14.2 requests in flight per instance, target 3"
        );
        decision.cause = Cause::AtMax;
        decision.from = 5;
        assert_eq!(
            decision.to_string(),
            "stays at 5: 14.2 requests in flight per instance, target 3 (that is the maximum)"
        );
        decision.observation = Some(Observation {
            signal: Signal::ResponseTime,
            observed: 812.4,
            target: 300,
            quantile: Some(95),
        });
        decision.cause = Cause::Below;
        decision.wanted = 4;
        assert_eq!(
            decision.to_string(),
            "scaled 5 to 4: response time 812 ms at p95, target 300 ms"
        );
    }
}
