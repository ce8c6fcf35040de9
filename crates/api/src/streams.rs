//! Logs, metrics and commands: what flows from running instances to a client.
//!
//! `select` says which instances a request means, `scan` reads their logs in both directions, `tail` follows them,
//! `exec` runs a command, `metrics` asks for figures.

use crate::endpoint::Endpoint;

mod exec;
mod frame;
mod logs;
mod metrics;
mod scan;
mod select;
mod tail;

/// Every endpoint of this kind.
pub(crate) fn endpoints() -> Vec<Endpoint> {
    [
        logs::endpoints(),
        tail::endpoints(),
        exec::endpoints(),
        metrics::endpoints(),
    ]
    .concat()
}
