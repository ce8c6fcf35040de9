//! The store of models: files by their SHA-256, names beside them.
//!
//! ```text
//! blobs/<64 hex digits>    a model, read-only, complete: it was hashed and read before it got its name
//! names/<name>.json        what a name stands for
//! partial/<random>         what is being taken in; a process that died leaves it, and the next one removes it
//! ```
//!
//! One process at a time has the store open for writing; the composition root sees to that. Removals and new uses are
//! decided under one lock, so that no deployment is given a file that is about to go.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use sha2::Digest as _;
use tram_types::{Clock, SystemClock, Timestamp};

use crate::gguf::{self, Gguf};

/// Instances of any user read it, and nobody writes it.
const BLOB_MODE: u32 = 0o444;
/// Nobody but the owner sees what is not checked yet.
const PARTIAL_MODE: u32 = 0o600;
/// Bytes copied at a time: large enough that hashing, not calls, takes the time.
const COPY_BYTES: usize = 1024 * 1024;
/// Longest name of a model, in characters: file names of published models with a prefix fit.
pub const NAME_MAX_CHARACTERS: usize = 100;
/// What a source starts with that names a model by its content.
pub const DIGEST_PREFIX: &str = "sha256:";

/// The SHA-256 of a model.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

impl Digest {
    /// As `sha256:` and 64 hex digits.
    ///
    /// # Errors
    /// When it is something else.
    pub fn parse(text: &str) -> Result<Self, String> {
        let hex = text.strip_prefix(DIGEST_PREFIX).unwrap_or_default();
        if hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Ok(Self(hex.to_owned()));
        }
        Err(format!("`{text}` is not `sha256:` and 64 hex digits"))
    }
}

impl TryFrom<String> for Digest {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl std::fmt::Display for Digest {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{DIGEST_PREFIX}{}", self.0)
    }
}

/// A model under one of its names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Model {
    /// What it is called here.
    pub name: String,
    /// What it is.
    pub digest: Digest,
    /// Size of the file.
    pub size_bytes: u64,
    /// Where it came from: a URL, or empty for a file that was imported.
    pub origin: String,
    /// When it got this name.
    pub added_at: Timestamp,
    /// What the file says of itself.
    pub gguf: Gguf,
}

/// Why something could not be done with a model. The texts are for users.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is no model.
    #[error(transparent)]
    Gguf(#[from] gguf::Error),
    /// The name cannot be one.
    #[error("`{name}` cannot be the name of a model: it {rule}")]
    Name {
        /// The name.
        name: String,
        /// The rule it breaks.
        rule: String,
    },
    /// Nothing has this name or digest.
    #[error("there is no model `{0}` here: `tram models list` shows those there are")]
    NotFound(String),
    /// The name is taken by something else.
    #[error("there is a model `{0}` already, and it is another one: remove it first, or choose another name")]
    NameTaken(String),
    /// Deployments run it.
    #[error("model `{name}` is used by {deployments} deployments: delete their services first")]
    InUse {
        /// The name.
        name: String,
        /// How many.
        deployments: usize,
    },
    /// The store is bounded, and what deployments use leaves too little room.
    #[error(
        "the model takes {} MiB, and all models may take {} MiB together, of which deployments use {} MiB: raise the setting \
         `models_space_max`, or delete services",
        mib(*.size_bytes),
        mib(*.max_bytes),
        mib(*.used_bytes)
    )]
    NoRoom {
        /// Size of the file.
        size_bytes: u64,
        /// What all may take together.
        max_bytes: u64,
        /// What cannot be removed.
        used_bytes: u64,
    },
    /// What arrived is not what was announced.
    #[error("what arrived has the checksum {found}, and {wanted} was expected: it was changed on the way")]
    Checksum {
        /// What was announced.
        wanted: Digest,
        /// What came.
        found: Digest,
    },
    /// The store's own files fail.
    #[error("the store of models cannot {doing}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// Whether the file itself is no good, which it would not be another time either.
    #[must_use]
    pub const fn is_of_the_file(&self) -> bool {
        matches!(self, Self::Gguf(_) | Self::Checksum { .. })
    }

    fn io(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing, source }
    }
}

/// Checks the name of a model: lower-case letters, digits, dashes, underscores and dots.
///
/// # Errors
/// A sentence that says the rule that was broken.
pub fn check_name(name: &str) -> Result<(), String> {
    let length = name.chars().count();
    if !(2..=NAME_MAX_CHARACTERS).contains(&length) {
        return Err(format!(
            "must have 2 to {NAME_MAX_CHARACTERS} characters, has {length}"
        ));
    }
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '.');
    if !name.chars().all(fits) {
        return Err("may only contain lower-case letters, digits, dashes, underscores and dots".to_owned());
    }
    if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return Err("must start with a letter or a digit".to_owned());
    }
    Ok(())
}

const fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

/// A model that was taken in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// The model.
    #[serde(flatten)]
    pub model: Model,
    /// Names of those that were removed to make room for it.
    #[serde(default)]
    pub removed: Vec<String>,
}

/// What an import is told beside the bytes.
#[derive(Debug, Clone, Default)]
pub struct NewModel {
    /// What it will be called.
    pub name: String,
    /// Where it comes from; empty: a file of the operator's.
    pub origin: String,
    /// What it must be, when that is known.
    pub digest: Option<Digest>,
}

/// The store. A handle: clones share it.
#[derive(Debug, Clone)]
pub struct ModelStore {
    root: PathBuf,
    names: Arc<Mutex<BTreeMap<String, Model>>>,
    /// What all files may take together, in bytes.
    max_bytes: Option<u64>,
}

impl ModelStore {
    /// Opens the store below `root`, which is made when it is not there. What a process that died left behind is removed:
    /// half a file, and a file without a name.
    ///
    /// # Errors
    /// When its directories cannot be made or read.
    pub fn open(root: &Path) -> Result<Self, Error> {
        let opening = || Error::io("be opened");
        for room in ["blobs", "names", "partial"] {
            fs::create_dir_all(root.join(room)).map_err(opening())?;
        }
        for left in fs::read_dir(root.join("partial")).map_err(opening())? {
            fs::remove_file(left.map_err(opening())?.path()).map_err(opening())?;
        }
        let mut names = BTreeMap::new();
        for entry in fs::read_dir(root.join("names")).map_err(opening())? {
            let path = entry.map_err(opening())?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                let bytes = fs::read(&path).map_err(opening())?;
                let model: Model = serde_json::from_slice(&bytes)
                    .map_err(|error| opening()(io::Error::other(format!("{}: {error}", path.display()))))?;
                names.insert(model.name.clone(), model);
            }
        }
        let named: BTreeSet<&str> = names
            .values()
            .map(|model: &Model| model.digest.0.as_str())
            .collect();
        for blob in fs::read_dir(root.join("blobs")).map_err(opening())? {
            let blob = blob.map_err(opening())?;
            if !blob.file_name().to_str().is_some_and(|name| named.contains(name)) {
                fs::remove_file(blob.path()).map_err(opening())?;
            }
        }
        Ok(Self {
            root: root.to_owned(),
            names: Arc::new(Mutex::new(names)),
            max_bytes: None,
        })
    }

    /// The same, with a bound for what all files take together: an import removes those that no deployment uses, the one
    /// that was used or taken in longest ago first.
    #[must_use]
    pub fn bounded(self, max_bytes: Option<u64>) -> Self {
        Self { max_bytes, ..self }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Model>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file of a model that is here.
    #[must_use]
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs").join(&digest.0)
    }

    /// Every model, by name.
    #[must_use]
    pub fn list(&self) -> Vec<Model> {
        self.lock().values().cloned().collect()
    }

    /// The model that a source means: a name, a digest, or the place a model was fetched from.
    #[must_use]
    pub fn find(&self, source: &str) -> Option<Model> {
        find(&self.lock(), source)
    }

    /// Finds a model and has `keep` write down that it is used, before anybody can remove it.
    ///
    /// # Errors
    /// When there is none, or with what `keep` says.
    pub fn hold(&self, source: &str, keep: impl FnOnce(&Model) -> io::Result<()>) -> Result<Model, Error> {
        let names = self.lock();
        let model = find(&names, source).ok_or_else(|| Error::NotFound(source.to_owned()))?;
        keep(&model).map_err(Error::io("write down who uses a model"))?;
        self.touch(&model.name);
        drop(names);
        Ok(model)
    }

    /// Takes a model in: hashes it while it is copied, reads its header, and gives it its name. The same file twice is
    /// kept once. `uses` says how many deployments run a file: those that none runs make room, where the store is bounded.
    ///
    /// # Errors
    /// When it is no model, is cut off, the name is another's, or there is no room.
    pub fn import(
        &self,
        new: &NewModel,
        file: &mut dyn Read,
        uses: impl Fn(&Digest) -> io::Result<usize>,
    ) -> Result<Taken, Error> {
        check_name(&new.name).map_err(|rule| Error::Name {
            name: new.name.clone(),
            rule,
        })?;
        let taking = || Error::io("take a model in");
        let partial = Partial::create(&self.root).map_err(taking())?;
        let (digest, size_bytes) = partial.fill(file)?;
        if let Some(wanted) = &new.digest
            && *wanted != digest
        {
            return Err(Error::Checksum {
                wanted: wanted.clone(),
                found: digest,
            });
        }
        let gguf = Gguf::read(partial.reopened().map_err(taking())?, size_bytes)?;
        let model = Model {
            name: new.name.clone(),
            digest,
            size_bytes,
            origin: new.origin.clone(),
            added_at: SystemClock.now(),
            gguf,
        };
        let mut names = self.lock();
        if let Some(known) = names.get(&model.name) {
            if known.digest != model.digest {
                return Err(Error::NameTaken(model.name));
            }
            self.touch(&model.name);
            let (model, removed) = (known.clone(), Vec::new());
            return Ok(Taken { model, removed });
        }
        let removed = self.make_room(&mut names, &model, uses)?;
        partial.become_blob(&self.path(&model.digest)).map_err(taking())?;
        let text = serde_json::to_vec_pretty(&model).map_err(|error| taking()(error.into()))?;
        write_whole(&self.name_path(&model.name), &text).map_err(taking())?;
        names.insert(model.name.clone(), model.clone());
        Ok(Taken { model, removed })
    }

    /// Removes what nobody uses until `new` has room. Nothing is removed when that would not do.
    fn make_room(
        &self,
        names: &mut BTreeMap<String, Model>,
        new: &Model,
        uses: impl Fn(&Digest) -> io::Result<usize>,
    ) -> Result<Vec<String>, Error> {
        let making = || Error::io("make room for a model");
        let sizes: BTreeMap<&Digest, u64> = names
            .values()
            .map(|model| (&model.digest, model.size_bytes))
            .collect();
        let held: u64 = sizes.values().sum();
        let Some(max_bytes) = self.max_bytes else {
            return Ok(Vec::new());
        };
        if sizes.contains_key(&new.digest) || held.saturating_add(new.size_bytes) <= max_bytes {
            return Ok(Vec::new());
        }
        let mut unused = Vec::new();
        for (digest, size_bytes) in sizes {
            if uses(digest).map_err(making())? == 0 {
                unused.push((self.used_at(names, digest), digest.clone(), size_bytes));
            }
        }
        let unused_bytes: u64 = unused.iter().map(|(_, _, size_bytes)| size_bytes).sum();
        let used_bytes = held - unused_bytes;
        if used_bytes.saturating_add(new.size_bytes) > max_bytes {
            return Err(Error::NoRoom {
                size_bytes: new.size_bytes,
                max_bytes,
                used_bytes,
            });
        }
        unused.sort();
        let (mut left, mut removed) = (held, Vec::new());
        for (_, digest, size_bytes) in unused {
            if left.saturating_add(new.size_bytes) <= max_bytes {
                break;
            }
            let gone = names.extract_if(.., |_, model| model.digest == digest);
            for (name, _) in gone {
                fs::remove_file(self.name_path(&name)).map_err(making())?;
                removed.push(name);
            }
            fs::remove_file(self.path(&digest)).map_err(making())?;
            left -= size_bytes;
        }
        Ok(removed)
    }

    /// Notes that a model is used now. What cannot be noted is only removed sooner.
    fn touch(&self, name: &str) {
        let file = File::options().append(true).open(self.name_path(name));
        let _ = file.and_then(|file| file.set_modified(std::time::SystemTime::now()));
    }

    /// When a file was used or taken in last, by any of its names.
    fn used_at(&self, names: &BTreeMap<String, Model>, digest: &Digest) -> Option<std::time::SystemTime> {
        let named = names.values().filter(|model| model.digest == *digest);
        named
            .filter_map(|model| fs::metadata(self.name_path(&model.name)).ok()?.modified().ok())
            .max()
    }

    /// Takes a name away, and the file when nothing else names it. `uses` says how many deployments run a file.
    ///
    /// # Errors
    /// When there is none, or deployments run it.
    pub fn remove(
        &self,
        name: &str,
        uses: impl FnOnce(&Digest) -> io::Result<usize>,
    ) -> Result<Model, Error> {
        let removing = || Error::io("remove a model");
        let mut names = self.lock();
        let model = names
            .get(name)
            .cloned()
            .ok_or_else(|| Error::NotFound(name.to_owned()))?;
        let is_last = names
            .values()
            .filter(|other| other.digest == model.digest)
            .count()
            == 1;
        if is_last {
            let deployments = uses(&model.digest).map_err(removing())?;
            if deployments > 0 {
                return Err(Error::InUse {
                    name: name.to_owned(),
                    deployments,
                });
            }
        }
        fs::remove_file(self.name_path(name)).map_err(removing())?;
        names.remove(name);
        if is_last {
            fs::remove_file(self.path(&model.digest)).map_err(removing())?;
        }
        Ok(model)
    }

    fn name_path(&self, name: &str) -> PathBuf {
        self.root.join("names").join(format!("{name}.json"))
    }
}

fn find(names: &BTreeMap<String, Model>, source: &str) -> Option<Model> {
    names
        .get(source)
        .or_else(|| {
            names.values().find(|model| {
                model.digest.to_string() == source || (!source.is_empty() && model.origin == source)
            })
        })
        .cloned()
}

/// A file that is being taken in; it goes with the value, unless it became a blob.
#[derive(Debug)]
struct Partial {
    path: PathBuf,
}

impl Partial {
    fn create(root: &Path) -> io::Result<Self> {
        let path = root.join("partial").join(uuid::Uuid::new_v4().to_string());
        let partial = Self { path };
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(PARTIAL_MODE)
            .open(&partial.path)?;
        Ok(partial)
    }

    /// Copies everything, and says what it was.
    fn fill(&self, source: &mut dyn Read) -> Result<(Digest, u64), Error> {
        let taking = || Error::io("take a model in");
        let mut file = OpenOptions::new()
            .write(true)
            .open(&self.path)
            .map_err(taking())?;
        let mut hash = sha2::Sha256::new();
        let mut buffer = vec![0; COPY_BYTES];
        let mut size_bytes = 0_u64;
        loop {
            let count = match source.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(taking()(error)),
            };
            // Before gigabytes of something else are written down. A first read is rarely shorter than this.
            if size_bytes == 0 && count >= 4 && !buffer.starts_with(b"GGUF") {
                return Err(gguf::Error::Magic.into());
            }
            hash.update(&buffer[..count]);
            file.write_all(&buffer[..count]).map_err(taking())?;
            size_bytes = size_bytes.saturating_add(u64::try_from(count).unwrap_or(0));
        }
        file.sync_all().map_err(taking())?;
        Ok((Digest(hex::encode(hash.finalize())), size_bytes))
    }

    fn reopened(&self) -> io::Result<File> {
        let mut file = File::open(&self.path)?;
        file.rewind()?;
        Ok(file)
    }

    fn become_blob(self, blob: &Path) -> io::Result<()> {
        fs::set_permissions(&self.path, fs::Permissions::from_mode(BLOB_MODE))?;
        // One that is there already has the same bytes, and instances may have it open: either is as good.
        fs::rename(&self.path, blob)?;
        sync_directory(blob)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // Gone when it became a blob; what cannot be removed now goes at the next opening.
        let _ = fs::remove_file(&self.path);
    }
}

fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut file = File::create(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    sync_directory(path)
}

fn sync_directory(file: &Path) -> io::Result<()> {
    match file.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
pub(crate) mod tests;
