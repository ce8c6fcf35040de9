//! What goes wrong is told, waited out for a bounded time, and never forgotten on the way.

use std::time::Duration;

use tram_site::EndCause;
use tram_types::{
    DeploymentId,
    status::{DeploymentStatus as D, InstanceStatus, ServiceStatus},
};

use super::{
    scenarios::{asleep, healthy, statuses},
    world::{NO_ROOM, Program, World},
};
use crate::{Activity, Intent, Reason, Takeover, Write};

const DAY: Duration = Duration::from_secs(24 * 3600);

fn only(world: &World) -> DeploymentId {
    world.store.deployments[0].id
}

/// Somebody calls, or nobody does.
fn call(world: &mut World, wake: bool) {
    world.store.activity = Activity::Known {
        in_flight: 0,
        queued: u64::from(wake),
        last_at: Some(world.now),
        wake,
    };
}

fn creates(made: &crate::Plan) -> bool {
    let create = |it: &Write| matches!(it, Write::CreateInstance { .. });
    made.writes.iter().any(create)
}

#[test]
fn a_failure_of_an_earlier_wake_is_not_told_to_a_later_caller() {
    let mut world = asleep();
    let id = only(&world);
    world.turn(id, Program::Hangs);
    call(&mut world, true);
    world.rounds(3);
    // The only caller gives up; then the instance ends.
    call(&mut world, false);
    let waking = world.running()[0];
    world.end(waking, EndCause::Exited { code: 1 });
    world.rounds(3);
    assert_eq!(statuses(&world), [D::Sleeping]);
    world.advance(Duration::from_secs(30));
    world.turn(id, Program::Good);
    call(&mut world, true);
    let made = world.reconcile(false);
    assert!(creates(&made), "{made:?}");
    assert_eq!(statuses(&world), [D::Sleeping], "it is being woken");
    world.rounds(5);
    assert_eq!(statuses(&world), [D::Healthy]);
}

#[test]
fn who_calls_during_the_back_off_is_told_at_once() {
    let mut world = asleep();
    let id = only(&world);
    world.turn(id, Program::Crashes);
    call(&mut world, true);
    world.rounds(5);
    assert_eq!(statuses(&world), [D::Unhealthy]);
    call(&mut world, false);
    // It is retried until it has been idle for long enough to sleep.
    for _ in 0..1000 {
        if statuses(&world) == [D::Sleeping] {
            break;
        }
        world.advance(Duration::from_secs(1));
        world.rounds(3);
    }
    assert_eq!(statuses(&world), [D::Sleeping]);
    call(&mut world, true);
    let made = world.reconcile(false);
    assert!(!creates(&made), "{made:?}");
    assert_eq!(statuses(&world), [D::Unhealthy]);
    assert!(
        world.store.messages[0].contains("the program left with exit code 1"),
        "{:?}",
        world.store.messages
    );
}

#[test]
fn a_site_that_cannot_start_an_instance_is_heard() {
    // A new deployment tells, and is given up in time.
    let mut world = World::new();
    let id = world.deploy(Program::NoRoom, 1, Takeover::Rolling);
    world.rounds(6);
    assert_eq!(world.deployment(id).status, D::Allocating);
    assert_eq!(
        world.deployment(id).messages,
        [format!("replica 0: {NO_ROOM}; trying again")]
    );
    world.advance(world.policy.start_deadline);
    world.rounds(4);
    assert_eq!(world.deployment(id).status, D::Error);
    assert_eq!(
        world.deployment(id).messages,
        [format!("could not be started within 5 min: {NO_ROOM}")]
    );

    // One that serves tells, and goes on trying with new instances.
    let mut world = healthy(1);
    let id = only(&world);
    world.turn(id, Program::NoRoom);
    let gone = world.running()[0];
    world.end(gone, EndCause::Exited { code: 1 });
    world.rounds(1);
    world.advance(world.policy.restart_delay_min);
    world.rounds(3);
    assert_eq!(world.store.status, ServiceStatus::Unhealthy);
    assert!(
        world.store.messages[0].contains(NO_ROOM),
        "{:?}",
        world.store.messages
    );
    world.advance(world.policy.start_deadline);
    world.rounds(1);
    let given_up = world.deployment(id).instances().any(|it| {
        it.status == InstanceStatus::Error && it.messages[0].starts_with("could not be started within 5 min")
    });
    assert!(given_up, "{:#?}", world.deployment(id));
    world.turn(id, Program::Good);
    world.settle();
    assert_eq!(statuses(&world), [D::Healthy]);

    // Who waits for a wake is told.
    let mut world = asleep();
    let id = only(&world);
    world.turn(id, Program::NoRoom);
    call(&mut world, true);
    world.rounds(3);
    assert_eq!(statuses(&world), [D::Unhealthy]);
    assert!(
        world.store.messages[0].contains(NO_ROOM),
        "{:?}",
        world.store.messages
    );
}

#[test]
fn a_clock_set_back_takes_no_pause_and_no_deadline_away() {
    // Pauses between tries.
    let mut world = healthy(1);
    let id = only(&world);
    world.turn(id, Program::Crashes);
    let running = world.running()[0];
    world.end(running, EndCause::Exited { code: 1 });
    world.reconcile(false);
    world.now = world.now.minus(DAY);
    let mut made = 0;
    for _ in 0..100 {
        world.step_site();
        world.sync_edge();
        made += u32::from(creates(&world.reconcile(false)));
        world.advance(Duration::from_millis(10));
    }
    assert!(made <= 2, "tried {made} times in a second");

    // The deadline of a rollout.
    let mut world = World::new();
    let id = world.deploy(Program::Hangs, 1, Takeover::Rolling);
    world.rounds(6);
    world.now = world.now.minus(DAY);
    world.rounds(1);
    world.advance(world.policy.start_deadline);
    world.rounds(4);
    assert_eq!(world.deployment(id).status, D::Error);

    // Sleep.
    let mut world = healthy(0);
    world.store.activity = Activity::Known {
        in_flight: 0,
        queued: 0,
        last_at: Some(world.now),
        wake: false,
    };
    world.now = world.now.minus(DAY);
    world.rounds(1);
    assert_eq!(statuses(&world), [D::Sleeping]);
    // And once woken, it stays awake for as long as it should.
    call(&mut world, true);
    world.rounds(6);
    call(&mut world, false);
    world.advance(Duration::from_secs(200));
    world.rounds(1);
    assert_eq!(statuses(&world), [D::Healthy]);
    world.advance(Duration::from_secs(100));
    world.rounds(1);
    assert_eq!(statuses(&world), [D::Sleeping]);
}

#[test]
fn what_is_scaled_by_hand_is_replaced_by_as_many() {
    let mut world = World::new();
    let id = world.deploy(Program::Hangs, 1, Takeover::Rolling);
    world.store.deployments[0].regions[0].manual = Some(3);
    world.rounds(6);
    assert_eq!(world.running().len(), 3);
    let first = world.running()[0];
    world.recover(first);
    world.rounds(2);
    assert_eq!(
        world.deployment(id).status,
        D::Starting,
        "one of three is healthy"
    );
    for other in world.running() {
        world.recover(other);
    }
    world.rounds(2);
    assert_eq!(world.deployment(id).status, D::Healthy);
}

#[test]
fn what_ran_in_a_region_that_is_no_longer_served_can_be_deleted() {
    let mut world = healthy(2);
    world.missing = true;
    world.rounds(3);
    assert_eq!(
        statuses(&world),
        [D::Healthy],
        "nothing is concluded of what should run"
    );
    world.store.intent = Intent::Pause;
    world.store.status = ServiceStatus::Pausing;
    world.rounds(4);
    assert_eq!(world.store.status, ServiceStatus::Paused);
    for instance in world.store.deployments[0].instances() {
        assert_eq!(instance.status, InstanceStatus::Stopped);
        assert!(instance.messages[0].contains("no machines serve region fra"));
    }
    world.store.intent = Intent::Delete;
    world.rounds(4);
    assert!(world.removed);
}

#[test]
fn what_keeps_something_from_ending_is_told() {
    // The edge has not taken the new table yet.
    let mut world = healthy(1);
    let old = only(&world);
    let new = world.deploy(Program::Good, 1, Takeover::Rolling);
    while world.deployment(new).status != D::Healthy {
        world.step_site();
        world.reconcile(false);
    }
    world.reconcile(false);
    assert_eq!(
        world.deployment(old).messages,
        [
            "replaced by version 2".to_owned(),
            Reason::EdgeStillRoutes.to_string()
        ]
    );
    world.settle();
    assert_eq!(world.deployment(old).messages, ["replaced by version 2"]);

    // The machines do not answer.
    for (intent, status) in [
        (Intent::Pause, ServiceStatus::Pausing),
        (Intent::Delete, ServiceStatus::Deleting),
    ] {
        let mut world = healthy(1);
        world.store.intent = intent;
        world.store.status = status;
        world.reachable = false;
        world.rounds(3);
        assert_eq!(world.store.status, status);
        assert!(
            world.store.messages[0].contains("the machines of region fra do not answer"),
            "{:?}",
            world.store.messages
        );
        world.settle();
        assert!(world.removed || world.store.messages.is_empty());
    }
}
