//! Ports, domains, secrets.

use std::collections::BTreeSet;

use tram_types::{
    SecretId, ServiceId, Timestamp,
    status::{DomainStatus, DomainType, SecretType},
};

use super::fixture::{Fixture, new_deployment, new_domain, new_service};
use crate::{
    CallPattern, Error, Page, Store, filter,
    intent::{DomainEdit, NewSecret, SecretEdit, ServiceEdit},
    record::Desired,
    sql::Sql,
};

pub(super) async fn public_ports_are_unique_and_run_out(fixture: &Fixture) {
    let store = &fixture.store;
    let (organization, _) = fixture.organization().await;
    let app = fixture.app(organization).await;
    let mut new = new_service(&app, "first");
    new.proxy_ports = vec![3031, 5432];
    let first = store.create_service(new).await.unwrap();
    let ports: Vec<u16> = first.proxy_ports.iter().map(|one| one.port).collect();
    assert_eq!(ports, [3031, 5432]);
    let mut new = new_service(&app, "second");
    new.proxy_ports = vec![3031];
    let second = store.create_service(new).await.unwrap();
    let public: BTreeSet<u16> = first
        .proxy_ports
        .iter()
        .chain(&second.proxy_ports)
        .map(|one| one.public_port)
        .collect();
    assert_eq!(public.len(), 3);
    assert!(
        public.iter().all(|port| (20_000..=20_003).contains(port)),
        "{public:?}"
    );

    // What the definition names counts as much as what the caller asks for.
    let mut named = new_deployment();
    named.definition = serde_json::json!({"proxy_ports": [{"port": 3031, "protocol": "tcp"}]});
    let mut third = new_service(&app, "third");
    third.deployment = named;
    let third = store.create_service(third).await.unwrap();
    assert_eq!(third.proxy_ports[0].port, 3031);
    store
        .set_service_desired(organization, third.service.id, Desired::Delete)
        .await
        .unwrap();
    store.remove_service(third.service.id).await.unwrap();

    // A service keeps what it has, whatever its next deployment asks for.
    let again = store
        .add_deployment(
            organization,
            second.service.id,
            &ServiceEdit::default(),
            new_deployment(),
            &[3031],
        )
        .await
        .unwrap();
    assert_eq!(again.proxy_ports, second.proxy_ports);
    let more = store
        .add_deployment(
            organization,
            second.service.id,
            &ServiceEdit::default(),
            new_deployment(),
            &[1],
        )
        .await
        .unwrap();
    assert_eq!(more.proxy_ports.len(), 2);
    let error = store
        .add_deployment(
            organization,
            second.service.id,
            &ServiceEdit::default(),
            new_deployment(),
            &[2],
        )
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Exhausted { .. }), "{error}");
    assert!(error.to_string().contains("20000 to 20003"), "{error}");
    let listed = store
        .proxy_ports(organization, &[first.service.id, second.service.id])
        .await
        .unwrap();
    assert_eq!(listed.len(), 4);
}

pub(super) async fn public_ports_are_unique_under_a_race(fixture: &Fixture) {
    let (organization, _) = fixture.organization().await;
    let app = fixture.app(organization).await;
    let mut writers = tokio::task::JoinSet::new();
    for index in 0..6 {
        let store = fixture.store.clone();
        let mut new = new_service(&app, &format!("service-{index}"));
        new.proxy_ports = vec![80];
        writers.spawn(async move { store.create_service(new).await });
    }
    let mut given = BTreeSet::new();
    let mut refused = 0;
    for outcome in writers.join_all().await {
        match outcome {
            Ok(made) => assert!(given.insert(made.proxy_ports[0].public_port)),
            Err(Error::Exhausted { .. }) => refused += 1,
            Err(other) => panic!("{other:?}"),
        }
    }
    assert_eq!((given.len(), refused), (4, 2));
}

pub(super) async fn domains_are_unique_everywhere(fixture: &Fixture) {
    let store = &fixture.store;
    let (organization, _) = fixture.organization().await;
    let (other, _) = fixture.organization().await;
    let app = fixture.app(organization).await;
    let mut custom = new_domain(organization, None, "www.example");
    custom.kind = DomainType::Custom;
    custom.status = DomainStatus::Pending;
    let custom = store.create_domain(custom).await.unwrap();
    let error = store
        .create_domain(new_domain(other, None, "WWW.example"))
        .await
        .unwrap_err();
    assert!(
        matches!(&error, Error::AlreadyExists { object: "domain", field: "name", value } if value == "www.example"),
        "{error}"
    );
    let edit = DomainEdit {
        app_id: Some(Some(app.id)),
        status: Some(DomainStatus::Active),
        ..DomainEdit::default()
    };
    let edited = store.update_domain(organization, custom.id, &edit).await.unwrap();
    assert_eq!(
        (edited.app_id, edited.status, edited.version),
        (Some(app.id), DomainStatus::Active, 2)
    );
    assert_eq!(
        store.domain_by_name_unscoped("Www.Example").await.unwrap(),
        Some(edited)
    );
    let filter = filter::Domains {
        kinds: vec![DomainType::Custom],
        statuses: vec![DomainStatus::Active],
        app_ids: vec![app.id],
        name: Some("www.example".to_owned()),
        ..filter::Domains::default()
    };
    assert_eq!(
        store
            .list_domains(organization, &filter, Page::default())
            .await
            .unwrap()
            .count,
        1
    );
    assert_eq!(
        store
            .list_domains_unscoped(&filter, Page::default())
            .await
            .unwrap()
            .count,
        1
    );
    store.delete_domain(organization, custom.id).await.unwrap();
    store
        .create_domain(new_domain(other, None, "www.example"))
        .await
        .unwrap();
}

fn new_secret(organization: tram_types::OrganizationId, name: &str) -> NewSecret {
    NewSecret {
        id: SecretId::random(),
        organization_id: organization,
        project_id: None,
        name: name.to_owned(),
        kind: SecretType::Simple,
        hosts: Vec::new(),
    }
}

pub(super) async fn what_a_secret_is_bound_to_comes_with_its_value(fixture: &Fixture) {
    let store = &fixture.store;
    let (organization, project) = fixture.organization().await;
    let (stranger, _) = fixture.organization().await;
    let hosts = ["api.example.org".to_owned(), "eu.example.org".to_owned()];
    let mut new = new_secret(organization, "bound");
    new.hosts = hosts.to_vec();
    let bound = store.create_secret(new, b"v").await.unwrap();
    let free = store
        .create_secret(new_secret(organization, "free"), b"f")
        .await
        .unwrap();
    let both = [bound.id, free.id];
    let listed = store.secret_hosts(organization, &both).await.unwrap();
    assert_eq!(
        listed.into_iter().collect::<Vec<_>>(),
        [(bound.id, hosts.to_vec())]
    );
    assert!(store.secret_hosts(stranger, &both).await.unwrap().is_empty());
    let names = ["bound".to_owned(), "free".to_owned()];
    let seen = store
        .reveal_secrets_by_name(organization, Some(project), &names)
        .await
        .unwrap();
    assert_eq!(
        (&seen["bound"].hosts[..], &seen["free"].hosts[..]),
        (&hosts[..], &[][..])
    );
    // A value alone leaves it bound, also under a new key.
    let edit = SecretEdit::default();
    store
        .update_secret(organization, bound.id, &edit, Some(b"w"), None)
        .await
        .unwrap();
    store.rotate_secrets().await.unwrap();
    let kept = store.reveal_secret(organization, bound.id).await.unwrap();
    assert_eq!(
        (kept.value.as_slice(), kept.hosts),
        (b"w".as_slice(), hosts.to_vec())
    );
    store
        .update_secret(organization, bound.id, &edit, None, Some(&[]))
        .await
        .unwrap();
    assert!(
        store
            .reveal_secret(organization, bound.id)
            .await
            .unwrap()
            .hosts
            .is_empty()
    );
    store
        .update_secret(organization, bound.id, &edit, None, Some(&hosts[..1]))
        .await
        .unwrap();
    store.delete_secret(organization, bound.id).await.unwrap();
    assert!(store.secret_hosts(organization, &both).await.unwrap().is_empty());
}

pub(super) async fn secrets_are_encrypted_scoped_and_rotated(fixture: &Fixture) {
    let store = &fixture.store;
    let (organization, project) = fixture.organization().await;
    let shared = store
        .create_secret(new_secret(organization, "key"), b"\"shared\"")
        .await
        .unwrap();
    assert!(matches!(
        store.create_secret(new_secret(organization, "key"), b"x").await,
        Err(Error::AlreadyExists {
            object: "secret",
            field: "name",
            ..
        })
    ));
    let mut own = new_secret(organization, "key");
    own.project_id = Some(project);
    let own = store.create_secret(own, b"\"own\"").await.unwrap();
    let names = ["key".to_owned(), "missing".to_owned()];
    let seen = store
        .reveal_secrets_by_name(organization, Some(project), &names)
        .await
        .unwrap();
    assert_eq!(seen.len(), 1);
    assert_eq!(
        (&seen["key"].secret, seen["key"].value.as_slice()),
        (&own, b"\"own\"".as_slice())
    );
    let seen = store
        .reveal_secrets_by_name(organization, None, &names)
        .await
        .unwrap();
    assert_eq!(seen["key"].value, b"\"shared\"");

    let stored = ciphertexts(store).await;
    assert_eq!(stored.len(), 2);
    assert!(
        stored
            .iter()
            .all(|(_, ciphertext)| !ciphertext.contains("shared"))
    );
    let rotated = store.rotate_secrets().await.unwrap();
    assert_eq!(rotated.secrets, 2);
    let after = ciphertexts(store).await;
    assert!(after.iter().all(|(key_id, _)| *key_id == rotated.key_id));
    assert!(after.iter().all(|row| !stored.contains(row)));
    assert_eq!(
        store.reveal_secret(organization, shared.id).await.unwrap().value,
        b"\"shared\""
    );

    let edit = SecretEdit {
        name: Some("renamed".to_owned()),
        ..SecretEdit::default()
    };
    let edited = store
        .update_secret(organization, shared.id, &edit, Some(b"new"), None)
        .await
        .unwrap();
    assert_eq!(edited.name, "renamed");
    assert_eq!(
        store.reveal_secret(organization, shared.id).await.unwrap().value,
        b"new"
    );
    let by_name = store
        .secret_by_name(organization, Some(project), "key")
        .await
        .unwrap();
    assert_eq!(by_name.map(|secret| secret.id), Some(own.id));

    // Another process with the same file reads what this one wrote, and what it writes after another rotation.
    let second = Store::open(fixture.options.clone()).await.unwrap();
    store.rotate_secrets().await.unwrap();
    assert_eq!(
        second.reveal_secret(organization, shared.id).await.unwrap().value,
        b"new"
    );
    second.close().await;
    // Two rotations at once come to an end, and to one key.
    let third = Store::open(fixture.options.clone()).await.unwrap();
    let (one, two) = tokio::join!(store.rotate_secrets(), store.rotate_secrets());
    one.unwrap();
    two.unwrap();
    third.rotate_secrets().await.unwrap();
    let key_ids: BTreeSet<String> = ciphertexts(store).await.into_iter().map(|row| row.0).collect();
    assert_eq!(key_ids.len(), 1);
    assert_eq!(
        store.reveal_secret(organization, shared.id).await.unwrap().value,
        b"new"
    );
    third.close().await;
    store.delete_secret(organization, own.id).await.unwrap();
    assert!(matches!(
        store.reveal_secret(organization, own.id).await,
        Err(Error::NotFound { .. })
    ));
}

pub(super) async fn a_ciphertext_cannot_be_moved(fixture: &Fixture) {
    const DOING: &str = "testing";
    let store = &fixture.store;
    let (organization, _) = fixture.organization().await;
    let one = store
        .create_secret(new_secret(organization, "one"), b"1")
        .await
        .unwrap();
    let two = store
        .create_secret(new_secret(organization, "two"), b"2")
        .await
        .unwrap();
    let sql = Sql::new(
        "UPDATE secrets SET ciphertext = (SELECT ciphertext FROM secrets WHERE id = $1) WHERE id = $2",
    )
    .bind(&one.id)
    .bind(&two.id);
    store.write_one(sql, &[], DOING).await.unwrap();
    let error = store.reveal_secret(organization, two.id).await.unwrap_err();
    assert!(
        matches!(error, Error::Keyring(crate::keyring::Error::Altered { .. })),
        "{error}"
    );
    // It keeps no other from being encrypted anew, once and again.
    for _ in 0..2 {
        let rotated = store.rotate_secrets().await.unwrap();
        assert_eq!((rotated.secrets, rotated.unreadable), (1, vec![two.id]));
        let keys = ciphertexts(store).await;
        assert_eq!(keys.iter().filter(|row| row.0 == rotated.key_id).count(), 1);
    }
    assert_eq!(
        store.reveal_secret(organization, one.id).await.unwrap().value,
        b"1"
    );
}

async fn ciphertexts(store: &Store) -> Vec<(String, String)> {
    const DOING: &str = "testing";
    let rows = Sql::new("SELECT key_id, ciphertext FROM secrets ORDER BY id")
        .rows(&mut store.database().read(DOING).await.unwrap(), DOING)
        .await
        .unwrap();
    rows.iter()
        .map(|row| {
            (
                crate::sql::read(row, "key_id", DOING).unwrap(),
                crate::sql::read(row, "ciphertext", DOING).unwrap(),
            )
        })
        .collect()
}

pub(super) async fn call_patterns_are_kept_and_go_with_their_service(fixture: &Fixture) {
    let store = &fixture.store;
    let (organization, _) = fixture.organization().await;
    let app = fixture.app(organization).await;
    let service = store
        .create_service(new_service(&app, "habits"))
        .await
        .unwrap()
        .service
        .id;
    let pattern = |service, counts: &[(u16, u16)]| CallPattern {
        service,
        called_at: Timestamp::from_micros(7),
        counts: counts.to_vec(),
    };
    let gone = pattern(ServiceId::random(), &[(1, 1)]);
    let first = pattern(service, &[(30, 2)]);
    store.keep_call_patterns(&[gone, first.clone()]).await.unwrap();
    let ours = || async {
        let all = store.call_patterns().await.unwrap();
        let ours = all.into_iter().filter(|it| it.service == service);
        ours.collect::<Vec<_>>()
    };
    assert_eq!(ours().await, [first]);
    let second = pattern(service, &[(30, 3), (480, 1)]);
    store
        .keep_call_patterns(std::slice::from_ref(&second))
        .await
        .unwrap();
    assert_eq!(ours().await, [second]);
    store
        .set_service_desired(organization, service, Desired::Delete)
        .await
        .unwrap();
    store.remove_service(service).await.unwrap();
    assert!(ours().await.is_empty());
}
