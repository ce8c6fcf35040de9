//! Snapshots of instances' disks: of one moment, and nobody waits for ever for one that was cut off.

use std::fs;
use std::path::{Path, PathBuf};

use tram_sandbox::protocol::{InstanceId, InstanceState, LaunchSpec};
use tram_sandbox::snapshot;

use crate::support::*;

/// Enough for some files.
const SIZE: u64 = 64 << 20;

fn with_disk(world: &World, script: &str) -> LaunchSpec {
    let mut spec = world.shell(script);
    spec.disk_bytes_max = Some(SIZE);
    spec
}

/// Writes a line to a file and then to another one, over and over.
fn writer(world: &World) -> InstanceId {
    let spec = with_disk(
        world,
        "mkdir /data; while :; do echo line >> /data/a; echo line >> /data/b; done",
    );
    let id = spec.id.clone();
    world.client().launch(spec).unwrap();
    until("it writes", || {
        fs::read(inside(world, &id, "data/b")).is_ok_and(|b| !b.is_empty())
    });
    id
}

fn inside(world: &World, id: &InstanceId, path: &str) -> PathBuf {
    match world.info(id).state {
        InstanceState::Running { pid } => Path::new("/proc").join(format!("{pid}/root/{path}")),
        other => panic!("{other:?}"),
    }
}

fn ends(world: &World, id: &InstanceId) {
    world.client().kill(id).unwrap();
    world.wait_exit(id);
}

#[test]
fn an_instance_starts_with_what_another_had_at_one_moment() {
    let Some(world) = World::new() else { return };
    let id = writer(&world);
    let kept = world.dir.path().join("kept");
    snapshot::take(&world.state(), &id, &kept).unwrap();
    let after = fs::read_to_string(inside(&world, &id, "data/a"))
        .unwrap()
        .lines()
        .count();
    ends(&world, &id);
    for _ in 0..2 {
        let mut spec = with_disk(
            &world,
            "wc -l < /data/a; wc -l < /data/b; echo more > /data/more; ls /data",
        );
        spec.disk_from = Some(kept.clone());
        let said = world.output(spec);
        let number = |at: usize| {
            said[at]
                .trim()
                .parse::<usize>()
                .unwrap_or_else(|_| panic!("{said:?}"))
        };
        assert!(number(0) == number(1) || number(0) == number(1) + 1, "{said:?}");
        assert!(number(1) <= after, "it is of the moment when it was taken");
        assert_eq!(
            said[2..],
            ["a", "b", "more"],
            "what another one wrote to its copy is not there"
        );
    }
}

#[test]
fn a_disk_that_was_left_held_goes_on() {
    let Some(world) = World::new() else { return };
    let id = writer(&world);
    // What a snapshot leaves whose process and guard were both killed.
    let frozen = std::process::Command::new("python3")
        .args([
            "-c",
            "import fcntl, json, os, sys; run = json.load(open(sys.argv[1])); top = '/proc/%d/fd/%d' % \
             (run['shim']['pid'], run['disk']['directory']); fcntl.ioctl(os.open(top, os.O_RDONLY), 0xC0045877, 0)",
        ])
        .arg(world.state().join("instances").join(id.as_str()).join("run.json"))
        .status()
        .unwrap();
    assert!(frozen.success());
    let written = || fs::read(inside(&world, &id, "data/a")).unwrap_or_default();
    let held_at = written();
    snapshot::thaw_all(&world.state()).unwrap();
    until("it goes on", || written() != held_at);
    ends(&world, &id);
}

/// Has debugfs change a disk that is not mounted.
fn change(disk: &Path, order: &str) {
    let done = std::process::Command::new("debugfs")
        .args(["-w", "-R", order])
        .arg(disk)
        .status();
    assert!(done.unwrap().success(), "{order}");
}

#[test]
fn a_disk_that_leads_to_the_machine_is_refused() {
    let Some(world) = World::new() else { return };
    let id = writer(&world);
    let kept = world.dir.path().join("kept");
    snapshot::take(&world.state(), &id, &kept).unwrap();
    ends(&world, &id);
    let outside = world.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    change(&kept, "unlink upper");
    change(&kept, &format!("symlink upper {}", outside.display()));
    let mut spec = with_disk(&world, "echo written > /file");
    spec.disk_from = Some(kept);
    let said = refusal(world.client().launch(spec).unwrap_err()).to_string();
    assert!(said.contains("upper"), "{said}");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}
