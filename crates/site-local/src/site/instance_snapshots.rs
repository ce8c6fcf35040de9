//! Snapshots of instances: taken, checked, started from, removed.
//!
//! ```text
//! <state>/local/instance-snapshots/<id>.json     the image that the disk lies over, and what it holds
//! <state>/local/instance-snapshots/<id>.memory/  processes and memory, of a full one
//! <state>/local/instance-snapshots/<id>.executor the executor that is one of these processes
//! <state>/local/instance-snapshots/<id>          the disk; there is a snapshot when this is there
//! <state>/local/instance-snapshots/<id>.sums     checksums of all of it (see `checksums`)
//! ```
//!
//! The one design choice to know: the disk comes last and appears whole (see `tram_sandbox::snapshot`), so a note, or
//! memory without a disk, is all that a crash can leave; the order is given again then, or the snapshot removed. Nobody
//! is told of a snapshot before its checksums are on the disk too.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tram_image::Image;
use tram_sandbox::protocol::{CheckpointSpec, ConfigFile, KeepSpec, LaunchSpec, MemoryFrom, Refusal};
use tram_site::{Error, InstanceSpec, Verdict};
use tram_types::{InstanceId, InstanceSnapshotId, status::InstanceSnapshotType};

use super::Shared;
use super::entries::Live;
use crate::checksums::{Checksums, Files};
use crate::record::INSTANCE_SNAPSHOTS;
use crate::supervisor;

/// Left free on the machine's disk beside a snapshot, for logs, images and whatever else is on it.
const FREE_BYTES_MIN: u64 = 1 << 30;

/// What is known of a snapshot beside its disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Note {
    /// The manifest of the image below: the disk holds what differs from it.
    image: String,
    /// It has processes and memory.
    #[serde(default)]
    full: bool,
}

/// Who a copy is: read by the executor (crates/executor, `identity.rs`).
#[derive(Debug, Serialize)]
struct Identity {
    environment: BTreeMap<String, String>,
}

/// What an instance starts as.
#[derive(Debug, Default)]
pub(super) struct From {
    /// The file that its disk begins as.
    pub(super) disk: Option<PathBuf>,
    /// The directory of the processes and the memory that it goes on with.
    pub(super) memory: Option<PathBuf>,
}

impl Shared {
    fn snapshot_path(&self, id: InstanceSnapshotId) -> PathBuf {
        self.store.root().join(INSTANCE_SNAPSHOTS).join(id.to_string())
    }

    /// Keeps a running instance as it is. What the snapshot takes on the disk, in bytes.
    pub(super) async fn take_snapshot(
        &self,
        instance: InstanceId,
        snapshot: InstanceSnapshotId,
        kind: InstanceSnapshotType,
    ) -> Result<u64, Error> {
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
        let full = kind == InstanceSnapshotType::Full;
        let path = self.snapshot_path(snapshot);
        let taken = self.try_take(instance, &path, Note { image, full }).await;
        match &taken {
            Ok(_) => {}
            // Whoever was asked may still be writing; it begins anew when it is asked again.
            Err(Error::Unavailable { .. }) if full => {}
            Err(_) => self.remove_snapshot(snapshot).await?,
        }
        taken
    }

    async fn try_take(&self, instance: InstanceId, path: &Path, note: Note) -> Result<u64, Error> {
        let failed = |error| explain(instance, error);
        let beside = path.to_owned();
        let full = note.full;
        blocking(move || {
            let room = rustix::fs::statvfs(beside.parent().unwrap_or(&beside))?;
            if room.f_bavail.saturating_mul(room.f_frsize) < FREE_BYTES_MIN {
                return Err(io::ErrorKind::StorageFull.into());
            }
            write_whole(&beside.with_extension("json"), &note)
        })
        .await?
        .map_err(failed)?;
        if full {
            self.keep_processes(instance, path).await?;
        } else {
            let (directory, name) = (self.config.supervisor_dir.clone(), super::wire_id(instance)?);
            let to = path.to_owned();
            blocking(move || tram_sandbox::snapshot::take(&directory, &name, &to))
                .await?
                .map_err(failed)?;
        }
        let path = path.to_owned();
        blocking(move || {
            let files = files(&path, full);
            let sums = path.with_extension("sums");
            if !sums.try_exists()? {
                write_whole(&sums, &Checksums::take(&files)?)?;
            }
            files.bytes()
        })
        .await?
        .map_err(failed)
    }

    /// Has the instance's keeper write down processes, memory and disk, all of one moment.
    async fn keep_processes(&self, instance: InstanceId, path: &Path) -> Result<(), Error> {
        let there = |path: &Path| path.try_exists().unwrap_or(false);
        let lent = self.config.executor.is_none() || there(&path.with_extension("executor"));
        if lent && there(path) && there(&path.with_extension("memory")) {
            return Ok(());
        }
        let Some(program) = self.config.checkpoint.clone() else {
            return Err(refused(
                "this machine cannot keep processes and memory, `tram doctor` says why: take a FILESYSTEM snapshot",
            ));
        };
        if let Some(executor) = self.config.executor.clone() {
            let to = path.with_extension("executor");
            blocking(move || lend(&executor, &to))
                .await?
                .map_err(|error| explain(instance, error))?;
        }
        let keep = KeepSpec {
            checkpoint: CheckpointSpec {
                program,
                peers: vec![IpAddr::V4(self.network.gateway())],
            },
            disk: path.to_owned(),
            memory: path.with_extension("memory"),
        };
        let name = super::wire_id(instance)?;
        let kept = self
            .supervisor
            .call(move |client| client.keep(&name, keep.clone()))
            .await;
        match kept {
            Ok(()) => Ok(()),
            Err(supervisor::Error::Refused(Refusal::CannotCheckpoint { reason })) => Err(Error::Refused {
                message: format!(
                    "its processes cannot be kept: {reason}. A FILESYSTEM snapshot of its disk can be taken"
                ),
            }),
            Err(supervisor::Error::Refused(Refusal::Waking { .. })) => Err(Error::Unavailable {
                message: "the instance is being put to sleep, woken or kept by somebody else".to_owned(),
                source: None,
            }),
            Err(supervisor::Error::Refused(Refusal::UnknownInstance { .. } | Refusal::NotRunning { .. })) => {
                Err(Error::NoSuchInstance(instance))
            }
            Err(supervisor::Error::Refused(refusal)) => Err(Error::Refused {
                message: refusal.to_string(),
            }),
            Err(error) => Err(Error::unavailable(
                "cannot keep the processes of an instance",
                error,
            )),
        }
    }

    /// Reads all of a snapshot.
    pub(super) async fn verify_snapshot(&self, snapshot: InstanceSnapshotId) -> Result<Verdict, Error> {
        let path = self.snapshot_path(snapshot);
        let read = blocking(move || -> io::Result<Option<Verdict>> {
            let Some(note) = read_note(&path) else {
                return Ok(None);
            };
            let Some(sums) = read_sums(&path)? else {
                return Ok(Some(Verdict::Unknown));
            };
            let found = sums.verify(&files(&path, note.full))?;
            Ok(Some(found.map_or(Verdict::Whole, Verdict::Damaged)))
        });
        match read.await? {
            Ok(Some(verdict)) => Ok(verdict),
            Ok(None) => Err(refused("the snapshot is not on this machine (any more)")),
            // A disk that cannot give the bytes has lost them.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => Ok(
                Verdict::Damaged("the machine's disk cannot read it any more".to_owned()),
            ),
            Err(error) => Err(Error::unavailable("cannot read the snapshot", error)),
        }
    }

    /// Has an instance go on with the processes in `image`; the sentence of an error is for its owner.
    pub(super) fn go_on(
        &self,
        spec: &InstanceSpec,
        image: PathBuf,
        launch: &mut LaunchSpec,
    ) -> Result<MemoryFrom, String> {
        let executor = image.with_extension("executor");
        go_on(launch, spec, self.config.checkpoint.clone(), image, executor)
    }

    /// Removes a snapshot.
    pub(super) async fn remove_snapshot(&self, snapshot: InstanceSnapshotId) -> Result<(), Error> {
        let path = self.snapshot_path(snapshot);
        let removing = blocking(move || {
            // The disk first: without it there is no snapshot.
            for path in [
                path.clone(),
                path.with_extension("json"),
                path.with_extension("sums"),
                path.with_extension("executor"),
            ] {
                ignore_missing(fs::remove_file(path))?;
            }
            for extension in ["memory", "memory.new"] {
                ignore_missing(fs::remove_dir_all(path.with_extension(extension)))?;
            }
            Ok(())
        });
        removing
            .await?
            .map_err(|error: io::Error| Error::unavailable("cannot remove a snapshot", error))
    }

    /// What an instance starts as; the sentence of an error is for its owner.
    pub(super) async fn start_of(&self, spec: &InstanceSpec, image: &Image) -> Result<From, String> {
        let Some(id) = spec.snapshot else {
            return Ok(From::default());
        };
        let path = self.snapshot_path(id);
        let manifest = image.manifest_digest.to_string();
        let looked = blocking(move || {
            let Some(note) = read_note(&path) else {
                return Err(format!(
                    "instance snapshot {id} is not on this machine (any more)"
                ));
            };
            if note.image != manifest {
                return Err(format!(
                    "instance snapshot {id} was taken over another version of the image ({}, now {manifest}): name the \
                     image by its digest, or take a new snapshot",
                    note.image
                ));
            }
            let files = files(&path, note.full);
            let unread = |error: io::Error| format!("instance snapshot {id} cannot be read: {error}");
            if let Some(sums) = read_sums(&path).map_err(unread)?
                && let Some(wrong) = sums.hold_as_noted(&files).map_err(unread)?
            {
                return Err(format!(
                    "instance snapshot {id} is damaged and is not used: {wrong}"
                ));
            }
            Ok(From {
                disk: Some(files.disk),
                memory: files.memory,
            })
        });
        looked.await.map_err(|error| error.to_string())?
    }
}

/// Has an instance go on with kept processes. The executor among them is told by a file who it is now.
fn go_on(
    launch: &mut LaunchSpec,
    spec: &InstanceSpec,
    program: Option<PathBuf>,
    image: PathBuf,
    executor: PathBuf,
) -> Result<MemoryFrom, String> {
    let program = program.ok_or(
        "this machine cannot restore processes and memory, `tram doctor` says why: start from a FILESYSTEM snapshot",
    )?;
    if spec.executor.is_some() {
        let identity = Identity {
            environment: launch.env.iter().cloned().collect(),
        };
        launch.files.push(ConfigFile {
            path: crate::executor::IDENTITY_PATH.into(),
            content: serde_json::to_vec(&identity).map_err(|error| error.to_string())?,
            // It holds the secret, which the environment of the executor does too.
            mode: 0o600,
            uid: launch.user.uid,
            gid: launch.user.gid,
        });
        // The one that runs there, whatever has been installed since.
        let mut binds = launch.binds.iter_mut();
        if let Some(bind) = binds.find(|bind| bind.target == Path::new(crate::executor::PATH)) {
            bind.source = executor;
        }
    }
    Ok(MemoryFrom { program, image })
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::unavailable("cannot look after a snapshot", error))
}

fn files(path: &Path, full: bool) -> Files {
    Files {
        disk: path.to_owned(),
        memory: full.then(|| path.with_extension("memory")),
    }
}

/// The note of a snapshot that is there.
fn read_note(path: &Path) -> Option<Note> {
    let bytes = fs::read(path.with_extension("json")).ok()?;
    path.is_file()
        .then(|| serde_json::from_slice(&bytes).ok())
        .flatten()
}

/// Absent: it was taken by a version without checksums.
fn read_sums(path: &Path) -> io::Result<Option<Checksums>> {
    match fs::read(path.with_extension("sums")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes).map_err(io::Error::other)?)),
    }
}

/// Durably, and never in parts.
fn write_whole(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let mut file = File::create(&beside)?;
    file.write_all(&serde_json::to_vec(value).map_err(io::Error::other)?)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    match path.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

/// Gives a file a second name, or makes a copy where that cannot be.
fn lend(from: &Path, to: &Path) -> io::Result<()> {
    ignore_missing(fs::remove_file(to))?;
    match fs::hard_link(from, to) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => fs::copy(from, to).map(drop),
        other => other,
    }
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn refused(message: &str) -> Error {
    Error::Refused {
        message: message.to_owned(),
    }
}

fn explain(instance: InstanceId, error: io::Error) -> Error {
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
