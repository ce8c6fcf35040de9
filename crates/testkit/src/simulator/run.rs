//! From a path to a report: tells what kind of trace it is, and which policies it can be simulated with.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    Error, keepalive,
    report::Report,
    trace::{
        Csv,
        azure_functions::{self, Functions},
    },
    world::{self, Choose, World},
};

/// The name for every policy that answers a trace's question.
pub const ALL: &str = "all";
/// The name of the whole planner, which may be followed by an idle time in seconds.
const PLANNER: &str = "planner";
/// Idle time before deep sleep when none is named: the product's own.
const DEEP_SLEEP_SECONDS: u64 = 300;
/// Memory of a simulated machine: a common size of small servers.
const MACHINE_MIB: f64 = 16.0 * 1024.0;

/// What to simulate.
#[derive(Debug, Clone)]
pub struct Options {
    /// The trace.
    pub trace: PathBuf,
    /// Names of policies, separated by commas, or `all`.
    pub policy: String,
    /// Of everything that is random.
    pub seed: u64,
    /// Services of the whole planner; as many as the trace has functions when it is not said.
    pub services: Option<usize>,
    /// Machines of the whole planner.
    pub machines: usize,
    /// How the edge chooses among instances.
    pub choose: Choose,
}

/// Simulates.
///
/// # Errors
/// When the trace cannot be read, a policy is unknown, or what must never happen happens.
pub fn run(options: &Options) -> Result<Report, Error> {
    let csv = Csv::open(&options.trace)?;
    let names: Vec<&str> = options.policy.split(',').map(str::trim).collect();
    let name = shown(&options.trace);
    if azure_functions::is_one(&csv) {
        let trace = azure_functions::read(&options.trace)?;
        return functions(options, &name, &trace, &names);
    }
    Err(csv.wrong(
        "the columns are those of no trace that can be simulated: expected `HashFunction, minute_1 ...` (Azure \
         Functions)"
            .to_owned(),
    ))
}

fn functions(options: &Options, name: &str, trace: &Functions, names: &[&str]) -> Result<Report, Error> {
    let names = match names {
        [ALL] => keepalive::policies::ALL.to_vec(),
        names => names.to_vec(),
    };
    let (mut policies, mut worlds) = (Vec::new(), Vec::new());
    for name in names {
        match name.strip_prefix(PLANNER) {
            None => policies.push(name.parse()?),
            Some(seconds) => {
                let seconds = seconds
                    .strip_prefix('-')
                    .map_or(Some(DEEP_SLEEP_SECONDS), |it| it.parse().ok());
                let seconds = seconds
                    .filter(|seconds| *seconds > 0)
                    .ok_or_else(|| Error::Policy {
                        name: name.to_owned(),
                        known: "planner, planner-SECONDS".to_owned(),
                    })?;
                worlds.push(World {
                    services: options.services.unwrap_or(trace.functions.len()),
                    machines: options.machines,
                    machine_mib: MACHINE_MIB,
                    deep_sleep: Duration::from_secs(seconds),
                    seed: options.seed,
                    choose: options.choose,
                });
            }
        }
    }
    let mut reports = Vec::new();
    if !policies.is_empty() {
        reports.push(keepalive::compare(name, trace, &policies)?);
    }
    if !worlds.is_empty() {
        reports.push(world::compare(name, trace, &worlds)?);
    }
    Ok(joined(reports))
}

/// Several reports as one.
fn joined(reports: Vec<Report>) -> Report {
    let mut whole = Report::default();
    let titles: Vec<String> = reports.iter().map(|report| report.title.clone()).collect();
    whole.title = titles.join("; ");
    for report in reports {
        whole.notes.extend(report.notes);
        whole.tables.extend(report.tables);
        whole.plots.extend(report.plots);
    }
    whole
}

/// The name of a trace: without its directories, which differ between machines.
fn shown(path: &Path) -> String {
    path.file_name().map_or_else(
        || path.display().to_string(),
        |name| name.to_string_lossy().into_owned(),
    )
}
