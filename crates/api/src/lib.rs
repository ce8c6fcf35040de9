//! The REST contract and its handlers.
//!
//! The API records what a client wants in the store and answers; the controller carries it out. A request passes
//! through one place that is the same for all endpoints ([`serve`]: token and role, errors; [`endpoint`]: query and body), a thin
//! handler ([`resources`], one file a resource) and a pure function that shows a record as a message ([`views`]).
//! The messages ([`wire`]) are upstream's, name by name, which `tests/openapi/compare.py` checks.
//!
//! Called by `server`, which gives it an [`ApiState`] and mounts the [`router`].

mod audit;
mod auth;
mod body;
mod definition;
mod endpoint;
mod error;
mod inference;
mod known;
mod mask;
mod merge;
mod openapi;
mod query;
mod resources;
mod router;
mod scaling;
mod serve;
mod state;
mod streams;
mod strict;
#[cfg(test)]
mod tests;
mod turns;
mod views;
pub mod wire;

pub use auth::FailureLimit;
pub use error::Error;
pub use inference::{Budgets, Front};
pub use resources::pools::member::pool_member;
pub use router::{openapi, router};
pub use scaling::{NoScaling, ScalingDecision, ScalingSource};
pub use state::{
    ApiState, ClaimObserver, DomainChecker, DomainVerdict, ImageVerdict, ImageVerifier, MetricSeries,
    MetricsError, MetricsQuery, MetricsSource, Settings,
};
