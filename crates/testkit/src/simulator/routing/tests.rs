//! Laws of the workers and of the comparison.

use super::*;

fn request(at_ms: u64, blocks: &[u64], output: u32) -> Request {
    Request {
        at_ms,
        input: 512 * u32::try_from(blocks.len()).unwrap(),
        output,
        blocks: blocks.to_vec(),
    }
}

fn one_worker() -> Setup {
    Setup {
        workers: 1,
        prefill_rate: 512.0,
        step_seconds: 0.1,
        slots: 4,
        cells: 512 * 4,
        step_tokens: 512,
    }
}

fn took(requests: &[Request], setup: &Setup) -> Vec<f64> {
    let mut workers = Workers::new(setup);
    for (number, request) in requests.iter().enumerate() {
        let now = request.at_ms as f64 / 1000.0;
        workers.until(now, requests);
        workers.send(number, 0, now);
    }
    workers.until(f64::INFINITY, requests);
    workers
        .first_tokens()
        .map(|it| (it * 1000.0).round() / 1000.0)
        .collect()
}

#[test]
fn a_worker_reads_one_prompt_after_the_other_and_what_it_holds_not_again() {
    let setup = one_worker();
    // A second a block; the second waits for the first; the third finds all but its last token.
    let requests = [
        request(0, &[1, 2], 0),
        request(500, &[3], 0),
        request(10_000, &[1, 2], 0),
    ];
    let times = took(&requests, &setup);
    assert_eq!(times[..2], [2.0, 2.5]);
    assert!(times[2] < 0.01, "{times:?}");
    // What was used longest ago goes when the room is needed.
    let requests = [
        request(0, &[1, 2], 0),
        request(10_000, &[5, 6, 7], 0),
        request(20_000, &[1, 2], 0),
    ];
    assert_eq!(took(&requests, &setup), [2.0, 3.0, 1.0]);
}

#[test]
fn who_needs_more_cells_than_are_free_waits_for_an_answer_to_end() {
    let setup = one_worker();
    let requests = [request(0, &[1, 2, 3], 20), request(0, &[4, 5], 0)];
    // Read after 3 s, written after 2 s more, and then two blocks are read.
    assert_eq!(took(&requests, &setup), [3.0, 7.0]);
}

#[test]
fn every_policy_answers_all_and_a_cache_that_is_known_is_used() {
    let setup = Setup {
        workers: 3,
        cells: 512 * 40,
        ..one_worker()
    };
    // Three conversations that grow.
    let requests: Vec<Request> = (0..60)
        .map(|turn: u64| {
            let talk = turn % 3;
            let length = 1 + turn / 30;
            let blocks: Vec<u64> = (0..length).map(|block| 100 * (talk + 1) + block).collect();
            request(turn * 1500, &blocks, 3)
        })
        .collect();
    let run = |name: &str| {
        let mut router = policies::named(name, &setup).unwrap();
        let outcome = replay(&requests, &setup, router.as_mut(), 1);
        assert_eq!(outcome, {
            let mut again = policies::named(name, &setup).unwrap();
            replay(&requests, &setup, again.as_mut(), 1)
        });
        outcome
    };
    let outcomes: Vec<Outcome> = ALL.iter().map(|name| run(name)).collect();
    assert!(outcomes.iter().all(|outcome| outcome.p99.is_finite()));
    assert!(
        outcomes[0].in_time >= 0.95 && outcomes[0].cached > 0.8,
        "{:?}",
        outcomes[0]
    );
}
