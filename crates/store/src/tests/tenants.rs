//! Tenancy: names, pages, tokens, and that nobody sees what is not theirs.

use std::time::Duration;

use serde_json::json;
use tram_types::{
    Clock as _, CredentialId, OrganizationId, ProjectId, SecretId,
    status::{CredentialType, SecretType},
};

use super::fixture::{Fixture, new_app, new_deployment, new_domain, new_service};
use crate::{
    Error, Page, filter,
    intent::{
        CredentialEdit, DomainEdit, NewCredential, NewSecret, OrganizationEdit, ProjectEdit, ServiceEdit,
    },
    record::{Desired, Role},
    token_sha256,
};

pub(super) async fn names_are_unique_and_pages_are_stable(fixture: &Fixture) {
    let store = &fixture.store;
    let (organization, default) = fixture.organization().await;
    let (other, _) = fixture.organization().await;
    // All at the same instant: the order must still be the same on every page.
    for index in 0..7 {
        store
            .create_app(new_app(organization, &format!("app-{index}")))
            .await
            .unwrap();
    }
    let error = store
        .create_app(new_app(organization, "app-3"))
        .await
        .unwrap_err();
    assert!(
        matches!(&error, Error::AlreadyExists { object: "app", field: "name", value } if value == "app-3"),
        "{error}"
    );
    store.create_app(new_app(other, "app-3")).await.unwrap();

    let mut seen = Vec::new();
    for offset in [0, 3, 6, 9] {
        let page = store
            .list_apps(organization, &filter::Apps::default(), Page { limit: 3, offset })
            .await
            .unwrap();
        assert_eq!(page.count, 7);
        seen.extend(page.items.into_iter().map(|app| app.id));
    }
    assert_eq!(seen.len(), 7);
    let all = store
        .list_apps(organization, &filter::Apps::default(), Page::default())
        .await
        .unwrap();
    assert_eq!(seen, all.items.iter().map(|app| app.id).collect::<Vec<_>>());

    fixture.clock.advance(Duration::from_secs(1));
    let newest = store.create_app(new_app(organization, "newest")).await.unwrap();
    let first = store
        .list_apps(
            organization,
            &filter::Apps::default(),
            Page { limit: 1, offset: 0 },
        )
        .await
        .unwrap();
    assert_eq!(first.items, std::slice::from_ref(&newest));
    let named = filter::Apps {
        name: Some("newest".to_owned()),
        ids: vec![newest.id],
    };
    assert_eq!(
        store
            .list_apps(organization, &named, Page::default())
            .await
            .unwrap()
            .count,
        1
    );
    assert_eq!(
        store
            .list_apps(other, &named, Page::default())
            .await
            .unwrap()
            .count,
        0
    );
    assert_eq!(
        store.app_by_name(organization, "newest").await.unwrap(),
        Some(newest)
    );

    let project = store
        .create_project(organization, ProjectId::random(), "lab", "")
        .await
        .unwrap();
    assert!(matches!(
        store
            .create_project(organization, ProjectId::random(), "lab", "")
            .await,
        Err(Error::AlreadyExists {
            object: "project",
            ..
        })
    ));
    let edit = ProjectEdit {
        name: Some("default".to_owned()),
        ..ProjectEdit::default()
    };
    assert!(matches!(
        store.update_project(organization, project.id, &edit).await,
        Err(Error::AlreadyExists {
            object: "project",
            ..
        })
    ));
    assert!(matches!(
        store.delete_project(organization, default).await,
        Err(Error::Conflict { .. })
    ));
    store.delete_project(organization, project.id).await.unwrap();
    assert!(matches!(
        store.project(organization, project.id).await,
        Err(Error::NotFound { .. })
    ));
}

pub(super) async fn a_token_is_found_until_it_expires_or_is_revoked(fixture: &Fixture) {
    let store = &fixture.store;
    let (organization, _) = fixture.organization().await;
    let token = "t".repeat(64);
    let new = NewCredential {
        id: CredentialId::random(),
        organization_id: organization,
        user_id: String::new(),
        kind: CredentialType::Organization,
        role: Role::ReadOnly,
        name: "ci".to_owned(),
        description: String::new(),
        token_sha256: token_sha256(&token),
        expires_at: Some(fixture.clock.now().plus(Duration::from_secs(60))),
    };
    let made = store.create_credential(new.clone()).await.unwrap();
    let twice = NewCredential {
        id: CredentialId::random(),
        ..new.clone()
    };
    assert!(matches!(
        store.create_credential(twice).await,
        Err(Error::AlreadyExists {
            object: "credential",
            ..
        })
    ));
    assert_eq!(
        store.credential_by_token(&token).await.unwrap(),
        Some(made.clone())
    );
    assert_eq!(store.credential_by_token(&"u".repeat(64)).await.unwrap(), None);

    store
        .touch_credential(made.id, fixture.clock.now())
        .await
        .unwrap();
    let touched = store.credential(organization, made.id).await.unwrap();
    assert_eq!(touched.last_used_at, Some(fixture.clock.now()));
    let edit = CredentialEdit {
        name: Some("deploys".to_owned()),
        ..CredentialEdit::default()
    };
    assert_eq!(
        store
            .update_credential(organization, made.id, &edit)
            .await
            .unwrap()
            .name,
        "deploys"
    );
    let of_kind = filter::Credentials {
        kind: Some(CredentialType::User),
        ..filter::Credentials::default()
    };
    assert_eq!(
        store
            .list_credentials(organization, &of_kind, Page::default())
            .await
            .unwrap()
            .count,
        0
    );

    fixture.clock.advance(Duration::from_secs(60));
    assert_eq!(store.credential_by_token(&token).await.unwrap(), None);
    store.delete_credential(organization, made.id).await.unwrap();
    assert!(matches!(
        store.delete_credential(organization, made.id).await,
        Err(Error::NotFound { .. })
    ));
}

pub(super) async fn nothing_of_another_organization_is_found(fixture: &Fixture) {
    let store = &fixture.store;
    let (owner, project) = fixture.organization().await;
    let (stranger, _) = fixture.organization().await;
    let made = fixture.service(owner).await;
    let instance = fixture.instance(&made).await;
    let (app, service, deployment) = (made.service.app_id, made.service.id, made.deployment.id);
    let domain = store
        .create_domain(new_domain(owner, Some(app), "a.example"))
        .await
        .unwrap();
    let secret = NewSecret {
        id: SecretId::random(),
        organization_id: owner,
        project_id: None,
        name: "key".to_owned(),
        kind: SecretType::Simple,
        hosts: Vec::new(),
    };
    let secret = store.create_secret(secret, b"v").await.unwrap();

    macro_rules! hidden {
        ($($call:expr),+ $(,)?) => {$(
            let outcome = $call.await;
            assert!(matches!(outcome, Err(Error::NotFound { .. })), "{}: {outcome:?}", stringify!($call));
        )+};
    }
    hidden!(
        store.project(stranger, project),
        store.update_project(stranger, project, &ProjectEdit::default()),
        store.delete_project(stranger, project),
        store.app(stranger, app),
        store.update_app(stranger, app, &crate::intent::AppEdit::default()),
        store.set_app_desired(stranger, app, Desired::Delete),
        store.service(stranger, service),
        store.update_service(stranger, service, &ServiceEdit::default()),
        store.set_service_desired(stranger, service, Desired::Delete),
        store.resume_service(stranger, service, new_deployment()),
        store.set_manual_scaling(stranger, service, vec![]),
        store.add_deployment(stranger, service, &ServiceEdit::default(), new_deployment(), &[]),
        store.request_cancel(stranger, deployment),
        store.deployment(stranger, deployment),
        store.regional_deployment(stranger, made.regional[0].id),
        store.instance(stranger, instance.id),
        store.domain(stranger, domain.id),
        store.update_domain(stranger, domain.id, &DomainEdit::default()),
        store.delete_domain(stranger, domain.id),
        store.secret(stranger, secret.id),
        store.update_secret(
            stranger,
            secret.id,
            &crate::intent::SecretEdit::default(),
            Some(b"w"),
            None
        ),
        store.delete_secret(stranger, secret.id),
        store.reveal_secret(stranger, secret.id),
    );
    // Nor can anything of theirs lead to it.
    let mine = store
        .create_domain(new_domain(stranger, None, "stranger.example"))
        .await
        .unwrap();
    let to_app = DomainEdit {
        app_id: Some(Some(app)),
        ..DomainEdit::default()
    };
    let to_project = DomainEdit {
        project_id: Some(Some(project)),
        ..DomainEdit::default()
    };
    let default_project = OrganizationEdit {
        default_project_id: Some(Some(project)),
        ..OrganizationEdit::default()
    };
    let own_app = fixture.app(stranger).await;
    let mut in_project = new_service(&own_app, "web");
    in_project.project_id = Some(project);
    let mut in_app = new_service(&own_app, "web");
    in_app.app_id = app;
    let secret_in_project = NewSecret {
        id: SecretId::random(),
        organization_id: stranger,
        project_id: Some(project),
        name: "key".to_owned(),
        kind: SecretType::Simple,
        hosts: Vec::new(),
    };
    hidden!(
        store.create_domain(new_domain(stranger, Some(app), "b.example")),
        store.update_domain(stranger, mine.id, &to_app),
        store.update_domain(stranger, mine.id, &to_project),
        store.update_organization(stranger, &default_project),
        store.create_service(in_project),
        store.create_service(in_app),
        store.create_secret(secret_in_project, b"v"),
    );
    store.delete_domain(stranger, mine.id).await.unwrap();
    let page = Page::default();
    assert_eq!(
        store
            .list_apps(stranger, &filter::Apps::default(), page)
            .await
            .unwrap()
            .count,
        1
    );
    assert_eq!(
        store
            .list_services(stranger, &filter::Services::default(), page)
            .await
            .unwrap()
            .count,
        0
    );
    assert_eq!(
        store
            .list_deployments(stranger, &filter::Deployments::default(), page)
            .await
            .unwrap()
            .count,
        0
    );
    assert_eq!(
        store
            .list_instances(stranger, &filter::Instances::default(), page)
            .await
            .unwrap()
            .count,
        0
    );
    assert_eq!(
        store
            .list_domains(stranger, &filter::Domains::default(), page)
            .await
            .unwrap()
            .count,
        0
    );
    assert_eq!(
        store
            .list_secrets(stranger, &filter::Secrets::default(), page)
            .await
            .unwrap()
            .count,
        0
    );
    let revealed = store
        .reveal_secrets_by_name(stranger, None, &["key".to_owned()])
        .await
        .unwrap();
    assert!(revealed.is_empty());
    assert!(store.proxy_ports(stranger, &[service]).await.unwrap().is_empty());
    assert_eq!(store.reveal_secret(owner, secret.id).await.unwrap().value, b"v");
}

pub(super) async fn settings_are_kept(fixture: &Fixture) {
    let store = &fixture.store;
    let id = store.installation_id().await.unwrap();
    assert!(!id.is_nil());
    assert_eq!(store.installation_id().await.unwrap(), id);
    assert_eq!(store.setting("edge").await.unwrap(), None);
    let content = json!({"a": 1}).to_string();
    store.set_setting("edge", "old").await.unwrap();
    store.set_setting("edge", &content).await.unwrap();
    assert_eq!(store.setting("edge").await.unwrap(), Some(content));
    store.ping().await.unwrap();
    let id = OrganizationId::random();
    assert!(matches!(
        store.organization(id).await,
        Err(Error::NotFound { .. })
    ));
}
