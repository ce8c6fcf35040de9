//! To the disk and back.

use std::fs;
use std::io::Write;
use std::net::{IpAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use tram_sandbox::{
    checkpoint::Criu,
    netns,
    protocol::{
        BindMount, CheckpointSpec, Event, ExitCause, ExitStatus, InstanceId, InstanceState, Network, Refusal,
    },
};

use crate::exec::{finish, shell};
use crate::support::{World, next_event, pause, refusal, until};

/// Counts in memory, and says so once for each line of a file that grows.
const COUNTER: &str = "n=0; echo ready; while :; do \
    while [ \"$(cat /asked 2>/dev/null | wc -l)\" -gt $n ]; do n=$((n+1)); echo count $n; done; sleep 0.02; done";

/// `None` when CRIU is not here, which is said.
fn spec() -> Option<CheckpointSpec> {
    match Criu::find(None).and_then(|criu| criu.check().map(|()| criu)) {
        Ok(criu) => Some(CheckpointSpec {
            program: criu.program,
            peers: vec![IpAddr::from([127, 0, 0, 1])],
        }),
        Err(error) => {
            eprintln!("skipped: {error}");
            None
        }
    }
}

impl World {
    fn processes(&self, id: &InstanceId) -> usize {
        let procs = self
            .cgroups()
            .into_iter()
            .filter(|path| path.ends_with(id.as_str()));
        let counts = procs.map(|path| {
            let text = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
            text.lines().count()
        });
        counts.max().unwrap_or(0)
    }

    fn pid(&self, id: &InstanceId) -> i32 {
        match self.info(id).state {
            InstanceState::Running { pid } | InstanceState::Frozen { pid } => pid,
            other => panic!("it has no process: {other:?}"),
        }
    }

    /// Asks a counter once more and waits for its answer.
    fn ask(&self, id: &InstanceId, answer: usize) {
        let path = format!("/proc/{}/root/asked", self.pid(id));
        let mut file = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .unwrap();
        writeln!(file, "please").unwrap();
        self.wait_log(id, &format!("count {answer}"));
    }

    fn image(&self, id: &InstanceId) -> std::path::PathBuf {
        self.state()
            .join("instances")
            .join(id.as_str())
            .join("checkpoint")
    }
}

fn counts_on(v1_freezer: bool) {
    let Some(mut world) = World::with(v1_freezer) else {
        return;
    };
    let Some(checkpoint) = spec() else { return };
    let mut watch = world.client().watch().unwrap();
    let mut spec = world.shell(COUNTER);
    spec.limits.cpu_millis = Some(500);
    spec.limits.memory_bytes = Some(64 << 20);
    // Not root, and with fewer rights.
    spec.user.uid = 4711;
    spec.user.gid = 4712;
    let id = spec.id.clone();
    world.client().launch(spec).unwrap();
    world.wait_log(&id, "ready");
    world.ask(&id, 1);
    let not_frozen = world.client().checkpoint(&id, checkpoint.clone()).unwrap_err();
    assert_eq!(refusal(not_frozen), Refusal::NotFrozen { id: id.clone() });

    for round in 2..4 {
        world.client().freeze(&id).unwrap();
        world.client().checkpoint(&id, checkpoint.clone()).unwrap();
        next_event(&mut watch, |event| {
            *event == Event::Checkpointed { id: id.clone() }
        });
        world.client().checkpoint(&id, checkpoint.clone()).unwrap();
        assert_eq!(world.info(&id).state, InstanceState::Checkpointed);
        assert_eq!(world.processes(&id), 0, "nothing of it is in memory");
        assert!(world.image(&id).join("pages-1.img").exists());
        assert!(world.client().stats(&id).unwrap().checkpoint_bytes > 0);
        // Nobody who dies meanwhile takes it along.
        world.kill_supervisor();
        world.start_supervisor();
        assert_eq!(world.info(&id).state, InstanceState::Checkpointed);
        let mut again = world.client().watch().unwrap();
        world.client().thaw(&id).unwrap();
        next_event(
            &mut again,
            |event| matches!(event, Event::Thawed { id: thawed, pid: Some(_) } if *thawed == id),
        );
        watch = again;
        world.ask(&id, round);
        let (status, said, _) = finish(world.client().exec(&id, shell("cat /asked")).unwrap());
        assert_eq!((status, said.lines().count()), (ExitStatus::Code(0), round));
        // All of it comes back, and the image goes.
        until("the image is gone", || !world.image(&id).exists());
        let unlimited = fs::read_dir("/sys/fs/cgroup/cpu/tram")
            .into_iter()
            .flatten()
            .flatten();
        for parent in unlimited {
            let quota = parent.path().join(id.as_str()).join("cpu.cfs_quota_us");
            if quota.exists() {
                assert_eq!(fs::read_to_string(quota).unwrap().trim(), "50000");
            }
        }
    }
    world.client().kill(&id).unwrap();
    let exit = world.wait_exit(&id);
    assert_eq!(
        (exit.status, exit.cause),
        (Some(ExitStatus::Signal(9)), ExitCause::Killed)
    );
}

#[test]
fn it_goes_to_the_disk_and_comes_back_twice_whoever_dies_meanwhile() {
    counts_on(false);
}

#[test]
fn the_same_with_the_v1_freezer() {
    counts_on(true);
}

#[test]
fn it_ends_by_itself_after_a_restore_and_its_exit_code_is_learnt() {
    let Some(world) = World::new() else { return };
    let Some(checkpoint) = spec() else { return };
    let spec = world.shell("echo ready; until [ -e /go ]; do sleep 0.02; done; echo bye; exit 7");
    let id = spec.id.clone();
    world.client().launch(spec).unwrap();
    world.wait_log(&id, "ready");
    world.client().freeze(&id).unwrap();
    world.client().checkpoint(&id, checkpoint).unwrap();
    world.client().thaw(&id).unwrap();
    let pid = world.pid(&id);
    fs::write(format!("/proc/{pid}/root/go"), "").unwrap();
    let exit = world.wait_exit(&id);
    assert_eq!(
        (exit.status, exit.cause),
        (Some(ExitStatus::Code(7)), ExitCause::Exited)
    );
    world.wait_log(&id, "bye");
    world.client().remove(&id).unwrap();
    until("the cgroups are gone", || world.cgroups().is_empty());
}

#[test]
fn a_checkpointed_instance_is_ended_without_being_restored() {
    let Some(world) = World::new() else { return };
    let Some(checkpoint) = spec() else { return };
    for grace in [Some(Duration::from_secs(60)), None] {
        let spec = world.shell("trap 'echo heard' TERM; echo ready; while :; do sleep 0.02; done");
        let id = spec.id.clone();
        world.client().launch(spec).unwrap();
        world.wait_log(&id, "ready");
        world.client().freeze(&id).unwrap();
        world.client().checkpoint(&id, checkpoint.clone()).unwrap();
        match grace {
            Some(grace) => world.client().stop(&id, grace).unwrap(),
            None => world.client().kill(&id).unwrap(),
        }
        let exit = world.wait_exit(&id);
        let cause = if grace.is_some() {
            ExitCause::Stopped
        } else {
            ExitCause::Killed
        };
        assert_eq!((exit.status, exit.cause), (Some(ExitStatus::Signal(9)), cause));
        assert!(!world.image(&id).exists());
        assert!(world.logs(&id).iter().all(|record| record.text != "heard"));
    }
}

#[test]
fn an_open_connection_is_an_obstacle_and_is_named() {
    let Some(world) = World::new() else { return };
    let Some(checkpoint) = spec() else { return };
    let network = world.dir.path().join("network");
    netns::create(&network).unwrap();
    let listener = netns::run_in(&network, || TcpListener::bind("127.0.0.1:7777").unwrap()).unwrap();
    let mut spec = world.shell("echo ready; nc 127.0.0.1 7777; echo closed; while :; do sleep 0.02; done");
    spec.network = Network::Namespace {
        path: network.clone(),
    };
    let id = spec.id.clone();
    world.client().launch(spec).unwrap();
    let (connection, _) = listener.accept().unwrap();
    world.client().freeze(&id).unwrap();
    let error = world.client().checkpoint(&id, checkpoint.clone()).unwrap_err();
    let Refusal::CannotCheckpoint { reason } = refusal(error) else {
        panic!("another refusal");
    };
    assert!(reason.contains("127.0.0.1:7777"), "{reason}");
    let pid = world.pid(&id);
    assert_eq!(world.info(&id).state, InstanceState::Frozen { pid });
    assert!(!world.image(&id).exists());
    // Without the connection it can be, and the program goes on where it was.
    world.client().thaw(&id).unwrap();
    drop((connection, listener));
    world.wait_log(&id, "closed");
    world.client().freeze(&id).unwrap();
    world.client().checkpoint(&id, checkpoint).unwrap();
    assert_eq!(world.info(&id).state, InstanceState::Checkpointed);
    world.client().kill(&id).unwrap();
    world.wait_exit(&id);
    netns::delete(&network).unwrap();
}

#[test]
fn connections_of_the_data_plane_are_closed_and_it_listens_on() {
    let Some(world) = World::new() else { return };
    let Some(checkpoint) = spec() else { return };
    let network = world.dir.path().join("network");
    netns::create(&network).unwrap();
    let mut spec = world.program(&["nc", "-ll", "-p", "8000", "-e", "cat"]);
    spec.network = Network::Namespace {
        path: network.clone(),
    };
    let id = spec.id.clone();
    world.client().launch(spec).unwrap();
    let connect = || netns::run_in(&network, || TcpStream::connect("127.0.0.1:8000")).unwrap();
    let mut answered = None;
    until("it listens", || {
        answered = connect().ok();
        answered.is_some()
    });
    let mut kept = answered.unwrap();
    let echo = |stream: &mut TcpStream| {
        stream.set_read_timeout(Some(crate::support::PATIENCE)).unwrap();
        stream.write_all(b"x").unwrap();
        std::io::Read::read_exact(stream, &mut [0])
    };
    echo(&mut kept).unwrap();
    world.client().freeze(&id).unwrap();
    // Its other end is in the same namespace here, but not a process of the instance: as the data plane's is.
    world.client().checkpoint(&id, checkpoint).unwrap();
    assert!(echo(&mut kept).is_err(), "the other side sees that it is closed");
    world.client().thaw(&id).unwrap();
    echo(&mut connect().unwrap()).unwrap();
    world.client().kill(&id).unwrap();
    world.wait_exit(&id);
    netns::delete(&network).unwrap();
}

#[test]
fn a_wake_that_comes_during_a_checkpoint_wins() {
    let Some(world) = World::new() else { return };
    let Some(checkpoint) = spec() else { return };
    // Some memory, so that writing it takes a moment.
    let spec = world.shell(
        "x=$(head -c 8000000 /dev/zero | tr '\\0' x); echo ready; while :; do echo tick; sleep 0.02; done",
    );
    let id = spec.id.clone();
    world.client().launch(spec).unwrap();
    world.wait_log(&id, "ready");
    for round in 0..12 {
        world.client().freeze(&id).unwrap();
        let begun = {
            let (client, id, checkpoint) = (world.client(), id.clone(), checkpoint.clone());
            std::thread::spawn(move || client.checkpoint(&id, checkpoint))
        };
        // At another moment of it each time.
        (0..round * 3).for_each(|_| pause());
        world.client().thaw(&id).unwrap();
        match begun.join().unwrap() {
            Ok(()) => {}
            Err(error) => {
                let said = refusal(error);
                let overtaken = matches!(said, Refusal::Waking { .. } | Refusal::NotFrozen { .. });
                assert!(overtaken, "{said:?}");
            }
        }
        // One that was sent before and arrived after the thaw has not frozen it again.
        let before = world.logs(&id).len();
        until("it ticks", || world.logs(&id).len() > before);
        until("its memory is back", || !world.image(&id).exists());
    }
}

#[test]
fn killed_supervisors_leave_it_frozen_or_on_the_disk_at_every_moment() {
    let Some(mut world) = World::new() else { return };
    let Some(checkpoint) = spec() else { return };
    let spec = world.shell(COUNTER);
    let id = spec.id.clone();
    world.client().launch(spec).unwrap();
    world.wait_log(&id, "ready");
    for round in 1..16 {
        world.client().freeze(&id).unwrap();
        let begun = {
            let (client, id, checkpoint) = (world.client(), id.clone(), checkpoint.clone());
            std::thread::spawn(move || client.checkpoint(&id, checkpoint))
        };
        (0..round * 3).for_each(|_| pause());
        world.kill_supervisor();
        let _ = begun.join().unwrap();
        world.start_supervisor();
        world.client().thaw(&id).unwrap();
        let number = usize::try_from(round).unwrap();
        world.ask(&id, number);
        until("its memory is back", || !world.image(&id).exists());
    }
}

#[test]
fn several_processes_go_and_come_together() {
    let Some(world) = World::new() else { return };
    let Some(checkpoint) = spec() else { return };
    let spec = world.shell(
        "tick() { while :; do echo $1; sleep 0.05; done; }; tick one & tick two & (tick three & wait) & echo ready; wait",
    );
    let id = spec.id.clone();
    world.client().launch(spec).unwrap();
    world.wait_log(&id, "three");
    for _ in 0..5 {
        world.client().freeze(&id).unwrap();
        world.client().checkpoint(&id, checkpoint.clone()).unwrap();
        assert_eq!(world.processes(&id), 0);
        let before = world.logs(&id).len();
        world.client().thaw(&id).unwrap();
        until("each of them goes on", || {
            let logs = world.logs(&id);
            let since = logs.get(before..).unwrap_or_default();
            ["one", "two", "three"]
                .iter()
                .all(|word| since.iter().any(|record| record.text == *word))
        });
        until("its image is gone", || !world.image(&id).exists());
    }
    world.client().kill(&id).unwrap();
    world.wait_exit(&id);
}

#[test]
fn a_child_that_ended_and_was_not_asked_about_comes_along() {
    let Some(world) = World::new() else { return };
    let Some(checkpoint) = spec() else { return };
    // `sleep` does not know that it has a child.
    let spec = world.shell(
        "( sleep 0 & exec sleep 1000 ) & until grep -q 'Z (zombie)' /proc/[0-9]*/status; do sleep 0.02; done; \
         while :; do echo tick; sleep 0.02; done",
    );
    let id = spec.id.clone();
    world.client().launch(spec).unwrap();
    world.wait_log(&id, "tick");
    for _ in 0..5 {
        world.client().freeze(&id).unwrap();
        world.client().checkpoint(&id, checkpoint.clone()).unwrap();
        let before = world.logs(&id).len();
        world.client().thaw(&id).unwrap();
        until("it goes on", || world.logs(&id).len() > before);
        until("its image is gone", || !world.image(&id).exists());
    }
    world.client().kill(&id).unwrap();
    world.wait_exit(&id);
}

#[test]
fn what_cannot_be_served_page_by_page_is_read_back_as_a_whole() {
    let Some(world) = World::new() else { return };
    let Some(checkpoint) = spec() else { return };
    let spec = world.shell(COUNTER);
    let id = spec.id.clone();
    world.client().launch(spec).unwrap();
    world.wait_log(&id, "ready");
    world.ask(&id, 1);
    world.client().freeze(&id).unwrap();
    world.client().checkpoint(&id, checkpoint).unwrap();
    // The server of pages cannot listen where something lies that it cannot clear away.
    fs::create_dir_all(world.image(&id).join("lazy-pages.socket/in-the-way")).unwrap();
    world.client().thaw(&id).unwrap();
    world.ask(&id, 2);
    world.wait_log(&id, "was read back as a whole");
    until("the image is gone", || !world.image(&id).exists());
}

#[test]
fn an_image_that_is_damaged_ends_the_instance_and_its_log_says_so() {
    let Some(world) = World::new() else { return };
    let Some(checkpoint) = spec() else { return };
    let spec = world.shell("echo ready; while :; do sleep 0.02; done");
    let id = spec.id.clone();
    world.client().launch(spec).unwrap();
    world.wait_log(&id, "ready");
    world.client().freeze(&id).unwrap();
    world.client().checkpoint(&id, checkpoint).unwrap();
    let files = fs::read_dir(world.image(&id)).unwrap().flatten();
    for file in files.filter(|file| file.file_name().to_string_lossy().starts_with("core-")) {
        fs::write(file.path(), "nonsense").unwrap();
    }
    let error = world.client().thaw(&id).unwrap_err();
    assert_eq!(refusal(error), Refusal::NotRunning { id: id.clone() });
    let exit = world.wait_exit(&id);
    assert_eq!((exit.status, exit.cause), (None, ExitCause::Lost));
    world.wait_log(&id, "could not be restored");
    assert!(Path::new(&world.info(&id).log_dir).exists());
}

#[test]
fn what_was_replaced_on_the_machine_meanwhile_wakes_as_it_was() {
    let Some(world) = World::new() else { return };
    let Some(checkpoint) = spec() else { return };
    // As the executor of a sandbox is there, and as an upgrade replaces it.
    let installed = world.dir.path().join("program");
    fs::copy("/bin/busybox", &installed).unwrap();
    let mut spec = world.program(&["/busybox", "sh", "-c", COUNTER]);
    spec.binds.push(BindMount {
        source: installed.clone(),
        target: "/busybox".into(),
        readonly: true,
    });
    let id = spec.id.clone();
    world.client().launch(spec).unwrap();
    world.wait_log(&id, "ready");
    world.ask(&id, 1);
    for round in 2..4 {
        // The old one stays, under whatever name: CRIU does not restore a mount of a file that is gone.
        let older = world.dir.path().join(format!("older-{round}"));
        let first = world.dir.path().join("older-2");
        fs::rename(if round == 2 { &installed } else { &first }, older).unwrap();
        fs::write(&installed, format!("version {round}")).unwrap();
        world.client().freeze(&id).unwrap();
        world.client().checkpoint(&id, checkpoint.clone()).unwrap();
        world.client().thaw(&id).unwrap();
        world.ask(&id, round);
        // One that still reads its memory back is not written down again.
        until("the image is gone", || !world.image(&id).exists());
    }
    world.client().kill(&id).unwrap();
    world.wait_exit(&id);
}
