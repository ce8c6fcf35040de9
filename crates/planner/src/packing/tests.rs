//! What makes room, and what never does.

use proptest::prelude::*;
use tram_types::units::MIB;
use uuid::Uuid;

use super::*;

const NOW: i64 = 1_767_225_600_000_000;

fn now() -> Timestamp {
    Timestamp::from_micros(NOW)
}

fn service(number: u128) -> ServiceId {
    ServiceId::from_uuid(Uuid::from_u128(number))
}

/// A model of so many MiB that rests and was last called so many seconds ago.
fn resting(number: u128, mib: u64, idle: u64) -> Resident {
    Resident {
        service: service(number),
        held: mib * MIB,
        leaving: 0,
        rest: Rest::May,
        woken_at: Some(now().minus(Duration::from_secs(3600))),
        called_at: Some(now().minus(Duration::from_secs(idle))),
        chance: chance(None, Duration::from_secs(idle)),
        wake: Some(Duration::from_secs(2)),
    }
}

fn ask(budget: u64, needs: u64, residents: &[Resident]) -> Verdict {
    room(budget * MIB, needs * MIB, service(99), 0, residents, true, now())
}

#[test]
fn what_fits_displaces_nobody() {
    let residents = [resting(1, 400, 60), resting(2, 400, 600)];
    assert_eq!(ask(1200, 400, &residents), Verdict::Free);
    assert_eq!(
        ask(1199, 400, &residents),
        Verdict::Sleep(vec![service(2)]),
        "the one that was idle for longer goes"
    );
    assert_eq!(ask(300, 400, &[]), Verdict::Never);
}

#[test]
fn what_is_called_as_rarely_goes_when_its_wake_is_the_cheaper_for_each_byte() {
    let mut slow = resting(1, 400, 600);
    slow.wake = Some(Duration::from_secs(40));
    let quick = resting(2, 400, 600);
    assert_eq!(
        ask(800, 400, &[slow.clone(), quick.clone()]),
        Verdict::Sleep(vec![service(2)])
    );
    let large = Resident {
        held: 4000 * MIB,
        ..quick.clone()
    };
    assert_eq!(
        ask(4400, 400, &[quick, large]),
        Verdict::Sleep(vec![service(2)]),
        "a model that gives ten times the room for the same wake, though half of it would do"
    );
}

#[test]
fn a_habit_is_worth_more_than_a_recent_call() {
    let habit = Pattern::of([(30, 20)]);
    let mut expected = resting(1, 400, 28 * 60);
    expected.chance = chance(Some(&habit), Duration::from_secs(28 * 60));
    let recent = resting(2, 400, 120);
    assert_eq!(
        ask(800, 400, &[expected, recent]),
        Verdict::Sleep(vec![service(2)])
    );
}

#[test]
fn who_works_or_is_promised_or_woke_just_now_stays() {
    let busy = Resident {
        rest: Rest::Busy,
        ..resting(1, 400, 0)
    };
    let promised = Resident {
        rest: Rest::Promised,
        ..resting(2, 400, 9000)
    };
    let fresh = Resident {
        woken_at: Some(now().minus(Duration::from_secs(3))),
        ..resting(3, 400, 2)
    };
    let full = Full {
        busy: 1,
        fresh: 1,
        promised: 1,
        other: 0,
    };
    let residents = [busy, promised, fresh.clone()];
    assert_eq!(ask(1200, 400, &residents), Verdict::Full(full));
    // Its residence is over.
    let later = now().plus(residence(fresh.wake));
    assert_eq!(
        room(1200 * MIB, 400 * MIB, service(99), 0, &residents, true, later),
        Verdict::Sleep(vec![service(3)])
    );
}

#[test]
fn a_residence_is_as_long_as_loading_was_dear_and_nobody_waits_for_it_in_vain() {
    assert_eq!(residence(None), RESIDENCE_MIN);
    assert_eq!(residence(Some(Duration::from_secs(8))), Duration::from_secs(16));
    assert_eq!(residence(Some(Duration::from_secs(600))), RESIDENCE_MAX);
}

#[test]
fn what_leaves_already_is_waited_for_and_what_others_wait_for_is_not_taken() {
    let leaving = Resident {
        leaving: 400 * MIB,
        ..resting(1, 400, 60)
    };
    let other = resting(2, 400, 60);
    let residents = [leaving, other];
    assert_eq!(ask(800, 400, &residents), Verdict::Coming);
    let after_another = room(
        800 * MIB,
        400 * MIB,
        service(99),
        400 * MIB,
        &residents,
        true,
        now(),
    );
    assert_eq!(after_another, Verdict::Sleep(vec![service(2)]));
}

#[test]
fn nobody_waits_for_the_end_of_a_stream_where_another_can_go() {
    let streams = Resident {
        leaving: 400 * MIB,
        rest: Rest::Busy,
        ..resting(1, 400, 60)
    };
    assert_eq!(
        ask(800, 400, &[streams.clone(), resting(2, 400, 60)]),
        Verdict::Sleep(vec![service(2)])
    );
    let full = Full {
        busy: 1,
        ..Full::default()
    };
    assert_eq!(ask(400, 400, std::slice::from_ref(&streams)), Verdict::Full(full));
    let own = Resident {
        service: service(99),
        ..streams
    };
    assert_eq!(ask(400, 400, &[own]), Verdict::Coming, "its own place");
}

#[test]
fn a_wake_that_nobody_waits_for_displaces_nobody() {
    let verdict = room(
        800 * MIB,
        400 * MIB,
        service(99),
        0,
        &[resting(1, 800, 9000)],
        false,
        now(),
    );
    assert_eq!(
        verdict,
        Verdict::Full(Full {
            other: 1,
            ..Full::default()
        })
    );
}

fn any_resident() -> impl Strategy<Value = Resident> {
    let rest = prop_oneof![
        4 => Just(Rest::May),
        1 => Just(Rest::Busy),
        1 => Just(Rest::Promised),
        1 => Just(Rest::Unknown),
    ];
    (
        1u64..2000,
        0u64..4000,
        0u64..300,
        rest,
        0u64..100_000,
        prop::option::of(0u64..120),
        0.0f64..=1.0,
    )
        .prop_map(|(held, leaving, woken, rest, idle, wake, chance)| Resident {
            // Numbered by the caller.
            service: service(0),
            held: held * MIB,
            leaving: leaving.saturating_sub(3000).min(held) * MIB,
            rest,
            woken_at: Some(now().minus(Duration::from_secs(woken))),
            called_at: Some(now().minus(Duration::from_secs(idle))),
            chance,
            wake: wake.map(Duration::from_secs),
        })
}

fn any_residents() -> impl Strategy<Value = Vec<Resident>> {
    prop::collection::vec(any_resident(), 0..8).prop_map(|mut residents| {
        for (number, resident) in (1u128..).zip(&mut residents) {
            resident.service = service(number);
        }
        residents
    })
}

fn sum(residents: &[Resident], of: fn(&Resident) -> u64) -> u64 {
    residents.iter().map(of).sum()
}

proptest! {
    #[test]
    fn the_budget_holds_and_nothing_that_must_stay_goes(
        residents in any_residents(),
        budget in 1u64..8000,
        needs in 1u64..3000,
        reserved in 0u64..1000,
        displaces in any::<bool>(),
    ) {
        let (budget, needs, reserved) = (budget * MIB, needs * MIB, reserved * MIB);
        let verdict = room(budget, needs, service(99), reserved, &residents, displaces, now());
        let held = sum(&residents, |it| it.held) + reserved;
        let leaving = sum(&residents, |it| if it.rest == Rest::Busy { 0 } else { it.leaving });
        let resting = |it: &&Resident| displaces && it.rest == Rest::May && !is_fresh(it, now()) && gives(it) > 0;
        let most: u64 = residents.iter().filter(resting).map(gives).sum();
        match verdict {
            Verdict::Never => prop_assert!(needs > budget),
            Verdict::Free => prop_assert!(held + needs <= budget),
            Verdict::Coming => {
                prop_assert!(held + needs > budget);
                prop_assert!(held + needs - leaving <= budget);
            }
            Verdict::Full(full) => {
                prop_assert!(held + needs - leaving - most > budget, "there was room to be made");
                let counted = full.busy + full.fresh + full.promised + full.other;
                let is_there = |it: &&Resident| gives(it) > 0 || (it.rest == Rest::Busy && it.held > 0);
                let there = residents.iter().filter(is_there).count();
                prop_assert_eq!(usize::try_from(counted).unwrap(), there);
            }
            Verdict::Sleep(chosen) => {
                prop_assert!(held + needs - leaving > budget, "nobody had to go");
                let mut freed = 0;
                for id in &chosen {
                    let it = residents.iter().find(|it| it.service == *id).unwrap();
                    prop_assert!(resting(&it), "{it:?} must stay");
                    freed += gives(it);
                }
                prop_assert!(held + needs - leaving - freed <= budget, "not enough");
                for id in &chosen {
                    let it = residents.iter().find(|it| it.service == *id).unwrap();
                    prop_assert!(held + needs - leaving - (freed - gives(it)) > budget, "{it:?} went for nothing");
                }
                let unique: std::collections::BTreeSet<_> = chosen.iter().collect();
                prop_assert_eq!(unique.len(), chosen.len());
            }
        }
    }

    #[test]
    fn the_order_of_the_others_does_not_matter(
        residents in any_residents(),
        budget in 1u64..8000,
        needs in 1u64..3000,
        turn in 0usize..8,
    ) {
        let mut turned = residents.clone();
        turned.rotate_left(turn.min(residents.len()));
        turned.reverse();
        prop_assert_eq!(ask(budget, needs, &residents), ask(budget, needs, &turned));
    }

    #[test]
    fn of_models_alike_but_for_one_thing_the_least_valuable_goes(
        count in 2usize..6,
        seed in prop::collection::vec((0.001f64..1.0, 1u64..60), 6),
    ) {
        let residents: Vec<Resident> = (1u128..)
            .zip(&seed)
            .take(count)
            .map(|(number, (chance, wake))| Resident {
                chance: *chance,
                wake: Some(Duration::from_secs(*wake)),
                ..resting(number, 400, 600)
            })
            .collect();
        let cheapest = residents.iter().min_by(|one, other| density(one).total_cmp(&density(other))).unwrap();
        let budget = 400 * u64::try_from(count).unwrap();
        prop_assert_eq!(ask(budget, 400, &residents), Verdict::Sleep(vec![cheapest.service]));
    }

    /// Any sequence of calls to models of any sizes: the budget is never exceeded, and who was put to sleep had stayed.
    #[test]
    fn through_any_sequence_of_calls_the_budget_holds_and_nobody_goes_before_its_time(
        sizes in prop::collection::vec(1u64..50, 2..6),
        calls in prop::collection::vec((0usize..6, 0u64..40), 1..60),
    ) {
        let budget = 60;
        let mut at = now();
        let mut awake: Vec<Resident> = Vec::new();
        for (which, after) in calls {
            at = at.plus(Duration::from_secs(after));
            let number = which % sizes.len();
            let id = service(number as u128 + 1);
            for one in &mut awake {
                one.chance = chance(None, at.since(one.called_at.unwrap()));
            }
            if let Some(here) = awake.iter_mut().find(|it| it.service == id) {
                here.called_at = Some(at);
                continue;
            }
            let needs = sizes[number] * MIB;
            match room(budget * MIB, needs, id, 0, &awake, true, at) {
                Verdict::Free => {}
                Verdict::Sleep(chosen) => {
                    for gone in awake.iter().filter(|it| chosen.contains(&it.service)) {
                        prop_assert!(at.since(gone.woken_at.unwrap()) >= residence(gone.wake));
                    }
                    awake.retain(|it| !chosen.contains(&it.service));
                }
                // The caller is told to come back.
                Verdict::Full(full) => {
                    prop_assert!(full.fresh > 0, "only residence is in the way here");
                    continue;
                }
                verdict => prop_assert!(false, "{verdict:?}"),
            }
            awake.push(Resident {
                service: id,
                held: needs,
                woken_at: Some(at),
                called_at: Some(at),
                ..resting(0, 0, 0)
            });
            prop_assert!(sum(&awake, |it| it.held) <= budget * MIB);
        }
    }
}
