//! `tram simulate`: arguments only; the composition root knows the simulator.

use std::path::PathBuf;

/// Arguments of `simulate`.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct Arguments {
    /// The trace, as its publishers wrote it, or compressed with gzip
    ///
    /// Told by its columns: Azure Functions 2019 (`HashFunction, minute_1 ...`; durations and memory are taken from the
    /// files beside it).
    #[arg(value_name = "TRACE")]
    pub trace: PathBuf,
    /// Policies to compare, separated by commas
    ///
    /// `all` is every one that answers the trace's question. For functions, `planner-SECONDS` runs the whole planner
    /// with that idle time before deep sleep.
    #[arg(long, value_name = "NAMES", default_value = "all")]
    pub policy: String,
    /// Of everything that is random: the same seed gives the same bytes
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Services of the whole planner: more than the trace has repeat it, shifted by a time of day [default: as many]
    #[arg(long, value_name = "N")]
    pub services: Option<usize>,
    /// Machines of the whole planner, of 16 GiB each
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub machines: usize,
    /// Write a page with all figures and plots to this file
    #[arg(long, value_name = "FILE.html")]
    pub report: Option<PathBuf>,
}
