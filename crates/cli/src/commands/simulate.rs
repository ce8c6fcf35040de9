//! `tram simulate`: arguments only; the composition root knows the simulator.

use std::path::PathBuf;

/// Arguments of `simulate`.
#[derive(Debug, Clone, PartialEq, clap::Args)]
pub struct Arguments {
    /// The trace, as its publishers wrote it, or compressed with gzip
    ///
    /// Told by its columns: Azure Functions 2019 (`HashFunction, minute_1 ...`; durations and memory are taken from the
    /// files beside it), Azure LLM 2023 (`TIMESTAMP, ContextTokens ...`), or rates of ServeGen (`client, t_s, rate_rps
    /// ...`).
    #[arg(value_name = "TRACE")]
    pub trace: PathBuf,
    /// Policies to compare, separated by commas
    ///
    /// `all` is every one that answers the trace's question. For functions, `planner-SECONDS` runs the whole planner
    /// with that idle time before deep sleep. For requests to models: tram, kpa, oracle, static.
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
    /// Times the rates of a trace that has rates
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    pub scale: f64,
    /// Median seconds until an instance that serves a model has loaded: what light sleep would make of it
    #[arg(long, value_name = "SECONDS", default_value_t = 22.7)]
    pub load_seconds: f64,
    /// Write a page with all figures and plots to this file
    #[arg(long, value_name = "FILE.html")]
    pub report: Option<PathBuf>,
}
