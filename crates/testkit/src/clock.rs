//! A clock that tests move by hand, backwards included.
//!
//! Cheap to clone: every clone shows the same time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use tram_types::{Clock, Timestamp};

/// 2026-01-01T00:00:00Z: a start that is neither the epoch nor today, so that neither hides a mistake.
const START_MICROS: i64 = 1_767_225_600_000_000;

/// A clock that stands still until it is moved.
#[derive(Debug, Clone)]
pub struct FakeClock {
    micros: Arc<AtomicI64>,
    /// Every look moves the clock on by so much.
    step_micros: Arc<AtomicI64>,
}

impl Default for FakeClock {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeClock {
    /// A clock at 2026-01-01T00:00:00Z.
    #[must_use]
    pub fn new() -> Self {
        Self::at(Timestamp::from_micros(START_MICROS))
    }

    /// A clock at `now`.
    #[must_use]
    pub fn at(now: Timestamp) -> Self {
        Self {
            micros: Arc::new(AtomicI64::new(now.as_micros())),
            step_micros: Arc::default(),
        }
    }

    /// Moves the clock on.
    pub fn advance(&self, by: Duration) {
        let by = i64::try_from(by.as_micros()).unwrap_or(i64::MAX);
        self.micros.fetch_add(by, Ordering::SeqCst);
    }

    /// Makes every look at the clock move it on by `step`, so that no two looks see the same time.
    pub fn set_step(&self, step: Duration) {
        let step = i64::try_from(step.as_micros()).unwrap_or(i64::MAX);
        self.step_micros.store(step, Ordering::SeqCst);
    }

    /// Sets the clock, also to the past: clocks do jump.
    pub fn set(&self, now: Timestamp) {
        self.micros.store(now.as_micros(), Ordering::SeqCst);
    }
}

impl Clock for FakeClock {
    fn now(&self) -> Timestamp {
        let step = self.step_micros.load(Ordering::SeqCst);
        Timestamp::from_micros(self.micros.fetch_add(step, Ordering::SeqCst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_show_the_same_time() {
        let clock = FakeClock::new();
        let other = clock.clone();
        let before = clock.now();
        other.advance(Duration::from_secs(3));
        assert_eq!(clock.now().since(before), Duration::from_secs(3));
        clock.set(Timestamp::EPOCH);
        assert_eq!(other.now(), Timestamp::EPOCH);
        clock.set_step(Duration::from_micros(1));
        assert!(other.now() < clock.now());
    }
}
