//! Control groups: one per instance, under `tram/<hash of the state directory>/<instance>`.
//!
//! Owns limits, counters, freezing and killing. Called by the supervisor and the shims.
//!
//! The one design choice to know: a [`Driver`] keeps no state. Everything is asked of the kernel by
//! the instance's name, so an adopted instance is handled like one that was just launched. There are
//! two drivers: `v1` (one hierarchy per controller, with the unified tree beside it for killing and
//! freezing where it is mounted) and `v2`.

mod unified;
mod v1;
mod v2;

use std::fmt::Debug;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::protocol::{Limits, Stats};

pub(crate) use v1::favor_dynamic_modifications;

/// Everything of ours is below a cgroup of this name.
const PARENT: &str = "tram";
/// A freeze takes about a millisecond; a process deep in the kernel may hold it up.
pub(crate) const FREEZE_TIMEOUT: Duration = Duration::from_millis(250);
/// The period of CPU limits: the kernel's default, so that 100 ms is the longest pause of a service
/// that used up its share.
const CPU_PERIOD_USEC: u64 = 100_000;

/// What an instance's first process needs to get into its cgroups.
#[derive(Debug)]
pub(crate) struct Attach {
    /// The unified cgroup to be born in.
    pub(crate) born_in: Option<OwnedFd>,
    /// `cgroup.procs` files to write `0` to at once.
    pub(crate) procs: Vec<File>,
    /// The same, for when nothing but the program is left: an instance's CPU limit should not slow
    /// down its own launch.
    pub(crate) cpu: Vec<File>,
}

/// How one layout of cgroups does it. `name` is the instance's id.
pub(crate) trait Driver: Debug {
    /// Make the cgroups, with their limits. They may exist already.
    fn create(&self, name: &str, limits: &Limits) -> io::Result<()>;
    fn attach(&self, name: &str) -> io::Result<Attach>;
    /// Kill every process, frozen or not.
    fn kill(&self, name: &str) -> io::Result<()>;
    /// Returns when every process is frozen.
    fn freeze(&self, name: &str) -> io::Result<()>;
    fn thaw(&self, name: &str) -> io::Result<()>;
    fn is_frozen(&self, name: &str) -> io::Result<bool>;
    fn is_empty(&self, name: &str) -> io::Result<bool>;
    /// The cgroup whose freezer is used.
    fn freezer(&self, name: &str) -> io::Result<PathBuf>;
    /// Every process, as this machine numbers them.
    fn processes(&self, name: &str) -> io::Result<Vec<i32>>;
    /// Lets the processes use as much CPU and have as many of them as they want, until [`Driver::create`] puts the
    /// limits back: for work of ours that is done among them.
    fn lift_limits(&self, name: &str) -> io::Result<()>;
    fn stats(&self, name: &str) -> io::Result<Stats>;
    fn oom_kills(&self, name: &str) -> io::Result<u64>;
    /// A descriptor that polls ready (see [`OomWatch`]) when a memory limit was hit.
    fn watch_oom(&self, name: &str) -> io::Result<OomWatch>;
    /// Remove the cgroups; fails while processes are in them. Missing ones are fine.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// What an instance is shown of its limits, below `/sys/fs/cgroup`.
    fn view(&self) -> View;
    /// The names of all instances that have a cgroup.
    fn names(&self) -> io::Result<Vec<String>>;
}

/// Language runtimes size their heaps and thread pools by what they find in `/sys/fs/cgroup`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum View {
    /// One hierarchy for each of these controllers.
    V1(&'static [&'static str]),
    V2,
}

/// Tells that a memory limit was hit.
#[derive(Debug)]
pub(crate) struct OomWatch {
    pub(crate) fd: OwnedFd,
    /// The poll condition to wait for.
    pub(crate) flags: rustix::event::PollFlags,
}

impl Attach {
    /// What a child must not lose when descriptors are closed.
    pub(crate) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let files = self.procs.iter().chain(&self.cpu).map(AsFd::as_fd);
        files.chain(self.born_in.as_ref().map(AsFd::as_fd))
    }
}

impl OomWatch {
    /// Make it poll unready until the next time.
    pub(crate) fn acknowledge(&self) {
        // A version 2 file is read from its start; an event descriptor cannot seek and need not.
        let _ = rustix::fs::seek(&self.fd, rustix::fs::SeekFrom::Start(0));
        let _ = rustix::io::read(&self.fd, &mut [0; 512]);
    }
}

/// Where the kernel's hierarchies are mounted.
#[derive(Debug, Default)]
pub(crate) struct Layout {
    /// Version 1: controller and mount point.
    pub(crate) controllers: Vec<(String, PathBuf)>,
    pub(crate) unified: Option<PathBuf>,
}

impl Layout {
    pub(crate) fn detect() -> io::Result<Self> {
        let mut layout = Self::default();
        for line in fs::read_to_string("/proc/self/mounts")?.lines() {
            let mut fields = line.split(' ');
            let (Some(_), Some(path), Some(kind), Some(options)) =
                (fields.next(), fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            match kind {
                "cgroup2" if layout.unified.is_none() => layout.unified = Some(path.into()),
                "cgroup" => {
                    for option in options
                        .split(',')
                        .filter(|option| v1::CONTROLLERS.contains(option))
                    {
                        layout.controllers.push((option.to_owned(), path.into()));
                    }
                }
                _ => {}
            }
        }
        Ok(layout)
    }

    pub(crate) fn controller(&self, name: &str) -> Option<&Path> {
        self.controllers
            .iter()
            .find(|(controller, _)| controller == name)
            .map(|(_, path)| path.as_path())
    }
}

/// Which freezer a machine with both is to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Freezer {
    /// The unified tree's where it is mounted: a frozen process there can be killed.
    #[default]
    Auto,
    /// Version 1's.
    V1,
}

/// Where the cgroups of a state directory's instances are, below the mount point of a hierarchy.
pub(crate) fn below(state_dir: &Path) -> String {
    let hash = fnv1a(state_dir.as_os_str().as_encoded_bytes());
    format!("{PARENT}/{hash:016x}")
}

/// The driver for this machine.
pub(crate) fn driver(state_dir: &Path, freezer: Freezer) -> io::Result<Box<dyn Driver>> {
    let layout = Layout::detect()?;
    let below = below(state_dir);
    if layout.controller("memory").is_some() {
        return Ok(Box::new(v1::V1::new(&layout, &below, freezer)?));
    }
    match layout.unified {
        Some(root) => Ok(Box::new(v2::V2::new(&root, &below, &["memory", "cpu", "pids"])?)),
        None => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "no cgroup hierarchy is mounted",
        )),
    }
}

/// Keeps a part of the machine's process numbers out of the reach of all instances together: each has a limit of its
/// own, but a few fork bombs that all reach theirs would leave the machine none.
fn bound_processes(parent: &Path) -> io::Result<()> {
    let machine: u64 = read_number(Path::new("/proc/sys/kernel/pid_max"))?;
    write(&parent.join("pids.max"), (machine / 4 * 3).to_string())
}

/// A stable short name for a path (the hashers of the standard library promise no stability).
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}

/// Write to a file of a cgroup, and say which one when it fails.
fn write(path: &Path, value: impl AsRef<str>) -> io::Result<()> {
    fs::write(path, value.as_ref()).map_err(|error| named(path, &error))
}

fn read(path: &Path) -> io::Result<String> {
    fs::read_to_string(path).map_err(|error| named(path, &error))
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn read_number(path: &Path) -> io::Result<u64> {
    read(path)?
        .trim()
        .parse()
        .map_err(|_| io::Error::other(format!("{} is not a number", path.display())))
}

/// The value of one key of a flat keyed file (`key value` lines); zero when it is not there.
fn keyed(text: &str, key: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
        .unwrap_or(0)
}

/// The value of one key of a flat keyed file, if it is there.
fn keyed_if_there(text: &str, key: &str) -> Option<u64> {
    let is_it = |line: &str| line.strip_prefix(key).is_some_and(|rest| rest.starts_with(' '));
    text.lines().any(is_it).then(|| keyed(text, key))
}

/// What these processes have in swap, in bytes, each with its own: for kernels that do not count it by cgroup.
fn swapped_by(processes: &[i32]) -> u64 {
    // Most machines have none: then nobody has anything in it, and nothing is asked of each process.
    let has_swap = fs::read_to_string("/proc/swaps").is_ok_and(|text| text.lines().nth(1).is_some());
    if !has_swap {
        return 0;
    }
    // One that has ended has none.
    let statuses = processes
        .iter()
        .filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/status")).ok());
    statuses.map(|status| swapped_of(&status)).sum()
}

/// What a `/proc/PID/status` says is in swap, in bytes.
fn swapped_of(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("VmSwap:"));
    let kibibytes: Option<u64> =
        line.and_then(|line| line.trim().strip_suffix(" kB")?.trim_end().parse().ok());
    kibibytes.unwrap_or(0).saturating_mul(1024)
}

/// The numbers in a `cgroup.procs`.
fn read_processes(cgroup: &Path) -> io::Result<Vec<i32>> {
    let text = read(&cgroup.join("cgroup.procs"))?;
    Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
}

fn ensure_dir(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(named(path, &error)),
        _ => Ok(()),
    }
}

/// Remove a cgroup and those that processes of the instance may have made below it.
fn remove_tree(path: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    crate::state::ignore_missing(fs::remove_dir(path)).map_err(|error| named(path, &error))
}

fn child_names(path: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            names.extend(entry.file_name().into_string());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests;
