//! Volumes and snapshots as clients see them.

use tram_store::record;
use tram_types::{
    status::{PersistentVolumeBackingStore, SnapshotType},
    units::GIB,
};

use super::{count, id};
use crate::wire::{snapshot::Snapshot, volume::PersistentVolume};

pub(crate) fn volume(volume: &record::Volume) -> PersistentVolume {
    PersistentVolume {
        id: volume.id.to_string(),
        name: volume.name.clone(),
        snapshot_id: id(volume.snapshot_id),
        created_at: Some(volume.created_at),
        updated_at: Some(volume.updated_at),
        deleted_at: None,
        organization_id: volume.organization_id.to_string(),
        service_id: id(volume.service_id),
        region: volume.region.clone(),
        read_only: volume.read_only,
        max_size: i64::from(volume.max_size),
        // Something is never shown as nothing.
        cur_size: count(volume.used_bytes.div_ceil(GIB)),
        status: volume.status,
        backing_store: PersistentVolumeBackingStore::LocalBlk,
    }
}

pub(crate) fn snapshot(snapshot: &record::Snapshot) -> Snapshot {
    Snapshot {
        id: snapshot.id.to_string(),
        name: snapshot.name.clone(),
        size: i64::from(snapshot.size),
        created_at: Some(snapshot.created_at),
        updated_at: Some(snapshot.updated_at),
        deleted_at: None,
        organization_id: snapshot.organization_id.to_string(),
        parent_volume_id: snapshot.volume_id.to_string(),
        region: snapshot.region.clone(),
        status: snapshot.status,
        r#type: SnapshotType::Local,
    }
}
