//! History and what becomes of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde_json::json;
use tram_types::{
    Clock as _, CredentialId,
    status::{AppStatus, CredentialType, DeploymentStatus, InstanceStatus, ServiceStatus},
};

use super::fixture::{Fixture, new_deployment};
use crate::{
    Order, Page, Retention, filter,
    intent::{DeploymentSet, NewActivity, NewCredential, NewEvent, ServiceEdit, Update},
    record::{ObjectKind, Role},
};

pub(super) async fn counts_are_of_one_organization(fixture: &Fixture) {
    let store = &fixture.store;
    let (organization, _) = fixture.organization().await;
    let (other, _) = fixture.organization().await;
    let made = fixture.service(organization).await;
    fixture.instance(&made).await;
    let over = fixture.instance(&made).await;
    fixture.end(&over).await;
    fixture.service(other).await;
    let counts = store.counts(organization).await.unwrap();
    assert_eq!(counts.apps, BTreeMap::from([(AppStatus::Healthy, 1)]));
    assert_eq!(counts.services, BTreeMap::from([(ServiceStatus::Starting, 1)]));
    assert_eq!(
        counts.instances,
        BTreeMap::from([(InstanceStatus::Allocating, 1)])
    );
    assert_eq!(counts.instances_by_type, BTreeMap::from([("nano".to_owned(), 1)]));
    assert_eq!(
        (
            counts.projects,
            counts.domains,
            counts.secrets,
            counts.proxy_ports
        ),
        (1, 0, 0, 0)
    );
}

pub(super) async fn events_keep_their_order(fixture: &Fixture) {
    let store = &fixture.store;
    let (organization, _) = fixture.organization().await;
    let object = uuid::Uuid::new_v4();
    let event = |kind: &str| NewEvent {
        organization_id: organization,
        object_kind: ObjectKind::Instance,
        object_id: object,
        kind: kind.to_owned(),
        message: String::new(),
        metadata: json!({"kind": kind}),
    };
    store
        .add_events(vec![event("A"), event("B"), event("C")])
        .await
        .unwrap();
    let kinds = async |filter: filter::Events, page: Page| -> String {
        let listed = store.list_events(organization, &filter, page).await.unwrap();
        listed.items.iter().map(|event| event.kind.as_str()).collect()
    };
    let all = filter::Events {
        object_ids: vec![object],
        ..filter::Events::of_kind(ObjectKind::Instance)
    };
    assert_eq!(kinds(all.clone(), Page::default()).await, "CBA");
    assert_eq!(kinds(all.clone(), Page { limit: 2, offset: 1 }).await, "BA");
    let ascending = filter::Events {
        order: Order::Ascending,
        kinds: vec!["A".to_owned(), "C".to_owned()],
        ..all
    };
    assert_eq!(kinds(ascending, Page::default()).await, "AC");
    assert_eq!(
        kinds(filter::Events::of_kind(ObjectKind::App), Page::default()).await,
        ""
    );

    for verb in ["created", "deleted"] {
        let new = NewActivity {
            organization_id: organization,
            actor: json!({"name": "somebody"}),
            verb: verb.to_owned(),
            object: json!({"name": "app"}),
            metadata: json!({}),
        };
        store.add_activity(new).await.unwrap();
        fixture.clock.advance(Duration::from_secs(1));
    }
    let feed = store
        .list_activities(organization, &filter::Activities::default(), Page::default())
        .await
        .unwrap();
    let verbs: Vec<&str> = feed.items.iter().map(|one| one.verb.as_str()).collect();
    assert_eq!(verbs, ["deleted", "created"]);
    for (kind, user) in [
        ("secret", "ana"),
        ("app", "a\"b%"),
        ("\"type\":\"secret\"", "ana"),
    ] {
        let new = NewActivity {
            organization_id: organization,
            actor: json!({"id": user, "type": "user"}),
            verb: "updated".to_owned(),
            object: json!({"name": kind, "type": kind}),
            metadata: json!({}),
        };
        store.add_activity(new).await.unwrap();
    }
    let count = async |kinds: &[&str], actor: Option<&str>| {
        let filter = filter::Activities {
            object_types: kinds.iter().map(|kind| (*kind).to_owned()).collect(),
            actor_id: actor.map(str::to_owned),
        };
        let page = Page { limit: 1, offset: 0 };
        store
            .list_activities(organization, &filter, page)
            .await
            .unwrap()
            .count
    };
    assert_eq!(count(&["secret"], None).await, 1);
    assert_eq!(count(&["secret", "app"], None).await, 2);
    assert_eq!(count(&["secret"], Some("a\"b%")).await, 0);
    assert_eq!(count(&[], Some("a\"b%")).await, 1);
    assert_eq!(count(&[], Some("a%")).await, 0);
}

pub(super) async fn old_things_are_pruned_and_serving_ones_are_not(fixture: &Fixture) {
    let store = &fixture.store;
    let (organization, _) = fixture.organization().await;
    let first = fixture.service(organization).await;
    let id = first.service.id;
    let ended = fixture.instance(&first).await;
    fixture.end(&ended).await;
    let live = fixture.instance(&first).await;
    for _ in 0..3 {
        let made = store
            .add_deployment(organization, id, &ServiceEdit::default(), new_deployment(), &[])
            .await
            .unwrap();
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
    }
    let event = NewEvent {
        organization_id: organization,
        object_kind: ObjectKind::Service,
        object_id: id.uuid(),
        kind: "OLD".to_owned(),
        message: String::new(),
        metadata: json!(null),
    };
    store.add_events(vec![event]).await.unwrap();
    let mut tokens = Vec::new();
    for days in [Some(1), Some(30), Some(31), None] {
        let id = CredentialId::random();
        tokens.push(id);
        let new = NewCredential {
            id,
            organization_id: organization,
            user_id: String::new(),
            kind: CredentialType::Organization,
            role: Role::Owner,
            name: "session".to_owned(),
            description: String::new(),
            token_sha256: crate::token_sha256(&id.to_string()),
            expires_at: days.map(|days| fixture.clock.now().plus(Duration::from_secs(days * 24 * 3600))),
        };
        store.create_credential(new).await.unwrap();
    }
    let limits = Retention {
        deployments_per_service: 2,
        ..Retention::default()
    };
    let nobody = BTreeSet::new();
    assert_eq!(store.prune(&limits).await.unwrap(), crate::Pruned::default());
    assert!(
        store
            .prunable_instances(&limits, &nobody)
            .await
            .unwrap()
            .is_empty()
    );
    assert!(store.prunable_deployments(&limits).await.unwrap().is_empty());
    fixture.clock.advance(Duration::from_secs(31 * 24 * 3600));
    let pruned = store.prune(&limits).await.unwrap();
    assert_eq!(pruned.events, 1);
    // One that expired more than a day ago is gone; those that did since then, or never do, are not.
    assert_eq!(pruned.credentials, 1);
    for (index, id) in tokens.into_iter().enumerate() {
        assert_eq!(
            store.credential(organization, id).await.is_ok(),
            index > 0,
            "{index}"
        );
    }
    assert!(!pruned.is_partial());
    assert_eq!(store.prune(&limits).await.unwrap(), crate::Pruned::default());
    let away = BTreeSet::from(["fra".to_owned()]);
    assert!(store.prunable_instances(&limits, &away).await.unwrap().is_empty());
    let old = store.prunable_instances(&limits, &nobody).await.unwrap();
    let expected = crate::PrunableInstance {
        id: ended.id,
        region: "fra".to_owned(),
    };
    assert_eq!(old, [expected]);
    assert_eq!(store.remove_instances(&[ended.id, live.id]).await.unwrap(), 1);
    let deployments = store.prunable_deployments(&limits).await.unwrap();
    assert_eq!(deployments.len(), 1);
    assert!(
        store
            .instances_of_deployments(&deployments, &nobody)
            .await
            .unwrap()
            .is_empty()
    );
    // One that has instances stays, whoever asks.
    let asked = [deployments[0], first.deployment.id];
    assert_eq!(store.remove_deployments(&asked).await.unwrap(), 1);
    let left = store
        .list_deployments(organization, &filter::Deployments::default(), Page::default())
        .await
        .unwrap();
    // The first never ended, the second was pruned, the third and the fourth are the newest two.
    let versions: Vec<i64> = left.items.iter().map(|one| one.version).collect();
    assert_eq!(versions, [4, 3, 1]);
    assert_eq!(store.load_service_state(id).await.unwrap().instances, [live]);

    // A crash loop is bounded by number, however young its instances are.
    for _ in 0..5 {
        let ended = fixture.instance(&first).await;
        fixture.end(&ended).await;
        fixture.clock.advance(Duration::from_secs(1));
    }
    let few = Retention {
        instances_per_service: 2,
        ..limits
    };
    assert_eq!(store.prunable_instances(&few, &nobody).await.unwrap().len(), 3);
    let own = store
        .instances_of_deployments(&[first.deployment.id], &nobody)
        .await
        .unwrap();
    assert_eq!(own.len(), 5, "those that ended");
}
