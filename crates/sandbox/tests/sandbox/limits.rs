//! What an instance may use, and what is seen of it.

use tram_sandbox::protocol::{Event, ExitCause, ExitStatus};

use crate::support::{World, next_event, until};

#[test]
fn a_memory_hog_is_killed_and_the_reason_is_kept() {
    let Some(world) = World::new() else { return };
    let mut watch = world.client().watch().unwrap();
    let mut spec = world.program(&["sh", "-c", "echo start; tail /dev/zero; exit $?"]);
    spec.limits.memory_bytes = Some(24 << 20);
    let id = spec.id.clone();
    world.client().launch(spec).unwrap();
    let exit = world.wait_exit(&id);
    assert!(exit.oom_killed, "{exit:?}");
    assert_eq!(
        (exit.status, exit.cause),
        (Some(ExitStatus::Code(137)), ExitCause::Exited)
    );
    let Event::Exited { exit, .. } = next_event(&mut watch, |event| matches!(event, Event::Exited { .. }))
    else {
        panic!()
    };
    assert!(exit.oom_killed);
}

#[test]
fn those_who_watch_hear_of_a_full_memory_while_it_goes_on() {
    let Some(world) = World::new() else { return };
    let mut watch = world.client().watch().unwrap();
    let mut spec = world.shell("tail /dev/zero; echo survived; sleep 1000");
    spec.limits.memory_bytes = Some(24 << 20);
    let id = spec.id.clone();
    world.client().launch(spec).unwrap();
    assert_eq!(
        next_event(&mut watch, |event| matches!(event, Event::Oom { .. })),
        Event::Oom {
            id: id.clone(),
            kills: 1
        }
    );
    world.wait_log(&id, "survived");
    assert_eq!(world.client().stats(&id).unwrap().oom_kills, 1);
}

#[test]
fn a_fork_bomb_is_held() {
    let Some(world) = World::new() else { return };
    // Those that there was room for stay, so that they can be counted: a shell that cannot fork ends.
    let mut spec = world.shell("(while :; do sleep 1000 & done); exec sleep 1000");
    spec.limits.pids_max = Some(20);
    spec.limits.cpu_millis = Some(200);
    let id = spec.id.clone();
    world.client().launch(spec).unwrap();
    let mut most = 0;
    until("the limit is reached", || {
        most = world
            .client()
            .stats(&id)
            .map_or(most, |stats| most.max(stats.pids));
        most >= 19
    });
    assert!(most <= 20);
    world.client().kill(&id).unwrap();
    world.wait_exit(&id);
    until("the cgroups are gone", || world.cgroups().is_empty());
}

#[test]
fn an_instance_can_read_its_own_limits_and_not_change_them() {
    let Some(world) = World::new() else { return };
    let mut spec = world.shell(
        "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max; \
         cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2>/dev/null || cut -d' ' -f1 /sys/fs/cgroup/cpu.max; \
         for f in /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max /sys/fs/cgroup/x; do \
           (echo 1 > $f) 2>/dev/null && echo WROTE; done; find /sys/fs/cgroup -name 'test-*'",
    );
    spec.limits.memory_bytes = Some(64 << 20);
    spec.limits.cpu_millis = Some(1500);
    assert_eq!(world.output(spec), ["67108864", "150000"]);
}

#[test]
fn the_limits_and_the_figures_are_the_kernels() {
    let Some(world) = World::new() else { return };
    let mut spec = world.shell(
        "ulimit -n; ulimit -c; ulimit -f; i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; echo done; sleep 1000",
    );
    spec.limits.cpu_millis = Some(500);
    spec.limits.nofile = Some(777);
    // The shell counts in blocks of 512 bytes.
    spec.limits.file_bytes = Some(512 * 40);
    let id = spec.id.clone();
    world.client().launch(spec).unwrap();
    world.wait_log(&id, "done");
    let texts: Vec<String> = world.logs(&id).into_iter().map(|record| record.text).collect();
    assert_eq!(texts[..3], ["777", "0", "40"]);
    let stats = world.client().stats(&id).unwrap();
    assert!(
        stats.cpu_usec > 10_000 && (1..=2).contains(&stats.pids),
        "{stats:?}"
    );
    assert!(
        stats.memory_bytes >= stats.memory_working_set_bytes && stats.memory_working_set_bytes > 0,
        "{stats:?}"
    );
}
