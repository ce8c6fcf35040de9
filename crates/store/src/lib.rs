//! What we keep, in SQLite or PostgreSQL. The only crate that knows SQL.
//!
//! **What**: every object of the wire contract that must survive a restart: intent first, then what was confirmed.
//! **What not**: logs of instances (files in segments), metrics, images, and anything a site can tell again.
//! **Why here**: one schema and one SQL text for both databases, so that a cloud on one machine and one with many
//! replicas behave alike. Callers speak in records ([`record`]), filters ([`filter`]) and intents
//! ([`intent`]); no row, no transaction and no SQL leaves this crate.
//!
//! The one design choice to know: **a method is a transaction.** Whatever must be true together is written by one
//! method, and a [`Change`] is sent after its commit.

mod change;
mod column;
mod error;
pub mod filter;
pub mod intent;
mod keyring;
pub mod record;

pub use change::Change;
pub use error::{Error, Result};
