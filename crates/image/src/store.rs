//! What is kept on disk, and the operations on it: ensure, verify, import, list, remove, collect.
//!
//! ```text
//! <directory>/lock                    held while a process has the store open
//!             blobs/sha256/<hex>      manifests and configurations; layers until they are unpacked
//!             layers/<diff id>/       one unpacked layer, fit as an overlayfs lower directory
//!             layers/<diff id>.json   what it is, and which blobs were seen to hold it
//!             images/<hash>.json      reference -> manifest
//!             partial/<hex>           layers on their way; continued after a restart
//!             tmp/                    everything unfinished; emptied at start
//! ```
//!
//! The design choice to know: a thing is complete because it has its final name. It is written under `tmp/` or
//! `partial/`, flushed, renamed, and its directory flushed, so `kill -9` at any point leaves either all of it
//! or nothing that anybody reads. Layers are named by the digest of their uncompressed archive, so that images
//! share them however they were compressed; but an image gets a layer only by naming a blob that was itself
//! unpacked to it on this machine, never by merely claiming its diff id.
//!
//! The directory is open to root alone: images hold setuid programs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::digest::Digest;
use crate::error::Error;
use crate::flight::Flights;
use crate::floor::Floor;
use crate::limits::{CONCURRENT_UNPACKS, Limits, Timeouts};
use crate::manifest::{ImageConfig, Platform};
use crate::reference::{Aliases, Reference};
use crate::registry::{Client, Credentials, RegistryConfig};
use crate::unpack::{Budget, LayerReport};

mod collect;
pub(crate) mod download;
mod ensure;
mod import;
mod layers;
mod layout;
mod pins;
mod records;
mod verify;

pub use collect::{CollectPolicy, CollectReport};
pub use ensure::{PullPolicy, PullRequest};
pub use import::Imported;
pub use records::{ImageSummary, Origin};
pub use verify::{Verification, VerifyCode};

use layout::Layout;
use pins::{Pin, Pins};
use records::Record;

/// How a store works.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Where registries are reached.
    pub registries: RegistryConfig,
    /// Names that are taken from elsewhere.
    pub aliases: Aliases,
    /// Names that an imported image stands in for while their registry cannot be reached and they are not here.
    pub fallbacks: Aliases,
    /// What one image may cost.
    pub limits: Limits,
    /// How long registries may take.
    pub timeouts: Timeouts,
    /// Keep compressed layers after they are unpacked. Costs about half as much disk again; nothing here needs
    /// them.
    pub keep_layer_blobs: bool,
    /// What images must be built for; `None` means this machine.
    pub platform: Option<Platform>,
}

/// The images of one machine. Cheap to clone; all clones are one store.
#[derive(Debug, Clone)]
pub struct ImageStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    layout: Layout,
    settings: Settings,
    platform: Platform,
    client: Arc<Client>,
    pins: Arc<Pins>,
    floor: Arc<Floor>,
    /// Layers being downloaded.
    downloads: Flights<Digest, ()>,
    /// Layers being downloaded and unpacked, by diff id and blob.
    unpacks: Flights<(Digest, Digest), Arc<LayerReport>>,
    unpack_permits: Arc<Semaphore>,
    /// Records are read, changed and written by one at a time.
    records: tokio::sync::Mutex<()>,
}

/// An image that can be launched. While this value (or a clone) lives, its layers stay.
#[derive(Debug, Clone)]
pub struct Image {
    /// The complete name it is kept under, aliases applied.
    pub reference: Reference,
    /// The manifest for this machine's platform. What `collect` wants to hear of images in use.
    pub manifest_digest: Digest,
    /// What the name stood for: the index's digest if it is an index, else the manifest's.
    pub resolved_digest: Digest,
    /// How it wants to be run.
    pub config: ImageConfig,
    /// Directories for overlayfs's `lowerdir`, top first, each once. Empty for an image without files. Layers
    /// that a higher one hides entirely are left out.
    pub layers: Vec<PathBuf>,
    /// Bytes of the uncompressed archives of all layers, shared ones included.
    pub size_bytes: u64,
    /// Whether the registry was asked.
    pub freshness: Freshness,
    /// Where it came from.
    pub origin: Origin,
    _pin: Arc<Pin>,
}

/// How sure it is that an image is what its name stands for at this moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Freshness {
    /// The registry said so during this call.
    Confirmed,
    /// It was here, and the policy asked no further.
    Present,
    /// Another image stands in for the one that was asked for, whose registry cannot be reached.
    StandsIn {
        /// Why the registry could not be asked; for people.
        reason: String,
    },
    /// The registry could not be asked; this is the image kept from before. The reason is for people.
    Unconfirmed {
        /// Why the registry could not be asked.
        reason: String,
    },
}

impl ImageStore {
    /// Opens the store in `directory`, making it if needed, and clears what an earlier process left unfinished.
    ///
    /// Errors: [`Error::Busy`] when another process holds it. Blocks for a moment; call it at start.
    pub fn open(directory: impl AsRef<Path>, settings: Settings) -> Result<Self, Error> {
        let layout = Layout::open(directory.as_ref())?;
        let client = Arc::new(Client::new(settings.registries.clone(), settings.timeouts));
        let floor = Arc::new(Floor::new(directory.as_ref(), &settings.limits)?);
        let platform = settings.platform.clone().unwrap_or_else(Platform::host);
        Ok(Self {
            inner: Arc::new(Inner {
                layout,
                platform,
                client,
                settings,
                pins: Arc::default(),
                floor,
                downloads: Flights::default(),
                unpacks: Flights::default(),
                unpack_permits: Arc::new(Semaphore::new(CONCURRENT_UNPACKS)),
                records: tokio::sync::Mutex::new(()),
            }),
        })
    }

    /// The images there are, by name.
    pub async fn list(&self) -> Result<Vec<ImageSummary>, Error> {
        let inner = Arc::clone(&self.inner);
        tokio::task::spawn_blocking(move || inner.summaries()).await?
    }

    /// Forgets a name. Its contents go with the next [`ImageStore::collect`], unless something else needs them.
    /// Answers whether there was such a name.
    pub async fn remove(&self, reference: &Reference) -> Result<bool, Error> {
        let reference = self.inner.settings.aliases.apply(reference);
        let _guard = self.inner.records.lock().await;
        let inner = Arc::clone(&self.inner);
        tokio::task::spawn_blocking(move || inner.layout.remove_record(&reference)).await?
    }

    /// The name to look for, and what may be shown for it: a secret is for the registry that the user named, not for
    /// one that an alias leads to.
    fn aliased<'a>(
        &self,
        reference: &Reference,
        credentials: Option<&'a Credentials>,
    ) -> (Reference, Option<&'a Credentials>) {
        let target = self.inner.settings.aliases.apply(reference);
        let credentials = credentials.filter(|_| target.registry() == reference.registry());
        (target, credentials)
    }

    /// Credentials as they are remembered with a private image: a salted hash.
    fn holder(&self, reference: &Reference, credentials: Option<&Credentials>) -> Option<Digest> {
        credentials.map(|credentials| {
            let text = format!(
                "{}\0{}\0{}",
                self.inner.layout.salt(),
                reference.registry(),
                credentials.identity()
            );
            Digest::of(text.as_bytes())
        })
    }
}

impl Inner {
    /// What one image may still unpack to, and only while there is room for it.
    fn budget(&self) -> Budget {
        Budget::new(&self.settings.limits).above(Arc::clone(&self.floor))
    }

    /// Puts an image together from what is on disk, or `None` when a part is missing.
    ///
    /// Lays out the layers top first, each once, and cut below one that hides all beneath it.
    fn assemble(&self, record: &Record, freshness: Freshness) -> Result<Option<Image>, Error> {
        let manifest_digest = record.manifest_digest;
        let Some((manifest, config)) = self.layout.read_image(&manifest_digest)? else {
            return Ok(None);
        };
        let mut needed = vec![manifest_digest, manifest.config.digest];
        needed.extend(manifest.layers.iter().map(|layer| layer.digest));
        needed.extend(&config.diff_ids);
        // Pinned before it is looked for: what is found then cannot be collected.
        let pin = Arc::new(Pins::pin(&self.pins, needed));
        let mut size_bytes = 0;
        let mut reports = BTreeMap::new();
        for (layer, diff_id) in manifest.layers.iter().zip(&config.diff_ids) {
            let Some(report) = self.layout.layer(diff_id, &layer.digest)? else {
                return Ok(None);
            };
            size_bytes += report.archive_bytes;
            reports.insert(*diff_id, report);
        }
        let mut layers = Vec::new();
        for diff_id in config.diff_ids.iter().rev() {
            let path = self.layout.layer_path(diff_id);
            // overlayfs refuses a directory twice. The lower one shows nothing that the upper one does not.
            if !layers.contains(&path) {
                layers.push(path);
            }
            if reports.get(diff_id).is_some_and(|report| report.opaque_root) {
                break;
            }
        }
        Ok(Some(Image {
            reference: record.reference.clone(),
            manifest_digest,
            resolved_digest: record.resolved_digest,
            config,
            layers,
            size_bytes,
            freshness,
            origin: record.origin,
            _pin: pin,
        }))
    }
}
