//! What this machine offers for isolation: facts for `tram doctor`.
//!
//! Each is tried, not guessed from a version. The one design choice to know: a fact that is missing
//! says how to mend it, and whether instances can run without it.

use std::fs;
use std::io;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::mount::FsOpenFlags;
use rustix::process::{PidfdFlags, pidfd_open};
use serde::Serialize;

use crate::cgroup::Layout;
use crate::init::rootfs;
use crate::seccomp::Filter;
use crate::userns;

/// One thing that was tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fact {
    pub name: &'static str,
    pub ok: bool,
    /// Instances cannot run without it.
    pub needed: bool,
    /// What was found.
    pub detail: String,
    /// What to do when it is missing.
    pub mend: &'static str,
}

/// Everything, in the order in which a person would look.
pub fn facts() -> Vec<Fact> {
    let mut facts = vec![root(), capabilities()];
    facts.extend(cgroups());
    facts.extend([
        tried(
            "overlay",
            true,
            "Load the kernel module overlay, and use Linux 5.10 or newer.",
            overlay(),
        ),
        tried(
            "new mount calls",
            true,
            "Use Linux 5.12 or newer.",
            file_system("tmpfs"),
        ),
        tried("openat2", true, "Use Linux 5.6 or newer.", openat2()),
        tried("pidfd", true, "Use Linux 5.3 or newer.", pidfd()),
        tried(
            "seccomp",
            true,
            "Use a kernel with CONFIG_SECCOMP_FILTER, on x86-64 or 64-bit ARM.",
            seccomp(),
        ),
        tried(
            "user namespaces",
            false,
            "Set the sysctl user.max_user_namespaces above zero, use Linux 5.19 or newer, and keep the data directory on \
             ext4, XFS or btrfs. Without it root in an instance is the machine's root, held by everything else.",
            user_namespaces(),
        ),
        tried(
            "disk limits",
            false,
            "Install e2fsprogs (for mke2fs), load the kernel module loop and give tram /dev/loop-control. Without it \
             what instances write is measured, but not limited.",
            disks(),
        ),
    ]);
    facts
}

/// Whether instances whose images and disks are kept in `directory` can have ids of their own.
///
/// # Errors
/// Why not; also when `directory` is not there.
pub fn shift_ids(directory: &std::path::Path) -> io::Result<()> {
    userns::try_shift(directory)
}

fn fact(name: &'static str, needed: bool, mend: &'static str, ok: bool, detail: impl Into<String>) -> Fact {
    Fact {
        name,
        ok,
        needed,
        detail: detail.into(),
        mend,
    }
}

fn tried(name: &'static str, needed: bool, mend: &'static str, result: io::Result<String>) -> Fact {
    match result {
        Ok(detail) => fact(name, needed, mend, true, detail),
        Err(error) => fact(name, needed, mend, false, error.to_string()),
    }
}

fn root() -> Fact {
    let uid = rustix::process::geteuid();
    fact(
        "root",
        true,
        "Run tram as root.",
        uid.is_root(),
        format!("user id {}", uid.as_raw()),
    )
}

fn disks() -> io::Result<String> {
    let directory = std::env::temp_dir().join(format!("tram-probe-{}", uuid::Uuid::new_v4()));
    fs::create_dir(&directory)?;
    let made = crate::disk::make(&directory, crate::protocol::DISK_BYTES_MIN);
    fs::remove_dir_all(&directory)?;
    made.map(|_| "a file system on a loop device for each instance".to_owned())
}

/// What the launcher uses. CAP_SYS_RESOURCE is not among them: limits are then only lowered.
const CAPABILITIES: [(u64, &str); 9] = [
    (0, "CAP_CHOWN"),
    (1, "CAP_DAC_OVERRIDE"),
    (5, "CAP_KILL"),
    (6, "CAP_SETGID"),
    (7, "CAP_SETUID"),
    (8, "CAP_SETPCAP"),
    (12, "CAP_NET_ADMIN"),
    (18, "CAP_SYS_CHROOT"),
    (21, "CAP_SYS_ADMIN"),
];
const SYS_RESOURCE: u64 = 24;

fn capabilities() -> Fact {
    let mend = "Give tram the capabilities named, in its service unit or container.";
    let held = match rustix::thread::capabilities(None) {
        Ok(sets) => sets.effective.bits(),
        Err(errno) => return fact("capabilities", true, mend, false, errno.to_string()),
    };
    let missing: Vec<&str> = CAPABILITIES
        .iter()
        .filter(|(bit, _)| held & (1 << bit) == 0)
        .map(|(_, name)| *name)
        .collect();
    let detail = if !missing.is_empty() {
        format!("missing: {}", missing.join(", "))
    } else if held & (1 << SYS_RESOURCE) == 0 {
        "all that are needed; without CAP_SYS_RESOURCE no limit can be above our own".to_owned()
    } else {
        "all that are needed".to_owned()
    };
    fact("capabilities", true, mend, missing.is_empty(), detail)
}

fn cgroups() -> Vec<Fact> {
    let layout = match Layout::detect() {
        Ok(layout) => layout,
        Err(error) => {
            return vec![fact(
                "cgroups",
                true,
                "Mount /proc and /sys/fs/cgroup.",
                false,
                error.to_string(),
            )];
        }
    };
    let v1 = layout.controller("memory").is_some();
    let offered = match (&layout.unified, v1) {
        (Some(root), false) => fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default(),
        _ => layout
            .controllers
            .iter()
            .map(|(name, _)| name.as_str())
            .collect::<Vec<_>>()
            .join(" "),
    };
    let missing: Vec<&str> = ["memory", "cpu", "pids"]
        .into_iter()
        .filter(|name| !offered.split_whitespace().any(|held| held == *name))
        .collect();
    let version = match (v1, layout.unified.is_some()) {
        (true, true) => "version 1, with the unified tree beside it",
        (true, false) => "version 1",
        (false, true) => "version 2",
        (false, false) => "none mounted",
    };
    let unified = layout.unified.is_some();
    let v1_freezer = layout.controller("freezer").is_some();
    let freezer = match (unified, v1_freezer) {
        (true, _) => "the unified tree's: frozen instances can be killed at once",
        (false, true) => "version 1",
        (false, false) => "none",
    };
    // The root cgroup has no cgroup.kill; its presence follows from the kernel having the file in any child.
    let kill = layout.unified.as_ref().map(|root| has_kill(root));
    vec![
        fact(
            "cgroups",
            true,
            "Mount cgroups, as every current distribution does.",
            v1 || unified,
            version,
        ),
        fact(
            "cgroup controllers",
            true,
            "Enable the controllers memory, cpu and pids (kernel command line, or the service's Delegate=yes).",
            missing.is_empty(),
            if missing.is_empty() {
                offered.trim().to_owned()
            } else {
                format!("missing: {}", missing.join(", "))
            },
        ),
        fact(
            "freezer",
            true,
            "Mount the unified cgroup tree.",
            unified || v1_freezer,
            freezer,
        ),
        fact(
            "cgroup.kill",
            false,
            "Use Linux 5.14 or newer and mount the unified cgroup tree.",
            kill == Some(true),
            if kill == Some(true) {
                "there"
            } else {
                "missing: instances are killed one process at a time"
            },
        ),
    ]
}

fn has_kill(root: &std::path::Path) -> bool {
    let probe = root.join(format!("tram-probe-{}", std::process::id()));
    let found = fs::create_dir(&probe).is_ok() && probe.join("cgroup.kill").exists();
    let _ = fs::remove_dir(&probe);
    found
}

fn file_system(name: &str) -> io::Result<String> {
    rustix::mount::fsopen(name, FsOpenFlags::FSOPEN_CLOEXEC)?;
    Ok("there".to_owned())
}

/// A real one of two layers, made by the same calls as an instance's root; in a process of its own, so that nothing of
/// it is ever seen.
fn overlay() -> io::Result<String> {
    rootfs::try_overlay()?;
    Ok("there".to_owned())
}

fn openat2() -> io::Result<String> {
    rustix::fs::openat2(
        CWD,
        "/",
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT,
    )?;
    Ok("there".to_owned())
}

fn pidfd() -> io::Result<String> {
    pidfd_open(rustix::process::getpid(), PidfdFlags::empty())?;
    Ok("there".to_owned())
}

fn seccomp() -> io::Result<String> {
    Filter::build().map_err(io::Error::other)?;
    let actions = fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail")?;
    Ok(actions.trim().to_owned())
}

fn user_namespaces() -> io::Result<String> {
    let limit = fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap_or_default();
    userns::try_shift(&std::env::temp_dir())?;
    let limit = limit.trim();
    Ok(format!(
        "root inside can be nobody outside (at most {limit} namespaces)"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fact_is_tried_and_those_needed_hold_where_the_tests_run_as_root() {
        let facts = facts();
        let names: Vec<&str> = facts.iter().map(|fact| fact.name).collect();
        for name in [
            "root",
            "capabilities",
            "cgroups",
            "cgroup controllers",
            "freezer",
            "cgroup.kill",
            "overlay",
            "openat2",
            "pidfd",
            "seccomp",
            "user namespaces",
        ] {
            assert!(names.contains(&name), "{name}");
        }
        assert!(
            facts
                .iter()
                .all(|fact| !fact.detail.is_empty() && !fact.mend.is_empty()),
            "{facts:#?}"
        );
        if rustix::process::geteuid().is_root() {
            let broken: Vec<&Fact> = facts.iter().filter(|fact| fact.needed && !fact.ok).collect();
            assert!(broken.is_empty(), "{broken:#?}");
        }
    }
}
