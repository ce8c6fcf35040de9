//! What tests, benches and the simulator share: a clock that is moved by hand and a site that lives in memory.
//!
//! Both implement the same traits as the real ones, so whatever runs against them runs unchanged in production.
//! Nothing here reads the machine's clock or the network, and only the [`simulator`] reads files: its traces. Start
//! with [`FakeClock`] and [`FakeSite`], or with [`simulator`] for `tram simulate`.

pub mod behaviour;
pub mod clock;
pub mod simulator;
pub mod site;

pub use behaviour::{Behaviour, ImageBehaviour, Life};
pub use clock::FakeClock;
pub use site::{Calls, Failure, FakeSite, Taking};
