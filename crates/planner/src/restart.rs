//! When a replica that failed is tried again.
//!
//! The back-off is read off the replica's ended instances, so it survives a restart of the control plane without a
//! counter of its own. It doubles from one second to five minutes and starts anew after a healthy while.

use std::time::Duration;

use tram_types::{Timestamp, status::InstanceStatus};

use crate::{
    policy::Policy,
    reason::Reason,
    view::{Instance, Region},
};

/// Doublings after which the longest wait is reached whatever the policy: keeps the shift below 32.
const DOUBLINGS_MAX: u32 = 20;

/// Whether a replica may be started.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Verdict {
    /// It has not failed lately.
    Start,
    /// It failed and has waited long enough.
    TryAgain { attempt: u32, cause: String },
    /// It failed and waits.
    Wait {
        until: Timestamp,
        delay: Duration,
        attempt: u32,
        cause: String,
    },
}

/// How an instance ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// On purpose.
    Ordered,
    /// From outside: its machine went down.
    Interrupted,
    /// By itself.
    Failed,
}

fn end(instance: &Instance) -> Option<End> {
    match instance.status {
        InstanceStatus::Error => Some(End::Failed),
        InstanceStatus::Stopped if instance.messages.is_empty() => Some(End::Ordered),
        InstanceStatus::Stopped => Some(End::Interrupted),
        _ => None,
    }
}

/// The ended instances of a replica, newest first.
fn ended(region: &Region, replica: u32) -> Vec<(&Instance, End)> {
    let mut ended: Vec<(&Instance, End)> = region
        .instances
        .iter()
        .filter(|instance| instance.replica_index == replica)
        .filter_map(|instance| Some((instance, end(instance)?)))
        .collect();
    ended.sort_by_key(|(instance, _)| {
        std::cmp::Reverse((instance.created_at, instance.ended_at, instance.id))
    });
    ended
}

/// Runs of the replica in a row that failed by themselves, newest first.
fn failures(region: &Region, replica: u32) -> u32 {
    let ended = ended(region, replica);
    let failed = ended.iter().filter(|(_, end)| *end == End::Failed).count();
    u32::try_from(failed).unwrap_or(u32::MAX)
}

/// The cause of the last failure, if the replica failed last; one that is being stopped for it counts.
pub(crate) fn last_failure(region: &Region, replica: u32) -> Option<String> {
    let failing = region.instances.iter().filter(|instance| {
        instance.replica_index == replica
            && instance.status == InstanceStatus::Stopping
            && !instance.messages.is_empty()
    });
    if let Some(failing) = failing.max_by_key(|instance| instance.created_at) {
        return Some(cause(failing));
    }
    let (instance, end) = ended(region, replica).into_iter().next()?;
    (end != End::Ordered).then(|| cause(instance))
}

fn cause(instance: &Instance) -> String {
    instance.messages.join("; ")
}

/// Whether the replica may be started now.
pub(crate) fn verdict(region: &Region, replica: u32, policy: &Policy, now: Timestamp) -> Verdict {
    let ended = ended(region, replica);
    let mut in_a_row = 0u32;
    for (instance, end) in &ended {
        let healthy_for = match (instance.healthy_at, instance.ended_at) {
            (Some(healthy), Some(ended)) => ended.since(healthy),
            _ => Duration::ZERO,
        };
        let lived_well = healthy_for >= policy.healthy_resets;
        match end {
            End::Ordered => break,
            End::Interrupted if lived_well => break,
            End::Interrupted | End::Failed => in_a_row += 1,
        }
        if lived_well {
            break;
        }
    }
    let Some((last, end)) = ended.first().filter(|_| in_a_row > 0) else {
        return Verdict::Start;
    };
    if in_a_row == 1 && *end == End::Interrupted {
        // Somebody may be waiting for it, and it did nothing wrong. Again and again would be another matter.
        return Verdict::TryAgain {
            attempt: 2,
            cause: cause(last),
        };
    }
    let doublings = (in_a_row - 1).min(DOUBLINGS_MAX);
    let delay = policy
        .restart_delay_min
        .saturating_mul(1 << doublings)
        .min(policy.restart_delay_max);
    let (attempt, cause) = (in_a_row + 1, cause(last));
    let since = last.ended_at.unwrap_or(last.created_at);
    let until = since.plus(delay);
    // An end in the future means that the clock was set back: trying too early beats waiting for an hour.
    if now < until && now >= since {
        Verdict::Wait {
            until,
            delay,
            attempt,
            cause,
        }
    } else {
        Verdict::TryAgain { attempt, cause }
    }
}

/// Why a deployment that was never healthy should be given up, if it should.
pub(crate) fn exhausted(region: &Region, policy: &Policy) -> Option<Reason> {
    let replicas: std::collections::BTreeSet<u32> = region
        .instances
        .iter()
        .map(|instance| instance.replica_index)
        .collect();
    replicas.into_iter().find_map(|replica| {
        let failed = failures(region, replica);
        let cause = last_failure(region, replica).filter(|_| failed >= policy.start_attempts)?;
        Some(Reason::Failed(format!(
            "replica {replica} failed {failed} times in a row; the last time: {cause}"
        )))
    })
}
