//! A snapshot of an instance's disk: a file that a later instance's disk starts as.
//!
//! Called by `site-local` from a thread of its own, not through the supervisor, which does one thing at a time: where
//! blocks cannot be shared, the copy takes as long as the disk is full. The disk has no name (see `disk`); its file is
//! reached through the shim, which holds it.
//!
//! The one design choice to know: the file system is held still meanwhile (`still`), and a snapshot counts only when
//! nothing could be written all the while. The file gets its name when it is whole and on the disk; before that it has
//! none, so whoever dies leaves nothing.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use crate::clone::{Cloned, clone_file};
use crate::disk::nameless_file;
use crate::patience::DISK_STILL_MAX;
use crate::protocol::InstanceId;
use crate::state::{Run, StateDir};
use crate::still::Still;
use crate::sys;
use crate::volume::publish;

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
    publish(&copy(&run, directory)?, to)?;
    tracing::debug!(instance = %id, "took a snapshot");
    Ok(())
}

/// A copy of an instance's disk as of one moment, without a name and not durable yet.
pub(crate) fn copy(run: &Run, directory: &Path) -> io::Result<File> {
    let (file, top) = held(run)?;
    let copy = nameless_file(directory)?;
    let still = Still::hold(top.into(), DISK_STILL_MAX)?;
    let cloned = clone_file(&file, &copy);
    let in_time = still.release();
    cloned?;
    if in_time? {
        Ok(copy)
    } else {
        Err(io::ErrorKind::TimedOut.into())
    }
}

/// What a copy of an instance's disk takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// In all, in bytes.
    pub bytes: u64,
    /// Of that what is not shared with the disk, in bytes: all or nothing, by what the file system can.
    pub written_bytes: u64,
}

/// What a copy of a running instance's disk in `directory` takes, as the disk is now. `state_dir`: the supervisor's.
///
/// # Errors
/// [`io::ErrorKind::NotFound`] when the instance does not run, [`io::ErrorKind::Unsupported`] when it has no disk of its
/// own; those of the file system, above all that it is full.
pub fn size(state_dir: &Path, id: &InstanceId, directory: &Path) -> io::Result<Size> {
    let run = StateDir::ensure(state_dir)?
        .instance(id)
        .run()?
        .ok_or(io::ErrorKind::NotFound)?;
    let file = held(&run)?.0.metadata()?;
    // In blocks of 512 bytes, whatever the file system's own are.
    let bytes = file.blocks() * 512;
    let written_bytes = match file.dev() == directory.metadata()?.dev() && shares_blocks(directory)? {
        true => 0,
        false => bytes,
    };
    Ok(Size { bytes, written_bytes })
}

/// Whether files in this directory can share their blocks: tried with two that nobody sees.
fn shares_blocks(directory: &Path) -> io::Result<bool> {
    let (one, other) = (nameless_file(directory)?, nameless_file(directory)?);
    one.write_all_at(&[7], 0)?;
    Ok(clone_file(&one, &other)? == Cloned::Shared)
}

/// Whether the keeper of an instance is writing its processes down, or reading them back: as long as it is, it may still
/// make what it was told to. `state_dir`: the supervisor's.
///
/// # Errors
/// When the directory cannot be used.
pub fn is_kept_busy(state_dir: &Path, id: &InstanceId) -> io::Result<bool> {
    Ok(StateDir::ensure(state_dir)?.instance(id).on_errand())
}

/// What an instance's first process executes.
#[derive(Debug)]
pub struct FirstProgram {
    /// Its file, also where that has no name any more.
    pub file: File,
    /// The words it was started with, each followed by a zero byte. The program may have changed them.
    pub words: Vec<u8>,
}

/// What the first process of a running instance executes; `None` when the instance sleeps on the disk. `state_dir`: the
/// supervisor's.
///
/// # Errors
/// [`io::ErrorKind::NotFound`] when the instance does not run, [`io::ErrorKind::WouldBlock`] while it wakes.
pub fn first_program(state_dir: &Path, id: &InstanceId) -> io::Result<Option<FirstProgram>> {
    let instance = StateDir::ensure(state_dir)?.instance(id);
    // Before the record, which is written while it is still on its errand.
    let is_busy = instance.on_errand();
    let run = instance.run()?.ok_or(io::ErrorKind::NotFound)?;
    if run.checkpointed {
        return match is_busy {
            true => Err(io::ErrorKind::WouldBlock.into()),
            false => Ok(None),
        };
    }
    let process = format!("/proc/{}", run.init.pid);
    let program = FirstProgram {
        file: File::open(format!("{process}/exe"))?,
        words: std::fs::read(format!("{process}/cmdline"))?,
    };
    // Looked at last: the number was the process's all the while.
    if sys::start_ticks(run.init.pid) == Some(run.init.start_ticks) {
        Ok(Some(program))
    } else {
        Err(io::ErrorKind::NotFound.into())
    }
}

/// Lets the disk of every instance go on that was left held still: whoever took a snapshot and the guard were both killed.
/// `state_dir`: the supervisor's.
///
/// # Errors
/// When the instances cannot be listed.
pub fn thaw_all(state_dir: &Path) -> io::Result<()> {
    let state = StateDir::ensure(state_dir)?;
    for id in state.instance_ids()? {
        if let Ok(Some(run)) = state.instance(&id).run()
            && let Ok((_, top)) = held(&run)
        {
            // Refused where it is not held, which is nearly always.
            let _ = sys::thaw_file_system(top.as_fd());
        }
    }
    Ok(())
}

/// The file that an instance's disk is in, and the disk's top directory, through the shim.
fn held(run: &Run) -> io::Result<(File, File)> {
    let disk = run
        .disk
        .ok_or_else(|| io::Error::new(io::ErrorKind::Unsupported, "the instance has no disk of its own"))?;
    let open = |fd: i32| File::open(format!("/proc/{}/fd/{fd}", run.shim.pid));
    let held = (open(disk.file)?, open(disk.directory)?);
    // Looked at last: the number was the shim's all the while.
    if sys::start_ticks(run.shim.pid) == Some(run.shim.start_ticks) {
        Ok(held)
    } else {
        Err(io::ErrorKind::NotFound.into())
    }
}
