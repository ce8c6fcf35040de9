//! The wire: registries, their mirrors, credentials, and requests with limits and retries.
//!
//! [`RegistryConfig`] says where a registry is reached ([`hosts`]); a `Source` is one repository seen through
//! those endpoints with one set of credentials ([`client`], [`auth`]). The store is the only caller. The design
//! choice to know: a pull's own credentials go to the registry that the image name names and nowhere else;
//! mirrors get only what the operator configured for them.

use std::fmt;

use serde::Deserialize;

mod answer;
mod auth;
mod client;
mod hosts;
mod retries;
mod stream;

pub(crate) use client::{Client, Resolved, Source};
pub use hosts::{ClientCertificate, Endpoint, RegistryConfig};
pub(crate) use retries::Retries;
pub(crate) use stream::BlobStream;

/// What a registry is shown.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum Credentials {
    /// A user name and a password or personal token, sent to the registry or its token service.
    Basic {
        /// Who.
        username: String,
        /// The secret.
        password: String,
    },
    /// A token sent as it is.
    Bearer {
        /// The secret.
        token: String,
    },
}

impl Credentials {
    /// A user name and password.
    #[must_use]
    pub fn basic(username: impl Into<String>, password: impl Into<String>) -> Self {
        Self::Basic {
            username: username.into(),
            password: password.into(),
        }
    }

    /// What tells one set of credentials from another, for hashing.
    pub(crate) fn identity(&self) -> String {
        match self {
            Self::Basic { username, password } => format!("basic\0{username}\0{password}"),
            Self::Bearer { token } => format!("bearer\0{token}"),
        }
    }
}

/// Secrets stay out of logs.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Basic { username, .. } => write!(f, "Basic({username:?})"),
            Self::Bearer { .. } => f.write_str("Bearer"),
        }
    }
}
