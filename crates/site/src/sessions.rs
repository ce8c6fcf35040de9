//! Which instances somebody has a command running in, by a session of the API.
//!
//! Such a session is a background task that was declared: whoever opened it says that the instance is in use. The API
//! holds a [`Session`] for each; who takes an instance away asks first. Of this process alone: a session does not
//! outlive the process that serves it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use tram_types::InstanceId;

/// The open sessions, by instance. Cheap to clone; clones share what they know.
#[derive(Debug, Clone, Default)]
pub struct Sessions {
    open: Arc<Mutex<HashMap<InstanceId, u32>>>,
}

/// An open session. It is over when this is dropped.
#[derive(Debug)]
pub struct Session {
    instance: InstanceId,
    sessions: Sessions,
}

impl Sessions {
    /// Opens a session.
    #[must_use]
    pub fn open(&self, instance: InstanceId) -> Session {
        self.with(|open| {
            let count = open.entry(instance).or_default();
            *count = count.saturating_add(1);
        });
        Session {
            instance,
            sessions: self.clone(),
        }
    }

    /// Whether the instance has an open session.
    #[must_use]
    pub fn is_open(&self, instance: InstanceId) -> bool {
        self.with(|open| open.contains_key(&instance))
    }

    fn with<T>(&self, act: impl FnOnce(&mut HashMap<InstanceId, u32>) -> T) -> T {
        act(&mut self.open.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.sessions.with(|open| {
            if let Some(count) = open.get_mut(&self.instance) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    open.remove(&self.instance);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_is_in_use_until_its_last_session_ends() {
        let sessions = Sessions::default();
        let (one, other) = (InstanceId::random(), InstanceId::random());
        let (first, second) = (sessions.open(one), sessions.clone().open(one));
        assert!(sessions.is_open(one) && !sessions.is_open(other));
        drop(first);
        assert!(sessions.is_open(one));
        drop(second);
        assert!(!sessions.is_open(one));
        sessions.with(|open| assert!(open.is_empty()));
    }
}
