//! The program that the platform puts into every sandbox: commands, files, processes and one port, over HTTP.
//!
//! `tram-executor [--port N] [--proxy-port N] [--auth static|pool] [--secret-path PATH] [-- COMMAND…]`. It is the
//! first process of the instance, so it reaps whatever loses its parent, and it needs nothing of the image: it is
//! linked statically and opens no file of the image on its own. It is shared by whoever holds the sandbox's secret;
//! it is no barrier against the programs in the sandbox, which run as the same user.
//!
//! `tram-executor file …` is a command of its own: it moves one file through its standard streams (`transfer`); so is
//! `tram-executor terminal …`, which becomes a program on a terminal.
//!
//! A library, so that the fuzz targets reach what reads strangers' bytes (feature `fuzzing`); the program is [`main`] and
//! nothing else.
//!
//! The files in the order of a request: `server`, `blind`, `auth`, `request`, then one for each resource (`run`, `processes`,
//! `files`, `streaming`, `terminal`, `relay`), then what they share (`accept`, `children`, `output`, `reply`, `secret`).

mod accept;
mod auth;
mod blind;
mod children;
mod command;
mod files;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod identity;
mod output;
mod processes;
mod relay;
mod reply;
mod request;
mod run;
mod secret;
mod server;
mod settings;
mod streaming;
mod terminal;
mod transfer;

use std::process::ExitCode;

use settings::Settings;

/// What a shell says of a wrong invocation.
const WRONG_USE: u8 = 2;

/// The whole program, with the arguments and the environment of this process; returns its exit code.
pub fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1).peekable();
    if arguments.next_if(|first| first == transfer::WORD).is_some() {
        return transferred(transfer::run(arguments));
    }
    if arguments.next_if(|first| first == terminal::WORD).is_some() {
        return transferred(Err(terminal::become_program(arguments)));
    }
    let settings = match Settings::read(arguments, |name| std::env::var(name).ok()) {
        Ok(settings) => settings,
        Err(problem) => {
            say(&problem);
            return ExitCode::from(WRONG_USE);
        }
    };
    // One thread: the sandbox's processor belongs to its programs. Files are read and written on a few others.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(files::THREADS_MAX)
        .build();
    let outcome = runtime
        .map_err(|error| format!("cannot start: {error}"))
        .and_then(|runtime| {
            let outcome = runtime.block_on(command::run(settings));
            // A file operation that hangs on a dead network mount must not keep the sandbox from ending.
            runtime.shutdown_background();
            outcome
        });
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(problem) => {
            say(&problem);
            ExitCode::FAILURE
        }
    }
}

/// The end of a command that somebody waits for: what went wrong is theirs to read, not the sandbox's logs'.
#[expect(
    clippy::print_stderr,
    reason = "the standard error of the command that was asked for"
)]
fn transferred(outcome: Result<(), String>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::FAILURE
        }
    }
}

/// One line among the sandbox's logs. Never of a request: the logs belong to the sandbox's programs.
#[expect(clippy::print_stderr, reason = "the instance's log is its standard error")]
fn say(text: &str) {
    eprintln!("sandbox executor: {text}");
}
