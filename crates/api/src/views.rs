//! From records to messages: what a client is shown of what we keep.
//!
//! Pure functions, one file a resource. An absent id is `""` on the wire, an absent time is `null`.

pub(crate) mod app;
pub(crate) mod credential;
pub(crate) mod deployment;
pub(crate) mod domain;
pub(crate) mod event;
pub(crate) mod instance;
pub(crate) mod organization;
pub(crate) mod pool;
pub(crate) mod secret;
pub(crate) mod service;
pub(crate) mod volume;

/// An id that may be absent.
pub(crate) fn id<T: std::fmt::Display>(id: Option<T>) -> String {
    id.map(|id| id.to_string()).unwrap_or_default()
}

/// A count for a 32-bit member.
pub(crate) fn count(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// A stored part of the contract. What cannot be read (written by a newer version) shows as its default.
pub(crate) fn part<T: serde::de::DeserializeOwned + Default>(value: &serde_json::Value) -> T {
    match value {
        serde_json::Value::Null => T::default(),
        value => T::deserialize(value).unwrap_or_else(|error| {
            tracing::warn!(%error, "a stored message cannot be read");
            T::default()
        }),
    }
}
