//! The simulator: replays traces of real clouds against the planner's own code, on a clock of its own.
//!
//! Two layers. [`keepalive`], [`autoscale`] and [`routing`] compare policies on one question each, with the planner's policy
//! functions beside re-implemented baselines; every service is on its own there. [`world`] runs the whole planner for
//! thousands of services on machines of bounded memory, and checks at every event what must never be broken.
//!
//! Everything random comes from [`Rng`] with the seed that was given, events of one instant come in the order in which
//! they were planned ([`queue`]), and nothing reads a clock: the same trace, policy and seed give the same bytes.
//! `tram simulate` is the only user beside tests and benches; what is modelled and what is not is told in
//! docs/concepts/simulator.md.

pub mod autoscale;
pub mod html;
pub mod keepalive;
pub mod queue;
pub mod report;
pub mod rng;
pub mod routing;
pub mod run;
pub mod trace;
pub mod world;

pub use rng::Rng;
pub use run::{Options, run};

use std::path::PathBuf;

/// Why a simulation could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The trace cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The trace is not what it should be.
    #[error("{}, line {line}: {what}", path.display())]
    Format {
        /// Which file.
        path: PathBuf,
        /// Where, from 1.
        line: usize,
        /// What is wrong.
        what: String,
    },
    /// There is no such policy for this trace.
    #[error("there is no policy `{name}` for this trace: choose one of {known}")]
    Policy {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// An argument makes no sense.
    #[error("{field} must be {must}")]
    Argument {
        /// Which.
        field: &'static str,
        /// What it must be.
        must: String,
    },
    /// What must never happen has happened: a mistake in the planner, or in the simulator's model of the world.
    #[error("{what} (at {at_seconds:.3} s, service {service})")]
    Violation {
        /// What happened.
        what: String,
        /// Seconds since the start of the simulation.
        at_seconds: f64,
        /// Which service, counted from 0.
        service: usize,
    },
}
