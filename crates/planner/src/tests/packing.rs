//! A model gives way, and one waits for memory: what becomes of the service itself.

use std::time::Duration;

use tram_types::status::{DeploymentStatus as D, InstanceStatus as I, ServiceStatus};

use super::{
    light::{demand, frozen, shown},
    scenarios::{healthy, statuses},
    world::{Program, World},
};
use crate::{Activity, Drain, Reason, Room, Takeover, Write};

const WHY: &str = "others hold all of it";

fn only(instances: u32) -> Room {
    Room::Only {
        instances,
        why: WHY.to_owned(),
    }
}

fn gives_way(world: &mut World) -> crate::Plan {
    world.store.gives_way = Some("shop/chat".to_owned());
    let made = world.reconcile(false);
    world.store.gives_way = None;
    made
}

fn asleep() -> World {
    let mut world = healthy(0);
    gives_way(&mut world);
    world.rounds(2);
    world.advance(world.policy.settle);
    world.rounds(6);
    assert_eq!(statuses(&world), [D::Sleeping]);
    assert!(world.running().is_empty());
    world
}

#[test]
fn who_rests_gives_way_at_once_and_says_for_whom() {
    let mut world = healthy(0);
    let made = gives_way(&mut world);
    assert_eq!(statuses(&world), [D::Sleeping]);
    let told = made.writes.iter().find_map(|write| match write {
        Write::Deployment { reason, .. } => Some(reason.to_string()),
        _ => None,
    });
    assert_eq!(told.as_deref(), Some("put to sleep to make room for shop/chat"));
    assert_eq!(shown(&world), [I::Stopping]);
    world.rounds(2);
    world.advance(world.policy.settle);
    world.rounds(6);
    assert!(world.running().is_empty());
    assert_eq!(world.store.status, ServiceStatus::Healthy);
}

#[test]
fn who_is_frozen_gives_its_memory_up() {
    let mut world = frozen(1);
    gives_way(&mut world);
    assert_eq!(statuses(&world), [D::Sleeping]);
    assert_eq!(shown(&world), [I::Stopping]);
}

#[test]
fn who_answers_or_is_waited_for_or_must_run_or_is_unknown_stays() {
    let busy = Activity::Known {
        in_flight: 1,
        queued: 0,
        last_at: None,
        wake: false,
    };
    let wanted = Activity::Known {
        in_flight: 0,
        queued: 1,
        last_at: None,
        wake: true,
    };
    for activity in [busy, wanted, Activity::Unknown] {
        let mut world = healthy(0);
        world.store.activity = activity;
        gives_way(&mut world);
        assert_eq!(statuses(&world), [D::Healthy], "{activity:?}");
    }
    let mut world = healthy(1);
    gives_way(&mut world);
    assert_eq!(statuses(&world), [D::Healthy], "its minimum is 1");
    let mut world = healthy(0);
    world.deploy(Program::Good, 0, Takeover::Rolling);
    gives_way(&mut world);
    assert!(
        statuses(&world).contains(&D::Healthy),
        "another deployment is on its way"
    );
}

#[test]
fn a_stream_that_began_at_the_last_moment_is_not_cut_by_any_patience() {
    let mut world = healthy(0);
    let instance = world.running()[0];
    gives_way(&mut world);
    world.rounds(1);
    world.set_drain(instance, Drain::Busy);
    world.advance(Duration::from_secs(3600));
    world.rounds(3);
    assert_eq!(world.running(), [instance], "it answers still");
    world.set_drain(instance, Drain::Done);
    world.rounds(4);
    assert!(world.running().is_empty());
}

#[test]
fn who_waits_for_memory_says_so_and_wakes_when_there_is_some() {
    let mut world = asleep();
    demand(&mut world);
    world.store.room = only(0);
    let made = world.reconcile(false);
    assert_eq!(made.waiting, [Reason::NoRoom(WHY.to_owned())]);
    assert_eq!(made.look_again_at, Some(world.now.plus(world.policy.room_look)));
    assert_eq!(statuses(&world), [D::Sleeping]);
    assert_eq!(
        world.store.deployments[0].messages,
        [format!("waiting for memory: {WHY}")]
    );
    assert!(world.reconcile(false).is_empty(), "said once");
    world.store.room = Room::Open;
    world.rounds(4);
    assert_eq!(statuses(&world), [D::Healthy]);
    assert_eq!(world.store.deployments[0].messages, Vec::<String>::new());
}

#[test]
fn when_nobody_waits_any_more_it_sleeps_on_and_says_nothing() {
    let mut world = asleep();
    demand(&mut world);
    world.store.room = only(0);
    world.rounds(2);
    world.store.activity = Activity::QUIET;
    world.store.room = Room::Open;
    world.rounds(2);
    assert_eq!(statuses(&world), [D::Sleeping]);
    assert_eq!(world.store.deployments[0].messages, Vec::<String>::new());
    assert!(world.running().is_empty());
}

#[test]
fn what_will_never_fit_is_said_at_once() {
    let why = || "it is too large".to_owned();
    let mut world = asleep();
    demand(&mut world);
    let first = world.store.deployments[0].id;
    world.store.too_large.insert(first, why());
    world.rounds(2);
    assert_eq!(statuses(&world), [D::Unhealthy]);
    assert!(world.running().is_empty());
    // A smaller one repairs it, however it takes over.
    let second = world.deploy(Program::Good, 1, Takeover::Rolling);
    world.rounds(12);
    assert_eq!(world.deployment(second).status, D::Healthy);
    assert_eq!(world.store.active, Some(second));
    let mut world = World::new();
    let id = world.deploy(Program::Good, 1, Takeover::Rolling);
    world.store.too_large.insert(id, why());
    world.rounds(12);
    assert_eq!(world.deployment(id).status, D::Error);
    assert_eq!(world.deployment(id).messages, [why()]);
}

#[test]
fn a_first_start_waits_and_fails_with_the_reason() {
    let mut world = World::new();
    world.store.room = only(0);
    let id = world.deploy(Program::Good, 1, Takeover::Rolling);
    world.rounds(4);
    assert_eq!(world.deployment(id).status, D::Allocating);
    assert_eq!(
        world.deployment(id).messages,
        [format!("waiting for memory: {WHY}")]
    );
    world.advance(world.policy.start_deadline);
    world.advance(Duration::from_secs(1));
    world.rounds(4);
    assert_eq!(world.deployment(id).status, D::Error);
    let told = world.deployment(id).messages.join(" ");
    assert!(
        told.contains("could not be started within") && told.contains(WHY),
        "{told}"
    );
}

#[test]
fn one_that_serves_is_well_with_fewer_instances_than_it_could_have() {
    let mut world = healthy(1);
    world.store.deployments[0].regions[0].manual = Some(3);
    world.store.room = only(1);
    world.reconcile(false);
    world.store.room = only(0);
    world.rounds(4);
    assert_eq!(world.running().len(), 2, "one more had room");
    assert_eq!(statuses(&world), [D::Healthy]);
    assert_eq!(
        world.store.deployments[0].messages,
        [format!("waiting for memory: {WHY}")]
    );
}
