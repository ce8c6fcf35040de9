//! Apps, services, deployments: what the API records.

use std::{collections::BTreeSet, time::Duration};

use serde_json::json;
use tram_types::{
    Clock as _, ServiceId,
    status::{
        AppStatus, DeploymentStatus, InstanceStatus, RegionalDeploymentStatus, ServiceStatus, ServiceType,
    },
};

use super::fixture::{Fixture, new_app, new_deployment, new_domain, new_service};
use crate::{
    Error, Order, Page, filter,
    intent::{AppEdit, ComposeApp, ComposeService, DeploymentSet, ServiceEdit, ServiceSet, Update},
    record::{Desired, ManualScaling},
};

/// Writers at once: more than SQLite's readers, fewer than PostgreSQL's connections.
const WRITERS: usize = 12;

pub(super) async fn an_app_comes_with_its_domain_or_not_at_all(fixture: &Fixture) {
    let store = &fixture.store;
    let (organization, _) = fixture.organization().await;
    let app = new_app(organization, "shop");
    let domain = new_domain(organization, Some(app.id), "Shop.Example");
    let (app, domain) = store.create_app_with_domain(app, domain).await.unwrap();
    assert_eq!(domain.name, "shop.example");
    assert_eq!(store.domains_of_app_unscoped(app.id).await.unwrap(), [domain]);

    let second = new_app(organization, "second");
    let taken = new_domain(organization, Some(second.id), "shop.EXAMPLE");
    let error = store.create_app_with_domain(second, taken).await.unwrap_err();
    assert!(
        matches!(error, Error::AlreadyExists { object: "domain", .. }),
        "{error}"
    );
    assert_eq!(store.app_by_name(organization, "second").await.unwrap(), None);

    let edit = AppEdit {
        delete_when_empty: Some(true),
        ..AppEdit::default()
    };
    let edited = store.update_app(organization, app.id, &edit).await.unwrap();
    assert!(edited.delete_when_empty);
    assert_eq!(edited.version, app.version + 1);
}

pub(super) async fn a_service_comes_with_its_first_deployment(fixture: &Fixture) {
    let store = &fixture.store;
    let (organization, project) = fixture.organization().await;
    let app = fixture.app(organization).await;
    let mut new = new_service(&app, "web");
    new.project_id = Some(project);
    let definition = new.deployment.definition.clone();
    let made = store.create_service(new).await.unwrap();
    assert_eq!(made.service.status, ServiceStatus::Starting);
    assert_eq!(made.service.latest_deployment_id, Some(made.deployment.id));
    assert_eq!(made.service.active_deployment_id, None);
    assert_eq!(
        store.service(organization, made.service.id).await.unwrap(),
        made.service
    );
    let deployment = store.deployment(organization, made.deployment.id).await.unwrap();
    assert_eq!(deployment, made.deployment);
    assert_eq!(deployment.definition, definition);
    assert_eq!(
        (deployment.version, deployment.status),
        (1, DeploymentStatus::Pending)
    );
    let regional = store
        .regional_deployment(organization, made.regional[0].id)
        .await
        .unwrap();
    assert_eq!(regional, made.regional[0]);
    assert_eq!(regional.status, RegionalDeploymentStatus::Pending);
    assert_eq!(
        store
            .project_service_counts(organization)
            .await
            .unwrap()
            .get(&project),
        Some(&1)
    );

    let error = store.create_service(new_service(&app, "web")).await.unwrap_err();
    assert!(
        matches!(
            error,
            Error::AlreadyExists {
                object: "service",
                field: "name",
                ..
            }
        ),
        "{error}"
    );
    let count = store
        .list_deployments(organization, &filter::Deployments::default(), Page::default())
        .await;
    assert_eq!(count.unwrap().count, 1);

    store
        .set_app_desired(organization, app.id, Desired::Delete)
        .await
        .unwrap();
    let error = store.create_service(new_service(&app, "late")).await.unwrap_err();
    assert!(matches!(error, Error::Conflict { object: "app", .. }), "{error}");
}

pub(super) async fn deployments_count_up_even_when_the_clock_jumps_back(fixture: &Fixture) {
    let store = &fixture.store;
    let (organization, _) = fixture.organization().await;
    let made = fixture.service(organization).await;
    let id = made.service.id;
    fixture.clock.go_back(Duration::from_secs(3600));
    let edit = ServiceEdit {
        delete_after_sleep_seconds: Some(60),
        ..ServiceEdit::default()
    };
    let second = store
        .add_deployment(organization, id, &edit, new_deployment(), &[])
        .await
        .unwrap();
    assert_eq!(second.deployment.version, 2);
    assert_eq!(second.deployment.parent_id, Some(made.deployment.id));
    assert!(second.deployment.created_at > made.deployment.created_at);
    assert_eq!(second.service.latest_deployment_id, Some(second.deployment.id));
    assert_eq!(second.service.delete_after_sleep_seconds, 60);
    assert_eq!(second.service.version, made.service.version + 1);
    let first = store.deployment(organization, made.deployment.id).await.unwrap();
    assert_eq!(first.child_id, Some(second.deployment.id));
    for filter in [
        filter::Deployments {
            service_id: Some(id),
            ..filter::Deployments::default()
        },
        filter::Deployments::default(),
    ] {
        let listed = store
            .list_deployments(organization, &filter, Page { limit: 1, offset: 0 })
            .await
            .unwrap();
        assert_eq!((listed.count, listed.items[0].id), (2, second.deployment.id));
    }
}

pub(super) async fn writers_that_race_get_versions_of_their_own(fixture: &Fixture) {
    let (organization, _) = fixture.organization().await;
    let id = fixture.service(organization).await.service.id;
    let mut writers = tokio::task::JoinSet::new();
    for _ in 0..WRITERS {
        let store = fixture.store.clone();
        writers.spawn(async move {
            store
                .add_deployment(organization, id, &ServiceEdit::default(), new_deployment(), &[])
                .await
                .unwrap()
                .deployment
                .version
        });
    }
    let versions: BTreeSet<i64> = writers.join_all().await.into_iter().collect();
    let expected: BTreeSet<i64> = (2..).take(WRITERS).collect();
    assert_eq!(versions, expected);
    let service = fixture.store.service(organization, id).await.unwrap();
    let latest = fixture
        .store
        .deployment(organization, service.latest_deployment_id.unwrap())
        .await
        .unwrap();
    assert_eq!(Some(&latest.version), expected.last());
}

pub(super) async fn one_of_many_gets_the_name(fixture: &Fixture) {
    let (organization, _) = fixture.organization().await;
    let mut writers = tokio::task::JoinSet::new();
    for _ in 0..WRITERS {
        let store = fixture.store.clone();
        writers.spawn(async move { store.create_app(new_app(organization, "the-one")).await });
    }
    let mut made = 0;
    for outcome in writers.join_all().await {
        match outcome {
            Ok(_) => made += 1,
            Err(Error::AlreadyExists { object: "app", .. }) => {}
            Err(other) => panic!("{other:?}"),
        }
    }
    assert_eq!(made, 1);
}

pub(super) async fn intents_show_at_once_and_refuse_what_is_too_late(fixture: &Fixture) {
    let store = &fixture.store;
    let (organization, _) = fixture.organization().await;
    let made = fixture.service(organization).await;
    let id = made.service.id;

    let scaling = vec![ManualScaling {
        keeps_awake: false,
        scopes: vec!["region:fra".to_owned()],
        instances: 3,
    }];
    let scaled = store
        .set_manual_scaling(organization, id, scaling.clone())
        .await
        .unwrap();
    assert_eq!(scaled.manual_scaling, scaling);
    let ended = store.set_manual_scaling(organization, id, vec![]).await.unwrap();
    assert!(ended.manual_scaling.is_empty());

    let cancelled = store
        .request_cancel(organization, made.deployment.id)
        .await
        .unwrap();
    assert!(cancelled.cancel_requested);
    let set = DeploymentSet {
        status: Some(DeploymentStatus::Healthy),
        ..DeploymentSet::default()
    };
    let update = Update::Deployment {
        id: made.deployment.id,
        expected: DeploymentStatus::Pending,
        set: Box::new(set),
    };
    store.apply(id, vec![update]).await.unwrap();
    let error = store
        .request_cancel(organization, made.deployment.id)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("it is HEALTHY"), "{error}");

    let error = store
        .resume_service(organization, id, new_deployment())
        .await
        .unwrap_err();
    assert!(error.to_string().contains("it is STARTING"), "{error}");
    let paused = store
        .set_service_desired(organization, id, Desired::Pause)
        .await
        .unwrap();
    assert_eq!(
        (paused.desired, paused.status),
        (Desired::Pause, ServiceStatus::Pausing)
    );
    let again = store
        .set_service_desired(organization, id, Desired::Pause)
        .await
        .unwrap();
    assert_eq!(again.version, paused.version);
    let set = ServiceSet {
        status: Some(ServiceStatus::Paused),
        paused_at: Some(Some(fixture.clock.now())),
        ..ServiceSet::default()
    };
    let update = Update::Service {
        expected: ServiceStatus::Pausing,
        set: Box::new(set),
    };
    store.apply(id, vec![update]).await.unwrap();
    let resumed = store
        .resume_service(organization, id, new_deployment())
        .await
        .unwrap();
    assert_eq!(
        (resumed.service.desired, resumed.service.status),
        (Desired::Run, ServiceStatus::Resuming)
    );
    assert_eq!(resumed.deployment.version, 2);
    assert_eq!(resumed.service.latest_deployment_id, Some(resumed.deployment.id));

    let deleting = store
        .set_service_desired(organization, id, Desired::Delete)
        .await
        .unwrap();
    assert_eq!(deleting.status, ServiceStatus::Deleting);
    assert!(matches!(
        store.set_service_desired(organization, id, Desired::Pause).await,
        Err(Error::Conflict { .. })
    ));
    assert!(matches!(
        store
            .add_deployment(organization, id, &ServiceEdit::default(), new_deployment(), &[])
            .await,
        Err(Error::Conflict { .. })
    ));
}

pub(super) async fn a_service_expires_unless_its_owner_wants_something_else(fixture: &Fixture) {
    let store = &fixture.store;
    let (organization, _) = fixture.organization().await;
    let made = fixture.service(organization).await;
    let (id, seen) = (made.service.id, made.service.version);
    // Deployed anew since the controller looked.
    store
        .add_deployment(organization, id, &ServiceEdit::default(), new_deployment(), &[])
        .await
        .unwrap();
    let refused = store.expire_service(id, seen).await.unwrap_err();
    assert!(matches!(refused, Error::Conflict { .. }), "{refused}");
    let service = store.service(organization, id).await.unwrap();
    assert_eq!(service.desired, Desired::Run);
    store.expire_service(id, service.version).await.unwrap();
    let expired = store.service(organization, id).await.unwrap();
    assert_eq!(
        (expired.desired, expired.status),
        (Desired::Delete, ServiceStatus::Deleting)
    );
    assert!(expired.version > service.version);
}

pub(super) async fn lists_filter(fixture: &Fixture) {
    let store = &fixture.store;
    let (organization, _) = fixture.organization().await;
    let web = fixture.service(organization).await;
    let app = fixture.app(organization).await;
    let mut new = new_service(&app, "worker");
    new.kind = ServiceType::Worker;
    new.deployment.regional[0].region = "par".to_owned();
    let worker = store.create_service(new).await.unwrap();
    let page = Page::default();
    let services = async |filter: filter::Services| -> Vec<ServiceId> {
        let listed = store.list_services(organization, &filter, page).await.unwrap();
        assert_eq!(listed.count, listed.items.len() as u64);
        listed.items.into_iter().map(|service| service.id).collect()
    };
    let none = filter::Services::default();
    assert_eq!(services(none.clone()).await.len(), 2);
    let by_app = filter::Services {
        app_id: Some(app.id),
        ..none.clone()
    };
    assert_eq!(services(by_app).await, [worker.service.id]);
    let by_kind = filter::Services {
        kinds: vec![ServiceType::Web, ServiceType::Sandbox],
        ..none.clone()
    };
    assert_eq!(services(by_kind).await, [web.service.id]);
    let by_region = filter::Services {
        regions: vec!["par".to_owned(), "was".to_owned()],
        ..none.clone()
    };
    assert_eq!(services(by_region).await, [worker.service.id]);
    let by_status = filter::Services {
        statuses: vec![ServiceStatus::Healthy],
        name: Some("web".to_owned()),
        ..none
    };
    assert!(services(by_status).await.is_empty());

    let first = fixture.instance(&web).await;
    fixture.clock.advance(Duration::from_secs(10));
    let second = fixture.instance(&web).await;
    fixture.end(&first).await;
    let instances = async |filter: filter::Instances| -> Vec<_> {
        let listed = store.list_instances(organization, &filter, page).await.unwrap();
        listed.items.into_iter().map(|instance| instance.id).collect()
    };
    let all = filter::Instances {
        service_id: Some(web.service.id),
        deployment_id: Some(web.deployment.id),
        regional_deployment_id: Some(web.regional[0].id),
        replica_index: Some(0),
        ..filter::Instances::default()
    };
    assert_eq!(instances(all.clone()).await, [second.id, first.id]);
    let ascending = filter::Instances {
        order: Order::Ascending,
        ..all.clone()
    };
    assert_eq!(instances(ascending).await, [first.id, second.id]);
    let stopped = filter::Instances {
        statuses: vec![InstanceStatus::Stopped],
        ..all.clone()
    };
    assert_eq!(instances(stopped).await, [first.id]);
    let late = filter::Instances {
        starting_time: Some(fixture.clock.now().plus(Duration::from_secs(1))),
        ..all.clone()
    };
    assert_eq!(instances(late).await, [second.id]);
    let early = filter::Instances {
        ending_time: Some(first.created_at),
        ..all
    };
    assert_eq!(instances(early).await, [first.id]);
    let regional = filter::RegionalDeployments {
        deployment_id: Some(worker.deployment.id),
        ids: vec![],
    };
    let regional = store
        .list_regional_deployments(organization, &regional, page)
        .await
        .unwrap();
    assert_eq!(regional.items, worker.regional);
}

pub(super) async fn a_composition_is_whole(fixture: &Fixture) {
    let store = &fixture.store;
    let (organization, _) = fixture.organization().await;
    let app = new_app(organization, "composed");
    let mut record = fixture.app(organization).await;
    record.id = app.id;
    let domain = new_domain(organization, Some(app.id), "composed.example");
    let services = vec![
        ComposeService::New(Box::new(new_service(&record, "web"))),
        ComposeService::New(Box::new(new_service(&record, "worker"))),
    ];
    let composed = store
        .compose(ComposeApp::New(app, Some(domain)), services)
        .await
        .unwrap();
    assert_eq!(composed.services.len(), 2);
    assert!(composed.domain.is_some());

    let again = vec![
        ComposeService::Existing(
            composed.services[0].service.id,
            ServiceEdit::default(),
            Box::new(new_deployment()),
        ),
        ComposeService::New(Box::new(new_service(&record, "worker"))),
    ];
    let edit = AppEdit {
        delete_when_empty: Some(true),
        ..AppEdit::default()
    };
    let error = store
        .compose(ComposeApp::Existing(organization, record.id, edit.clone()), again)
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::AlreadyExists {
                object: "service",
                ..
            }
        ),
        "{error}"
    );
    let web = store
        .service(organization, composed.services[0].service.id)
        .await
        .unwrap();
    assert_eq!(
        web.latest_deployment_id,
        composed.services[0].service.latest_deployment_id
    );
    assert_eq!(store.app(organization, record.id).await.unwrap(), composed.app);

    let edited = ComposeApp::Existing(organization, record.id, edit);
    let edited = store.compose(edited, Vec::new()).await.unwrap().app;
    assert!(edited.delete_when_empty && edited.version > composed.app.version);
    let untouched = ComposeApp::Existing(organization, record.id, AppEdit::default());
    let untouched = store.compose(untouched, Vec::new()).await.unwrap().app;
    assert_eq!(untouched.version, edited.version);
}

pub(super) async fn the_newest_definition_decides_what_is_claimed(fixture: &Fixture) {
    let store = &fixture.store;
    let (organization, _) = fixture.organization().await;
    let (stranger, _) = fixture.organization().await;
    let app = fixture.app(organization).await;
    let claiming = |path: &str| {
        let mut new = new_deployment();
        new.definition = json!({"type": "WEB", "env": [{"key": "A", "value": "\u{0} \\u0000"}],
            "ports": [{"port": 80, "protocol": "http"}], "routes": [{"port": 80, "path": path}]});
        new
    };
    let mut web = new_service(&app, "web");
    web.deployment = claiming("/old");
    let web = store.create_service(web).await.unwrap().service.id;
    store
        .add_deployment(organization, web, &ServiceEdit::default(), claiming("/new"), &[])
        .await
        .unwrap();
    // Oldest first: made at one moment, chance would order them.
    fixture.clock.advance(Duration::from_secs(1));
    let mut sandbox = new_service(&app, "box");
    sandbox.kind = ServiceType::Sandbox;
    store.create_service(sandbox).await.unwrap();
    let gone = store.create_service(new_service(&app, "gone")).await.unwrap();
    store
        .set_service_desired(organization, gone.service.id, Desired::Delete)
        .await
        .unwrap();
    let claimed = |of, without| async move { store.claimed_routes(of, app.id, without).await.unwrap() };
    let all = claimed(organization, None).await;
    assert_eq!(all.len(), 2, "{all:?}");
    assert_eq!((all[0].name.as_str(), all[0].kind), ("web", ServiceType::Web));
    assert_eq!(
        all[0].definition,
        json!({"type": "WEB", "ports": [{"port": 80, "protocol": "http"}], "routes": [{"port": 80, "path": "/new"}]})
    );
    assert_eq!(all[1].definition["routes"], json!(null));
    assert_eq!(claimed(organization, Some(ServiceType::Sandbox)).await, all[..1]);
    assert!(claimed(stranger, None).await.is_empty());
}

pub(super) async fn a_paused_app_resumes_with_its_services(fixture: &Fixture) {
    let store = &fixture.store;
    let (organization, _) = fixture.organization().await;
    let made = fixture.service(organization).await;
    let (app, id) = (made.service.app_id, made.service.id);
    let paused = store
        .set_app_desired(organization, app, Desired::Pause)
        .await
        .unwrap();
    assert_eq!(
        (paused.desired, paused.status),
        (Desired::Pause, AppStatus::Pausing)
    );
    assert_eq!(
        store.service(organization, id).await.unwrap().status,
        ServiceStatus::Pausing
    );
    let set = ServiceSet {
        status: Some(ServiceStatus::Paused),
        ..ServiceSet::default()
    };
    let update = Update::Service {
        expected: ServiceStatus::Pausing,
        set: Box::new(set),
    };
    store.apply(id, vec![update]).await.unwrap();
    let resumed = store
        .resume_app(organization, app, vec![(id, new_deployment())])
        .await
        .unwrap();
    assert_eq!(
        (resumed.desired, resumed.status),
        (Desired::Run, AppStatus::Resuming)
    );
    let service = store.service(organization, id).await.unwrap();
    assert_eq!(
        (service.desired, service.status),
        (Desired::Run, ServiceStatus::Resuming)
    );
    let deleted = store
        .set_app_desired(organization, app, Desired::Delete)
        .await
        .unwrap();
    assert_eq!(deleted.status, AppStatus::Deleting);
    assert_eq!(
        store.service(organization, id).await.unwrap().desired,
        Desired::Delete
    );
    assert!(matches!(
        store.set_app_desired(organization, app, Desired::Pause).await,
        Err(Error::Conflict { .. })
    ));
}

pub(super) async fn a_paused_app_runs_again_with_the_first_service_that_does(fixture: &Fixture) {
    let store = &fixture.store;
    let (organization, _) = fixture.organization().await;
    let made = fixture.service(organization).await;
    let (app, id) = (made.service.app_id, made.service.id);
    let pause = async || {
        store
            .set_app_desired(organization, app, Desired::Pause)
            .await
            .unwrap();
        let service = store.service(organization, id).await.unwrap();
        let set = ServiceSet {
            status: Some(ServiceStatus::Paused),
            ..ServiceSet::default()
        };
        let update = Update::Service {
            expected: service.status,
            set: Box::new(set),
        };
        store.apply(id, vec![update]).await.unwrap();
    };
    pause().await;
    store
        .resume_service(organization, id, new_deployment())
        .await
        .unwrap();
    let resumed = store.app(organization, app).await.unwrap();
    assert_eq!(
        (resumed.desired, resumed.status),
        (Desired::Run, AppStatus::Resuming)
    );
    pause().await;
    let paused = store.app(organization, app).await.unwrap();
    assert_eq!(paused.desired, Desired::Pause);
    store
        .create_service(new_service(&paused, "second"))
        .await
        .unwrap();
    let running = store.app(organization, app).await.unwrap();
    assert_eq!(running.desired, Desired::Run);
    assert_eq!(
        store.service(organization, id).await.unwrap().desired,
        Desired::Pause,
        "the other one stays as it is"
    );
}

pub(super) async fn ports_and_services_are_taken_in_one_order(fixture: &Fixture) {
    let store = &fixture.store;
    let (organization, _) = fixture.organization().await;
    let app = fixture.app(organization).await;
    let ported = || {
        let mut deployment = new_deployment();
        deployment.definition["proxy_ports"] = json!([{"port": 1}]);
        deployment
    };
    let mut services = Vec::new();
    for name in ["one", "two"] {
        let mut new = new_service(&app, name);
        new.deployment = ported();
        services.push(store.create_service(new).await.unwrap().service.id);
    }
    // Two databases that wait for each other are told so, and one of them gives up: nobody may have to.
    for _ in 0..10 {
        let composed = async || {
            let of = |id| ComposeService::Existing(id, ServiceEdit::default(), Box::new(ported()));
            let services = services.iter().map(|id| of(*id)).collect();
            store
                .compose(
                    ComposeApp::Existing(organization, app.id, AppEdit::default()),
                    services,
                )
                .await
                .unwrap();
        };
        let put = async |id| {
            store
                .add_deployment(organization, id, &ServiceEdit::default(), ported(), &[])
                .await
                .unwrap();
        };
        tokio::join!(composed(), put(services[1]), put(services[0]));
    }
}
