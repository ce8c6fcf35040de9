//! The commands of tram: arguments -> settings -> command -> printer.
//!
//! The binary `tram` is the server's; it calls [`run`] with the process's arguments. Whatever is a client of the
//! REST API or of nothing at all (`deploy`, `logs`, `context`, `completion` …) is carried out here and comes back
//! as an exit code. Whatever needs the other rooms of the house (`up`, `doctor`, `images` …) comes back as a
//! [`ServerCommand`] with its settings resolved, for only the composition root knows those rooms.
//!
//! The one choice to know: a command sees the outside only through a [`Host`] (variables, streams, clock,
//! interrupt) and a [`Printer`], so that tests run the whole of it and compare whole output.

pub mod arguments;
pub mod commands;
pub mod context;
pub mod error;
pub mod host;
pub mod printer;
pub mod reference;
pub mod settings;

mod age;
mod client;
mod resolve;
mod session;
mod suggest;
mod view;

use std::ffi::OsString;

use clap::{CommandFactory as _, FromArgMatches as _};

pub use crate::{
    arguments::Arguments,
    commands::{
        AdminAction, HubToken, ImagesAction, ModelsAction, SecretName, ServerCommand, SimulateArguments,
        TrustAction,
    },
    error::Error,
    host::{Host, Interrupt},
    printer::{Output, Printer, columns},
    settings::Settings,
};
use crate::{
    commands::{Command, RemoteCommand, models},
    session::Session,
};

/// The exit code of a command that did what it was asked.
pub const EXIT_SUCCESS: u8 = 0;
/// The exit code of a command that failed.
pub const EXIT_FAILURE: u8 = 1;
/// The exit code of arguments that make no sense, as clap has it.
pub const EXIT_USAGE: u8 = 2;
/// The exit code after Ctrl-C: 128 and the number of SIGINT, as shells have it.
pub const EXIT_INTERRUPTED: u8 = 130;

/// What became of the arguments.
#[derive(Debug)]
pub enum Outcome {
    /// The command is done; the process ends with this code. Everything to be said has been said.
    Exit(u8),
    /// The composition root carries this out, and speaks to the user through the printer.
    Server {
        /// What to do, with its settings.
        command: Box<ServerCommand>,
        /// Where to say it.
        printer: Printer,
    },
}

/// Carries out `args` (the program's name first) with the process's own streams and variables.
///
/// Blocks until the command is done; must not be called from within an async runtime. The process must have
/// installed a TLS provider (`rustls::crypto::CryptoProvider::install_default`) before.
pub fn run(args: impl IntoIterator<Item = OsString>) -> Outcome {
    run_with(args, Host::of_process())
}

/// As [`run`], with a given outside.
pub fn run_with(args: impl IntoIterator<Item = OsString>, host: Host) -> Outcome {
    let no_colour = host.variable("NO_COLOR").is_some_and(|value| !value.is_empty());
    let parsed = Arguments::command()
        .try_get_matches_from(args)
        .and_then(|matches| Arguments::from_arg_matches(&matches));
    let arguments = match parsed {
        Ok(arguments) => arguments,
        Err(refusal) => {
            let printer = Printer::new(&host, Output::Table, false, false, no_colour);
            printer.usage(&refusal);
            return Outcome::Exit(u8::try_from(refusal.exit_code()).unwrap_or(EXIT_USAGE));
        }
    };
    let global = arguments.global;
    let printer = Printer::new(
        &host,
        global.output,
        global.quiet,
        global.verbose,
        global.no_color || no_colour,
    );
    let drive_remote = |command, host| {
        let session = Session::new(host, printer.clone(), global.context.clone());
        drive(commands::run_remote(command, session)).map(Outcome::Exit)
    };
    let serve = |command| Outcome::Server {
        command: Box::new(command),
        printer: printer.clone(),
    };
    let outcome = match arguments.command {
        Command::Server(command) => commands::resolve_server(command, &host).map(serve),
        Command::Remote(command) => drive_remote(command, host),
        Command::Models(models) => match models.action {
            models::Action::Remote(action) => drive_remote(RemoteCommand::Models(action), host),
            models::Action::Server(action) => models::resolve(action, &host).map(serve),
        },
    };
    outcome.unwrap_or_else(|error| {
        printer.failure(&error);
        Outcome::Exit(error.exit_code())
    })
}

/// Runs one command to its end. A read of the terminal may still block a thread then; it is left behind, since
/// the process ends anyway.
fn drive(command: impl Future<Output = Result<u8, Error>>) -> Result<u8, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::Runtime)?;
    let result = runtime.block_on(command);
    runtime.shutdown_background();
    result
}
