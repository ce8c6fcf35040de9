//! What can go wrong when something is kept or looked up, in terms the callers act on.
//!
//! Callers match: [`Error::AlreadyExists`], [`Error::NotFound`] and [`Error::Conflict`] are answers to a request,
//! [`Error::Exhausted`] is a limit, everything else means that the store itself needs an operator.

/// The cause below this layer, kept for the chain.
pub(crate) type Source = Box<dyn std::error::Error + Send + Sync + 'static>;

/// Why the store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another object holds this name already.
    #[error("{object} with {field} `{value}` already exists")]
    AlreadyExists {
        /// The kind of object, such as `app`.
        object: &'static str,
        /// Which member must be unique, as clients name it.
        field: &'static str,
        /// What was given for it.
        value: String,
    },
    /// No such object in this organization.
    #[error("no {object} `{id}`")]
    NotFound {
        /// The kind of object.
        object: &'static str,
        /// What was looked for: an id or a name.
        id: String,
    },
    /// The object is not in the state the caller saw or needs; read again.
    #[error("{object} `{id}` cannot be changed now: {reason}")]
    Conflict {
        /// The kind of object.
        object: &'static str,
        /// Which.
        id: String,
        /// What is in the way, for people.
        reason: String,
    },
    /// Something of which there is a fixed number has run out.
    #[error("no {what} is free; {hint}")]
    Exhausted {
        /// What ran out.
        what: &'static str,
        /// What to do about it.
        hint: String,
    },
    /// The database was written by a newer version of the program.
    #[error(
        "the database has schema version {found}, this program knows versions up to {known}; \
         start the newer version of tram that wrote it, or restore a backup from before the upgrade"
    )]
    NewerSchema {
        /// What the database says.
        found: i64,
        /// The newest this program knows.
        known: i64,
    },
    /// A setting of the store is wrong.
    #[error("{setting}: {problem}")]
    Setting {
        /// Which.
        setting: &'static str,
        /// What is wrong and what to do.
        problem: String,
    },
    /// The keys of the secrets cannot be used.
    #[error(transparent)]
    Keyring(#[from] crate::keyring::Error),
    /// The database cannot be reached, refused, or holds what we cannot read.
    #[error("the database failed while {doing}")]
    Unavailable {
        /// What the store was doing.
        doing: &'static str,
        /// Why.
        source: Source,
    },
}

/// What the store returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// No such object.
    pub(crate) fn not_found(object: &'static str, id: impl std::fmt::Display) -> Self {
        Self::NotFound {
            object,
            id: id.to_string(),
        }
    }

    /// The object is in the wrong state.
    pub(crate) fn conflict(
        object: &'static str,
        id: impl std::fmt::Display,
        reason: impl Into<String>,
    ) -> Self {
        Self::Conflict {
            object,
            id: id.to_string(),
            reason: reason.into(),
        }
    }

    /// The database failed for a reason the caller cannot mend.
    pub(crate) fn unavailable(doing: &'static str, source: impl Into<Source>) -> Self {
        Self::Unavailable {
            doing,
            source: source.into(),
        }
    }

    /// Whether the same call may succeed later without anybody doing something.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Conflict { .. })
    }
}
