//! The executor that is kept with a snapshot of processes, one of which it is.
//!
//! Called by `instance_snapshots`. CRIU restores a process from the very file that it executed, so the one choice to know:
//! the file is taken from the process ([`tram_sandbox::snapshot::first_program`]), not from what this version of the
//! platform would start. A sandbox that was started before an upgrade, or is itself a copy, goes on with its own.

use std::fs::{self, File, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// An executor has a few MiB.
const BYTES_MAX: u64 = 256 << 20;
/// Whoever the sandbox's user is may run it, and nobody changes it.
const MODE: u32 = 0o555;

/// Keeps the program `running` at `to`, durably but for the name, which is durable with the snapshot's disk. What is there
/// already is whole, and of the same process: it stays. `installed`: the executor of this version, which is on the disk
/// already; where it is the same file, it gets a second name.
///
/// # Errors
/// Those of the file system.
pub(super) fn keep(running: &File, installed: &Path, to: &Path) -> io::Result<()> {
    if to.try_exists()? {
        return Ok(());
    }
    let same = fs::metadata(installed).ok().zip(running.metadata().ok());
    if same.is_some_and(|(one, other)| (one.dev(), one.ino()) == (other.dev(), other.ino()))
        // Removed meanwhile or on another file system: the bytes are still there to be read.
        && fs::hard_link(installed, to).is_ok()
    {
        return Ok(());
    }
    let beside = beside(to);
    super::instance_snapshots::ignore_missing(fs::remove_file(&beside))?;
    // The sandbox may have made its first process another program, of any length.
    if running.metadata()?.len() > BYTES_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "its first process is no executor",
        ));
    }
    let mut from = running.try_clone()?.take(BYTES_MAX);
    let mut file = File::create_new(&beside)?;
    io::copy(&mut from, &mut file)?;
    file.set_permissions(Permissions::from_mode(MODE))?;
    file.sync_all()?;
    fs::rename(beside, to)
}

/// Where one is written that does not count yet.
pub(super) fn beside(to: &Path) -> PathBuf {
    to.with_extension("executor.new")
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn what_runs_is_kept_also_when_it_was_replaced_meanwhile() {
        let dir = tempfile::tempdir().unwrap();
        let (installed, kept) = (dir.path().join("executor"), dir.path().join("kept"));
        // A program of its own, which waits for its input.
        fs::copy("/bin/cat", &installed).unwrap();
        let first = fs::read(&installed).unwrap();
        let mut child = Command::new(&installed).stdin(Stdio::piped()).spawn().unwrap();
        let running = || File::open(format!("/proc/{}/exe", child.id())).unwrap();
        keep(&running(), &installed, &kept).unwrap();
        let inode = |path: &Path| fs::metadata(path).unwrap().ino();
        assert_eq!(inode(&kept), inode(&installed), "it takes no room twice");
        // Upgraded: another file under the name, then the name gone.
        fs::write(dir.path().join("next"), "another version").unwrap();
        fs::rename(dir.path().join("next"), &installed).unwrap();
        let kept_as = |name: &str| {
            let kept = dir.path().join(name);
            keep(&running(), &installed, &kept).unwrap();
            kept
        };
        assert_eq!(fs::read(kept_as("second")).unwrap(), first);
        fs::remove_file(&installed).unwrap();
        let kept = kept_as("third");
        assert_eq!(fs::read(&kept).unwrap(), first);
        assert_eq!(fs::metadata(&kept).unwrap().permissions().mode() & 0o777, MODE);
        drop(child.stdin.take());
        child.wait().unwrap();
    }
}
