//! How many instances the load asks for, and why.
//!
//! Self-contained: [`Signals`] in, [`Decision`] out. The controller and the simulator call the same three things:
//! [`Traffic`] and [`Usage`] turn reports into averages, [`decide`] turns averages into a number. [`Memory`] is what a
//! decision has to know of those before it; it may be lost at any time, and then nothing goes down for a while.
//!
//! The algorithm joins two known ones. Each signal has a stable and a burst window, as Knative's pod autoscaler; the
//! number is `ceil(load / target)` with a tolerance, steps are bounded, and the largest recommendation of the last
//! while holds, as in Kubernetes' horizontal one. Going up is quick and going down is slow, so what goes up with a
//! burst stays for the next one. docs/concepts/autoscaling.md has it in words, with every figure.
//!
//! Never looked at: requests that are done. A stream that is open for an hour is load for an hour.

mod answer;
mod policy;
mod traffic;
mod usage;
mod window;
mod words;

#[cfg(test)]
mod tests;

use std::{collections::VecDeque, time::Duration};

use tram_types::{Timestamp, effective::Scale};

pub use policy::Policy;
pub use traffic::{Reading, Traffic};
pub use usage::{Sample, Usage};

/// What a service can be scaled on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Signal {
    /// Requests, streams and connections in flight, with the callers that wait.
    ConcurrentRequests,
    /// Requests that come in a second.
    RequestsPerSecond,
    /// Processor time.
    Cpu,
    /// Memory.
    Memory,
    /// The time to the head of an answer, at a quantile.
    ResponseTime,
}

/// A signal over two windows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Average {
    /// Over the last burst window, or what is known of it.
    pub peak: f64,
    /// The lower one of the last two burst windows: what was there in both.
    pub burst: f64,
    /// Over the stable window; `None`: less than that is known.
    pub stable: Option<f64>,
}

/// How soon a service answered.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ResponseTime {
    /// At the target's quantile; 0 when nothing was answered.
    pub millis: f64,
    /// Answers that it is made of.
    pub requests: u64,
}

/// What is known of the load of one deployment in one region. `None` is unknown, which is not zero.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Signals {
    /// Requests in flight and callers that wait: all instances together.
    pub concurrency: Option<Average>,
    /// Requests that come in a second: all instances together.
    pub arrivals_per_second: Option<Average>,
    /// Percent of what the measured instances may use, as their mean.
    pub cpu_percent: Option<Average>,
    /// The same of memory.
    pub memory_percent: Option<Average>,
    /// Instances whose processor and memory were measured.
    pub measured: u32,
    /// How soon requests were answered.
    pub response_time: Option<ResponseTime>,
}

/// What a decision is made from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Input {
    /// Fewest, most, and what one instance should carry.
    pub scale: Scale,
    /// The owner's override.
    pub manual: Option<u32>,
    /// Instances that there are or that are on their way: what the last decision wanted.
    pub current: u32,
    /// Those of them that are healthy.
    pub ready: u32,
    /// What instances of this deployment took to become healthy; `None`: not known.
    pub start_time: Option<Duration>,
    /// The load.
    pub signals: Signals,
}

/// What a signal was seen to be, and what it should be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Observation {
    /// Which.
    pub signal: Signal,
    /// For one instance, in the signal's unit: requests, requests a second, percent, percent, milliseconds.
    pub observed: f64,
    /// The target in the same unit.
    pub target: u32,
    /// Of a response time: the quantile in percent.
    pub quantile: Option<u8>,
}

/// Why a number is what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cause {
    /// The owner set it.
    Manual,
    /// The definition leaves no choice: no target, or a minimum as large as the maximum.
    Fixed,
    /// The load is above the target over the stable window.
    Above,
    /// The load is far above the target over the burst window.
    Burst,
    /// The load has been below the target for long enough.
    Below,
    /// The load is where it should be.
    OnTarget,
    /// The load is below the target, but not for long enough, or the last step down was just now.
    Settling,
    /// More is on its way, and what that changes has to be seen first.
    Waiting,
    /// The load asks for more than the maximum.
    AtMax,
    /// The load asks for no more than the minimum.
    AtMin,
    /// The load, or part of it, is not known: the number stays.
    Unknown,
}

/// How many instances, and why.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Decision {
    /// How many there should be.
    pub wanted: u32,
    /// How many there were or were on their way.
    pub from: u32,
    /// Why.
    pub cause: Cause,
    /// The signal with the largest answer; `None`: the load had no say, or nothing is known.
    pub observation: Option<Observation>,
}

/// What has to be known of earlier decisions. Belongs to one deployment in one region.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    /// What the long windows recommended.
    lasting: Recent,
    /// What was recommended in all.
    bursts: Recent,
    since: Option<Timestamp>,
    rose_at: Option<Timestamp>,
    fell_at: Option<Timestamp>,
    /// When fewer instances than wanted were last healthy.
    short_at: Option<Timestamp>,
    too_few: Option<answer::TooFew>,
}

/// Recommendations and when they were made, each smaller than the one before: the first is the largest.
#[derive(Debug, Clone, Default)]
struct Recent(VecDeque<(Timestamp, u32)>);

impl Recent {
    /// Notes a recommendation, and gives the largest of the last `window`.
    fn largest(&mut self, now: Timestamp, recommended: u32, window: Duration) -> u32 {
        while self.0.back().is_some_and(|(_, count)| *count <= recommended) {
            self.0.pop_back();
        }
        self.0.push_back((now, recommended));
        let from = now.minus(window);
        while self.0.front().is_some_and(|(at, _)| *at < from) {
            self.0.pop_front();
        }
        self.0.front().map_or(recommended, |(_, count)| *count)
    }
}

impl Memory {
    /// Forgets what lies in the future: the clock was set back.
    fn trust(&mut self, now: Timestamp) {
        let ahead = |at: Option<Timestamp>| at.is_some_and(|at| at > now);
        let newest = self.bursts.0.back().map(|(at, _)| *at);
        if ahead(newest)
            || ahead(self.since)
            || ahead(self.rose_at)
            || ahead(self.fell_at)
            || ahead(self.short_at)
        {
            *self = Self::default();
        }
    }
}

/// How many instances there should be now. Between the scale's minimum, but at least one, and its maximum, unless
/// its owner chose; whether there are none at all is decided by sleep.
#[must_use]
pub fn decide(input: &Input, memory: &mut Memory, policy: &Policy, now: Timestamp) -> Decision {
    memory.trust(now);
    let scale = &input.scale;
    let (min, max) = (scale.min.max(1), scale.max.max(scale.min).max(1));
    let decision = |wanted, cause, observation| Decision {
        wanted,
        from: input.current,
        cause,
        observation,
    };
    if let Some(manual) = input.manual {
        *memory = Memory::default();
        return decision(manual.max(1), Cause::Manual, None);
    }
    if scale.targets.is_empty() || min == max {
        *memory = Memory::default();
        return decision(min, Cause::Fixed, None);
    }
    let base = input.current.clamp(min, max);
    if input.ready < base {
        memory.short_at = Some(now);
    }
    let known_since = *memory.since.get_or_insert(now);
    let Some(largest) = answer::largest(input, base, memory, policy, now) else {
        return decision(base, Cause::Unknown, None);
    };
    let observation = largest.observation;
    let recommended = largest.wanted.clamp(min, max);
    let window = policy.down_window_for(input.start_time);
    let lasting = memory
        .lasting
        .largest(now, largest.lasting.clamp(min, max), window);
    let burst_hold = policy.burst_hold_for(input.start_time);
    let kept = lasting.max(memory.bursts.largest(now, recommended, burst_hold));
    if recommended > base {
        if memory.rose_at.is_some_and(|at| now.since(at) < policy.up_period) {
            return decision(base, Cause::Waiting, observation);
        }
        let step = base
            .saturating_mul(policy.up_factor)
            .max(base.saturating_add(policy.up_step));
        memory.rose_at = Some(now);
        memory.short_at = Some(now);
        return decision(recommended.min(step), largest.cause, observation);
    }
    if recommended == base {
        let cause = match largest.cause {
            _ if largest.wanted > max => Cause::AtMax,
            _ if largest.wanted < min => Cause::AtMin,
            cause => cause,
        };
        return decision(base, cause, observation);
    }
    // Nothing goes down on less than a whole window: what was before it is not known.
    let young = now.since(known_since) < window;
    let just_fell = memory
        .fell_at
        .is_some_and(|at| now.since(at) < policy.down_period);
    if young || just_fell || kept >= base {
        return decision(base, Cause::Settling, observation);
    }
    let step = base
        .div_ceil(policy.down_divisor.max(2))
        .min(base.saturating_sub(1));
    memory.fell_at = Some(now);
    decision(kept.max(step), Cause::Below, observation)
}
