//! Laws of autoscaling, and services under load with a clock of their own.

use std::time::Duration;

use proptest::prelude::*;
use tram_types::{
    Timestamp,
    effective::{ResponseTimeTarget, Scale, Targets},
};

use super::*;

const START: i64 = 1_767_225_600_000_000;

fn scale(min: u32, max: u32, targets: Targets) -> Scale {
    Scale {
        min,
        max,
        targets,
        deep_sleep: None,
        light_sleep: None,
    }
}

fn in_flight(target: u32) -> Targets {
    Targets {
        concurrent_requests: Some(target),
        ..Targets::default()
    }
}

/// A service whose instances are healthy a second after the look that wanted them.
struct Service {
    input: Input,
    memory: Memory,
    traffic: Traffic,
    policy: Policy,
    now: Timestamp,
    arrivals: f64,
    counts: Vec<u64>,
    history: Vec<u32>,
    starting: u32,
}

const BOUNDS: [u64; 6] = [10_000, 50_000, 100_000, 200_000, 400_000, 800_000];

impl Service {
    fn new(scale: Scale) -> Self {
        let policy = Policy::default();
        let now = Timestamp::from_micros(START);
        let mut service = Self {
            input: Input {
                scale,
                manual: None,
                current: scale.min.max(1),
                ready: scale.min.max(1),
                start_time: None,
                signals: Signals::default(),
            },
            memory: Memory::default(),
            traffic: Traffic::new(&policy),
            policy,
            now,
            arrivals: 0.0,
            counts: vec![0; BOUNDS.len() + 1],
            history: Vec::new(),
            starting: 0,
        };
        service.report(0);
        service
    }

    fn report(&mut self, in_flight: u64) {
        let reading = Reading {
            in_flight,
            queued: 0,
            arrivals: Some(whole(self.arrivals)),
            latency_bounds_us: &BOUNDS,
            latency_counts: &self.counts,
        };
        self.traffic.record(self.now, reading, &self.policy);
    }

    /// A second with so much in flight from its start on, and so many arrivals that were answered in `millis`.
    fn second(&mut self, in_flight: u64, rate: f64, millis: u64) -> Decision {
        self.report(in_flight);
        self.now = self.now.plus(Duration::from_secs(1));
        self.arrivals += rate;
        let bucket = BOUNDS
            .iter()
            .position(|bound| millis * 1000 <= *bound)
            .unwrap_or(BOUNDS.len());
        self.counts[bucket] += whole(rate);
        self.report(in_flight);
        self.look()
    }

    fn look(&mut self) -> Decision {
        self.input.ready = self.input.current - self.starting;
        let quantile = self
            .input
            .scale
            .targets
            .response_time
            .map(|target| target.quantile);
        self.input.signals = Signals {
            concurrency: self.traffic.concurrency(self.now, &self.policy),
            arrivals_per_second: self.traffic.arrivals_per_second(self.now, &self.policy),
            response_time: quantile
                .and_then(|quantile| self.traffic.response_time(quantile, self.now, &self.policy)),
            ..self.input.signals
        };
        let decision = decide(&self.input, &mut self.memory, &self.policy, self.now);
        if decision.is_change() {
            self.history.push(decision.wanted);
        }
        self.starting = decision.wanted.saturating_sub(self.input.current);
        self.input.current = decision.wanted;
        decision
    }

    fn seconds(&mut self, seconds: u32, in_flight: u64, rate: f64) {
        for _ in 0..seconds {
            self.second(in_flight, rate, 1);
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "small whole numbers of a test"
)]
fn whole(number: f64) -> u64 {
    number as u64
}

#[test]
fn a_burst_is_answered_within_two_seconds() {
    let mut service = Service::new(scale(1, 20, in_flight(2)));
    service.seconds(20, 0, 0.0);
    let first = service.second(20, 20.0, 1);
    assert_eq!((first.wanted, first.cause), (5, Cause::Burst));
    let second = service.second(20, 0.0, 1);
    assert_eq!((second.from, second.wanted), (5, 10));
    service.seconds(120, 20, 0.0);
    assert_eq!(service.history, [5, 10]);
}

#[test]
fn one_report_alone_is_a_burst_only_when_it_stands_out_and_two_are_sooner() {
    let mut service = Service::new(scale(1, 20, in_flight(10)));
    service.seconds(20, 5, 0.0);
    assert_eq!(service.second(25, 0.0, 1).wanted, 1);
    assert_eq!(service.second(5, 0.0, 1).wanted, 1);
    service.second(25, 0.0, 1);
    let second = service.second(25, 0.0, 1);
    assert_eq!((second.wanted, second.cause), (3, Cause::Burst));
}

#[test]
fn what_went_up_comes_down_in_steps_once_the_load_stayed_lower() {
    let mut service = Service::new(scale(1, 20, in_flight(2)));
    service.seconds(60, 20, 0.0);
    assert_eq!(service.input.current, 10);
    service.seconds(30, 0, 0.0);
    assert_eq!(service.input.current, 10);
    service.seconds(60, 0, 0.0);
    assert_eq!(service.history, [5, 10, 9, 3, 1]);
    assert_eq!(service.second(0, 0.0, 1).cause, Cause::AtMin);
}

#[test]
fn a_pause_shorter_than_the_window_stops_nothing() {
    let mut service = Service::new(scale(1, 20, in_flight(2)));
    for _ in 0..20 {
        service.seconds(20, 20, 0.0);
        service.seconds(20, 0, 0.0);
    }
    assert_eq!(service.history, [5, 10]);
}

#[test]
fn slow_starters_are_kept_longer() {
    let mut service = Service::new(scale(1, 20, in_flight(2)));
    service.input.start_time = Some(Duration::from_secs(40));
    service.seconds(60, 20, 0.0);
    service.seconds(190, 0, 0.0);
    assert_eq!(service.input.current, 10);
    service.seconds(60, 0, 0.0);
    assert_eq!(service.input.current, 1);
}

#[test]
fn requests_that_are_done_are_no_load_and_open_streams_are() {
    let mut service = Service::new(scale(1, 20, in_flight(2)));
    service.seconds(60, 2, 500.0);
    assert_eq!(service.input.current, 1);
    service.seconds(600, 8, 0.0);
    assert_eq!(service.history, [2, 3, 4]);
}

#[test]
fn the_largest_answer_wins_and_what_is_unknown_keeps_the_number() {
    let targets = Targets {
        requests_per_second: Some(10),
        cpu_percent: Some(50),
        ..in_flight(5)
    };
    let average = |value: f64| {
        Some(Average {
            peak: value,
            burst: value,
            stable: Some(value),
        })
    };
    let policy = Policy::default();
    let now = Timestamp::from_micros(START);
    let mut input = Input {
        scale: scale(1, 20, targets),
        manual: None,
        current: 4,
        ready: 4,
        start_time: None,
        signals: Signals {
            concurrency: average(12.0),
            arrivals_per_second: average(70.0),
            cpu_percent: average(60.0),
            measured: 4,
            ..Signals::default()
        },
    };
    let decide = |input: &Input| decide(input, &mut Memory::default(), &policy, now);
    let decision = decide(&input);
    assert_eq!(decision.wanted, 7);
    assert_eq!(
        decision.to_string(),
        "scaled 4 to 7: 17.5 requests per second per instance, target 10 (a burst)"
    );
    input.signals.arrivals_per_second = average(1.0);
    assert_eq!(
        decide(&input).to_string(),
        "scaled 4 to 5: 60 % CPU per instance, target 50 %"
    );
    input.signals.cpu_percent = None;
    let kept = decide(&input);
    assert_eq!((kept.wanted, kept.cause), (4, Cause::Unknown));
    assert_eq!(
        kept.to_string(),
        "stays at 4: not all of the load is known, so the number is kept"
    );
}

#[test]
fn processor_time_of_new_instances_counts_neither_way() {
    let targets = Targets {
        cpu_percent: Some(80),
        ..Targets::default()
    };
    let policy = Policy::default();
    let mut now = Timestamp::from_micros(START);
    let mut memory = Memory::default();
    let mut input = Input {
        scale: scale(1, 20, targets),
        manual: None,
        current: 1,
        ready: 1,
        start_time: None,
        signals: Signals {
            cpu_percent: Some(Average {
                peak: 95.0,
                burst: 95.0,
                stable: None,
            }),
            measured: 1,
            ..Signals::default()
        },
    };
    for expected in [2, 2, 2] {
        let decision = decide(&input, &mut memory, &policy, now);
        assert_eq!(decision.wanted, expected, "{decision}");
        input.current = decision.wanted;
        now = now.plus(Duration::from_secs(5));
    }
    // The second is there, but not measured yet: what one of the two uses does not send the other away.
    input.ready = 2;
    input.signals.cpu_percent = Some(Average {
        peak: 50.0,
        burst: 50.0,
        stable: Some(70.0),
    });
    for _ in 0..100 {
        now = now.plus(Duration::from_secs(5));
        assert_eq!(decide(&input, &mut memory, &policy, now).wanted, 2);
    }
}

#[test]
fn response_times_take_bounded_steps_and_do_not_go_back_to_what_was_too_few() {
    let targets = Targets {
        response_time: Some(ResponseTimeTarget {
            millis: 200,
            quantile: 95,
        }),
        ..Targets::default()
    };
    let mut service = Service::new(scale(1, 20, targets));
    // With two or fewer it is far too slow, with three it is fast: nothing between.
    for _ in 0..900 {
        let slow = service.input.ready <= 2;
        let (in_flight, millis) = if slow { (40, 700) } else { (6, 30) };
        service.second(in_flight, 50.0, millis);
    }
    assert_eq!(service.input.current, 3);
    assert!(service.history.len() <= 4, "{:?}", service.history);
    // No load, no reason to keep them.
    service.seconds(120, 0, 0.0);
    assert_eq!(service.input.current, 1);
}

#[test]
fn slow_answers_without_a_crowd_are_not_cured_by_more_instances() {
    let targets = Targets {
        response_time: Some(ResponseTimeTarget {
            millis: 100,
            quantile: 95,
        }),
        ..Targets::default()
    };
    let mut service = Service::new(scale(1, 20, targets));
    for _ in 0..300 {
        service.second(1, 2.5, 390);
    }
    assert!(service.history.is_empty(), "{:?}", service.history);
}

#[test]
fn a_lost_link_and_a_lost_memory_keep_the_number() {
    let mut service = Service::new(scale(1, 20, in_flight(2)));
    service.seconds(60, 20, 0.0);
    service.traffic = Traffic::new(&service.policy);
    for _ in 0..600 {
        service.now = service.now.plus(Duration::from_secs(1));
        let decision = service.look();
        assert_eq!((decision.wanted, decision.cause), (10, Cause::Unknown));
    }
    service.memory = Memory::default();
    service.report(0);
    service.seconds(29, 0, 0.0);
    assert_eq!(service.input.current, 10);
}

proptest! {
    #[test]
    fn never_outside_of_its_bounds_and_the_owner_wins(
        min in 0u32..6,
        more in 0u32..15,
        current in 0u32..40,
        manual in proptest::option::of(0u32..25),
        loads in proptest::collection::vec((0f64..500.0, 0f64..500.0, 0f64..100.0, any::<bool>()), 1..80),
    ) {
        let targets = Targets { requests_per_second: Some(7), cpu_percent: Some(60), ..in_flight(3) };
        let scale = scale(min, min + more, targets);
        let (policy, mut now, mut memory) = (Policy::default(), Timestamp::from_micros(START), Memory::default());
        let mut input = Input { scale, manual, current, ready: 0, start_time: None, signals: Signals::default() };
        for (burst, stable, cpu, known) in loads {
            let average = |burst, stable| Some(Average { peak: burst, burst, stable: known.then_some(stable) });
            input.signals = Signals {
                concurrency: average(burst, stable),
                arrivals_per_second: average(stable, burst),
                cpu_percent: average(cpu, cpu),
                measured: input.ready,
                ..Signals::default()
            };
            let decision = decide(&input, &mut memory, &policy, now);
            if let Some(manual) = manual {
                prop_assert_eq!((decision.wanted, decision.cause), (manual.max(1), Cause::Manual));
            } else {
                prop_assert!((min.max(1)..=(min + more).max(1)).contains(&decision.wanted));
            }
            input.ready = input.current.min(decision.wanted);
            input.current = decision.wanted;
            now = now.plus(Duration::from_secs(1));
        }
    }

    #[test]
    fn more_load_never_asks_for_fewer(
        current in 1u32..20,
        target in 1u32..30,
        load in 0f64..600.0,
        more in 0f64..300.0,
    ) {
        let scale = scale(1, 20, in_flight(target));
        let (policy, now) = (Policy::default(), Timestamp::from_micros(START));
        let wanted = |load: f64| {
            // Old enough that it may go down.
            let mut memory = Memory { since: Some(now.minus(Duration::from_secs(1000))), ..Memory::default() };
            let concurrency = Some(Average { peak: load, burst: load, stable: Some(load) });
            let signals = Signals { concurrency, ..Signals::default() };
            let input = Input { scale, manual: None, current, ready: current, start_time: None, signals };
            decide(&input, &mut memory, &policy, now).wanted
        };
        prop_assert!(wanted(load) <= wanted(load + more));
    }

    #[test]
    fn constant_load_with_noise_settles(
        target in 5u32..40,
        load in 1u64..200,
        noise in proptest::collection::vec(-1f64..1.0, 600),
    ) {
        let mut service = Service::new(scale(1, 40, in_flight(target)));
        let load = f64::from(u32::try_from(load).unwrap());
        for (second, noise) in noise.iter().enumerate() {
            if second == 120 {
                service.history.clear();
            }
            // Up to a fifth, anew each second.
            service.second(whole((load * (1.0 + 0.2 * noise)).round()), 0.0, 1);
        }
        // A last step down may still come; back up would be flapping.
        let fell = service.history.windows(2).all(|pair| pair[1] < pair[0]);
        prop_assert!(service.history.len() <= 1 || fell, "{:?}", service.history);
        let capacity = f64::from(service.input.current * target);
        prop_assert!(capacity * 1.15 >= load, "{} for {load}", service.input.current);
        prop_assert!(f64::from(service.input.current.saturating_sub(2) * target) <= load * 1.2);
    }
}
