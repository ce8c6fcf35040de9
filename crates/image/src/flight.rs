//! Single flight: work under one key is done once, however many ask for it at the same time.
//!
//! A flight is a shared future that its waiters drive, held weakly by the map: when the last waiter goes
//! away (Ctrl-C, a deleted service), the work is dropped with it, and no task is left without an owner.

use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use tokio::sync::watch;

use crate::error::Error;

type Work<T> = BoxFuture<'static, Result<T, Arc<Error>>>;

/// The work under way, by key.
pub(crate) struct Flights<K, T: Clone> {
    flights: Mutex<HashMap<K, Flight<T>>>,
}

struct Flight<T: Clone> {
    work: WeakShared<Work<T>>,
    bytes_done: watch::Receiver<u64>,
}

impl<K, T: Clone> Default for Flights<K, T> {
    fn default() -> Self {
        Self {
            flights: Mutex::new(HashMap::new()),
        }
    }
}

impl<K, T: Clone> Debug for Flights<K, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Flights").finish_non_exhaustive()
    }
}

impl<K: Copy + Eq + Hash, T: Clone + Send + Sync + 'static> Flights<K, T> {
    /// Joins the work under `key`, or starts it with `start`. `start` gets a sender for the bytes done;
    /// `on_bytes` sees them, whoever does the work.
    ///
    /// A waiter whose leader failed for a reason of the leader's own (its credentials, its damaged copy)
    /// tries itself; a failure of the registry or the disk is everybody's.
    pub(crate) async fn run<S>(&self, key: K, mut on_bytes: impl FnMut(u64), start: S) -> Result<T, Error>
    where
        S: Fn(watch::Sender<u64>) -> BoxFuture<'static, Result<T, Error>>,
    {
        loop {
            let (work, mut bytes_done, led) = self.join(key, &start);
            let mut work = std::pin::pin!(work);
            let outcome = loop {
                tokio::select! {
                    biased;
                    outcome = &mut work => break outcome,
                    Ok(()) = bytes_done.changed() => {
                        let bytes = *bytes_done.borrow_and_update();
                        on_bytes(bytes);
                    }
                }
            };
            match outcome {
                Ok(value) => return Ok(value),
                Err(error) if led || error.retryable() => return Err(error.into()),
                Err(_) => {}
            }
        }
    }

    fn join<S>(&self, key: K, start: &S) -> (Shared<Work<T>>, watch::Receiver<u64>, bool)
    where
        S: Fn(watch::Sender<u64>) -> BoxFuture<'static, Result<T, Error>>,
    {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = flights.get(&key)
            && let Some(work) = flight.work.upgrade()
            // A finished failure that somebody still holds is history, not work under way.
            && !matches!(work.peek(), Some(Err(_)))
        {
            return (work, flight.bytes_done.clone(), false);
        }
        // Ended flights are swept when a new one starts: the map stays as small as what is under way.
        flights.retain(|_, flight| flight.work.upgrade().is_some());
        let (sender, bytes_done) = watch::channel(0);
        let work = start(sender)
            .map(|outcome| outcome.map_err(Arc::new))
            .boxed()
            .shared();
        if let Some(weak) = work.downgrade() {
            flights.insert(
                key,
                Flight {
                    work: weak,
                    bytes_done: bytes_done.clone(),
                },
            );
        }
        (work, bytes_done, true)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn work_is_done_once_and_shared() {
        let flights = Flights::<u8, usize>::default();
        let runs = Arc::new(AtomicUsize::new(0));
        let gate = Arc::new(tokio::sync::Notify::new());
        let start = |_| {
            let (runs, gate) = (Arc::clone(&runs), Arc::clone(&gate));
            async move {
                gate.notified().await;
                Ok(runs.fetch_add(1, Ordering::SeqCst))
            }
            .boxed()
        };
        let release = async {
            tokio::task::yield_now().await;
            gate.notify_one();
        };
        let (first, second, ()) = tokio::join!(
            flights.run(7, |_| (), &start),
            flights.run(7, |_| (), &start),
            release
        );
        assert_eq!((first.unwrap(), second.unwrap()), (0, 0));
        assert_eq!(runs.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_waiter_tries_itself_when_the_failure_was_the_leaders_own() {
        let flights = Flights::<u8, usize>::default();
        let runs = Arc::new(AtomicUsize::new(0));
        let start = |_| {
            let runs = Arc::clone(&runs);
            async move {
                tokio::task::yield_now().await;
                match runs.fetch_add(1, Ordering::SeqCst) {
                    0 => Err(Error::Archive { reason: "x".into() }),
                    run => Ok(run),
                }
            }
            .boxed()
        };
        let (first, second) = tokio::join!(flights.run(7, |_| (), &start), flights.run(7, |_| (), &start));
        assert!(first.is_err());
        assert_eq!(second.unwrap(), 1);
    }
}
