//! A supervisor as a process of its own: what `tram supervise` is, for the tests of this crate.

use tram_sandbox::supervisor::{Config, Freezer, run};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let state_dir = std::env::args_os()
        .nth(1)
        .ok_or("usage: local-supervisor STATE_DIR")?
        .into();
    Ok(run(&Config {
        state_dir,
        freezer: Freezer::Auto,
    })?)
}
