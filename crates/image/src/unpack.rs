//! Unpacks a layer's archive into a directory fit as an overlayfs lower directory. An attack surface: the
//! archive comes from strangers and this runs as root.
//!
//! The one design choice: no path of the archive is ever handed to the kernel as a path of this machine.
//! Parents are resolved with `openat2(RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV)` below an open
//! directory, so symbolic links in the archive are followed inside it and cannot lead out; the last component
//! is only ever created, removed or replaced relative to that parent, never followed.
//!
//! What becomes of what:
//! - absolute names are taken from the layer's root; `..`, NUL and over-long names are refused;
//! - a later entry of a name replaces the earlier one; directories merge;
//! - hard links must point at something this layer holds; symbolic links are kept word for word;
//! - block and character devices are not made (the sandbox has its own `/dev`): counted and skipped;
//! - owner, mode with setuid bits, and times are kept; of extended attributes `security.capability` and
//!   `user.*` (without `user.overlay.*`), the rest is dropped;
//! - `.wh.name` becomes overlayfs's whiteout (a character device 0/0), `.wh..wh..opq` its opaque attribute;
//! - a directory nobody describes but files lie in is made as `root`, mode 755. It hides the owner and mode
//!   that a lower layer may have given it, as with every tool that unpacks layers one by one.
//!
//! [`unpack_layer`] is the entry for fuzzing as well; the store calls it with a budget and a hash.

mod apply;
mod archive;
mod compression;
mod remove;
mod root;

use std::fmt;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::digest::Digest;
use crate::floor::{CHECK_BYTES, Floor};
use crate::limits::Limits;

pub(crate) use compression::decompress;
pub(crate) use remove::remove_all;

/// Why a layer was refused. Names in messages are cut short and printable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnpackError {
    /// The compressed stream is damaged or of an unknown kind.
    #[error("it cannot be decompressed: {0}")]
    Compression(#[source] io::Error),
    /// The archive is damaged.
    #[error("its archive is damaged: {0}")]
    Archive(&'static str),
    /// A name that could lead out of the layer, or that no file system takes.
    #[error("its archive holds the name `{name}`, which is not allowed: {reason}")]
    Name {
        /// The name.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A hard link that leads nowhere in this layer.
    #[error("its archive holds the hard link `{name}` to `{target}`, {reason}")]
    Link {
        /// The link.
        name: String,
        /// Where it points.
        target: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Over the image's budget.
    #[error("it is too large: its image unpacks to more than {limit} {what}")]
    Budget {
        /// `bytes` or `files`.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// The uncompressed archive is not the one the configuration names.
    #[error(
        "its contents are not what the image's configuration promises: expected {expected}, got {actual}"
    )]
    DiffId {
        /// The promise.
        expected: Digest,
        /// What it is.
        actual: Digest,
    },
    /// Nobody waits for it any more.
    #[error("it is no longer wanted")]
    Cancelled,
    /// The file system refused something.
    #[error("{doing} `{name}` failed: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which entry.
        name: String,
        /// The kernel's words.
        source: io::Error,
    },
}

impl UnpackError {
    pub(crate) fn io(doing: &'static str, name: &[u8], source: impl Into<io::Error>) -> Self {
        Self::Io {
            doing,
            name: printable(name),
            source: source.into(),
        }
    }

    pub(crate) fn name(name: &[u8], reason: &'static str) -> Self {
        Self::Name {
            name: printable(name),
            reason,
        }
    }
}

/// What one image may still unpack to, shared by its layers.
#[derive(Debug, Clone)]
pub struct Budget {
    limits: Limits,
    left: Arc<Left>,
    cancelled: Arc<AtomicBool>,
    /// What must stay free of the disk, if it is known which.
    floor: Option<Arc<Floor>>,
}

#[derive(Debug)]
struct Left {
    bytes: AtomicU64,
    entries: AtomicU64,
}

impl Budget {
    /// A full budget.
    #[must_use]
    pub fn new(limits: &Limits) -> Self {
        Self {
            limits: *limits,
            left: Arc::new(Left {
                bytes: AtomicU64::new(limits.image_unpacked_bytes),
                entries: AtomicU64::new(limits.image_entries),
            }),
            cancelled: Arc::default(),
            floor: None,
        }
    }

    /// The same budget while the disk has room.
    pub(crate) fn above(self, floor: Arc<Floor>) -> Self {
        Self {
            floor: Some(floor),
            ..self
        }
    }

    /// The same budget for one layer, which ends soon after the guard is dropped.
    pub(crate) fn cancellable(&self) -> (Self, CancelGuard) {
        let cancelled = Arc::<AtomicBool>::default();
        (
            Self {
                cancelled: Arc::clone(&cancelled),
                ..self.clone()
            },
            CancelGuard(cancelled),
        )
    }

    /// Takes from the budget; the error names the limit.
    pub(crate) fn take_bytes(&self, bytes: u64) -> Result<(), UnpackError> {
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(UnpackError::Cancelled);
        }
        take(&self.left.bytes, bytes).ok_or(UnpackError::Budget {
            what: "bytes",
            limit: self.limits.image_unpacked_bytes,
        })
    }

    /// Asked once in a while: whether the disk has room for more.
    pub(crate) fn check_room(&self) -> Result<(), UnpackError> {
        match &self.floor {
            Some(floor) => floor
                .check()
                .map_err(|error| UnpackError::io("making room for", b"what is unpacked", error)),
            None => Ok(()),
        }
    }

    pub(crate) fn take_entries(&self, entries: u64) -> Result<(), UnpackError> {
        take(&self.left.entries, entries).ok_or(UnpackError::Budget {
            what: "files",
            limit: self.limits.image_entries,
        })
    }
}

/// Cancels when dropped.
#[derive(Debug)]
pub(crate) struct CancelGuard(Arc<AtomicBool>);

impl Drop for CancelGuard {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn take(left: &AtomicU64, amount: u64) -> Option<()> {
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
        left.checked_sub(amount)
    })
    .ok()
    .map(|_| ())
}

/// What an unpacked layer is, kept beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerReport {
    /// The digest of the uncompressed archive.
    pub diff_id: Digest,
    /// Bytes of the uncompressed archive.
    pub archive_bytes: u64,
    /// Files, directories and links.
    pub entries: u64,
    /// Device nodes that were not made.
    pub skipped_devices: u64,
    /// Whether the layer hides everything below it. overlayfs cannot say that of a root directory, so the
    /// layers below are left out instead.
    pub opaque_root: bool,
}

/// Unpacks an archive, compressed or not, into `directory`, which must exist, be empty, and be the caller's
/// alone until this returns. On error the directory holds whatever was unpacked so far.
///
/// Blocks; does not flush to disk. Needs root for owners, whiteouts and attributes.
pub fn unpack_layer(
    reader: impl Read,
    directory: &Path,
    budget: &Budget,
) -> Result<LayerReport, UnpackError> {
    let mut stream = Metered {
        inner: decompress(reader).map_err(UnpackError::Compression)?,
        hasher: Some(Sha256::new()),
        bytes: 0,
        unchecked: CHECK_BYTES,
        budget,
        refused: None,
    };
    let applied = apply::apply(&mut stream, directory, budget).and_then(|applied| {
        // What follows the end mark still counts for the digest.
        io::copy(&mut stream, &mut io::sink()).map_err(UnpackError::Compression)?;
        Ok(applied)
    });
    // A refusal surfaces as a read error somewhere in the archive reader; the reason is here.
    if let Some(refused) = stream.refused.take() {
        return Err(refused);
    }
    let applied = applied?;
    Ok(LayerReport {
        diff_id: Digest::finish(stream.hasher.unwrap_or_default()),
        archive_bytes: stream.bytes,
        entries: applied.entries,
        skipped_devices: applied.skipped_devices,
        opaque_root: applied.opaque_root,
    })
}

/// A file of an archive that is not a layer (see [`read_archive`]).
pub(crate) enum ArchiveFile<'a> {
    /// Its contents; what is not read is skipped.
    Data(&'a mut dyn Read),
    /// The name of another file.
    Link(&'a [u8]),
}

/// Walks the files and links of an archive, compressed or not, without touching the file system. `visit` gets
/// each name as the archive spells it, and says whether to go on.
pub(crate) fn read_archive(
    reader: impl Read,
    budget: &Budget,
    mut visit: impl FnMut(&[u8], ArchiveFile<'_>) -> Result<bool, UnpackError>,
) -> Result<(), UnpackError> {
    let mut stream = Metered {
        inner: decompress(reader).map_err(UnpackError::Compression)?,
        hasher: None,
        bytes: 0,
        unchecked: CHECK_BYTES,
        budget,
        refused: None,
    };
    let mut walk = || {
        let mut archive = archive::Archive::new(&mut stream);
        while let Some(entry) = archive.next_entry()? {
            budget.take_entries(1)?;
            let proceed = match entry.kind {
                archive::Kind::File if entry.sparse.is_none() => {
                    visit(&entry.path, ArchiveFile::Data(&mut archive))?
                }
                archive::Kind::Symlink => visit(&entry.path, ArchiveFile::Link(&entry.link))?,
                // Relative to the archive, unlike a symbolic link.
                archive::Kind::HardLink => {
                    visit(&entry.path, ArchiveFile::Link(&[b"/", &entry.link[..]].concat()))?
                }
                _ => true,
            };
            if !proceed {
                break;
            }
        }
        Ok(())
    };
    let walked = walk();
    stream.refused.take().map_or(walked, Err)
}

/// Hashes and counts what comes out of the decompressor.
struct Metered<'a, R> {
    inner: R,
    /// Only for layers, whose digest is wanted.
    hasher: Option<Sha256>,
    bytes: u64,
    /// Bytes since the disk was asked for its room.
    unchecked: u64,
    budget: &'a Budget,
    refused: Option<UnpackError>,
}

impl<R: Read> Read for Metered<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        let (bytes, _) = buffer.split_at(count);
        self.unchecked += count as u64;
        let mut allowed = self.budget.take_bytes(count as u64);
        if self.unchecked >= CHECK_BYTES {
            self.unchecked = 0;
            allowed = allowed.and_then(|()| self.budget.check_room());
        }
        if let Err(refused) = allowed {
            self.refused = Some(refused);
            return Err(io::Error::other("over budget"));
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(bytes);
        }
        self.bytes += count as u64;
        Ok(count)
    }
}

impl<R> fmt::Debug for Metered<'_, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metered")
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

/// A name from an archive, fit for a message.
fn printable(name: &[u8]) -> String {
    const SHOWN_CHARS: usize = 120;
    let text = String::from_utf8_lossy(name);
    let mut shown: String = text
        .chars()
        .take(SHOWN_CHARS)
        .flat_map(char::escape_debug)
        .collect();
    if text.chars().count() > SHOWN_CHARS {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests;
