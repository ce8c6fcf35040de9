//! One deployment takes over from another: gradually, by a canary, at once; and back when it fails.

use std::{collections::BTreeSet, time::Duration};

use proptest::prelude::*;
use tram_types::{
    DeploymentId,
    status::{DeploymentStatus as D, InstanceStatus},
};

use super::{
    scenarios::healthy,
    world::{Program, World},
};
use crate::{Edge, Instance, Takeover, Tally};

/// More rounds than any of these takes.
const ROUNDS: usize = 2000;

fn served(world: &World) -> BTreeSet<tram_types::InstanceId> {
    match &world.store.edge {
        Edge::Known { endpoints, .. } => endpoints.clone(),
        Edge::Unknown => BTreeSet::new(),
    }
}

fn live(world: &World, deployment: DeploymentId) -> usize {
    world
        .deployment(deployment)
        .instances()
        .filter(|it| it.is_live())
        .count()
}

/// Instances that take requests: the data plane names them, and they were not told to stop.
fn taking(world: &World) -> usize {
    let endpoints = served(world);
    let instances = || world.store.deployments.iter().flat_map(|it| it.instances());
    instances()
        .filter(|it| endpoints.contains(&it.id) && it.status == InstanceStatus::Healthy)
        .count()
}

/// Instances that the data plane sends requests to and that run.
fn answering(world: &World) -> usize {
    let endpoints = served(world);
    world.running().iter().filter(|it| endpoints.contains(it)).count()
}

fn round(world: &mut World) {
    world.step_site();
    world.sync_edge();
    world.reconcile(false);
    world.advance(Duration::from_millis(500));
}

/// Rounds until something holds.
fn until(world: &mut World, what: &str, holds: impl Fn(&World) -> bool) {
    for _ in 0..ROUNDS {
        if holds(world) {
            return;
        }
        round(world);
    }
    panic!("never: {what}; {:#?}", world.history.last());
}

#[test]
fn a_rolling_deployment_replaces_instance_by_instance_and_never_has_fewer_that_take_requests() {
    let mut world = healthy(8);
    let old = world.store.deployments[0].id;
    let new = world.deploy(Program::Good, 8, Takeover::Rolling);
    let mut mixed = 0;
    for _ in 0..ROUNDS {
        if world.deployment(new).status == D::Healthy {
            break;
        }
        round(&mut world);
        assert!(
            taking(&world) >= 8 || world.store.active == Some(new),
            "{:?}",
            world.history.last()
        );
        let both = live(&world, old) + live(&world, new);
        assert!(
            both <= 8 + 2 + 2,
            "{both} instances: a quarter more at a time, and those that are being relieved"
        );
        mixed += usize::from((1..8).contains(&live(&world, old)) && world.store.active == Some(old));
    }
    assert!(mixed > 0, "it never ran with a part of each");
    until(&mut world, "the old one is gone", |world| {
        world.deployment(old).status == D::Stopped
    });
    assert_eq!(live(&world, new), 8);
}

#[test]
fn a_rolling_deployment_that_fails_half_way_gives_back_what_it_took() {
    let mut world = healthy(4);
    let old = world.store.deployments[0].id;
    let new = world.deploy(Program::Good, 4, Takeover::Rolling);
    until(&mut world, "a new one takes requests", |world| {
        live(world, old) < 4
    });
    world.turn(new, Program::Crashes);
    for _ in 0..ROUNDS {
        if world.deployment(new).status == D::Error {
            break;
        }
        round(&mut world);
        assert!(taking(&world) >= 4, "{:?}", world.history.last());
    }
    assert_eq!(world.deployment(new).status, D::Error);
    until(&mut world, "the old one is whole", |world| taking(world) == 4);
    assert_eq!(world.store.active, Some(old));
    assert_eq!(world.deployment(old).status, D::Healthy);
    assert_eq!(live(&world, new), 0);
}

#[test]
fn a_rolling_deployment_that_is_cancelled_half_way_gives_back_what_it_took() {
    let mut world = healthy(4);
    let old = world.store.deployments[0].id;
    let new = world.deploy(Program::Good, 4, Takeover::Rolling);
    until(&mut world, "half of it is there", |world| live(world, old) == 2);
    world.cancel(new);
    for _ in 0..ROUNDS {
        if world.deployment(new).is_empty() {
            break;
        }
        round(&mut world);
        assert!(taking(&world) >= 4, "{:?}", world.history.last());
    }
    assert_eq!(
        (live(&world, old), world.deployment(new).status),
        (4, D::Canceled)
    );
}

#[test]
fn a_rolling_deployment_that_is_superseded_half_way_gives_way_instance_by_instance() {
    for takeover in [Takeover::Rolling, Takeover::Canary, Takeover::BlueGreen] {
        let mut world = healthy(4);
        let old = world.store.deployments[0].id;
        let half = world.deploy(Program::Good, 4, Takeover::Rolling);
        until(&mut world, "half of it is there", |world| live(world, old) == 2);
        let new = world.deploy(Program::Good, 4, takeover);
        let mut stood_in = false;
        for _ in 0..ROUNDS {
            if world.deployment(new).status == D::Healthy {
                break;
            }
            round(&mut world);
            assert!(
                taking(&world) >= 4 || world.store.active == Some(new),
                "{takeover:?} {:?}",
                world.history.last()
            );
            stood_in |= world.deployment(half).is_going_down() && live(&world, half) > 0;
        }
        assert_eq!(world.store.active, Some(new), "{takeover:?}");
        assert!(stood_in, "{takeover:?}: it went at once");
        until(&mut world, "the others are gone", |world| {
            world.deployment(half).status == D::Stopped && world.deployment(old).status == D::Stopped
        });
        assert_eq!(live(&world, new), 4, "{takeover:?}");
    }
}

#[test]
fn what_cannot_come_back_is_not_waited_for() {
    let mut world = healthy(4);
    let old = world.store.deployments[0].id;
    let new = world.deploy(Program::Good, 4, Takeover::Rolling);
    until(&mut world, "half of it is there", |world| live(world, old) == 2);
    world.turn(old, Program::Crashes);
    world.cancel(new);
    until(&mut world, "it is gone all the same", |world| {
        world.deployment(new).status == D::Canceled
    });
    assert_eq!(world.store.active, Some(old));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    /// Versions that follow each other at any moment, and are cancelled at any moment.
    #[test]
    fn versions_that_follow_each_other_never_leave_fewer_that_take_requests(
        instances in 1_u32..6,
        changes in prop::collection::vec((0_usize..30, prop::option::weighted(0.8, any::<bool>())), 1..6),
    ) {
        let mut world = healthy(instances);
        let instances = usize::try_from(instances).unwrap();
        for (rounds, change) in &changes {
            let newest = world.store.deployments.last().expect("one").id;
            match change {
                Some(by_canary) => {
                    let takeover = if *by_canary { Takeover::Canary } else { Takeover::Rolling };
                    world.deploy(Program::Good, u32::try_from(instances).unwrap(), takeover);
                }
                None if world.deployment(newest).status.is_starting_up() => world.cancel(newest),
                None => {}
            }
            for _ in 0..*rounds {
                round(&mut world);
                prop_assert!(answering(&world) >= instances, "{:?}", world.history.last());
            }
        }
        let going = |world: &World| world.store.deployments.iter().filter(|it| !it.status.is_final()).count();
        for _ in 0..ROUNDS {
            if going(&world) == 1 {
                break;
            }
            round(&mut world);
            prop_assert!(answering(&world) >= instances, "{:?}", world.history.last());
        }
        prop_assert_eq!(going(&world), 1);
    }
}

#[test]
fn a_canary_that_fails_more_requests_than_the_others_is_given_up() {
    let mut world = healthy(3);
    let old = world.store.deployments[0].id;
    let new = world.deploy(Program::Good, 3, Takeover::Canary);
    until(&mut world, "the canary is healthy", |world| {
        let mut instances = world.deployment(new).instances();
        instances.any(|it| it.status == InstanceStatus::Healthy)
    });
    let canary = world.deployment(new).instances().next().expect("one").id;
    let others: Vec<_> = world.deployment(old).instances().map(|it| it.id).collect();
    for other in others {
        world.set_tally(
            other,
            Tally {
                answers: 90,
                failures: 3,
            },
        );
    }
    world.set_tally(
        canary,
        Tally {
            answers: 30,
            failures: 2,
        },
    );
    round(&mut world);
    assert_eq!(world.deployment(new).status, D::Starting);
    world.set_tally(
        canary,
        Tally {
            answers: 30,
            failures: 15,
        },
    );
    until(&mut world, "it fails", |world| {
        world.deployment(new).status == D::Error
    });
    let told = world.deployment(new).messages.join("; ");
    assert!(
        told.contains("15 of its 30 requests failed, and 9 of 270"),
        "{told}"
    );
    assert_eq!((world.store.active, live(&world, old)), (Some(old), 3));
}

#[test]
fn while_the_data_plane_is_lost_nothing_old_is_stopped_or_started_again() {
    let mut world = healthy(4);
    let old = world.store.deployments[0].id;
    world.deploy(Program::Good, 4, Takeover::Rolling);
    until(&mut world, "a new one takes requests", |world| {
        live(world, old) == 3
    });
    let running = |world: &World| {
        let running = world.running();
        let of_old = world.deployment(old).instances();
        of_old
            .filter(|it| running.contains(&it.id))
            .map(|it| it.id)
            .collect::<Vec<_>>()
    };
    let made = world.deployment(old).instances().count();
    let before = running(&world);
    world.edge_up = false;
    for _ in 0..20 {
        round(&mut world);
        assert_eq!(running(&world), before);
        assert_eq!(world.deployment(old).instances().count(), made);
    }
}

#[test]
fn a_canary_is_alone_until_it_has_stayed_healthy() {
    let mut world = healthy(3);
    let old = world.store.deployments[0].id;
    let new = world.deploy(Program::Good, 3, Takeover::Canary);
    let bake = world.policy.canary_bake;
    until(&mut world, "the canary takes requests", |world| {
        world
            .deployment(new)
            .instances()
            .any(|it| served(world).contains(&it.id))
    });
    let since = world.now;
    while world.now.since(since) < bake - Duration::from_secs(2) {
        round(&mut world);
        assert_eq!((live(&world, old), live(&world, new)), (3, 1));
        assert_eq!(world.deployment(new).status, D::Starting);
    }
    let told = world.deployment(new).messages.join("; ");
    assert!(told.contains("the canary takes its share"), "{told}");
    until(&mut world, "the new one serves", |world| {
        world.store.active == Some(new)
    });
    assert!(world.now.since(since) >= bake - Duration::from_secs(1));
    assert_eq!(live(&world, new), 3);
}

#[test]
fn a_service_of_one_instance_bakes_its_canary_too() {
    let mut world = healthy(1);
    let new = world.deploy(Program::Good, 1, Takeover::Canary);
    let begun = world.now;
    until(&mut world, "the new one serves", |world| {
        world.store.active == Some(new)
    });
    assert!(world.now.since(begun) >= world.policy.canary_bake);
}

#[test]
fn a_canary_that_falls_ill_is_the_end_of_its_deployment_alone() {
    let mut world = healthy(3);
    let old = world.store.deployments[0].id;
    let new = world.deploy(Program::Good, 3, Takeover::Canary);
    let is_up = |it: &Instance| it.status == InstanceStatus::Healthy;
    until(&mut world, "the canary is healthy", |world| {
        world.deployment(new).instances().any(is_up)
    });
    let canary = world.deployment(new).instances().next().expect("one").id;
    world.sicken(canary);
    until(&mut world, "it fails", |world| {
        world.deployment(new).status == D::Error
    });
    let told = world.deployment(new).messages.join("; ");
    assert!(told.contains("healthy and no longer is"), "{told}");
    assert_eq!((world.store.active, live(&world, old)), (Some(old), 3));
}

#[test]
fn blue_green_changes_over_at_once_when_all_are_healthy() {
    let mut world = healthy(3);
    let old = world.store.deployments[0].id;
    let new = world.deploy(Program::Good, 3, Takeover::BlueGreen);
    while world.store.active != Some(new) {
        assert_eq!(live(&world, old), 3);
        let endpoints = served(&world);
        assert!(
            world
                .deployment(new)
                .instances()
                .all(|it| !endpoints.contains(&it.id))
        );
        round(&mut world);
    }
    assert_eq!(live(&world, new), 3);
}
