//! What waits to be looked at: each key once, never two at a time of the same, and alarms by the clock.
//!
//! A key that is signalled while it is being looked at is queued again afterwards: the look may have come too early.
//! Bounded: when it is full, signals are dropped and the sweep finds the work.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;
use tram_types::{AppId, ServiceId, Timestamp};

/// Keys that wait. A hundred bytes each: ten megabytes at most.
const QUEUE_MAX: usize = 100_000;

/// Something to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// A service.
    Service(ServiceId),
    /// An app.
    App(AppId),
}

/// What waits.
#[derive(Debug, Default)]
pub struct Queue {
    state: Mutex<State>,
    added: Notify,
    alarm_set: Notify,
}

#[derive(Debug, Default)]
struct State {
    ready: VecDeque<Key>,
    waiting: HashSet<Key>,
    busy: HashSet<Key>,
    /// Signalled while busy.
    again: HashSet<Key>,
    alarms: BTreeSet<(Timestamp, Key)>,
    alarm_of: HashMap<Key, Timestamp>,
}

impl State {
    fn add(&mut self, key: Key) -> bool {
        if self.busy.contains(&key) {
            self.again.insert(key);
            return false;
        }
        if self.waiting.len() >= QUEUE_MAX || !self.waiting.insert(key) {
            return false;
        }
        self.ready.push_back(key);
        true
    }

    fn disarm(&mut self, key: Key) {
        if let Some(at) = self.alarm_of.remove(&key) {
            self.alarms.remove(&(at, key));
        }
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for a look.
    pub fn add(&self, key: Key) {
        if self.lock().add(key) {
            self.added.notify_one();
        }
    }

    /// Asks for a look at `at`, instead of the alarm set before.
    pub fn set_alarm(&self, key: Key, at: Option<Timestamp>) {
        let mut state = self.lock();
        state.disarm(key);
        let Some(at) = at else { return };
        state.alarms.insert((at, key));
        state.alarm_of.insert(key, at);
        let first = state.alarms.first() == Some(&(at, key));
        drop(state);
        if first {
            self.alarm_set.notify_one();
        }
    }

    /// The next key; it is busy until [`Queue::done`]. Cancel-safe.
    pub async fn next(&self) -> Key {
        loop {
            {
                let mut state = self.lock();
                if let Some(key) = state.ready.pop_front() {
                    state.waiting.remove(&key);
                    state.busy.insert(key);
                    let more = !state.ready.is_empty();
                    drop(state);
                    if more {
                        self.added.notify_one();
                    }
                    return key;
                }
            }
            self.added.notified().await;
        }
    }

    /// The look is over.
    pub fn done(&self, key: Key) {
        let mut state = self.lock();
        state.busy.remove(&key);
        let again = state.again.remove(&key) && state.add(key);
        drop(state);
        if again {
            self.added.notify_one();
        }
    }

    /// Queues every key whose alarm is due, and says when the next one is.
    pub fn ring(&self, now: Timestamp) -> Option<Timestamp> {
        let mut state = self.lock();
        let mut added = false;
        while let Some((at, key)) = state.alarms.first().copied() {
            if at > now {
                break;
            }
            state.disarm(key);
            added |= state.add(key);
        }
        let next = state.alarms.first().map(|(at, _)| *at);
        drop(state);
        if added {
            self.added.notify_one();
        }
        next
    }

    /// Waits until an alarm is set that comes before all others.
    pub async fn earlier_alarm(&self) {
        self.alarm_set.notified().await;
    }

    /// How many keys wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().waiting.len()
    }

    /// Whether nothing waits and nothing is being looked at.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let state = self.lock();
        state.waiting.is_empty() && state.busy.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_key_waits_once_and_is_never_busy_twice() {
        let queue = Queue::default();
        let key = Key::Service(ServiceId::random());
        queue.add(key);
        queue.add(key);
        assert_eq!(queue.len(), 1);
        assert_eq!(queue.next().await, key);
        queue.add(key);
        assert_eq!(queue.len(), 0, "busy");
        queue.done(key);
        assert_eq!(queue.next().await, key, "signalled while busy");
        queue.done(key);
        assert!(queue.is_empty());
    }

    #[tokio::test]
    async fn alarms_ring_when_due_and_the_newest_one_counts() {
        let queue = Queue::default();
        let key = Key::Service(ServiceId::random());
        queue.set_alarm(key, Some(Timestamp::from_micros(10)));
        queue.set_alarm(key, Some(Timestamp::from_micros(20)));
        assert_eq!(
            queue.ring(Timestamp::from_micros(15)),
            Some(Timestamp::from_micros(20))
        );
        assert_eq!(queue.len(), 0);
        assert_eq!(queue.ring(Timestamp::from_micros(20)), None);
        assert_eq!(queue.next().await, key);
    }
}
