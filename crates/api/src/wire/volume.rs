//! Persistent volumes. Sizes are in GB.

use std::collections::BTreeMap;

use tram_types::{
    Timestamp,
    status::{PersistentVolumeBackingStore, PersistentVolumeStatus},
};

tram_types::message! {
    /// A volume: what is kept when the instance that wrote it is gone.
    pub struct PersistentVolume {
        pub id: String,
        pub name: String,
        pub snapshot_id: String,
        pub created_at: Option<Timestamp>,
        pub updated_at: Option<Timestamp>,
        pub deleted_at: Option<Timestamp>,
        pub organization_id: String,
        pub service_id: String,
        pub region: String,
        pub read_only: bool,
        pub max_size: i64,
        pub cur_size: i64,
        pub status: PersistentVolumeStatus,
        pub backing_store: PersistentVolumeBackingStore,
    }

    /// A volume to make.
    pub struct CreatePersistentVolumeRequest {
        pub volume_type: PersistentVolumeBackingStore,
        pub name: String,
        pub region: String,
        pub read_only: bool,
        pub max_size: i64,
        pub snapshot_id: String,
        pub project_id: String,
    }

    /// What to change of a volume; what is left out stays.
    #[schema(as = UpdatePersistentVolumeRequest)]
    pub struct UpdatePersistentVolume {
        pub name: String,
        pub max_size: i64,
    }

    /// The answer of `create volume`.
    pub struct CreatePersistentVolumeReply {
        pub volume: Option<PersistentVolume>,
    }

    /// The answer of `get volume`.
    pub struct GetPersistentVolumeReply {
        pub volume: Option<PersistentVolume>,
    }

    /// The answer of `list volumes`.
    pub struct ListPersistentVolumesReply {
        pub volumes: Vec<PersistentVolume>,
        pub limit: i64,
        pub offset: i64,
        pub has_next: bool,
    }

    /// The answer of `update volume`.
    pub struct UpdatePersistentVolumeReply {
        pub volume: Option<PersistentVolume>,
    }

    /// The answer of `delete volume`: the volume on its way out.
    pub struct DeletePersistentVolumeReply {
        pub volume: Option<PersistentVolume>,
    }

    /// One entry of a volume's history.
    pub struct PersistentVolumeEvent {
        pub id: String,
        pub when: Option<Timestamp>,
        pub organization_id: String,
        pub persistent_volume_id: String,
        pub r#type: String,
        pub message: String,
        pub metadata: BTreeMap<String, serde_json::Value>,
    }

    /// The answer of `list volume events`.
    pub struct ListPersistentVolumeEventsReply {
        pub events: Vec<PersistentVolumeEvent>,
        pub limit: i64,
        pub offset: i64,
        pub order: String,
        pub has_next: bool,
    }
}
