//! Secrets that an instance may use and never sees: they are bound to host names, and the site puts their values into
//! requests to these hosts.
//!
//! The one design choice to know: a site is told which secrets, not what they hold. It asks for a value when a request
//! needs it, so values are on no disk of a site's, and a new value holds from the next request on.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tram_types::{OrganizationId, SecretId};

use crate::Error;

/// A secret that an instance was given the placeholder of (see [`tram_types::bound::placeholder`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoundSecret {
    /// Which.
    pub id: SecretId,
    /// The hosts whose requests it may be put into, in lower case.
    pub hosts: Vec<String>,
}

/// What a bound secret holds now.
#[derive(Clone, PartialEq, Eq)]
pub struct BoundValue {
    /// Its value.
    pub value: String,
    /// What it is bound to now; none: to nothing any more, so that what the instance was told still holds.
    pub hosts: Vec<String>,
}

impl std::fmt::Debug for BoundValue {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("BoundValue")
            .field("hosts", &self.hosts)
            .finish_non_exhaustive()
    }
}

/// Where a site learns values.
#[async_trait]
pub trait SecretValues: Send + Sync + std::fmt::Debug {
    /// What a secret holds now; `None` when it is gone.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when it cannot be read now.
    async fn bound_value(
        &self,
        organization: OrganizationId,
        secret: SecretId,
    ) -> Result<Option<BoundValue>, Error>;
}
