//! Light sleep that goes down to the disk.

use std::time::Duration;

use tram_types::status::{DeploymentStatus as D, InstanceStatus as I};

use super::{
    light::{demand, frozen, shown},
    scenarios::statuses,
    world::World,
};
use crate::{Order, Reason};

const AFTER: Duration = Duration::from_secs(100);

/// A frozen instance on a site that can do more.
fn asleep() -> World {
    let mut world = frozen(1);
    world.capabilities.checkpoint = true;
    world.policy.checkpoint_after = Some(AFTER);
    world
}

#[test]
fn it_is_moved_to_disk_after_its_own_delay_and_comes_back_for_a_caller() {
    let mut world = asleep();
    let instance = world.running()[0];
    let since = world.store.sleeping_since.unwrap();
    world.now = since.plus(AFTER - Duration::from_secs(1));
    let made = world.reconcile(false);
    assert!(made.orders.is_empty(), "{made:?}");
    assert_eq!(made.look_again_at, Some(since.plus(AFTER)));
    world.now = since.plus(AFTER);
    let made = world.reconcile(false);
    assert_eq!(made.orders, [Order::Checkpoint { instance }]);
    world.rounds(2);
    assert_eq!(world.checkpointed(), [instance]);
    assert_eq!(
        (statuses(&world), shown(&world)),
        (vec![D::Sleeping], vec![I::Sleeping])
    );
    let made = world.reconcile(false);
    assert!(made.orders.is_empty(), "{made:?}");
    demand(&mut world);
    let made = world.reconcile(false);
    assert_eq!(made.orders, [Order::Thaw { instance }]);
    world.rounds(1);
    assert_eq!(
        (statuses(&world), shown(&world)),
        (vec![D::Healthy], vec![I::Healthy])
    );
    assert_eq!(world.running(), [instance]);
}

#[test]
fn memory_that_is_short_does_not_wait_for_the_delay() {
    let mut world = asleep();
    world.policy.checkpoint_after = None;
    world.advance(AFTER * 2);
    let made = world.reconcile(false);
    assert!(made.orders.is_empty(), "{made:?}");
    world.capabilities.memory_wanted = true;
    let made = world.reconcile(false);
    assert!(matches!(made.orders[..], [Order::Checkpoint { .. }]), "{made:?}");
}

#[test]
fn what_cannot_be_moved_is_not_tried_again_before_its_next_wake_and_says_why() {
    let mut world = asleep();
    world.uncheckpointable = Some("it has an open connection to 10.0.0.5:5432".to_owned());
    world.advance(AFTER);
    world.rounds(2);
    let reason = Reason::CannotCheckpoint(world.uncheckpointable.clone().unwrap()).to_string();
    assert_eq!(world.store.deployments[0].messages, [reason.as_str()]);
    assert_eq!(statuses(&world), [D::Sleeping]);
    assert_eq!(world.frozen().len(), 1);
    let made = world.reconcile(false);
    assert!(made.is_empty(), "{made:?}");
    // After a wake it may be another matter.
    demand(&mut world);
    world.rounds(2);
    assert_eq!(statuses(&world), [D::Healthy]);
    assert!(world.store.deployments[0].messages.is_empty());
}

#[test]
fn deep_sleep_follows_from_the_disk_as_well() {
    let mut world = asleep();
    world.advance(AFTER);
    world.rounds(2);
    assert_eq!(world.checkpointed().len(), 1);
    world.advance(Duration::from_secs(300));
    world.rounds(2);
    world.advance(world.policy.settle);
    world.rounds(4);
    assert!(world.running().is_empty());
    assert_eq!(statuses(&world), [D::Sleeping]);
}

#[test]
fn without_the_means_it_stays_frozen() {
    let mut world = asleep();
    world.capabilities.checkpoint = false;
    world.capabilities.memory_wanted = true;
    world.advance(AFTER);
    world.rounds(2);
    assert_eq!(world.frozen().len(), 1);
}
