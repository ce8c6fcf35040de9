//! What may be asked of models: a question is let in before it is sent, and settled when the edge says what it cost.
//!
//! ```text
//! admit: limits of token, project, organization -> what it may cost is set aside -> the edge
//! end of the answer -> wait for the record -> settle: what was set aside goes back, what it cost is taken
//! ```
//!
//! Owns the levels of the minute, in memory, and what is set aside. Does not own what a month has cost: the store adds
//! that up, and this reads it anew now and then ([`MONTH_AGE`]). Called by the front, and by whoever counts the
//! journals ([`Budgets::settle`]).
//!
//! The choice to know: the levels fill up all the time ([`bucket`]), so that who was refused may come again as soon as
//! there is room for it, and `Retry-After` says when. A process that begins anew begins with full levels; months go on.
//! Only one process of an installation serves questions at a time, so there is nothing to share.

mod account;
mod bucket;
mod told;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tram_store::{
    Attributed, Store,
    record::{LimitScope, ModelLimit},
};
use tram_types::{Clock, CredentialId, OrganizationId, ProjectId, Timestamp, inference::Priority};
use uuid::Uuid;

use self::account::{Account, Key, Shortage};
pub(super) use self::told::Told;
use super::error::Refusal;

/// How old what is known of limits may be: a change by this process is seen at once, one by another after this.
const LIMITS_AGE: Duration = Duration::from_secs(5);
/// How old what is known of a month's cost may be. In between it follows what is counted.
const MONTH_AGE: Duration = Duration::from_secs(60);
/// How long after its answer a question's record is waited for. The edge writes it before the answer ends and it is
/// counted within a second; a control plane that stood still gets some more.
const RECORD_PATIENCE: Duration = Duration::from_secs(30);
/// Longest time that anything is set aside: a question whose end nobody saw.
const QUESTION_MAX: Duration = Duration::from_secs(6 * 60 * 60);
/// Between two looks for what was set aside too long.
const SWEEP: Duration = Duration::from_secs(1);
/// Organizations whose limits are remembered; when there are more, all are read anew.
const ORGANIZATIONS_MAX: usize = 10_000;

/// The budgets of everybody who asks. Shared by all questions.
#[derive(Debug)]
pub struct Budgets {
    store: Store,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    /// Held while the store counts questions until they are settled here, and while a month is read: else a question that
    /// is counted in between would be in both, or in neither.
    counting: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Debug, Default)]
struct State {
    limits: HashMap<OrganizationId, (Timestamp, Arc<Vec<ModelLimit>>)>,
    accounts: HashMap<Key, Account>,
    aside: HashMap<Uuid, Aside>,
    swept_at: Option<Timestamp>,
    evicted_at: Option<Timestamp>,
}

/// What is set aside for a question.
#[derive(Debug)]
struct Aside {
    accounts: Vec<Key>,
    tokens: u64,
    since: Timestamp,
    ended_at: Option<Timestamp>,
}

/// Who asks whom.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asker {
    pub(super) organization: OrganizationId,
    pub(super) credential: CredentialId,
    /// Of the service that is asked.
    pub(super) project: Option<ProjectId>,
}

impl Asker {
    /// The limit's own account, if it counts these questions.
    fn counts(&self, limit: &ModelLimit) -> bool {
        let subject = limit.subject_id.as_str();
        match limit.scope {
            LimitScope::Organization => subject == self.organization.to_string(),
            LimitScope::Credential => subject == self.credential.to_string(),
            LimitScope::Project => self.project.is_some_and(|id| subject == id.to_string()),
        }
    }
}

/// A question that was let in. What was set aside for it is waited for when this is dropped, see [`Budgets::settle`].
#[derive(Debug)]
pub(super) struct Admitted {
    budgets: Arc<Budgets>,
    /// By which the edge names it in its record.
    pub(super) question: Uuid,
    pub(super) priority: Priority,
    /// What the answer's headers say.
    pub(super) told: Told,
    is_limited: bool,
}

impl Admitted {
    /// It was not sent, or nobody answered: it costs nothing.
    pub(super) fn undo(mut self) {
        if std::mem::take(&mut self.is_limited) {
            self.budgets.undo(self.question);
        }
    }
}

impl Admitted {
    /// It was refused, and another is about to be asked in its place: what was set aside goes back now. What it cost, if
    /// it did, is taken with its record.
    pub(super) fn give_back(&mut self) {
        if std::mem::take(&mut self.is_limited) {
            self.budgets.undo(self.question);
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        if self.is_limited {
            self.budgets.ended(self.question);
        }
    }
}

impl Budgets {
    /// Nobody asked yet.
    #[must_use]
    pub fn new(store: Store, clock: Arc<dyn Clock>) -> Self {
        Self {
            store,
            clock,
            state: Mutex::default(),
            counting: Arc::default(),
        }
    }

    /// To be held by whoever counts questions, from before the store has them until after [`Budgets::settle`].
    #[must_use]
    pub fn counting(&self) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(&self.counting)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a question in that may cost so many tokens, or says when to come again.
    pub(super) async fn admit(self: &Arc<Self>, asker: Asker, tokens: u64) -> Result<Admitted, Refusal> {
        let limits = self.limits(asker.organization).await?;
        let limits: Vec<&ModelLimit> = limits.iter().filter(|limit| asker.counts(limit)).collect();
        let own = limits.iter().find(|limit| limit.scope == LimitScope::Credential);
        let mut admitted = Admitted {
            budgets: Arc::clone(self),
            question: Uuid::new_v4(),
            priority: own.map_or(Priority::Normal, |limit| limit.priority),
            told: Told::default(),
            is_limited: false,
        };
        if limits.is_empty() {
            return Ok(admitted);
        }
        for limit in &limits {
            self.read_month(limit).await?;
        }
        let now = self.clock.now();
        let mut state = self.state();
        state.sweep(now);
        let accounts: Vec<Key> = limits.iter().map(|limit| Key::of(limit)).collect();
        let mut shortages: Vec<Shortage> = Vec::new();
        for (limit, key) in limits.iter().zip(&accounts) {
            let account = state
                .accounts
                .entry(key.clone())
                .or_insert_with(|| Account::new(limit, now));
            account.follow(limit, now);
            shortages.extend(account.shortage(tokens, now));
        }
        if let Some(worst) = shortages.into_iter().max_by_key(|shortage| shortage.wait) {
            let told = state.told(&accounts, now);
            return Err(told::refusal(&worst, &told));
        }
        for key in &accounts {
            if let Some(account) = state.accounts.get_mut(key) {
                account.set_aside(tokens, now);
            }
        }
        admitted.told = state.told(&accounts, now);
        admitted.is_limited = true;
        let aside = Aside {
            accounts,
            tokens,
            since: now,
            ended_at: None,
        };
        state.aside.insert(admitted.question, aside);
        drop(state);
        Ok(admitted)
    }

    /// These questions are over and cost what their records say.
    pub fn settle(&self, records: &[Attributed]) {
        let now = self.clock.now();
        let mut state = self.state();
        for it in records {
            if let Some(aside) = state.aside.remove(&it.record.question_id) {
                state.give_back(&aside, now);
            }
            let cost = it.record.total_tokens();
            let subjects = [
                it.organization
                    .map(|id| Key::new(LimitScope::Organization, id.to_string())),
                it.project.map(|id| Key::new(LimitScope::Project, id.to_string())),
                it.record
                    .tenant
                    .map(|id| Key::new(LimitScope::Credential, id.to_string())),
            ];
            for key in subjects.into_iter().flatten() {
                if let Some(account) = state.accounts.get_mut(&key) {
                    account.spend(cost, it.record.finished_at, now);
                }
            }
        }
        state.sweep(now);
    }

    /// What this organization's limits are was changed.
    pub(crate) fn changed(&self, organization: OrganizationId) {
        self.state().limits.remove(&organization);
    }

    fn undo(&self, question: Uuid) {
        let now = self.clock.now();
        let mut state = self.state();
        if let Some(aside) = state.aside.remove(&question) {
            state.give_back(&aside, now);
        }
    }

    fn ended(&self, question: Uuid) {
        let now = self.clock.now();
        if let Some(aside) = self.state().aside.get_mut(&question) {
            aside.ended_at = Some(now);
        }
    }

    async fn limits(&self, organization: OrganizationId) -> Result<Arc<Vec<ModelLimit>>, Refusal> {
        let now = self.clock.now();
        if let Some((read_at, limits)) = self.state().limits.get(&organization)
            && now.since(*read_at) < LIMITS_AGE
        {
            return Ok(Arc::clone(limits));
        }
        let limits = Arc::new(self.store.model_limits(organization).await?);
        let mut state = self.state();
        if state.limits.len() >= ORGANIZATIONS_MAX {
            state.limits.clear();
        }
        state.limits.insert(organization, (now, Arc::clone(&limits)));
        drop(state);
        Ok(limits)
    }

    /// Has what this month has cost so far known, where a limit needs it.
    async fn read_month(&self, limit: &ModelLimit) -> Result<(), Refusal> {
        if limit.tokens_per_month == 0 {
            return Ok(());
        }
        let now = self.clock.now();
        let key = Key::of(limit);
        let month = account::month(now);
        let is_known = |now: Timestamp| {
            self.state().accounts.get(&key).is_some_and(|account| {
                account.month == month
                    && account
                        .month_read_at
                        .is_some_and(|read_at| now.since(read_at) < MONTH_AGE)
            })
        };
        if is_known(now) {
            return Ok(());
        }
        let counting = self.counting.lock().await;
        // Whoever waited with us may have read it.
        if is_known(self.clock.now()) {
            return Ok(());
        }
        let spent = self
            .store
            .tokens_spent(limit.organization_id, limit.scope, &limit.subject_id, month)
            .await?;
        let mut state = self.state();
        let account = state
            .accounts
            .entry(key)
            .or_insert_with(|| Account::new(limit, now));
        account.month = month;
        account.month_spent = spent;
        account.month_read_at = Some(now);
        drop(state);
        drop(counting);
        Ok(())
    }
}

impl State {
    fn give_back(&mut self, aside: &Aside, now: Timestamp) {
        for key in &aside.accounts {
            if let Some(account) = self.accounts.get_mut(key) {
                account.give_back(aside.tokens, now);
            }
        }
    }

    /// What the tightest of these say.
    fn told(&self, accounts: &[Key], now: Timestamp) -> Told {
        let mut told = Told::default();
        for account in accounts.iter().filter_map(|key| self.accounts.get(key)) {
            told.also(account, now);
        }
        told
    }

    /// Gives up what no record came for. Of the minute it counts as spent, of the month it does not: the store knows.
    fn sweep(&mut self, now: Timestamp) {
        if self.swept_at.is_some_and(|swept_at| now.since(swept_at) < SWEEP) {
            return;
        }
        self.swept_at = Some(now);
        if self.evicted_at.is_none_or(|at| now.since(at) >= MONTH_AGE) {
            self.evicted_at = Some(now);
            // One that is not known begins full, and its month is read anew: nothing is lost with these. Not as soon as its
            // month may be read anew: a question may have looked at it and be about to use it.
            self.accounts
                .retain(|_, account| !account.is_idle(now, MONTH_AGE * 2));
        }
        let Self { aside, accounts, .. } = self;
        aside.retain(|_, it| {
            let over = it
                .ended_at
                .is_some_and(|ended_at| now.since(ended_at) >= RECORD_PATIENCE)
                || now.since(it.since) >= QUESTION_MAX;
            if over {
                for key in &it.accounts {
                    if let Some(account) = accounts.get_mut(key) {
                        account.forget(it.tokens);
                    }
                }
            }
            !over
        });
    }
}

#[cfg(test)]
mod tests;
