//! Snapshots of volumes. Sizes are in GB.

use tram_types::{
    Timestamp,
    status::{SnapshotStatus, SnapshotType},
};

tram_types::message! {
    /// What a volume held at one moment.
    pub struct Snapshot {
        pub id: String,
        pub name: String,
        pub size: i64,
        pub created_at: Option<Timestamp>,
        pub updated_at: Option<Timestamp>,
        pub deleted_at: Option<Timestamp>,
        pub organization_id: String,
        pub parent_volume_id: String,
        pub region: String,
        pub status: SnapshotStatus,
        pub r#type: SnapshotType,
    }

    /// A snapshot to take.
    pub struct CreateSnapshotRequest {
        pub parent_volume_id: String,
        pub name: String,
        pub project_id: String,
    }

    /// What to change of a snapshot; what is left out stays.
    #[schema(as = UpdateSnapshotRequest)]
    pub struct UpdateSnapshot {
        pub name: String,
    }

    /// The answer of `create snapshot`.
    pub struct CreateSnapshotReply {
        pub snapshot: Option<Snapshot>,
    }

    /// The answer of `get snapshot`.
    pub struct GetSnapshotReply {
        pub snapshot: Option<Snapshot>,
    }

    /// The answer of `list snapshots`.
    pub struct ListSnapshotsReply {
        pub snapshots: Vec<Snapshot>,
        pub limit: i64,
        pub offset: i64,
        pub has_next: bool,
    }

    /// The answer of `update snapshot`.
    pub struct UpdateSnapshotReply {
        pub snapshot: Option<Snapshot>,
    }

    /// The answer of `delete snapshot`: the snapshot on its way out.
    pub struct DeleteSnapshotReply {
        pub snapshot: Option<Snapshot>,
    }
}
