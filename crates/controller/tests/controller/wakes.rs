//! Wakes that go wrong, and very many at a time: whoever calls hears something.

use std::time::Duration;

use tram_planner::Policy;
use tram_site::EndCause;
use tram_testkit::{Behaviour, Life};
use tram_types::{
    ServiceId,
    routing::State,
    status::{DeploymentStatus as D, ServiceStatus as S},
};

use crate::{
    traffic::asleep,
    world::{STEP, World, web},
};

/// More by far than are looked at side by side.
const SERVICES: usize = 200;
/// Of a wait of minutes.
const COARSE: Duration = Duration::from_secs(2);

/// The table says that the service failed, for this reason.
async fn told(world: &World, service: ServiceId, step: Duration, why: &str) {
    world
        .pass_until(step, "callers are told why", async || {
            match world.edge.service(service).map(|it| it.state) {
                Some(State::Failed { message, .. }) if message.contains(why) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
}

#[tokio::test]
async fn who_calls_a_service_that_never_gets_healthy_is_told() {
    let world = World::new().await;
    let (service, deployment) = asleep(&world).await;
    world
        .site
        .script("sleeper", Behaviour::living(Life::NeverHealthy));
    let called = world.now();
    world.edge.wake(service);
    told(&world, service, COARSE, "no instance is healthy").await;
    assert!(world.now().since(called) >= Policy::default().start_deadline);
    world.service_comes_to(service, S::Unhealthy).await;
    // It is tried again, and serves as soon as it can: one that was started before has its own five minutes.
    world
        .site
        .script("sleeper", Behaviour::living(Life::HealthyAfter(0)));
    world
        .pass_until(COARSE, "it serves", async || {
            match world.deployment(deployment).await.status {
                D::Healthy => Ok(()),
                other => Err(other.to_string()),
            }
        })
        .await;
    world.endpoints_become(service, 1).await;
}

#[tokio::test]
async fn a_service_that_dies_right_after_each_wake_is_tried_ever_more_rarely_and_says_why() {
    let world = World::new().await;
    let (service, deployment) = asleep(&world).await;
    let dies = Life::EndsHealthy {
        after: 1,
        cause: EndCause::Exited { code: 3 },
    };
    world.site.script("sleeper", Behaviour::living(dies));
    world.edge.wake(service);
    told(&world, service, STEP, "exit code 3").await;
    let before = world.instances(service).await.len();
    world.pass(Duration::from_secs(600)).await;
    let tried = world.instances(service).await.len() - before;
    // Pauses of 1, 2, 4 ... seconds, and five minutes at most: 600 s hold no more than nine.
    assert!((1..=10).contains(&tried), "{tried} times");
    // Not while it is being tried.
    world
        .pass_until(STEP, "the deployment says why", async || {
            let messages = world.deployment(deployment).await.messages.join("; ");
            match messages.contains("exit code 3") {
                true => Ok(()),
                false => Err(messages),
            }
        })
        .await;
    world
        .site
        .script("sleeper", Behaviour::living(Life::HealthyAfter(0)));
    world.deployment_comes_to(deployment, D::Healthy).await;
    world.endpoints_become(service, 1).await;
}

#[tokio::test]
async fn many_services_woken_in_the_same_second_all_come_up() {
    let world = World::new().await;
    let mut services = Vec::with_capacity(SERVICES);
    for number in 0..SERVICES {
        services.push(
            world
                .create(&format!("web-{number}"), web("sleeper", 0))
                .await
                .service
                .id,
        );
    }
    let in_state = |wanted: fn(&State) -> bool| {
        let table = world.edge.table();
        table
            .services
            .iter()
            .filter(|service| wanted(&service.state))
            .count()
    };
    let all = async |what: &str, wanted: fn(&State) -> bool| {
        world
            .until(what, async || match in_state(wanted) {
                SERVICES => Ok(()),
                count => Err(format!("{count}")),
            })
            .await;
    };
    all("all serve", |state| *state == State::Ready).await;
    // Their idle time counts from when they are known to.
    for service in &services {
        world.service_becomes(*service, S::Healthy).await;
    }
    world.clock.advance(Duration::from_secs(301));
    all("all sleep", |state| *state == State::Sleeping).await;
    world.running_come_to(0).await;
    for service in &services {
        world.edge.wake(*service);
    }
    all("all serve again", |state| *state == State::Ready).await;
    assert_eq!(world.site.running().len(), SERVICES);
}
