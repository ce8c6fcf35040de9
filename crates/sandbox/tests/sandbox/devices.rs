//! Devices of the machine in an instance: those that it is given, and no other.

use std::fs;

use tram_sandbox::client::Error;
use tram_sandbox::protocol::{BindMount, DeviceNode, IdRange, LaunchSpec, Link, Refusal};

use crate::support::World;

fn device(source: &str, target: &str) -> DeviceNode {
    DeviceNode {
        source: source.into(),
        target: target.into(),
        number: None,
    }
}

fn link(path: &str, target: &str) -> Link {
    Link {
        path: path.into(),
        target: target.into(),
    }
}

/// Reads and writes the two devices, follows the links, and tries what it was not given.
const SCRIPT: &str = "head -c 3 /dev/acme0 | od -An -tx1; (echo x > /dev/acme-caps/cap1) 2>&1 | grep -o 'No space.*'; \
    readlink /dev/by-path/one; head -c 1 /dev/by-path/one | od -An -tx1; cat /opt/lib/libacme.so; \
    ls -d /dev/kmsg /dev/mem /dev/loop0 2>/dev/null; \
    mknod /dev/other c 1 5; mknod /tmp/other c 1 5; \
    for f in /dev/other /tmp/other /opt/own/node; do (head -c 1 $f >/dev/null) 2>/dev/null && echo OPENED $f; done; \
    (echo x > /opt/lib/libacme.so.1) 2>/dev/null || echo refused; true";
const SEEN: [&str; 6] = [
    " 00 00 00",
    "No space left on device",
    "../acme0",
    " 00",
    "a library",
    "refused",
];

fn spec(world: &World) -> LaunchSpec {
    let library = world.dir.path().join("libacme.so.1");
    fs::write(&library, "a library\n").unwrap();
    let own = world.dir.path().join("own");
    fs::create_dir_all(&own).unwrap();
    // A node that comes along with a folder, as somebody else may have made it there.
    nix::sys::stat::mknod(
        &own.join("node"),
        nix::sys::stat::SFlag::S_IFCHR,
        nix::sys::stat::Mode::from_bits_truncate(0o666),
        nix::sys::stat::makedev(1, 5),
    )
    .unwrap();
    let mut spec = world.shell(SCRIPT);
    spec.devices = vec![
        device("/dev/zero", "/dev/acme0"),
        device("/dev/full", "/dev/acme-caps/cap1"),
    ];
    spec.binds = vec![
        BindMount {
            source: library,
            target: "/opt/lib/libacme.so.1".into(),
            readonly: true,
        },
        BindMount {
            source: own,
            target: "/opt/own".into(),
            readonly: true,
        },
    ];
    spec.links = vec![
        link("/dev/by-path/one", "../acme0"),
        link("/opt/lib/libacme.so", "libacme.so.1"),
        link("/opt/lib/libacme.so.1", "is mounted and stays"),
    ];
    spec
}

#[test]
fn it_has_the_devices_that_it_is_given_and_no_other() {
    let Some(world) = World::new() else { return };
    let spec = spec(&world);
    assert_eq!(world.output(spec), SEEN);
}

#[test]
fn in_a_user_namespace_too() {
    let Some(world) = World::new() else { return };
    let mut spec = spec(&world);
    spec.ids = Some(IdRange::numbered(4));
    assert_eq!(world.output(spec), SEEN);
}

#[test]
fn what_is_no_device_or_another_one_is_not_shown() {
    let Some(world) = World::new() else { return };
    let wrong = [
        device("/etc/hostname", "/dev/acme0"),
        device("/dev/shm", "/dev/acme0"),
        device("/dev/nowhere", "/dev/acme0"),
        DeviceNode {
            number: Some((195, 0)),
            ..device("/dev/zero", "/dev/acme0")
        },
    ];
    for device in wrong {
        let mut spec = world.shell("true");
        spec.devices = vec![device.clone()];
        let error = world.client().launch(spec).unwrap_err();
        assert!(error.to_string().contains("/dev/acme0"), "{device:?}: {error}");
    }
    for (target, path) in [
        ("/dev/null", "/x"),
        ("/dev/pts/9", "/x"),
        ("/dev/../etc/x", "/x"),
        ("/tmp/x", "/x"),
        ("/dev", "/x"),
        ("/dev/acme0", "/proc/x"),
        ("/dev/acme0", "/dev/fd"),
        ("/dev/acme0", "relative"),
    ] {
        let mut spec = world.shell("true");
        spec.devices = vec![device("/dev/zero", target)];
        spec.links = vec![link(path, "somewhere")];
        let error = world.client().launch(spec).unwrap_err();
        assert!(
            matches!(error, Error::Refused(Refusal::InvalidSpec { .. })),
            "{target} {path}: {error}"
        );
    }
}
