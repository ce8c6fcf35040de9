//! The signal that something changed, for whoever reconciles.
//!
//! Sent after the commit, in this process alone, and never relied on: a receiver that lags or a process that was
//! down finds the same work by the clock.

use tram_types::{AppId, DomainId, SecretId, ServiceId};

/// What changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Change {
    /// A service: its intent, its deployments, its scaling, its ports.
    Service(ServiceId),
    /// An app: its intent or its name.
    App(AppId),
    /// A domain: made, changed, removed.
    Domain(DomainId),
    /// A secret: made, changed, removed.
    Secret(SecretId),
}

/// Changes that wait for a slow receiver; one more and it is told that it lagged, and sweeps.
pub(crate) const CHANGES_MAX: usize = 1024;
