//! Isolation on this machine, and the supervisor that launches with it.

pub mod client;
pub mod protocol;
pub mod supervisor;
