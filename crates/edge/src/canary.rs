//! What tells a canary from the instances it is tried beside: which of the two a request asks for, and how their answers
//! turn out.
//!
//! The controller marks a canary's endpoints in the table. Only routes that have both kinds count answers and look for
//! the header, so that all other requests pay nothing for it.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use http::{HeaderMap, HeaderName};

/// Chooses the deployment that answers while two of them do: `canary`, or `prod` for the one that was there before.
/// Anything else is drawn as usual.
pub(crate) const X_DEPLOYMENT_GROUP: HeaderName = HeaderName::from_static("x-deployment-group");

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

/// How the requests to one instance turned out, while a canary is tried.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    answers: AtomicU64,
    failures: AtomicU64,
}

impl Tally {
    /// Counts a request; `failed`: by the server's fault, or without an answer.
    pub(crate) fn count(&self, failed: bool) {
        self.answers.fetch_add(1, Relaxed);
        if failed {
            self.failures.fetch_add(1, Relaxed);
        }
    }

    /// Requests, and those of them that failed.
    pub(crate) fn read(&self) -> (u64, u64) {
        // Failures first: never more of them than of requests.
        let failures = self.failures.load(Relaxed);
        (self.answers.load(Relaxed), failures)
    }

    /// Another trial begins.
    pub(crate) fn reset(&self) {
        self.failures.store(0, Relaxed);
        self.answers.store(0, Relaxed);
    }
}
