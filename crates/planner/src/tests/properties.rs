//! Any history at all: what must never happen is asserted in the world, what must come in the end is asserted here.

use std::time::Duration;

use proptest::prelude::*;
use tram_site::EndCause;
use tram_types::status::{DeploymentStatus, ServiceStatus};

use super::world::{Program, World};
use crate::{Activity, Intent, Room, Takeover};

#[derive(Debug, Clone)]
enum Event {
    Deploy(Program, u32, Takeover),
    ChangePolicy,
    Cancel,
    Pause,
    Resume,
    Delete,
    Scale(Option<u32>),
    LightSleep(u64),
    Freezes(bool),
    Thaw(usize),
    Crash(usize),
    OutOfMemory(usize),
    Interrupt(usize),
    Lose(usize),
    Sicken(usize),
    SiteSteps,
    SiteAnswers(bool),
    EdgeUp(bool),
    EdgeSyncs,
    Traffic(u64),
    Wake(bool),
    GiveWay,
    Room(Option<u32>),
    Advance(u64),
    SetBack(u64),
    Reconcile,
    DieAfterWrites,
}

fn program() -> impl Strategy<Value = Program> {
    prop_oneof![
        4 => Just(Program::Good),
        1 => Just(Program::Crashes),
        1 => Just(Program::Hangs),
        1 => Just(Program::NoImage),
    ]
}

fn takeover() -> impl Strategy<Value = Takeover> {
    prop_oneof![
        3 => Just(Takeover::Rolling),
        2 => Just(Takeover::Canary),
        1 => Just(Takeover::BlueGreen),
        1 => Just(Takeover::Immediate),
        1 => Just(Takeover::StopFirst),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => (program(), 0u32..3, takeover()).prop_map(|(p, m, t)| Event::Deploy(p, m, t)),
        2 => Just(Event::ChangePolicy),
        1 => Just(Event::Cancel),
        1 => Just(Event::Pause),
        1 => Just(Event::Resume),
        1 => prop::bool::weighted(0.2).prop_map(|sure| if sure { Event::Delete } else { Event::Reconcile }),
        1 => prop::option::of(1u32..4).prop_map(Event::Scale),
        2 => (1u64..600).prop_map(Event::LightSleep),
        1 => any::<bool>().prop_map(Event::Freezes),
        2 => (0usize..4).prop_map(Event::Thaw),
        1 => (0usize..4).prop_map(Event::Crash),
        1 => (0usize..4).prop_map(Event::OutOfMemory),
        1 => (0usize..4).prop_map(Event::Interrupt),
        1 => (0usize..4).prop_map(Event::Lose),
        1 => (0usize..4).prop_map(Event::Sicken),
        8 => Just(Event::SiteSteps),
        1 => any::<bool>().prop_map(Event::SiteAnswers),
        1 => any::<bool>().prop_map(Event::EdgeUp),
        4 => Just(Event::EdgeSyncs),
        2 => (0u64..3).prop_map(Event::Traffic),
        2 => Just(Event::GiveWay),
        2 => prop::option::of(0u32..2).prop_map(Event::Room),
        2 => any::<bool>().prop_map(Event::Wake),
        3 => (0u64..400_000).prop_map(Event::Advance),
        1 => (0u64..4_000_000).prop_map(Event::SetBack),
        14 => Just(Event::Reconcile),
        3 => Just(Event::DieAfterWrites),
    ]
}

fn happen(world: &mut World, event: &Event) {
    match event {
        Event::Deploy(program, min, takeover) => {
            if world.store.intent == Intent::Run {
                world.deploy(*program, *min, *takeover);
            }
        }
        Event::ChangePolicy => {
            if world.store.intent == Intent::Run {
                world.change_policy();
            }
        }
        Event::Cancel => {
            let newest = world.store.deployments.iter_mut().max_by_key(|it| it.version);
            if let Some(newest) = newest.filter(|it| it.status.is_cancelable()) {
                newest.cancel_requested = true;
            }
        }
        Event::Pause => {
            if world.store.intent == Intent::Run {
                world.store.intent = Intent::Pause;
                world.store.status = ServiceStatus::Pausing;
            }
        }
        Event::Resume => {
            if world.store.intent == Intent::Pause && world.store.status == ServiceStatus::Paused {
                world.store.intent = Intent::Run;
                world.store.status = ServiceStatus::Resuming;
                world.deploy(Program::Good, 1, Takeover::Rolling);
            }
        }
        Event::Delete => {
            world.store.intent = Intent::Delete;
            world.store.status = ServiceStatus::Deleting;
        }
        Event::Scale(manual) => {
            for region in world.store.deployments.iter_mut().flat_map(|it| &mut it.regions) {
                region.manual = *manual;
            }
        }
        Event::LightSleep(seconds) => world.sleeps_lightly(Duration::from_secs(*seconds)),
        Event::Freezes(freezes) => {
            world.unfreezable = (!freezes).then(|| "it does not freeze".to_owned());
        }
        Event::Thaw(index) => {
            if let Some(id) = world.nth_running(*index) {
                world.thaw(id);
            }
        }
        Event::Crash(index) => end(world, *index, EndCause::Exited { code: 3 }),
        Event::OutOfMemory(index) => end(world, *index, EndCause::OutOfMemory { limit_bytes: 1 }),
        Event::Interrupt(index) => end(world, *index, EndCause::Interrupted),
        Event::Lose(index) => {
            if let Some(id) = world.nth_running(*index) {
                world.lose(id);
            }
        }
        Event::Sicken(index) => {
            if let Some(id) = world.nth_running(*index) {
                world.sicken(id);
            }
        }
        Event::SiteSteps => world.step_site(),
        Event::SiteAnswers(answers) => world.reachable = *answers,
        Event::EdgeUp(up) => {
            world.edge_up = *up;
            world.sync_edge();
        }
        Event::EdgeSyncs => world.sync_edge(),
        Event::Traffic(count) => set_traffic(world, *count, false),
        Event::GiveWay => {
            world.store.gives_way = Some("another".to_owned());
            world.reconcile(false);
            world.store.gives_way = None;
        }
        Event::Room(instances) => {
            world.store.room = instances.map_or(Room::Open, |instances| Room::Only {
                instances,
                why: "others hold it".to_owned(),
            });
        }
        Event::Wake(wake) => set_traffic(world, 0, *wake),
        Event::Advance(ms) => world.advance(Duration::from_millis(*ms)),
        Event::SetBack(ms) => world.now = world.now.minus(Duration::from_millis(*ms)),
        Event::Reconcile => drop(world.reconcile(false)),
        Event::DieAfterWrites => drop(world.reconcile(true)),
    }
}

fn end(world: &mut World, index: usize, cause: EndCause) {
    if let Some(id) = world.nth_running(index) {
        world.end(id, cause);
    }
}

fn set_traffic(world: &mut World, in_flight: u64, wake: bool) {
    if world.edge_up {
        world.store.activity = Activity::Known {
            in_flight,
            queued: u64::from(wake),
            last_at: (in_flight > 0).then_some(world.now),
            wake,
        };
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_history_stays_legal_and_comes_to_rest(events in prop::collection::vec(event(), 1..80)) {
        let mut world = World::new();
        world.deploy(Program::Good, 1, Takeover::Rolling);
        for event in &events {
            happen(&mut world, event);
        }
        world.store.activity = Activity::QUIET;
        world.store.room = Room::Open;
        world.settle();
        for deployment in &world.store.deployments {
            let status = deployment.status;
            prop_assert!(
                status.is_final() || status.is_serving(),
                "a deployment vanished on its way: {status}"
            );
        }
        match world.store.intent {
            Intent::Delete => prop_assert!(world.removed && world.running().is_empty()),
            Intent::Pause => {
                prop_assert_eq!(world.store.status, ServiceStatus::Paused);
                prop_assert!(world.running().is_empty());
            }
            Intent::Run => at_rest(&world)?,
        }
    }
}

/// A service that is meant to run, at rest.
fn at_rest(world: &World) -> Result<(), TestCaseError> {
    let serving = world.store.deployments.iter().find(|it| it.status.is_serving());
    prop_assert_eq!(world.store.active, serving.map(|it| it.id));
    match serving {
        None => {
            prop_assert_eq!(world.store.status, ServiceStatus::Unhealthy);
            prop_assert!(world.running().is_empty());
        }
        Some(serving) => {
            prop_assert!(
                matches!(
                    serving.status,
                    DeploymentStatus::Healthy | DeploymentStatus::Sleeping
                ),
                "{}: {:?}",
                serving.status,
                serving.messages
            );
            let region = &serving.regions[0];
            let wanted = if serving.status == DeploymentStatus::Sleeping {
                0
            } else {
                region.manual.unwrap_or(region.scale.min).max(1)
            };
            prop_assert_eq!(world.running().len(), usize::try_from(wanted).unwrap());
            prop_assert!(
                world
                    .policies()
                    .values()
                    .all(|runs_as| *runs_as == Some(serving.id)),
                "something runs under another policy than it should"
            );
            prop_assert!(
                world.frozen().is_empty(),
                "frozen and neither awake nor in light sleep"
            );
        }
    }
    Ok(())
}
