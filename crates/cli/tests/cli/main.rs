//! The whole of tram's commands against a small server that answers as the contract says, comparing whole output.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that meets what it does not expect must fail at once"
)]

mod account;
mod arguments;
mod deploy;
mod lists;
mod references;
mod secrets;
mod server;
mod streams;
mod terminal;
mod tls;
mod tram;
