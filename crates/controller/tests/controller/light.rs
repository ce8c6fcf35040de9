//! Light sleep: frozen, and awake again before anything is written down.

use std::time::Duration;

use rand::RngExt as _;
use serde_json::{Value, json};
use tram_controller::data_plane::{Latency, ServiceActivity};
use tram_site::Capabilities;
use tram_store::record::{Desired, ObjectKind};
use tram_types::{
    DeploymentId, InstanceId, ServiceId,
    routing::State,
    status::{DeploymentStatus as D, InstanceStatus as I, ServiceStatus as S},
};

use crate::world::{STEP, World, web};

const LIGHT: u64 = 60;
const DEEP: u64 = 3600;

fn light() -> Value {
    let mut definition = web("sleeper", 0);
    let delay = json!({"light_sleep_value": LIGHT, "deep_sleep_value": DEEP});
    definition["scalings"][0]["targets"] = json!([{"sleep_idle_delay": delay}]);
    definition
}

async fn world() -> World {
    let world = World::without_controller().await;
    world.site.set_capabilities(Capabilities {
        freeze: true,
        checkpoint: false,
        memory_wanted: false,
    });
    world
}

async fn frozen_comes(world: &World, count: usize) -> Vec<InstanceId> {
    world
        .pass_until(STEP, "instances are frozen", async || {
            let frozen = world.site.frozen();
            if frozen.len() == count {
                Ok(frozen)
            } else {
                Err(format!("{frozen:?}"))
            }
        })
        .await
}

async fn opens(world: &World, service: ServiceId) {
    world
        .until("requests go through", async || {
            if world.edge.is_open(service) {
                Ok(())
            } else {
                Err(format!("{:?}", world.edge.service(service)))
            }
        })
        .await;
}

async fn instance_becomes(world: &World, service: ServiceId, status: I) {
    world
        .pass_until(STEP, &format!("its instance is {status}"), async || {
            let instances = world.instances(service).await;
            if instances.iter().any(|it| it.status == status) {
                Ok(())
            } else {
                Err(format!("{instances:?}"))
            }
        })
        .await;
}

/// The last caller has left.
fn rests(world: &World, service: ServiceId) {
    world.edge.traffic(ServiceActivity {
        service,
        in_flight: 0,
        queued: 0,
        last_at: Some(world.now()),
        arrivals: None,
        latency: Latency::default(),
    });
}

async fn frozen(world: &World) -> (ServiceId, DeploymentId, InstanceId) {
    let made = world.create("web", light()).await;
    let service = made.service.id;
    world.endpoints_become(service, 1).await;
    world.clock.advance(Duration::from_secs(LIGHT + 1));
    let frozen = frozen_comes(world, 1).await;
    instance_becomes(world, service, I::Sleeping).await;
    (service, made.deployment.id, frozen[0])
}

#[tokio::test]
async fn an_idle_service_is_frozen_and_keeps_its_endpoint_behind_a_closed_gate() {
    let mut world = world().await;
    world.start();
    let (service, deployment, _) = frozen(&world).await;
    assert_eq!(world.deployment(deployment).await.status, D::Sleeping);
    assert_eq!(world.service(service).await.status, S::Healthy);
    let routed = world.edge.service(service).unwrap();
    assert_eq!((&routed.state, routed.endpoints.len()), (&State::Sleeping, 1));
    assert!(!world.edge.is_open(service));
}

#[tokio::test]
async fn a_caller_is_let_through_without_a_table_and_the_records_follow() {
    let mut world = world().await;
    world.start();
    let (service, deployment, instance) = frozen(&world).await;
    let version = world.edge.table().version;
    world.edge.wake(service);
    opens(&world, service).await;
    assert_eq!(
        world.edge.opened_under(service),
        Some(version),
        "no table was needed"
    );
    assert!(world.site.frozen().is_empty());
    world.deployment_becomes(deployment, D::Healthy).await;
    assert_eq!(world.site.running(), [instance], "the same one");
    assert_eq!(world.service(service).await.sleeping_since, None);
    world
        .until("the table says so", async || match world.edge.service(service) {
            Some(it) if it.state == State::Ready => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
    // And again, from its own beginning.
    rests(&world, service);
    world.clock.advance(Duration::from_secs(LIGHT + 1));
    assert_eq!(frozen_comes(&world, 1).await, [instance]);
}

#[tokio::test]
async fn it_is_woken_for_whoever_asks_without_a_request() {
    let mut world = world().await;
    world.start();
    let (service, deployment, instance) = frozen(&world).await;
    world.store.wake_service(service).await.unwrap();
    opens(&world, service).await;
    world.deployment_becomes(deployment, D::Healthy).await;
    // That counts as a request: the idle clock starts anew.
    world.pass(Duration::from_secs(LIGHT - 5)).await;
    assert_eq!(world.deployment(deployment).await.status, D::Healthy);
    assert_eq!(frozen_comes(&world, 1).await, [instance]);
}

#[tokio::test]
async fn an_edge_that_takes_nothing_but_tables_gets_one() {
    let mut world = world().await;
    world.edge.only_tables();
    world.start();
    let (service, deployment, _) = frozen(&world).await;
    world.edge.wake(service);
    opens(&world, service).await;
    world.deployment_becomes(deployment, D::Healthy).await;
}

#[tokio::test]
async fn a_request_under_way_is_not_frozen() {
    let mut world = world().await;
    world.start();
    let made = world.create("web", light()).await;
    let service = made.service.id;
    world.endpoints_become(service, 1).await;
    // It was let in at the last moment, and no report tells of it yet.
    world.edge.set_busy(service, true);
    world.clock.advance(Duration::from_secs(LIGHT + 1));
    world.deployment_becomes(made.deployment.id, D::Sleeping).await;
    world.pass(Duration::from_secs(60)).await;
    assert!(world.site.frozen().is_empty());
    world.edge.traffic(ServiceActivity {
        service,
        in_flight: 1,
        queued: 0,
        last_at: Some(world.now()),
        arrivals: None,
        latency: Latency::default(),
    });
    world.deployment_becomes(made.deployment.id, D::Healthy).await;
    world.edge.set_busy(service, false);
    rests(&world, service);
    frozen_comes(&world, 1).await;
}

#[tokio::test]
async fn what_cannot_be_frozen_stays_awake_and_says_why() {
    let mut world = world().await;
    world
        .site
        .set_unfreezable(Some("the processes did not freeze in time"));
    world.start();
    let made = world.create("web", light()).await;
    world.endpoints_become(made.service.id, 1).await;
    world.clock.advance(Duration::from_secs(LIGHT + 1));
    world
        .pass_until(STEP, "its owner is told", async || {
            let deployment = world.deployment(made.deployment.id).await;
            let told = deployment
                .messages
                .iter()
                .any(|it| it.contains("did not freeze in time"));
            if told && deployment.status == D::Healthy {
                Ok(())
            } else {
                Err(format!("{deployment:?}"))
            }
        })
        .await;
    opens(&world, made.service.id).await;
    world.clock.advance(Duration::from_secs(DEEP));
    world.running_come_to(0).await;
    assert_eq!(world.deployment(made.deployment.id).await.status, D::Sleeping);
}

#[tokio::test]
async fn it_sleeps_on_through_a_restart_of_the_control_plane_and_wakes_after() {
    let mut world = world().await;
    world.start();
    let (service, deployment, instance) = frozen(&world).await;
    world.kill();
    world.start();
    world.pass(Duration::from_secs(30)).await;
    assert_eq!(world.site.frozen(), [instance]);
    assert!(!world.edge.is_open(service));
    world.edge.wake(service);
    opens(&world, service).await;
    world.deployment_becomes(deployment, D::Healthy).await;
    assert_eq!(world.site.running(), [instance]);
}

#[tokio::test]
async fn a_wake_that_nobody_wrote_down_is_found_after_a_restart() {
    let mut world = world().await;
    world.start();
    let (service, deployment, instance) = frozen(&world).await;
    world.kill();
    let generation = world.instances(service).await[0].generation;
    tram_site::Site::thaw(&world.site, instance, generation)
        .await
        .unwrap();
    world.start();
    // Whoever was to be woken for is not known any more: it is awake on record, idle, and asleep again.
    world
        .pass_until(STEP, "it was seen awake and is frozen again", async || {
            let events = world.events(ObjectKind::Deployment, deployment.uuid()).await;
            let count = |kind: &str| events.iter().filter(|it| it.ends_with(kind)).count();
            if (count("HEALTHY"), count("SLEEPING")) == (2, 2) && world.site.frozen() == [instance] {
                Ok(())
            } else {
                Err(format!("{events:?}"))
            }
        })
        .await;
}

#[tokio::test]
async fn deep_sleep_follows_and_pause_ends_either() {
    let mut world = world().await;
    world.start();
    let (service, deployment, _) = frozen(&world).await;
    world.clock.advance(Duration::from_secs(DEEP));
    world.running_come_to(0).await;
    assert_eq!(world.deployment(deployment).await.status, D::Sleeping);
    world.edge.wake(service);
    world.deployment_becomes(deployment, D::Healthy).await;
    world.endpoints_become(service, 1).await;
    rests(&world, service);
    world.clock.advance(Duration::from_secs(LIGHT + 1));
    frozen_comes(&world, 1).await;
    world.want(service, Desired::Pause).await;
    world.service_comes_to(service, S::Paused).await;
    world.running_come_to(0).await;
}

/// Callers come at any moment, also while it is being frozen and while tables for others are on their way. Whoever is
/// let through must find it running for as long as his request takes.
#[tokio::test]
async fn whenever_a_caller_comes_he_is_let_through_to_what_runs() {
    let mut world = world().await;
    world.start();
    let service = world.create("web", light()).await.service.id;
    let other = world.create("other", web("v0", 1)).await.service.id;
    world.endpoints_become(service, 1).await;
    let mut seen_frozen = 0;
    for round in 0..40_u64 {
        world.clock.advance(Duration::from_secs(LIGHT + 1));
        let patience = rand::rng().random_range(0..60);
        for _ in 0..patience {
            world.clock.advance(STEP);
            tokio::time::sleep(Duration::from_micros(500)).await;
        }
        if round % 3 == 0 {
            world.deploy(other, web(&format!("v{round}"), 1)).await;
        }
        seen_frozen += u32::from(!world.site.frozen().is_empty());
        // As the edge does it: count oneself in, look whether the gate is open, be held otherwise.
        world
            .until("the caller is let through", async || {
                world.edge.set_busy(service, true);
                if world.edge.is_open(service) {
                    return Ok(());
                }
                world.edge.set_busy(service, false);
                world.edge.wake(service);
                tokio::time::sleep(Duration::from_millis(3)).await;
                Err(format!("{:?}", world.edge.service(service)))
            })
            .await;
        for _ in 0..5 {
            assert!(
                world.site.frozen().is_empty(),
                "frozen under a request in round {round}"
            );
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        world.edge.set_busy(service, false);
        rests(&world, service);
    }
    assert!(seen_frozen > 0, "it never slept");
}
