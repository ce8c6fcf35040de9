//! Laws of sampling.

use proptest::prelude::*;

use super::*;

fn sampler(settings: Settings, seed: u64) -> Sampler {
    Sampler::new(settings, seed, None, &[])
}

fn draws(settings: Settings, logits: &[f32], count: u64) -> Vec<Token> {
    let mut sampler = sampler(settings, 7);
    (0..count).map(|_| sampler.choose(logits, None).token).collect()
}

#[test]
fn no_temperature_takes_the_first_of_the_likeliest() {
    let greedy = Settings {
        temperature: 0.0,
        ..Settings::default()
    };
    assert_eq!(draws(greedy, &[0.0, 3.0, 3.0, -1.0], 3), [1, 1, 1]);
}

#[test]
fn draws_come_as_often_as_they_are_likely() {
    let logits = [0.0, 2.0_f32.ln(), 5.0_f32.ln(), f32::NEG_INFINITY];
    let count = 8000;
    let drawn = draws(Settings::default(), &logits, count);
    for (token, share) in [(0, 0.125), (1, 0.25), (2, 0.625), (3, 0.0)] {
        let times = drawn.iter().filter(|drawn| **drawn == token).count() as f64;
        assert!(
            (times / count as f64 - share).abs() < 0.02,
            "token {token}: {times} times"
        );
    }
}

#[test]
fn the_cuts_leave_the_likeliest() {
    let logits = [1.0, 4.0, 3.0, 0.0];
    let only = |settings: Settings| {
        let mut drawn = draws(settings, &logits, 400);
        drawn.sort_unstable();
        drawn.dedup();
        drawn
    };
    let base = Settings {
        temperature: 2.0,
        ..Settings::default()
    };
    assert_eq!(only(base.clone()), [0, 1, 2, 3]);
    assert_eq!(
        only(Settings {
            top_k: 2,
            ..base.clone()
        }),
        [1, 2]
    );
    assert_eq!(
        only(Settings {
            top_p: 0.3,
            ..base.clone()
        }),
        [1]
    );
    assert_eq!(
        only(Settings {
            top_p: 0.0,
            ..base.clone()
        }),
        [1]
    );
    assert_eq!(only(Settings { min_p: 0.5, ..base }), [1, 2]);
}

#[test]
fn penalties_and_biases_move_the_choice() {
    let greedy = Settings {
        temperature: 0.0,
        ..Settings::default()
    };
    let presence = Settings {
        presence_penalty: 1.5,
        ..greedy.clone()
    };
    assert_eq!(draws(presence, &[0.0, 2.0, 1.0], 3), [1, 2, 1]);
    let forced = Settings {
        bias: vec![(0, 100.0), (900, 1.0)],
        ..greedy.clone()
    };
    assert_eq!(draws(forced, &[0.0, 2.0, 1.0], 1), [0]);
    let mut repeats = Sampler::new(
        Settings {
            repetition_penalty: 4.0,
            ..greedy
        },
        0,
        None,
        &[1],
    );
    assert_eq!(
        repeats.choose(&[0.0, 2.0, 1.0], None).token,
        2,
        "the prompt has token 1"
    );
}

#[test]
fn log_probabilities_are_the_model_s_own() {
    let mut sampler = Sampler::new(Settings::default(), 1, Some(2), &[]);
    let choice = sampler.choose(&[0.0, 3.0_f32.ln(), 4.0_f32.ln()], Some(&|token| token == 0));
    assert_eq!(choice.token, 0, "the grammar leaves nothing else");
    assert!((choice.log_probability.unwrap() - 0.125_f32.ln()).abs() < 1e-5);
    let top: Vec<Token> = choice.top.iter().map(|likely| likely.token).collect();
    assert_eq!(top, [2, 1]);
}

proptest! {
    #[test]
    fn the_same_seed_gives_the_same_and_only_what_is_there(
        logits in prop::collection::vec(prop_oneof![20 => -30f32..30.0, 1 => Just(f32::NEG_INFINITY), 1 => Just(f32::NAN)], 1..60),
        seed: u64,
        temperature in 0f32..2.0,
        top_p in 0f32..1.0,
        top_k in 0usize..5,
    ) {
        let settings = Settings { temperature, top_p, top_k, ..Settings::default() };
        let choose = || {
            let mut sampler = Sampler::new(settings.clone(), seed, Some(3), &[]);
            (0..4).map(|_| sampler.choose(&logits, None).token).collect::<Vec<_>>()
        };
        let first = choose();
        prop_assert_eq!(&first, &choose());
        for token in first {
            prop_assert!(usize::try_from(token).unwrap() < logits.len());
        }
    }
}

#[test]
fn the_first_of_the_greatest_is_found_wherever_it_is() {
    for length in [1_usize, 31, 32, 33, 100] {
        for at in 0..length {
            let mut logits = vec![1.0; length];
            logits[at] = 2.0;
            assert_eq!(usize::try_from(greatest(&logits)), Ok(at), "of {length}");
            // A later one that is as great does not count.
            logits[length - 1] = 2.0;
            assert_eq!(usize::try_from(greatest(&logits)), Ok(at), "of {length}");
        }
    }
    assert_eq!(greatest(&[]), 0);
    assert_eq!(greatest(&[f32::NAN, f32::NEG_INFINITY]), 1);
    assert_eq!(greatest(&[f32::NAN, 1.0, f32::NAN]), 1);
    assert_eq!(greatest(&[f32::NAN; 40]), 0);
}
