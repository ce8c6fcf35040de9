//! The contract of persistent volumes: what is kept when the instance that wrote it is gone.
//!
//! A volume belongs to one site and is used by one instance at a time; an instance names its volumes in its
//! [`InstanceSpec`](crate::InstanceSpec), and the site shows them to it at their paths and to nobody else. A snapshot is
//! what a volume held at one moment, independent of the volume from then on.
//!
//! Every method is idempotent and returns when what it says is true and would survive a power cut. They may take as
//! long as copying takes. What a site needs for it: this machine keeps files; a cluster would keep a
//! PersistentVolumeClaim and a VolumeSnapshot of the same id.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tram_types::{InstanceId, SnapshotId, VolumeId};

use crate::Error;

/// A volume to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VolumeSpec {
    /// Which.
    pub id: VolumeId,
    /// How large it should be, in bytes. One that is smaller is grown; none is ever made smaller.
    pub size_bytes: u64,
    /// What it holds when it is made: nothing, or what this snapshot has.
    pub from: Option<SnapshotId>,
}

/// A volume at a path of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountSpec {
    /// Which.
    pub volume: VolumeId,
    /// Where, absolute.
    pub path: String,
    /// Whether the instance may only read it.
    pub read_only: bool,
}

/// What is seen of one volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObservedVolume {
    /// Which.
    pub id: VolumeId,
    /// How large it is, in bytes.
    pub size_bytes: u64,
    /// How much of it is in use, in bytes, where that can be told.
    pub used_bytes: Option<u64>,
    /// The instance that has it, from before it can reach it until it cannot any more.
    pub attached_to: Option<InstanceId>,
}

/// A place that keeps volumes.
#[async_trait]
pub trait Volumes: Send + Sync + std::fmt::Debug {
    /// How many bytes of new volumes could be promised now; `None`: the site cannot tell and will take any.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when it cannot look.
    async fn room(&self) -> Result<Option<u64>, Error>;

    /// Makes a volume, or grows it to the size. An instance that uses it may see the new size only when it is started
    /// anew.
    ///
    /// # Errors
    /// [`Error::Refused`] when there is no room for it or no such snapshot, [`Error::Unavailable`].
    async fn ensure_volume(&self, volume: &VolumeSpec) -> Result<(), Error>;

    /// Removes a volume and all that is in it. Removing one unknown succeeds.
    ///
    /// # Errors
    /// [`Error::Refused`] while it is attached, [`Error::Unavailable`].
    async fn remove_volume(&self, id: VolumeId) -> Result<(), Error>;

    /// Keeps what a volume holds now: all that was written before the call and, of what is written meanwhile, what a
    /// file system has after a power cut. A snapshot that is there stays as it is.
    ///
    /// # Errors
    /// [`Error::Refused`] when there is no such volume or no room, [`Error::Unavailable`].
    async fn ensure_snapshot(&self, id: SnapshotId, of: VolumeId) -> Result<(), Error>;

    /// Removes a snapshot. Removing one unknown succeeds.
    ///
    /// # Errors
    /// [`Error::Unavailable`].
    async fn remove_snapshot(&self, id: SnapshotId) -> Result<(), Error>;

    /// Every volume the site has.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when it cannot look; nothing may be concluded then.
    async fn observe_volumes(&self) -> Result<Vec<ObservedVolume>, Error>;
}
