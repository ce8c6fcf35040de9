//! Files and directories of the store: names, atomic writes, the lock, and clearing up at start.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::digest::Digest;
use crate::error::Error;
use crate::limits::{MAX_CONFIG_BYTES, MAX_MANIFEST_BYTES};
use crate::manifest::{self, ImageConfig, ImageManifest, Manifest};
use crate::unpack::{LayerReport, remove_all};

/// Records and reports are small; a larger file is damaged.
const MAX_RECORD_BYTES: u64 = 1 << 20;
/// Blobs remembered as holding a layer. One layer is rarely compressed in more than two ways; without a bound a
/// hostile registry could grow the file at will.
const MAX_REMEMBERED_BLOBS: usize = 64;
const PRIVATE_DIRECTORY_MODE: u32 = 0o700;
const PRIVATE_FILE_MODE: u32 = 0o600;
/// The root directory of a layer that does not describe its own.
const LAYER_ROOT_MODE: u32 = 0o755;

/// The directory of a store, held locked.
#[derive(Debug)]
pub(super) struct Layout {
    directory: PathBuf,
    salt: String,
    _lock: File,
}

/// `layers/<diff id>.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct LayerFile {
    #[serde(flatten)]
    report: LayerReport,
    /// Blobs that were unpacked to this layer here, or compared with it.
    blobs: Vec<Digest>,
}

impl Layout {
    pub(super) fn open(directory: &Path) -> Result<Self, Error> {
        make_directory(directory)?;
        let lock_path = directory.join("lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(PRIVATE_FILE_MODE)
            .open(&lock_path)
            .map_err(|error| Error::io("opening", &lock_path, error))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(Error::Busy {
                    path: directory.to_owned(),
                });
            }
            Err(errno) => return Err(Error::io("locking", &lock_path, errno)),
        }
        let mut layout = Self {
            directory: directory.to_owned(),
            salt: String::new(),
            _lock: lock,
        };
        for name in ["blobs", "blobs/sha256", "layers", "images", "partial", "tmp"] {
            make_directory(&directory.join(name))?;
        }
        layout.clear_unfinished()?;
        layout.salt = layout.read_or_make_salt()?;
        Ok(layout)
    }

    pub(super) fn salt(&self) -> &str {
        &self.salt
    }

    pub(super) fn directory(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    pub(super) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.directory.join("blobs/sha256").join(digest.hex())
    }

    pub(super) fn partial_path(&self, digest: &Digest) -> PathBuf {
        self.directory.join("partial").join(digest.hex())
    }

    pub(super) fn layer_path(&self, diff_id: &Digest) -> PathBuf {
        self.directory.join("layers").join(diff_id.hex())
    }

    pub(super) fn layer_report_path(&self, diff_id: &Digest) -> PathBuf {
        self.directory
            .join("layers")
            .join(format!("{}.json", diff_id.hex()))
    }

    pub(super) fn image_path(&self, key: &str) -> PathBuf {
        self.directory
            .join("images")
            .join(format!("{}.json", Digest::of(key.as_bytes()).hex()))
    }

    pub(super) fn has_blob(&self, digest: &Digest) -> bool {
        self.blob_path(digest).exists()
    }

    /// A small blob, checked against its name. A damaged one counts as missing.
    pub(super) fn read_blob(&self, digest: &Digest, limit_bytes: u64) -> Result<Option<Vec<u8>>, Error> {
        let bytes = read_file(&self.blob_path(digest), limit_bytes)?;
        Ok(bytes.filter(|bytes| Digest::of(bytes) == *digest))
    }

    /// A manifest with its configuration, if both are here, whole and still make sense.
    pub(super) fn read_image(&self, digest: &Digest) -> Result<Option<(ImageManifest, ImageConfig)>, Error> {
        let Some(bytes) = self.read_blob(digest, MAX_MANIFEST_BYTES)? else {
            return Ok(None);
        };
        let Ok(Manifest::Image(manifest)) = manifest::parse_manifest(&bytes, None) else {
            return Ok(None);
        };
        let Some(bytes) = self.read_blob(&manifest.config.digest, MAX_CONFIG_BYTES)? else {
            return Ok(None);
        };
        Ok(manifest::parse_config(&bytes)
            .ok()
            .filter(|config| config.diff_ids.len() == manifest.layers.len())
            .map(|config| (manifest, config)))
    }

    /// Writes a small blob under its digest.
    pub(super) fn write_blob(&self, bytes: &[u8]) -> Result<Digest, Error> {
        let digest = Digest::of(bytes);
        self.write_atomically(&self.blob_path(&digest), bytes)?;
        Ok(digest)
    }

    /// An unpacked layer, if it is here and `blob` is known to hold it.
    pub(super) fn layer(&self, diff_id: &Digest, blob: &Digest) -> Result<Option<LayerReport>, Error> {
        let file: Option<LayerFile> = self.read_json(&self.layer_report_path(diff_id))?;
        Ok(file
            .filter(|file| file.blobs.contains(blob) && self.has_layer(diff_id))
            .map(|file| file.report))
    }

    /// Whether the directory is there, whatever it came from.
    pub(super) fn has_layer(&self, diff_id: &Digest) -> bool {
        self.layer_path(diff_id).is_dir()
    }

    pub(super) fn layer_bytes(&self, diff_id: &Digest) -> Result<u64, Error> {
        let file: Option<LayerFile> = self.read_json(&self.layer_report_path(diff_id))?;
        Ok(file.map_or(0, |file| file.report.archive_bytes))
    }

    /// Remembers that `blob` holds the layer.
    pub(super) fn write_layer_report(&self, report: &LayerReport, blob: &Digest) -> Result<(), Error> {
        let path = self.layer_report_path(&report.diff_id);
        let mut blobs = self
            .read_json::<LayerFile>(&path)?
            .map(|file| file.blobs)
            .unwrap_or_default();
        blobs.retain(|known| known != blob);
        blobs.insert(0, *blob);
        blobs.truncate(MAX_REMEMBERED_BLOBS);
        self.write_json(
            &path,
            &LayerFile {
                report: report.clone(),
                blobs,
            },
        )
    }

    /// An empty directory for something unfinished, removed with the value unless it is kept.
    pub(super) fn temporary_directory(&self) -> Result<TemporaryDirectory, Error> {
        let path = self.temporary_path();
        make_directory(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(LAYER_ROOT_MODE))
            .map_err(|error| Error::io("setting the mode of", &path, error))?;
        Ok(TemporaryDirectory { path: Some(path) })
    }

    pub(super) fn temporary_path(&self) -> PathBuf {
        self.directory
            .join("tmp")
            .join(Uuid::new_v4().simple().to_string())
    }

    pub(super) fn read_json<T: DeserializeOwned>(&self, path: &Path) -> Result<Option<T>, Error> {
        let Some(bytes) = read_file(path, MAX_RECORD_BYTES)? else {
            return Ok(None);
        };
        match serde_json::from_slice(&bytes) {
            Ok(value) => Ok(Some(value)),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "damaged file in the image store is ignored");
                Ok(None)
            }
        }
    }

    pub(super) fn write_json(&self, path: &Path, value: &impl Serialize) -> Result<(), Error> {
        let bytes = serde_json::to_vec_pretty(value)
            .map_err(|error| Error::io("encoding", path, io::Error::from(error)))?;
        self.write_atomically(path, &bytes)
    }

    fn write_atomically(&self, path: &Path, bytes: &[u8]) -> Result<(), Error> {
        let temporary = self.temporary_path();
        let written = write_flushed(&temporary, bytes).and_then(|()| fs::rename(&temporary, path));
        if let Err(error) = written {
            // Leave nothing behind, least of all on a full disk.
            let _ = fs::remove_file(&temporary);
            return Err(Error::io("writing", path, error));
        }
        flush_parent(path)
    }

    /// Moves something to `tmp/`, from where it is removed at leisure (or at the next start).
    pub(super) fn discard(&self, path: &Path) -> Result<Option<PathBuf>, Error> {
        let trash = self.temporary_path();
        match fs::rename(path, &trash) {
            Ok(()) => Ok(Some(trash)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("removing", path, error)),
        }
    }

    /// Empties `tmp/`, and removes reports without a layer and layers without a report.
    fn clear_unfinished(&self) -> Result<(), Error> {
        for path in entries(&self.directory("tmp"))? {
            remove_tree(&path)?;
        }
        for path in entries(&self.directory("layers"))? {
            let other = if path.extension().is_some() {
                path.with_extension("")
            } else {
                path.with_extension("json")
            };
            if !other.exists() {
                remove_tree(&path)?;
            }
        }
        Ok(())
    }

    fn read_or_make_salt(&self) -> Result<String, Error> {
        let path = self.directory.join("salt");
        if let Some(bytes) = read_file(&path, MAX_RECORD_BYTES)?
            && let Ok(salt) = String::from_utf8(bytes)
            && !salt.is_empty()
        {
            return Ok(salt);
        }
        let salt = format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
        self.write_atomically(&path, salt.as_bytes())?;
        Ok(salt)
    }
}

/// A directory under `tmp/` that goes away with this value.
#[derive(Debug)]
pub(super) struct TemporaryDirectory {
    path: Option<PathBuf>,
}

impl TemporaryDirectory {
    pub(super) fn path(&self) -> &Path {
        self.path.as_deref().unwrap_or(Path::new(""))
    }

    /// Flushes the whole tree and gives it its final name. Another process's identical tree may be there
    /// already; then this one is dropped.
    pub(super) fn keep_as(mut self, path: &Path) -> Result<(), Error> {
        let Some(own) = self.path.clone() else {
            return Ok(());
        };
        let directory = File::open(&own).map_err(|error| Error::io("opening", &own, error))?;
        // One flush of the file system is far cheaper than one for each of thousands of files.
        rustix::fs::syncfs(&directory).map_err(|errno| Error::io("flushing", &own, errno))?;
        match fs::rename(&own, path) {
            Ok(()) => self.path = None,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty
                ) => {}
            Err(error) => return Err(Error::io("renaming", &own, error)),
        }
        flush_parent(path)
    }
}

impl Drop for TemporaryDirectory {
    fn drop(&mut self) {
        if let Some(path) = self.path.take()
            && let Err(error) = remove_tree(&path)
        {
            tracing::warn!(path = %path.display(), %error, "temporary directory of an image could not be removed");
        }
    }
}

/// Removes a file or tree that strangers filled.
pub(super) fn remove_tree(path: &Path) -> Result<(), Error> {
    use std::os::unix::ffi::OsStrExt;
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(());
    };
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::open(parent, flags, Mode::empty())
        .map_err(io::Error::from)
        .and_then(|parent| remove_all(&parent, name.as_bytes()))
        .map_err(|error| Error::io("removing", path, error))
}

/// The paths in a directory.
pub(super) fn entries(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let failed = |error| Error::io("reading", directory, error);
    fs::read_dir(directory)
        .map_err(failed)?
        .map(|entry| entry.map(|entry| entry.path()).map_err(failed))
        .collect()
}

/// Flushes the directory that holds `path`, so that a new name survives a crash.
pub(super) fn flush_parent(path: &Path) -> Result<(), Error> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    File::open(parent)
        .and_then(|parent| parent.sync_all())
        .map_err(|error| Error::io("flushing", parent, error))
}

fn make_directory(path: &Path) -> Result<(), Error> {
    DirBuilder::new()
        .recursive(true)
        .mode(PRIVATE_DIRECTORY_MODE)
        .create(path)
        .map_err(|error| Error::io("making", path, error))
}

fn write_flushed(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(PRIVATE_FILE_MODE)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// A small file; `None` when it is missing or larger than it can rightly be.
fn read_file(path: &Path, limit_bytes: u64) -> Result<Option<Vec<u8>>, Error> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("reading", path, error)),
    };
    let mut bytes = Vec::new();
    file.take(limit_bytes + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| Error::io("reading", path, error))?;
    Ok((bytes.len() as u64 <= limit_bytes).then_some(bytes))
}
