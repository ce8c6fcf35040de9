//! How long work on the memory and the disk of an instance may take, at one place, since each part waits for others.
//!
//! ```text
//! client of the supervisor ─── waits for ──> shim ─── waits for ──> CRIU, the server of pages, the disk
//! ```
//!
//! Called by the shim (`checkpoint`, `shim/copies.rs`) and by the client. The one design choice to know: a bound is a base,
//! for what there is to do whatever the size, and what the bytes take on the slowest disk that the platform is patient with
//! ([`time_to_move`]). A fixed one is too short for large instances, and whoever waits must wait longer than all it
//! waits for together.

use std::time::Duration;

use tram_types::units::time_to_move;

/// A restore without its memory takes some tens of milliseconds, on a machine in trouble a thousand times that.
const RESTORE_BASE: Duration = Duration::from_secs(20);
/// With its memory left out. It is then tried once more with all of it: whatever stands in the way of handing pages out
/// one by one, somebody waits.
pub(crate) const RESTORE_LAZILY: Duration = Duration::from_secs(5);
/// What a dump takes beside writing. Generous, since one that is cut off costs the instance: CRIU has its hands in it.
const DUMP_BASE: Duration = Duration::from_secs(270);
/// The server of pages hands out some GiB a second, and gives way to whoever needs the processor meanwhile.
const PAGES_BASE: Duration = Duration::from_secs(60);
/// For so long an instance's writes may wait. Where blocks are shared it takes milliseconds; elsewhere a gigabyte takes
/// about a second, and slow disks are twenty times slower.
pub(crate) const DISK_STILL_MAX: Duration = Duration::from_secs(30);
/// Killed processes die in milliseconds, and large ones in some tenths of a second.
pub(crate) const DEATH: Duration = Duration::from_secs(10);
/// A launch writes files and mounts layers, on a disk that may be busy.
const LAUNCH_BASE: Duration = Duration::from_secs(30);
/// What an answer takes on its way.
const TALK: Duration = Duration::from_secs(10);

/// CRIU restores processes and reads all of their memory.
pub(crate) fn restore(bytes: u64) -> Duration {
    RESTORE_BASE + time_to_move(bytes)
}

/// CRIU writes processes and their memory down.
pub(crate) fn dump(bytes: u64) -> Duration {
    DUMP_BASE + time_to_move(bytes)
}

/// What was left out of a restore is read.
pub(crate) fn pages(bytes: u64) -> Duration {
    PAGES_BASE + time_to_move(bytes)
}

/// An instance that has processes with so many bytes of memory, in swap too, is written down, for itself or for others, by its shim.
pub(crate) fn keeping(bytes: u64) -> Duration {
    let flushed = time_to_move(bytes);
    pages(bytes) + dump(bytes) + DISK_STILL_MAX + flushed + DEATH + TALK
}

/// An instance is brought back from an image of so many bytes: at most twice, and a checkpoint under way comes first.
pub(crate) fn waking(bytes: u64) -> Duration {
    keeping(bytes) + RESTORE_LAZILY + DEATH + restore(bytes) + TALK
}

/// An instance starts, with a disk that is copied of `disk` bytes, and as a copy of processes with `memory` bytes.
pub(crate) fn launching(disk: u64, memory: u64) -> Duration {
    let processes = match memory {
        0 => Duration::ZERO,
        _ => RESTORE_LAZILY + DEATH + restore(memory) + DEATH,
    };
    LAUNCH_BASE + time_to_move(disk) + processes
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn what_is_large_has_the_time_that_slow_disks_take() {
        // 50 MiB a second.
        let slowest = |bytes: u64| Duration::from_millis(bytes * 1000 / (50 << 20));
        for bytes in [1, 4 * GIB, 32 * GIB, 256 * GIB] {
            for bound in [restore(bytes), dump(bytes), pages(bytes)] {
                assert!(bound > slowest(bytes), "{bytes} bytes within {bound:?}");
            }
            assert!(launching(bytes, bytes) > 2 * slowest(bytes));
            assert!(waking(bytes) > slowest(bytes));
        }
        assert!(launching(0, 0) < Duration::from_secs(60), "nobody waits for ever");
    }

    #[test]
    fn who_waits_has_more_patience_than_all_it_waits_for() {
        for bytes in [0, GIB, 64 * GIB] {
            assert!(keeping(bytes) > pages(bytes) + dump(bytes) + DISK_STILL_MAX);
            assert!(waking(bytes) > RESTORE_LAZILY + DEATH + restore(bytes));
            assert!(launching(0, bytes.max(1)) > RESTORE_LAZILY + DEATH + restore(bytes));
        }
    }
}
