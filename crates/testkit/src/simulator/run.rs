//! From a path to a report: tells what kind of trace it is, and which policies it can be simulated with.

use std::path::{Path, PathBuf};

use super::{
    Error, keepalive,
    report::Report,
    trace::{Csv, azure_functions},
};

/// What to simulate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The trace.
    pub trace: PathBuf,
    /// Names of policies, separated by commas, or `all`.
    pub policy: String,
    /// Of everything that is random.
    pub seed: u64,
}

/// The name for every policy that fits the trace.
pub const ALL: &str = "all";

/// Simulates.
///
/// # Errors
/// When the trace cannot be read, a policy is unknown, or what must never happen happens.
pub fn run(options: &Options) -> Result<Report, Error> {
    let csv = Csv::open(&options.trace)?;
    let names: Vec<&str> = options.policy.split(',').map(str::trim).collect();
    if azure_functions::is_one(&csv) {
        let trace = azure_functions::read(&options.trace)?;
        let names = if names == [ALL] {
            keepalive::policies::ALL.to_vec()
        } else {
            names
        };
        let policies = names
            .iter()
            .map(|name| name.parse())
            .collect::<Result<Vec<_>, _>>()?;
        return keepalive::compare(&shown(&options.trace), &trace, &policies);
    }
    Err(csv.wrong(
        "the columns are those of no trace that can be simulated: expected `HashFunction, minute_1 ...` (Azure \
         Functions)"
            .to_owned(),
    ))
}

/// The name of a trace: without its directories, which differ between machines.
fn shown(path: &Path) -> String {
    path.file_name().map_or_else(
        || path.display().to_string(),
        |name| name.to_string_lossy().into_owned(),
    )
}
