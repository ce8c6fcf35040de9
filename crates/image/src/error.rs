//! What can go wrong with an image, and the four questions every error answers: whose fault it is, whether
//! trying again can help, what the user may read, and which code `docker-helper/verify` gives.
//!
//! One enum for the whole crate: the callers need one answer ("why can this image not run"), not one per
//! stage. Causes stay in `source`; [`Error::user_message`] is complete without them where the user can act.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::digest::Digest;
use crate::manifest;
use crate::reference;
use crate::unpack;

/// Who has to do something about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The person who named the image or made it: the name, the credentials, the contents.
    User,
    /// The registry, or the network on the way to it.
    Registry,
    /// This machine: disk, permissions, configuration.
    Host,
}

/// Why an image could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The name is no image name.
    #[error(transparent)]
    Reference(#[from] reference::ParseError),

    /// The registry does not have it.
    #[error("image `{image}` was not found on `{registry}`: check the name and tag{}", if *authenticated { "" } else { ", or add a registry secret if it is private" })]
    NotFound {
        /// The image, as people write it.
        image: String,
        /// Its registry.
        registry: String,
        /// Whether credentials were sent.
        authenticated: bool,
    },

    /// The registry knows who asks, or asks who it is, and refuses.
    #[error("`{registry}` refused access to image `{image}`: {}", if *authenticated { "check the user name and password in the registry secret, and that they may pull it" } else { "check the name, or add a registry secret if the image is private" })]
    AccessDenied {
        /// The image, as people write it.
        image: String,
        /// Its registry.
        registry: String,
        /// Whether credentials were sent.
        authenticated: bool,
    },

    /// The image runs on another processor or operating system only.
    #[error("image `{image}` is not built for {wanted}; it is built for: {}. Build it for {wanted}, or choose a tag that is", available.join(", "))]
    Platform {
        /// The image, as people write it.
        image: String,
        /// This machine, such as `linux/amd64`.
        wanted: String,
        /// What there is.
        available: Vec<String>,
        /// Whether the operating system is what differs (else the architecture).
        operating_system: bool,
    },

    /// The manifest or configuration is malformed.
    #[error("image `{image}` cannot be read: {source}")]
    Manifest {
        /// The image, as people write it.
        image: String,
        /// What is wrong with it.
        source: manifest::ManifestError,
    },

    /// The image is larger than this machine allows.
    #[error(
        "image `{image}` is too large for this machine: its {what} come to more than the limit of {limit}"
    )]
    TooLarge {
        /// The image, as people write it.
        image: String,
        /// What is over, such as `compressed layers in bytes`.
        what: &'static str,
        /// The limit.
        limit: u64,
    },

    /// A layer could not be unpacked.
    #[error("layer {layer} cannot be unpacked: {source}")]
    Layer {
        /// The compressed layer.
        layer: Digest,
        /// What is wrong with it.
        source: unpack::UnpackError,
    },

    /// What arrived is not what the digest names.
    #[error(
        "{what} from `{registry}` is not what its digest promises: expected {expected}, got {actual}. Try again; if it stays so, the registry or a mirror has damaged contents"
    )]
    DigestMismatch {
        /// What was fetched.
        what: &'static str,
        /// From where.
        registry: String,
        /// The promise.
        expected: Digest,
        /// What arrived.
        actual: Digest,
    },

    /// More or fewer bytes than the manifest says.
    #[error(
        "{what} from `{registry}` has {actual_bytes} bytes where its manifest says {expected_bytes}. The image is damaged: push it again"
    )]
    SizeMismatch {
        /// What was fetched.
        what: &'static str,
        /// From where.
        registry: String,
        /// The promise.
        expected_bytes: u64,
        /// What arrived.
        actual_bytes: u64,
    },

    /// A status that is none of the above.
    #[error("`{registry}` answered {status} when asked for {what}{}", if message.is_empty() { String::new() } else { format!(": {message}") })]
    Status {
        /// Who.
        registry: String,
        /// HTTP status.
        status: u16,
        /// What was asked for.
        what: &'static str,
        /// The registry's own words, cut short.
        message: String,
        /// When the registry asked to come back.
        retry_after: Option<Duration>,
    },

    /// 429 with a wait that is longer than a pull may take.
    #[error("`{registry}` limits how often images may be pulled{}: add a registry secret with an account, use a mirror, or try again later", retry_after.map_or(String::new(), |wait| format!(" and asks to wait {} s", wait.as_secs())))]
    RateLimited {
        /// Who.
        registry: String,
        /// How long to wait.
        retry_after: Option<Duration>,
    },

    /// The registry hangs.
    #[error("`{registry}` did not answer within {} s ({doing}): check that it is up and can be reached from this machine", limit.as_secs_f32())]
    Timeout {
        /// Who.
        registry: String,
        /// What was waited for.
        doing: &'static str,
        /// The limit that was reached.
        limit: Duration,
    },

    /// The name of the registry does not resolve.
    #[error(
        "the registry `{registry}` has no address in DNS: check its name, and this machine's name resolution"
    )]
    Dns {
        /// Who.
        registry: String,
        /// The resolver's words.
        #[source]
        source: reqwest::Error,
    },

    /// No connection, or it broke.
    #[error(
        "the connection to `{registry}` failed ({doing}): check that it is up and can be reached from this machine"
    )]
    Transport {
        /// Who.
        registry: String,
        /// What was under way.
        doing: &'static str,
        /// The cause.
        #[source]
        source: reqwest::Error,
    },

    /// The answer is not of the protocol.
    #[error(
        "`{registry}` does not answer as a registry ({reason}): check its address, and whether it speaks http or https"
    )]
    Protocol {
        /// Who.
        registry: String,
        /// What is wrong.
        reason: String,
    },

    /// The operator's registry configuration is unusable.
    #[error("registry configuration {}: {reason}", path.display())]
    Configuration {
        /// The file.
        path: PathBuf,
        /// What is wrong and how to mend it.
        reason: String,
    },

    /// No room left.
    #[error("the disk holding {} is full: free some space, or run `tram images prune`", path.display())]
    DiskFull {
        /// Where it was noticed.
        path: PathBuf,
        /// The kernel's words.
        #[source]
        source: io::Error,
    },

    /// Another process has the store open.
    #[error("the image store {} is in use by another process: stop it, or give this one another data directory", path.display())]
    Busy {
        /// The store.
        path: PathBuf,
    },

    /// The file system under the store refused something.
    #[error("{doing} {} failed: {source}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// The kernel's words.
        source: io::Error,
    },

    /// An archive given to `import` is unusable.
    #[error("the archive cannot be imported: {reason}")]
    Archive {
        /// What is wrong and what is expected.
        reason: String,
    },

    /// The user of an image (`USER`, or the definition's) does not exist in it.
    #[error("the image has no {kind} `{name}`: name one from its /etc/{}, or a number", if *kind == "group" { "group" } else { "passwd" })]
    UnknownUser {
        /// `user` or `group`.
        kind: &'static str,
        /// The name.
        name: String,
    },

    /// A task of this process ended early (shutdown, or a defect).
    #[error("the work on an image was interrupted")]
    Interrupted {
        /// The cause.
        #[source]
        source: tokio::task::JoinError,
    },

    /// The same error, seen by several that waited for the same work.
    #[error(transparent)]
    Shared(Arc<Error>),
}

impl Error {
    /// Who has to act.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::Reference(_)
            | Self::NotFound { .. }
            | Self::AccessDenied { .. }
            | Self::Platform { .. }
            | Self::Manifest { .. }
            | Self::TooLarge { .. }
            | Self::Archive { .. }
            | Self::UnknownUser { .. } => Fault::User,
            Self::Layer { source, .. } => match source {
                unpack::UnpackError::Io { .. } | unpack::UnpackError::Cancelled => Fault::Host,
                _ => Fault::User,
            },
            Self::DigestMismatch { .. }
            | Self::SizeMismatch { .. }
            | Self::Status { .. }
            | Self::RateLimited { .. }
            | Self::Timeout { .. }
            | Self::Dns { .. }
            | Self::Transport { .. }
            | Self::Protocol { .. } => Fault::Registry,
            Self::Configuration { .. }
            | Self::DiskFull { .. }
            | Self::Busy { .. }
            | Self::Io { .. }
            | Self::Interrupted { .. } => Fault::Host,
            Self::Shared(error) => error.fault(),
        }
    }

    /// Whether the same request may succeed later with nothing changed by anybody.
    #[must_use]
    pub fn retryable(&self) -> bool {
        match self {
            Self::Status { status, .. } => *status >= 500 || *status == 408 || *status == 429,
            Self::DigestMismatch { .. }
            | Self::RateLimited { .. }
            | Self::Timeout { .. }
            | Self::Dns { .. }
            | Self::Transport { .. }
            | Self::DiskFull { .. }
            | Self::Interrupted { .. } => true,
            Self::Layer { source, .. } => matches!(source, unpack::UnpackError::Cancelled),
            Self::Shared(error) => error.retryable(),
            Self::Reference(_)
            | Self::NotFound { .. }
            | Self::AccessDenied { .. }
            | Self::Platform { .. }
            | Self::Manifest { .. }
            | Self::TooLarge { .. }
            | Self::SizeMismatch { .. }
            | Self::Protocol { .. }
            | Self::Configuration { .. }
            | Self::Busy { .. }
            | Self::Io { .. }
            | Self::Archive { .. }
            | Self::UnknownUser { .. } => false,
        }
    }

    /// Whether the registry could not be asked at all, so that a kept image is the best there is.
    #[must_use]
    pub fn unreachable(&self) -> bool {
        match self {
            Self::Status { status, .. } => *status >= 500 || *status == 429,
            Self::RateLimited { .. } | Self::Timeout { .. } | Self::Dns { .. } | Self::Transport { .. } => {
                true
            }
            Self::Shared(error) => error.unreachable(),
            _ => false,
        }
    }

    /// Whether nothing answered at all, so that it is not the registry that says no or asks to wait.
    #[must_use]
    pub fn unanswered(&self) -> bool {
        match self {
            Self::Timeout { .. } | Self::Dns { .. } | Self::Transport { .. } => true,
            Self::Shared(error) => error.unanswered(),
            _ => false,
        }
    }

    /// What the user of the platform reads: plain English, no path of this machine unless it is the operator
    /// who must act.
    #[must_use]
    pub fn user_message(&self) -> String {
        match self {
            Self::Io { .. } | Self::Interrupted { .. } => {
                "the image could not be stored on this machine: ask the operator to look at its log"
                    .to_owned()
            }
            Self::DiskFull { .. } => {
                "the disk that keeps images is full: ask the operator to free some space".to_owned()
            }
            // Certificates, refused connections: the last cause is the one that tells.
            Self::Transport { source, .. } => format!("{self} ({})", innermost(source)),
            Self::Shared(error) => error.user_message(),
            other => other.to_string(),
        }
    }

    /// Wraps a failure of the file system, telling a full disk apart.
    pub(crate) fn io(doing: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        let source = source.into();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull {
                path: path.to_owned(),
                source,
            },
            _ => Self::Io {
                doing,
                path: path.to_owned(),
                source,
            },
        }
    }
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

impl From<Arc<Error>> for Error {
    fn from(error: Arc<Error>) -> Self {
        match Arc::try_unwrap(error) {
            Ok(error) => error,
            Err(shared) => Self::Shared(shared),
        }
    }
}

impl From<tokio::task::JoinError> for Error {
    fn from(source: tokio::task::JoinError) -> Self {
        Self::Interrupted { source }
    }
}
