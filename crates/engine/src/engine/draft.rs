//! Guesses of a draft: a small model of the same vocabulary says what the large one may say next.
//!
//! It has a context of its own, with a few sequences and one pool of cells that is as large as one answer may be. What it
//! has read follows the answers by itself: before it guesses, what it holds is compared with what the answer has become, the
//! rest is forgotten, and what is missing is read. So nobody tells it of wrong guesses, answers that gave way, or clients
//! that left. All answers of a step are guessed together, token after token, each the draft's likeliest: whether the model
//! really says so is found out by `speculate`, as for every guess.
//!
//! The one choice to know: it is asked as long as that pays ([`Worth`]), and each guess goes on as long as its next token
//! does. A draft that is wrong, or too slow for this machine, costs a hundredth of the time.

mod worth;

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::LlamaContextParams;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::token::LlamaToken;

use super::Setup;
use super::speculate::BESIDE_MAX;
use crate::cache::Token;
use crate::logs;
use crate::model::{Draft, Model, Problem};
use crate::sample;
use crate::schedule::JobId;
use worth::{Round, Sureness, Worth};

/// Sequences: one for each answer that is guessed, and as many that ended, whose conversation may go on.
const SEATS: usize = 2 * BESIDE_MAX;
/// Tokens that it reads in a step beside guessing, of all answers together: it is small, and reads them in less time than a
/// step that reads a prompt takes.
const READ_MAX: usize = 128;
/// Missing tokens that are read along with the first guess: what was guessed last, and what was said in its place.
const WITH_GUESS_MAX: usize = 16;
/// Of so many steps one is made without a guess, to know what that takes.
const PLAIN_EVERY: u32 = 32;
/// Such steps before the first guess.
const PLAIN_FIRST: u32 = 2;
/// What checking a guess is taken to cost when a trial begins.
const UNMEASURED: f64 = 0.2;

/// An answer to be guessed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Want<'a> {
    pub(super) job: JobId,
    /// Answers of another scope share nothing with it.
    pub(super) scope: u64,
    pub(super) tokens: &'a [Token],
    /// How many of them are no part of the prompt.
    pub(super) generated: usize,
    /// Tokens that may come still.
    pub(super) left: usize,
    /// Tokens that may be guessed.
    pub(super) room: usize,
}

/// What tokens cost in the steps that come.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// Seconds that one takes without guesses; nothing before that was measured.
    pub(super) token: Option<f64>,
    /// What is to be paid for checking a guess, as a share of that.
    pub(super) check: f64,
}

/// What one sequence of the draft's context holds.
#[derive(Debug, Default)]
struct Seat {
    job: Option<JobId>,
    scope: u64,
    tokens: Vec<Token>,
    /// When it was used last, in steps.
    used: u64,
}

/// A guess that is being made.
#[derive(Debug)]
struct Making {
    job: JobId,
    seat: usize,
    room: usize,
    tokens: Vec<Token>,
    /// What the draft gave each.
    probabilities: Vec<f64>,
    /// How likely all of them are right.
    likely: f64,
    /// Its row of logits in the batch.
    row: i32,
}

/// The draft at work.
pub(super) struct Companion<'model> {
    draft: &'model Draft,
    context: LlamaContext<'model>,
    batch: LlamaBatch<'static>,
    cells: usize,
    seats: Vec<Seat>,
    /// Steps, for what was used last.
    clock: u64,
    /// Steps since the last without a guess.
    since_plain: u32,
    sure: Sureness,
    /// By how many answers decode: what pays for one seldom pays for four.
    worth: [Worth; BESIDE_MAX],
    /// Which of them this step is about.
    answers: usize,
    /// Answers that it was asked about, and how many tokens they had.
    known: HashMap<JobId, usize>,
    /// The guesses of this step, by the probability of each token.
    made: HashMap<JobId, Vec<f64>>,
    /// Tokens that it computed for them, taken or not.
    computed: usize,
    /// Time that went into this step's guesses.
    spent: Duration,
    /// Time that went into reading, which is no part of a round.
    reading: Duration,
    /// The last step as far as it is known, until its tokens were counted.
    round: Option<Round>,
    /// Its context has failed; it is not asked any more.
    failed: bool,
}

impl<'model> Companion<'model> {
    pub(super) fn new(model: &'model Model, draft: &'model Draft, setup: Setup) -> Result<Self, Problem> {
        let number = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        let threads = i32::try_from(setup.threads).unwrap_or(i32::MAX);
        let batch_tokens = number(READ_MAX);
        let parameters = LlamaContextParams::default()
            .with_n_ctx(NonZeroU32::new(number(model.context_length)))
            .with_n_batch(batch_tokens)
            .with_n_ubatch(batch_tokens)
            .with_n_seq_max(number(SEATS))
            .with_kv_unified(true)
            .with_n_threads(threads)
            .with_n_threads_batch(threads)
            .with_no_perf(true);
        let context = draft
            .llama
            .new_context(&model.backend, parameters)
            .map_err(|error| Problem::Context {
                tokens: model.context_length,
                why: logs::last_error().unwrap_or_else(|| error.to_string()),
            })?;
        let mut companion = Self {
            draft,
            context,
            batch: LlamaBatch::new(READ_MAX, 1),
            cells: model.context_length,
            seats: std::iter::repeat_with(Seat::default).take(SEATS).collect(),
            clock: 0,
            since_plain: PLAIN_EVERY - PLAIN_FIRST,
            sure: Sureness::default(),
            worth: std::array::from_fn(|_| Worth::default()),
            answers: 0,
            known: HashMap::new(),
            made: HashMap::new(),
            computed: 0,
            spent: Duration::ZERO,
            reading: Duration::ZERO,
            round: None,
            failed: false,
        };
        // The first step reads the weights from the disk: it is not to be taken for what a guess costs.
        let warmed = companion.read(0, &[0]);
        companion.failed = warmed.is_err();
        companion.worth = std::array::from_fn(|_| Worth::default());
        companion.cut(0, 0);
        Ok(companion)
    }

    /// A step begins. What became of the last one's guesses is known now.
    pub(super) fn begin(&mut self) {
        if let Some(round) = self.round.take() {
            self.worth().made(round);
        }
        self.made.clear();
        self.computed = 0;
        (self.spent, self.reading) = (Duration::ZERO, Duration::ZERO);
    }

    /// Time that it took of this step.
    pub(super) fn spent(&self) -> Duration {
        self.spent
    }

    fn worth(&mut self) -> &mut Worth {
        &mut self.worth[self.answers]
    }

    /// How likely a token would be right that it guessed for one of so many answers, where it is asked anyway; nothing where it
    /// is not.
    pub(super) fn would_be_right(&self, answers: usize) -> f64 {
        let saves = self
            .worth
            .get(answers.saturating_sub(1))
            .is_some_and(Worth::saves);
        if saves && !self.failed {
            self.sure.usually()
        } else {
            0.0
        }
    }

    /// Whether this answer's guess is the draft's.
    pub(super) fn has_made(&self, job: JobId) -> bool {
        self.made.contains_key(&job)
    }

    /// The engine's step was computed, in which `answers` decoded; nothing else was guessed in it when `alone`.
    pub(super) fn stepped(&mut self, answers: usize, alone: bool, pace: Pace, took: Duration) {
        self.answers = answers.clamp(1, BESIDE_MAX) - 1;
        self.worth().stepped(took.as_secs_f64());
        self.sure.faded();
        self.since_plain = if self.made.is_empty() {
            0
        } else {
            self.since_plain + 1
        };
        if self.computed == 0 {
            return;
        }
        let token = pace.token.filter(|_| alone);
        self.round = token.map(|token| Round {
            token,
            tokens: answers,
            seconds: took.saturating_sub(self.reading).as_secs_f64(),
        });
    }

    /// The first `right` tokens of a guess were right.
    pub(super) fn heard(&mut self, job: JobId, right: usize) {
        if let Some(probabilities) = self.made.get(&job) {
            self.sure.heard(probabilities, right);
        }
        if let Some(round) = &mut self.round {
            round.tokens += right;
        }
    }

    /// Guesses for some of the answers that decode now, whichever pay.
    pub(super) fn guess(&mut self, wants: &[Want<'_>], pace: Pace) -> HashMap<JobId, Vec<Token>> {
        self.clock += 1;
        self.answers = wants.len().clamp(1, BESIDE_MAX) - 1;
        self.learn_lengths(wants);
        let due = self.since_plain >= PLAIN_EVERY;
        // What was measured of others' guesses, maybe in a bad moment, keeps no trial from measuring its own.
        let unmeasured = self.worth().is_unmeasured();
        let check = if unmeasured { UNMEASURED } else { pace.check };
        let best = self.sure.best();
        let Some(token) = pace.token.filter(|_| !self.failed && !due) else {
            return HashMap::new();
        };
        if best <= check + self.worth().price(token) {
            self.worth().is_too_dear();
        }
        if best <= check {
            return HashMap::new();
        }
        let began = Instant::now();
        let made = self.follow(wants, token).and_then(|ready| {
            let reading = began.elapsed();
            let price = check + self.worth().price(token);
            let made = self.make(ready, price, check)?;
            Ok((reading, made))
        });
        self.spent = began.elapsed();
        let (reading, made) = match made {
            Ok(made) => made,
            Err(error) => {
                tracing::error!(%error, "llama.cpp could not compute a step of the draft; no guesses come from it any more");
                self.failed = true;
                return HashMap::new();
            }
        };
        self.reading = reading;
        let (computed, seconds) = (self.computed, self.spent.saturating_sub(reading).as_secs_f64());
        self.worth().guessed(computed, seconds);
        let mut guesses = HashMap::new();
        for made in made {
            self.made.insert(made.job, made.probabilities);
            guesses.insert(made.job, made.tokens);
        }
        guesses
    }

    /// Answers that are gone tell how long answers are.
    fn learn_lengths(&mut self, wants: &[Want<'_>]) {
        let worth = &mut self.worth;
        self.known.retain(|job, generated| {
            let there = wants.iter().any(|want| want.job == *job);
            if !there {
                worth.iter_mut().for_each(|worth| worth.ended(*generated));
            }
            there
        });
        self.known
            .extend(wants.iter().map(|want| (want.job, want.generated)));
    }

    /// Reads what it has not of the answers for which that pays, a bounded part of it. Gives those of which it misses so
    /// little that it can guess.
    fn follow(
        &mut self,
        wants: &[Want<'_>],
        token: f64,
    ) -> Result<Vec<(Making, Vec<Token>)>, llama_cpp_2::DecodeError> {
        let mut ready = Vec::new();
        let mut budget = READ_MAX;
        for want in wants {
            let known = want.tokens.iter().all(|token| *token < self.draft.vocabulary);
            let length = want.tokens.len() + want.room;
            if want.room == 0 || length > self.cells.min(self.draft.trained) || !known {
                continue;
            }
            let (_, held) = self.source(want);
            let missing = want.tokens.len() - held;
            if !self.worth().pays(missing, want.generated, want.left, token) {
                continue;
            }
            let Some(seat) = self.seat(want, wants) else {
                continue;
            };
            // Without the last at least: its row of logits is the first guess.
            let mut held = self.seats[seat].tokens.len();
            let behind = (want.tokens.len() - held).saturating_sub(WITH_GUESS_MAX);
            if behind > 0 {
                let part = behind.min(budget);
                budget -= part;
                self.read(seat, &want.tokens[held..held + part])?;
                held += part;
            }
            if want.tokens.len() - held <= WITH_GUESS_MAX {
                let making = Making {
                    job: want.job,
                    seat,
                    room: want.room,
                    tokens: Vec::new(),
                    probabilities: Vec::new(),
                    likely: 1.0,
                    row: 0,
                };
                ready.push((making, want.tokens[held..].to_vec()));
            }
        }
        Ok(ready)
    }

    /// Reads tokens of one answer, and measures it.
    fn read(&mut self, seat: usize, tokens: &[Token]) -> Result<(), llama_cpp_2::DecodeError> {
        if tokens.is_empty() {
            return Ok(());
        }
        let began = Instant::now();
        self.batch.clear();
        self.add(seat, tokens, false);
        self.context.decode(&mut self.batch)?;
        self.context.synchronize();
        self.worth().read(tokens.len(), began.elapsed().as_secs_f64());
        Ok(())
    }

    /// Puts tokens into the batch; gives the index of the last.
    fn add(&mut self, seat: usize, tokens: &[Token], wants_logits: bool) -> i32 {
        let held = &mut self.seats[seat].tokens;
        let sequence = sequence(seat);
        for (at, token) in tokens.iter().enumerate() {
            let position = i32::try_from(held.len()).unwrap_or(i32::MAX);
            let last = wants_logits && at + 1 == tokens.len();
            // What is added between two clears is less than the batch has room for.
            let _ = self.batch.add(LlamaToken(*token), position, &[sequence], last);
            held.push(*token);
        }
        self.batch.n_tokens() - 1
    }

    /// Guesses, token after token of all together, each as long as its next token is likelier right than `price` and it is
    /// worth `check` to be checked.
    fn make(
        &mut self,
        ready: Vec<(Making, Vec<Token>)>,
        price: f64,
        check: f64,
    ) -> Result<Vec<Making>, llama_cpp_2::DecodeError> {
        let mut done = Vec::new();
        self.batch.clear();
        let mut going = Vec::new();
        for (mut making, missing) in ready {
            making.row = self.add(making.seat, &missing, true);
            going.push(making);
        }
        while !going.is_empty() {
            self.context.decode(&mut self.batch)?;
            self.context.synchronize();
            self.batch.clear();
            self.computed += going.len();
            let mut next = Vec::new();
            for mut making in going {
                let logits = self.context.get_logits_ith(making.row);
                let known = usize::try_from(self.draft.vocabulary).unwrap_or_default();
                let (token, probability) = sample::likeliest(&logits[..known.min(logits.len())]);
                let likely = making.likely * self.sure.of(probability);
                if likely > check {
                    making.tokens.push(token);
                    making.probabilities.push(probability);
                    making.likely = likely;
                }
                // Its next token can be no likelier.
                let goes_on = making.tokens.len() < making.room && likely * self.sure.best() > price;
                if goes_on && likely > check {
                    making.row = self.add(making.seat, &[token], true);
                    next.push(making);
                } else if !making.tokens.is_empty() {
                    done.push(making);
                }
            }
            going = next;
        }
        Ok(done)
    }

    /// The seat that has most of an answer's beginning, and how much; none of its last token.
    fn source(&self, want: &Want<'_>) -> (Option<usize>, usize) {
        let most = want.tokens.len() - 1;
        let same = |seat: &Seat| {
            let pairs = seat.tokens.iter().zip(want.tokens);
            pairs.take(most).take_while(|(held, said)| held == said).count()
        };
        if let Some(own) = self.seats.iter().position(|seat| seat.job == Some(want.job)) {
            return (Some(own), same(&self.seats[own]));
        }
        let found = (0..self.seats.len())
            .filter(|at| self.seats[*at].scope == want.scope)
            .map(|at| (at, same(&self.seats[at])))
            .max_by_key(|(_, same)| *same)
            .filter(|(_, same)| *same > 0);
        found.map_or((None, 0), |(at, same)| (Some(at), same))
    }

    /// Gives an answer a seat that holds as much of it as is found, and nothing else. None when there is no room, as long as
    /// others have it.
    fn seat(&mut self, want: &Want<'_>, wants: &[Want<'_>]) -> Option<usize> {
        let busy = |seat: &Seat| {
            let job = seat.job.filter(|job| *job != want.job);
            job.is_some_and(|job| wants.iter().any(|other| other.job == job))
        };
        let (source, held) = self.source(want);
        let at = match source {
            Some(source) if !busy(&self.seats[source]) => source,
            _ => {
                let idle = (0..self.seats.len()).filter(|at| !busy(&self.seats[*at]));
                let at = idle.min_by_key(|at| (!self.seats[*at].tokens.is_empty(), self.seats[*at].used))?;
                self.cut(at, 0);
                if let Some(source) = source {
                    let end = u32::try_from(held).ok();
                    // Fails for positions beyond 2³¹ alone, more than any context.
                    let _ = self
                        .context
                        .copy_kv_cache_seq(sequence(source), sequence(at), Some(0), end);
                    self.seats[at].tokens = want.tokens[..held].to_vec();
                }
                at
            }
        };
        self.cut(at, held);
        let seat = &mut self.seats[at];
        (seat.job, seat.scope, seat.used) = (Some(want.job), want.scope, self.clock);
        // Cells that two sequences share count twice, so there is rather more room than this.
        let needs = want.tokens.len() + want.room;
        loop {
            let others: usize = (0..self.seats.len())
                .filter(|other| *other != at)
                .map(|other| self.seats[other].tokens.len())
                .sum();
            if others + needs <= self.cells {
                return Some(at);
            }
            let idle = (0..self.seats.len())
                .filter(|other| *other != at && !self.seats[*other].tokens.is_empty())
                .filter(|other| !busy(&self.seats[*other]));
            let Some(gone) = idle.min_by_key(|other| self.seats[*other].used) else {
                self.cut(at, 0);
                return None;
            };
            self.cut(gone, 0);
        }
    }

    /// Forgets what a seat holds beyond so many tokens.
    fn cut(&mut self, seat: usize, tokens: usize) {
        if self.seats[seat].tokens.len() <= tokens {
            return;
        }
        let id = Some(sequence(seat).cast_unsigned());
        let from = u32::try_from(tokens).ok();
        let done = self.context.clear_kv_cache_seq(id, from, None);
        self.seats[seat].tokens.truncate(tokens);
        if !matches!(done, Ok(true)) {
            // A part cannot always be taken out (a window that has moved on); the whole can.
            let _ = self.context.clear_kv_cache_seq(id, None, None);
            self.seats[seat].tokens.clear();
        }
        if tokens == 0 {
            self.seats[seat].job = None;
        }
    }
}

fn sequence(seat: usize) -> i32 {
    i32::try_from(seat).unwrap_or(i32::MAX)
}
