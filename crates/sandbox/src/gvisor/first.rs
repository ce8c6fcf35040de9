//! The first process of an instance in gVisor, and the parent of runsc.
//!
//! Has runsc start the program, says so, and then does three things until the program ends: it hands signals on, it reaps
//! what is left by others, and it ends as the program ended. It lives in the instance's namespaces and in a room with
//! nothing of the machine (see `init::room`).
//!
//! The one design choice to know: runsc leaves once the program runs, and the sentry becomes a child of this process. It
//! ends as its program ended, so nobody has to ask it how, and no other process has to stay.

use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{Command, Stdio};

use nix::sys::signal::SigSet;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags};

use super::{BUNDLE, COMPLAINTS, ENVIRONMENT, config, name, words};
use crate::protocol::{ExitStatus, InstanceId, LaunchFailure, LaunchSpec};
use crate::shim::READY;
use crate::sys;

/// Where runsc writes which process the sentry is.
const SENTRY: &str = "/bundle/sentry";
/// How an end by a signal is told, as shells and runsc do: by a code of this and the signal.
const BY_SIGNAL: i32 = 128;
/// A sentence of runsc's is shown to the owner, up to here.
const COMPLAINT_BYTES_MAX: usize = 1024;
/// How runsc says that there is no such program, that it may not be executed, and that it is none.
const EXEC_FAILURES: [(&str, i32); 4] = [
    ("no such file or directory", libc::ENOENT),
    ("permission denied", libc::EACCES),
    ("exec format error", libc::ENOEXEC),
    ("not a directory", libc::ENOTDIR),
];

/// Returns only to say why there is no program.
pub(crate) fn run(
    spec: &LaunchSpec,
    tmp: bool,
    verdict: BorrowedFd<'_>,
) -> Result<Infallible, LaunchFailure> {
    let during = |what: &str, error: io::Error| LaunchFailure::Setup {
        what: what.to_owned(),
        errno: error.raw_os_error().unwrap_or(libc::EIO),
    };
    let text = config::of(spec, tmp).to_string();
    std::fs::write(format!("{BUNDLE}/config.json"), text)
        .map_err(|error| during("write the configuration for gVisor", error))?;
    // Blocked ones wait, also for a first process, which the kernel otherwise spares signals it has no handler for.
    let signals = listen().map_err(|error| during("listen to signals", error))?;
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    let pid_file = format!("--pid-file={SENTRY}");
    let status = call(&["run", "--detach", &pid_file, "--bundle", BUNDLE, name(&spec.id)])
        .status()
        .map_err(|error| during("run gVisor", error))?;
    if !status.success() {
        return Err(explain(spec, &complaint()));
    }
    let sentry = std::fs::read_to_string(SENTRY)
        .and_then(|text| text.trim().parse().map_err(io::Error::other))
        .map_err(|error| during("find the kernel that gVisor started", error))?;
    let _ = rustix::io::write(verdict, READY);
    // The other end reads to the end, so this one has to close.
    let keep = [
        rustix::stdio::stdin(),
        rustix::stdio::stdout(),
        rustix::stdio::stderr(),
        signals.as_fd(),
    ];
    sys::close_all_except(&keep).map_err(|error| during("close the way to the keeper", error))?;
    sys::exit(match keep_company(&spec.id, &signals, sentry) {
        ExitStatus::Code(code) => code,
        ExitStatus::Signal(signal) => BY_SIGNAL + signal,
    })
}

fn listen() -> io::Result<SignalFd> {
    let mask = SigSet::all();
    mask.thread_block()?;
    Ok(SignalFd::with_flags(
        &mask,
        SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK,
    )?)
}

/// One call of runsc, whose output goes where the instance's does.
fn call(arguments: &[&str]) -> Command {
    let words = words(arguments);
    let mut command = Command::new(super::PROGRAM);
    command
        .args(words.iter().skip(1))
        .env_clear()
        .envs(ENVIRONMENT)
        .stdin(Stdio::null());
    command
}

/// Until the sentry has ended, and how.
fn keep_company(id: &InstanceId, signals: &SignalFd, sentry: i32) -> ExitStatus {
    loop {
        let mut fds = [PollFd::new(signals, PollFlags::IN)];
        // Only a broken argument makes it fail; the program is looked after all the same.
        let _ = sys::poll(&mut fds, None);
        let mut children = false;
        while let Ok(Some(signal)) = signals.read_signal() {
            match i32::try_from(signal.ssi_signo).unwrap_or_default() {
                libc::SIGCHLD => children = true,
                number => hand_on(id, number),
            }
        }
        if !children {
            continue;
        }
        let mut reaped = sys::reap_ended().into_iter();
        if let Some((_, status)) = reaped.find(|(pid, _)| *pid == sentry) {
            return status;
        }
    }
}

/// Gives a signal to the program. It is not waited for: the program may end by it at once.
fn hand_on(id: &InstanceId, signal: i32) {
    let number = signal.to_string();
    let _ = call(&["kill", name(id), &number])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
}

/// The last thing runsc complained of.
fn complaint() -> String {
    let text = std::fs::read_to_string(COMPLAINTS).unwrap_or_default();
    let said = text.lines().rev().find_map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).ok()?;
        Some(line.get("msg")?.as_str()?.to_owned())
    });
    let mut said = said.unwrap_or_else(|| text.lines().last().unwrap_or("it does not say why").to_owned());
    let end = said.floor_char_boundary(COMPLAINT_BYTES_MAX);
    said.truncate(end);
    said
}

/// What runsc says, as a failure that others know how to treat.
fn explain(spec: &LaunchSpec, complaint: &str) -> LaunchFailure {
    let program = spec.argv.first().cloned().unwrap_or_default();
    let about_program = complaint.contains("finding executable") || complaint.contains("failed to load");
    let errno = EXEC_FAILURES
        .iter()
        .find(|(words, _)| about_program && complaint.ends_with(words));
    match errno {
        Some((_, errno)) => LaunchFailure::Exec {
            program,
            argv: spec.argv.clone(),
            errno: *errno,
        },
        None => LaunchFailure::Setup {
            what: format!("start it in gVisor ({complaint})"),
            errno: libc::EIO,
        },
    }
}
