//! The store against real registries, faulty ones, and hostile archives. One binary: linking is the slow part.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "tests fail by panicking, and say why they were skipped; the exemption for tests does not reach helpers"
)]

mod archives;
mod collect;
mod faults;
mod kill;
mod pull;
mod support;
mod tls;
mod users;
