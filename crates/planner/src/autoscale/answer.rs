//! What each signal asks for, and which asks for most.
//!
//! Four signals are linear: twice the instances carry twice of it, so the number is the load over the target.
//! Response time is not: it hardly moves while there is room and jumps when there is none. It takes bounded steps, and
//! remembers what was too few under which load.

use std::time::Duration;

use tram_types::{Timestamp, effective::ResponseTimeTarget};

use super::{Average, Cause, Input, Memory, Observation, Policy, Signal};

/// Rounding noise of a division that should have been whole.
const EPSILON: f64 = 1e-9;
/// What a burst of noise looks like: both signals are counts, whose standard deviation is their root. In two windows one
/// after the other this many of them are seen by chance once in a day; two deviations would be in an hour.
const BURST_SIGMA: f64 = 3.0;
/// In one window alone, this many are seen by chance once in years.
const PEAK_SIGMA: f64 = 6.0;
/// One window alone must also show twice what the instances should carry, as Knative's panic does.
const PEAK_FACTOR: f64 = 2.0;
/// What remains after a step down leaves room for so many standard deviations of its average: with few requests the
/// tolerance is less than noise, and what went down would come up again.
const ROOM_SIGMA: f64 = 2.0;
/// A number that was too slow is tried again when the arrivals are below this share of what they were then.
const LIGHTER: f64 = 0.8;

/// Requests that came while instances were short are answered about this much later.
const SHORT: Duration = Duration::from_secs(1);

/// A number of instances that answered too slowly.
#[derive(Debug, Clone, Copy)]
pub(super) struct TooFew {
    instances: u32,
    arrivals_per_second: f64,
    at: Timestamp,
}

/// What one signal asks for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Answer {
    pub(super) wanted: u32,
    /// What it asks for without its burst window.
    pub(super) lasting: u32,
    pub(super) cause: Cause,
    pub(super) observation: Option<Observation>,
}

/// The largest answer; `None`: nothing is known. A signal that is not known asks for what there is.
pub(super) fn largest(
    input: &Input,
    base: u32,
    memory: &mut Memory,
    policy: &Policy,
    now: Timestamp,
) -> Option<Answer> {
    let targets = &input.scale.targets;
    let signals = &input.signals;
    let (stable, rate) = (policy.concurrency_window, policy.rate_window);
    let answers = [
        targets.concurrent_requests.map(|target| {
            total(
                Signal::ConcurrentRequests,
                target,
                signals.concurrency,
                stable,
                input,
                base,
                policy,
            )
        }),
        targets.requests_per_second.map(|target| {
            let seen = signals.arrivals_per_second;
            total(Signal::RequestsPerSecond, target, seen, rate, input, base, policy)
        }),
        targets
            .cpu_percent
            .map(|target| percent(Signal::Cpu, target, signals.cpu_percent, input, base, policy)),
        targets.memory_percent.map(|target| {
            percent(
                Signal::Memory,
                target,
                signals.memory_percent,
                input,
                base,
                policy,
            )
        }),
        targets
            .response_time
            .map(|target| response_time(target, input, base, memory, policy, now)),
    ];
    let mut most: Option<Answer> = None;
    let mut lasting = 0;
    let mut unknown = false;
    for answer in answers.into_iter().flatten() {
        match answer {
            None => unknown = true,
            Some(answer) => {
                lasting = lasting.max(answer.lasting);
                if most.is_none_or(|most| answer.wanted > most.wanted) {
                    most = Some(answer);
                }
            }
        }
    }
    // Fewer might be too few for what is not known.
    if unknown && most.is_none_or(|most| most.wanted <= base) {
        return None;
    }
    // What is not known may last.
    let lasting = if unknown { lasting.max(base) } else { lasting };
    most.map(|most| Answer { lasting, ..most })
}

/// A linear signal in units of instances: one is as much as one instance should carry.
struct Load {
    /// Over the last burst window.
    peak: f64,
    /// In both of the last two.
    burst: f64,
    /// Over the stable window, when going up: what is not measured counts as nothing.
    stable: Option<f64>,
    /// Over the stable window, when going down: what is not measured counts as on target.
    down: Option<f64>,
    /// What has to fit on what remains, noise included.
    room: f64,
    /// From how much on the last burst window alone is a burst.
    peak_from: f64,
    /// From how much on both of them are.
    burst_from: f64,
    /// Share of the target that changes nothing.
    tolerance: f64,
}

fn answer(load: &Load, base: u32) -> Answer {
    let made = |wanted, cause| Answer {
        wanted,
        lasting: wanted,
        cause,
        observation: None,
    };
    let many = f64::from(base);
    let stable = load.stable.unwrap_or(0.0);
    let burst = if load.peak >= load.peak_from {
        load.peak
    } else {
        load.burst
    };
    if burst >= load.burst_from {
        let calm = Load {
            peak_from: f64::INFINITY,
            burst_from: f64::INFINITY,
            ..*load
        };
        let lasting = answer(&calm, base).wanted;
        let wanted = count(burst.max(stable)).max(base.saturating_add(1));
        return Answer {
            lasting,
            ..made(wanted, Cause::Burst)
        };
    }
    if stable > many * (1.0 + load.tolerance) {
        return made(count(stable), Cause::Above);
    }
    match load.down {
        None => made(base, Cause::Settling),
        Some(down) => {
            // With the tolerance on this side too: what goes down must not come up again at the next whiff.
            let fewer = count((down / (1.0 - load.tolerance)).max(load.room));
            let cause = if fewer < base {
                Cause::Below
            } else {
                Cause::OnTarget
            };
            made(fewer.min(base), cause)
        }
    }
}

/// The signals that are totals of all instances.
fn total(
    signal: Signal,
    target: u32,
    seen: Option<Average>,
    window: Duration,
    input: &Input,
    base: u32,
    policy: &Policy,
) -> Option<Answer> {
    let seen = seen?;
    let each = f64::from(target);
    let capacity = f64::from(base) * each;
    // Samples of what is in flight come each second, and so do counts of what came.
    let noise =
        |sigma: f64, count: f64, window: Duration| sigma * (count / window.as_secs_f64().max(EPSILON)).sqrt();
    let above = |factor: f64, sigma: f64| {
        (capacity * factor).max(capacity + noise(sigma, capacity, policy.burst_window))
    };
    let room = seen
        .stable
        .map(|stable| stable + noise(ROOM_SIGMA, stable, window));
    let load = Load {
        peak: seen.peak / each,
        burst: seen.burst / each,
        stable: seen.stable.map(|stable| stable / each),
        down: seen.stable.map(|stable| stable / each),
        room: room.map_or(0.0, |room| room / each),
        peak_from: above(PEAK_FACTOR, PEAK_SIGMA) / each,
        burst_from: above(ratio(policy.burst_percent), BURST_SIGMA) / each,
        tolerance: ratio(policy.tolerance_percent).min(0.5),
    };
    let made = answer(&load, base);
    let shown = shown(seen, made.cause);
    Some(Answer {
        observation: Some(Observation {
            signal,
            observed: shown / f64::from(input.ready.max(1)),
            target,
            quantile: None,
        }),
        ..made
    })
}

/// The signals that are means of the instances that were measured. They cannot pass a hundred, so with a high target
/// the bands for noise and bursts end half-way to it.
fn percent(
    signal: Signal,
    target: u32,
    seen: Option<Average>,
    input: &Input,
    base: u32,
    policy: &Policy,
) -> Option<Answer> {
    let seen = seen?;
    let measured = f64::from(input.signals.measured);
    if measured == 0.0 {
        return None;
    }
    let each = f64::from(target.clamp(1, 100));
    let room = (100.0 - each) / (2.0 * each);
    let unmeasured = f64::from(input.ready.saturating_sub(input.signals.measured));
    let load = Load {
        peak: measured * seen.peak / each,
        burst: measured * seen.burst / each,
        stable: seen.stable.map(|stable| measured * stable / each),
        down: seen.stable.map(|stable| measured * stable / each + unmeasured),
        room: 0.0,
        peak_from: f64::INFINITY,
        burst_from: f64::from(base) * ratio(policy.burst_percent).min(1.0 + room).max(1.0 + EPSILON),
        tolerance: ratio(policy.tolerance_percent).min(room).min(0.5),
    };
    let made = answer(&load, base);
    Some(Answer {
        observation: Some(Observation {
            signal,
            observed: shown(seen, made.cause),
            target,
            quantile: None,
        }),
        ..made
    })
}

fn response_time(
    target: ResponseTimeTarget,
    input: &Input,
    base: u32,
    memory: &mut Memory,
    policy: &Policy,
    now: Timestamp,
) -> Option<Answer> {
    let seen = input.signals.response_time?;
    let concurrency = input.signals.concurrency?;
    let arrivals_per_second = input
        .signals
        .arrivals_per_second
        .map(|rate| rate.stable.unwrap_or(rate.burst))?;
    let made = |wanted, cause| {
        Some(Answer {
            wanted,
            lasting: wanted,
            cause,
            observation: Some(Observation {
                signal: Signal::ResponseTime,
                observed: seen.millis,
                target: target.millis,
                quantile: Some(target.quantile),
            }),
        })
    };
    let fewer = base.saturating_sub(1);
    // With no more than one request on each instance, none waits for another: more instances answer no sooner.
    let in_flight = concurrency.stable.unwrap_or(concurrency.burst);
    let crowded = in_flight > f64::from(input.ready);
    if seen.requests < policy.latency_requests {
        // Too few answers to say anything: an instance for each request is enough.
        let wanted = count(in_flight).min(base);
        let cause = if wanted < base {
            Cause::Below
        } else {
            Cause::OnTarget
        };
        return made(wanted, cause);
    }
    let tolerance = ratio(policy.tolerance_percent).min(0.5);
    let excess = seen.millis / f64::from(target.millis);
    if excess > 1.0 + tolerance {
        if !crowded {
            return made(base, Cause::OnTarget);
        }
        // What was answered before the present instances were all healthy says nothing of them.
        let settled = memory
            .short_at
            .is_none_or(|at| now.since(at) > policy.latency_window.saturating_add(SHORT));
        if !settled {
            return made(base, Cause::Waiting);
        }
        memory.too_few = Some(TooFew {
            instances: base,
            arrivals_per_second,
            at: now,
        });
        let step = ratio(policy.latency_step_percent).min(excess);
        let wanted = count(f64::from(base) * step).max(base.saturating_add(1));
        return made(wanted, Cause::Above);
    }
    let too_few = memory.too_few.is_some_and(|known| {
        known.at.plus(policy.latency_memory) > now
            && fewer <= known.instances
            && arrivals_per_second >= known.arrivals_per_second * LIGHTER
    });
    // As if the time rose in proportion, which it does not while there is room: careful on this side.
    let expected = seen.millis * f64::from(base) / f64::from(fewer.max(1));
    if !too_few && expected <= f64::from(target.millis) * (1.0 - tolerance) {
        return made(fewer, Cause::Below);
    }
    made(base, Cause::OnTarget)
}

/// The average that an answer was made from.
fn shown(seen: Average, cause: Cause) -> f64 {
    match cause {
        Cause::Burst => seen.peak,
        _ => seen.stable.unwrap_or(seen.burst),
    }
}

fn ratio(percent: u32) -> f64 {
    f64::from(percent) / 100.0
}

/// The next whole number of instances.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped to what fits; a float becomes an integer in no other way"
)]
fn count(instances: f64) -> u32 {
    (instances - EPSILON).ceil().clamp(0.0, f64::from(u32::MAX)) as u32
}
