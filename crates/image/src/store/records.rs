//! Which name stands for which manifest, where it came from, and who has shown that they may have it.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::layout::{self, Layout};
use super::{Freshness, Image, Inner};
use crate::digest::Digest;
use crate::error::Error;
use crate::reference::Reference;

/// Credentials remembered with a private image. Secrets are rotated; the newest matter.
const MAX_HOLDERS: usize = 64;

/// Where an image came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// A pull. It can be pulled again.
    Registry,
    /// An import. Only the operator can bring it back, so no budget takes it away.
    Archive,
}

/// One line of [`super::ImageStore::list`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSummary {
    /// Its name.
    pub reference: Reference,
    /// Its manifest for this machine.
    pub manifest_digest: Digest,
    /// Bytes of its unpacked layers, shared ones included.
    pub size_bytes: u64,
    /// Whether all of it is here.
    pub complete: bool,
    /// Where it came from.
    pub origin: Origin,
    /// When it was pulled or imported.
    pub created_at: SystemTime,
    /// When it was last asked for.
    pub used_at: SystemTime,
}

/// `images/<hash>.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) reference: Reference,
    pub(super) manifest_digest: Digest,
    pub(super) resolved_digest: Digest,
    pub(super) origin: Origin,
    pub(super) created_unix_seconds: u64,
    /// Empty means that anybody may have it. Else salted hashes of credentials the registry accepted: an image
    /// one tenant pulled with a secret is not another's for knowing its name.
    pub(super) holders: Vec<Digest>,
}

impl Record {
    pub(super) fn new(
        reference: Reference,
        manifest_digest: Digest,
        resolved_digest: Digest,
        origin: Origin,
        holder: Option<Digest>,
    ) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            reference,
            manifest_digest,
            resolved_digest,
            origin,
            created_unix_seconds: now.as_secs(),
            holders: holder.into_iter().collect(),
        }
    }

    pub(super) fn allows(&self, holder: Option<&Digest>) -> bool {
        self.holders.is_empty() || holder.is_some_and(|holder| self.holders.contains(holder))
    }

    /// Whether only the operator may replace it: a registry that has something under its name has nothing to say.
    pub(super) fn is_imported(&self) -> bool {
        self.origin == Origin::Archive
    }

    /// Notes that the registry let these credentials (or nobody in particular) have the same contents.
    /// Answers whether that changed anything.
    pub(super) fn admit(&mut self, holder: Option<Digest>) -> bool {
        match holder {
            _ if self.holders.is_empty() => false,
            None => {
                self.holders.clear();
                true
            }
            Some(holder) if self.holders.contains(&holder) => false,
            Some(holder) => {
                self.holders.insert(0, holder);
                self.holders.truncate(MAX_HOLDERS);
                true
            }
        }
    }
}

impl Layout {
    pub(super) fn record(&self, reference: &Reference) -> Result<Option<Record>, Error> {
        self.read_json(&self.image_path(&reference.to_string()))
    }

    pub(super) fn write_record(&self, record: &Record) -> Result<(), Error> {
        self.write_json(&self.image_path(&record.reference.to_string()), record)
    }

    pub(super) fn remove_record(&self, reference: &Reference) -> Result<bool, Error> {
        let path = self.image_path(&reference.to_string());
        let Some(trash) = self.discard(&path)? else {
            return Ok(false);
        };
        layout::flush_parent(&path)?;
        layout::remove_tree(&trash)?;
        Ok(true)
    }

    /// All records with the time each was last used.
    pub(super) fn records(&self) -> Result<Vec<(Record, SystemTime)>, Error> {
        let mut records = Vec::new();
        for path in layout::entries(&self.directory("images"))? {
            if let Some(record) = self.read_json::<Record>(&path)? {
                records.push((record, modified(&path)));
            }
        }
        records.sort_by(|(left, _), (right, _)| left.reference.cmp(&right.reference));
        Ok(records)
    }

    /// Notes the use of an image in the time of its record's file: no flush, for a lost note harms nobody.
    pub(super) fn touch(&self, reference: &Reference) {
        let path = self.image_path(&reference.to_string());
        if let Ok(file) = File::options().append(true).open(path) {
            let _ = file.set_modified(SystemTime::now());
        }
    }
}

impl Inner {
    /// The image kept under a name, if all of it is here.
    pub(super) fn kept(&self, reference: &Reference) -> Result<Option<(Record, Image)>, Error> {
        let Some(record) = self.layout.record(reference)? else {
            return Ok(None);
        };
        let image = self.assemble(&record, Freshness::Present)?;
        Ok(image.map(|image| (record, image)))
    }

    pub(super) fn summaries(&self) -> Result<Vec<ImageSummary>, Error> {
        let mut summaries = Vec::new();
        for (record, used_at) in self.layout.records()? {
            let image = self.assemble(&record, Freshness::Present)?;
            summaries.push(ImageSummary {
                reference: record.reference,
                manifest_digest: record.manifest_digest,
                size_bytes: image.as_ref().map_or(0, |image| image.size_bytes),
                complete: image.is_some(),
                origin: record.origin,
                created_at: UNIX_EPOCH + Duration::from_secs(record.created_unix_seconds),
                used_at,
            });
        }
        Ok(summaries)
    }
}

pub(super) fn modified(path: &Path) -> SystemTime {
    path.metadata()
        .and_then(|metadata| metadata.modified())
        .unwrap_or(UNIX_EPOCH)
}
