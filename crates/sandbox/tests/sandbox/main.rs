//! The supervisor as its users meet it: a real process, a real socket, real instances on this kernel.
//!
//! Needs root and a static busybox; every test says so and passes when they are missing.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests fail by panicking, and say on stderr why they were skipped"
)]

mod checkpoint;
mod copies;
mod devices;
mod disk;
mod disk_snapshot;
mod exec;
mod freeze;
mod gvisor;
mod isolation;
mod lifecycle;
mod limits;
mod output;
mod recovery;
mod support;
mod userns;
mod volume;
