//! Running from an executable that nobody can write to through us.
//!
//! A process of an instance is, for a moment before its exec, a copy of this program, and an image may even have this
//! program executed again (`#!/proc/self/exe`). `/proc/<pid>/exe` is then a way to the file on the machine's disk, for
//! which root inside is root (the class of CVE-2019-5736). So the supervisor begins by executing itself once more from
//! a mount of its own of that one file, read-only and visible nowhere: what `/proc/<pid>/exe` leads to refuses writes,
//! whoever asks. Costs no memory and a millisecond, once.

use std::convert::Infallible;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

use nix::fcntl::AtFlags;
use rustix::fs::{CWD, StatVfsMountFlags, statvfs};
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::sys;

const OWN: &str = "/proc/self/exe";

/// Makes sure that this process runs from a read-only mount: returns at once when it does, else executes the program
/// again with the same arguments and environment. Call it first in a `main`: nothing of this process survives.
///
/// # Errors
/// When the kernel refuses; the process may go on, less protected.
pub fn ensure_sealed() -> io::Result<()> {
    if statvfs(OWN)?.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Ok(());
    }
    let Err(error) = execute(&sealed()?);
    Err(error)
}

/// This program's file in a mount of its own.
fn sealed() -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, OWN, flags)?;
    sys::mount_setattr(
        tree.as_fd(),
        libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID,
        false,
    )?;
    Ok(tree)
}

fn execute(program: &OwnedFd) -> io::Result<Infallible> {
    let word = |bytes: Vec<u8>| CString::new(bytes).map_err(io::Error::other);
    let arguments: Vec<CString> = std::env::args_os()
        .map(|argument| word(argument.into_vec()))
        .collect::<Result<_, _>>()?;
    let environment: Vec<CString> = std::env::vars_os()
        .map(|(name, value)| {
            let mut bytes = name.into_vec();
            bytes.push(b'=');
            bytes.extend(value.into_vec());
            word(bytes)
        })
        .collect::<Result<_, _>>()?;
    Ok(nix::unistd::execveat(
        program,
        c"",
        &arguments,
        &environment,
        AtFlags::AT_EMPTY_PATH,
    )?)
}
