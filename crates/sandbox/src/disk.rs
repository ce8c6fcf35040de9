//! A disk for an instance: a file system of a fixed size, on which its writable layer lies.
//!
//! Made by the sweeper in advance and handed to the supervisor, or by a shim when there is none in stock; mounted in
//! the instance's mount namespace. A loop device and a mount take the kernel some 12 ms (it waits for every
//! processor), which is why there is a stock.
//!
//! The one design choice to know: nothing has a name. The file is made without one, the mount is never
//! attached outside an instance, and the loop device lets go by itself. So whoever dies, and however, the last
//! descriptor takes everything with it, and there is nothing to clean up. The size is exact, so that what was
//! written and deleted again cannot make the file grow beyond it.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::clone::clone_file;
use crate::protocol::frame;
use crate::state::StateDir;
use crate::sys;

/// Directories on every disk: what overlayfs wants.
pub(crate) const UPPER: &str = "upper";
pub(crate) const WORK: &str = "work";
/// What the tools and the kernel agree on everywhere; also what direct access to the file asks for.
const BLOCK_BYTES: u32 = 4096;
/// In stock of each size: a burst of launches; what comes after it waits for its own. Each costs the kernel some
/// 200 KiB and one loop device.
const STOCK: usize = 6;
/// Sizes in stock, the most recently used: one machine runs few instance types at a time.
const SIZES: usize = 3;
/// Another process may take the free device first.
const ATTEMPTS: usize = 32;

/// Nothing of a disk is read after a power cut.
const MOUNT_OPTIONS: [&str; 2] = ["nobarrier", "noinit_itable"];

/// A disk.
#[derive(Debug)]
pub(crate) struct Disk {
    /// Attached nowhere.
    pub(crate) mount: OwnedFd,
    /// What it is in.
    pub(crate) file: OwnedFd,
}

/// Make a disk, empty.
pub(crate) fn make(directory: &Path, bytes: u64) -> io::Result<Disk> {
    let template = template(directory, bytes)?;
    let file = nameless_file(directory)?;
    clone_file(&template, &file)?;
    let mount = mount(&attach(&file)?, &MOUNT_OPTIONS)?;
    for name in [UPPER, WORK] {
        rustix::fs::mkdirat(&mount, name, Mode::from_raw_mode(0o755))?;
    }
    Ok(Disk {
        mount,
        file: file.into(),
    })
}

/// Make a disk that starts as this snapshot, and is as large.
pub(crate) fn make_from(directory: &Path, snapshot: &Path) -> io::Result<Disk> {
    let file = nameless_file(directory)?;
    clone_file(&File::open(snapshot)?, &file)?;
    let mount = mount(&attach(&file)?, &MOUNT_OPTIONS)?;
    // What overlayfs was about to do when the snapshot was taken is of no use to another one.
    clear_work(&mount)?;
    Ok(Disk {
        mount,
        file: file.into(),
    })
}

/// The directory that overlayfs works in, empty again.
fn clear_work(mount: &OwnedFd) -> io::Result<()> {
    let through = PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd()));
    match fs::remove_dir_all(through.join(WORK)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    rustix::fs::mkdirat(mount, WORK, Mode::from_raw_mode(0o755))?;
    Ok(())
}

/// Forget what was not written yet, so that the end of the disk does not wait for it. For when nobody will read it
/// again.
pub(crate) fn abandon(directory: BorrowedFd<'_>) {
    if let Err(error) = sys::shut_down_file_system(directory) {
        // Then it is written, which takes longer.
        tracing::debug!(%error, "cannot shut an instance's file system down");
    }
}

/// The mount's top directory as something that can be given orders.
pub(crate) fn open(mount: impl AsFd) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(mount, ".", flags, Mode::empty())?)
}

/// An empty file system of this size, made once.
fn template(directory: &Path, bytes: u64) -> io::Result<File> {
    let path = directory.join(bytes.to_string());
    match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        other => return other,
    }
    let file = nameless_file(directory)?;
    file.set_len(bytes)?;
    // A descriptor of ours that mke2fs, which does not inherit it, can still open.
    let through = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    format(Path::new(&through))?;
    match rustix::fs::linkat(CWD, &through, CWD, &path, AtFlags::SYMLINK_FOLLOW) {
        // Somebody else made one meanwhile.
        Ok(()) | Err(Errno::EXIST) => File::open(&path),
        Err(errno) => Err(errno.into()),
    }
}

fn format(path: &Path) -> io::Result<()> {
    // No journal: the disk ends with the instance. Inode tables need not be cleared: the file reads as zeroes.
    let output = Command::new("mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0"])
        .args(["-O", "^has_journal,^resize_inode"])
        .args(["-E", "lazy_itable_init=1,nodiscard"])
        .arg(path)
        .env(
            "PATH",
            "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin",
        )
        .stdin(Stdio::null())
        .output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("mke2fs failed: {}", said.trim())))
}

/// A file that never had a name: killed at any moment, we leave nothing.
pub(crate) fn nameless_file(directory: &Path) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    Ok(File::from(rustix::fs::open(directory, flags, mode)?))
}

/// A loop device on the file, which lets go when nobody uses it.
pub(crate) fn attach(file: &File) -> io::Result<LoopDevice> {
    let control = File::options().read(true).write(true).open("/dev/loop-control")?;
    for _ in 0..ATTEMPTS {
        let path = PathBuf::from(format!("/dev/loop{}", sys::free_loop_device(control.as_fd())?));
        let device = File::options().read(true).write(true).open(&path)?;
        match sys::configure_loop_device(device.as_fd(), file.as_fd(), BLOCK_BYTES) {
            Ok(()) => {
                return Ok(LoopDevice {
                    path,
                    _device: device,
                });
            }
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::from(io::ErrorKind::ResourceBusy))
}

/// A loop device that shows a file.
pub(crate) struct LoopDevice {
    path: PathBuf,
    /// Keeps it until it is mounted.
    _device: File,
}

/// Mounts what a device shows, attached nowhere.
pub(crate) fn mount(device: &LoopDevice, options: &[&str]) -> io::Result<OwnedFd> {
    mount_path(&device.path, options)
}

/// The same by the device's name; one that is mounted already is that file system once more, and `options` mean nothing.
pub(crate) fn mount_path(device: &Path, options: &[&str]) -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen("ext4", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&context, "source", device)?;
    for flag in options {
        rustix::mount::fsconfig_set_flag(&context, *flag)?;
    }
    // A superblock may say that the whole machine is to stop when there is something wrong.
    rustix::mount::fsconfig_set_string(&context, "errors", "continue")?;
    rustix::mount::fsconfig_create(&context)?;
    let flags = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOATIME;
    Ok(rustix::mount::fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        flags,
    )?)
}

/// Disks made in advance.
#[derive(Debug, Default)]
pub(crate) struct Stock {
    disks: BTreeMap<u64, Vec<Disk>>,
    /// The most recently used first.
    sizes: VecDeque<u64>,
    /// Where they arrive from the process that makes them.
    arriving: Option<OwnedFd>,
}

impl Stock {
    /// Empty; sizes used before are asked for at once.
    pub(crate) fn new(state: &StateDir) -> Self {
        let entries = fs::read_dir(state.disks()).into_iter().flatten().flatten();
        let sizes = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        Self {
            sizes: sizes.take(SIZES).collect(),
            ..Self::default()
        }
    }

    /// A disk of this size, if there is one.
    pub(crate) fn take(&mut self, bytes: u64) -> Option<Disk> {
        self.sizes.retain(|size| *size != bytes);
        self.sizes.push_front(bytes);
        for size in self.sizes.split_off(SIZES.min(self.sizes.len())) {
            self.disks.remove(&size);
        }
        self.receive();
        self.disks.get_mut(&bytes)?.pop()
    }

    /// Whether some should be made.
    pub(crate) fn is_low(&self) -> bool {
        self.sizes.iter().any(|size| self.count(*size) <= STOCK / 2)
    }

    fn count(&self, size: u64) -> usize {
        self.disks.get(&size).map_or(0, Vec::len)
    }

    /// What is missing, and where to send it.
    pub(crate) fn order(&mut self) -> io::Result<(Vec<u64>, OwnedFd)> {
        self.receive();
        let mut missing = Vec::new();
        for size in &self.sizes {
            missing.extend(std::iter::repeat_n(
                *size,
                STOCK.saturating_sub(self.count(*size)),
            ));
        }
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        self.arriving = Some(ours);
        Ok((missing, theirs))
    }

    /// Take in what has arrived.
    pub(crate) fn receive(&mut self) {
        let Some(socket) = &self.arriving else { return };
        loop {
            let (mut decoder, mut fds) = (frame::Decoder::default(), Vec::new());
            match frame::receive(socket, &mut decoder, &mut fds) {
                Ok(1..) => {}
                Ok(0) => break,
                Err(_) => return,
            }
            // In the order they were sent in.
            if let (Ok(Some(size)), Some(file), Some(mount)) = (decoder.decode::<u64>(), fds.pop(), fds.pop())
            {
                self.disks.entry(size).or_default().push(Disk { mount, file });
            }
        }
        self.arriving = None;
    }
}

/// In the process that makes them: make what was ordered. Stops at the first that cannot be had.
pub(crate) fn deliver(state: &StateDir, missing: &[u64], to: &OwnedFd) -> io::Result<()> {
    for size in missing {
        let disk = make(&state.disks(), *size)?;
        let message = frame::encode(size).map_err(io::Error::other)?;
        frame::send(to.as_fd(), &message, &[disk.mount.as_fd(), disk.file.as_fd()])?;
    }
    Ok(())
}
