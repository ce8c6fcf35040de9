//! The composition root: the one crate that knows all others.
//!
//! `tram` is one binary with several roles. Commands for people are carried out by `tram-cli`; the roles that need
//! other rooms of the house come here: `up` (the control plane), `supervise` and `edge` (its helper processes),
//! `doctor`, `trust`, `images`, `admin`, `simulate`. Nothing is decided in this crate; it starts things in order,
//! connects them, and stops them in the reverse order.
//!
//! Start reading at [`up`].

mod addresses;
pub mod admin;
pub mod bootstrap;
pub mod checkpoint;
pub mod collector;
pub mod data_plane;
pub mod doctor;
pub mod door;
pub mod engine;
pub mod engine_image;
pub mod executor;
pub mod figures;
pub mod gpus;
pub mod helper_logs;
pub mod host;
pub mod images;
pub mod invoker;
pub mod isolation;
pub mod leadership;
pub mod logging;
pub mod members;
pub mod metrics;
pub mod model_metrics;
pub mod models;
pub mod network;
pub mod observe;
pub mod operate;
pub mod paths;
pub mod pool_metrics;
pub mod processes;
pub mod roles;
pub mod sampler;
pub mod scaling;
mod secret_values;
pub mod simulate;
pub mod stops;
pub mod traces;
pub mod trust;
pub mod up;
pub mod usage;
pub mod verifier;
pub mod wakes;

use std::{ffi::OsString, process::ExitCode};

use tram_cli::{Outcome, Printer, ServerCommand};

/// The whole program.
#[must_use]
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    // One implementation of cryptography for every connection of the process. It is set once; a second time would
    // mean that `main` ran twice.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match tram_cli::run(arguments) {
        Outcome::Exit(code) => ExitCode::from(code),
        Outcome::Server { command, printer } => serve(*command, &printer),
    }
}

fn serve(command: ServerCommand, printer: &Printer) -> ExitCode {
    match command {
        ServerCommand::Supervise(arguments) => roles::supervise(&arguments),
        ServerCommand::Edge(arguments) => roles::edge(&arguments),
        ServerCommand::Up(settings) => finish(printer, block_on(up::run(settings, printer))),
        ServerCommand::Doctor { settings, unread } => {
            match block_on(doctor::run(&settings, unread.as_deref(), printer)) {
                Ok(true) => ExitCode::SUCCESS,
                Ok(false) => ExitCode::FAILURE,
                Err(error) => finish(printer, Err(error)),
            }
        }
        ServerCommand::Trust { settings, action } => finish(printer, trust::run(&settings, action, printer)),
        ServerCommand::Images { settings, action } => {
            finish(printer, block_on(images::run(&settings, action, printer)))
        }
        ServerCommand::Models { settings, action } => {
            finish(printer, block_on(models::run(&settings, action, printer)))
        }
        ServerCommand::Admin { settings, action } => {
            finish(printer, block_on(operate::run(&settings, action, printer)))
        }
        ServerCommand::Simulate(arguments) => finish(printer, simulate::run(&arguments, printer)),
    }
}

fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(Box::pin(work));
    // Reads of standard input may hang for ever; the process ends anyway.
    runtime.shutdown_background();
    result
}

fn finish(printer: &Printer, result: Result<(), anyhow::Error>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let causes: Vec<String> = error
                .chain()
                .skip(1)
                .map(|cause| format!("  because: {cause}"))
                .collect();
            printer.error_bytes(format!("error: {error}\n").as_bytes());
            for cause in causes {
                printer.error_bytes(format!("{cause}\n").as_bytes());
            }
            if let Some(hint) = hint(&error, nix::unistd::geteuid().is_root()) {
                printer.error_bytes(format!("hint: {hint}\n").as_bytes());
            }
            ExitCode::FAILURE
        }
    }
}

/// What the user can do about it: what an error of the command line says, or to come back as root.
fn hint(error: &anyhow::Error, is_root: bool) -> Option<String> {
    error.chain().find_map(|cause| {
        if let Some(error) = cause.downcast_ref::<tram_cli::Error>() {
            return error.hint();
        }
        if let Some(error) = cause.downcast_ref::<tram_cli::context::Error>() {
            return error.hint();
        }
        let denied = std::io::ErrorKind::PermissionDenied;
        let error = cause.downcast_ref::<std::io::Error>()?;
        (error.kind() == denied && !is_root).then(|| "run it with sudo".to_owned())
    })
}

/// An error with its causes, in one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let said = next.to_string();
        // A transparent error says the same as its cause.
        if !text.ends_with(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = next.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn an_error_for_want_of_rights_says_so() {
        let denied = || Err::<(), _>(std::io::Error::from(std::io::ErrorKind::PermissionDenied));
        let error = denied()
            .context("cannot reach the running control plane")
            .unwrap_err();
        assert_eq!(hint(&error, false).unwrap(), "run it with sudo");
        assert_eq!(hint(&error, true), None);
        let home = anyhow::Error::new(tram_cli::context::Error::NoHome).context("cannot keep it");
        assert!(hint(&home, true).unwrap().contains("HOME"));
        assert_eq!(hint(&anyhow::anyhow!("no"), false), None);
    }
}
