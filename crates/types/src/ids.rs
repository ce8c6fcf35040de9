//! Identifiers: one type a kind of object, so that ids never mix.
//!
//! On the wire and in the database an id is a lower-case, dashed UUID version 4.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// What was given as an id is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{given}` is not a valid {kind} id: expected a UUID such as `7a3c1f0e-0000-4000-8000-000000000000`")]
pub struct InvalidId {
    /// Which kind of object the id should have named.
    pub kind: &'static str,
    /// The text that was given, shortened when long.
    pub given: String,
}

/// Longest part of a wrong id that is repeated in an error message, in characters.
const SHOWN_CHARACTERS: usize = 64;

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident = $kind:literal;)+) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// The kind of object this identifies, as messages to users name it.
            pub const KIND: &'static str = $kind;

            /// A new random id.
            #[must_use]
            pub fn random() -> Self {
                Self(Uuid::new_v4())
            }

            /// The id with this UUID.
            #[must_use]
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// The UUID inside.
            #[must_use]
            pub const fn uuid(self) -> Uuid {
                self.0
            }

            /// The first eight hexadecimal characters: what people read, and the instance's host name.
            #[must_use]
            pub fn short(self) -> String {
                let mut text = self.0.simple().to_string();
                text.truncate(8);
                text
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(formatter)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(formatter, "{}({})", stringify!($name), self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::parse_str(text).map(Self).map_err(|_| InvalidId {
                    kind: $kind,
                    given: text.chars().take(SHOWN_CHARACTERS).collect(),
                })
            }
        }

        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
                <String as utoipa::PartialSchema>::schema()
            }
        }

        impl utoipa::ToSchema for $name {
            fn name() -> std::borrow::Cow<'static, str> {
                std::borrow::Cow::Borrowed("string")
            }
        }
    )+};
}

ids! {
    /// A tenant.
    OrganizationId = "organization";
    /// A group of services, secrets and domains inside an organization.
    ProjectId = "project";
    /// A namespace of services with domains.
    AppId = "app";
    /// What a user keeps running.
    ServiceId = "service";
    /// One immutable version of a service's definition.
    DeploymentId = "deployment";
    /// A deployment in one region.
    RegionalDeploymentId = "regional deployment";
    /// One running copy of a deployment.
    InstanceId = "instance";
    /// A stored secret.
    SecretId = "secret";
    /// A host name that leads to an app.
    DomainId = "domain";
    /// An API token.
    CredentialId = "credential";
    /// One entry of an object's history.
    EventId = "event";
    /// One entry of the audit feed.
    ActivityId = "activity";
    /// A persistent volume.
    VolumeId = "volume";
    /// What a volume held at one moment.
    SnapshotId = "snapshot";
    /// Services that are kept ready to be taken.
    ServicePoolId = "service pool";
    /// A service that was taken from a pool.
    ClaimId = "claim";
    /// A snapshot of an instance.
    InstanceSnapshotId = "instance snapshot";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back_what_it_prints() {
        let id = ServiceId::random();
        assert_eq!(id.to_string().parse::<ServiceId>(), Ok(id));
        assert_eq!(id.short().len(), 8);
        assert!(id.to_string().starts_with(&id.short()));
    }

    #[test]
    fn a_wrong_id_says_what_was_expected() {
        let error = "nonsense".parse::<AppId>().unwrap_err();
        assert!(error.to_string().contains("`nonsense` is not a valid app id"));
    }
}
