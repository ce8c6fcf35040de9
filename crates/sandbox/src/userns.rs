//! User namespaces: who an instance's root is on this machine.
//!
//! Made by the shim ([`make`]), entered as the very last thing before the program ([`enter`]). The one design choice to
//! know: its network, process ids and the rest belong to the machine's root, who made them, so root inside holds its
//! capabilities over its own files and processes and over nothing else: it could not configure a network even without
//! the system call filter. That is also why entering is cheap: everything before it goes as it goes without. The table of
//! mounts alone is taken along, as a copy that the kernel locks (what is mounted cannot be taken off or made writable
//! from inside), because CRIU writes a user namespace down only with it. Mounting takes CAP_SYS_ADMIN, which nobody
//! inside has or can get, and the filter refuses the calls besides.
//!
//! Files keep the owners that the image gives them: the layers and the writable layer are shown through mounts that
//! shift ids (`MOUNT_ATTR_IDMAP`), so what is on disk never depends on the block an instance happened to get.

use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sched::{CloneFlags, setns};
use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::thread::CapabilitiesSecureBits;

use crate::protocol::{ExitStatus, IdRange};
use crate::sys;

/// Of 8192 that the supervisor asks for: eight times what a desktop has.
const INOTIFY_INSTANCES_MAX: &str = "1024";
/// Of 524288: the tree of a large project, with its packages.
const INOTIFY_WATCHES_MAX: &str = "131072";

/// Make a namespace in which ids 0 and up are this block's.
pub(crate) fn make(range: IdRange) -> io::Result<OwnedFd> {
    let (wait, done) = pipe_with(PipeFlags::CLOEXEC)?;
    // Somebody must be in it until it is open; that one holds no end of `done` but the copy it closes.
    let ours = done.try_clone()?;
    let holder = sys::clone3(libc::CLONE_NEWUSER, None, move || {
        drop(done);
        let _ = sys::close_all_except(&[wait.as_fd()]);
        let bounded = bound();
        let _ = fs::File::from(wait).read(&mut [0]);
        i32::from(bounded.is_err())
    })?;
    let made = map(holder.pid, range);
    drop(ours);
    match sys::wait_pidfd(&holder.pidfd)? {
        ExitStatus::Code(0) => made,
        _ => Err(io::Error::other("cannot bound what a user namespace may take")),
    }
}

/// What is counted by user, and is the machine's root's in the end: without a bound of its own, one instance could take
/// it all. Written from inside, before anybody else is there; the instance lacks the capability to raise it.
fn bound() -> io::Result<()> {
    fs::write("/proc/sys/user/max_inotify_instances", INOTIFY_INSTANCES_MAX)?;
    fs::write("/proc/sys/user/max_inotify_watches", INOTIFY_WATCHES_MAX)
}

/// Bounds the namespace that a process is in, which somebody else made.
pub(crate) fn bound_of(process: BorrowedFd<'_>) -> io::Result<()> {
    let helper = sys::clone3(0, None, || {
        let bounded = enter(process).and_then(|()| bound());
        i32::from(bounded.is_err())
    })?;
    match sys::wait_pidfd(&helper.pidfd)? {
        ExitStatus::Code(0) => Ok(()),
        _ => Err(io::Error::other("cannot bound what a user namespace may take")),
    }
}

fn map(pid: i32, range: IdRange) -> io::Result<OwnedFd> {
    let line = format!("0 {} {}", range.first, IdRange::LENGTH);
    fs::write(format!("/proc/{pid}/uid_map"), &line)?;
    fs::write(format!("/proc/{pid}/gid_map"), &line)?;
    Ok(fs::File::open(format!("/proc/{pid}/ns/user"))?.into())
}

/// Create files as the instance's root from now on, and stay as capable as before: what is made on a shifted mount must
/// have an owner that can be shifted back.
pub(crate) fn create_files_as_root_of(range: IdRange) -> io::Result<()> {
    rustix::thread::set_capabilities_secure_bits(CapabilitiesSecureBits::NO_SETUID_FIXUP)?;
    setfsgid(Gid::from_raw(range.first));
    setfsuid(Uid::from_raw(range.first));
    // The calls answer with the id before, and with nothing else.
    let now = setfsuid(Uid::from_raw(range.first));
    if now.as_raw() == range.first {
        Ok(())
    } else {
        Err(io::ErrorKind::PermissionDenied.into())
    }
}

/// Enter a namespace: one that [`make`] gave, or that of the process behind a pidfd. From here on this process holds
/// nothing outside of it.
pub(crate) fn enter(namespace: BorrowedFd<'_>) -> io::Result<()> {
    setns(namespace, CloneFlags::CLONE_NEWUSER).map_err(io::Error::from)
}

/// Whether this machine can show a directory with shifted ids; tried on a mount that nobody sees.
pub(crate) fn try_shift(directory: &std::path::Path) -> io::Result<()> {
    let namespace = make(IdRange::numbered(0))?;
    let flags =
        rustix::mount::OpenTreeFlags::OPEN_TREE_CLONE | rustix::mount::OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(rustix::fs::CWD, directory, flags)?;
    sys::shift_mount(tree.as_fd(), namespace.as_fd(), false)
}
