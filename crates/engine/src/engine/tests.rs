//! The engine's thread with real weights: whatever happens to a request in the batch, its answer is the same.

use std::path::PathBuf;
use std::time::Instant;

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::*;
use crate::cache::Token;
use crate::request::End;
use crate::sample::Settings;
use crate::schedule::Priority;

mod draft;
mod keep;

const ANSWER: usize = 16;
/// How often a guess is waited for.
const PATIENCE: usize = 50;
/// Distinct prompts.
const PROMPTS: usize = 3;

fn weights() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache"));
    let path = cache.join("tram/models/SmolLM2-135M-Instruct.Q4_1.gguf");
    assert!(
        path.exists(),
        "{} is missing: run `scripts/setup test`",
        path.display()
    );
    path
}

/// One for all tests: llama.cpp can be set up only once in a process.
fn model() -> Arc<Model> {
    static MODEL: std::sync::OnceLock<Arc<Model>> = std::sync::OnceLock::new();
    MODEL
        .get_or_init(|| Model::load(&weights(), None, Some(256), false, &[]).unwrap())
        .clone()
}

fn engine(model: &Arc<Model>, parallel: usize, cells: usize) -> Engine {
    guessing(model, parallel, cells, 0)
}

/// One that guesses so many tokens at a time.
fn guessing(model: &Arc<Model>, parallel: usize, cells: usize, guess: usize) -> Engine {
    let setup = Setup {
        parallel,
        threads: 1,
        cells,
        guess,
    };
    Engine::start(model.clone(), None, setup, None, 64).unwrap()
}

fn request(prompt: Vec<Token>, tenant: &str, answers: usize) -> (Request, UnboundedReceiver<Event>) {
    let (events, receiver) = unbounded_channel();
    let request = Request {
        prompt,
        answers,
        tokens_max: ANSWER,
        sampling: Settings {
            temperature: 0.0,
            ..Settings::default()
        },
        seed: 0,
        stops: Vec::new(),
        ignores_end: true,
        log_probabilities: None,
        predicted: Vec::new(),
        adapter: None,
        grammar: None,
        resumed: None,
        tenant: tenant.into(),
        priority: Priority::Normal,
        arrived: Instant::now(),
        events,
    };
    (request, receiver)
}

/// The text of each answer, and how much of the prompt was cached.
fn collect(mut receiver: UnboundedReceiver<Event>, answers: usize) -> (Vec<String>, usize) {
    let mut texts = vec![String::new(); answers];
    let mut open = answers;
    let mut found = 0;
    while open > 0 {
        match receiver.blocking_recv().expect("the engine answers") {
            Event::Read { cached } => found = cached,
            Event::Token { answer, text, .. } => texts[answer].push_str(&text),
            Event::Ended { why, tokens, .. } => {
                assert_eq!((why, tokens), (End::Length, ANSWER));
                open -= 1;
            }
            Event::Failed(failure) => panic!("{failure:?}"),
        }
    }
    (texts, found)
}

/// Prompts whose continuation a small model is sure of, so that rounding (which differs with the size of a batch) does
/// not matter.
fn prompts(model: &Model) -> Vec<Vec<Token>> {
    let counted = |from: usize| -> String { (from..from + 24).map(|number| format!(" {number},")).collect() };
    let prompts = (0..PROMPTS).map(|at| model.tokens(&format!("Count on:{}", counted(1 + at)), true, false));
    prompts.collect::<Option<_>>().unwrap()
}

#[test]
fn giving_way_changes_no_answer() {
    let model = model();
    let prompts = prompts(&model);
    let alone: Vec<String> = prompts
        .iter()
        .map(|prompt| {
            // A new engine each time: nothing is cached.
            let engine = engine(&model, 1, model.context_length);
            let (request, events) = request(prompt.clone(), "", 1);
            engine.submit(request).unwrap();
            let (texts, cached) = collect(events, 1);
            assert_eq!(cached, 0);
            texts.concat()
        })
        .collect();
    assert!(alone[0].contains("25, 26, 27"), "{}", alone[0]);
    // Room for the prompts of three, and for the answers of fewer: some have to give way.
    let longest = prompts.iter().map(Vec::len).max().unwrap();
    let crowded = engine(&model, 4, 3 * longest + ANSWER);
    let events: Vec<_> = (0..9)
        .map(|at| {
            let (request, events) = request(prompts[at % PROMPTS].clone(), ["a", "b"][at % 2], 1);
            crowded.submit(request).unwrap();
            events
        })
        .collect();
    for (at, events) in events.into_iter().enumerate() {
        assert_eq!(collect(events, 1).0.concat(), alone[at % PROMPTS], "request {at}");
    }
    crowded.stop();
    while !crowded.ended() {
        std::thread::yield_now();
    }
    let figures = crowded.figures();
    assert!(figures.preempted > 0, "nobody gave way");
    // All it held is free or kept.
    assert_eq!(figures.cells_available, figures.cells);
}

#[test]
fn several_answers_and_one_who_leaves() {
    let model = model();
    let prompt = prompts(&model).swap_remove(0);
    let engine = engine(&model, 4, model.context_length);
    let (gone, events) = request(prompt.clone(), "", 2);
    drop(events);
    engine.submit(gone).unwrap();
    let (first, events) = request(prompt.clone(), "", 3);
    engine.submit(first).unwrap();
    let (texts, _) = collect(events, 3);
    assert!(
        texts.iter().all(|text| *text == texts[0]),
        "greedy answers are alike: {texts:?}"
    );
    let (again, events) = request(prompt.clone(), "", 1);
    engine.submit(again).unwrap();
    let (text, cached) = collect(events, 1);
    assert_eq!(text.concat(), texts[0]);
    assert!(cached > 0 && cached < prompt.len());
    let (stranger, events) = request(prompt, "stranger", 1);
    engine.submit(stranger).unwrap();
    assert_eq!(collect(events, 1).1, 0, "tenants share nothing");
}

#[test]
fn guesses_change_no_answer() {
    let model = model();
    let repeated = "The quick brown fox jumps over the lazy dog and runs into the forest. ".repeat(4);
    let mut prompts = prompts(&model);
    prompts.push(model.tokens(&repeated, true, false).unwrap());
    let ask = |engine: &Engine, prompt: &[Token], temperature: f32, predicted: &[Token]| {
        let (mut request, events) = request(prompt.to_vec(), "", 2);
        request.sampling.temperature = temperature;
        request.seed = 3;
        request.predicted = predicted.to_vec();
        engine.submit(request).unwrap();
        collect(events, 2).0
    };
    let plain = engine(&model, 2, model.context_length);
    let guesses = guessing(&model, 2, model.context_length, 8);
    for prompt in &prompts {
        // Draws at a temperature stay the same as well, but rounding differs with the size of a step, and one draw of some
        // hundred lies on the edge between two tokens: so small models are asked for what they are sure of.
        for temperature in [0.0, 0.2] {
            let expected = ask(&plain, prompt, temperature, &[]);
            let guessed = ask(&guesses, prompt, temperature, &prompts[0]);
            assert_eq!(guessed, expected, "at {temperature}");
        }
    }
    // What a guess costs is measured. In a bad moment that is too much, and none is made until it is forgotten.
    for _ in 0..PATIENCE {
        if guesses.figures().right_tokens > 0 {
            break;
        }
        for engine in [&plain, &guesses] {
            ask(engine, &prompts[PROMPTS], 0.0, &[]);
        }
    }
    guesses.stop();
    while !guesses.ended() {
        std::thread::yield_now();
    }
    let (plain, guesses) = (plain.figures(), guesses.figures());
    assert!(guesses.right_tokens > 0 && guesses.right_tokens <= guesses.guessed_tokens);
    assert!(
        guesses.steps < plain.steps,
        "{} steps, {} without",
        guesses.steps,
        plain.steps
    );
    assert_eq!(guesses.generated_tokens, plain.generated_tokens);
    assert_eq!(guesses.cells_available, guesses.cells);
}

/// Tokens and texts of the one answer to a request.
fn written(mut receiver: UnboundedReceiver<Event>) -> (Vec<Token>, String, End) {
    let (mut tokens, mut all) = (Vec::new(), String::new());
    loop {
        match receiver.blocking_recv().expect("the engine answers") {
            Event::Read { .. } => {}
            Event::Token { token, text, .. } => {
                tokens.push(token);
                all.push_str(&text);
            }
            Event::Ended { why, .. } => return (tokens, all, why),
            Event::Failed(failure) => panic!("{failure:?}"),
        }
    }
}

#[test]
fn an_answer_goes_on_in_another_engine_wherever_it_broke_off() {
    let model = model();
    let prompt = prompts(&model).swap_remove(0);
    let ask = |seed| {
        let (mut request, events) = request(prompt.clone(), "", 1);
        // Draws, penalties and a stop sequence all have a state that has to come along.
        request.sampling.temperature = 0.05;
        request.sampling.frequency_penalty = 0.01;
        request.stops = vec!["29,".into()];
        request.tokens_max = 2 * ANSWER;
        request.seed = seed;
        (request, events)
    };
    let first = engine(&model, 2, model.context_length);
    let (request, events) = ask(7);
    first.submit(request).unwrap();
    let (tokens, text, why) = written(events);
    assert_eq!(why, End::Sequence(0));
    assert!(text.contains("25, 26") && !text.contains("29"), "{text}");
    let second = engine(&model, 2, model.context_length);
    for at in 0..=tokens.len() {
        let (mut request, events) = ask(7);
        let (resumed, texts) = crate::writing::replay(&model, &mut request, tokens[..at].to_vec()).unwrap();
        request.resumed = Some(Box::new(resumed));
        second.submit(request).unwrap();
        let (more, rest, ended) = written(events);
        assert_eq!(
            (&tokens[..at], more.as_slice(), ended),
            (&tokens[..at], &tokens[at..], why),
            "broken off after {at}"
        );
        assert_eq!(texts.concat() + &rest, text, "broken off after {at}");
    }
    let (mut other, _events) = ask(7);
    let beyond: Vec<Token> = tokens.iter().copied().chain([5]).collect();
    assert!(
        crate::writing::replay(&model, &mut other, beyond).is_err(),
        "it had ended"
    );
    assert!(
        crate::writing::replay(&model, &mut other, vec![-1]).is_err(),
        "no such token"
    );
}
