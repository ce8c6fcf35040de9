//! The system calls that no safe wrapper offers, and the facts about processes read from /proc.
//!
//! Owns nearly all `unsafe` of this crate. Called by the supervisor, the shims and the code that
//! becomes an instance's first process.
//!
//! The one design choice to know: [`fork`] and [`clone3`] take a closure and never return in the
//! child, so a child cannot run on into its parent's code. They are sound because these processes
//! have one thread ([`is_single_threaded`] is checked when the supervisor starts): no lock can be
//! held by a thread that the copy does not have.

use std::fs;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, WaitIdStatus, pidfd_open};

use crate::protocol::ExitStatus;

/// The exit code of a child that panicked: Rust's own.
const PANIC_EXIT_CODE: i32 = 101;
/// The last signal number plus one (`_NSIG`).
const SIGNALS_END: i32 = 65;
/// Of the kernel's `linux/pidfd.h`; the libc crate has no name for it.
const PIDFD_SIGNAL_PROCESS_GROUP: libc::c_uint = 1 << 2;

/// Sends SIGKILL to the process and to everything in the process group that it leads.
///
/// Kernels before 6.9 know no signals to groups by a pidfd: there the process alone is killed. A group's number would
/// do, but may be another's by the time it is used.
pub(crate) fn kill_group(process: BorrowedFd<'_>) -> io::Result<()> {
    let send = |flags: libc::c_uint| {
        // SAFETY: needed because no wrapper takes the flags. Passes a descriptor that is open and no memory.
        check(unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                process.as_raw_fd(),
                libc::SIGKILL,
                std::ptr::null::<libc::siginfo_t>(),
                flags,
            )
        })
    };
    match send(PIDFD_SIGNAL_PROCESS_GROUP) {
        // No such flag, or it leads no group any more.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ESRCH)) => send(0),
        sent => sent,
    }
}

/// Run `child` in a copy of this process; its result is the exit code. Returns the child's pid.
pub(crate) fn fork(child: impl FnOnce() -> i32) -> io::Result<i32> {
    // SAFETY: needed because a shim must be a copy of the supervisor (an exec costs milliseconds and
    // memory). Sound because the process has one thread, and because the child never returns to the
    // caller's frames: it leaves by `_exit`.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => leave(child),
        pid => Ok(pid),
    }
}

/// What [`clone3`] makes.
pub(crate) struct Cloned {
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
}

/// Run `child` in a copy of this process with the given `CLONE_NEW*` flags, born in `cgroup` (of
/// the unified hierarchy) if given.
pub(crate) fn clone3(
    namespaces: i32,
    cgroup: Option<BorrowedFd<'_>>,
    child: impl FnOnce() -> i32,
) -> io::Result<Cloned> {
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    let mut pidfd: RawFd = -1;
    let mut flags = u64::from((namespaces | libc::CLONE_PIDFD).cast_unsigned());
    if cgroup.is_some() {
        flags |= CLONE_INTO_CGROUP;
    }
    // SAFETY: `clone_args` is plain integers; zero is "not used" for each of them.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = flags;
    arguments.pidfd = (&raw mut pidfd).addr() as u64;
    arguments.exit_signal = u64::from(libc::SIGCHLD.cast_unsigned());
    arguments.cgroup = cgroup.map_or(0, |fd| u64::from(fd.as_raw_fd().cast_unsigned()));
    // SAFETY: needed because no wrapper offers `CLONE_INTO_CGROUP`. Sound because without `CLONE_VM`
    // this is a fork of a single-threaded process, `arguments` and `pidfd` outlive the call, the size
    // is that of the structure, and the child never returns.
    let result = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw mut arguments,
            size_of::<libc::clone_args>(),
        )
    };
    match result {
        0 => leave(child),
        pid if pid > 0 => {
            // SAFETY: the kernel has just stored a new descriptor there, which nobody else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Cloned {
                pid: i32::try_from(pid).map_err(io::Error::other)?,
                pidfd,
            })
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// The child's side of a fork: run, and leave without the parent's exit handlers or destructors.
fn leave(child: impl FnOnce() -> i32) -> ! {
    let code = catch_unwind(AssertUnwindSafe(child)).unwrap_or(PANIC_EXIT_CODE);
    // SAFETY: `_exit` has no precondition; `exit` would flush what the parent will flush again.
    unsafe { libc::_exit(code) }
}

/// Ends this process, which is a fork, as [`leave`] does.
pub(crate) fn exit(code: i32) -> ! {
    // SAFETY: as above.
    unsafe { libc::_exit(code) }
}

/// Close every descriptor but these.
///
/// For a freshly forked child only: values of the parent that own descriptors are still in this
/// copy's memory and must never be used or dropped again. The callers hand over to code that owns
/// what it keeps and ends in `_exit`.
pub(crate) fn close_all_except(keep: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut keep: Vec<u32> = keep.iter().map(|fd| fd.as_raw_fd().cast_unsigned()).collect();
    keep.sort_unstable();
    let mut first = 0;
    for kept in keep {
        if kept > first {
            close_range(first, kept - 1)?;
        }
        first = kept + 1;
    }
    close_range(first, u32::MAX)
}

fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: needed because no wrapper offers it. It takes integers only; that the closed
    // descriptors are not used again is the promise of the callers above.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) })
}

/// Make 0, 1 and 2 the null device, or the given descriptors.
pub(crate) fn set_stdio(
    stdin: BorrowedFd<'_>,
    stdout: BorrowedFd<'_>,
    stderr: BorrowedFd<'_>,
) -> io::Result<()> {
    rustix::stdio::dup2_stdin(stdin)?;
    rustix::stdio::dup2_stdout(stdout)?;
    rustix::stdio::dup2_stderr(stderr)?;
    Ok(())
}

/// Every signal back to its default action, and none blocked.
pub(crate) fn reset_signals() -> io::Result<()> {
    // The kernel's `sigaction` (handler, flags, restorer, mask), all zero: the default action.
    let default = [0_u64; 4];
    for signal in 1..SIGNALS_END {
        // SAFETY: needed because Rust ignores SIGPIPE, exec passes that on, and the C library's own call
        // refuses two real-time signals that whoever started us may have ignored. Sound: no handler is
        // installed; `default` outlives the call and the size of the mask is the kernel's. SIGKILL and
        // SIGSTOP refuse; they cannot be ignored either.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                &raw const default,
                std::ptr::null_mut::<u64>(),
                size_of::<u64>(),
            )
        };
    }
    nix::sys::signal::SigSet::empty()
        .thread_set_mask()
        .map_err(io::Error::from)
}

/// Ignore what is sent to a group or a session, so that a shim outlives its terminal and its
/// supervisor's service.
pub(crate) fn ignore_signals(signals: &[i32]) {
    for signal in signals {
        // SAFETY: installs no handler; ignoring a signal has no precondition.
        unsafe { libc::signal(*signal, libc::SIG_IGN) };
    }
}

/// Change the attributes of one mount: flags of `MOUNT_ATTR_*`.
pub(crate) fn mount_setattr(mount: BorrowedFd<'_>, set: u64, recursive: bool) -> io::Result<()> {
    // SAFETY: `mount_attr` is plain integers; zero is "leave as it is" for each of them.
    let mut attributes: libc::mount_attr = unsafe { std::mem::zeroed() };
    attributes.attr_set = set;
    set_attributes(mount, &attributes, recursive)
}

fn set_attributes(mount: BorrowedFd<'_>, attributes: &libc::mount_attr, recursive: bool) -> io::Result<()> {
    let recurse = if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: needed because no wrapper offers it. Sound because the path is a constant C string,
    // `attributes` outlives the call and the size is that of the structure.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | recurse,
            std::ptr::from_ref(attributes),
            size_of::<libc::mount_attr>(),
        )
    })
}

/// Show the ids in a mount that is attached nowhere as those of a user namespace: what is 0 on the disk is the
/// namespace's 0.
pub(crate) fn shift_mount(
    mount: BorrowedFd<'_>,
    namespace: BorrowedFd<'_>,
    recursive: bool,
) -> io::Result<()> {
    // SAFETY: `mount_attr` is plain integers; zero is "leave as it is" for each of them.
    let mut attributes: libc::mount_attr = unsafe { std::mem::zeroed() };
    attributes.attr_set = libc::MOUNT_ATTR_IDMAP;
    attributes.userns_fd = u64::from(namespace.as_raw_fd().cast_unsigned());
    set_attributes(mount, &attributes, recursive)
}

/// `struct loop_config` of `linux/loop.h`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    names_and_keys: [u8; 64 + 64 + 32],
    init: [u64; 2],
    reserved: [u64; 8],
}

/// The number of a loop device that nobody used a moment ago.
pub(crate) fn free_loop_device(control: BorrowedFd<'_>) -> io::Result<i64> {
    const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
    // SAFETY: needed because no wrapper offers it. Takes no argument and answers with a number.
    let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
    check(number.into())?;
    Ok(number.into())
}

/// Make a loop device show a file, until nobody has the device open or mounted any more.
pub(crate) fn configure_loop_device(
    device: BorrowedFd<'_>,
    file: BorrowedFd<'_>,
    block_bytes: u32,
) -> io::Result<()> {
    const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
    const LO_FLAGS_AUTOCLEAR: u32 = 4;
    /// Past the machine's page cache: the instance has its own. Ignored where the file system cannot.
    const LO_FLAGS_DIRECT_IO: u32 = 16;
    // SAFETY: `loop_config` is plain integers; zero is "not given" for each of them.
    let mut config: LoopConfig = unsafe { std::mem::zeroed() };
    config.fd = file.as_raw_fd().cast_unsigned();
    config.block_size = block_bytes;
    config.flags = LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO;
    // SAFETY: needed because no wrapper offers it. Sound because it reads one `loop_config`, whose layout is the
    // kernel's and which outlives the call.
    check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) }.into())
}

/// Make a file system refuse everything from now on and forget what it has not written.
pub(crate) fn shut_down_file_system(directory: BorrowedFd<'_>) -> io::Result<()> {
    const SHUTDOWN: libc::Ioctl = 0x8004_587D;
    const WITHOUT_FLUSH: u32 = 2;
    let how = WITHOUT_FLUSH;
    // SAFETY: needed because no wrapper offers it. Sound because it reads one integer, which outlives the call.
    check(unsafe { libc::ioctl(directory.as_raw_fd(), SHUTDOWN, &raw const how) }.into())
}

/// `_IOWR('X', 119, int)` and the one after it.
const FIFREEZE: libc::Ioctl = 0xC004_5877;
const FITHAW: libc::Ioctl = 0xC004_5878;

/// Write everything of a file system down and let nobody write until it is thawed.
pub(crate) fn freeze_file_system(directory: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: needed because no wrapper offers it. Sound because the kernel ignores the argument.
    check(unsafe { libc::ioctl(directory.as_raw_fd(), FIFREEZE, 0) }.into())
}

/// Undo [`freeze_file_system`]; EINVAL when it is not frozen.
pub(crate) fn thaw_file_system(directory: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: as above.
    check(unsafe { libc::ioctl(directory.as_raw_fd(), FITHAW, 0) }.into())
}

/// Fork a guard that thaws a file system when the other end of `watched` closes, or when the time is over. May be called
/// in a process of many threads. Returns the guard's pid, for [`reap`].
pub(crate) fn thaw_after(
    directory: BorrowedFd<'_>,
    watched: BorrowedFd<'_>,
    within: std::time::Duration,
) -> io::Result<i32> {
    let (directory, watched) = (directory.as_raw_fd(), watched.as_raw_fd());
    let (low, high) = (
        directory.min(watched).cast_unsigned(),
        directory.max(watched).cast_unsigned(),
    );
    let timeout = i32::try_from(within.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: needed because the guard has to live on when this process is killed, and there is no program to start.
    // Sound in a process of many threads because the child calls the kernel alone: it takes no lock, allocates nothing
    // and leaves by `_exit`. It closes all but its two descriptors, so that it keeps nobody's socket open.
    unsafe {
        match libc::fork() {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                libc::setsid();
                if low > 0 {
                    libc::syscall(libc::SYS_close_range, 0_u32, low - 1, 0);
                }
                if high > low + 1 {
                    libc::syscall(libc::SYS_close_range, low + 1, high - 1, 0);
                }
                libc::syscall(libc::SYS_close_range, high + 1, u32::MAX, 0);
                let mut poll = libc::pollfd {
                    fd: watched,
                    events: libc::POLLIN,
                    revents: 0,
                };
                libc::poll(&raw mut poll, 1, timeout);
                libc::ioctl(directory, FITHAW, 0);
                libc::_exit(0)
            }
            pid => Ok(pid),
        }
    }
}

/// Wait for the end of a child that is about to end.
pub(crate) fn reap(pid: i32) {
    // SAFETY: needed because wrappers of the crate wait for other things. Sound: no memory is written.
    while unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) } == -1
        && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
    {}
}

/// Bring up the loopback interface of this process's network namespace.
pub(crate) fn loopback_up() -> io::Result<()> {
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        None,
    )?;
    // SAFETY: `ifreq` is integers and a union of them; zero is valid for each.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = 'l' as libc::c_char;
    request.ifr_name[1] = 'o' as libc::c_char;
    let up = libc::c_short::try_from(libc::IFF_UP | libc::IFF_RUNNING).map_err(io::Error::other)?;
    request.ifr_ifru.ifru_flags = up;
    // SAFETY: needed because no wrapper offers this ioctl. Sound because it reads one `ifreq`, which
    // outlives the call, and its name is terminated by the zeroes it began with.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) }.into())
}

/// What a process on the way to an instance is given over others, in `nice` terms. A launch hands over
/// between five processes; on a busy machine each would wait for a turn of some milliseconds, while
/// somebody waits for an answer.
const HURRIED_NICE: i32 = -10;

/// Be scheduled before others, or like others again. Best effort: it needs CAP_SYS_NICE.
pub(crate) fn hurry_process(hurry: bool) {
    let _ = rustix::process::setpriority_process(None, if hurry { HURRIED_NICE } else { 0 });
}

/// The same for the session too, which the kernel may schedule as a group (autogroup). Only for a
/// process that leads a session of its own.
pub(crate) fn hurry(hurry: bool) {
    hurry_process(hurry);
    let _ = fs::write(
        "/proc/self/autogroup",
        if hurry { HURRIED_NICE } else { 0 }.to_string(),
    );
}

/// Asks the kernel to read these parts of a process's memory (address, length in bytes) back in from swap. Returns how
/// many bytes it has asked the device for, or found in memory; fewer than all when the process is short of memory.
pub(crate) fn read_ahead(process: BorrowedFd<'_>, ranges: &[(usize, usize)]) -> io::Result<usize> {
    let parts: Vec<libc::iovec> = ranges
        .iter()
        .map(|(address, length)| libc::iovec {
            iov_base: std::ptr::without_provenance_mut(*address),
            iov_len: *length,
        })
        .collect();
    // SAFETY: needed because no wrapper exists. The kernel reads the list, which lives until the call returns; what the
    // list names is memory of the other process, whose content the advice does not change.
    let asked = unsafe {
        libc::syscall(
            libc::SYS_process_madvise,
            process.as_raw_fd(),
            parts.as_ptr(),
            parts.len(),
            libc::MADV_WILLNEED,
            0,
        )
    };
    check(asked)?;
    Ok(usize::try_from(asked).unwrap_or_default())
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Whether a fork copies everything this process is.
pub(crate) fn is_single_threaded() -> io::Result<bool> {
    Ok(fs::read_dir("/proc/self/task")?.count() == 1)
}

/// Differs after every start of the machine.
pub(crate) fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}

/// When a process started, in clock ticks since boot: with the pid and the boot id it names a
/// process for ever. `None` when there is no such process (or only what is left of one).
pub(crate) fn start_ticks(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses and may contain anything.
    let (_, after) = stat.rsplit_once(')')?;
    let mut fields = after.split_whitespace();
    let state = fields.next()?;
    if state == "X" {
        return None;
    }
    // `after` begins with field 3; field 22 is the start time.
    fields.nth(22 - 4)?.parse().ok()
}

/// A descriptor of exactly the process that had this pid and start time, if it still lives.
pub(crate) fn pidfd_of(pid: i32, started: u64) -> Option<OwnedFd> {
    let pidfd = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    // Checked after opening: from now on the pid cannot be given to another without us seeing it.
    (start_ticks(pid) == Some(started)).then_some(pidfd)
}

/// Wait for a child to end. Blocks.
pub(crate) fn wait_pidfd(pidfd: impl AsFd) -> io::Result<ExitStatus> {
    loop {
        match rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED) {
            Ok(Some(status)) => return Ok(exit_status(&status)),
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn exit_status(status: &WaitIdStatus) -> ExitStatus {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => ExitStatus::Code(code),
        (None, Some(signal)) => ExitStatus::Signal(signal),
        (None, None) => ExitStatus::Code(PANIC_EXIT_CODE),
    }
}

/// Reap every child that has ended; their pids.
pub(crate) fn reap_children() -> Vec<i32> {
    let mut reaped = Vec::new();
    while let Ok(Some((pid, _))) = rustix::process::wait(rustix::process::WaitOptions::NOHANG) {
        reaped.push(pid.as_raw_nonzero().get());
    }
    reaped
}

/// Reap every child that has ended; which, and how.
pub(crate) fn reap_ended() -> Vec<(i32, ExitStatus)> {
    let mut reaped = Vec::new();
    while let Ok(Some((pid, status))) = rustix::process::wait(rustix::process::WaitOptions::NOHANG) {
        let how = match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => ExitStatus::Code(code),
            (None, Some(signal)) => ExitStatus::Signal(signal),
            (None, None) => continue,
        };
        reaped.push((pid.as_raw_nonzero().get(), how));
    }
    reaped
}

/// Signal exactly this process, with any of the kernel's signals.
pub(crate) fn send_signal(process: impl AsFd, signal: i32) -> io::Result<()> {
    // SAFETY: needed because the wrapper's signal type has no real-time signals. Takes integers and a
    // null pointer, which means "as kill does".
    check(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            process.as_fd().as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    })
}

/// Milliseconds since boot, suspended time included: comparable between processes of one boot.
pub(crate) fn boottime_ms() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: needed because no wrapper in use offers this clock. Writes one `timespec`, which outlives
    // the call; the clock exists since Linux 2.6.39, so the call cannot fail.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut now) };
    u64::try_from(now.tv_sec).unwrap_or(0) * 1000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000
}

/// Wait until a descriptor is readable (or its peer is gone), or the time is over.
pub(crate) fn wait_readable(fd: impl AsFd, timeout: std::time::Duration) -> io::Result<bool> {
    wait_for(fd, rustix::event::PollFlags::IN, timeout)
}

/// Wait for any of these poll conditions.
pub(crate) fn wait_for(
    fd: impl AsFd,
    flags: rustix::event::PollFlags,
    timeout: std::time::Duration,
) -> io::Result<bool> {
    let mut fds = [rustix::event::PollFd::new(&fd, flags)];
    poll(&mut fds, Some(timeout))
}

/// `poll`, where an interruption by a signal counts as "nothing yet".
pub(crate) fn poll(
    fds: &mut [rustix::event::PollFd<'_>],
    timeout: Option<std::time::Duration>,
) -> io::Result<bool> {
    let timeout = timeout.map(|timeout| rustix::event::Timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(timeout.subsec_nanos()),
    });
    match rustix::event::poll(fds, timeout.as_ref()) {
        Ok(ready) => Ok(ready > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}
