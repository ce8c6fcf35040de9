//! What happened, counted: the state of a service that outlives tables, and the guard that a request carries from
//! admission to the last byte of its answer.
//!
//! Written by every request, read by the control link and the metrics. The one choice to know: everything here is
//! an atomic, and a service tells the control link that it went busy or idle at most once until it was read.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use uuid::Uuid;

use crate::inference::Router;
use crate::wake;

/// Upper bounds of the latency buckets in microseconds; the last bucket has none. From a cached file on this
/// machine to a model that thinks.
pub(crate) const LATENCY_BOUNDS_US: [u64; 16] = [
    500, 1_000, 2_000, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000, 30_000_000, 60_000_000,
];

/// How requests call on the control link.
#[derive(Debug)]
pub(crate) struct Signals {
    /// Services that went busy or idle since the last look.
    changed: Mutex<Vec<Arc<Live>>>,
    /// Services that want a wake.
    wanted: Mutex<Vec<Arc<Live>>>,
    /// Woken when `changed` has something new.
    pub(crate) on_change: Notify,
    /// Woken when `wanted` has something new.
    pub(crate) on_wanted: Notify,
    /// What [`Live::last_activity`] counts from.
    pub(crate) epoch: Instant,
}

impl Signals {
    pub(crate) fn new() -> Self {
        Self {
            changed: Mutex::default(),
            wanted: Mutex::default(),
            on_change: Notify::new(),
            on_wanted: Notify::new(),
            epoch: Instant::now(),
        }
    }

    pub(crate) fn take_changed(&self) -> Vec<Arc<Live>> {
        let taken = std::mem::take(&mut *self.changed.lock().unwrap_or_else(PoisonError::into_inner));
        for live in &taken {
            live.listed.store(false, SeqCst);
        }
        taken
    }

    pub(crate) fn take_wanted(&self) -> Vec<Arc<Live>> {
        std::mem::take(&mut *self.wanted.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Asks the control link to have a service woken.
    pub(crate) fn want(&self, live: &Arc<Live>) {
        live.wakes.fetch_add(1, Relaxed);
        self.wanted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Arc::clone(live));
        self.on_wanted.notify_one();
    }
}

/// A service as the edge remembers it from table to table.
pub(crate) struct Live {
    pub(crate) id: Uuid,
    pub(crate) name: Box<str>,
    signals: Arc<Signals>,
    in_flight: AtomicU32,
    listed: AtomicBool,
    last_activity_ms: AtomicU64,
    pub(crate) arrivals: AtomicU64,
    pub(crate) bytes_in: AtomicU64,
    pub(crate) bytes_out: AtomicU64,
    /// Finished requests by the first digit of their status, 1xx first.
    pub(crate) classes: [AtomicU64; 5],
    pub(crate) latency: Latency,
    /// Callers who had to wait for a wake.
    pub(crate) holds: AtomicU64,
    /// Wake demands made.
    pub(crate) wakes: AtomicU64,
    pub(crate) queue: wake::Queue,
    /// The version of the table under which its sleeping instances answer; zero: none.
    open_under: AtomicU64,
    /// Its wake waits for memory, as the newest table says.
    pub(crate) waits_for_memory: AtomicBool,
    /// What is known of who answers first, of a service that serves a model.
    pub(crate) router: OnceLock<Router>,
}

impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Live")
            .field("id", &self.id)
            .field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}

impl Live {
    pub(crate) fn new(id: Uuid, name: &str, signals: Arc<Signals>) -> Self {
        Self {
            id,
            name: name.into(),
            signals,
            in_flight: AtomicU32::new(0),
            listed: AtomicBool::new(false),
            waits_for_memory: AtomicBool::new(false),
            last_activity_ms: AtomicU64::new(u64::MAX),
            arrivals: AtomicU64::new(0),
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
            classes: Default::default(),
            latency: Latency::default(),
            holds: AtomicU64::new(0),
            wakes: AtomicU64::new(0),
            queue: wake::Queue::default(),
            open_under: AtomicU64::new(0),
            router: OnceLock::new(),
        }
    }

    /// Lets requests through to sleeping instances under the table of this version, see `light.rs`.
    pub(crate) fn open_under(&self, version: u64) {
        self.open_under.store(version, SeqCst);
    }

    pub(crate) fn is_open_under(&self, version: u64) -> bool {
        version != 0 && self.open_under.load(SeqCst) == version
    }

    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight.load(SeqCst)
    }

    pub(crate) fn signals(&self) -> &Arc<Signals> {
        &self.signals
    }

    /// Time from [`Signals::epoch`] to the last arrival or end of a request; `None` before the first.
    pub(crate) fn last_activity(&self) -> Option<Duration> {
        match self.last_activity_ms.load(Relaxed) {
            u64::MAX => None,
            ms => Some(Duration::from_millis(ms)),
        }
    }

    /// Notes an arrival, before it is known whether it may go on.
    pub(crate) fn arrive(&self, now: Instant) {
        self.arrivals.fetch_add(1, Relaxed);
        self.touch(now);
    }

    fn touch(&self, now: Instant) {
        let ms = now.saturating_duration_since(self.signals.epoch).as_millis();
        self.last_activity_ms
            .store(u64::try_from(ms).unwrap_or(u64::MAX - 1), Relaxed);
    }

    /// Takes one of `max` places. The order matters: a caller counts itself first and looks at the table again
    /// after, so that a controller that sees zero in flight under a newer table knows that nobody is on the way.
    pub(crate) fn enter(self: &Arc<Self>, max: u32) -> Option<InFlight> {
        let before = self.in_flight.fetch_add(1, SeqCst);
        let guard = InFlight {
            live: Arc::clone(self),
        };
        if before == 0 {
            self.list();
        }
        (before < max).then_some(guard)
    }

    /// Puts the service on the list of those that changed between busy and idle.
    pub(crate) fn list(self: &Arc<Self>) {
        if !self.listed.swap(true, SeqCst) {
            self.signals
                .changed
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(Arc::clone(self));
            self.signals.on_change.notify_one();
        }
    }

    /// Counts a finished request.
    pub(crate) fn count(&self, status: u16) {
        let class = usize::from(status / 100).clamp(1, 5) - 1;
        self.classes[class].fetch_add(1, Relaxed);
    }
}

/// One request, stream or connection in flight; leaves on drop.
#[derive(Debug)]
pub(crate) struct InFlight {
    live: Arc<Live>,
}

impl InFlight {
    pub(crate) fn live(&self) -> &Arc<Live> {
        &self.live
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.live.in_flight.fetch_sub(1, SeqCst) == 1 {
            self.live.touch(Instant::now());
            self.live.list();
        }
    }
}

/// Time from a request's arrival to the head of its answer.
#[derive(Debug, Default)]
pub(crate) struct Latency {
    pub(crate) buckets: [AtomicU64; LATENCY_BOUNDS_US.len() + 1],
    pub(crate) sum_us: AtomicU64,
}

impl Latency {
    pub(crate) fn observe(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = LATENCY_BOUNDS_US
            .iter()
            .position(|bound| us <= *bound)
            .unwrap_or(LATENCY_BOUNDS_US.len());
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.sum_us.fetch_add(us, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live() -> (Arc<Signals>, Arc<Live>) {
        let signals = Arc::new(Signals::new());
        (
            Arc::clone(&signals),
            Arc::new(Live::new(Uuid::new_v4(), "a/b", signals)),
        )
    }

    #[test]
    fn busy_and_idle_are_listed_once_until_read() {
        let (signals, live) = live();
        drop(live.enter(9));
        drop(live.enter(9));
        assert_eq!(signals.take_changed().len(), 1);
        assert!(signals.take_changed().is_empty());
        let held = live.enter(9);
        assert_eq!(signals.take_changed().len(), 1);
        drop(held);
        assert_eq!(signals.take_changed().len(), 1);
        assert!(live.last_activity().is_some());
    }

    #[test]
    fn the_bound_holds_and_a_refused_caller_leaves_no_trace() {
        let (_signals, live) = live();
        let first = live.enter(1).expect("the first place");
        assert!(live.enter(1).is_none());
        assert_eq!(live.in_flight(), 1);
        drop(first);
        assert_eq!(live.in_flight(), 0);
    }

    #[test]
    fn latencies_fall_into_their_buckets() {
        let latency = Latency::default();
        latency.observe(Duration::from_micros(500));
        latency.observe(Duration::from_micros(501));
        latency.observe(Duration::from_secs(3600));
        let counts: Vec<u64> = latency
            .buckets
            .iter()
            .map(|bucket| bucket.load(Relaxed))
            .collect();
        assert_eq!((counts[0], counts[1], counts[LATENCY_BOUNDS_US.len()]), (1, 1, 1));
    }
}
