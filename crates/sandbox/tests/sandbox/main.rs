//! The supervisor as its users meet it: a real process, a real socket, real instances on this kernel.
//!
//! Needs root and a static busybox; every test says so and passes when they are missing.

mod lifecycle;
mod support;
