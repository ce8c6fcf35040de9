//! The logs against real files.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::protocol::LogLimits;

fn small() -> LogLimits {
    LogLimits {
        segment_bytes: 200,
        segments_max: 3,
        ..LogLimits::default()
    }
}

fn write(dir: &Path, limits: &LogLimits, from: usize, to: usize) {
    let mut writer = Writer::open(dir, limits).unwrap();
    for number in from..to {
        writer.push(Timestamp::now(), Stream::Stdout, false, &format!("line {number}"));
    }
    writer.flush().unwrap();
}

fn texts(records: &[Record]) -> Vec<&str> {
    records.iter().map(|record| record.text.as_str()).collect()
}

#[test]
fn what_was_written_is_read_in_order_both_ways() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &LogLimits::default(), 0, 5);
    let up = read(dir.path(), &Range::default(), 100, Order::Ascending).unwrap();
    assert_eq!(texts(&up), ["line 0", "line 1", "line 2", "line 3", "line 4"]);
    let down = read(dir.path(), &Range::default(), 2, Order::Descending).unwrap();
    assert_eq!(texts(&down), ["line 4", "line 3"]);
    let further = Range {
        after: Some(down[1].cursor),
        ..Range::default()
    };
    assert_eq!(
        texts(&read(dir.path(), &further, 2, Order::Descending).unwrap()),
        ["line 2", "line 1"]
    );
    let from = Range {
        start: Some(up[3].at),
        ..Range::default()
    };
    assert!(texts(&read(dir.path(), &from, 9, Order::Ascending).unwrap()).contains(&"line 3"));
}

#[test]
fn old_segments_go_and_the_rest_stays_readable() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &small(), 0, 100);
    let segments = reader::segments(dir.path()).unwrap();
    assert_eq!(segments.len(), 3);
    let kept = read(dir.path(), &Range::default(), 1000, Order::Ascending).unwrap();
    assert_eq!(kept.last().unwrap().text, "line 99");
    assert!(kept.windows(2).all(|pair| pair[0].cursor < pair[1].cursor));
    for (index, record) in kept.iter().enumerate() {
        let after = Range {
            after: Some(record.cursor),
            ..Range::default()
        };
        let rest = read(dir.path(), &after, 1000, Order::Ascending).unwrap();
        assert_eq!(rest.len(), kept.len() - index - 1);
    }
}

#[test]
fn two_writers_take_turns() {
    let dir = tempfile::tempdir().unwrap();
    let mut shim = Writer::open(dir.path(), &small()).unwrap();
    for number in 0..40 {
        shim.push(Timestamp::now(), Stream::Stdout, false, &number.to_string());
        shim.flush().unwrap();
        append_platform(dir.path(), &format!("platform {number}\nnever a second line")).unwrap();
    }
    let kept = read(dir.path(), &Range::default(), 1000, Order::Ascending).unwrap();
    assert!(
        kept.windows(2)
            .all(|pair| pair[1].cursor.0 == pair[0].cursor.0 + 1)
    );
    assert_eq!(kept.last().unwrap().cursor.0, 80);
    assert_eq!(
        (kept.last().unwrap().stream, kept.last().unwrap().text.as_str()),
        (Stream::Koyeb, "platform 39")
    );
}

#[test]
fn a_torn_end_is_mended() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &LogLimits::default(), 0, 2);
    let segment = dir.path().join(format::segment_name(1));
    let mut torn = std::fs::read(&segment).unwrap();
    torn.extend(b"3 17000000 o . half a li");
    std::fs::write(&segment, torn).unwrap();
    assert_eq!(
        read(dir.path(), &Range::default(), 9, Order::Ascending)
            .unwrap()
            .len(),
        2
    );
    write(dir.path(), &LogLimits::default(), 2, 3);
    let all = read(dir.path(), &Range::default(), 9, Order::Ascending).unwrap();
    assert_eq!(texts(&all), ["line 0", "line 1", "line 2"]);
    assert_eq!(all[2].cursor, Cursor(3));
}

#[test]
fn a_follower_sees_each_record_once_across_segments() {
    let dir = tempfile::tempdir().unwrap();
    let mut follower = Follower::new(dir.path(), None).unwrap();
    assert!(follower.next_batch().unwrap().is_empty());
    let limits = LogLimits {
        segment_bytes: 200,
        segments_max: 100,
        ..LogLimits::default()
    };
    let mut seen = Vec::new();
    for round in 0..10 {
        write(dir.path(), &limits, round * 7, round * 7 + 7);
        assert!(follower.wait(Duration::from_secs(5)).unwrap());
        loop {
            let batch = follower.next_batch().unwrap();
            if batch.is_empty() {
                break;
            }
            seen.extend(batch);
        }
    }
    let expected: Vec<String> = (0..70).map(|number| format!("line {number}")).collect();
    assert_eq!(texts(&seen), expected);
    assert!(!follower.wait(Duration::ZERO).unwrap());

    let mut resumed = Follower::new(dir.path(), Some(seen[41].cursor)).unwrap();
    assert_eq!(resumed.next_batch().unwrap()[0].text, "line 42");
}

#[test]
fn a_bucket_gives_the_burst_and_then_the_rate() {
    let start = Instant::now();
    let mut bucket = TokenBucket::new(1000, 500, start);
    assert!(bucket.take(500, start));
    assert!(!bucket.take(1, start));
    assert_eq!(bucket.wait_for(100, start), Duration::from_millis(100));
    assert!(bucket.take(100, start + Duration::from_millis(100)));
    assert!(!bucket.take(100, start + Duration::from_millis(150)));
}

#[test]
fn a_cut_never_breaks_a_character() {
    let line = "é".repeat(LINE_BYTES_MAX);
    let mut splitter = LineSplitter::default();
    let mut parts = Vec::new();
    splitter.push(format!("x{line}\n").as_bytes(), |continued, text| {
        parts.push((continued, text.to_owned()))
    });
    assert!(parts.iter().all(|(_, text)| !text.contains('\u{FFFD}')));
    assert!(parts.len() == 3 && parts[0].0 && parts[1].0 && !parts[2].0);
    assert_eq!(
        parts.into_iter().map(|(_, text)| text).collect::<String>(),
        format!("x{line}")
    );
}

proptest! {
    #[test]
    fn lines_survive_any_cut(
        lines in proptest::collection::vec("[^\n\r]{0,60}", 0..10),
        step in 1_usize..40,
    ) {
        let bytes = lines.iter().map(|line| format!("{line}\n")).collect::<String>();
        let mut splitter = LineSplitter::default();
        let mut seen = Vec::new();
        for chunk in bytes.as_bytes().chunks(step) {
            splitter.push(chunk, |_, text| seen.push(text.to_owned()));
        }
        splitter.finish(|_, text| seen.push(text.to_owned()));
        prop_assert_eq!(seen, lines);
    }

    #[test]
    fn any_text_is_read_as_it_was_written(texts in proptest::collection::vec("[^\n]{0,80}", 1..20)) {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::open(dir.path(), &LogLimits::default()).unwrap();
        for text in &texts {
            writer.push(Timestamp::now(), Stream::Stderr, false, text);
        }
        writer.flush().unwrap();
        let read: Vec<String> = read(dir.path(), &Range::default(), 100, Order::Ascending)
            .unwrap().into_iter().map(|record| record.text).collect();
        prop_assert_eq!(read, texts);
    }
}
