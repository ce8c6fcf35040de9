//! Units that are types, so that they never mix.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Guards every order to a site: the site refuses an order older than the newest it has seen for the same object.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl Generation {
    /// The generation after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// Bytes in a mebibyte.
pub const MIB: u64 = 1024 * 1024;
/// Bytes in a gibibyte.
pub const GIB: u64 = 1024 * MIB;

/// So many bytes of memory in words, such as `376 MiB` or `1.5 GiB`. Rounded up: nothing ever seems to fit where it does
/// not.
#[must_use]
pub fn amount(bytes: u64) -> String {
    if bytes < GIB {
        return format!("{} MiB", bytes.div_ceil(MIB));
    }
    let tenths = bytes.saturating_mul(10).div_ceil(GIB);
    match tenths % 10 {
        0 => format!("{} GiB", tenths / 10),
        tenth => format!("{}.{tenth} GiB", tenths / 10),
    }
}

/// The slowest disk that the platform is patient with, in bytes a second. A gigabyte takes current disks about a second;
/// rotating ones with other work, and those of the cheapest virtual machines, some twenty.
pub const SLOWEST_DISK_BYTES_PER_SECOND: u64 = 50 * MIB;

/// How long reading or writing so many bytes takes on the slowest disk. What else there is to do comes on top.
#[must_use]
pub const fn time_to_move(bytes: u64) -> Duration {
    Duration::from_millis(bytes.saturating_mul(1000) / SLOWEST_DISK_BYTES_PER_SECOND)
}
