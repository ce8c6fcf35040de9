//! How far a pull is, for progress bars and statuses.
//!
//! A `tokio::sync::watch`: a slow reader sees the newest state and misses the ones between, and a pull never
//! waits for whoever looks on.

use tokio::sync::watch;

use crate::digest::Digest;

/// Where a pull reports.
pub type ProgressSender = watch::Sender<Progress>;

/// The stages of getting an image, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Phase {
    /// The registry is asked what the name stands for.
    #[default]
    Resolving,
    /// Layers arrive (and are unpacked as they do).
    Pulling,
    /// Every layer has arrived; the last are being unpacked.
    Unpacking,
    /// The image can be launched.
    Ready,
}

/// One layer on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlobProgress {
    /// The compressed layer.
    pub digest: Digest,
    /// Bytes on disk, those of an earlier attempt included.
    pub done_bytes: u64,
    /// Bytes in all.
    pub total_bytes: u64,
    /// Whether the layer is unpacked and ready. A layer that was here before is ready from the start.
    pub ready: bool,
}

/// The state of one pull.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Progress {
    /// The stage.
    pub phase: Phase,
    /// The layers, bottom first. Empty while resolving.
    pub blobs: Vec<BlobProgress>,
}

impl Progress {
    /// A fresh channel. Dropping the receiver is fine.
    #[must_use]
    pub fn channel() -> (ProgressSender, watch::Receiver<Self>) {
        watch::channel(Self::default())
    }

    /// Bytes on disk over all layers.
    #[must_use]
    pub fn done_bytes(&self) -> u64 {
        self.blobs.iter().map(|blob| blob.done_bytes).sum()
    }

    /// Bytes of all layers.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.blobs.iter().map(|blob| blob.total_bytes).sum()
    }

    pub(crate) fn set_done(&mut self, index: usize, done_bytes: u64) {
        if let Some(blob) = self.blobs.get_mut(index) {
            blob.done_bytes = done_bytes;
        }
        self.advance();
    }

    pub(crate) fn set_ready(&mut self, index: usize) {
        if let Some(blob) = self.blobs.get_mut(index) {
            blob.done_bytes = blob.total_bytes;
            blob.ready = true;
        }
        self.advance();
    }

    fn advance(&mut self) {
        if self.phase == Phase::Pulling && self.blobs.iter().all(|blob| blob.done_bytes >= blob.total_bytes) {
            self.phase = Phase::Unpacking;
        }
    }
}
