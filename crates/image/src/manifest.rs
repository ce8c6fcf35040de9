//! Manifests, image indexes and configurations: what the wire's documents say, as far as a pull needs it.
//!
//! Reads OCI and Docker schema 2. The one design choice: a document is judged by its contents, its own
//! `mediaType` and the transport's content type together, and refused when these disagree on whether it is an
//! index or an image, so that no two programs can see two images under one digest. [`parse_manifest`] and
//! [`parse_config`] take hostile bytes and are fuzzed.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

mod artifact;

pub use artifact::{ArtifactLayer, ArtifactManifest, parse_artifact};

use crate::digest::Digest;
use crate::limits::{MAX_CONFIG_BYTES, MAX_INDEX_ENTRIES, MAX_LAYERS, MAX_MANIFEST_BYTES, MAX_PATH_BYTES};

/// OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI image configuration.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// OCI uncompressed layer.
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// Docker's index.
pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Docker's schema 2 manifest.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker's image configuration.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// Everything a pull understands, for the `Accept` header.
pub const ACCEPTED: [&str; 4] = [OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST];

/// Why a manifest or configuration was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// Not JSON, or of the wrong shape.
    #[error("its {what} is malformed ({source})")]
    Json {
        /// `manifest` or `configuration`.
        what: &'static str,
        /// Where and how.
        source: serde_json::Error,
    },
    /// Over [`MAX_MANIFEST_BYTES`] or [`MAX_CONFIG_BYTES`].
    #[error("its {what} is larger than {limit_bytes} bytes")]
    TooLarge {
        /// `manifest` or `configuration`.
        what: &'static str,
        /// The bound.
        limit_bytes: u64,
    },
    /// Docker's first format.
    #[error("it is in Docker's old schema 1 format: push it again with a current tool")]
    SchemaOne,
    /// Both an index and an image, or neither.
    #[error("its manifest is ambiguous or of an unknown kind ({0})")]
    Kind(String),
    /// Not an image at all: a chart, a signature, an attestation.
    #[error("it is not a container image but an artifact of type `{0}`")]
    Artifact(String),
    /// More than [`MAX_LAYERS`].
    #[error("it has {0} layers, more than {MAX_LAYERS}: merge some")]
    TooManyLayers(usize),
    /// More than [`MAX_INDEX_ENTRIES`].
    #[error("its index has {0} entries, more than {MAX_INDEX_ENTRIES}")]
    TooManyEntries(usize),
    /// Layers and diff ids do not pair up.
    #[error("its manifest lists {layers} layers and its configuration {diff_ids}")]
    LayerCount {
        /// In the manifest.
        layers: usize,
        /// In the configuration.
        diff_ids: usize,
    },
    /// A `WORKDIR` that is no path.
    #[error("its working directory {0}: set another WORKDIR and build it again")]
    WorkingDirectory(&'static str),
    /// An index of several artifacts, none of which is the one for this machine.
    #[error("its name stands for {0} things at once: name one of them by its digest")]
    SeveralArtifacts(usize),
    /// A size below zero or beyond reason.
    #[error("its manifest has a layer of impossible size")]
    Size,
}

/// What a name resolved to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Manifest {
    /// Several images, one for each platform.
    Index(Vec<IndexEntry>),
    /// One image.
    Image(ImageManifest),
}

/// A thing named by digest, with its size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptor {
    /// What it claims to be. Compression is found out from the bytes instead: builders get this wrong.
    #[serde(rename = "mediaType", default)]
    pub media_type: String,
    /// Its name.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
}

/// One line of an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexEntry {
    /// The manifest.
    pub descriptor: Descriptor,
    /// What it runs on, when the index says so.
    pub platform: Option<Platform>,
    /// Annotations, which carry the name in image archives.
    pub annotations: BTreeMap<String, String>,
}

/// One image: a configuration and layers, bottom first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageManifest {
    /// The configuration.
    pub config: Descriptor,
    /// The layers, bottom first.
    pub layers: Vec<Descriptor>,
}

/// An operating system and processor, in Go's words as everywhere in this field.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// `linux`.
    #[serde(default)]
    pub os: String,
    /// `amd64`, `arm64`.
    #[serde(default)]
    pub architecture: String,
    /// `v7`, `v8`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// This machine.
    #[must_use]
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" => "ppc64le",
            other => other,
        };
        Self {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            variant: None,
        }
    }

    /// Whether an image for `other` runs here. Variants are a matter of preference, see [`choose`].
    fn runs(&self, other: &Self) -> bool {
        self.os == other.os && self.architecture == other.architecture
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

/// What an image wants to be run as.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImageConfig {
    /// `ENTRYPOINT`; empty when there is none.
    pub entrypoint: Vec<String>,
    /// `CMD`; empty when there is none.
    pub cmd: Vec<String>,
    /// `NAME=value`, in the image's order.
    pub env: Vec<String>,
    /// `WORKDIR`, absolute; empty means `/`.
    pub working_dir: String,
    /// `USER`; empty means root. See [`crate::user`].
    pub user: String,
    /// `EXPOSE`, sorted.
    pub exposed_ports: Vec<ExposedPort>,
    /// `VOLUME`, sorted.
    pub volumes: Vec<String>,
    /// `STOPSIGNAL`, a name or a number; `None` means SIGTERM.
    pub stop_signal: Option<String>,
    /// `LABEL`.
    pub labels: BTreeMap<String, String>,
    /// The processor it was built for.
    pub architecture: String,
    /// The operating system it was built for.
    pub os: String,
    /// The uncompressed archives of its layers, bottom first.
    pub diff_ids: Vec<Digest>,
}

impl ImageConfig {
    /// What it runs on.
    #[must_use]
    pub fn platform(&self) -> Platform {
        Platform {
            os: self.os.clone(),
            architecture: self.architecture.clone(),
            variant: None,
        }
    }
}

/// A port an image says it listens on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExposedPort {
    /// The port; never 0.
    pub port: u16,
    /// `tcp` or `udp`.
    pub protocol: String,
}

/// Reads a manifest or index. `content_type` is what the transport said, if anything.
pub fn parse_manifest(bytes: &[u8], content_type: Option<&str>) -> Result<Manifest, ManifestError> {
    let document = Document::read(bytes, content_type)?;
    match (document.manifests, document.config, document.layers) {
        (Some(entries), _, _) => Ok(Manifest::Index(entries_of(entries)?)),
        (None, Some(config), Some(layers)) => {
            check_layers(&layers)?;
            if !matches!(config.media_type.as_str(), OCI_CONFIG | DOCKER_CONFIG | "") {
                return Err(ManifestError::Artifact(
                    config.media_type.chars().take(100).collect(),
                ));
            }
            if config.size > MAX_CONFIG_BYTES {
                return Err(ManifestError::TooLarge {
                    what: "configuration",
                    limit_bytes: MAX_CONFIG_BYTES,
                });
            }
            let layers = layers.into_iter().map(|layer| layer.descriptor).collect();
            Ok(Manifest::Image(ImageManifest { config, layers }))
        }
        _ => Err(ManifestError::Kind("neither layers nor manifests".to_owned())),
    }
}

fn entries_of(entries: Vec<EntryDocument>) -> Result<Vec<IndexEntry>, ManifestError> {
    if entries.len() > MAX_INDEX_ENTRIES {
        return Err(ManifestError::TooManyEntries(entries.len()));
    }
    Ok(entries.into_iter().map(IndexEntry::from).collect())
}

fn check_layers(layers: &[LayerDocument]) -> Result<(), ManifestError> {
    if layers.len() > MAX_LAYERS {
        return Err(ManifestError::TooManyLayers(layers.len()));
    }
    // A sum of sizes must not overflow later on.
    if layers.iter().any(|layer| layer.descriptor.size > u64::MAX >> 10) {
        return Err(ManifestError::Size);
    }
    Ok(())
}

/// Reads an image configuration.
pub fn parse_config(bytes: &[u8]) -> Result<ImageConfig, ManifestError> {
    if bytes.len() as u64 > MAX_CONFIG_BYTES {
        return Err(ManifestError::TooLarge {
            what: "configuration",
            limit_bytes: MAX_CONFIG_BYTES,
        });
    }
    let document: ConfigDocument = serde_json::from_slice(bytes).map_err(|source| ManifestError::Json {
        what: "configuration",
        source,
    })?;
    let diff_ids = document.rootfs.unwrap_or_default().diff_ids.unwrap_or_default();
    if diff_ids.len() > MAX_LAYERS {
        return Err(ManifestError::TooManyLayers(diff_ids.len()));
    }
    let run = document.config.unwrap_or_default();
    let mut exposed_ports: Vec<ExposedPort> = run
        .exposed_ports
        .unwrap_or_default()
        .keys()
        .filter_map(|text| exposed_port(text))
        .collect();
    exposed_ports.sort_unstable();
    Ok(ImageConfig {
        entrypoint: run.entrypoint.map(Words::into_vec).unwrap_or_default(),
        cmd: run.cmd.map(Words::into_vec).unwrap_or_default(),
        env: run.env.unwrap_or_default(),
        working_dir: working_directory(run.working_dir.unwrap_or_default())?,
        user: run.user.unwrap_or_default(),
        exposed_ports,
        volumes: run.volumes.unwrap_or_default().into_keys().collect(),
        stop_signal: run.stop_signal.filter(|signal| !signal.is_empty()),
        labels: run.labels.unwrap_or_default(),
        architecture: document.architecture.unwrap_or_default(),
        os: document.os.unwrap_or_default(),
        diff_ids,
    })
}

/// A relative directory is below `/`, as with Docker.
fn working_directory(path: String) -> Result<String, ManifestError> {
    if path.contains('\0') {
        return Err(ManifestError::WorkingDirectory("holds a NUL byte"));
    }
    if path.len() >= MAX_PATH_BYTES {
        return Err(ManifestError::WorkingDirectory("is longer than any path"));
    }
    Ok(if path.is_empty() || path.starts_with('/') {
        path
    } else {
        format!("/{path}")
    })
}

/// The entry of an index that runs on `host`, or the platforms there are.
///
/// Among variants of one architecture the plainest wins (none, then the lowest): a host of unknown age runs
/// `v1` code for sure and `v3` code perhaps. Entries for no platform (`unknown/unknown`) are attestations.
pub fn choose<'a>(entries: &'a [IndexEntry], host: &Platform) -> Result<&'a IndexEntry, Vec<Platform>> {
    let mut fitting: Vec<&IndexEntry> = entries
        .iter()
        .filter(|entry| {
            entry
                .platform
                .as_ref()
                .is_some_and(|platform| host.runs(platform))
        })
        .collect();
    fitting.sort_by(|left, right| variant(left).cmp(variant(right)));
    if let Some(entry) = fitting.first() {
        return Ok(entry);
    }
    // An index of one image without a platform: the configuration will tell.
    if let [entry] = entries
        && entry.platform.is_none()
    {
        return Ok(entry);
    }
    let mut available: Vec<Platform> = entries
        .iter()
        .filter_map(|entry| entry.platform.clone())
        .filter(|platform| platform.os != "unknown" && !platform.os.is_empty())
        .collect();
    available.dedup();
    Err(available)
}

fn variant(entry: &IndexEntry) -> &str {
    entry
        .platform
        .as_ref()
        .and_then(|platform| platform.variant.as_deref())
        .unwrap_or_default()
}

/// A media type without its parameters.
fn essence(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or_default().trim()
}

fn exposed_port(text: &str) -> Option<ExposedPort> {
    let (port, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let port = port.parse().ok().filter(|port| *port > 0)?;
    Some(ExposedPort {
        port,
        protocol: protocol.to_ascii_lowercase(),
    })
}

#[derive(Deserialize)]
struct Document {
    #[serde(rename = "schemaVersion")]
    schema_version: Option<u32>,
    #[serde(rename = "mediaType")]
    media_type: Option<String>,
    manifests: Option<Vec<EntryDocument>>,
    #[serde(rename = "artifactType")]
    artifact_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<LayerDocument>>,
}

impl Document {
    /// A document that is an index or a manifest beyond doubt.
    fn read(bytes: &[u8], content_type: Option<&str>) -> Result<Self, ManifestError> {
        if bytes.len() as u64 > MAX_MANIFEST_BYTES {
            return Err(ManifestError::TooLarge {
                what: "manifest",
                limit_bytes: MAX_MANIFEST_BYTES,
            });
        }
        let document: Self = serde_json::from_slice(bytes).map_err(|source| ManifestError::Json {
            what: "manifest",
            source,
        })?;
        if document.schema_version == Some(1) {
            return Err(ManifestError::SchemaOne);
        }
        let claims_index = [document.media_type.as_deref(), content_type.map(essence)]
            .into_iter()
            .flatten()
            .filter_map(|media_type| match media_type {
                OCI_INDEX | DOCKER_INDEX => Some(true),
                OCI_MANIFEST | DOCKER_MANIFEST => Some(false),
                _ => None,
            });
        let is_index = match (&document.manifests, &document.config, &document.layers) {
            (Some(_), None, None) => true,
            (None, Some(_), Some(_)) => false,
            (None, None, None) => {
                return Err(ManifestError::Kind("neither layers nor manifests".to_owned()));
            }
            _ => return Err(ManifestError::Kind("both layers and manifests".to_owned())),
        };
        if claims_index.into_iter().any(|claim| claim != is_index) {
            return Err(ManifestError::Kind(
                "its contents are not of its media type".to_owned(),
            ));
        }
        Ok(document)
    }
}

#[derive(Deserialize)]
struct LayerDocument {
    #[serde(flatten)]
    descriptor: Descriptor,
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct EntryDocument {
    #[serde(flatten)]
    descriptor: Descriptor,
    platform: Option<Platform>,
    annotations: Option<BTreeMap<String, String>>,
}

impl From<EntryDocument> for IndexEntry {
    fn from(entry: EntryDocument) -> Self {
        Self {
            descriptor: entry.descriptor,
            platform: entry.platform,
            annotations: entry.annotations.unwrap_or_default(),
        }
    }
}

#[derive(Deserialize)]
struct ConfigDocument {
    architecture: Option<String>,
    os: Option<String>,
    config: Option<RunDocument>,
    rootfs: Option<RootDocument>,
}

#[derive(Deserialize, Default)]
struct RootDocument {
    diff_ids: Option<Vec<Digest>>,
}

/// Docker writes `null` for what is not set, hence the options.
#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase")]
struct RunDocument {
    user: Option<String>,
    exposed_ports: Option<BTreeMap<String, serde::de::IgnoredAny>>,
    env: Option<Vec<String>>,
    entrypoint: Option<Words>,
    cmd: Option<Words>,
    volumes: Option<BTreeMap<String, serde::de::IgnoredAny>>,
    working_dir: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    stop_signal: Option<String>,
}

/// Old builders wrote one string where a list belongs.
#[derive(Deserialize)]
#[serde(untagged)]
enum Words {
    Many(Vec<String>),
    One(String),
}

impl Words {
    fn into_vec(self) -> Vec<String> {
        match self {
            Self::Many(words) => words,
            Self::One(word) => vec![word],
        }
    }
}

#[cfg(test)]
mod tests;
