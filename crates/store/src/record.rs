//! The records we keep: plain structs, one a table, one member a column.
//!
//! The [`records!`] macro is the one place that maps a struct to its table: the names of the columns are the names
//! of the members, so that neither can drift from the other (a test compares them with the migrated database).

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use sqlx::any::AnyRow;

use crate::column::Cell;

pub mod compute;
pub mod edge;
pub mod history;
pub mod limit;
pub mod pool;
pub mod route;
pub mod snapshot;
pub mod tenancy;
pub mod volume;

pub use compute::{App, Deployment, Instance, RegionalDeployment, Service};
pub use edge::{Domain, ProxyPort, Secret};
pub use history::{Activity, Event};
pub use limit::ModelLimit;
pub use pool::{Claim, PoolMember, ServicePool};
pub use route::ModelRoute;
pub use snapshot::InstanceSnapshot;
pub use tenancy::{Credential, Organization, Project};
pub use volume::{Snapshot, Volume};

/// A struct that is a row of a table.
pub(crate) trait Record: Sized + Send {
    /// The table.
    const TABLE: &'static str;
    /// What messages to users call it.
    const KIND: &'static str;
    /// The columns, in the order of [`Record::cells`].
    const COLUMNS: &'static [&'static str];

    /// Reads a row that has at least these columns.
    fn from_row(row: &AnyRow) -> Result<Self, sqlx::Error>;

    /// What goes into each column.
    fn cells(&self) -> Vec<Cell>;

    /// `table.column, table.column, …`
    fn select_list() -> String {
        let mut list = String::new();
        for column in Self::COLUMNS {
            if !list.is_empty() {
                list.push_str(", ");
            }
            list.push_str(Self::TABLE);
            list.push('.');
            list.push_str(column);
        }
        list
    }
}

/// Declares structs that are rows of tables.
macro_rules! records {
    ($(
        $(#[$meta:meta])*
        pub struct $name:ident in $table:literal as $kind:literal {
            $( $(#[$member_meta:meta])* pub $member:ident: $type:ty ),* $(,)?
        }
    )+) => {$(
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq)]
        pub struct $name { $( $(#[$member_meta])* pub $member: $type, )* }

        impl $crate::record::Record for $name {
            const TABLE: &'static str = $table;
            const KIND: &'static str = $kind;
            const COLUMNS: &'static [&'static str] = &[$( stringify!($member) ),*];

            fn from_row(row: &sqlx::any::AnyRow) -> Result<Self, sqlx::Error> {
                Ok(Self { $( $member: $crate::column::read(row, stringify!($member))?, )* })
            }

            fn cells(&self) -> Vec<$crate::column::Cell> {
                vec![$( $crate::column::Column::to_cell(&self.$member) ),*]
            }
        }
    )+};
}
pub(crate) use records;

/// Declares an enumeration that is kept as a word.
macro_rules! words {
    ($(
        $(#[$meta:meta])*
        pub enum $name:ident { $( $(#[$variant_meta:meta])* $variant:ident = $word:literal ),+ $(,)? }
    )+) => {$(
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $name { $( $(#[$variant_meta])* #[serde(rename = $word)] $variant, )+ }

        impl $name {
            /// Every member.
            pub const ALL: &'static [Self] = &[$( Self::$variant ),+];

            /// The word in the database.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $( Self::$variant => $word ),+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.pad(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = UnknownWord;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Self::ALL.iter().copied().find(|member| member.as_str() == text).ok_or_else(|| UnknownWord {
                    given: text.to_owned(),
                    of: stringify!($name),
                })
            }
        }
    )+};
}

/// A word in the database that is no member of the enumeration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{given}` is no member of {of}")]
pub struct UnknownWord {
    /// What was found.
    pub given: String,
    /// The enumeration.
    pub of: &'static str,
}

words! {
    /// What the owner of an app or a service wants of it.
    pub enum Desired {
        /// It should run.
        Run = "RUN",
        /// It should hold nothing and answer nobody, and can be resumed.
        Pause = "PAUSE",
        /// It should be gone.
        Delete = "DELETE",
    }
    /// What a token may do.
    pub enum Role {
        /// Everything.
        Owner = "OWNER",
        /// Read all but secrets.
        ReadOnly = "READ_ONLY",
        /// Ask models, and nothing else.
        Models = "MODELS",
    }
    /// Whose questions to models a limit counts.
    pub enum LimitScope {
        /// Everybody's in the organization.
        Organization = "organization",
        /// Those to the services of a project.
        Project = "project",
        /// Those with one token.
        Credential = "credential",
    }
    /// The kinds of objects that have a history.
    pub enum ObjectKind {
        /// An organization.
        Organization = "organization",
        /// A project.
        Project = "project",
        /// An app.
        App = "app",
        /// A service.
        Service = "service",
        /// A deployment.
        Deployment = "deployment",
        /// A regional deployment.
        RegionalDeployment = "regional_deployment",
        /// An instance.
        Instance = "instance",
        /// A domain.
        Domain = "domain",
        /// A secret.
        Secret = "secret",
        /// An API token.
        Credential = "credential",
        /// A volume.
        Volume = "volume",
    }
}

/// How many instances the owner wants, whatever the definition says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManualScaling {
    /// `region:<id>` entries it is limited to; empty: every region.
    #[serde(default)]
    pub scopes: Vec<String>,
    /// How many.
    pub instances: u32,
    /// Whether the service does not fall asleep meanwhile: it waits in a pool to be taken.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keeps_awake: bool,
}
