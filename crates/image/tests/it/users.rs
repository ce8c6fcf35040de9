//! Users of images, looked up through layers as they would be mounted.

use std::path::PathBuf;

use tempfile::TempDir;
use tram_image::unpack::{Budget, unpack_layer};
use tram_image::{Error, Limits, resolve_user, user};

use crate::support::{Archive, is_root};

const PASSWD: &[u8] =
    b"# comment\nroot:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:App:/srv:/bin/sh\n77:x:5:6::/:\nbroken\n";
const GROUP: &[u8] = b"root:x:0:\napp:x:1001:\nvideo:x:44:app,other\naudio:x:29: app\n";

/// Unpacks archives, bottom first; the paths are top first.
fn layers(directory: &TempDir, archives: Vec<Vec<u8>>) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = archives
        .iter()
        .enumerate()
        .map(|(index, archive)| {
            let path = directory.path().join(index.to_string());
            std::fs::create_dir(&path).unwrap();
            unpack_layer(&archive[..], &path, &Budget::new(&Limits::default())).unwrap();
            path
        })
        .collect();
    paths.reverse();
    paths
}

fn base() -> Archive {
    Archive::new().file("etc/passwd", PASSWD).file("etc/group", GROUP)
}

#[test]
fn names_and_numbers_in_any_mixture() {
    if !is_root("names_and_numbers_in_any_mixture") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let layers = layers(&directory, vec![base().build()]);
    let resolve = |user: &str| {
        let user = resolve_user(&layers, user).unwrap_or_else(|error| panic!("{user}: {error}"));
        (
            user.uid,
            user.gid,
            user.supplementary_gids,
            user.home.to_str().unwrap().to_owned(),
        )
    };
    assert_eq!(resolve(""), (0, 0, vec![], "/root".into()));
    assert_eq!(resolve("app"), (1000, 1001, vec![29, 44], "/srv".into()));
    assert_eq!(resolve("1000"), (1000, 1001, vec![29, 44], "/srv".into()));
    assert_eq!(resolve("app:video"), (1000, 44, vec![], "/srv".into()));
    assert_eq!(resolve("app:7"), (1000, 7, vec![], "/srv".into()));
    assert_eq!(resolve("4242"), (4242, 0, vec![], "/".into()));
    assert_eq!(resolve("4242:app"), (4242, 1001, vec![], "/".into()));
    assert_eq!(resolve(":app"), (0, 1001, vec![], "/root".into()));
    assert_eq!(resolve("77").0, 5, "a name made of digits is a name");
    for (user, part) in [
        ("nobody", "user `nobody`"),
        ("app:none", "group `none`"),
        ("-1", "user"),
        ("4294967295", "user"),
    ] {
        let error = resolve_user(&layers, user).expect_err(user);
        assert!(
            matches!(error, Error::UnknownUser { .. }) && error.to_string().contains(part),
            "{error}"
        );
    }
    assert_eq!(resolve_user(&[], "9:8").unwrap().gid, 8, "an image without files");
}

#[test]
fn the_top_layer_wins_and_links_stay_inside() {
    if !is_root("the_top_layer_wins_and_links_stay_inside") {
        return;
    }
    let uid = |archives: Vec<Archive>| {
        let directory = tempfile::tempdir().unwrap();
        let layers = layers(&directory, archives.into_iter().map(Archive::build).collect());
        resolve_user(&layers, "app").ok().map(|user| user.uid)
    };
    let newer = || Archive::new().file("etc/passwd", b"app:x:2:2::/:\n");
    assert_eq!(uid(vec![base(), newer()]), Some(2));
    assert_eq!(
        uid(vec![base(), Archive::new().file("etc/other", b"")]),
        Some(1000),
        "directories merge"
    );
    assert_eq!(
        uid(vec![base(), Archive::new().file("etc/.wh.passwd", b"")]),
        None
    );
    assert_eq!(uid(vec![base(), Archive::new().file(".wh.etc", b"")]), None);
    assert_eq!(
        uid(vec![base(), Archive::new().file("etc/.wh..wh..opq", b"")]),
        None
    );
    assert_eq!(uid(vec![base(), Archive::new().file("etc", b"a file now")]), None);
    let stored = || Archive::new().file("nix/store/passwd", b"app:x:3:3::/:\n");
    assert_eq!(
        uid(vec![
            stored(),
            Archive::new().symlink("etc/passwd", "/nix/store/passwd")
        ]),
        Some(3)
    );
    assert_eq!(
        uid(vec![
            stored(),
            Archive::new().symlink("etc/passwd", "../../../nix/store/passwd")
        ]),
        Some(3)
    );
    assert_eq!(
        uid(vec![base(), Archive::new().symlink("etc/passwd", "/etc/passwd")]),
        None,
        "a circle ends"
    );

    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("secret"), "app:x:9:9::/:\n").unwrap();
    let target = directory.path().join("secret");
    let escape = Archive::new()
        .symlink("etc/passwd", target.to_str().unwrap())
        .build();
    let escaped = layers(&directory, vec![escape]);
    assert!(resolve_user(&escaped, "app").is_err());
    assert_eq!(user::read_file(&escaped, "etc/passwd", 10).unwrap(), None);
}

#[test]
fn deep_places_of_many_layers_do_not_use_up_descriptors() {
    let directory = tempfile::tempdir().unwrap();
    // Links, so that a path of the archive's own need not be deep.
    let place = |layers: usize, depth: usize| {
        let deep = "d/".repeat(depth);
        let base = directory.path().join(format!("{layers}-{depth}"));
        let paths: Vec<PathBuf> = (0..layers).map(|index| base.join(index.to_string())).collect();
        for path in &paths {
            std::fs::create_dir_all(path.join("etc")).unwrap();
            std::fs::create_dir_all(path.join(&deep)).unwrap();
            std::os::unix::fs::symlink(format!("/{deep}passwd"), path.join("etc/passwd")).unwrap();
        }
        std::fs::write(paths[layers - 1].join(&deep).join("passwd"), PASSWD).unwrap();
        resolve_user(&paths, "app").ok().map(|user| user.uid)
    };
    assert_eq!(place(1, 20), Some(1000));
    assert_eq!(place(40, 20), Some(1000));
    assert_eq!(place(1, 60), None, "too deep");
    assert_eq!(place(100, 20), None, "too many in all");
}
