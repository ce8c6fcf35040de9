//! Garbage collection: names beyond their budget first, then everything no name and no instance needs.
//!
//! Mark and sweep, with two guards. What this process works with is pinned (see [`super::pins`]) and never
//! taken. What is younger than a grace is left as well, which covers the moments after a restart, when
//! instances run that nobody has told us of yet. A thing is taken by renaming it to `tmp/` in one step; only
//! then is it removed at leisure.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::layout;
use super::records::{Origin, modified};
use super::{ImageStore, Inner};
use crate::digest::Digest;
use crate::error::Error;
use crate::limits::MAX_MANIFEST_BYTES;
use crate::manifest::{self, Manifest};

/// Layers cut off in the middle are worth keeping for a while: somebody will try again.
const PARTIAL_LIFE: Duration = Duration::from_secs(3 * 24 * 3600);

/// What collection may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CollectPolicy {
    /// Leave what is younger.
    pub grace: Duration,
    /// Forget pulled images that nobody asked for in this time. `None` keeps them.
    pub unused_for: Option<Duration>,
    /// Forget the longest unused pulled images while all images together unpack to more. `None` keeps them.
    pub keep_bytes: Option<u64>,
}

impl CollectPolicy {
    /// Longer than a control plane takes to start and to tell what runs.
    pub const DEFAULT_GRACE: Duration = Duration::from_secs(600);
}

impl Default for CollectPolicy {
    fn default() -> Self {
        Self {
            grace: Self::DEFAULT_GRACE,
            unused_for: None,
            keep_bytes: None,
        }
    }
}

/// What was taken.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CollectReport {
    /// Names forgotten for the policy's sake.
    pub images: Vec<crate::reference::Reference>,
    /// Layer directories removed.
    pub layers: usize,
    /// Blobs and unfinished downloads removed.
    pub blobs: usize,
    /// Bytes that came free: files as stored, layers as their archives.
    pub freed_bytes: u64,
}

impl ImageStore {
    /// Removes what nobody needs. `in_use` are the manifest digests of running instances
    /// ([`super::Image::manifest_digest`]); images they name stay whatever the policy says.
    ///
    /// Errors leave everything not yet taken in place; a damaged manifest of a kept image is such an error,
    /// because what it needs is unknown.
    pub async fn collect(&self, in_use: &[Digest], policy: &CollectPolicy) -> Result<CollectReport, Error> {
        let _guard = self.inner.records.lock().await;
        let (inner, in_use, policy) = (Arc::clone(&self.inner), in_use.to_vec(), policy.clone());
        tokio::task::spawn_blocking(move || inner.collect(&in_use, &policy)).await?
    }
}

impl Inner {
    fn collect(&self, in_use: &[Digest], policy: &CollectPolicy) -> Result<CollectReport, Error> {
        let now = SystemTime::now();
        let mut report = CollectReport::default();
        let mut needed: HashSet<Digest> = HashSet::new();
        for manifest in in_use {
            self.mark(manifest, &mut needed)?;
        }
        for manifest in self.within_budget(in_use, policy, now, &mut report)? {
            self.mark(&manifest, &mut needed)?;
        }
        self.sweep(&needed, policy, now, &mut report)?;
        Ok(report)
    }

    /// Forgets names as the policy says; the manifests of those that stay.
    fn within_budget(
        &self,
        in_use: &[Digest],
        policy: &CollectPolicy,
        now: SystemTime,
        report: &mut CollectReport,
    ) -> Result<Vec<Digest>, Error> {
        let mut records = self.layout.records()?;
        // Most recently used first: the budget is spent on those.
        records.sort_by_key(|(_, used_at)| std::cmp::Reverse(*used_at));
        let mut kept = Vec::new();
        let mut counted: HashSet<Digest> = HashSet::new();
        let mut total_bytes = 0_u64;
        for (record, used_at) in records {
            let age = now.duration_since(used_at).unwrap_or_default();
            let bytes = self.unpacked_bytes(&record.manifest_digest, &mut counted)?;
            let old = policy.unused_for.is_some_and(|limit| age > limit);
            let over = policy
                .keep_bytes
                .is_some_and(|limit| total_bytes.saturating_add(bytes) > limit);
            let held = record.origin == Origin::Archive
                || age < policy.grace
                || in_use.contains(&record.manifest_digest)
                || self.pins.holds(&record.manifest_digest);
            if (old || over) && !held {
                self.layout.remove_record(&record.reference)?;
                report.images.push(record.reference);
            } else {
                total_bytes = total_bytes.saturating_add(bytes);
                kept.push(record.manifest_digest);
            }
        }
        Ok(kept)
    }

    /// Bytes of an image's layers that were not counted before.
    fn unpacked_bytes(&self, manifest: &Digest, counted: &mut HashSet<Digest>) -> Result<u64, Error> {
        let Some((_, config)) = self.layout.read_image(manifest)? else {
            return Ok(0);
        };
        let mut bytes = 0_u64;
        for diff_id in config.diff_ids.iter().filter(|diff_id| counted.insert(**diff_id)) {
            bytes = bytes.saturating_add(self.layout.layer_bytes(diff_id)?);
        }
        Ok(bytes)
    }

    /// Notes everything a manifest needs. A manifest that is not here needs nothing that is.
    fn mark(&self, digest: &Digest, needed: &mut HashSet<Digest>) -> Result<(), Error> {
        if !self.layout.has_blob(digest) || !needed.insert(*digest) {
            return Ok(());
        }
        if let Some((manifest, config)) = self.layout.read_image(digest)? {
            needed.insert(manifest.config.digest);
            for (layer, diff_id) in manifest.layers.iter().zip(&config.diff_ids) {
                // An unpacked layer's blob is left over from an interrupted moment.
                if self.settings.keep_layer_blobs || !self.layout.has_layer(diff_id) {
                    needed.insert(layer.digest);
                }
            }
            needed.extend(config.diff_ids);
            return Ok(());
        }
        // Readable, but its configuration is gone: it cannot be launched and needs nothing.
        let bytes = self
            .layout
            .read_blob(digest, MAX_MANIFEST_BYTES)?
            .unwrap_or_default();
        match manifest::parse_manifest(&bytes, None) {
            Ok(Manifest::Image(manifest)) if !self.layout.has_blob(&manifest.config.digest) => Ok(()),
            _ => Err(Error::io(
                "reading the damaged image",
                &self.layout.blob_path(digest),
                std::io::Error::from(std::io::ErrorKind::InvalidData),
            )),
        }
    }

    fn sweep(
        &self,
        needed: &HashSet<Digest>,
        policy: &CollectPolicy,
        now: SystemTime,
        report: &mut CollectReport,
    ) -> Result<(), Error> {
        let age = |path: &Path| now.duration_since(modified(path)).unwrap_or_default();
        for path in layout::entries(&self.layout.directory("blobs/sha256"))? {
            if let Some(digest) = digest_of(&path)
                && !needed.contains(&digest)
                && age(&path) >= policy.grace
            {
                let bytes = path.metadata().map_or(0, |metadata| metadata.len());
                if self.take(&digest, &[path])? {
                    report.blobs += 1;
                    report.freed_bytes += bytes;
                }
            }
        }
        for path in layout::entries(&self.layout.directory("partial"))? {
            if let Some(digest) = digest_of(&path)
                && age(&path) >= PARTIAL_LIFE.max(policy.grace)
            {
                let bytes = path.metadata().map_or(0, |metadata| metadata.len());
                if self.take(&digest, &[path])? {
                    report.blobs += 1;
                    report.freed_bytes += bytes;
                }
            }
        }
        for path in layout::entries(&self.layout.directory("layers"))? {
            // The report's age counts: the directory's own time is the image's.
            if path.extension().is_none()
                && let Some(diff_id) = digest_of(&path)
                && !needed.contains(&diff_id)
            {
                let about = self.layout.layer_report_path(&diff_id);
                if age(&about) < policy.grace {
                    continue;
                }
                let bytes = self.layout.layer_bytes(&diff_id)?;
                if self.take(&diff_id, &[about, path])? {
                    report.layers += 1;
                    report.freed_bytes += bytes;
                }
            }
        }
        Ok(())
    }

    /// Takes files or trees away unless somebody holds `digest`. Answers whether it did.
    fn take(&self, digest: &Digest, paths: &[PathBuf]) -> Result<bool, Error> {
        let moved = self.pins.unless_pinned(digest, || {
            paths
                .iter()
                .map(|path| self.layout.discard(path))
                .collect::<Result<Vec<_>, Error>>()
        });
        let Some(moved) = moved.transpose()? else {
            return Ok(false);
        };
        for trash in moved.into_iter().flatten() {
            layout::remove_tree(&trash)?;
        }
        Ok(true)
    }
}

fn digest_of(path: &Path) -> Option<Digest> {
    Digest::from_hex(path.file_name()?.to_str()?).ok()
}
