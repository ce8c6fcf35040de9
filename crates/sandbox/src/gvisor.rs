//! The class `gvisor`: an instance whose system calls are answered by a kernel of its own, in user space.
//!
//! ```text
//! shim ── clone3 ── first process (`first`, our code, in its namespaces, in a room with nothing else in it)
//!                     └── runsc ── gofer (opens the instance's files)
//!                              └── sentry (the kernel) ── the program
//! ```
//!
//! Owns: finding gVisor's program `runsc` and what it is told. The mounts are made by `init::room`. Called by the shim
//! (through `init`), by execs, and by whoever asks whether this machine can.
//!
//! The one design choice to know: everything around the program stays as it is for every other instance. The first process
//! of the namespaces is ours, so limits, freezing, signals, the end and adoption need no second way; and when it dies, the
//! kernel ends what belongs to it and takes its mounts away, so runsc leaves nothing that had to be cleaned up.

mod config;
mod exec;
mod find;
mod first;

use std::ffi::CString;
use std::io;

pub use find::{Missing, Runsc, VERSION_MIN};

pub(crate) use exec::{Joined, become_exec, end_exec};
pub(crate) use first::run;

use crate::protocol::InstanceId;

/// Where runsc is in the room that it runs in.
pub(crate) const PROGRAM: &str = "/runsc";
/// Where the instance's root is there.
pub(crate) const ROOT: &str = "/root";
/// What runsc is told of the instance.
pub(crate) const BUNDLE: &str = "/bundle";
/// Where runsc keeps what it knows between one call and the next.
const STATE: &str = "/run";
/// Where runsc writes why it gave up.
const COMPLAINTS: &str = "/complaints";
/// What a Go program needs of an environment.
const ENVIRONMENT: [(&str, &str); 1] = [("PATH", "/")];

/// Said to every call of runsc.
///
/// - `systrap` needs neither ptrace nor hardware virtualization.
/// - The limits are ours, and set outside: `ignore-cgroups`.
/// - What a program writes is on the instance's own disk at once, not in the sentry's memory: `overlay2` and
///   `file-access`. A kill loses what a kill of any program loses, and a snapshot of the disk has everything.
/// - Files are opened by the gofer alone, so the sentry needs no right to open any: `directfs`.
/// - No socket and no pipe of the machine can be reached through a file.
const FLAGS: [&str; 9] = [
    "--platform=systrap",
    "--network=sandbox",
    "--ignore-cgroups=true",
    "--overlay2=none",
    "--file-access=shared",
    "--file-access-mounts=shared",
    "--directfs=false",
    "--host-uds=none",
    "--host-fifo=none",
];

/// The words of one call of runsc in the room.
fn words(command: &[&str]) -> Vec<String> {
    let mut words = vec![PROGRAM.to_owned(), format!("--root={STATE}")];
    words.push(format!("--log={COMPLAINTS}"));
    words.extend(FLAGS.map(str::to_owned));
    words.extend(command.iter().map(|word| (*word).to_owned()));
    words
}

/// What runsc calls the instance: there is no other in its room.
fn name(id: &InstanceId) -> &str {
    id.as_str()
}

/// Becomes runsc.
fn execute(words: &[String]) -> io::Error {
    let c_string = |text: String| CString::new(text);
    let words: Result<Vec<CString>, _> = words.iter().cloned().map(c_string).collect();
    let environment: Result<Vec<CString>, _> = ENVIRONMENT
        .iter()
        .map(|(name, value)| c_string(format!("{name}={value}")))
        .collect();
    let (Ok(words), Ok(environment)) = (words, environment) else {
        return io::ErrorKind::InvalidInput.into();
    };
    let Some(program) = words.first() else {
        return io::ErrorKind::InvalidInput.into();
    };
    let Err(errno) = nix::unistd::execve(program, &words, &environment);
    errno.into()
}
