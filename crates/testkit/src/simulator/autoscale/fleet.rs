//! Instances that serve a model: they load, take requests side by side, and drain before they stop.
//!
//! An instance takes up to [`Model::slots`] requests at a time; each is read at a fixed speed, which is the time to its
//! first token, and written at a fixed speed. What finds no slot waits in one line at the edge. An instance is paid for
//! from the order to start it to its end, loading and draining included.

use std::{collections::VecDeque, time::Duration};

use tram_types::Timestamp;

use super::scalers::{Scaler, Seen};
use crate::simulator::{
    Error, Rng, queue::Queue, run::LOAD_SECONDS, trace::requests::Request, world::Choose,
};

/// Seconds of an hour.
const HOUR: f64 = 3600.0;
/// Seconds at the start that are played and not judged: traces begin in the middle of a day, and each policy has to find
/// its number first. Shorter traces are judged whole.
const WARM_UP: f64 = 300.0;
/// The shortest trace with a warm-up, in seconds.
const WARM_UP_FROM: f64 = 1_200.0;
/// Instances at most: more than any sensible policy asks for, so that a mistake ends.
pub(super) const INSTANCES_MAX: u32 = 2_000;
/// What each instance counts for in the choice of one.
const WEIGHT: u32 = 1;

/// What an instance can do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Model {
    /// Requests served side by side.
    pub slots: u32,
    /// Tokens read in a second.
    pub read_per_second: f64,
    /// Tokens written in a second, for one request.
    pub written_per_second: f64,
    /// Median time from the order to start until it serves, in seconds.
    pub load_median: f64,
    /// Deviation of the logarithm of that time.
    pub load_sigma: f64,
    /// Time to the first token that is promised, in seconds.
    pub objective: f64,
}

impl Default for Model {
    /// A model of 8 billion parameters on one large GPU. Loading as in production at Alibaba: p50 22.7 s, p99
    /// 51.9 s.
    fn default() -> Self {
        Self {
            slots: 8,
            read_per_second: 6_000.0,
            written_per_second: 40.0,
            load_median: LOAD_SECONDS,
            load_sigma: 0.355,
            objective: 2.0,
        }
    }
}

impl Model {
    /// Seconds until the first token, once a request has a slot.
    #[must_use]
    pub fn first_token(&self, request: &Request) -> f64 {
        request.input / self.read_per_second
    }

    /// Seconds that a request holds its slot.
    #[must_use]
    pub fn service(&self, request: &Request) -> f64 {
        self.first_token(request) + request.output / self.written_per_second
    }
}

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Outcome {
    /// Requests that had their first token in time, of all.
    pub within: f64,
    /// Their times to the first token, p50 and p99, in seconds.
    pub first_token: [f64; 2],
    /// Instances times hours.
    pub instance_hours: f64,
    /// Changes from growing to shrinking or back, an hour.
    pub turns_per_hour: f64,
    /// Most instances at a time.
    pub most: u32,
    /// Times instances were started.
    pub starts: u64,
    /// Each minute: instances paid for, requests in flight and waiting.
    pub minutes: Vec<[f64; 2]>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Loading,
    Ready,
    Draining,
    Gone,
}

#[derive(Debug)]
struct Instance {
    phase: Phase,
    in_flight: u32,
    since: Timestamp,
}

#[derive(Debug)]
enum Event {
    Arrive(usize),
    Done(usize),
    Loaded(usize),
    Tick,
    Minute,
}

struct Fleet<'r> {
    requests: &'r [Request],
    model: Model,
    choose: Choose,
    queue: Queue<Event>,
    rng: Rng,
    instances: Vec<Instance>,
    /// Those that are not gone, in the order of their starts.
    alive: Vec<usize>,
    waiting: VecDeque<usize>,
    arrived: u64,
    answered: u64,
    first_tokens: Vec<f64>,
    direction: i8,
    turns: u64,
    judged_from: Timestamp,
    paid_seconds: f64,
    most: u32,
    minutes: Vec<[f64; 2]>,
}

fn seconds(value: f64) -> Duration {
    Duration::try_from_secs_f64(value).unwrap_or_default()
}

/// Replays requests with one scaler.
///
/// # Errors
/// When a request is lost or an instance takes more than it can.
pub fn replay(
    requests: &[Request],
    model: &Model,
    scaler: &mut dyn Scaler,
    choose: Choose,
    seed: u64,
) -> Result<Outcome, Error> {
    let span = requests.last().map_or(0.0, |last| last.at);
    let mut fleet = Fleet {
        requests,
        model: *model,
        choose,
        queue: Queue::new(Timestamp::EPOCH),
        rng: Rng::new(seed),
        instances: Vec::new(),
        alive: Vec::new(),
        waiting: VecDeque::new(),
        arrived: 0,
        answered: 0,
        first_tokens: Vec::with_capacity(requests.len()),
        direction: 0,
        turns: 0,
        judged_from: at(if span < WARM_UP_FROM { 0.0 } else { WARM_UP }),
        paid_seconds: 0.0,
        most: 0,
        minutes: Vec::new(),
    };
    fleet.go(scaler).map_err(|what| Error::Violation {
        what,
        at_seconds: fleet.queue.now().since(Timestamp::EPOCH).as_secs_f64(),
        service: 0,
    })?;
    Ok(fleet.outcome())
}

impl Fleet<'_> {
    fn go(&mut self, scaler: &mut dyn Scaler) -> Result<(), String> {
        for _ in 0..scaler.first() {
            self.start(false);
        }
        if let Some(first) = self.requests.first() {
            self.queue.plan(at(first.at), Event::Arrive(0));
        }
        self.queue
            .plan(Timestamp::EPOCH.plus(scaler.period()), Event::Tick);
        self.queue
            .plan(Timestamp::EPOCH.plus(Duration::from_secs(60)), Event::Minute);
        while let Some(event) = self.queue.pop() {
            match event {
                Event::Arrive(index) => {
                    self.arrived += 1;
                    self.waiting.push_back(index);
                    if let Some(next) = self.requests.get(index + 1) {
                        self.queue.plan(at(next.at), Event::Arrive(index + 1));
                    }
                }
                Event::Done(instance) => self.done(instance)?,
                Event::Loaded(instance) => {
                    if self.instances[instance].phase == Phase::Loading {
                        self.instances[instance].phase = Phase::Ready;
                    }
                }
                Event::Tick => self.tick(scaler),
                Event::Minute => {
                    self.minutes.push([self.alive.len() as f64, self.load() as f64]);
                    if !self.is_over() {
                        self.queue
                            .plan(self.queue.now().plus(Duration::from_secs(60)), Event::Minute);
                    }
                }
            }
            self.dispatch()?;
            self.check()?;
            if self.is_over() {
                break;
            }
        }
        let left = self.alive.clone();
        for instance in left {
            self.end(instance);
        }
        if self.answered == self.requests.len() as u64 {
            Ok(())
        } else {
            Err(format!(
                "{} requests and {} answers",
                self.requests.len(),
                self.answered
            ))
        }
    }

    fn is_over(&self) -> bool {
        self.answered == self.requests.len() as u64
    }

    fn load(&self) -> u64 {
        self.arrived - self.answered
    }

    fn check(&self) -> Result<(), String> {
        let in_flight: u64 = self
            .alive
            .iter()
            .map(|it| u64::from(self.instances[*it].in_flight))
            .sum();
        if in_flight + self.waiting.len() as u64 != self.load() {
            return Err("a request was lost".to_owned());
        }
        let most = self.alive.iter().map(|it| self.instances[*it].in_flight).max();
        if most.unwrap_or(0) > self.model.slots || self.alive.len() > INSTANCES_MAX as usize * 2 {
            return Err("an instance serves more than it can, or there are too many".to_owned());
        }
        Ok(())
    }

    fn start(&mut self, loads: bool) {
        let index = self.instances.len();
        let phase = if loads { Phase::Loading } else { Phase::Ready };
        self.instances.push(Instance {
            phase,
            in_flight: 0,
            since: self.queue.now(),
        });
        self.alive.push(index);
        self.most = self.most.max(u32::try_from(self.alive.len()).unwrap_or(u32::MAX));
        if loads {
            let takes = self.rng.log_normal(self.model.load_median, self.model.load_sigma);
            self.queue
                .plan(self.queue.now().plus(seconds(takes)), Event::Loaded(index));
        }
    }

    fn end(&mut self, index: usize) {
        let instance = &mut self.instances[index];
        instance.phase = Phase::Gone;
        let since = instance.since.max(self.judged_from);
        self.paid_seconds += self.queue.now().since(since).as_secs_f64();
        self.alive.retain(|it| *it != index);
    }

    fn done(&mut self, index: usize) -> Result<(), String> {
        self.answered += 1;
        let instance = &mut self.instances[index];
        instance.in_flight = instance
            .in_flight
            .checked_sub(1)
            .ok_or("an instance answered more than it was asked")?;
        if instance.phase == Phase::Draining && instance.in_flight == 0 {
            self.end(index);
        }
        Ok(())
    }

    /// Gives whoever waits longest a slot, while there are any.
    fn dispatch(&mut self) -> Result<(), String> {
        while let Some(index) = self.waiting.front().copied() {
            let free = |it: &&usize| {
                let instance = &self.instances[**it];
                instance.phase == Phase::Ready && instance.in_flight < self.model.slots
            };
            let free: Vec<usize> = self.alive.iter().filter(free).copied().collect();
            let loads: Vec<(u32, u32)> = free
                .iter()
                .map(|it| (self.instances[*it].in_flight, WEIGHT))
                .collect();
            #[expect(clippy::cast_possible_truncation, reason = "any 32 of 64 random bits will do")]
            let rotation = if free.is_empty() {
                0
            } else {
                self.rng.bits() as u32
            };
            let chosen = (self.choose)(&loads, rotation).and_then(|place| free.get(place).copied());
            let Some(instance) = chosen else {
                return Ok(());
            };
            self.waiting.pop_front();
            self.instances[instance].in_flight += 1;
            let request = self.requests.get(index).ok_or("a request that never came")?;
            let now = self.queue.now();
            let arrived_at = at(request.at);
            if arrived_at >= self.judged_from {
                let waited = now.since(arrived_at).as_secs_f64();
                self.first_tokens.push(waited + self.model.first_token(request));
            }
            self.queue.plan(
                now.plus(seconds(self.model.service(request))),
                Event::Done(instance),
            );
        }
        Ok(())
    }

    fn tick(&mut self, scaler: &mut dyn Scaler) {
        let now = self.queue.now();
        let count = |phase| {
            self.alive
                .iter()
                .filter(|it| self.instances[**it].phase == phase)
                .count()
        };
        let (ready, loading) = (count(Phase::Ready), count(Phase::Loading));
        let queued = self.waiting.len() as u64;
        let seen = Seen {
            in_flight: self.load() - queued,
            queued,
            arrivals: self.arrived,
            ready: u32::try_from(ready).unwrap_or(u32::MAX),
            current: u32::try_from(ready + loading).unwrap_or(u32::MAX),
        };
        let wanted = scaler.wanted(now, &seen).clamp(1, INSTANCES_MAX);
        for _ in seen.current..wanted {
            self.start(true);
        }
        for _ in wanted..seen.current {
            self.drain();
        }
        let direction = match wanted.cmp(&seen.current) {
            std::cmp::Ordering::Less => -1,
            std::cmp::Ordering::Equal => 0,
            std::cmp::Ordering::Greater => 1,
        };
        if direction != 0 && now >= self.judged_from {
            self.turns += u64::from(self.direction == -direction);
            self.direction = direction;
        }
        self.queue.plan(now.plus(scaler.period()), Event::Tick);
    }

    /// Takes one instance out: one that still loads before one that serves, the idlest first.
    fn drain(&mut self) {
        let candidates = self.alive.iter().filter(|it| {
            let phase = self.instances[**it].phase;
            phase == Phase::Ready || phase == Phase::Loading
        });
        let key = |it: &&usize| {
            let instance = &self.instances[**it];
            (
                instance.phase == Phase::Ready,
                instance.in_flight,
                std::cmp::Reverse(**it),
            )
        };
        if let Some(index) = candidates.min_by_key(key).copied() {
            if self.instances[index].in_flight == 0 {
                self.end(index);
            } else {
                self.instances[index].phase = Phase::Draining;
            }
        }
    }

    fn outcome(mut self) -> Outcome {
        let objective = self.model.objective;
        let within = self
            .first_tokens
            .iter()
            .filter(|time| **time <= objective)
            .count();
        self.first_tokens.sort_by(f64::total_cmp);
        let quantile = |share| crate::simulator::keepalive::quantile(&self.first_tokens, share);
        let hours = self.queue.now().since(self.judged_from).as_secs_f64() / HOUR;
        let judged = self.first_tokens.len() as f64;
        Outcome {
            within: within as f64 / judged.max(1.0),
            first_token: [quantile(0.5), quantile(0.99)],
            instance_hours: self.paid_seconds / HOUR,
            turns_per_hour: self.turns as f64 / hours.max(f64::MIN_POSITIVE),
            most: self.most,
            starts: self.instances.len() as u64,
            minutes: self.minutes,
        }
    }
}

fn at(value: f64) -> Timestamp {
    Timestamp::EPOCH.plus(seconds(value))
}
