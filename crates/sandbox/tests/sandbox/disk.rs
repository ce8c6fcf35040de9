//! Disks of a fixed size: the limit holds, nobody else feels it, and nothing is left.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use rustix::fs::inotify;
use tram_sandbox::probe;
use tram_sandbox::protocol::{InstanceId, InstanceState};

use crate::support::*;

/// Loop devices that show a file below `directory`.
fn devices(directory: &Path) -> usize {
    let prefix = directory.to_str().unwrap();
    fs::read_dir("/sys/block")
        .unwrap()
        .filter_map(|entry| fs::read_to_string(entry.unwrap().path().join("loop/backing_file")).ok())
        .filter(|file| file.starts_with(prefix))
        .count()
}

fn pid(world: &World, id: &InstanceId) -> i32 {
    match world.info(id).state {
        InstanceState::Running { pid } => pid,
        other => panic!("{other:?}"),
    }
}

fn possible() -> bool {
    let facts = probe::facts();
    let disks = facts.iter().find(|fact| fact.name == "disk limits");
    let possible = disks.is_some_and(|fact| fact.ok);
    if !possible {
        skip(&format!(
            "this machine cannot make disks, which needs e2fsprogs and loop devices: {disks:?}"
        ));
    }
    possible
}

#[test]
fn a_disk_is_as_large_as_it_was_said_to_be() {
    let Some(mut world) = World::new() else { return };
    if !possible() {
        return;
    }
    let mut neighbour = world.shell("while [ ! -e /stop ]; do echo more >> /mine; sleep 0.05; done");
    neighbour.disk_bytes_max = Some(64 << 20);
    let neighbour_id = neighbour.id.clone();
    world.client().launch(neighbour).unwrap();

    let mut greedy = world.shell(
        "dd if=/dev/zero of=/big bs=65536 count=4096 2>&1 | grep -c 'No space left'; \
         touch /tmp-file; rm /big; echo room > /small && cat /small; \
         dd if=/dev/zero of=/again bs=65536 count=320 2>/dev/null && echo again",
    );
    greedy.disk_bytes_max = Some(32 << 20);
    assert_eq!(world.output(greedy), ["1", "room", "again"]);

    let name = format!("/proc/{}/root", pid(&world, &neighbour_id));
    assert!(
        fs::read_to_string(format!("{name}/mine"))
            .unwrap()
            .ends_with("more\n")
    );
    let disk = rustix::fs::statvfs(&name).unwrap();
    let size = disk.f_blocks * disk.f_frsize;
    assert!((48 << 20..=64 << 20).contains(&size), "{size}");
    // The file has no name, and the machine's mount table does not show the mount.
    let state = world.state();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(state.to_str().unwrap()), "{mounts}");
    assert!(devices(&state) >= 1);

    // The supervisor may die: the disk is the instance's.
    world.kill_supervisor();
    until("only the neighbour's disk is left", || devices(&state) == 1);
    world.start_supervisor();
    fs::write(format!("{name}/stop"), "").unwrap();
    world.wait_exit(&neighbour_id);
    world.kill_supervisor();
    until("every device is free again", || devices(&state) == 0);
    world.start_supervisor();
}

#[test]
fn making_a_disk_leaves_nothing_to_clean_up_at_any_moment() {
    let Some(world) = World::new() else { return };
    if !possible() {
        return;
    }
    let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
    let watch = inotify::init(flags).unwrap();
    let disks = world.state().join("disks");
    inotify::add_watch(
        &watch,
        &disks,
        inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO,
    )
    .unwrap();
    let mut spec = world.shell("echo done");
    spec.disk_bytes_max = Some(24 << 20);
    assert_eq!(world.output(spec), ["done"]);
    let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
    let mut events = inotify::Reader::new(&watch, &mut buffer);
    let mut names = Vec::new();
    while let Ok(event) = events.next() {
        names.extend(event.file_name().map(|name| name.to_str().unwrap().to_owned()));
    }
    // What is there only for a moment would stay if we were killed in it.
    assert_eq!(names, [(24 << 20).to_string()]);
}

#[test]
fn a_full_disk_ends_as_quickly_as_an_empty_one() {
    let Some(world) = World::new() else { return };
    if !possible() {
        return;
    }
    let mut spec = world.shell("dd if=/dev/zero of=/big bs=1048576 count=200 2>/dev/null; exec sleep 1000");
    spec.disk_bytes_max = Some(512 << 20);
    let id = spec.id.clone();
    world.client().launch(spec).unwrap();
    let big = format!("/proc/{}/root/big", pid(&world, &id));
    until("the file is written", || {
        fs::metadata(&big).is_ok_and(|big| big.len() == 200 << 20)
    });
    world.client().kill(&id).unwrap();
    world.wait_exit(&id);
}

#[test]
fn the_root_has_the_mode_and_owner_of_the_top_layer() {
    let Some(world) = World::new() else { return };
    let top = world.dir.path().join("top");
    fs::create_dir(&top).unwrap();
    fs::set_permissions(&top, fs::Permissions::from_mode(0o1751)).unwrap();
    chown(&top, Some(7), Some(8)).unwrap();
    assert_eq!(fs::metadata(&top).unwrap().uid(), 7);
    let disks = if possible() {
        vec![None, Some(16 << 20)]
    } else {
        vec![None]
    };
    for disk in disks {
        let mut spec = world.shell("stat -c '%a %u %g' /");
        spec.lower_dirs.insert(0, top.clone());
        spec.disk_bytes_max = disk;
        assert_eq!(world.output(spec), ["1751 7 8"], "{disk:?}");
    }
}
