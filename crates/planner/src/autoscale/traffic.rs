//! What the data plane reports of one service, as averages.
//!
//! Reports carry what is in flight now and running totals; a report is sent when the service goes busy or idle and
//! each second while it is busy. What was in flight is held to the next report. Totals that run backwards, or a lost
//! link, make everything unknown again: an unknown load is not no load.

use std::{collections::VecDeque, time::Duration};

use tram_types::Timestamp;

use super::{Average, Policy, ResponseTime, window::Series};

/// A report that is not later than this is on its way and not missing: they come each second.
const LATE: Duration = Duration::from_millis(1500);
/// A burst is told from at least so much of its window.
const BURST_LEAST: Duration = Duration::from_millis(900);

/// One report of the data plane.
#[derive(Debug, Clone, Copy)]
pub struct Reading<'a> {
    /// Requests, streams and connections being served.
    pub in_flight: u64,
    /// Callers that wait for an instance.
    pub queued: u64,
    /// Requests that came since the data plane started; `None`: not told.
    pub arrivals: Option<u64>,
    /// Upper bounds of the buckets below in microseconds; the last bucket has none.
    pub latency_bounds_us: &'a [u64],
    /// Answers by the time to their head since the data plane started, not cumulative. Empty: not told.
    pub latency_counts: &'a [u64],
}

/// The traffic of one service over the last while.
#[derive(Debug, Clone)]
pub struct Traffic {
    last: Option<Last>,
    concurrency: Series,
    arrivals: Series,
    latency: VecDeque<(Timestamp, Vec<u64>)>,
    latency_window: Duration,
}

#[derive(Debug, Clone)]
struct Last {
    at: Timestamp,
    load: u64,
    arrivals: Option<u64>,
    counts: Vec<u64>,
    bounds_us: Vec<u64>,
}

impl Traffic {
    /// Nothing known yet.
    #[must_use]
    pub fn new(policy: &Policy) -> Self {
        Self {
            last: None,
            concurrency: Series::new(policy.concurrency_window.max(policy.burst_window)),
            arrivals: Series::new(policy.rate_window.max(policy.burst_window)),
            latency: VecDeque::new(),
            latency_window: policy.latency_window,
        }
    }

    /// Takes in a report that was true at `now`.
    pub fn record(&mut self, now: Timestamp, reading: Reading<'_>, policy: &Policy) {
        let backwards = self.last.as_ref().is_some_and(|last| {
            now < last.at
                || reading
                    .arrivals
                    .zip(last.arrivals)
                    .is_some_and(|(now, before)| now < before)
                || reading.latency_counts.len() < last.counts.len()
                || reading
                    .latency_counts
                    .iter()
                    .zip(&last.counts)
                    .any(|(now, before)| now < before)
        });
        if backwards {
            // The data plane or its clock began anew.
            *self = Self::new(policy);
        }
        if let Some(last) = &self.last {
            let len = now.since(last.at);
            if len > policy.stale && last.load > 0 {
                // Nobody knows what happened in between.
                *self = Self::new(policy);
            } else {
                self.concurrency.push(len, real(last.load));
                // What came before the first total was told is not known to have come just now.
                let came = reading.arrivals.zip(last.arrivals);
                let came = came.map_or(0, |(now, before)| now.saturating_sub(before));
                if !len.is_zero() {
                    self.arrivals.push(len, real(came) / len.as_secs_f64());
                }
                let answered: Vec<u64> = reading
                    .latency_counts
                    .iter()
                    .zip(&last.counts)
                    .map(|(now, before)| now.saturating_sub(*before))
                    .collect();
                self.note_latency(now, answered);
            }
        }
        self.last = Some(Last {
            at: now,
            load: reading.in_flight.saturating_add(reading.queued),
            arrivals: reading.arrivals,
            counts: reading.latency_counts.to_vec(),
            bounds_us: reading.latency_bounds_us.to_vec(),
        });
    }

    /// Keeps the answers of the last window, in as many parts as it has seconds at most.
    fn note_latency(&mut self, now: Timestamp, answered: Vec<u64>) {
        if answered.iter().any(|count| *count > 0) {
            match self.latency.back_mut() {
                Some((at, counts))
                    if now.since(*at) < Duration::from_secs(1) && counts.len() == answered.len() =>
                {
                    for (sum, more) in counts.iter_mut().zip(answered) {
                        *sum = sum.saturating_add(more);
                    }
                }
                _ => self.latency.push_back((now, answered)),
            }
        }
        let from = now.minus(self.latency_window);
        while self.latency.front().is_some_and(|(at, _)| *at <= from) {
            self.latency.pop_front();
        }
    }

    /// The time up to which something is known: the last report, or now when an idle service has nothing to report.
    fn known_until(&self, now: Timestamp, policy: &Policy) -> Option<(Duration, &Last)> {
        let last = self.last.as_ref()?;
        let silent = now.since(last.at);
        if silent <= LATE {
            Some((Duration::ZERO, last))
        } else if last.load == 0 {
            Some((silent, last))
        } else {
            (silent <= policy.stale).then_some((Duration::ZERO, last))
        }
    }

    fn average(&self, series: &Series, window: Duration, now: Timestamp, policy: &Policy) -> Option<Average> {
        let (silent, _) = self.known_until(now, policy)?;
        let covered = series.covered().saturating_add(silent);
        let mean = |window: Duration| {
            // An idle service is silent, and silence of an idle service is zero.
            let rest = window.saturating_sub(silent);
            let known = rest.min(series.covered());
            let whole = window.min(covered).as_secs_f64();
            if whole > 0.0 {
                series.mean(rest).unwrap_or(0.0) * known.as_secs_f64() / whole
            } else {
                0.0
            }
        };
        let peak = mean(policy.burst_window);
        let both = policy.burst_window.saturating_mul(2).min(covered);
        let earlier = both.saturating_sub(policy.burst_window).as_secs_f64();
        let burst = if earlier > 0.0 {
            let sum = mean(both) * both.as_secs_f64() - peak * policy.burst_window.as_secs_f64();
            peak.min((sum / earlier).max(0.0))
        } else {
            peak
        };
        (covered >= BURST_LEAST.min(policy.burst_window)).then(|| Average {
            peak,
            burst,
            stable: (covered >= window).then(|| mean(window)),
        })
    }

    /// Requests in flight and callers that wait, of the whole service.
    #[must_use]
    pub fn concurrency(&self, now: Timestamp, policy: &Policy) -> Option<Average> {
        self.average(&self.concurrency, policy.concurrency_window, now, policy)
    }

    /// Requests that come in a second, of the whole service.
    #[must_use]
    pub fn arrivals_per_second(&self, now: Timestamp, policy: &Policy) -> Option<Average> {
        self.average(&self.arrivals, policy.rate_window, now, policy)
    }

    /// The time in which `quantile` percent of the answers of the last window began.
    #[must_use]
    pub fn response_time(&self, quantile: u8, now: Timestamp, policy: &Policy) -> Option<ResponseTime> {
        let (silent, last) = self.known_until(now, policy)?;
        if self.concurrency.covered().saturating_add(silent) < policy.latency_window {
            return None;
        }
        let from = now.minus(policy.latency_window);
        let mut counts = vec![0u64; last.bounds_us.len() + 1];
        for (_, part) in self.latency.iter().filter(|(at, _)| *at > from) {
            for (sum, count) in counts.iter_mut().zip(part) {
                *sum = sum.saturating_add(*count);
            }
        }
        let requests: u64 = counts.iter().sum();
        Some(ResponseTime {
            millis: quantile_ms(&last.bounds_us, &counts, requests, quantile),
            requests,
        })
    }
}

/// The quantile of a histogram, with values spread evenly in each bucket as Prometheus does; those above the last
/// bound count as twice that bound.
fn quantile_ms(bounds_us: &[u64], counts: &[u64], requests: u64, quantile: u8) -> f64 {
    let rank = real(requests) * f64::from(quantile) / 100.0;
    let mut below = 0.0;
    let mut lower = 0.0;
    for (place, count) in counts.iter().enumerate() {
        let upper = bounds_us.get(place).map_or(lower * 2.0, |bound| real(*bound));
        let within = real(*count);
        if *count > 0 && below + within >= rank {
            return (lower + (upper - lower) * ((rank - below) / within).clamp(0.0, 1.0)) / 1000.0;
        }
        below += within;
        lower = upper;
    }
    0.0
}

/// A count as a real number; what is lost above 2^53 does not matter to an average.
#[expect(
    clippy::cast_precision_loss,
    reason = "an average of counts above 2^53 needs no units"
)]
fn real(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: [u64; 2] = [10_000, 100_000];

    fn reading(in_flight: u64, arrivals: u64, counts: &[u64]) -> Reading<'_> {
        Reading {
            in_flight,
            queued: 0,
            arrivals: Some(arrivals),
            latency_bounds_us: &BOUNDS,
            latency_counts: counts,
        }
    }

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_micros(1_767_225_600_000_000 + millis * 1000)
    }

    #[test]
    fn what_is_in_flight_is_held_to_the_next_report_and_never_falls_by_silence() {
        let policy = Policy::default();
        let mut traffic = Traffic::new(&policy);
        traffic.record(at(0), reading(0, 0, &[0, 0, 0]), &policy);
        assert_eq!(traffic.concurrency(at(0), &policy), None);
        traffic.record(at(20_000), reading(10, 10, &[0, 0, 0]), &policy);
        let idle = traffic.concurrency(at(20_000), &policy).unwrap();
        assert_eq!((idle.burst, idle.stable), (0.0, Some(0.0)));
        traffic.record(at(21_000), reading(10, 10, &[0, 0, 0]), &policy);
        let busy = traffic.concurrency(at(21_000), &policy).unwrap();
        assert_eq!((busy.peak, busy.burst), (10.0, 0.0));
        traffic.record(at(22_000), reading(10, 10, &[0, 0, 0]), &policy);
        assert_eq!(traffic.concurrency(at(22_000), &policy).unwrap().burst, 10.0);
        assert_eq!(traffic.concurrency(at(26_000), &policy).unwrap().burst, 10.0);
        assert_eq!(traffic.concurrency(at(28_000), &policy), None);
    }

    #[test]
    fn silence_of_an_idle_service_is_no_load() {
        let policy = Policy::default();
        let mut traffic = Traffic::new(&policy);
        traffic.record(at(0), reading(4, 0, &[]), &policy);
        traffic.record(at(1000), reading(4, 8, &[]), &policy);
        traffic.record(at(2000), reading(0, 16, &[]), &policy);
        assert_eq!(traffic.arrivals_per_second(at(2000), &policy).unwrap().burst, 8.0);
        let later = traffic.concurrency(at(60_000), &policy).unwrap();
        assert_eq!((later.burst, later.stable), (0.0, Some(0.0)));
        let later = traffic.arrivals_per_second(at(32_000), &policy).unwrap();
        assert_eq!((later.burst, later.stable), (0.0, None));
    }

    #[test]
    fn totals_that_run_backwards_are_of_another_data_plane() {
        let policy = Policy::default();
        let mut traffic = Traffic::new(&policy);
        traffic.record(at(0), reading(1, 100, &[]), &policy);
        traffic.record(at(1000), reading(1, 200, &[]), &policy);
        assert!(traffic.concurrency(at(1000), &policy).is_some());
        traffic.record(at(2000), reading(1, 3, &[]), &policy);
        assert_eq!(traffic.concurrency(at(2000), &policy), None);
    }

    #[test]
    fn the_quantile_is_of_the_answers_of_the_window_alone() {
        let policy = Policy::default();
        let mut traffic = Traffic::new(&policy);
        traffic.record(at(0), reading(1, 0, &[1000, 0, 0]), &policy);
        for second in 1..=20u64 {
            let slow = second * 10;
            let millis = i64::try_from(second).unwrap() * 1000;
            traffic.record(at(millis), reading(1, slow, &[1000, slow, 0]), &policy);
        }
        let time = traffic.response_time(50, at(20_000), &policy).unwrap();
        assert_eq!(time.requests, 100);
        assert!((time.millis - 55.0).abs() < 1.0, "{time:?}");
        assert!(traffic.latency.len() <= 11);
    }
}
