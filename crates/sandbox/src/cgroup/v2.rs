//! The driver for version 2, the only tree of current distributions.
//!
//! Chosen when no v1 memory controller is mounted. The one design choice to know: processes are born
//! in their cgroup (`CLONE_INTO_CGROUP`), which costs nothing, so there is nothing to attach later.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::event::PollFlags;

use super::unified::Unified;
use super::{
    Attach, CPU_PERIOD_USEC, Driver, OomWatch, View, bound_processes, child_names, ensure_dir, keyed, read,
    read_number, read_processes, remove_tree, swapped_by, write,
};
use crate::protocol::{Limits, Stats};

/// `cpu.weight` of one whole CPU (the kernel's default) and its bounds.
const WEIGHT_PER_CPU: u64 = 100;
const WEIGHT_MAX: u64 = 10_000;

#[derive(Debug)]
pub(super) struct V2 {
    parent: PathBuf,
}

impl V2 {
    /// `controllers` are handed down to the instances; a machine that lacks one is refused.
    pub(super) fn new(root: &Path, below: &str, controllers: &[&str]) -> io::Result<Self> {
        let mut path = root.to_owned();
        hand_down(&path, controllers)?;
        for name in below.split('/') {
            path.push(name);
            ensure_dir(&path)?;
            hand_down(&path, controllers)?;
        }
        if controllers.contains(&"pids") {
            bound_processes(&path)?;
        }
        Ok(Self { parent: path })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.parent.join(name)
    }

    fn unified(&self, name: &str) -> Unified {
        Unified::new(self.path(name))
    }
}

fn hand_down(path: &Path, controllers: &[&str]) -> io::Result<()> {
    for controller in controllers {
        write(&path.join("cgroup.subtree_control"), format!("+{controller}"))?;
    }
    Ok(())
}

impl Driver for V2 {
    fn create(&self, name: &str, limits: &Limits) -> io::Result<()> {
        let path = self.path(name);
        ensure_dir(&path)?;
        if let Some(bytes) = limits.memory_bytes {
            write(&path.join("memory.max"), bytes.to_string())?;
            // No swap beyond the limit: memory and swap together are bounded by it. Absent without swap.
            let swap = path.join("memory.swap.max");
            if swap.exists() {
                write(&swap, "0")?;
            }
        }
        if let Some(millis) = limits.cpu_millis {
            let quota = u64::from(millis) * CPU_PERIOD_USEC / 1000;
            write(&path.join("cpu.max"), format!("{quota} {CPU_PERIOD_USEC}"))?;
            let weight = (u64::from(millis) * WEIGHT_PER_CPU / 1000).clamp(1, WEIGHT_MAX);
            write(&path.join("cpu.weight"), weight.to_string())?;
        }
        if let Some(pids) = limits.pids_max {
            let path = path.join("pids.max");
            if path.exists() {
                write(&path, pids.to_string())?;
            }
        }
        Ok(())
    }

    fn attach(&self, name: &str) -> io::Result<Attach> {
        self.unified(name).attach()
    }

    fn kill(&self, name: &str) -> io::Result<()> {
        self.unified(name).kill()?;
        // Thousands of processes cannot die within a small share of a processor, and none will run on.
        let _ = write(&self.path(name).join("cpu.max"), "max");
        Ok(())
    }

    fn freeze(&self, name: &str) -> io::Result<()> {
        self.unified(name).freeze()
    }

    fn thaw(&self, name: &str) -> io::Result<()> {
        self.unified(name).thaw()
    }

    fn is_frozen(&self, name: &str) -> io::Result<bool> {
        self.unified(name).is_frozen()
    }

    fn is_empty(&self, name: &str) -> io::Result<bool> {
        self.unified(name).is_empty()
    }

    fn freezer(&self, name: &str) -> io::Result<PathBuf> {
        Ok(self.path(name))
    }

    fn processes(&self, name: &str) -> io::Result<Vec<i32>> {
        read_processes(&self.path(name))
    }

    fn lift_limits(&self, name: &str) -> io::Result<()> {
        for file in ["cpu.max", "pids.max"] {
            let path = self.path(name).join(file);
            if path.exists() {
                write(&path, "max")?;
            }
        }
        Ok(())
    }

    fn stats(&self, name: &str) -> io::Result<Stats> {
        let path = self.path(name);
        let cpu = read(&path.join("cpu.stat"))?;
        let memory_bytes = read_number(&path.join("memory.current"))?;
        let inactive = keyed(&read(&path.join("memory.stat"))?, "inactive_file");
        let swap = path.join("memory.swap.current");
        let swap_bytes = match swap.exists() {
            true => read_number(&swap)?,
            false => swapped_by(&self.processes(name)?),
        };
        Ok(Stats {
            cpu_usec: keyed(&cpu, "usage_usec"),
            cpu_throttled_usec: keyed(&cpu, "throttled_usec"),
            memory_bytes,
            memory_working_set_bytes: memory_bytes.saturating_sub(inactive),
            swap_bytes,
            pids: read_number(&path.join("pids.current"))?,
            oom_kills: self.oom_kills(name)?,
            checkpoint_bytes: 0,
        })
    }

    fn oom_kills(&self, name: &str) -> io::Result<u64> {
        Ok(keyed(&read(&self.path(name).join("memory.events"))?, "oom_kill"))
    }

    fn watch_oom(&self, name: &str) -> io::Result<OomWatch> {
        let events = fs::File::open(self.path(name).join("memory.events"))?;
        Ok(OomWatch {
            fd: events.into(),
            flags: PollFlags::PRI,
        })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        remove_tree(&self.path(name))
    }

    fn view(&self) -> View {
        View::V2
    }

    fn names(&self) -> io::Result<Vec<String>> {
        child_names(&self.parent)
    }
}

impl Drop for V2 {
    /// An empty parent is of no use to anybody; a parent in use cannot be removed.
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.parent);
    }
}
