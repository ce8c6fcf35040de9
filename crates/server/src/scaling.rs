//! Scaling by load between the parts of the house: the operator's figures for the planner, and the controller's
//! decisions for the API.

use std::{sync::Arc, time::Duration};

use tram_api::{ScalingDecision, ScalingSource};
use tram_controller::scaling::Scaling;
use tram_planner::autoscale;
use tram_types::{DeploymentId, ServiceId};

/// The figures of autoscaling, with what the operator chose in place of the defaults.
#[must_use]
pub fn policy(chosen: &tram_cli::settings::Scaling) -> autoscale::Policy {
    let built_in = autoscale::Policy::default();
    let seconds = |chosen: Option<u32>, otherwise: Duration| {
        chosen.map_or(otherwise, |seconds| Duration::from_secs(u64::from(seconds)))
    };
    let down_window = seconds(chosen.down_window, built_in.down_window);
    autoscale::Policy {
        concurrency_window: seconds(chosen.concurrency_window, built_in.concurrency_window),
        burst_window: seconds(chosen.burst_window, built_in.burst_window),
        rate_window: seconds(chosen.rate_window, built_in.rate_window),
        usage_window: seconds(chosen.usage_window, built_in.usage_window),
        latency_window: seconds(chosen.latency_window, built_in.latency_window),
        down_window,
        down_window_max: built_in.down_window_max.max(down_window),
        down_period: seconds(chosen.down_period, built_in.down_period),
        tolerance_percent: chosen.tolerance.unwrap_or(built_in.tolerance_percent),
        up_factor: chosen.up_factor.unwrap_or(built_in.up_factor),
        up_step: chosen.up_step.unwrap_or(built_in.up_step),
        ..built_in
    }
}

/// The controller's decisions for the API.
#[derive(Debug)]
pub struct Decisions(pub Arc<Scaling>);

impl ScalingSource for Decisions {
    fn decisions(&self, service: ServiceId, deployment: DeploymentId) -> Vec<ScalingDecision> {
        let decided = self.0.decided(service, deployment).into_iter();
        decided
            .map(|decided| {
                let observation = decided.decision.observation;
                ScalingDecision {
                    region: decided.region,
                    wanted: decided.decision.wanted,
                    ready: decided.ready,
                    min: decided.min,
                    max: decided.max,
                    reason: decided.decision.cause.as_str(),
                    message: decided.decision.to_string(),
                    signal: observation.map_or("", |seen| seen.signal.as_str()),
                    observed: observation.map_or(0.0, |seen| seen.observed),
                    target: observation.map_or(0, |seen| seen.target),
                    decided_at: decided.at,
                    last_change: decided
                        .last_change
                        .map(|(decision, _)| decision.to_string())
                        .unwrap_or_default(),
                    changed_at: decided.last_change.map(|(_, at)| at),
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_operator_did_not_choose_is_built_in() {
        let chosen = tram_cli::settings::Scaling {
            down_window: Some(900),
            tolerance: Some(0),
            ..tram_cli::settings::Scaling::default()
        };
        let policy = policy(&chosen);
        assert_eq!(policy.down_window_for(None), Duration::from_secs(900));
        assert_eq!(policy.tolerance_percent, 0);
        assert_eq!(policy.burst_window, autoscale::Policy::default().burst_window);
    }
}
