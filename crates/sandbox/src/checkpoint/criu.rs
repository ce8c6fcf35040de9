//! The program CRIU: finding it, what it can here, and running it.
//!
//! The one design choice to know: it is run in a mount namespace of its own with an empty `/run`, and the facts about the
//! kernel that it keeps there are carried from one run to the next. Probing them takes it 20 ms, and it keeps them
//! only where `/run` is in memory.

use std::ffi::{CString, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{CWD, Gid, Uid};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags};
use rustix::thread::CapabilitySet;

use crate::{installed, sys};

/// The first that dumps TCP sockets on Linux 6.16 and later.
pub const VERSION_MIN: (u32, u32) = (4, 2);
/// Where `scripts/criu` puts it.
const INSTALLED: &str = "/usr/local/lib/tramontane/criu/criu";
/// Where a distribution puts it.
const SYSTEM: [&str; 3] = ["/usr/local/sbin/criu", "/usr/sbin/criu", "/usr/bin/criu"];
/// Where CRIU keeps what it knows of the kernel.
const FACTS: &str = "/run/criu.kdat";
/// All that is ever on CRIU's `/run`: a few hundred bytes of facts.
const RUN_BYTES: &str = "1048576";

/// A CRIU that is new enough.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Criu {
    /// Where it is.
    pub program: PathBuf,
    /// Its version, as it says.
    pub version: String,
}

/// Why there is no CRIU to use. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Missing {
    /// Nobody installed it.
    #[error("CRIU is not installed: run `scripts/criu` (its version must be {}.{} or newer)", VERSION_MIN.0, VERSION_MIN.1)]
    NotInstalled,
    /// The one that was named cannot be run.
    #[error("{} cannot be run: {source}", program.display())]
    Broken {
        /// Which.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is older than what works.
    #[error("{} is version {version}, and {}.{} or newer is needed: run `scripts/criu`", program.display(), VERSION_MIN.0, VERSION_MIN.1)]
    TooOld {
        /// Which.
        program: PathBuf,
        /// What it says.
        version: String,
    },
    /// The kernel lacks something.
    #[error("this kernel cannot be used by {}: {said}", program.display())]
    Kernel {
        /// Which.
        program: PathBuf,
        /// CRIU's own words.
        said: String,
    },
}

impl Criu {
    /// The CRIU to use: the one named, else the one that was installed for Tramontane, else the system's. Takes some
    /// milliseconds, since it is asked for its version.
    ///
    /// # Errors
    /// Why there is none.
    pub fn find(named: Option<&Path>) -> Result<Self, Missing> {
        let places = [INSTALLED].into_iter().chain(SYSTEM);
        installed::find(named, places, Self::examine, Missing::NotInstalled)
    }

    fn examine(program: &Path) -> Result<Self, Missing> {
        let broken = |source| Missing::Broken {
            program: program.to_owned(),
            source,
        };
        let text = installed::said_version(program).map_err(broken)?;
        let Some(version) = version(&text) else {
            return Err(broken(io::Error::other("it does not say its version")));
        };
        let program = program.to_owned();
        let version = version.to_owned();
        if numbers(&version).is_none_or(|numbers| numbers < VERSION_MIN) {
            return Err(Missing::TooOld { program, version });
        }
        Ok(Self { program, version })
    }

    /// Has CRIU try what it needs of the kernel. Takes some tens of milliseconds.
    ///
    /// # Errors
    /// What is missing.
    pub fn check(&self) -> Result<(), Missing> {
        let output = Command::new(&self.program)
            .arg("check")
            .stdin(Stdio::null())
            .output()
            .map_err(|source| Missing::Broken {
                program: self.program.clone(),
                source,
            })?;
        if output.status.success() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&output.stderr);
        let said = first_error(&text).unwrap_or_else(|| text.trim().to_owned());
        Err(Missing::Kernel {
            program: self.program.clone(),
            said,
        })
    }
}

/// `4.2.1` of `Version: 4.2.1`.
fn version(text: &str) -> Option<&str> {
    let line = text.lines().find_map(|line| line.strip_prefix("Version: "))?;
    Some(line.trim())
}

fn numbers(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.');
    let mut next = || {
        let digits: String = parts.next()?.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().ok()
    };
    Some((next()?, next()?))
}

/// What CRIU's log says went wrong: the first error, since the others follow from it. It tries to raise a limit that
/// it may not raise, which does no harm.
pub(super) fn first_error(log: &str) -> Option<String> {
    log.lines().find_map(|line| {
        let (_, after) = line.split_once("Error (")?;
        let (_, said) = after.split_once("): ")?;
        (!said.starts_with("rlimit:")).then(|| said.trim().to_owned())
    })
}

/// The words of one run. CRIU reads a few variables of its environment, and is given none.
#[derive(Debug, Clone)]
pub(super) struct Words(Vec<OsString>);

impl Words {
    pub(super) fn new(program: &Path, action: &str) -> Self {
        Self(vec![program.into(), action.into()])
    }

    pub(super) fn add(&mut self, words: &[&str]) -> &mut Self {
        self.0.extend(words.iter().map(OsString::from));
        self
    }

    pub(super) fn path(&mut self, option: &str, path: &Path) -> &mut Self {
        self.0.extend([OsString::from(option), path.into()]);
        self
    }

    /// Becomes CRIU.
    pub(super) fn exec(&self) -> io::Error {
        let word = |word: &OsString| CString::new(word.as_bytes());
        let words: Result<Vec<_>, _> = self.0.iter().map(word).collect();
        let Some((words, program)) = words.ok().and_then(|words| {
            let program = words.first()?.clone();
            Some((words, program))
        }) else {
            return io::Error::from(io::ErrorKind::InvalidInput);
        };
        let path = [c"PATH=/usr/sbin:/usr/bin:/sbin:/bin"];
        let Err(errno) = nix::unistd::execve(&program, &words, &path);
        errno.into()
    }

    /// Runs CRIU and waits for it; whether all was well.
    pub(super) fn run(&self) -> io::Result<bool> {
        let (program, arguments) = self
            .0
            .split_first()
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let status = Command::new(program)
            .args(arguments)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::null())
            .status()?;
        Ok(status.success())
    }
}

/// Lets go of what a helper inherited: every descriptor but the standard streams (the shim's are the null device) and
/// these, and the signals that a shim ignores. CRIU ends its own helpers by SIGTERM and waits for their end.
pub(super) fn shed(keep: &[BorrowedFd<'_>]) -> io::Result<()> {
    sys::reset_signals()?;
    let streams = [
        rustix::stdio::stdin(),
        rustix::stdio::stdout(),
        rustix::stdio::stderr(),
    ];
    sys::close_all_except(&[&streams, keep].concat())
}

/// Gives this process mounts of its own, with what CRIU knows of the kernel where it looks for it. `facts`: where that
/// is kept between runs. `paths`: what must stay visible.
pub(super) fn prepare(facts: &Path, paths: &[&Path]) -> io::Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    if paths.iter().any(|path| path.starts_with("/run")) {
        // Then it probes the kernel each time, unless the machine's own /run is in memory.
        return Ok(());
    }
    let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&context, "size", RUN_BYTES)?;
    rustix::mount::fsconfig_set_string(&context, "mode", "0700")?;
    rustix::mount::fsconfig_create(&context)?;
    let run = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(run.as_fd(), "", CWD, "/run", flags)?;
    // Missing before the first run; CRIU finds out by itself then.
    let _ = fs::copy(facts, FACTS);
    Ok(())
}

/// Gives this process the real user and group of another, and leaves it all it may do. CRIU reads the limits of what it
/// dumps, which takes CAP_SYS_RESOURCE or the same real user; some machines lack that capability.
pub(super) fn resemble(pid: i32) -> io::Result<()> {
    let held = rustix::thread::capabilities(None)?.effective;
    if held.contains(CapabilitySet::SYS_RESOURCE) {
        return Ok(());
    }
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let real = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u32>().ok()
    };
    let (Some(uid), Some(gid)) = (real("Uid:"), real("Gid:")) else {
        return Err(io::Error::other(format!("/proc/{pid}/status cannot be read")));
    };
    let (root_user, root_group) = (Uid::ROOT, Gid::ROOT);
    rustix::thread::set_thread_res_gid(Gid::from_raw(gid), root_group, root_group)?;
    Ok(rustix::thread::set_thread_res_uid(
        Uid::from_raw(uid),
        root_user,
        root_user,
    )?)
}

/// Has CRIU find out about the kernel and keeps what it found, once in each boot. Not left to the dump, which may be run
/// with another real user: one of the libraries that CRIU asks ends a process that looks like a setuid program.
pub(super) fn learn_facts(program: &Path, facts: &Path) -> io::Result<()> {
    if facts.exists() {
        return Ok(());
    }
    // What it does not like about the kernel, the dump says too.
    Words::new(program, "check").run()?;
    let beside = facts.with_extension("new");
    if fs::copy(FACTS, &beside).is_ok() {
        fs::rename(beside, facts)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_number() {
        assert_eq!(version("Version: 4.2.1\nGitID: v4.2.1\n"), Some("4.2.1"));
        assert_eq!(numbers("4.10"), Some((4, 10)));
        assert!(numbers("4.10").unwrap() > VERSION_MIN);
        assert!(numbers("3.17.1").unwrap() < VERSION_MIN);
        assert_eq!(numbers("4.2-rc1"), Some((4, 2)));
        assert_eq!(numbers("nonsense"), None);
    }

    #[test]
    fn the_first_error_is_the_one_that_tells() {
        let log = "(00.030859) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self\n\
                   (00.041) Warn  (criu/x.c:1): something\n\
                   (00.042)      1: Error (criu/pipes.c:238): Unable to reopen the pipe\n\
                   (00.043) Error (criu/cr-dump.c:2331): Dumping FAILED.\n";
        assert_eq!(first_error(log).as_deref(), Some("Unable to reopen the pipe"));
        assert_eq!(first_error("all is well"), None);
    }

    #[test]
    fn what_is_not_there_is_said() {
        let error = Criu::find(Some(Path::new("/nowhere/criu"))).unwrap_err();
        assert!(matches!(error, Missing::Broken { .. }), "{error}");
    }
}
