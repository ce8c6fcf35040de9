//! The driver for version 1: one hierarchy per controller.
//!
//! Chosen when the memory controller is mounted as version 1. The one design choice to know: moving
//! a process into a v1 cgroup waits for an RCU grace period, 8 to 17 ms after some idleness, and a
//! launch moves one into five. [`favor_dynamic_modifications`] makes each move 0.2 ms.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::event::{EventfdFlags, PollFlags, eventfd};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use super::unified::{Unified, open_procs};
use super::{
    Attach, CPU_PERIOD_USEC, Driver, FREEZE_TIMEOUT, Freezer, Layout, OomWatch, View, bound_processes,
    child_names, ensure_dir, keyed, keyed_if_there, named, read, read_number, read_processes, remove_tree,
    swapped_by, write,
};
use crate::protocol::{Limits, Stats};

pub(super) const CONTROLLERS: [&str; 5] = ["memory", "cpu", "cpuacct", "pids", "freezer"];
/// `cpu.shares` of one whole CPU; shares are what is left to each when all want more than there is.
const SHARES_PER_CPU: u64 = 1024;
/// The kernel's smallest number of shares.
const SHARES_MIN: u64 = 2;
/// How long to wait between two looks at a v1 freezer, which cannot be polled.
const FREEZE_LOOK: std::time::Duration = std::time::Duration::from_micros(200);

#[derive(Debug)]
pub(super) struct V1 {
    memory: PathBuf,
    cpu: PathBuf,
    pids: PathBuf,
    /// These two only where the unified tree does not do it: each hierarchy costs a launch 0.15 ms.
    cpuacct: Option<PathBuf>,
    freezer: Option<PathBuf>,
    unified: Option<PathBuf>,
}

impl V1 {
    pub(super) fn new(layout: &Layout, below: &str, which_freezer: Freezer) -> io::Result<Self> {
        let parent = |controller: &str| {
            let mount = layout.controller(controller).ok_or_else(|| {
                io::Error::new(
                    io::ErrorKind::Unsupported,
                    format!("the cgroup controller {controller} is not mounted"),
                )
            })?;
            make_parents(mount, below)
        };
        let unified = match &layout.unified {
            Some(root) if root.join("cgroup.procs").exists() => Some(make_parents(root, below)?),
            _ => None,
        };
        let wanted = |controller: &str, needed: bool| {
            if needed {
                parent(controller).map(Some)
            } else {
                Ok(None)
            }
        };
        let pids = parent("pids")?;
        bound_processes(&pids)?;
        Ok(Self {
            memory: parent("memory")?,
            cpu: parent("cpu")?,
            pids,
            cpuacct: wanted("cpuacct", unified.is_none())?,
            freezer: wanted("freezer", unified.is_none() || which_freezer == Freezer::V1)?,
            unified,
        })
    }

    fn hierarchies(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.memory, &self.cpu, &self.pids]
            .into_iter()
            .chain(&self.cpuacct)
            .chain(&self.freezer)
    }

    fn unified(&self, name: &str) -> Option<Unified> {
        self.unified
            .as_ref()
            .map(|parent| Unified::new(parent.join(name)))
    }

    fn freezer_state(&self, name: &str) -> Option<PathBuf> {
        self.freezer
            .as_ref()
            .map(|parent| parent.join(name).join("freezer.state"))
    }

    /// The unified tree's, unless told otherwise or not there.
    fn unified_freezer(&self, name: &str) -> Option<Unified> {
        if self.freezer.is_none() {
            self.unified(name)
        } else {
            None
        }
    }

    fn cpu_usec(&self, name: &str) -> io::Result<u64> {
        if let Some(cpuacct) = &self.cpuacct {
            return Ok(read_number(&cpuacct.join(name).join("cpuacct.usage"))? / 1000);
        }
        // The unified tree counts CPU time with or without controllers.
        let unified = self
            .unified
            .as_ref()
            .map_or(&self.cpu, |parent| parent)
            .join(name);
        Ok(keyed(&read(&unified.join("cpu.stat"))?, "usage_usec"))
    }

    fn thaw_v1(&self, name: &str) -> io::Result<()> {
        match self.freezer_state(name) {
            Some(state) => crate::state::ignore_missing(write(&state, "THAWED")),
            None => Ok(()),
        }
    }
}

impl Driver for V1 {
    fn create(&self, name: &str, limits: &Limits) -> io::Result<()> {
        for parent in self.hierarchies().chain(&self.unified) {
            // An administrator may have tidied away a parent that was empty.
            fs::create_dir_all(parent.join(name)).map_err(|error| named(parent, &error))?;
        }
        if let Some(bytes) = limits.memory_bytes {
            let memory = self.memory.join(name);
            write(&memory.join("memory.limit_in_bytes"), bytes.to_string())?;
            // Memory and swap together; absent where the kernel does not account swap.
            let with_swap = memory.join("memory.memsw.limit_in_bytes");
            if with_swap.exists() {
                write(&with_swap, bytes.to_string())?;
            }
        }
        if let Some(millis) = limits.cpu_millis {
            let cpu = self.cpu.join(name);
            write(&cpu.join("cpu.cfs_period_us"), CPU_PERIOD_USEC.to_string())?;
            write(
                &cpu.join("cpu.cfs_quota_us"),
                (u64::from(millis) * CPU_PERIOD_USEC / 1000).to_string(),
            )?;
            let shares = (u64::from(millis) * SHARES_PER_CPU / 1000).max(SHARES_MIN);
            write(&cpu.join("cpu.shares"), shares.to_string())?;
        }
        if let Some(pids) = limits.pids_max {
            write(&self.pids.join(name).join("pids.max"), pids.to_string())?;
        }
        Ok(())
    }

    fn attach(&self, name: &str) -> io::Result<Attach> {
        let mut attach = match self.unified(name) {
            Some(unified) => unified.attach()?,
            None => Attach {
                born_in: None,
                procs: Vec::new(),
                cpu: Vec::new(),
            },
        };
        for parent in [&self.memory, &self.pids].into_iter().chain(&self.freezer) {
            attach.procs.push(open_procs(&parent.join(name))?);
        }
        for parent in [&self.cpu].into_iter().chain(&self.cpuacct) {
            attach.cpu.push(open_procs(&parent.join(name))?);
        }
        Ok(attach)
    }

    fn kill(&self, name: &str) -> io::Result<()> {
        match self.unified(name) {
            Some(unified) => unified.kill()?,
            None => {
                let procs = self.memory.join(name).join("cgroup.procs");
                for pid in fs::read_to_string(procs)
                    .unwrap_or_default()
                    .lines()
                    .filter_map(|pid| pid.parse().ok())
                {
                    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                        // Gone already is as good as killed.
                        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                    }
                }
            }
        }
        // Thousands of processes cannot die within a small share of a processor. None of them will run a line of its
        // own again, so the limit has nothing left to hold.
        let _ = write(&self.cpu.join(name).join("cpu.cfs_quota_us"), "-1");
        // A v1-frozen process dies only when it runs again.
        self.thaw_v1(name)
    }

    fn freeze(&self, name: &str) -> io::Result<()> {
        if let Some(unified) = self.unified_freezer(name) {
            return unified.freeze();
        }
        let Some(state) = self.freezer_state(name) else {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "no freezer is mounted",
            ));
        };
        write(&state, "FROZEN")?;
        let deadline = Instant::now() + FREEZE_TIMEOUT;
        while !self.is_frozen(name)? {
            if Instant::now() > deadline {
                self.thaw_v1(name)?;
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the processes did not freeze in time",
                ));
            }
            // The state file cannot be polled: look again after a moment.
            crate::sys::poll(&mut [], Some(FREEZE_LOOK))?;
        }
        Ok(())
    }

    fn thaw(&self, name: &str) -> io::Result<()> {
        match self.unified_freezer(name) {
            Some(unified) => unified.thaw(),
            None => self.thaw_v1(name),
        }
    }

    fn is_frozen(&self, name: &str) -> io::Result<bool> {
        if let Some(unified) = self.unified_freezer(name) {
            return unified.is_frozen();
        }
        match self.freezer_state(name) {
            Some(state) => Ok(read(&state)?.trim() == "FROZEN"),
            None => Ok(false),
        }
    }

    fn is_empty(&self, name: &str) -> io::Result<bool> {
        match fs::read_to_string(self.memory.join(name).join("cgroup.procs")) {
            Ok(procs) if !procs.trim().is_empty() => return Ok(false),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.unified(name).map_or(Ok(true), |unified| unified.is_empty())
    }

    fn freezer(&self, name: &str) -> io::Result<PathBuf> {
        match (self.unified_freezer(name), &self.freezer) {
            (Some(unified), _) => Ok(unified.path().to_owned()),
            (None, Some(freezer)) => Ok(freezer.join(name)),
            (None, None) => Err(io::Error::from(io::ErrorKind::Unsupported)),
        }
    }

    fn processes(&self, name: &str) -> io::Result<Vec<i32>> {
        read_processes(&self.memory.join(name))
    }

    fn lift_limits(&self, name: &str) -> io::Result<()> {
        write(&self.cpu.join(name).join("cpu.cfs_quota_us"), "-1")?;
        write(&self.pids.join(name).join("pids.max"), "max")
    }

    fn stats(&self, name: &str) -> io::Result<Stats> {
        let memory = self.memory.join(name);
        let memory_bytes = read_number(&memory.join("memory.usage_in_bytes"))?;
        let stat = read(&memory.join("memory.stat"))?;
        let inactive = keyed(&stat, "total_inactive_file");
        let swap_bytes = match keyed_if_there(&stat, "total_swap") {
            Some(bytes) => bytes,
            None => swapped_by(&self.processes(name)?),
        };
        Ok(Stats {
            cpu_usec: self.cpu_usec(name)?,
            cpu_throttled_usec: keyed(&read(&self.cpu.join(name).join("cpu.stat"))?, "throttled_time") / 1000,
            memory_bytes,
            memory_working_set_bytes: memory_bytes.saturating_sub(inactive),
            swap_bytes,
            pids: read_number(&self.pids.join(name).join("pids.current"))?,
            oom_kills: self.oom_kills(name)?,
            checkpoint_bytes: 0,
        })
    }

    fn oom_kills(&self, name: &str) -> io::Result<u64> {
        Ok(keyed(
            &read(&self.memory.join(name).join("memory.oom_control"))?,
            "oom_kill",
        ))
    }

    fn watch_oom(&self, name: &str) -> io::Result<OomWatch> {
        use std::os::fd::AsRawFd;
        let memory = self.memory.join(name);
        let control = fs::File::open(memory.join("memory.oom_control"))?;
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        // The kernel keeps its own reference to both once this is written.
        write(
            &memory.join("cgroup.event_control"),
            format!("{} {}", event.as_raw_fd(), control.as_raw_fd()),
        )?;
        Ok(OomWatch {
            fd: event,
            flags: PollFlags::IN,
        })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        for parent in self.hierarchies().chain(&self.unified) {
            remove_tree(&parent.join(name))?;
        }
        Ok(())
    }

    fn view(&self) -> View {
        View::V1(&["memory", "cpu"])
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for parent in self.hierarchies().chain(&self.unified) {
            names.extend(child_names(parent)?);
        }
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }
}

impl Drop for V1 {
    /// An empty parent is of no use to anybody; a parent in use cannot be removed.
    fn drop(&mut self) {
        for parent in self.hierarchies().chain(&self.unified) {
            let _ = fs::remove_dir(parent);
        }
    }
}

fn make_parents(mount: &Path, below: &str) -> io::Result<PathBuf> {
    let mut path = mount.to_owned();
    for name in below.split('/') {
        path.push(name);
        ensure_dir(&path)?;
    }
    Ok(path)
}

/// Make moves between cgroups cheap: a named hierarchy of ours, mounted nowhere, asks the kernel for
/// it as long as the descriptor lives (from kernel 6.18 on, until reboot).
pub(crate) fn favor_dynamic_modifications() -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen("cgroup", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_flag(&context, "none")?;
    rustix::mount::fsconfig_set_string(&context, "name", "tramontane")?;
    rustix::mount::fsconfig_set_flag(&context, "favordynmods")?;
    rustix::mount::fsconfig_create(&context)?;
    Ok(rustix::mount::fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )?)
}
