//! What is kept, what is collected, and who may have it.

use std::fs;
use std::time::Duration;

use tram_image::{CollectPolicy, Error, ImageStore, Progress, PullPolicy};

use crate::support::{
    Archive, Compression, Scripted, TestImage, is_root, pull, registry_reply, request, store,
};

fn layer(name: &str) -> (Vec<u8>, Compression) {
    (
        Archive::new().file(name, name.as_bytes()).build(),
        Compression::Gzip,
    )
}

fn now() -> CollectPolicy {
    CollectPolicy {
        grace: Duration::ZERO,
        ..CollectPolicy::default()
    }
}

async fn two_images() -> (TestImage, TestImage, Scripted) {
    let one = TestImage::new(&[layer("base"), layer("one")]);
    let two = TestImage::new(&[layer("base"), layer("two")]);
    let served = (one.clone(), two.clone());
    let registry = Scripted::start(move |request| {
        registry_reply(
            if request.path.contains("/one/") {
                &served.0
            } else {
                &served.1
            },
            request,
        )
    })
    .await;
    (one, two, registry)
}

#[tokio::test]
async fn shared_layers_stay_until_nobody_needs_them() {
    if !is_root("shared_layers_stay_until_nobody_needs_them") {
        return;
    }
    let (one, two, registry) = two_images().await;
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory);
    let layers = || fs::read_dir(directory.path().join("layers")).unwrap().count() / 2;
    let first = pull(&store, &registry.name("one")).await.unwrap();
    drop(pull(&store, &registry.name("two")).await.unwrap());
    assert_eq!((layers(), store.list().await.unwrap().len()), (3, 2));
    let report = store.collect(&[], &now()).await.unwrap();
    assert_eq!((report.layers, report.blobs), (0, 0), "named images are kept");

    assert!(store.remove(&first.reference).await.unwrap());
    assert!(!store.remove(&first.reference).await.unwrap());
    assert_eq!(
        store.collect(&[], &now()).await.unwrap().layers,
        0,
        "the value pins its layers"
    );
    drop(first);
    assert_eq!(
        store.collect(&[one.digest()], &now()).await.unwrap().layers,
        0,
        "an instance uses it"
    );
    assert_eq!(
        store
            .collect(&[], &CollectPolicy::default())
            .await
            .unwrap()
            .layers,
        0,
        "the grace holds"
    );
    let report = store.collect(&[], &now()).await.unwrap();
    assert_eq!((report.layers, report.blobs, layers()), (1, 2, 2));
    assert!(report.freed_bytes > 0);
    let left = store
        .ensure(
            &request(&registry.name("two"), PullPolicy::IfNotPresent),
            &Progress::channel().0,
        )
        .await;
    assert_eq!(left.unwrap().manifest_digest, two.digest());
    assert_eq!(fs::read_dir(directory.path().join("tmp")).unwrap().count(), 0);
}

#[tokio::test]
async fn budgets_forget_the_longest_unused_but_never_imports() {
    if !is_root("budgets_forget_the_longest_unused_but_never_imports") {
        return;
    }
    let (_, _, registry) = two_images().await;
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory);
    let first = pull(&store, &registry.name("one")).await.unwrap();
    let in_use = first.manifest_digest;
    drop(first);
    drop(pull(&store, &registry.name("two")).await.unwrap());
    let strict = CollectPolicy {
        keep_bytes: Some(1),
        ..now()
    };
    let report = store.collect(&[in_use], &strict).await.unwrap();
    assert_eq!(report.images.len(), 1);
    assert_eq!(store.list().await.unwrap()[0].manifest_digest, in_use);
    let archive = crate::archives::docker_save(&["imported:1"], &[Archive::new().file("i", b"").build()]);
    store
        .import(std::io::Cursor::new(archive), None, &Progress::channel().0)
        .await
        .unwrap();
    let old = CollectPolicy {
        unused_for: Some(Duration::ZERO),
        keep_bytes: Some(0),
        ..now()
    };
    let report = store.collect(&[], &old).await.unwrap();
    assert_eq!((report.images.len(), report.layers), (1, 2));
    assert_eq!(store.list().await.unwrap()[0].reference.familiar(), "imported:1");
}

#[tokio::test]
async fn leftovers_are_cleared_at_start_and_one_process_holds_the_store() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory);
    assert!(matches!(
        ImageStore::open(directory.path(), crate::support::settings()),
        Err(Error::Busy { .. })
    ));
    drop(store);
    let hex = "ab".repeat(32);
    fs::create_dir_all(directory.path().join(format!("layers/{hex}/usr"))).unwrap();
    fs::create_dir_all(directory.path().join("tmp/unfinished/deep")).unwrap();
    fs::write(
        directory.path().join(format!("layers/{}.json", "cd".repeat(32))),
        "{}",
    )
    .unwrap();
    let _store = self::store(&directory);
    for place in ["layers", "tmp"] {
        assert_eq!(
            fs::read_dir(directory.path().join(place)).unwrap().count(),
            0,
            "{place}"
        );
    }
}

#[tokio::test]
async fn a_damaged_store_pulls_again() {
    if !is_root("a_damaged_store_pulls_again") {
        return;
    }
    let (one, _, registry) = two_images().await;
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory);
    let name = registry.name("one");
    let image = pull(&store, &name).await.unwrap();
    fs::write(
        directory.path().join("blobs/sha256").join(one.digest().hex()),
        "garbage",
    )
    .unwrap();
    let again = store
        .ensure(&request(&name, PullPolicy::IfNotPresent), &Progress::channel().0)
        .await
        .unwrap();
    assert_eq!(again.layers, image.layers);
    let hex = image.layers[0].file_name().unwrap().to_owned();
    fs::remove_dir_all(directory.path().join("layers").join(hex)).unwrap();
    let again = store
        .ensure(&request(&name, PullPolicy::IfNotPresent), &Progress::channel().0)
        .await
        .unwrap();
    assert!(again.layers.iter().all(|layer| layer.is_dir()));
}
