//! What was read of the store a moment ago and still holds.
//!
//! Owns entries that are made of the store alone, under the store's revision: the next write of this process, whatever
//! it is, forgets them all, so nobody reads here what an answered request has changed. What others wrote (another
//! replica, a command of the operator) is seen after [`AGE_MAX`].

use std::{
    borrow::Borrow,
    collections::HashMap,
    hash::Hash,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How long a write by another process may go unseen. Connections that stay open look at their token every two seconds.
const AGE_MAX: Duration = Duration::from_secs(1);
/// Most entries of each kind; one more, and all are read anew.
const ENTRIES_MAX: usize = 4096;

/// Entries of one kind.
#[derive(Debug)]
pub(crate) struct Known<K, V>(Mutex<Entries<K, V>>);

#[derive(Debug)]
struct Entries<K, V> {
    revision: u64,
    /// When the first of them was begun to be read.
    since: Instant,
    of: HashMap<K, V>,
}

/// When something began to be read: to be asked for before the store is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reading {
    revision: u64,
    at: Instant,
}

impl Reading {
    /// From now on, at this revision of the store.
    pub(crate) fn begin(revision: u64) -> Self {
        Self {
            revision,
            at: Instant::now(),
        }
    }
}

impl<K, V> Default for Known<K, V> {
    fn default() -> Self {
        Self(Mutex::new(Entries {
            revision: 0,
            since: Instant::now(),
            of: HashMap::new(),
        }))
    }
}

impl<K: Eq + Hash, V: Clone> Known<K, V> {
    /// What is known under `key`, if that still holds.
    pub(crate) fn get<Q: Eq + Hash + ?Sized>(&self, now: Reading, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.holds(now).then(|| entries.of.get(key).cloned()).flatten()
    }

    /// Keeps what was read since `reading`.
    pub(crate) fn keep(&self, reading: Reading, key: K, value: V) {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if reading.revision < entries.revision {
            return;
        }
        if !entries.holds(reading) || entries.of.len() >= ENTRIES_MAX {
            *entries = Entries {
                revision: reading.revision,
                since: reading.at,
                of: HashMap::new(),
            };
        }
        entries.since = entries.since.min(reading.at);
        entries.of.insert(key, value);
    }
}

impl<K, V> Entries<K, V> {
    fn holds(&self, now: Reading) -> bool {
        self.revision == now.revision && now.at.saturating_duration_since(self.since) < AGE_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_is_forgotten_with_the_next_write_and_with_time() {
        let known: Known<String, u32> = Known::default();
        let first = Reading::begin(7);
        assert_eq!(known.get(first, "a"), None);
        known.keep(first, "a".to_owned(), 1);
        assert_eq!(known.get(first, "a"), Some(1));
        assert_eq!(known.get(Reading::begin(8), "a"), None, "something was written");
        let later = Reading {
            at: first.at + AGE_MAX,
            ..first
        };
        assert_eq!(known.get(later, "a"), None, "somebody else may have written");
        known.keep(later, "b".to_owned(), 2);
        assert_eq!(known.get(later, "a"), None, "what is too old does not come back");
        assert_eq!(known.get(later, "b"), Some(2));
    }

    #[test]
    fn what_was_read_before_a_write_is_not_kept_after_it() {
        let known: Known<String, u32> = Known::default();
        let (before, after) = (Reading::begin(1), Reading::begin(2));
        known.keep(after, "new".to_owned(), 2);
        known.keep(before, "old".to_owned(), 1);
        assert_eq!(known.get(after, "new"), Some(2));
        assert_eq!(known.get(after, "old"), None);
        assert_eq!(known.get(before, "old"), None);
    }

    #[test]
    fn no_more_is_kept_than_is_allowed() {
        let known: Known<usize, usize> = Known::default();
        let now = Reading::begin(1);
        for key in 0..=ENTRIES_MAX {
            known.keep(now, key, key);
        }
        assert_eq!(known.get(now, &0), None);
        assert_eq!(known.get(now, &ENTRIES_MAX), Some(ENTRIES_MAX));
    }
}
