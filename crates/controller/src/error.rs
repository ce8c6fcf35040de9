//! What can go wrong while decisions are carried out. None of it is an answer to a user: reconcilers try again.

/// Why a reconciler did not finish what it was at.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The store refused or could not be reached.
    #[error("cannot {doing}")]
    Store {
        /// What this layer was doing.
        doing: &'static str,
        /// Why it failed.
        #[source]
        source: tram_store::Error,
    },
    /// A site refused or could not be reached.
    #[error("cannot {doing}")]
    Site {
        /// What this layer was doing.
        doing: &'static str,
        /// Why it failed.
        #[source]
        source: tram_site::Error,
    },
    /// The data plane refused or could not be reached.
    #[error("cannot hand the routes to the data plane")]
    DataPlane(#[source] crate::data_plane::Error),
    /// A stored definition does not read: it was written by a newer version, or the database was changed by hand.
    #[error("cannot read the definition of deployment {deployment}")]
    Definition {
        /// Which deployment.
        deployment: tram_types::DeploymentId,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
}

impl Error {
    pub(crate) fn store(doing: &'static str) -> impl FnOnce(tram_store::Error) -> Self {
        move |source| Self::Store { doing, source }
    }

    pub(crate) fn site(doing: &'static str) -> impl FnOnce(tram_site::Error) -> Self {
        move |source| Self::Site { doing, source }
    }

    /// Whether one object cannot be read while all others can: a definition or a secret that was damaged, or whose key
    /// is not there.
    #[must_use]
    pub const fn is_of_one_object(&self) -> bool {
        matches!(
            self,
            Self::Definition { .. }
                | Self::Store {
                    source: tram_store::Error::Keyring(_),
                    ..
                }
        )
    }

    /// Whether somebody else changed what was read: reading again is all there is to do.
    #[must_use]
    pub const fn is_conflict(&self) -> bool {
        matches!(
            self,
            Self::Store {
                source: tram_store::Error::Conflict { .. },
                ..
            }
        )
    }
}
