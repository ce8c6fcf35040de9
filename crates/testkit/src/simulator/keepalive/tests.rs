use super::*;

fn trace(calls: &[&[u32]], minutes: u32) -> Functions {
    let function = |calls: &&[u32]| Function {
        calls: calls.iter().map(|minute| (*minute, 1)).collect(),
        duration_ms: 100.0,
        memory_mib: 1024.0,
    };
    Functions {
        functions: calls.iter().map(function).collect(),
        minutes,
    }
}

fn outcome(policy: &str, calls: &[&[u32]], minutes: u32) -> Outcome {
    replay(&trace(calls, minutes), &policy.parse().unwrap())
}

#[test]
fn a_fixed_time_out_is_charged_by_the_minute() {
    // Minutes 1 to 4 idle, a call within the time-out; then 15 idle ones, awake for ten; then the rest of the hour.
    let outcome = outcome("fixed-10", &[&[0, 5, 21]], 60);
    assert_eq!((outcome.active, outcome.slow), (3, 2));
    assert!((outcome.memory_hours * 60.0 - (4.0 + 10.0 + 10.0)).abs() < 1e-9);
    assert!((outcome.gib_hours - outcome.memory_hours).abs() < 1e-9);
    assert_eq!(outcome.wait_ms, 2.0 * START_MS);
    assert!((outcome.kept_by_hour[0] - outcome.memory_hours).abs() < 1e-9);
}

#[test]
fn a_light_sleeper_costs_what_it_keeps_and_wakes_in_time() {
    let rung = RUNGS.iter().find(|rung| rung.name == "reclaimed").unwrap();
    let calls: Vec<u32> = (0..40).map(|index| index * 30).collect();
    let outcome = outcome("reclaimed-100", &[&calls], 1200);
    assert_eq!(outcome.slow, 1, "the first call alone");
    assert_eq!(outcome.light, 39);
    let idle = 40.0 * 29.0;
    let awake = 40.0 * SETTLE_SECONDS / 60.0;
    // Light at most in every idle minute; and deep in those in which it was never called.
    let most = awake + (idle - awake) * rung.resident_share;
    let minutes = outcome.memory_hours * 60.0;
    assert!(
        (most * 0.4..=most + 1.0).contains(&minutes),
        "{minutes} of {most}"
    );
}

#[test]
fn early_wakes_spare_a_time_out_its_slow_wakes_and_cost_what_they_may() {
    let calls: Vec<u32> = (0..40).map(|index| index * 30).collect();
    let fixed = outcome("fixed-5", &[&calls], 1200);
    let habits = outcome("habits-5-10", &[&calls], 1200);
    assert_eq!(fixed.slow, 40);
    // The first, and those before three idle times were seen.
    assert_eq!(habits.slow, 4);
    let spared = f64::from(u32::try_from(fixed.slow - habits.slow).unwrap());
    let more = (habits.memory_hours - fixed.memory_hours) * 60.0;
    assert!(
        (0.0..=10.0 * spared).contains(&more),
        "{more} minutes for {spared} wakes"
    );
    // Without a budget it is the time-out.
    let never = outcome("habits-5-0", &[&calls], 1200);
    assert_eq!((never.slow, never.memory_hours), (fixed.slow, fixed.memory_hours));
    for wrong in ["habits-5", "habits-0-5", "habits-5--1", "habits-x-5"] {
        assert!(wrong.parse::<Policy>().is_err(), "{wrong}");
    }
}

#[test]
fn a_service_on_a_schedule_is_woken_before_its_call() {
    let calls: Vec<u32> = (0..40).map(|index| index * 30).collect();
    let fixed = outcome("fixed-10", &[&calls], 1200);
    let learned = outcome("prewake-10", &[&calls], 1200);
    assert_eq!(fixed.slow, 40);
    assert!(learned.slow <= 3, "{}", learned.slow);
    assert!(
        learned.memory_hours < fixed.memory_hours / 3.0,
        "{}",
        learned.memory_hours
    );
    let hybrid = outcome("hybrid-10", &[&calls], 1200);
    assert!(
        hybrid.slow <= 13,
        "ten idle times, then it knows: {}",
        hybrid.slow
    );
}

#[test]
fn policies_are_named_as_they_are_printed() {
    for name in policies::ALL {
        assert_eq!(name.parse::<Policy>().unwrap().to_string(), name);
    }
    for wrong in [
        "fixed",
        "fixed-x",
        "fixed--1",
        "prewake-NaN",
        "prewake--1",
        "napping-3",
        "",
    ] {
        let said = wrong.parse::<Policy>().unwrap_err().to_string();
        assert!(said.contains("fixed-MINUTES"), "{said}");
    }
}

#[test]
fn an_empty_trace_is_refused() {
    let said = compare("x", &trace(&[&[]], 5), &[Policy::Never]).unwrap_err();
    assert!(said.to_string().contains("TRACE"), "{said}");
}
