//! The class `gvisor`: the same life as every other instance, in a kernel of its own.

use std::fs::File;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::time::Duration;

use tram_sandbox::client::ExecIo;
use tram_sandbox::gvisor::Runsc;
use tram_sandbox::protocol::{
    CheckpointSpec, ConfigFile, ExecSpec, ExitCause, ExitStatus, InstanceId, InstanceState, LaunchFailure,
    LaunchSpec, Refusal, TtySize, User,
};

use crate::exec::finish;
use crate::support::{PATIENCE, World, refusal, skip, until};

/// A world, and the program; `None` where the tests may do without.
fn world() -> Option<(World, PathBuf)> {
    let world = World::new()?;
    match Runsc::find(None) {
        Ok(found) => Some((world, found.program)),
        Err(error) => {
            skip(&error.to_string());
            None
        }
    }
}

fn shell(world: &World, runsc: &std::path::Path, script: &str) -> LaunchSpec {
    let mut spec = world.shell(script);
    spec.gvisor = Some(runsc.to_owned());
    spec.disk_bytes_max = Some(64 << 20);
    spec
}

/// What of this instance is still there: processes by its id in their words, and mounts.
fn left(id: &InstanceId) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let words = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words).replace('\0', " ");
        if words.contains("runsc") && words.contains(id.as_str()) {
            found.push(words);
        }
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    found.extend(
        mounts
            .lines()
            .filter(|line| line.contains(id.as_str()))
            .map(str::to_owned),
    );
    found
}

#[test]
fn it_works_here_and_says_so() {
    let Some((_world, _)) = world() else { return };
    Runsc::find(None).unwrap().check().unwrap();
}

#[test]
fn a_program_runs_in_a_kernel_of_its_own_with_its_files_and_its_memory() {
    let Some((world, runsc)) = world() else { return };
    let mut spec = shell(
        &world,
        &runsc,
        "dmesg | head -1; hostname; cat /etc/setting; id -u; pwd; echo $NAME; ls /; grep MemTotal /proc/meminfo; \
         echo x > /tmp/file && mount | grep -c ' /tmp type 9p\\| /tmp type gofer'; ulimit -n; echo oops >&2",
    );
    spec.hostname = "own-name".into();
    spec.env.push(("NAME".into(), "a value".into()));
    spec.cwd = "/work".into();
    spec.limits.memory_bytes = Some(256 << 20);
    spec.limits.nofile = Some(2000);
    spec.files = vec![ConfigFile {
        path: "/etc/setting".into(),
        content: b"from a file\n".to_vec(),
        mode: 0o644,
        uid: 0,
        gid: 0,
    }];
    let id = spec.id.clone();
    let said = world.output(spec);
    assert!(said[0].contains("Starting gVisor"), "{said:#?}");
    assert_eq!(
        said[1..6],
        ["own-name", "from a file", "0", "/work", "a value"],
        "{said:#?}"
    );
    let names = &said[6..said.len() - 3];
    assert!(
        !names.iter().any(|name| name == "bundle" || name == "runsc"),
        "{names:?}"
    );
    assert!(said[said.len() - 3].contains("262144 kB"), "{said:#?}");
    assert_eq!(said[said.len() - 2..], ["1", "2000"], "{said:#?}");
    until("all of it is gone", || left(&id).is_empty());
}

#[test]
fn the_exit_code_is_learnt_and_a_signal_is_told_as_a_shell_does() {
    let Some((world, runsc)) = world() else { return };
    let (exit, _) = world.run(shell(&world, &runsc, "exit 42"));
    assert_eq!(
        (exit.status, exit.cause),
        (Some(ExitStatus::Code(42)), ExitCause::Exited)
    );
    let spec = shell(
        &world,
        &runsc,
        "trap 'echo heard; exit 7' USR1; echo ready; while true; do sleep 0.1; done",
    );
    let id = spec.id.clone();
    world.client().launch(spec).unwrap();
    world.wait_log(&id, "ready");
    world.client().signal(&id, libc::SIGUSR1).unwrap();
    assert_eq!(world.wait_exit(&id).status, Some(ExitStatus::Code(7)));
    world.wait_log(&id, "heard");
}

#[test]
fn a_stop_is_heard_and_a_kill_needs_no_ear() {
    let Some((world, runsc)) = world() else { return };
    let spec = shell(
        &world,
        &runsc,
        "trap 'echo bye; exit 0' TERM; echo ready; while true; do sleep 0.1; done",
    );
    let id = spec.id.clone();
    world.client().launch(spec).unwrap();
    world.wait_log(&id, "ready");
    world.client().stop(&id, PATIENCE).unwrap();
    let exit = world.wait_exit(&id);
    assert_eq!(
        (exit.status, exit.cause),
        (Some(ExitStatus::Code(0)), ExitCause::Stopped)
    );
    world.wait_log(&id, "bye");

    let spec = shell(
        &world,
        &runsc,
        "trap '' TERM; echo ready; while true; do sleep 0.1; done",
    );
    let id = spec.id.clone();
    world.client().launch(spec).unwrap();
    world.wait_log(&id, "ready");
    world.client().stop(&id, Duration::from_millis(200)).unwrap();
    let exit = world.wait_exit(&id);
    assert_eq!(
        (exit.status, exit.cause),
        (Some(ExitStatus::Signal(9)), ExitCause::Stopped)
    );
    until("all of it is gone", || left(&id).is_empty());
}

#[test]
fn a_program_that_cannot_be_executed_is_a_typed_failure() {
    let Some((world, runsc)) = world() else { return };
    std::fs::write(world.lower.join("etc/data"), "no program").unwrap();
    for (name, expected) in [
        ("/no/such/program", libc::ENOENT),
        ("no-such-program", libc::ENOENT),
        ("/etc/data", libc::EACCES),
    ] {
        let mut spec = shell(&world, &runsc, "");
        spec.argv = vec![name.to_owned()];
        let id = spec.id.clone();
        match refusal(world.client().launch(spec).unwrap_err()) {
            Refusal::Launch {
                failure: LaunchFailure::Exec { program, errno, .. },
            } => assert_eq!((program.as_str(), errno), (name, expected)),
            other => panic!("{name}: {other:?}"),
        }
        until("all of it is gone", || left(&id).is_empty());
    }
}

fn exec(argv: &[&str]) -> ExecSpec {
    ExecSpec {
        argv: argv.iter().map(|word| (*word).to_owned()).collect(),
        env: vec![("PATH".into(), "/bin".into())],
        cwd: None,
        user: None,
        tty: None,
    }
}

fn sleeper(world: &World, runsc: &std::path::Path) -> InstanceId {
    let spec = shell(world, runsc, "echo ready; while true; do sleep 0.1; done");
    let id = spec.id.clone();
    world.client().launch(spec).unwrap();
    world.wait_log(&id, "ready");
    id
}

#[test]
fn an_exec_runs_inside_with_its_streams_its_user_and_its_exit_code() {
    let Some((world, runsc)) = world() else { return };
    let id = sleeper(&world, &runsc);
    let mut order = exec(&["sh", "-c", "id -u; dmesg | head -1; echo no >&2; exit 7"]);
    order.user = Some(User {
        uid: 1000,
        gid: 1000,
        groups: Vec::new(),
    });
    let (status, out, err) = finish(world.client().exec(&id, order).unwrap());
    assert_eq!(status, ExitStatus::Code(7), "{out} {err}");
    assert!(
        out.starts_with("1000\n") && out.contains("Starting gVisor"),
        "{out}"
    );
    assert_eq!(err, "no\n");
    // What is written by the one is read by the other.
    finish(
        world
            .client()
            .exec(&id, exec(&["sh", "-c", "echo shared > /tmp/file"]))
            .unwrap(),
    );
    let (_, out, _) = finish(world.client().exec(&id, exec(&["cat", "/tmp/file"])).unwrap());
    assert_eq!(out, "shared\n");
}

#[test]
fn an_exec_that_is_killed_does_not_run_on_inside() {
    let Some((world, runsc)) = world() else { return };
    let id = sleeper(&world, &runsc);
    let exec_ = world
        .client()
        .exec(&id, exec(&["sh", "-c", "echo on; exec sleep 4321"]))
        .unwrap();
    let there = || {
        let (_, out, _) = finish(world.client().exec(&id, exec(&["ps"])).unwrap());
        out.contains("sleep 4321")
    };
    until("it runs", there);
    tram_sandbox::client::kill(&exec_.process).unwrap();
    until("it is gone", || !there());
}

#[test]
fn a_terminal_is_one_inside() {
    let Some((world, runsc)) = world() else { return };
    let id = sleeper(&world, &runsc);
    let mut order = exec(&["sh", "-c", "test -t 0 && stty size; read line; echo got $line"]);
    order.tty = Some(TtySize {
        rows: 33,
        columns: 77,
    });
    let exec = world.client().exec(&id, order).unwrap();
    let ExecIo::Tty { master } = exec.io else {
        panic!("no terminal")
    };
    let mut master = File::from(master);
    let mut seen = String::new();
    let mut buffer = [0; 512];
    let mut read = |master: &mut File, text: &str| {
        until("the terminal says it", || {
            let read = master.read(&mut buffer).unwrap_or(0);
            seen.push_str(&String::from_utf8_lossy(&buffer[..read]));
            seen.contains(text)
        });
    };
    read(&mut master, "33 77");
    master.write_all(b"a line\n").unwrap();
    read(&mut master, "got a line");
}

#[test]
fn a_frozen_one_stands_still_and_is_not_written_down() {
    let Some((world, runsc)) = world() else { return };
    let spec = shell(
        &world,
        &runsc,
        "i=0; while true; do i=$((i+1)); echo $i; sleep 0.02; done",
    );
    let id = spec.id.clone();
    world.client().launch(spec).unwrap();
    world.wait_log(&id, "3");
    world.client().freeze(&id).unwrap();
    let cpu = world.client().stats(&id).unwrap().cpu_usec;
    let refused = world.client().checkpoint(
        &id,
        CheckpointSpec {
            program: "/usr/sbin/criu".into(),
            peers: Vec::new(),
        },
    );
    match refusal(refused.unwrap_err()) {
        Refusal::CannotCheckpoint { reason } => assert!(reason.contains("gvisor"), "{reason}"),
        other => panic!("{other:?}"),
    }
    assert!(matches!(world.info(&id).state, InstanceState::Frozen { .. }));
    assert_eq!(world.client().stats(&id).unwrap().cpu_usec, cpu);
    let lines = world.logs(&id).len();
    world.client().thaw(&id).unwrap();
    until("it goes on", || world.logs(&id).len() > lines + 2);
}

#[test]
fn it_outlives_the_supervisor_and_ends_with_its_keeper() {
    let Some((mut world, runsc)) = world() else { return };
    let spec = shell(
        &world,
        &runsc,
        "trap 'exit 9' TERM; echo ready; while true; do echo tick; sleep 0.05; done",
    );
    let id = spec.id.clone();
    world.client().launch(spec).unwrap();
    world.wait_log(&id, "ready");
    world.kill_supervisor();
    world.start_supervisor();
    let lines = world.logs(&id).len();
    until("it goes on", || world.logs(&id).len() > lines + 2);
    finish(world.client().exec(&id, exec(&["true"])).unwrap());
    world.client().stop(&id, PATIENCE).unwrap();
    assert_eq!(world.wait_exit(&id).status, Some(ExitStatus::Code(9)));

    let id = sleeper(&world, &runsc);
    let InstanceState::Running { pid } = world.info(&id).state else {
        panic!("it does not run")
    };
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let shim = status
        .lines()
        .find_map(|line| line.strip_prefix("PPid:"))
        .unwrap();
    let shim = rustix::process::Pid::from_raw(shim.trim().parse().unwrap()).unwrap();
    rustix::process::kill_process(shim, rustix::process::Signal::KILL).unwrap();
    assert_eq!(world.wait_exit(&id).cause, ExitCause::Lost);
    until("all of it is gone", || left(&id).is_empty());
    until("the cgroups are gone", || world.cgroups().is_empty());
}

#[test]
fn when_the_kernel_of_an_instance_dies_the_instance_does() {
    let Some((world, runsc)) = world() else { return };
    let mut spec = shell(&world, &runsc, "echo ready; x=; while true; do x=\"$x$x.\"; done");
    spec.limits.memory_bytes = Some(128 << 20);
    let (exit, _) = world.run(spec);
    assert!(exit.oom_killed, "{exit:?}");
    let id = sleeper(&world, &runsc);
    let sentry = std::fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let words = std::fs::read(entry.path().join("cmdline")).ok()?;
        let words = String::from_utf8_lossy(&words).into_owned();
        (words.contains("runsc-sandbox") && words.contains(id.as_str()))
            .then(|| entry.file_name().to_string_lossy().parse().ok())?
    });
    let sentry = rustix::process::Pid::from_raw(sentry.unwrap()).unwrap();
    rustix::process::kill_process(sentry, rustix::process::Signal::KILL).unwrap();
    let exit = world.wait_exit(&id);
    assert_eq!(
        (exit.status, exit.cause),
        (Some(ExitStatus::Code(137)), ExitCause::Exited)
    );
    until("all of it is gone", || left(&id).is_empty());
}
