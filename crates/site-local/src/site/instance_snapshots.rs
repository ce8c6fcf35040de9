//! Snapshots of instances: taken, checked, started from, removed.
//!
//! ```text
//! <state>/local/instance-snapshots/<id>.json     the image that the disk lies over, and what it holds
//! <state>/local/instance-snapshots/<id>.memory/  processes and memory, of a full one
//! <state>/local/instance-snapshots/<id>.executor the executor that is one of these processes
//! <state>/local/instance-snapshots/<id>          the disk; there is a snapshot when this is there
//! <state>/local/instance-snapshots/<id>.sums     what the kernel notes of all of it, and checksums (see `checksums`)
//! ```
//!
//! The one design choice to know: the disk comes last and appears whole (see `tram_sandbox::snapshot`), so a note, or
//! memory without a disk, is all that a crash or a failure can leave; the order is given again then, or the snapshot
//! removed, by who gave the order. Nobody is told of a snapshot before what the kernel notes of it is on the disk too; its
//! checksums follow (see `snapshot_sums`).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use tram_image::Image;
use tram_sandbox::protocol::{CheckpointSpec, ConfigFile, KeepSpec, LaunchSpec, MemoryFrom, Refusal};
use tram_site::{Error, InstanceSpec, Verdict};
use tram_types::units::{MIB, SLOWEST_DISK_BYTES_PER_SECOND, time_to_move};
use tram_types::{InstanceId, InstanceSnapshotId, Isolation, status::InstanceSnapshotType};

use super::Shared;
use super::entries::{Entry, Live};
use super::snapshot_room::Need;
use super::{kept_executor, snapshot_sums};
use crate::checksums::{self, Bounds, Checksums, Files};
use crate::executor::SECRET_VARIABLE;
use crate::record::INSTANCE_SNAPSHOTS;
use crate::supervisor;

/// Nobody but root has to do with it.
const FILE_MODE: u32 = 0o600;
/// Some 200 bytes for each of the files that a snapshot has at most (`checksums`), with room to spare.
const SUMS_BYTES_MAX: u64 = 64 << 20;
/// A note has a few hundred bytes.
const NOTE_BYTES_MAX: u64 = 64 << 10;
/// Snapshots that are verified at a time. One reads as fast as the disk is; a second one for who verifies something small
/// meanwhile.
pub(super) const VERIFICATIONS_MAX: usize = 2;
/// What a verification takes beside reading, on a machine in trouble.
pub(super) const VERIFY_BASE: Duration = Duration::from_secs(30);

/// What is known of a snapshot beside its disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Note {
    /// The manifest of the image below: the disk holds what differs from it.
    image: String,
    /// It has processes and memory.
    #[serde(default)]
    full: bool,
    /// One of these processes is an executor, which is checked as all else is. Earlier versions kept one and did not say so.
    #[serde(default)]
    executor: bool,
    /// That executor takes digests of secrets: an earlier one is told the secrets of copies themselves.
    #[serde(default)]
    digests: bool,
    /// It has checksums: where there are none, they were lost. Earlier versions took none, or did not say so.
    #[serde(default)]
    checked: bool,
    /// Whose processes are written down: while they are, nothing of it may be removed. Earlier versions did not say so.
    #[serde(default)]
    of: Option<InstanceId>,
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
    /// The processes and the memory that it goes on with.
    pub(super) memory: Option<Memory>,
}

/// Processes and memory that an instance goes on with.
#[derive(Debug)]
pub(super) struct Memory {
    /// The directory that they are in.
    image: PathBuf,
    /// The executor among them takes digests of secrets.
    digests: bool,
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
        let path = self.snapshot_path(snapshot);
        let full = kind == InstanceSnapshotType::Full;
        let failed = |error| explain(instance, error);
        let taken = path.to_owned();
        // Asked again after a restart: what is there is whole, and the instance may be over.
        let note = match blocking(move || read_note(&taken)).await?.map_err(failed)? {
            Some(Ok(before)) => before,
            _ => {
                let mut note = self.first_note(instance, full)?;
                self.take_anew(instance, &path, &mut note).await?;
                note
            }
        };
        let (bytes, unread) = blocking(move || {
            let files = files(&path, &note);
            Ok((
                files.bytes()?,
                snapshot_sums::note(&path, &files)?.then_some(path),
            ))
        })
        .await?
        .map_err(failed)?;
        if let Some(path) = unread {
            self.unread.add(path);
        }
        Ok(bytes)
    }

    /// What is noted of a snapshot of an instance that runs, before it is taken.
    fn first_note(&self, instance: InstanceId, full: bool) -> Result<Note, Error> {
        let entries = self.lock();
        let entry = entries.get(&instance).ok_or(Error::NoSuchInstance(instance))?;
        if !matches!(entry.live, Live::Up(_)) {
            return Err(Error::NoSuchInstance(instance));
        }
        if full && entry.record.devices.is_some() {
            return Err(Error::Refused {
                message: "what the devices of the instance hold cannot be kept with its memory: take a FILESYSTEM snapshot"
                    .to_owned(),
            });
        }
        let Some(image) = &entry.image else {
            return Err(Error::Unavailable {
                message: "the image of the instance is not known yet".to_owned(),
                source: None,
            });
        };
        Ok(Note {
            image: image.manifest_digest.to_string(),
            full,
            executor: full && entry.record.spec.executor.is_some(),
            digests: false,
            checked: true,
            of: full.then_some(instance),
        })
    }

    /// What a snapshot will take, as far as it can be told before.
    async fn need(&self, instance: InstanceId, directory: &Path, full: bool) -> Result<Need, Error> {
        let memory = match full {
            true => self
                .call(instance, |client, id| client.stats(id))
                .await?
                .dumped_bytes(),
            false => 0,
        };
        let (supervisor, name) = (self.config.supervisor_dir.clone(), super::wire_id(instance)?);
        let directory = directory.to_owned();
        let disk = blocking(move || tram_sandbox::snapshot::size(&supervisor, &name, &directory))
            .await?
            .map_err(|error| explain(instance, error))?;
        Ok(Need {
            written: memory.saturating_add(disk.written_bytes),
            counted: memory.saturating_add(disk.bytes),
        })
    }

    /// Writes the note, then all else, and the disk last of all.
    async fn take_anew(&self, instance: InstanceId, path: &Path, note: &mut Note) -> Result<(), Error> {
        let failed = |error| explain(instance, error);
        let directory = path.parent().unwrap_or(path);
        let (at, supervisor) = (path.to_owned(), self.config.supervisor_dir.clone());
        if !blocking(move || clear_half(&at, &supervisor))
            .await?
            .map_err(failed)?
        {
            return Err(Error::Unavailable {
                message: "an earlier order for this snapshot is still being carried out".to_owned(),
                source: None,
            });
        }
        let need = self.need(instance, directory, note.full).await?;
        let space = self.config.snapshot_space;
        let _held = self.snapshot_room.hold(directory, space, need).await?;
        if note.executor {
            note.digests = self
                .keep_executor(instance, path.with_extension("executor"))
                .await?;
        }
        let (beside, written) = (path.with_extension("json"), note.clone());
        blocking(move || write_whole(&beside, &written))
            .await?
            .map_err(failed)?;
        if note.full {
            return self.keep_processes(instance, path).await;
        }
        let (directory, name) = (self.config.supervisor_dir.clone(), super::wire_id(instance)?);
        let to = path.to_owned();
        blocking(move || tram_sandbox::snapshot::take(&directory, &name, &to))
            .await?
            .map_err(failed)
    }

    /// Has the instance's keeper write down processes, memory and disk, all of one moment.
    async fn keep_processes(&self, instance: InstanceId, path: &Path) -> Result<(), Error> {
        let Some(program) = self.config.checkpoint.clone() else {
            return Err(refused(
                "this machine cannot keep processes and memory, `tram doctor` says why: take a FILESYSTEM snapshot",
            ));
        };
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

    /// Keeps the executor that is the first process of an instance; whether it takes digests of secrets.
    async fn keep_executor(&self, instance: InstanceId, to: PathBuf) -> Result<bool, Error> {
        let in_gvisor = |entry: &Entry| entry.record.spec.isolation == Isolation::Gvisor;
        if self.lock().get(&instance).is_some_and(in_gvisor) {
            return Err(refused(
                "it runs in the isolation class gvisor, whose processes cannot be written down: take a FILESYSTEM snapshot",
            ));
        }
        let (directory, name) = (self.config.supervisor_dir.clone(), super::wire_id(instance)?);
        let installed = self.config.executor.clone().unwrap_or_default();
        let kept = blocking(move || {
            let Some(program) = tram_sandbox::snapshot::first_program(&directory, &name)? else {
                return Ok(None);
            };
            kept_executor::keep(&program.file, &installed, &to)?;
            Ok(Some(crate::executor::takes_digests(&program.words)))
        });
        kept.await?
            .map_err(|error| explain(instance, error))?
            .ok_or_else(|| refused("the instance sleeps on the disk: wake it first, by a request"))
    }

    /// Reads all of a snapshot. Two at a time, since they take all that the machine's disk gives.
    pub(super) async fn verify_snapshot(&self, snapshot: InstanceSnapshotId) -> Result<Verdict, Error> {
        let Ok(place) = Arc::clone(&self.verifications).try_acquire_owned() else {
            return Err(Error::Unavailable {
                message: format!(
                    "{VERIFICATIONS_MAX} snapshots are being verified on this machine already: try again when one of \
                     them is done"
                ),
                source: None,
            });
        };
        let path = self.snapshot_path(snapshot);
        let gone = CancellationToken::new();
        let asked = gone.clone();
        let _ends_with_this = gone.drop_guard();
        let read = blocking(move || {
            let _held = place;
            verify(&path, asked)
        });
        match read.await? {
            Ok(Some(verdict)) => Ok(verdict),
            Ok(None) => Err(refused("the snapshot is not on this machine (any more)")),
            // A disk that cannot give the bytes has lost them.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => Ok(
                Verdict::Damaged("the machine's disk cannot read it any more".to_owned()),
            ),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => Err(Error::Unavailable {
                message: format!(
                    "the machine's disk gives less than {} MiB a second now, too little to verify the snapshot: try again \
                     when less is going on",
                    SLOWEST_DISK_BYTES_PER_SECOND / MIB
                ),
                source: None,
            }),
            Err(error) => Err(Error::unavailable("cannot read the snapshot", error)),
        }
    }

    /// Has an instance go on with kept processes; the sentence of an error is for its owner.
    pub(super) fn go_on(
        &self,
        spec: &InstanceSpec,
        memory: Memory,
        launch: &mut LaunchSpec,
    ) -> Result<MemoryFrom, String> {
        go_on(launch, spec, self.config.checkpoint.clone(), memory)
    }

    /// Removes a snapshot, or what there is of one. Not while an instance's keeper may still be writing it, whoever waited
    /// for that has given up: what it writes then would be left.
    pub(super) async fn remove_snapshot(&self, snapshot: InstanceSnapshotId) -> Result<(), Error> {
        let path = self.snapshot_path(snapshot);
        let supervisor = self.config.supervisor_dir.clone();
        let removing = blocking(move || {
            if is_being_written(&path, &supervisor)? {
                return Err(io::Error::new(
                    io::ErrorKind::ResourceBusy,
                    "it is still being written",
                ));
            }
            // The disk first: without it there is no snapshot.
            for path in [
                path.clone(),
                path.with_extension("json"),
                path.with_extension("sums"),
                path.with_extension("executor"),
                kept_executor::beside(&path),
                beside(&path.with_extension("json")),
                beside(&path.with_extension("sums")),
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
            let unread = |error: io::Error| format!("instance snapshot {id} cannot be read: {error}");
            let damaged =
                |wrong: String| format!("instance snapshot {id} is damaged and is not used: {wrong}");
            let Some(note) = read_note(&path).map_err(unread)? else {
                return Err(format!(
                    "instance snapshot {id} is not on this machine (any more)"
                ));
            };
            let note = note.map_err(damaged)?;
            if note.image != manifest {
                return Err(format!(
                    "instance snapshot {id} was taken over another version of the image ({}, now {manifest}): name the \
                     image by its digest, or take a new snapshot",
                    note.image
                ));
            }
            let files = files(&path, &note);
            let sums = read_sums(&path, &note).map_err(unread)?.map_err(damaged)?;
            if let Some(sums) = sums
                && let Some(wrong) = sums.hold_as_noted(&files).map_err(unread)?
            {
                return Err(damaged(wrong));
            }
            Ok(From {
                disk: Some(files.disk),
                memory: files.memory.map(|image| Memory {
                    image,
                    digests: note.digests,
                }),
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
    Memory { image, digests }: Memory,
) -> Result<MemoryFrom, String> {
    let program = program.ok_or(
        "this machine cannot restore processes and memory, `tram doctor` says why: start from a FILESYSTEM snapshot",
    )?;
    if spec.executor.is_some() {
        let mut environment: BTreeMap<String, String> = launch.env.iter().cloned().collect();
        if let Some(secret) = spec.env.get(SECRET_VARIABLE).filter(|_| !digests) {
            environment.insert(SECRET_VARIABLE.to_owned(), secret.clone());
        }
        let identity = Identity { environment };
        launch.files.push(ConfigFile {
            path: crate::executor::IDENTITY_PATH.into(),
            content: serde_json::to_vec(&identity).map_err(|error| error.to_string())?,
            mode: 0o600,
            uid: launch.user.uid,
            gid: launch.user.gid,
        });
        // The one that runs there, whatever has been installed since.
        let mut binds = launch.binds.iter_mut();
        if let Some(bind) = binds.find(|bind| bind.target == Path::new(crate::executor::PATH)) {
            bind.source = image.with_extension("executor");
        }
    }
    Ok(MemoryFrom { program, image })
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::unavailable("cannot look after a snapshot", error))
}

pub(super) fn files(path: &Path, note: &Note) -> Files {
    Files {
        disk: path.to_owned(),
        memory: note.full.then(|| path.with_extension("memory")),
        executor: note.executor.then(|| path.with_extension("executor")),
    }
}

/// Reads and compares; `None` when there is no such snapshot.
fn verify(path: &Path, gone: CancellationToken) -> io::Result<Option<Verdict>> {
    let Some(note) = read_note(path)? else {
        return Ok(None);
    };
    let note = match note {
        Ok(note) => note,
        Err(wrong) => return Ok(Some(Verdict::Damaged(wrong))),
    };
    let sums = match read_sums(path, &note)? {
        Ok(Some(sums)) => sums,
        Ok(None) => return Ok(Some(Verdict::Unknown)),
        Err(wrong) => return Ok(Some(Verdict::Damaged(wrong))),
    };
    let files = files(path, &note);
    let bounds = Bounds {
        // What cannot be counted is found below.
        until: Instant::now() + VERIFY_BASE + time_to_move(files.bytes().unwrap_or(0)),
        gone,
    };
    if !sums.is_complete() {
        return Ok(Some(match sums.complete(&files, Some(&bounds))? {
            Ok(sums) => {
                snapshot_sums::keep(path, &sums)?;
                Verdict::Whole
            }
            Err(wrong) => Verdict::Damaged(wrong),
        }));
    }
    let found = sums.verify(&files, &bounds)?;
    Ok(Some(found.map_or(Verdict::Whole, Verdict::Damaged)))
}

/// Whether the processes of an instance are being written down for this snapshot, as far as can be told: its keeper is at
/// something, and the snapshot is not whole. `supervisor`: its directory.
fn is_being_written(path: &Path, supervisor: &Path) -> io::Result<bool> {
    let Some(Ok(Note {
        of: Some(instance), ..
    })) = noted(path)?
    else {
        return Ok(false);
    };
    if fs::exists(path)? {
        return Ok(false);
    }
    let name = super::wire_id(instance).map_err(io::Error::other)?;
    tram_sandbox::snapshot::is_kept_busy(supervisor, &name)
}

/// Removes what a keeper that was cut off has left, which would count as room that others have; false while one may still
/// be writing, and when it just came to its end.
fn clear_half(path: &Path, supervisor: &Path) -> io::Result<bool> {
    // In this order: a keeper is busy until the disk has its name.
    if is_being_written(path, supervisor)? || fs::exists(path)? {
        return Ok(false);
    }
    for extension in ["memory", "memory.new"] {
        ignore_missing(fs::remove_dir_all(path.with_extension(extension)))?;
    }
    Ok(true)
}

/// The note of a snapshot that is there, or what is wrong with it.
pub(super) fn read_note(path: &Path) -> io::Result<Option<Result<Note, String>>> {
    let note = noted(path)?;
    match fs::symlink_metadata(path) {
        // Never taken, or removed.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        found => found.map(|_| note),
    }
}

/// What is noted of a snapshot, whether it is there or not.
fn noted(path: &Path) -> io::Result<Option<Result<Note, String>>> {
    let mut bytes = Vec::new();
    match checksums::open(&path.with_extension("json")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if checksums::is_no_plain_file(&error) => {
            return Ok(Some(Err("what is noted of it is no plain file".to_owned())));
        }
        file => file?.take(NOTE_BYTES_MAX).read_to_end(&mut bytes)?,
    };
    let note = serde_json::from_slice(&bytes);
    Ok(Some(note.map_err(|error| {
        format!("what is noted of it cannot be read: {error}")
    })))
}

/// The checksums of a snapshot, or what is wrong with them; absent where it was taken by a version without.
pub(super) fn read_sums(path: &Path, note: &Note) -> io::Result<Result<Option<Checksums>, String>> {
    let mut bytes = Vec::new();
    match checksums::open(&path.with_extension("sums")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && !note.checked => return Ok(Ok(None)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(Err("its checksums are gone".to_owned()));
        }
        Err(error) if checksums::is_no_plain_file(&error) => {
            return Ok(Err("its checksums are no plain file".to_owned()));
        }
        file => file?.take(SUMS_BYTES_MAX).read_to_end(&mut bytes)?,
    };
    let sums = serde_json::from_slice(&bytes);
    Ok(sums
        .map(Some)
        .map_err(|error| format!("its checksums cannot be read: {error}")))
}

/// Where a file is written that does not count yet.
fn beside(path: &Path) -> PathBuf {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    beside.into()
}

/// Durably, and never in parts.
pub(super) fn write_whole(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let beside = beside(path);
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(FILE_MODE)
        .open(&beside)?;
    file.write_all(&serde_json::to_vec(value).map_err(io::Error::other)?)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    match path.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

pub(super) fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn whatever_is_missing_of_a_snapshot_is_damage_in_words() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("one");
        let mut note = Note {
            image: "sha256:1".to_owned(),
            full: true,
            executor: true,
            digests: true,
            checked: true,
            of: Some(InstanceId::random()),
        };
        let (memory, sums) = (path.with_extension("memory"), path.with_extension("sums"));
        assert_eq!(verify(&path, CancellationToken::new()).unwrap(), None);
        fs::write(&path, "disk").unwrap();
        fs::write(path.with_extension("executor"), "program").unwrap();
        fs::create_dir(&memory).unwrap();
        fs::write(memory.join("pages-1.img"), "pages").unwrap();
        let write_note = |note: &Note| write_whole(&path.with_extension("json"), note).unwrap();
        write_note(&note);
        assert!(snapshot_sums::note(&path, &files(&path, &note)).unwrap());
        let is_complete = || read_sums(&path, &note).unwrap().unwrap().unwrap().is_complete();
        assert!(!is_complete());
        let verdict = || verify(&path, CancellationToken::new()).unwrap().unwrap();
        assert_eq!(verdict(), Verdict::Whole);
        assert!(is_complete(), "it was read, and is not again for that");
        let says = |words: &str| {
            let found = verdict();
            assert!(
                matches!(&found, Verdict::Damaged(why) if why.contains(words)),
                "{found:?}"
            );
        };
        assert_eq!(verdict(), Verdict::Whole);
        fs::write(path.with_extension("executor"), "another").unwrap();
        says("its executor has other bytes");
        fs::write(path.with_extension("executor"), "program").unwrap();

        let whole = fs::read(&sums).unwrap();
        fs::write(&sums, &whole[..whole.len() / 2]).unwrap();
        says("its checksums cannot be read");
        fs::remove_file(&sums).unwrap();
        says("its checksums are gone");
        symlink("/etc/hostname", &sums).unwrap();
        says("its checksums are no plain file");
        fs::remove_file(&sums).unwrap();
        note.checked = false;
        write_note(&note);
        assert_eq!(verdict(), Verdict::Unknown, "an earlier version took none");
        fs::write(&sums, whole).unwrap();

        fs::rename(&memory, dir.path().join("elsewhere")).unwrap();
        says("its memory is gone");
        symlink(dir.path().join("elsewhere"), &memory).unwrap();
        says("its memory is gone");
        fs::write(path.with_extension("json"), "{").unwrap();
        says("what is noted of it cannot be read");
        // Not followed, and not read for ever.
        fs::remove_file(path.with_extension("json")).unwrap();
        symlink("/dev/zero", path.with_extension("json")).unwrap();
        says("what is noted of it is no plain file");
    }
}
