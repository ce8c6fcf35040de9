//! What outlives instances: volumes and snapshots of them. Sizes are in GB, as the wire contract has them.

use tram_types::{
    OrganizationId, ProjectId, ServiceId, SnapshotId, Timestamp, VolumeId,
    status::{PersistentVolumeStatus, SnapshotStatus},
};

use crate::record::records;

records! {
    /// A persistent volume.
    pub struct Volume in "volumes" as "volume" {
        /// Its id.
        pub id: VolumeId,
        /// Its organization.
        pub organization_id: OrganizationId,
        /// Its project; `None`: the whole organization may use it.
        pub project_id: Option<ProjectId>,
        /// Unique in the project, or among the organization's own.
        pub name: String,
        /// The (resolved) region it is in for good.
        pub region: String,
        /// How large its owner wants it, in GB; never less than before.
        pub max_size: u32,
        /// How large its site made it, in GB; 0 until it is there.
        pub made_size: u32,
        /// How much of it was in use when that was last looked at.
        pub used_bytes: u64,
        /// Whether instances may only read it.
        pub read_only: bool,
        /// The snapshot it was made from, if any.
        pub snapshot_id: Option<SnapshotId>,
        /// The service that has it to itself, if any.
        pub service_id: Option<ServiceId>,
        /// DELETING is what its owner wants; ATTACHED and DETACHED were seen at the site.
        pub status: PersistentVolumeStatus,
        /// When it was made.
        pub created_at: Timestamp,
        /// When a member last changed.
        pub updated_at: Timestamp,
    }

    /// What a volume held at one moment.
    pub struct Snapshot in "snapshots" as "snapshot" {
        /// Its id.
        pub id: SnapshotId,
        /// Its organization.
        pub organization_id: OrganizationId,
        /// Its project; `None`: the whole organization may use it.
        pub project_id: Option<ProjectId>,
        /// Unique in the project, or among the organization's own.
        pub name: String,
        /// The volume it is of, which may be gone.
        pub volume_id: VolumeId,
        /// The (resolved) region it is in.
        pub region: String,
        /// The size of the volume, in GB.
        pub size: u32,
        /// CREATING and DELETING are what its owner wants; AVAILABLE was confirmed by the site.
        pub status: SnapshotStatus,
        /// When it was asked for.
        pub created_at: Timestamp,
        /// When a member last changed.
        pub updated_at: Timestamp,
    }
}
