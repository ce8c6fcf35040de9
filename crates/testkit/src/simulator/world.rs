//! The whole planner on a day of calls: thousands of services, machines of bounded memory, and a check at every event.
//!
//! What is real: [`tram_planner::plan`], called as the controller calls it (on news, on a wake, when a plan says to
//! look again), its writes, its orders, and the edge's choice among instances. What is modelled: the store keeps the
//! writes ([`service`]), a site takes time to start and stop ([`site`]), the edge holds callers, sends them on when a
//! table is confirmed, and says what is in flight. Nothing fails here on its own; the property tests of the planner do
//! that with one service.
//!
//! Checked at every event, of the service that it is about ([`Service::check`] and the site's own refusals):
//! - statuses move along the arrows, from the status that the decision was made on;
//! - an order follows its intent: nothing starts but ALLOCATING, nothing stops but STOPPING, nothing running is
//!   forgotten;
//! - no instance is on two machines, no machine holds more than its memory, no service has more instances than its
//!   maximum, no replica has two;
//! - no request goes to an instance that does not run, and each that came is answered, being served, or waiting.

mod service;
mod site;

use std::time::Duration;

use tram_planner::{Order, Policy, plan};
use tram_types::{InstanceId, Timestamp};

use super::{
    Error, Rng, keepalive,
    queue::Queue,
    report::{Column, Plot, Report, Table},
    trace::azure_functions::Functions,
};
use service::Service;
pub use service::asleep;
use site::{Site, Step};

/// When simulations begin: 2026-01-01T00:00:00Z.
const START_MICROS: i64 = 1_767_225_600_000_000;
/// From a change of the table to its confirmation: a message on loopback and back, and what the edge does with it.
const LINK: Duration = Duration::from_millis(1);
/// From a reconcile with writes to the next: a transaction of SQLite.
const STORE: Duration = Duration::from_millis(2);
/// The longest call: functions of the trace may run for ten minutes.
const CALL_MAX: Duration = Duration::from_secs(600);
/// Seconds of a minute and of an hour.
const MINUTE: f64 = 60.0;
const HOUR: f64 = 3600.0;
/// MiB of a GiB.
const GIB: f64 = 1024.0;
/// After the trace, time to end what is under way.
const EPILOGUE: Duration = Duration::from_secs(900);

/// Chooses one of the instances by requests in flight and weight; the number breaks ties. `None` of none.
pub type Choose = fn(loads: &[(u32, u32)], rotation: u32) -> Option<usize>;

/// What to simulate.
#[derive(Debug, Clone, Copy)]
pub struct World {
    /// Services. More than the trace has functions: the trace is repeated, each time shifted by a random time of day.
    pub services: usize,
    /// Machines.
    pub machines: usize,
    /// Memory of one.
    pub machine_mib: f64,
    /// Idle time before deep sleep.
    pub deep_sleep: Duration,
    /// Of everything that is random.
    pub seed: u64,
    /// How the edge chooses.
    pub choose: Choose,
}

/// What happened.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outcome {
    /// Calls that came, and that were answered.
    pub arrived: u64,
    /// See above.
    pub answered: u64,
    /// Times that callers found no instance.
    pub cold: u64,
    /// Seconds that each caller waited who found none.
    pub waits: Vec<f64>,
    /// Time of instances, from start to end.
    pub instance_hours: f64,
    /// The same times their memory.
    pub gib_hours: f64,
    /// Starts that had to be put off since no machine had room.
    pub no_room: u64,
    /// Calls of the planner.
    pub plans: u64,
    /// Events.
    pub events: u64,
    /// Most instances at a time.
    pub most_instances: usize,
    /// Most memory in use on one machine, in MiB.
    pub fullest_mib: f64,
    /// By hour: calls, instances at its end, cold starts, instance-hours, mean wait of those who waited in seconds.
    pub hours: Vec<[f64; 5]>,
}

/// What happens next.
#[derive(Debug)]
enum Event {
    Arrive(usize),
    Done(usize, InstanceId),
    Look(usize, u64),
    Confirm(usize),
    Step(usize, InstanceId, Step),
    Hour,
}

#[derive(Debug)]
struct Run<'t> {
    services: Vec<Service<'t>>,
    site: Site,
    queue: Queue<Event>,
    policy: Policy,
    choose: Choose,
    rng: Rng,
    outcome: Outcome,
    /// Waits that are in an hour that is over.
    waits_shown: usize,
    end: Timestamp,
}

/// Simulates a day.
///
/// # Errors
/// When what must never happen happens, or an argument makes no sense.
pub fn simulate(trace: &Functions, world: &World) -> Result<Outcome, Error> {
    let called: Vec<_> = trace.functions.iter().filter(|it| !it.calls.is_empty()).collect();
    for (field, fits) in [
        ("TRACE", !called.is_empty()),
        ("services", world.services > 0),
        ("machines", world.machines > 0),
    ] {
        if !fits {
            let must = if field == "TRACE" {
                "a trace with at least one call"
            } else {
                "at least 1"
            };
            return Err(Error::Argument {
                field,
                must: must.to_owned(),
            });
        }
    }
    let start = Timestamp::from_micros(START_MICROS);
    let seed = Rng::new(world.seed);
    let mut run = Run {
        services: Vec::with_capacity(world.services),
        site: Site::new(world.machines, world.machine_mib, seed.stream(u64::MAX)),
        queue: Queue::new(start),
        policy: Policy::default(),
        choose: world.choose,
        rng: seed.stream(u64::MAX - 1),
        outcome: Outcome::default(),
        waits_shown: 0,
        end: start.plus(Duration::from_secs(u64::from(trace.minutes) * 60)),
    };
    for (index, function) in called.iter().cycle().take(world.services).enumerate() {
        let mut rng = seed.stream(index as u64);
        let turns = index >= called.len();
        let whole = usize::try_from(trace.minutes).unwrap_or(0);
        let shift = if turns {
            u32::try_from(rng.below(whole)).unwrap_or(0)
        } else {
            0
        };
        let service = Service::new(function, shift, trace.minutes, start, world.deep_sleep, rng);
        run.services.push(service);
        run.next_arrival(index);
    }
    run.queue.plan(start.plus(Duration::from_secs(3600)), Event::Hour);
    run.go()?;
    Ok(run.outcome)
}

impl Run<'_> {
    fn go(&mut self) -> Result<(), Error> {
        let last = self.end.plus(EPILOGUE);
        while let Some(event) = self.queue.pop() {
            if self.queue.now() > last {
                break;
            }
            self.outcome.events += 1;
            let service = match &event {
                Event::Arrive(it) | Event::Done(it, _) | Event::Look(it, _) => Some(*it),
                Event::Confirm(it) | Event::Step(it, ..) => Some(*it),
                Event::Hour => None,
            };
            let wrong = match self.happen(event) {
                Ok(()) => service.and_then(|it| self.services[it].check().err()),
                Err(what) => Some(what),
            };
            if let Some(what) = wrong {
                let start = Timestamp::from_micros(START_MICROS);
                return Err(Error::Violation {
                    what,
                    at_seconds: self.queue.now().since(start).as_secs_f64(),
                    service: service.unwrap_or_default(),
                });
            }
        }
        self.finish();
        Ok(())
    }

    fn finish(&mut self) {
        let now = self.queue.now();
        self.site.bill(now.min(self.end));
        self.outcome.instance_hours = self.site.instance_seconds / HOUR;
        self.outcome.gib_hours = self.site.mib_seconds / HOUR / GIB;
        self.outcome.no_room = self.site.no_room;
        self.outcome.most_instances = self.site.most_instances;
        self.outcome.fullest_mib = self.site.fullest_mib;
        self.outcome.waits.sort_by(f64::total_cmp);
    }

    fn happen(&mut self, event: Event) -> Result<(), String> {
        let now = self.queue.now();
        match event {
            Event::Arrive(index) => self.arrive(index),
            Event::Done(index, instance) => {
                self.outcome.answered += 1;
                if self.services[index].done(instance, now)? {
                    return self.reconcile(index);
                }
                Ok(())
            }
            Event::Look(index, token) => {
                if self.services[index].look == token {
                    return self.reconcile(index);
                }
                Ok(())
            }
            Event::Confirm(index) => {
                self.services[index].confirm(now);
                self.dispatch(index)?;
                self.reconcile(index)
            }
            Event::Step(index, instance, step) => {
                if let Some((after, next)) = self.services[index].step(instance, step, now, &mut self.site)? {
                    self.queue
                        .plan(now.plus(after), Event::Step(index, instance, next));
                }
                self.reconcile(index)
            }
            Event::Hour => {
                self.hour();
                Ok(())
            }
        }
    }

    fn hour(&mut self) {
        let now = self.queue.now();
        self.site.bill(now);
        let before = self.outcome.hours.iter().fold([0.0; 3], |sum, hour| {
            [sum[0] + hour[0], sum[1] + hour[2], sum[2] + hour[3]]
        });
        let waits = self.outcome.waits.get(self.waits_shown..).unwrap_or_default();
        let wait = waits.iter().sum::<f64>() / (waits.len() as f64).max(1.0);
        self.waits_shown = self.outcome.waits.len();
        self.outcome.hours.push([
            self.outcome.arrived as f64 - before[0],
            self.site.instances() as f64,
            self.outcome.cold as f64 - before[1],
            self.site.instance_seconds / HOUR - before[2],
            wait,
        ]);
        if now < self.end {
            self.queue.plan(now.plus(Duration::from_secs(3600)), Event::Hour);
        }
    }

    fn next_arrival(&mut self, index: usize) {
        if let Some(at) = self.services[index].next_arrival() {
            self.queue.plan(at, Event::Arrive(index));
        }
    }

    fn arrive(&mut self, index: usize) -> Result<(), String> {
        let now = self.queue.now();
        self.outcome.arrived += 1;
        self.next_arrival(index);
        if self.services[index].arrive(now) {
            // The first who waits wakes it; the others are told nothing more.
            self.outcome.cold += 1;
            self.look(index, LINK);
        }
        self.dispatch(index)
    }

    /// Sends on whoever waits, if there is an instance.
    fn dispatch(&mut self, index: usize) -> Result<(), String> {
        let now = self.queue.now();
        while let Some(rotation) = self.services[index].waits().then(|| self.rng.bits()) {
            #[expect(clippy::cast_possible_truncation, reason = "any 32 of 64 random bits will do")]
            let sent = self.services[index].send(self.choose, rotation as u32, now)?;
            let Some((instance, arrived_at)) = sent else {
                return Ok(());
            };
            let waited = now.since(arrived_at);
            if !waited.is_zero() {
                self.outcome.waits.push(waited.as_secs_f64());
            }
            let seconds = self.rng.exponential(self.services[index].call_seconds());
            let took = Duration::try_from_secs_f64(seconds)
                .unwrap_or(CALL_MAX)
                .min(CALL_MAX);
            self.queue.plan(now.plus(took), Event::Done(index, instance));
        }
        Ok(())
    }

    fn look(&mut self, index: usize, after: Duration) {
        let at = self.queue.now().plus(after);
        let service = &mut self.services[index];
        service.look += 1;
        let token = service.look;
        self.queue.plan(at, Event::Look(index, token));
    }

    /// What the controller does: observe, plan, record, carry out.
    fn reconcile(&mut self, index: usize) -> Result<(), String> {
        let now = self.queue.now();
        let service = &mut self.services[index];
        service.observe();
        let made = plan(service.view(), &self.policy, now);
        self.outcome.plans += 1;
        for write in &made.writes {
            service.write(write, now, &mut self.rng)?;
        }
        for order in &made.orders {
            let next = match order {
                Order::Start { instance } => service.start(*instance, now, &mut self.site)?,
                Order::Stop { instance, .. } => service.stop(*instance)?,
                Order::Forget { instance } => {
                    service.forget(*instance)?;
                    None
                }
                Order::EnsureImage { .. } => None,
                other => {
                    return Err(format!(
                        "an order that no simulated service gives rise to: {other:?}"
                    ));
                }
            };
            if let (Some((after, step)), Order::Start { instance } | Order::Stop { instance, .. }) =
                (next, order)
            {
                self.queue
                    .plan(now.plus(after), Event::Step(index, *instance, step));
            }
        }
        if service.must_confirm() {
            self.queue.plan(now.plus(LINK), Event::Confirm(index));
        }
        // Orders alone change nothing until the site has news of them.
        if !made.writes.is_empty() {
            self.look(index, STORE);
        } else if let Some(at) = made.look_again_at {
            self.look(index, at.since(now).max(STORE));
        }
        Ok(())
    }
}

/// Simulates the planner with several idle times before deep sleep.
///
/// # Errors
/// As [`simulate`].
pub fn compare(name: &str, trace: &Functions, worlds: &[World]) -> Result<Report, Error> {
    let mut outcomes = Vec::new();
    for world in worlds {
        outcomes.push((
            format!("planner-{}", world.deep_sleep.as_secs()),
            simulate(trace, world)?,
        ));
    }
    let about = worlds.first().map_or_else(String::new, |world| {
        format!(
            "{} services, {} machines, seed {}",
            world.services, world.machines, world.seed
        )
    });
    Ok(Report {
        title: format!("The whole planner: {name}, {about}"),
        notes: vec![
            "Every decision is one of the product's planner; what must never happen is checked at every event, and did \
             not happen."
                .to_owned(),
            "The number of a policy is the idle time before deep sleep, in seconds. Instance-hours count busy ones too."
                .to_owned(),
        ],
        tables: vec![table(&outcomes)],
        plots: plots(&outcomes),
    })
}

fn table(outcomes: &[(String, Outcome)]) -> Table {
    let columns = vec![
        Column::new("calls", "calls", 0),
        Column::new("unanswered", "unanswered", 0),
        Column::new("cold_starts", "cold starts", 0),
        Column::new("wait_p50_ms", "wait p50 ms", 0),
        Column::new("wait_p99_ms", "wait p99 ms", 0),
        Column::new("instance_hours", "instance-hours", 0),
        Column::new("gib_hours", "GiB-hours", 0),
        Column::new("most_instances", "most at once", 0),
        Column::new("no_room", "no room", 0),
        Column::new("fullest_mib", "fullest machine MiB", 0),
        Column::new("plans", "plans", 0),
        Column::new("events", "events", 0),
    ];
    let row = |(name, it): &(String, Outcome)| {
        let wait = |share| keepalive::quantile(&it.waits, share) * 1000.0;
        let values = vec![
            it.arrived as f64,
            (it.arrived - it.answered) as f64,
            it.cold as f64,
            wait(0.5),
            wait(0.99),
            it.instance_hours,
            it.gib_hours,
            it.most_instances as f64,
            it.no_room as f64,
            it.fullest_mib,
            it.plans as f64,
            it.events as f64,
        ];
        (name.clone(), values)
    };
    Table {
        title: "Whole planner".to_owned(),
        columns,
        rows: outcomes.iter().map(row).collect(),
    }
}

fn plots(outcomes: &[(String, Outcome)]) -> Vec<Plot> {
    let titles = [
        ("Load", "calls an hour"),
        ("Instances", "at the end of the hour"),
        ("Cold starts", "an hour"),
        ("Instance-hours", "an hour"),
        ("Wait for an instance", "s, mean"),
    ];
    let plot = |(place, (title, y)): (usize, (&str, &str))| Plot {
        title: title.to_owned(),
        x: "hour".to_owned(),
        y: y.to_owned(),
        scattered: false,
        lines: outcomes
            .iter()
            .map(|(name, outcome)| {
                let points = outcome.hours.iter().enumerate();
                (
                    name.clone(),
                    points
                        .map(|(hour, values)| (hour as f64, values[place]))
                        .collect(),
                )
            })
            .collect(),
    };
    titles.into_iter().enumerate().map(plot).collect()
}

#[cfg(test)]
mod tests;
