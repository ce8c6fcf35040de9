//! What SQLite alone has: a file, its copy, and keys that must lie elsewhere.

use std::os::unix::fs::MetadataExt as _;

use tram_types::{SecretId, status::SecretType};

use super::fixture::Fixture;
use crate::{Error, Options, Store, database::Kind, intent::NewSecret, keyring};

#[tokio::test]
async fn a_copy_opens_and_holds_everything() {
    let fixture = Fixture::sqlite().await;
    let (organization, _) = fixture.organization().await;
    let made = fixture.service(organization).await;
    let copy = fixture.directory.path().join("copies/copy.db");
    std::fs::create_dir(copy.parent().unwrap()).unwrap();
    fixture.store.backup_to(&copy).await.unwrap();
    assert_eq!(std::fs::metadata(&copy).unwrap().mode() & 0o777, 0o600);
    assert!(matches!(
        fixture.store.backup_to(&copy).await,
        Err(Error::Conflict { .. })
    ));
    let options = Options {
        database_url: format!("sqlite://{}", copy.display()),
        ..fixture.options.clone()
    };
    let second = Store::open(options).await.unwrap();
    assert_eq!(
        second.service(organization, made.service.id).await.unwrap(),
        made.service
    );
}

#[tokio::test]
async fn the_file_is_for_its_owner_alone() {
    let fixture = Fixture::sqlite().await;
    fixture.organization().await;
    for name in ["tram.db", "tram.db-wal"] {
        let path = fixture.directory.path().join("state").join(name);
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o077, 0, "{name}");
    }
}

#[tokio::test]
async fn keys_beside_the_database_are_refused() {
    let fixture = Fixture::sqlite().await;
    let options = Options {
        keyring: keyring::Settings {
            path: fixture.directory.path().join("state/keyring"),
            create: true,
        },
        ..fixture.options.clone()
    };
    let error = Store::open(options).await.unwrap_err();
    assert!(
        matches!(
            error,
            Error::Setting {
                setting: "keyring",
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn a_lost_key_file_is_noticed_at_the_start() {
    let fixture = Fixture::sqlite().await;
    let (organization, _) = fixture.organization().await;
    let new = NewSecret {
        id: SecretId::random(),
        organization_id: organization,
        project_id: None,
        name: "key".to_owned(),
        kind: SecretType::Simple,
        hosts: Vec::new(),
    };
    fixture.store.create_secret(new, b"v").await.unwrap();
    fixture.store.close().await;
    let path = &fixture.options.keyring.path;
    std::fs::rename(path, path.with_extension("kept")).unwrap();
    let error = Store::open(fixture.options.clone()).await.unwrap_err();
    assert!(
        matches!(error, Error::Keyring(keyring::Error::Missing { .. })),
        "{error}"
    );
    assert!(!path.exists(), "no key was made that could not read anything");
    // Another installation's keys do not do either.
    let other = Fixture::sqlite().await;
    std::fs::copy(&other.options.keyring.path, path).unwrap();
    let error = Store::open(fixture.options.clone()).await.unwrap_err();
    assert!(
        matches!(error, Error::Keyring(keyring::Error::UnknownKey { .. })),
        "{error}"
    );
}

#[test]
fn a_wrong_url_says_what_is_right() {
    for url in [
        "",
        "mysql://x",
        "sqlite:",
        "sqlite://a?mode=memory",
        "/just/a/path",
    ] {
        let error = Kind::of_url(url).unwrap_err();
        assert!(error.to_string().contains("sqlite:///path"), "{url}: {error}");
    }
    assert!(matches!(
        Kind::of_url("postgres://u@h/d"),
        Ok(Kind::Postgres { .. })
    ));
    let Ok(Kind::Sqlite { path }) = Kind::of_url("sqlite:relative.db") else {
        panic!("expected a file");
    };
    assert!(path.is_absolute());
}
