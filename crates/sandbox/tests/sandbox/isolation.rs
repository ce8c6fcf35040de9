//! What an instance can see and do: as little as possible.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::PathBuf;

use tram_sandbox::netns;
use tram_sandbox::protocol::{BindMount, ConfigFile, Network, User};

use crate::support::World;

fn file(path: &str, content: &str, mode: u32) -> ConfigFile {
    ConfigFile {
        path: path.into(),
        content: content.into(),
        mode,
        uid: 0,
        gid: 0,
    }
}

#[test]
fn it_has_namespaces_of_its_own() {
    let Some(world) = World::new() else { return };
    let script = "for n in cgroup ipc mnt net pid uts; do readlink /proc/self/ns/$n; done; echo $$; hostname; \
                  ip -o link | wc -l; ip addr show lo | grep -c 127.0.0.1; ls / | tr '\\n' ' '";
    let lines = world.output(world.shell(script));
    for (name, line) in ["cgroup", "ipc", "mnt", "net", "pid", "uts"].iter().zip(&lines) {
        let ours = fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        assert!(
            line.starts_with(&format!("{name}:[")) && *line != ours.to_str().unwrap(),
            "{name}: {line}"
        );
    }
    assert_eq!(lines[6], "1");
    assert!(lines[7].starts_with("test-"));
    assert_eq!(lines[8..10], ["1", "1"]);
    assert_eq!(lines[10], "bin dev etc proc sbin sys tmp ");
}

#[test]
fn the_kernels_secrets_are_masked_and_its_settings_read_only() {
    let Some(world) = World::new() else { return };
    let script = "for f in kcore keys timer_list sched_debug; do test $(head -c 1 /proc/$f 2>/dev/null | wc -c) = 0 || echo SHOWN $f; done; ls /sys/firmware | wc -l; ls /proc/scsi 2>/dev/null | wc -l; \
        for f in /proc/sys/kernel/core_pattern /proc/sysrq-trigger /proc/irq/default_smp_affinity \
                 /sys/kernel/mm/transparent_hugepage/enabled /sys/class/net/lo/mtu; do \
            if (echo x > $f) 2>/dev/null; then echo WROTE $f; else echo refused; fi; done; \
        grep -c ' /proc/sys ' /proc/self/mountinfo; grep -c overlay.*lowerdir.*/tmp /proc/self/mountinfo";
    let mut spec = world.shell(&format!("{script}; true"));
    spec.readonly_root = true;
    let lines = world.output(spec);
    assert_eq!(
        lines,
        [
            "0", "0", "refused", "refused", "refused", "refused", "refused", "1", "0"
        ]
    );
}

#[test]
fn root_inside_is_not_root_outside() {
    let Some(world) = World::new() else { return };
    let script = "grep -E '^Cap|NoNewPrivs|Seccomp:' /proc/self/status | tr '\\t\\n' '  '; echo; \
        for c in 'mount -t tmpfs x /tmp' 'unshare -m true' 'unshare -U true' 'chroot / mount -t proc x /tmp' 'mknod /dev/sda b 8 0' \
                 'mknod /tmp/kmsg c 1 11' 'hostname other' 'dmesg' 'ip link add d type dummy' 'swapoff -a' 'nsenter -t 1 -m true' \
                 'reboot -f' 'insmod /bin/sh' 'renice -n -5 1' 'umount /proc'; do \
            if $c >/dev/null 2>&1; then echo ALLOWED $c; else echo refused; fi; done";
    let lines = world.output(world.shell(&format!("{script}; true")));
    assert_eq!(
        lines[0],
        "CapInh: 0000000000000000 CapPrm: 00000000a80425fb CapEff: 00000000a80425fb CapBnd: 00000000a80425fb \
         CapAmb: 0000000000000000 NoNewPrivs: 1 Seccomp: 2 "
    );
    assert!(lines[1..].iter().all(|line| line == "refused"), "{lines:#?}");
    assert_eq!(lines.len(), 16);
}

#[test]
fn another_user_holds_nothing_but_may_serve_on_port_80() {
    let Some(world) = World::new() else { return };
    let script = "id -u; id -G; grep -E '^Cap' /proc/self/status | tr '\\t\\n' '  '; echo; echo out > /dev/stdout; pwd; touch mine && echo wrote; \
        cat /etc/secret; (touch /etc/x || echo refused) 2>&1 | tail -1; httpd -p 80 && echo serving";
    let mut spec = world.shell(script);
    spec.user = User {
        uid: 1234,
        gid: 2345,
        groups: vec![5, 6],
    };
    spec.cwd = "/home/app/work".into();
    spec.files.push(ConfigFile {
        uid: 1234,
        ..file("/etc/secret", "for the user alone\n", 0o400)
    });
    let lines = world.output(spec);
    assert_eq!(lines[..2], ["1234", "2345 5 6"]);
    let none = "0000000000000000";
    assert_eq!(
        lines[2],
        format!("CapInh: {none} CapPrm: {none} CapEff: {none} CapBnd: 00000000a80425fb CapAmb: {none} ")
    );
    assert_eq!(
        lines[3..],
        [
            "out",
            "/home/app/work",
            "wrote",
            "for the user alone",
            "refused",
            "serving"
        ]
    );
}

#[test]
fn only_what_was_given_is_open_and_in_the_environment() {
    let Some(world) = World::new() else { return };
    let mut spec =
        world.shell("ls /proc/$$/fd | tr '\\n' ' '; env | sort | tr '\\n' ' '; cat < /dev/stdin | wc -c");
    spec.env = vec![("PATH".into(), "/bin".into()), ("NAME".into(), "a value".into())];
    let text = world.output(spec).join("\n");
    assert!(text.starts_with("0 1 2 "), "{text}");
    assert!(text.contains("NAME=a value PATH=/bin PWD=/"), "{text}");
    let lines = world.output(world.program(&["grep", "-E", "SigBlk|SigIgn|SigCgt", "/proc/self/status"]));
    assert!(
        lines.len() == 3 && lines.iter().all(|line| line.ends_with("\t0000000000000000")),
        "{lines:?}"
    );
}

/// The descriptors that a launch holds until its exec: the machine's cgroups, the disk, the lock, the report.
const DESCRIPTORS: std::ops::Range<i32> = 3..24;

#[test]
fn a_working_directory_does_not_lead_out_through_an_open_descriptor() {
    let Some(world) = World::new() else { return };
    let places = DESCRIPTORS
        .map(|fd| format!("/proc/self/fd/{fd}"))
        .chain(["/proc/self/cwd", "/proc/1/root", "/proc/thread-self/fd/5"].map(str::to_owned));
    for place in places {
        let mut spec = world.shell("pwd; ls -d ../../../../../bin ../../../../../usr");
        spec.cwd.clone_from(&place);
        let id = spec.id.clone();
        let refused = world.client().launch(spec).is_err();
        assert!(refused, "{place}: {:#?}", world.logs(&id));
    }
    // A symlink of the image's to a place of its own is as good as the place.
    symlink("/etc", world.lower.join("link")).unwrap();
    let mut spec = world.shell("pwd -P");
    spec.cwd = "/link".into();
    assert_eq!(world.output(spec), ["/etc"]);
}

#[test]
fn a_program_is_not_found_through_an_open_descriptor() {
    let Some(world) = World::new() else { return };
    for fd in DESCRIPTORS {
        let spec = world.program(&[&format!("/proc/self/fd/{fd}/../../../../../bin/true")]);
        let id = spec.id.clone();
        let refused = world.client().launch(spec).is_err();
        assert!(refused, "{fd}: {:#?}", world.logs(&id));
    }
}

#[test]
fn what_runs_an_instance_cannot_be_written_to() {
    let Some(world) = World::new() else { return };
    let program = format!("/proc/{}/exe", world.supervisor_pid());
    let mount = rustix::fs::statvfs(program).unwrap();
    assert!(mount.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY));
}

#[test]
fn dev_has_the_standard_nodes_and_no_more() {
    let Some(world) = World::new() else { return };
    let lines = world.output(world.shell(
        "ls /dev | tr '\\n' ' '; echo; head -c 3 /dev/zero | wc -c; echo x > /dev/null && echo null; head -c 2 /dev/urandom | wc -c; \
         echo shm > /dev/shm/f && cat /dev/shm/f; head -c 70000000 /dev/zero > /dev/shm/big 2>/dev/null || echo full; \
         cp -a /dev/null /tmp/mine 2>/dev/null; head -c1 /tmp/mine >/dev/null 2>&1; test -c /tmp/mine || echo no devices elsewhere",
    ));
    let expected = [
        "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero ",
        "3",
        "null",
        "2",
        "shm",
        "full",
        "no devices elsewhere",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn config_files_stay_inside_whatever_the_image_says() {
    let Some(world) = World::new() else { return };
    let outside = world.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("victim"), "untouched").unwrap();
    let etc = world.lower.join("etc");
    // Absolute, climbing and magic ways out, for directories and for the file itself.
    symlink(&outside, etc.join("absolute")).unwrap();
    let climb: PathBuf = (0..20)
        .map(|_| "..")
        .collect::<PathBuf>()
        .join(outside.strip_prefix("/").unwrap());
    symlink(&climb, etc.join("climbing")).unwrap();
    symlink(outside.join("victim"), etc.join("resolv.conf")).unwrap();
    symlink("/proc/sys/kernel/hostname", etc.join("hosts")).unwrap();
    symlink("/proc/sys/kernel", etc.join("kernel")).unwrap();
    fs::write(etc.join("hard"), "the image's").unwrap();
    nix::unistd::mkfifo(&etc.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();

    let mut spec = world.shell(
        "cat /etc/resolv.conf /etc/hosts /etc/hard /etc/pipe /new/deep/file; stat -c '%a %u' /new/deep/file; \
         test -L /etc/hosts || echo replaced; cat /proc/sys/kernel/hostname | head -c 5",
    );
    for path in ["/etc/resolv.conf", "/etc/hosts", "/etc/hard", "/etc/pipe"] {
        spec.files.push(file(path, &format!("{path}\n"), 0o644));
    }
    spec.files.push(file("/new/deep/file", "deep\n", 0o640));
    for path in [
        "/etc/absolute/made",
        "/etc/climbing/made",
        "/etc/kernel/core_pattern",
    ] {
        spec.files.push(file(path, "escaped", 0o644));
    }
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    let id = spec.id.clone();
    // A dangling way out is refused or made inside; either way nothing is touched outside.
    if world.client().launch(spec.clone()).is_ok() {
        world.wait_exit(&id);
    }
    assert_eq!(
        fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap(),
        pattern
    );
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    assert_eq!(fs::read_to_string(outside.join("victim")).unwrap(), "untouched");
    assert_eq!(fs::read_to_string(etc.join("hard")).unwrap(), "the image's");

    spec.files.truncate(5);
    spec.id = world.shell("").id;
    let lines = world.output(spec);
    let expected = [
        "/etc/resolv.conf",
        "/etc/hosts",
        "/etc/hard",
        "/etc/pipe",
        "deep",
        "640 0",
        "replaced",
        "test-",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn volumes_are_shown_and_hold() {
    let Some(world) = World::new() else { return };
    let volume = world.dir.path().join("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("old"), "kept\n").unwrap();
    fs::write(world.dir.path().join("one-file"), "a file\n").unwrap();
    let mut spec = world.shell(
        "cat /data/old; echo new > /data/new; (echo x > /ro/old) 2>/dev/null || echo refused; cat /deep/er/file; \
         cp /bin/busybox /data && /data/busybox echo runs",
    );
    let bind = |source: PathBuf, target: &str, readonly| BindMount {
        source,
        target: target.into(),
        readonly,
    };
    spec.binds = vec![
        bind(volume.clone(), "/data", false),
        bind(volume.clone(), "/ro", true),
        bind(world.dir.path().join("one-file"), "/deep/er/file", true),
    ];
    assert_eq!(world.output(spec), ["kept", "refused", "a file", "runs"]);
    assert_eq!(fs::read_to_string(volume.join("new")).unwrap(), "new\n");
}

#[test]
fn layers_lie_in_order_and_the_writable_one_on_top() {
    let Some(world) = World::new() else { return };
    let mut layers = Vec::new();
    for number in 0..120 {
        // Long names, so that they would not fit one page of mount options.
        let layer = world
            .dir
            .path()
            .join(format!("layer-{number:03}-{}", "x".repeat(200)));
        fs::create_dir(&layer).unwrap();
        fs::write(layer.join("which"), format!("{number}\n")).unwrap();
        fs::write(layer.join(format!("file-{number}")), "").unwrap();
        layers.push(layer);
    }
    layers.push(world.lower.clone());
    let mut spec = world.shell("cat /which; ls / | grep -c file-; echo mine > /which; cat /which");
    spec.lower_dirs = layers.clone();
    let id = spec.id.clone();
    assert_eq!(world.output(spec), ["0", "120", "mine"]);
    assert_eq!(fs::read_to_string(layers[0].join("which")).unwrap(), "0\n");
    assert_eq!(
        fs::read_to_string(world.info(&id).upper_dir.unwrap().join("which")).unwrap(),
        "mine\n"
    );
}

#[test]
fn the_writable_layer_can_be_bounded_or_absent() {
    let Some(world) = World::new() else { return };
    let mut spec = world.shell(
        "head -c 9000000 /dev/zero > /big 2>/dev/null || echo full; rm /big; echo ok > /small && cat /small",
    );
    spec.upper_bytes_max = Some(8 << 20);
    let id = spec.id.clone();
    assert_eq!(world.output(spec), ["full", "ok"]);
    assert_eq!(world.info(&id).upper_dir, None);

    let mut spec = world.shell(
        "touch /x 2>/dev/null || echo read-only; echo y > /dev/shm/y && cat /dev/shm/y; cat /etc/given",
    );
    spec.readonly_root = true;
    spec.files.push(file("/etc/given", "given\n", 0o644));
    assert_eq!(world.output(spec), ["read-only", "y", "given"]);
}

#[test]
fn a_network_of_somebody_else_is_joined() {
    let Some(world) = World::new() else { return };
    let path = world.dir.path().join("netns/one");
    netns::create(&path).unwrap();
    let mut spec = world.shell("readlink /proc/self/ns/net; ls /sys/class/net");
    spec.network = Network::Namespace { path: path.clone() };
    let lines = world.output(spec);
    assert_eq!(
        lines,
        [
            format!("net:[{}]", fs::metadata(&path).unwrap().ino()),
            "lo".into()
        ]
    );
    netns::delete(&path).unwrap();
}
