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
        ExitCause::LaunchFailed { failure } => EndCause::FailedToStart {
            message: explain(failure),
        },
        ExitCause::Interrupted | ExitCause::Lost if !record.stop_ordered => EndCause::Interrupted,
        ExitCause::Stopped | ExitCause::Killed | ExitCause::Interrupted | ExitCause::Lost => {
            EndCause::Stopped
        }
        // It left by itself between the order and the signal: still what was wanted.
        ExitCause::Exited if record.stop_ordered => EndCause::Stopped,
        ExitCause::Exited if exit.oom_killed => EndCause::OutOfMemory {
            limit_bytes: record.spec.limits.memory_bytes,
        },
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
                E2BIG => {
                    "the arguments and the environment are too long together: make them shorter".to_owned()
                }
                _ => format!("{failure}"),
            }
        }
        LaunchFailure::Setup { .. } => format!("the instance could not be set up: {failure}"),
        LaunchFailure::Died => format!("{failure}"),
    }
}

#[cfg(test)]
mod tests {
    use tram_types::Generation;

    use super::*;
    use crate::testing::instance_spec;

    fn cause(cause: ExitCause, status: Option<ExitStatus>, oom_killed: bool, stop_ordered: bool) -> EndCause {
        let record = Record {
            spec: instance_spec("app", "web"),
            generation: Generation(1),
            slot: None,
            devices: None,
            became_healthy: false,
            stop_ordered,
            end: None,
        };
        let at = Timestamp::from_micros(1).jiff();
        end(
            &record,
            &ExitRecord {
                status,
                oom_killed,
                at,
                cause,
            },
        )
        .cause
    }

    #[test]
    fn what_was_seen_and_what_was_ordered_make_the_cause() {
        use ExitStatus::{Code, Signal};
        let limit_bytes = instance_spec("app", "web").limits.memory_bytes;
        for (seen, status, oom, ordered, expected) in [
            (
                ExitCause::Exited,
                Some(Code(3)),
                false,
                false,
                EndCause::Exited { code: 3 },
            ),
            (
                ExitCause::Exited,
                Some(Signal(11)),
                false,
                false,
                EndCause::Killed { signal: 11 },
            ),
            (
                ExitCause::Exited,
                Some(Signal(9)),
                true,
                false,
                EndCause::OutOfMemory { limit_bytes },
            ),
            (ExitCause::Exited, Some(Code(0)), false, true, EndCause::Stopped),
            (
                ExitCause::Stopped,
                Some(Code(143)),
                false,
                true,
                EndCause::Stopped,
            ),
            (
                ExitCause::Killed,
                Some(Signal(9)),
                false,
                false,
                EndCause::Stopped,
            ),
            (ExitCause::Lost, None, false, false, EndCause::Interrupted),
            (ExitCause::Interrupted, None, false, true, EndCause::Stopped),
        ] {
            assert_eq!(
                cause(seen.clone(), status, oom, ordered),
                expected,
                "{seen:?} {status:?}"
            );
        }
    }

    #[test]
    fn a_program_that_cannot_run_is_explained() {
        let failure = |errno| LaunchFailure::Exec {
            program: "npm start".to_owned(),
            argv: vec!["npm start".to_owned()],
            errno,
        };
        assert!(explain(&failure(ENOENT)).contains("The command is one word, its arguments go into args"));
        assert!(explain(&failure(EACCES)).contains("chmod +x"));
        assert!(explain(&failure(ENOEXEC)).contains("build the image for its processor"));
        let other = explain(&failure(5));
        assert!(
            other.contains("npm start") && other.contains("errno 5"),
            "{other}"
        );
    }
}
