//! Snapshots of instances.

use serde_json::Value;
use tram_types::{
    DeploymentId, InstanceId, InstanceSnapshotId, OrganizationId, ProjectId, RegionalDeploymentId, ServiceId,
    Timestamp,
    status::{InstanceSnapshotStatus, InstanceSnapshotType},
};

use crate::record::records;

records! {
    /// A snapshot of an instance. It outlives the instance and its service.
    pub struct InstanceSnapshot in "instance_snapshots" as "instance snapshot" {
        /// Its id.
        pub id: InstanceSnapshotId,
        /// Its organization.
        pub organization_id: OrganizationId,
        /// Its project, if any.
        pub project_id: Option<ProjectId>,
        /// The service it was taken of.
        pub service_id: ServiceId,
        /// The deployment it was taken of.
        pub deployment_id: DeploymentId,
        /// The regional deployment it was taken of.
        pub regional_deployment_id: RegionalDeploymentId,
        /// The instance it was taken of.
        pub instance_id: InstanceId,
        /// Where it is.
        pub region: String,
        /// Chosen by the user; need not be unique.
        pub name: String,
        /// What it holds.
        pub kind: InstanceSnapshotType,
        /// How far it got.
        pub status: InstanceSnapshotStatus,
        /// What to know about the status.
        pub messages: Vec<String>,
        /// The `docker` member of the definition it was taken of: a disk fits the image below it alone.
        pub docker: Value,
        /// How large the disk is, in bytes.
        pub disk_bytes: u64,
        /// Counts changes.
        pub version: i64,
        /// Since when it can be used.
        pub available_at: Option<Timestamp>,
        /// When it was removed.
        pub deleted_at: Option<Timestamp>,
        /// When it was wanted.
        pub created_at: Timestamp,
        /// When a member last changed.
        pub updated_at: Timestamp,
    }
}
