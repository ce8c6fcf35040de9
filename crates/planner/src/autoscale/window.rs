//! Averages over the last while, of values that come at any times.
//!
//! A [`Series`] holds segments: a value, and how long it held. Neighbours that are short are merged, so the number of
//! segments is bounded by the horizon and not by how often something is reported.

use std::{collections::VecDeque, time::Duration};

/// Segments are merged as long as they are not longer than this: the clock of the data plane's reports.
const GRAIN: Duration = Duration::from_secs(1);

/// A value that changes over time, as far back as its horizon.
#[derive(Debug, Clone)]
pub(crate) struct Series {
    segments: VecDeque<(Duration, f64)>,
    covered: Duration,
    horizon: Duration,
}

impl Series {
    /// One that remembers at least `horizon`.
    pub(crate) fn new(horizon: Duration) -> Self {
        Self {
            segments: VecDeque::new(),
            covered: Duration::ZERO,
            horizon,
        }
    }

    /// The value was `value` on average for `len` more.
    pub(crate) fn push(&mut self, len: Duration, value: f64) {
        if len.is_zero() {
            return;
        }
        self.covered = self.covered.saturating_add(len);
        match self.segments.back_mut() {
            Some((last, mean)) if last.saturating_add(len) <= GRAIN => {
                let whole = last.as_secs_f64() + len.as_secs_f64();
                *mean = (*mean * last.as_secs_f64() + value * len.as_secs_f64()) / whole;
                *last += len;
            }
            _ => self.segments.push_back((len, value)),
        }
        while let Some((oldest, _)) = self.segments.front() {
            if self.covered.saturating_sub(*oldest) < self.horizon {
                break;
            }
            self.covered -= *oldest;
            self.segments.pop_front();
        }
    }

    /// How much time is known.
    pub(crate) const fn covered(&self) -> Duration {
        self.covered
    }

    /// The mean over the last `window`, or over what is known of it; `None`: nothing is.
    pub(crate) fn mean(&self, window: Duration) -> Option<f64> {
        let mut left = window;
        let mut sum = 0.0;
        for (len, value) in self.segments.iter().rev() {
            let part = left.min(*len);
            sum += value * part.as_secs_f64();
            left -= part;
            if left.is_zero() {
                break;
            }
        }
        let known = window.saturating_sub(left);
        (!known.is_zero()).then(|| sum / known.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_mean_is_weighted_by_time_and_cuts_the_oldest_segment() {
        let mut series = Series::new(10 * SECOND);
        assert_eq!(series.mean(SECOND), None);
        series.push(4 * SECOND, 1.0);
        series.push(SECOND, 6.0);
        assert_eq!(series.mean(SECOND), Some(6.0));
        assert_eq!(series.mean(2 * SECOND), Some(3.5));
        assert_eq!(series.mean(60 * SECOND), Some(2.0));
    }

    #[test]
    fn however_often_it_is_told_it_stays_small() {
        let mut series = Series::new(10 * SECOND);
        for number in 0..100_000 {
            series.push(Duration::from_millis(7), f64::from(number % 2));
        }
        assert!(series.segments.len() <= 22, "{}", series.segments.len());
        assert!(series.covered() >= 10 * SECOND && series.covered() <= 12 * SECOND);
        assert!((series.mean(10 * SECOND).unwrap() - 0.5).abs() < 0.01);
    }
}
