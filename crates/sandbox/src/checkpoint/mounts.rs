//! What of an instance outlives its processes: namespaces, mounts, and its ends of pipes.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags};
use serde::{Deserialize, Serialize};

use crate::protocol::IdRange;
use crate::{sys, userns};

/// What CRIU shares with the instance, so that it neither saves nor makes it.
const SHARED: [(&str, CloneFlags); 4] = [
    ("ipc", CloneFlags::CLONE_NEWIPC),
    ("uts", CloneFlags::CLONE_NEWUTS),
    ("net", CloneFlags::CLONE_NEWNET),
    ("cgroup", CloneFlags::CLONE_NEWCGROUP),
];

/// Namespaces kept open while no process is in them.
#[derive(Debug)]
pub(crate) struct Held {
    mounts: OwnedFd,
    shared: Vec<(OwnedFd, CloneFlags)>,
    /// Where something is mounted that a restore is given.
    pub(super) given: Vec<Given>,
}

/// A mount that CRIU is told to take from outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Given {
    /// What CRIU knows it by: its place in the table.
    pub(super) key: String,
    /// In the instance. Bytes that are not text cannot be written in CRIU's arguments.
    pub(super) path: PathBuf,
}

impl Held {
    /// Takes hold of what a live process is in.
    pub(crate) fn of(pid: i32) -> io::Result<Self> {
        let open =
            |name: &str| -> io::Result<OwnedFd> { Ok(File::open(format!("/proc/{pid}/ns/{name}"))?.into()) };
        let mut shared = Vec::with_capacity(SHARED.len());
        for (name, kind) in SHARED {
            shared.push((open(name)?, kind));
        }
        Ok(Self {
            mounts: open("mnt")?,
            shared,
            given: given(&fs::read_to_string(format!("/proc/{pid}/mountinfo"))?)?,
        })
    }

    /// These mounts are to be given under the names that an image knows them by.
    ///
    /// # Errors
    /// [`io::ErrorKind::Unsupported`] when what is mounted here is not what was mounted there.
    pub(crate) fn name_as(&mut self, kept: &[Given]) -> io::Result<()> {
        let paths =
            |given: &[Given]| -> BTreeSet<PathBuf> { given.iter().map(|one| one.path.clone()).collect() };
        let (here, there) = (paths(&self.given), paths(kept));
        if let Some(path) = here.symmetric_difference(&there).next() {
            let text = format!("what is mounted at {} is not as it was", path.display());
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
        self.given = kept.to_vec();
        Ok(())
    }

    pub(crate) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let shared = self.shared.iter().map(|(fd, _)| fd.as_fd());
        shared.chain([self.mounts.as_fd()])
    }

    /// Moves this process into what CRIU shares with the instance.
    pub(super) fn enter_shared(&self) -> io::Result<()> {
        for (namespace, kind) in &self.shared {
            setns(namespace, *kind)?;
        }
        Ok(())
    }

    /// Shows the instance's mounts below a directory of this process's own mount namespace, each by itself: the root at
    /// [`ROOT`], the others by their numbers. Not as the tree they are: in a user namespace of its own CRIU takes them one
    /// by one, and the kernel lets nobody there take one from under another.
    pub(super) fn show_at(&self, directory: &Path) -> io::Result<()> {
        let own = File::open("/proc/self/ns/mnt")?;
        setns(&self.mounts, CloneFlags::CLONE_NEWNS)?;
        let taken: io::Result<Vec<Taken>> = std::iter::once(Path::new("/"))
            .chain(self.given.iter().map(|given| given.path.as_path()))
            .map(Taken::at)
            .collect();
        setns(&own, CloneFlags::CLONE_NEWNS)?;
        let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        rustix::mount::fsconfig_set_string(&context, "size", YARD_BYTES)?;
        rustix::mount::fsconfig_set_string(&context, "mode", "0755")?;
        rustix::mount::fsconfig_create(&context)?;
        let yard = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        rustix::mount::move_mount(yard.as_fd(), "", CWD, directory, flags)?;
        for (number, taken) in taken?.into_iter().enumerate() {
            let at = match number.checked_sub(1) {
                None => directory.join(ROOT),
                Some(number) => place(directory, number),
            };
            if taken.is_directory {
                fs::create_dir(&at)?;
            } else {
                File::create(&at)?;
            }
            rustix::mount::move_mount(taken.mount.as_fd(), "", CWD, &at, flags)?;
        }
        Ok(())
    }
}

/// Shows a mount that is attached nowhere at this name below such a directory.
pub(super) fn show(mount: BorrowedFd<'_>, at: &Path) -> io::Result<()> {
    fs::create_dir(at)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    Ok(rustix::mount::move_mount(mount, "", CWD, at, flags)?)
}

/// A directory as the root of a block of ids sees it who owns what the machine's root owns there; attached nowhere.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] where the file system cannot.
pub(super) fn shifted(directory: &Path, range: IdRange) -> io::Result<OwnedFd> {
    let namespace = userns::make(range)?;
    let mount = Taken::at(directory)?.mount;
    sys::shift_mount(mount.as_fd(), namespace.as_fd(), false)?;
    Ok(mount)
}

/// Where the root is shown.
pub(super) const ROOT: &str = "root";
/// Where the image is shown.
pub(super) const IMAGE: &str = "image";
/// Some tens of empty files and directories.
const YARD_BYTES: &str = "1048576";

/// Where a given mount is shown.
pub(super) fn place(directory: &Path, number: usize) -> PathBuf {
    directory.join(number.to_string())
}

/// A mount, without what is mounted below it, that is attached nowhere.
struct Taken {
    mount: OwnedFd,
    is_directory: bool,
}

impl Taken {
    fn at(path: &Path) -> io::Result<Self> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let mount = rustix::mount::open_tree(CWD, path, flags)?;
        let mode = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&mount)?.st_mode);
        Ok(Self {
            mount,
            is_directory: mode.is_dir(),
        })
    }
}

/// The mounts that a restore is given, of a `mountinfo`: all but the root, which is given by another way, and what shows
/// the processes, which must show the new ones.
fn given(table: &str) -> io::Result<Vec<Given>> {
    let mut given: Vec<Given> = Vec::new();
    for (number, line) in table.lines().enumerate() {
        let cut = || io::Error::new(io::ErrorKind::InvalidData, "the table of mounts is cut off");
        let (left, right) = line.split_once(" - ").ok_or_else(cut)?;
        let path = left.split(' ').nth(4).ok_or_else(cut)?;
        if path == "/" || right.starts_with("proc ") {
            continue;
        }
        // The kernel writes blanks and the like as a backslash and a number; CRIU separates by a bracket.
        if path.contains(['\\', '[', ']', ':']) {
            let text = format!("it has a mount at {path}, a path that CRIU cannot be told");
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
        if given.iter().any(|other| other.path == Path::new(path)) {
            let text = format!("two things are mounted at {path}");
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
        given.push(Given {
            key: format!("mount-{number}"),
            path: path.into(),
        });
    }
    Ok(given)
}

/// A second way into a pipe that this process reads: what writes to it.
pub(crate) fn writing_end(pipe: impl AsFd) -> io::Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", pipe.as_fd().as_raw_fd());
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// What CRIU calls a pipe.
pub(super) fn pipe_name(pipe: impl AsFd) -> io::Result<String> {
    Ok(format!("pipe:[{}]", rustix::fs::fstat(pipe)?.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
91 55 0:41 / / rw,nosuid - overlay overlay rw
92 91 0:44 / /dev rw,nosuid - tmpfs none rw,size=64k
93 92 0:6 /null /dev/null rw,relatime - devtmpfs devtmpfs rw
102 91 0:55 / /proc rw - proc none rw
56 102 0:55 /bus /proc/bus ro - proc none rw
60 102 0:6 /null /proc/keys rw - devtmpfs devtmpfs rw
";

    #[test]
    fn all_is_given_but_the_root_and_the_view_of_processes() {
        let given = given(TABLE).unwrap();
        let paths: Vec<&str> = given.iter().map(|one| one.path.to_str().unwrap()).collect();
        assert_eq!(paths, ["/dev", "/dev/null", "/proc/keys"]);
        assert_eq!(given[2].key, "mount-5");
    }

    #[test]
    fn what_criu_cannot_be_told_is_refused() {
        let odd = format!("{TABLE}94 91 0:9 / /data\\040one rw - ext4 /dev/vda rw\n");
        assert_eq!(given(&odd).unwrap_err().kind(), io::ErrorKind::Unsupported);
        let twice = format!("{TABLE}94 91 0:9 / /dev/null rw - ext4 /dev/vda rw\n");
        assert_eq!(given(&twice).unwrap_err().kind(), io::ErrorKind::Unsupported);
    }

    #[test]
    fn a_pipe_can_be_written_to_again_when_nobody_else_can() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let name = pipe_name(&read).unwrap();
        assert_eq!(name, pipe_name(&write).unwrap());
        drop(write);
        let again = writing_end(&read).unwrap();
        rustix::io::write(&again, b"x").unwrap();
        let mut byte = [0];
        assert_eq!(rustix::io::read(&read, &mut byte).unwrap(), 1);
    }
}
