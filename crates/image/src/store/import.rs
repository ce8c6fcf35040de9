//! Images from archives, for hosts without a registry: `docker save` and OCI layouts, compressed or not.
//!
//! The archive's files are first spread under `tmp/`, each under a number of ours (its own name is only ever
//! compared, never opened), hashed on the way; then they are read as a registry would have served them. An OCI
//! layout's blobs must match their digests; `docker save`'s older form has no manifest, so one is made.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::layout::{self, TemporaryDirectory};
use super::records::{Origin, Record};
use super::{ImageStore, Inner, Pins};
use crate::digest::Digest;
use crate::error::Error;
use crate::limits::{MAX_CONFIG_BYTES, MAX_MANIFEST_BYTES};
use crate::manifest::{self, Descriptor, ImageManifest, IndexEntry, Manifest, ManifestError};
use crate::progress::ProgressSender;
use crate::reference::Reference;
use crate::unpack::{ArchiveFile, UnpackError, read_archive};

/// Files in an archive: a hundred images of a hundred layers, three files each.
const MAX_FILES: usize = 50_000;
/// Links in an archive point at files directly, or through few others.
const MAX_HOPS: usize = 8;
/// Names of images in an OCI layout, in the order of trust: containerd's is complete, the standard's often only
/// a tag.
const NAME_ANNOTATIONS: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];

/// One image that was imported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// The name it is kept under.
    pub reference: Reference,
    /// Its manifest.
    pub manifest_digest: Digest,
}

/// An archive's files by name.
struct Spread {
    files: HashMap<Vec<u8>, Stored>,
    links: HashMap<Vec<u8>, Vec<u8>>,
    // Dropped last; holds the files.
    _directory: TemporaryDirectory,
}

#[derive(Debug, Clone)]
struct Stored {
    path: PathBuf,
    digest: Digest,
    bytes: u64,
}

/// An image found in an archive: its names, and where its parts are.
struct Found {
    names: Vec<String>,
    manifest: ImageManifest,
    manifest_bytes: Vec<u8>,
    config_bytes: Vec<u8>,
    layers: Vec<Stored>,
}

impl ImageStore {
    /// Imports every image of an archive. `name` is for archives that carry no complete name of their own, and
    /// replaces it for those that hold one image.
    ///
    /// Imported images are used without asking a registry, whatever the policy. No budget collects them.
    pub async fn import(
        &self,
        archive: impl Read + Send + 'static,
        name: Option<Reference>,
        progress: &ProgressSender,
    ) -> Result<Vec<Imported>, Error> {
        let inner = Arc::clone(&self.inner);
        let found = tokio::task::spawn_blocking(move || {
            let spread = spread(&inner, archive)?;
            let found = spread.images(&inner)?;
            Ok::<_, Error>((spread, found))
        });
        let (spread, found) = found.await??;
        let outcome = self.import_all(found, name, progress).await;
        // The spread files live until the images are in. Removing them blocks.
        tokio::task::spawn_blocking(move || drop(spread)).await?;
        outcome
    }

    async fn import_all(
        &self,
        found: Vec<Found>,
        name: Option<Reference>,
        progress: &ProgressSender,
    ) -> Result<Vec<Imported>, Error> {
        if found.is_empty() {
            return Err(refused("it holds no image for this machine"));
        }
        let single = found.len() == 1;
        let mut imported = Vec::new();
        for image in found {
            let references = references(&image, name.as_ref().filter(|_| single))?;
            imported.extend(self.import_one(image, references, progress).await?);
        }
        Ok(imported)
    }

    /// The same from a file.
    pub async fn import_file(
        &self,
        path: &Path,
        name: Option<Reference>,
        progress: &ProgressSender,
    ) -> Result<Vec<Imported>, Error> {
        let file = File::open(path).map_err(|error| Error::io("opening", path, error))?;
        self.import(file, name, progress).await
    }

    async fn import_one(
        &self,
        image: Found,
        references: Vec<Reference>,
        progress: &ProgressSender,
    ) -> Result<Vec<Imported>, Error> {
        let manifest_digest = Digest::of(&image.manifest_bytes);
        let shown = references.first().map_or_else(String::new, Reference::familiar);
        let layers = image.layers;
        let described = self.check(
            &shown,
            image.manifest,
            image.manifest_bytes,
            manifest_digest,
            image.config_bytes,
        )?;
        // Held from before the blobs are put in place until the images have them.
        let _pin = Pins::pin(
            &self.inner.pins,
            layers.iter().map(|layer| layer.digest).collect(),
        );
        let (inner, diff_ids) = (Arc::clone(&self.inner), described.config.diff_ids.clone());
        tokio::task::spawn_blocking(move || {
            layers
                .iter()
                .zip(&diff_ids)
                .try_for_each(|(layer, diff_id)| place(&inner, layer, diff_id))
        })
        .await??;
        let mut imported = Vec::new();
        for reference in references {
            let record = Record::new(
                reference.clone(),
                manifest_digest,
                manifest_digest,
                Origin::Archive,
                None,
            );
            self.fill(None, described.clone(), record, progress).await?;
            imported.push(Imported {
                reference,
                manifest_digest,
            });
        }
        Ok(imported)
    }
}

/// Gives a layer its place among the blobs, unless it is unpacked already.
fn place(inner: &Inner, layer: &Stored, diff_id: &Digest) -> Result<(), Error> {
    if inner.layout.layer(diff_id, &layer.digest)?.is_some() {
        return Ok(());
    }
    let target = inner.layout.blob_path(&layer.digest);
    match fs::hard_link(&layer.path, &target) {
        Ok(()) => layout::flush_parent(&target),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(Error::io("keeping", &target, error)),
    }
}

fn spread(inner: &Inner, archive: impl Read) -> Result<Spread, Error> {
    let directory = inner.layout.temporary_directory()?;
    let budget = inner.budget();
    let mut spread = Spread {
        files: HashMap::new(),
        links: HashMap::new(),
        _directory: directory,
    };
    let base = spread._directory.path().to_owned();
    let mut failure = None;
    let read = read_archive(archive, &budget, |name, file| {
        if spread.files.len() + spread.links.len() >= MAX_FILES {
            failure = Some(refused("it holds more files than any image archive does"));
            return Ok(false);
        }
        match file {
            ArchiveFile::Link(target) => {
                spread.links.insert(normal(name), link_target(name, target));
            }
            ArchiveFile::Data(data) => {
                let path = base.join(spread.files.len().to_string());
                match store(data, &path) {
                    Ok(stored) => {
                        spread.files.insert(normal(name), stored);
                    }
                    Err(StoreError::Read(error)) => return Err(UnpackError::Compression(error)),
                    Err(StoreError::Write(error)) => {
                        failure = Some(Error::io("writing", &path, error));
                        return Ok(false);
                    }
                }
            }
        }
        Ok(true)
    });
    if let Some(failure) = failure {
        return Err(failure);
    }
    read.map_err(|error| match error {
        UnpackError::Io { source, .. } => Error::io("writing", &base, source),
        error => refused(&error.to_string()),
    })?;
    Ok(spread)
}

enum StoreError {
    Read(io::Error),
    Write(io::Error),
}

fn store(data: &mut dyn Read, path: &Path) -> Result<Stored, StoreError> {
    const BUFFER_BYTES: usize = 256 << 10;
    let mut file = File::create_new(path).map_err(StoreError::Write)?;
    let mut hasher = Sha256::new();
    let mut bytes = 0;
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let count = data.read(&mut buffer).map_err(StoreError::Read)?;
        if count == 0 {
            break;
        }
        hasher.update(&buffer[..count]);
        file.write_all(&buffer[..count]).map_err(StoreError::Write)?;
        bytes += count as u64;
    }
    file.sync_all().map_err(StoreError::Write)?;
    Ok(Stored {
        path: path.to_owned(),
        digest: Digest::finish(hasher),
        bytes,
    })
}

/// `manifest.json` of `docker save`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SavedImage {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

impl Spread {
    fn images(&self, inner: &Inner) -> Result<Vec<Found>, Error> {
        if self.find(b"manifest.json").is_some() {
            return self.saved_images();
        }
        if self.find(b"index.json").is_some() {
            return self.layout_images(inner);
        }
        Err(refused(
            "it is neither the output of `docker save` nor an OCI layout: it has no manifest.json and no index.json",
        ))
    }

    /// `docker save`.
    fn saved_images(&self) -> Result<Vec<Found>, Error> {
        let bytes = self.read(b"manifest.json", MAX_MANIFEST_BYTES)?;
        let saved: Vec<SavedImage> = serde_json::from_slice(&bytes)
            .map_err(|error| refused(&format!("its manifest.json is malformed ({error})")))?;
        saved.into_iter().map(|image| self.saved_image(image)).collect()
    }

    fn saved_image(&self, saved: SavedImage) -> Result<Found, Error> {
        let config_bytes = self.read(saved.config.as_bytes(), MAX_CONFIG_BYTES)?;
        let layers = saved.layers.unwrap_or_default();
        let layers: Vec<Stored> = layers
            .iter()
            .map(|name| self.need(name.as_bytes()).cloned())
            .collect::<Result<_, _>>()?;
        let config = Descriptor {
            media_type: manifest::OCI_CONFIG.to_owned(),
            digest: Digest::of(&config_bytes),
            size: config_bytes.len() as u64,
        };
        let descriptors: Vec<Descriptor> = layers
            .iter()
            .map(|layer| Descriptor {
                media_type: manifest::OCI_LAYER.to_owned(),
                digest: layer.digest,
                size: layer.bytes,
            })
            .collect();
        let document = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": manifest::OCI_MANIFEST,
            "config": config,
            "layers": descriptors,
        });
        Ok(Found {
            names: saved.repo_tags.unwrap_or_default(),
            manifest: ImageManifest {
                config,
                layers: descriptors,
            },
            manifest_bytes: document.to_string().into_bytes(),
            config_bytes,
            layers,
        })
    }

    /// An OCI layout.
    fn layout_images(&self, inner: &Inner) -> Result<Vec<Found>, Error> {
        let bytes = self.read(b"index.json", MAX_MANIFEST_BYTES)?;
        let entries = match manifest::parse_manifest(&bytes, None).map_err(malformed)? {
            Manifest::Index(entries) => entries,
            Manifest::Image(_) => return Err(refused("its index.json is not an index")),
        };
        let mut found: Vec<Found> = Vec::new();
        let mut by_digest: BTreeMap<Digest, usize> = BTreeMap::new();
        for entry in &entries {
            let Some((digest, manifest, manifest_bytes)) = self.layout_manifest(inner, entry)? else {
                continue;
            };
            let names = NAME_ANNOTATIONS
                .iter()
                .find_map(|key| entry.annotations.get(*key))
                .cloned();
            if let Some(image) = by_digest.get(&digest).and_then(|at| found.get_mut(*at)) {
                image.names.extend(names);
                continue;
            }
            let config_bytes = self.read(&blob_name(&manifest.config.digest), MAX_CONFIG_BYTES)?;
            let layers = manifest
                .layers
                .iter()
                .map(|layer| self.blob(&layer.digest).cloned())
                .collect::<Result<_, _>>()?;
            by_digest.insert(digest, found.len());
            found.push(Found {
                names: names.into_iter().collect(),
                manifest,
                manifest_bytes,
                config_bytes,
                layers,
            });
        }
        Ok(found)
    }

    /// The image of an entry that runs here, or `None` for another platform's or an attestation.
    fn layout_manifest(
        &self,
        inner: &Inner,
        entry: &IndexEntry,
    ) -> Result<Option<(Digest, ImageManifest, Vec<u8>)>, Error> {
        let own = |entry: &IndexEntry| manifest::choose(std::slice::from_ref(entry), &inner.platform).is_ok();
        if !own(entry) {
            return Ok(None);
        }
        let digest = entry.descriptor.digest;
        let bytes = self.read_blob(&digest)?;
        match manifest::parse_manifest(&bytes, None).map_err(malformed)? {
            Manifest::Image(manifest) => Ok(Some((digest, manifest, bytes))),
            Manifest::Index(entries) => {
                let chosen =
                    manifest::choose(&entries, &inner.platform).map_err(|available| Error::Platform {
                        image: entry.annotations.values().next().cloned().unwrap_or_default(),
                        wanted: inner.platform.to_string(),
                        available: available.iter().map(ToString::to_string).collect(),
                        operating_system: false,
                    })?;
                let digest = chosen.descriptor.digest;
                let bytes = self.read_blob(&digest)?;
                match manifest::parse_manifest(&bytes, None).map_err(malformed)? {
                    Manifest::Image(manifest) => Ok(Some((digest, manifest, bytes))),
                    Manifest::Index(_) => Err(refused("it has an index inside an index")),
                }
            }
        }
    }

    fn read_blob(&self, digest: &Digest) -> Result<Vec<u8>, Error> {
        self.blob(digest)?;
        self.read(&blob_name(digest), MAX_MANIFEST_BYTES)
    }

    /// A file that must be there and be what its name says.
    fn blob(&self, digest: &Digest) -> Result<&Stored, Error> {
        let stored = self.need(&blob_name(digest))?;
        if stored.digest != *digest {
            return Err(refused(&format!(
                "its blob {digest} has other contents than its name says"
            )));
        }
        Ok(stored)
    }

    fn read(&self, name: &[u8], limit_bytes: u64) -> Result<Vec<u8>, Error> {
        let stored = self.need(name)?;
        if stored.bytes > limit_bytes {
            return Err(refused(&format!(
                "its {} is larger than {limit_bytes} bytes",
                String::from_utf8_lossy(name)
            )));
        }
        fs::read(&stored.path).map_err(|error| Error::io("reading", &stored.path, error))
    }

    fn need(&self, name: &[u8]) -> Result<&Stored, Error> {
        let shown: String = String::from_utf8_lossy(name).chars().take(100).collect();
        self.find(name)
            .ok_or_else(|| refused(&format!("it lacks its file {shown}")))
    }

    /// A file by name, through the links that `docker save` puts in the place of repeated layers.
    fn find(&self, name: &[u8]) -> Option<&Stored> {
        let mut name = normal(name);
        for _ in 0..MAX_HOPS {
            if let Some(stored) = self.files.get(&name) {
                return Some(stored);
            }
            name.clone_from(self.links.get(&name)?);
        }
        None
    }
}

/// The names an image gets: the one asked for, else its own.
fn references(image: &Found, name: Option<&Reference>) -> Result<Vec<Reference>, Error> {
    if let Some(name) = name {
        return Ok(vec![name.clone()]);
    }
    // A tag alone, as some tools write it, names no image.
    let complete = image.names.iter().filter(|name| name.contains(['/', ':', '@']));
    let references: Vec<Reference> = complete.map(|name| name.parse()).collect::<Result<_, _>>()?;
    if references.is_empty() {
        return Err(refused("an image in it has no name: give one with `--name`"));
    }
    Ok(references)
}

fn blob_name(digest: &Digest) -> Vec<u8> {
    format!("blobs/sha256/{}", digest.hex()).into_bytes()
}

/// Where a link leads, as a name in the archive: links are relative to their own directory.
fn link_target(name: &[u8], target: &[u8]) -> Vec<u8> {
    let directory = match name.iter().rposition(|byte| *byte == b'/') {
        Some(slash) if !target.starts_with(b"/") => &name[..slash],
        _ => b"",
    };
    normal(&[directory, b"/", target].concat())
}

/// A name without `.`, `..` and double slashes. Only compared with other names, so `..` above the top is harmless.
fn normal(name: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join(&b'/')
}

fn refused(reason: &str) -> Error {
    Error::Archive {
        reason: reason.to_owned(),
    }
}

fn malformed(source: ManifestError) -> Error {
    refused(&format!("{source}"))
}
