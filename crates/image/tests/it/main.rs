//! The store against real registries, faulty ones, and hostile archives. One binary: linking is the slow part.

mod archives;
mod collect;
mod faults;
mod pull;
mod support;
mod users;
