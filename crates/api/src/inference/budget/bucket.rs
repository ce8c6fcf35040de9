//! A level that fills up all the time and is taken from: so much a minute, at most a minute's worth at once.

use std::time::Duration;

use tram_types::Timestamp;

/// The time in which it fills up.
const MINUTE_SECONDS: f64 = 60.0;

/// What is left of a minute's worth. Below zero when more was taken than was there.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Bucket {
    level: f64,
    at: Timestamp,
}

/// A whole number as it is reckoned with here.
#[expect(clippy::cast_precision_loss, reason = "limits beyond 2⁵³ a minute are none")]
const fn float(number: u64) -> f64 {
    number as f64
}

impl Bucket {
    /// A full one.
    pub(super) const fn full(a_minute: u64, now: Timestamp) -> Self {
        Self {
            level: float(a_minute),
            at: now,
        }
    }

    /// Fills up to now, at this rate. A clock that jumps back adds nothing.
    pub(super) fn fill(&mut self, a_minute: u64, now: Timestamp) {
        let most = float(a_minute);
        let more = now.since(self.at).as_secs_f64() * most / MINUTE_SECONDS;
        self.level = (self.level + more).min(most);
        self.at = now;
    }

    /// How long until so much is there; zero when it is. Of more than a minute's worth, a minute's worth.
    pub(super) fn wait(&self, wanted: u64, a_minute: u64) -> Duration {
        let missing = float(wanted.min(a_minute)) - self.level;
        if missing <= 0.0 || a_minute == 0 {
            return Duration::ZERO;
        }
        let seconds = missing * MINUTE_SECONDS / float(a_minute);
        // A level below zero by all tokens of the world is still a finite time.
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }

    pub(super) fn take(&mut self, much: u64) {
        self.level -= float(much);
    }

    pub(super) fn give_back(&mut self, much: u64, a_minute: u64) {
        self.level = (self.level + float(much)).min(float(a_minute));
    }

    /// What is there, in whole ones.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "never below zero here, and never above the limit"
    )]
    pub(super) fn left(&self) -> u64 {
        self.level.max(0.0) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_fills_up_all_the_time_and_never_runs_over() {
        let now = Timestamp::from_micros(1_000_000_000);
        let mut bucket = Bucket::full(60, now);
        bucket.take(60);
        assert_eq!((bucket.left(), bucket.wait(1, 60)), (0, Duration::from_secs(1)));
        bucket.fill(60, now.plus(Duration::from_millis(500)));
        assert_eq!(bucket.wait(1, 60), Duration::from_millis(500));
        bucket.fill(60, now.plus(Duration::from_secs(10)));
        assert_eq!(bucket.left(), 10);
        bucket.fill(60, now);
        assert_eq!(bucket.left(), 10, "the clock jumped back");
        bucket.fill(60, now.plus(Duration::from_secs(1000)));
        assert_eq!(bucket.left(), 60);
        bucket.give_back(5, 60);
        assert_eq!(bucket.left(), 60);
    }

    #[test]
    fn more_than_a_minutes_worth_waits_for_a_full_one() {
        let now = Timestamp::EPOCH;
        let mut bucket = Bucket::full(100, now);
        assert_eq!(bucket.wait(1000, 100), Duration::ZERO);
        bucket.take(1000);
        assert_eq!(bucket.wait(1000, 100), Duration::from_secs(600));
        assert_eq!(bucket.wait(u64::MAX, 0), Duration::ZERO);
    }
}
