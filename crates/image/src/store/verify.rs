//! The check before a deployment is made: would this image run here? Only manifests are fetched.
//!
//! The codes are those of Koyeb's `docker-helper/verify`; the reasons are ours.

use std::sync::Arc;

use super::ImageStore;
use crate::error::Error;
use crate::reference::{ParseError, Reference};
use crate::registry::{Credentials, Source};

/// The outcome of [`ImageStore::verify`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verification {
    /// What is wrong, or `None` when the image can be deployed.
    pub code: Option<VerifyCode>,
    /// Plain English for the user. Empty on plain success; otherwise also a remark on it.
    pub reason: String,
}

impl Verification {
    /// Whether the image can be deployed.
    #[must_use]
    pub fn success(&self) -> bool {
        self.code.is_none()
    }
}

/// Why an image cannot be deployed, in the words of the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VerifyCode {
    /// Credentials were sent and refused.
    AuthAccessDenied,
    /// Refused without credentials.
    AnonAccessDenied,
    /// Not there, with credentials.
    AuthNotFound,
    /// Not there, without credentials.
    AnonNotFound,
    /// The registry failed, or is no registry.
    RegistryError,
    /// The registry hangs.
    Timeout,
    /// The registry's name does not resolve.
    Dns,
    /// The name is no image name.
    Malformed,
    /// For another operating system.
    InvalidOs,
    /// For another processor.
    InvalidArch,
    /// The name has a scheme such as `https://`.
    InvalidScheme,
    /// Anything else.
    Generic,
}

impl VerifyCode {
    /// As on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AuthAccessDenied => "AUTH_ACCESS_DENIED",
            Self::AnonAccessDenied => "ANON_ACCESS_DENIED",
            Self::AuthNotFound => "AUTH_NOT_FOUND",
            Self::AnonNotFound => "ANON_NOT_FOUND",
            Self::RegistryError => "REGISTRY_ERROR",
            Self::Timeout => "TIMEOUT",
            Self::Dns => "DNS",
            Self::Malformed => "MALFORMED",
            Self::InvalidOs => "INVALID_OS",
            Self::InvalidArch => "INVALID_ARCH",
            Self::InvalidScheme => "INVALID_SCHEME",
            Self::Generic => "GENERIC",
        }
    }

    /// The code of an error.
    #[must_use]
    pub fn of(error: &Error) -> Self {
        match error {
            Error::Reference(ParseError::Scheme { .. }) => Self::InvalidScheme,
            Error::Reference(_) => Self::Malformed,
            Error::NotFound {
                authenticated: true, ..
            } => Self::AuthNotFound,
            Error::NotFound {
                authenticated: false, ..
            } => Self::AnonNotFound,
            Error::AccessDenied {
                authenticated: true, ..
            } => Self::AuthAccessDenied,
            Error::AccessDenied {
                authenticated: false, ..
            } => Self::AnonAccessDenied,
            Error::Platform {
                operating_system: true,
                ..
            } => Self::InvalidOs,
            Error::Platform {
                operating_system: false,
                ..
            } => Self::InvalidArch,
            Error::Timeout { .. } => Self::Timeout,
            Error::Dns { .. } => Self::Dns,
            Error::Status { .. }
            | Error::RateLimited { .. }
            | Error::Transport { .. }
            | Error::Protocol { .. }
            | Error::DigestMismatch { .. }
            | Error::SizeMismatch { .. } => Self::RegistryError,
            Error::Shared(error) => Self::of(error),
            Error::Manifest { .. }
            | Error::TooLarge { .. }
            | Error::Layer { .. }
            | Error::Configuration { .. }
            | Error::DiskFull { .. }
            | Error::Busy { .. }
            | Error::Io { .. }
            | Error::Archive { .. }
            | Error::UnknownUser { .. }
            | Error::Interrupted { .. } => Self::Generic,
        }
    }
}

impl ImageStore {
    /// Checks that an image exists, may be pulled with these credentials, and runs on this machine.
    ///
    /// Takes text, because a malformed name is one of the answers. An image that was imported passes unasked, and
    /// one that is kept here when its registry cannot be reached: a deployment would use it too.
    pub async fn verify(&self, image: &str, credentials: Option<&Credentials>) -> Verification {
        match self.try_verify(image, credentials).await {
            Ok(reason) => Verification { code: None, reason },
            Err(error) => Verification {
                code: Some(VerifyCode::of(&error)),
                reason: error.user_message(),
            },
        }
    }

    async fn try_verify(&self, image: &str, credentials: Option<&Credentials>) -> Result<String, Error> {
        let reference: Reference = image.parse()?;
        let (reference, credentials) = self.aliased(&reference, credentials);
        let holder = self.holder(&reference, credentials);
        if let Some((record, _)) = self.kept(&reference).await?
            && record.is_imported()
        {
            return Ok("the image imported on this machine will be used".to_owned());
        }
        let source = Source::new(
            Arc::clone(&self.inner.client),
            reference.clone(),
            credentials.cloned(),
        )?
        .brief();
        let described = match source.resolve().await {
            Ok(resolved) => self.describe(&source, resolved).await.map(drop),
            Err(error) => Err(error),
        };
        match described {
            Err(error) if error.unreachable() => match self.kept(&reference).await? {
                Some((record, _)) if record.allows(holder.as_ref()) => Ok(format!(
                    "the copy kept on this machine will be used: {}",
                    error.user_message()
                )),
                _ => Err(error),
            },
            other => other.map(|()| String::new()),
        }
    }
}
