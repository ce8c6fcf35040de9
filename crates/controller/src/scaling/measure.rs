//! Asks the sites what instances use, for the deployments that are scaled on it.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt, stream};
use tokio_util::sync::CancellationToken;
use tram_planner::autoscale::Sample;
use tram_types::{DeploymentId, ServiceId};

use super::{Measured, Scaling};
use crate::Deps;

/// Between two rounds: five of them in the window that tells a burst, and a read of two small files for each instance.
const PERIOD: Duration = Duration::from_secs(2);
/// Instances asked at a time: a site that hangs must not hold up the round of all others for long.
const AT_A_TIME: usize = 16;
/// Longest wait for one answer. An instance without one is not measured in this round.
const PATIENCE: Duration = Duration::from_secs(1);

/// One deployment in one region, and whom to ask about it.
struct Round {
    service: ServiceId,
    deployment: DeploymentId,
    region: String,
    instances: Vec<Measured>,
}

impl Scaling {
    /// Whom to ask. Instances in their first seconds are left out.
    fn rounds(&self) -> Vec<Round> {
        let now = self.clock.now();
        let state = self.lock();
        let mut rounds = Vec::new();
        for (service, it) in &state.services {
            for known in &it.regions {
                let subject = &known.subject;
                if !subject.scale.targets.needs_usage() || subject.manual.is_some() {
                    continue;
                }
                let grown = |it: &&Measured| now.since(it.healthy_at) >= self.policy.usage_grace;
                rounds.push(Round {
                    service: *service,
                    deployment: subject.deployment,
                    region: subject.region.clone(),
                    instances: subject.healthy.iter().filter(grown).copied().collect(),
                });
            }
        }
        rounds
    }

    fn measured(&self, round: &Round, samples: &[Sample]) {
        let now = self.clock.now();
        let mut state = self.lock();
        let known = state.services.get_mut(&round.service).and_then(|service| {
            service.regions.iter_mut().find(|known| {
                known.subject.deployment == round.deployment && known.subject.region == round.region
            })
        });
        if let Some(known) = known {
            known.usage.record(now, samples, &self.policy);
        }
    }
}

/// Measures, until `cancel`.
pub(crate) async fn measure(scaling: Arc<Scaling>, deps: Deps, cancel: CancellationToken) {
    loop {
        let idle = scaling.is_idle();
        let next = async {
            if idle {
                scaling.measuring.notified().await;
            }
            // Tests let the clock's ticks come faster than in life, and the rounds with them.
            tokio::time::sleep(PERIOD.min(deps.settings.tick.saturating_mul(2))).await;
        };
        tokio::select! {
            () = cancel.cancelled() => return,
            () = next => {}
        }
        let all = async {
            for round in scaling.rounds() {
                let samples = ask(&deps, &round).await;
                scaling.measured(&round, &samples);
            }
        };
        tokio::select! {
            () = cancel.cancelled() => return,
            () = all => {}
        }
    }
}

async fn ask(deps: &Deps, round: &Round) -> Vec<Sample> {
    let Some(site) = deps.sites.for_region(&round.region) else {
        return Vec::new();
    };
    let answers = round.instances.iter().copied().map(|measured| {
        let site = Arc::clone(site);
        async move {
            let usage = tokio::time::timeout(PATIENCE, site.usage(measured.instance));
            let usage = usage.await.ok()?.ok()?;
            Some(Sample {
                instance: measured.instance,
                cpu_usec: usage.cpu_usec,
                cpu_limit_usec: measured.cpu_limit_usec,
                memory_bytes: usage.memory_bytes,
                memory_limit_bytes: measured.memory_limit_bytes,
            })
        }
    });
    let answers: Vec<_> = answers.collect();
    let mut answers = stream::iter(answers).buffer_unordered(AT_A_TIME);
    let mut samples = Vec::new();
    while let Some(answer) = answers.next().await {
        samples.extend(answer);
    }
    samples
}
