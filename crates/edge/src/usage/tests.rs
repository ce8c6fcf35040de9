//! Laws of the journal: what was appended is read once, in order, whatever was killed or full.

use std::collections::HashSet;
use std::fs::{self, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use rand::{SeedableRng as _, rngs::StdRng};
use rustix::process::{Resource, Rlimit, setrlimit};
use tram_types::inference::{Endpoint, JournalPosition as Position, Outcome, TokenRecord};
use tram_types::{ServiceId, Timestamp};
use uuid::Uuid;

use super::{Journal, Reader, Segment, line};

fn record(number: u64) -> TokenRecord {
    TokenRecord {
        question_id: Uuid::from_u64_pair(0, number),
        request_id: String::new(),
        service_id: ServiceId::from_uuid(Uuid::nil()),
        deployment_id: None,
        organization_id: None,
        tenant: None,
        endpoint: Endpoint::ChatCompletions,
        model: "chat".to_owned(),
        asked: None,
        prompt_tokens: number,
        completion_tokens: 1,
        cached_tokens: 0,
        queue_ms: 0,
        ttft_ms: Some(1),
        duration_ms: 2,
        status: 200,
        outcome: Outcome::Complete,
        finished_at: Timestamp::EPOCH,
    }
}

/// Reads to the end from where `position` is, and takes away what was read.
fn read_on(reader: &Reader, position: &mut Option<Position>) -> (Vec<u64>, u64) {
    let read = look_on(reader, position);
    if let Some(position) = position {
        reader.forget(*position).unwrap();
    }
    read
}

/// Reads to the end from where `position` is: the numbers, and how much is damaged.
fn look_on(reader: &Reader, position: &mut Option<Position>) -> (Vec<u64>, u64) {
    let (mut numbers, mut damaged) = (Vec::new(), 0);
    for journal in reader.journals().unwrap() {
        let mut from = position.unwrap_or(Position::start(journal));
        loop {
            let batch = reader.read(from).unwrap();
            numbers.extend(batch.records.iter().map(|record| record.prompt_tokens));
            damaged += batch.damaged;
            from = batch.next;
            if !batch.has_more {
                break;
            }
        }
        *position = Some(from);
    }
    (numbers, damaged)
}

#[test]
fn what_was_appended_is_read_once_and_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let (reader, mut position) = (Reader::new(dir.path()), None);
    assert_eq!(read_on(&reader, &mut position), (vec![], 0), "nothing is there");
    let mut seen = Vec::new();
    for run in 0..3 {
        // Some four records a segment.
        let journal = Journal::with_bounds(dir.path(), 1500, u64::MAX).unwrap();
        for number in run * 50..run * 50 + 50 {
            journal.append(&record(number));
            if number % 7 == 0 {
                seen.extend(read_on(&reader, &mut position).0);
            }
        }
        assert_eq!(journal.written(), 50);
    }
    seen.extend(read_on(&reader, &mut position).0);
    assert_eq!(seen, (0..150).collect::<Vec<_>>());
    assert_eq!(read_on(&reader, &mut position), (vec![], 0));
    assert_eq!(
        Segment::list(&super::directory(dir.path())).unwrap().len(),
        1,
        "what was read is gone"
    );
}

#[test]
fn a_batch_has_a_bound_and_says_that_there_is_more() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap();
    for number in 0..6000 {
        journal.append(&record(number));
    }
    let reader = Reader::new(dir.path());
    let batch = reader
        .read(Position::start(reader.journals().unwrap()[0]))
        .unwrap();
    assert!(batch.has_more && batch.records.len() < 6000);
    let (rest, _) = read_on(&reader, &mut Some(batch.next));
    assert_eq!(batch.records.len() + rest.len(), 6000);
}

#[test]
fn a_torn_line_is_passed_over_once_and_a_damaged_one_too() {
    let dir = tempfile::tempdir().unwrap();
    let append = |number| Journal::open(dir.path()).unwrap().append(&record(number));
    append(1);
    let first = Segment::list(&super::directory(dir.path())).unwrap()[0];
    let mut file = OpenOptions::new()
        .append(true)
        .open(first.path(&super::directory(dir.path())))
        .unwrap();
    let mut changed = line::encode(&record(2)).unwrap();
    changed[40] ^= 1;
    file.write_all(&changed).unwrap();
    file.write_all(&line::encode(&record(3)).unwrap()[..60]).unwrap();
    let (reader, mut position) = (Reader::new(dir.path()), None);
    assert_eq!(
        read_on(&reader, &mut position),
        (vec![1], 1),
        "its end may still come"
    );
    append(4);
    assert_eq!(read_on(&reader, &mut position), (vec![4], 1), "it will not come");
    assert_eq!(read_on(&reader, &mut position), (vec![], 0));
}

#[test]
fn a_journal_that_nobody_reads_has_a_bound() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::with_bounds(dir.path(), 100_000, 300_000).unwrap();
    let all = 2000 + u64::try_from(super::WAITING_MAX).unwrap();
    for number in 0..all {
        journal.append(&record(number));
    }
    assert_eq!(journal.written() + journal.waiting() + journal.lost(), all);
    assert!(journal.lost() > 0 && journal.waiting() > 0);
    let held: u64 = fs::read_dir(super::directory(dir.path()))
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .sum();
    assert!(held <= 400_000, "{held}");
    // Whoever reads makes room.
    let (reader, mut position, mut seen) = (Reader::new(dir.path()), None, 0);
    while journal.waiting() > 0 {
        seen += read_on(&reader, &mut position).0.len();
        journal.settle();
    }
    seen += read_on(&reader, &mut position).0.len();
    assert_eq!(u64::try_from(seen).unwrap(), all - journal.lost());
}

/// Runs this test again in a process of its own, with a directory in the environment.
fn again(test: &str, variable: &str, dir: &Path) -> Command {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child
        .args([&format!("usage::tests::{test}"), "--exact", "--nocapture"])
        .env(variable, dir)
        .stdout(Stdio::piped())
        .process_group(0);
    child
}

#[test]
fn a_disk_that_is_full_for_a_while_costs_nothing() {
    const VARIABLE: &str = "TRAM_USAGE_FULL_TEST";
    if let Ok(dir) = std::env::var(VARIABLE) {
        let dir = Path::new(&dir);
        let room = |bytes| {
            let limit = Rlimit {
                current: bytes,
                maximum: None,
            };
            setrlimit(Resource::Fsize, limit).unwrap();
        };
        let journal = Journal::open(dir).unwrap();
        room(Some(1000));
        for number in 0..20 {
            journal.append(&record(number));
        }
        assert!(journal.waiting() > 10, "{journal:?}");
        let (reader, mut position) = (Reader::new(dir), None);
        let mut seen = read_on(&reader, &mut position).0;
        room(None);
        journal.settle();
        journal.append(&record(20));
        assert_eq!((journal.waiting(), journal.lost()), (0, 0));
        seen.extend(read_on(&reader, &mut position).0);
        assert_eq!(seen, (0..21).collect::<Vec<_>>());
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let child = again(
        "a_disk_that_is_full_for_a_while_costs_nothing",
        VARIABLE,
        dir.path(),
    );
    // The shell ignores the signal that comes with the limit, and its children inherit that.
    let output = Command::new("sh")
        .args(["-c", "trap '' XFSZ; exec \"$@\"", "sh"])
        .arg(child.get_program())
        .args(child.get_args())
        .env(VARIABLE, dir.path())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A writer that is killed at any moment, time and again, and a reader beside it that is "killed" too: it forgets what
/// it had read but not yet remembered. Every record whose append came back is read exactly once, and none twice.
#[test]
fn a_writer_that_is_killed_loses_nothing_it_had_appended() {
    const VARIABLE: &str = "TRAM_USAGE_KILL_TEST";
    const FIRST: &str = "TRAM_USAGE_KILL_FIRST";
    const ROUNDS: u64 = 25;
    const A_ROUND: u64 = 1_000_000;
    if let Ok(dir) = std::env::var(VARIABLE) {
        let first: u64 = std::env::var(FIRST).unwrap().parse().unwrap();
        let journal = Journal::with_bounds(Path::new(&dir), 8 * 1024, u64::MAX).unwrap();
        let mut stdout = std::io::stdout();
        for number in first..first + A_ROUND {
            journal.append(&record(number));
            writeln!(stdout, "appended {number}").unwrap();
            stdout.flush().unwrap();
        }
        return;
    }
    let seed: u64 = std::env::var("TRAM_TEST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(rand::random);
    let mut random = StdRng::seed_from_u64(seed);
    let dir = tempfile::tempdir().unwrap();
    let (reader, mut position) = (Reader::new(dir.path()), None);
    let (mut appended, mut seen) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let mut child = again(
            "a_writer_that_is_killed_loses_nothing_it_had_appended",
            VARIABLE,
            dir.path(),
        )
        .env(FIRST, (round * A_ROUND).to_string())
        .spawn()
        .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let until = random.random_range(1..200);
        let mut count = 0;
        let deadline = Instant::now() + Duration::from_secs(60);
        while count < until {
            assert!(
                Instant::now() < deadline,
                "seed {seed}: the writer does not write"
            );
            let line = lines.next().unwrap().unwrap();
            if let Some((_, number)) = line.rsplit_once("appended ") {
                appended.push(number.parse::<u64>().unwrap());
                count += 1;
            }
            if random.random_ratio(1, 20) {
                // What it read is added up, or it is killed before it was.
                let mut reached = position;
                let (numbers, _) = look_on(&reader, &mut reached);
                if random.random_bool(0.5) {
                    seen.extend(numbers);
                    position = reached;
                    if let Some(position) = position {
                        reader.forget(position).unwrap();
                    }
                }
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What it had said before it died.
        for line in lines.map_while(Result::ok) {
            if let Some(number) = line.rsplit_once("appended ").and_then(|it| it.1.parse().ok()) {
                appended.push(number);
            }
        }
    }
    // A last segment makes the torn end of the one before final.
    Journal::open(dir.path()).unwrap().append(&record(u64::MAX));
    seen.extend(read_on(&reader, &mut position).0);
    let once: HashSet<u64> = seen.iter().copied().collect();
    assert_eq!(once.len(), seen.len(), "seed {seed}: something was read twice");
    for number in &appended {
        assert!(
            once.contains(number),
            "seed {seed}: {number} was appended and not read"
        );
    }
    // One a round may have been written without the writer having lived to say so.
    assert!(
        seen.len() - 1 <= appended.len() + usize::try_from(ROUNDS).unwrap(),
        "seed {seed}"
    );
}

proptest! {
    /// Whatever stands in the files, a reader comes to their end.
    #[test]
    fn any_bytes_are_read_to_their_end(
        files in proptest::collection::vec(proptest::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..200), 1..4),
        long in any::<bool>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let directory = super::directory(dir.path());
        fs::create_dir(&directory).unwrap();
        let journal = Uuid::new_v4();
        for (number, mut bytes) in (1..).zip(files) {
            if long {
                bytes.extend(vec![b'x'; 2 * super::LINE_MAX_BYTES]);
            }
            fs::write(Segment { journal, number }.path(&directory), bytes).unwrap();
        }
        let (numbers, _) = read_on(&Reader::new(dir.path()), &mut None);
        prop_assert!(numbers.is_empty());
    }
}
