//! The mounts of an instance: root, volumes, /dev, /proc, /sys.
//!
//! Runs in the instance's own mount namespace, so nothing here is visible from outside and nothing
//! is left behind when its last process is gone. The one design choice to know: mounts are made with
//! descriptors (`fsopen`, `open_tree`, `move_mount`), not paths, until the root has been pivoted.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags,
};

use super::files::{Owner, Root, is_directory};
use super::{During, Parts, Step, devices};
use crate::cgroup::View;
use crate::disk;
use crate::protocol::{BindMount, LaunchSpec, VolumeMount, outside};
use crate::state::InstanceDir;
use crate::{sys, userns};

/// Where devices are, inside and outside.
pub(super) const DEV: &str = "/dev";
/// `/dev` holds a handful of nodes and links.
const DEV_BYTES: &str = "65536";
/// What `mount(2)` reads of its options at most: a page less its end.
const MOUNT_OPTIONS_MAX: usize = 4095;
/// Terminals of one instance: the machine has 4096 for everybody, and whoever opened them all would leave none to the
/// others.
const TERMINALS_MAX: &str = "256";
/// The group `tty` in every distribution.
const TTY_GROUP: u32 = 5;
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
pub(super) fn build(spec: &LaunchSpec, dir: &InstanceDir, parts: Parts<'_>) -> Step<()> {
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).during(|| "make the mounts private".into())?;
    let overlay = overlay(spec, dir, parts)?;
    attach(overlay.as_fd(), CWD, &dir.root()).during(|| "mount the root".into())?;
    let root = Root::open(&dir.root(), spec.ids)?;
    fill(&root, spec, parts)?;
    mount_dev(&root, spec)?;
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

/// Puts into the root what the spec asks for: binds, volumes, files, the working directory.
pub(super) fn fill(root: &Root, spec: &LaunchSpec, parts: Parts<'_>) -> Step<()> {
    let mut mounts: Vec<Shown<'_>> = Vec::with_capacity(spec.binds.len() + spec.volumes.len());
    for bind in &spec.binds {
        mounts.push(bind_mount(bind)?);
    }
    for (volume, mount) in spec.volumes.iter().zip(parts.volumes) {
        mounts.push(volume_mount(volume, mount)?);
    }
    // Parents before what is mounted below them.
    mounts.sort_by_key(|mount| mount.target.components().count());
    for mount in mounts {
        show(root, &mount, parts.namespace)?;
    }
    // Before /proc and /sys: a symlink in the image could lead a write into the kernel's settings.
    for file in &spec.files {
        root.write(file)?;
    }
    for link in spec.links.iter().filter(|link| !link.path.starts_with(DEV)) {
        root.link(link)?;
    }
    let owner = Owner {
        uid: spec.user.uid,
        gid: spec.user.gid,
    };
    root.ensure_dir(Path::new(&spec.cwd), owner)?;
    Ok(())
}

/// The image's layers with a writable one on top, not yet mounted anywhere.
pub(super) fn overlay(spec: &LaunchSpec, dir: &InstanceDir, parts: Parts<'_>) -> Step<OwnedFd> {
    let Parts { disk, namespace, .. } = parts;
    let what = || "mount the image's layers".to_owned();
    match (spec.upper_bytes_max, disk) {
        (None, None) => {}
        (None, Some(disk)) => {
            attach(disk.as_fd(), CWD, &dir.upper()).during(|| "mount the instance's disk".into())?;
        }
        (Some(bytes), _) => {
            let size = bytes.to_string();
            let options = [("size", size.as_str()), ("mode", "0755")];
            let tmpfs = new_mount("tmpfs", &options, MountAttrFlags::empty())
                .during(|| "make the writable layer".into())?;
            attach(tmpfs.as_fd(), CWD, &dir.upper()).during(|| "mount the writable layer".into())?;
            for name in [disk::UPPER, disk::WORK] {
                rustix::fs::mkdirat(&tmpfs, name, Mode::from_raw_mode(0o755))
                    .during(|| "make the writable layer".into())?;
            }
        }
    }
    if let Some(namespace) = namespace {
        // Upper and work directory must be on one mount.
        let writable = match (spec.upper_bytes_max, disk) {
            (None, None) => dir.path(),
            _ => &dir.upper(),
        };
        for path in spec.lower_dirs.iter().map(PathBuf::as_path).chain([writable]) {
            shift(path, namespace.as_fd()).during(|| format!("shift the owners in {}", path.display()))?;
        }
    }
    // Before anything is made on a shifted mount, and before the overlay takes note of who made it.
    if let Some(ids) = spec.ids {
        userns::create_files_as_root_of(ids).during(|| "make files as the instance's root".into())?;
    }
    // Named by descriptor: paths of any length fit the kernel's 256 bytes, and the instance's own
    // mount table does not show where this machine keeps its images.
    let open = |path: &Path| {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat(CWD, path, flags, Mode::empty())
            .during(|| format!("open the layer {}", path.display()))
    };
    let (upper, work) = match (spec.upper_bytes_max, disk) {
        (None, None) => (open(&dir.upper())?, open(&dir.work())?),
        _ => {
            let top = open(&dir.upper())?;
            (open_own(&top, disk::UPPER)?, open_own(&top, disk::WORK)?)
        }
    };
    let mut lowers = Vec::with_capacity(spec.lower_dirs.len());
    for lower in &spec.lower_dirs {
        lowers.push(open(lower)?);
    }
    if let Some(top) = lowers.first() {
        like(&upper, top)?;
    }
    make_overlay(&lowers, &upper, &work, &dir.root()).during(what)
}

/// A directory that we made on an instance's disk. A disk that was made elsewhere may have a link of that name, which would
/// lead to a directory of the machine.
fn open_own(top: &OwnedFd, name: &str) -> Step<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(top, name, flags, Mode::empty())
        .during(|| format!("open the directory {name} of the instance's disk"))
}

/// Puts a mount with shifted ids over a directory, in this mount namespace only. Attached, because older kernels make no
/// overlay of a mount that is nowhere.
fn shift(path: &Path, namespace: BorrowedFd<'_>) -> io::Result<()> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(CWD, path, flags)?;
    sys::shift_mount(tree.as_fd(), namespace, false)?;
    Ok(attach(tree.as_fd(), CWD, path)?)
}

/// An overlay, not yet mounted anywhere; `at` is used for a moment where the kernel asks for it.
fn make_overlay(lowers: &[OwnedFd], upper: &OwnedFd, work: &OwnedFd, at: &Path) -> Result<OwnedFd, Errno> {
    match overlay_by_descriptors(lowers, upper, work) {
        Err(Errno::INVAL) => overlay_by_mount(lowers, upper, work, at),
        other => other,
    }
}

/// Makes a small overlay as an instance's root is made, and lets it go again: whether this machine can.
pub(crate) fn try_overlay() -> io::Result<()> {
    let dir = std::env::temp_dir().join(format!("tram-probe-{}", uuid::Uuid::new_v4()));
    std::fs::create_dir(&dir)?;
    let at = dir.clone();
    // A thread has a mount namespace and a working directory of its own once it asks, so nobody sees any of it.
    let tried = std::thread::spawn(move || {
        in_private(&at, |at| {
            let lowers = [new_directory(at, "layer-1")?, new_directory(at, "layer-2")?];
            let (upper, work) = (new_directory(at, "upper")?, new_directory(at, "work")?);
            let root = at.join("root");
            std::fs::create_dir(&root)?;
            make_overlay(&lowers, &upper, &work, &root)?;
            Ok(())
        })
    })
    .join();
    std::fs::remove_dir(&dir)?;
    tried.unwrap_or_else(|_| Err(io::Error::other("the attempt itself failed")))
}

fn new_directory(at: &Path, name: &str) -> io::Result<OwnedFd> {
    let path = at.join(name);
    std::fs::create_dir(&path)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, path, flags, Mode::empty())?)
}

/// Runs on a file system in memory at `at` that only this thread sees.
fn in_private<T>(at: &Path, run: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let tmpfs = new_mount("tmpfs", &[], MountAttrFlags::empty())?;
    attach(tmpfs.as_fd(), CWD, at)?;
    run(at)
}

/// The overlay by the newer calls, from kernel 6.8 on. Older ones answer EINVAL, at the first option (6.5) or only
/// when the whole is made (before).
fn overlay_by_descriptors(lowers: &[OwnedFd], upper: &OwnedFd, work: &OwnedFd) -> Result<OwnedFd, Errno> {
    let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let set = |key: &str, value: &str| rustix::mount::fsconfig_set_string(&context, key, value);
    set("source", "overlay")?;
    for lower in lowers {
        set("lowerdir+", &name_of(lower))?;
    }
    set("upperdir", &name_of(upper))?;
    set("workdir", &name_of(work))?;
    // The writable layer dies with the instance: never flush it. Without this the end of an instance
    // waits for the whole disk.
    rustix::mount::fsconfig_set_flag(&context, "volatile")?;
    rustix::mount::fsconfig_create(&context)?;
    let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags)
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

/// The overlay by `mount(2)`, on `at` and off again. All options must fit a page, and the kernel cuts what does not
/// without a word, so the layers are named as short as can be: from within the directory of descriptors.
fn overlay_by_mount(
    lowers: &[OwnedFd],
    upper: &OwnedFd,
    work: &OwnedFd,
    at: &Path,
) -> Result<OwnedFd, Errno> {
    let number = |fd: &OwnedFd| fd.as_raw_fd().to_string();
    let lowers: Vec<String> = lowers.iter().map(number).collect();
    let options = format!(
        "volatile,lowerdir={},upperdir={},workdir={}",
        lowers.join(":"),
        number(upper),
        number(work)
    );
    if options.len() > MOUNT_OPTIONS_MAX {
        return Err(Errno::TOOBIG);
    }
    let options = std::ffi::CString::new(options).map_err(|_| Errno::INVAL)?;
    let at = std::path::absolute(at).map_err(|_| Errno::INVAL)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    let here = rustix::fs::openat(CWD, ".", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    rustix::process::chdir("/proc/self/fd")?;
    let mounted = rustix::mount::mount("overlay", &at, "overlay", flags, options.as_c_str());
    rustix::process::fchdir(&here)?;
    mounted?;
    let tree = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let clone = rustix::mount::open_tree(CWD, &at, tree)?;
    rustix::mount::unmount(&at, UnmountFlags::DETACH)?;
    Ok(clone)
}

fn name_of(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// A new file system, not yet mounted anywhere.
pub(super) fn new_mount(
    kind: &str,
    options: &[(&str, &str)],
    flags: MountAttrFlags,
) -> Result<OwnedFd, Errno> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        rustix::mount::fsconfig_set_string(&context, *key, *value)?;
    }
    rustix::mount::fsconfig_create(&context)?;
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags)
}

/// Put a mount on a path below `directory`; an empty path is `directory` itself.
pub(super) fn attach(mount: BorrowedFd<'_>, directory: BorrowedFd<'_>, path: &Path) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(mount, "", directory, path, flags)
}

/// Mount a new file system on a directory of the instance. Returns the mount.
pub(super) fn mount_at(
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

/// Something of the machine that the instance is shown.
struct Shown<'a> {
    tree: OwnedFd,
    target: &'a Path,
    readonly: bool,
}

fn bind_mount(bind: &BindMount) -> Step<Shown<'_>> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let tree = rustix::mount::open_tree(CWD, &bind.source, flags)
        .during(|| format!("bind {} to {}", bind.source.display(), bind.target.display()))?;
    Ok(Shown {
        tree,
        target: &bind.target,
        readonly: bind.readonly,
    })
}

fn volume_mount<'a>(volume: &'a VolumeMount, mount: &OwnedFd) -> Step<Shown<'a>> {
    let tree = mount
        .try_clone()
        .during(|| format!("take the volume for {}", volume.target.display()))?;
    Ok(Shown {
        tree,
        target: &volume.target,
        readonly: volume.readonly,
    })
}

fn show(root: &Root, shown: &Shown<'_>, namespace: Option<&OwnedFd>) -> Step<()> {
    let what = || format!("show something at {}", shown.target.display());
    let tree = &shown.tree;
    let mut attributes = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    if shown.readonly {
        attributes |= libc::MOUNT_ATTR_RDONLY;
    }
    sys::mount_setattr(tree.as_fd(), attributes, true).during(what)?;
    if let Some(namespace) = namespace {
        sys::shift_mount(tree.as_fd(), namespace.as_fd(), true).during(what)?;
    }
    let target = root.ensure_target(shown.target, is_directory(tree).during(what)?)?;
    attach(tree.as_fd(), target.as_fd(), Path::new("")).during(what)
}

/// A `/dev` of its own. The nodes are bind mounts, so that every other mount can forbid devices.
pub(super) fn mount_dev(root: &Root, spec: &LaunchSpec) -> Step<()> {
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
    devices::show(&dev, spec)?;
    let tty_group = outside(spec.ids, TTY_GROUP).to_string();
    let pts = [
        ("gid", tty_group.as_str()),
        ("mode", "0620"),
        ("ptmxmode", "0666"),
        ("max", TERMINALS_MAX),
    ];
    let shm_size = spec.limits.shm_bytes.to_string();
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
pub(super) fn pivot(root: &Root) -> Step<()> {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The way of older kernels, which the tests of whole instances do not take on a newer one.
    #[test]
    fn an_overlay_of_many_layers_is_made_by_mount_too() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().to_owned();
        let seen = std::thread::spawn(move || {
            in_private(&at, |at| {
                let lowers: Vec<OwnedFd> = (0..200)
                    .map(|number| {
                        let name = format!("layer-{number}");
                        let layer = new_directory(at, &name)?;
                        std::fs::write(at.join(&name).join(format!("file-{number}")), "")?;
                        std::fs::write(at.join(&name).join("name"), number.to_string())?;
                        Ok(layer)
                    })
                    .collect::<io::Result<_>>()?;
                let (upper, work) = (new_directory(at, "upper")?, new_directory(at, "work")?);
                let overlay = overlay_by_mount(&lowers, &upper, &work, at)?;
                attach(overlay.as_fd(), CWD, at)?;
                let name = std::fs::read_to_string(at.join("name"))?;
                Ok((std::fs::read_dir(at)?.count(), name))
            })
            .unwrap()
        });
        assert_eq!(seen.join().unwrap(), (201, "0".to_owned()));
    }
}
