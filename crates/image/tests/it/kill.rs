//! `kill -9` at random points of a pull: what has a final name is whole, and the next pull completes.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tram_image::{CollectPolicy, Digest};

use crate::support::{Archive, Compression, Scripted, TestImage, is_root, pull, registry_reply, store};

/// Tells the child what to pull and where to.
const CHILD_DIRECTORY: &str = "TRAM_IMAGE_TEST_DIRECTORY";
const CHILD_IMAGE: &str = "TRAM_IMAGE_TEST_IMAGE";
const ROUNDS: u64 = 16;

fn image() -> TestImage {
    let layer = |seed: u8| {
        let files = (0..200_u16).fold(Archive::new(), |archive, index| {
            let bytes: Vec<u8> = (0..2000_u16)
                .map(|at| at.wrapping_mul(index).to_be_bytes()[0] ^ seed)
                .collect();
            archive.file(&format!("layer{seed}/file{index}"), &bytes)
        });
        (files.build(), Compression::Gzip)
    };
    TestImage::new(&[layer(1), layer(2), layer(3), layer(4)])
}

/// Not a test of its own: the process that is killed.
#[tokio::test]
#[ignore = "run by the test below in a process of its own"]
async fn child_pulls() {
    let (Ok(directory), Ok(image)) = (std::env::var(CHILD_DIRECTORY), std::env::var(CHILD_IMAGE)) else {
        return;
    };
    let store = tram_image::ImageStore::open(directory, crate::support::settings()).unwrap();
    pull(&store, &image).await.unwrap();
}

/// Names and sizes of everything in a tree.
fn contents(root: &Path) -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    let mut left = vec![root.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            let metadata = entry.metadata().unwrap();
            if metadata.is_dir() {
                left.push(entry.path());
            } else {
                let name = entry
                    .path()
                    .strip_prefix(root)
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .to_owned();
                all.insert(name, metadata.len());
            }
        }
    }
    all
}

#[tokio::test]
async fn killed_at_any_point_the_store_is_whole() {
    if !is_root("killed_at_any_point_the_store_is_whole") {
        return;
    }
    let image = image();
    let served = image.clone();
    let registry = Scripted::start(move |request| registry_reply(&served, request)).await;
    let name = registry.name("app");
    // How long it takes undisturbed, and what comes out.
    let reference = tempfile::tempdir().unwrap();
    let started = Instant::now();
    let whole = pull(&store(&reference), &name).await.unwrap();
    let usual = started.elapsed();
    let expected: Vec<_> = whole.layers.iter().map(|layer| contents(layer)).collect();

    let mut killed = 0;
    for round in 0..ROUNDS {
        let directory = tempfile::tempdir().unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "kill::child_pulls", "--ignored", "--test-threads", "1"])
            .env(CHILD_DIRECTORY, directory.path())
            .env(CHILD_IMAGE, &name)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // The point is the moment: rounds spread evenly over a little more than a whole pull.
        let moment = usual.mul_f64(1.3 * (round + 1) as f64 / ROUNDS as f64) + Duration::from_millis(5);
        tokio::time::sleep(moment).await;
        killed += u64::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();

        // What bears a final name must already be whole, before anything is mended.
        let layers = directory.path().join("layers");
        if layers.exists() {
            for entry in fs::read_dir(&layers).unwrap().map(|entry| entry.unwrap().path()) {
                if entry.is_dir() && entry.with_extension("json").exists() {
                    let at = whole
                        .layers
                        .iter()
                        .position(|layer| layer.file_name() == entry.file_name())
                        .unwrap();
                    assert_eq!(contents(&entry), expected[at], "round {round}");
                }
            }
        }
        let blobs = directory.path().join("blobs/sha256");
        if blobs.exists() {
            for entry in fs::read_dir(&blobs).unwrap().map(|entry| entry.unwrap().path()) {
                let name = entry.file_name().unwrap().to_str().unwrap().to_owned();
                assert_eq!(
                    Digest::of(&fs::read(&entry).unwrap()).hex(),
                    name,
                    "round {round}"
                );
            }
        }
        let store = store(&directory);
        let pulled = pull(&store, &name)
            .await
            .unwrap_or_else(|error| panic!("round {round}: {error}"));
        let found: Vec<_> = pulled.layers.iter().map(|layer| contents(layer)).collect();
        assert_eq!(found, expected, "round {round}");
        let now = CollectPolicy {
            grace: Duration::ZERO,
            ..CollectPolicy::default()
        };
        drop(pulled);
        store.collect(&[], &now).await.unwrap();
        for place in ["tmp", "partial"] {
            assert_eq!(
                fs::read_dir(directory.path().join(place)).unwrap().count(),
                0,
                "round {round}: {place}"
            );
        }
        assert_eq!(
            fs::read_dir(&blobs).unwrap().count(),
            2,
            "round {round}: no blob is left over"
        );
    }
    println!("{killed} of {ROUNDS} rounds were killed under way (a pull takes {usual:?})");
    assert!(killed >= ROUNDS / 4, "only {killed} rounds were killed under way");
}
