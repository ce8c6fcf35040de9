//! Whether a canary may go on: it stays healthy, and it does not fail more of its requests than the deployment that it
//! is tried beside.
//!
//! Shares of failures are compared and not held against a fixed bound: a service that always answers one request in
//! twenty with an error has a canary that does so too. With few requests a share says little, so each share counts with
//! the interval in which it lies in 99 of 100 cases, Wilson's (*Probable Inference, the Law of Succession, and
//! Statistical Inference*, Journal of the American Statistical Association 22, 1927). Only a canary whose whole interval
//! lies above that of the others is given up. What counts as a failure the data plane says: an error, no answer, and an
//! answer that is long overdue.

use tram_types::status::InstanceStatus;

use crate::{
    handover,
    view::{Deployment, Instance, ServiceView, Tally},
};

/// Fewer failures than this are no ground, however few requests there were: one client with a bad request may make some.
const FAILURES_MIN: u64 = 5;
/// Half the width of a 99 % interval, in standard deviations.
const DEVIATIONS: f64 = 2.576;

/// What is wrong with a canary that was healthy already.
pub(crate) fn trouble(view: &ServiceView, this: &Deployment) -> Option<String> {
    let was_healthy = |it: &&Instance| it.healthy_at.is_some() && !it.messages.is_empty();
    let sick = this.instances().filter(was_healthy).find(|instance| {
        matches!(
            instance.status,
            InstanceStatus::Unhealthy | InstanceStatus::Error | InstanceStatus::Stopping
        )
    });
    if let Some(sick) = sick {
        return Some(format!(
            "it was healthy and no longer is: {}",
            sick.messages.join("; ")
        ));
    }
    let tally = |deployment: &Deployment| deployment.instances().map(|it| it.tally).sum::<Tally>();
    let (canary, others) = (tally(this), tally(handover::predecessor(view, this)?));
    fails_more(canary, others).then(|| {
        format!(
            "{} of its {} requests failed, and {} of {} to the deployment that serves",
            canary.failures, canary.answers, others.failures, others.answers
        )
    })
}

/// Whether the canary's share of failures lies above the others', beyond what chance does.
fn fails_more(canary: Tally, others: Tally) -> bool {
    canary.failures >= FAILURES_MIN && interval(canary).0 > interval(others).1
}

/// Where the share of failures lies; anywhere from none to all when there was no request.
#[expect(
    clippy::cast_precision_loss,
    reason = "an estimate; nobody counts beyond 2^53 requests"
)]
fn interval(tally: Tally) -> (f64, f64) {
    if tally.answers == 0 {
        return (0.0, 1.0);
    }
    let n = tally.answers as f64;
    let share = tally.failures as f64 / n;
    let z2 = DEVIATIONS * DEVIATIONS;
    let middle = share + z2 / (2.0 * n);
    let half = DEVIATIONS * (share * (1.0 - share) / n + z2 / (4.0 * n * n)).sqrt();
    let scale = 1.0 + z2 / n;
    ((middle - half) / scale, (middle + half) / scale)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tally(failures: u64, answers: u64) -> Tally {
        Tally { answers, failures }
    }

    #[test]
    fn only_what_chance_does_not_do_is_held_against_a_canary() {
        // A release that breaks one path in four.
        assert!(fails_more(tally(10, 40), tally(2, 360)));
        assert!(fails_more(tally(5, 5), tally(0, 45)));
        // As bad as the one before.
        assert!(!fails_more(tally(20, 100), tally(180, 900)));
        // Too few to tell.
        assert!(!fails_more(tally(4, 4), tally(0, 1000)));
        assert!(!fails_more(tally(5, 500), tally(5, 1800)));
        // Nothing to compare with.
        assert!(!fails_more(tally(50, 50), tally(0, 0)));
    }

    proptest! {
        #[test]
        fn a_share_lies_in_its_interval(answers in 1_u64..100_000, failed in 0.0_f64..=1.0) {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "test figures")]
            let failures = (answers as f64 * failed) as u64;
            let (low, high) = interval(tally(failures, answers));
            #[expect(clippy::cast_precision_loss, reason = "test figures")]
            let share = failures as f64 / answers as f64;
            prop_assert!(low <= share + 1e-9 && share <= high + 1e-9, "{low} {share} {high}");
            prop_assert!((-1e-9..=1.0 + 1e-9).contains(&low) && (-1e-9..=1.0 + 1e-9).contains(&high));
        }

        #[test]
        fn equals_are_never_held_against_each_other(answers in 0_u64..100_000, failed in 0_u64..100_000) {
            let same = tally(failed.min(answers), answers);
            prop_assert!(!fails_more(same, same));
        }
    }
}
