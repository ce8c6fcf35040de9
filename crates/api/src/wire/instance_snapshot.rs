//! Snapshots of instances.

use tram_types::{
    Int64, Timestamp,
    status::{InstanceSnapshotStatus, InstanceSnapshotType},
};

tram_types::message! {
    /// A snapshot of an instance.
    pub struct InstanceSnapshot {
        pub id: String,
        pub name: String,
        pub created_at: Option<Timestamp>,
        pub updated_at: Option<Timestamp>,
        pub available_at: Option<Timestamp>,
        pub deleted_at: Option<Timestamp>,
        pub organization_id: String,
        pub project_id: String,
        pub service_id: String,
        pub deployment_id: String,
        pub regional_deployment_id: String,
        pub instance_id: String,
        pub status: InstanceSnapshotStatus,
        pub r#type: InstanceSnapshotType,
        pub version: Int64,
        pub messages: Vec<String>,
        /// What it takes on the disk, in bytes (beyond Koyeb). Zero until it was taken.
        pub stored_bytes: Int64,
    }

    /// A snapshot to take.
    pub struct CreateInstanceSnapshotRequest {
        pub instance_id: String,
        pub name: String,
        pub r#type: InstanceSnapshotType,
    }

    /// The snapshot that is wanted.
    pub struct CreateInstanceSnapshotReply {
        pub instance_snapshot: Option<InstanceSnapshot>,
    }

    /// One snapshot.
    pub struct GetInstanceSnapshotReply {
        pub instance_snapshot: Option<InstanceSnapshot>,
    }

    /// A page of snapshots.
    pub struct ListInstanceSnapshotsReply {
        pub instance_snapshots: Vec<InstanceSnapshot>,
        pub limit: i64,
        pub offset: i64,
        pub count: i64,
        pub has_next: bool,
    }

    /// What reading a snapshot gave (beyond Koyeb).
    pub struct VerifyInstanceSnapshotReply {
        pub instance_snapshot: Option<InstanceSnapshot>,
        /// Every byte is as it was when it was taken.
        pub whole: bool,
        /// What is wrong, if it is not.
        pub message: String,
    }

    /// The snapshot that is being removed.
    pub struct DeleteInstanceSnapshotReply {
        pub instance_snapshot: Option<InstanceSnapshot>,
    }
}
