//! Samples what instances use, and what those on disk take there, once a minute, for the metrics endpoints.

use std::{collections::HashMap, sync::Arc};

use tokio_util::sync::CancellationToken;
use tram_site::{InstancePhase, Sites, Usage};
use tram_store::Store;
use tram_types::{Clock, InstanceId, ServiceId, Timestamp, catalog::Catalog};

use crate::{
    figures::{Figures, SLOT},
    metrics::Metrics,
};

/// Samples until `stop`.
pub async fn run(
    sites: Sites,
    store: Store,
    catalog: Arc<Catalog>,
    clock: Arc<dyn Clock>,
    figures: Arc<Figures>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    let mut before: HashMap<InstanceId, (Timestamp, Usage)> = HashMap::new();
    let mut owners = HashMap::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(SLOT) => {}
        }
        let mut now_seen = HashMap::new();
        count_checkpoints(&sites, &store, &mut owners, &metrics).await;
        for (_, site) in sites.iter() {
            let Ok(observation) = site.observe().await else {
                continue;
            };
            for (id, _) in observation
                .instances
                .iter()
                .filter(|(_, seen)| matches!(seen.phase, InstancePhase::Running { .. }))
            {
                let (Ok(usage), Ok(instance)) = (site.usage(*id).await, store.instance_unscoped(*id).await)
                else {
                    continue;
                };
                let at = clock.now();
                if let Some((then, last)) = before.get(id) {
                    let cpu_millis = catalog
                        .instance_type(&instance.instance_type)
                        .map_or(1000, |kind| kind.cpu_millis);
                    figures.usage(
                        instance.service_id,
                        *id,
                        at,
                        cpu_percent(*last, usage, at.since(*then), cpu_millis),
                        usage.memory_bytes,
                    );
                }
                now_seen.insert(*id, (at, usage));
            }
        }
        before = now_seen;
    }
}

/// Tells the metrics what the checkpoints of each service take. `owners`: the services of those counted last, since
/// there may be thousands.
async fn count_checkpoints(
    sites: &Sites,
    store: &Store,
    owners: &mut HashMap<InstanceId, ServiceId>,
    metrics: &Metrics,
) {
    let mut known = HashMap::new();
    let mut taken: HashMap<ServiceId, u64> = HashMap::new();
    for (_, site) in sites.iter() {
        let sizes = match site.checkpoint_bytes().await {
            Ok(sizes) => sizes,
            Err(error) => {
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "cannot tell the size of checkpoints"
                );
                // Old figures would pass for true ones, and none would pass for nothing.
                return metrics.forget_checkpoints();
            }
        };
        for (id, bytes) in sizes {
            let owner = match owners.get(&id) {
                Some(owner) => *owner,
                None => match store.instance_unscoped(id).await {
                    Ok(instance) => instance.service_id,
                    Err(_) => continue,
                },
            };
            known.insert(id, owner);
            *taken.entry(owner).or_default() += bytes;
        }
    }
    *owners = known;
    metrics.set_checkpoints(&taken);
}

/// Processor time of a span as percent of what the instance type may use.
fn cpu_percent(before: Usage, now: Usage, span: std::time::Duration, cpu_millis: u32) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a figure for a graph")]
    let used = now.cpu_usec.saturating_sub(before.cpu_usec) as f64;
    #[expect(clippy::cast_precision_loss, reason = "a figure for a graph")]
    let allowed = span.as_micros() as f64 * f64::from(cpu_millis) / 1000.0;
    if allowed > 0.0 {
        used / allowed * 100.0
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn percent_is_of_the_instance_type() {
        let usage = |cpu_usec| Usage {
            cpu_usec,
            memory_bytes: 0,
            pids: 1,
        };
        let percent = cpu_percent(usage(0), usage(250_000), Duration::from_secs(1), 500);
        assert!((percent - 50.0).abs() < 1e-9);
        assert_eq!(cpu_percent(usage(5), usage(1), Duration::ZERO, 500), 0.0);
    }
}
