//! Who is next, and who gives way to whom.

use std::cmp::Reverse;
use std::collections::VecDeque;

use super::tenants::Tenants;
use super::{Entry, Running, TenantId};

/// The waiting request that is next: the most urgent, of the tenant that was served least (and runs least, where that is
/// the same), the first that came.
pub(super) fn next(waiting: &VecDeque<Entry>, running: &[Running], tenants: &Tenants) -> Option<usize> {
    let order = |entry: &Entry| {
        let runs = running
            .iter()
            .filter(|job| job.entry.tenant == entry.tenant)
            .count();
        (Reverse(entry.priority), tenants.served(entry.tenant), runs)
    };
    (0..waiting.len()).min_by_key(|&at| order(&waiting[at]))
}

/// Who leaves the batch when there is no room for its next tokens: the least urgent, of the tenant that was served
/// most, the last that came.
pub(super) fn out_of_room(running: &[Running], tenants: &Tenants) -> Option<usize> {
    (0..running.len()).min_by_key(|&at| {
        let job = &running[at];
        let served = tenants.served(job.entry.tenant);
        (job.entry.priority, Reverse(served), Reverse(job.since))
    })
}

/// Who leaves the batch for one that waits: someone less urgent, or someone of a tenant that has more than its share of
/// the slots when the candidate's has less. A share that both keep to afterwards: they never take turns at giving way.
pub(super) fn gives_way(
    candidate: &Entry,
    running: &[Running],
    tenants: &Tenants,
    slots: usize,
    step: u64,
) -> Option<usize> {
    let taken = |tenant: TenantId| -> usize {
        let its = running.iter().filter(|job| job.entry.tenant == tenant);
        its.map(|job| job.entry.slots).sum()
    };
    let share = (slots / tenants.count().max(1)).max(1);
    let below = taken(candidate.tenant) + candidate.slots <= share;
    let may = |job: &Running| {
        // Who has just come in has not even begun.
        let settled = job.since < step;
        let same = job.entry.tenant == candidate.tenant;
        let less_urgent = job.entry.priority < candidate.priority;
        let as_urgent = job.entry.priority == candidate.priority;
        let over = taken(job.entry.tenant) >= share + job.entry.slots;
        settled && (less_urgent || (as_urgent && !same && below && over))
    };
    (0..running.len())
        .filter(|&at| may(&running[at]))
        .min_by_key(|&at| {
            let job = &running[at];
            let over = taken(job.entry.tenant);
            (job.entry.priority, Reverse(over), Reverse(job.since))
        })
}
