//! Snapshots of instances' disks: taken, started from, removed.
//!
//! ```text
//! <state>/local/instance-snapshots/<id>.json   the image that the disk lies over
//! <state>/local/instance-snapshots/<id>        the disk; there is a snapshot when this is there
//! ```
//!
//! The one design choice to know: the disk comes last and appears whole (see `tram_sandbox::snapshot`), so a note without
//! a disk is all that a crash can leave; the order is given again then, or the snapshot removed.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tram_image::Image;
use tram_site::{Error, InstanceSpec};
use tram_types::{InstanceId, InstanceSnapshotId};

use super::Shared;
use super::entries::Live;
use crate::record::INSTANCE_SNAPSHOTS;

/// Left free on the machine's disk beside a snapshot, for logs, images and whatever else is on it.
const FREE_BYTES_MIN: u64 = 1 << 30;

/// What is known of a snapshot beside its disk.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    /// The manifest of the image below: the disk holds what differs from it.
    image: String,
}

impl Shared {
    fn snapshot_path(&self, id: InstanceSnapshotId) -> PathBuf {
        self.store.root().join(INSTANCE_SNAPSHOTS).join(id.to_string())
    }

    /// Keeps the disk of a running instance.
    pub(super) async fn take_snapshot(
        &self,
        instance: InstanceId,
        snapshot: InstanceSnapshotId,
    ) -> Result<(), Error> {
        let image = {
            let entries = self.lock();
            let entry = entries.get(&instance).ok_or(Error::NoSuchInstance(instance))?;
            if !matches!(entry.live, Live::Up(_)) {
                return Err(Error::NoSuchInstance(instance));
            }
            entry
                .image
                .as_ref()
                .map(|image| image.manifest_digest.to_string())
        };
        let Some(image) = image else {
            return Err(Error::Unavailable {
                message: "the image of the instance is not known yet".to_owned(),
                source: None,
            });
        };
        let (path, directory) = (self.snapshot_path(snapshot), self.config.supervisor_dir.clone());
        let name = super::wire_id(instance)?;
        let taking = tokio::task::spawn_blocking(move || {
            let room = rustix::fs::statvfs(path.parent().unwrap_or(&path))?;
            if room.f_bavail.saturating_mul(room.f_frsize) < FREE_BYTES_MIN {
                return Err(io::ErrorKind::StorageFull.into());
            }
            write_note(&path.with_extension("json"), &Note { image })?;
            tram_sandbox::snapshot::take(&directory, &name, &path)
        });
        let taken = taking
            .await
            .map_err(|error| Error::unavailable("cannot take a snapshot", error))?;
        match taken {
            Ok(()) => Ok(()),
            Err(error) => {
                self.remove_snapshot(snapshot).await?;
                Err(explain(instance, error))
            }
        }
    }

    /// Removes a snapshot.
    pub(super) async fn remove_snapshot(&self, snapshot: InstanceSnapshotId) -> Result<(), Error> {
        let path = self.snapshot_path(snapshot);
        let removing = tokio::task::spawn_blocking(move || {
            for path in [path.clone(), path.with_extension("json")] {
                match fs::remove_file(path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
            Ok(())
        });
        removing
            .await
            .map_err(|error| Error::unavailable("cannot remove a snapshot", error))?
            .map_err(|error| Error::unavailable("cannot remove a snapshot", error))
    }

    /// The file an instance's disk starts as; the sentence of an error is for its owner.
    pub(super) fn disk_of(&self, spec: &InstanceSpec, image: &Image) -> Result<Option<PathBuf>, String> {
        let Some(id) = spec.snapshot else {
            return Ok(None);
        };
        let path = self.snapshot_path(id);
        let note = fs::read(path.with_extension("json"))
            .ok()
            .filter(|_| path.is_file())
            .and_then(|bytes| serde_json::from_slice::<Note>(&bytes).ok());
        let Some(note) = note else {
            return Err(format!(
                "instance snapshot {id} is not on this machine (any more)"
            ));
        };
        if note.image != image.manifest_digest.to_string() {
            return Err(format!(
                "instance snapshot {id} was taken over another version of the image ({}, now {}): name the image by its \
                 digest, or take a new snapshot",
                note.image, image.manifest_digest
            ));
        }
        Ok(Some(path))
    }
}

/// Durably: the disk that follows is of no use without it.
fn write_note(path: &std::path::Path, note: &Note) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(&serde_json::to_vec(note).map_err(io::Error::other)?)?;
    file.sync_all()
}

fn explain(instance: InstanceId, error: io::Error) -> Error {
    let refused = |message: &str| Error::Refused {
        message: message.to_owned(),
    };
    match error.kind() {
        io::ErrorKind::NotFound => Error::NoSuchInstance(instance),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            refused("the machine has no room for the snapshot: remove others, or free space on its disk")
        }
        io::ErrorKind::Unsupported => refused(
            "the instance has no disk of its own: start it again, on a machine whose `tram doctor` reports disk limits",
        ),
        io::ErrorKind::TimedOut => refused("copying the disk of the instance took too long: try again"),
        _ => Error::unavailable("cannot take a snapshot", error),
    }
}
