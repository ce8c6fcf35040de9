//! Registries that hang, cut, lie, limit and demand tokens; mirrors; full disks.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tram_image::{Credentials, Digest, Error, Fault, Progress, RegistryConfig, VerifyCode};

use crate::support::{
    Archive, Compression, Reply, Request, Scripted, TestImage, impatient, is_root, pull, registry_reply,
    request, settings, store, store_with,
};
use tram_image::PullPolicy;

/// One layer of 3 MiB that does not compress, so that bytes can be counted.
fn large() -> (TestImage, Digest, usize) {
    let mut seed = 1_u64;
    let noise: Vec<u8> = (0..3 << 20)
        .map(|_| {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            seed.to_be_bytes()[0]
        })
        .collect();
    let image = TestImage::new(&[(Archive::new().file("noise", &noise).build(), Compression::Plain)]);
    let (digest, bytes) = image
        .blobs
        .iter()
        .map(|(digest, blob)| (*digest, blob.len()))
        .max_by_key(|(_, bytes)| *bytes)
        .unwrap();
    (image, digest, bytes)
}

fn is_layer(request: &Request, layer: Digest) -> bool {
    request.path.ends_with(&layer.to_string())
}

#[tokio::test]
async fn a_cut_layer_is_continued_where_it_broke() {
    if !is_root("a_cut_layer_is_continued_where_it_broke") {
        return;
    }
    let (image, layer, size) = large();
    let served = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&served);
    let cut = 1_300_000;
    let registry = Scripted::start(move |request| {
        let mut reply = registry_reply(&image, request);
        if is_layer(request, layer) {
            reply.cut_after = Some(cut);
            count.fetch_add(cut.min(reply.body.len()), Ordering::SeqCst);
        }
        reply
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    pull(&store(&directory), &registry.name("large")).await.unwrap();
    let starts: Vec<_> = registry
        .seen()
        .iter()
        .filter(|request| is_layer(request, layer))
        .map(|request| request.range_start())
        .collect();
    assert_eq!(starts, [None, Some(cut), Some(2 * cut)]);
    assert_eq!(served.load(Ordering::SeqCst), size, "no byte twice");
}

#[tokio::test]
async fn a_restarted_process_continues_too() {
    if !is_root("a_restarted_process_continues_too") {
        return;
    }
    let (image, layer, size) = large();
    let broken = Arc::new(AtomicUsize::new(1));
    let flag = Arc::clone(&broken);
    let registry = Scripted::start(move |request| {
        let mut reply = registry_reply(&image, request);
        if is_layer(request, layer) && flag.load(Ordering::SeqCst) == 1 {
            reply.hang_after = Some(2_000_000);
        }
        reply
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory);
    let (progress, mut watcher) = Progress::channel();
    let wanted = request(&registry.name("large"), PullPolicy::Always);
    {
        // Ctrl-C while it hangs: the future is dropped once something has arrived.
        let pulling = store.ensure(&wanted, &progress);
        let arrived = watcher.wait_for(|progress| progress.done_bytes() >= 1 << 20);
        tokio::select! {
            outcome = pulling => panic!("it hangs: {outcome:?}"),
            arrived = arrived => { arrived.unwrap(); }
        }
    }
    drop(store);
    broken.store(0, Ordering::SeqCst);
    let store = self::store(&directory);
    store.ensure(&wanted, &progress).await.unwrap();
    let last = registry
        .seen()
        .into_iter()
        .rfind(|request| is_layer(request, layer))
        .unwrap();
    let start = last.range_start().expect("a range is asked for");
    assert!(start >= 1 << 20 && start < size, "{start}");
}

#[tokio::test]
async fn servers_that_ignore_or_misread_ranges_are_survived() {
    if !is_root("servers_that_ignore_or_misread_ranges_are_survived") {
        return;
    }
    let (image, layer, _) = large();
    let tries = AtomicUsize::new(0);
    let registry = Scripted::start(move |request| {
        if !is_layer(request, layer) {
            return registry_reply(&image, request);
        }
        let plain = Request {
            headers: Default::default(),
            ..request.clone()
        };
        let mut reply = registry_reply(&image, &plain);
        // Contents do not matter to a client that trusts digests alone.
        match tries.fetch_add(1, Ordering::SeqCst) {
            0 => reply.cut_after = Some(1_500_000),
            // Another part than the one asked for.
            1 => {
                reply.status = 206;
                reply
                    .headers
                    .push(("content-range".into(), "bytes 5-10/11".into()));
                reply.cut_after = Some(0);
            }
            _ => {}
        }
        reply
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    pull(&store(&directory), &registry.name("large")).await.unwrap();
    let asked: Vec<_> = registry
        .seen()
        .iter()
        .filter(|request| is_layer(request, layer))
        .map(Request::range_start)
        .collect();
    assert_eq!(asked, [None, Some(1_500_000), None], "it starts over");
}

#[tokio::test]
async fn wrong_contents_are_never_kept() {
    if !is_root("wrong_contents_are_never_kept") {
        return;
    }
    for (what, part) in [
        ("layer", "a layer"),
        ("config", "the configuration"),
        ("short", "bytes where"),
        ("long", "bytes where"),
    ] {
        let (image, layer, _) = large();
        let registry = Scripted::start(move |request| {
            let mut reply = registry_reply(&image, request);
            let is_layer = is_layer(request, layer);
            match what {
                "layer" if is_layer => reply.body[5000] ^= 1,
                "config" if request.path.contains("/blobs/") && !is_layer => reply.body[5] ^= 1,
                "short" if is_layer => reply.body.truncate(1000),
                "long" if is_layer => reply.body.push(0),
                _ => {}
            }
            reply
        })
        .await;
        let directory = tempfile::tempdir().unwrap();
        let error = pull(&store(&directory), &registry.name("wrong"))
            .await
            .unwrap_err();
        assert!(error.to_string().contains(part), "{what}: {error}");
        assert_eq!(error.fault(), Fault::Registry, "{what}");
        for place in ["blobs/sha256", "layers", "partial", "tmp"] {
            assert_eq!(
                fs::read_dir(directory.path().join(place)).unwrap().count(),
                0,
                "{what}: {place}"
            );
        }
    }
}

#[tokio::test]
async fn a_registry_that_hangs_ends_in_a_clear_error() {
    let (image, layer, _) = large();
    for stage in ["connected", "body", "layer"] {
        let image = image.clone();
        let registry = Scripted::start(move |request| {
            let mut reply = registry_reply(&image, request);
            reply.hang_after = match stage {
                "connected" => Some(0),
                "body" if request.path.contains("/manifests/") => Some(10),
                "layer" if is_layer(request, layer) => Some(100),
                _ => None,
            };
            reply
        })
        .await;
        let directory = tempfile::tempdir().unwrap();
        let error = pull(&impatient(&directory), &registry.name("hangs"))
            .await
            .unwrap_err();
        assert!(matches!(error, Error::Timeout { .. }), "{stage}: {error}");
        assert!(
            error.user_message().contains("did not answer within 2 s"),
            "{stage}: {error}"
        );
    }
    // One that accepts and never says a word.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let name = format!("{}/x", silent.local_addr().unwrap());
    let directory = tempfile::tempdir().unwrap();
    let verified = impatient(&directory).verify(&name, None).await;
    assert_eq!(verified.code, Some(VerifyCode::Timeout), "{}", verified.reason);
}

#[tokio::test]
async fn passing_failures_are_tried_again_and_lasting_ones_are_not() {
    if !is_root("passing_failures_are_tried_again_and_lasting_ones_are_not") {
        return;
    }
    let image = TestImage::new(&[(Archive::new().file("x", b"").build(), Compression::Gzip)]);
    let failures = AtomicUsize::new(0);
    let served = image.clone();
    let registry = Scripted::start(move |request| match failures.fetch_add(1, Ordering::SeqCst) {
        0 => Reply::new(503, ""),
        1 => Reply::new(429, "").header("retry-after", "1"),
        2 => Reply {
            cut_after: Some(0),
            ..registry_reply(&served, request)
        },
        _ => registry_reply(&served, request),
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory);
    let started = Instant::now();
    pull(&store, &registry.name("flaky")).await.unwrap();
    assert!(
        started.elapsed() >= Duration::from_secs(1),
        "Retry-After is honoured"
    );

    let limited = Scripted::start(|_| Reply::new(429, "").header("retry-after", "3600")).await;
    let error = pull(&store, &limited.name("limited")).await.unwrap_err();
    assert!(
        error.user_message().contains("wait 3600 s") && error.retryable(),
        "{error}"
    );
    assert_eq!(limited.seen().len(), 1);

    let broken =
        Scripted::start(|_| Reply::new(500, r#"{"errors":[{"code":"UNKNOWN","message":"disk on fire"}]}"#))
            .await;
    let error = pull(&store, &broken.name("broken")).await.unwrap_err();
    assert!(error.user_message().contains("disk on fire"), "{error}");
    assert_eq!(broken.seen().len(), 5);
}

#[tokio::test]
async fn floods_are_cut_off() {
    let manifest = Scripted::start(|_| Reply::new(200, vec![b' '; (4 << 20) + 1])).await;
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory);
    let error = pull(&store, &manifest.name("flood")).await.unwrap_err();
    assert!(error.to_string().contains("larger than"), "{error}");
    let page =
        Scripted::start(|_| Reply::new(200, "<html>welcome</html>").header("content-type", "text/html"))
            .await;
    let error = pull(&store, &page.name("page")).await.unwrap_err();
    assert!(error.to_string().contains("malformed"), "{error}");
    let circle = Scripted::start(|request| Reply::new(307, "").header("location", &request.path)).await;
    assert!(pull(&store, &circle.name("circle")).await.is_err());
    assert!(circle.seen().len() < 60, "{}", circle.seen().len());
}

#[tokio::test]
async fn a_token_is_fetched_once_and_shown() {
    if !is_root("a_token_is_fetched_once_and_shown") {
        return;
    }
    let image = TestImage::new(&[(Archive::new().file("x", b"").build(), Compression::Gzip)]);
    let tokens = Scripted::start(|request| {
        let basic = request.headers.get("authorization").map(String::as_str);
        if !request.path.contains("service=test")
            || !request.path.contains("scope=repository%3Ateam%2Fapp%3Apull")
        {
            return Reply::new(400, "");
        }
        match basic {
            // robot:secret
            Some("Basic cm9ib3Q6c2VjcmV0") => Reply::new(200, r#"{"token":"good","expires_in":300}"#),
            Some(_) => Reply::new(401, ""),
            None => Reply::new(200, r#"{"token":"anonymous"}"#),
        }
    })
    .await;
    let realm = format!("http://{}/token", tokens.address);
    let registry =
        Scripted::start(
            move |request| match request.headers.get("authorization").map(String::as_str) {
                Some("Bearer good") => registry_reply(&image, request),
                _ => Reply::new(401, "").header(
                    "www-authenticate",
                    &format!("Bearer realm=\"{realm}\",service=\"test\",scope=\"repository:team/app:pull\""),
                ),
            },
        )
        .await;
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory);
    let name = registry.name("team/app");
    assert!(matches!(
        pull(&store, &name).await,
        Err(Error::AccessDenied {
            authenticated: false,
            ..
        })
    ));
    let ensure = |password: &str| {
        let wanted = request(&name, PullPolicy::Always).credentials(Credentials::basic("robot", password));
        let store = store.clone();
        async move { store.ensure(&wanted, &Progress::channel().0).await }
    };
    assert!(matches!(
        ensure("guess").await,
        Err(Error::AccessDenied {
            authenticated: true,
            ..
        })
    ));
    let before = tokens.seen().len();
    ensure("secret").await.unwrap();
    assert_eq!(
        tokens.seen().len(),
        before + 1,
        "one token serves manifest, configuration and layer"
    );
    let bearer = request(&name, PullPolicy::Always).credentials(Credentials::Bearer { token: "good".into() });
    store.ensure(&bearer, &Progress::channel().0).await.unwrap();
    assert_eq!(tokens.seen().len(), before + 1);
}

#[tokio::test]
async fn mirrors_come_first_and_never_see_the_pulls_credentials() {
    if !is_root("mirrors_come_first_and_never_see_the_pulls_credentials") {
        return;
    }
    let image = TestImage::new(&[(Archive::new().file("x", b"").build(), Compression::Gzip)]);
    let (at_mirror, at_server) = (image.clone(), image.clone());
    let empty = Scripted::start(|_| Reply::new(404, "")).await;
    let mirror = Scripted::start(move |request| match request.path.contains("/blobs/") {
        true => registry_reply(&at_mirror, request),
        false => Reply::new(500, ""),
    })
    .await;
    let server = Scripted::start(move |request| registry_reply(&at_server, request)).await;
    let hosts = tempfile::tempdir().unwrap();
    let place = hosts.path().join("images.example");
    fs::create_dir(&place).unwrap();
    let text = format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\n[host.\"http://{}\"]\n[host.\"http://127.0.0.1:1\"]\ncapabilities = [\"resolve\"]\n",
        server.address, empty.address, mirror.address
    );
    fs::write(place.join("hosts.toml"), text).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let store = store_with(&directory, RegistryConfig::from_directory(hosts.path()));
    let wanted = request("images.example/app:v1", PullPolicy::Always)
        .credentials(Credentials::basic("robot", "secret"));
    // The tag at the server is `latest` in the script.
    let wanted = tram_image::PullRequest {
        reference: "images.example/app".parse().unwrap(),
        ..wanted
    };
    store.ensure(&wanted, &Progress::channel().0).await.unwrap();
    for asked in [empty.seen(), mirror.seen()] {
        assert!(!asked.is_empty());
        assert!(
            asked
                .iter()
                .all(|request| request.path.contains("ns=images.example"))
        );
        assert!(
            asked
                .iter()
                .all(|request| !request.headers.contains_key("authorization"))
        );
    }
    assert!(
        server
            .seen()
            .iter()
            .all(|request| request.path.contains("/manifests/")),
        "layers came from the mirror"
    );
}

#[tokio::test]
async fn a_registry_without_the_capability_is_not_asked() {
    if !is_root("a_registry_without_the_capability_is_not_asked") {
        return;
    }
    let image = TestImage::new(&[(Archive::new().file("x", b"").build(), Compression::Gzip)]);
    let served = image.clone();
    let mirror = Scripted::start(move |request| registry_reply(&image, request)).await;
    let server = Scripted::start(move |request| registry_reply(&served, request)).await;
    let hosts = tempfile::tempdir().unwrap();
    let place = hosts.path().join("images.example");
    fs::create_dir(&place).unwrap();
    let configure = |own: &str, of_mirror: &str| {
        let text = format!(
            "server = \"http://{}\"\ncapabilities = [{own}]\n[host.\"http://{}\"]\ncapabilities = [{of_mirror}]\n",
            server.address, mirror.address
        );
        fs::write(place.join("hosts.toml"), text).unwrap();
    };
    let directory = tempfile::tempdir().unwrap();
    let store = store_with(&directory, RegistryConfig::from_directory(hosts.path()));
    configure("\"resolve\"", "\"pull\"");
    pull(&store, "images.example/app").await.unwrap();
    assert!(
        server
            .seen()
            .iter()
            .all(|request| request.path.contains("/manifests/latest")),
        "{:?}",
        server.seen()
    );
    configure("", "\"resolve\"");
    let error = pull(&store, "images.example/other").await.unwrap_err();
    assert!(error.to_string().contains("capability"), "{error}");
}

#[tokio::test]
async fn credentials_do_not_follow_an_alias_to_another_registry() {
    if !is_root("credentials_do_not_follow_an_alias_to_another_registry") {
        return;
    }
    let image = TestImage::new(&[(Archive::new().file("x", b"").build(), Compression::Gzip)]);
    let registry = Scripted::start(
        move |request| match request.headers.contains_key("authorization") {
            true => registry_reply(&image, request),
            false => Reply::new(401, "").header("www-authenticate", "Basic realm=\"x\""),
        },
    )
    .await;
    let target = registry.name("house/app");
    let aliases = tram_image::Aliases::new([
        ("images.example/app", target.as_str()),
        (&registry.name("app"), target.as_str()),
    ])
    .unwrap();
    let directory = tempfile::tempdir().unwrap();
    let settings = tram_image::Settings {
        aliases,
        ..settings()
    };
    let store = tram_image::ImageStore::open(directory.path(), settings).unwrap();
    let secret = Credentials::basic("robot", "secret");
    let ensure = |name: &str| {
        let wanted = request(name, PullPolicy::Always).credentials(secret.clone());
        let store = store.clone();
        async move { store.ensure(&wanted, &Progress::channel().0).await }
    };
    let refused = ensure("images.example/app").await;
    assert!(
        matches!(
            refused,
            Err(Error::AccessDenied {
                authenticated: false,
                ..
            })
        ),
        "{refused:?}"
    );
    let verified = store.verify("images.example/app", Some(&secret)).await;
    assert_eq!(verified.code, Some(VerifyCode::AnonAccessDenied));
    let seen = registry.seen();
    assert!(!seen.is_empty());
    assert!(
        seen.iter()
            .all(|request| !request.headers.contains_key("authorization")),
        "the secret is for images.example"
    );
    ensure(&registry.name("app")).await.unwrap();
}

#[tokio::test]
async fn verify_answers_with_the_codes_of_the_wire() {
    let image = TestImage::new(&[]);
    let foreign = TestImage::build(&[], "sparc", "{}", false);
    let registry = Scripted::start(move |request| {
        let path = &request.path;
        match () {
            () if path.contains("/private/") => Reply::new(401, "").header("www-authenticate", "Basic realm=\"x\""),
            () if path.contains("/foreign/") => registry_reply(&foreign, request),
            () if path.contains("/windows/") && path.contains("/manifests/") => {
                let index = r#"{"schemaVersion":2,"manifests":[{"digest":"DIGEST","size":2,"platform":{"os":"windows","architecture":"amd64"}}]}"#;
                Reply::new(200, index.replace("DIGEST", &Digest::of(b"").to_string()))
            }
            () if path.contains("/broken/") => Reply::new(500, ""),
            () if path.contains("/app/") => registry_reply(&image, request),
            () => Reply::new(404, ""),
        }
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory);
    let credentials = Credentials::basic("a", "b");
    let at = |name: &str| registry.name(name);
    for (image, credentials, code) in [
        (at("app"), None, None),
        (at("private"), None, Some("ANON_ACCESS_DENIED")),
        (at("private"), Some(&credentials), Some("AUTH_ACCESS_DENIED")),
        (at("app:none"), None, Some("ANON_NOT_FOUND")),
        (at("app:none"), Some(&credentials), Some("AUTH_NOT_FOUND")),
        (at("foreign"), None, Some("INVALID_ARCH")),
        (at("windows"), None, Some("INVALID_OS")),
        (at("broken"), None, Some("REGISTRY_ERROR")),
        ("registry.invalid/app".into(), None, Some("DNS")),
        ("https://docker.io/nginx".into(), None, Some("INVALID_SCHEME")),
        ("NGINX!".into(), None, Some("MALFORMED")),
        ("127.0.0.1:1/app".into(), None, Some("REGISTRY_ERROR")),
    ] {
        let verified = store.verify(&image, credentials).await;
        assert_eq!(
            verified.code.map(VerifyCode::as_str),
            code,
            "{image}: {}",
            verified.reason
        );
        assert_eq!(verified.success(), verified.reason.is_empty(), "{image}");
    }
}

#[tokio::test]
async fn a_full_disk_is_told_and_leaves_no_junk() {
    if !is_root("a_full_disk_is_told_and_leaves_no_junk") {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let options = std::ffi::CString::new("size=2m").unwrap();
    rustix::mount::mount(
        "tmpfs",
        place.path(),
        "tmpfs",
        rustix::mount::MountFlags::empty(),
        Some(options.as_c_str()),
    )
    .expect("a small disk");
    let (raw, _, _) = large();
    let zeros = TestImage::new(&[(
        Archive::new().file("zeros", &vec![0; 4 << 20]).build(),
        Compression::Gzip,
    )]);
    let mut outcomes = Vec::new();
    for image in [raw, zeros] {
        let registry = Scripted::start(move |request| registry_reply(&image, request)).await;
        let store = tram_image::ImageStore::open(place.path().join("store"), settings()).unwrap();
        let error = pull(&store, &registry.name("big")).await.unwrap_err();
        let left: usize = ["tmp", "partial", "layers", "blobs/sha256", "images"]
            .iter()
            .map(|name| {
                fs::read_dir(place.path().join("store").join(name))
                    .unwrap()
                    .count()
            })
            .sum();
        outcomes.push((
            matches!(error, Error::DiskFull { .. }),
            error.fault(),
            left,
            error.to_string(),
        ));
    }
    rustix::mount::unmount(place.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
    for (full, fault, left, text) in outcomes {
        assert!(full && fault == Fault::Host && left == 0, "{text} ({left} left)");
    }
}

#[tokio::test]
async fn room_is_left_on_the_disk() {
    if !is_root("room_is_left_on_the_disk") {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let options = std::ffi::CString::new("size=8m").unwrap();
    rustix::mount::mount(
        "tmpfs",
        place.path(),
        "tmpfs",
        rustix::mount::MountFlags::empty(),
        Some(options.as_c_str()),
    )
    .expect("a small disk");
    let zeros = |name: &str| {
        let archive = Archive::new().file(name, &vec![0; 5 << 20]).build();
        TestImage::new(&[(archive, Compression::Gzip)])
    };
    // The floor is more than the disk, so half of what is free at first stays free.
    let store = tram_image::ImageStore::open(place.path().join("store"), settings()).unwrap();
    let mut outcomes = Vec::new();
    for image in [zeros("one"), zeros("two")] {
        let registry = Scripted::start(move |request| registry_reply(&image, request)).await;
        outcomes.push(
            pull(&store, &registry.name("app"))
                .await
                .map(|image| image.size_bytes),
        );
    }
    drop(store);
    rustix::mount::unmount(place.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
    assert!(outcomes[0].is_ok(), "{outcomes:?}");
    let Err(error @ Error::DiskFull { .. }) = &outcomes[1] else {
        panic!("{outcomes:?}")
    };
    let cause = std::error::Error::source(error).unwrap().to_string();
    assert!(cause.contains("leave"), "before the disk is full: {cause}");
    assert!(error.retryable());
}
