//! The controller's side.

use tram_types::{
    Clock as _, ServiceId, Timestamp,
    status::{
        AppStatus, DeploymentStatus, DomainStatus, DomainType, InstanceStatus, RegionalDeploymentStatus,
        ServiceStatus,
    },
};

use super::fixture::{Fixture, new_app, new_deployment, new_domain, new_instance, new_service};
use crate::{
    Change, Error, ModelInstances, Order, Page, Store, filter,
    intent::{
        AppSet, Deployed, DeploymentSet, DomainEdit, InstanceSet, NewDomain, NewEvent, RegionalDeploymentSet,
        ServiceEdit, ServiceSet, Update,
    },
    record::{Desired, ObjectKind},
};

fn deployment(made: &Deployed, from: DeploymentStatus, to: DeploymentStatus) -> Update {
    Update::Deployment {
        id: made.deployment.id,
        expected: from,
        set: Box::new(DeploymentSet {
            status: Some(to),
            ..DeploymentSet::default()
        }),
    }
}

fn service(from: ServiceStatus, set: ServiceSet) -> Update {
    Update::Service {
        expected: from,
        set: Box::new(set),
    }
}

pub(super) async fn a_state_holds_what_may_still_change(fixture: &Fixture) {
    let store = &fixture.store;
    let (organization, _) = fixture.organization().await;
    let first = fixture.service(organization).await;
    let id = first.service.id;
    fixture.service(organization).await;
    let live = fixture.instance(&first).await;
    let gone = fixture.instance(&first).await;
    fixture.end(&gone).await;
    let second = store
        .add_deployment(organization, id, &ServiceEdit::default(), new_deployment(), &[])
        .await
        .unwrap();
    let third = store
        .add_deployment(organization, id, &ServiceEdit::default(), new_deployment(), &[])
        .await
        .unwrap();
    // The first serves, the second is over and of no interest, the third is over but the latest.
    let active = ServiceSet {
        active_deployment_id: Some(Some(first.deployment.id)),
        controller_memory: Some(serde_json::json!({"back_off": 2})),
        ..ServiceSet::default()
    };
    let updates = vec![
        deployment(&first, DeploymentStatus::Pending, DeploymentStatus::Healthy),
        deployment(&second, DeploymentStatus::Pending, DeploymentStatus::Canceled),
        deployment(&third, DeploymentStatus::Pending, DeploymentStatus::Error),
        service(ServiceStatus::Starting, active),
    ];
    store.apply(id, updates).await.unwrap();
    let state = store.load_service_state(id).await.unwrap();
    let versions: Vec<i64> = state.deployments.iter().map(|one| one.version).collect();
    assert_eq!(versions, [1, 3]);
    assert_eq!(state.regional_deployments.len(), 2);
    assert_eq!(state.instances, [live]);
    assert_eq!(state.app.id, first.service.app_id);
    assert_eq!(state.service.active_deployment_id, Some(first.deployment.id));
    assert_eq!(
        state.service.controller_memory,
        serde_json::json!({"back_off": 2})
    );
    let known = store.known_instances_unscoped(None, 100).await.unwrap();
    assert_eq!(known.len(), 1);
    let missing = store.load_service_state(ServiceId::random()).await;
    assert!(matches!(missing, Err(Error::NotFound { .. })));
}

pub(super) async fn models_are_counted_by_deployment_and_status(fixture: &Fixture) {
    let store = &fixture.store;
    let (organization, _) = fixture.organization().await;
    let region = "models";
    let make = async |definition: serde_json::Value, count: usize| {
        let app = fixture.app(organization).await;
        let mut new = new_service(&app, "chat");
        new.deployment.definition = definition;
        let made = store.create_service(new).await.unwrap();
        let mut instances = Vec::new();
        for _ in 0..count {
            let mut instance = new_instance(&made, fixture.clock.now());
            region.clone_into(&mut instance.region);
            instances.push(instance);
        }
        let inserts = instances
            .iter()
            .cloned()
            .map(|it| Update::InsertInstance(Box::new(it)));
        store.apply(made.service.id, inserts.collect()).await.unwrap();
        (made, instances)
    };
    let model = serde_json::json!({"name": "chat", "model": {"source": "tiny"}});
    // What only looks like one: in a text, as another member's, and as none.
    let text = serde_json::json!({"env": [{"value": "\"model\":{"}], "model": null});
    let (made, instances) = make(model, 4).await;
    make(text, 2).await;
    fixture.end(&instances[0]).await;
    let stopping = InstanceSet {
        status: Some(InstanceStatus::Stopping),
        ..InstanceSet::default()
    };
    let update = Update::Instance {
        id: instances[1].id,
        expected: InstanceStatus::Allocating,
        set: Box::new(stopping),
    };
    store.apply(made.service.id, vec![update]).await.unwrap();
    let counted = |status, count| ModelInstances {
        service_id: made.service.id,
        deployment_id: made.deployment.id,
        status,
        count,
    };
    assert_eq!(
        store.model_instances_unscoped(region).await.unwrap(),
        [
            counted(InstanceStatus::Allocating, 2),
            counted(InstanceStatus::Stopping, 1)
        ]
    );
    assert_eq!(store.model_instances_unscoped("elsewhere").await.unwrap(), []);
}

pub(super) async fn a_batch_is_applied_whole_or_not_at_all(fixture: &Fixture) {
    let store = &fixture.store;
    let (organization, _) = fixture.organization().await;
    let made = fixture.service(organization).await;
    let id = made.service.id;
    let instance = new_instance(&made, fixture.clock.now());
    let event = NewEvent {
        organization_id: organization,
        object_kind: ObjectKind::Service,
        object_id: id.uuid(),
        kind: "STARTED".to_owned(),
        message: "it starts".to_owned(),
        metadata: serde_json::Value::Null,
    };
    let batch = |expected| {
        vec![
            Update::ExpectVersion(made.service.version),
            Update::InsertInstance(Box::new(instance.clone())),
            Update::RegionalDeployment {
                id: made.regional[0].id,
                expected: RegionalDeploymentStatus::Pending,
                set: Box::new(RegionalDeploymentSet {
                    status: Some(RegionalDeploymentStatus::Allocating),
                    ..RegionalDeploymentSet::default()
                }),
            },
            Update::Event(Box::new(event.clone())),
            deployment(&made, expected, DeploymentStatus::Provisioning),
        ]
    };
    let error = store
        .apply(id, batch(DeploymentStatus::Healthy))
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::Conflict {
                object: "deployment",
                ..
            }
        ),
        "{error}"
    );
    assert!(error.to_string().contains("not HEALTHY any more"), "{error}");
    assert!(store.load_service_state(id).await.unwrap().instances.is_empty());
    let events = filter::Events {
        object_ids: vec![id.uuid()],
        order: Order::Ascending,
        ..filter::Events::of_kind(ObjectKind::Service)
    };
    assert_eq!(
        store
            .list_events(organization, &events, Page::default())
            .await
            .unwrap()
            .count,
        0
    );

    store.apply(id, batch(DeploymentStatus::Pending)).await.unwrap();
    let state = store.load_service_state(id).await.unwrap();
    assert_eq!(state.instances, std::slice::from_ref(&instance));
    assert_eq!(
        state.regional_deployments[0].status,
        RegionalDeploymentStatus::Allocating
    );
    assert_eq!(
        store
            .list_events(organization, &events, Page::default())
            .await
            .unwrap()
            .count,
        1
    );

    // A plan made before the owner changed their mind is refused.
    store
        .set_service_desired(organization, id, Desired::Pause)
        .await
        .unwrap();
    let stale = vec![
        Update::ExpectVersion(made.service.version),
        deployment(
            &made,
            DeploymentStatus::Provisioning,
            DeploymentStatus::Allocating,
        ),
    ];
    assert!(matches!(
        store.apply(id, stale).await,
        Err(Error::Conflict {
            object: "service",
            ..
        })
    ));
    // Nothing of another service can be changed under this one's name.
    let other = fixture.service(organization).await;
    let foreign = vec![deployment(
        &made,
        DeploymentStatus::Provisioning,
        DeploymentStatus::Allocating,
    )];
    assert!(matches!(
        store.apply(other.service.id, foreign).await,
        Err(Error::Conflict { .. })
    ));
    let foreign = vec![Update::InsertInstance(Box::new(new_instance(
        &made,
        fixture.clock.now(),
    )))];
    assert!(matches!(
        store.apply(other.service.id, foreign).await,
        Err(Error::Conflict { .. })
    ));

    let set = AppSet {
        status: Some(AppStatus::Degraded),
        messages: Some(vec!["one service is degraded".to_owned()]),
        ..AppSet::default()
    };
    let app = made.service.app_id;
    store
        .apply_app(app, AppStatus::Healthy, set.clone(), vec![])
        .await
        .unwrap();
    assert!(matches!(
        store.apply_app(app, AppStatus::Healthy, set, vec![]).await,
        Err(Error::Conflict { object: "app", .. })
    ));
    assert_eq!(store.app_unscoped(app).await.unwrap().messages.len(), 1);
}

pub(super) async fn a_sweep_sees_what_is_not_settled(fixture: &Fixture) {
    let store = &fixture.store;
    let (organization, _) = fixture.organization().await;
    let mut expected = Vec::new();
    for _ in 0..5 {
        expected.push(fixture.service(organization).await.service.id);
    }
    expected.sort_by_key(ToString::to_string);
    let mut swept = Vec::new();
    while let Some(last) = {
        let page = store
            .services_needing_attention(swept.last().copied(), 2)
            .await
            .unwrap();
        swept.extend(page.iter().copied());
        page.last().copied()
    } {
        assert_eq!(swept.last(), Some(&last));
    }
    assert_eq!(swept, expected);

    let settled = fixture.service(organization).await;
    let paused = ServiceSet {
        status: Some(ServiceStatus::Paused),
        ..ServiceSet::default()
    };
    let updates = vec![
        deployment(&settled, DeploymentStatus::Pending, DeploymentStatus::Stopped),
        service(ServiceStatus::Starting, paused),
    ];
    store.apply(settled.service.id, updates).await.unwrap();
    let swept = store.services_needing_attention(None, 100).await.unwrap();
    assert!(!swept.contains(&settled.service.id));
    assert_eq!(swept.len(), 5);
    store
        .set_service_desired(organization, settled.service.id, Desired::Delete)
        .await
        .unwrap();
    let swept = store.services_needing_attention(None, 100).await.unwrap();
    assert!(swept.contains(&settled.service.id));
    assert!(store.apps_needing_attention(None, 100).await.unwrap().is_empty());

    // One that sleeps deeply rests, until its owner or its app's wants something else.
    let sleeper = fixture.service(organization).await;
    let asleep = ServiceSet {
        status: Some(ServiceStatus::Healthy),
        sleeping_since: Some(Some(Timestamp::from_micros(1))),
        ..ServiceSet::default()
    };
    let half = vec![deployment(
        &sleeper,
        DeploymentStatus::Pending,
        DeploymentStatus::Sleeping,
    )];
    store.apply(sleeper.service.id, half).await.unwrap();
    let is_swept = || async {
        let swept = store.services_needing_attention(None, 100).await.unwrap();
        swept.contains(&sleeper.service.id)
    };
    assert!(is_swept().await, "nobody wrote down since when");
    store
        .apply(sleeper.service.id, vec![service(ServiceStatus::Starting, asleep)])
        .await
        .unwrap();
    assert!(!is_swept().await);
    store
        .set_service_desired(organization, sleeper.service.id, Desired::Pause)
        .await
        .unwrap();
    assert!(is_swept().await);
    let app = settled.service.app_id;
    store
        .set_app_desired(organization, app, Desired::Delete)
        .await
        .unwrap();
    assert_eq!(store.apps_needing_attention(None, 100).await.unwrap(), [app]);
}

pub(super) async fn a_service_goes_when_its_instances_are_forgotten(fixture: &Fixture) {
    let store = &fixture.store;
    let (organization, _) = fixture.organization().await;
    let mut app = new_app(organization, "short-lived");
    app.delete_when_empty = true;
    let domain = new_domain(organization, Some(app.id), "short-lived.example");
    let (app, domain) = store.create_app_with_domain(app, domain).await.unwrap();
    let mut custom = new_domain(organization, Some(app.id), "www.example");
    custom.kind = DomainType::Custom;
    let custom = store.create_domain(custom).await.unwrap();
    let mut new = new_service(&app, "web");
    new.proxy_ports = vec![1];
    let made = store.create_service(new).await.unwrap();
    let id = made.service.id;
    let instance = fixture.instance(&made).await;

    assert!(matches!(
        store.remove_service(id).await,
        Err(Error::Conflict { .. })
    ));
    store
        .set_service_desired(organization, id, Desired::Delete)
        .await
        .unwrap();
    let error = store.remove_service(id).await.unwrap_err();
    assert!(error.to_string().contains("still has instances"), "{error}");
    assert!(matches!(
        store.remove_app(app.id).await,
        Err(Error::Conflict { .. })
    ));
    fixture.end(&instance).await;
    let removed = store.remove_service(id).await.unwrap();
    assert_eq!((removed.app_id, removed.app_emptied), (app.id, true));
    let emptied = store.app(organization, app.id).await.unwrap();
    assert_eq!(
        (emptied.desired, emptied.status),
        (Desired::Delete, AppStatus::Deleting)
    );
    assert!(
        store
            .apps_needing_attention(None, 100)
            .await
            .unwrap()
            .contains(&app.id)
    );
    assert!(matches!(
        store.service(organization, id).await,
        Err(Error::NotFound { .. })
    ));
    assert!(matches!(
        store.remove_service(id).await,
        Err(Error::NotFound { .. })
    ));
    assert!(matches!(
        store.deployment(organization, made.deployment.id).await,
        Err(Error::NotFound { .. })
    ));
    assert!(store.proxy_ports(organization, &[id]).await.unwrap().is_empty());
    store.remove_app(app.id).await.unwrap();
    assert!(matches!(
        store.app(organization, app.id).await,
        Err(Error::NotFound { .. })
    ));
    assert!(matches!(
        store.domain(organization, domain.id).await,
        Err(Error::NotFound { .. })
    ));
    assert_eq!(store.domain(organization, custom.id).await.unwrap().app_id, None);
    let kept = fixture.app(organization).await;
    assert!(matches!(
        store.remove_app(kept.id).await,
        Err(Error::Conflict { .. })
    ));
}

pub(super) async fn routes_of_one_are_the_routes_of_all(fixture: &Fixture) {
    let store = &fixture.store;
    let (organization, _) = fixture.organization().await;
    let mut made = Vec::new();
    for index in 0..3 {
        let one = fixture.service(organization).await;
        let name = format!("{index}.example");
        store
            .create_domain(new_domain(organization, Some(one.service.app_id), &name))
            .await
            .unwrap();
        made.push(one);
    }
    store
        .create_domain(new_domain(organization, None, "nowhere.example"))
        .await
        .unwrap();
    let instance = fixture.instance(&made[0]).await;
    let over = fixture.instance(&made[0]).await;
    fixture.end(&over).await;
    let active = ServiceSet {
        active_deployment_id: Some(Some(made[0].deployment.id)),
        status: Some(ServiceStatus::Healthy),
        ..ServiceSet::default()
    };
    let healthy = InstanceSet {
        status: Some(InstanceStatus::Healthy),
        address: Some("10.0.0.1".to_owned()),
        ..InstanceSet::default()
    };
    let updates = vec![
        service(ServiceStatus::Starting, active),
        Update::Instance {
            id: instance.id,
            expected: InstanceStatus::Allocating,
            set: Box::new(healthy),
        },
    ];
    let id = made[0].service.id;
    store.apply(id, updates).await.unwrap();
    store
        .add_deployment(organization, id, &ServiceEdit::default(), new_deployment(), &[7])
        .await
        .unwrap();

    // A custom domain is served once it was found to lead here, and no longer.
    let custom = NewDomain {
        kind: DomainType::Custom,
        status: DomainStatus::Pending,
        load_balancer: serde_json::json!({"koyeb": {"request_timeout_seconds": 300}}),
        ..new_domain(organization, Some(made[0].service.app_id), "custom.example")
    };
    let custom = store.create_domain(custom).await.unwrap();
    for (status, timeout) in [
        (DomainStatus::Pending, None),
        (DomainStatus::Active, Some(Some(300))),
        (DomainStatus::Error, None),
    ] {
        let edit = DomainEdit {
            status: Some(status),
            ..DomainEdit::default()
        };
        store.update_domain(organization, custom.id, &edit).await.unwrap();
        let routed = store.routed_domain(custom.id).await.unwrap();
        assert_eq!(routed.map(|it| it.request_timeout_seconds), timeout, "{status}");
    }

    let all = store.routing_snapshot().await.unwrap();
    assert_eq!((all.services.len(), all.domains.len()), (3, 3));
    for routed in &all.services {
        assert_eq!(
            store.routed_service(routed.id).await.unwrap().as_ref(),
            Some(routed)
        );
    }
    for domain in &all.domains {
        assert_eq!(
            store.routed_domain(domain.id).await.unwrap().as_ref(),
            Some(domain)
        );
        assert_eq!(
            store.routed_domains_of_app(domain.app_id).await.unwrap(),
            std::slice::from_ref(domain)
        );
    }
    let routed = all.services.iter().find(|routed| routed.id == id).unwrap();
    let deployment = routed.deployment.as_ref().unwrap();
    assert!(deployment.is_active);
    assert_eq!(deployment.id, made[0].deployment.id);
    assert_eq!(routed.instances.len(), 1);
    assert_eq!(routed.instances[0].address, "10.0.0.1");
    assert_eq!(routed.proxy_ports.len(), 1);
    let other = all
        .services
        .iter()
        .find(|routed| routed.id == made[1].service.id)
        .unwrap();
    let deployment = other.deployment.as_ref().unwrap();
    assert!(!deployment.is_active && deployment.id == made[1].deployment.id);
    assert_eq!(store.routed_service(ServiceId::random()).await.unwrap(), None);
}

pub(super) async fn one_process_leads_and_a_former_leader_is_refused(fixture: &Fixture) {
    let store = &fixture.store;
    let (organization, _) = fixture.organization().await;
    let made = fixture.service(organization).await;
    let other = Store::open(fixture.options.clone()).await.unwrap();
    let mut first = store.acquire_leadership().await.unwrap().unwrap();
    assert!(first.is_held().await);
    assert!(other.acquire_leadership().await.unwrap().is_none());
    fixture.instance(&made).await;
    drop(first);
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(10);
    // PostgreSQL notices the end of a session a little later.
    let second = loop {
        if let Some(second) = other.acquire_leadership().await.unwrap() {
            break second;
        }
        assert!(tokio::time::Instant::now() < deadline, "the lock was not let go");
        tokio::task::yield_now().await;
    };
    assert_eq!(second.epoch(), 2);
    let late = new_instance(&made, fixture.clock.now());
    let update = || vec![Update::InsertInstance(Box::new(late.clone()))];
    assert!(matches!(
        store.apply(made.service.id, update()).await,
        Err(Error::Conflict {
            object: "leadership",
            ..
        })
    ));
    let refused = store.confirm_leadership().await.unwrap_err();
    assert!(matches!(refused, Error::Conflict { .. }), "{refused}");
    other.confirm_leadership().await.unwrap();
    other.apply(made.service.id, update()).await.unwrap();
    drop(second);
    other.close().await;
}

pub(super) async fn changes_reach_other_replicas(fixture: &Fixture) {
    let store = &fixture.store;
    let (organization, _) = fixture.organization().await;
    let other = Store::open(fixture.options.clone()).await.unwrap();
    let (mut here, mut there) = (store.subscribe(), other.subscribe());
    let first = fixture.app(organization).await;
    let second = fixture.app(organization).await;
    let told = [Change::App(first.id), Change::App(second.id)];
    assert_eq!([here.recv().await.unwrap(), here.recv().await.unwrap()], told);
    if store.database_kind() == "postgres" {
        assert_eq!([there.recv().await.unwrap(), there.recv().await.unwrap()], told);
    }
    // What one announced comes to it once; and SQLite, which one process uses, announces nothing.
    assert!(here.is_empty() && there.is_empty());
    other.close().await;
}

pub(super) async fn changes_are_told_after_the_commit(fixture: &Fixture) {
    let store = &fixture.store;
    let (organization, _) = fixture.organization().await;
    let app = fixture.app(organization).await;
    let mut changes = store.subscribe();
    let made = store.create_service(new_service(&app, "web")).await.unwrap();
    assert_eq!(changes.recv().await.unwrap(), Change::Service(made.service.id));
    assert_eq!(changes.recv().await.unwrap(), Change::App(app.id));
    assert!(store.create_service(new_service(&app, "web")).await.is_err());
    assert!(changes.is_empty());
    // What the receiver reads is what it was told about.
    store
        .set_service_desired(organization, made.service.id, Desired::Delete)
        .await
        .unwrap();
    let Change::Service(id) = changes.recv().await.unwrap() else {
        panic!("expected a service");
    };
    assert_eq!(store.service_unscoped(id).await.unwrap().desired, Desired::Delete);
    // The controller's own writes wake nobody, or it would never sleep.
    fixture.instance(&made).await;
    assert!(changes.is_empty());
}

pub(super) async fn a_stashed_deployment_does_not_hide_the_one_before(fixture: &Fixture) {
    let store = &fixture.store;
    let (organization, _) = fixture.organization().await;
    let made = fixture.service(organization).await;
    let id = made.service.id;
    let set = DeploymentSet {
        status: Some(DeploymentStatus::Error),
        ..DeploymentSet::default()
    };
    let update = Update::Deployment {
        id: made.deployment.id,
        expected: DeploymentStatus::Pending,
        set: Box::new(set),
    };
    store.apply(id, vec![update]).await.unwrap();
    for _ in 0..2 {
        let mut stashed = new_deployment();
        stashed.status = DeploymentStatus::Stashed;
        store
            .add_deployment(organization, id, &ServiceEdit::default(), stashed, &[])
            .await
            .unwrap();
    }
    let state = store.load_service_state(id).await.unwrap();
    let versions: Vec<i64> = state.deployments.iter().map(|it| it.version).collect();
    assert_eq!(versions, [1, 3]);
    assert_eq!(state.regional_deployments.len(), 2);
}

pub(super) async fn the_newest_ends_of_every_replica_are_read(fixture: &Fixture) {
    let store = &fixture.store;
    let (organization, _) = fixture.organization().await;
    let made = fixture.service(organization).await;
    let mut ids: std::collections::BTreeMap<u32, Vec<tram_types::InstanceId>> =
        std::collections::BTreeMap::new();
    for (replica, runs) in [(0, 9), (1, 2)] {
        for _ in 0..runs {
            let mut instance = new_instance(&made, fixture.clock.now());
            instance.replica_index = replica;
            let insert = vec![Update::InsertInstance(Box::new(instance.clone()))];
            store.apply(made.service.id, insert).await.unwrap();
            fixture.end(&instance).await;
            ids.entry(replica).or_default().push(instance.id);
            fixture.clock.advance(std::time::Duration::from_secs(1));
        }
    }
    // One that runs is none that ended.
    fixture.instance(&made).await;
    let read = store
        .ended_instances_unscoped(made.deployment.id, 3)
        .await
        .unwrap();
    let of = |replica: u32| -> Vec<_> {
        let own = read.iter().filter(|it| it.replica_index == replica);
        own.map(|it| it.id).collect()
    };
    assert_eq!(of(0), [ids[&0][8], ids[&0][7], ids[&0][6]]);
    assert_eq!(of(1), [ids[&1][1], ids[&1][0]]);
    assert_eq!(read.len(), 5);
}
