//! How an instance ended, in the site's words.
//!
//! Pure: from what the supervisor saw and what was ordered to the cause that people read.

use tram_sandbox::protocol::{ExitCause, ExitRecord, ExitStatus, LaunchFailure};
use tram_site::EndCause;
use tram_types::Timestamp;

use crate::record::{End, Record};

/// "No such file or directory", "permission denied", "not a program", "is a directory".
const ENOENT: i32 = 2;
const EACCES: i32 = 13;
const ENOEXEC: i32 = 8;
const EISDIR: i32 = 21;
/// "Argument list too long".
const E2BIG: i32 = 7;

/// What `exit` means for the instance of `record`.
pub(crate) fn end(record: &Record, exit: &ExitRecord) -> End {
    let at = Timestamp::from(exit.at);
    let cause = match &exit.cause {
        ExitCause::LaunchFailed { failure } => EndCause::FailedToStart { message: explain(failure) },
        ExitCause::Interrupted | ExitCause::Lost if !record.stop_ordered => EndCause::Interrupted,
        ExitCause::Stopped | ExitCause::Killed | ExitCause::Interrupted | ExitCause::Lost => EndCause::Stopped,
        // It left by itself between the order and the signal: still what was wanted.
        ExitCause::Exited if record.stop_ordered => EndCause::Stopped,
        ExitCause::Exited if exit.oom_killed => {
            EndCause::OutOfMemory { limit_bytes: record.spec.limits.memory_bytes }
        }
        ExitCause::Exited => match exit.status {
            Some(ExitStatus::Code(code)) => EndCause::Exited { code },
            Some(ExitStatus::Signal(signal)) => EndCause::Killed { signal },
            None => EndCause::Interrupted,
        },
    };
    End { cause, at }
}

/// Why a program could not be started, and what to do about it.
pub(crate) fn explain(failure: &LaunchFailure) -> String {
    match failure {
        LaunchFailure::Exec { program, argv, errno } => {
            let command = argv.join(" ");
            match *errno {
                ENOENT => format!(
                    "the program `{program}` is not in the image: check the entrypoint and the command \
                     (`{command}`). The command is one word, its arguments go into args. If the file is there, \
                     the interpreter or the loader it names is missing"
                ),
                EACCES | EISDIR => format!(
                    "the program `{program}` cannot be executed: make the file executable in the image \
                     (`chmod +x`), and check that its user may read it"
                ),
                ENOEXEC => format!(
                    "the program `{program}` is not made for this machine: build the image for its processor; \
                     a script must begin with a line such as `#!/bin/sh`"
                ),
                E2BIG => "the arguments and the environment are too long together: make them shorter".to_owned(),
                _ => format!("{failure}"),
            }
        }
        LaunchFailure::Setup { .. } => format!("the instance could not be set up: {failure}"),
        LaunchFailure::Died => format!("{failure}"),
    }
}
