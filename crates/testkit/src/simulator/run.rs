//! From a path to a report: tells what kind of trace it is, and which policies it can be simulated with.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    Error,
    autoscale::{self, fleet::Model},
    keepalive,
    report::Report,
    routing,
    trace::{
        Csv,
        azure_functions::{self, Functions},
        mooncake, requests,
    },
    world::{self, Choose, World},
};

/// The name for every policy that answers a trace's question.
pub const ALL: &str = "all";
/// The name of the whole planner, which may be followed by an idle time in seconds.
const PLANNER: &str = "planner";
/// Idle time before deep sleep when none is named: the product's own.
const DEEP_SLEEP_SECONDS: u64 = 300;
/// Median seconds to load a model, in production at Alibaba.
pub const LOAD_SECONDS: f64 = 22.7;
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
    /// Times the rates of a trace that has rates; above 0.
    pub scale: f64,
    /// Median seconds until an instance that serves a model has loaded; 0 or above.
    pub load_seconds: f64,
    /// How the edge chooses among instances.
    pub choose: Choose,
}

/// Simulates.
///
/// # Errors
/// When the trace cannot be read, a policy is unknown, or what must never happen happens.
pub fn run(options: &Options) -> Result<Report, Error> {
    if options.scale.is_nan() || options.scale <= 0.0 {
        return Err(Error::Argument {
            field: "--scale",
            must: "above 0".to_owned(),
        });
    }
    if options.load_seconds.is_nan() || options.load_seconds < 0.0 {
        return Err(Error::Argument {
            field: "--load-seconds",
            must: "0 or above".to_owned(),
        });
    }
    let names: Vec<&str> = options.policy.split(',').map(str::trim).collect();
    let name = shown(&options.trace);
    if mooncake::is_one(&options.trace)? {
        let requests = mooncake::read(&options.trace)?;
        let policies = if names == [ALL] {
            routing::ALL.to_vec()
        } else {
            names
        };
        return routing::compare(&name, &requests, &policies, options.seed);
    }
    let csv = Csv::open(&options.trace)?;
    if azure_functions::is_one(&csv) {
        let trace = azure_functions::read(&options.trace)?;
        return functions(options, &name, &trace, &names);
    }
    let made = if requests::is_azure(&csv) {
        requests::azure(&options.trace)?
    } else if requests::is_servegen(&csv) {
        requests::servegen(&options.trace, options.scale, options.seed)?
    } else {
        return Err(csv.wrong(
            "the columns are those of no trace that can be simulated: expected `HashFunction, minute_1 ...` (Azure \
             Functions), `TIMESTAMP, ContextTokens ...` (Azure LLM), `client, t_s, rate_rps ...` (ServeGen) or lines of JSON \
             with `hash_ids` (Mooncake)"
                .to_owned(),
        ));
    };
    let policies = if names == [ALL] {
        autoscale::ALL.to_vec()
    } else {
        names
    };
    let model = Model {
        load_median: options.load_seconds,
        ..Model::default()
    };
    autoscale::compare(&name, &made, &policies, &model, options.choose, options.seed)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn options(directory: &Path, name: &str, text: &str, policy: &str) -> Options {
        let trace = directory.join(name);
        std::fs::write(&trace, text).unwrap();
        Options {
            trace,
            policy: policy.to_owned(),
            seed: 5,
            services: Some(20),
            machines: 3,
            scale: 1.0,
            load_seconds: LOAD_SECONDS,
            choose: |loads, _| (0..loads.len()).min_by_key(|index| loads[*index].0),
        }
    }

    const FUNCTIONS: &str = "HashFunction,minute_1,minute_2,minute_3,minute_4\na,1,0,0,2\nb,0,3,0,0\n";
    const REQUESTS: &str = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.97,480,10\n\
                            2023-11-16 18:17:04.03,3180,8\n";
    const BLOCKS: &str = "{\"timestamp\":0,\"input_length\":700,\"output_length\":3,\"hash_ids\":[0,1]}\n\
                          {\"timestamp\":9,\"input_length\":600,\"output_length\":1,\"hash_ids\":[0,2]}\n";
    const RATES: &str = "client,t_s,rate_rps,cv,pattern,arg1,arg2\n0,0,0.2,1.5,Gamma,0.44,0.45\n";

    #[test]
    fn every_kind_of_trace_is_told_by_its_columns_and_gives_the_same_bytes_twice() {
        let directory = tempfile::tempdir().unwrap();
        for (name, text, policy) in [
            ("f_inv.csv", FUNCTIONS, "fixed-1,planner-60"),
            ("f_inv.csv", FUNCTIONS, ALL),
            ("azure.csv", REQUESTS, "tram,kpa"),
            ("rates.csv", RATES, "tram,oracle"),
            ("blocks.jsonl", BLOCKS, ALL),
        ] {
            let options = options(directory.path(), name, text, policy);
            let once = || {
                let report = run(&options).unwrap();
                assert!(report.tables.iter().any(|table| !table.rows.is_empty()));
                format!("{report:?}{}", crate::simulator::html::page(&report))
            };
            assert_eq!(once(), once(), "{name} {policy}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let said = |name, text, policy| {
            let refused = run(&options(directory.path(), name, text, policy)).unwrap_err();
            refused.to_string()
        };
        assert!(said("x.csv", "a,b\n1,2\n", ALL).contains("ServeGen"));
        assert!(said("f_inv.csv", FUNCTIONS, "planner-soon").contains("planner-SECONDS"));
        assert!(said("f_inv.csv", FUNCTIONS, "kpa").contains("fixed-MINUTES"));
        assert!(said("azure.csv", REQUESTS, "fixed-5").contains("oracle"));
        let scale = Options {
            scale: 0.0,
            ..options(directory.path(), "rates.csv", RATES, ALL)
        };
        assert!(run(&scale).unwrap_err().to_string().contains("--scale"));
    }
}
