//! What may not be collected because somebody in this process works with it.
//!
//! A pin is taken before a thing is looked for, and collection takes things away only under the same lock, so
//! that nothing found after pinning can vanish.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::digest::Digest;

/// How many hold each digest (of a blob, or of a layer's archive).
#[derive(Debug, Default)]
pub(super) struct Pins {
    counts: Mutex<HashMap<Digest, usize>>,
}

/// Holds digests until dropped.
#[derive(Debug)]
pub(super) struct Pin {
    pins: Arc<Pins>,
    digests: Vec<Digest>,
}

impl Pins {
    pub(super) fn pin(pins: &Arc<Self>, digests: Vec<Digest>) -> Pin {
        let mut counts = pins.counts();
        for digest in &digests {
            *counts.entry(*digest).or_default() += 1;
        }
        drop(counts);
        Pin {
            pins: Arc::clone(pins),
            digests,
        }
    }

    /// Does `take_away` unless `digest` is held, with nobody able to pin in between.
    pub(super) fn unless_pinned<T>(&self, digest: &Digest, take_away: impl FnOnce() -> T) -> Option<T> {
        let counts = self.counts();
        (!counts.contains_key(digest)).then(take_away)
    }

    pub(super) fn holds(&self, digest: &Digest) -> bool {
        self.counts().contains_key(digest)
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<Digest, usize>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut counts = self.pins.counts();
        for digest in &self.digests {
            if let Some(count) = counts.get_mut(digest) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(digest);
                }
            }
        }
    }
}
