//! How much may pass in how much time.

use std::time::{Duration, Instant};

/// A bucket that fills at a rate up to a burst; what is taken must be there.
#[derive(Debug)]
pub(crate) struct TokenBucket {
    tokens: u64,
    capacity: u64,
    per_second: u64,
    filled_at: Instant,
}

impl TokenBucket {
    pub(crate) fn new(per_second: u64, burst: u64, now: Instant) -> Self {
        let capacity = burst.max(1);
        Self {
            tokens: capacity,
            capacity,
            per_second: per_second.max(1),
            filled_at: now,
        }
    }

    /// Take as much, or nothing. More than the whole bucket passes when the bucket is full.
    pub(crate) fn take(&mut self, amount: u64, now: Instant) -> bool {
        self.fill(now);
        let amount = amount.min(self.capacity);
        if self.tokens < amount {
            return false;
        }
        self.tokens -= amount;
        true
    }

    /// How long until so much is there.
    pub(crate) fn wait_for(&mut self, amount: u64, now: Instant) -> Duration {
        self.fill(now);
        let missing = amount.min(self.capacity).saturating_sub(self.tokens);
        let nanos = u128::from(missing) * 1_000_000_000 / u128::from(self.per_second);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    fn fill(&mut self, now: Instant) {
        let nanos = now.saturating_duration_since(self.filled_at).as_nanos();
        let gained = u64::try_from(nanos * u128::from(self.per_second) / 1_000_000_000).unwrap_or(u64::MAX);
        if gained > 0 {
            // A fraction of a token is lost only when at least one was gained.
            self.tokens = self.tokens.saturating_add(gained).min(self.capacity);
            self.filled_at = now;
        }
    }
}
