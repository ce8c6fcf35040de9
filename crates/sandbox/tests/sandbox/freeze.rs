//! Taking the CPU away and giving it back.

use std::time::Duration;

use tram_sandbox::{
    protocol::{Event, ExitCause, ExitStatus, InstanceState},
    reclaim::reclaim,
};

use crate::support::{World, next_event, pause, until};

fn frozen_means_frozen(v1_freezer: bool) {
    let Some(mut world) = World::with(v1_freezer) else {
        return;
    };
    let mut watch = world.client().watch().unwrap();
    let spec = world.shell("while :; do echo tick; sleep 0.01; done");
    let id = spec.id.clone();
    let pid = world.client().launch(spec).unwrap();
    world.wait_log(&id, "tick");
    world.client().freeze(&id).unwrap();
    world.client().freeze(&id).unwrap();
    assert_eq!(
        next_event(&mut watch, |event| !matches!(event, Event::Started { .. })),
        Event::Frozen { id: id.clone() }
    );
    assert_eq!(world.info(&id).state, InstanceState::Frozen { pid });
    // What was in the pipe is logged; then nothing comes any more.
    let mut before = usize::MAX;
    until("the logs stand still", || {
        let now = world.logs(&id).len();
        (0..20).for_each(|_| pause());
        std::mem::replace(&mut before, now) == now
    });
    let cpu = world.client().stats(&id).unwrap().cpu_usec;
    (0..20).for_each(|_| pause());
    assert_eq!(world.client().stats(&id).unwrap().cpu_usec, cpu);

    // A new supervisor sees that it is frozen.
    world.kill_supervisor();
    world.start_supervisor();
    assert_eq!(world.info(&id).state, InstanceState::Frozen { pid });
    world.client().thaw(&id).unwrap();
    until("it ticks again", || world.logs(&id).len() > before);

    // Killed while frozen.
    world.client().freeze(&id).unwrap();
    world.client().kill(&id).unwrap();
    let exit = world.wait_exit(&id);
    assert_eq!(
        (exit.status, exit.cause),
        (Some(ExitStatus::Signal(9)), ExitCause::Killed)
    );
}

#[test]
fn freeze_thaw_and_kill_while_frozen() {
    frozen_means_frozen(false);
}

#[test]
fn the_same_with_the_v1_freezer() {
    frozen_means_frozen(true);
}

#[test]
fn a_frozen_instance_hears_a_stop() {
    let Some(world) = World::new() else { return };
    let spec = world.shell("trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.02; done");
    let id = spec.id.clone();
    world.client().launch(spec).unwrap();
    world.wait_log(&id, "ready");
    world.client().freeze(&id).unwrap();
    world.client().stop(&id, Duration::from_secs(60)).unwrap();
    let exit = world.wait_exit(&id);
    assert_eq!(
        (exit.status, exit.cause),
        (Some(ExitStatus::Code(0)), ExitCause::Stopped)
    );
    world.wait_log(&id, "bye");
}

#[test]
fn the_memory_of_a_frozen_instance_is_given_back_and_its_program_goes_on() {
    let Some(world) = World::new() else { return };
    // What is read from a file stays in the page cache and is counted as the instance's.
    let spec = world.shell(
        "i=0; while [ $i -lt 64 ]; do echo some-text-of-a-file-that-grows-and-grows; i=$((i+1)); done > /seed; \
         j=0; while [ $j -lt 400 ]; do cat /seed; j=$((j+1)); done > /data; cat /data > /dev/null; echo ready; \
         while :; do sleep 0.02; [ -e /data ] && echo alive; done",
    );
    let id = spec.id.clone();
    world.client().launch(spec).unwrap();
    world.wait_log(&id, "ready");
    world.client().freeze(&id).unwrap();
    let done = reclaim(&world.state(), &id).unwrap();
    assert!(done.after_bytes < done.before_bytes, "{done:?}");
    assert!(matches!(world.info(&id).state, InstanceState::Frozen { .. }));
    let before = world.logs(&id).len();
    world.client().thaw(&id).unwrap();
    until("it goes on", || world.logs(&id).len() > before);
    world.client().kill(&id).unwrap();
    world.wait_exit(&id);
    world.client().remove(&id).unwrap();
    let gone = reclaim(&world.state(), &id).unwrap_err();
    assert_eq!(gone.kind(), std::io::ErrorKind::NotFound);
}
