//! Ids, units, names, definitions, statuses, state machines and validation.
//!
//! Everything here is plain data and pure functions: no I/O, no clock of its own, no tokio. Every other crate of
//! the house speaks in these terms. The names are those of the wire contract (Koyeb's object model), so one idea
//! has one name in code, API, command line and documentation.
//!
//! Where to start: [`definition`] is what a user asks for, [`status`] what they are shown, [`machine`] which
//! changes of status are legal, [`catalog`] what there is to run on.

// The macros of `message` name this crate by its outside name, so that other crates can use them too.
extern crate self as tram_types;

pub mod bound;
pub mod catalog;
pub mod definition;
pub mod effective;
pub mod egress;
pub mod engine;
pub mod gpu;
pub mod ids;
pub mod inference;
pub mod interpolate;
pub mod isolation;
pub mod machine;
pub mod message;
pub mod names;
pub mod routing;
pub mod status;
pub mod time;
pub mod units;
pub mod validate;

pub use ids::{
    ActivityId, AppId, ClaimId, CredentialId, DeploymentId, DomainId, EventId, InstanceId,
    InstanceSnapshotId, OrganizationId, ProjectId, RegionalDeploymentId, SecretId, ServiceId, ServicePoolId,
    SnapshotId, VolumeId,
};
pub use isolation::Isolation;
pub use message::{FieldViolation, Int64};
pub use time::{Clock, SystemClock, Timestamp};
pub use units::Generation;
