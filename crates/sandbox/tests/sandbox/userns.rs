//! User namespaces: root inside is nobody outside, and neither the image nor the disk can tell.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};

use tram_sandbox::protocol::{BindMount, ConfigFile, ExecSpec, IdRange, LaunchSpec, User};

use crate::support::World;

const OURS: IdRange = IdRange::numbered(3);

/// How the writable layer is kept: beside the instance, in memory, on a disk of its own.
fn kinds(spec: &LaunchSpec) -> [LaunchSpec; 3] {
    let with = |name: &str, change: fn(&mut LaunchSpec)| {
        let mut spec = spec.clone();
        spec.id = format!("{}-{name}", spec.id).parse().unwrap();
        spec.ids = Some(OURS);
        change(&mut spec);
        spec
    };
    [
        with("beside", |_| {}),
        with("memory", |spec| spec.upper_bytes_max = Some(8 << 20)),
        with("disk", |spec| spec.disk_bytes_max = Some(32 << 20)),
    ]
}

#[test]
fn files_have_the_owners_that_the_image_gives_them() {
    let Some(world) = World::new() else { return };
    let lower = world.lower.join("owned");
    fs::write(&lower, "by somebody\n").unwrap();
    chown(&lower, Some(1234), Some(2345)).unwrap();
    let volume = world.dir.path().join("volume");
    fs::create_dir(&volume).unwrap();
    let script = "s() { stat -c '%u:%g %n' \"$@\"; }; s / /bin /owned /etc/given /dev /dev/shm /data; id -u; \
        touch /new /data/new /dev/shm/new; chown 7:8 /new; s /new /data/new /dev/shm/new; \
        mv /owned /moved; chown 0 /moved; chmod 4755 /moved; s /moved; mkdir -p /a/b; rm -r /a; ln -s x /link; \
        (chown 70000 /new || echo refused) 2>&1 | tail -1; cat /proc/self/uid_map; cat /moved; \
        mkfifo /pipe; su -s /bin/sh user -c 'id -u; touch /mine || echo refused' 2>/dev/null";
    let mut spec = world.shell(script);
    let file = |path: &str, content: &str, uid| ConfigFile {
        path: path.into(),
        content: content.into(),
        mode: 0o644,
        uid,
        gid: 9,
    };
    spec.files = vec![
        file("/etc/given", "", 33),
        file(
            "/etc/passwd",
            "root:x:0:0::/:/bin/sh\nuser:x:44:44::/:/bin/sh\n",
            0,
        ),
        file("/etc/group", "user:x:44:\n", 0),
    ];
    spec.binds = vec![BindMount {
        source: volume.clone(),
        target: "/data".into(),
        readonly: false,
    }];
    for spec in kinds(&spec) {
        fs::remove_file(volume.join("new")).unwrap_or_default();
        let lines = world.output(spec);
        assert_eq!(
            lines[..8],
            [
                "0:0 /",
                "0:0 /bin",
                "1234:2345 /owned",
                "33:9 /etc/given",
                "0:0 /dev",
                "0:0 /dev/shm",
                "0:0 /data",
                "0"
            ]
        );
        assert_eq!(
            lines[8..12],
            ["7:8 /new", "0:0 /data/new", "0:0 /dev/shm/new", "0:2345 /moved"]
        );
        assert_eq!(lines[12], "refused", "an id that the block does not hold");
        let map: Vec<&str> = lines[13].split_whitespace().collect();
        assert_eq!(map, ["0", &OURS.first.to_string(), "65536"]);
        assert_eq!(lines[14], "by somebody", "and setuid means nothing");
        assert_eq!(lines[15..], ["44", "refused"]);
        // What stays on the machine has the image's owners, whichever block it was.
        let new = fs::metadata(volume.join("new")).unwrap();
        assert_eq!((new.uid(), new.gid()), (0, 0));
        let image = fs::metadata(&lower).unwrap();
        assert_eq!((image.uid(), image.mode() & 0o7777), (1234, 0o644));
    }
}

#[test]
fn root_inside_is_nobody_outside_and_a_stranger_to_its_neighbours() {
    let Some(world) = World::new() else { return };
    let mut seen = Vec::new();
    for number in [7, 8] {
        let mut spec = world.shell("echo up; sleep 1000");
        spec.ids = Some(IdRange::numbered(number));
        let id = spec.id.clone();
        let pid = world.client().launch(spec).unwrap();
        world.wait_log(&id, "up");
        let process = fs::metadata(format!("/proc/{pid}")).unwrap();
        assert_eq!(process.uid(), IdRange::numbered(number).first);
        let own = fs::read_link(format!("/proc/{pid}/ns/user")).unwrap();
        assert_ne!(own, fs::read_link("/proc/self/ns/user").unwrap());
        seen.push(own);
        // A command inside is the same nobody, and as little.
        let exec = ExecSpec {
            argv: [
                "sh",
                "-c",
                "id -u; readlink /proc/self/ns/user; kill -0 1 && echo same",
            ]
            .map(str::to_owned)
            .into(),
            env: vec![("PATH".to_owned(), "/bin".to_owned())],
            cwd: None,
            user: None,
            tty: None,
        };
        let (_, said, _) = crate::exec::finish(world.client().exec(&id, exec.clone()).unwrap());
        assert_eq!(said, format!("0\n{}\nsame\n", seen.last().unwrap().display()));
        let beyond = ExecSpec {
            user: Some(User {
                uid: 70_000,
                gid: 0,
                groups: Vec::new(),
            }),
            ..exec
        };
        assert!(world.client().exec(&id, beyond).is_err());
    }
    assert_ne!(seen[0], seen[1]);
}

#[test]
fn its_capabilities_hold_over_nothing_that_is_the_machines() {
    let Some(world) = World::new() else { return };
    // A filter and a short list of capabilities stand before each of these; this holds without them too, because the
    // namespaces belong to the machine's root.
    let mut spec = world.shell(
        "for c in 'ip link set lo down' 'ip addr add 10.9.9.9/8 dev lo' 'hostname other' 'mount -t tmpfs x /tmp' \
            'mknod /tmp/null c 1 3' 'chroot / mount -t proc x /tmp' 'renice -n -5 1' 'arping -c 1 127.0.0.1' \
            'dmesg' 'sysctl -w net.ipv4.ip_forward=1' 'nsenter -t 1 -n true'; do \
            if $c >/dev/null 2>&1; then echo ALLOWED $c; else echo refused; fi; done; \
         httpd -p 80 && echo serving; \
         for d in null zero full random urandom tty; do test -c /dev/$d || echo missing $d; done; \
         echo x > /dev/null && head -c 1 /dev/urandom | wc -c; echo out > /dev/stdout; echo err > /dev/stderr",
    );
    spec.ids = Some(OURS);
    let lines = world.output(spec);
    assert_eq!(lines[..11], ["refused"; 11]);
    assert_eq!(lines[11..], ["serving", "1", "out"]);
}

#[test]
fn an_id_that_the_block_does_not_hold_is_refused_with_its_number() {
    let Some(world) = World::new() else { return };
    let mut spec = world.shell("true");
    spec.ids = Some(OURS);
    spec.user.uid = 65_536;
    let error = world.client().launch(spec.clone()).unwrap_err().to_string();
    assert!(error.contains("65536"), "{error}");
    spec.user.uid = 65_535;
    spec.ids = Some(IdRange { first: 0 });
    assert!(world.client().launch(spec).is_err(), "the machine's own ids");
}
