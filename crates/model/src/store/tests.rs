//! Models go in once, come out by every name, and stay while they are used.

use super::*;
use crate::gguf::tests::tiny;

pub(crate) fn model(name: &str, size_bytes: u64, context_length: u64, cache_bytes_per_token: u64) -> Model {
    Model {
        name: name.to_owned(),
        digest: Digest("0".repeat(64)),
        size_bytes,
        origin: String::new(),
        added_at: Timestamp::EPOCH,
        gguf: Gguf {
            architecture: "llama".to_owned(),
            name: String::new(),
            parameters: 1,
            quantization: "F32".to_owned(),
            context_length,
            cache_bytes_per_token,
            has_chat_template: true,
            is_embedding: false,
            fills_in: false,
            is_adapter: false,
            step_bytes_per_token: 0,
        },
    }
}

fn new(name: &str) -> NewModel {
    NewModel {
        name: name.to_owned(),
        ..NewModel::default()
    }
}

fn unused(_: &Digest) -> io::Result<usize> {
    Ok(0)
}

#[test]
fn a_bounded_store_forgets_what_nobody_uses_the_longest_unused_first() {
    let root = tempfile::tempdir().unwrap();
    let files: Vec<Vec<u8>> = (0..5)
        .map(|number| [tiny(), vec![number; 100]].concat())
        .collect();
    let size = u64::try_from(files[0].len()).unwrap();
    let store = ModelStore::open(root.path())
        .unwrap()
        .bounded(Some(3 * size + 10));
    let import = |name: &str, uses: &dyn Fn(&Digest) -> io::Result<usize>| {
        let number: usize = name[..1].parse().unwrap();
        store.import(&new(name), &mut files[number].as_slice(), uses)
    };
    let at = |name: &str, seconds: u64| {
        let file = File::options().append(true).open(store.name_path(name)).unwrap();
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
        file.set_modified(time).unwrap();
    };
    let first = import("0-a", &unused).unwrap().model;
    for name in ["1-a", "2-a"] {
        assert!(import(name, &unused).unwrap().removed.is_empty());
    }
    // Another name for what is there takes no room.
    assert!(import("0-b", &unused).unwrap().removed.is_empty());
    for (name, seconds) in [("0-a", 1), ("0-b", 40), ("1-a", 20), ("2-a", 30)] {
        at(name, seconds);
    }
    assert_eq!(import("3-a", &unused).unwrap().removed, ["1-a"]);
    at("3-a", 50);
    // The oldest is in use now.
    store.hold("0-b", |_| Ok(())).unwrap();
    at("2-a", 1_000_000_000_000);
    assert_eq!(import("4-a", &unused).unwrap().removed, ["3-a"]);
    assert!(store.path(&first.digest).exists());
    // Nothing is removed for what has no room all the same, nor when nobody can say what is used.
    let before = store.list();
    let error = import("1-a", &|_| Ok(1)).unwrap_err();
    assert!(
        matches!(error, Error::NoRoom { used_bytes, .. } if used_bytes == 3 * size),
        "{error}"
    );
    assert!(error.to_string().contains("`models_space_max`"), "{error}");
    assert!(import("1-a", &|_| Err(io::Error::other("unknown"))).is_err());
    assert_eq!(store.list(), before);
    // All names of a file go with it.
    at("0-a", 1);
    at("0-b", 2);
    assert_eq!(import("1-a", &unused).unwrap().removed, ["0-a", "0-b"]);
    assert!(!store.path(&first.digest).exists());
    assert_eq!(fs::read_dir(root.path().join("blobs")).unwrap().count(), 3);
}

#[test]
fn a_model_is_kept_once_and_found_by_name_digest_and_origin() {
    let root = tempfile::tempdir().unwrap();
    let store = ModelStore::open(root.path()).unwrap();
    let file = tiny();
    let first = store
        .import(&new("first"), &mut file.as_slice(), unused)
        .unwrap()
        .model;
    let fetched = NewModel {
        origin: "https://example.org/x.gguf".to_owned(),
        digest: Some(first.digest.clone()),
        ..new("second")
    };
    let second = store
        .import(&fetched, &mut file.as_slice(), unused)
        .unwrap()
        .model;
    assert_eq!(first.digest, second.digest);
    assert_eq!(fs::read_dir(root.path().join("blobs")).unwrap().count(), 1);
    let path = store.path(&first.digest);
    assert_eq!(fs::read(&path).unwrap(), file);
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        BLOB_MODE
    );

    let again = ModelStore::open(root.path()).unwrap();
    assert_eq!(again.list(), [first.clone(), second.clone()]);
    assert_eq!(again.find("first"), Some(first.clone()));
    assert_eq!(again.find(&first.digest.to_string()), Some(first));
    assert_eq!(again.find("https://example.org/x.gguf"), Some(second));
    assert_eq!(again.find(""), None);
    assert_eq!(again.find("other"), None);
}

#[test]
fn what_is_no_model_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let store = ModelStore::open(root.path()).unwrap();
    let file = tiny();
    let cut = &file[..file.len() - 1];
    let error = store.import(&new("cut"), &mut &*cut, unused).unwrap_err();
    assert!(matches!(error, Error::Gguf(gguf::Error::Short { .. })), "{error}");
    let error = store
        .import(&new("text"), &mut &b"not a model at all"[..], unused)
        .unwrap_err();
    assert!(matches!(error, Error::Gguf(gguf::Error::Magic)), "{error}");
    let error = store
        .import(&new("../up"), &mut file.as_slice(), unused)
        .unwrap_err();
    assert!(matches!(error, Error::Name { .. }), "{error}");
    let other = NewModel {
        digest: Some(Digest("0".repeat(64))),
        ..new("other")
    };
    let error = store.import(&other, &mut file.as_slice(), unused).unwrap_err();
    assert!(matches!(error, Error::Checksum { .. }), "{error}");
    for room in ["blobs", "names", "partial"] {
        assert_eq!(fs::read_dir(root.path().join(room)).unwrap().count(), 0, "{room}");
    }
}

#[test]
fn a_name_is_taken_by_one_model() {
    let root = tempfile::tempdir().unwrap();
    let store = ModelStore::open(root.path()).unwrap();
    let mut file = tiny();
    let first = store
        .import(&new("one"), &mut file.as_slice(), unused)
        .unwrap()
        .model;
    assert_eq!(
        store
            .import(&new("one"), &mut file.as_slice(), unused)
            .unwrap()
            .model,
        first
    );
    file.push(0);
    let error = store
        .import(&new("one"), &mut file.as_slice(), unused)
        .unwrap_err();
    assert!(matches!(error, Error::NameTaken(_)), "{error}");
}

#[test]
fn the_last_name_of_a_model_in_use_stays() {
    let root = tempfile::tempdir().unwrap();
    let store = ModelStore::open(root.path()).unwrap();
    let file = tiny();
    let model = store
        .import(&new("one"), &mut file.as_slice(), unused)
        .unwrap()
        .model;
    store.import(&new("two"), &mut file.as_slice(), unused).unwrap();
    store.remove("two", |_| Ok(1)).unwrap();
    let error = store.remove("one", |_| Ok(1)).unwrap_err();
    assert!(matches!(error, Error::InUse { deployments: 1, .. }), "{error}");
    assert!(store.path(&model.digest).exists());
    let unknown = store
        .remove("one", |_| Err(io::Error::other("unknown")))
        .unwrap_err();
    assert!(matches!(unknown, Error::Io { .. }), "{unknown}");
    store.remove("one", |_| Ok(0)).unwrap();
    assert!(!store.path(&model.digest).exists());
    assert!(matches!(store.remove("one", |_| Ok(0)), Err(Error::NotFound(_))));
    assert!(ModelStore::open(root.path()).unwrap().list().is_empty());
}

#[test]
fn what_a_process_that_died_left_goes_at_the_next_opening() {
    let root = tempfile::tempdir().unwrap();
    ModelStore::open(root.path()).unwrap();
    fs::write(root.path().join("partial/left"), "half").unwrap();
    fs::write(root.path().join("blobs").join("0".repeat(64)), "without a name").unwrap();
    ModelStore::open(root.path()).unwrap();
    assert!(!root.path().join("partial/left").exists());
    assert!(!root.path().join("blobs").join("0".repeat(64)).exists());
}

#[test]
fn a_use_is_written_down_before_anybody_removes() {
    let root = tempfile::tempdir().unwrap();
    let store = ModelStore::open(root.path()).unwrap();
    let model = store
        .import(&new("one"), &mut tiny().as_slice(), unused)
        .unwrap()
        .model;
    let mut seen = None;
    let held = store.hold("one", |found| {
        seen = Some(found.digest.clone());
        Ok(())
    });
    assert_eq!(held.unwrap(), model);
    assert_eq!(seen, Some(model.digest));
    assert!(matches!(store.hold("none", |_| Ok(())), Err(Error::NotFound(_))));
    assert!(store.hold("one", |_| Err(io::Error::other("full"))).is_err());
}
