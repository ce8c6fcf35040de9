//! Waiting for a service that sleeps or starts: callers queue in order, the first one demands the wake, and all go
//! on when a newer table lets them.
//!
//! Requests and TCP connections call [`hold`]; `control.rs` calls [`Queue::release`] after each swap. The choice to
//! know: a released caller is not told the outcome but asks the new table, so that there is one place that decides.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::account::Live;
use crate::page::Refusal;
use crate::table::Service;

/// What a caller is told to wait before trying again when no wake of the service was ever timed.
const FIRST_RETRY_AFTER: Duration = Duration::from_secs(5);

/// Weight of the newest wake in the running mean, as one part in this many.
const MEAN_PARTS: u32 = 4;

/// Callers that wait for one service.
#[derive(Debug, Default)]
pub(crate) struct Queue(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    /// By order of arrival.
    callers: BTreeMap<u64, oneshot::Sender<()>>,
    /// When the first of the present callers came.
    since: Option<Instant>,
    /// Whether one of the present callers has demanded the wake.
    demanded: bool,
    /// The trace that the wake belongs to, as a `traceparent`.
    cause: Option<String>,
    /// Running mean of what a wake took.
    usual: Option<Duration>,
}

impl Queue {
    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.lock().callers.len()
    }

    /// Lets everybody look at the table again, in the order in which they came. `woken`: the wait ended in success,
    /// and its time counts for estimates.
    pub(crate) fn release(&self, woken: bool) {
        let (callers, since) = {
            let mut waiting = self.lock();
            waiting.cause = None;
            waiting.demanded = false;
            (std::mem::take(&mut waiting.callers), waiting.since.take())
        };
        if let (true, Some(since)) = (woken, since) {
            let took = since.elapsed();
            let mut waiting = self.lock();
            waiting.usual = Some(waiting.usual.map_or(took, |mean| {
                mean * (MEAN_PARTS - 1) / MEAN_PARTS + took / MEAN_PARTS
            }));
        }
        for (_, caller) in callers {
            // A caller who left since does not mind.
            let _left = caller.send(());
        }
    }

    /// Joins the queue.
    fn join(&self, max: u32) -> Result<(u64, oneshot::Receiver<()>), Duration> {
        let mut waiting = self.lock();
        if waiting.callers.len() >= usize::try_from(max).unwrap_or(usize::MAX) {
            let usual = waiting.usual.unwrap_or(FIRST_RETRY_AFTER);
            return Err(usual.saturating_sub(waiting.since.map_or(Duration::ZERO, |since| since.elapsed())));
        }
        if waiting.callers.is_empty() {
            waiting.since = Some(Instant::now());
        }
        let number = waiting.next;
        waiting.next += 1;
        let (sender, receiver) = oneshot::channel();
        waiting.callers.insert(number, sender);
        Ok((number, receiver))
    }

    /// Whether this caller must demand the wake: it still waits, and nobody else has. Asked for by a caller who is sure
    /// to wait, so that a first one who turns away at once does not leave the others without a demand.
    fn claim(&self, number: u64, cause: Option<String>) -> bool {
        let mut waiting = self.lock();
        if !waiting.callers.contains_key(&number) {
            return false;
        }
        if let Some(cause) = cause {
            waiting.cause.get_or_insert(cause);
        }
        !std::mem::replace(&mut waiting.demanded, true)
    }

    fn leave(&self, number: u64) {
        let mut waiting = self.lock();
        waiting.callers.remove(&number);
        if waiting.callers.is_empty() {
            waiting.since = None;
            waiting.cause = None;
            waiting.demanded = false;
        }
    }

    /// The trace of the first caller who has one.
    pub(crate) fn cause(&self) -> Option<String> {
        self.lock().cause.clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in the queue; left on drop, so that a caller who hangs up is forgotten.
struct Place<'q> {
    live: &'q Arc<Live>,
    number: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.live.queue.leave(self.number);
        if self.live.queue.len() == 0 {
            // Or who keeps it awake for those who wait would not hear that nobody does.
            self.live.list();
        }
    }
}

/// Waits until the service's gate may have changed, or until `deadline`. `closed`: whether it is as the caller found it.
/// `cause`: the caller's `traceparent`, for the wake's work to appear in the same trace.
/// Cancel-safe: a dropped future leaves the queue.
pub(crate) async fn hold(
    service: &Service,
    closed: impl Fn() -> bool,
    deadline: Instant,
    cause: Option<String>,
) -> Result<(), Refusal> {
    let live: &Arc<Live> = &service.live;
    let begun = Instant::now();
    let (number, released) =
        live.queue
            .join(service.spec.hold_queue_max)
            .map_err(|wait| Refusal::QueueFull {
                name: live.name.to_string(),
                retry_after: wait.max(Duration::from_secs(1)),
            })?;
    let place = Place { live, number };
    // A gate that opened after we looked and before we joined would release nobody.
    if !closed() {
        return Ok(());
    }
    live.holds.fetch_add(1, Relaxed);
    if live.queue.claim(number, cause) {
        live.signals().want(live);
    }
    let outcome = tokio::time::timeout_at(deadline.into(), released).await;
    drop(place);
    match outcome {
        Ok(_) => Ok(()),
        Err(_) if live.waits_for_memory.load(Relaxed) => Err(Refusal::NoMemory {
            name: live.name.to_string(),
            waited_ms: waited_ms(begun),
        }),
        Err(_) => Err(Refusal::StillStarting {
            name: live.name.to_string(),
            waited_ms: waited_ms(begun),
        }),
    }
}

fn waited_ms(begun: Instant) -> u64 {
    u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_are_let_go_in_order_and_only_the_first_demands() {
        let queue = Queue::default();
        let mut places: Vec<_> = (0..5).map(|_| queue.join(5).expect("room")).collect();
        let claims = |number| queue.claim(number, None);
        assert_eq!(places.iter().filter(|place| claims(place.0)).count(), 1);
        assert!(queue.join(5).is_err(), "the queue is bounded");
        queue.leave(places[1].0);
        assert_eq!(queue.len(), 4);
        queue.release(true);
        assert_eq!(queue.len(), 0);
        for (index, place) in places.iter_mut().enumerate() {
            assert_eq!(place.1.try_recv().is_ok(), index != 1);
        }
        let again = queue.join(5).expect("room again");
        assert!(!claims(places[0].0), "let go already");
        assert!(claims(again.0), "a new wait demands anew");
    }

    #[test]
    fn a_first_caller_who_turns_away_leaves_the_demand_to_the_next() {
        let queue = Queue::default();
        let first = queue.join(5).expect("room");
        let second = queue.join(5).expect("room");
        queue.leave(first.0);
        assert!(queue.claim(second.0, None));
    }

    #[test]
    fn the_estimate_follows_this_services_own_wakes() {
        let queue = Queue::default();
        assert_eq!(queue.join(0).expect_err("no room"), FIRST_RETRY_AFTER);
        let _place = queue.join(1).expect("room");
        queue.release(true);
        assert!(
            queue.join(0).expect_err("no room") < Duration::from_secs(1),
            "the one wake took no time"
        );
    }
}
