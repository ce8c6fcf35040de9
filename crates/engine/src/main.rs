//! `tram-engine`: a server of one language model, on llama.cpp's kernels.
//!
//! It runs as an instance in isolation, with nothing but a model file, and is a program like any other: it listens,
//! says on `/health` when it is ready, finishes what runs on SIGTERM, and says on standard error and by its exit code
//! why it could not go on (0 stopped, 1 failed, 2 wrong arguments, 3 no such file, 4 a file that is no good, 5 too
//! little memory).
//!
//! The house: `http` takes requests in, `engine` is the one thread that computes, `schedule` and `cache` decide what it
//! does, `sample`, `output`, `grammar` and `template` are between tokens and text, `kept` is what outlives the program.

mod cache;
mod engine;
mod grammar;
mod http;
mod kept;
mod logs;
mod model;
mod output;
mod request;
mod sample;
mod schedule;
mod serve;
mod settings;
mod spin;
mod template;
mod writing;

use std::process::ExitCode;

use clap::Parser;

use settings::{Arguments, Command};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    spin::bound();
    logs::start();
    let Command::Serve(settings) = arguments.command;
    match serve::run(settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            say(&problem);
            ExitCode::from(problem.exit_code())
        }
    }
}

/// The last words: the error and what caused it, on one line.
#[expect(clippy::print_stderr, reason = "the instance's log is its standard error")]
fn say(problem: &dyn std::error::Error) {
    let mut text = problem.to_string();
    let mut source = problem.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    eprintln!("tram-engine: {text}");
}
