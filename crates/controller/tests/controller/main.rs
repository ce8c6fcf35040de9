//! The controller against a real store, a site in memory and a clock that is moved by hand.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod chaos;
mod crash;
mod habits;
mod handover;
mod instance_snapshots;
mod life;
mod light;
mod packing;
mod policy;
mod rest;
mod scale;
mod traffic;
mod wakes;
mod world;
