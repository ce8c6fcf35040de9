//! What one subject of a limit has left.

use std::time::Duration;

use jiff::{ToSpan as _, tz::TimeZone};
use tram_store::record::{LimitScope, ModelLimit};
use tram_types::Timestamp;

use super::bucket::Bucket;

/// Whose account.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    scope: LimitScope,
    subject: String,
}

impl Key {
    pub(super) const fn new(scope: LimitScope, subject: String) -> Self {
        Self { scope, subject }
    }

    pub(super) fn of(limit: &ModelLimit) -> Self {
        Self::new(limit.scope, limit.subject_id.clone())
    }
}

/// What one subject has left. Numbers of the limit that are 0 limit nothing.
#[derive(Debug)]
pub(super) struct Account {
    pub(super) scope: LimitScope,
    pub(super) requests_a_minute: u64,
    pub(super) tokens_a_minute: u64,
    pub(super) tokens_a_month: u64,
    pub(super) requests: Bucket,
    pub(super) tokens: Bucket,
    /// The first moment of the month that is counted.
    pub(super) month: Timestamp,
    pub(super) month_spent: u64,
    pub(super) month_read_at: Option<Timestamp>,
    /// Tokens of questions that are under way or whose record did not come yet.
    pub(super) aside: u64,
}

/// What is short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    RequestsAMinute,
    TokensAMinute,
    TokensAMonth,
}

/// Why a question must wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shortage {
    pub(super) scope: LimitScope,
    pub(super) what: What,
    pub(super) limit: u64,
    pub(super) left: u64,
    pub(super) wanted: u64,
    pub(super) wait: Duration,
}

impl Account {
    pub(super) fn new(limit: &ModelLimit, now: Timestamp) -> Self {
        Self {
            scope: limit.scope,
            requests_a_minute: limit.requests_per_minute,
            tokens_a_minute: limit.tokens_per_minute,
            tokens_a_month: limit.tokens_per_month,
            requests: Bucket::full(limit.requests_per_minute, now),
            tokens: Bucket::full(limit.tokens_per_minute, now),
            month: month(now),
            month_spent: 0,
            month_read_at: None,
            aside: 0,
        }
    }

    /// Takes over what the limit says now, and lets the levels fill up to now. One that limits from now on begins full.
    pub(super) fn follow(&mut self, limit: &ModelLimit, now: Timestamp) {
        for (bucket, known, wanted) in [
            (
                &mut self.requests,
                &mut self.requests_a_minute,
                limit.requests_per_minute,
            ),
            (
                &mut self.tokens,
                &mut self.tokens_a_minute,
                limit.tokens_per_minute,
            ),
        ] {
            if *known == 0 && wanted > 0 {
                *bucket = Bucket::full(wanted, now);
            }
            *known = wanted;
            bucket.fill(wanted, now);
        }
        self.tokens_a_month = limit.tokens_per_month;
        if self.month != month(now) {
            self.month = month(now);
            self.month_spent = 0;
        }
    }

    /// What keeps a question out that may cost so many tokens: whatever takes longest. None: it may go.
    pub(super) fn shortage(&self, tokens: u64, now: Timestamp) -> Option<Shortage> {
        let of = |what, limit, left, wanted, wait| Shortage {
            scope: self.scope,
            what,
            limit,
            left,
            wanted,
            wait,
        };
        let mut found = Vec::new();
        let requests = self.requests.wait(1, self.requests_a_minute);
        if !requests.is_zero() {
            let left = self.requests.left();
            found.push(of(
                What::RequestsAMinute,
                self.requests_a_minute,
                left,
                1,
                requests,
            ));
        }
        let wait = self.tokens.wait(tokens, self.tokens_a_minute);
        if !wait.is_zero() {
            let left = self.tokens.left();
            found.push(of(What::TokensAMinute, self.tokens_a_minute, left, tokens, wait));
        }
        let left = self.month_left();
        if self.tokens_a_month > 0 && tokens > left {
            let wait = next_month(now).since(now);
            found.push(of(What::TokensAMonth, self.tokens_a_month, left, tokens, wait));
        }
        found.into_iter().max_by_key(|shortage| shortage.wait)
    }

    /// What of the month's tokens is neither spent nor set aside.
    pub(super) const fn month_left(&self) -> u64 {
        self.tokens_a_month
            .saturating_sub(self.month_spent)
            .saturating_sub(self.aside)
    }

    /// Sets aside what a question may cost.
    pub(super) fn set_aside(&mut self, tokens: u64, now: Timestamp) {
        self.fill(now);
        self.requests.take(1);
        self.tokens.take(tokens.min(self.tokens_a_minute));
        self.aside = self.aside.saturating_add(tokens);
    }

    /// What was set aside was not needed.
    pub(super) fn give_back(&mut self, tokens: u64, now: Timestamp) {
        self.fill(now);
        self.tokens
            .give_back(tokens.min(self.tokens_a_minute), self.tokens_a_minute);
        self.forget(tokens);
    }

    /// What was set aside is gone from the minute, and not known to the month.
    pub(super) fn forget(&mut self, tokens: u64) {
        self.aside = self.aside.saturating_sub(tokens);
    }

    /// A question that ended then cost so much.
    pub(super) fn spend(&mut self, tokens: u64, ended_at: Timestamp, now: Timestamp) {
        self.fill(now);
        self.tokens.take(tokens);
        if month(ended_at) == self.month {
            self.month_spent = self.month_spent.saturating_add(tokens);
        }
    }

    /// Whether nothing is known of it that a new one would not know: its levels are full, nothing is under way, and what its
    /// month has cost was read longer than `age` ago.
    pub(super) fn is_idle(&mut self, now: Timestamp, age: Duration) -> bool {
        self.fill(now);
        let full = |bucket: &Bucket, a_minute| bucket.wait(a_minute, a_minute).is_zero();
        self.aside == 0
            && full(&self.requests, self.requests_a_minute)
            && full(&self.tokens, self.tokens_a_minute)
            && self.month_read_at.is_none_or(|read_at| now.since(read_at) >= age)
    }

    fn fill(&mut self, now: Timestamp) {
        self.requests.fill(self.requests_a_minute, now);
        self.tokens.fill(self.tokens_a_minute, now);
    }
}

/// The first moment of the month, in UTC; the moment itself at the ends of the calendar.
pub(super) fn month(at: Timestamp) -> Timestamp {
    let first = at.jiff().to_zoned(TimeZone::UTC).first_of_month();
    let first = first.and_then(|day| day.start_of_day());
    first.map_or(at, |start| start.timestamp().into())
}

/// The first moment of the month after.
fn next_month(at: Timestamp) -> Timestamp {
    let first = month(at).jiff().to_zoned(TimeZone::UTC);
    let next = first.checked_add(1.month());
    next.map_or(at, |start| start.timestamp().into())
}
