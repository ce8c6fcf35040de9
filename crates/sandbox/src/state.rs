//! The state directory: what is written where, and when.
//!
//! ```text
//! <state>/supervisor.sock   <state>/supervisor.lock   <state>/trash/
//! <state>/spare/  instance directories made in advance (making files is the dearest part of a launch)
//! <state>/disks/  empty file systems to copy, named by their size
//! <state>/root/   where each instance mounts its root, in its own mount namespace
//! <state>/instances/<id>/
//!     spec.json   the order, written before anything is done about it; locked by the shim
//!     run.json    who runs: written by the shim once the program was exec'd
//!     stop.json   somebody asked for the end: written before the signal is sent
//!     exit.json   how it ended: written last, and durably
//!     errand      its shim is checkpointing or restoring it: the others may be about to change
//!     shim.sock   where the shim takes such orders
//!     checkpoint/ its processes and memory, while it has none (see `checkpoint`)
//!     logs/  upper/  work/
//! ```
//!
//! Called by the supervisor and the shims. The one design choice to know: every file appears whole
//! (written beside, then renamed), and which files exist tells how far an instance got, so a restart
//! needs no other memory. Only `exit.json` is synced: the rest is worthless after a power cut, which
//! ends every instance anyway.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rustix::fs::{FlockOperation, flock};
use rustix::net::SocketAddrUnix;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::checkpoint::Image;
use crate::protocol::{ExitRecord, InstanceId, LaunchSpec};

/// Only root may look: specs hold secrets.
const DIRECTORY_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// Enough for a burst of launches while new ones are made.
const SPARES: usize = 16;
/// Below this, more are made.
const SPARES_MIN: usize = 8;

/// `run.json`: who runs an instance.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) boot_id: String,
    pub(crate) generation: u64,
    pub(crate) shim: ProcessIdentity,
    pub(crate) init: ProcessIdentity,
    pub(crate) started_at: Timestamp,
    /// It has no processes: they are in its image, and `init` is what the first one was.
    #[serde(default)]
    pub(crate) checkpointed: bool,
    /// Absent without a disk of its own.
    #[serde(default)]
    pub(crate) disk: Option<HeldDisk>,
}

/// The descriptors by which a shim holds its instance's disk.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct HeldDisk {
    /// The file that the file system is in.
    pub(crate) file: i32,
    /// The file system's top directory.
    pub(crate) directory: i32,
}

/// A pid that cannot be mistaken after it was given to another process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessIdentity {
    pub(crate) pid: i32,
    pub(crate) start_ticks: u64,
}

/// `stop.json`: somebody asked for the end.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct StopOrder {
    pub(crate) kind: StopKind,
    /// When to kill what is left, in milliseconds of the boot clock.
    pub(crate) kill_at_boottime_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum StopKind {
    Stop,
    Kill,
}

/// The whole state directory.
#[derive(Debug, Clone)]
pub(crate) struct StateDir {
    root: PathBuf,
}

impl StateDir {
    /// Make what is missing.
    pub(crate) fn ensure(root: &Path) -> io::Result<Self> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(DIRECTORY_MODE)
            .create(root)?;
        // Absolute, because shims change their directory and cgroups are named after it.
        let root = root.canonicalize()?;
        for name in ["instances", "trash", "root", "spare", "disks"] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(DIRECTORY_MODE)
                .create(root.join(name))?;
        }
        Ok(Self { root })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn trash(&self) -> PathBuf {
        self.root.join("trash")
    }

    /// Where empty file systems are, one of each size, named by their bytes.
    pub(crate) fn disks(&self) -> PathBuf {
        self.root.join("disks")
    }

    pub(crate) fn instance(&self, id: &InstanceId) -> InstanceDir {
        InstanceDir {
            path: self.root.join("instances").join(id.as_str()),
            mount_point: self.root.join("root"),
        }
    }

    /// The ids of all instances that have a directory; other names are left alone.
    pub(crate) fn instance_ids(&self) -> io::Result<Vec<InstanceId>> {
        let mut ids = Vec::new();
        for entry in fs::read_dir(self.root.join("instances"))? {
            if let Some(Ok(id)) = entry?.file_name().to_str().map(InstanceId::new) {
                ids.push(id);
            }
        }
        Ok(ids)
    }

    /// Make an instance's directory, from one made in advance if there is one.
    pub(crate) fn create_instance(&self, instance: &InstanceDir) -> io::Result<()> {
        if instance.path.try_exists()? {
            return Err(io::Error::from(io::ErrorKind::AlreadyExists));
        }
        for spare in self.spares()? {
            // Gone or not whole: the next one.
            if fs::rename(&spare, &instance.path).is_ok() {
                return Ok(());
            }
        }
        make_instance_dir(&instance.path)
    }

    pub(crate) fn wants_spares(&self) -> bool {
        self.spares().is_ok_and(|spares| spares.len() < SPARES_MIN)
    }

    /// Make directories in advance. Not for the supervisor's loop: this is what takes long.
    pub(crate) fn make_spares(&self) -> io::Result<()> {
        for _ in self.spares()?.len()..SPARES {
            // Discarded by the next sweep, should this be cut off in the middle.
            let name = uuid::Uuid::new_v4().to_string();
            let unfinished = self.trash().join(&name);
            make_instance_dir(&unfinished)?;
            fs::rename(unfinished, self.root.join("spare").join(name))?;
        }
        Ok(())
    }

    fn spares(&self) -> io::Result<Vec<PathBuf>> {
        fs::read_dir(self.root.join("spare"))?
            .map(|entry| Ok(entry?.path()))
            .collect()
    }

    /// Move a directory out of the way at once; deleting it may take long.
    pub(crate) fn discard(&self, instance: &InstanceDir) -> io::Result<()> {
        let target = self.trash().join(uuid::Uuid::new_v4().to_string());
        ignore_missing(fs::rename(&instance.path, target))
    }
}

fn make_instance_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().mode(DIRECTORY_MODE).create(path)?;
    // The upper directory gets its mode and owner when the image is known.
    for name in ["logs", "upper", "work"] {
        fs::DirBuilder::new()
            .mode(DIRECTORY_MODE)
            .create(path.join(name))?;
    }
    for name in ["spec.json", "run.json"] {
        OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(FILE_MODE)
            .open(path.join(format!("{name}.new")))?;
    }
    Ok(())
}

/// One instance's directory.
#[derive(Debug, Clone)]
pub(crate) struct InstanceDir {
    path: PathBuf,
    mount_point: PathBuf,
}

impl InstanceDir {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn logs(&self) -> PathBuf {
        self.path.join("logs")
    }

    pub(crate) fn upper(&self) -> PathBuf {
        self.path.join("upper")
    }

    pub(crate) fn work(&self) -> PathBuf {
        self.path.join("work")
    }

    /// Where disks are made for it when there is none in stock.
    pub(crate) fn disks(&self) -> PathBuf {
        self.mount_point.with_file_name("disks")
    }

    /// Where the shim's child mounts the root: one directory for all, because each does it in a mount
    /// namespace of its own. Always empty from outside.
    pub(crate) fn root(&self) -> PathBuf {
        self.mount_point.clone()
    }

    /// Its checkpoint.
    pub(crate) fn image(&self) -> Image {
        Image::of(&self.path)
    }

    /// Where CRIU's knowledge of the kernel is kept: true until the next boot.
    pub(crate) fn criu_facts(&self, boot_id: &str) -> PathBuf {
        self.mount_point.with_file_name(format!("criu-{boot_id}"))
    }

    /// Before the shim begins a checkpoint or a restore.
    pub(crate) fn begin_errand(&self) -> io::Result<()> {
        File::create(self.path.join("errand")).map(drop)
    }

    /// When it is done and written down.
    pub(crate) fn end_errand(&self) -> io::Result<()> {
        ignore_missing(fs::remove_file(self.path.join("errand")))
    }

    /// Whether the shim is at it.
    pub(crate) fn on_errand(&self) -> bool {
        self.path.join("errand").exists()
    }

    /// The address of the shim's socket. By descriptor: paths of any length fit the kernel's 108 bytes. Good for as
    /// long as the descriptor is open.
    pub(crate) fn shim_socket(&self) -> io::Result<(File, SocketAddrUnix)> {
        let directory = File::open(&self.path)?;
        let path = format!("/proc/self/fd/{}/shim.sock", directory.as_raw_fd());
        Ok((directory, SocketAddrUnix::new(path)?))
    }

    pub(crate) fn write_spec(&self, spec: &LaunchSpec) -> io::Result<()> {
        self.write("spec.json", spec, Durability::Process)
    }

    pub(crate) fn spec(&self) -> io::Result<Option<LaunchSpec>> {
        self.read("spec.json")
    }

    pub(crate) fn write_run(&self, run: &Run) -> io::Result<()> {
        self.write("run.json", run, Durability::Process)
    }

    pub(crate) fn run(&self) -> io::Result<Option<Run>> {
        self.read("run.json")
    }

    pub(crate) fn write_stop(&self, stop: &StopOrder) -> io::Result<()> {
        self.write("stop.json", stop, Durability::Process)
    }

    pub(crate) fn stop(&self) -> io::Result<Option<StopOrder>> {
        self.read("stop.json")
    }

    pub(crate) fn write_exit(&self, exit: &ExitRecord) -> io::Result<()> {
        self.write("exit.json", exit, Durability::PowerCut)
    }

    pub(crate) fn exit(&self) -> io::Result<Option<ExitRecord>> {
        self.read("exit.json")
    }

    /// When the order was recorded.
    pub(crate) fn created_at(&self) -> io::Result<Timestamp> {
        let modified = fs::metadata(self.path.join("spec.json"))?.modified()?;
        Timestamp::try_from(modified).map_err(io::Error::other)
    }

    /// The shim's lock, if nobody holds it: proof that no shim lives. It is a lock on `spec.json`,
    /// which is never replaced.
    pub(crate) fn try_lock_shim(&self) -> io::Result<Option<File>> {
        let file = File::open(self.path.join("spec.json"))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    fn write<T: Serialize>(&self, name: &str, value: &T, durability: Durability) -> io::Result<()> {
        let beside = self.path.join(format!("{name}.new"));
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(FILE_MODE)
            .open(&beside)?;
        file.write_all(&serde_json::to_vec(value).map_err(io::Error::other)?)?;
        if durability == Durability::PowerCut {
            file.sync_all()?;
        }
        fs::rename(&beside, self.path.join(name))?;
        if durability == Durability::PowerCut {
            File::open(&self.path)?.sync_all()?;
        }
        Ok(())
    }

    /// `None` when the file does not exist.
    fn read<T: DeserializeOwned>(&self, name: &str) -> io::Result<Option<T>> {
        match fs::read(self.path.join(name)) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(io::Error::other),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// What a written file must survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Durability {
    /// The death of every process of ours.
    Process,
    /// The machine's sudden end.
    PowerCut,
}

pub(crate) fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
