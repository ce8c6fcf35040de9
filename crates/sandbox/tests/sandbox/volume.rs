//! Persistent volumes: data stays, one instance at a time has them, the size holds, a snapshot is of one moment, and
//! whoever is killed, nothing is left.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use tram_sandbox::protocol::{IdRange, InstanceId, InstanceInfo, InstanceState, LaunchSpec, VolumeMount};
use tram_sandbox::volume::{self, Live, Space};

use crate::support::*;

/// Enough for a journal, little enough to be filled.
const SIZE: u64 = 64 << 20;

/// Loop devices that show a file below `directory`.
fn devices(directory: &Path) -> usize {
    let prefix = directory.to_str().unwrap();
    fs::read_dir("/sys/block")
        .unwrap()
        .filter_map(|entry| fs::read_to_string(entry.unwrap().path().join("loop/backing_file")).ok())
        .filter(|file| file.starts_with(prefix))
        .count()
}

fn volume_of(world: &World) -> PathBuf {
    let directory = world.dir.path().canonicalize().unwrap().join("volumes");
    fs::create_dir_all(&directory).unwrap();
    let path = directory.join("v");
    volume::make(&path, SIZE, Space::Reserved).unwrap();
    path
}

fn with(world: &World, path: &Path, script: &str) -> LaunchSpec {
    let mut spec = world.shell(script);
    spec.volumes = vec![VolumeMount {
        file: path.to_owned(),
        target: "/data".into(),
        readonly: false,
    }];
    spec
}

fn ends(world: &World, id: &InstanceId) {
    world.client().kill(id).unwrap();
    world.wait_exit(id);
}

#[test]
fn what_is_written_stays_and_belongs_to_whom_it_belonged() {
    let Some(world) = World::new() else { return };
    let path = volume_of(&world);
    let mut first = with(
        &world,
        &path,
        "ls -A /data; stat -c %u:%g /data; echo kept > /data/file; chown 7:8 /data/file; stat -c %u:%g /data/file",
    );
    first.ids = Some(IdRange::numbered(3));
    first.user.uid = 0;
    assert_eq!(world.output(first), ["0:0", "7:8"], "new, and empty");
    // Another instance with other ids, then one with the machine's.
    let mut second = with(&world, &path, "cat /data/file; stat -c %u:%g /data/file");
    second.ids = Some(IdRange::numbered(4));
    assert_eq!(world.output(second), ["kept", "7:8"]);
    let mut third = with(
        &world,
        &path,
        "cat /data/file; stat -c %u:%g /data/file; touch /data/x 2>/dev/null || echo read-only",
    );
    third.volumes[0].readonly = true;
    assert_eq!(world.output(third), ["kept", "7:8", "read-only"]);
    until("no device is left", || devices(world.dir.path()) == 0);
    assert!(volume::remove(&path).unwrap() && !path.exists());
}

#[test]
fn it_is_as_large_as_it_was_said_to_be_and_grows() {
    let Some(world) = World::new() else { return };
    let path = volume_of(&world);
    let fill = "dd if=/dev/zero of=/data/big bs=1048576 count=400 2>&1 | grep -c 'No space left'; \
                s=$(stat -c %s /data/big); echo $((s >> 20)); sync";
    let small = world.output(with(&world, &path, fill));
    assert_eq!(small[0], "1");
    assert!((30..64).contains(&small[1].parse::<u64>().unwrap()), "{small:?}");
    assert!(volume::used_bytes(&path).unwrap() > 30 << 20);
    volume::grow(&path, SIZE * 4, Space::Reserved).unwrap();
    let large = world.output(with(&world, &path, fill));
    assert!(
        (190..256).contains(&large[1].parse::<u64>().unwrap()),
        "{large:?}"
    );
    assert_eq!(fs::metadata(&path).unwrap().len(), SIZE * 4);
}

#[test]
fn one_instance_has_it_until_its_last_process_is_gone() {
    let Some(world) = World::new() else { return };
    let path = volume_of(&world);
    let holder = with(
        &world,
        &path,
        "echo begun > /data/file; sync; echo written; sleep 1000",
    );
    let id = holder.id.clone();
    world.client().launch(holder).unwrap();
    // It may be ended as soon as the second is begun.
    world.wait_log(&id, "written");
    assert!(volume::is_attached(&path).unwrap());
    assert!(!volume::remove(&path).unwrap(), "not while somebody has it");
    // The second waits for the first, and has it as soon as that is gone.
    let second = with(&world, &path, "cat /data/file");
    let waiting = second.id.clone();
    let read = thread::scope(|scope| {
        scope.spawn(|| {
            let begun = |info: &InstanceInfo| info.id == waiting;
            until("the second is begun", || {
                world.client().list().unwrap().iter().any(begun)
            });
            ends(&world, &id);
        });
        world.output(second)
    });
    assert_eq!(read, ["begun"]);
    until("no device is left", || devices(world.dir.path()) == 0);
}

#[test]
fn a_snapshot_of_a_volume_in_use_is_of_one_moment() {
    let Some(world) = World::new() else { return };
    let path = volume_of(&world);
    // Two files that are never more than one step apart.
    let writer = with(
        &world,
        &path,
        "i=0; while :; do i=$((i+1)); echo $i > /data/a.new; sync; mv /data/a.new /data/a; sync; \
         echo $i > /data/b.new; sync; mv /data/b.new /data/b; sync; done",
    );
    let id = writer.id.clone();
    world.client().launch(writer).unwrap();
    let read = |name: &str| {
        let pid = match world.info(&id).state {
            InstanceState::Running { pid } => pid,
            other => panic!("{other:?}"),
        };
        fs::read_to_string(format!("/proc/{pid}/root/data/{name}"))
            .ok()
            .and_then(|text| text.trim().parse::<u64>().ok())
            .unwrap_or(0)
    };
    until("it writes", || read("b") > 2);
    let before = read("b");
    let snapshot = path.with_file_name("snapshot");
    volume::snapshot(&snapshot, &path).unwrap();
    let after = read("b");
    until("it goes on", || read("b") > after + 1);
    ends(&world, &id);
    let copy = path.with_file_name("copy");
    volume::make_from(&copy, &snapshot, SIZE * 2, Space::Reserved).unwrap();
    let kept = world.output(with(&world, &copy, "cat /data/a /data/b; touch /data/more"));
    let (a, b) = (kept[0].parse::<u64>().unwrap(), kept[1].parse::<u64>().unwrap());
    assert!(a == b || a == b + 1, "{a} {b}");
    assert!(b >= before, "{b} was written before");
    // The original and the snapshot are not touched by what is written to the copy.
    let original = world.output(with(&world, &path, "ls /data"));
    assert!(!original.contains(&"more".to_owned()));
}

#[test]
fn a_frozen_file_system_goes_on_although_who_froze_it_is_killed() {
    let Some(world) = World::new() else { return };
    let path = volume_of(&world);
    let writer = with(
        &world,
        &path,
        "i=0; while :; do i=$((i+1)); echo $i > /data/a; sync; sleep 0.01; done",
    );
    let id = writer.id.clone();
    world.client().launch(writer).unwrap();
    until("it is mounted", || Live::of(&path).unwrap().is_some());
    let pid = match world.info(&id).state {
        InstanceState::Running { pid } => pid,
        other => panic!("{other:?}"),
    };
    // What a snapshot leaves whose process and guard were both killed.
    let frozen = std::process::Command::new("python3")
        .args([
            "-c",
            "import fcntl, os, sys; fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0xC0045877, 0)",
        ])
        .arg(format!("/proc/{pid}/root/data"))
        .status()
        .unwrap();
    assert!(frozen.success());
    volume::thaw_all(path.parent().unwrap()).unwrap();
    let written = || fs::read_to_string(format!("/proc/{pid}/root/data/a")).unwrap_or_default();
    let frozen_at = written();
    until("it goes on", || written() != frozen_at);
    ends(&world, &id);
    until("no device is left", || devices(world.dir.path()) == 0);
}
