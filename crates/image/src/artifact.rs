//! Artifacts: files that registries keep beside images, fetched as they are, such as models.
//!
//! What an image's pull has, this has too: mirrors, credentials and certificates as the hosts files say, retries, a
//! transfer that goes on where it was cut off, and a digest that everything is checked against. There is no store of
//! them: a file goes to the directory of whoever asks. Called by the composition root (`tram models pull`).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::watch;

use crate::digest::Digest;
use crate::error::Error;
use crate::floor::Floor;
use crate::limits::{Limits, Timeouts};
use crate::manifest::{ArtifactLayer, ArtifactManifest, Descriptor, ManifestError, parse_artifact};
use crate::reference::Reference;
use crate::registry::{Client, Credentials, RegistryConfig, Resolved, Source};
use crate::store::download::{Place, download};

/// Ends the name of a file that is not whole yet.
const PARTIAL: &str = "partial";

/// A way to registries.
#[derive(Debug)]
pub struct Artifacts {
    client: Arc<Client>,
}

/// What a name stands for.
#[derive(Debug)]
pub struct Artifact {
    /// The digest of its manifest.
    pub digest: Digest,
    /// What it says to be.
    pub kind: String,
    /// Its files.
    pub layers: Vec<ArtifactLayer>,
    source: Arc<Source>,
}

impl Artifacts {
    /// Registries as the operator configured them.
    #[must_use]
    pub fn new(registries: RegistryConfig, timeouts: Timeouts) -> Self {
        Self {
            client: Arc::new(Client::new(registries, timeouts)),
        }
    }

    /// Asks what a name stands for. `login` is shown to its registry in place of the operator's.
    ///
    /// # Errors
    /// When the registry cannot be asked, refuses, does not have it, or what it has is no artifact.
    pub async fn resolve(
        &self,
        reference: &Reference,
        login: Option<Credentials>,
    ) -> Result<Artifact, Error> {
        let source = Source::new(Arc::clone(&self.client), reference.clone(), login)?;
        let malformed = |source: ManifestError| Error::Manifest {
            image: reference.familiar(),
            source,
        };
        let read =
            |found: &Resolved| parse_artifact(&found.bytes, found.content_type.as_deref()).map_err(malformed);
        let mut found = source.resolve().await?;
        let mut manifest = read(&found)?;
        if let ArtifactManifest::Index(entries) = &manifest {
            let [only] = entries.as_slice() else {
                return Err(malformed(ManifestError::SeveralArtifacts(entries.len())));
            };
            found = source.manifest_by_digest(only.descriptor.digest).await?;
            manifest = read(&found)?;
        }
        match manifest {
            ArtifactManifest::Files { kind, layers } => Ok(Artifact {
                digest: found.digest,
                kind,
                layers,
                source: Arc::new(source),
            }),
            ArtifactManifest::Index(_) => {
                Err(malformed(ManifestError::Kind("an index of indexes".to_owned())))
            }
        }
    }
}

impl Artifact {
    /// Where [`Artifact::fetch`] writes a file down before it is whole.
    #[must_use]
    pub fn partial(directory: &Path, file: &Descriptor) -> PathBuf {
        Self::whole(directory, file).with_extension(PARTIAL)
    }

    /// Where it is when it is whole.
    #[must_use]
    pub fn whole(directory: &Path, file: &Descriptor) -> PathBuf {
        directory.join(file.digest.hex())
    }

    /// Fetches one of its files into `directory`, under its digest; `bytes_done` hears how many bytes of it are there.
    /// What an earlier call left is gone on with.
    ///
    /// # Errors
    /// When it cannot be had, what came is not what its digest says, or the disk is full.
    pub async fn fetch(
        &self,
        file: &Descriptor,
        directory: &Path,
        bytes_done: watch::Sender<u64>,
    ) -> Result<PathBuf, Error> {
        let blob = Self::whole(directory, file);
        let place = Place {
            partial: Self::partial(directory, file),
            floor: Arc::new(Floor::new(directory, &Limits::default())?),
            blob: blob.clone(),
        };
        download(place, Arc::clone(&self.source), file.clone(), bytes_done).await?;
        Ok(blob)
    }
}
