//! How many instances: the planner's autoscaler against Knative's, a fixed number, and one that knows the future.
//!
//! Requests to a language model come as a trace says; [`fleet`] serves them, and a [`scalers::Scaler`] decides on the
//! number of instances. Each policy is tried with a range of targets, and judged where it is cheapest while
//! [`ATTAINMENT`] of the requests have their first token in time: a policy that costs little because people wait is no
//! policy.

pub mod fleet;
pub mod scalers;

use super::{
    Error,
    report::{Column, Plot, Report, Table},
    trace::requests::Request,
    world::Choose,
};
use fleet::{Model, Outcome};
use scalers::{Fixed, Kpa, Oracle, Scaler, Tram};

/// The share of requests that must have their first token in time.
pub const ATTAINMENT: f64 = 0.99;
/// The shares of its slots that the oracle fills.
const FILLED: [f64; 9] = [0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25];
/// How long before it is needed the oracle starts an instance: the median time to load one, and longer.
const AHEAD: [f64; 3] = [1.0, 1.4, 2.0];
/// Requests for each instance beyond its slots that a target may ask for: a line that moves quickly is in time.
const QUEUED: u32 = 2;
/// Targets of Knative's autoscaler, as shares of the slots; it aims at 70 % of each.
const KPA_TARGETS: [f64; 14] = [
    0.2, 0.3, 0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0, 1.1,
];
/// Instances that a reactive policy keeps at least, tried in this order until some target keeps the promise: a burst out
/// of nothing is over before an instance has loaded.
const LEAST: [u32; 6] = [1, 2, 3, 4, 6, 8];
/// The policies there are.
pub const ALL: [&str; 4] = ["tram", "kpa", "oracle", "static"];

/// One policy with one target.
struct Candidate {
    name: String,
    scaler: Box<dyn Scaler>,
}

fn candidates(
    policy: &str,
    requests: &[Request],
    model: &Model,
    least: u32,
) -> Result<Vec<Candidate>, Error> {
    let made = |name: String, scaler: Box<dyn Scaler>| Candidate { name, scaler };
    let ending = if least > 1 {
        format!("-min-{least}")
    } else {
        String::new()
    };
    Ok(match policy {
        "tram" => (1..=model.slots + QUEUED)
            .map(|target| {
                let scaler = Box::new(Tram::new(target, least, model));
                made(format!("tram-{target}{ending}"), scaler)
            })
            .collect(),
        "kpa" => KPA_TARGETS
            .iter()
            .map(|share| share * f64::from(model.slots))
            .map(|target| {
                let scaler = Box::new(Kpa::new(target, least));
                made(format!("kpa-{target:.1}{ending}"), scaler)
            })
            .collect(),
        "oracle" => AHEAD
            .iter()
            .flat_map(|ahead| FILLED.iter().map(move |filled| (*ahead, *filled)))
            .map(|(ahead, filled)| {
                let ahead = (ahead * model.load_median).ceil();
                let oracle = Oracle::new(requests, model, filled, ahead);
                made(format!("oracle-{ahead}s-{filled}"), Box::new(oracle))
            })
            .collect(),
        "static" => {
            let mut counts: Vec<u32> = (0..24u32).map(|step| 1 << (step / 2)).collect();
            for odd in counts.iter_mut().skip(1).step_by(2) {
                *odd += *odd / 2;
            }
            counts.dedup();
            counts
                .into_iter()
                .filter(|count| *count <= fleet::INSTANCES_MAX / 4)
                .map(|count| made(format!("static-{count}"), Box::new(Fixed(count))))
                .collect()
        }
        _ => {
            return Err(Error::Policy {
                name: policy.to_owned(),
                known: format!("all, {}", ALL.join(", ")),
            });
        }
    })
}

/// Replays requests with each policy at each of its targets.
///
/// # Errors
/// When there are no requests, a policy is unknown, or what must never happen happens.
pub fn compare(
    name: &str,
    requests: &[Request],
    policies: &[&str],
    model: &Model,
    choose: Choose,
    seed: u64,
) -> Result<Report, Error> {
    if requests.is_empty() {
        return Err(Error::Argument {
            field: "TRACE",
            must: "a trace with at least one request".to_owned(),
        });
    }
    let mut swept: Vec<(String, Outcome)> = Vec::new();
    let mut best: Vec<(String, Outcome)> = Vec::new();
    for policy in policies {
        let reactive = matches!(*policy, "tram" | "kpa");
        let mut cheapest: Option<(String, Outcome)> = None;
        for least in LEAST.into_iter().take(if reactive { LEAST.len() } else { 1 }) {
            for mut candidate in candidates(policy, requests, model, least)? {
                let outcome = fleet::replay(requests, model, candidate.scaler.as_mut(), choose, seed)?;
                let known = cheapest.as_ref().map(|(_, known)| known.instance_hours);
                let cheaper = known.is_none_or(|known| outcome.instance_hours < known);
                if outcome.within >= ATTAINMENT && cheaper {
                    cheapest = Some((candidate.name.clone(), outcome.clone()));
                }
                swept.push((candidate.name, outcome));
            }
            if cheapest.is_some() {
                break;
            }
        }
        best.extend(cheapest);
    }
    Ok(Report {
        title: format!("Autoscaling: {name}, {} requests, seed {seed}", requests.len()),
        notes: notes(model),
        tables: vec![table("At the objective", &best), table("All targets", &swept)],
        plots: plots(&best, &swept),
    })
}

fn notes(model: &Model) -> Vec<String> {
    vec![
        format!(
            "An instance serves {} requests side by side, reads {} tokens a second and writes {} a second for each; it \
             loads in {} s (median).",
            model.slots, model.read_per_second, model.written_per_second, model.load_median
        ),
        format!(
            "The objective: the first token within {} s for {} % of the requests. \"At the objective\" shows each \
             policy at its cheapest target that meets it; with a minimum of instances when none does without.",
            model.objective,
            ATTAINMENT * 100.0
        ),
        "kpa is Knative's autoscaler re-implemented with its defaults (2 s tick, windows of 60 and 6 s, panic at 200 %, \
         70 % of the target); the oracle knows every request to come."
            .to_owned(),
    ]
}

fn table(title: &str, outcomes: &[(String, Outcome)]) -> Table {
    let columns = vec![
        Column::new("within_percent", "in time %", 2),
        Column::new("instance_hours", "instance-hours", 2),
        Column::new("first_token_p50_s", "first token p50 s", 2),
        Column::new("first_token_p99_s", "p99 s", 2),
        Column::new("turns_per_hour", "turns an hour", 1),
        Column::new("most_instances", "most at once", 0),
        Column::new("starts", "starts", 0),
    ];
    let row = |(name, it): &(String, Outcome)| {
        let values = vec![
            it.within * 100.0,
            it.instance_hours,
            it.first_token[0],
            it.first_token[1],
            it.turns_per_hour,
            f64::from(it.most),
            it.starts as f64,
        ];
        (name.clone(), values)
    };
    Table {
        title: title.to_owned(),
        columns,
        rows: outcomes.iter().map(row).collect(),
    }
}

fn plots(best: &[(String, Outcome)], swept: &[(String, Outcome)]) -> Vec<Plot> {
    let mut families: Vec<(String, Vec<(f64, f64)>)> = Vec::new();
    for (name, outcome) in swept {
        let family = name.split('-').next().unwrap_or(name);
        let point = (outcome.instance_hours, (1.0 - outcome.within) * 100.0);
        match families.iter_mut().find(|(known, _)| known == family) {
            Some((_, points)) => points.push(point),
            None => families.push((family.to_owned(), vec![point])),
        }
    }
    for (_, points) in &mut families {
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    let over_time = |title: &str, y: &str, place: usize| Plot {
        title: title.to_owned(),
        x: "minutes".to_owned(),
        y: y.to_owned(),
        scattered: false,
        lines: best
            .iter()
            .map(|(name, outcome)| {
                let points = outcome.minutes.iter().enumerate();
                (
                    name.clone(),
                    points
                        .map(|(minute, values)| (minute as f64, values[place]))
                        .collect(),
                )
            })
            .collect(),
    };
    vec![
        Plot {
            title: "The curve of policies: lower and further left is better".to_owned(),
            x: "instance-hours".to_owned(),
            y: "first tokens too late, %".to_owned(),
            scattered: true,
            lines: families,
        },
        over_time("Instances", "paid for", 0),
        over_time("Load", "requests in flight and waiting", 1),
    ]
}

#[cfg(test)]
mod tests;
