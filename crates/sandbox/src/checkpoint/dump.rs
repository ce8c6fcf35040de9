//! From a frozen instance to an image.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};

use super::criu::{self, Words, first_error};
use super::image::Image;
use super::mounts::{Held, pipe_name};
use super::obstacles;
use crate::patience;
use crate::protocol::ExitStatus;
use crate::sys;

/// The child could not even become CRIU.
const NOT_RUN: i32 = 127;
const LOG: &str = "dump.log";
/// Temporary files that were deleted while they are open are copied into the image up to this size each.
const DELETED_FILE_BYTES_MAX: &str = "64M";

/// What to write down.
#[derive(Debug)]
pub(crate) struct Dump<'a> {
    pub(crate) program: &'a Path,
    pub(crate) image: &'a Image,
    /// Where CRIU's knowledge of the kernel is kept.
    pub(crate) facts: &'a Path,
    pub(crate) init: i32,
    pub(crate) processes: Vec<i32>,
    /// The addresses of the data plane.
    pub(crate) peers: &'a [IpAddr],
    /// The cgroup that is frozen.
    pub(crate) freezer: &'a Path,
    /// The reading ends of its output.
    pub(crate) pipes: Vec<BorrowedFd<'a>>,
    /// Memory in use, in swap too, in bytes.
    pub(crate) memory_bytes: u64,
    pub(crate) held: &'a Held,
    pub(crate) purpose: Purpose,
}

/// What becomes of what is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// The instance itself goes on from it.
    Sleep,
    /// Others begin as it, elsewhere in the network.
    Copies,
}

/// How it went.
#[derive(Debug)]
pub(crate) enum Dumped {
    /// The image is whole, and counts when it is committed ([`Image::commit`]). The instance is as it was, frozen.
    Whole,
    /// It cannot be done; the instance is as it was. The words are for its owner.
    Refused(String),
    /// CRIU was cut off while it had its hands in the instance: what runs there is not the program any more.
    Broken(String),
}

/// Writes a frozen instance down and leaves it frozen.
///
/// # Errors
/// When it could not be tried; the instance is as it was.
pub(crate) fn dump(order: &Dump<'_>) -> io::Result<Dumped> {
    if let Some(why) = obstacles::find(order.init, &order.processes, order.peers, order.purpose)? {
        return Ok(Dumped::Refused(why));
    }
    if !order.image.room_for(order.memory_bytes)? {
        return Ok(Dumped::Refused("there is not enough room on the disk".to_owned()));
    }
    let directory = order.image.begin()?;
    let words = words(order, &directory)?;
    let child = Child::start(|| {
        let keep: Vec<_> = order.held.fds().collect();
        let attempt = || {
            rustix::process::setsid()?;
            criu::shed(&keep)?;
            criu::prepare(order.facts, &[&directory, order.program, order.facts])?;
            criu::learn_facts(order.program, order.facts)?;
            order.held.enter_shared()?;
            criu::resemble(order.init)?;
            words.run()
        };
        match attempt() {
            Ok(true) => 0,
            Ok(false) => 1,
            Err(_) => NOT_RUN,
        }
    })?;
    let timeout = patience::dump(order.memory_bytes);
    let status = child.wait(timeout)?;
    let log = || fs::read_to_string(directory.join(LOG)).unwrap_or_default();
    match status {
        Some(ExitStatus::Code(0)) => {
            let pipes: io::Result<Vec<String>> = order.pipes.iter().map(pipe_name).collect();
            let mounts = order.held.given.clone();
            order
                .image
                .describe(pipes?, mounts, order.processes.len(), order.memory_bytes)?;
            order.image.close()?;
            Ok(Dumped::Whole)
        }
        Some(ExitStatus::Code(NOT_RUN)) => Err(io::Error::other("CRIU could not be run")),
        Some(ExitStatus::Code(_)) => {
            let said = first_error(&log()).unwrap_or_else(|| "it did not say why".to_owned());
            Ok(Dumped::Refused(explain(&said)))
        }
        Some(ExitStatus::Signal(signal)) => Ok(Dumped::Broken(format!(
            "the checkpoint was ended by signal {signal}"
        ))),
        None => Ok(Dumped::Broken(format!(
            "the checkpoint took longer than {} s",
            timeout.as_secs()
        ))),
    }
}

/// CRIU's words, in the owner's where they are known.
fn explain(said: &str) -> String {
    if said.starts_with("Can't get rlimit") {
        return "its processes belong to several users, and this machine lacks the capability CAP_SYS_RESOURCE, without \
                which their limits cannot be read"
            .to_owned();
    }
    if said.contains("SysVIPC shmem") {
        return "it uses System V shared memory".to_owned();
    }
    format!("CRIU cannot write it down: {said}")
}

fn words(order: &Dump<'_>, directory: &Path) -> io::Result<Words> {
    let mut words = Words::new(order.program, "dump");
    words.add(&["--tree", &order.init.to_string()]);
    words.path("--images-dir", directory);
    // The cgroup is frozen before and after: CRIU thaws it once it holds every process.
    words.path("--freeze-cgroup", order.freezer);
    words.add(&["--leave-running", "--manage-cgroups=ignore"]);
    words.add(&["--network-lock", "skip", "--tcp-close", "--file-locks"]);
    words.add(&["--ghost-limit", DELETED_FILE_BYTES_MAX]);
    words.add(&["--log-file", LOG, "-v2"]);
    for mount in &order.held.given {
        words.add(&[
            "--external",
            &format!("mnt[{}]:{}", mount.path.display(), mount.key),
        ]);
    }
    for pipe in &order.pipes {
        words.add(&["--external", &pipe_name(pipe)?]);
    }
    Ok(words)
}

/// A process of ours that is waited for.
#[derive(Debug)]
pub(super) struct Child {
    pub(super) pid: i32,
    pub(super) pidfd: OwnedFd,
}

impl Child {
    pub(super) fn start(run: impl FnOnce() -> i32) -> io::Result<Self> {
        let pid = sys::fork(run)?;
        let known = Pid::from_raw(pid).ok_or_else(|| io::Error::other("a child without a number"))?;
        Ok(Self {
            pid,
            pidfd: pidfd_open(known, PidfdFlags::empty())?,
        })
    }

    /// Its end, or `None` when it had to be killed, with all of its session.
    pub(super) fn wait(&self, timeout: Duration) -> io::Result<Option<ExitStatus>> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if sys::wait_readable(self.pidfd.as_fd(), left)? {
                return sys::wait_pidfd(&self.pidfd).map(Some);
            }
            if left.is_zero() {
                self.kill();
                sys::wait_pidfd(&self.pidfd)?;
                return Ok(None);
            }
        }
    }

    pub(super) fn kill(&self) {
        if let Some(group) = Pid::from_raw(self.pid) {
            // Gone already is as good.
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
        let _ = sys::send_signal(&self.pidfd, libc::SIGKILL);
    }
}
