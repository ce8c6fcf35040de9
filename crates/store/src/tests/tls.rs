//! A PostgreSQL that is reached with TLS alone.

use sqlx::{AnyConnection, Connection as _};

use super::cluster::{Certificate, Cluster};
use crate::{Options, Store, keyring};

fn certificate() -> Certificate {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    Certificate {
        certificate: made.cert.pem(),
        key: made.signing_key.serialize_pem(),
    }
}

async fn is_encrypted(url: &str) -> Result<bool, sqlx::Error> {
    let mut connection = AnyConnection::connect(url).await?;
    let row: (bool,) = sqlx::query_as("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
        .fetch_one(&mut connection)
        .await?;
    Ok(row.0)
}

#[tokio::test]
async fn a_database_is_reached_over_tls() {
    let certificate = certificate();
    let Some(cluster) = Cluster::start_with_tls(&certificate).await else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let trusted = directory.path().join("trusted.pem");
    std::fs::write(&trusted, &certificate.certificate).unwrap();
    let verified = format!("sslmode=verify-full&sslrootcert={}", trusted.display());
    for (options, reached) in [
        ("sslmode=require", true),
        ("sslmode=prefer", true),
        (verified.as_str(), true),
        // Nobody here vouches for a certificate that signed itself.
        ("sslmode=verify-full", false),
        ("sslmode=disable", false),
    ] {
        match is_encrypted(&cluster.tcp_url(options)).await {
            Ok(is_encrypted) => assert!(reached && is_encrypted, "{options}"),
            Err(error) => assert!(!reached, "{options}: {error}"),
        }
    }
    let store = Store::open(Options {
        database_url: cluster.tcp_url("sslmode=require"),
        keyring: keyring::Settings {
            path: directory.path().join("keys"),
            create: true,
        },
        proxy_ports: 20_000..=20_010,
        clock: std::sync::Arc::new(tram_types::SystemClock),
    })
    .await
    .unwrap();
    store.close().await;
    cluster.stop().await;
}
