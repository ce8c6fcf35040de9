//! One more program in an instance that runs in gVisor.
//!
//! The helper (`supervisor::exec`) and its child are as for every other instance, but for what the child becomes: runsc,
//! which has the program started inside and ends as it ends.
//!
//! The one design choice to know: the child and the program are two processes. What ends the child by force does not reach
//! the program, so the helper has runsc end it then.

use std::convert::Infallible;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::{MemfdFlags, memfd_create};

use super::config::{self, Asked};
use super::{execute, name, words};
use crate::protocol::{ExecSpec, InstanceId, LaunchFailure, LaunchSpec, User};
use crate::shim::READY;
use crate::sys;

/// A program in an instance, by the helper's number: how its pid inside is found.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Joined(pub(crate) i32);

impl Joined {
    /// In the room, where nothing of the instance's can reach it.
    fn pid_file(self) -> String {
        format!("/bundle/exec-{}", self.0)
    }
}

/// Becomes runsc, with the standard streams as they are. Returns only to say why not.
pub(crate) fn become_exec(
    spec: &LaunchSpec,
    exec: &ExecSpec,
    user: &User,
    joined: Joined,
    verdict: BorrowedFd<'_>,
) -> Result<Infallible, LaunchFailure> {
    let during = |error: io::Error| LaunchFailure::Setup {
        what: "start a program in gVisor".to_owned(),
        errno: error.raw_os_error().unwrap_or(libc::EIO),
    };
    let asked = Asked {
        argv: &exec.argv,
        env: &exec.env,
        cwd: exec.cwd.as_deref().unwrap_or(&spec.cwd),
        user,
        terminal: exec.tty.is_some(),
    };
    let text = config::process(spec, &asked).to_string();
    // Read by runsc after the exec, and gone with it.
    let file = memfd_create("process", MemfdFlags::empty()).map_err(|errno| during(errno.into()))?;
    let mut file = std::fs::File::from(file);
    file.write_all(text.as_bytes()).map_err(during)?;
    let process = format!("--process=/proc/self/fd/{}", file.as_raw_fd());
    let pid_file = format!("--internal-pid-file={}", joined.pid_file());
    sys::reset_signals().map_err(during)?;
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    let _ = rustix::io::write(verdict, READY);
    Err(during(execute(&words(&[
        "exec",
        &process,
        &pid_file,
        name(&spec.id),
    ]))))
}

/// In a process in the room: ends the program of an exec, and all record of it. `by_force`: its runsc was killed.
pub(crate) fn end_exec(id: &InstanceId, joined: Joined, by_force: bool) -> i32 {
    let file = joined.pid_file();
    let pid = std::fs::read_to_string(&file).unwrap_or_default();
    let _ = std::fs::remove_file(&file);
    let pid = pid.trim();
    if !by_force || pid.is_empty() {
        return 0;
    }
    let pid = format!("--pid={pid}");
    execute(&words(&["kill", &pid, name(id), "KILL"]));
    1
}
