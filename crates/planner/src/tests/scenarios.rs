//! The promises, one at a time.

use std::time::Duration;

use tram_site::EndCause;
use tram_types::status::{DeploymentStatus as D, InstanceStatus, ServiceStatus};

use super::world::{Program, World};
use crate::{Activity, Drain, Intent, Order, Plan, Reason, Takeover, Write};

pub(super) fn healthy(min: u32) -> World {
    let mut world = World::new();
    let id = world.deploy(Program::Good, min, Takeover::Rolling);
    world.rounds(12);
    assert_eq!(world.deployment(id).status, D::Healthy);
    assert_eq!(world.store.active, Some(id));
    assert_eq!(world.store.status, ServiceStatus::Healthy);
    world
}

pub(super) fn statuses(world: &World) -> Vec<D> {
    world.store.deployments.iter().map(|it| it.status).collect()
}

/// Rounds in which the edge hears nothing new.
fn without_the_edge(world: &mut World, rounds: u32) {
    for _ in 0..rounds {
        world.step_site();
        world.reconcile(false);
    }
}

#[test]
fn a_first_deployment_is_healthy_once_requests_are_sent_to_it() {
    for takeover in [Takeover::Rolling, Takeover::BlueGreen, Takeover::StopFirst] {
        let mut world = World::new();
        let id = world.deploy(Program::Good, 2, takeover);
        without_the_edge(&mut world, 12);
        assert_eq!(world.deployment(id).status, D::Starting);
        let words = Reason::WaitsForEdge.to_string();
        assert_eq!(world.deployment(id).messages, [words]);
        world.sync_edge();
        world.reconcile(false);
        assert_eq!(world.deployment(id).status, D::Healthy);
        assert_eq!(world.store.active, Some(id));
    }
}

#[test]
fn a_lost_data_plane_is_waited_for_and_one_that_has_no_way_is_not() {
    let mut world = World::new();
    let id = world.deploy(Program::Good, 1, Takeover::Rolling);
    world.edge_up = false;
    world.rounds(12);
    world.advance(world.policy.start_deadline * 2);
    world.rounds(2);
    assert_eq!(world.deployment(id).status, D::Starting);
    world.edge_up = true;
    world.rounds(2);
    assert_eq!(world.deployment(id).status, D::Healthy);

    let mut world = World::new();
    let id = world.deploy(Program::Good, 1, Takeover::Rolling);
    without_the_edge(&mut world, 12);
    world.advance(world.policy.start_deadline);
    without_the_edge(&mut world, 2);
    assert!(matches!(world.deployment(id).status, D::Erroring | D::Error));
    assert!(world.deployment(id).messages[0].contains("was not given a way to them"));
}

#[test]
fn a_rollout_keeps_the_old_one_until_the_new_one_is_healthy() {
    let mut world = healthy(2);
    let old = world.store.deployments[0].id;
    let new = world.deploy(Program::Good, 2, Takeover::Rolling);
    while world.deployment(new).status != D::Healthy {
        assert_eq!(world.deployment(old).status, D::Healthy);
        assert!(world.running().len() >= 2);
        world.step_site();
        world.sync_edge();
        world.reconcile(false);
    }
    assert_eq!(world.store.active, Some(new));
    world.rounds(1);
    world.advance(world.policy.settle);
    world.rounds(10);
    assert_eq!(world.deployment(old).status, D::Stopped);
    assert_eq!(world.deployment(old).messages, ["replaced by version 2"]);
    assert_eq!(world.running().len(), 2);
}

#[test]
fn an_old_instance_is_not_stopped_while_the_edge_may_send_it_requests() {
    let mut world = healthy(1);
    let old = world.running()[0];
    let new = world.deploy(Program::Good, 1, Takeover::Rolling);
    // The edge does not take the new table.
    while world.deployment(new).status != D::Healthy {
        world.step_site();
        world.reconcile(false);
    }
    for _ in 0..5 {
        world.step_site();
        let made = world.reconcile(false);
        assert!(made.waiting.contains(&Reason::EdgeStillRoutes), "{made:?}");
        assert!(world.running().contains(&old));
    }
    // It does, but requests are still being served.
    world.store.activity = Activity::Known {
        in_flight: 3,
        queued: 0,
        last_at: Some(world.now),
        wake: false,
    };
    world.sync_edge();
    let made = world.reconcile(false);
    assert!(made.waiting.contains(&Reason::Draining), "{made:?}");
    world.advance(world.policy.drain);
    let made = world.reconcile(false);
    assert!(
        made.orders
            .iter()
            .any(|it| matches!(it, Order::Stop { instance, .. } if *instance == old))
    );
}

#[test]
fn an_old_instance_without_requests_is_stopped_though_the_new_ones_are_busy() {
    let mut world = healthy(1);
    let old = world.running()[0];
    let new = world.deploy(Program::Good, 1, Takeover::Rolling);
    while world.deployment(new).status != D::Healthy {
        world.step_site();
        world.reconcile(false);
    }
    world.sync_edge();
    world.store.activity = Activity::Known {
        in_flight: 32,
        queued: 0,
        last_at: Some(world.now),
        wake: false,
    };
    let stopped = |made: Plan| {
        made.orders
            .iter()
            .any(|it| matches!(it, Order::Stop { instance, .. } if *instance == old))
    };
    for (drain, expected) in [(Drain::Busy, false), (Drain::Unknown, false), (Drain::Done, true)] {
        world.set_drain(old, drain);
        assert_eq!(stopped(world.reconcile(true)), expected, "{drain:?}");
    }
}

#[test]
fn a_failed_rollout_leaves_the_old_one_serving() {
    for (program, words) in [
        (
            Program::Crashes,
            "replica 0 failed 5 times in a row; the last time: the program left with exit code 1",
        ),
        (Program::NoImage, "there is no such image"),
        (Program::Hangs, "did not become healthy within 5 min"),
    ] {
        let mut world = healthy(1);
        let new = world.deploy(program, 1, Takeover::Rolling);
        world.settle();
        assert_eq!(statuses(&world), [D::Healthy, D::Error]);
        assert_eq!(world.deployment(new).messages, [words]);
        assert_eq!(world.store.status, ServiceStatus::Degraded);
        assert!(world.store.messages[0].contains("version 2 failed and version 1 still serves"));
        assert_eq!(world.running().len(), 1);
    }
}

#[test]
fn a_first_deployment_that_fails_is_never_shown_unhealthy_on_the_way() {
    let mut world = World::new();
    let id = world.deploy(Program::Crashes, 0, Takeover::Rolling);
    for _ in 0..400 {
        world.step_site();
        world.sync_edge();
        world.reconcile(false);
        world.advance(Duration::from_millis(100));
        if world.deployment(id).status.is_starting_up() {
            assert_eq!(world.store.status, ServiceStatus::Starting);
        }
    }
    assert_eq!(world.deployment(id).status, D::Error);
    assert_eq!(world.store.status, ServiceStatus::Unhealthy);
}

#[test]
fn the_back_off_doubles_and_starts_anew_after_a_healthy_while() {
    let mut world = healthy(1);
    let mut delays = Vec::new();
    for _ in 0..12 {
        let id = world.running()[0];
        world.end(id, EndCause::Exited { code: 9 });
        let made = world.reconcile(false);
        let delay = made.waiting.iter().find_map(|it| match it {
            Reason::BackingOff { delay, .. } => Some(delay.as_secs()),
            _ => None,
        });
        delays.push(delay.unwrap());
        assert_eq!(world.store.status, ServiceStatus::Unhealthy);
        world.now = made.look_again_at.unwrap();
        world.rounds(6);
        assert_eq!(world.store.status, ServiceStatus::Healthy);
    }
    assert_eq!(delays, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]);
    world.advance(world.policy.healthy_resets);
    let id = world.running()[0];
    world.end(id, EndCause::Exited { code: 9 });
    let made = world.reconcile(false);
    assert!(made.waiting.iter().any(
        |it| matches!(it, Reason::BackingOff { delay, .. } if *delay == world.policy.restart_delay_min)
    ));
}

#[test]
fn a_machine_that_restarts_costs_no_back_off() {
    let mut world = healthy(1);
    world.advance(Duration::from_secs(3600));
    let id = world.running()[0];
    world.end(id, EndCause::Interrupted);
    let made = world.reconcile(false);
    assert!(
        made.writes
            .iter()
            .any(|it| matches!(it, Write::CreateInstance { .. })),
        "{made:?}"
    );
    let old = world.store.deployments[0]
        .instances()
        .find(|it| it.id == id)
        .unwrap();
    assert_eq!(old.status, InstanceStatus::Stopped);
    assert!(!old.messages.is_empty());
}

#[test]
fn failing_checks_replace_the_instance_with_its_cause_kept() {
    let mut world = healthy(2);
    let id = world.running()[0];
    world.sicken(id);
    world.reconcile(false);
    assert_eq!(statuses(&world), [D::Degraded]);
    world.settle();
    let old = world.store.deployments[0]
        .instances()
        .find(|it| it.id == id)
        .unwrap();
    assert_eq!(old.status, InstanceStatus::Error);
    assert_eq!(
        old.messages,
        ["3 health checks failed in a row; the last probe said: status 500"]
    );
    assert_eq!(statuses(&world), [D::Healthy]);
}

#[test]
fn sleep_comes_after_the_idle_time_and_a_request_wakes() {
    let mut world = healthy(0);
    world.advance(Duration::from_secs(299));
    world.rounds(1);
    assert_eq!(statuses(&world), [D::Healthy]);
    world.advance(Duration::from_secs(1));
    // Decided, but the edge has not confirmed yet: the instance must stay.
    let made = world.reconcile(false);
    assert_eq!(statuses(&world), [D::Sleeping]);
    assert_eq!(world.store.status, ServiceStatus::Healthy);
    assert!(
        !made.orders.iter().any(|it| matches!(it, Order::Stop { .. })),
        "{made:?}"
    );
    world.rounds(1);
    world.advance(world.policy.settle);
    world.rounds(4);
    assert!(world.running().is_empty());
    assert!(world.store.sleeping_since.is_some());
    world.advance(Duration::from_secs(7200));
    world.rounds(3);
    assert!(world.running().is_empty());
    world.store.activity = Activity::Known {
        in_flight: 0,
        queued: 1,
        last_at: Some(world.now),
        wake: true,
    };
    world.reconcile(false);
    // The demand is told once; the wake goes on.
    world.store.activity = Activity::QUIET;
    world.rounds(5);
    assert_eq!(statuses(&world), [D::Healthy]);
    assert_eq!(world.running().len(), 1);
    assert_eq!(world.store.sleeping_since, None);
}

#[test]
fn healthy_is_seen_before_sleeping_however_short_the_delay() {
    let mut world = World::new();
    world.deploy(Program::Good, 0, Takeover::Rolling);
    world.store.deployments[0].regions[0].scale.deep_sleep = Some(Duration::from_millis(1));
    world.rounds(12);
    assert_eq!(statuses(&world), [D::Healthy]);
    world.advance(world.policy.healthy_visible);
    world.rounds(1);
    assert_eq!(statuses(&world), [D::Sleeping]);
}

#[test]
fn nothing_sleeps_while_the_data_plane_is_silent_or_busy() {
    for activity in [
        Activity::Unknown,
        Activity::Known {
            in_flight: 1,
            queued: 0,
            last_at: None,
            wake: false,
        },
    ] {
        let mut world = healthy(0);
        world.store.activity = activity;
        world.advance(Duration::from_secs(3600));
        world.reconcile(false);
        assert_eq!(statuses(&world), [D::Healthy], "{activity:?}");
    }
}

#[test]
fn a_wake_that_fails_tells_its_cause() {
    let mut world = healthy(0);
    world.advance(Duration::from_secs(400));
    world.rounds(2);
    world.advance(world.policy.settle);
    world.rounds(6);
    assert_eq!(statuses(&world), [D::Sleeping]);
    world.store.activity = Activity::Known {
        in_flight: 0,
        queued: 1,
        last_at: Some(world.now),
        wake: true,
    };
    world.reconcile(false);
    world.reconcile(false);
    let id = world.running()[0];
    world.end(id, EndCause::Exited { code: 127 });
    world.reconcile(false);
    assert_eq!(statuses(&world), [D::Unhealthy]);
    assert!(
        world.store.messages[0].contains("a command was not found"),
        "{:?}",
        world.store.messages
    );
    world.store.activity = Activity::Known {
        in_flight: 0,
        queued: 0,
        last_at: Some(world.now),
        wake: false,
    };
    world.advance(Duration::from_secs(2));
    world.rounds(6);
    assert_eq!(statuses(&world), [D::Healthy]);
}

#[test]
fn pause_stops_everything_and_resume_deploys_anew() {
    let mut world = healthy(2);
    world.store.intent = Intent::Pause;
    world.store.status = ServiceStatus::Pausing;
    world.settle();
    assert_eq!(world.store.status, ServiceStatus::Paused);
    assert_eq!(statuses(&world), [D::Stopped]);
    assert_eq!(world.store.active, None);
    assert!(world.running().is_empty());
    world.store.intent = Intent::Run;
    world.store.status = ServiceStatus::Resuming;
    world.deploy(Program::Good, 2, Takeover::Rolling);
    world.reconcile(false);
    assert_eq!(world.store.status, ServiceStatus::Resuming);
    world.settle();
    assert_eq!(world.store.status, ServiceStatus::Healthy);
    assert_eq!(statuses(&world), [D::Stopped, D::Healthy]);
}

#[test]
fn delete_waits_for_the_end_of_every_instance() {
    let mut world = healthy(2);
    world.store.intent = Intent::Delete;
    world.reachable = false;
    for _ in 0..20 {
        world.reconcile(false);
        world.advance(Duration::from_secs(60));
    }
    assert!(!world.removed, "removed while its site did not answer");
    world.settle();
    assert!(world.removed);
}

#[test]
fn a_newer_deployment_takes_the_place_of_one_that_starts() {
    let mut world = World::new();
    let first = world.deploy(Program::Good, 1, Takeover::Rolling);
    world.reconcile(false);
    let second = world.deploy(Program::Hangs, 1, Takeover::Rolling);
    world.reconcile(false);
    assert_eq!(world.deployment(first).status, D::Canceled);
    world.rounds(6);
    assert_eq!(world.deployment(second).status, D::Starting);
    let third = world.deploy(Program::Good, 1, Takeover::Rolling);
    world.settle();
    assert_eq!(world.deployment(second).status, D::Stopped);
    assert_eq!(world.deployment(third).status, D::Healthy);
    assert_eq!(world.running().len(), 1);
}

#[test]
fn a_cancelled_deployment_never_runs() {
    let mut world = World::new();
    let id = world.deploy(Program::Good, 1, Takeover::Rolling);
    world.store.deployments[0].cancel_requested = true;
    world.settle();
    assert_eq!(world.deployment(id).status, D::Canceled);
    assert!(world.running().is_empty());
}

#[test]
fn services_that_ask_for_it_delete_themselves() {
    let mut world = healthy(1);
    world.store.delete_after_create = Some(Duration::from_secs(600));
    let made = world.reconcile(false);
    assert_eq!(
        made.look_again_at,
        Some(world.store.created_at.plus(Duration::from_secs(600)))
    );
    world.advance(Duration::from_secs(600));
    world.settle();
    assert!(world.removed);

    let mut world = healthy(0);
    world.store.delete_after_sleep = Some(Duration::from_secs(60));
    world.settle();
    assert!(world.removed);
}

/// A service that sleeps, and goes after an hour of it.
pub(super) fn asleep() -> World {
    let mut world = healthy(0);
    world.store.delete_after_sleep = Some(Duration::from_secs(3600));
    world.advance(Duration::from_secs(400));
    world.rounds(2);
    world.advance(world.policy.settle);
    world.rounds(6);
    assert_eq!(statuses(&world), [D::Sleeping]);
    assert!(world.running().is_empty());
    world
}

#[test]
fn only_sleep_counts_towards_the_deletion_of_a_sleeper() {
    // Paused.
    let mut world = asleep();
    world.store.intent = Intent::Pause;
    world.store.status = ServiceStatus::Pausing;
    world.rounds(4);
    assert_eq!(world.store.status, ServiceStatus::Paused);
    assert_eq!(world.store.sleeping_since, None);
    world.advance(Duration::from_secs(7200));
    world.rounds(4);
    assert_eq!(world.store.intent, Intent::Pause);
    // Resumed: it runs, and the next sleep counts from its own beginning.
    world.store.intent = Intent::Run;
    world.store.status = ServiceStatus::Resuming;
    world.deploy(Program::Good, 0, Takeover::Rolling);
    world.rounds(12);
    assert_eq!(world.store.status, ServiceStatus::Healthy);
    assert_eq!(world.store.intent, Intent::Run);

    // Paused before the time is up, and looked at only afterwards.
    let mut world = asleep();
    world.store.intent = Intent::Pause;
    world.advance(Duration::from_secs(7200));
    world.reconcile(false);
    assert_eq!(world.store.intent, Intent::Pause);

    // Deployed anew, with a program that takes its time.
    let mut world = asleep();
    world.advance(Duration::from_secs(3500));
    let slow = world.deploy(Program::Hangs, 0, Takeover::Rolling);
    world.rounds(6);
    world.advance(Duration::from_secs(200));
    world.rounds(1);
    assert!(world.deployment(slow).status.is_starting_up());
    assert_eq!(world.store.intent, Intent::Run);

    // Left alone, it goes.
    let mut world = asleep();
    world.advance(Duration::from_secs(3600));
    world.settle();
    assert!(world.removed);
}

#[test]
fn stashed_deployments_are_left_alone() {
    let mut world = healthy(1);
    world.deploy(Program::Good, 1, Takeover::Rolling);
    world.store.deployments[1].status = D::Stashed;
    world.settle();
    assert_eq!(statuses(&world), [D::Healthy, D::Stashed]);
    assert_eq!(world.store.status, ServiceStatus::Healthy);
}

#[test]
fn a_volume_is_never_shared_by_two_deployments() {
    let mut world = World::new();
    let old = world.deploy(Program::Good, 1, Takeover::StopFirst);
    world.rounds(12);
    let new = world.deploy(Program::Good, 1, Takeover::StopFirst);
    for _ in 0..30 {
        world.step_site();
        world.sync_edge();
        world.reconcile(false);
        world.advance(Duration::from_millis(100));
        let holds = |id| world.deployment(id).instances().any(|it| !it.status.is_final());
        assert!(!(holds(old) && holds(new)), "both hold the volume");
    }
    assert_eq!(world.deployment(new).status, D::Healthy);
}
