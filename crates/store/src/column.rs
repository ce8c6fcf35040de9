//! How a Rust value is kept in a column that both databases understand: text or a 64-bit integer.

use std::str::FromStr;

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use sqlx::{Row as _, any::AnyRow};
use tram_types::{
    ActivityId, AppId, ClaimId, CredentialId, DeploymentId, DomainId, EventId, Generation, InstanceId,
    InstanceSnapshotId, OrganizationId, ProjectId, RegionalDeploymentId, SecretId, ServiceId, ServicePoolId,
    SnapshotId, Timestamp, VolumeId, inference, status,
};
use uuid::Uuid;

use crate::{
    error::Source,
    record::{Desired, LimitScope, ManualScaling, ObjectKind, Role},
};

/// What goes into a column.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Cell {
    /// TEXT.
    Text(Option<String>),
    /// BIGINT.
    Integer(Option<i64>),
}

/// A value that is kept in one column.
pub(crate) trait Column: Sized {
    /// To the database.
    fn to_cell(&self) -> Cell;
    /// From the database.
    fn from_cell(cell: Cell) -> Result<Self, Source>;
    /// Whether the column is TEXT.
    const IS_TEXT: bool;
}

/// Reads a column of a row.
pub(crate) fn read<T: Column>(row: &AnyRow, name: &'static str) -> Result<T, sqlx::Error> {
    let cell = if T::IS_TEXT {
        Cell::Text(row.try_get::<Option<String>, _>(name)?)
    } else {
        Cell::Integer(row.try_get::<Option<i64>, _>(name)?)
    };
    T::from_cell(cell).map_err(|source| sqlx::Error::ColumnDecode {
        index: name.to_owned(),
        source,
    })
}

fn text(cell: Cell) -> Result<String, Source> {
    match cell {
        Cell::Text(Some(text)) => Ok(text),
        other => Err(format!("expected text, found {other:?}").into()),
    }
}

fn integer(cell: Cell) -> Result<i64, Source> {
    match cell {
        Cell::Integer(Some(number)) => Ok(number),
        other => Err(format!("expected a number, found {other:?}").into()),
    }
}

impl<T: Column> Column for Option<T> {
    const IS_TEXT: bool = T::IS_TEXT;

    fn to_cell(&self) -> Cell {
        match self {
            Some(value) => value.to_cell(),
            None if T::IS_TEXT => Cell::Text(None),
            None => Cell::Integer(None),
        }
    }

    fn from_cell(cell: Cell) -> Result<Self, Source> {
        match cell {
            Cell::Text(None) | Cell::Integer(None) => Ok(None),
            cell => T::from_cell(cell).map(Some),
        }
    }
}

impl Column for String {
    const IS_TEXT: bool = true;

    fn to_cell(&self) -> Cell {
        Cell::Text(Some(self.clone()))
    }

    fn from_cell(cell: Cell) -> Result<Self, Source> {
        text(cell)
    }
}

/// Kept as what `Display` prints and `FromStr` reads.
macro_rules! as_text {
    ($($type:ty),+ $(,)?) => {$(
        impl Column for $type {
            const IS_TEXT: bool = true;

            fn to_cell(&self) -> Cell {
                Cell::Text(Some(self.to_string()))
            }

            fn from_cell(cell: Cell) -> Result<Self, Source> {
                Ok(<$type>::from_str(&text(cell)?)?)
            }
        }
    )+};
}

as_text!(
    ActivityId,
    AppId,
    ClaimId,
    CredentialId,
    DeploymentId,
    DomainId,
    EventId,
    InstanceId,
    InstanceSnapshotId,
    OrganizationId,
    ProjectId,
    RegionalDeploymentId,
    SecretId,
    ServiceId,
    ServicePoolId,
    VolumeId,
    SnapshotId,
    Uuid,
    Desired,
    Role,
    ObjectKind,
    LimitScope,
    inference::Priority,
    status::AppStatus,
    status::ServiceStatus,
    status::DeploymentStatus,
    status::RegionalDeploymentStatus,
    status::InstanceStatus,
    status::InstanceSnapshotStatus,
    status::InstanceSnapshotType,
    status::DomainStatus,
    status::DomainType,
    status::ServiceType,
    status::SecretType,
    status::PoolClaimStatus,
    status::CredentialType,
    status::PersistentVolumeStatus,
    status::SnapshotStatus,
);

/// Kept as a 64-bit integer.
macro_rules! as_integer {
    ($($type:ty),+ $(,)?) => {$(
        impl Column for $type {
            const IS_TEXT: bool = false;

            fn to_cell(&self) -> Cell {
                Cell::Integer(Some(i64::try_from(*self).unwrap_or(i64::MAX)))
            }

            fn from_cell(cell: Cell) -> Result<Self, Source> {
                Ok(Self::try_from(integer(cell)?)?)
            }
        }
    )+};
}

as_integer!(i64, u64, u32, u16);

impl Column for bool {
    const IS_TEXT: bool = false;

    fn to_cell(&self) -> Cell {
        Cell::Integer(Some(i64::from(*self)))
    }

    fn from_cell(cell: Cell) -> Result<Self, Source> {
        Ok(integer(cell)? != 0)
    }
}

impl Column for Timestamp {
    const IS_TEXT: bool = false;

    fn to_cell(&self) -> Cell {
        Cell::Integer(Some(self.as_micros()))
    }

    fn from_cell(cell: Cell) -> Result<Self, Source> {
        integer(cell).map(Self::from_micros)
    }
}

impl Column for Generation {
    const IS_TEXT: bool = false;

    fn to_cell(&self) -> Cell {
        self.0.to_cell()
    }

    fn from_cell(cell: Cell) -> Result<Self, Source> {
        u64::from_cell(cell).map(Self)
    }
}

fn to_json<T: Serialize>(value: &T) -> Cell {
    // Maps with keys that are no strings are the only way to fail, and no type below has one.
    Cell::Text(Some(
        serde_json::to_string(value).unwrap_or_else(|_| "null".to_owned()),
    ))
}

fn from_json<T: DeserializeOwned>(cell: Cell) -> Result<T, Source> {
    Ok(serde_json::from_str(&text(cell)?)?)
}

/// Kept as a JSON document.
macro_rules! as_json {
    ($($type:ty),+ $(,)?) => {$(
        impl Column for $type {
            const IS_TEXT: bool = true;

            fn to_cell(&self) -> Cell {
                to_json(self)
            }

            fn from_cell(cell: Cell) -> Result<Self, Source> {
                from_json(cell)
            }
        }
    )+};
}

as_json!(Value, Vec<String>, Vec<ManualScaling>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_reads_back() {
        fn check<T: Column + PartialEq + std::fmt::Debug>(value: T) {
            assert_eq!(T::from_cell(value.to_cell()).unwrap(), value);
        }
        check(ServiceId::random());
        check(Some(Timestamp::from_micros(1_795_000_000_123_456)));
        check(None::<Timestamp>);
        check(None::<AppId>);
        check(Desired::Pause);
        check(status::ServiceType::Invalid);
        check(u16::MAX);
        check(Generation(7));
        check(true);
        check(vec!["a".to_owned()]);
        check(serde_json::json!({"b": [1, null]}));
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        assert!(u16::from_cell(Cell::Integer(Some(65_536))).is_err());
        assert!(Desired::from_cell(Cell::Text(Some("NAP".to_owned()))).is_err());
        assert!(bool::from_cell(Cell::Integer(None)).is_err());
    }
}
