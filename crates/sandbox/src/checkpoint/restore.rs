//! From an image to a running instance.
//!
//! ```text
//! shim ─┬─ fork ── helper: cgroups, mounts, namespaces ── exec ── criu restore ── CLONE_PARENT ── first process
//!       └─ fork ── server of pages (`pages.rs`): hands out memory as it is touched, then all of the rest, and ends
//! ```
//!
//! The one design choice to know: the first process is made as CRIU's sibling, so the shim is its parent, as it was
//! before: it waits for it and learns how it ended, and the process dies with the shim as it asked to.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use super::criu::{self, Words, first_error};
use super::dump::Child;
use super::image::Image;
use super::mounts::{self, Held};
use crate::cgroup::Attach;
use crate::pages;
use crate::patience;
use crate::protocol::{ExitStatus, IdRange};
use crate::sys;

const NOT_RUN: i32 = 127;
/// The server of pages could not hand a page over.
const PAGES_FAILED: i32 = 1;
/// Its last words, in the directory of the image.
const PAGES_LOG: &str = "pages.log";
const LOG: &str = "restore.log";
const PID_FILE: &str = "pid";
/// Directories that machines have at the top, and that nobody needs for a restore. The first that will do is used.
const YARDS: [&str; 4] = ["/mnt", "/media", "/srv", "/opt"];

/// What to bring back.
#[derive(Debug)]
pub(crate) struct Restore<'a> {
    pub(crate) program: &'a Path,
    pub(crate) image: &'a Image,
    pub(crate) facts: &'a Path,
    pub(crate) held: &'a Held,
    pub(crate) attach: Attach,
    /// What the image calls the pipes of its output, and writing ends to put in their place.
    pub(crate) pipes: Vec<(String, OwnedFd)>,
    /// Memory comes as it is touched; else all of it before the first step.
    pub(crate) lazily: bool,
    /// The memory that the image holds.
    pub(crate) memory_bytes: u64,
    /// The ids that it gets of its own: CRIU reads the image as their root.
    pub(crate) ids: Option<IdRange>,
}

/// An instance that runs again.
#[derive(Debug)]
pub(crate) struct Restored {
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
    pub(crate) pages: Option<Pages>,
}

/// The server of an instance's memory.
#[derive(Debug)]
pub(crate) struct Pages {
    child: Child,
    /// Copies of what it answers faults through: should it die, the program waits instead of reading zeroes.
    faults: Vec<OwnedFd>,
}

impl Pages {
    /// Starts it. CRIU may ask at once: it listens before this returns.
    fn start(image: &Image, directory: &Path) -> io::Result<Self> {
        let listener = listen(directory)?;
        let touched = image.touched();
        let child = Child::start(|| {
            let attempt = || {
                rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
                rustix::process::setsid()?;
                // Somebody waits, now and at every page.
                sys::hurry(true);
                criu::shed(&[listener.as_fd()])?;
                pages::serve(listener, directory, &touched)
            };
            match attempt() {
                Ok(()) => 0,
                Err(error) => {
                    let _ = fs::write(directory.join(PAGES_LOG), error.to_string());
                    PAGES_FAILED
                }
            }
        })?;
        let faults = Vec::new();
        Ok(Self { child, faults })
    }

    pub(crate) fn pidfd(&self) -> &OwnedFd {
        &self.child.pidfd
    }

    /// It has ended: whether every page was handed out.
    pub(crate) fn finished(&self) -> bool {
        matches!(sys::wait_pidfd(&self.child.pidfd), Ok(ExitStatus::Code(0)))
    }

    /// Why it left early, as far as it could say.
    pub(crate) fn last_words(image: &Image) -> String {
        let said = fs::read_to_string(image.path().join(PAGES_LOG)).unwrap_or_default();
        match said.trim() {
            "" => "nobody knows why".to_owned(),
            said => said.to_owned(),
        }
    }

    /// Ends it at once.
    pub(crate) fn end(&self) {
        self.child.kill();
        let _ = sys::wait_pidfd(&self.child.pidfd);
    }

    /// Takes copies of the descriptors through which it answers faults.
    fn hold_faults(&mut self) -> io::Result<()> {
        for entry in fs::read_dir(format!("/proc/{}/fd", self.child.pid))? {
            let entry = entry?;
            let is_one = fs::read_link(entry.path())
                .is_ok_and(|target| target.as_os_str() == "anon_inode:[userfaultfd]");
            let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
            if let (true, Some(number)) = (is_one, number) {
                self.faults
                    .push(pidfd_getfd(&self.child.pidfd, number, PidfdGetfdFlags::empty())?);
            }
        }
        Ok(())
    }
}

/// Brings an instance back. Its cgroups must be there, thawed, and empty.
///
/// # Errors
/// With the reason; nothing of it runs then, unless it is stuck in the kernel, and the image is as it was.
pub(crate) fn restore(order: Restore<'_>) -> io::Result<Restored> {
    let directory = order.image.path();
    let pid_file = directory.join(PID_FILE);
    crate::state::ignore_missing(fs::remove_file(&pid_file))?;
    let mut pages = match order.lazily {
        true => Some(Pages::start(order.image, &directory)?),
        false => None,
    };
    match run(order, &directory, &pid_file) {
        Ok((pid, pidfd)) => {
            if let Some(pages) = &mut pages {
                // Else its death would be a program that reads zeroes. The program runs already, so this is no reason
                // to say that it does not.
                let _ = pages.hold_faults();
            }
            Ok(Restored { pid, pidfd, pages })
        }
        Err(error) => {
            if let Some(pages) = pages {
                pages.end();
            }
            Err(error)
        }
    }
}

/// Where CRIU will ask for memory.
fn listen(directory: &Path) -> io::Result<OwnedFd> {
    crate::state::ignore_missing(fs::remove_file(directory.join(pages::SOCKET)))?;
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // By way of a descriptor, since a path may be longer than an address.
    let opened = fs::File::open(directory)?;
    let path = format!("/proc/self/fd/{}/{}", opened.as_raw_fd(), pages::SOCKET);
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, 1)?;
    Ok(socket)
}

/// Runs CRIU.
fn run(order: Restore<'_>, directory: &Path, pid_file: &Path) -> io::Result<(i32, OwnedFd)> {
    let yard = yard(&[directory, order.program, order.facts])?;
    let shown = shown(&order, directory)?;
    let words = words(&order, directory, shown.is_some(), yard);
    let Attach {
        born_in,
        mut procs,
        cpu,
    } = order.attach;
    if let Some(cgroup) = born_in {
        // Entered, not born in: the kernel kills what is born in a cgroup that was ever killed (it compares counts of
        // kills of two cgroups; seen with 6.18).
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        procs.push(rustix::fs::openat(&cgroup, "cgroup.procs", flags, Mode::empty())?.into());
    }
    let helper = Child::start(|| {
        let attempt = || {
            let writing = order.pipes.iter().map(|(_, write)| write.as_fd());
            let mut keep: Vec<_> = writing.clone().chain(order.held.fds()).collect();
            keep.extend(procs.iter().chain(&cpu).map(AsFd::as_fd));
            keep.extend(shown.as_ref().map(AsFd::as_fd));
            // Until CRIU gives each process what it had.
            sys::hurry_process(true);
            criu::shed(&keep)?;
            for mut procs in procs.iter().chain(&cpu) {
                io::Write::write_all(&mut procs, b"0")?;
            }
            criu::prepare(order.facts, &[directory, order.program, order.facts])?;
            order.held.show_at(yard)?;
            if let Some(image) = &shown {
                mounts::show(image.as_fd(), &yard.join(mounts::IMAGE))?;
            }
            order.held.enter_shared()?;
            for pipe in writing {
                rustix::io::fcntl_setfd(pipe, rustix::io::FdFlags::empty())?;
            }
            Err(words.exec())
        };
        let result: io::Result<()> = attempt();
        result.map_or(NOT_RUN, |()| 0)
    })?;
    let timeout = match order.lazily {
        true => patience::RESTORE_LAZILY,
        false => patience::restore(order.memory_bytes),
    };
    let reason = match helper.wait(timeout)? {
        Some(ExitStatus::Code(0)) => {
            let text = fs::read_to_string(pid_file)?;
            let pid: i32 = text.trim().parse().map_err(io::Error::other)?;
            let known = Pid::from_raw(pid).ok_or_else(|| io::Error::other("CRIU wrote no process number"))?;
            // A child of ours that nobody has waited for: the number is its own.
            return Ok((pid, pidfd_open(known, PidfdFlags::empty())?));
        }
        Some(ExitStatus::Code(NOT_RUN)) => "CRIU could not be run".to_owned(),
        Some(status) => {
            let log = fs::read_to_string(directory.join(LOG)).unwrap_or_default();
            first_error(&log).unwrap_or_else(|| format!("CRIU left with {status:?} and did not say why"))
        }
        None => format!("CRIU took longer than {} s", timeout.as_secs()),
    };
    Err(io::Error::other(reason))
}

/// The image as the property of the instance's own root, if it has one and this file system can show that. Root alone may
/// read it on the disk.
fn shown(order: &Restore<'_>, directory: &Path) -> io::Result<Option<OwnedFd>> {
    let Some(range) = order.ids else { return Ok(None) };
    match mounts::shifted(directory, range) {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            order.image.lend()?;
            Ok(None)
        }
        shifted => {
            order.image.show_clocks()?;
            shifted.map(Some)
        }
    }
}

/// A directory of the machine to show the mounts at, in a table that nobody else sees. CRIU looks at them as the
/// instance's own root, to whom this program's directories are closed; what is in it otherwise is hidden meanwhile.
fn yard(visible: &[&Path]) -> io::Result<&'static Path> {
    YARDS
        .iter()
        .map(Path::new)
        .find(|yard| yard.is_dir() && !visible.iter().any(|path| path.starts_with(yard)))
        .ok_or_else(|| {
            io::Error::other(
                "this machine has none of the directories /mnt, /media, /srv and /opt to mount at",
            )
        })
}

fn words(order: &Restore<'_>, directory: &Path, is_shown: bool, yard: &Path) -> Words {
    let mut words = Words::new(order.program, "restore");
    match is_shown {
        true => words.path("--images-dir", &yard.join(mounts::IMAGE)),
        false => words.path("--images-dir", directory),
    };
    // What it writes has this process's own ids, which are none of those shown there.
    words.path("--work-dir", directory);
    words.path("--root", &yard.join(mounts::ROOT));
    words.path("--pidfile", &directory.join(PID_FILE));
    words.add(&["--restore-detached", "--restore-sibling"]);
    words.add(&["--manage-cgroups=ignore", "--tcp-close", "--file-locks"]);
    words.add(&["--log-file", LOG, "-v2"]);
    if order.lazily {
        words.add(&["--lazy-pages"]);
    }
    for (number, mount) in order.held.given.iter().enumerate() {
        let from = mounts::place(yard, number);
        words.add(&["--external", &format!("mnt[{}]:{}", mount.key, from.display())]);
    }
    for (name, write) in &order.pipes {
        words.add(&["--inherit-fd", &format!("fd[{}]:{name}", write.as_raw_fd())]);
    }
    words
}
