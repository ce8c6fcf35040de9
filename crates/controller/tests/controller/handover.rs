//! A new deployment takes over as its strategy says, as the data plane sees it.

use std::{collections::BTreeSet, time::Duration};

use serde_json::{Value, json};
use tram_controller::data_plane::Event;
use tram_planner::{Policy, Tally};
use tram_testkit::{Behaviour, Life};
use tram_types::{
    InstanceId, ServiceId,
    status::{DeploymentStatus as D, ServiceStatus as S},
};
use uuid::Uuid;

use crate::world::{STEP, World, web};

fn with(strategy: &str, mut definition: Value) -> Value {
    definition["strategy"] = json!({ "type": format!("DEPLOYMENT_STRATEGY_TYPE_{strategy}") });
    definition
}

/// Who takes requests, and with what weight.
fn weights(world: &World, service: ServiceId) -> Vec<(Uuid, u32)> {
    let service = world.edge.service(service).unwrap();
    let endpoints = service.endpoints.iter();
    endpoints.map(|it| (it.instance_id, it.weight)).collect()
}

#[tokio::test]
async fn a_canary_takes_a_tenth_and_then_everything() {
    let world = World::new().await;
    let made = world.create("web", web("old", 3)).await;
    let service = made.service.id;
    world.service_becomes(service, S::Healthy).await;
    world.endpoints_become(service, 3).await;
    let old: BTreeSet<Uuid> = weights(&world, service).iter().map(|it| it.0).collect();
    let new = world.deploy(service, with("CANARY", web("new", 3))).await;
    world.endpoints_become(service, 4).await;
    let now = weights(&world, service);
    let whole: u32 = now.iter().map(|it| it.1).sum();
    let canary: u32 = now.iter().filter(|it| !old.contains(&it.0)).map(|it| it.1).sum();
    assert_eq!(canary * 10, whole, "{now:?}");
    assert_eq!(
        world.service(service).await.active_deployment_id,
        Some(made.deployment.id)
    );
    world
        .pass_until(STEP, "the new one serves alone", async || {
            let now = weights(&world, service);
            let alone = now.len() == 3 && now.iter().all(|it| it.1 == 1 && !old.contains(&it.0));
            if alone { Ok(()) } else { Err(format!("{now:?}")) }
        })
        .await;
    assert_eq!(world.service(service).await.active_deployment_id, Some(new));
    let took = world.now().since(world.deployment(new).await.created_at);
    assert!(took >= Policy::default().canary_bake, "{took:?}");
}

#[tokio::test]
async fn a_canary_that_dies_leaves_everything_to_the_old_one() {
    let world = World::new().await;
    let made = world.create("web", web("old", 2)).await;
    let service = made.service.id;
    world.service_becomes(service, S::Healthy).await;
    let new = world.deploy(service, with("CANARY", web("new", 2))).await;
    let routed = world.endpoints_become(service, 3).await;
    let instances = world.instances(service).await;
    let canary = instances.iter().find(|it| it.deployment_id == new).unwrap().id;
    assert!(routed.endpoints.iter().any(|it| it.instance_id == canary.uuid()));
    world.site.end(canary, tram_site::EndCause::Exited { code: 3 });
    let failed = world.deployment_comes_to(new, D::Error).await;
    let told = failed.messages.join("; ");
    assert!(
        told.contains("healthy and no longer is") && told.contains("exit code 3"),
        "{told}"
    );
    world.endpoints_become(service, 2).await;
    assert_eq!(
        world.service(service).await.active_deployment_id,
        Some(made.deployment.id)
    );
}

#[tokio::test]
async fn a_canary_that_fails_requests_is_given_up() {
    let world = World::new().await;
    let made = world.create("web", web("old", 2)).await;
    let service = made.service.id;
    world.service_becomes(service, S::Healthy).await;
    let new = world.deploy(service, with("CANARY", web("new", 2))).await;
    let routed = world.endpoints_become(service, 3).await;
    let canaries: Vec<bool> = routed.endpoints.iter().map(|it| it.canary).collect();
    assert_eq!(canaries, [false, false, true]);
    let tally = |it: &tram_types::routing::Endpoint| Tally {
        answers: if it.canary { 20 } else { 90 },
        failures: if it.canary { 20 } else { 0 },
    };
    let told = routed.endpoints.iter();
    world.edge.say(Event::Tallies {
        service,
        instances: told
            .map(|it| (InstanceId::from_uuid(it.instance_id), tally(it)))
            .collect(),
    });
    let failed = world.deployment_comes_to(new, D::Error).await;
    let told = failed.messages.join("; ");
    assert!(
        told.contains("20 of its 20 requests failed, and 0 of 180"),
        "{told}"
    );
    world.endpoints_become(service, 2).await;
}

#[tokio::test]
async fn a_rolling_deployment_never_leaves_fewer_that_take_requests() {
    let world = World::new().await;
    world.site.script("new", Behaviour::living(Life::HealthyAfter(3)));
    let made = world.create("web", web("old", 4)).await;
    let service = made.service.id;
    world.service_becomes(service, S::Healthy).await;
    world.endpoints_become(service, 4).await;
    let old: BTreeSet<Uuid> = weights(&world, service).iter().map(|it| it.0).collect();
    let new = world.deploy(service, with("ROLLING", web("new", 4))).await;
    let mixed = std::cell::Cell::new(false);
    world
        .pass_until(STEP, "the new one serves alone", async || {
            let now = weights(&world, service);
            assert!(now.len() >= 4, "{now:?}");
            let of_old = now.iter().filter(|it| old.contains(&it.0)).count();
            mixed.set(mixed.get() || (1..4).contains(&of_old));
            if of_old == 0 {
                Ok(())
            } else {
                Err(format!("{now:?}"))
            }
        })
        .await;
    assert!(mixed.get(), "it changed over at once");
    world.deployment_comes_to(new, D::Healthy).await;
    world.deployment_comes_to(made.deployment.id, D::Stopped).await;
}

#[tokio::test]
async fn a_rolling_deployment_that_is_superseded_half_way_keeps_its_requests_until_others_take_them() {
    let world = World::new().await;
    world
        .site
        .script("half", Behaviour::living(Life::HealthyAfter(3)));
    world.site.script("new", Behaviour::living(Life::HealthyAfter(3)));
    let made = world.create("web", web("old", 4)).await;
    let service = made.service.id;
    world.service_becomes(service, S::Healthy).await;
    world.endpoints_become(service, 4).await;
    let half = world.deploy(service, with("ROLLING", web("half", 4))).await;
    let of = async |deployment| {
        let instances = world.instances(service).await;
        let own = instances.into_iter().filter(|it| it.deployment_id == deployment);
        own.map(|it| it.id.uuid()).collect::<BTreeSet<Uuid>>()
    };
    world
        .pass_until(STEP, "two of the first are relieved", async || {
            let (old, now) = (of(made.deployment.id).await, weights(&world, service));
            let left = now.iter().filter(|it| old.contains(&it.0)).count();
            if left == 2 {
                Ok(())
            } else {
                Err(format!("{now:?}"))
            }
        })
        .await;
    let new = world.deploy(service, with("ROLLING", web("new", 4))).await;
    let stood_in = std::cell::Cell::new(false);
    world
        .pass_until(STEP, "the newest one serves alone", async || {
            let now = weights(&world, service);
            assert!(now.len() >= 4, "{now:?}");
            let going = world.deployment(half).await.status == D::Stopping;
            let second = of(half).await;
            stood_in.set(stood_in.get() || (going && now.iter().any(|it| second.contains(&it.0))));
            let newest = of(new).await;
            let alone = now.iter().all(|it| newest.contains(&it.0));
            if alone { Ok(()) } else { Err(format!("{now:?}")) }
        })
        .await;
    assert!(stood_in.get(), "it went at once");
    world.deployment_comes_to(half, D::Stopped).await;
    world.deployment_comes_to(new, D::Healthy).await;
}

#[tokio::test]
async fn what_listens_elsewhere_shares_no_requests() {
    let world = World::new().await;
    let made = world.create("web", web("old", 1)).await;
    let service = made.service.id;
    world.service_becomes(service, S::Healthy).await;
    world.endpoints_become(service, 1).await;
    let mut other = with("CANARY", web("new", 1));
    other["ports"][0]["port"] = json!(9000);
    other["routes"][0]["port"] = json!(9000);
    let new = world.deploy(service, other).await;
    let begun = world.now();
    world
        .pass_until(Duration::from_millis(10), "the new one serves", async || {
            let now = world.edge.service(service).unwrap();
            assert_eq!(now.endpoints.len(), 1, "{now:?}");
            let moved = now.endpoints[0].addresses.contains_key(&9000);
            if moved { Ok(()) } else { Err(format!("{now:?}")) }
        })
        .await;
    world.deployment_becomes(new, D::Healthy).await;
    assert!(world.now().since(begun) < Policy::default().canary_bake);
}
