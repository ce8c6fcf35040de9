//! The controller against a real store, a site in memory and a clock that is moved by hand.

mod crash;
mod life;
mod rest;
mod traffic;
mod world;
