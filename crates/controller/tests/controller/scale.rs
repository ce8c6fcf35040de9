//! Services have as many instances as their load asks for.

use std::{collections::HashSet, time::Duration};

use serde_json::{Value, json};
use tram_controller::{
    data_plane::{Event, Latency, ServiceActivity},
    scaling::Decided,
};
use tram_planner::autoscale::Cause;
use tram_store::{
    filter,
    record::{ManualScaling, ObjectKind},
};
use tram_testkit::{Behaviour, Life};
use tram_types::{InstanceId, ServiceId, status::DeploymentStatus as D};

use crate::world::{World, web};

/// How far the clock moves between two reports.
const REPORTS: Duration = Duration::from_millis(500);

fn scaled(image: &str, min: u32, max: u32, target: &Value) -> Value {
    let mut definition = web(image, min);
    definition["scalings"] = json!([{"min": min, "max": max, "targets": [target]}]);
    definition
}

fn in_flight(image: &str, min: u32, max: u32, each: u32) -> Value {
    scaled(image, min, max, &json!({"concurrent_requests": {"value": each}}))
}

/// What the data plane reports each time: so much in flight, on these instances that no new requests go to.
fn report(world: &World, service: ServiceId, in_flight: u64, leaving: &[InstanceId]) {
    world.edge.say(Event::Busy {
        version: world.edge.table().version,
        instances: leaving.iter().copied().collect::<HashSet<_>>(),
    });
    world.edge.traffic(ServiceActivity {
        service,
        in_flight,
        queued: 0,
        last_at: Some(world.now()),
        arrivals: Some(0),
        latency: Latency::default(),
    });
}

/// Lets time pass under a load until so many instances run.
async fn running_come_to(
    world: &World,
    service: ServiceId,
    load: u64,
    leaving: &[InstanceId],
    count: usize,
) -> Vec<InstanceId> {
    world
        .pass_until(REPORTS, &format!("{count} instances run"), async || {
            report(world, service, load, leaving);
            tokio::time::sleep(Duration::from_millis(20)).await;
            let running = world.site.running();
            if running.len() == count {
                Ok(running)
            } else {
                Err(format!("{running:?}"))
            }
        })
        .await
}

async fn pass(world: &World, service: ServiceId, load: u64, leaving: &[InstanceId], time: Duration) {
    let steps = time.as_millis() / REPORTS.as_millis();
    for _ in 0..steps {
        report(world, service, load, leaving);
        world.clock.advance(REPORTS);
        tokio::time::sleep(Duration::from_millis(12)).await;
    }
}

async fn told(world: &World, deployment: tram_types::DeploymentId) -> Vec<String> {
    let filter = filter::Events {
        object_ids: vec![deployment.uuid()],
        order: filter::Order::Ascending,
        ..filter::Events::of_kind(ObjectKind::Deployment)
    };
    let listed = world
        .store
        .list_events(world.organization, &filter, filter::Page::largest())
        .await
        .unwrap();
    listed
        .items
        .into_iter()
        .filter(|event| event.kind == "DEPLOYMENT_SCALED")
        .map(|event| event.message)
        .collect()
}

fn decided(world: &World, service: ServiceId, deployment: tram_types::DeploymentId) -> Decided {
    let scaling = world.controller.as_ref().unwrap().scaling();
    scaling.decided(service, deployment).remove(0)
}

async fn by_hand(world: &World, service: ServiceId, instances: Option<u32>) {
    let scaling = instances.map(|instances| ManualScaling {
        keeps_awake: false,
        scopes: Vec::new(),
        instances,
    });
    world
        .store
        .set_manual_scaling(world.organization, service, scaling.into_iter().collect())
        .await
        .unwrap();
}

#[tokio::test]
async fn instances_follow_the_load_and_their_owner_reads_why() {
    let world = World::new().await;
    let made = world.create("web", in_flight("app", 1, 5, 2)).await;
    let (service, deployment) = (made.service.id, made.deployment.id);
    world.endpoints_become(service, 1).await;
    let began = world.now();
    running_come_to(&world, service, 10, &[], 5).await;
    let took = world.now().since(began);
    assert!(took <= Duration::from_secs(3), "{took:?}");
    world.endpoints_become(service, 5).await;
    pass(&world, service, 10, &[], Duration::from_secs(60)).await;
    assert_eq!(world.site.running().len(), 5);
    let now = decided(&world, service, deployment);
    assert_eq!((now.decision.wanted, now.ready, now.min, now.max), (5, 5, 1, 5));
    assert_eq!(now.decision.cause, Cause::OnTarget);
    let words = told(&world, deployment).await;
    assert!(
        words[0].starts_with("Deployment scaled 1 to ")
            && words[0].contains("requests in flight per instance, target 2"),
        "{words:?}"
    );
    let up = words.len();
    running_come_to(&world, service, 0, &[], 1).await;
    let words = told(&world, deployment).await;
    assert!(
        words.len() > up && words[up].starts_with("Deployment scaled 5 to "),
        "{words:?}"
    );
    let totals = world.controller.as_ref().unwrap().scaling().totals();
    assert!(totals.changes[&Cause::Burst] >= 1 && totals.changes[&Cause::Below] >= 1);
    assert_eq!(world.deployment(deployment).await.status, D::Healthy);
}

#[tokio::test]
async fn an_instance_with_an_open_stream_is_not_stopped_when_fewer_are_wanted() {
    let world = World::new().await;
    let made = world.create("web", in_flight("app", 1, 3, 2)).await;
    let service = made.service.id;
    world.endpoints_become(service, 1).await;
    running_come_to(&world, service, 6, &[], 3).await;
    world.endpoints_become(service, 3).await;
    let rows = world.instances(service).await;
    let last = rows.iter().find(|row| row.replica_index == 2).unwrap().id;
    running_come_to(&world, service, 1, &[last], 2).await;
    pass(&world, service, 1, &[last], Duration::from_secs(300)).await;
    assert!(world.site.running().contains(&last), "its stream is open");
    assert_eq!(world.endpoints_become(service, 1).await.endpoints.len(), 1);
    let left = running_come_to(&world, service, 0, &[], 1).await;
    assert!(!left.contains(&last));
}

#[tokio::test]
async fn an_instance_with_an_open_session_is_not_stopped_when_fewer_are_wanted() {
    let world = World::new().await;
    let made = world.create("web", in_flight("app", 1, 3, 2)).await;
    let service = made.service.id;
    world.endpoints_become(service, 1).await;
    running_come_to(&world, service, 4, &[], 2).await;
    world.endpoints_become(service, 2).await;
    let rows = world.instances(service).await;
    let last = rows.iter().find(|row| row.replica_index == 1).unwrap().id;
    let session = world.sites.sessions().open(last);
    world
        .pass_until(REPORTS, "the second takes no requests", async || {
            report(&world, service, 0, &[]);
            tokio::time::sleep(Duration::from_millis(20)).await;
            let endpoints = world.edge.service(service).map(|it| it.endpoints.len());
            (endpoints == Some(1))
                .then_some(())
                .ok_or(format!("{endpoints:?}"))
        })
        .await;
    pass(&world, service, 0, &[], Duration::from_secs(120)).await;
    assert!(world.site.running().contains(&last), "somebody works in it");
    drop(session);
    let left = running_come_to(&world, service, 0, &[], 1).await;
    assert!(!left.contains(&last));
}

#[tokio::test]
async fn an_unknown_load_keeps_the_number_through_a_lost_link_and_a_crash() {
    let mut world = World::new().await;
    let made = world.create("web", in_flight("app", 1, 5, 2)).await;
    let (service, deployment) = (made.service.id, made.deployment.id);
    world.endpoints_become(service, 1).await;
    running_come_to(&world, service, 8, &[], 4).await;
    world.endpoints_become(service, 4).await;
    world.edge.disconnect();
    world.pass(Duration::from_secs(600)).await;
    assert_eq!(world.site.running().len(), 4);
    assert_eq!(
        decided(&world, service, deployment).decision.cause,
        Cause::Unknown
    );
    world.kill();
    world.start();
    pass(&world, service, 8, &[], Duration::from_secs(20)).await;
    assert_eq!(world.site.running().len(), 4);
    running_come_to(&world, service, 0, &[], 1).await;
}

#[tokio::test]
async fn a_number_set_by_hand_wins_and_is_shown_as_that() {
    let world = World::new().await;
    let made = world.create("web", in_flight("app", 1, 5, 2)).await;
    let (service, deployment) = (made.service.id, made.deployment.id);
    world.endpoints_become(service, 1).await;
    by_hand(&world, service, Some(2)).await;
    running_come_to(&world, service, 10, &[], 2).await;
    pass(&world, service, 10, &[], Duration::from_secs(30)).await;
    assert_eq!(world.site.running().len(), 2);
    assert_eq!(decided(&world, service, deployment).decision.cause, Cause::Manual);
    by_hand(&world, service, None).await;
    running_come_to(&world, service, 10, &[], 5).await;
}

#[tokio::test]
async fn a_new_deployment_takes_over_with_as_many() {
    let world = World::new().await;
    let made = world.create("web", in_flight("v1", 1, 5, 2)).await;
    let service = made.service.id;
    world.endpoints_become(service, 1).await;
    running_come_to(&world, service, 8, &[], 4).await;
    world.endpoints_become(service, 4).await;
    world.site.script("v2", Behaviour::living(Life::HealthyAfter(5)));
    let new = world.deploy(service, in_flight("v2", 1, 5, 2)).await;
    world.deployment_becomes(new, D::Healthy).await;
    let of_new = |rows: Vec<tram_store::record::Instance>| {
        rows.into_iter().filter(|row| row.deployment_id == new).count()
    };
    assert_eq!(of_new(world.instances(service).await), 4);
}

#[tokio::test]
async fn memory_is_asked_of_the_site() {
    let world = World::new().await;
    let target = json!({"average_mem": {"value": 1}});
    let made = world.create("web", scaled("app", 1, 3, &target)).await;
    let (service, deployment) = (made.service.id, made.deployment.id);
    world.endpoints_become(service, 1).await;
    running_come_to(&world, service, 0, &[], 3).await;
    let words = told(&world, deployment).await;
    assert!(
        words[0].contains("% memory per instance, target 1 %"),
        "{words:?}"
    );
}

#[tokio::test]
async fn callers_of_a_sleeping_service_are_load_while_it_wakes() {
    let world = World::new().await;
    let made = world.create("web", in_flight("slow", 0, 5, 2)).await;
    let (service, deployment) = (made.service.id, made.deployment.id);
    world.endpoints_become(service, 1).await;
    world.clock.advance(Duration::from_secs(301));
    world.deployment_becomes(deployment, D::Sleeping).await;
    world.running_come_to(0).await;
    let scaling = world.controller.as_ref().unwrap().scaling();
    assert!(
        scaling.decided(service, deployment).is_empty(),
        "what sleeps costs nothing"
    );
    world
        .site
        .script("slow", Behaviour::living(Life::HealthyAfter(2_000_000)));
    world.edge.wake(service);
    world
        .pass_until(REPORTS, "more than one starts", async || {
            world.edge.traffic(ServiceActivity {
                service,
                in_flight: 0,
                queued: 9,
                last_at: None,
                arrivals: Some(9),
                latency: Latency::default(),
            });
            tokio::time::sleep(Duration::from_millis(20)).await;
            let rows = world.instances(service).await;
            let live = rows.iter().filter(|row| !row.status.is_final()).count();
            (live == 5).then_some(()).ok_or(format!("{live}"))
        })
        .await;
}
