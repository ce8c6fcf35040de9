//! This machine as a site: instances in sandboxes, in a private network, looked after by a supervisor.
//!
//! Implements the contract of `tram-site` on top of `tram-image` (root file systems) and `tram-sandbox` (processes).
//! Used by the composition root, which opens a [`LocalSite`] and gives it to the controller, and which runs the
//! supervisor's process beside it.
//!
//! ```text
//! site      the contract, the table of instances, start, news from the supervisor, adoption
//! launch    order + image -> what is launched          end      what was seen -> why it ended
//! network   namespaces, addresses, routes, firewall    dns      names of the private network
//! health    when to probe and what it means            images   pulled once, pinned for a deployment
//! record    what is written down                       supervisor  the line to the process that launches
//! exec      commands in instances                      disk     what instances write, measured
//! cdi       devices that specifications tell of     devices  which instance has which
//! programs  where the machine's own programs are
//! ```
//!
//! The one design choice to know: this process may end at any moment and its instances go on. What it wants is on
//! disk before it acts, what runs is asked of the supervisor, and the next process puts the two together.

pub mod cdi;
pub mod config;
pub mod network;
pub mod programs;

mod checksums;
mod devices;
mod disk;
mod dns;
mod end;
mod exec;
mod executor;
mod guard;
mod health;
mod images;
mod launch;
mod logs;
mod memory;
mod models;
mod record;
mod site;
mod supervisor;
#[cfg(test)]
mod testing;
mod volumes;

pub use config::{Config, NetworkConfig, SnapshotSpace, UserNamespaces};
pub use guard::Guard;
pub use images::images_in_use_at;
pub use ipnet::Ipv6Net;
pub use models::model_uses_at;
pub use network::{Ipv4Network, Ipv6};
pub use site::{LocalSite, OpenError};

/// An error with its causes, for a log line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let said = next.to_string();
        // A transparent error says the same as its cause.
        if !text.ends_with(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = next.source();
    }
    text
}
