//! Guesses of what an answer says next, taken from what it has said or read before.
//!
//! Answers that repeat their prompt (a corrected program, a summary with quotations, JSON) are copied a stretch at a time:
//! the tokens that followed when the last few came before are computed together with the next one, in one step, and kept
//! as far as the answer really has them. Each is chosen as ever, from the model's own logits and with the same draws, so a
//! guess changes how soon a token comes and never which. (The method is known as prompt lookup decoding, by A. Saxena,
//! 2023.)
//!
//! Pure. The one choice to know: a guess is made where it pays. How much is guessed follows how often guesses were right
//! (`heard`), and none is made while fewer are right than the [`Price`] of one, which is measured: on a machine whose
//! memory is slow it is a tenth of a step, on one whose arithmetic is slow it is a whole one.

use crate::cache::Token;

/// Tokens that must be the same before a guess is worth its cost. With fewer, most guesses are wrong.
const MATCH_MIN: usize = 3;
/// Tokens that are compared: who agrees in so many agrees.
const MATCH_MAX: usize = 12;
/// The first guess of an answer.
const FIRST: usize = 2;
/// Steps without a guess after one of which nothing was right; twice as many after the next.
const REST: usize = 8;
/// The longest rest: texts change, and what did not repeat may begin to.
const REST_MAX: usize = 128;

/// Weight of the newest guess in the share of those that were right: about the last four count.
const NEWEST_GUESS: f64 = 0.25;
/// Weight of the newest step in what steps take: about the last ten count.
const NEWEST_STEP: f64 = 0.1;
/// What is left of the price after a step without a guess: one that was measured in a bad moment is tried again after a few
/// hundred.
const FORGET: f64 = 0.995;

/// What a guessed token costs in time, as it was measured of late.
#[derive(Debug, Clone, Default)]
pub(super) struct Price {
    /// Seconds of a step without guesses, by how many answers decode in it.
    plain: Vec<Option<f64>>,
    /// Seconds more for each guessed token.
    more: Option<f64>,
}

impl Price {
    /// A step took so many seconds, in which so many answers decoded and so many tokens were guessed.
    pub(super) fn stepped(&mut self, decoding: usize, guessed: usize, seconds: f64) {
        if self.plain.len() <= decoding {
            self.plain.resize(decoding + 1, None);
        }
        let lately = |before: Option<f64>, now: f64| {
            before.map_or(now, |before| before + NEWEST_STEP * (now - before))
        };
        if guessed == 0 {
            self.plain[decoding] = Some(lately(self.plain[decoding], seconds));
            self.more = self.more.map(|more| more * FORGET);
        } else if let Some(plain) = self.plain[decoding] {
            #[expect(clippy::cast_precision_loss, reason = "tokens of one step")]
            let more = ((seconds - plain) / guessed as f64).max(0.0);
            self.more = Some(lately(self.more, more));
        }
    }

    /// Of a guessed token, in steps of so many answers. Nothing as long as it was not measured.
    pub(super) fn of(&self, decoding: usize) -> f64 {
        match (self.more, self.plain.get(decoding).copied().flatten()) {
            (Some(more), Some(plain)) if plain > 0.0 => more / plain,
            _ => 0.0,
        }
    }
}

/// The guesses of one answer.
#[derive(Debug, Clone)]
pub(super) struct Drafter {
    /// Tokens of a guess, at most; none are made when it is 0.
    most: usize,
    /// Tokens of the next guess.
    length: usize,
    /// Steps until the next guess.
    wait: usize,
    /// The next rest.
    rest: usize,
    /// The share of guessed tokens that were right.
    right: f64,
}

impl Drafter {
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            length: FIRST.min(most),
            wait: 0,
            rest: REST,
            right: 1.0,
        }
    }

    /// What may follow `tokens`, at most `room` of it, where a guessed token costs so many steps. `predicted` is what the
    /// client thinks the answer will be.
    pub(super) fn draft(
        &mut self,
        tokens: &[Token],
        predicted: &[Token],
        room: usize,
        price: f64,
    ) -> Vec<Token> {
        let length = self.length.min(room);
        if length == 0 {
            return Vec::new();
        }
        if self.wait > 0 {
            self.wait -= 1;
            return Vec::new();
        }
        if self.right <= price {
            self.pause();
            // Then it is tried once more.
            self.right = 1.0;
            return Vec::new();
        }
        let within = followed(tokens, tokens);
        let foretold = followed(predicted, tokens);
        let (source, found) = match (within, foretold) {
            (Some(within), Some(foretold)) if foretold.matched >= within.matched => (predicted, foretold),
            (Some(within), _) => (tokens, within),
            (None, Some(foretold)) => (predicted, foretold),
            (None, None) => return Vec::new(),
        };
        source[found.at..].iter().take(length).copied().collect()
    }

    /// A guess of `drafted` tokens was right in its first `accepted`.
    pub(super) fn heard(&mut self, drafted: usize, accepted: usize) {
        #[expect(clippy::cast_precision_loss, reason = "tokens of one guess")]
        let share = accepted as f64 / drafted.max(1) as f64;
        self.right += NEWEST_GUESS * (share - self.right);
        if accepted == drafted {
            self.length = (self.length * 2).clamp(1, self.most);
            self.rest = REST;
        } else if accepted > 0 {
            self.length = accepted;
            self.rest = REST;
        } else {
            self.length = FIRST.min(self.most);
            self.pause();
        }
    }

    fn pause(&mut self) {
        self.wait = self.rest;
        self.rest = (self.rest * 2).min(REST_MAX);
    }
}

/// Where in a text the end of another came before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Found {
    /// What came next.
    at: usize,
    /// Tokens that are the same.
    matched: usize,
}

/// Where `text` has the longest end of `tokens`, the latest of several; something has to follow.
fn followed(text: &[Token], tokens: &[Token]) -> Option<Found> {
    let last = tokens.last()?;
    let mut best: Option<Found> = None;
    // The end of a text is no match of itself: nothing follows.
    for at in (1..text.len()).rev() {
        if text[at - 1] != *last {
            continue;
        }
        let same = text[..at].iter().rev().zip(tokens.iter().rev());
        let matched = same.take(MATCH_MAX).take_while(|(a, b)| a == b).count();
        if matched >= MATCH_MIN && best.is_none_or(|best| matched > best.matched) {
            best = Some(Found { at, matched });
            if matched == MATCH_MAX {
                break;
            }
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_followed_before_is_guessed() {
        let tokens = [1, 2, 3, 4, 5, 6, 9, 1, 2, 3];
        let mut drafter = Drafter::new(8);
        assert_eq!(drafter.draft(&tokens, &[], 8, 0.0), [4, 5]);
        drafter.heard(2, 2);
        assert_eq!(drafter.draft(&tokens, &[], 8, 0.0), [4, 5, 6, 9]);
        assert_eq!(
            drafter.draft(&tokens, &[], 1, 0.0),
            [4],
            "no more than there is room for"
        );
        drafter.heard(4, 3);
        assert_eq!(drafter.draft(&tokens, &[], 8, 0.0).len(), 3);
        assert!(Drafter::new(8).draft(&[1, 2, 3, 4, 5], &[], 8, 0.0).is_empty());
        assert!(Drafter::new(0).draft(&tokens, &[], 8, 0.0).is_empty());
    }

    #[test]
    fn a_foretold_answer_counts_when_it_fits_as_well() {
        let tokens = [7, 8, 9, 1, 2, 3];
        let predicted = [1, 2, 3, 4, 5];
        assert_eq!(Drafter::new(8).draft(&tokens, &predicted, 8, 0.0), [4, 5]);
        let tokens = [0, 1, 2, 3, 6, 0, 1, 2, 3];
        assert_eq!(
            Drafter::new(8).draft(&tokens, &predicted, 8, 0.0),
            [6, 0],
            "more agrees"
        );
    }

    #[test]
    fn wrong_guesses_become_rare() {
        let tokens = [1, 2, 3, 4, 1, 2, 3];
        let mut drafter = Drafter::new(8);
        let mut guesses = 0;
        for _ in 0..1000 {
            if !drafter.draft(&tokens, &[], 8, 0.0).is_empty() {
                guesses += 1;
                drafter.heard(2, 0);
            }
        }
        assert!((8..16).contains(&guesses), "{guesses}");
    }

    #[test]
    fn a_guess_is_made_where_it_pays() {
        let tokens = [1, 2, 3, 4, 5, 1, 2, 3];
        let mut price = Price::default();
        assert_eq!(price.of(1), 0.0, "nobody knows yet: it is tried");
        price.stepped(1, 0, 0.010);
        price.stepped(1, 2, 0.031);
        assert!((price.of(1) - 1.05).abs() < 1e-9, "{}", price.of(1));
        let mut drafter = Drafter::new(8);
        assert!(
            drafter.draft(&tokens, &[], 8, price.of(1)).is_empty(),
            "as dear as a step"
        );
        let tries = (0..1000).filter(|_| {
            price.stepped(1, 0, 0.010);
            !drafter.draft(&tokens, &[], 8, price.of(1)).is_empty()
        });
        assert!(tries.count() > 0, "it is tried again");
        // Half of them right, at a third of a step each.
        let mut drafter = Drafter::new(8);
        let tries = (0..100).filter(|_| {
            let guess = drafter.draft(&tokens, &[], 8, 0.33).len();
            drafter.heard(guess, guess.div_ceil(2));
            guess > 0
        });
        assert!(tries.count() > 90);
    }

    proptest! {
        #[test]
        fn a_guess_is_a_stretch_of_the_text_after_the_same_tokens(
            tokens in prop::collection::vec(0..4, 0..64),
            room in 0usize..10,
        ) {
            let guess = Drafter::new(16).draft(&tokens, &[], room, 0.0);
            prop_assert!(guess.len() <= room);
            if !guess.is_empty() {
                let end = &tokens[tokens.len() - MATCH_MIN..];
                let whole: Vec<Token> = end.iter().chain(&guess).copied().collect();
                prop_assert!(tokens.windows(whole.len()).any(|window| window == whole));
            }
        }
    }
}
