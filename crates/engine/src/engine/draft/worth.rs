//! Whether a draft is worth asking, measured while it is used: how often it is right, by how sure it was, and whether the
//! time that this saves is more than the time that it takes.
//!
//! Pure. The one choice to know: a draft that does not pay is not asked, but for trials that together may cost a fixed share
//! of the time ([`TRIED_SHARE`]). So the answers come hardly later than without it, whatever it is and however long the
//! prompts that it had to read; and what changes (other texts, fewer answers at once) is noticed all the same.

/// How sure a draft can be, in so many steps.
const STEPS: usize = 10;
/// Weight of the newest token in how often those of one step are right: about the last twenty count.
const NEWEST_TOKEN: f64 = 0.05;
/// How much of what was learned is left after a round of others: a step that nobody tries any more is tried again after some
/// hundreds.
const LEARNED: f64 = 0.999;
/// Least weight of the newest round in what rounds save: about the last thirty count.
const NEWEST_ROUND: f64 = 0.03;
/// Weight of the newest measure of what the draft's own steps take.
const NEWEST_TIME: f64 = 0.1;

/// Rounds of a trial: a mean of so many tells use from chance.
const TRIAL: u32 = 16;
/// Measures before it is believed that guesses take too much.
const MEASURED_MIN: u32 = 4;
/// A trial of which rounds save this little on average is not gone on with.
const HOPELESS: f64 = -0.2;
/// The share of the time that trials may take, which is all that a useless draft costs: less than the noise of a measurement.
const TRIED_SHARE: f64 = 0.01;
/// The most that is saved up for a trial, in seconds: one that costs more is not made.
const TRIAL_MAX: f64 = 30.0;
/// Tokens that are read in a trial for another answer, or for the first trial of all, whatever that costs.
const TRIAL_READ_MAX: usize = 2048;
/// A round counts as if it had taken no longer than so many times what it takes without guesses: whatever else held it up says
/// nothing of the draft.
const HELD_UP_MAX: f64 = 4.0;
/// Tokens that an answer has when none has ended yet.
const USUAL: f64 = 128.0;
/// Weight of the newest answer in how long they usually are.
const NEWEST_ANSWER: f64 = 0.1;

/// How often tokens were right of late, by how sure the draft was of them.
#[derive(Debug, Clone)]
pub(super) struct Sureness {
    steps: [f64; STEPS],
    /// However sure it was.
    all: f64,
}

impl Default for Sureness {
    fn default() -> Self {
        Self {
            steps: std::array::from_fn(Self::taken_at_its_word),
            all: 0.0,
        }
    }
}

impl Sureness {
    /// What is thought of a step when nothing was learned: more than its middle, since the likeliest token of a small model is
    /// most often a large one's too, also where the small one is not sure.
    fn taken_at_its_word(step: usize) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "ten steps")]
        let middle = (step as f64 + 0.5) / STEPS as f64;
        middle.sqrt()
    }

    fn step(probability: f64) -> usize {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "of a number from 0 to 10"
        )]
        let step = (probability.clamp(0.0, 1.0) * STEPS as f64) as usize;
        step.min(STEPS - 1)
    }

    /// How likely a token is right to which the draft gave this probability.
    pub(super) fn of(&self, probability: f64) -> f64 {
        self.steps[Self::step(probability)]
    }

    /// How likely its surest tokens are right.
    pub(super) fn best(&self) -> f64 {
        self.steps.iter().copied().fold(0.0, f64::max)
    }

    /// How likely its tokens are right, as they come.
    pub(super) fn usually(&self) -> f64 {
        self.all
    }

    /// Of a guess with these probabilities the first `right` tokens were right. What comes after the first wrong one says
    /// nothing.
    pub(super) fn heard(&mut self, probabilities: &[f64], right: usize) {
        for (at, probability) in probabilities.iter().enumerate().take(right + 1) {
            let was = if at < right { 1.0 } else { 0.0 };
            let step = &mut self.steps[Self::step(*probability)];
            for share in [step, &mut self.all] {
                *share += NEWEST_TOKEN * (was - *share);
            }
        }
    }

    /// A step of the engine was made: what was learned fades.
    pub(super) fn faded(&mut self) {
        for (step, share) in self.steps.iter_mut().enumerate() {
            let word = Self::taken_at_its_word(step);
            *share = word + LEARNED * (*share - word);
        }
    }
}

/// A round: a step in which the draft was asked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Round {
    /// Seconds that a token takes without guesses.
    pub(super) token: f64,
    /// Tokens of all answers together.
    pub(super) tokens: usize,
    /// Seconds that it took, the draft's included.
    pub(super) seconds: f64,
}

/// What is gained and lost by asking a draft.
#[derive(Debug, Clone)]
pub(super) struct Worth {
    /// The share of a token's time that is saved with each token of a round, on average; negative when it costs.
    saved: f64,
    /// Rounds that `saved` is the mean of.
    rounds: u32,
    /// Rounds of the trial that are left.
    trial: u32,
    /// Seconds that trials may take; below nothing after one that took more.
    allowed: f64,
    /// Seconds that the last trial lost.
    trial_lost: f64,
    /// Seconds in which the draft reads a token.
    read: Option<f64>,
    /// Seconds in which it guesses one, and how often that was measured since the trial began.
    each: Option<f64>,
    measured: u32,
    /// Tokens that answers usually have.
    usual: f64,
}

impl Default for Worth {
    /// Nobody knows yet: it is tried.
    fn default() -> Self {
        Self {
            saved: 0.0,
            rounds: 0,
            trial: TRIAL,
            allowed: 0.0,
            trial_lost: 0.0,
            read: None,
            each: None,
            measured: 0,
            usual: USUAL,
        }
    }
}

fn lately(before: Option<f64>, now: f64, weight: f64) -> f64 {
    before.map_or(now, |before| before + weight * (now - before))
}

#[expect(clippy::cast_precision_loss, reason = "numbers of tokens are far below 2⁵²")]
fn float(tokens: usize) -> f64 {
    tokens as f64
}

impl Worth {
    /// Whether it saved time of late, beyond trials.
    pub(super) fn saves(&self) -> bool {
        self.trial == 0 && self.saved > 0.0
    }

    /// What a guessed token costs in the draft, as a share of what a token takes without guesses; nothing as long as it was
    /// not measured.
    pub(super) fn price(&self, token: f64) -> f64 {
        match self.each {
            Some(each) if token > 0.0 => each / token,
            _ => 0.0,
        }
    }

    /// The draft read so many tokens.
    pub(super) fn read(&mut self, tokens: usize, seconds: f64) {
        if tokens > 0 {
            self.read = Some(lately(self.read, seconds / float(tokens), NEWEST_TIME));
            if self.trial > 0 {
                self.lose(seconds);
            }
        }
    }

    /// The draft made guesses of so many tokens.
    pub(super) fn guessed(&mut self, tokens: usize, seconds: f64) {
        if tokens > 0 {
            self.measured = self.measured.saturating_add(1);
            // The mean of the first: one alone may have waited for a disk.
            let weight = f64::from(self.measured).recip().max(NEWEST_TIME);
            self.each = Some(lately(self.each, seconds / float(tokens), weight));
        }
    }

    /// Whether the draft is asked about an answer of which it has still to read `missing` tokens, and that has `generated` of
    /// at most `generated + left`; `token` as in [`Round`]. A trial begins as soon as it may be paid for.
    pub(super) fn pays(&mut self, missing: usize, generated: usize, left: usize, token: f64) -> bool {
        let costs = self.read.unwrap_or_default() * float(missing);
        if self.trial > 0 {
            return missing <= TRIAL_READ_MAX || self.read.is_none() || costs < self.allowed;
        }
        // One that has come far goes on for as long again, as far as one knows.
        let more = float(left).min(float(generated).max(self.usual));
        if self.saved > 0.0 {
            return costs < self.saved * more * token;
        }
        // A trial needs an answer that lasts as long.
        let tried = more >= f64::from(TRIAL) && self.allowed > self.trial_lost + costs;
        if tried {
            (self.trial, self.rounds, self.saved, self.trial_lost) = (TRIAL, 0, 0.0, 0.0);
            (self.each, self.measured) = (None, 0);
        }
        tried
    }

    /// Whether too little is known of what its guesses take.
    pub(super) fn is_unmeasured(&self) -> bool {
        self.trial > 0 && self.measured < MEASURED_MIN
    }

    /// No guess can be worth what it costs now: as soon as that is certain, the trial is over.
    pub(super) fn is_too_dear(&mut self) {
        if self.measured >= MEASURED_MIN {
            (self.trial, self.saved) = (0, self.saved.min(0.0));
        }
    }

    /// A step of the engine took so long.
    pub(super) fn stepped(&mut self, seconds: f64) {
        // Good times allow no more trials in bad ones.
        if !self.saves() {
            self.allowed = (self.allowed + TRIED_SHARE * seconds).min(TRIAL_MAX);
        }
    }

    /// A round was made.
    pub(super) fn made(&mut self, round: Round) {
        if round.token <= 0.0 || round.tokens == 0 {
            return;
        }
        let without = float(round.tokens) * round.token;
        let seconds = round.seconds.min(HELD_UP_MAX * without);
        let saved = 1.0 - seconds / without;
        self.rounds = self.rounds.saturating_add(1);
        let weight = f64::from(self.rounds).recip().max(NEWEST_ROUND);
        self.saved += weight * (saved - self.saved);
        if self.trial > 0 {
            self.trial -= 1;
            self.lose(seconds - without);
            if self.rounds >= MEASURED_MIN && self.saved < HOPELESS {
                self.trial = 0;
            }
        }
    }

    /// An answer ended after so many tokens.
    pub(super) fn ended(&mut self, generated: usize) {
        self.usual += NEWEST_ANSWER * (float(generated) - self.usual);
    }

    fn lose(&mut self, seconds: f64) {
        self.trial_lost = (self.trial_lost + seconds).max(0.0);
        self.allowed -= seconds.max(0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A step that takes 10 ms without guesses.
    const TOKEN: f64 = 0.010;
    const STEPS: usize = 500;

    /// So many steps of an answer with a draft; gives the rounds and the seconds that all took.
    fn run(worth: &mut Worth, steps: usize, missing: usize, tokens: usize, seconds: f64) -> (usize, f64) {
        let (mut rounds, mut took, mut behind) = (0, 0.0, missing);
        for step in 0..steps {
            if worth.pays(behind, step, steps - step, TOKEN) {
                // Reading costs a tenth of a step for each token.
                let read = TOKEN / 10.0 * float(behind);
                worth.read(behind, read);
                worth.stepped(seconds);
                worth.made(Round {
                    token: TOKEN,
                    tokens,
                    seconds,
                });
                (behind, rounds) = (0, rounds + 1);
                took += seconds + read;
            } else {
                behind += 1;
                took += TOKEN;
                worth.stepped(TOKEN);
            }
        }
        (rounds, took)
    }

    #[test]
    fn what_saves_time_is_asked_always() {
        let mut worth = Worth::default();
        // Three tokens in the time of two.
        let (rounds, _) = run(&mut worth, 500, 100, 3, 2.0 * TOKEN);
        assert!(
            rounds > 490,
            "all but the last, for which nothing is to be read: {rounds}"
        );
        assert!(worth.saves());
    }

    /// The same of so many answers of 500 tokens to prompts of 100.
    fn answers(worth: &mut Worth, count: usize, tokens: usize, seconds: f64) -> (usize, f64) {
        let runs = (0..count).map(|_| run(worth, STEPS, 100, tokens, seconds));
        runs.fold((0, 0.0), |(rounds, took), (more, longer)| {
            (rounds + more, took + longer)
        })
    }

    #[test]
    fn what_costs_time_is_tried_seldom_and_costs_a_fixed_share() {
        const ANSWERS: usize = 100;
        let mut worth = Worth::default();
        // One token in the time of three; each trial has to read all that the answer has.
        let (rounds, took) = answers(&mut worth, ANSWERS, 1, 3.0 * TOKEN);
        assert!(rounds >= 5 * MEASURED_MIN as usize, "it is tried again: {rounds}");
        let without = (ANSWERS * STEPS) as f64 * TOKEN;
        assert!(took < 1.02 * without, "{took} s in place of {without}");
    }

    #[test]
    fn what_begins_to_pay_is_found_out() {
        let mut worth = Worth::default();
        answers(&mut worth, 2, 1, 2.0 * TOKEN);
        assert!(!worth.saves());
        let (rounds, _) = answers(&mut worth, 40, 3, 2.0 * TOKEN);
        assert!(rounds > 20 * STEPS, "{rounds}");
        // And what ceases to is not asked for long.
        let (rounds, _) = answers(&mut worth, 2, 1, 2.0 * TOKEN);
        assert!(rounds < 100, "{rounds}");
    }

    #[test]
    fn a_prompt_is_read_where_the_answer_pays_for_it() {
        let mut worth = Worth::default();
        run(&mut worth, 100, 100, 3, 2.0 * TOKEN);
        // A third of a token's time is saved with each; a token takes a tenth of that to read.
        assert!(worth.pays(400, 0, 1000, TOKEN), "paid for by the usual 128");
        assert!(!worth.pays(4000, 0, 1000, TOKEN));
        assert!(!worth.pays(400, 0, 20, TOKEN), "it is to be a short one");
        assert!(worth.pays(4000, 1300, 5000, TOKEN), "it has become long");
        for _ in 0..40 {
            worth.ended(10);
        }
        assert!(!worth.pays(400, 0, 1000, TOKEN), "answers are short here");
    }

    #[test]
    fn how_sure_it_is_is_learned_to_be_worth() {
        let mut sure = Sureness::default();
        assert!(sure.of(0.97) > 0.95 && sure.of(1.0) < 1.0 && sure.of(0.12) < 0.4);
        let unheard = sure.of(0.32);
        for _ in 0..200 {
            // Sure of the first and right; not of the second, and wrong; the third says nothing.
            sure.heard(&[0.97, 0.55, 0.32], 1);
        }
        assert!(sure.of(0.97) > 0.99 && sure.of(0.55) < 0.01, "{sure:?}");
        assert!((sure.of(0.32) - unheard).abs() < 1e-9);
        assert!(sure.best() > 0.99);
        for _ in 0..3000 {
            sure.faded();
        }
        assert!(sure.of(0.55) > 0.5, "{sure:?}");
    }
}
