//! The data plane: every byte of user traffic comes through here.
//!
//! One file a stage, in the order of a request: [`accept`] → [`route`] → [`admit`] → [`wake`] → [`balance`] →
//! [`forward`] → [`account`]; [`pipeline`] strings them together. The edge is a process of its own, so that
//! traffic flows while the control plane is killed and restarted. It decides nothing about services: the
//! controller pushes routing tables and changes of them over a Unix socket and hears reports and wake demands
//! ([`link`]).
//!
//! The one design choice to know: each worker is a thread with a single-threaded runtime, its own accept loop and
//! its own pool of connections to instances, so that a request never crosses threads and takes no contended lock.
//! Workers share the routing table (swapped whole) and the counters of services and instances (atomics).

mod accept;
mod access_log;
mod account;
mod admit;
mod alarm;
mod balance;
mod body;
pub mod ca;
mod canary;
mod certificates;
pub mod config;
mod control;
mod edge;
mod error;
mod forward;
mod forwarded;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod gather;
mod inference;
mod keep;
mod light;
pub mod link;
mod listen;
mod metrics;
mod page;
mod pipeline;
mod pool;
mod relay;
mod route;
pub mod secret;
mod spare;
mod streams;
mod table;
mod tcp;
mod trace;
mod tunnel;
pub mod usage;
mod waiting;
mod wake;
mod worker;

pub use balance::choose;
pub use config::{AccessLog, Config};
pub use edge::{Addresses, Edge, Handle, run};
pub use error::Error;
pub use keep::forget_instances;
pub use table::TableError;
