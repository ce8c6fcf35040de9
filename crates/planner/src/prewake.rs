//! When a service is worth keeping awake, learned from how long it was idle before.
//!
//! A service that was called after 30 minutes of idleness again and again will probably be called after 30 minutes
//! once more. [`Pattern`] counts idle times by the minute; its hazard is the chance that a service which has been idle
//! for so long is called in the coming minute. Keeping it awake for that minute is worth its memory when the chance
//! times the price of a slow wake exceeds it. That one rule keeps a service awake while calls are likely, lets it
//! sleep when they are not, wakes it before the next one is due, and chooses between depths of sleep: a depth that
//! costs a share of the memory is worth it at that share of the chance.
//!
//! The operator sets the price: [`Budget::minutes_per_slow_wake`] minutes of an awake service are given, on average,
//! to spare one slow wake. What has not been seen is believed to be called ever more rarely: the prior hazard falls as
//! `prior / minute`, as in the Azure Functions trace of 2019, where the share of idle times beyond T falls about as
//! T to the power of -0.8. How much that belief weighs follows Good and Turing ("The population frequencies of species",
//! Biometrika 1953): the chance of something new is told by how much was seen exactly once. A service whose idle times
//! repeat is trusted after a few of them; one whose idle times all differ goes on like a new one, with a time-out.
//!
//! Pure, like the rest of the planner. The simulator compares it with fixed time-outs and with the hybrid histogram
//! of Shahrad et al., "Serverless in the Wild", ATC 2020 (docs/concepts/simulator.md).

use std::{ops::Range, time::Duration};

/// Idle times are told apart up to this many minutes: eight hours hold what repeats within a working day, in about
/// one KiB a service. Longer ones count as "longer".
const BINS: usize = 480;
/// Minutes looked ahead at most: a week. A service that slept for longer is nobody's daily habit.
const HORIZON_MINUTES: u32 = 7 * 24 * 60;
/// Minutes awake that one slow wake is worth when the operator does not say: with it the Azure trace costs as much
/// memory as with a time-out of eight minutes, at less than half of the slow wakes of ten.
const MINUTES_PER_SLOW_WAKE: f64 = 40.0;
/// The prior weighs as much as so many idle times, and as many more for each minute that was seen exactly once. On the
/// Azure trace 0.1 trusts chance, 1 trusts nobody, and what lies between hardly differs.
const CONFIDENCE: f64 = 0.25;
/// Chance in minute m before anything was seen: this over m.
const PRIOR: f64 = 0.8;
/// Share of a neighbouring minute's count that counts here: calls on a schedule come a little early or late.
const NEIGHBOUR: f64 = 0.5;
/// Idle times that make a habit: two that are alike may be chance.
const SEEN_MIN: u64 = 3;
/// A service sleeps for so many minutes at least before it is woken for a call that nobody made: for less it is not
/// worth a stop and a start.
const SLEEPS_MIN: u32 = 2;
/// Seconds in a minute.
const MINUTE_SECONDS: u64 = 60;

/// What sparing slow wakes may cost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Budget {
    /// Minutes of an awake service that may be spent to spare one slow wake. 0 spends nothing; the range that makes
    /// sense is 1 to 1,000.
    pub minutes_per_slow_wake: f64,
    /// How many idle times the prior weighs as much as, for each minute seen exactly once and one more; above 0.
    pub confidence: f64,
    /// The prior's chance in the first minute, between 0 and 1.
    pub prior: f64,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            minutes_per_slow_wake: MINUTES_PER_SLOW_WAKE,
            confidence: CONFIDENCE,
            prior: PRIOR,
        }
    }
}

impl Budget {
    /// The default with another price.
    #[must_use]
    pub fn of(minutes_per_slow_wake: f64) -> Self {
        Self {
            minutes_per_slow_wake,
            ..Self::default()
        }
    }
}

/// How long a service was idle between calls, counted by the minute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    /// `bins[m]`: idle times of m whole minutes; the last one holds all that are longer.
    bins: Vec<u16>,
}

impl Default for Pattern {
    fn default() -> Self {
        Self {
            bins: vec![0; BINS + 1],
        }
    }
}

impl Pattern {
    /// Counts one idle time that has ended with a call. When a count is full all are halved, so that old habits fade.
    pub fn learn(&mut self, idle: Duration) {
        let minute = usize::try_from(idle.as_secs() / MINUTE_SECONDS).unwrap_or(usize::MAX);
        let count = &mut self.bins[minute.min(BINS)];
        *count = count.saturating_add(1);
        if *count == u16::MAX {
            for bin in &mut self.bins {
                *bin /= 2;
            }
        }
    }

    /// How many idle times are counted.
    #[must_use]
    pub fn seen(&self) -> u64 {
        self.bins.iter().map(|count| u64::from(*count)).sum()
    }

    /// The minutes of idleness, the first being 0, in which keeping `share` of an awake service's memory is worth it;
    /// `share` is above 0, and 1 means awake. The ranges are in order, do not touch, and end within a week.
    #[must_use]
    pub fn worth_keeping(&self, budget: &Budget, share: f64) -> Vec<Range<u32>> {
        let mut kept: Vec<Range<u32>> = Vec::new();
        let mut left = self.seen() as f64;
        let once = self.bins.iter().filter(|count| **count == 1).count() as f64;
        let doubt = budget.confidence * (1.0 + once);
        let worth = |chance: f64| chance * budget.minutes_per_slow_wake >= share;
        for (minute, index) in (0u32..).zip(0..BINS) {
            let chance = self.chance(index, left, doubt, budget.prior);
            left -= self.count(index);
            if worth(chance) {
                match kept.last_mut() {
                    Some(last) if last.end == minute => last.end = minute + 1,
                    _ => kept.push(minute..minute + 1),
                }
            }
        }
        // Beyond the bins only the prior is left, which falls: one last minute is worth it.
        let first = u32::try_from(BINS).unwrap_or(u32::MAX);
        let end = (first..=HORIZON_MINUTES)
            .find(|minute| !worth(budget.prior / f64::from(minute + 1)))
            .unwrap_or(HORIZON_MINUTES);
        if end > first {
            match kept.last_mut() {
                Some(last) if last.end == first => last.end = end,
                _ => kept.push(first..end),
            }
        }
        kept
    }

    /// The minute of idleness, not before `from`, in which to wake the service although nobody called, when it then stays
    /// awake for at least `stays` minutes: the first that is worth it by itself, and after which the chance of a call
    /// within the whole stay is worth the whole. `None`: none within the minutes that are told apart, or too little was
    /// seen to say: a time-out has nothing to do with habits.
    #[must_use]
    pub fn wake_at(&self, budget: &Budget, from: u32, stays: u32) -> Option<u32> {
        if self.seen() < SEEN_MIN {
            return None;
        }
        let stays = stays.max(1);
        let once = self.bins.iter().filter(|count| **count == 1).count() as f64;
        let doubt = budget.confidence * (1.0 + once);
        let mut left = self.seen() as f64;
        let chances: Vec<f64> = (0..BINS)
            .map(|index| {
                let chance = self.chance(index, left, doubt, budget.prior);
                left -= self.count(index);
                chance
            })
            .collect();
        let first = usize::try_from(from).ok().filter(|from| *from < BINS)?;
        let whole = usize::try_from(stays).unwrap_or(BINS);
        let minute = (first..BINS).find(|minute| {
            let rest = &chances[*minute..BINS.min(minute + whole)];
            let none = rest.iter().map(|chance| 1.0 - chance.min(1.0)).product::<f64>();
            let price = budget.minutes_per_slow_wake;
            rest[0] * price >= 1.0 && (1.0 - none) * price >= f64::from(stays)
        })?;
        u32::try_from(minute).ok()
    }

    /// The same for a service that fell asleep after so much idle time and that would stay awake for `stays`: the minute
    /// of idleness in which to wake it. What the controller decides with, and the simulator.
    #[must_use]
    pub fn wake_after(&self, budget: &Budget, asleep: Duration, stays: Duration) -> Option<u32> {
        let minutes =
            |time: Duration| u32::try_from(time.as_secs().div_ceil(MINUTE_SECONDS)).unwrap_or(u32::MAX);
        self.wake_at(budget, minutes(asleep).saturating_add(SLEEPS_MIN), minutes(stays))
    }

    /// The chance that a service which has been idle for so long is called within the next `minutes`, from 0 to 1.
    #[must_use]
    pub fn chance_within(&self, budget: &Budget, idle: Duration, minutes: u32) -> f64 {
        let first = idle.as_secs() / MINUTE_SECONDS;
        let once = self.bins.iter().filter(|count| **count == 1).count() as f64;
        let doubt = budget.confidence * (1.0 + once);
        let begun = usize::try_from(first).unwrap_or(BINS).min(BINS);
        let mut left: f64 = self.bins[begun..].iter().map(|count| f64::from(*count)).sum();
        // Of the minute that it is in, what is left; and of the last one as much as is missing then.
        let part = (idle.as_secs_f64() / MINUTE_SECONDS as f64).fract();
        let last = first.saturating_add(u64::from(minutes));
        let none: f64 = (first..=last)
            .map(|minute| {
                let chance = match usize::try_from(minute) {
                    Ok(index) if index < BINS => {
                        let chance = self.chance(index, left, doubt, budget.prior);
                        left -= self.count(index);
                        chance
                    }
                    // Beyond what is told apart the prior is all there is.
                    _ => budget.prior / (minute as f64 + 1.0),
                };
                let share = match minute {
                    _ if first == last => 0.0,
                    _ if minute == first => 1.0 - part,
                    _ if minute == last => part,
                    _ => 1.0,
                };
                (1.0 - chance.min(1.0)).powf(share)
            })
            .product();
        1.0 - none
    }

    /// What was counted: minutes of idleness, and how often; the last minute stands for all that are longer.
    pub fn counts(&self) -> impl Iterator<Item = (u16, u16)> {
        let counts = (0u16..).zip(self.bins.iter().copied());
        counts.filter(|(_, count)| *count > 0)
    }

    /// What [`Pattern::counts`] gave once.
    #[must_use]
    pub fn of(counts: impl IntoIterator<Item = (u16, u16)>) -> Self {
        let mut pattern = Self::default();
        for (minute, count) in counts {
            pattern.bins[usize::from(minute).min(BINS)] = count;
        }
        pattern
    }

    fn count(&self, index: usize) -> f64 {
        self.bins.get(index).copied().map_or(0.0, f64::from)
    }

    /// The chance of a call in this minute of idleness, when `left` idle times lasted until it and the prior weighs as
    /// much as `doubt` of them.
    fn chance(&self, index: usize, left: f64, doubt: f64, prior: f64) -> f64 {
        let weight = left + doubt;
        let here = (self.count(index) + doubt * prior / (index + 1) as f64) / weight;
        let before = index.checked_sub(1).map_or(0.0, |before| self.count(before));
        // The bin beyond the last holds all that is longer, which is no neighbour.
        let after = if index + 1 < BINS {
            self.count(index + 1)
        } else {
            0.0
        };
        let spread = (self.count(index) + NEIGHBOUR * (before + after)) / (1.0 + 2.0 * NEIGHBOUR) / weight;
        here.max(spread)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn minutes(count: u64) -> Duration {
        Duration::from_secs(count * MINUTE_SECONDS)
    }

    fn learned(idle: impl IntoIterator<Item = u64>) -> Pattern {
        let mut pattern = Pattern::default();
        for one in idle {
            pattern.learn(minutes(one));
        }
        pattern
    }

    #[test]
    fn a_new_service_has_a_time_out() {
        let kept = Pattern::default().worth_keeping(&Budget::of(10.0), 1.0);
        let minutes: Vec<u32> = kept.into_iter().flatten().collect();
        let last = 7;
        assert_eq!(
            minutes.last(),
            Some(&last),
            "a chance of 0.8 / 8 at ten minutes a wake is the last worth it"
        );
        assert_eq!(minutes.len(), 8);
        assert!(Pattern::default().worth_keeping(&Budget::of(0.0), 1.0).is_empty());
    }

    #[test]
    fn one_on_a_schedule_sleeps_and_is_woken_before_its_call() {
        let kept = learned([30; 20]).worth_keeping(&Budget::of(10.0), 1.0);
        assert!(kept.iter().any(|range| range.contains(&30)), "{kept:?}");
        assert!(kept.iter().all(|range| !range.contains(&15)), "{kept:?}");
        assert!(kept.iter().all(|range| !range.contains(&60)), "{kept:?}");
    }

    #[test]
    fn who_calls_every_half_hour_is_woken_a_minute_before() {
        let pattern = learned([30; 6]);
        assert_eq!(pattern.wake_at(&Budget::of(10.0), 5, 5), Some(29));
        assert_eq!(pattern.wake_at(&Budget::of(10.0), 40, 5), None, "it is over");
        assert_eq!(
            pattern.wake_at(&Budget::of(10.0), 5, 20),
            None,
            "it would stay awake for more than a wake is worth"
        );
        assert_eq!(
            pattern.wake_at(&Budget::of(0.0), 5, 5),
            None,
            "nothing may be spent"
        );
        assert_eq!(
            learned([30; 2]).wake_at(&Budget::of(10.0), 5, 5),
            None,
            "no habit yet"
        );
    }

    #[test]
    fn who_has_two_habits_is_woken_for_both() {
        let pattern = learned([30, 120].repeat(10));
        let budget = Budget::of(20.0);
        assert_eq!(pattern.wake_at(&budget, 5, 5), Some(29));
        assert_eq!(pattern.wake_at(&budget, 36, 5), Some(119));
    }

    #[test]
    fn who_calls_at_random_is_not_woken_for_long() {
        let pattern = learned((0..40).map(|index| 20 + 11 * index));
        assert_eq!(pattern.wake_at(&Budget::of(10.0), 10, 5), None);
    }

    #[test]
    fn what_is_kept_comes_back() {
        let pattern = learned([0, 3, 3, 30, 479, 480, 9_999]);
        assert_eq!(Pattern::of(pattern.counts()), pattern);
        assert_eq!(pattern.counts().last(), Some((480, 2)));
    }

    #[test]
    fn a_full_count_halves_all() {
        let pattern = learned((0..70_000).map(|_| 5));
        assert!(pattern.seen() < u64::from(u16::MAX), "{}", pattern.seen());
    }

    #[test]
    fn the_chance_of_a_call_falls_with_idle_time_and_rises_before_a_habit() {
        let budget = Budget::default();
        let none = Pattern::default();
        let seconds = |idle| none.chance_within(&budget, Duration::from_secs(idle), 10);
        assert!(seconds(10) > seconds(20), "within a minute too");
        let within = |pattern: &Pattern, idle| pattern.chance_within(&budget, minutes(idle), 10);
        assert!(within(&none, 0) > within(&none, 5));
        assert!(within(&none, 5) > within(&none, 60));
        assert!(within(&none, 479) > within(&none, 900));
        let habit = learned([30; 10]);
        assert!(within(&habit, 25) > 0.9, "{}", within(&habit, 25));
        assert!(within(&habit, 5) < 0.2, "{}", within(&habit, 5));
        assert!(within(&habit, 40) > 0.0);
    }

    proptest! {
        #[test]
        fn a_chance_is_one(
            idle in prop::collection::vec(0u64..700, 0..60),
            been in 0u64..2000,
            ahead in 0u32..120,
        ) {
            let chance = learned(idle).chance_within(&Budget::default(), minutes(been), ahead);
            prop_assert!((0.0..=1.0).contains(&chance), "{chance}");
        }

        #[test]
        fn a_higher_price_and_a_smaller_share_keep_no_less(
            idle in prop::collection::vec(0u64..700, 0..60),
            price in 0.1f64..500.0,
            more in 0.0f64..500.0,
            share in 0.01f64..1.0,
        ) {
            let pattern = learned(idle);
            let few = pattern.worth_keeping(&Budget::of(price), 1.0);
            for wider in [
                pattern.worth_keeping(&Budget::of(price + more), 1.0),
                pattern.worth_keeping(&Budget::of(price), share),
            ] {
                for minute in few.iter().cloned().flatten() {
                    prop_assert!(wider.iter().any(|range| range.contains(&minute)), "{minute} in {wider:?}");
                }
            }
            prop_assert!(few.windows(2).all(|pair| pair[0].end < pair[1].start));
        }

        #[test]
        fn no_wake_costs_more_than_it_may(
            idle in prop::collection::vec(0u64..700, 0..60),
            price in 0.0f64..500.0,
            from in 0u32..700,
            stays in 0u32..120,
        ) {
            let pattern = learned(idle);
            if let Some(minute) = pattern.wake_at(&Budget::of(price), from, stays) {
                prop_assert!(minute >= from && minute < 480);
                prop_assert!(f64::from(stays) <= price, "not even a certain call is worth it");
                let kept = pattern.worth_keeping(&Budget::of(price), 1.0);
                prop_assert!(kept.iter().any(|range| range.contains(&minute)));
            }
        }
    }
}
