//! The controller dies between any two steps and comes back.

use std::time::Duration;

use rand::{RngExt, SeedableRng, rngs::StdRng};
use tram_site::EndCause;
use tram_store::{
    intent::{AppSet, InstanceSet, ServiceEdit, Update},
    record::Desired,
};
use tram_testkit::{Behaviour, ImageBehaviour, Life};
use tram_types::status::{AppStatus, DeploymentStatus as D, InstanceStatus, ServiceStatus as S};

use crate::world::{STEP, World, web};

/// Kills in one run; every place between two steps is hit many times over.
const KILLS: usize = 25;

/// Lets the controller work for a random moment, then kills it, again and again; then lets it work.
async fn kill_often(world: &mut World, random: &mut StdRng) {
    for _ in 0..KILLS {
        world.start();
        tokio::time::sleep(Duration::from_micros(random.random_range(0..8_000))).await;
        world.kill();
        world.clock.advance(Duration::from_millis(50));
    }
    world.start();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_the_moment_it_dies_it_gets_there() {
    for seed in 0..4_u64 {
        println!("seed {seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let mut world = World::without_controller().await;
        let slow = Behaviour {
            image: ImageBehaviour::ReadyAfter(2),
            life: Life::HealthyAfter(3),
            stop_observations: 2,
        };
        world.site.script("v1", slow.clone());
        world.site.script("v2", slow);
        let made = world.create("web", web("v1", 2)).await;
        let service = made.service.id;
        kill_often(&mut world, &mut random).await;
        world.service_becomes(service, S::Healthy).await;
        assert_eq!(world.site.running().len(), 2, "adopted, not started anew");
        world.kill();

        let new = world.deploy(service, web("v2", 2)).await;
        kill_often(&mut world, &mut random).await;
        world.deployment_becomes(new, D::Healthy).await;
        world.endpoints_become(service, 2).await;
        world.deployment_comes_to(made.deployment.id, D::Stopped).await;
        assert_eq!(world.site.running().len(), 2);
        world.kill();

        world.want(service, Desired::Pause).await;
        kill_often(&mut world, &mut random).await;
        world.service_comes_to(service, S::Paused).await;
        assert!(world.site.running().is_empty());
        world.kill();

        world.want(service, Desired::Delete).await;
        kill_often(&mut world, &mut random).await;
        world.gone(service).await;
        assert!(world.site.is_empty(), "something was left on the site");
    }
}

#[tokio::test]
async fn an_instance_that_was_over_but_not_forgotten_is_in_the_end() {
    let mut world = World::new().await;
    let made = world.create("web", web("v1", 1)).await;
    let service = made.service.id;
    world.endpoints_become(service, 1).await;
    let old = world.site.running()[0];
    let newer = world.deploy(service, web("v2", 1)).await;
    world.deployment_becomes(newer, D::Healthy).await;
    world.deployment_comes_to(made.deployment.id, D::Stopped).await;
    world.kill();
    // As if the site had not answered just then: the deployment is over, neither active nor the newest.
    let set = InstanceSet {
        forgotten: Some(false),
        ..InstanceSet::default()
    };
    let update = Update::Instance {
        id: old,
        expected: InstanceStatus::Stopped,
        set: Box::new(set),
    };
    world.store.apply(service, vec![update]).await.unwrap();
    world.start();
    world
        .until("it is forgotten", async || {
            let instance = world.store.instance_unscoped(old).await.unwrap();
            if instance.forgotten {
                Ok(())
            } else {
                Err(format!("{instance:?}"))
            }
        })
        .await;
    world.want(service, Desired::Delete).await;
    world.gone(service).await;
}

#[tokio::test]
async fn lost_signals_cost_time_and_nothing_else() {
    let mut world = World::without_controller().await;
    world.sweep = Duration::from_millis(50);
    world.site.script("v1", Behaviour::living(Life::HealthyAfter(3)));
    world.site.set_silent(true);
    world.start();
    let made = world.create("web", web("v1", 2)).await;
    world.service_becomes(made.service.id, S::Healthy).await;
    let running = world.site.running();
    world.site.end(running[0], EndCause::Exited { code: 1 });
    world.service_becomes(made.service.id, S::Degraded).await;
    world.service_comes_to(made.service.id, S::Healthy).await;
}

#[tokio::test]
async fn a_stop_that_gets_lost_is_given_again() {
    let world = World::new().await;
    let made = world.create("web", web("v1", 1)).await;
    let service = made.service.id;
    world.endpoints_become(service, 1).await;
    world.site.lose_stops(2);
    world.want(service, Desired::Delete).await;
    world
        .pass_until(STEP, "the service is gone", async || {
            match world.store.service_unscoped(service).await {
                Err(tram_store::Error::NotFound { .. }) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    assert!(world.site.is_empty());
    assert!(world.site.calls().stop >= 3, "{:?}", world.site.calls());
}

#[tokio::test]
async fn an_app_that_goes_with_its_last_service_goes_though_the_controller_died_in_between() {
    let mut world = World::without_controller().await;
    let app = world.create_app("sandbox", true).await;
    let made = world.create_in(app, "one", web("v1", 1)).await;
    world.want(made.service.id, Desired::Delete).await;
    // The service is gone, and whoever removed it did not live to look at the app.
    world.store.remove_service(made.service.id).await.unwrap();
    world.start();
    world
        .until("the app is gone", async || {
            match world.store.app_unscoped(app).await {
                Err(tram_store::Error::NotFound { .. }) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
}

#[tokio::test]
async fn an_app_that_is_shown_wrongly_after_a_crash_is_put_right() {
    let mut world = World::new().await;
    world
        .site
        .script("none", Behaviour::missing_image("no such image"));
    let made = world.create("web", web("none", 1)).await;
    world.service_becomes(made.service.id, S::Unhealthy).await;
    let app_becomes = async |world: &World, status: AppStatus| {
        world
            .until("the app follows its service", async || {
                let app = world.store.app_unscoped(world.app).await.unwrap();
                if app.status == status {
                    Ok(())
                } else {
                    Err(format!("{app:?}"))
                }
            })
            .await;
    };
    app_becomes(&world, AppStatus::Unhealthy).await;
    world.kill();
    let healthy = AppSet {
        status: Some(AppStatus::Healthy),
        ..AppSet::default()
    };
    world
        .store
        .apply_app(world.app, AppStatus::Unhealthy, healthy, Vec::new())
        .await
        .unwrap();
    world.start();
    app_becomes(&world, AppStatus::Unhealthy).await;
}

#[tokio::test]
async fn a_service_at_rest_keeps_its_appointments_across_a_restart() {
    let mut world = World::new().await;
    let made = world.create("web", web("v1", 1)).await;
    let service = made.service.id;
    world.service_becomes(service, S::Healthy).await;
    let edit = ServiceEdit {
        delete_after_create_seconds: Some(3600),
        ..ServiceEdit::default()
    };
    world
        .store
        .update_service(world.organization, service, &edit)
        .await
        .unwrap();
    world.want(service, Desired::Pause).await;
    world.service_comes_to(service, S::Paused).await;
    world.kill();
    world.start();
    world.pass(Duration::from_secs(3000)).await;
    world.service_becomes(service, S::Paused).await;
    world.pass(Duration::from_secs(700)).await;
    world.gone(service).await;
}

#[tokio::test]
async fn a_clock_that_jumps_ends_nothing_and_holds_nothing_up() {
    const DAY: Duration = Duration::from_secs(24 * 3600);
    let world = World::new().await;
    let service = world.create("web", web("v1", 2)).await.service.id;
    world.service_becomes(service, S::Healthy).await;
    for to in [world.now().minus(DAY), world.now().plus(DAY)] {
        // The old version goes on until its last requests are answered.
        let before = world.running_come_to(2).await;
        world.clock.set(to);
        world.pass(Duration::from_secs(20)).await;
        world.service_becomes(service, S::Healthy).await;
        assert_eq!(world.site.running(), before);
        // A crash is made good at the new time's pace, and a new intent is carried out.
        world.site.end(before[0], EndCause::Exited { code: 1 });
        // Shown as DEGRADED until the back-off is over; how long that is to be seen here depends on whether a look was
        // under way while the clock jumped.
        world.ended(service, before[0]).await;
        world.clock.set(to.minus(DAY));
        world.service_comes_to(service, S::Healthy).await;
        let next = world.deploy(service, web("v1", 2)).await;
        world.deployment_becomes(next, D::Healthy).await;
    }
    world.want(service, Desired::Delete).await;
    world.gone(service).await;
    assert!(world.site.is_empty());
}
