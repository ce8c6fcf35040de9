//! What was computed by one engine is found by the next, and changes no answer.

use std::path::Path;

use super::*;

fn keeping(model: &Arc<Model>, cells: usize, path: &Path) -> Engine {
    let setup = Setup {
        parallel: 2,
        threads: 1,
        cells,
        guess: 0,
    };
    let keep = Keep {
        path: path.to_owned(),
        bytes_max: 1 << 30,
    };
    Engine::start(model.clone(), None, setup, Some(keep), 64).unwrap()
}

fn ask(engine: &Engine, prompt: &[Token], tenant: &str) -> (String, usize) {
    let (request, events) = request(prompt.to_vec(), tenant, 1);
    engine.submit(request).unwrap();
    let (texts, cached) = collect(events, 1);
    (texts.concat(), cached)
}

fn end(engine: &Engine) -> Figures {
    engine.stop();
    while !engine.ended() {
        std::thread::yield_now();
    }
    engine.figures()
}

/// What a first engine answers, which keeps at its end what it computed.
fn answered(model: &Arc<Model>, prompts: &[Vec<Token>], path: &Path) -> Vec<String> {
    let engine = keeping(model, 1024, path);
    let answers = prompts.iter().map(|prompt| ask(&engine, prompt, "a").0).collect();
    end(&engine);
    answers
}

#[test]
fn the_next_start_takes_up_what_was_computed() {
    let model = model();
    let prompts = prompts(&model);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kept");
    let answers = answered(&model, &prompts, &path);

    let second = keeping(&model, 1024, &path);
    let (_, cached) = ask(&second, &prompts[0], "b");
    assert_eq!(cached, 0, "of another tenant");
    for (prompt, answer) in prompts.iter().zip(&answers).take(2) {
        let (text, cached) = ask(&second, prompt, "a");
        assert_eq!(&text, answer);
        assert!(cached > prompt.len() / 2, "{cached} of {}", prompt.len());
    }
    let figures = end(&second);
    assert!(figures.recalled_tokens > 0);
    assert_eq!(figures.cells_available, figures.cells, "all is free or kept");

    // What the second did not need is there for the third.
    let third = keeping(&model, 1024, &path);
    for (prompt, answer) in prompts.iter().zip(&answers) {
        let (text, cached) = ask(&third, prompt, "a");
        assert_eq!(&text, answer);
        assert!(cached > prompt.len() / 2, "{cached} of {}", prompt.len());
    }
}

#[test]
fn what_is_damaged_is_computed_anew() {
    let model = model();
    let prompt = prompts(&model).swap_remove(0);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kept");
    let answer = answered(&model, std::slice::from_ref(&prompt), &path).remove(0);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[1000] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let second = keeping(&model, 1024, &path);
    assert_eq!(ask(&second, &prompt, "a"), (answer, 0));
    assert_eq!(end(&second).recalled_tokens, 0);
}

#[test]
fn what_runs_is_not_disturbed() {
    let model = model();
    let prompts = prompts(&model);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kept");
    let answers = answered(&model, &prompts, &path);
    // Room for little more than one of them: they take turns, and each is as it was.
    let longest = prompts.iter().map(Vec::len).max().unwrap();
    let narrow = keeping(&model, longest + 2 * ANSWER, &path);
    let events: Vec<_> = (0..6)
        .map(|at| {
            let (request, events) = request(prompts[at % PROMPTS].clone(), "a", 1);
            narrow.submit(request).unwrap();
            events
        })
        .collect();
    for (at, events) in events.into_iter().enumerate() {
        assert_eq!(
            collect(events, 1).0.concat(),
            answers[at % PROMPTS],
            "request {at}"
        );
    }
    let figures = end(&narrow);
    assert_eq!(figures.cells_available, figures.cells);
}
