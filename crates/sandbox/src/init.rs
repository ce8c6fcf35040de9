//! Becoming an instance: from a fresh child in new namespaces to its program.
//!
//! Owns everything that happens between `clone3` and `execve`, in the order of the files here:
//! `rootfs` (mounts), `files` (paths inside the root), `privileges`, `program`. Called by the shim
//! ([`become_instance`]) and by exec ([`join_instance`]).
//!
//! The one design choice to know: while the root is put together, every path inside it is resolved
//! by `openat2` against the root's descriptor, so a symlink in an image cannot lead out of it; and
//! config files are written before /proc and /sys are there, so it cannot lead into the kernel either.
//! Once the root is the instance's own, nothing of the machine stays open ([`leave_the_machine`]).

mod devices;
mod files;
mod privileges;
mod program;
mod room;
pub(crate) mod rootfs;

use std::convert::Infallible;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::cgroup::{Attach, View};
use crate::protocol::{Capability, LaunchFailure, LaunchSpec, Limits, Network, User};
use crate::seccomp::Filter;
use crate::shim::READY;
use crate::state::InstanceDir;
use crate::{gvisor, sys, userns};
pub(crate) use files::again;

/// Every group there can be.
const PING_GROUPS: &str = "0 2147483647";

type Step<T> = Result<T, LaunchFailure>;

/// The errno of failures that have none.
const UNKNOWN_ERRNO: i32 = libc::EIO;

/// Names what was being done when it failed.
trait During<T> {
    fn during(self, what: impl FnOnce() -> String) -> Step<T>;
}

impl<T, E: Into<io::Error>> During<T> for Result<T, E> {
    fn during(self, what: impl FnOnce() -> String) -> Step<T> {
        self.map_err(|error| {
            let error = error.into();
            LaunchFailure::Setup {
                what: what(),
                errno: error.raw_os_error().unwrap_or(UNKNOWN_ERRNO),
            }
        })
    }
}

/// Which namespaces a first process is born in. The cgroup namespace comes later: its root is the
/// cgroup a process is in at that moment.
pub(crate) fn namespaces(network: &Network) -> i32 {
    let mut flags = libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
    if *network == Network::Private {
        flags |= libc::CLONE_NEWNET;
    }
    flags
}

/// What a root is put together from, beside the spec.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parts<'a> {
    /// For its writable layer.
    pub(crate) disk: Option<&'a OwnedFd>,
    /// Its volumes, in the order of the spec.
    pub(crate) volumes: &'a [OwnedFd],
    /// The user namespace whose ids its files have.
    pub(crate) namespace: Option<&'a OwnedFd>,
}

/// The body of an instance's first process. Returns only to say why there is no program.
pub(crate) fn become_instance(
    spec: &LaunchSpec,
    dir: &InstanceDir,
    parts: Parts<'_>,
    attach: Attach,
    view: View,
    filter: &Filter,
    verdict: BorrowedFd<'_>,
) -> Step<Infallible> {
    let Attach { procs, cpu, .. } = attach;
    enter_cgroups(procs)?;
    enter_network(&spec.network)?;
    rustix::system::sethostname(spec.hostname.as_bytes()).during(|| "set the hostname".into())?;
    if let Some(program) = &spec.gvisor {
        let tmp = room::build(spec, dir, parts, program)?;
        own_stdin()?;
        rustix::process::setsid().during(|| "make a session".into())?;
        sys::hurry(false);
        enter_cgroups(cpu)?;
        leave_the_machine(verdict, None)?;
        return gvisor::run(spec, tmp, verdict);
    }
    rootfs::build(spec, dir, parts)?;
    own_stdin()?;
    // Now, because the setting up was in a hurry and the program is not: its session, its priority and
    // its share of the CPU begin here.
    rustix::process::setsid().during(|| "make a session".into())?;
    sys::hurry(false);
    enter_cgroups(cpu)?;
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWCGROUP)
        .during(|| "make a cgroup namespace".into())?;
    rootfs::show_cgroups(view)?;
    let namespace = parts.namespace.map(AsFd::as_fd);
    leave_the_machine(verdict, namespace)?;
    enter_directory(&spec.cwd)?;
    if spec.memory_from.is_some() {
        return hold_the_place(verdict);
    }
    let identity = Identity {
        namespace,
        user: &spec.user,
        capabilities: &spec.capabilities,
        limits: &spec.limits,
        takes_mounts: true,
    };
    start_program(&identity, &spec.argv, &spec.env, filter, verdict)
}

/// Says that all is there and does nothing until it is killed: others come into what this process has set up.
fn hold_the_place(verdict: BorrowedFd<'_>) -> Step<Infallible> {
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    let _ = rustix::io::write(verdict, READY);
    // The other end reads to the end, so this one has to close; what is left are the standard streams.
    sys::close_all_except(&[
        rustix::stdio::stdin(),
        rustix::stdio::stdout(),
        rustix::stdio::stderr(),
    ])
    .during(|| "close the way to the keeper".into())?;
    loop {
        let _ = sys::poll(&mut [], None);
    }
}

/// Reads nothing from the instance's own null device: the machine's is of a mount that a checkpoint of the instance
/// cannot name.
fn own_stdin() -> Step<()> {
    let what = || "open /dev/null".to_owned();
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).during(what)?;
    rustix::stdio::dup2_stdin(&null).during(what)
}

/// Who a program runs as and what it may do.
pub(crate) struct Identity<'a> {
    /// The user namespace, if it has one of its own: itself, or a pidfd of somebody in it.
    pub(crate) namespace: Option<BorrowedFd<'a>>,
    pub(crate) user: &'a User,
    pub(crate) capabilities: &'a [Capability],
    pub(crate) limits: &'a Limits,
    /// A first process: its table of mounts belongs to its user namespace from now on.
    pub(crate) takes_mounts: bool,
}

/// The last steps, the same for a first process and for an exec. `verdict` is told [`READY`] when nothing but the exec
/// is left, and closes with it.
pub(crate) fn start_program(
    identity: &Identity<'_>,
    argv: &[String],
    env: &[(String, String)],
    filter: &Filter,
    verdict: BorrowedFd<'_>,
) -> Step<Infallible> {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    privileges::limit_resources(identity.limits)?;
    let program = program::Program::prepare(argv, env)?;
    sys::reset_signals().during(|| "reset the signals".into())?;
    if let Some(namespace) = identity.namespace {
        userns::enter(namespace).during(|| "enter the user namespace".into())?;
        if identity.takes_mounts {
            // What is mounted is locked by that: it cannot be taken off from inside. CRIU writes down no table that
            // belongs to the machine's root.
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)
                .during(|| "take the mounts into the user namespace".into())?;
            // Of the new table, as everything else is.
            own_stdin()?;
        }
    }
    privileges::drop_to(identity.user, identity.capabilities)?;
    filter.apply().map_err(|_| LaunchFailure::Setup {
        what: "put on the system call filter".to_owned(),
        errno: UNKNOWN_ERRNO,
    })?;
    // Should the parent be killed, so is the program: nobody would read its output or see its end. Set last, because
    // changing the user clears it.
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    let _ = rustix::io::write(verdict, READY);
    program.exec()
}

/// Closes everything but the standard streams and the way to say how it went. A descriptor of something outside the
/// root is a way out of it (`/proc/self/fd/9/../..`) for as long as it is open, so this comes before the first path
/// that the image or the instance has a say in. `namespace` is no directory, and closes with the exec.
pub(crate) fn leave_the_machine(verdict: BorrowedFd<'_>, namespace: Option<BorrowedFd<'_>>) -> Step<()> {
    let mut keep = vec![
        rustix::stdio::stdin(),
        rustix::stdio::stdout(),
        rustix::stdio::stderr(),
        verdict,
    ];
    keep.extend(namespace);
    sys::close_all_except(&keep).during(|| "close inherited files".into())
}

/// Enters the working directory, which is a path that the image or the instance chose: through symlinks, never
/// through the links of /proc that lead to what a process has open, and never to a place outside the root.
pub(crate) fn enter_directory(path: &str) -> Step<()> {
    let what = || format!("enter the working directory {path}");
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = files::again(|| {
        rustix::fs::openat2(
            rustix::fs::CWD,
            path,
            flags,
            Mode::empty(),
            ResolveFlags::NO_MAGICLINKS,
        )
    })
    .during(what)?;
    rustix::process::fchdir(&directory).during(what)?;
    // The kernel gives a directory that is not below the root a name that does not begin with a slash.
    let name = rustix::process::getcwd(Vec::new()).during(what)?;
    if !name.as_bytes().starts_with(b"/") {
        return Err(Errno::ACCESS).during(what);
    }
    Ok(())
}

/// Move this process into the cgroups it was not born in.
pub(crate) fn enter_cgroups(procs: Vec<std::fs::File>) -> Step<()> {
    for mut procs in procs {
        procs.write_all(b"0").during(|| "enter the cgroup".into())?;
    }
    Ok(())
}

fn enter_network(network: &Network) -> Step<()> {
    match network {
        Network::Private => sys::loopback_up().during(|| "bring up the loopback interface".into())?,
        Network::Namespace { path } => {
            let what = || format!("enter the network namespace {}", path.display());
            let namespace = std::fs::File::open(path).during(what)?;
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).during(what)?;
        }
    }
    // Ports below 1024 mean nothing in a namespace of one's own: any user may serve on 80 (as with
    // Docker). This writes to the namespace just entered, whichever /proc is mounted.
    std::fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0")
        .during(|| "open the low ports to every user".into())?;
    // Nobody needs a raw socket for a ping.
    std::fs::write("/proc/sys/net/ipv4/ping_group_range", PING_GROUPS).during(|| "let every user ping".into())
}
