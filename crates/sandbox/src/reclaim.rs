//! Giving the memory of a frozen instance back to the machine.
//!
//! Called by `site-local` from a thread of its own, not through the supervisor: writing pages out takes a tenth of a
//! second for each 64 MiB, and the supervisor does one thing at a time. The kernel is asked once and does what it can:
//! it drops the page cache, and moves the rest to swap where there is any. What an instance needs of that comes back page
//! by page when it runs again.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::cgroup::{self, Layout};
use crate::protocol::InstanceId;

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
    let layout = Layout::detect()?;
    let below = Path::new(&cgroup::below(&state_dir.canonicalize()?)).join(id.as_str());
    let (usage, order): (PathBuf, PathBuf) = match (layout.controller("memory"), &layout.unified) {
        (Some(mount), _) => {
            let cgroup = mount.join(below);
            (
                cgroup.join("memory.usage_in_bytes"),
                cgroup.join("memory.force_empty"),
            )
        }
        (None, Some(root)) => {
            let cgroup = root.join(below);
            (cgroup.join("memory.current"), cgroup.join("memory.reclaim"))
        }
        (None, None) => return Err(unsupported()),
    };
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
