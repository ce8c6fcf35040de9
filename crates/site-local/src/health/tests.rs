//! The state machine under a clock that the test moves.

use tram_types::effective::Probe;

use super::*;

fn check(port: u16) -> HealthCheck {
    HealthCheck {
        grace_period: Duration::from_secs(5),
        interval: Duration::from_secs(30),
        restart_limit: 3,
        timeout: Duration::from_secs(5),
        probe: Probe::Tcp { port },
    }
}

/// Runs probes, each of no length, until `end`; `result` says what the check at that time gives.
fn drive(health: &mut Health, end: Instant, mut result: impl FnMut(usize, Instant) -> bool) -> usize {
    let mut probes = 0;
    while let Some((index, due)) = health.next() {
        if due > end {
            break;
        }
        let outcome = if result(index, due) {
            Ok(())
        } else {
            Err(format!("check {index} failed"))
        };
        health.record(index, outcome, due);
        probes += 1;
    }
    probes
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

#[tokio::test(start_paused = true)]
async fn a_fast_program_is_found_within_tens_of_milliseconds() {
    for ready_ms in [0_u64, 5, 20, 60, 300, 2000] {
        let start = Instant::now();
        let ready = start + Duration::from_millis(ready_ms);
        let mut health = Health::new(&[check(80)], start, false, start);
        let mut found = None;
        drive(&mut health, start + seconds(10), |_, at| {
            if at >= ready && found.is_none() {
                found = Some(at - start);
            }
            at >= ready
        });
        let found = found.unwrap();
        let bound = Duration::from_millis(ready_ms).mul_f64(1.4) + FIRST_PROBE;
        assert!(found <= bound, "ready after {ready_ms} ms, found after {found:?}");
        assert!(health.view().healthy);
    }
}

#[tokio::test(start_paused = true)]
async fn all_checks_must_pass_once() {
    let start = Instant::now();
    let mut health = Health::new(&[check(80), check(81)], start, false, start);
    let probes = drive(&mut health, start + seconds(60), |index, _| index == 0);
    let view = health.view();
    assert!(!view.became_healthy && !view.healthy);
    assert_eq!(view.last_failure.as_deref(), Some("check 1 failed"));
    assert_eq!(
        view.failures, 0,
        "an instance that starts has no count; its controller has a deadline"
    );
    assert!(
        (50..120).contains(&probes),
        "about once a second in the end: {probes}"
    );
    drive(&mut health, start + seconds(62), |_, _| true);
    assert!(health.view().became_healthy && health.view().healthy);
    assert_eq!(health.view().last_failure, None);
}

#[tokio::test(start_paused = true)]
async fn one_failed_probe_is_forgiven_and_two_are_not() {
    let start = Instant::now();
    let mut health = Health::new(&[check(80)], start, false, start);
    drive(&mut health, start + seconds(20), |_, _| true);
    let mut failed = false;
    drive(&mut health, start + seconds(100), |_, _| {
        std::mem::replace(&mut failed, true)
    });
    assert!(health.view().healthy, "{:?}", health.view());
    // From now on it fails: seen within a second of the probe, counted once in an interval.
    let begin = health.next().unwrap().1;
    drive(&mut health, begin, |_, _| false);
    assert!(health.view().healthy, "not yet confirmed");
    drive(&mut health, begin + CONFIRMATION, |_, _| false);
    assert_eq!((health.view().healthy, health.view().failures), (false, 1));
    drive(&mut health, begin + seconds(29), |_, _| false);
    assert_eq!(health.view().failures, 1);
    drive(&mut health, begin + seconds(35), |_, _| false);
    assert_eq!(health.view().failures, 2);
    drive(&mut health, begin + seconds(70), |_, _| false);
    assert_eq!(health.view().failures, 3);
    // And recovery within seconds, not an interval.
    drive(&mut health, begin + seconds(73), |_, _| true);
    assert!(health.view().healthy);
    assert_eq!(health.view().failures, 0);
}

#[tokio::test(start_paused = true)]
async fn failures_in_the_grace_period_do_not_count() {
    let start = Instant::now();
    let patient = HealthCheck {
        grace_period: seconds(300),
        interval: seconds(3),
        ..check(80)
    };
    let mut health = Health::new(&[patient], start, false, start);
    drive(&mut health, start + seconds(10), |_, _| true);
    drive(&mut health, start + seconds(299), |_, _| false);
    assert_eq!((health.view().healthy, health.view().failures), (false, 0));
    drive(&mut health, start + seconds(310), |_, _| false);
    assert!(health.view().failures >= 2, "{:?}", health.view());
}

#[tokio::test(start_paused = true)]
async fn an_adopted_instance_is_neither_starting_nor_healthy_until_asked() {
    let now = Instant::now() + seconds(1000);
    let started = now - seconds(900);
    let mut health = Health::new(&[check(80)], started, true, now);
    assert_eq!(
        (health.view().became_healthy, health.view().healthy),
        (true, false)
    );
    assert_eq!(health.next(), Some((0, now)), "asked at once");
    health.record(0, Ok(()), now);
    assert!(health.view().healthy);
}

#[tokio::test(start_paused = true)]
async fn without_checks_it_is_healthy_while_it_runs() {
    let health = Health::new(&[], Instant::now(), false, Instant::now());
    assert!(health.view().healthy && health.next().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_long_freeze_is_no_failure() {
    let start = Instant::now();
    let mut health = Health::new(&[check(80)], start, false, start);
    drive(&mut health, start + seconds(10), |_, _| true);
    let thawed = start + seconds(5000);
    health.resume(thawed);
    assert!(health.view().healthy);
    let (_, due) = health.next().unwrap();
    assert!(
        due > thawed && due <= thawed + seconds(2),
        "asked soon, but after it had time to breathe"
    );
}

#[tokio::test(start_paused = true)]
async fn what_an_earlier_process_froze_is_taken_for_healthy_until_it_is_asked_again() {
    let start = Instant::now();
    let mut health = Health::new(&[check(80)], start, true, start);
    assert!(!health.view().healthy, "nobody has asked it yet");
    health.was_frozen();
    assert!(health.view().healthy);
    let thawed = start + seconds(3600);
    health.resume(thawed);
    let (index, due) = health.next().unwrap();
    assert_eq!(due, thawed + CONFIRMATION, "it gets a moment to come to itself");
    health.record(index, Err("refused".to_owned()), due);
    assert!(health.view().healthy, "once may be chance");
    let (index, due) = health.next().unwrap();
    health.record(index, Err("refused".to_owned()), due);
    assert!(!health.view().healthy);
    // One that was never healthy is not made so by a freeze.
    let mut starting = Health::new(&[check(80)], start, false, start);
    starting.was_frozen();
    assert!(!starting.view().healthy);
}
