//! Everything goes wrong at random; then it stops, and the service is as its owner wants.

use std::time::Duration;

use rand::{RngExt, SeedableRng, rngs::StdRng};
use tram_site::EndCause;
use tram_store::record::Instance;
use tram_testkit::{Behaviour, ImageBehaviour, Life};
use tram_types::{
    ServiceId,
    routing::RoutingTable,
    status::{DeploymentStatus as D, InstanceStatus},
};

use crate::world::{World, web};

/// Things that go wrong in one history.
const EVENTS: usize = 60;

async fn go_wrong(world: &mut World, service: ServiceId, random: &mut StdRng) {
    let running = world.site.running();
    let some = (!running.is_empty()).then(|| running[random.random_range(0..running.len())]);
    match (random.random_range(0..14), some) {
        (0, Some(id)) => world.site.end(id, EndCause::Exited { code: 1 }),
        (1, Some(id)) => world.site.end(id, EndCause::Interrupted),
        (2, Some(id)) => world.site.lose(id),
        (3, Some(id)) => world.site.set_health(id, false, 9),
        (4, _) => world.site.set_unreachable(true),
        (5, _) => world.site.set_unreachable(false),
        (6, _) => world.edge.disconnect(),
        (7, _) => world.edge.connect(),
        (8, _) => {
            world.kill();
            world.start();
        }
        (9, _) => drop(world.deploy(service, web("good", 2)).await),
        (10, _) => drop(world.deploy(service, web("bad", 1)).await),
        (11, _) => world.edge.wake(service),
        (12, _) => world.site.set_silent(random.random_bool(0.5)),
        _ => world
            .clock
            .advance(Duration::from_secs(random.random_range(0..400))),
    }
    tokio::time::sleep(Duration::from_micros(random.random_range(0..6_000))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_the_storm_all_is_well() {
    for seed in 0..8_u64 {
        println!("seed {seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let mut world = World::without_controller().await;
        world.sweep = Duration::from_millis(50);
        world.site.script(
            "good",
            Behaviour {
                image: ImageBehaviour::ReadyAfter(2),
                life: Life::HealthyAfter(2),
                stop_observations: 1,
            },
        );
        world.site.script("bad", Behaviour::crashes(1));
        world.start();
        let service = world.create("web", web("good", 2)).await.service.id;
        for _ in 0..EVENTS {
            go_wrong(&mut world, service, &mut random).await;
        }
        world.site.set_unreachable(false);
        world.site.set_silent(false);
        world.edge.connect();
        let last = world.deploy(service, web("good", 2)).await;
        world
            .until("the last deployment serves alone", async || {
                world.clock.advance(Duration::from_secs(1));
                let deployment = world.deployment(last).await;
                let mut live = world.instances(service).await;
                live.retain(|it| !it.status.is_final());
                let ours = |it: &Instance| it.status == InstanceStatus::Healthy && it.deployment_id == last;
                let running = world.site.running().len();
                let endpoints = world.edge.service(service).map_or(0, |it| it.endpoints.len());
                let well = deployment.status == D::Healthy && live.len() == 2 && live.iter().all(ours);
                if well && running == 2 && endpoints == 2 {
                    Ok(())
                } else {
                    Err(format!(
                        "{running} run, {endpoints} are routed, {deployment:#?}, {live:#?}"
                    ))
                }
            })
            .await;
        is_what_a_new_controller_pushes(&mut world).await;
    }
}

/// A new controller pushes its table whole: nothing was lost in the changes.
pub(crate) async fn is_what_a_new_controller_pushes(world: &mut World) {
    world.kill();
    let by_changes = sorted(world.edge.table());
    world.start();
    world
        .until("the same table, whole", async || {
            let whole = sorted(world.edge.table());
            let version = whole.version;
            let same = RoutingTable {
                version: by_changes.version,
                ..whole
            };
            if version > by_changes.version && same == by_changes {
                Ok(())
            } else {
                Err(format!("{same:#?} after {by_changes:#?}"))
            }
        })
        .await;
}

fn sorted(mut table: RoutingTable) -> RoutingTable {
    table.hosts.sort_by(|a, b| a.name.cmp(&b.name));
    table.services.sort_by_key(|it| it.id);
    table
}
