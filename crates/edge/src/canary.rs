//! What tells a canary from the instances it is tried beside: which of the two a request asks for, and how their answers
//! turn out.
//!
//! The controller marks a canary's endpoints in the table. Only routes that have both kinds count answers and look for
//! the header, so that all other requests pay nothing for it.
//!
//! A program that hangs fails no request before the time-out, which may be long after the trial. So a request that waits
//! far longer than those to the instances beside the canary take counts as failed while it waits, and so does one whose
//! caller gave up on it. The same bound holds for all of them, canary or not.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName};

use crate::account::{LATENCY_BOUNDS_US, Latency};
use crate::pool::Endpoint;

/// Chooses the deployment that answers while two of them do: `canary`, or `prod` for the one that was there before.
/// Anything else is drawn as usual.
pub(crate) const X_DEPLOYMENT_GROUP: HeaderName = HeaderName::from_static("x-deployment-group");

/// Of the answers of the instances beside a canary, how many in a hundred came within what is taken for their longest
/// time: the tail that operators watch. With fewer than a hundred answers it is the longest.
const TAIL_PERCENT: u64 = 99;
/// How many times as long as that is late: between two versions of one program the tail differs by less, and the buckets
/// it is read from are up to two and a half times as wide as they are long.
const LATE_TIMES: u32 = 2;
/// Nothing waits for less than this and counts: the first requests to a program that has just started find cold caches
/// and compile its code.
const LATE_MIN: Duration = Duration::from_secs(10);
/// The same where the caller went away: who leaves sooner has other reasons than a long wait.
const LEFT_MIN: Duration = Duration::from_secs(1);
/// Not known: nothing is late.
const NEVER: u64 = u64::MAX;

/// One of the two deployments that answer while a canary is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Group {
    Stable,
    Canary,
}

impl Group {
    /// The one that a request asks for.
    pub(crate) fn asked(headers: &HeaderMap) -> Option<Self> {
        match headers.get(X_DEPLOYMENT_GROUP)?.as_bytes() {
            b"canary" => Some(Self::Canary),
            b"prod" => Some(Self::Stable),
            _ => None,
        }
    }
}

/// After what time without an answer a request is late, read off how soon the instances beside a canary answered.
/// `counts` are of the buckets of [`LATENCY_BOUNDS_US`]. `None`: nobody knows, since they answered nothing or took longer
/// than is told apart.
pub(crate) fn tail(counts: &[u64; LATENCY_BOUNDS_US.len() + 1]) -> Option<Duration> {
    let whole: u64 = counts.iter().sum();
    let mut within = 0;
    let bucket = counts.iter().position(|count| {
        within += count;
        whole > 0 && within.saturating_mul(100) >= whole.saturating_mul(TAIL_PERCENT)
    })?;
    LATENCY_BOUNDS_US
        .get(bucket)
        .map(|us| Duration::from_micros(*us).saturating_mul(LATE_TIMES))
}

/// How the requests to one instance turned out, while a canary is tried.
#[derive(Debug)]
pub(crate) struct Tally {
    answers: AtomicU64,
    failures: AtomicU64,
    /// How soon it answered those that it did answer.
    took: Latency,
    /// Since when requests wait for an answer; the number tells those of one moment apart.
    waiting: Mutex<BTreeSet<(Instant, u64)>>,
    numbers: AtomicU64,
    /// What [`tail`] said last, in microseconds.
    late_after_us: AtomicU64,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            answers: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            took: Latency::default(),
            waiting: Mutex::default(),
            numbers: AtomicU64::new(0),
            late_after_us: AtomicU64::new(NEVER),
        }
    }
}

impl Tally {
    /// Counts a request; `failed`: by the server's fault, or without an answer.
    pub(crate) fn count(&self, failed: bool) {
        self.answers.fetch_add(1, Relaxed);
        if failed {
            self.failures.fetch_add(1, Relaxed);
        }
    }

    /// Requests, and those of them that failed or are late by now.
    pub(crate) fn read(&self, now: Instant) -> (u64, u64) {
        let late = self.late_after(LATE_MIN).map_or(0, |bound| {
            let waiting = self.waiting();
            let over = waiting
                .iter()
                .take_while(|(since, _)| now.saturating_duration_since(*since) > bound);
            u64::try_from(over.count()).unwrap_or(u64::MAX)
        });
        // Failures first: never more of them than of requests.
        let failures = self.failures.load(Relaxed);
        (self.answers.load(Relaxed) + late, failures + late)
    }

    /// How soon it answered, by the buckets of [`LATENCY_BOUNDS_US`].
    pub(crate) fn took(&self) -> [u64; LATENCY_BOUNDS_US.len() + 1] {
        std::array::from_fn(|bucket| self.took.buckets[bucket].load(Relaxed))
    }

    /// Takes over what [`tail`] says now.
    pub(crate) fn set_tail(&self, tail: Option<Duration>) {
        let us = tail.and_then(|tail| u64::try_from(tail.as_micros()).ok());
        self.late_after_us.store(us.unwrap_or(NEVER), Relaxed);
    }

    /// Another trial begins. Requests that wait go on waiting.
    pub(crate) fn reset(&self) {
        self.failures.store(0, Relaxed);
        self.answers.store(0, Relaxed);
        self.took.buckets.iter().for_each(|it| it.store(0, Relaxed));
        self.late_after_us.store(NEVER, Relaxed);
    }

    fn late_after(&self, min: Duration) -> Option<Duration> {
        let us = self.late_after_us.load(Relaxed);
        (us != NEVER).then(|| Duration::from_micros(us).max(min))
    }

    fn waiting(&self) -> MutexGuard<'_, BTreeSet<(Instant, u64)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request on its way to an instance while a canary is tried. Dropped without an answer, its caller has left or the
/// time-out came.
#[derive(Debug)]
pub(crate) struct Trial {
    endpoint: Arc<Endpoint>,
    place: (Instant, u64),
    /// After what time its caller is told that it takes too long.
    time_out: Option<Duration>,
    told: bool,
}

impl Trial {
    /// `begun`: when the request came, which is what its time-out counts from.
    pub(crate) fn begin(endpoint: &Arc<Endpoint>, begun: Instant, time_out: Option<Duration>) -> Self {
        let place = (begun, endpoint.tally.numbers.fetch_add(1, Relaxed));
        endpoint.tally.waiting().insert(place);
        Self {
            endpoint: Arc::clone(endpoint),
            place,
            time_out,
            told: false,
        }
    }

    /// Notes the head of its answer, or that none will come.
    pub(crate) fn answered(mut self, failed: bool) {
        self.told = true;
        let tally = &self.endpoint.tally;
        tally.count(failed);
        tally.took.observe(self.place.0.elapsed());
    }

    /// It is sent again, and counts for wherever it goes then.
    pub(crate) fn moved(mut self) {
        self.told = true;
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        let tally = &self.endpoint.tally;
        tally.waiting().remove(&self.place);
        let waited = self.place.0.elapsed();
        let over = |bound: Option<Duration>| bound.is_some_and(|bound| waited >= bound);
        if !self.told && (over(self.time_out) || over(tally.late_after(LEFT_MIN))) {
            tally.count(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn endpoint() -> Arc<Endpoint> {
        Arc::new(Endpoint::new(Uuid::new_v4(), ([127, 0, 0, 1], 1).into(), 1))
    }

    /// When a request came that has waited for so long by now.
    fn ago(seconds: u64) -> Instant {
        Instant::now()
            .checked_sub(Duration::from_secs(seconds))
            .expect("the machine runs for longer")
    }

    fn counts(of: &[(usize, u64)]) -> [u64; LATENCY_BOUNDS_US.len() + 1] {
        let mut counts = [0; LATENCY_BOUNDS_US.len() + 1];
        for (bucket, count) in of {
            counts[*bucket] += count;
        }
        counts
    }

    #[test]
    fn the_tail_is_what_ninety_nine_of_a_hundred_stay_below() {
        assert_eq!(tail(&counts(&[])), None);
        assert_eq!(tail(&counts(&[(1, 99), (9, 1)])), Some(Duration::from_millis(2)));
        assert_eq!(tail(&counts(&[(1, 98), (9, 2)])), Some(Duration::from_secs(1)));
        // Slower than is told apart.
        assert_eq!(tail(&counts(&[(LATENCY_BOUNDS_US.len(), 1)])), None);
    }

    #[test]
    fn a_request_that_waits_for_too_long_counts_as_failed_until_it_is_answered() {
        let endpoint = endpoint();
        let long = Trial::begin(&endpoint, ago(11), None);
        let short = Trial::begin(&endpoint, ago(9), None);
        assert_eq!(
            endpoint.tally.read(Instant::now()),
            (0, 0),
            "nobody knows what is long"
        );
        endpoint.tally.set_tail(Some(Duration::from_millis(40)));
        assert_eq!(endpoint.tally.read(Instant::now()), (1, 1));
        endpoint.tally.set_tail(Some(Duration::from_secs(60)));
        assert_eq!(
            endpoint.tally.read(Instant::now()),
            (0, 0),
            "the others take as long"
        );
        endpoint.tally.set_tail(Some(Duration::from_millis(40)));
        long.answered(false);
        assert_eq!(endpoint.tally.read(Instant::now()), (1, 0));
        short.answered(true);
        assert_eq!(endpoint.tally.read(Instant::now()), (2, 1));
    }

    #[test]
    fn who_leaves_after_a_long_wait_counts_and_who_leaves_at_once_does_not() {
        let endpoint = endpoint();
        drop(Trial::begin(&endpoint, ago(5), None));
        assert_eq!(
            endpoint.tally.read(Instant::now()),
            (0, 0),
            "nobody knows what is long"
        );
        endpoint.tally.set_tail(Some(Duration::from_millis(40)));
        drop(Trial::begin(&endpoint, Instant::now(), None));
        assert_eq!(endpoint.tally.read(Instant::now()), (0, 0));
        drop(Trial::begin(&endpoint, ago(5), None));
        assert_eq!(endpoint.tally.read(Instant::now()), (1, 1));
        Trial::begin(&endpoint, ago(5), None).moved();
        assert_eq!(endpoint.tally.read(Instant::now()), (1, 1));
    }

    #[test]
    fn the_time_out_counts_whatever_the_others_take() {
        let endpoint = endpoint();
        drop(Trial::begin(&endpoint, ago(5), Some(Duration::from_secs(5))));
        assert_eq!(endpoint.tally.read(Instant::now()), (1, 1));
    }

    #[test]
    fn another_trial_begins_with_nothing() {
        let endpoint = endpoint();
        endpoint.tally.set_tail(Some(Duration::ZERO));
        Trial::begin(&endpoint, Instant::now(), None).answered(true);
        endpoint.tally.reset();
        let waits = Trial::begin(&endpoint, ago(20), None);
        assert_eq!(endpoint.tally.read(Instant::now()), (0, 0));
        assert_eq!(endpoint.tally.took().iter().sum::<u64>(), 0);
        drop(waits);
    }
}
