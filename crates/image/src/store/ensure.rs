//! `ensure`: from a name to an image on disk.
//!
//! Flow: alias, look at what is kept, ask the registry as the policy says, choose the platform, check the
//! configuration, make the layers ready, write the record. Cancel-safe: dropping the future leaves what has
//! arrived for the next attempt, and nothing half done under a final name.

use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};

use super::layers::{MaybeSource, ensure_layer};
use super::records::{Origin, Record};
use super::{Freshness, Image, ImageStore, Pins};
use crate::digest::Digest;
use crate::error::Error;
use crate::limits::{CONCURRENT_LAYERS, MAX_CONFIG_BYTES};
use crate::manifest::{self, ImageConfig, ImageManifest, Manifest, ManifestError, Platform};
use crate::progress::{BlobProgress, Phase, ProgressSender};
use crate::reference::Reference;
use crate::registry::{Credentials, Resolved, Source};

/// When the registry is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PullPolicy {
    /// Always, so that a moved tag is followed. If the registry cannot be reached, the kept image is used and
    /// [`Freshness::Unconfirmed`] says so. An imported image is used without asking: its name may be another's on
    /// a registry.
    #[default]
    Always,
    /// Only when the image is not here, or is private and these credentials have not been seen to open it.
    IfNotPresent,
}

/// What to get, and how.
#[derive(Debug, Clone)]
pub struct PullRequest {
    /// The name, before aliases.
    pub reference: Reference,
    /// From the registry secret; go to the named registry alone, and nowhere when an alias leads to another.
    pub credentials: Option<Credentials>,
    /// When to ask.
    pub policy: PullPolicy,
}

impl PullRequest {
    /// An anonymous request that asks the registry.
    #[must_use]
    pub fn new(reference: Reference) -> Self {
        Self {
            reference,
            credentials: None,
            policy: PullPolicy::default(),
        }
    }

    /// With credentials.
    #[must_use]
    pub fn credentials(mut self, credentials: Credentials) -> Self {
        self.credentials = Some(credentials);
        self
    }

    /// With another policy.
    #[must_use]
    pub fn policy(mut self, policy: PullPolicy) -> Self {
        self.policy = policy;
        self
    }
}

/// An image as its registry (or archive) describes it.
#[derive(Debug, Clone)]
pub(super) struct Described {
    pub(super) manifest: ImageManifest,
    pub(super) manifest_bytes: Vec<u8>,
    pub(super) manifest_digest: Digest,
    pub(super) config: ImageConfig,
    pub(super) config_bytes: Vec<u8>,
}

impl ImageStore {
    /// Makes an image ready to launch.
    ///
    /// Many may ask for the same image, or for images that share layers, at the same time: each layer is
    /// fetched and unpacked once.
    pub async fn ensure(&self, request: &PullRequest, progress: &ProgressSender) -> Result<Image, Error> {
        let (reference, credentials) = self.aliased(&request.reference, request.credentials.as_ref());
        progress.send_modify(|progress| progress.phase = Phase::Resolving);
        let holder = self.holder(&reference, credentials);
        let kept = self.kept(&reference).await?;
        let usable = kept.as_ref().filter(|(record, _)| record.allows(holder.as_ref()));
        if let Some((record, image)) = usable
            && (request.policy == PullPolicy::IfNotPresent || record.is_imported())
        {
            return Ok(self.ready(image.clone(), progress));
        }
        let source = Source::new(
            Arc::clone(&self.inner.client),
            reference.clone(),
            credentials.cloned(),
        )?;
        let source = Arc::new(source);
        let resolved = match self.ask(&source, kept.as_ref().map(|(record, _)| record)).await {
            Ok(Answer::Same) => {
                if let Some((_, image)) = kept {
                    self.admit(&reference, holder).await?;
                    return Ok(self.ready(
                        Image {
                            freshness: Freshness::Confirmed,
                            ..image
                        },
                        progress,
                    ));
                }
                source.resolve().await?
            }
            Ok(Answer::Changed(resolved)) => resolved,
            Err(error) => {
                return match usable {
                    Some((_, image)) if error.unreachable() => {
                        let reason = error.user_message();
                        tracing::warn!(image = %reference, reason, "registry not reachable, using the kept image");
                        let freshness = Freshness::Unconfirmed { reason };
                        Ok(self.ready(
                            Image {
                                freshness,
                                ..image.clone()
                            },
                            progress,
                        ))
                    }
                    _ => match self.stand_in(&reference, &error).await? {
                        Some(image) => Ok(self.ready(image, progress)),
                        None => Err(error),
                    },
                };
            }
        };
        let resolved_digest = resolved.digest;
        let described = self.describe(&source, resolved).await?;
        let record = Record::new(
            reference,
            described.manifest_digest,
            resolved_digest,
            Origin::Registry,
            holder,
        );
        let image = self.fill(Some(source), described, record, progress).await?;
        Ok(self.ready(image, progress))
    }

    /// The image that is kept under a name, whoever may have it: for a caller that was let have it before. Asks nobody.
    pub async fn held(&self, reference: &Reference) -> Result<Option<Image>, Error> {
        let reference = self.inner.settings.aliases.apply(reference);
        let kept = self.kept(&reference).await?;
        Ok(kept.map(|(_, image)| {
            self.inner.layout.touch(&image.reference);
            image
        }))
    }

    pub(super) async fn kept(&self, reference: &Reference) -> Result<Option<(Record, Image)>, Error> {
        let (inner, reference) = (Arc::clone(&self.inner), reference.clone());
        tokio::task::spawn_blocking(move || inner.kept(&reference)).await?
    }

    /// The imported image that the operator has stand in for this one while its registry cannot be reached.
    async fn stand_in(&self, reference: &Reference, error: &Error) -> Result<Option<Image>, Error> {
        let other = self.inner.settings.fallbacks.apply(reference);
        if other == *reference || !error.unanswered() {
            return Ok(None);
        }
        // What was pulled may be somebody's alone; what the operator imported is for everybody.
        let kept = self.kept(&other).await?;
        let Some((_, image)) = kept.filter(|(record, _)| record.is_imported()) else {
            return Ok(None);
        };
        let reason = error.user_message();
        tracing::warn!(image = %reference, stands_in = %other, reason, "registry not reachable, another image stands in");
        let freshness = Freshness::StandsIn { reason };
        Ok(Some(Image { freshness, ..image }))
    }

    fn ready(&self, image: Image, progress: &ProgressSender) -> Image {
        self.inner.layout.touch(&image.reference);
        progress.send_modify(|progress| progress.phase = Phase::Ready);
        image
    }

    /// What the name stands for now. A question without contents comes first when there is something to
    /// compare with.
    async fn ask(&self, source: &Source, kept: Option<&Record>) -> Result<Answer, Error> {
        if let Some(record) = kept {
            match source.head().await {
                Ok(Some(digest)) if digest == record.resolved_digest => return Ok(Answer::Same),
                Err(error) if error.unreachable() => return Err(error),
                // Some registries do not know the question; the next one tells all.
                _ => {}
            }
        }
        let resolved = source.resolve().await?;
        Ok(match kept {
            Some(record) if record.resolved_digest == resolved.digest => Answer::Same,
            _ => Answer::Changed(resolved),
        })
    }

    /// The registry confirmed kept contents for these credentials: remember that they may have them.
    async fn admit(&self, reference: &Reference, holder: Option<Digest>) -> Result<(), Error> {
        let _guard = self.inner.records.lock().await;
        let (inner, reference) = (Arc::clone(&self.inner), reference.clone());
        tokio::task::spawn_blocking(move || {
            if let Some(mut record) = inner.layout.record(&reference)?
                && record.admit(holder)
            {
                inner.layout.write_record(&record)?;
            }
            Ok(())
        })
        .await?
    }

    /// Chooses the platform and reads the configuration.
    pub(super) async fn describe(&self, source: &Source, resolved: Resolved) -> Result<Described, Error> {
        let image = source.image();
        let malformed = |source: ManifestError| Error::Manifest {
            image: image.clone(),
            source,
        };
        let (manifest, bytes, digest) =
            match manifest::parse_manifest(&resolved.bytes, resolved.content_type.as_deref())
                .map_err(malformed)?
            {
                Manifest::Image(manifest) => (manifest, resolved.bytes, resolved.digest),
                Manifest::Index(entries) => {
                    let entry = manifest::choose(&entries, &self.inner.platform)
                        .map_err(|available| self.other_platform(&image, &available))?;
                    let chosen = source.manifest_by_digest(entry.descriptor.digest).await?;
                    match manifest::parse_manifest(&chosen.bytes, chosen.content_type.as_deref())
                        .map_err(malformed)?
                    {
                        Manifest::Image(manifest) => (manifest, chosen.bytes, chosen.digest),
                        Manifest::Index(_) => {
                            return Err(malformed(ManifestError::Kind(
                                "an index inside an index".to_owned(),
                            )));
                        }
                    }
                }
            };
        let config_bytes = source
            .small_blob(&manifest.config, MAX_CONFIG_BYTES, "the configuration")
            .await?;
        self.check(&image, manifest, bytes, digest, config_bytes)
    }

    /// Checks that manifest and configuration fit each other, this machine, and its limits.
    pub(super) fn check(
        &self,
        image: &str,
        manifest: ImageManifest,
        manifest_bytes: Vec<u8>,
        manifest_digest: Digest,
        config_bytes: Vec<u8>,
    ) -> Result<Described, Error> {
        let malformed = |source: ManifestError| Error::Manifest {
            image: image.to_owned(),
            source,
        };
        let config = manifest::parse_config(&config_bytes).map_err(malformed)?;
        let (layers, diff_ids) = (manifest.layers.len(), config.diff_ids.len());
        if layers != diff_ids {
            return Err(malformed(ManifestError::LayerCount { layers, diff_ids }));
        }
        // Hand-made images may leave the platform out; what is said must fit.
        let platform = config.platform();
        let own = &self.inner.platform;
        if (!platform.os.is_empty() && platform.os != own.os)
            || (!platform.architecture.is_empty() && platform.architecture != own.architecture)
        {
            return Err(self.other_platform(image, &[platform]));
        }
        let limit = self.inner.settings.limits.image_compressed_bytes;
        let total = manifest
            .layers
            .iter()
            .fold(0_u64, |total, layer| total.saturating_add(layer.size));
        if total > limit {
            return Err(Error::TooLarge {
                image: image.to_owned(),
                what: "compressed layers in bytes",
                limit,
            });
        }
        Ok(Described {
            manifest,
            manifest_bytes,
            manifest_digest,
            config,
            config_bytes,
        })
    }

    fn other_platform(&self, image: &str, available: &[Platform]) -> Error {
        let own = &self.inner.platform;
        Error::Platform {
            image: image.to_owned(),
            wanted: own.to_string(),
            available: available.iter().map(ToString::to_string).collect(),
            operating_system: !available.iter().any(|platform| platform.os == own.os),
        }
    }

    /// Makes every layer of a described image ready and writes its record last.
    pub(super) async fn fill(
        &self,
        source: MaybeSource,
        described: Described,
        record: Record,
        progress: &ProgressSender,
    ) -> Result<Image, Error> {
        let Described {
            manifest,
            manifest_bytes,
            manifest_digest,
            config,
            config_bytes,
        } = described;
        let mut needed = vec![manifest_digest, manifest.config.digest];
        needed.extend(manifest.layers.iter().map(|layer| layer.digest));
        needed.extend(&config.diff_ids);
        let _pin = Pins::pin(&self.inner.pins, needed);
        let blobs = manifest.layers.iter().map(|layer| BlobProgress {
            digest: layer.digest,
            done_bytes: 0,
            total_bytes: layer.size,
            ready: false,
        });
        progress.send_modify(|progress| {
            progress.phase = Phase::Pulling;
            progress.blobs = blobs.collect();
        });
        let budget = self.inner.budget();
        let layers = manifest.layers.iter().zip(&config.diff_ids).enumerate();
        let work = layers.map(|(index, (layer, diff_id))| {
            let on_bytes = move |bytes| progress.send_modify(|progress| progress.set_done(index, bytes));
            let ready = ensure_layer(
                &self.inner,
                source.clone(),
                layer.clone(),
                *diff_id,
                budget.clone(),
                on_bytes,
            );
            async move {
                let report = ready.await?;
                progress.send_modify(|progress| progress.set_ready(index));
                Ok::<u64, Error>(report.archive_bytes)
            }
        });
        // Gathered first: a stream over a lazy iterator would borrow the closure in ways `Send` cannot see.
        let work: Vec<_> = work.collect();
        let sizes: Vec<u64> = stream::iter(work)
            .buffer_unordered(CONCURRENT_LAYERS)
            .try_collect()
            .await?;
        // The budget was charged for what this pull unpacked, not for what others did meanwhile.
        let limit = self.inner.settings.limits.image_unpacked_bytes;
        if sizes
            .iter()
            .fold(0_u64, |total, bytes| total.saturating_add(*bytes))
            > limit
        {
            let image = record.reference.familiar();
            return Err(Error::TooLarge {
                image,
                what: "unpacked layers in bytes",
                limit,
            });
        }

        let _guard = self.inner.records.lock().await;
        let inner = Arc::clone(&self.inner);
        tokio::task::spawn_blocking(move || {
            inner.layout.write_blob(&config_bytes)?;
            inner.layout.write_blob(&manifest_bytes)?;
            inner.layout.write_record(&record)?;
            inner
                .assemble(&record, Freshness::Confirmed)?
                .ok_or_else(|| Error::Archive {
                    reason: "a layer vanished while the image was stored".to_owned(),
                })
        })
        .await?
    }
}

enum Answer {
    /// What is kept.
    Same,
    /// Something else.
    Changed(Resolved),
}
