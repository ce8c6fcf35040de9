//! Volumes by the contract, and which instance has which.

use async_trait::async_trait;
use tram_site::{Error, ObservedVolume, VolumeSpec, Volumes};
use tram_types::{InstanceId, SnapshotId, VolumeId};

use super::LocalSite;
use super::entries::Live;

#[async_trait]
impl Volumes for LocalSite {
    async fn room(&self) -> Result<Option<u64>, Error> {
        self.shared.volumes.room().await
    }

    async fn ensure_volume(&self, volume: &VolumeSpec) -> Result<(), Error> {
        self.shared.volumes.ensure(volume).await
    }

    async fn remove_volume(&self, id: VolumeId) -> Result<(), Error> {
        self.shared.volumes.remove(id).await
    }

    async fn ensure_snapshot(&self, id: SnapshotId, of: VolumeId) -> Result<(), Error> {
        self.shared.volumes.ensure_snapshot(id, of).await
    }

    async fn remove_snapshot(&self, id: SnapshotId) -> Result<(), Error> {
        self.shared.volumes.remove_snapshot(id).await
    }

    async fn observe_volumes(&self) -> Result<Vec<ObservedVolume>, Error> {
        let volumes = &self.shared.volumes;
        let mut observed = Vec::new();
        for (id, size_bytes) in volumes.list().await? {
            let attached_to = match self.user_of(id) {
                Some((instance, true)) => Some(instance),
                // It is over; its mounts may be on their way out.
                Some((instance, false)) if volumes.is_held(id).await? => Some(instance),
                _ => None,
            };
            observed.push(ObservedVolume {
                id,
                size_bytes,
                used_bytes: volumes.used_bytes(id, attached_to.is_some()).await,
                attached_to,
            });
        }
        Ok(observed)
    }
}

impl LocalSite {
    /// The instance that has a volume, or had it last, and whether it is not over.
    fn user_of(&self, id: VolumeId) -> Option<(InstanceId, bool)> {
        let entries = self.shared.lock();
        let users = entries
            .values()
            .filter(|entry| entry.record.spec.volumes.iter().any(|mount| mount.volume == id));
        users
            .map(|entry| (!matches!(entry.live, Live::Over), entry.record.spec.id))
            .max()
            .map(|(lives, instance)| (instance, lives))
    }
}
