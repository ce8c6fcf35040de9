//! A supervisor as a process of its own: what `tram supervise` is, for the tests and the benchmark.

use tram_sandbox::supervisor::{Config, Freezer, run};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    tram_sandbox::ensure_sealed()?;
    let mut arguments = std::env::args_os().skip(1);
    let state_dir = arguments
        .next()
        .ok_or("usage: supervisor STATE_DIR [v1-freezer]")?
        .into();
    let freezer = if arguments.next().is_some() {
        Freezer::V1
    } else {
        Freezer::Auto
    };
    Ok(run(&Config { state_dir, freezer })?)
}
