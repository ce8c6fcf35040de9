//! Guesses in the batch: when to make them, and what becomes of them once the model has spoken.
//!
//! A guess's tokens are computed after the answer's own next one, each with its row of logits. The rows are gone through
//! as if each had been a step: a token is chosen, and as long as it is the one that was guessed, the next row holds. What
//! is left of the guess is taken out of the cache again. All this is the same whoever guessed: the text (`lookup`) or a draft
//! (`draft`).

use std::collections::HashMap;
use std::time::Duration;

use super::Worker;
use super::draft::{Pace, Want};
use super::step::Row;
use crate::cache::Token;
use crate::schedule::{JobId, Plan};

/// Answers beside which guesses are made. With more, the kernels are busy anyway: a guess would cost the others more than
/// it brings.
pub(super) const BESIDE_MAX: usize = 4;
/// Tokens of all guesses of a step, at most: about as long as one more decoding step takes.
const GUESSED_MAX: usize = 16;

impl Worker<'_> {
    /// Guesses for those who decode in this step.
    pub(super) fn guess(&mut self, plan: &Plan) -> HashMap<JobId, Vec<Token>> {
        let decoding = plan.decode.len();
        let mut guesses = HashMap::new();
        if let Some(companion) = &mut self.companion {
            companion.begin();
        }
        // What other batches of the step need is not counted here.
        if self.apart {
            return guesses;
        }
        // A state that cannot be cut cannot forget a wrong guess; prompts that are read use the step up.
        if !self.model.shares_prefixes || !plan.prefill.is_empty() || !(1..=BESIDE_MAX).contains(&decoding) {
            return guesses;
        }
        let cells = self.cache.cells_available().saturating_sub(decoding);
        let share = cells.min(GUESSED_MAX) / decoding;
        let price = self.price.of(decoding);
        let would_be_right = self
            .companion
            .as_ref()
            .map_or(0.0, |companion| companion.would_be_right(decoding));
        for id in &plan.decode {
            let Some(answer) = self.answers.get_mut(id) else {
                continue;
            };
            let request = &answer.request.request;
            // The next token is chosen anyway.
            let left = request.tokens_max.saturating_sub(answer.generated() + 1);
            let room = share.min(left);
            let guess = answer
                .lookup
                .guess(&answer.tokens, &request.predicted, room, price, &self.trust);
            if !guess.is_empty() && answer.lookup.likely(&self.trust) >= would_be_right {
                guesses.insert(*id, guess);
            }
        }
        self.ask_the_draft(plan, share, &mut guesses);
        guesses
    }

    /// Adds the draft's guesses for those whose text says nothing, at most `share` tokens for each.
    fn ask_the_draft(&mut self, plan: &Plan, share: usize, guesses: &mut HashMap<JobId, Vec<Token>>) {
        let decoding = plan.decode.len();
        let (pace, most) = (self.pace(decoding), share.min(self.guess));
        let Some(companion) = &mut self.companion else {
            return;
        };
        let wants = plan.decode.iter().filter_map(|job| {
            let answer = self.answers.get(job)?;
            let left = answer
                .request
                .request
                .tokens_max
                .saturating_sub(answer.generated() + 1);
            Some(Want {
                job: *job,
                scope: answer.request.scope,
                tokens: &answer.tokens,
                generated: answer.generated(),
                left,
                room: if guesses.contains_key(job) {
                    0
                } else {
                    most.min(left)
                },
            })
        });
        let wants: Vec<Want<'_>> = wants.collect();
        guesses.extend(companion.guess(&wants, pace));
    }

    fn pace(&self, decoding: usize) -> Pace {
        Pace {
            token: self.price.token(decoding),
            check: self.price.of(decoding),
        }
    }

    /// A step without prompts was computed: so dear is a guess.
    pub(super) fn stepped(&mut self, rows: &[Row], took: Duration) {
        let guessed = rows.iter().map(|row| row.guess.len()).sum();
        if (1..=BESIDE_MAX).contains(&rows.len()) {
            let pace = self.pace(rows.len());
            let mut own = took;
            if let Some(companion) = &mut self.companion {
                let spent = companion.spent();
                own = own.saturating_sub(spent);
                self.shared
                    .figures(|figures| figures.draft_seconds += spent.as_secs_f64());
                let alone = |row: &Row| row.guess.is_empty() || companion.has_made(row.job);
                let alone = rows.iter().all(alone);
                companion.stepped(rows.len(), alone, pace, took);
            }
            self.price.stepped(rows.len(), guessed, own.as_secs_f64());
            if guessed == 0 {
                self.trust.rested();
            }
        }
    }

    /// Chooses the next tokens of an answer, as many as were guessed right and one more.
    pub(super) fn go_on(&mut self, row: &Row) {
        let sequence = self.answers.get(&row.job).and_then(|answer| answer.sequence);
        let computed = self.answers.get(&row.job).map_or(0, |answer| answer.computed);
        let mut right = 0;
        for (index, guess) in (row.index..).zip(row.guess.iter().map(Some).chain([None])) {
            self.next_token(row.job, index);
            let (Some(guess), Some(sequence)) = (guess, sequence) else {
                break;
            };
            // It may have ended with this token.
            let Some(answer) = self.answers.get_mut(&row.job) else {
                break;
            };
            if answer.tokens.last() != Some(guess) {
                break;
            }
            answer.computed += 1;
            self.cache.extend(sequence, &[*guess]);
            right += 1;
        }
        if row.guess.is_empty() {
            return;
        }
        let wrong = row.guess.len() - right;
        if let (Some(sequence), true) = (sequence, wrong > 0) {
            let from = u32::try_from(computed + right).ok();
            // Nothing else has taken the sequence's place yet, also when its answer has ended.
            let _ = self
                .context
                .clear_kv_cache_seq(Some(sequence.cast_unsigned()), from, None);
        }
        let drafted = self.companion.as_mut().filter(|it| it.has_made(row.job));
        let is_drafted = drafted.is_some();
        if let Some(companion) = drafted {
            companion.heard(row.job, right);
        } else if let Some(answer) = self.answers.get_mut(&row.job) {
            answer.lookup.heard(row.guess.len(), right, &mut self.trust);
        }
        self.scheduler.went_on(row.job, right);
        self.shared
            .figures(|figures| figures.guessed(is_drafted, row.guess.len(), right));
    }
}
