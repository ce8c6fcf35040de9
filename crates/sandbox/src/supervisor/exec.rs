//! One more program in a running instance: fork a helper that joins the instance and waits.
//!
//! The one design choice to know: the helper stays outside the instance's pid namespace (only its
//! children are in it) and outlives the supervisor, so the exit status always arrives. The descriptors
//! go to the client over the socket, and the supervisor keeps none.

use std::convert::Infallible;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sched::{CloneFlags, setns};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::pty::OpenptFlags;
use serde::{Deserialize, Serialize};

use super::Supervisor;
use super::instance::Depth;
use super::launch::internal;
use super::requests::running;
use crate::cgroup::Attach;
use crate::client::{encode_exit, resize};
use crate::gvisor::{self, Joined};
use crate::init::{self, Identity};
use crate::protocol::frame::{self, Decoder};
use crate::protocol::{
    ExecSpec, ExitStatus, IdRange, InstanceId, LaunchFailure, LaunchSpec, Refusal, Reply, TtySize, outside,
};
use crate::seccomp::Filter;
use crate::shim::read_verdict;
use crate::sys;

/// Programs on their way to their exec; each takes milliseconds.
const EXECS_MAX: usize = 64;
const STDIO: usize = 3;

/// An exec whose helper has not yet reported.
pub(super) struct PendingExec {
    report: OwnedFd,
    client: u64,
    exit: OwnedFd,
    /// The client's ends; none with a terminal.
    pipes: Vec<OwnedFd>,
}

impl PendingExec {
    pub(super) fn report(&self) -> &OwnedFd {
        &self.report
    }
}

/// What the helper says, once. Descriptors ride along: a pidfd, and the terminal if there is one.
#[derive(Debug, Serialize, Deserialize)]
enum Report {
    Started { pid: i32 },
    Failed { failure: LaunchFailure },
}

/// Everything the helper needs.
struct Order<'a> {
    spec: &'a LaunchSpec,
    exec: &'a ExecSpec,
    filter: &'a Filter,
    attach: Attach,
    /// The instance's first process: its namespaces are joined.
    init: OwnedFd,
    exit: OwnedFd,
    /// stdin, stdout, stderr; none with a terminal.
    stdio: Vec<OwnedFd>,
}

impl Supervisor {
    /// Answers the client only when it fails at once; else the helper's report does.
    pub(super) fn exec(&mut self, client: u64, id: &InstanceId, exec: &ExecSpec) -> Result<(), Refusal> {
        exec.validate().map_err(|error| Refusal::InvalidSpec {
            reason: error.to_string(),
        })?;
        let running = running(&mut self.instances, id)?;
        let process = match (&running.process, running.depth) {
            (Some(process), Depth::Awake) => process,
            (None, Depth::Awake) => return Err(Refusal::NotRunning { id: id.clone() }),
            _ => return Err(Refusal::Frozen { id: id.clone() }),
        };
        if self.execs.len() >= EXECS_MAX {
            return Err(Refusal::TooMany {
                what: "execs at once".to_owned(),
                limit: EXECS_MAX,
            });
        }
        let init = process.try_clone();
        let pending = init.and_then(|init| self.start_helper(client, id, exec, init));
        let pending = pending.map_err(|error| internal("start the program", &error))?;
        self.execs.insert(self.next_exec, pending);
        self.next_exec += 1;
        Ok(())
    }

    fn start_helper(
        &self,
        client: u64,
        id: &InstanceId,
        exec: &ExecSpec,
        init: OwnedFd,
    ) -> io::Result<PendingExec> {
        let spec = self
            .state
            .instance(id)
            .spec()?
            .ok_or_else(|| io::Error::other("the spec is gone"))?;
        if let (Some(_), Some(user)) = (spec.ids, &exec.user) {
            IdRange::holds_user(user).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        }
        let (report, helper_report) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        let (exit, helper_exit) = pipe_with(PipeFlags::CLOEXEC)?;
        let (mut pipes, mut stdio) = (Vec::new(), Vec::new());
        if exec.tty.is_none() {
            let user = exec.user.as_ref().unwrap_or(&spec.user);
            let owner = (
                rustix::fs::Uid::from_raw(outside(spec.ids, user.uid)),
                rustix::fs::Gid::from_raw(outside(spec.ids, user.gid)),
            );
            for number in 0..STDIO {
                let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
                let (ours, theirs) = if number == 0 {
                    (writer, reader)
                } else {
                    (reader, writer)
                };
                rustix::fs::fchown(&theirs, Some(owner.0), Some(owner.1))?;
                pipes.push(ours);
                stdio.push(theirs);
            }
        }
        let order = Order {
            spec: &spec,
            exec,
            filter: &self.filter,
            attach: self.driver.attach(id.as_str())?,
            init,
            exit: helper_exit,
            stdio,
        };
        sys::fork(move || help(order, &helper_report))?;
        Ok(PendingExec {
            report,
            client,
            exit,
            pipes,
        })
    }

    pub(super) fn on_exec_report(&mut self, number: u64) {
        let Some(pending) = self.execs.remove(&number) else {
            return;
        };
        let (mut decoder, mut fds) = (Decoder::default(), Vec::new());
        let said = frame::receive(&pending.report, &mut decoder, &mut fds)
            .ok()
            .and_then(|_| decoder.decode().ok().flatten());
        match said {
            Some(Report::Started { pid }) => {
                let tty = pending.pipes.is_empty();
                let mut fds = fds.into_iter();
                // The order that the protocol promises: pidfd, exit, then the program's ends.
                let fds: Vec<OwnedFd> = fds
                    .next()
                    .into_iter()
                    .chain([pending.exit])
                    .chain(fds)
                    .chain(pending.pipes)
                    .collect();
                self.reply(pending.client, &Reply::ExecStarted { pid, tty }, fds);
            }
            Some(Report::Failed { failure }) => self.refuse_exec(pending.client, failure),
            None => self.refuse_exec(pending.client, LaunchFailure::Died),
        }
    }

    fn refuse_exec(&mut self, client: u64, failure: LaunchFailure) {
        self.reply(
            client,
            &Reply::Refused {
                refusal: Refusal::Launch { failure },
            },
            Vec::new(),
        );
    }
}

/// The body of the helper process.
fn help(order: Order<'_>, report: &OwnedFd) -> i32 {
    match start(order, report) {
        Ok(()) => 0,
        Err(failure) => {
            tell(report.as_fd(), &Report::Failed { failure }, &[]);
            1
        }
    }
}

fn start(order: Order<'_>, report: &OwnedFd) -> Result<(), LaunchFailure> {
    let Order {
        spec,
        exec,
        filter,
        attach,
        init,
        exit,
        stdio,
    } = order;
    let during = |what: &str, error: io::Error| LaunchFailure::Setup {
        what: what.to_owned(),
        errno: error.raw_os_error().unwrap_or(libc::EIO),
    };
    let prepare = || {
        rustix::process::setsid()?;
        sys::hurry(true);
        rustix::thread::set_name(c"tram-exec")?;
        sys::reset_signals()?;
        sys::ignore_signals(&[
            libc::SIGTERM,
            libc::SIGINT,
            libc::SIGHUP,
            libc::SIGQUIT,
            libc::SIGPIPE,
        ]);
        let null: OwnedFd = File::options().read(true).write(true).open("/dev/null")?.into();
        let mut keep = vec![init.as_fd(), report.as_fd(), exit.as_fd(), null.as_fd()];
        keep.extend(stdio.iter().map(AsFd::as_fd));
        keep.extend(attach.fds());
        sys::close_all_except(&keep)?;
        sys::set_stdio(null.as_fd(), null.as_fd(), null.as_fd())
    };
    prepare().map_err(|error| during("prepare the helper", error))?;
    // Of the machine, and so the same for nobody else.
    let joined = Joined(rustix::process::getpid().as_raw_nonzero().get());
    let namespaces = CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWNET;
    setns(init.as_fd(), namespaces)
        .map_err(|errno| during("join the instance's namespaces", errno.into()))?;

    let terminal = exec
        .tty
        .map(open_terminal)
        .transpose()
        .map_err(|error| during("open a terminal", error))?;
    let (verdict, child_verdict) =
        pipe_with(PipeFlags::CLOEXEC).map_err(|errno| during("make a pipe", errno.into()))?;
    let Attach {
        born_in,
        mut procs,
        cpu,
    } = attach;
    procs.extend(cpu);
    let child = sys::clone3(0, born_in.as_ref().map(AsFd::as_fd), || {
        let ends: Vec<BorrowedFd<'_>> = match &terminal {
            Some((_, peer)) => vec![peer.as_fd(); STDIO],
            None => stdio.iter().map(AsFd::as_fd).collect(),
        };
        let program = Program {
            spec,
            exec,
            filter,
            init: init.as_fd(),
            joined,
        };
        let Err(failure) = program.become_it(procs, &ends, terminal.is_some(), &child_verdict);
        let _ = File::from(child_verdict).write_all(&serde_json::to_vec(&failure).unwrap_or_default());
        1
    });
    let child = child.map_err(|error| during("make the process", error))?;
    drop((stdio, born_in));
    let verdict = read_verdict(verdict);
    if verdict.is_err() {
        let _ = sys::wait_pidfd(&child.pidfd);
    }
    verdict?;
    let mut fds = vec![child.pidfd.as_fd()];
    fds.extend(terminal.as_ref().map(|(master, _)| master.as_fd()));
    tell(report.as_fd(), &Report::Started { pid: child.pid }, &fds);
    drop(terminal);

    if let Ok(status) = sys::wait_pidfd(&child.pidfd) {
        if spec.gvisor.is_some() {
            let by_force = matches!(status, ExitStatus::Signal(_));
            // Born in the instance's process ids, as the one before it.
            if let Ok(end) = sys::clone3(0, None, || gvisor::end_exec(&spec.id, joined, by_force)) {
                let _ = sys::wait_pidfd(&end.pidfd);
            }
        }
        // The client may have lost interest.
        let _ = File::from(exit).write_all(&encode_exit(status));
    }
    Ok(())
}

fn tell(socket: BorrowedFd<'_>, report: &Report, fds: &[BorrowedFd<'_>]) {
    if let Ok(bytes) = frame::encode(report)
        && frame::send(socket, &bytes, fds).is_err()
        && let Report::Failed {
            failure: LaunchFailure::Exec { program, errno, .. },
        } = report
    {
        // An argv too long for one packet: the client knows it anyway.
        let failure = LaunchFailure::Exec {
            program: program.clone(),
            argv: Vec::new(),
            errno: *errno,
        };
        if let Ok(bytes) = frame::encode(&Report::Failed { failure }) {
            let _ = frame::send(socket, &bytes, fds);
        }
    }
}

/// A terminal of the instance's own, so that `tty` works inside. What the instance may have put at
/// other paths is not followed: `/dev/pts` is a mount that it cannot change.
fn open_terminal(size: TtySize) -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let master = rustix::fs::openat2(
        rustix::fs::CWD,
        "/dev/pts/ptmx",
        flags,
        Mode::empty(),
        ResolveFlags::NO_SYMLINKS,
    )?;
    rustix::pty::unlockpt(&master)?;
    let peer = rustix::pty::ioctl_tiocgptpeer(
        &master,
        OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC,
    )?;
    resize(&master, size)?;
    Ok((master, peer))
}

/// On the way to the program, in the instance's namespaces.
struct Program<'a> {
    spec: &'a LaunchSpec,
    exec: &'a ExecSpec,
    filter: &'a Filter,
    init: BorrowedFd<'a>,
    joined: Joined,
}

impl Program<'_> {
    fn become_it(
        &self,
        procs: Vec<File>,
        ends: &[BorrowedFd<'_>],
        terminal: bool,
        verdict: &OwnedFd,
    ) -> Result<Infallible, LaunchFailure> {
        let user = self.exec.user.as_ref().unwrap_or(&self.spec.user);
        init::enter_cgroups(procs)?;
        let settle = || {
            setns(self.init, CloneFlags::CLONE_NEWCGROUP)?;
            rustix::process::setsid()?;
            sys::hurry(false);
            let [stdin, stdout, stderr] = ends else {
                return Err(io::Error::from(io::ErrorKind::InvalidInput));
            };
            if terminal {
                rustix::process::ioctl_tiocsctty(stdin)?;
                let owner = rustix::fs::Uid::from_raw(outside(self.spec.ids, user.uid));
                rustix::fs::fchown(stdin, Some(owner), None)?;
            }
            let _ = std::fs::write("/proc/self/oom_score_adj", "0");
            sys::set_stdio(*stdin, *stdout, *stderr)
        };
        settle().map_err(|error| LaunchFailure::Setup {
            what: "settle in the instance".to_owned(),
            errno: error.raw_os_error().unwrap_or(libc::EIO),
        })?;
        let namespace = self.spec.ids.map(|_| self.init);
        init::leave_the_machine(verdict.as_fd(), namespace)?;
        if self.spec.gvisor.is_some() {
            return gvisor::become_exec(self.spec, self.exec, user, self.joined, verdict.as_fd());
        }
        init::enter_directory(self.exec.cwd.as_deref().unwrap_or(&self.spec.cwd))?;
        let identity = Identity {
            takes_mounts: false,
            namespace,
            user,
            capabilities: &self.spec.capabilities,
            limits: &self.spec.limits,
        };
        init::start_program(
            &identity,
            &self.exec.argv,
            &self.exec.env,
            self.filter,
            verdict.as_fd(),
        )
    }
}
