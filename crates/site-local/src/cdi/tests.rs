//! Specifications as `nvidia-ctk cdi generate` shapes them, and those of somebody who means no good.

use std::os::unix::fs::PermissionsExt;

use tempfile::TempDir;

use super::edits::{Link, Node};
use super::*;

/// Two whole GPUs, by index and by id, and all of them: as versions of the toolkit write it, up to 1.20, shortened.
const WHOLE: &str = r#"---
cdiVersion: 0.5.0
kind: nvidia.com/gpu
annotations:
  generator: test
devices:
- name: "0"
  containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
    - path: /dev/dri/card1
    - path: /dev/dri/renderD128
    hooks:
    - hookName: createContainer
      path: /usr/bin/nvidia-cdi-hook
      args:
      - nvidia-cdi-hook
      - create-symlinks
      - --link
      - ../card1::/dev/dri/by-path/pci-0000:01:00.0-card
      - --link
      - ../renderD128::/dev/dri/by-path/pci-0000:01:00.0-render
    - hookName: createContainer
      path: /usr/bin/nvidia-cdi-hook
      args:
      - nvidia-cdi-hook
      - chmod
      - --mode
      - "755"
      - --path
      - /dev/dri
- name: "1"
  containerEdits:
    deviceNodes:
    - path: /dev/nvidia1
- name: GPU-9e5e4d4f-0000-0000-0000-000000000001
  containerEdits:
    deviceNodes:
    - path: /dev/nvidia1
- name: all
  containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
    - path: /dev/nvidia1
    - path: /dev/dri/card1
    - path: /dev/dri/renderD128
containerEdits:
  env:
  - NVIDIA_VISIBLE_DEVICES=void
  deviceNodes:
  - path: /dev/nvidia-uvm
  - path: /dev/nvidiactl
    major: 195
    minor: 255
    permissions: rwm
  additionalGids: [44, 0]
  hooks:
  - hookName: createContainer
    path: /usr/bin/nvidia-cdi-hook
    args: [nvidia-cdi-hook, create-symlinks, --link, "libcuda.so.1::/usr/lib/x86_64-linux-gnu/libcuda.so"]
  - hookName: createContainer
    path: /usr/bin/nvidia-cdi-hook
    args: [nvidia-cdi-hook, enable-cuda-compat, --host-driver-version=570.86.10]
  - hookName: createContainer
    path: /usr/bin/nvidia-cdi-hook
    args: [nvidia-cdi-hook, disable-device-node-modification]
    env: [NVIDIA_CTK_DEBUG=false]
  - hookName: createContainer
    path: /usr/bin/nvidia-cdi-hook
    args: [nvidia-cdi-hook, update-application-profile]
  - hookName: createContainer
    path: /usr/bin/nvidia-ctk
    args: [nvidia-ctk, hook, update-ldcache, --folder, /usr/lib/x86_64-linux-gnu]
  mounts:
  - hostPath: /usr/lib/x86_64-linux-gnu/libcuda.so.570.86.10
    containerPath: /usr/lib/x86_64-linux-gnu/libcuda.so.570.86.10
    options: [ro, nosuid, nodev, bind]
  - hostPath: /run/nvidia-persistenced/socket
    containerPath: /run/nvidia-persistenced/socket
    options: [ro, nosuid, nodev, bind, noexec]
"#;

/// Two slices of one GPU: each has that GPU's node, and nodes of its own.
const SLICES: &str = r#"{
  "cdiVersion": "0.5.0", "kind": "nvidia.com/gpu",
  "devices": [
    {"name": "0:0", "containerEdits": {"deviceNodes": [
      {"path": "/dev/nvidia0"},
      {"path": "/dev/nvidia-caps/nvidia-cap30"}, {"path": "/dev/nvidia-caps/nvidia-cap31"}]}},
    {"name": "0:1", "containerEdits": {"deviceNodes": [
      {"path": "/dev/nvidia0"},
      {"path": "/dev/nvidia-caps/nvidia-cap39"}, {"path": "/dev/nvidia-caps/nvidia-cap40"}]}},
    {"name": "all", "containerEdits": {"deviceNodes": [
      {"path": "/dev/nvidia0"},
      {"path": "/dev/nvidia-caps/nvidia-cap30"}, {"path": "/dev/nvidia-caps/nvidia-cap31"},
      {"path": "/dev/nvidia-caps/nvidia-cap39"}, {"path": "/dev/nvidia-caps/nvidia-cap40"}]}}],
  "containerEdits": {"env": ["NVIDIA_VISIBLE_DEVICES=void"], "deviceNodes": [{"path": "/dev/nvidiactl"}]}
}"#;

fn write(folder: &TempDir, name: &str, text: &str) -> PathBuf {
    let path = folder.path().join(name);
    fs::write(&path, text).unwrap();
    path
}

fn read_one(name: &str, text: &str) -> Devices {
    let folder = tempfile::tempdir().unwrap();
    write(&folder, name, text);
    Devices::read(&[folder.path().to_owned()])
}

/// The one thing that is wrong.
fn wrong(name: &str, text: &str) -> String {
    let found = read_one(name, text);
    assert_eq!(found.problems.len(), 1, "{text}: {:?}", found.problems);
    found.problems[0].what.clone()
}

/// A specification with one device whose edits are these, in JSON.
fn with_edits(edits: &str) -> String {
    format!(
        r#"{{"cdiVersion":"1.0.0","kind":"acme.com/gpu","devices":[{{"name":"0","containerEdits":{edits}}}]}}"#
    )
}

#[test]
fn whole_devices_are_read_as_the_toolkit_writes_them() {
    let found = read_one("nvidia.yaml", WHOLE);
    assert_eq!(found.problems, []);
    assert_eq!(
        found.of_kind("nvidia.com/gpu"),
        ["nvidia.com/gpu=0", "nvidia.com/gpu=1"],
        "one name for each device, and none for several"
    );
    assert_eq!(
        found.left_out(),
        ["enable-cuda-compat", "update-application-profile"]
    );
    let edits = found.edits(&["nvidia.com/gpu=0".to_owned()]).unwrap();
    assert_eq!(
        edits.env,
        [("NVIDIA_VISIBLE_DEVICES".to_owned(), "void".to_owned())]
    );
    let targets: Vec<&str> = edits
        .nodes
        .iter()
        .filter_map(|node| node.target.to_str())
        .collect();
    assert_eq!(
        targets,
        [
            "/dev/nvidia-uvm",
            "/dev/nvidiactl",
            "/dev/nvidia0",
            "/dev/dri/card1",
            "/dev/dri/renderD128"
        ]
    );
    assert!(edits.nodes.contains(&Node {
        source: "/dev/nvidiactl".into(),
        target: "/dev/nvidiactl".into(),
        number: Some((195, 255)),
    }));
    let link = |path: &str, target: &str| Link {
        path: path.into(),
        target: target.into(),
    };
    assert_eq!(
        edits.links,
        [
            link("/usr/lib/x86_64-linux-gnu/libcuda.so", "libcuda.so.1"),
            link("/dev/dri/by-path/pci-0000:01:00.0-card", "../card1"),
            link("/dev/dri/by-path/pci-0000:01:00.0-render", "../renderD128"),
        ]
    );
    assert_eq!(edits.folders, [Path::new("/usr/lib/x86_64-linux-gnu")]);
    assert_eq!(edits.groups, [44], "nobody is put into root's group");
    let both = found
        .edits(&["nvidia.com/gpu=0".to_owned(), "nvidia.com/gpu=1".to_owned()])
        .unwrap();
    assert_eq!(both.nodes.len(), 6, "what both have is there once");
}

#[test]
fn slices_of_one_device_are_devices_of_their_own() {
    let found = read_one("mig.json", SLICES);
    assert_eq!(found.problems, []);
    assert_eq!(
        found.of_kind("nvidia.com/gpu"),
        ["nvidia.com/gpu=0:0", "nvidia.com/gpu=0:1"]
    );
}

#[test]
fn libraries_are_linked_by_the_names_that_are_in_them() {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let libc = maps
        .lines()
        .filter_map(|line| line.split_whitespace().nth(5))
        .find(|path| path.contains("/libc.so.6"))
        .unwrap();
    let text = with_edits(&format!(
        r#"{{"mounts":[{{"hostPath":"{libc}","containerPath":"/opt/acme/libmade.so.5.1"}},
                       {{"hostPath":"{libc}","containerPath":"/elsewhere/libmade.so.5.1"}}],
             "hooks":[{{"hookName":"createContainer","path":"/usr/bin/nvidia-ctk",
                        "args":["nvidia-ctk","hook","update-ldcache","--folder=/opt/acme"]}}]}}"#
    ));
    let edits = read_one("acme.json", &text)
        .edits(&["acme.com/gpu=0".to_owned()])
        .unwrap();
    assert_eq!(
        edits.links,
        [Link {
            path: "/opt/acme/libc.so.6".into(),
            target: "libmade.so.5.1".into()
        }]
    );
}

#[test]
fn the_later_folder_holds_and_two_files_of_one_folder_are_in_doubt() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let one = |node: &str| with_edits(&format!(r#"{{"deviceNodes":[{{"path":"{node}"}}]}}"#));
    write(&first, "a.json", &one("/dev/acme-a"));
    write(&first, "b.json", &one("/dev/acme-b"));
    write(&first, "notes.txt", "this is no specification");
    let name = "acme.com/gpu=0";
    let doubt = Devices::read(&[first.path().to_owned()]);
    assert!(doubt.devices.is_empty());
    assert!(
        doubt.problems[0].what.contains("device `acme.com/gpu=0` is in "),
        "{:?}",
        doubt.problems
    );
    write(&second, "a.json", &one("/dev/acme-c"));
    let folders = [
        first.path().to_owned(),
        second.path().to_owned(),
        "/nowhere/cdi".into(),
    ];
    let settled = Devices::read(&folders);
    assert_eq!(settled.problems, []);
    assert_eq!(
        settled.nodes(name),
        Some(&BTreeSet::from([PathBuf::from("/dev/acme-c")]))
    );
}

#[test]
fn one_that_is_wrong_takes_nothing_from_the_others() {
    let folder = tempfile::tempdir().unwrap();
    write(&folder, "mig.json", SLICES);
    write(&folder, "other.yaml", "cdiVersion: [");
    fs::create_dir(folder.path().join("folder.json")).unwrap();
    let open = write(&folder, "open.json", &with_edits(r#"{"env":["A=b"]}"#));
    fs::set_permissions(&open, fs::Permissions::from_mode(0o666)).unwrap();
    nix::unistd::mkfifo(
        &folder.path().join("pipe.json"),
        nix::sys::stat::Mode::from_bits_truncate(0o600),
    )
    .unwrap();
    let found = Devices::read(&[folder.path().to_owned()]);
    assert_eq!(found.of_kind("nvidia.com/gpu").len(), 2);
    let of = |name: &str| {
        let path = folder.path().join(name);
        let problem = found.problems.iter().find(|problem| problem.path == path);
        problem.map(|problem| problem.what.as_str()).unwrap_or_default()
    };
    assert_eq!(found.problems.len(), 4, "{:?}", found.problems);
    assert!(!of("other.yaml").is_empty());
    assert_eq!(of("folder.json"), "is not a file");
    assert_eq!(of("pipe.json"), "is not a file");
    assert!(of("open.json").contains("chmod o-w"), "{}", of("open.json"));
}

#[test]
fn what_a_file_may_not_say_is_named_with_its_place() {
    let spec = |text: &str| format!(r#"{{"cdiVersion":"0.5.0","kind":"acme.com/gpu",{text}}}"#);
    let edits = r#"{"env":["A=b"]}"#;
    for (text, said) in [
        ("{}".to_owned(), "missing field"),
        (
            r#"{"cdiVersion":"7.0.0","kind":"a.b/c","devices":[]}"#.to_owned(),
            "cdiVersion: `7.0.0` is not known here",
        ),
        (
            r#"{"cdiVersion":"0.5.0","kind":"gpu","devices":[]}"#.to_owned(),
            "kind: `gpu` is not a vendor and a class",
        ),
        (spec(r#""devices":[]"#), "devices: there are none"),
        (
            spec(r#""devices":[{"name":"../x","containerEdits":{}}]"#),
            "devices[0].name: `../x`",
        ),
        (
            spec(r#""devices":[{"name":"x","containerEdits":{}}]"#),
            "devices[0].containerEdits: changes nothing",
        ),
        (
            spec(&format!(
                r#""devices":[{{"name":"x","containerEdits":{edits}}},{{"name":"x","containerEdits":{edits}}}]"#
            )),
            "devices[1].name: `x` is there twice",
        ),
        (
            spec(
                r#""devices":[{"name":"x","containerEdits":{"deviceNodes":[{"path":"/dev/x","colour":1}]}}]"#,
            ),
            "devices[0].containerEdits.deviceNodes[0].colour: unknown field",
        ),
        (
            spec(r#""devices":[{"name":"x","containerEdits":{"additionalGids":[-1]}}]"#),
            "devices[0].containerEdits.additionalGids[0]: invalid value",
        ),
        (spec(r#""devices":[],"device":[]"#), "unknown field `device`"),
        (format!("{} more", spec(r#""devices":[]"#)), "trailing characters"),
    ] {
        let what = wrong("acme.json", &text);
        assert!(what.contains(said), "{text}: {what}");
    }
    let what = wrong(
        "acme.yaml",
        "cdiVersion: 0.5.0\nkind: a.b/c\ndevices:\n- name: x\n  edits: 1\n",
    );
    assert!(what.contains("devices[0].edits: unknown field"), "{what}");
}

#[test]
fn what_would_reach_the_machine_is_refused() {
    for (edits, said) in [
        (r#"{"env":["NOTHING"]}"#, "env[0]: `NOTHING` is not NAME=value"),
        (
            r#"{"deviceNodes":[{"path":"dev/x"}]}"#,
            "deviceNodes[0].path: `dev/x` is not an absolute path",
        ),
        (
            r#"{"deviceNodes":[{"path":"/dev/../etc/shadow"}]}"#,
            "deviceNodes[0].path: `/dev/../etc/shadow` has `..` in it",
        ),
        (
            r#"{"deviceNodes":[{"path":"/etc/x"}]}"#,
            "deviceNodes[0].path: `/etc/x` is not below /dev",
        ),
        (
            r#"{"deviceNodes":[{"path":"/dev/x","hostPath":"/tmp/x"}]}"#,
            "deviceNodes[0].hostPath: `/tmp/x` is not below /dev",
        ),
        (
            r#"{"deviceNodes":[{"path":"/dev/x","hostPath":"//dev/./mem"}]}"#,
            "deviceNodes[0].hostPath: `/dev/mem` is the machine itself",
        ),
        (
            r#"{"deviceNodes":[{"path":"/dev/x","type":"b"}]}"#,
            "deviceNodes[0].type: `b` is not given",
        ),
        (
            r#"{"deviceNodes":[{"path":"/dev/x","permissions":"r"}]}"#,
            "deviceNodes[0].permissions: `r` cannot be held to",
        ),
        (
            r#"{"mounts":[{"hostPath":"/","containerPath":"/host"}]}"#,
            "mounts[0].hostPath: `/` is the machine itself",
        ),
        (
            r#"{"mounts":[{"hostPath":"/proc/1/root","containerPath":"/host"}]}"#,
            "mounts[0].hostPath: `/proc/1/root` is the machine itself",
        ),
        (
            r#"{"mounts":[{"hostPath":"/opt/../proc","containerPath":"/host"}]}"#,
            "mounts[0].hostPath: `/opt/../proc` has `..` in it",
        ),
        (
            r#"{"mounts":[{"hostPath":"/opt","containerPath":"/proc/sys"}]}"#,
            "mounts[0].containerPath: `/proc/sys` is not a place for it",
        ),
        (
            r#"{"mounts":[{"hostPath":"/opt","containerPath":"/.tramontane/executor"}]}"#,
            "mounts[0].containerPath: `/.tramontane/executor` is not a place",
        ),
        (
            r#"{"mounts":[{"hostPath":"/opt","containerPath":"opt"}]}"#,
            "mounts[0].containerPath: `opt` is not an absolute path",
        ),
        (
            r#"{"mounts":[{"hostPath":"/opt","containerPath":"/opt","type":"overlay"}]}"#,
            "mounts[0].type: `overlay` is not supported",
        ),
        (
            r#"{"mounts":[{"hostPath":"/opt","containerPath":"/opt","options":["rshared"]}]}"#,
            "mounts[0].options: `rshared`",
        ),
        (
            r#"{"intelRdt":{"closID":"x"}}"#,
            "intelRdt: classes of caches are not given",
        ),
        (
            r#"{"netDevices":[{"hostInterfaceName":"a","name":"b"}]}"#,
            "netDevices: instances are given no network devices",
        ),
        (
            r#"{"hooks":[{"hookName":"prestart","path":"/bin/sh","args":["sh","-c","id"]}]}"#,
            "hooks[0]: the hook `/bin/sh -c` (prestart) is not supported",
        ),
        (
            r#"{"hooks":[{"hookName":"createContainer","path":"/usr/bin/nvidia-cdi-hook","args":["x","format-disk"]}]}"#,
            "hooks[0]: the hook `/usr/bin/nvidia-cdi-hook format-disk` (createContainer) is not supported",
        ),
        (
            r#"{"hooks":[{"hookName":"createContainer","path":"/usr/bin/nvidia-cdi-hook",
                "args":["x","create-symlinks","--link","x::/proc/sys/kernel/x"]}]}"#,
            "hooks[0]: link `x::/proc/sys/kernel/x` is at a place that is not its own",
        ),
        (
            r#"{"hooks":[{"hookName":"createContainer","path":"/usr/bin/nvidia-cdi-hook",
                "args":["x","chmod","--mode","777","--path","/etc"]}]}"#,
            "hooks[0]: the hook `/usr/bin/nvidia-cdi-hook chmod`",
        ),
    ] {
        let what = wrong("acme.json", &with_edits(edits));
        assert!(
            what.starts_with("devices[0].containerEdits.") && what.contains(said),
            "{edits}: {what}"
        );
        let found = read_one("acme.json", &with_edits(edits));
        assert!(found.edits(&["acme.com/gpu=0".to_owned()]).is_err(), "{edits}");
        assert!(found.of_kind("acme.com/gpu").is_empty(), "{edits}");
    }
}

#[test]
fn what_all_devices_suffer_from_is_said_once() {
    let what = wrong(
        "acme.json",
        r#"{"cdiVersion":"0.6.0","kind":"acme.com/gpu","devices":[
            {"name":"0","containerEdits":{"env":["A=b"]}},{"name":"1","containerEdits":{"env":["A=b"]}}],
            "containerEdits":{"hooks":[{"hookName":"poststop","path":"/sbin/reboot"}]}}"#,
    );
    assert!(
        what.starts_with("containerEdits.hooks[0]: the hook `/sbin/reboot` (poststop)"),
        "{what}"
    );
}

#[test]
fn files_that_would_fill_the_memory_are_not_read() {
    let large = format!(
        "cdiVersion: 0.5.0\nkind: a.b/c\nannotations:\n  x: {}\n",
        "x".repeat(10 << 20)
    );
    assert_eq!(wrong("large.yaml", &large), "is larger than 4 MiB");
    // Nine levels of nine references each.
    let mut bomb =
        "cdiVersion: 0.5.0\nkind: a.b/c\ndevices:\n- name: x\n  containerEdits:\n    env:\n    - &a0 A=b\n"
            .to_owned();
    for level in 1..9 {
        let below = vec![format!("*a{}", level - 1); 9].join(", ");
        bomb.push_str(&format!("    - &a{level} [{below}]\n"));
    }
    assert!(!wrong("bomb.yaml", &bomb).is_empty());
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(!wrong("deep.json", &deep).is_empty());
    assert!(!wrong("deep.yaml", &deep).is_empty());
}
