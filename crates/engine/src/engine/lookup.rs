//! Guesses of what an answer says next, taken from what it has said or read before.
//!
//! Answers that repeat their prompt (a corrected program, a summary with quotations, JSON) are copied a stretch at a time:
//! the tokens that followed when the last few came before are computed together with the next one, in one step, and kept
//! as far as the answer really has them. Each is chosen as ever, from the model's own logits and with the same draws, so a
//! guess changes how soon a token comes and never which. (The method is known as prompt lookup decoding, by A. Saxena,
//! 2023.)
//!
//! Pure. The one choice to know: a guess is made where it pays, token by token: where it is likelier to be right than its
//! [`Price`] says it must be. Both are measured. A guessed token costs a tenth of a step on a machine whose memory is slow, and
//! nearly a whole one where arithmetic is slow. How likely it is to be right depends on the answer, and on how much of the
//! text before it is the same ([`Trust`]): three tokens that came before are chance more often than not, twelve are a copy.

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

/// Weight of the newest guess in what one costs: about the last four count.
const NEWEST_GUESS: f64 = 0.25;
/// Weight of the newest guessed token in the share of an answer's that were right: about the last twelve count.
const NEWEST_TOKEN: f64 = 0.08;
/// Weight of the newest step in what steps take: about the last ten count.
const NEWEST_STEP: f64 = 0.1;
/// What is left of the price after a step without a guess: one that was measured in a bad moment is tried again after some
/// hundreds.
const FORGET: f64 = 0.999;

/// The same in what guesses are worth after so many tokens that are the same: of all answers, so more count.
const NEWEST_TRUST: f64 = 0.1;
/// How much of the doubt in such guesses is left after a step without any: what did not repeat in one answer may in another,
/// so one is tried again after some hundreds.
const DOUBT: f64 = 0.999;

/// How likely a guessed token was to be right of late, in the answers of one engine, by how many tokens before it were the
/// same.
#[derive(Debug, Clone)]
pub(super) struct Trust([f64; MATCH_MAX + 1]);

impl Default for Trust {
    /// Nobody knows yet: it is tried.
    fn default() -> Self {
        Self([1.0; MATCH_MAX + 1])
    }
}

impl Trust {
    /// A step was made without a guess.
    pub(super) fn rested(&mut self) {
        for share in &mut self.0 {
            *share = 1.0 - DOUBT * (1.0 - *share);
        }
    }

    /// Of a guess after so many tokens that were the same.
    fn heard(&mut self, matched: usize, drafted: usize, accepted: usize) {
        if let Some(share) = self.0.get_mut(matched) {
            *share = heard(*share, NEWEST_TRUST, drafted, accepted);
        }
    }

    fn after(&self, matched: usize) -> f64 {
        self.0.get(matched).copied().unwrap_or_default()
    }
}

/// The share of guessed tokens that were right, after a guess of which the first `accepted` were. Each of them counts, and
/// the one after them that was not; what was guessed behind that says nothing.
fn heard(share: f64, newest: f64, drafted: usize, accepted: usize) -> f64 {
    let right = (0..accepted).fold(share, |share, _| share + newest * (1.0 - share));
    if accepted < drafted {
        right * (1.0 - newest)
    } else {
        right
    }
}

/// Tokens of a guess that are each likelier to be right than they cost, at most `length`. The second is right where the first
/// was, and so on.
fn worth(right: f64, price: f64, length: usize) -> usize {
    std::iter::successors(Some(right), |likely| Some(likely * right))
        .take(length)
        .take_while(|likely| *likely > price)
        .count()
}

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
        let lately = |before: Option<f64>, now: f64, weight: f64| {
            before.map_or(now, |before| before + weight * (now - before))
        };
        if guessed == 0 {
            self.plain[decoding] = Some(lately(self.plain[decoding], seconds, NEWEST_STEP));
            self.more = self.more.map(|more| more * FORGET);
        } else if let Some(plain) = self.plain[decoding] {
            #[expect(clippy::cast_precision_loss, reason = "tokens of one step")]
            let more = ((seconds - plain) / guessed as f64).max(0.0);
            self.more = Some(lately(self.more, more, NEWEST_GUESS));
        }
    }

    /// Seconds that a token takes in steps of so many answers without guesses; nothing before that was measured.
    pub(super) fn token(&self, decoding: usize) -> Option<f64> {
        #[expect(clippy::cast_precision_loss, reason = "answers of one step")]
        let answers = decoding.max(1) as f64;
        let plain = self.plain.get(decoding).copied().flatten();
        plain.filter(|plain| *plain > 0.0).map(|plain| plain / answers)
    }

    /// Of a guessed token in steps of so many answers: the share of guesses that must be right for all answers together to
    /// come as soon as without any. One that is right saves what a token takes, which is a part of a step where several
    /// decode. Nothing as long as it was not measured.
    pub(super) fn of(&self, decoding: usize) -> f64 {
        match (self.more, self.token(decoding)) {
            (Some(more), Some(token)) => more / token,
            _ => 0.0,
        }
    }
}

/// The guesses of one answer.
#[derive(Debug, Clone)]
pub(super) struct Lookup {
    /// Tokens of a guess, at most; none are made when it is 0.
    most: usize,
    /// Tokens of the next guess.
    length: usize,
    /// Steps until the next guess.
    wait: usize,
    /// The next rest.
    rest: usize,
    /// The share of this answer's guessed tokens that were right; nothing before the first.
    right: Option<f64>,
    /// Tokens that were the same before the last guess.
    matched: usize,
}

impl Lookup {
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            length: FIRST.min(most),
            wait: 0,
            rest: REST,
            right: None,
            matched: 0,
        }
    }

    /// What may follow `tokens`, at most `room` of it, where a guessed token costs so many steps and guesses are trusted so
    /// far. `predicted` is what the client thinks the answer will be.
    pub(super) fn guess(
        &mut self,
        tokens: &[Token],
        predicted: &[Token],
        room: usize,
        price: f64,
        trust: &Trust,
    ) -> Vec<Token> {
        let length = self.length.min(room);
        if length == 0 {
            return Vec::new();
        }
        if self.wait > 0 {
            self.wait -= 1;
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
        self.matched = found.matched;
        let length = worth(self.likely(trust), price, length);
        if length == 0 {
            // What this answer was like is forgotten in the end.
            self.right = self.right.map(|own| 1.0 - DOUBT * (1.0 - own));
        }
        source[found.at..].iter().take(length).copied().collect()
    }

    /// How likely the first token of the guess is right that [`Lookup::guess`] has just made.
    pub(super) fn likely(&self, trust: &Trust) -> f64 {
        let usual = trust.after(self.matched);
        self.right.map_or(usual, |own| f64::midpoint(own, usual))
    }

    /// A guess of `drafted` tokens was right in its first `accepted`.
    pub(super) fn heard(&mut self, drafted: usize, accepted: usize, trust: &mut Trust) {
        let own = self.right.unwrap_or_else(|| trust.after(self.matched));
        self.right = Some(heard(own, NEWEST_TOKEN, drafted, accepted));
        trust.heard(self.matched, drafted, accepted);
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
        let mut trust = Trust::default();
        let tokens = [1, 2, 3, 4, 5, 6, 9, 1, 2, 3];
        let mut lookup = Lookup::new(8);
        assert_eq!(lookup.guess(&tokens, &[], 8, 0.0, &trust), [4, 5]);
        lookup.heard(2, 2, &mut trust);
        assert_eq!(lookup.guess(&tokens, &[], 8, 0.0, &trust), [4, 5, 6, 9]);
        assert_eq!(
            lookup.guess(&tokens, &[], 1, 0.0, &trust),
            [4],
            "no more than there is room for"
        );
        lookup.heard(4, 3, &mut trust);
        assert_eq!(lookup.guess(&tokens, &[], 8, 0.0, &trust).len(), 3);
        assert!(
            Lookup::new(8)
                .guess(&[1, 2, 3, 4, 5], &[], 8, 0.0, &trust)
                .is_empty()
        );
        assert!(Lookup::new(0).guess(&tokens, &[], 8, 0.0, &trust).is_empty());
    }

    #[test]
    fn a_foretold_answer_counts_when_it_fits_as_well() {
        let trust = Trust::default();
        let tokens = [7, 8, 9, 1, 2, 3];
        let predicted = [1, 2, 3, 4, 5];
        assert_eq!(Lookup::new(8).guess(&tokens, &predicted, 8, 0.0, &trust), [4, 5]);
        let tokens = [0, 1, 2, 3, 6, 0, 1, 2, 3];
        assert_eq!(
            Lookup::new(8).guess(&tokens, &predicted, 8, 0.0, &trust),
            [6, 0],
            "more agrees"
        );
    }

    #[test]
    fn wrong_guesses_become_rare() {
        let mut trust = Trust::default();
        let tokens = [1, 2, 3, 4, 1, 2, 3];
        let mut lookup = Lookup::new(8);
        let mut guesses = 0;
        for _ in 0..1000 {
            if !lookup.guess(&tokens, &[], 8, 0.0, &trust).is_empty() {
                guesses += 1;
                lookup.heard(2, 0, &mut trust);
            }
        }
        assert!((8..16).contains(&guesses), "{guesses}");
    }

    #[test]
    fn a_guess_is_made_where_it_pays() {
        let mut trust = Trust::default();
        let tokens = [1, 2, 3, 4, 5, 1, 2, 3];
        let mut price = Price::default();
        assert_eq!(price.of(1), 0.0, "nobody knows yet: it is tried");
        price.stepped(1, 0, 0.010);
        price.stepped(1, 2, 0.031);
        assert!((price.of(1) - 1.05).abs() < 1e-9, "{}", price.of(1));
        price.stepped(3, 0, 0.021);
        assert!((price.of(3) - 1.5).abs() < 0.01, "a token of three takes 7 ms");
        let mut lookup = Lookup::new(8);
        assert!(
            lookup.guess(&tokens, &[], 8, price.of(1), &trust).is_empty(),
            "as dear as a step"
        );
        let tries = (0..1000).filter(|_| {
            price.stepped(1, 0, 0.010);
            !lookup.guess(&tokens, &[], 8, price.of(1), &trust).is_empty()
        });
        assert!(tries.count() > 0, "it is tried again");
        // Half of them right, at a third of a step each.
        let mut lookup = Lookup::new(8);
        let tries = (0..100).filter(|_| {
            let guess = lookup.guess(&tokens, &[], 8, 0.33, &trust).len();
            lookup.heard(guess, guess.div_ceil(2), &mut trust);
            guess > 0
        });
        assert!(tries.count() > 90);
    }

    #[test]
    fn what_short_matches_are_worth_is_learned_from_all_answers() {
        const PRICE: f64 = 0.7;
        let short = [1, 2, 3, 4, 5, 1, 2, 3];
        let long: Vec<Token> = (0..20).chain(0..15).collect();
        let mut trust = Trust::default();
        let mut wrong = 0;
        // Each is a new answer: it has nothing to go by but what others found.
        for _ in 0..100 {
            let mut lookup = Lookup::new(8);
            let guess = lookup.guess(&short, &[], 8, PRICE, &trust);
            if !guess.is_empty() {
                wrong += 1;
                lookup.heard(guess.len(), 0, &mut trust);
            }
        }
        assert!(wrong <= 4, "{wrong} wrong guesses at the price of a step each");
        let mut lookup = Lookup::new(8);
        assert_eq!(
            lookup.guess(&long, &[], 8, PRICE, &trust),
            [15, 16],
            "a copy is a copy"
        );
        // Where guesses cost little, the same evidence is enough.
        assert!(!Lookup::new(8).guess(&short, &[], 8, 0.1, &trust).is_empty());
        for _ in 0..500 {
            trust.rested();
        }
        assert!(
            !Lookup::new(8).guess(&short, &[], 8, PRICE, &trust).is_empty(),
            "it is tried again"
        );
    }

    #[test]
    fn a_guess_is_as_long_as_its_last_token_pays() {
        assert_eq!(worth(1.0, 0.7, 8), 8);
        assert_eq!(worth(0.9, 0.7, 8), 3, "0.9, 0.81, 0.729, and 0.656 is too little");
        assert_eq!(worth(0.5, 0.7, 8), 0);
        assert_eq!(worth(0.5, 0.0, 8), 8);
    }

    proptest! {
        #[test]
        fn a_guess_is_a_stretch_of_the_text_after_the_same_tokens(
            tokens in prop::collection::vec(0..4, 0..64),
            room in 0usize..10,
        ) {
            let guess = Lookup::new(16).guess(&tokens, &[], room, 0.0, &Trust::default());
            prop_assert!(guess.len() <= room);
            if !guess.is_empty() {
                let end = &tokens[tokens.len() - MATCH_MIN..];
                let whole: Vec<Token> = end.iter().chain(&guess).copied().collect();
                prop_assert!(tokens.windows(whole.len()).any(|window| window == whole));
            }
        }
    }
}
