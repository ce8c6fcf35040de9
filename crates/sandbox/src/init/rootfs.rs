//! The mounts of an instance: root, volumes, /dev, /proc, /sys.
//!
//! Runs in the instance's own mount namespace, so nothing here is visible from outside and nothing
//! is left behind when its last process is gone. The one design choice to know: mounts are made with
//! descriptors (`fsopen`, `open_tree`, `move_mount`), not paths, until the root has been pivoted.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags,
};

use super::files::{Owner, Root, is_directory};
use super::{During, Step};
use crate::cgroup::View;
use crate::disk;
use crate::protocol::{BindMount, LaunchSpec};
use crate::state::InstanceDir;
use crate::sys;

/// `/dev` holds a handful of nodes and links.
const DEV_BYTES: &str = "65536";
/// The group `tty` in every distribution.
const TTY_GROUP: &str = "5";
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
const DEVICE_LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
];
/// Hidden, as OCI runtimes do: they tell about, or reach, the whole machine.
const MASKED_FILES: [&str; 6] = [
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
];
const MASKED_DIRECTORIES: [&str; 5] = [
    "/proc/acpi",
    "/proc/scsi",
    "/proc/asound",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
/// Readable but not writable, as OCI runtimes do.
const READONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Put the root together and make it ours.
pub(super) fn build(spec: &LaunchSpec, dir: &InstanceDir, disk: Option<&OwnedFd>) -> Step<()> {
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).during(|| "make the mounts private".into())?;
    let overlay = overlay(spec, dir, disk)?;
    attach(overlay.as_fd(), CWD, &dir.root()).during(|| "mount the root".into())?;
    let root = Root::open(&dir.root())?;

    // Parents before what is mounted below them.
    let mut binds: Vec<&BindMount> = spec.binds.iter().collect();
    binds.sort_by_key(|bind| bind.target.components().count());
    for bind in binds {
        bind_mount(&root, bind)?;
    }
    // Before /proc and /sys: a symlink in the image could lead a write into the kernel's settings.
    for file in &spec.files {
        root.write(file)?;
    }
    let owner = Owner {
        uid: spec.user.uid,
        gid: spec.user.gid,
    };
    root.ensure_dir(Path::new(&spec.cwd), owner)?;
    mount_dev(&root, spec.limits.shm_bytes)?;
    let hardened = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    mount_at(&root, "/proc", "proc", &[], hardened)?;
    mount_at(
        &root,
        "/sys",
        "sysfs",
        &[],
        hardened | MountAttrFlags::MOUNT_ATTR_RDONLY,
    )?;
    if spec.readonly_root {
        sys::mount_setattr(root.as_fd(), libc::MOUNT_ATTR_RDONLY, false)
            .during(|| "make the root read-only".into())?;
    }
    pivot(&root)?;
    hide()
}

/// The image's layers with a writable one on top, not yet mounted anywhere.
fn overlay(spec: &LaunchSpec, dir: &InstanceDir, disk: Option<&OwnedFd>) -> Step<OwnedFd> {
    let what = || "mount the image's layers".to_owned();
    let (upper, work) = match (spec.upper_bytes_max, disk) {
        (None, None) => (dir.upper(), dir.work()),
        (None, Some(disk)) => {
            attach(disk.as_fd(), CWD, &dir.upper()).during(|| "mount the instance's disk".into())?;
            (dir.upper().join(disk::UPPER), dir.upper().join(disk::WORK))
        }
        (Some(bytes), _) => {
            let size = bytes.to_string();
            let options = [("size", size.as_str()), ("mode", "0755")];
            let tmpfs = new_mount("tmpfs", &options, MountAttrFlags::empty())
                .during(|| "make the writable layer".into())?;
            attach(tmpfs.as_fd(), CWD, &dir.upper()).during(|| "mount the writable layer".into())?;
            for name in ["upper", "work"] {
                rustix::fs::mkdirat(&tmpfs, name, Mode::from_raw_mode(0o755))
                    .during(|| "make the writable layer".into())?;
            }
            (dir.upper().join("upper"), dir.upper().join("work"))
        }
    };
    // Named by descriptor: paths of any length fit the kernel's 256 bytes, and the instance's own
    // mount table does not show where this machine keeps its images.
    let open = |path: &Path| {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat(CWD, path, flags, Mode::empty())
            .during(|| format!("open the layer {}", path.display()))
    };
    let (upper, work) = (open(&upper)?, open(&work)?);
    let mut lowers = Vec::with_capacity(spec.lower_dirs.len());
    for lower in &spec.lower_dirs {
        lowers.push(open(lower)?);
    }
    if let Some(top) = lowers.first() {
        like(&upper, top)?;
    }
    let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).during(what)?;
    let set = |key: &str, value: &str| rustix::mount::fsconfig_set_string(&context, key, value);
    set("source", "overlay").during(what)?;
    match lowers
        .iter()
        .try_for_each(|lower| set("lowerdir+", &name_of(lower)))
    {
        // Kernels before 6.8 take all lower directories at once, and then at most a page of them.
        Err(Errno::INVAL) => {
            let joined: Vec<String> = lowers.iter().map(name_of).collect();
            return overlay_by_mount(&joined.join(":"), &name_of(&upper), &name_of(&work), dir).during(what);
        }
        other => other.during(what)?,
    }
    set("upperdir", &name_of(&upper)).during(what)?;
    set("workdir", &name_of(&work)).during(what)?;
    // The writable layer dies with the instance: never flush it. Without this the end of an instance
    // waits for the whole disk.
    rustix::mount::fsconfig_set_flag(&context, "volatile").during(what)?;
    rustix::mount::fsconfig_create(&context).during(what)?;
    let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags).during(what)
}

/// The upper directory's owner and mode become those of the instance's `/`: the image decides them.
fn like(upper: &OwnedFd, top: &OwnedFd) -> Step<()> {
    let what = || "give the root the image's owner and mode".to_owned();
    let wanted = rustix::fs::fstat(top).during(what)?;
    let owner = rustix::fs::Uid::from_raw(wanted.st_uid);
    let group = rustix::fs::Gid::from_raw(wanted.st_gid);
    // The descriptors are of paths only; the calls go through their names.
    let name = name_of(upper);
    rustix::fs::chown(&name, Some(owner), Some(group)).during(what)?;
    rustix::fs::chmod(&name, Mode::from_raw_mode(wanted.st_mode & 0o7777)).during(what)
}

fn overlay_by_mount(lower: &str, upper: &str, work: &str, dir: &InstanceDir) -> Result<OwnedFd, Errno> {
    let options = format!("volatile,lowerdir={lower},upperdir={upper},workdir={work}");
    let options = std::ffi::CString::new(options).map_err(|_| Errno::INVAL)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount("overlay", dir.root(), "overlay", flags, options.as_c_str())?;
    let tree = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let clone = rustix::mount::open_tree(CWD, dir.root(), tree)?;
    rustix::mount::unmount(dir.root(), UnmountFlags::DETACH)?;
    Ok(clone)
}

fn name_of(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// A new file system, not yet mounted anywhere.
fn new_mount(kind: &str, options: &[(&str, &str)], flags: MountAttrFlags) -> Result<OwnedFd, Errno> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        rustix::mount::fsconfig_set_string(&context, *key, *value)?;
    }
    rustix::mount::fsconfig_create(&context)?;
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags)
}

/// Put a mount on a path below `directory`; an empty path is `directory` itself.
fn attach(mount: BorrowedFd<'_>, directory: BorrowedFd<'_>, path: &Path) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(mount, "", directory, path, flags)
}

/// Mount a new file system on a directory of the instance. Returns the mount.
fn mount_at(
    root: &Root,
    path: &str,
    kind: &str,
    options: &[(&str, &str)],
    flags: MountAttrFlags,
) -> Step<OwnedFd> {
    let what = || format!("mount {path}");
    let target = root.ensure_dir(Path::new(path), Owner::ROOT)?;
    let mount = new_mount(kind, options, flags).during(what)?;
    attach(mount.as_fd(), target.as_fd(), Path::new("")).during(what)?;
    Ok(mount)
}

fn bind_mount(root: &Root, bind: &BindMount) -> Step<()> {
    let what = || format!("bind {} to {}", bind.source.display(), bind.target.display());
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let tree = rustix::mount::open_tree(CWD, &bind.source, flags).during(what)?;
    let mut attributes = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    if bind.readonly {
        attributes |= libc::MOUNT_ATTR_RDONLY;
    }
    sys::mount_setattr(tree.as_fd(), attributes, true).during(what)?;
    let target = root.ensure_target(&bind.target, is_directory(&tree).during(what)?)?;
    attach(tree.as_fd(), target.as_fd(), Path::new("")).during(what)
}

/// A `/dev` of its own. The nodes are bind mounts, so that every other mount can forbid devices.
fn mount_dev(root: &Root, shm_bytes: u64) -> Step<()> {
    let what = || "fill /dev".to_owned();
    let (nosuid, noexec) = (
        MountAttrFlags::MOUNT_ATTR_NOSUID,
        MountAttrFlags::MOUNT_ATTR_NOEXEC,
    );
    let hardened = nosuid | noexec | MountAttrFlags::MOUNT_ATTR_NODEV;
    let dev = mount_at(
        root,
        "/dev",
        "tmpfs",
        &[("size", DEV_BYTES), ("mode", "0755")],
        hardened,
    )?;
    for name in DEVICES {
        let tree = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let device = rustix::mount::open_tree(CWD, Path::new("/dev").join(name), tree).during(what)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        rustix::fs::openat(&dev, name, flags, Mode::from_raw_mode(0o666)).during(what)?;
        attach(device.as_fd(), dev.as_fd(), Path::new(name)).during(what)?;
    }
    for (target, name) in DEVICE_LINKS {
        rustix::fs::symlinkat(target, &dev, name).during(what)?;
    }
    let pts = [("gid", TTY_GROUP), ("mode", "0620"), ("ptmxmode", "0666")];
    let shm_size = shm_bytes.to_string();
    let shm = [("size", shm_size.as_str()), ("mode", "1777")];
    let mount = |name: &str, kind: &str, options: &[(&str, &str)], flags| {
        let what = || format!("mount /dev/{name}");
        rustix::fs::mkdirat(&dev, name, Mode::from_raw_mode(0o755)).during(what)?;
        let mount = new_mount(kind, options, flags).during(what)?;
        attach(mount.as_fd(), dev.as_fd(), Path::new(name)).during(what)
    };
    mount("pts", "devpts", &pts, nosuid | noexec)?;
    mount("shm", "tmpfs", &shm, hardened)?;
    mount("mqueue", "mqueue", &[], hardened)
}

/// From here on, `/` is the instance's root and the machine's is gone.
fn pivot(root: &Root) -> Step<()> {
    let what = || "enter the root".to_owned();
    rustix::process::fchdir(root.as_fd()).during(what)?;
    // Old and new root in one place: the old one is then on top of the new, and taken off again.
    rustix::process::pivot_root(".", ".").during(what)?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).during(what)?;
    rustix::process::chdir("/").during(what)
}

/// Show the instance its own limits, read-only. After it has entered its cgroup namespace, so that
/// its cgroup is the root of what it sees.
pub(super) fn show_cgroups(view: View) -> Step<()> {
    let what = || "show the cgroups".to_owned();
    let mut flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    flags |= MountAttrFlags::MOUNT_ATTR_NOEXEC | MountAttrFlags::MOUNT_ATTR_RDONLY;
    let target = Path::new("/sys/fs/cgroup");
    let controllers = match view {
        View::V2 => {
            let mount = new_mount("cgroup2", &[], flags).during(what)?;
            return attach(mount.as_fd(), CWD, target).during(what);
        }
        View::V1(controllers) => controllers,
    };
    let writable = flags & !MountAttrFlags::MOUNT_ATTR_RDONLY;
    let parent = new_mount("tmpfs", &[("size", "65536"), ("mode", "0755")], writable).during(what)?;
    attach(parent.as_fd(), CWD, target).during(what)?;
    for controller in controllers {
        rustix::fs::mkdirat(&parent, *controller, Mode::from_raw_mode(0o755)).during(what)?;
        let context = rustix::mount::fsopen("cgroup", FsOpenFlags::FSOPEN_CLOEXEC).during(what)?;
        rustix::mount::fsconfig_set_flag(&context, *controller).during(what)?;
        rustix::mount::fsconfig_create(&context).during(what)?;
        let mount = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags).during(what)?;
        attach(mount.as_fd(), parent.as_fd(), Path::new(controller)).during(what)?;
    }
    sys::mount_setattr(parent.as_fd(), libc::MOUNT_ATTR_RDONLY, false).during(what)
}

/// Take away what a fresh /proc and /sys show too much of.
fn hide() -> Step<()> {
    for path in READONLY {
        match rustix::mount::mount_bind_recursive(path, path) {
            Ok(()) => {}
            Err(Errno::NOENT) => continue,
            Err(errno) => return Err(errno).during(|| format!("protect {path}")),
        }
        let flags = MountFlags::BIND
            | MountFlags::RDONLY
            | MountFlags::NOSUID
            | MountFlags::NODEV
            | MountFlags::NOEXEC;
        rustix::mount::mount_remount(path, flags, c"").during(|| format!("protect {path}"))?;
    }
    for path in MASKED_FILES {
        match rustix::mount::mount_bind("/dev/null", path) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno).during(|| format!("hide {path}")),
        }
    }
    // One empty directory serves all: cheaper than a file system for each.
    let mut flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    flags |= MountAttrFlags::MOUNT_ATTR_NOEXEC | MountAttrFlags::MOUNT_ATTR_RDONLY;
    let empty = new_mount("tmpfs", &[("size", "4096"), ("mode", "0555")], flags)
        .during(|| "make an empty directory".into())?;
    let mut first: Option<&str> = None;
    for path in MASKED_DIRECTORIES {
        let result = match first {
            None => attach(empty.as_fd(), CWD, Path::new(path)),
            Some(first) => rustix::mount::mount_bind(first, path),
        };
        match result {
            Ok(()) => first = first.or(Some(path)),
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno).during(|| format!("hide {path}")),
        }
    }
    Ok(())
}
