//! Imports, made by hand and by skopeo and umoci; and images whose layers are hostile.

use std::fs;
use std::io::Cursor;
use std::path::Path;
use std::process::Command;

use tram_image::{
    Digest, Error, Fault, Freshness, ImageStore, Origin, Progress, PullPolicy, unpack::UnpackError,
};

use crate::support::{
    Archive, Compression, Registry, Reply, Scripted, TestImage, compress, host_architecture, is_root, pull,
    registry_reply, request, settings, skip, small_limits, store,
};

/// `docker save`'s older form, with uncompressed layers and a link in the place of a repeated one.
pub(crate) fn docker_save(names: &[&str], layers: &[Vec<u8>]) -> Vec<u8> {
    let diff_ids: Vec<_> = layers
        .iter()
        .map(|layer| format!("\"{}\"", Digest::of(layer)))
        .collect();
    let config = format!(
        r#"{{"architecture":"{}","os":"linux","config":{{"Cmd":["/i"]}},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        host_architecture(),
        diff_ids.join(",")
    );
    let files: Vec<_> = (0..layers.len())
        .map(|index| format!("\"{index}/layer.tar\""))
        .collect();
    let names: Vec<_> = names.iter().map(|name| format!("\"{name}\"")).collect();
    let manifest = format!(
        r#"[{{"Config":"c.json","RepoTags":[{}],"Layers":[{}]}}]"#,
        names.join(","),
        files.join(",")
    );
    let mut archive = Archive::new()
        .file("manifest.json", manifest.as_bytes())
        .file("./c.json", config.as_bytes());
    for (index, layer) in layers.iter().enumerate() {
        let name = format!("{index}/layer.tar");
        archive = match layers[..index].iter().position(|other| other == layer) {
            Some(same) => archive.symlink(&name, &format!("../{same}/layer.tar")),
            None => archive.file(&name, layer),
        };
    }
    archive.build()
}

async fn import(store: &ImageStore, archive: Vec<u8>, name: Option<&str>) -> Result<Vec<String>, Error> {
    let name = name.map(|name| name.parse().unwrap());
    let imported = store
        .import(Cursor::new(archive), name, &Progress::channel().0)
        .await?;
    Ok(imported
        .into_iter()
        .map(|image| image.reference.familiar())
        .collect())
}

fn program(name: &str, arguments: &[&str]) -> bool {
    match Command::new(name).args(arguments).output() {
        Ok(output) => {
            assert!(
                output.status.success(),
                "{name} {arguments:?}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
            true
        }
        Err(error) => {
            skip(&format!(
                "{name} cannot be started: {error}: run `apt-get install {name}`"
            ));
            false
        }
    }
}

#[tokio::test]
async fn an_imported_image_stands_in_for_others_whose_registry_does_not_answer() {
    if !is_root("an_imported_image_stands_in_for_others_whose_registry_does_not_answer") {
        return;
    }
    // One that answers, and says no: that stays an error.
    let strict = Scripted::start(|_| Reply::new(404, "")).await;
    let directory = tempfile::tempdir().unwrap();
    let fallbacks = tram_image::Aliases::new([
        ("127.0.0.1:1/python", "house:1"),
        ("127.0.0.1:1/ruby", "nobody:1"),
        (&strict.name("python"), "house:1"),
    ]);
    let wanted = tram_image::Settings {
        fallbacks: fallbacks.unwrap(),
        ..settings()
    };
    let store = ImageStore::open(directory.path(), wanted).unwrap();
    let archive = docker_save(&["house:1"], &[Archive::new().file("i", b"1").build()]);
    import(&store, archive, None).await.unwrap();
    let ensure = |name: &str| {
        let (store, request) = (store.clone(), request(name, PullPolicy::Always));
        async move { store.ensure(&request, &Progress::channel().0).await }
    };
    let image = ensure("127.0.0.1:1/python:3.12-slim").await.unwrap();
    assert_eq!(image.reference.familiar(), "house:1");
    assert!(
        matches!(&image.freshness, Freshness::StandsIn { reason } if reason.contains("127.0.0.1:1")),
        "{:?}",
        image.freshness
    );
    for other in ["127.0.0.1:1/ruby:3", "127.0.0.1:1/perl:5"] {
        assert!(ensure(other).await.unwrap_err().unanswered(), "{other}");
    }
    let refused = ensure(&strict.name("python")).await.unwrap_err();
    assert!(matches!(refused, Error::NotFound { .. }), "{refused:?}");
}

#[tokio::test]
async fn docker_save_is_imported_and_stands_in_for_its_registry() {
    if !is_root("docker_save_is_imported_and_stands_in_for_its_registry") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory);
    let layers = [
        Archive::new().file("i", b"1").build(),
        Archive::new().file("j", b"2").build(),
    ];
    let layers = [layers[0].clone(), layers[1].clone(), layers[0].clone()];
    // Port 1 of loopback: nobody is there.
    let archive = docker_save(&["127.0.0.1:1/house/app:v1", "other:2"], &layers);
    assert_eq!(
        import(&store, archive.clone(), None).await.unwrap(),
        ["127.0.0.1:1/house/app:v1", "other:2"]
    );
    assert_eq!(fs::read_dir(directory.path().join("tmp")).unwrap().count(), 0);
    assert_eq!(
        fs::read_dir(directory.path().join("blobs/sha256"))
            .unwrap()
            .count(),
        2
    );
    let present = request("127.0.0.1:1/house/app:v1", PullPolicy::IfNotPresent);
    let image = store.ensure(&present, &Progress::channel().0).await.unwrap();
    assert_eq!(
        (image.config.cmd.as_slice(), image.layers.len()),
        (&["/i".to_owned()][..], 2)
    );
    assert_eq!(fs::read(image.layers[1].join("j")).unwrap(), b"2");
    let kept = pull(&store, "127.0.0.1:1/house/app:v1").await.unwrap();
    assert_eq!(
        (kept.freshness, kept.origin),
        (Freshness::Present, Origin::Archive)
    );
    assert!(store.verify("127.0.0.1:1/house/app:v1", None).await.success());
    let zipped = compress(&archive, Compression::Gzip);
    assert_eq!(import(&store, zipped, None).await.unwrap().len(), 2);
    let one = docker_save(&["a:1"], &layers[..1]);
    assert_eq!(
        import(&store, one, Some("renamed:9")).await.unwrap(),
        ["renamed:9"]
    );
}

#[tokio::test]
async fn whoever_owns_an_imported_name_on_a_registry_is_not_asked() {
    if !is_root("whoever_owns_an_imported_name_on_a_registry_is_not_asked") {
        return;
    }
    let theirs = TestImage::new(&[(Archive::new().file("theirs", b"x").build(), Compression::Gzip)]);
    let served = theirs.clone();
    let registry = Scripted::start(move |request| registry_reply(&served, request)).await;
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory);
    let name = registry.name("house/app");
    let archive = docker_save(
        &[&format!("{name}:latest")],
        &[Archive::new().file("ours", b"1").build()],
    );
    import(&store, archive, None).await.unwrap();
    let image = pull(&store, &name).await.unwrap();
    assert_ne!(image.manifest_digest, theirs.digest());
    assert!(image.layers[0].join("ours").exists());
    let verified = store.verify(&name, None).await;
    assert!(
        verified.success() && verified.reason.contains("imported"),
        "{verified:?}"
    );
    assert!(registry.seen().is_empty(), "{:?}", registry.seen());

    // Once the operator takes the name away, it is the registry's again.
    assert!(store.remove(&name.parse().unwrap()).await.unwrap());
    assert_eq!(
        pull(&store, &name).await.unwrap().manifest_digest,
        theirs.digest()
    );
}

#[tokio::test]
async fn what_skopeo_and_umoci_make_is_taken() {
    if !is_root("what_skopeo_and_umoci_make_is_taken") {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let path = |name: &str| work.path().join(name).to_str().unwrap().to_owned();
    fs::create_dir_all(work.path().join("root/srv")).unwrap();
    fs::write(work.path().join("root/srv/page"), "hello").unwrap();
    let image = format!("{}:v1", path("oci"));
    let made = program("umoci", &["init", "--layout", &path("oci")])
        && program("umoci", &["new", "--image", &image])
        && program("umoci", &["insert", "--image", &image, &path("root/srv"), "/srv"])
        && program(
            "umoci",
            &[
                "config",
                "--image",
                &image,
                "--config.entrypoint",
                "/srv/page",
                "--architecture",
                host_architecture(),
            ],
        );
    let source = format!("oci:{}:v1", path("oci"));
    if !made
        || !program(
            "skopeo",
            &[
                "--insecure-policy",
                "copy",
                &source,
                &format!("oci-archive:{}:v1", path("oci.tar")),
            ],
        )
    {
        return;
    }
    program(
        "skopeo",
        &[
            "--insecure-policy",
            "copy",
            &source,
            &format!("docker-archive:{}:example.test/page:v2", path("docker.tar")),
        ],
    );
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory);
    let progress = Progress::channel().0;
    let error = store
        .import_file(Path::new(&path("oci.tar")), None, &progress)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("--name"), "{error}");
    let name = "example.test/page:v1".parse().unwrap();
    store
        .import_file(Path::new(&path("oci.tar")), Some(name), &progress)
        .await
        .unwrap();
    let named = store
        .import_file(Path::new(&path("docker.tar")), None, &progress)
        .await
        .unwrap();
    assert_eq!(named[0].reference.to_string(), "example.test/page:v2");
    for tag in ["v1", "v2"] {
        let wanted = request(&format!("example.test/page:{tag}"), PullPolicy::IfNotPresent);
        let image = store.ensure(&wanted, &progress).await.unwrap();
        assert_eq!(image.config.entrypoint, ["/srv/page"]);
        assert!(
            image
                .layers
                .iter()
                .any(|layer| fs::read(layer.join("srv/page")).is_ok_and(|page| page == b"hello"))
        );
    }
    let Some(registry) = Registry::start() else { return };
    let target = format!("docker://{}", registry.name("page:v3"));
    program(
        "skopeo",
        &[
            "--insecure-policy",
            "copy",
            "--dest-tls-verify=false",
            &source,
            &target,
        ],
    );
    assert_eq!(
        pull(&store, &registry.name("page:v3"))
            .await
            .unwrap()
            .config
            .entrypoint,
        ["/srv/page"]
    );
}

#[tokio::test]
async fn archives_that_are_none_say_what_is_expected() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory);
    let refused = async |archive: Vec<u8>| {
        let error = import(&store, archive, None).await.unwrap_err();
        assert_eq!(error.fault(), Fault::User);
        assert_eq!(fs::read_dir(directory.path().join("tmp")).unwrap().count(), 0);
        error.to_string()
    };
    assert!(
        refused(b"not a tar at all".repeat(100))
            .await
            .contains("tar archive")
    );
    assert!(
        refused(Archive::new().file("x", b"").build())
            .await
            .contains("docker save")
    );
    assert!(
        refused(Archive::new().file("manifest.json", b"{").build())
            .await
            .contains("malformed")
    );
    let lacking = br#"[{"Config":"../../../etc/passwd","RepoTags":["a:1"],"Layers":["/etc/shadow"]}]"#;
    assert!(
        refused(Archive::new().file("manifest.json", lacking).build())
            .await
            .contains("lacks")
    );
    let circle = Archive::new().symlink("c", "d").symlink("d", "c");
    let circle = circle
        .file("manifest.json", br#"[{"Config":"c","Layers":[]}]"#)
        .build();
    assert!(refused(circle).await.contains("lacks"));
    let digest = "ab".repeat(32);
    let index = format!(r#"{{"schemaVersion":2,"manifests":[{{"digest":"sha256:{digest}","size":1}}]}}"#);
    let lying = Archive::new()
        .file("index.json", index.as_bytes())
        .file(&format!("blobs/sha256/{digest}"), b"x")
        .build();
    assert!(refused(lying).await.contains("other contents"));
    let mut cut = docker_save(&["a:1"], &[Archive::new().file("i", &[7; 9000]).build()]);
    cut.truncate(cut.len() - 4000);
    refused(cut).await;
}

#[tokio::test]
async fn hostile_layers_fail_the_pull_and_leave_nothing() {
    if !is_root("hostile_layers_fail_the_pull_and_leave_nothing") {
        return;
    }
    let good = Archive::new().file("good", b"").build();
    let escape = Archive::new().file("../../../escape", b"").build();
    let bomb = Archive::new().file("zeros", &vec![0; 8 << 20]).build();
    let mut wrong = TestImage::new(&[(good.clone(), Compression::Gzip)]);
    let blob = wrong
        .blobs
        .iter()
        .find(|(_, blob)| blob.starts_with(&[0x1f, 0x8b]))
        .map(|(digest, _)| *digest)
        .unwrap();
    let other = compress(&Archive::new().file("other", b"").build(), Compression::Gzip);
    let text = String::from_utf8(wrong.manifest.clone()).unwrap();
    let size = format!("\"{blob}\",\"size\":{}", wrong.blobs[&blob].len());
    wrong.manifest = text
        .replace(
            &size,
            &format!("\"{}\",\"size\":{}", Digest::of(&other), other.len()),
        )
        .into_bytes();
    wrong.blobs.insert(Digest::of(&other), other);

    let images = [
        (TestImage::new(&[(escape, Compression::Zstd)]), "escape"),
        (TestImage::new(&[(bomb, Compression::Gzip)]), "too large"),
        (wrong, "promises"),
        (
            TestImage::new(&[(vec![1; 4096], Compression::Gzip)]),
            "tar archive",
        ),
    ];
    for (image, part) in images {
        let directory = tempfile::tempdir().unwrap();
        let store = ImageStore::open(directory.path(), small_limits(4 << 20, 1000)).unwrap();
        let registry = Scripted::start(move |request| registry_reply(&image, request)).await;
        let error = pull(&store, &registry.name("hostile")).await.unwrap_err();
        assert!(error.to_string().contains(part), "{part}: {error}");
        assert_eq!((error.fault(), error.retryable()), (Fault::User, false), "{part}");
        for place in ["tmp", "layers", "partial", "blobs/sha256", "images"] {
            assert_eq!(
                fs::read_dir(directory.path().join(place)).unwrap().count(),
                0,
                "{part}: {place}"
            );
        }
    }
}

#[tokio::test]
async fn a_layer_is_not_had_by_claiming_its_diff_id() {
    if !is_root("a_layer_is_not_had_by_claiming_its_diff_id") {
        return;
    }
    let secret = Archive::new().file("secret", b"of another tenant").build();
    let own = compress(&Archive::new().file("own", b"").build(), Compression::Gzip);
    let theirs = TestImage::new(&[(secret.clone(), Compression::Gzip)]);
    let mut thief = TestImage::new(&[(secret, Compression::Gzip)]);
    let blob = theirs
        .blobs
        .iter()
        .find(|(_, blob)| blob.starts_with(&[0x1f, 0x8b]))
        .map(|(digest, _)| *digest)
        .unwrap();
    let old = format!("\"{blob}\",\"size\":{}", theirs.blobs[&blob].len());
    let new = format!("\"{}\",\"size\":{}", Digest::of(&own), own.len());
    thief.manifest = String::from_utf8(thief.manifest)
        .unwrap()
        .replace(&old, &new)
        .into_bytes();
    thief.blobs.insert(Digest::of(&own), own);
    let registry = Scripted::start(move |request| {
        registry_reply(
            if request.path.contains("/theirs/") {
                &theirs
            } else {
                &thief
            },
            request,
        )
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let store = store(&directory);
    pull(&store, &registry.name("theirs")).await.unwrap();
    let error = pull(&store, &registry.name("thief")).await.unwrap_err();
    assert!(
        matches!(
            error,
            Error::Layer {
                source: UnpackError::DiffId { .. },
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn a_lying_image_does_not_spoil_an_honest_one_pulled_with_it() {
    if !is_root("a_lying_image_does_not_spoil_an_honest_one_pulled_with_it") {
        return;
    }
    // Both name the same blob; the liar says that it holds something else.
    let honest = TestImage::new(&[(Archive::new().file("x", &[7; 100_000]).build(), Compression::Gzip)]);
    let other = TestImage::new(&[(Archive::new().file("y", b"").build(), Compression::Gzip)]);
    let mut liar = other.clone();
    let blob_of = |image: &TestImage| {
        let (digest, blob) = image
            .blobs
            .iter()
            .find(|(_, blob)| blob.starts_with(&[0x1f, 0x8b]))
            .unwrap();
        format!("\"{digest}\",\"size\":{}", blob.len())
    };
    let text = String::from_utf8(liar.manifest).unwrap();
    liar.manifest = text.replace(&blob_of(&other), &blob_of(&honest)).into_bytes();
    liar.blobs.extend(honest.blobs.clone());
    let registry = Scripted::start(move |request| {
        registry_reply(
            if request.path.contains("/honest/") {
                &honest
            } else {
                &liar
            },
            request,
        )
    })
    .await;
    for _ in 0..10 {
        let directory = tempfile::tempdir().unwrap();
        let store = store(&directory);
        let names = [registry.name("liar"), registry.name("honest")];
        let (lied, told) = tokio::join!(pull(&store, &names[0]), pull(&store, &names[1]));
        assert!(matches!(
            lied,
            Err(Error::Layer {
                source: UnpackError::DiffId { .. },
                ..
            })
        ));
        told.unwrap();
    }
}
