//! `tram`: one binary, every role. See the library for what the roles are.

use std::process::ExitCode;

fn main() -> ExitCode {
    tram_server::main(std::env::args_os())
}
