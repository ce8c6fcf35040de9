//! What decides on the number of instances: the planner's own, Knative's, and two that know what none can.

use std::{collections::VecDeque, time::Duration};

use tram_planner::autoscale::{Input, Memory, Policy, Reading, Signals, Traffic, decide};
use tram_types::{
    Timestamp,
    effective::{Scale, Targets},
};

use super::fleet::{INSTANCES_MAX, Model};
use crate::simulator::trace::requests::Request;

/// What a scaler sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Requests being served.
    pub in_flight: u64,
    /// Requests that wait for a slot.
    pub queued: u64,
    /// Requests that came so far.
    pub arrivals: u64,
    /// Instances that serve.
    pub ready: u32,
    /// The same, and those that load.
    pub current: u32,
}

/// Decides on a number, again and again.
pub trait Scaler {
    /// Between two decisions.
    fn period(&self) -> Duration;
    /// Instances there are at the start.
    fn first(&self) -> u32 {
        1
    }
    /// How many there should be.
    fn wanted(&mut self, now: Timestamp, seen: &Seen) -> u32;
}

/// The planner's own, called as the controller does: a report and a decision each second.
#[derive(Debug)]
pub struct Tram {
    policy: Policy,
    scale: Scale,
    traffic: Traffic,
    memory: Memory,
    start_time: Duration,
}

impl Tram {
    /// With a target of requests in flight for each instance, and the fewest instances.
    #[must_use]
    pub fn new(target: u32, least: u32, model: &Model) -> Self {
        let policy = Policy::default();
        Self {
            policy,
            scale: Scale {
                min: least,
                max: INSTANCES_MAX,
                targets: Targets {
                    concurrent_requests: Some(target),
                    ..Targets::default()
                },
                deep_sleep: None,
                light_sleep: None,
            },
            traffic: Traffic::new(&policy),
            memory: Memory::default(),
            start_time: Duration::try_from_secs_f64(model.load_median).unwrap_or_default(),
        }
    }
}

impl Scaler for Tram {
    fn first(&self) -> u32 {
        self.scale.min
    }

    fn period(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn wanted(&mut self, now: Timestamp, seen: &Seen) -> u32 {
        let reading = Reading {
            in_flight: seen.in_flight,
            queued: seen.queued,
            arrivals: Some(seen.arrivals),
            latency_bounds_us: &[],
            latency_counts: &[],
        };
        self.traffic.record(now, reading, &self.policy);
        let input = Input {
            scale: self.scale,
            manual: None,
            current: seen.current,
            ready: seen.ready,
            start_time: Some(self.start_time),
            signals: Signals {
                concurrency: self.traffic.concurrency(now, &self.policy),
                ..Signals::default()
            },
        };
        decide(&input, &mut self.memory, &self.policy, now).wanted
    }
}

/// Between two decisions of Knative's autoscaler, in seconds.
const KPA_TICK: u64 = 2;
/// Its stable window, in seconds.
const KPA_STABLE: u64 = 60;
/// Its panic window: a tenth of it.
const KPA_PANIC: u64 = 6;
/// It panics when the panic window asks for so many times the instances that are ready.
const KPA_THRESHOLD: f64 = 2.0;
/// The share of a target that it aims at.
const KPA_UTILISATION: f64 = 0.7;
/// It grows at most so many times a tick, and shrinks at most to the inverse of the other.
const KPA_UP: f64 = 1_000.0;
const KPA_DOWN: f64 = 2.0;

/// Knative's pod autoscaler (KPA), re-implemented from its published behaviour and defaults.
#[derive(Debug)]
pub struct Kpa {
    target: f64,
    least: u32,
    /// Concurrency by second, the newest last.
    seconds: VecDeque<(Timestamp, f64)>,
    panic_since: Option<Timestamp>,
    most_in_panic: u32,
}

impl Kpa {
    /// With a target of requests in flight for each instance, of which it aims at 70 %, and the fewest instances.
    #[must_use]
    pub fn new(target: f64, least: u32) -> Self {
        Self {
            target: target * KPA_UTILISATION,
            least,
            seconds: VecDeque::new(),
            panic_since: None,
            most_in_panic: 0,
        }
    }

    fn mean(&self, now: Timestamp, window: u64) -> f64 {
        let from = now.minus(Duration::from_secs(window));
        let within = self.seconds.iter().filter(|(at, _)| *at > from);
        let (sum, count) = within.fold((0.0, 0.0), |(sum, count), (_, value)| (sum + value, count + 1.0));
        if count > 0.0 { sum / count } else { 0.0 }
    }
}

impl Scaler for Kpa {
    fn first(&self) -> u32 {
        self.least
    }

    /// It samples each second and decides at every other one.
    fn period(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn wanted(&mut self, now: Timestamp, seen: &Seen) -> u32 {
        let stable_window = Duration::from_secs(KPA_STABLE);
        #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
        self.seconds
            .push_back((now, (seen.in_flight + seen.queued) as f64));
        while self
            .seconds
            .front()
            .is_some_and(|(at, _)| now.since(*at) > stable_window)
        {
            self.seconds.pop_front();
        }
        let second = now.since(Timestamp::EPOCH).as_secs();
        if !second.is_multiple_of(KPA_TICK) {
            return seen.current;
        }
        let ready = f64::from(seen.ready.max(1));
        let (up, down) = ((KPA_UP * ready).ceil(), (ready / KPA_DOWN).floor());
        let stable_raw = (self.mean(now, KPA_STABLE) / self.target).ceil();
        let panic_raw = (self.mean(now, KPA_PANIC) / self.target).ceil();
        let (stable, panic) = (
            whole(stable_raw.clamp(down, up)),
            whole(panic_raw.clamp(down, up)),
        );
        let over = panic_raw / ready >= KPA_THRESHOLD;
        match self.panic_since {
            None if over => {
                self.panic_since = Some(now);
                self.most_in_panic = 0;
            }
            Some(_) if over => self.panic_since = Some(now),
            Some(since) if now.since(since) > stable_window => self.panic_since = None,
            _ => {}
        }
        if self.panic_since.is_some() {
            self.most_in_panic = self.most_in_panic.max(panic).max(seen.ready);
            return self.most_in_panic.max(self.least);
        }
        stable.max(self.least)
    }
}

/// A number that never changes.
#[derive(Debug)]
pub struct Fixed(pub u32);

impl Scaler for Fixed {
    fn period(&self) -> Duration {
        Duration::from_secs(60)
    }

    fn first(&self) -> u32 {
        self.0
    }

    fn wanted(&mut self, _now: Timestamp, _seen: &Seen) -> u32 {
        self.0
    }
}

/// Knows every request to come: as many instances as these keep busy, started early enough to be there.
#[derive(Debug)]
pub struct Oracle {
    /// Instances for each second.
    plan: Vec<u32>,
}

impl Oracle {
    /// `filled`: the share of an instance's slots that it is asked to fill; `ahead`: seconds from start to service
    /// that it reckons with.
    #[must_use]
    pub fn new(requests: &[Request], model: &Model, filled: f64, ahead: f64) -> Self {
        let ahead = place(ahead);
        let need = need(requests, model, filled);
        // An instance is there from when it is ordered to the last second it is needed within the time to load one.
        let mut plan = Vec::with_capacity(need.len());
        let mut window: VecDeque<(usize, u32)> = VecDeque::new();
        let mut next = 0;
        for second in 0..need.len() {
            while next < need.len() && next <= second + ahead {
                while window.back().is_some_and(|(_, value)| *value <= need[next]) {
                    window.pop_back();
                }
                window.push_back((next, need[next]));
                next += 1;
            }
            while window.front().is_some_and(|(at, _)| *at < second) {
                window.pop_front();
            }
            plan.push(window.front().map_or(1, |(_, value)| *value).max(1));
        }
        Self { plan }
    }
}

/// Instances that the requests of each second would keep busy if none ever waited, over the time one may wait.
fn need(requests: &[Request], model: &Model, filled: f64) -> Vec<u32> {
    let end = requests
        .iter()
        .map(|it| it.at + model.service(it))
        .fold(0.0, f64::max);
    let length = usize::try_from(whole(end.ceil())).unwrap_or(0) + 1;
    let mut change = vec![0.0; length + 1];
    let mut busy = vec![0.0; length + 1];
    for request in requests {
        // Each second counts by the part of it that the request is in service.
        let (from, until) = (request.at, request.at + model.service(request));
        let (first, last) = (place(from), place(until));
        if first == last {
            busy[first] += until - from;
        } else {
            busy[first] += (first + 1) as f64 - from;
            busy[last] += until - last as f64;
            change[first + 1] += 1.0;
            change[last] -= 1.0;
        }
    }
    let mut level = 0.0;
    let load: Vec<f64> = change
        .iter()
        .zip(&busy)
        .map(|(change, busy)| {
            level += change;
            level + busy
        })
        .collect();
    let patience = usize::try_from(whole(model.objective)).unwrap_or(1).max(1);
    let per_instance = f64::from(model.slots) * filled;
    (0..load.len())
        .map(|second| {
            let window = &load[second..(second + patience).min(load.len())];
            whole((window.iter().sum::<f64>() / window.len() as f64 / per_instance).ceil())
        })
        .collect()
}

fn place(value: f64) -> usize {
    usize::try_from(whole(value)).unwrap_or(0)
}

impl Scaler for Oracle {
    fn period(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn first(&self) -> u32 {
        self.plan.first().copied().unwrap_or(1)
    }

    fn wanted(&mut self, now: Timestamp, _seen: &Seen) -> u32 {
        let second = usize::try_from(now.since(Timestamp::EPOCH).as_secs()).unwrap_or(usize::MAX);
        self.plan.get(second).or(self.plan.last()).copied().unwrap_or(1)
    }
}

/// The whole number of instances or seconds in a float that has no fraction worth keeping.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped to what fits; a float becomes an integer in no other way"
)]
fn whole(value: f64) -> u32 {
    value.clamp(0.0, f64::from(u32::MAX)) as u32
}
