//! Copies of running instances: processes, memory and disk, each in a place of its own.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use tram_sandbox::{
    checkpoint::Criu,
    protocol::{
        CheckpointSpec, IdRange, InstanceId, InstanceState, KeepSpec, LaunchSpec, MemoryFrom, Refusal,
    },
};

use crate::support::{World, refusal, until};

const DISK: u64 = 64 << 20;

/// Counts in memory, and says so once for each line of a file that grows; tells its host name with it.
const COUNTER: &str = "n=0; touch /asked; echo ready; while :; do \
    while [ \"$(cat /asked 2>/dev/null | wc -l)\" -gt $n ]; do n=$((n+1)); \
    echo \"count $n at $(cat /proc/sys/kernel/hostname)\"; done; sleep 0.02; done";

fn criu() -> Option<PathBuf> {
    match Criu::find(None).and_then(|criu| criu.check().map(|()| criu)) {
        Ok(criu) => Some(criu.program),
        Err(error) => {
            eprintln!("skipped: {error}");
            None
        }
    }
}

fn pid(world: &World, id: &InstanceId) -> i32 {
    match world.info(id).state {
        InstanceState::Running { pid } | InstanceState::Frozen { pid } => pid,
        other => panic!("it has no process: {other:?}"),
    }
}

/// Asks a counter once more and waits for its answer.
fn ask(world: &World, id: &InstanceId, answer: &str) {
    let path = format!("/proc/{}/root/asked", pid(world, id));
    // Not made from outside, where nobody has the instance's ids.
    let mut file = fs::OpenOptions::new().append(true).open(path).unwrap();
    writeln!(file, "please").unwrap();
    world.wait_log(id, answer);
}

fn keep(world: &World, program: PathBuf, name: &str) -> KeepSpec {
    KeepSpec {
        checkpoint: CheckpointSpec {
            program,
            peers: vec![IpAddr::from([127, 0, 0, 1])],
        },
        disk: world.dir.path().join(name),
        memory: world.dir.path().join(format!("{name}.memory")),
    }
}

fn copy_of(world: &World, kept: &KeepSpec) -> LaunchSpec {
    let mut spec = world.shell("echo this program is not started");
    spec.disk_bytes_max = Some(DISK);
    spec.disk_from = Some(kept.disk.clone());
    spec.memory_from = Some(MemoryFrom {
        program: kept.checkpoint.program.clone(),
        image: kept.memory.clone(),
    });
    spec.limits.memory_bytes = Some(256 << 20);
    spec
}

/// Who may read a directory and what is in it.
fn modes(directory: &Path) -> BTreeSet<u32> {
    let files = fs::read_dir(directory).unwrap();
    let paths = files.map(|entry| entry.unwrap().path());
    let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    paths.chain([directory.to_owned()]).map(mode).collect()
}

fn ends(world: &World, id: &InstanceId) {
    world.client().kill(id).unwrap();
    world.wait_exit(id);
}

#[test]
fn copies_go_on_from_one_moment_each_by_itself() {
    go_on(|_| None);
}

#[test]
fn copies_have_ids_of_their_own() {
    go_on(|number| Some(IdRange::numbered(number)));
}

fn go_on(ids: impl Fn(u32) -> Option<IdRange>) {
    let Some(mut world) = World::new() else { return };
    let Some(program) = criu() else { return };
    let mut spec = world.shell(COUNTER);
    spec.ids = ids(7);
    spec.disk_bytes_max = Some(DISK);
    spec.limits.memory_bytes = Some(256 << 20);
    let first = spec.id.clone();
    world.client().launch(spec).unwrap();
    world.wait_log(&first, "ready");
    for count in 1..4 {
        ask(&world, &first, &format!("count {count} at {first}"));
    }
    let kept = keep(&world, program, "kept");
    let before = pid(&world, &first);
    world.client().keep(&first, kept.clone()).unwrap();
    assert!(kept.disk.is_file() && kept.memory.join("pages-1.img").is_file());
    assert_eq!(pid(&world, &first), before, "the first one is untouched");
    assert_eq!(modes(&kept.memory), BTreeSet::from([0o600, 0o700]));
    ask(&world, &first, &format!("count 4 at {first}"));
    // Ordered again by who did not hear of it: what is there stays, all of one moment.
    world.client().keep(&first, kept.clone()).unwrap();

    let mut copies = Vec::new();
    for number in 11..14 {
        let mut spec = copy_of(&world, &kept);
        spec.ids = ids(number);
        let id = spec.id.clone();
        let begun = Instant::now();
        world.client().launch(spec).unwrap();
        eprintln!("a copy runs after {:?}", begun.elapsed());
        // Three before it was kept, whatever the others did since.
        ask(&world, &id, &format!("count 4 at {id}"));
        if let Some(ids) = ids(number) {
            let map = fs::read_to_string(format!("/proc/{}/uid_map", pid(&world, &id))).unwrap();
            let words: Vec<&str> = map.split_whitespace().collect();
            assert_eq!(words, ["0", &ids.first.to_string(), "65536"]);
        }
        copies.push(id);
    }
    for round in 5..7 {
        for id in &copies {
            ask(&world, id, &format!("count {round} at {id}"));
        }
    }
    assert!(
        world
            .logs(&copies[0])
            .iter()
            .all(|line| !line.text.contains("not started"))
    );
    assert_eq!(modes(&kept.memory), BTreeSet::from([0o600, 0o700]));
    // What they were made of may go, and whoever looks after them may die.
    fs::remove_dir_all(&kept.memory).unwrap();
    world.kill_supervisor();
    world.start_supervisor();
    ask(&world, &copies[1], &format!("count 7 at {}", copies[1]));
    ends(&world, &first);
    ask(&world, &copies[2], &format!("count 7 at {}", copies[2]));
    for id in &copies {
        ends(&world, id);
    }
}

/// What these limits of cgroups read while processes are in them, until `done`.
fn limits_seen(cgroups: &[PathBuf], done: &AtomicBool) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    while !done.load(Ordering::Relaxed) {
        for path in cgroups {
            if !fs::read_to_string(path.join("cgroup.procs")).is_ok_and(|text| !text.is_empty()) {
                continue;
            }
            for file in ["pids.max", "cpu.max", "cpu.cfs_quota_us"] {
                if let Ok(text) = fs::read_to_string(path.join(file)) {
                    seen.insert(format!("{file} {}", text.trim()));
                }
            }
        }
    }
    seen
}

#[test]
fn no_process_of_a_copy_ever_runs_without_limits() {
    let Some(world) = World::new() else { return };
    let Some(program) = criu() else { return };
    let mut spec = world.shell("echo ready; while :; do sleep 0.01; done");
    spec.disk_bytes_max = Some(DISK);
    let id = spec.id.clone();
    world.client().launch(spec).unwrap();
    world.wait_log(&id, "ready");
    let kept = keep(&world, program, "kept");
    world.client().keep(&id, kept.clone()).unwrap();
    let of_first: Vec<PathBuf> = world.cgroups();
    let mut seen = BTreeSet::new();
    let mut looks = 0;
    // CRIU is in a hurry and may leave a small machine no processor to look with.
    while !seen.iter().any(|text: &String| text.starts_with("pids.max")) {
        looks += 1;
        assert!(looks < 100, "nothing is seen of a copy");
        let mut spec = copy_of(&world, &kept);
        spec.limits.pids_max = Some(50);
        spec.limits.cpu_millis = Some(500);
        let copy = spec.id.clone();
        let cgroups: Vec<PathBuf> = of_first
            .iter()
            .map(|path| path.with_file_name(copy.as_str()))
            .collect();
        let done = AtomicBool::new(false);
        seen.extend(std::thread::scope(|scope| {
            let watching = scope.spawn(|| limits_seen(&cgroups, &done));
            world.client().launch(spec).unwrap();
            done.store(true, Ordering::Relaxed);
            watching.join().unwrap()
        }));
        let limits = cgroups
            .iter()
            .map(|path| fs::read_to_string(path.join("pids.max")));
        assert!(limits.flatten().any(|text| text.trim() == "50"));
        ends(&world, &copy);
    }
    eprintln!("{seen:?} after {looks}");
    let unlimited = ["pids.max max", "cpu.cfs_quota_us -1", "cpu.max max 100000"];
    assert!(unlimited.iter().all(|text| !seen.contains(*text)), "{seen:?}");
    ends(&world, &id);
}

#[test]
fn a_copy_of_a_copy_remembers_all_of_it() {
    let Some(world) = World::new() else { return };
    let Some(program) = criu() else { return };
    let mut spec = world.shell(COUNTER);
    spec.disk_bytes_max = Some(DISK);
    let mut current = spec.id.clone();
    world.client().launch(spec).unwrap();
    world.wait_log(&current, "ready");
    for generation in 1..6 {
        ask(&world, &current, &format!("count {generation} at {current}"));
        let kept = keep(&world, program.clone(), &format!("kept-{generation}"));
        // At once, while pages of the copy may still be on their way.
        world.client().keep(&current, kept.clone()).unwrap();
        let spec = copy_of(&world, &kept);
        let next = spec.id.clone();
        world.client().launch(spec).unwrap();
        ends(&world, &current);
        current = next;
    }
    ends(&world, &current);
}

#[test]
fn what_cannot_be_kept_goes_on_and_leaves_nothing() {
    let Some(world) = World::new() else { return };
    let Some(program) = criu() else { return };
    let mut spec = world.shell("echo x > /dev/shm/buffer; echo ready; sleep 1000");
    spec.disk_bytes_max = Some(DISK);
    let id = spec.id.clone();
    world.client().launch(spec).unwrap();
    world.wait_log(&id, "ready");
    let kept = keep(&world, program, "kept");
    let said = refusal(world.client().keep(&id, kept.clone()).unwrap_err());
    let Refusal::CannotCheckpoint { reason } = said else {
        panic!("{said:?}")
    };
    assert!(reason.contains("/dev/shm/buffer"), "{reason}");
    assert!(!kept.disk.exists() && !kept.memory.exists());
    assert!(matches!(world.info(&id).state, InstanceState::Running { .. }));
    // Frozen before is frozen after.
    fs::remove_file(format!("/proc/{}/root/dev/shm/buffer", pid(&world, &id))).unwrap();
    world.client().freeze(&id).unwrap();
    world.client().keep(&id, kept.clone()).unwrap();
    assert!(matches!(world.info(&id).state, InstanceState::Frozen { .. }));
    world.client().thaw(&id).unwrap();
    ends(&world, &id);
}

#[test]
fn a_damaged_image_is_a_clear_failure_that_leaves_nothing() {
    let Some(world) = World::new() else { return };
    let Some(program) = criu() else { return };
    let mut spec = world.shell("echo ready; sleep 1000");
    spec.disk_bytes_max = Some(DISK);
    let id = spec.id.clone();
    world.client().launch(spec).unwrap();
    world.wait_log(&id, "ready");
    let kept = keep(&world, program, "kept");
    world.client().keep(&id, kept.clone()).unwrap();
    for name in ["core-1.img", "kept.json", "inventory.img", "mountpoints-12.img"] {
        let path = kept.memory.join(name);
        let Ok(whole) = fs::read(&path) else { continue };
        fs::write(&path, vec![0xff; whole.len()]).unwrap();
        let spec = copy_of(&world, &kept);
        let copy = spec.id.clone();
        let said = refusal(world.client().launch(spec).unwrap_err());
        assert!(matches!(said, Refusal::Launch { .. }), "{name}: {said:?}");
        world.wait_exit(&copy);
        world.client().remove(&copy).unwrap();
        until("nothing of it runs", || {
            world.cgroups().iter().all(|path| !path.ends_with(copy.as_str()))
        });
        fs::write(&path, whole).unwrap();
    }
    ends(&world, &id);
}
