//! Laws of the choice by time to first token.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

const BLOCK: u32 = 16;

fn prefixes() -> Prefixes {
    let mut prefixes = Prefixes::new(BLOCK, 1 << 16);
    for replica in 0..8 {
        prefixes.set_capacity(replica, 100_000);
    }
    prefixes
}

fn found(prefixes: &Prefixes, chain: &[u64]) -> HashMap<u16, u32> {
    let mut all = HashMap::new();
    prefixes.find(chain, |replica, tokens| {
        all.entry(replica).or_insert(tokens);
    });
    all
}

#[test]
fn the_nearest_cache_wins_until_its_queue_costs_more_than_reading_anew() {
    let idle = Replica {
        prefill_rate: 1000.0,
        ..Replica::default()
    };
    let holds = Replica {
        cached_tokens: 900,
        ..idle
    };
    let of = |queue| {
        let busy = Replica {
            ahead_tokens: queue,
            ..holds
        };
        choose(1000, [idle, busy].into_iter(), 0).map(|choice| choice.index)
    };
    // 900 tokens less to read are worth three times as many of a queue.
    assert_eq!(of(2600), Some(1));
    assert_eq!(of(2800), Some(0));
    let choice = choose(1000, [holds].into_iter(), 3).expect("one");
    assert_eq!(choice.uncached_tokens, 100);
    assert!((choice.seconds - 0.1).abs() < 1e-6, "{choice:?}");
    assert_eq!(choose(1, [].into_iter(), 0), None);
}

#[test]
fn equals_share_and_the_faster_is_better() {
    let one = Replica::default();
    let shared: Vec<usize> = (0..3)
        .filter_map(|rotation| choose(10, [one; 3].into_iter(), rotation))
        .map(|choice| choice.index)
        .collect();
    assert_eq!(shared, [0, 1, 2]);
    let fast = Replica {
        prefill_rate: 2.0 * RATE_UNKNOWN,
        ..one
    };
    assert_eq!(choose(10, [one, fast].into_iter(), 0).map(|it| it.index), Some(1));
    let writing = Replica {
        writing: 4,
        step_seconds: 0.1,
        step_tokens: 128,
        ..fast
    };
    assert_eq!(
        choose(10, [writing, fast].into_iter(), 0).map(|it| it.index),
        Some(1)
    );
}

#[test]
fn a_beginning_is_known_by_who_got_it() {
    let mut prefixes = prefixes();
    let text: Vec<u8> = (0..6400_u32).map(|at| (at % 251) as u8).collect();
    let long = chain(1, &text, 64);
    let mut branch = text.clone();
    branch[3200] ^= 1;
    let branch = chain(1, &branch, 64);
    assert_eq!(long[..50], branch[..50]);
    assert_ne!(long[50..], branch[50..]);
    assert_ne!(chain(2, &text, 64)[0], long[0], "who asks is part of it");
    prefixes.learn(&long, 3, 1600);
    prefixes.learn(&branch, 5, 1600);
    prefixes.learn(&long[..10], 1, 160);
    let held = found(&prefixes, &long);
    assert_eq!(held[&3], 1600);
    assert_eq!(held[&5], 800);
    assert_eq!(held[&1], 160);
    for replica in 0..8 {
        assert_eq!(
            prefixes.held_by(&long, replica),
            held.get(&replica).copied().unwrap_or(0)
        );
    }
    prefixes.forget(3);
    assert_eq!(found(&prefixes, &long).get(&3), None);
}

#[test]
fn what_was_used_longest_ago_is_forgotten_first() {
    let mut prefixes = prefixes();
    prefixes.set_capacity(0, 1000);
    let text = |kind: u8| vec![kind; 3200];
    let [a, b] = [chain(0, &text(1), 64), chain(0, &text(2), 64)];
    prefixes.learn(&a, 0, 800);
    assert_eq!(prefixes.held_by(&a, 0), 800);
    prefixes.learn(&b, 0, 800);
    assert_eq!(prefixes.held_by(&b, 0), 800);
    prefixes.wrote(0, 300);
    assert_eq!(prefixes.held_by(&a, 0), 0, "1100 tokens came since");
    assert_eq!(prefixes.held_by(&b, 0), 800);
}

proptest! {
    /// Halving finds what a look at every block finds, for the depths that it looks at.
    #[test]
    fn halving_finds_the_deepest(cuts in prop::collection::vec((0_u16..8, 0_usize..40), 1..6)) {
        let mut prefixes = prefixes();
        let text: Vec<u8> = (0..64 * 40_u32).map(|at| (at % 241) as u8).collect();
        let whole = chain(0, &text, 64);
        let mut deepest: HashMap<u16, usize> = HashMap::new();
        for (replica, cut) in cuts {
            prefixes.learn(&whole[..cut], replica, 1);
            let known = deepest.entry(replica).or_default();
            *known = (*known).max(cut);
        }
        let held = found(&prefixes, &whole);
        let most = deepest.values().copied().max().unwrap_or(0);
        for (replica, depth) in deepest {
            let tokens = u32::try_from(depth).unwrap() * BLOCK;
            prop_assert_eq!(prefixes.held_by(&whole, replica), tokens);
            if depth == most && depth > 0 {
                prop_assert_eq!(held.get(&replica).copied(), Some(tokens));
            }
            if let Some(told) = held.get(&replica) {
                prop_assert!(*told <= tokens);
            }
        }
    }
}
