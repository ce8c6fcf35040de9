use std::time::Duration;

use tram_types::Timestamp;

use super::{scalers::Seen, *};

fn least(loads: &[(u32, u32)], _rotation: u32) -> Option<usize> {
    (0..loads.len()).min_by_key(|index| loads[*index].0)
}

/// `rate` requests a second for `seconds`, each a little over five seconds long.
fn steady(rate: u32, seconds: u32) -> Vec<Request> {
    let count = rate * seconds;
    (0..count)
        .map(|index| Request {
            at: f64::from(index) / f64::from(rate),
            input: 600.0,
            output: 200.0,
        })
        .collect()
}

/// What Knative's autoscaler wants after `seconds` of a load, seen by so many ready instances.
fn kpa_after(kpa: &mut Kpa, from: u64, seconds: u64, load: u64, ready: u32) -> u32 {
    let mut wanted = ready;
    for second in from + 1..=from + seconds {
        let seen = Seen {
            in_flight: load,
            queued: 0,
            arrivals: 0,
            ready,
            current: wanted,
        };
        wanted = kpa.wanted(Timestamp::EPOCH.plus(Duration::from_secs(second)), &seen);
    }
    wanted
}

#[test]
fn knatives_autoscaler_behaves_as_published() {
    // 70 % of a target of 10: 70 in flight are ten instances' work.
    let mut kpa = Kpa::new(10.0, 1);
    assert_eq!(kpa_after(&mut kpa, 0, 60, 70, 10), 10);
    // Twice what is ready over six seconds is panic: it grows at once, and to what those six seconds say.
    assert_eq!(kpa_after(&mut kpa, 60, 6, 140, 10), 20);
    // In panic it never shrinks, and panic lasts a stable window after the last cause.
    assert_eq!(kpa_after(&mut kpa, 66, 58, 7, 20), 20);
    // Then it shrinks, at most to half of what is ready.
    assert_eq!(kpa_after(&mut kpa, 124, 10, 7, 20), 10);
    // Below twice there is no panic: the mean of a minute moves slowly.
    let mut calm = Kpa::new(10.0, 1);
    kpa_after(&mut calm, 0, 60, 70, 10);
    let after = kpa_after(&mut calm, 60, 6, 126, 10);
    assert!((10..=11).contains(&after), "{after}");
}

#[test]
fn a_steady_load_is_met_by_all_and_the_oracle_pays_least() {
    let requests = steady(10, 1_300);
    let report = compare("steady", &requests, &ALL, &Model::default(), least, 1).unwrap();
    let best = &report.tables[0];
    assert_eq!(
        best.rows.len(),
        ALL.len(),
        "each policy meets the objective: {best:?}"
    );
    let hours = |policy: &str| {
        let row = best
            .rows
            .iter()
            .find(|(name, _)| name.starts_with(policy))
            .unwrap();
        best.figure(&row.0, "instance_hours").unwrap()
    };
    // 10 a second for 5.1 s each on 8 slots: 6.4 instances busy for a thousand seconds after the warm-up.
    assert!((1.5..2.1).contains(&hours("oracle")), "{}", hours("oracle"));
    for policy in ["tram", "kpa"] {
        assert!(
            hours(policy) >= hours("oracle") * 0.99,
            "{policy}: {}",
            hours(policy)
        );
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    let requests = steady(4, 120);
    let run = || {
        let report = compare("x", &requests, &["tram", "kpa"], &Model::default(), least, 3).unwrap();
        format!("{report:?}{}", crate::simulator::html::page(&report))
    };
    assert_eq!(run(), run());
}

#[test]
fn what_cannot_be_simulated_is_named() {
    let said = compare("x", &[], &["tram"], &Model::default(), least, 1)
        .unwrap_err()
        .to_string();
    assert!(said.contains("TRACE"), "{said}");
    let said = compare("x", &steady(1, 1), &["hpa"], &Model::default(), least, 1)
        .unwrap_err()
        .to_string();
    assert!(said.contains("`hpa`") && said.contains("oracle"), "{said}");
}
