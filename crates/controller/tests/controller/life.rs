//! From accepted to gone, and what goes wrong in between.

use std::time::Duration;

use serde_json::json;
use tram_site::{EndCause, LogQuery, LogStream, Site as _};
use tram_store::{
    intent::{NewSecret, ServiceEdit},
    record::{Desired, ManualScaling, ObjectKind},
};
use tram_testkit::{Behaviour, ImageBehaviour, Life};
use tram_types::{
    SecretId,
    status::{AppStatus, DeploymentStatus as D, InstanceStatus, SecretType, ServiceStatus as S},
};

use crate::world::{STEP, World, web};

#[tokio::test]
async fn a_service_comes_up_is_routed_and_goes_without_a_trace() {
    let world = World::new().await;
    // The order of events is told by their times.
    world.clock.set_step(Duration::from_millis(1));
    world.site.script(
        "nginx",
        Behaviour {
            image: ImageBehaviour::ReadyAfter(3),
            life: Life::HealthyAfter(2),
            stop_observations: 2,
        },
    );
    let made = world.create("web", web("nginx", 1)).await;
    let (service, deployment) = (made.service.id, made.deployment.id);
    world.service_becomes(service, S::Healthy).await;
    let routed = world.endpoints_become(service, 1).await;
    let kinds = world.events(ObjectKind::Deployment, deployment.uuid()).await;
    assert_eq!(
        kinds,
        [
            "DEPLOYMENT_PROVISIONING",
            "DEPLOYMENT_ALLOCATING",
            "DEPLOYMENT_STARTING",
            "DEPLOYMENT_HEALTHY"
        ]
    );
    world
        .until("the app is healthy", async || {
            let app = world.store.app_unscoped(world.app).await.unwrap();
            let healthy = app.status == AppStatus::Healthy && app.succeeded_at.is_some();
            if healthy { Ok(()) } else { Err(format!("{app:?}")) }
        })
        .await;
    let row = world.service(service).await;
    assert_eq!(row.active_deployment_id, Some(deployment));
    assert_eq!(row.last_provisioned_deployment_id, Some(deployment));
    assert!(row.succeeded_at.is_some() && row.started_at.is_some());
    let instance = &world.instances(service).await[0];
    assert_eq!(instance.status, InstanceStatus::Healthy);
    assert_eq!(instance.instance_type, "micro");
    assert_eq!(routed.name, "shop/web");
    assert_eq!(
        routed.endpoints[0].addresses[&8000].to_string(),
        format!("{}:8000", instance.address)
    );
    let table = world.edge.table();
    let host = table
        .hosts
        .iter()
        .find(|host| host.name == "shop-acme.localhost")
        .unwrap();
    assert_eq!((host.routes[0].prefix.as_str(), host.routes[0].port), ("/", 8000));

    world.site.write_log(instance.id, LogStream::Stdout, "hello");
    let instance = instance.id;
    world.want(service, Desired::Delete).await;
    world.gone(service).await;
    assert!(world.site.is_empty());
    let query = LogQuery {
        limit: 10,
        ..LogQuery::default()
    };
    assert!(
        world
            .site
            .logs(instance, &query)
            .await
            .unwrap()
            .entries
            .is_empty()
    );
    world
        .until("the table forgets it", async || {
            match world.edge.service(service) {
                None => Ok(()),
                Some(service) => Err(format!("{service:?}")),
            }
        })
        .await;
    assert!(world.store.app_unscoped(world.app).await.is_ok(), "the app stays");
}

#[tokio::test]
async fn what_an_instance_is_told_is_complete() {
    let world = World::new().await;
    let secret = |name: &str, kind| NewSecret {
        id: SecretId::random(),
        organization_id: world.organization,
        project_id: None,
        name: name.to_owned(),
        kind,
        hosts: Vec::new(),
    };
    world
        .store
        .create_secret(secret("db", SecretType::Simple), br#"{"value":"hunter2"}"#)
        .await
        .unwrap();
    let login = br#"{"private_registry":{"username":"u","password":"p","url":"https://registry.example"}}"#;
    world
        .store
        .create_secret(secret("login", SecretType::Registry), login)
        .await
        .unwrap();
    let mut definition = web("registry.example/shop", 1);
    definition["docker"] = json!({
        "image": "registry.example/shop", "image_registry_secret": "login",
        "entrypoint": ["/bin/sh", "-c"], "command": "serve it", "args": ["a"],
    });
    definition["env"] = json!([
        {"key": "DSN", "value": "pg://{{ secret.db }}@{{ HOST }}:{{ PORT }}"},
        {"key": "HOST", "value": "db"},
        {"key": "OLD", "secret": "db"},
        {"key": "HERE", "value": "yes", "scopes": ["region:na"]},
        {"key": "THERE", "value": "no", "scopes": ["region:nowhere"]},
        {"key": "WHO", "value": "{{ KOYEB_APP_NAME }}"},
    ]);
    definition["config_files"] = json!([
        {"path": "/etc/app.conf", "content": "password={{ secret.db }}", "permissions": "0600"},
    ]);
    let made = world.create("web", definition).await;
    world.service_becomes(made.service.id, S::Healthy).await;
    let spec = world.site.specs().pop().unwrap();
    let env = |name: &str| spec.env.get(name).map(String::as_str);
    assert_eq!(env("DSN"), Some("pg://hunter2@db:8000"));
    assert_eq!(env("OLD"), Some("hunter2"));
    assert_eq!(env("HERE"), Some("yes"));
    assert_eq!(env("THERE"), None);
    assert_eq!(env("WHO"), Some("shop"));
    assert_eq!(env("PORT"), Some("8000"));
    assert_eq!(env("KOYEB_PORT_8000_PROTOCOL"), Some("http"));
    assert_eq!(env("HOSTNAME"), Some(spec.id.short().as_str()));
    assert_eq!(env("KOYEB_SERVICE_PRIVATE_DOMAIN"), Some("web.shop.internal"));
    assert_eq!(env("KOYEB_PUBLIC_DOMAIN"), Some("shop-acme.localhost"));
    assert_eq!(env("KOYEB_ORGANIZATION_NAME"), Some("acme"));
    assert_eq!(env("KOYEB_REGION"), Some("fra"));
    assert_eq!(env("KOYEB_DC"), Some("fra1"));
    assert_eq!(env("KOYEB_INSTANCE_MEMORY_MB"), Some("512"));
    assert_eq!(env("KOYEB_PRIVILEGED"), Some("false"));
    assert_eq!(env("KOYEB_DOCKER_REF"), Some("registry.example/shop"));
    assert_eq!(spec.files[0].content, "password=hunter2");
    assert_eq!(spec.files[0].mode, 0o600);
    assert_eq!(spec.image.credentials.unwrap().host, "registry.example");
    assert_eq!((spec.command.as_str(), spec.args.len()), ("serve it", 1));
    assert_eq!(spec.limits.cpu_millis, 500);
}

#[tokio::test]
async fn a_missing_secret_fails_the_deployment_with_its_name() {
    let world = World::new().await;
    let mut definition = web("nginx", 1);
    definition["env"] = json!([{"key": "A", "value": "{{ secret.gone }}"}]);
    let made = world.create("web", definition).await;
    let deployment = world.deployment_becomes(made.deployment.id, D::Error).await;
    assert_eq!(
        deployment.messages,
        ["there is no secret named `gone`: create it, or correct the name"]
    );
    world.service_becomes(made.service.id, S::Unhealthy).await;
    assert_eq!(world.site.calls().start, 0);
}

#[tokio::test]
async fn a_rollout_moves_traffic_before_the_old_instance_stops() {
    let world = World::new().await;
    let made = world.create("web", web("v1", 1)).await;
    let service = made.service.id;
    let old = world.endpoints_become(service, 1).await.endpoints[0].instance_id;
    let new = world.deploy(service, web("v2", 1)).await;
    world.deployment_becomes(new, D::Healthy).await;
    world
        .until("the table leads to the new one", async || {
            match world.edge.service(service) {
                Some(it) if it.endpoints.len() == 1 && it.endpoints[0].instance_id != old => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    assert_eq!(
        world.site.running().len(),
        2,
        "the old one may still have requests"
    );
    let stopped = world.deployment_comes_to(made.deployment.id, D::Stopped).await;
    assert_eq!(stopped.messages, ["replaced by version 2"]);
    assert_eq!(world.site.running().len(), 1);
    assert_eq!(world.service(service).await.active_deployment_id, Some(new));
}

#[tokio::test]
async fn a_rollout_that_fails_leaves_the_old_one_alone() {
    let world = World::new().await;
    world.site.script("bad", Behaviour::crashes(3));
    world.site.script(
        "none",
        Behaviour::missing_image("registry.example has no image `none`"),
    );
    let made = world.create("web", web("v1", 1)).await;
    let service = made.service.id;
    world.service_becomes(service, S::Healthy).await;
    let old = world.site.running();
    let none = world.deploy(service, web("none", 1)).await;
    let failed = world.deployment_becomes(none, D::Error).await;
    assert_eq!(failed.messages, ["registry.example has no image `none`"]);
    let bad = world.deploy(service, web("bad", 1)).await;
    world
        .until("it has failed", async || {
            world.clock.advance(Duration::from_millis(500));
            let deployment = world.deployment(bad).await;
            if deployment.status == D::Error {
                Ok(())
            } else {
                Err(format!("{deployment:?}"))
            }
        })
        .await;
    let failed = world.deployment(bad).await;
    assert!(
        failed.messages[0].contains("left with exit code 3"),
        "{:?}",
        failed.messages
    );
    let shown = world.service_becomes(service, S::Degraded).await;
    assert!(
        shown.messages[0].contains("version 3 failed and version 1 still serves"),
        "{:?}",
        shown.messages
    );
    assert_eq!(world.site.running(), old);
    assert_eq!(shown.active_deployment_id, Some(made.deployment.id));
    world
        .until(
            "five attempts are kept, and the site has forgotten them",
            async || {
                let mut attempts = world.instances(service).await;
                attempts.retain(|it| it.deployment_id == bad);
                let over =
                    |it: &tram_store::record::Instance| it.status == InstanceStatus::Error && it.forgotten;
                if attempts.len() == 5 && attempts.iter().all(over) {
                    Ok(())
                } else {
                    Err(format!("{attempts:#?}"))
                }
            },
        )
        .await;
}

#[tokio::test]
async fn a_crash_is_told_and_replaced_with_a_growing_pause() {
    let world = World::new().await;
    let made = world.create("web", web("v1", 1)).await;
    let service = made.service.id;
    world.service_becomes(service, S::Healthy).await;
    for pause in [1, 2, 4] {
        let running = world.site.running();
        world.site.end(
            running[0],
            EndCause::OutOfMemory {
                limit_bytes: 512 * 1024 * 1024,
            },
        );
        let shown = world.service_becomes(service, S::Unhealthy).await;
        assert!(
            shown.messages[0].contains("512 MiB of memory"),
            "{:?}",
            shown.messages
        );
        world.pass(Duration::from_millis(pause * 1000 - 100)).await;
        assert!(
            world.site.running().is_empty(),
            "too early for a pause of {pause} s"
        );
        world.pass(Duration::from_millis(200)).await;
        world.service_becomes(service, S::Healthy).await;
    }
    let instances = world.instances(service).await;
    let query = LogQuery {
        limit: 10,
        ..LogQuery::default()
    };
    let log = world.site.logs(instances[0].id, &query).await.unwrap();
    assert_eq!(log.entries[0].stream, LogStream::Koyeb);
    assert!(log.entries[0].message.contains("512 MiB of memory"));
    assert_eq!(instances.len(), 4);
    assert_eq!(instances[0].status, InstanceStatus::Error);
    assert!(!instances[0].messages.is_empty());
    world.endpoints_become(service, 1).await;
}

#[tokio::test]
async fn a_site_that_does_not_answer_changes_nothing() {
    let world = World::new().await;
    let made = world.create("web", web("v1", 2)).await;
    world.service_becomes(made.service.id, S::Healthy).await;
    let running = world.site.running();
    world.site.set_unreachable(true);
    world.pass(Duration::from_secs(3600)).await;
    assert_eq!(world.service(made.service.id).await.status, S::Healthy);
    assert_eq!(world.edge.service(made.service.id).unwrap().endpoints.len(), 2);
    world.site.set_unreachable(false);
    world.pass(Duration::from_secs(60)).await;
    assert_eq!(world.site.running(), running);
    assert_eq!(world.instances(made.service.id).await.len(), 2);
}

#[tokio::test]
async fn pause_and_resume() {
    let world = World::new().await;
    let made = world.create("web", web("v1", 2)).await;
    let service = made.service.id;
    world.service_becomes(service, S::Healthy).await;
    world.want(service, Desired::Pause).await;
    let paused = world.service_comes_to(service, S::Paused).await;
    assert_eq!(paused.active_deployment_id, None);
    assert!(paused.paused_at.is_some());
    world.running_come_to(0).await;
    world
        .until("the table says so", async || match world.edge.service(service) {
            Some(it) if it.state == tram_types::routing::State::Paused => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
    let deployment = world.new_deployment(web("v1", 2));
    let id = deployment.id;
    world
        .store
        .resume_service(world.organization, service, deployment)
        .await
        .unwrap();
    world.deployment_becomes(id, D::Healthy).await;
    let resumed = world.service_becomes(service, S::Healthy).await;
    assert!(resumed.resumed_at.is_some());
    assert_eq!(world.site.running().len(), 2);
}

#[tokio::test]
async fn a_cancelled_deployment_ends_before_it_runs() {
    let world = World::new().await;
    world.site.script(
        "slow",
        Behaviour {
            image: ImageBehaviour::PullsForever,
            ..Behaviour::default()
        },
    );
    let made = world.create("web", web("slow", 1)).await;
    let pulling = world
        .deployment_becomes(made.deployment.id, D::Provisioning)
        .await;
    assert!(pulling.messages.is_empty() || pulling.messages[0].contains("fetching the image"));
    world
        .store
        .request_cancel(world.organization, made.deployment.id)
        .await
        .unwrap();
    world.deployment_becomes(made.deployment.id, D::Canceled).await;
    assert_eq!(world.site.calls().start, 0);
}

#[tokio::test]
async fn words_about_a_pull_do_not_keep_the_controller_busy() {
    let world = World::new().await;
    world.site.script(
        "large",
        Behaviour {
            image: ImageBehaviour::ReadyAfter(1_000_000),
            ..Behaviour::default()
        },
    );
    // Nothing is announced, so that every look is the controller's own.
    world.site.set_silent(true);
    let made = world.create("web", web("large", 1)).await;
    world
        .until("the owner is told how far it is", async || {
            let deployment = world.deployment(made.deployment.id).await;
            let told = deployment
                .messages
                .first()
                .is_some_and(|it| it.contains("unpacking layer"));
            if told {
                Ok(())
            } else {
                Err(format!("{deployment:?}"))
            }
        })
        .await;
    let (before, since) = (world.site.calls().ensure_image, world.now());
    world
        .pass_until(STEP, "it is asked for again", async || {
            let asked = world.site.calls().ensure_image - before;
            if asked >= 6 {
                Ok(())
            } else {
                Err(format!("{asked} times"))
            }
        })
        .await;
    let took = world.now().since(since);
    assert!(took >= Duration::from_secs(6), "asked 6 times in {took:?}");
}

#[tokio::test]
async fn the_owner_may_choose_the_number_of_instances() {
    let world = World::new().await;
    let made = world.create("web", web("v1", 1)).await;
    let service = made.service.id;
    world.endpoints_become(service, 1).await;
    let three = vec![ManualScaling {
        keeps_awake: false,
        scopes: vec!["region:na".to_owned()],
        instances: 3,
    }];
    world
        .store
        .set_manual_scaling(world.organization, service, three)
        .await
        .unwrap();
    world.endpoints_become(service, 3).await;
    assert_eq!(world.service(service).await.status, S::Healthy);
    world
        .store
        .set_manual_scaling(world.organization, service, Vec::new())
        .await
        .unwrap();
    world.endpoints_become(service, 1).await;
    world.running_come_to(1).await;
}

#[tokio::test]
async fn an_app_that_goes_with_its_last_service_does() {
    let world = World::new().await;
    let app = world.create_app("sandbox-app", true).await;
    let made = world.create_in(app, "one", web("v1", 1)).await;
    world.service_becomes(made.service.id, S::Healthy).await;
    world.want(made.service.id, Desired::Delete).await;
    world.gone(made.service.id).await;
    world
        .until("the app is gone", async || {
            match world.store.app_unscoped(app).await {
                Err(tram_store::Error::NotFound { .. }) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    world
        .until("its host is not served", async || {
            let table = world.edge.table();
            let there = table
                .hosts
                .iter()
                .any(|host| host.name == "sandbox-app-acme.localhost");
            if there { Err("it is".to_owned()) } else { Ok(()) }
        })
        .await;
}

#[tokio::test]
async fn a_deleted_app_takes_its_services_along() {
    let world = World::new().await;
    let one = world.create("one", web("v1", 1)).await.service.id;
    let other = world.create("other", web("v1", 1)).await.service.id;
    world.service_becomes(one, S::Healthy).await;
    world.service_becomes(other, S::Healthy).await;
    world
        .store
        .set_app_desired(world.organization, world.app, Desired::Delete)
        .await
        .unwrap();
    world.gone(one).await;
    world.gone(other).await;
    world
        .until("their images are let go", async || match world.site.pinned() {
            pinned if pinned.is_empty() => Ok(()),
            pinned => Err(format!("{pinned:?}")),
        })
        .await;
    world
        .until("the app is gone", async || {
            match world.store.app_unscoped(world.app).await {
                Err(tram_store::Error::NotFound { .. }) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    assert!(world.site.is_empty());
}

#[tokio::test]
async fn an_order_that_fails_keeps_no_other_from_being_given() {
    let world = World::new().await;
    let made = world.create("web", web("v1", 1)).await;
    let service = made.service.id;
    world.endpoints_become(service, 1).await;
    // Its replacement cannot be started, again and again.
    world.site.script("v1", Behaviour::living(Life::Unavailable));
    world
        .site
        .end(world.site.running()[0], EndCause::Exited { code: 1 });
    world.service_becomes(service, S::Unhealthy).await;
    let tried = world.site.calls().start;
    world
        .pass_until(STEP, "a start fails", async || {
            let starts = world.site.calls().start;
            if starts > tried {
                Ok(())
            } else {
                Err(format!("{starts}"))
            }
        })
        .await;
    // Its owner is told, and waits for nothing else.
    world
        .pass_until(STEP, "the owner is told", async || {
            let shown = world.service(service).await;
            let told = shown.messages.iter().any(|it| it.contains("has no room now"));
            if told { Ok(()) } else { Err(format!("{shown:?}")) }
        })
        .await;
    let next = world.deploy(service, web("v2", 1)).await;
    world.deployment_comes_to(next, D::Healthy).await;
}

#[tokio::test]
async fn a_clock_set_back_does_not_make_a_crash_loop_faster() {
    let mut world = World::without_controller().await;
    // An alarm of before comes a day late; the sweep goes by a clock that nobody sets.
    world.sweep = Duration::from_millis(50);
    world.start();
    let made = world.create("web", web("v1", 1)).await;
    let service = made.service.id;
    world.service_becomes(service, S::Healthy).await;
    world.site.script("v1", Behaviour::crashes(1));
    let before = world.site.running()[0];
    world.site.end(before, EndCause::Exited { code: 1 });
    world.service_becomes(service, S::Unhealthy).await;
    world.clock.set(world.now().minus(Duration::from_secs(24 * 3600)));
    world
        .pass_until(STEP, "it was tried again", async || {
            let tried = world.instances(service).await.len();
            if tried >= 4 {
                Ok(())
            } else {
                Err(format!("{tried}"))
            }
        })
        .await;
    let mut rows = world.instances(service).await;
    rows.sort_by_key(|it| it.created_at);
    assert_eq!(rows[0].id, before, "the order is told by the times");
    let ended = rows[1].terminated_at.unwrap();
    let again = rows[2].terminated_at.unwrap().since(ended);
    assert!(again >= Duration::from_secs(1), "tried again after {again:?}");
}

#[tokio::test]
async fn a_stored_deployment_changes_nothing_that_is_shown() {
    let world = World::new().await;
    world
        .site
        .script("none", Behaviour::missing_image("no such image"));
    let made = world.create("web", web("none", 1)).await;
    let service = made.service.id;
    world.service_becomes(service, S::Unhealthy).await;
    let mut stashed = world.new_deployment(web("v1", 1));
    stashed.status = D::Stashed;
    world
        .store
        .add_deployment(world.organization, service, &ServiceEdit::default(), stashed, &[])
        .await
        .unwrap();
    // One that is deployed beside it shows that the look at the stored one is over.
    let other = world.create("other", web("v1", 1)).await;
    world.service_becomes(other.service.id, S::Healthy).await;
    world.pass(Duration::from_secs(1)).await;
    let shown = world.service(service).await;
    assert_eq!(shown.status, S::Unhealthy);
    assert_eq!(shown.messages, ["no such image"]);
}
