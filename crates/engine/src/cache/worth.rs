//! What a kept sequence is worth: how often it was used, aged by what went since.
//!
//! GreedyDual with frequency (Cherkasova, "Improving WWW Proxies Performance with Greedy-Dual-Size-Frequency Caching
//! Policy", 1998). Cost and size of a sequence are both its tokens, so they cancel out. The clock stands at the worth of
//! what went last: what was used often once and never since goes in its turn.

use std::cmp::Ordering;

#[derive(Debug, Default)]
pub(super) struct Clock {
    /// The worth of what went last.
    level: u64,
    /// Numbers the uses, so that among equals the one not used for longest goes.
    uses: u64,
}

impl Clock {
    pub(super) fn passed(&mut self, worth: Worth) {
        self.level = self.level.max(worth.level);
    }

    fn tick(&mut self) -> u64 {
        self.uses += 1;
        self.uses
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Worth {
    level: u64,
    uses: u64,
    last: u64,
}

impl Worth {
    pub(super) fn new(clock: &mut Clock) -> Self {
        Self {
            level: clock.level + 1,
            uses: 1,
            last: clock.tick(),
        }
    }

    pub(super) fn used(&mut self, clock: &mut Clock) {
        self.uses += 1;
        self.level = clock.level + self.uses;
        self.last = clock.tick();
    }
}

impl Ord for Worth {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.level, self.last).cmp(&(other.level, other.last))
    }
}

impl PartialOrd for Worth {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
