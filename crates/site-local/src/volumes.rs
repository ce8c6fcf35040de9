//! Volumes and their snapshots on this machine: one file each.
//!
//! ```text
//! <state>/local/volumes/<id>            a volume, with its file system
//! <state>/local/volume-snapshots/<id>   what a volume held
//! ```
//!
//! Called by the contract. There is no record beside the files: a file is there when it is whole, its length is the
//! volume's size, and its lock says whether something has it (`tram_sandbox::volume`).

use std::collections::HashMap;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tram_sandbox::protocol::VolumeMount;
use tram_sandbox::volume::{self, Live, Space};
use tram_site::{Error, InstanceSpec, VolumeSpec};
use tram_types::units::GIB;
use tram_types::{SnapshotId, VolumeId};

/// What is in a volume is for root alone, and for the instance that has it.
const DIRECTORY_MODE: u32 = 0o700;
/// A look at how full a mounted volume is takes a mount; people read the figure, so it may be this old.
const USED_KEPT: Duration = Duration::from_secs(20);

/// The files of volumes.
#[derive(Debug)]
pub(crate) struct Volumes {
    volumes: PathBuf,
    snapshots: PathBuf,
    space: Space,
    used: Mutex<HashMap<VolumeId, (Instant, Option<u64>)>>,
}

impl Volumes {
    /// Below `root`, whose path has no links in it. A file system that was left frozen goes on.
    pub(crate) fn open(root: &Path, overcommit: bool) -> io::Result<Self> {
        let (volumes, snapshots) = (root.join("volumes"), root.join("volume-snapshots"));
        for directory in [&volumes, &snapshots] {
            DirBuilder::new()
                .recursive(true)
                .mode(DIRECTORY_MODE)
                .create(directory)?;
        }
        volume::thaw_all(&volumes)?;
        Ok(Self {
            volumes,
            snapshots,
            space: if overcommit {
                Space::AsWritten
            } else {
                Space::Reserved
            },
            used: Mutex::default(),
        })
    }

    fn path(&self, id: VolumeId) -> PathBuf {
        self.volumes.join(id.to_string())
    }

    fn snapshot_path(&self, id: SnapshotId) -> PathBuf {
        self.snapshots.join(id.to_string())
    }

    /// What an instance is shown. One that is not there yet is worth another try: it may be in the making.
    pub(crate) fn mounts(&self, spec: &InstanceSpec) -> Result<Vec<VolumeMount>, Error> {
        let mount = |mount: &tram_site::MountSpec| {
            let file = self.path(mount.volume);
            if !file.is_file() {
                return Err(Error::Unavailable {
                    message: format!("the volume for {} is not there yet: it is being made", mount.path),
                    source: None,
                });
            }
            Ok(VolumeMount {
                file,
                target: mount.path.trim_end_matches('/').into(),
                readonly: mount.read_only,
            })
        };
        spec.volumes.iter().map(mount).collect()
    }

    pub(crate) async fn room(&self) -> Result<Option<u64>, Error> {
        if self.space == Space::AsWritten {
            return Ok(None);
        }
        let directory = self.volumes.clone();
        blocking("see how much room there is", move || volume::room(&directory))
            .await
            .map(Some)
    }

    pub(crate) async fn ensure(&self, wanted: &VolumeSpec) -> Result<(), Error> {
        let (path, space, bytes) = (self.path(wanted.id), self.space, wanted.size_bytes);
        let from = wanted.from.map(|id| self.snapshot_path(id));
        let there = std::fs::metadata(&path).map_or(0, |found| found.len());
        self.check_room(bytes.saturating_sub(there)).await?;
        if let Some(from) = &from
            && there == 0
            && !from.is_file()
        {
            return Err(Error::Refused {
                message: "the snapshot that the volume is to be made from is not on this machine".to_owned(),
            });
        }
        let made = blocking("make the volume", move || {
            match from {
                Some(from) => volume::make_from(&path, &from, bytes, space)?,
                None => volume::make(&path, bytes, space)?,
            }
            volume::grow(&path, bytes, space)
        });
        made.await
    }

    async fn check_room(&self, asked: u64) -> Result<(), Error> {
        match self.room().await? {
            Some(room) if room < asked => Err(Error::Refused {
                message: no_room(asked, room),
            }),
            _ => Ok(()),
        }
    }

    pub(crate) async fn remove(&self, id: VolumeId) -> Result<(), Error> {
        let path = self.path(id);
        self.used().remove(&id);
        match blocking("remove the volume", move || volume::remove(&path)).await? {
            true => Ok(()),
            false => Err(Error::Refused {
                message: "the volume is still attached to an instance".to_owned(),
            }),
        }
    }

    pub(crate) async fn ensure_snapshot(&self, id: SnapshotId, of: VolumeId) -> Result<(), Error> {
        let (path, of) = (self.snapshot_path(id), self.path(of));
        if path.is_file() {
            return Ok(());
        }
        if !of.is_file() {
            return Err(Error::Refused {
                message: "the volume is not on this machine".to_owned(),
            });
        }
        let directory = self.snapshots.clone();
        let taken = blocking("take the snapshot", move || {
            // About as much as is copied.
            let (asked, room) = (volume::used_bytes(&of)?, volume::room(&directory)?);
            if room < asked {
                return Ok(Err(no_room(asked, room)));
            }
            volume::snapshot(&path, &of).map(Ok)
        });
        taken.await?.map_err(|message| Error::Refused { message })
    }

    pub(crate) async fn remove_snapshot(&self, id: SnapshotId) -> Result<(), Error> {
        let path = self.snapshot_path(id);
        blocking("remove the snapshot", move || volume::remove(&path))
            .await
            .map(drop)
    }

    /// Every volume with its size.
    pub(crate) async fn list(&self) -> Result<Vec<(VolumeId, u64)>, Error> {
        let directory = self.volumes.clone();
        let found = blocking("look at the volumes", move || volume::list(&directory)).await?;
        let named = |(path, bytes): (PathBuf, u64)| Some((path.file_name()?.to_str()?.parse().ok()?, bytes));
        Ok(found.into_iter().filter_map(named).collect())
    }

    /// Whether something could still write to it.
    pub(crate) async fn is_held(&self, id: VolumeId) -> Result<bool, Error> {
        let path = self.path(id);
        blocking("look at a volume", move || volume::is_attached(&path)).await
    }

    /// How much of it is in use; not looked at anew within a while.
    pub(crate) async fn used_bytes(&self, id: VolumeId, attached: bool) -> Option<u64> {
        if let Some((at, used)) = self.used().get(&id)
            && at.elapsed() < USED_KEPT
        {
            return *used;
        }
        let path = self.path(id);
        let look = move || match Live::of(&path) {
            Ok(Some(live)) if attached => live.used_bytes(),
            _ => volume::used_bytes(&path),
        };
        let used = blocking("see how full a volume is", look).await.ok();
        self.used().insert(id, (Instant::now(), used));
        used
    }

    /// Its figure is out of date: it was attached or let go.
    pub(crate) fn look_again(&self, id: VolumeId) {
        self.used().remove(&id);
    }

    fn used(&self) -> std::sync::MutexGuard<'_, HashMap<VolumeId, (Instant, Option<u64>)>> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn no_room(asked: u64, room: u64) -> String {
    format!(
        "there is not enough room on the machine: {:.1} GB are asked for and {:.1} GB can be given",
        gigabytes(asked),
        gigabytes(room)
    )
}

#[expect(clippy::cast_precision_loss, reason = "one digit is shown")]
fn gigabytes(bytes: u64) -> f64 {
    bytes as f64 / GIB as f64
}

async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, Error> {
    let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
        Error::unavailable(format!("the machine cannot {what}"), error)
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) if error.kind() == io::ErrorKind::StorageFull => Err(Error::Refused {
            message: format!("there is not enough room on the machine to {what}"),
        }),
        Ok(Err(error)) => Err(failed(error.into())),
        Err(error) => Err(failed(error.into())),
    }
}
