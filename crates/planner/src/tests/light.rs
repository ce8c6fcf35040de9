//! Light sleep: frozen when nobody can come in, thawed when somebody waits, deep when it is time.

use std::time::Duration;

use tram_site::EndCause;
use tram_types::status::{DeploymentStatus as D, InstanceStatus as I, ServiceStatus};

use super::{
    scenarios::{healthy, statuses},
    world::{Program, World},
};
use crate::{Activity, Intent, Order, Reason, Takeover};

const LIGHT: Duration = Duration::from_secs(60);

/// Instances that are not over, as they are shown.
pub(super) fn shown(world: &World) -> Vec<I> {
    let instances = world
        .store
        .deployments
        .iter()
        .flat_map(crate::Deployment::instances);
    let live = instances.filter(|it| !it.status.is_final());
    live.map(|it| it.status).collect()
}

fn awake(min: u32) -> World {
    let mut world = healthy(min);
    world.sleeps_lightly(LIGHT);
    world
}

/// A service with `replicas` frozen instances.
pub(super) fn frozen(replicas: u32) -> World {
    let mut world = awake(0);
    world.store.deployments[0].regions[0].manual = (replicas > 1).then_some(replicas);
    world.rounds(8);
    world.advance(LIGHT);
    world.rounds(2);
    world.advance(world.policy.settle);
    world.rounds(3);
    assert_eq!(statuses(&world), [D::Sleeping]);
    assert_eq!(world.store.status, ServiceStatus::Healthy);
    let count = usize::try_from(replicas).unwrap();
    assert_eq!(world.frozen().len(), count);
    assert_eq!(shown(&world), vec![I::Sleeping; count]);
    world
}

pub(super) fn demand(world: &mut World) {
    world.store.activity = Activity::Known {
        in_flight: 0,
        queued: 1,
        last_at: Some(world.now),
        wake: true,
    };
}

#[test]
fn it_is_frozen_only_once_the_edge_holds_new_requests_and_shown_asleep_once_it_is() {
    let mut world = awake(0);
    world.advance(LIGHT);
    let made = world.reconcile(false);
    assert_eq!(statuses(&world), [D::Sleeping]);
    assert!(made.orders.is_empty(), "{made:?}");
    assert!(made.waiting.contains(&Reason::EdgeStillRoutes), "{made:?}");
    assert_eq!(shown(&world), [I::Healthy], "it still runs");
    world.rounds(1);
    assert!(world.frozen().is_empty(), "a request may be on its way");
    world.advance(world.policy.settle);
    let made = world.reconcile(false);
    assert!(matches!(made.orders[..], [Order::Freeze { .. }]), "{made:?}");
    assert_eq!(shown(&world), [I::Healthy], "nobody has seen it frozen");
    world.rounds(1);
    assert_eq!(shown(&world), [I::Sleeping]);
}

#[test]
fn who_waits_has_the_same_instance_thawed() {
    let mut world = frozen(1);
    let instance = world.running()[0];
    demand(&mut world);
    let made = world.reconcile(false);
    assert_eq!(made.orders, [Order::Thaw { instance }]);
    assert_eq!(statuses(&world), [D::Sleeping], "not before it runs");
    world.reconcile(false);
    assert_eq!(statuses(&world), [D::Healthy]);
    assert_eq!(shown(&world), [I::Healthy]);
    assert_eq!(world.running(), [instance]);
    assert_eq!(world.store.sleeping_since, None);
}

#[test]
fn one_that_was_thawed_beside_us_wakes_its_deployment() {
    let mut world = frozen(1);
    let instance = world.running()[0];
    world.thaw(instance);
    // The demand is over: its caller was answered.
    world.reconcile(false);
    assert_eq!(statuses(&world), [D::Healthy]);
}

#[test]
fn a_request_that_comes_before_the_freeze_keeps_it_awake() {
    for (in_flight, wake) in [(1, false), (0, true)] {
        let mut world = awake(0);
        world.advance(LIGHT);
        world.rounds(1);
        assert_eq!(statuses(&world), [D::Sleeping]);
        world.store.activity = Activity::Known {
            in_flight,
            queued: 0,
            last_at: Some(world.now),
            wake,
        };
        world.advance(world.policy.settle);
        let made = world.reconcile(false);
        assert!(made.orders.is_empty(), "{made:?}");
        assert_eq!(statuses(&world), [D::Healthy]);
    }
}

#[test]
fn deep_sleep_follows_after_its_own_delay() {
    let mut world = frozen(1);
    let since = world.store.sleeping_since.unwrap();
    // 300 s of idle time in all, 60 of them before light sleep.
    world.now = since.plus(Duration::from_secs(239));
    world.rounds(2);
    assert_eq!(world.frozen().len(), 1);
    world.now = since.plus(Duration::from_secs(240));
    world.rounds(2);
    world.advance(world.policy.settle);
    world.rounds(4);
    assert!(world.running().is_empty());
    assert_eq!(statuses(&world), [D::Sleeping]);
    assert_eq!(world.store.sleeping_since, Some(since), "one sleep");
    demand(&mut world);
    world.rounds(6);
    assert_eq!(statuses(&world), [D::Healthy]);
}

#[test]
fn what_cannot_be_frozen_stays_awake_until_deep_sleep_and_says_why() {
    let mut world = awake(0);
    world.unfreezable = Some("the processes did not freeze in time".to_owned());
    world.advance(LIGHT);
    world.rounds(2);
    world.advance(world.policy.settle);
    world.rounds(3);
    assert_eq!(statuses(&world), [D::Healthy]);
    let messages = &world.store.deployments[0].messages;
    assert!(messages[0].contains("did not freeze in time"), "{messages:?}");
    world.advance(LIGHT * 2);
    world.rounds(3);
    assert_eq!(statuses(&world), [D::Healthy], "it is not tried over and over");
    world.advance(Duration::from_secs(300));
    world.rounds(2);
    world.advance(world.policy.settle);
    world.rounds(3);
    assert_eq!(statuses(&world), [D::Sleeping]);
    assert!(world.running().is_empty());
}

#[test]
fn without_a_freezer_it_sleeps_deeply_and_says_so() {
    let mut world = awake(0);
    world.capabilities.freeze = false;
    world.rounds(1);
    let note = Reason::LightSleepAsDeep.to_string();
    assert_eq!(world.store.deployments[0].messages, [note.as_str()]);
    world.advance(LIGHT);
    world.rounds(2);
    assert_eq!(statuses(&world), [D::Healthy]);
    world.advance(Duration::from_secs(300));
    world.rounds(1);
    assert_eq!(statuses(&world), [D::Sleeping]);
    assert_eq!(world.store.deployments[0].messages, [note]);
}

#[test]
fn a_number_set_by_hand_holds_at_once_in_light_sleep() {
    let mut world = frozen(3);
    world.store.deployments[0].regions[0].manual = Some(1);
    world.rounds(2);
    world.advance(world.policy.settle);
    world.rounds(3);
    assert_eq!(world.frozen().len(), 1);
    assert_eq!(world.running().len(), 1);
    assert_eq!(statuses(&world), [D::Sleeping]);
    world.store.deployments[0].regions[0].manual = Some(2);
    world.rounds(8);
    assert_eq!(world.running().len(), 2);
    assert!(
        world.frozen().is_empty(),
        "all are thawed with the first that is healthy"
    );
    assert_eq!(statuses(&world), [D::Healthy]);
}

#[test]
fn a_replica_that_ends_while_frozen_comes_back_with_the_wake() {
    let mut world = frozen(2);
    world.store.deployments[0].regions[0].manual = None;
    world.store.deployments[0].regions[0].scale.min = 0;
    let lost = world.running()[0];
    world.end(lost, EndCause::Killed { signal: 9 });
    world.rounds(4);
    assert_eq!(world.frozen().len(), 1);
    assert_eq!(world.running().len(), 1);
    assert_eq!(statuses(&world), [D::Sleeping]);
    world.end(world.running()[0], EndCause::Interrupted);
    world.rounds(4);
    assert!(world.running().is_empty(), "that is deep sleep");
    world.advance(world.policy.restart_delay_max);
    demand(&mut world);
    world.rounds(8);
    assert_eq!(statuses(&world), [D::Healthy]);
}

#[test]
fn pausing_deleting_and_deploying_anew_end_light_sleep() {
    let mut world = frozen(1);
    world.store.intent = Intent::Pause;
    world.rounds(2);
    world.advance(world.policy.settle);
    world.rounds(6);
    assert_eq!(world.store.status, ServiceStatus::Paused);
    assert!(world.running().is_empty());

    let mut world = frozen(1);
    world.store.intent = Intent::Delete;
    world.rounds(6);
    assert!(world.removed);

    let mut world = frozen(1);
    let old = world.frozen();
    let new = world.deploy(Program::Good, 1, Takeover::Rolling);
    while world.deployment(new).status != D::Healthy {
        assert_eq!(
            world.frozen(),
            old,
            "it stays as it is until the new one is healthy"
        );
        world.step_site();
        world.sync_edge();
        world.reconcile(false);
    }
    world.rounds(2);
    world.advance(world.policy.settle);
    world.rounds(4);
    assert!(world.frozen().is_empty());
    assert_eq!(statuses(&world), [D::Stopped, D::Healthy]);
}

#[test]
fn an_instance_that_is_found_frozen_while_awake_is_thawed() {
    let mut world = frozen(1);
    let instance = world.running()[0];
    demand(&mut world);
    world.reconcile(false);
    world.reconcile(false);
    assert_eq!(statuses(&world), [D::Healthy]);
    // An order of an earlier life arrives late.
    world.freeze(instance);
    let made = world.reconcile(false);
    assert_eq!(made.orders, [Order::Thaw { instance }]);
    assert_eq!(statuses(&world), [D::Healthy]);
}
