//! The shim: one tiny process per instance, the parent of its first process.
//!
//! Owns the instance's output and its end: it reads the pipes, waits, writes `exit.json`, and leaves.
//! Forked (not exec'd) by the supervisor, and outlives it.
//!
//! The one design choice to know: the shim holds a lock on `spec.json` for as long as it lives. That
//! is how a new supervisor, which shares nothing with it but the disk, knows whether an instance is
//! looked after; pids are only for signals.

pub(crate) mod control;
mod copies;
mod keeper;
mod pump;

use std::convert::Infallible;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use jiff::Timestamp;
use rustix::pipe::{PipeFlags, pipe_with};
use serde::{Deserialize, Serialize};

use crate::cgroup::{Attach, Driver};
use crate::disk::{self, Disk};
use crate::init::{self, Parts};
use crate::logs::{Stream, Writer};
use crate::protocol::{ExitCause, ExitRecord, ExitStatus, LaunchFailure, LaunchSpec, frame, outside};
use crate::seccomp::Filter;
use crate::state::{HeldDisk, InstanceDir, ProcessIdentity, Run, StopKind};
use crate::{sys, userns, volume};

/// Killed late when memory runs out: without the shim nobody learns how the instance ended. -1000
/// would exempt it altogether, which no process should be.
const OOM_SCORE_ADJ: &str = "-900";
/// Sent to whole groups or sessions, never meant for a shim.
const IGNORED_SIGNALS: [i32; 5] = [
    libc::SIGTERM,
    libc::SIGINT,
    libc::SIGHUP,
    libc::SIGQUIT,
    libc::SIGPIPE,
];
/// What the child says when nothing but the exec is left.
pub(crate) const READY: &[u8] = b"R";
/// A failure with a long argv; the frame limit bounds what can be in there.
const FAILURE_BYTES_MAX: u64 = frame::FRAME_BYTES_MAX as u64;

/// What the shim tells the supervisor that forked it, once.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    Started {
        init: ProcessIdentity,
        started_at: Timestamp,
    },
    /// It is over already: `exit.json` says why.
    Ended,
}

/// Everything a shim needs; all of it was made before the fork.
pub(crate) struct Order<'a> {
    pub(crate) dir: &'a InstanceDir,
    pub(crate) spec: &'a LaunchSpec,
    pub(crate) driver: &'a dyn Driver,
    pub(crate) filter: &'a Filter,
    pub(crate) boot_id: &'a str,
    /// To the supervisor; a closed other end is not an error.
    pub(crate) report: OwnedFd,
    /// Held, never read.
    pub(crate) lock: File,
    /// For its writable layer; made here when one is wanted and there was none in stock.
    pub(crate) disk: Option<Disk>,
}

/// The body of the shim process. Returns its exit code.
pub(crate) fn run(order: Order<'_>) -> i32 {
    match supervise(&order) {
        Ok(()) => 0,
        Err(error) => {
            // The supervisor sees a shim that left no exit record; the owner sees why.
            let _ = crate::logs::append_platform(
                order.dir.logs(),
                &format!("the instance's keeper failed: {error}"),
            );
            1
        }
    }
}

fn supervise(order: &Order<'_>) -> io::Result<()> {
    detach()?;
    let null: OwnedFd = File::options().read(true).write(true).open("/dev/null")?.into();
    let (stdout, child_stdout) = pipe_with(PipeFlags::CLOEXEC)?;
    let (stderr, child_stderr) = pipe_with(PipeFlags::CLOEXEC)?;
    let (verdict, child_verdict) = pipe_with(PipeFlags::CLOEXEC)?;
    // A program of another user may open /dev/stdout, which is this pipe.
    let owner = (
        rustix::fs::Uid::from_raw(outside(order.spec.ids, order.spec.user.uid)),
        rustix::fs::Gid::from_raw(outside(order.spec.ids, order.spec.user.gid)),
    );
    for pipe in [&child_stdout, &child_stderr] {
        rustix::fs::fchown(pipe, Some(owner.0), Some(owner.1))?;
    }
    let attach = order.driver.attach(order.spec.id.as_str())?;
    let mut keep = vec![order.report.as_fd(), order.lock.as_fd(), null.as_fd()];
    keep.extend(
        [
            &stdout,
            &child_stdout,
            &stderr,
            &child_stderr,
            &verdict,
            &child_verdict,
        ]
        .map(AsFd::as_fd),
    );
    keep.extend(attach.fds());
    if let Some(disk) = &order.disk {
        keep.extend([&disk.mount, &disk.file].map(AsFd::as_fd));
    }
    sys::close_all_except(&keep)?;
    sys::set_stdio(null.as_fd(), null.as_fd(), null.as_fd())?;

    let own = own_identity()?;
    let made = match (order.spec.disk_bytes_max, &order.spec.disk_from) {
        (_, Some(snapshot)) => match disk::make_from(&order.dir.disks(), snapshot) {
            Ok(disk) => Some(disk),
            Err(error) => {
                let failure = LaunchFailure::Setup {
                    what: "make the disk from its snapshot".to_owned(),
                    errno: error.raw_os_error().unwrap_or(libc::EIO),
                };
                return fail(order, failure);
            }
        },
        // Without a disk of its own the writable layer is not bounded; whoever measures it says so.
        (Some(bytes), None) if order.disk.is_none() => disk::make(&order.dir.disks(), bytes).ok(),
        _ => None,
    };
    let disk = order.disk.as_ref().or(made.as_ref());
    // Held to the end, so that the disk's own end comes after the instance's and can be a short one.
    let held = disk.map(|disk| disk::open(&disk.mount)).transpose()?;
    let namespace = match order.spec.ids.map(userns::make).transpose() {
        Ok(namespace) => namespace,
        Err(error) => {
            let failure = LaunchFailure::Setup {
                what: "make the user namespace".to_owned(),
                errno: error.raw_os_error().unwrap_or(libc::EIO),
            };
            return fail(order, failure);
        }
    };
    let mut volumes = Vec::with_capacity(order.spec.volumes.len());
    for volume in &order.spec.volumes {
        match volume::attach(&volume.file, &order.spec.user) {
            Ok(mount) => volumes.push(mount),
            Err(error) => {
                // What a tool said has no number.
                let what = format!("attach the volume at {}: {error}", volume.target.display());
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                return fail(order, LaunchFailure::Setup { what, errno });
            }
        }
    }
    let parts = Parts {
        disk: disk.map(|disk| &disk.mount),
        volumes: &volumes,
        namespace: namespace.as_ref(),
    };
    let Attach { born_in, procs, cpu } = attach;
    let child = sys::clone3(
        init::namespaces(&order.spec.network),
        born_in.as_ref().map(AsFd::as_fd),
        || {
            let stdio = [null.as_fd(), child_stdout.as_fd(), child_stderr.as_fd()];
            let attach = Attach {
                born_in: None,
                procs,
                cpu,
            };
            let Err(failure) = first_process(order, parts, attach, stdio, &child_verdict);
            // Nobody listens when the shim is gone; then there is nobody to tell either.
            let _ = File::from(child_verdict).write_all(&serde_json::to_vec(&failure).unwrap_or_default());
            1
        },
    );
    let child = match child {
        Ok(child) => child,
        Err(error) => {
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            return fail(
                order,
                LaunchFailure::Setup {
                    what: "make the first process".to_owned(),
                    errno,
                },
            );
        }
    };
    // The instance's own mounts alone keep its volumes.
    drop((null, child_stdout, child_stderr, born_in, volumes));
    if let Err(failure) = read_verdict(verdict) {
        let _ = sys::wait_pidfd(&child.pidfd);
        return fail(order, failure);
    }

    let (pid, process, pages) = match &order.spec.memory_from {
        None => (child.pid, child.pidfd, None),
        Some(from) => match copies::begin_as(order, from, &child, [&stdout, &stderr]) {
            Ok(restored) => (restored.pid, restored.pidfd, restored.pages),
            Err(error) => {
                let failure = LaunchFailure::Setup {
                    what: format!("go on with the processes of the snapshot ({error})"),
                    errno: error.raw_os_error().unwrap_or(libc::EIO),
                };
                return fail(order, failure);
            }
        },
    };

    let started_at = Timestamp::now();
    let init = ProcessIdentity {
        pid,
        start_ticks: sys::start_ticks(pid).unwrap_or_default(),
    };
    let (boot_id, generation) = (order.boot_id.to_owned(), order.spec.generation);
    let run = Run {
        boot_id,
        generation,
        shim: own,
        init,
        started_at,
        checkpointed: false,
        disk: disk.zip(held.as_ref()).map(|(disk, held)| HeldDisk {
            file: disk.file.as_raw_fd(),
            directory: held.as_raw_fd(),
        }),
    };
    order.dir.write_run(&run)?;
    let listener = control::listen(order.dir)?;
    report(order, &Report::Started { init, started_at });
    sys::hurry(false);

    let writer = Writer::open(&order.dir.logs(), &order.spec.logs)?;
    let streams = [(Stream::Stdout, stdout), (Stream::Stderr, stderr)];
    let pump = pump::Pump::new(streams, writer, &order.spec.logs)?;
    let status = keeper::Keeper::new(order, run, process, pages, pump, listener).run()?;
    order.dir.write_exit(&exit_record(order, status))?;
    if let Some(held) = held {
        disk::abandon(held.as_fd());
    }
    Ok(())
}

/// Out of the supervisor's session, and hard to kill by accident.
fn detach() -> io::Result<()> {
    rustix::process::setsid()?;
    sys::hurry(true);
    rustix::thread::set_name(c"tram-shim")?;
    sys::reset_signals()?;
    sys::ignore_signals(&IGNORED_SIGNALS);
    // Not allowed everywhere, and not essential.
    let _ = fs::write("/proc/self/oom_score_adj", OOM_SCORE_ADJ);
    Ok(rustix::process::chdir("/")?)
}

fn own_identity() -> io::Result<ProcessIdentity> {
    let pid = rustix::process::getpid().as_raw_nonzero().get();
    let start_ticks = sys::start_ticks(pid).ok_or_else(|| io::Error::other("cannot read /proc/self/stat"))?;
    Ok(ProcessIdentity { pid, start_ticks })
}

/// In the child: on the way to the program.
fn first_process(
    order: &Order<'_>,
    parts: Parts<'_>,
    attach: Attach,
    [stdin, stdout, stderr]: [std::os::fd::BorrowedFd<'_>; 3],
    verdict: &OwnedFd,
) -> Result<Infallible, LaunchFailure> {
    let _ = fs::write("/proc/self/oom_score_adj", "0");
    sys::set_stdio(stdin, stdout, stderr).map_err(|error| LaunchFailure::Setup {
        what: "set up the standard streams".to_owned(),
        errno: error.raw_os_error().unwrap_or(libc::EIO),
    })?;
    init::become_instance(
        order.spec,
        order.dir,
        parts,
        attach,
        order.driver.view(),
        order.filter,
        verdict.as_fd(),
    )
}

/// Ready and then nothing: the exec closed the pipe, so the program runs.
pub(crate) fn read_verdict(verdict: OwnedFd) -> Result<(), LaunchFailure> {
    let mut said = Vec::new();
    if File::from(verdict)
        .take(FAILURE_BYTES_MAX)
        .read_to_end(&mut said)
        .is_err()
    {
        return Err(LaunchFailure::Died);
    }
    match said.strip_prefix(READY) {
        Some([]) => Ok(()),
        Some(failure) => Err(serde_json::from_slice(failure).unwrap_or(LaunchFailure::Died)),
        None => Err(serde_json::from_slice(&said).unwrap_or(LaunchFailure::Died)),
    }
}

fn fail(order: &Order<'_>, failure: LaunchFailure) -> io::Result<()> {
    let _ = crate::logs::append_platform(
        order.dir.logs(),
        &format!("the instance did not start: {failure}"),
    );
    let cause = match order.dir.stop()? {
        Some(stop) if failure == LaunchFailure::Died => stopped(stop.kind),
        _ => ExitCause::LaunchFailed { failure },
    };
    order.dir.write_exit(&ExitRecord {
        status: None,
        oom_killed: false,
        at: Timestamp::now(),
        cause,
    })?;
    report(order, &Report::Ended);
    Ok(())
}

fn report(order: &Order<'_>, report: &Report) {
    if let Ok(bytes) = serde_json::to_vec(report) {
        // The supervisor may be gone; the next one reads the disk.
        let _ = frame::send(order.report.as_fd(), &bytes, &[]);
    }
}

/// `status` is absent when it could not be brought back from a checkpoint.
fn exit_record(order: &Order<'_>, status: Option<ExitStatus>) -> ExitRecord {
    let kills = order.driver.oom_kills(order.spec.id.as_str()).unwrap_or(0);
    let cause = match (order.dir.stop(), status) {
        (Ok(Some(stop)), _) => stopped(stop.kind),
        (_, Some(_)) => ExitCause::Exited,
        (_, None) => ExitCause::Lost,
    };
    ExitRecord {
        status,
        oom_killed: kills > 0 && status.is_some_and(|status| status != ExitStatus::Code(0)),
        at: Timestamp::now(),
        cause,
    }
}

fn stopped(kind: StopKind) -> ExitCause {
    match kind {
        StopKind::Stop => ExitCause::Stopped,
        StopKind::Kill => ExitCause::Killed,
    }
}
