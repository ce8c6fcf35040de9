//! Devices of the machine in an instance's `/dev`, beside those that every instance has.
//!
//! The one design choice to know: a device is the machine's own node, mounted. So a node is never made, which a machine
//! that is itself a container may not do, its owner and mode are those that the machine's administrator gave it, and the
//! mount is the one place where devices are not forbidden.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path};

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;

use super::files::link_at;
use super::rootfs::{DEV, attach};
use super::{During, Step};
use crate::protocol::{DeviceNode, LaunchSpec};
use crate::sys;

const DIRECTORY_MODE: u32 = 0o755;

/// Puts the spec's devices, and its links below `/dev`, into the instance's `/dev`, which nobody else has written to.
pub(super) fn show(dev: &OwnedFd, spec: &LaunchSpec) -> Step<()> {
    for device in &spec.devices {
        node(dev, device)?;
    }
    for link in spec.links.iter().filter(|link| link.path.starts_with(DEV)) {
        let made = parent(dev, &link.path)
            .and_then(|(directory, name)| link_at(directory.as_fd(), name, &link.target));
        made.during(|| format!("make the link {}", link.path.display()))?;
    }
    Ok(())
}

fn node(dev: &OwnedFd, device: &DeviceNode) -> Step<()> {
    let what = || {
        format!(
            "show the device {} at {}",
            device.source.display(),
            device.target.display()
        )
    };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(CWD, &device.source, flags).during(what)?;
    let found = rustix::fs::fstat(&tree).during(what)?;
    let number = (rustix::fs::major(found.st_rdev), rustix::fs::minor(found.st_rdev));
    if FileType::from_raw_mode(found.st_mode) != FileType::CharacterDevice
        || device.number.is_some_and(|wanted| wanted != number)
    {
        return Err(io::Error::from_raw_os_error(libc::ENODEV)).during(what);
    }
    sys::mount_setattr(
        tree.as_fd(),
        libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC,
        false,
    )
    .during(what)?;
    let (directory, name) = parent(dev, &device.target).during(what)?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(&directory, name, flags, Mode::from_raw_mode(0o666)).during(what)?;
    attach(tree.as_fd(), directory.as_fd(), name).during(what)
}

/// The directory that a path below `/dev` is in, made where it is missing, and its name there. Links on the way are not
/// followed.
fn parent<'a>(dev: &OwnedFd, path: &'a Path) -> Result<(OwnedFd, &'a Path), Errno> {
    let below = path.strip_prefix(DEV).map_err(|_| Errno::INVAL)?;
    let name = below.file_name().ok_or(Errno::INVAL)?;
    let mut directory = rustix::io::fcntl_dupfd_cloexec(dev, 0)?;
    for component in below.parent().into_iter().flat_map(Path::components) {
        let Component::Normal(component) = component else {
            return Err(Errno::INVAL);
        };
        match rustix::fs::mkdirat(&directory, component, Mode::from_raw_mode(DIRECTORY_MODE)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        directory = rustix::fs::openat(&directory, component, flags, Mode::empty())?;
    }
    Ok((directory, Path::new(name)))
}
