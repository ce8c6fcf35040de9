//! Volumes of the site in memory: sizes and who has them, without anything in them.

use async_trait::async_trait;
use tram_site::{Error, ObservedVolume, VolumeSpec, Volumes};
use tram_types::{SnapshotId, VolumeId};

use super::FakeSite;

#[async_trait]
impl Volumes for FakeSite {
    async fn room(&self) -> Result<Option<u64>, Error> {
        self.reachable().map(|_| None)
    }

    async fn ensure_volume(&self, volume: &VolumeSpec) -> Result<(), Error> {
        let mut state = self.reachable()?;
        if let Some(from) = volume.from
            && !state.snapshots.contains(&from)
        {
            return Err(refused("there is no such snapshot"));
        }
        let size = state.volumes.entry(volume.id).or_default();
        *size = volume.size_bytes.max(*size);
        Ok(())
    }

    async fn remove_volume(&self, id: VolumeId) -> Result<(), Error> {
        let mut state = self.reachable()?;
        if user_of(&state, id).is_some() {
            return Err(refused("the volume is still attached to an instance"));
        }
        state.volumes.remove(&id);
        Ok(())
    }

    async fn ensure_snapshot(&self, id: SnapshotId, of: VolumeId) -> Result<(), Error> {
        let mut state = self.reachable()?;
        if !state.volumes.contains_key(&of) {
            return Err(refused("there is no such volume"));
        }
        state.snapshots.insert(id);
        Ok(())
    }

    async fn remove_snapshot(&self, id: SnapshotId) -> Result<(), Error> {
        self.reachable()?.snapshots.remove(&id);
        Ok(())
    }

    async fn observe_volumes(&self) -> Result<Vec<ObservedVolume>, Error> {
        let state = self.reachable()?;
        let observed = state.volumes.iter().map(|(id, size_bytes)| ObservedVolume {
            id: *id,
            size_bytes: *size_bytes,
            used_bytes: Some(0),
            attached_to: user_of(&state, *id),
        });
        Ok(observed.collect())
    }
}

fn user_of(state: &super::State, id: VolumeId) -> Option<tram_types::InstanceId> {
    let mut live = state
        .instances
        .values()
        .filter(|instance| !instance.phase.is_ended());
    live.find(|instance| instance.spec.volumes.iter().any(|mount| mount.volume == id))
        .map(|instance| instance.spec.id)
}

fn refused(message: &str) -> Error {
    Error::Refused {
        message: message.to_owned(),
    }
}
