//! What the load asks for, and how gently its answer is carried out.

use std::time::Duration;

use tram_types::{
    InstanceId,
    effective::Targets,
    status::{DeploymentStatus as D, InstanceStatus},
};

use super::world::{Program, World};
use crate::{Activity, Drain, Order, Plan, Reason, Takeover};

/// A healthy service of which the load asked for so many instances.
fn loaded(wanted: u32) -> World {
    let mut world = World::new();
    world.deploy(Program::Good, 1, Takeover::Rolling);
    let region = &mut world.store.deployments[0].regions[0];
    region.scale.max = 10;
    region.scale.targets = Targets {
        concurrent_requests: Some(5),
        ..Targets::default()
    };
    region.load = Some(wanted);
    world.settle();
    world.sync_edge();
    world
}

fn ask(world: &mut World, wanted: Option<u32>) {
    world.store.deployments[0].regions[0].load = wanted;
}

fn live(world: &World) -> usize {
    let region = &world.store.deployments[0].regions[0];
    region
        .instances
        .iter()
        .filter(|instance| instance.is_live())
        .count()
}

fn busy(world: &mut World) {
    world.store.activity = Activity::Known {
        in_flight: 7,
        queued: 0,
        last_at: Some(world.now),
        wake: false,
    };
}

fn stops(made: &Plan, id: InstanceId) -> bool {
    made.orders
        .iter()
        .any(|it| matches!(it, Order::Stop { instance, .. } if *instance == id))
}

#[test]
fn the_number_follows_the_load_within_its_bounds() {
    let mut world = loaded(3);
    assert_eq!(world.running().len(), 3);
    for (wanted, expected) in [(7, 7), (40, 10), (0, 1)] {
        ask(&mut world, Some(wanted));
        world.settle();
        world.sync_edge();
        world.settle();
        assert_eq!(world.running().len(), expected, "{wanted}");
    }
    assert_eq!(world.deployment(world.store.deployments[0].id).status, D::Healthy);
}

#[test]
fn a_load_that_nobody_has_asked_yet_changes_nothing() {
    let mut world = loaded(4);
    ask(&mut world, None);
    world.settle();
    assert_eq!(live(&world), 4);
}

#[test]
fn what_its_owner_set_wins_over_the_load() {
    let mut world = loaded(4);
    world.store.deployments[0].regions[0].manual = Some(2);
    world.settle();
    assert_eq!(live(&world), 2);
}

/// A service that was scaled down from two to one, and the instance that is too many.
fn one_too_many() -> (World, InstanceId) {
    let mut world = loaded(2);
    let second = &world.store.deployments[0].regions[0].instances[1];
    assert_eq!(second.replica_index, 1);
    let second = second.id;
    busy(&mut world);
    ask(&mut world, Some(1));
    world.reconcile(true);
    world.sync_edge();
    (world, second)
}

#[test]
fn an_instance_that_is_one_too_many_ends_with_its_last_stream_and_not_before() {
    let (mut world, second) = one_too_many();
    for drain in [Drain::Unknown, Drain::Busy] {
        world.set_drain(second, drain);
        world.advance(Duration::from_secs(3600));
        let made = world.reconcile(true);
        assert!(!stops(&made, second), "{drain:?}");
        assert!(made.waiting.contains(&Reason::DrainingForLoad));
    }
    world.set_drain(second, Drain::Done);
    assert!(stops(&world.reconcile(true), second));
}

#[test]
fn a_new_deployment_does_not_wait_for_such_a_stream_without_end() {
    let (mut world, second) = one_too_many();
    world.set_drain(second, Drain::Busy);
    let new = world.deploy(Program::Good, 1, Takeover::Rolling);
    while world.deployment(new).status != D::Healthy {
        world.step_site();
        assert!(!stops(&world.reconcile(false), second));
    }
    world.sync_edge();
    assert!(!stops(&world.reconcile(true), second));
    world.advance(world.policy.drain);
    assert!(stops(&world.reconcile(true), second));
}

#[test]
fn load_that_comes_back_gets_a_new_instance_beside_the_one_that_drains() {
    let (mut world, second) = one_too_many();
    world.set_drain(second, Drain::Busy);
    ask(&mut world, Some(2));
    world.reconcile(false);
    let region = &world.store.deployments[0].regions[0];
    let of_replica = |index: u32| {
        region
            .instances
            .iter()
            .filter(move |it| it.replica_index == index)
    };
    let statuses: Vec<_> = of_replica(1).map(|it| it.status).collect();
    assert_eq!(statuses.len(), 2);
    assert!(statuses.contains(&InstanceStatus::Stopping));
}
