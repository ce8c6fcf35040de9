//! Pulls from Debian's own registry: formats, platforms, policies, credentials, sharing.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

use futures_util::future::join_all;
use tram_image::{Credentials, Error, Fault, Freshness, Phase, Progress, PullPolicy, RegistryConfig};

use crate::support::{
    Archive, Compression, Registry, TestImage, host_architecture, is_root, pull, request, store, store_with,
};

fn layers() -> Vec<(Vec<u8>, Compression)> {
    let base = Archive::new()
        .directory("bin/", 0o755)
        .entry("bin/sh", tar::EntryType::Regular, 0o4755, "", b"#!")
        .directory("etc/", 0o755)
        .file("etc/old", b"old")
        .directory("tmp/", 0o1777)
        .build();
    let middle = Archive::new()
        .directory("etc/", 0o755)
        .file("etc/.wh.old", b"")
        .file("etc/new", b"new")
        .build();
    let top = Archive::new()
        .directory("srv/", 0o755)
        .symlink("srv/current", "/etc/new")
        .build();
    vec![
        (base, Compression::Gzip),
        (middle, Compression::Zstd),
        (top, Compression::Plain),
    ]
}

#[tokio::test]
async fn an_image_becomes_directories_for_overlayfs() {
    if !is_root("an_image_becomes_directories_for_overlayfs") {
        return;
    }
    let Some(registry) = Registry::start() else { return };
    let config = r#"{"Entrypoint":["/bin/sh"],"Env":["A=1"],"User":"1000","ExposedPorts":{"8000/tcp":{}}}"#;
    let image = TestImage::build(&layers(), "amd64", config, false);
    registry.push("team/app", "v1", &image).await;
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory);
    let (progress, watcher) = Progress::channel();
    let name = registry.name("team/app:v1");
    let pulled = store
        .ensure(&request(&name, PullPolicy::Always), &progress)
        .await
        .unwrap();

    assert_eq!(pulled.manifest_digest, image.digest());
    assert_eq!(pulled.freshness, Freshness::Confirmed);
    assert_eq!(pulled.config.entrypoint, ["/bin/sh"]);
    assert_eq!(pulled.config.exposed_ports[0].port, 8000);
    let [top, middle, base] = &pulled.layers[..] else {
        panic!("three layers: {:?}", pulled.layers)
    };
    assert_eq!(
        fs::read_link(top.join("srv/current")).unwrap().to_str(),
        Some("/etc/new")
    );
    assert_eq!(fs::read(middle.join("etc/new")).unwrap(), b"new");
    let whiteout = fs::symlink_metadata(middle.join("etc/old")).unwrap();
    assert!(whiteout.file_type().is_char_device() && whiteout.rdev() == 0);
    assert_eq!(
        fs::metadata(base.join("bin/sh")).unwrap().permissions().mode() & 0o7777,
        0o4755
    );
    assert_eq!(
        fs::metadata(base.join("tmp")).unwrap().permissions().mode() & 0o7777,
        0o1777
    );
    assert_eq!(fs::metadata(base.join("etc")).unwrap().mtime(), 1_700_000_000);
    let seen = watcher.borrow().clone();
    assert_eq!((seen.phase, seen.blobs.len()), (Phase::Ready, 3));
    assert!(seen.blobs.iter().all(|blob| blob.ready) && seen.done_bytes() == seen.total_bytes());
    assert_eq!(fs::read_dir(directory.path().join("tmp")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(directory.path().join("partial")).unwrap().count(), 0);

    // A second process finds it whole, without asking anybody.
    drop((store, pulled, registry));
    let store = self::store(&directory);
    let found = store
        .ensure(&request(&name, PullPolicy::IfNotPresent), &Progress::channel().0)
        .await
        .unwrap();
    assert_eq!((found.freshness, found.layers.len()), (Freshness::Present, 3));
}

#[tokio::test]
async fn the_layers_stack_as_the_image_means() {
    if !is_root("the_layers_stack_as_the_image_means") {
        return;
    }
    let Some(registry) = Registry::start() else { return };
    let hidden = Archive::new()
        .directory("data/", 0o755)
        .file("data/a", b"a")
        .file("data/b", b"b")
        .build();
    let opaque = Archive::new()
        .directory("data/", 0o755)
        .file("data/.wh..wh..opq", b"")
        .file("data/c", b"c")
        .build();
    let mut all = layers();
    all.push((hidden, Compression::Gzip));
    all.push((opaque, Compression::Gzip));
    // The same layer twice, which overlayfs would refuse.
    all.push(all[0].clone());
    registry.push("stack", "latest", &TestImage::docker(&all)).await;
    let directory = tempfile::tempdir().unwrap();
    let image = pull(&store(&directory), &registry.name("stack")).await.unwrap();
    let view = tempfile::tempdir().unwrap();
    let paths: Vec<_> = image.layers.iter().map(|path| path.to_str().unwrap()).collect();
    let mounted = rustix::mount::mount(
        "overlay",
        view.path(),
        "overlay",
        rustix::mount::MountFlags::RDONLY,
        Some(
            std::ffi::CString::new(format!("lowerdir={}", paths.join(":")))
                .unwrap()
                .as_c_str(),
        ),
    );
    mounted.expect("overlayfs takes the layers");
    let names = |path: &str| {
        let mut names: Vec<_> = fs::read_dir(view.path().join(path))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        names
    };
    let (data, etc) = (names("data"), names("etc"));
    rustix::mount::unmount(view.path(), rustix::mount::UnmountFlags::empty()).unwrap();
    assert_eq!(data, ["c"]);
    assert_eq!(etc, ["new", "old"], "the layer on top brings the file back");
}

#[tokio::test]
async fn the_platform_is_chosen_and_others_are_named() {
    if !is_root("the_platform_is_chosen_and_others_are_named") {
        return;
    }
    let Some(registry) = Registry::start() else { return };
    let ours = TestImage::new(&layers()[..1]);
    let other = TestImage::build(&layers()[1..2], "sparc", "{}", false);
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory);
    for (repository, docker) in [("oci", false), ("docker", true)] {
        let index = TestImage::index(&[("sparc", &other), ("amd64", &ours)], docker);
        registry.push(repository, "latest", &index).await;
        let image = pull(&store, &registry.name(repository)).await.unwrap();
        assert_eq!(
            (image.manifest_digest, image.resolved_digest),
            (ours.digest(), index.digest())
        );
        let pinned = format!("{}@{}", registry.name(repository), index.digest());
        assert_eq!(
            pull(&store, &pinned).await.unwrap().manifest_digest,
            ours.digest()
        );
    }
    registry
        .push(
            "foreign",
            "latest",
            &TestImage::index(&[("sparc", &other)], false),
        )
        .await;
    registry.push("foreign", "plain", &other).await;
    for tag in ["latest", "plain"] {
        let error = pull(&store, &registry.name(&format!("foreign:{tag}")))
            .await
            .unwrap_err();
        let message = error.user_message();
        assert!(
            message.contains("linux/sparc") && message.contains(host_architecture()),
            "{message}"
        );
        assert_eq!((error.fault(), error.retryable()), (Fault::User, false));
    }
}

#[tokio::test]
async fn a_moved_tag_is_followed_and_a_lost_registry_is_told() {
    if !is_root("a_moved_tag_is_followed_and_a_lost_registry_is_told") {
        return;
    }
    let Some(registry) = Registry::start() else { return };
    let (one, two) = (TestImage::new(&layers()[..1]), TestImage::new(&layers()[..2]));
    registry.push("app", "latest", &one).await;
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory);
    let name = registry.name("app");
    assert_eq!(pull(&store, &name).await.unwrap().manifest_digest, one.digest());
    registry.push("app", "latest", &two).await;
    let kept = store
        .ensure(&request(&name, PullPolicy::IfNotPresent), &Progress::channel().0)
        .await
        .unwrap();
    assert_eq!(kept.manifest_digest, one.digest());
    assert_eq!(pull(&store, &name).await.unwrap().manifest_digest, two.digest());
    drop(registry);
    let kept = pull(&store, &name).await.unwrap();
    assert_eq!(kept.manifest_digest, two.digest());
    let Freshness::Unconfirmed { reason } = kept.freshness else {
        panic!("{:?}", kept.freshness)
    };
    assert!(reason.contains("connection"), "{reason}");
    let other = format!("{name}:other");
    assert!(matches!(pull(&store, &other).await, Err(Error::Transport { .. })));
}

#[tokio::test]
async fn missing_and_private_images_say_what_to_do() {
    if !is_root("missing_and_private_images_say_what_to_do") {
        return;
    }
    let Some(registry) = Registry::start_private() else {
        return;
    };
    let image = TestImage::new(&layers()[..1]);
    registry
        .push_as("team/secret", "latest", &image, Some(("reader", "secret")))
        .await;
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory);
    let name = registry.name("team/secret");
    let ensure = |credentials: Option<Credentials>, policy| {
        let (store, mut wanted) = (store.clone(), request(&name, policy));
        wanted.credentials = credentials;
        async move { store.ensure(&wanted, &Progress::channel().0).await }
    };
    let error = ensure(None, PullPolicy::Always).await.unwrap_err();
    assert!(error.user_message().contains("add a registry secret"), "{error}");
    let wrong = Credentials::basic("reader", "guess");
    let error = ensure(Some(wrong.clone()), PullPolicy::Always).await.unwrap_err();
    assert!(
        error.user_message().contains("check the user name and password"),
        "{error}"
    );
    let right = Credentials::basic("reader", "secret");
    assert_eq!(
        ensure(Some(right.clone()), PullPolicy::Always)
            .await
            .unwrap()
            .freshness,
        Freshness::Confirmed
    );

    // What one pulled with a secret is not everybody's for knowing the name.
    assert_eq!(
        ensure(Some(right.clone()), PullPolicy::IfNotPresent)
            .await
            .unwrap()
            .freshness,
        Freshness::Present
    );
    assert!(matches!(
        ensure(None, PullPolicy::IfNotPresent).await,
        Err(Error::AccessDenied { .. })
    ));
    assert!(matches!(
        ensure(Some(wrong), PullPolicy::IfNotPresent).await,
        Err(Error::AccessDenied { .. })
    ));

    // But whoever was let have it before is not asked again.
    let held = store.held(&name.parse().unwrap()).await.unwrap();
    assert_eq!(held.map(|image| image.manifest_digest), Some(image.digest()));
    let unknown = store.held(&"other".parse().unwrap()).await.unwrap();
    assert!(unknown.is_none());

    let missing = request(&registry.name("team/none:9.99"), PullPolicy::Always).credentials(right);
    let error = store.ensure(&missing, &Progress::channel().0).await.unwrap_err();
    assert!(error.user_message().contains("was not found on"), "{error}");

    // The operator's own credentials serve pulls without a secret.
    drop(store);
    let config = RegistryConfig::default().with_credentials(
        registry.address.to_string(),
        Credentials::basic("reader", "secret"),
    );
    let store = store_with(&directory, config);
    assert_eq!(pull(&store, &name).await.unwrap().freshness, Freshness::Confirmed);
}

#[tokio::test]
async fn many_pulls_fetch_each_layer_once() {
    if !is_root("many_pulls_fetch_each_layer_once") {
        return;
    }
    use crate::support::{Scripted, registry_reply};
    let image = TestImage::new(&layers());
    let served = image.clone();
    let registry = Scripted::start(move |request| registry_reply(&served, request)).await;
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory);
    let names: Vec<_> = (0..8)
        .map(|index| registry.name(&format!("app{}", index % 2)))
        .collect();
    let pulls = join_all(names.iter().map(|name| pull(&store, name))).await;
    for pulled in pulls {
        assert_eq!(pulled.unwrap().manifest_digest, image.digest());
    }
    for layer in image
        .blobs
        .keys()
        .filter(|digest| !image.blobs[digest].starts_with(b"{"))
    {
        let fetched = registry
            .seen()
            .iter()
            .filter(|request| request.path.ends_with(&layer.to_string()))
            .count();
        assert_eq!(fetched, 1, "{layer}");
    }
    let blobs: Vec<_> = fs::read_dir(directory.path().join("blobs/sha256"))
        .unwrap()
        .collect();
    assert_eq!(
        blobs.len(),
        2,
        "manifest and configuration stay, unpacked layers' blobs do not"
    );
}
