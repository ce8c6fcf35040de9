use proptest::prelude::*;

use super::*;
use crate::simulator::trace::azure_functions::Function;

fn least(loads: &[(u32, u32)], _rotation: u32) -> Option<usize> {
    (0..loads.len()).min_by_key(|index| loads[*index].0)
}

fn world(services: usize, machines: usize, deep_sleep: u64) -> World {
    World {
        services,
        machines,
        machine_mib: 1024.0,
        deep_sleep: Duration::from_secs(deep_sleep),
        seed: 7,
        choose: least,
    }
}

fn trace(calls: &[&[(u32, u32)]], minutes: u32) -> Functions {
    let function = |calls: &&[(u32, u32)]| Function {
        calls: calls.to_vec(),
        duration_ms: 200.0,
        memory_mib: 256.0,
    };
    Functions {
        functions: calls.iter().map(function).collect(),
        minutes,
    }
}

#[test]
fn a_call_wakes_a_service_and_idleness_puts_it_to_sleep() {
    let outcome = simulate(&trace(&[&[(0, 1), (30, 3)]], 60), &world(1, 1, 300)).unwrap();
    assert_eq!((outcome.arrived, outcome.answered, outcome.cold), (4, 4, 2));
    assert!(
        outcome.waits[0] > 0.5,
        "a start takes its time: {:?}",
        outcome.waits
    );
    // Twice five minutes idle, and a little before and after.
    let hours = outcome.instance_hours;
    assert!((10.0..13.0).contains(&(hours * 60.0)), "{hours}");
}

#[test]
fn the_whole_planner_agrees_with_the_policy_it_stands_for() {
    let minutes: Vec<Vec<(u32, u32)>> = (1..30u32)
        .map(|step| (0..240 / step).map(|n| (n * step, 1)).collect())
        .collect();
    let calls: Vec<&[(u32, u32)]> = minutes.iter().map(Vec::as_slice).collect();
    let trace = trace(&calls, 240);
    let whole = simulate(&trace, &world(trace.functions.len(), 100, 600)).unwrap();
    let alone = keepalive::replay(&trace, &keepalive::Policy::Fixed(10));
    let ratio = whole.cold as f64 / alone.slow as f64;
    assert!((0.9..1.1).contains(&ratio), "{} and {}", whole.cold, alone.slow);
    assert_eq!(whole.arrived, whole.answered);
}

#[test]
fn who_finds_no_room_waits_for_it() {
    let calls: Vec<(u32, u32)> = (0..5).map(|minute| (minute, 1)).collect();
    let trace = trace(
        &[
            &calls[..1],
            &calls[..1],
            &calls[..1],
            &calls[..1],
            &calls[..1],
            &calls[..1],
        ],
        30,
    );
    let outcome = simulate(&trace, &world(6, 1, 60)).unwrap();
    assert!(outcome.no_room > 0);
    assert_eq!(outcome.most_instances, 4, "four of 256 MiB fit into 1024");
    assert!(outcome.fullest_mib <= 1024.0);
    assert_eq!(outcome.arrived, outcome.answered, "nobody is forgotten");
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_another_does_not() {
    let trace = trace(&[&[(0, 5), (7, 2)], &[(3, 1)]], 30);
    let run = |seed| {
        let world = World {
            seed,
            ..world(40, 10, 60)
        };
        let report = compare("x", &trace, &[world]).unwrap();
        format!("{report:?}{}", crate::simulator::html::page(&report))
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

#[test]
fn arguments_that_make_no_sense_are_named() {
    let trace = trace(&[&[(0, 1)]], 1);
    for (wrong, field) in [(world(0, 1, 60), "services"), (world(1, 0, 60), "machines")] {
        let said = simulate(&trace, &wrong).unwrap_err().to_string();
        assert!(said.contains(field), "{said}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn what_must_never_happen_does_not(
        calls in prop::collection::vec(prop::collection::btree_map(0u32..60, 1u32..8, 0..20), 1..8),
        services in 1usize..30,
        machines in 1usize..5,
        deep_sleep in 1u64..600,
        seed in any::<u64>(),
    ) {
        let calls: Vec<Vec<(u32, u32)>> = calls.into_iter().map(|it| it.into_iter().collect()).collect();
        let calls: Vec<&[(u32, u32)]> = calls.iter().map(Vec::as_slice).collect();
        let trace = trace(&calls, 60);
        prop_assume!(trace.functions.iter().any(|it| !it.calls.is_empty()));
        let world = World { seed, ..world(services, machines, deep_sleep) };
        let outcome = simulate(&trace, &world);
        prop_assert!(outcome.is_ok(), "{}", outcome.unwrap_err());
    }
}
