//! kill -9 at any moment, and what is found afterwards.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use tram_sandbox::protocol::{ExitCause, ExitStatus, InstanceState};

use crate::support::{World, pause, until};

/// Enough to hit every step of a launch several times.
const ROUNDS: u64 = 60;

#[test]
fn a_new_supervisor_adopts_what_the_old_one_left() {
    let Some(mut world) = World::new() else { return };
    let runs = world.shell("echo before; until test -e /go; do sleep 0.02; done; echo after; exit 33");
    let ends = world.shell("until test -e /go; do sleep 0.02; done; exit 44");
    let mut pids = Vec::new();
    for spec in [&runs, &ends] {
        pids.push(world.client().launch(spec.clone()).unwrap());
    }
    world.wait_log(&runs.id, "before");
    world.kill_supervisor();
    // One ends while nobody watches.
    let poke = |pid: i32| fs::write(format!("/proc/{pid}/root/go"), "").unwrap();
    poke(pids[1]);
    let record = world
        .state()
        .join("instances")
        .join(ends.id.as_str())
        .join("exit.json");
    until("the shim records the end", || record.exists());
    world.start_supervisor();

    assert_eq!(
        world.info(&runs.id).state,
        InstanceState::Running { pid: pids[0] }
    );
    assert_eq!(world.wait_exit(&ends.id).status, Some(ExitStatus::Code(44)));
    assert!(world.info(&runs.id).started_at.is_some());
    poke(pids[0]);
    let exit = world.wait_exit(&runs.id);
    assert_eq!(
        (exit.status, exit.cause),
        (Some(ExitStatus::Code(33)), ExitCause::Exited)
    );
    let texts: Vec<String> = world
        .logs(&runs.id)
        .into_iter()
        .map(|record| record.text)
        .collect();
    assert_eq!(texts, ["before", "after"]);
    until("the cgroups are gone", || world.cgroups().is_empty());
}

#[test]
fn a_grace_that_ran_out_while_nobody_watched_is_enforced() {
    let Some(mut world) = World::new() else { return };
    let spec = world.shell("trap '' TERM; echo ready; while :; do sleep 0.05; done");
    world.client().launch(spec.clone()).unwrap();
    world.wait_log(&spec.id, "ready");
    world.client().stop(&spec.id, Duration::from_millis(300)).unwrap();
    world.kill_supervisor();
    world.start_supervisor();
    let exit = world.wait_exit(&spec.id);
    assert_eq!(
        (exit.status, exit.cause),
        (Some(ExitStatus::Signal(9)), ExitCause::Stopped)
    );
}

#[test]
fn an_instance_whose_shim_is_killed_is_ended_and_said_to_be_lost() {
    let Some(world) = World::new() else { return };
    let spec = world.program(&["sleep", "1000"]);
    let pid = world.client().launch(spec.clone()).unwrap();
    let shim = parent_of(pid);
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(shim).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    let exit = world.wait_exit(&spec.id);
    assert_eq!((exit.status, exit.cause), (None, ExitCause::Lost));
    until("the process is gone", || !alive(pid));
}

#[test]
fn a_second_supervisor_is_refused_and_the_first_goes_on() {
    let Some(world) = World::new() else { return };
    let own = std::env::current_exe().unwrap();
    let program = own
        .parent()
        .unwrap()
        .parent()
        .unwrap()
        .join("examples/supervisor");
    let second = std::process::Command::new(program)
        .arg(world.state())
        .output()
        .unwrap();
    assert!(!second.status.success());
    assert!(String::from_utf8_lossy(&second.stderr).contains("AlreadyRunning"));
    assert_eq!(world.client().ping().unwrap(), world.supervisor_pid());
}

/// The promise behind all others: whatever moment the supervisor dies at, afterwards every instance
/// either runs or has ended on record, and removing it leaves nothing.
#[test]
fn a_launch_that_is_cut_anywhere_leaves_nothing_behind() {
    let Some(mut world) = World::new() else { return };
    let seed = std::env::var("TRAM_TEST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| {
            u64::from(std::process::id()) ^ jiff::Timestamp::now().as_microsecond().cast_unsigned()
        });
    eprintln!("seed: TRAM_TEST_SEED={seed}");
    let mut random = seed;
    let mut outcomes = BTreeSet::new();
    for _ in 0..ROUNDS {
        // splitmix64: enough to spread the moments.
        random = random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (random ^ (random >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let delay = Duration::from_micros((mixed >> 33) % 15_000);
        let spec = world.program(&["sleep", "1000"]);
        let id = spec.id.clone();
        let client = world.client();
        std::thread::scope(|scope| {
            let launch = scope.spawn(|| client.launch(spec));
            let moment = rustix::event::Timespec {
                tv_sec: 0,
                tv_nsec: delay.subsec_nanos().into(),
            };
            rustix::event::poll(&mut [], Some(&moment)).unwrap();
            world.kill_supervisor();
            drop(launch.join().unwrap());
        });
        world.start_supervisor();
        // It may not have got as far as being recorded.
        let Some(_) = world
            .client()
            .list()
            .unwrap()
            .into_iter()
            .find(|info| info.id == id)
        else {
            outcomes.insert("never recorded");
            continue;
        };
        until("the launch is decided", || {
            world.info(&id).state != InstanceState::Starting
        });
        match world.info(&id).state {
            InstanceState::Running { .. } => {
                outcomes.insert("running");
                world.client().kill(&id).unwrap();
                let exit = world.wait_exit(&id);
                assert_eq!(
                    (exit.status, exit.cause),
                    (Some(ExitStatus::Signal(9)), ExitCause::Killed),
                    "seed {seed}"
                );
            }
            InstanceState::Exited { exit } => {
                assert_eq!(exit.cause, ExitCause::Interrupted, "seed {seed}");
                outcomes.insert("interrupted");
            }
            other => panic!("seed {seed}: {other:?}"),
        }
        world.client().remove(&id).unwrap();
    }
    eprintln!("outcomes: {outcomes:?}");
    until("the trash is empty", || {
        world.state().join("trash").read_dir().unwrap().next().is_none()
    });
    assert_eq!(world.state().join("instances").read_dir().unwrap().count(), 0);
    until("no process is left", || {
        processes_naming(world.dir.path().to_str().unwrap()).is_empty()
    });
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(world.dir.path().to_str().unwrap()), "{mounts}");
    until("no cgroup is left", || own_cgroups(&world).is_empty());
}

/// Every supervisor and shim keeps a descriptor or a mount of its state directory.
fn processes_naming(text: &str) -> Vec<i32> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<i32>().ok())
        else {
            continue;
        };
        let comm = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if !comm.starts_with("tram-") {
            continue;
        }
        let open = fs::read_dir(entry.path().join("fd"))
            .into_iter()
            .flatten()
            .flatten();
        if open
            .filter_map(|fd| fs::read_link(fd.path()).ok())
            .any(|link| link.to_string_lossy().contains(text))
        {
            found.push(pid);
        }
    }
    found
}

/// Instance ids of this test process, in any hierarchy.
fn own_cgroups(_world: &World) -> Vec<std::path::PathBuf> {
    let prefix = format!("test-{}-", std::process::id());
    let mut found = Vec::new();
    for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        for parent in fs::read_dir(hierarchy.path().join("tram"))
            .into_iter()
            .flatten()
            .flatten()
        {
            for child in fs::read_dir(parent.path()).into_iter().flatten().flatten() {
                if child.file_name().to_string_lossy().starts_with(&prefix) {
                    found.push(child.path());
                }
            }
        }
    }
    found
}

#[test]
fn descriptors_do_not_pile_up() {
    let Some(world) = World::new() else { return };
    let count = || {
        fs::read_dir(format!("/proc/{}/fd", world.supervisor_pid()))
            .unwrap()
            .count()
    };
    let round = || {
        let spec = world.program(&["sleep", "1000"]);
        let id = spec.id.clone();
        let pid = world.client().launch(spec).unwrap();
        let shim_fds = fs::read_dir(format!("/proc/{}/fd", parent_of(pid)))
            .unwrap()
            .count();
        world.client().kill(&id).unwrap();
        world.wait_exit(&id);
        world.client().remove(&id).unwrap();
        shim_fds
    };
    round();
    let settled = || {
        (0..5).for_each(|_| pause());
        count()
    };
    let before = settled();
    let shims: BTreeSet<usize> = (0..20).map(|_| round()).collect();
    until("no descriptor is left over", || settled() <= before);
    // Three for the null device, the lock, two pipes, the child, the logs.
    assert!(shims.iter().all(|fds| *fds <= 12), "{shims:?}");
}

fn parent_of(pid: i32) -> i32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status
        .lines()
        .find_map(|line| line.strip_prefix("PPid:"))
        .unwrap()
        .trim()
        .parse()
        .unwrap()
}

fn alive(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}
