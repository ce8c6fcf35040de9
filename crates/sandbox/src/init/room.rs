//! The room in which gVisor's program works: the instance's root in a directory, the program, and nothing else.
//!
//! Runs in the instance's own mount namespace, as `rootfs` does. The one design choice to know: runsc and its gofer are
//! programs of the machine's root, so they are shown nothing of the machine that they do not need. It is also where the
//! machine is shown to them smaller than it is: the instance's memory instead of all, and of the settings of the kernel
//! those that they read (some kernels show the network's settings in every namespace, and runsc takes that for a sign
//! that it is in the machine's own).

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode};
use rustix::mount::{MountAttrFlags, MountPropagationFlags, OpenTreeFlags};

use super::files::Root;
use super::rootfs::{attach, fill, mount_at, mount_dev, new_mount, overlay, pivot};
use super::{During, Parts, Step};
use crate::gvisor::{BUNDLE, PROGRAM, ROOT};
use crate::protocol::LaunchSpec;
use crate::state::InstanceDir;
use crate::sys;

/// What runsc writes there: its record of one instance, a configuration, its complaints.
const ROOM_BYTES: &str = "16777216";
/// Where the smaller `/proc/sys` is made.
const SETTINGS: &str = "/settings";
/// What gVisor reads of the kernel's settings.
const READ_SETTINGS: [&str; 12] = [
    "fs/file-max",
    "fs/nr_open",
    "kernel/cap_last_cap",
    "kernel/hostname",
    "kernel/osrelease",
    "kernel/pid_max",
    "kernel/randomize_va_space",
    "kernel/threads-max",
    "user/max_user_namespaces",
    "vm/max_map_count",
    "vm/mmap_min_addr",
    "vm/overcommit_memory",
];
/// Where the smaller `/proc/meminfo` is made.
const MEMORY: &str = "/memory";
/// Of that file, what an instance is told first.
const TOTAL: &str = "MemTotal:";

/// Put the root together, the room around it, and enter. Whether the image has a directory `/tmp`.
pub(super) fn build(spec: &LaunchSpec, dir: &InstanceDir, parts: Parts<'_>, program: &Path) -> Step<bool> {
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).during(|| "make the mounts private".into())?;
    let program = {
        let what = || format!("show {} to the instance", program.display());
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = rustix::mount::open_tree(CWD, program, flags).during(what)?;
        let attributes = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
        sys::mount_setattr(tree.as_fd(), attributes, false).during(what)?;
        tree
    };
    let overlay = overlay(spec, dir, parts)?;

    let what = || "make a room for gVisor".to_owned();
    let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    let options = [("size", ROOM_BYTES), ("mode", "0755")];
    let room = new_mount("tmpfs", &options, flags).during(what)?;
    for path in [ROOT, BUNDLE, SETTINGS, "/run", "/tmp"] {
        rustix::fs::mkdirat(&room, path.trim_start_matches('/'), Mode::from_raw_mode(0o755)).during(what)?;
    }
    attach(room.as_fd(), CWD, &dir.root()).during(what)?;
    let in_room = |path: &str| -> PathBuf { dir.root().join(path.trim_start_matches('/')) };
    attach(overlay.as_fd(), CWD, &in_room(ROOT)).during(|| "mount the root".into())?;
    let root = Root::open(&in_room(ROOT), None)?;
    fill(&root, spec, parts)?;
    let tmp = root.has_directory("tmp");

    let room = Root::open(&dir.root(), None)?;
    mount_dev(&room, spec)?;
    let hardened = flags | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    mount_at(&room, "/proc", "proc", &[], hardened)?;
    let target = room.ensure_target(Path::new(PROGRAM), false)?;
    attach(program.as_fd(), target.as_fd(), Path::new("")).during(what)?;
    pivot(&room)?;
    show_less(spec.limits.memory_bytes)?;
    Ok(tmp)
}

/// Puts smaller copies over what the kernel says about the machine.
fn show_less(memory_bytes: Option<u64>) -> Step<()> {
    let what = || "show the machine smaller than it is".to_owned();
    for name in READ_SETTINGS {
        // A kernel that does not have one has nothing to say about it.
        let Ok(value) = fs::read(Path::new("/proc/sys").join(name)) else {
            continue;
        };
        let copy = Path::new(SETTINGS).join(name);
        if let Some(directory) = copy.parent() {
            fs::create_dir_all(directory).during(what)?;
        }
        fs::write(copy, value).during(what)?;
    }
    rustix::mount::mount_bind(SETTINGS, "/proc/sys").during(what)?;
    let Some(bytes) = memory_bytes else {
        return Ok(());
    };
    let memory = fs::read_to_string("/proc/meminfo").during(what)?;
    fs::write(MEMORY, at_most(&memory, bytes >> 10)).during(what)?;
    rustix::mount::mount_bind(MEMORY, "/proc/meminfo").during(what)
}

/// The text of `/proc/meminfo` with a total of at most so many KiB.
fn at_most(text: &str, kib: u64) -> String {
    let lines = text.lines().map(|line| match line.strip_prefix(TOTAL) {
        Some(value) => {
            let number = value.split_whitespace().next().and_then(|word| word.parse().ok());
            format!("{TOTAL} {:>14} kB\n", number.unwrap_or(u64::MAX).min(kib))
        }
        None => format!("{line}\n"),
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_is_told_of_its_own_memory_and_never_of_more_than_there_is() {
        let text = "MemTotal:       24106000 kB\nMemFree:         100 kB\n";
        assert_eq!(
            at_most(text, 262_144),
            "MemTotal:         262144 kB\nMemFree:         100 kB\n"
        );
        assert_eq!(
            at_most(text, 99_000_000),
            "MemTotal:       24106000 kB\nMemFree:         100 kB\n"
        );
    }
}
