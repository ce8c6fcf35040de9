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
//!
//! Every method takes the organization and puts it into the SQL, so that a wrong id finds nothing; those that do
//! not are for the controller and the operator and end in `_unscoped`, or speak of one service's insides
//! ([`Store::load_service_state`], [`Store::apply`]).

mod apps;
mod backup;
mod call_patterns;
mod change;
mod column;
mod controller;
mod counts;
mod database;
mod deployments;
mod domains;
mod error;
pub mod filter;
mod history;
mod instance_snapshots;
pub mod intent;
pub mod keyring;
mod leadership;
mod limits;
mod migrate;
mod model_routes;
mod pools;
mod ports;
pub mod record;
mod retention;
mod routing;
mod secrets;
mod services;
mod settings;
mod sql;
mod store;
mod tenancy;
#[cfg(test)]
mod tests;
mod token_usages;
mod volumes;

pub use call_patterns::CallPattern;
pub use change::Change;
pub use controller::{KnownInstance, ModelInstances, RemovedService, ServiceState};
pub use counts::Counts;
pub use error::{Error, Result};
pub use filter::{Listed, Order, Page};
pub use leadership::Leadership;
pub use pools::{NewPoolMember, NewServicePool, ServicePoolEdit};
pub use retention::{PrunableInstance, Pruned, Retention};
pub use routing::{
    ClaimedRoutes, RoutedDeployment, RoutedDomain, RoutedService, RoutingSnapshot, UpcomingDeployment,
};
pub use secrets::{Revealed, Rotated};
pub use store::{Options, Store};
pub use tenancy::{Member, token_sha256};
pub use token_usages::{Attributed, By, TokenUsage, Tokens};
