//! Giving the memory of a frozen instance back to the machine, and having it read back in when the instance wakes.
//!
//! Called by `site-local` from a thread of its own, not through the supervisor: writing pages out takes a tenth of a
//! second for each 64 MiB, and the supervisor does one thing at a time. The kernel is asked once and does what it can:
//! it drops the page cache, and moves the rest to swap where there is any.
//!
//! What an instance needs of that comes back page by page when it runs again, each page a fault and, from a disk, a
//! read that is waited for. So somebody else asks for all of it meanwhile, in large pieces ([`bring_back`]): the device is
//! kept busy, and most of the instance's faults find their page in memory. Not from compressed memory (zram): there is nothing
//! to wait for, and the kernel brings whole groups of pages back at a fault, which is quicker than page by page ahead of it.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::cgroup::{self, Layout};
use crate::protocol::InstanceId;
use crate::sys;

/// Asked for at once: long enough for the device to be busy, and short enough to go down in steps (see [`pieces`]) and for
/// the site's end not to wait for long.
const PIECE_BYTES: usize = 4 << 20;

/// What became of an instance's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reclaimed {
    /// In use before, in bytes.
    pub before_bytes: u64,
    /// In use after.
    pub after_bytes: u64,
}

/// Asks the kernel for as much of an instance's memory as it can have. Blocks until it has done so. `state_dir`: the
/// supervisor's.
///
/// # Errors
/// [`io::ErrorKind::Unsupported`] when this kernel cannot; [`io::ErrorKind::NotFound`] when the instance is gone.
pub fn reclaim(state_dir: &Path, id: &InstanceId) -> io::Result<Reclaimed> {
    let (cgroup, is_first_version) = memory_cgroup(state_dir, id)?;
    let (usage, order) = if is_first_version {
        ("memory.usage_in_bytes", "memory.force_empty")
    } else {
        ("memory.current", "memory.reclaim")
    };
    let (usage, order) = (cgroup.join(usage), cgroup.join(order));
    let before_bytes = number(&usage)?;
    if !order.exists() {
        return Err(unsupported());
    }
    // Version 1 takes any word for the order; version 2 wants to know how much.
    match fs::write(&order, before_bytes.to_string()) {
        // Not all of it could be had, which is the usual case.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY)) => {}
        other => other?,
    }
    Ok(Reclaimed {
        before_bytes,
        after_bytes: number(&usage)?,
    })
}

/// Has what an instance has in swap read back into memory; nothing of it is changed, and it may run meanwhile. Gives the
/// bytes that were asked for, none where all swap is in compressed memory. Blocks until they are under way, which takes the device's time. `state_dir`: the
/// supervisor's. `goes_on`: asked between two pieces, so that it can be ended early.
///
/// # Errors
/// [`io::ErrorKind::NotFound`] when the instance is gone; what the kernel says when it does not do this (before Linux
/// 5.10).
pub fn bring_back(state_dir: &Path, id: &InstanceId, goes_on: impl Fn() -> bool) -> io::Result<u64> {
    let (cgroup, _) = memory_cgroup(state_dir, id)?;
    if !reads_wait(&fs::read_to_string("/proc/swaps")?) {
        return Ok(0);
    }
    let mut asked = 0;
    for pid in fs::read_to_string(cgroup.join("cgroup.procs"))?
        .lines()
        .filter_map(|line| Pid::from_raw(line.parse().ok()?))
    {
        // One that has ended has nothing to be read.
        let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else {
            continue;
        };
        let Ok(maps) = fs::read_to_string(format!("/proc/{}/smaps", pid.as_raw_nonzero())) else {
            continue;
        };
        for piece in pieces(&swapped(&maps)) {
            if !goes_on() {
                return Ok(asked);
            }
            match sys::read_ahead(process.as_fd(), &[piece]) {
                Ok(bytes) => asked += u64::try_from(bytes).unwrap_or_default(),
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => break,
                // It was unmapped meanwhile.
                Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(asked)
}

/// Parts of mappings in the order in which they are asked for: address and length.
///
/// Ideally the order in which the program wants them, which nobody knows. It is guessed that what was allocated first is
/// wanted first. The kernel and allocators give out mappings from the top down, so of a large one the highest part is the
/// oldest; only the heap of `brk` grows up. Small mappings come before large ones: stacks, the data of libraries and the
/// state of an interpreter are needed for anything at all, and take no time.
fn pieces(mappings: &[Swapped]) -> Vec<(usize, usize)> {
    let (small, large): (Vec<Swapped>, Vec<Swapped>) =
        mappings.iter().partition(|mapping| mapping.length <= PIECE_BYTES);
    let small = small.into_iter().map(|mapping| (mapping.start, mapping.length));
    let large = large.into_iter().rev().flat_map(|mapping| {
        let end = mapping.start + mapping.length;
        let count = mapping.length.div_ceil(PIECE_BYTES);
        (0..count).map(move |number| {
            if mapping.grows_up {
                let from = mapping.start + number * PIECE_BYTES;
                (from, PIECE_BYTES.min(end - from))
            } else {
                let to = end - number * PIECE_BYTES;
                let from = to.saturating_sub(PIECE_BYTES).max(mapping.start);
                (from, to - from)
            }
        })
    });
    small.chain(large).collect()
}

/// Whether a `/proc/swaps` has a device, or a file on one, that a read waits for.
fn reads_wait(swaps: &str) -> bool {
    let names = swaps.lines().skip(1).filter(|line| !line.is_empty());
    names.into_iter().any(|line| !line.starts_with("/dev/zram"))
}

/// A mapping that has something in swap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Swapped {
    start: usize,
    /// In bytes.
    length: usize,
    /// It is the heap of `brk`.
    grows_up: bool,
}

/// The mappings of a `/proc/PID/smaps` that have something in swap, in the order of their addresses.
fn swapped(maps: &str) -> Vec<Swapped> {
    let mut found = Vec::new();
    let mut current = None;
    for line in maps.lines() {
        if let Some((start, length)) = range(line) {
            let grows_up = line.ends_with("[heap]");
            current = Some(Swapped {
                start,
                length,
                grows_up,
            });
        } else if let Some(kibibytes) = line.strip_prefix("Swap:")
            && kibibytes.trim() != "0 kB"
        {
            found.extend(current.take());
        }
    }
    found
}

/// The address and length in the first line of a mapping, `55d0-55f0 rw-p …`; `None` in every other line.
fn range(line: &str) -> Option<(usize, usize)> {
    let (start, end) = line.split_once(' ')?.0.split_once('-')?;
    let start = usize::from_str_radix(start, 16).ok()?;
    let end = usize::from_str_radix(end, 16).ok()?;
    Some((start, end.checked_sub(start)?))
}

/// An instance's cgroup of the memory controller, and whether it is of the first version.
fn memory_cgroup(state_dir: &Path, id: &InstanceId) -> io::Result<(PathBuf, bool)> {
    let layout = Layout::detect()?;
    let below = Path::new(&cgroup::below(&state_dir.canonicalize()?)).join(id.as_str());
    match (layout.controller("memory"), &layout.unified) {
        (Some(mount), _) => Ok((mount.join(below), true)),
        (None, Some(root)) => Ok((root.join(below), false)),
        (None, None) => Err(unsupported()),
    }
}

fn unsupported() -> io::Error {
    io::Error::new(
        io::ErrorKind::Unsupported,
        "this kernel cannot take memory from a running instance: it needs `memory.reclaim` (Linux 5.19) or version 1 of \
         the memory controller",
    )
}

fn number(path: &Path) -> io::Result<u64> {
    let text = fs::read_to_string(path)?;
    text.trim().parse().map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_with_something_in_swap_are_found() {
        let maps = "\
55d000000000-55d000002000 rw-p 00000000 00:00 0                          [heap]
Size:                  8 kB
Swap:                  0 kB
SwapPss:               0 kB
7f0000000000-7f0010000000 rw-p 00000000 00:00 0
Rss:                   4 kB
Swap:             262140 kB
SwapPss:          262140 kB
VmFlags: rd wr mr mw me ac
7ffe00000000-7ffe00021000 rw-p 00000000 00:00 0                          [stack]
Swap:                  4 kB
";
        let mapping = |start, length| Swapped {
            start,
            length,
            grows_up: false,
        };
        assert_eq!(
            swapped(maps),
            [
                mapping(0x7f00_0000_0000, 0x1000_0000),
                mapping(0x7ffe_0000_0000, 0x2_1000)
            ]
        );
        let [heap] = swapped(&maps.replacen("     0 kB", "     4 kB", 1))[..1] else {
            panic!("the heap is in swap as well");
        };
        assert!(heap.grows_up);
    }

    #[test]
    fn small_mappings_come_first_and_large_ones_from_where_they_began() {
        const LARGE: usize = 2 * PIECE_BYTES + 4096;
        let mapping = |start, length, grows_up| Swapped {
            start,
            length,
            grows_up,
        };
        let asked = pieces(&[
            mapping(1 << 30, LARGE, true),
            mapping(2 << 30, LARGE, false),
            mapping(3 << 30, 4096, false),
        ]);
        let top = (2 << 30) + LARGE;
        assert_eq!(
            asked,
            [
                (3 << 30, 4096),
                (top - PIECE_BYTES, PIECE_BYTES),
                (top - 2 * PIECE_BYTES, PIECE_BYTES),
                (2 << 30, 4096),
                (1 << 30, PIECE_BYTES),
                ((1 << 30) + PIECE_BYTES, PIECE_BYTES),
                ((1 << 30) + 2 * PIECE_BYTES, 4096),
            ]
        );
    }

    #[test]
    fn compressed_memory_is_no_device_to_wait_for() {
        let head = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n";
        let line =
            |name: &str| format!("{name}                              partition\t1048572\t\t0\t\t-2\n");
        assert!(!reads_wait(head));
        assert!(!reads_wait(&format!("{head}{}", line("/dev/zram0"))));
        assert!(reads_wait(&format!(
            "{head}{}{}",
            line("/dev/zram0"),
            line("/swapfile")
        )));
    }

    #[test]
    fn memory_of_a_process_is_asked_for_and_stays_what_it_is() {
        let held = vec![7_u8; 1 << 20];
        let own = rustix::process::getpid();
        let process = pidfd_open(own, PidfdFlags::empty()).expect("this process");
        // Whole pages within it.
        let start = held.as_ptr().addr().next_multiple_of(4096);
        let asked = sys::read_ahead(process.as_fd(), &[(start, 512 << 10)]).expect("Linux 5.10");
        assert_eq!(asked, 512 << 10);
        assert!(held.iter().all(|byte| *byte == 7));
    }
}
