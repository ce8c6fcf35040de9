//! Every bound of this crate in one place, each with the abuse or the failure it stops.
//!
//! Constants hold for everybody; [`Limits`] and [`Timeouts`] hold the ones an operator may move.

use std::time::Duration;

/// A manifest or index. The specification recommends that registries accept at least this much and no more.
pub const MAX_MANIFEST_BYTES: u64 = 4 << 20;
/// An image configuration. Real ones are a few KiB; history and labels may swell them.
pub const MAX_CONFIG_BYTES: u64 = 8 << 20;
/// Layers of one image. overlayfs takes 500 lower directories; builders stop at 127.
pub const MAX_LAYERS: usize = 256;
/// Entries of an image index, so that choosing a platform stays cheap.
pub const MAX_INDEX_ENTRIES: usize = 1024;
/// A token endpoint's answer, or an error body read for its message.
pub const MAX_ANSWER_BYTES: u64 = 256 << 10;

/// Layers of one image that are fetched at the same time. Docker's own figure: more connections to one
/// registry bring little and are what rate limits count.
pub const CONCURRENT_LAYERS: usize = 3;
/// Layers unpacked at the same time over all pulls. Unpacking is processor work and must leave room to the
/// instances of this machine.
pub const CONCURRENT_UNPACKS: usize = 2;

/// Rounds over all hosts for one request before giving up on failures that may pass.
pub const MAX_ROUNDS: u32 = 5;
/// The same when a kept image stands by, which is better started now than asked about for long, and for checks
/// that somebody waits for.
pub const MAX_BRIEF_ROUNDS: u32 = 2;
/// First pause between rounds; doubles each time.
pub const FIRST_BACK_OFF: Duration = Duration::from_millis(250);
/// Longest pause between rounds, and the longest `Retry-After` that is honoured: a caller waiting for a
/// deployment is better served by an error that says when to come back.
pub const MAX_BACK_OFF: Duration = Duration::from_secs(20);
/// Rounds that may end in a time-out. Each has already cost the whole limit.
pub const MAX_TIMED_OUT_ROUNDS: u32 = 2;
/// A cut connection after at least this much does not count as a failed round: it made progress.
pub const PROGRESS_BYTES: u64 = 1 << 20;
/// Connections one layer may take in all, whatever progress they made.
pub const MAX_BLOB_CONNECTIONS: u32 = 200;
/// Redirects of one request (registries send blobs to a content network with one).
pub const MAX_REDIRECTS: usize = 5;
/// A registry that drips bytes is as bad as one that hangs: fewer than this many in a stall window count as
/// a stall.
pub const MIN_BYTES_PER_STALL_WINDOW: u64 = 16 << 10;

/// Longest path the kernel resolves, its final NUL left out.
pub const MAX_PATH_BYTES: usize = 4095;
/// Symbolic links followed while reading a file of an image, as the kernel's own limit.
pub const MAX_SYMLINKS: u32 = 40;
/// `etc/passwd` or `etc/group` of an image.
pub const MAX_USER_FILE_BYTES: u64 = 4 << 20;

/// Share of the store's disk that images leave free, as file systems themselves do for root.
pub const MIN_FREE_PERCENT: u64 = 5;

/// Bounds on what one image may cost this machine. Zip bombs end here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Compressed layers of one image, as its manifest declares them.
    pub image_compressed_bytes: u64,
    /// Uncompressed archives of all layers of one image.
    pub image_unpacked_bytes: u64,
    /// Files, directories and links in all layers of one image: inodes run out before bytes do.
    pub image_entries: u64,
    /// Bytes that stay free on the disk of the store, or [`MIN_FREE_PERCENT`] of it if that is more. Never more than
    /// half of what was free when the store was opened.
    pub min_free_bytes: u64,
}

impl Limits {
    /// The largest public GPU images are 10 to 15 GiB compressed.
    pub const DEFAULT_IMAGE_COMPRESSED_BYTES: u64 = 32 << 30;
    /// About twice the above.
    pub const DEFAULT_IMAGE_UNPACKED_BYTES: u64 = 64 << 30;
    /// A full desktop distribution has some 400,000.
    pub const DEFAULT_IMAGE_ENTRIES: u64 = 1_500_000;
    /// The database, the logs and what instances write need room while somebody cleans up.
    pub const DEFAULT_MIN_FREE_BYTES: u64 = 2 << 30;
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            image_compressed_bytes: Self::DEFAULT_IMAGE_COMPRESSED_BYTES,
            image_unpacked_bytes: Self::DEFAULT_IMAGE_UNPACKED_BYTES,
            image_entries: Self::DEFAULT_IMAGE_ENTRIES,
            min_free_bytes: Self::DEFAULT_MIN_FREE_BYTES,
        }
    }
}

/// How long a registry may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// To a connection, TLS included.
    pub connect: Duration,
    /// From the request (connecting included) to the head of the answer, and again for the whole of a small body.
    pub response: Duration,
    /// Without (enough) bytes of a layer.
    pub stall: Duration,
}

impl Timeouts {
    /// Long enough for one lost SYN or two on a bad line.
    pub const DEFAULT_CONNECT: Duration = Duration::from_secs(10);
    /// Busy registries take seconds for a manifest; none takes this long.
    pub const DEFAULT_RESPONSE: Duration = Duration::from_secs(20);
    /// A healthy stream never pauses so long.
    pub const DEFAULT_STALL: Duration = Duration::from_secs(30);
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Self::DEFAULT_CONNECT,
            response: Self::DEFAULT_RESPONSE,
            stall: Self::DEFAULT_STALL,
        }
    }
}
