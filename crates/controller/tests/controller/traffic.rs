//! Sleep, wake, and what the data plane has to do with it.

use std::{collections::HashSet, time::Duration};

use serde_json::json;
use tram_controller::data_plane::{Event, Latency, ServiceActivity};
use tram_site::EndCause;
use tram_store::{
    Store,
    intent::{AppEdit, DomainEdit, NewDomain, NewSecret, SecretEdit},
    record::Desired,
};
use tram_testkit::{Behaviour, Life};
use tram_types::{
    DomainId, SecretId, ServiceId,
    routing::State,
    status::{DeploymentStatus as D, DomainStatus, DomainType, SecretType, ServiceStatus as S},
};

use crate::{
    chaos::is_what_a_new_controller_pushes,
    world::{STEP, World, web},
};

pub(crate) async fn asleep(world: &World) -> (ServiceId, tram_types::DeploymentId) {
    let made = world.create("web", web("sleeper", 0)).await;
    world.endpoints_become(made.service.id, 1).await;
    world.clock.advance(Duration::from_secs(301));
    world.deployment_becomes(made.deployment.id, D::Sleeping).await;
    state_becomes(world, made.service.id, &State::Sleeping).await;
    world.running_come_to(0).await;
    (made.service.id, made.deployment.id)
}

async fn state_becomes(world: &World, service: ServiceId, state: &State) {
    world
        .until(&format!("the table says {state:?}"), async || {
            match world.edge.service(service) {
                Some(it) if it.state == *state => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
}

#[tokio::test]
async fn an_idle_service_sleeps_and_a_caller_wakes_it() {
    let world = World::new().await;
    let (service, deployment) = asleep(&world).await;
    let shown = world.service(service).await;
    assert_eq!(shown.status, S::Healthy);
    assert!(shown.sleeping_since.is_some());
    world.edge.wake(service);
    world.deployment_becomes(deployment, D::Healthy).await;
    world.endpoints_become(service, 1).await;
    state_becomes(&world, service, &State::Ready).await;
    assert_eq!(world.service(service).await.sleeping_since, None);
    assert_eq!(world.site.running().len(), 1);
}

#[tokio::test]
async fn many_callers_wake_once() {
    let world = World::new().await;
    world
        .site
        .script("sleeper", Behaviour::living(Life::HealthyAfter(5)));
    let (service, deployment) = asleep(&world).await;
    let before = world.site.calls().start;
    for _ in 0..50 {
        world.edge.wake(service);
    }
    world.deployment_becomes(deployment, D::Healthy).await;
    world.pass(Duration::from_secs(1)).await;
    assert_eq!(world.instances(service).await.len(), 2);
    assert_eq!(world.site.running().len(), 1);
    assert!(world.site.calls().start > before);
}

#[tokio::test]
async fn a_wake_that_fails_is_told_to_the_edge() {
    let world = World::new().await;
    let (service, _) = asleep(&world).await;
    world.site.script(
        "sleeper",
        Behaviour::living(Life::EndsUnhealthy {
            after: 1,
            cause: EndCause::Exited { code: 127 },
        }),
    );
    world.edge.wake(service);
    world
        .until("the table says why", async || {
            match world.edge.service(service).map(|it| it.state) {
                Some(State::Failed { message, .. }) if message.contains("a command was not found") => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
}

#[tokio::test]
async fn requests_under_way_and_a_lost_link_keep_it_awake() {
    let world = World::new().await;
    let made = world.create("web", web("sleeper", 0)).await;
    let service = made.service.id;
    world.endpoints_become(service, 1).await;
    let busy = ServiceActivity {
        service,
        in_flight: 1,
        queued: 0,
        last_at: Some(world.now()),
        arrivals: None,
        latency: Latency::default(),
    };
    world.edge.traffic(busy);
    world.pass(Duration::from_secs(900)).await;
    assert_eq!(world.deployment(made.deployment.id).await.status, D::Healthy);
    world.edge.disconnect();
    world.pass(Duration::from_secs(900)).await;
    assert_eq!(world.deployment(made.deployment.id).await.status, D::Healthy);
    world.edge.connect();
    world.deployment_becomes(made.deployment.id, D::Sleeping).await;
}

#[tokio::test]
async fn an_old_instance_stays_while_the_edge_cannot_be_told() {
    let world = World::new().await;
    let made = world.create("web", web("v1", 1)).await;
    let service = made.service.id;
    world.endpoints_become(service, 1).await;
    let old = world.site.running()[0];
    world.edge.disconnect();
    let new = world.deploy(service, web("v2", 1)).await;
    world.deployment_becomes(new, D::Healthy).await;
    world.pass(Duration::from_secs(600)).await;
    assert!(world.site.running().contains(&old), "requests still go there");
    world.edge.connect();
    world
        .pass_until(STEP, "the old one stops", async || {
            if world.site.running().contains(&old) {
                Err("it runs".to_owned())
            } else {
                Ok(())
            }
        })
        .await;
}

#[tokio::test]
async fn an_old_instance_stops_with_its_last_request_however_busy_the_new_one_is() {
    let world = World::new().await;
    let made = world.create("web", web("v1", 1)).await;
    let service = made.service.id;
    world.endpoints_become(service, 1).await;
    let old = world.site.running()[0];
    let busy = |in_flight| ServiceActivity {
        service,
        in_flight,
        queued: 0,
        last_at: Some(world.now()),
        arrivals: None,
        latency: Latency::default(),
    };
    world.edge.traffic(busy(8));
    world.edge.say(Event::Busy {
        version: world.edge.table().version,
        instances: HashSet::from([old]),
    });
    let new = world.deploy(service, web("v2", 1)).await;
    world.deployment_becomes(new, D::Healthy).await;
    world
        .until("the table leads to the new one", async || {
            match world.edge.service(service) {
                Some(it) if it.endpoints.iter().all(|it| it.instance_id != old.uuid()) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    world.pass(Duration::from_secs(10)).await;
    assert!(world.site.running().contains(&old), "it has a request");
    world.edge.say(Event::Busy {
        version: world.edge.table().version,
        instances: HashSet::new(),
    });
    world
        .until("the old one stops", async || {
            if world.site.running().contains(&old) {
                Err("it runs".to_owned())
            } else {
                Ok(())
            }
        })
        .await;
}

#[tokio::test]
async fn versions_grow_past_what_the_edge_holds() {
    let mut world = World::without_controller().await;
    world.start();
    let made = world.create("web", web("v1", 1)).await;
    world.endpoints_become(made.service.id, 1).await;
    for _ in 0..3 {
        let held = world.edge.table().version;
        world.kill();
        world.start();
        world
            .until("a newer table", async || {
                let version = world.edge.table().version;
                if version > held {
                    Ok(())
                } else {
                    Err(format!("{version} after {held}"))
                }
            })
            .await;
        assert_eq!(world.edge.service(made.service.id).unwrap().endpoints.len(), 1);
    }
}

#[tokio::test]
async fn an_edge_of_an_earlier_life_is_overtaken_though_nobody_says_what_it_holds() {
    let mut world = World::without_controller().await;
    world.start();
    let made = world.create("web", web("v1", 1)).await;
    world.endpoints_become(made.service.id, 1).await;
    world.kill();
    let held = world.edge.hold_version(9_000);
    assert!(held < 9_000);
    world.controller = Some(tram_controller::Controller::start(world.deps()));
    world
        .until("a newer table", async || {
            let version = world.edge.table().version;
            if version > 9_000 {
                Ok(())
            } else {
                Err(format!("{version}"))
            }
        })
        .await;
}

/// Services, with and without instances, come and go one by one.
async fn come_and_go(world: &World) {
    let mut made = Vec::new();
    for name in ["a", "b", "c"] {
        let app = world.create_app(name, true).await;
        let deployed = world.create_in(app, "web", web("v1", 1)).await;
        world.endpoints_become(deployed.service.id, 1).await;
        made.push(deployed.service.id);
    }
    let (first, second) = (made[0], made[1]);
    world.want(first, Desired::Delete).await;
    world
        .until("it is gone from the table", async || {
            match world.edge.service(first) {
                None => Ok(()),
                there => Err(format!("{there:?}")),
            }
        })
        .await;
    let last = world.deploy(second, web("v2", 2)).await;
    world.deployment_becomes(last, D::Healthy).await;
    world.running_come_to(3).await;
    world.endpoints_become(second, 2).await;
}

#[tokio::test]
async fn what_changes_is_pushed_as_a_change_and_makes_the_same_table() {
    let mut world = World::new().await;
    come_and_go(&world).await;
    let (pushes, changes) = (world.edge.pushes(), world.edge.changes());
    assert!(changes > 6, "{changes} changes of {pushes} pushes");
    is_what_a_new_controller_pushes(&mut world).await;
}

#[tokio::test]
async fn a_data_plane_that_takes_no_changes_gets_whole_tables() {
    let mut world = World::without_controller().await;
    world.edge.only_tables();
    world.start();
    come_and_go(&world).await;
    assert_eq!(world.edge.changes(), 0);
    is_what_a_new_controller_pushes(&mut world).await;
}

#[tokio::test]
async fn a_change_of_a_table_that_is_not_in_force_is_followed_by_the_whole() {
    let mut world = World::new().await;
    let made = world.create("web", web("v1", 1)).await;
    world.endpoints_become(made.service.id, 1).await;
    // Another controller was there, and has told the data plane of nothing.
    world.edge.forget(9_000);
    let last = world.deploy(made.service.id, web("v2", 2)).await;
    world.deployment_becomes(last, D::Healthy).await;
    world.running_come_to(2).await;
    world.endpoints_become(made.service.id, 2).await;
    assert!(world.edge.table().version > 9_000);
    assert_eq!(world.edge.table().hosts.len(), 1);
    is_what_a_new_controller_pushes(&mut world).await;
}

#[tokio::test]
async fn a_domain_leads_to_the_app_that_has_it_last() {
    let mut world = World::new().await;
    let other = world.create_app("other", false).await;
    let ours = world.create("web", web("v1", 1)).await.service.id;
    let theirs = world.create_in(other, "web", web("v1", 1)).await.service.id;
    let domain = DomainId::random();
    let new = NewDomain {
        id: domain,
        organization_id: world.organization,
        project_id: None,
        app_id: Some(world.app),
        name: "shop.example".to_owned(),
        kind: DomainType::Custom,
        status: DomainStatus::Active,
        intended_cname: String::new(),
        load_balancer: json!({"cloudflare": {}}),
    };
    world.store.create_domain(new).await.unwrap();
    leads_to(&world, "shop.example", Some(ours)).await;
    for (app, service) in [
        (Some(other), Some(theirs)),
        (None, None),
        (Some(world.app), Some(ours)),
    ] {
        let edit = DomainEdit {
            app_id: Some(app),
            ..DomainEdit::default()
        };
        let edited = world.store.update_domain(world.organization, domain, &edit).await;
        edited.unwrap();
        leads_to(&world, "shop.example", service).await;
    }
    world
        .store
        .delete_domain(world.organization, domain)
        .await
        .unwrap();
    leads_to(&world, "shop.example", None).await;
    is_what_a_new_controller_pushes(&mut world).await;
}

async fn leads_to(world: &World, host: &str, service: Option<ServiceId>) {
    world
        .until(&format!("{host} leads to {service:?}"), async || {
            let table = world.edge.table();
            let host = table.hosts.iter().find(|it| it.name == host);
            let to = host.and_then(|it| it.routes.first()).map(|it| it.service_id);
            if to == service.map(ServiceId::uuid) {
                Ok(())
            } else {
                Err(format!("{to:?}"))
            }
        })
        .await;
}

#[tokio::test]
async fn a_quiet_world_pushes_nothing() {
    let world = World::new().await;
    let made = world.create("web", web("v1", 1)).await;
    world.endpoints_become(made.service.id, 1).await;
    world.pass(Duration::from_secs(30)).await;
    let before = world.edge.pushes();
    world.pass(Duration::from_secs(600)).await;
    assert_eq!(world.edge.pushes(), before);
}

#[tokio::test]
async fn a_change_that_nobody_told_is_found_in_time() {
    let mut world = World::without_controller().await;
    world.sweep = Duration::from_millis(20);
    world.start();
    let made = world.create("web", web("v1", 1)).await;
    world.endpoints_become(made.service.id, 1).await;
    let edit = AppEdit {
        name: Some("renamed".to_owned()),
        ..AppEdit::default()
    };
    let silent = world.silent_store().await;
    silent
        .update_app(world.organization, world.app, &edit)
        .await
        .unwrap();
    world
        .until("the table has the new name", async || {
            match world.edge.service(made.service.id) {
                Some(it) if it.name == "renamed/web" => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
}

#[tokio::test]
async fn what_is_wrong_with_one_service_is_no_trouble_for_the_others() {
    let mut world = World::without_controller().await;
    let bad = world.create("bad", json!({"ports": "none"})).await;
    let good = world.create("good", web("v1", 1)).await;
    world.start();
    world.endpoints_become(good.service.id, 1).await;
    world
        .until("the table says that something is wrong", async || {
            match world.edge.service(bad.service.id).map(|it| it.state) {
                Some(State::Failed { message, .. }) if message.contains("cannot be read") => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    // Whoever comes later is served as well.
    let later = world.create("later", web("v1", 1)).await;
    world.endpoints_become(later.service.id, 1).await;
}

#[tokio::test]
async fn a_secret_that_cannot_be_read_keeps_what_runs_and_no_other_service_waits() {
    let mut world = World::new().await;
    let foreign = world.foreign_store().await;
    let secret = NewSecret {
        id: SecretId::random(),
        organization_id: world.organization,
        project_id: None,
        name: "key".to_owned(),
        kind: SecretType::Simple,
        hosts: Vec::new(),
    };
    let secret = world
        .store
        .create_secret(secret, br#"{"value":"hunter2"}"#)
        .await
        .unwrap();
    let mut definition = web("v1", 1);
    definition["routes"] =
        json!([{"port": 8000, "path": "/", "security_policies": {"api_keys": ["{{ secret.key }}"]}}]);
    let guarded = world.create("guarded", definition).await.service.id;
    world.endpoints_become(guarded, 1).await;
    let before = world.edge.table();
    let damage = async |foreign: &Store, organization| {
        let edit = SecretEdit::default();
        foreign
            .update_secret(organization, secret.id, &edit, Some(b"{}"), None)
            .await
            .unwrap();
    };
    damage(&foreign, world.organization).await;
    world.kill();
    world.start();
    // Nothing is known of it any more: it is not opened, and it says that something is wrong.
    world
        .until("the table says that something is wrong", async || {
            match world.edge.service(guarded) {
                Some(it) if matches!(it.state, State::Failed { .. }) && it.endpoints.is_empty() => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    let other = world.create("other", web("v1", 1)).await.service.id;
    world.endpoints_become(other, 1).await;
    assert!(world.edge.table().version > before.version);
    // Written anew, it is served as before.
    world
        .store
        .update_secret(
            world.organization,
            secret.id,
            &SecretEdit::default(),
            Some(br#"{"value":"new"}"#),
            None,
        )
        .await
        .unwrap();
    world.endpoints_become(guarded, 1).await;
    // Damaged once more while it is served: what runs goes on.
    damage(&foreign, world.organization).await;
    world
        .store
        .update_secret(world.organization, secret.id, &SecretEdit::default(), None, None)
        .await
        .unwrap();
    let third = world.create("third", web("v1", 1)).await.service.id;
    world.endpoints_become(third, 1).await;
    assert_eq!(world.edge.service(guarded).unwrap().endpoints.len(), 1);
}
