//! What the site writes down about an instance, so that a restart of the control plane knows it again.
//!
//! ```text
//! <state>/local/lock                      held while a process has the site open
//! <state>/local/instances/<id>.json       the order as far as it is needed again, the place in the network, and two facts
//! <state>/local/kept/<id>/logs/           logs of a forgotten instance, until they are removed or too old
//! <state>/local/kept/<id>/generation      the newest generation seen, so that an old order cannot revive it
//! <state>/local/images/<deployment>.json  which digest a deployment's image name stood for
//! <state>/local/prompts/<deployment>/<n> what its replica <n> computed of prompts (see `prompts`)
//! <state>/local/instance-snapshots/<id>   disks of instances, kept (see `instance_snapshots`); <id>.json: over which image
//! <state>/local/volumes/<id>              volumes (see `volumes`), and in volume-snapshots what they held
//! <state>/local/netns/<slot>              namespaces
//! <state>/local/network                   the block that the places are in
//! ```
//!
//! The one design choice to know: a record is written before anything it speaks of is made, and says what was
//! wanted, not how far it got. How far it got is asked of the supervisor and the kernel. Files appear whole (written
//! beside, then renamed) but are not synced: they must survive the end of the process, and when the machine goes
//! down its instances end with it.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tram_site::{EndCause, InstanceSpec};
use tram_types::{DeploymentId, Generation, InstanceId, Timestamp};

use crate::devices::Given;

/// Only root may look: environments, which commands in an instance get again after a restart, hold secrets.
pub(crate) const DIRECTORY_MODE: u32 = 0o700;
pub(crate) const FILE_MODE: u32 = 0o600;

/// One instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The order.
    pub(crate) spec: InstanceSpec,
    /// The newest generation of an order for it.
    pub(crate) generation: Generation,
    /// Its place in the network, until it is given back.
    pub(crate) slot: Option<u32>,
    /// Its devices, until they are given back.
    #[serde(default)]
    pub(crate) devices: Option<Given>,
    /// All checks passed once.
    #[serde(default)]
    pub(crate) became_healthy: bool,
    /// It was told to stop.
    #[serde(default)]
    pub(crate) stop_ordered: bool,
    /// How it ended, once that is known.
    #[serde(default)]
    pub(crate) end: Option<End>,
}

/// The end of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct End {
    pub(crate) cause: EndCause,
    pub(crate) at: Timestamp,
}

/// Where models keep what they have computed of prompts.
const PROMPTS: &str = "prompts";
/// Where kept disks of instances are.
pub(crate) const INSTANCE_SNAPSHOTS: &str = "instance-snapshots";

/// The site's directory.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    root: PathBuf,
}

impl Store {
    /// Makes what is missing.
    pub(crate) fn open(state_dir: &Path) -> io::Result<Self> {
        let root = state_dir.join("local");
        for name in [
            "instances",
            "kept",
            "images",
            "netns",
            PROMPTS,
            INSTANCE_SNAPSHOTS,
        ] {
            DirBuilder::new()
                .recursive(true)
                .mode(DIRECTORY_MODE)
                .create(root.join(name))?;
        }
        // The names of interfaces and of the firewall's table come from this path.
        Ok(Self {
            root: root.canonicalize()?,
        })
    }

    /// The store as an earlier process left it, for looking only. `None` when there never was one.
    pub(crate) fn look(state_dir: &Path) -> Option<Self> {
        let root = state_dir.join("local");
        root.join("images").is_dir().then_some(Self { root })
    }

    /// Keeps other processes out. `None` when one has the site open.
    pub(crate) fn lock(&self) -> io::Result<Option<File>> {
        let path = self.root.join("lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(FILE_MODE)
            .open(path)?;
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    fn record_path(&self, id: InstanceId) -> PathBuf {
        self.root.join("instances").join(format!("{id}.json"))
    }

    fn kept_path(&self, id: InstanceId) -> PathBuf {
        self.root.join("kept").join(id.to_string())
    }

    /// Where the logs of a forgotten instance are.
    pub(crate) fn kept_logs(&self, id: InstanceId) -> PathBuf {
        self.kept_path(id).join("logs")
    }

    /// Writes a record, without what is only needed until the launch: nothing that was cut in half is launched again.
    pub(crate) fn save(&self, record: &Record) -> io::Result<()> {
        let mut record = record.clone();
        record.spec.image.credentials = None;
        record.spec.files.clear();
        write_whole(&self.record_path(record.spec.id), &record)
    }

    pub(crate) fn remove(&self, id: InstanceId) -> io::Result<()> {
        ignore_missing(fs::remove_file(self.record_path(id)))
    }

    /// Every record. One that cannot be read is put aside and reported: its instance then counts as a leftover.
    pub(crate) fn load(&self) -> io::Result<Vec<Record>> {
        let mut records = Vec::new();
        for entry in fs::read_dir(self.root.join("instances"))? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                // Written beside and never renamed.
                ignore_missing(fs::remove_file(&path))?;
                continue;
            }
            match read::<Record>(&path) {
                Ok(record) => records.push(record),
                Err(error) => {
                    tracing::error!(path = %path.display(), %error, "the record of an instance cannot be read");
                    fs::rename(&path, path.with_extension("unreadable"))?;
                }
            }
        }
        Ok(records)
    }

    /// Makes the directory for what is kept of an instance, and remembers its generation there.
    pub(crate) fn keep(&self, id: InstanceId, generation: Generation) -> io::Result<()> {
        let directory = self.kept_path(id);
        DirBuilder::new()
            .recursive(true)
            .mode(DIRECTORY_MODE)
            .create(&directory)?;
        write_whole(&directory.join("generation"), &generation)
    }

    /// The generation of an instance that was forgotten, if its logs are still here.
    pub(crate) fn kept_generation(&self, id: InstanceId) -> Option<Generation> {
        read(&self.kept_path(id).join("generation")).ok()
    }

    /// Moves the logs of an instance to where they are kept.
    pub(crate) fn keep_logs(&self, id: InstanceId, from: &Path) -> io::Result<()> {
        let to = self.kept_logs(id);
        if to.exists() {
            return Ok(());
        }
        ignore_missing(fs::rename(from, to))
    }

    pub(crate) fn remove_kept(&self, id: InstanceId) -> io::Result<()> {
        ignore_missing(fs::remove_dir_all(self.kept_path(id)))
    }

    /// Forgotten instances of which nothing was written since `before`.
    pub(crate) fn kept_before(&self, before: SystemTime) -> io::Result<Vec<InstanceId>> {
        let mut old = Vec::new();
        for entry in fs::read_dir(self.root.join("kept"))? {
            let entry = entry?;
            let Some(id) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let newest = ignore_vanished(newest_change(&entry.path()))?;
            if newest.is_some_and(|newest| newest < before) {
                old.push(id);
            }
        }
        Ok(old)
    }

    fn image_path(&self, deployment: DeploymentId) -> PathBuf {
        self.root.join("images").join(format!("{deployment}.json"))
    }

    pub(crate) fn pin_image(&self, deployment: DeploymentId, pinned: &PinnedImage) -> io::Result<()> {
        write_whole(&self.image_path(deployment), pinned)
    }

    /// Forgets which image a deployment runs, and what it has computed of prompts.
    pub(crate) fn unpin_image(&self, deployment: DeploymentId) -> io::Result<()> {
        ignore_missing(fs::remove_dir_all(self.prompts_path(deployment)))?;
        ignore_missing(fs::remove_file(self.image_path(deployment)))
    }

    /// Where a deployment keeps what it has computed of prompts.
    pub(crate) fn prompts_path(&self, deployment: DeploymentId) -> PathBuf {
        self.root.join(PROMPTS).join(deployment.to_string())
    }

    /// Removes what deployments computed of prompts that are gone: an instance may have been on its way up when its own
    /// went. Where nothing `is_kept` any more, that of the others too.
    pub(crate) fn sweep_prompts(&self, is_kept: bool) -> io::Result<()> {
        let pinned = if is_kept {
            self.pinned_images()?
        } else {
            HashMap::new()
        };
        for entry in fs::read_dir(self.root.join(PROMPTS))? {
            let entry = entry?;
            let deployment = entry.file_name().to_string_lossy().parse::<DeploymentId>();
            if deployment.is_ok_and(|deployment| !pinned.contains_key(&deployment)) {
                ignore_missing(fs::remove_dir_all(entry.path()))?;
            }
        }
        Ok(())
    }

    /// Every image that is pinned. One that cannot be read is an error: what must be kept is then not known.
    pub(crate) fn pinned_images(&self) -> io::Result<HashMap<DeploymentId, PinnedImage>> {
        let mut pinned = HashMap::new();
        for entry in fs::read_dir(self.root.join("images"))? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                // Written beside and never renamed, or about to be.
                continue;
            }
            let name = path
                .file_stem()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            let deployment = name.parse::<DeploymentId>().map_err(io::Error::other)?;
            match read(&path) {
                Ok(image) => pinned.insert(deployment, image),
                // Released meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
        }
        Ok(pinned)
    }

    pub(crate) fn pinned_image(&self, deployment: DeploymentId) -> Option<PinnedImage> {
        read(&self.image_path(deployment)).ok()
    }
}

/// What a deployment's image name stood for when it was first looked up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PinnedImage {
    /// The name as the user wrote it.
    pub(crate) reference: String,
    /// The name to look up from then on; has the digest in it, unless the image was imported.
    pub(crate) pinned: String,
    /// The manifest for this machine.
    pub(crate) manifest_digest: String,
    /// What the name of its model stood for.
    #[serde(default)]
    pub(crate) model: Option<tram_model::Digest>,
    /// What the names of its adapters stood for, in their order.
    #[serde(default)]
    pub(crate) adapters: Vec<tram_model::Digest>,
    /// What the name of its draft stood for.
    #[serde(default)]
    pub(crate) draft: Option<tram_model::Digest>,
}

impl PinnedImage {
    /// Whether it needs this file.
    pub(crate) fn uses(&self, file: &tram_model::Digest) -> bool {
        self.model.as_ref() == Some(file) || self.draft.as_ref() == Some(file) || self.adapters.contains(file)
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    serde_json::from_slice(&fs::read(path)?).map_err(io::Error::other)
}

fn write_whole<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let beside = path.with_extension("new");
    let bytes = serde_json::to_vec(value).map_err(io::Error::other)?;
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(FILE_MODE)
        .open(&beside)?;
    file.write_all(&bytes)?;
    drop(file);
    fs::rename(&beside, path)
}

/// When a directory or something in it was last written.
fn newest_change(path: &Path) -> io::Result<SystemTime> {
    let found = fs::symlink_metadata(path)?;
    let mut newest = found.modified()?;
    if found.is_dir() {
        for entry in fs::read_dir(path)? {
            newest = newest.max(newest_change(&entry?.path())?);
        }
    }
    Ok(newest)
}

fn ignore_vanished<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt, time::Duration};

    use tram_site::spec::{FileSpec, RegistryCredentials};

    use super::*;
    use crate::testing::instance_spec;

    #[test]
    fn what_only_a_launch_needs_is_not_written_down_and_the_rest_is_roots() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let mut spec = instance_spec("app", "web");
        spec.image.credentials = Some(RegistryCredentials {
            host: String::new(),
            username: "robot".to_owned(),
            password: "of the registry".to_owned(),
        });
        spec.files.push(FileSpec {
            path: "/key".to_owned(),
            content: "of a file".to_owned(),
            mode: 0o400,
        });
        spec.env.insert("KEY".to_owned(), "of the program".to_owned());
        let record = Record {
            spec,
            generation: Generation(1),
            slot: Some(1),
            devices: None,
            became_healthy: false,
            stop_ordered: false,
            end: None,
        };
        store.save(&record).unwrap();
        let path = store.record_path(record.spec.id);
        let text = fs::read_to_string(&path).unwrap();
        assert!(
            !text.contains("of the registry") && !text.contains("of a file"),
            "{text}"
        );
        let loaded = store.load().unwrap().remove(0);
        assert_eq!(
            loaded.spec.env, record.spec.env,
            "commands get it after a restart"
        );
        assert_eq!(loaded.spec.image.reference, record.spec.image.reference);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        assert_eq!(mode(store.root()), 0o700);
    }

    #[test]
    fn what_is_kept_is_as_old_as_its_newest_file() {
        const DAY: Duration = Duration::from_secs(24 * 3600);
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let now = SystemTime::now();
        let kept = |age: Duration| {
            let id = InstanceId::random();
            store.keep(id, Generation(1)).unwrap();
            let logs = store.kept_logs(id);
            fs::create_dir(&logs).unwrap();
            fs::write(logs.join("1.log"), "hello").unwrap();
            for path in [
                logs.join("1.log"),
                logs,
                store.kept_path(id).join("generation"),
                store.kept_path(id),
            ] {
                File::open(path).unwrap().set_modified(now - age).unwrap();
            }
            id
        };
        let (old, young) = (kept(DAY * 8), kept(DAY * 6));
        let written_to = kept(DAY * 8);
        fs::write(store.kept_logs(written_to).join("1.log"), "more").unwrap();
        assert_eq!(store.kept_before(now - DAY * 7).unwrap(), [old]);
        store.remove_kept(old).unwrap();
        assert!(store.kept_generation(old).is_none());
        assert!(store.kept_generation(young).is_some());
    }

    #[test]
    fn what_a_model_has_read_goes_with_its_deployment() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let read = |deployment: DeploymentId| {
            let place = store.prompts_path(deployment);
            fs::create_dir(&place).unwrap();
            fs::write(place.join("0"), "what it computed").unwrap();
            place
        };
        let pinned = PinnedImage {
            reference: "app".to_owned(),
            pinned: "app".to_owned(),
            manifest_digest: String::new(),
            model: None,
            draft: None,
            adapters: Vec::new(),
        };
        let (serving, gone) = (DeploymentId::random(), DeploymentId::random());
        store.pin_image(serving, &pinned).unwrap();
        let (its, left) = (read(serving), read(gone));
        store.sweep_prompts(true).unwrap();
        assert!(its.exists() && !left.exists());
        store.unpin_image(serving).unwrap();
        assert!(!its.exists());
        // What was never there is let go as well.
        store.unpin_image(gone).unwrap();
        store.pin_image(serving, &pinned).unwrap();
        let its = read(serving);
        store.sweep_prompts(false).unwrap();
        assert!(!its.exists(), "the operator wants nothing kept");
    }
}
