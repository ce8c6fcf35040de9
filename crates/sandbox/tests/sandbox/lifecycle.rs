//! From launch to removal.

use std::time::{Duration, Instant};

use tram_sandbox::logs::Stream;
use tram_sandbox::protocol::{Event, ExitCause, ExitStatus, InstanceState, LaunchFailure, Refusal};

use crate::support::{World, next_event, refusal, until};

#[test]
fn hello_world_is_launched_logged_and_removed() {
    let Some(world) = World::new() else { return };
    let mut watch = world.client().watch().unwrap();
    let mut spec = world.shell("for i in 1 2 3; do echo hello $i; echo oops $i >&2; done; printf last");
    spec.labels.insert("service".into(), "web".into());
    let id = spec.id.clone();
    let pid = world.client().launch(spec).unwrap();
    assert_eq!(
        next_event(&mut watch, |_| true),
        Event::Started {
            id: id.clone(),
            generation: 1,
            pid
        }
    );
    let exit = world.wait_exit(&id);
    assert_eq!(
        (exit.status, exit.cause.clone()),
        (Some(ExitStatus::Code(0)), ExitCause::Exited)
    );
    assert_eq!(
        next_event(&mut watch, |_| true),
        Event::Exited {
            id: id.clone(),
            generation: 1,
            exit
        }
    );

    let info = world.info(&id);
    assert_eq!(info.labels["service"], "web");
    assert!(info.started_at.is_some());
    let logs = world.logs(&id);
    let of = |stream| {
        logs.iter()
            .filter(|r| r.stream == stream)
            .map(|r| r.text.as_str())
            .collect::<Vec<_>>()
    };
    assert_eq!(of(Stream::Stdout), ["hello 1", "hello 2", "hello 3", "last"]);
    assert_eq!(of(Stream::Stderr), ["oops 1", "oops 2", "oops 3"]);

    let dir = info.log_dir.parent().unwrap().to_owned();
    until("the cgroups are gone", || world.cgroups().is_empty());
    world.client().remove(&id).unwrap();
    world.client().remove(&id).unwrap();
    assert!(!dir.exists() && world.client().list().unwrap().is_empty());
    until("the trash is empty", || {
        world.state().join("trash").read_dir().unwrap().next().is_none()
    });
}

#[test]
fn the_exit_code_and_the_signal_are_learnt() {
    let Some(world) = World::new() else { return };
    assert_eq!(
        world.run(world.shell("exit 42")).0.status,
        Some(ExitStatus::Code(42))
    );
    let spec = world.program(&["sleep", "1000"]);
    let id = spec.id.clone();
    world.client().launch(spec).unwrap();
    assert!(matches!(world.info(&id).state, InstanceState::Running { .. }));
    world.client().signal(&id, 9).unwrap();
    let exit = world.wait_exit(&id);
    assert_eq!(
        (exit.status, exit.oom_killed, exit.cause),
        (Some(ExitStatus::Signal(9)), false, ExitCause::Exited)
    );
}

#[test]
fn a_program_that_cannot_be_executed_is_a_typed_failure() {
    let Some(world) = World::new() else { return };
    std::fs::write(world.lower.join("etc/data"), "no program").unwrap();
    std::fs::write(world.lower.join("bin/garbage"), [1, 2, 3, 4]).unwrap();
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(
        world.lower.join("bin/garbage"),
        std::fs::Permissions::from_mode(0o755),
    )
    .unwrap();
    for (name, expected) in [
        ("/no/such/program", libc::ENOENT),
        ("no-such-program", libc::ENOENT),
        ("/etc/data", libc::EACCES),
        ("/bin/garbage", libc::ENOEXEC),
        ("/bin/busybox/x", libc::ENOTDIR),
        ("/tmp", libc::EACCES),
    ] {
        let spec = world.program(&[name, "argument"]);
        let id = spec.id.clone();
        match refusal(world.client().launch(spec).unwrap_err()) {
            Refusal::Launch {
                failure: LaunchFailure::Exec { program, argv, errno },
            } => {
                assert_eq!((program.as_str(), errno), (name, expected));
                assert_eq!(argv, [name, "argument"]);
            }
            other => panic!("{name}: {other:?}"),
        }
        let exit = world.wait_exit(&id);
        assert!(matches!(exit.cause, ExitCause::LaunchFailed { .. }), "{exit:?}");
        assert!(world.logs(&id)[0].text.contains("did not start"));
        world.client().remove(&id).unwrap();
    }
}

#[test]
fn a_spec_that_cannot_be_met_says_which_part() {
    let Some(world) = World::new() else { return };
    let mut spec = world.shell("true");
    spec.binds.push(tram_sandbox::protocol::BindMount {
        source: "/no/such/volume".into(),
        target: "/data".into(),
        readonly: false,
    });
    match refusal(world.client().launch(spec).unwrap_err()) {
        Refusal::Launch {
            failure: LaunchFailure::Setup { what, errno },
        } => {
            assert!(what.contains("/no/such/volume"), "{what}");
            assert_eq!(errno, libc::ENOENT);
        }
        other => panic!("{other:?}"),
    }
    let mut spec = world.shell("true");
    spec.lower_dirs.clear();
    assert!(matches!(
        refusal(world.client().launch(spec).unwrap_err()),
        Refusal::InvalidSpec { .. }
    ));
}

#[test]
fn orders_that_make_no_sense_are_refused() {
    let Some(world) = World::new() else { return };
    let mut spec = world.program(&["sleep", "1000"]);
    spec.generation = 5;
    let id = spec.id.clone();
    world.client().launch(spec.clone()).unwrap();
    assert_eq!(
        refusal(world.client().launch(spec.clone()).unwrap_err()),
        Refusal::AlreadyExists { id: id.clone() }
    );
    spec.generation = 4;
    let stale = Refusal::StaleGeneration {
        recorded: 5,
        given: 4,
    };
    assert_eq!(refusal(world.client().launch(spec).unwrap_err()), stale);
    assert_eq!(
        refusal(world.client().remove(&id).unwrap_err()),
        Refusal::NotEnded { id: id.clone() }
    );
    world.client().kill(&id).unwrap();
    assert_eq!(world.wait_exit(&id).cause, ExitCause::Killed);
    assert_eq!(
        refusal(world.client().freeze(&id).unwrap_err()),
        Refusal::NotRunning { id: id.clone() }
    );
    let unknown = world.shell("true").id;
    assert_eq!(
        refusal(world.client().stats(&unknown).unwrap_err()),
        Refusal::UnknownInstance { id: unknown }
    );
}

#[test]
fn a_stop_is_heard_or_enforced() {
    let Some(world) = World::new() else { return };
    let polite = world.shell("trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.05; done");
    let deaf = world.shell("trap '' TERM; echo ready; while :; do sleep 0.05; done");
    for spec in [&polite, &deaf] {
        world.client().launch(spec.clone()).unwrap();
        world.wait_log(&spec.id, "ready");
    }
    let begun = Instant::now();
    world.client().stop(&deaf.id, Duration::from_millis(700)).unwrap();
    world.client().stop(&polite.id, Duration::from_secs(60)).unwrap();
    // Others are served meanwhile.
    world.client().ping().unwrap();
    let exit = world.wait_exit(&polite.id);
    assert_eq!(
        (exit.status, exit.cause),
        (Some(ExitStatus::Code(3)), ExitCause::Stopped)
    );
    world.wait_log(&polite.id, "bye");
    let exit = world.wait_exit(&deaf.id);
    assert_eq!(
        (exit.status, exit.cause),
        (Some(ExitStatus::Signal(9)), ExitCause::Stopped)
    );
    assert!(begun.elapsed() >= Duration::from_millis(700));
}

#[test]
fn a_program_that_ends_at_once_is_told_of_once() {
    let Some(world) = World::new() else { return };
    let mut watch = world.client().watch().unwrap();
    for _ in 0..20 {
        let spec = world.program(&["true"]);
        let id = spec.id.clone();
        world.client().launch(spec).unwrap();
        let first = next_event(&mut watch, |_| true);
        assert!(
            matches!(&first, Event::Started { id: started, .. } if *started == id),
            "{first:?}"
        );
        let second = next_event(&mut watch, |_| true);
        assert!(
            matches!(&second, Event::Exited { id: ended, .. } if *ended == id),
            "{second:?}"
        );
    }
}
