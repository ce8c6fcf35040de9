//! A draft with real weights: what it guesses changes no answer, and what cannot guess is refused.

use std::io::{Read, Seek, SeekFrom, Write};

use super::*;

/// The model as its own draft: it guesses as well as can be.
fn own(model: &Model) -> Arc<Draft> {
    Arc::new(Draft::load(model, &weights()).unwrap())
}

fn drafted(model: &Arc<Model>, draft: &Arc<Draft>, parallel: usize) -> Engine {
    let setup = Setup {
        parallel,
        threads: 1,
        cells: 2 * model.context_length,
        guess: 8,
    };
    Engine::start(model.clone(), Some(draft.clone()), setup, None, 64).unwrap()
}

fn stopped(engine: &Engine) -> Figures {
    engine.stop();
    while !engine.ended() {
        std::thread::yield_now();
    }
    engine.figures()
}

#[test]
fn a_drafts_guesses_change_no_answer() {
    let model = model();
    let prompts = prompts(&model);
    let ask = |engine: &Engine, temperature: f32, answers: usize| -> Vec<Vec<String>> {
        let asked: Vec<_> = prompts
            .iter()
            .map(|prompt| {
                let (mut request, events) = request(prompt.clone(), "", answers);
                request.sampling.temperature = temperature;
                request.seed = 3;
                engine.submit(request).unwrap();
                events
            })
            .collect();
        asked
            .into_iter()
            .map(|events| collect(events, answers).0)
            .collect()
    };
    let plain = engine(&model, 4, 2 * model.context_length);
    let guesses = drafted(&model, &own(&model), 4);
    // Alone: what is guessed is tried at first, whatever it takes.
    let [expected, got] = [&plain, &guesses].map(|engine| {
        let (request, events) = request(prompts[0].clone(), "", 1);
        engine.submit(request).unwrap();
        (collect(events, 1).0, engine.figures().steps)
    });
    assert_eq!(got.0, expected.0);
    assert!(got.1 < expected.1, "{} steps, {} without", got.1, expected.1);
    for (temperature, answers) in [(0.0, 1), (0.2, 1), (0.0, 2)] {
        assert_eq!(
            ask(&guesses, temperature, answers),
            ask(&plain, temperature, answers),
            "at {temperature}, {answers} each"
        );
    }
    let (plain, guesses) = (stopped(&plain), stopped(&guesses));
    assert!(guesses.drafted_tokens > 0, "nothing was guessed");
    let (right, all) = (guesses.drafted_right_tokens, guesses.drafted_tokens);
    assert!(
        10 * right >= 9 * all,
        "{right} of {all}: it says what it says itself"
    );
    assert!(guesses.draft_seconds > 0.0);
    assert_eq!(guesses.generated_tokens, plain.generated_tokens);
    assert_eq!(guesses.cells_available, guesses.cells);
}

/// A copy of the weights that `change` was made to; gone at the end.
fn changed(change: impl FnOnce(&mut std::fs::File)) -> tempfile::NamedTempFile {
    let copy = tempfile::NamedTempFile::new().unwrap();
    std::fs::copy(weights(), copy.path()).unwrap();
    let mut permissions = copy.as_file().metadata().unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o600);
    std::fs::set_permissions(copy.path(), permissions).unwrap();
    let mut file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(copy.path())
        .unwrap();
    change(&mut file);
    copy
}

#[test]
fn a_draft_that_is_wrong_is_not_asked_for_long() {
    /// Answers to each prompt.
    const TIMES: usize = 3;
    let model = model();
    let prompts = prompts(&model);
    // Without the latter half of its weights it talks nonsense.
    let nonsense = changed(|file| {
        let length = file.metadata().unwrap().len();
        file.set_len(length / 2).unwrap();
        file.set_len(length).unwrap();
    });
    let nonsense = Arc::new(Draft::load(&model, nonsense.path()).unwrap());
    let guesses = drafted(&model, &nonsense, 1);
    let plain = engine(&model, 1, model.context_length);
    let ask = |engine: &Engine, prompt: &[Token]| {
        let (request, events) = request(prompt.to_vec(), "", 1);
        engine.submit(request).unwrap();
        collect(events, 1).0
    };
    for prompt in &prompts {
        let expected = ask(&plain, prompt);
        for _ in 0..TIMES {
            assert_eq!(ask(&guesses, prompt), expected);
        }
    }
    let figures = stopped(&guesses);
    assert!(figures.draft_seconds > 0.0, "it is tried");
    assert!(
        figures.drafted_right_tokens * 4 <= figures.drafted_tokens,
        "{} of {}",
        figures.drafted_right_tokens,
        figures.drafted_tokens
    );
    assert!(
        figures.steps > 3 * figures.drafted_tokens / 2,
        "{} guesses in {} steps",
        figures.drafted_tokens,
        figures.steps
    );
    assert_eq!(figures.cells_available, figures.cells);
}

#[test]
fn what_cannot_guess_for_a_model_is_refused() {
    let model = model();
    let why = |path: &std::path::Path| match Draft::load(&model, path) {
        Err(problem) => (problem.exit_code(), problem.to_string()),
        Ok(_) => panic!("it was taken"),
    };
    let other = changed(|file| {
        let mut head = vec![0; 1 << 20];
        file.read_exact(&mut head).unwrap();
        let word = "Ġthe".as_bytes();
        let prefixed: Vec<u8> = (word.len() as u64)
            .to_le_bytes()
            .iter()
            .chain(word)
            .copied()
            .collect();
        let at = head
            .windows(prefixed.len())
            .position(|window| window == prefixed)
            .unwrap();
        let last = (at + prefixed.len() - 1) as u64;
        file.seek(SeekFrom::Start(last)).unwrap();
        file.write_all(b"~").unwrap();
    });
    let (code, why_other) = why(other.path());
    assert_eq!(code, 4);
    assert!(
        why_other.contains("its vocabulary is another: token "),
        "{why_other}"
    );
    assert!(
        why_other.contains("`Ġth~`, and the model's is `Ġthe`"),
        "{why_other}"
    );
    let text = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(text.path(), "no model").unwrap();
    assert_eq!(why(text.path()).0, 4);
    assert_eq!(why(std::path::Path::new("/nowhere")).0, 3);
}
