//! Laws of the cache's books.

use proptest::prelude::*;

use super::*;

const SCOPE: u64 = 1;

fn tokens(range: std::ops::Range<i32>) -> Vec<Token> {
    range.collect()
}

#[test]
fn what_ended_is_found_again_in_whole_blocks() {
    let mut cache = Cache::new(1000, 8, true);
    let prompt = tokens(0..40);
    assert_eq!(cache.find(SCOPE, &prompt), None);
    let first = cache.start(SCOPE, None).unwrap();
    cache.extend(first, &prompt);
    assert!(cache.end(first));
    assert_eq!((cache.cells_free(), cache.cells_available()), (960, 1000));
    let found = cache.find(SCOPE, &prompt).unwrap();
    assert_eq!((found.sequence, found.tokens, found.idle), (first, 32, 32));
    // The last token is never found: its logits are needed.
    assert_eq!(cache.find(SCOPE, &prompt[..32]).unwrap().tokens, 16);
    assert_eq!(cache.find(SCOPE + 1, &prompt), None, "another tenant's");
    let second = cache.start(SCOPE, Some(found)).unwrap();
    assert_eq!((cache.cells_free(), cache.cells_available()), (960, 968));
    cache.extend(second, &prompt[32..]);
    assert_eq!(cache.cells_free(), 952);
    assert!(!cache.end(second), "it brought nothing that the first has not");
    assert_eq!(cache.cells_free(), 960);
}

#[test]
fn a_running_prompt_is_shared_too() {
    let mut cache = Cache::new(1000, 8, true);
    let first = cache.start(SCOPE, None).unwrap();
    cache.extend(first, &tokens(0..20));
    let found = cache.find(SCOPE, &tokens(0..30)).unwrap();
    assert_eq!((found.tokens, found.idle), (16, 0));
    let second = cache.start(SCOPE, Some(found)).unwrap();
    cache.extend(second, &tokens(16..30));
    cache.drop(first);
    assert_eq!(cache.find(SCOPE, &tokens(0..30)).unwrap().sequence, second);
}

#[test]
fn the_least_used_goes_first_and_what_runs_never() {
    let mut cache = Cache::new(100, 8, true);
    let kept: Vec<SequenceId> = (0..3)
        .map(|at| {
            let sequence = cache.start(SCOPE, None).unwrap();
            cache.extend(sequence, &tokens(at * 100..at * 100 + 20));
            assert!(cache.end(sequence));
            sequence
        })
        .collect();
    let used = cache.find(SCOPE, &tokens(0..20));
    let running = cache.start(SCOPE, used).unwrap();
    assert_eq!(cache.evict(cache.cells_free() + 1), [kept[1]]);
    cache.end(running);
    assert_eq!(cache.evict_sequences(1), [kept[2]], "the first was used twice");
    let running = cache.start(SCOPE, None).unwrap();
    cache.extend(running, &tokens(500..560));
    assert_eq!(cache.evict(100), [kept[0]]);
    assert_eq!(cache.cells_free(), 40);
}

#[test]
fn answers_to_one_prompt_share_it_and_then_part() {
    let mut cache = Cache::new(1000, 8, true);
    let first = cache.start(SCOPE, None).unwrap();
    cache.extend(first, &tokens(0..20));
    let second = cache.fork(first).unwrap();
    assert_eq!(cache.cells_free(), 980);
    cache.extend(first, &[100]);
    cache.extend(second, &[200]);
    assert_eq!(cache.cells_free(), 978);
    cache.extend(second, &tokens(201..240));
    let mut continued = tokens(0..20);
    continued.extend(200..240);
    assert_eq!(
        cache.find(SCOPE, &continued).unwrap().tokens,
        16,
        "blocks after a fork are not on the borders"
    );
    cache.drop(first);
    cache.drop(second);
    assert_eq!(cache.cells_free(), 1000);
}

#[test]
fn a_model_whose_state_cannot_be_cut_keeps_nothing() {
    let mut cache = Cache::new(1000, 8, false);
    let first = cache.start(SCOPE, None).unwrap();
    cache.extend(first, &tokens(0..40));
    assert!(!cache.end(first));
    assert_eq!(
        (cache.find(SCOPE, &tokens(0..40)), cache.cells_free()),
        (None, 1000)
    );
}

#[derive(Debug, Clone)]
enum Act {
    Start(Vec<Token>),
    Extend(usize, Vec<Token>),
    Fork(usize),
    End(usize),
    Drop(usize),
    Evict(usize),
}

fn act() -> impl Strategy<Value = Act> {
    // Few tokens, in runs, so that beginnings are met again.
    let some = || {
        prop::collection::vec((0i32..2, 1usize..24), 1..5).prop_map(|runs| {
            runs.into_iter()
                .flat_map(|(token, count)| std::iter::repeat_n(token, count))
                .collect()
        })
    };
    prop_oneof![
        3 => some().prop_map(Act::Start),
        2 => (0usize..9, some()).prop_map(|(at, tokens)| Act::Extend(at, tokens)),
        1 => (0usize..9).prop_map(Act::Fork),
        2 => (0usize..9).prop_map(Act::End),
        1 => (0usize..9).prop_map(Act::Drop),
        1 => (0usize..400).prop_map(Act::Evict),
    ]
}

proptest! {
    /// The books beside a model that keeps each cell: as llama.cpp does, with the sequences that each belongs to.
    #[test]
    fn the_books_agree_with_the_cells(acts in prop::collection::vec(act(), 1..80)) {
        const CELLS: usize = 1 << 20;
        let mut cache = Cache::new(CELLS, 8, true);
        // Each cell: its token, its position, the sequences it is of.
        let mut cells: Vec<(Token, usize, Vec<SequenceId>)> = Vec::new();
        let mut running: Vec<SequenceId> = Vec::new();
        let text = |cells: &[(Token, usize, Vec<SequenceId>)], id: SequenceId| -> Vec<Token> {
            let mut held: Vec<_> = cells.iter().filter(|cell| cell.2.contains(&id)).collect();
            held.sort_by_key(|cell| cell.1);
            held.iter().enumerate().for_each(|(at, cell)| assert_eq!(cell.1, at));
            held.iter().map(|cell| cell.0).collect()
        };
        let clear = |cells: &mut Vec<(Token, usize, Vec<SequenceId>)>, id: SequenceId| {
            cells.iter_mut().for_each(|cell| cell.2.retain(|holder| *holder != id));
            cells.retain(|cell| !cell.2.is_empty());
        };
        for act in acts {
            match act {
                Act::Start(prompt) => {
                    let found = cache.find(SCOPE, &prompt);
                    let Some(id) = cache.start(SCOPE, found) else { continue };
                    let cached = found.map_or(0, |found| found.tokens);
                    prop_assert!(cached < prompt.len());
                    if let Some(found) = found {
                        for cell in cells.iter_mut().filter(|cell| cell.2.contains(&found.sequence)) {
                            if cell.1 < found.tokens {
                                cell.2.push(id);
                            }
                        }
                    }
                    for (at, token) in prompt.iter().enumerate().skip(cached) {
                        cells.push((*token, at, vec![id]));
                    }
                    cache.extend(id, &prompt[cached..]);
                    // What was taken over is what was asked for.
                    prop_assert_eq!(text(&cells, id), prompt);
                    running.push(id);
                }
                Act::Extend(at, more) if !running.is_empty() => {
                    let id = running[at % running.len()];
                    let length = text(&cells, id).len();
                    cells.extend(more.iter().enumerate().map(|(at, token)| (*token, length + at, vec![id])));
                    cache.extend(id, &more);
                }
                Act::Fork(at) if !running.is_empty() => {
                    let source = running[at % running.len()];
                    let Some(id) = cache.fork(source) else { continue };
                    for cell in cells.iter_mut().filter(|cell| cell.2.contains(&source)) {
                        cell.2.push(id);
                    }
                    running.push(id);
                }
                Act::End(at) if !running.is_empty() => {
                    let id = running.remove(at % running.len());
                    if !cache.end(id) {
                        clear(&mut cells, id);
                    }
                }
                Act::Drop(at) if !running.is_empty() => {
                    let id = running.remove(at % running.len());
                    cache.drop(id);
                    clear(&mut cells, id);
                }
                Act::Evict(more) => {
                    for id in cache.evict(cache.cells_free() + more) {
                        prop_assert!(!running.contains(&id));
                        clear(&mut cells, id);
                    }
                }
                _ => {}
            }
            prop_assert_eq!(cache.cells_free(), CELLS - cells.len());
            let held = cells.iter().filter(|cell| cell.2.iter().any(|id| running.contains(id)));
            prop_assert_eq!(cache.cells_available(), CELLS - held.count());
        }
    }
}
