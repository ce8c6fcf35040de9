//! One more program in a running instance.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use tram_sandbox::client::{Exec, ExecIo, read_exit, resize};
use tram_sandbox::protocol::{
    ExecSpec, ExitStatus, IdRange, InstanceId, LaunchFailure, Refusal, TtySize, User,
};

use crate::support::{World, refusal, until};

pub(crate) fn shell(script: &str) -> ExecSpec {
    ExecSpec {
        argv: vec!["sh".into(), "-c".into(), script.into()],
        env: vec![("PATH".into(), "/bin".into())],
        cwd: None,
        user: None,
        tty: None,
    }
}

fn sleeper(world: &World) -> InstanceId {
    sleeper_with(world, None)
}

/// With the machine's ids, or with its own.
const BOTH: [Option<IdRange>; 2] = [None, Some(IdRange::numbered(5))];

fn sleeper_with(world: &World, ids: Option<IdRange>) -> InstanceId {
    let mut spec = world.program(&["sleep", "1000"]);
    spec.ids = ids;
    spec.limits.pids_max = Some(50);
    let id = spec.id.clone();
    world.client().launch(spec).unwrap();
    id
}

pub(crate) fn finish(exec: Exec) -> (ExitStatus, String, String) {
    let ExecIo::Pipes {
        stdin,
        stdout,
        stderr,
    } = exec.io
    else {
        panic!("not pipes")
    };
    drop(stdin);
    let (mut out, mut err) = (String::new(), String::new());
    File::from(stdout).read_to_string(&mut out).unwrap();
    File::from(stderr).read_to_string(&mut err).unwrap();
    (read_exit(&exec.exit).unwrap().unwrap(), out, err)
}

fn read_until(fd: &OwnedFd, text: &str) -> String {
    let mut seen = String::new();
    let mut file = File::from(fd.try_clone().unwrap());
    let mut buffer = [0; 512];
    until("the terminal says it", || {
        let read = file.read(&mut buffer).unwrap_or(0);
        seen.push_str(&String::from_utf8_lossy(&buffer[..read]));
        seen.contains(text)
    });
    seen
}

#[test]
fn a_link_that_the_instance_made_does_not_lead_an_exec_out() {
    let Some(world) = World::new() else { return };
    let mut spec = world.program(&[
        "sh",
        "-c",
        "for fd in $(seq 3 24); do ln -s /proc/self/fd/$fd /tmp/$fd; done; echo ready; exec sleep 1000",
    ]);
    spec.limits.pids_max = Some(50);
    let id = spec.id.clone();
    world.client().launch(spec).unwrap();
    world.wait_log(&id, "ready");
    for fd in 3..24 {
        let mut order = shell("pwd; ls -d ../../../../../usr");
        order.cwd = Some(format!("/tmp/{fd}"));
        assert!(world.client().exec(&id, order).is_err(), "descriptor {fd}");
        let program = ExecSpec {
            argv: vec![format!("/tmp/{fd}/../../../../../bin/true")],
            ..shell("")
        };
        assert!(world.client().exec(&id, program).is_err(), "descriptor {fd}");
    }
}

#[test]
fn pipes_carry_all_three_streams_and_the_exit_code() {
    let Some(world) = World::new() else { return };
    let id = sleeper(&world);
    let exec = world
        .client()
        .exec(&id, shell("read line; echo got $line; echo no >&2; exit 7"))
        .unwrap();
    let ExecIo::Pipes {
        stdin,
        stdout,
        stderr,
    } = exec.io
    else {
        panic!("not pipes")
    };
    File::from(stdin).write_all(b"a line\n").unwrap();
    let (mut out, mut err) = (String::new(), String::new());
    File::from(stdout).read_to_string(&mut out).unwrap();
    File::from(stderr).read_to_string(&mut err).unwrap();
    assert_eq!((out.as_str(), err.as_str()), ("got a line\n", "no\n"));
    assert_eq!(read_exit(&exec.exit).unwrap(), Some(ExitStatus::Code(7)));
}

#[test]
fn the_program_is_inside_in_every_respect() {
    let Some(world) = World::new() else { return };
    let id = sleeper(&world);
    let script = "hostname; cat /proc/1/comm; grep -E 'NoNewPrivs|Seccomp:|CapBnd' /proc/self/status; \
                  cat /proc/self/cgroup; ls /proc/self/fd | wc -l; id -u; umask; mount -t tmpfs x /tmp || echo refused";
    let (status, out, err) = finish(world.client().exec(&id, shell(script)).unwrap());
    assert_eq!(status, ExitStatus::Code(0), "{err}");
    assert!(out.starts_with(&format!("{id}\nsleep\n")), "{out}");
    for line in [
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "CapBnd:\t00000000a80425fb",
        "refused",
    ] {
        assert!(out.contains(line), "{line} in {out}");
    }
    // Its cgroups are the instance's, seen as the root.
    let cgroups = out
        .lines()
        .filter(|line| line.contains("memory") || line.starts_with("0::"));
    assert!(
        cgroups.clone().count() > 0 && cgroups.clone().all(|line| line.ends_with(":/")),
        "{out}"
    );
    // 0, 1, 2 and the directory being listed.
    assert!(out.contains("\n4\n0\n0022\n"), "{out}");

    let user = User {
        uid: 1000,
        gid: 1001,
        groups: vec![7],
    };
    let spec = ExecSpec {
        user: Some(user),
        cwd: Some("/etc".into()),
        ..shell("id -u; id -g; id -G; pwd; echo hi > /dev/stdout")
    };
    let (status, out, err) = finish(world.client().exec(&id, spec).unwrap());
    assert_eq!(
        (status, out.as_str()),
        (ExitStatus::Code(0), "1000\n1001\n1001 7\n/etc\nhi\n"),
        "{err}"
    );
}

#[test]
fn a_terminal_is_one_and_can_be_resized() {
    let Some(world) = World::new() else { return };
    for ids in BOTH {
        try_terminal(&world, &sleeper_with(&world, ids));
    }
}

fn try_terminal(world: &World, id: &InstanceId) {
    let spec = ExecSpec {
        tty: Some(TtySize {
            rows: 30,
            columns: 100,
        }),
        ..shell("tty; stty size; echo typed > $(tty); read x; stty size; read x; exit 5")
    };
    let exec = world.client().exec(id, spec).unwrap();
    let ExecIo::Tty { master } = exec.io else {
        panic!("not a terminal")
    };
    let seen = read_until(&master, "30 100");
    assert!(seen.contains("/dev/pts/0"), "{seen}");
    resize(
        &master,
        TtySize {
            rows: 11,
            columns: 22,
        },
    )
    .unwrap();
    let mut keyboard = File::from(master.try_clone().unwrap());
    keyboard.write_all(b"\n").unwrap();
    read_until(&master, "11 22");
    keyboard.write_all(b"\n").unwrap();
    assert_eq!(read_exit(&exec.exit).unwrap(), Some(ExitStatus::Code(5)));

    // Hanging up ends what runs on it.
    let spec = ExecSpec {
        tty: Some(TtySize {
            rows: 30,
            columns: 100,
        }),
        ..shell("echo up; sleep 1000")
    };
    let exec = world.client().exec(id, spec).unwrap();
    let ExecIo::Tty { master } = exec.io else {
        panic!("not a terminal")
    };
    read_until(&master, "up");
    drop(master);
    assert_eq!(
        read_exit(&exec.exit).unwrap(),
        Some(ExitStatus::Signal(libc::SIGHUP))
    );
}

#[test]
fn what_cannot_be_executed_is_a_typed_failure() {
    let Some(world) = World::new() else { return };
    let id = sleeper(&world);
    let mut spec = shell("");
    spec.argv = vec!["/no/such".into()];
    match refusal(world.client().exec(&id, spec).unwrap_err()) {
        Refusal::Launch {
            failure: LaunchFailure::Exec { program, errno, .. },
        } => {
            assert_eq!((program.as_str(), errno), ("/no/such", libc::ENOENT));
        }
        other => panic!("{other:?}"),
    }
    world.client().freeze(&id).unwrap();
    assert_eq!(
        refusal(world.client().exec(&id, shell("true")).unwrap_err()),
        Refusal::Frozen { id: id.clone() }
    );
    world.client().kill(&id).unwrap();
    world.wait_exit(&id);
    assert_eq!(
        refusal(world.client().exec(&id, shell("true")).unwrap_err()),
        Refusal::NotRunning { id }
    );
}

#[test]
fn it_ends_with_the_instance_and_can_be_signalled_alone() {
    let Some(world) = World::new() else { return };
    let id = sleeper(&world);
    let one = world.client().exec(&id, shell("sleep 1000")).unwrap();
    let two = world.client().exec(&id, shell("sleep 1000")).unwrap();
    rustix::process::pidfd_send_signal(one.process.as_fd(), rustix::process::Signal::TERM).unwrap();
    assert_eq!(
        read_exit(&one.exit).unwrap(),
        Some(ExitStatus::Signal(libc::SIGTERM))
    );
    world.client().kill(&id).unwrap();
    assert_eq!(
        read_exit(&two.exit).unwrap(),
        Some(ExitStatus::Signal(libc::SIGKILL))
    );
    world.wait_exit(&id);
}

#[test]
fn an_exec_outlives_the_supervisor() {
    let Some(mut world) = World::new() else { return };
    let id = sleeper(&world);
    let exec = world
        .client()
        .exec(&id, shell("read line; echo still $line; exit 9"))
        .unwrap();
    world.kill_supervisor();
    world.start_supervisor();
    let ExecIo::Pipes { stdin, stdout, .. } = exec.io else {
        panic!("not pipes")
    };
    File::from(stdin).write_all(b"here\n").unwrap();
    let mut out = String::new();
    File::from(stdout).read_to_string(&mut out).unwrap();
    assert_eq!(out, "still here\n");
    assert_eq!(read_exit(&exec.exit).unwrap(), Some(ExitStatus::Code(9)));
}
