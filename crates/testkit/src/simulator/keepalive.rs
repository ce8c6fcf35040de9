//! How long to keep a service awake, and how deep to let it sleep: policies compared minute by minute.
//!
//! Each function of the trace is a service with one instance. A minute is active when it has calls; d minutes after
//! the last active one the next call comes, and the minutes 1 to d - 1 between are idle. A policy says for each idle
//! minute how deep the service sleeps, knowing only the idle times before. The call finds the depth of minute d: awake
//! costs no wait, light sleep costs its rung's wake, deep sleep a start. A wake above 100 ms is a *slow* (cold)
//! one; the first call of all is always one. An idle minute costs the share of the service's memory that its depth
//! keeps, and nothing is said of active minutes, in which every policy keeps the service awake.
//!
//! What happens within a minute is not in the trace: a service that has calls in two minutes in a row counts as awake
//! between them. [`super::world`] replays the same day by the microsecond.

pub mod policies;

pub use policies::{KeepAlive, Policy};

use super::{
    Error,
    report::{Column, Plot, Report, Table},
    trace::azure_functions::{Function, Functions},
};

/// A wake that takes longer is one that people notice: the usual bound of an answer that feels immediate.
pub const SLOW_WAKE_MS: f64 = 100.0;
/// A start from deep sleep: a small Python server from its image to the first answer, measured on the project's
/// machines.
pub const START_MS: f64 = 1_400.0;
/// Idle time before a service that sleeps lightly is put to sleep: the shortest that the definition's
/// `light_sleep_value` can ask for, since falling asleep costs a millisecond.
pub const SETTLE_SECONDS: f64 = 1.0;
/// Minutes of an hour.
const HOUR: f64 = 60.0;
/// MiB of a GiB.
const GIB: f64 = 1024.0;
/// The share of functions whose own share of slow wakes is reported: three quarters, as the literature does.
const QUARTILE: f64 = 0.75;

/// How deep a service sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// It does not.
    Awake,
    /// On the policy's [`Rung`].
    Light,
    /// Nothing is kept.
    Deep,
}

/// What light sleep keeps and costs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rung {
    /// Its name.
    pub name: &'static str,
    /// The share of an awake service's memory that stays resident.
    pub resident_share: f64,
    /// From the call to the first byte of its answer.
    pub wake_ms: f64,
}

/// The rungs, with what was measured of each on the project's machines (2 vCPU, Linux 6.18, 2026-11-22).
pub const RUNGS: [Rung; 4] = [
    // Cgroup freezer, memory untouched: thaw and first answer, p99 of 60.
    Rung {
        name: "frozen",
        resident_share: 1.0,
        wake_ms: 2.4,
    },
    // Frozen and reclaimed to zram: a node server's 23 MiB become 0.7, and the compressed copy, of a third, stays in
    // memory.
    Rung {
        name: "zram",
        resident_share: 0.7 / 23.0 + 1.0 / 3.0,
        wake_ms: 59.0,
    },
    // The same to a swap file.
    Rung {
        name: "reclaimed",
        resident_share: 0.7 / 23.0,
        wake_ms: 93.0,
    },
    // Processes written to disk by CRIU 4.2 and restored with lazy pages, 64 MiB to 1 GiB: p99 of 8.
    Rung {
        name: "checkpointed",
        resident_share: 0.0,
        wake_ms: 50.0,
    },
];

/// The idle minutes from the one before's end up to this one (excluded) are spent at this depth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    /// The first minute that is no longer of it.
    pub until: u32,
    /// How deep.
    pub depth: Depth,
}

/// What a policy came to.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Outcome {
    /// Function-minutes with calls.
    pub active: u64,
    /// Those that found no service, or one that took longer than [`SLOW_WAKE_MS`] to wake.
    pub slow: u64,
    /// Those that woke a light sleeper.
    pub light: u64,
    /// Three quarters of the functions have no larger share of slow minutes.
    pub quartile: f64,
    /// Hours a service was awake while idle.
    pub awake_hours: f64,
    /// The same, and hours asleep by what was kept.
    pub memory_hours: f64,
    /// The same times each function's memory.
    pub gib_hours: f64,
    /// Waits for all wakes together.
    pub wait_ms: f64,
    /// Slow wakes by hour of the trace.
    pub slow_by_hour: Vec<f64>,
    /// Services kept in memory while idle, on average, by hour.
    pub kept_by_hour: Vec<f64>,
}

impl Outcome {
    /// Share of active minutes that were slow.
    #[must_use]
    pub fn slow_share(&self) -> f64 {
        self.slow as f64 / (self.active as f64).max(1.0)
    }

    /// Mean wait of an active minute's first call.
    #[must_use]
    pub fn mean_wait_ms(&self) -> f64 {
        self.wait_ms / (self.active as f64).max(1.0)
    }
}

/// Replays a trace under one policy.
#[must_use]
pub fn replay(trace: &Functions, policy: &Policy) -> Outcome {
    let hours = usize::try_from(trace.minutes.div_ceil(60)).unwrap_or(0);
    let mut outcome = Outcome {
        slow_by_hour: vec![0.0; hours],
        kept_by_hour: vec![0.0; hours],
        ..Outcome::default()
    };
    let mut shares = Vec::new();
    for function in &trace.functions {
        let slow_before = outcome.slow;
        replay_one(trace.minutes, function, policy, &mut outcome);
        if !function.calls.is_empty() {
            shares.push((outcome.slow - slow_before) as f64 / function.calls.len() as f64);
        }
    }
    shares.sort_by(f64::total_cmp);
    outcome.quartile = quantile(&shares, QUARTILE);
    outcome
}

/// The value that this share of the sorted ones does not exceed; 0 of none.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a place in a list, rounded down"
)]
pub(crate) fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = (sorted.len() as f64 * share) as usize;
    sorted
        .get(place.min(sorted.len().saturating_sub(1)))
        .copied()
        .unwrap_or(0.0)
}

fn replay_one(minutes: u32, function: &Function, policy: &Policy, outcome: &mut Outcome) {
    let mut keeper = policy.keeper();
    let settle = policy.settle_minutes();
    let mut calls = function.calls.iter().map(|(minute, _)| *minute);
    let Some(mut last) = calls.next() else {
        return;
    };
    outcome.active += 1;
    slow(outcome, last);
    for minute in calls.map(Some).chain([None]) {
        let end = minute.unwrap_or(minutes);
        let gap = end.saturating_sub(last);
        let depth = if gap > 1 {
            let stretches = keeper.stretches();
            idle(function, policy, (last, gap), settle, &stretches, outcome);
            depth_in(&stretches, gap)
        } else {
            Depth::Awake
        };
        let Some(minute) = minute else { break };
        outcome.active += 1;
        match depth {
            Depth::Awake => {}
            Depth::Deep => slow(outcome, minute),
            Depth::Light => {
                let wake_ms = policy.rung().map_or(START_MS, |rung| rung.wake_ms);
                outcome.light += 1;
                outcome.wait_ms += wake_ms;
                if wake_ms > SLOW_WAKE_MS {
                    outcome.slow += 1;
                    count(&mut outcome.slow_by_hour, minute, 1.0);
                }
            }
        }
        keeper.learn(gap);
        last = minute;
    }
}

fn slow(outcome: &mut Outcome, minute: u32) {
    outcome.slow += 1;
    outcome.wait_ms += START_MS;
    count(&mut outcome.slow_by_hour, minute, 1.0);
}

fn count(by_hour: &mut [f64], minute: u32, value: f64) {
    let hour = usize::try_from(minute / 60).unwrap_or(usize::MAX);
    if let Some(place) = by_hour.get_mut(hour) {
        *place += value;
    }
}

fn depth_in(stretches: &[Stretch], minute: u32) -> Depth {
    let found = stretches.iter().find(|stretch| minute < stretch.until);
    found.map_or(Depth::Deep, |stretch| stretch.depth)
}

/// Charges the idle minutes 1 to `gap` - 1 after the active minute `last`.
fn idle(
    function: &Function,
    policy: &Policy,
    (last, gap): (u32, u32),
    settle: f64,
    stretches: &[Stretch],
    outcome: &mut Outcome,
) {
    let mut from = 1;
    for stretch in stretches {
        let until = stretch.until.min(gap);
        let length = f64::from(until.saturating_sub(from));
        // Whatever comes after, a service is awake until it is seen to be idle.
        let settling = if from == 1 { settle.min(length) } else { 0.0 };
        let (awake, share) = match stretch.depth {
            Depth::Awake => (length, 1.0),
            Depth::Light => (settling, policy.rung().map_or(1.0, |rung| rung.resident_share)),
            Depth::Deep => (settling, 0.0),
        };
        let kept = awake + (length - awake) * share;
        outcome.awake_hours += awake / HOUR;
        outcome.memory_hours += kept / HOUR;
        outcome.gib_hours += kept / HOUR * function.memory_mib / GIB;
        for minute in from..until {
            count(&mut outcome.kept_by_hour, last + minute, kept / length / HOUR);
        }
        from = from.max(until);
        if until >= gap {
            break;
        }
    }
}

/// Replays a trace under each of the policies.
///
/// # Errors
/// When there is nothing to replay.
pub fn compare(name: &str, trace: &Functions, policies: &[Policy]) -> Result<Report, Error> {
    if trace.functions.iter().all(|function| function.calls.is_empty()) {
        return Err(Error::Argument {
            field: "TRACE",
            must: "a trace with at least one call".to_owned(),
        });
    }
    let outcomes: Vec<(String, Outcome)> = policies
        .iter()
        .map(|policy| (policy.to_string(), replay(trace, policy)))
        .collect();
    let active = outcomes.first().map_or(0, |(_, outcome)| outcome.active);
    Ok(Report {
        title: format!(
            "Keep-alive and sleep: {name}, {} functions, {} minutes, {active} function-minutes with calls",
            trace.functions.len(),
            trace.minutes
        ),
        notes: notes(),
        tables: vec![table(&outcomes)],
        plots: plots(&outcomes),
    })
}

fn notes() -> Vec<String> {
    vec![
        format!("A wake is slow (cold) when it takes more than {SLOW_WAKE_MS} ms; a start takes {START_MS} ms."),
        "Memory-hours are those of idle services, in hours of one awake service: a sleeper counts by the share it \
         keeps resident."
            .to_owned(),
        "The last number of a policy is its time-out in minutes (fixed, hybrid) or its price: the minutes of an awake \
         service given to spare one slow wake."
            .to_owned(),
    ]
}

fn table(outcomes: &[(String, Outcome)]) -> Table {
    let columns = vec![
        Column::new("slow_percent", "slow %", 2),
        Column::new("quartile_slow_share", "p75 function", 2),
        Column::new("memory_hours", "memory-hours", 0),
        Column::new("awake_hours", "of them awake", 0),
        Column::new("gib_hours", "GiB-hours", 0),
        Column::new("light_wakes", "light wakes", 0),
        Column::new("mean_wait_ms", "mean wait ms", 2),
    ];
    let row = |(name, it): &(String, Outcome)| {
        let values = vec![
            it.slow_share() * 100.0,
            it.quartile,
            it.memory_hours,
            it.awake_hours,
            it.gib_hours,
            it.light as f64,
            it.mean_wait_ms(),
        ];
        (name.clone(), values)
    };
    Table {
        title: "Policies".to_owned(),
        columns,
        rows: outcomes.iter().map(row).collect(),
    }
}

fn plots(outcomes: &[(String, Outcome)]) -> Vec<Plot> {
    let mut families: Vec<(String, Vec<(f64, f64)>)> = Vec::new();
    for (name, outcome) in outcomes {
        let family = name.split('-').next().unwrap_or(name);
        let point = (outcome.memory_hours, outcome.slow_share() * 100.0);
        match families.iter_mut().find(|(known, _)| known == family) {
            Some((_, points)) => points.push(point),
            None => families.push((family.to_owned(), vec![point])),
        }
    }
    let by_hour = |title: &str, y: &str, of: fn(&Outcome) -> &Vec<f64>| Plot {
        title: title.to_owned(),
        x: "hour".to_owned(),
        y: y.to_owned(),
        scattered: false,
        lines: outcomes
            .iter()
            .map(|(name, outcome)| {
                let points = of(outcome).iter().enumerate();
                (
                    name.clone(),
                    points.map(|(hour, value)| (hour as f64, *value)).collect(),
                )
            })
            .collect(),
    };
    vec![
        Plot {
            title: "The curve of policies: lower and further left is better".to_owned(),
            x: "memory-hours".to_owned(),
            y: "slow wakes, % of active minutes".to_owned(),
            scattered: true,
            lines: families,
        },
        by_hour("Slow wakes", "an hour", |outcome| &outcome.slow_by_hour),
        by_hour("Idle services kept in memory", "services", |outcome| {
            &outcome.kept_by_hour
        }),
    ]
}

#[cfg(test)]
mod tests;
