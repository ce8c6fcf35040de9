//! A snapshot of an instance's disk: a file that a later instance's disk starts as.
//!
//! Called by `site-local` from a thread of its own, not through the supervisor, which does one thing at a time: where
//! blocks cannot be shared, the copy takes as long as the disk is full. The disk has no name (see `disk`); its file is
//! reached through the shim, which holds it.
//!
//! The one design choice to know: the file system is frozen and thawed by a process of its own, the guard, that outlives
//! whoever asked: when that one is killed, or takes too long, the guard thaws. A snapshot counts only when the guard
//! says that nothing could be written all the while. The file gets its name when it is whole and on the disk; before that
//! it has none, so whoever dies leaves nothing.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{AtFlags, CWD};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::clone::clone_file;
use crate::disk::nameless_file;
use crate::protocol::{ExitStatus, InstanceId};
use crate::state::{ProcessIdentity, StateDir};
use crate::sys;

/// For so long an instance's writes may wait. Where blocks are shared it takes milliseconds; elsewhere a gigabyte takes
/// about a second, and slow disks are twenty times slower.
const FROZEN_MAX: Duration = Duration::from_secs(30);
/// What the guard says when the file system is frozen, and is told when the copy is made.
const WORD: &[u8] = b"!";

/// Makes `to` a copy of the instance's disk as of one moment, durably. Blocks. Does nothing when there is such a file.
/// `state_dir`: the supervisor's.
///
/// # Errors
/// [`io::ErrorKind::NotFound`] when the instance does not run, [`io::ErrorKind::Unsupported`] when it has no disk of its
/// own, [`io::ErrorKind::TimedOut`] when the copy took too long; those of the file system, above all that it is full.
pub fn take(state_dir: &Path, id: &InstanceId, to: &Path) -> io::Result<()> {
    if to.try_exists()? {
        return Ok(());
    }
    let directory = to.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let run = StateDir::ensure(state_dir)?
        .instance(id)
        .run()?
        .ok_or(io::ErrorKind::NotFound)?;
    let disk = run
        .disk
        .ok_or_else(|| io::Error::new(io::ErrorKind::Unsupported, "the instance has no disk of its own"))?;
    let held = |fd: i32| File::open(format!("/proc/{}/fd/{fd}", run.shim.pid));
    let (file, top) = (held(disk.file)?, held(disk.directory)?);
    if !is(run.shim) {
        return Err(io::ErrorKind::NotFound.into());
    }
    // Most of what is not written yet, while the instance runs on.
    rustix::fs::syncfs(&top)?;
    let copy = nameless_file(directory)?;
    let guard = Guard::freeze(top.into())?;
    let cloned = clone_file(&file, &copy);
    let thawed = guard.thaw();
    let cloned = cloned?;
    thawed?;
    copy.sync_all()?;
    let through = format!("/proc/self/fd/{}", copy.as_raw_fd());
    match rustix::fs::linkat(CWD, through, CWD, to, AtFlags::SYMLINK_FOLLOW) {
        // Somebody was asked twice.
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    File::open(directory)?.sync_all()?;
    tracing::debug!(instance = %id, ?cloned, "took a snapshot");
    Ok(())
}

fn is(process: ProcessIdentity) -> bool {
    sys::start_ticks(process.pid) == Some(process.start_ticks)
}

/// Keeps a file system frozen, at most for [`FROZEN_MAX`] and never longer than this process lives.
struct Guard {
    process: OwnedFd,
    /// Closed without a word: thaw, and nobody asks how it went.
    tell: File,
}

impl Guard {
    fn freeze(top: OwnedFd) -> io::Result<Self> {
        let (said, say) = pipe_with(PipeFlags::CLOEXEC)?;
        let (told, tell) = pipe_with(PipeFlags::CLOEXEC)?;
        let pid = sys::fork_from_many(|| guard(&top, &say, &told))?;
        let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::Other)?;
        let process = pidfd_open(pid, PidfdFlags::empty())?;
        drop((say, told));
        let (tell, mut word) = (File::from(tell), [0]);
        let frozen = File::from(said).read(&mut word)? == WORD.len();
        let guard = Self { process, tell };
        if frozen {
            return Ok(guard);
        }
        match guard.thaw() {
            Ok(()) => Err(io::Error::other("the guard of a frozen file system ended early")),
            Err(error) => Err(error),
        }
    }

    /// Ends it, and tells whether it held.
    fn thaw(mut self) -> io::Result<()> {
        // Gone already: its end says why.
        let _ = self.tell.write_all(WORD);
        match sys::wait_pidfd(&self.process)? {
            ExitStatus::Code(0) => Ok(()),
            ExitStatus::Code(code) => Err(io::Error::from_raw_os_error(code)),
            ExitStatus::Signal(_) => Err(io::Error::other("the guard of a frozen file system was killed")),
        }
    }
}

/// The guard's whole life; its exit code is an error number, or 0. Only calls of the kernel: it is a copy of a process
/// with many threads.
fn guard(top: &OwnedFd, say: &OwnedFd, told: &OwnedFd) -> i32 {
    // Nothing of ours may stay open here when we are killed, above all no lock and no port.
    if sys::close_all_except(&[top.as_fd(), say.as_fd(), told.as_fd()]).is_err() {
        return libc::EIO;
    }
    // Not ended with the terminal's or the service's group.
    let _ = rustix::process::setsid();
    if let Err(error) = sys::freeze_file_system(top.as_fd()) {
        return error.raw_os_error().unwrap_or(libc::EIO);
    }
    let asked = match rustix::io::write(say, WORD) {
        Ok(_) => sys::wait_readable(told, FROZEN_MAX),
        Err(errno) => Err(errno.into()),
    };
    let thawed = sys::thaw_file_system(top.as_fd());
    match (asked, thawed) {
        (Ok(true), Ok(())) => 0,
        (Ok(false), _) => libc::ETIMEDOUT,
        _ => libc::EIO,
    }
}
