//! What an instance prints.

use std::time::{Duration, Instant};

use tram_sandbox::logs::{Follower, LINE_BYTES_MAX, Stream, append_platform};
use tram_sandbox::protocol::ExitStatus;

use crate::support::World;

#[test]
fn a_flood_is_bounded_counted_and_does_not_stop_the_instance() {
    let Some(world) = World::new() else { return };
    let mut spec = world.shell("yes flood | head -n 3000000; echo the end >&2; sleep 1; echo after");
    spec.logs.bytes_per_second = 100_000;
    spec.logs.burst_bytes = 200_000;
    spec.logs.segment_bytes = 100_000;
    spec.logs.segments_max = 3;
    let id = spec.id.clone();
    let begun = Instant::now();
    let (exit, records) = world.run(spec);
    assert_eq!(exit.status, Some(ExitStatus::Code(0)));
    assert!(begun.elapsed() < Duration::from_secs(15));
    let dir = world.info(&id).log_dir;
    let bytes: u64 = dir
        .read_dir()
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .sum();
    assert!(bytes < 450_000, "{bytes} bytes of logs");
    let dropped: u64 = records
        .iter()
        .filter(|record| record.stream == Stream::Koyeb && record.text.contains("lines were dropped"))
        .map(|record| record.text.split(' ').next().unwrap().parse::<u64>().unwrap())
        .sum();
    assert!(dropped > 1_000_000, "{dropped} dropped");
    assert!(records.windows(2).all(|pair| pair[0].cursor < pair[1].cursor));
}

#[test]
fn long_lines_are_split_and_strange_bytes_replaced() {
    let Some(world) = World::new() else { return };
    let spec = world.shell(
        "head -c 40000 /dev/zero | tr '\\0' x; echo; printf 'a\\377b\\n'; printf 'dos\\r\\n'; echo; echo end",
    );
    let (_, records) = world.run(spec);
    let lengths: Vec<(usize, bool)> = records
        .iter()
        .take(3)
        .map(|record| (record.text.len(), record.continued))
        .collect();
    assert_eq!(
        lengths,
        [
            (LINE_BYTES_MAX, true),
            (LINE_BYTES_MAX, true),
            (40_000 - 2 * LINE_BYTES_MAX, false)
        ]
    );
    let rest: Vec<&str> = records
        .iter()
        .skip(3)
        .map(|record| record.text.as_str())
        .collect();
    assert_eq!(rest, ["a\u{FFFD}b", "dos", "", "end"]);
}

#[test]
fn a_follower_gets_every_line_of_a_live_instance_and_the_platforms_too() {
    let Some(world) = World::new() else { return };
    let spec = world.shell("i=0; while [ $i -lt 300 ]; do echo line $i; i=$((i+1)); done");
    let id = spec.id.clone();
    let dir = world.state().join("instances").join(id.as_str()).join("logs");
    world.client().launch(spec).unwrap();
    let mut follower = Follower::new(&dir, None).unwrap();
    append_platform(&dir, "the platform was here").unwrap();
    let (mut lines, mut platform) = (Vec::new(), 0);
    let deadline = Instant::now() + Duration::from_secs(20);
    while lines.len() < 300 || platform == 0 {
        assert!(
            Instant::now() < deadline,
            "{} lines, {platform} of the platform",
            lines.len()
        );
        follower.wait(Duration::from_millis(100)).unwrap();
        for record in follower.next_batch().unwrap() {
            match record.stream {
                Stream::Koyeb => platform += 1,
                _ => lines.push(record.text),
            }
        }
    }
    let expected: Vec<String> = (0..300).map(|number| format!("line {number}")).collect();
    assert_eq!(lines, expected);
    world.wait_exit(&id);
}
