//! Which models sleep so that another one can wake: several of them within one machine's memory.
//!
//! An operator gives the models of a machine a budget of memory. One that is about to start or wake asks for [`room`];
//! where the budget does not hold it, the least valuable of those that rest are put to sleep. The value of a model that
//! is there is what losing it costs, for each byte that it holds:
//!
//! ```text
//! chance of a call within the next minutes * seconds that its wake takes / bytes
//! ```
//!
//! the smallest first, as GreedyDual-Size-Frequency does for caches (Cherkasova, "Improving WWW Proxies Performance with
//! Greedy-Dual-Size-Frequency Caching Policy", HP Labs, 1998). That policy counts past calls and lets them age; we know
//! more, namely after how much idle time each model was called before ([`Pattern::chance_within`]), and recency is in it:
//! the chance of one that nothing is known of falls with its idle time.
//!
//! What is never put to sleep: a model that answers, that somebody waits for or that has a session open; one whose
//! definition promises an instance; one that was woken so lately that it would have spent most of its time on loading.
//!
//! Pure, and apart from the other concerns, as it decides about several services. The controller calls it when a plan
//! makes an instance of a model, and a service that was chosen is planned with [`crate::ServiceView::gives_way`].

use std::time::Duration;

use tram_types::{ServiceId, Timestamp};

use crate::{
    prewake::{Budget, Pattern},
    sleep,
    view::ServiceView,
};

/// How far ahead a call is worth keeping a model for: in so many minutes whoever had to go is back for another reason.
pub const HORIZON_MINUTES: u32 = 10;
/// A model stays for so long at least after it woke: callers who came together with the first one are answered, and who
/// polls sees it HEALTHY.
const RESIDENCE_MIN: Duration = Duration::from_secs(10);
/// And for so many times what its wake took: then loading takes a third of the machine's time at most, however models
/// follow each other.
const RESIDENCE_WAKES: u32 = 2;
/// But no longer than this: somebody waits, and the data plane holds nobody for longer than a minute.
const RESIDENCE_MAX: Duration = Duration::from_secs(40);
/// What a wake takes that was never seen: a process, and its file read from a disk of the slower kind.
const WAKE_MIN: Duration = Duration::from_secs(1);
const READ_BYTES_PER_SECOND: u64 = 500_000_000;

/// Whether a model that holds memory may be put to sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// Nobody asks it anything.
    May,
    /// It answers, somebody waits for it, or a session is open in it.
    Busy,
    /// Its definition, or its owner, promises that it runs.
    Promised,
    /// Not enough is known of it yet.
    Unknown,
}

/// A service whose model holds memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Resident {
    /// Which.
    pub service: ServiceId,
    /// Bytes of its instances, of those too that are on their way up or out.
    pub held: u64,
    /// Bytes of those of them that are on their way out.
    pub leaving: u64,
    /// Whether it may be put to sleep.
    pub rest: Rest,
    /// When it last woke.
    pub woken_at: Option<Timestamp>,
    /// When it was last called.
    pub called_at: Option<Timestamp>,
    /// The chance of a call within [`HORIZON_MINUTES`], from 0 to 1.
    pub chance: f64,
    /// What its wake takes; `None`: never measured.
    pub wake: Option<Duration>,
}

/// Whether an instance finds room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// There is room.
    Free,
    /// There will be, once what is on its way out is gone.
    Coming,
    /// There will be, once these sleep: the least valuable first.
    Sleep(Vec<ServiceId>),
    /// Not now.
    Full(Full),
    /// Not even alone.
    Never,
}

/// Why there is no room now: how many others hold memory, by why they keep it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Full {
    /// They answer, or somebody waits for them.
    pub busy: u32,
    /// They were woken just now.
    pub fresh: u32,
    /// They are promised to run.
    pub promised: u32,
    /// They rest, and are not put to sleep for a wake that nobody waits for; or not enough is known of them.
    pub other: u32,
}

/// Room for `needs` bytes of `asks` beside `residents`, whose order does not matter, within `budget` bytes. `reserved`:
/// bytes that are being freed for others who asked before. `may_displace`: somebody waits for it.
#[must_use]
pub fn room(
    budget: u64,
    needs: u64,
    asks: ServiceId,
    reserved: u64,
    residents: &[Resident],
    may_displace: bool,
    now: Timestamp,
) -> Verdict {
    if needs > budget {
        return Verdict::Never;
    }
    let held = residents
        .iter()
        .fold(reserved, |sum, it| sum.saturating_add(it.held));
    // What a busy one is about to give back comes when its last answer ends, which may be in an hour.
    let leaving = residents
        .iter()
        .filter(|it| it.service == asks || it.rest != Rest::Busy)
        .fold(0_u64, |sum, it| sum.saturating_add(it.leaving));
    let whole = held.saturating_add(needs);
    if whole <= budget {
        return Verdict::Free;
    }
    if whole.saturating_sub(leaving) <= budget {
        return Verdict::Coming;
    }
    let missing = whole.saturating_sub(leaving).saturating_sub(budget);
    let mut full = Full::default();
    let mut candidates: Vec<&Resident> = Vec::new();
    let others = residents.iter().filter(|it| it.service != asks);
    for resident in others.filter(|it| gives(it) > 0 || (it.rest == Rest::Busy && it.held > 0)) {
        match resident.rest {
            Rest::Busy => full.busy += 1,
            Rest::Promised => full.promised += 1,
            Rest::May if is_fresh(resident, now) => full.fresh += 1,
            Rest::May if may_displace => candidates.push(resident),
            Rest::May | Rest::Unknown => full.other += 1,
        }
    }
    candidates.sort_by(|one, other| {
        density(one)
            .total_cmp(&density(other))
            .then(used_at(one).cmp(&used_at(other)))
            .then(one.service.cmp(&other.service))
    });
    let mut freed = 0_u64;
    let mut chosen: Vec<&Resident> = Vec::new();
    for candidate in candidates {
        if freed >= missing {
            break;
        }
        freed = freed.saturating_add(gives(candidate));
        chosen.push(candidate);
    }
    if freed < missing {
        full.other += u32::try_from(chosen.len()).unwrap_or(u32::MAX);
        return Verdict::Full(full);
    }
    // A large one that was added last may make small ones needless: the most valuable of these stay.
    for index in (0..chosen.len()).rev() {
        let spare = gives(chosen[index]);
        if freed - spare >= missing {
            freed -= spare;
            chosen.remove(index);
        }
    }
    Verdict::Sleep(chosen.into_iter().map(|it| it.service).collect())
}

/// What a model gives back when it sleeps, beside what it gives back already.
fn gives(resident: &Resident) -> u64 {
    resident.held.saturating_sub(resident.leaving)
}

/// Whether a model woke too lately to be put to sleep again.
fn is_fresh(resident: &Resident, now: Timestamp) -> bool {
    let stays = residence(resident.wake);
    // A wake in the future is of a clock that was set back, and says nothing.
    resident
        .woken_at
        .is_some_and(|woken| woken <= now && now < woken.plus(stays))
}

/// How long a model stays at least after a wake that took so long.
#[must_use]
pub fn residence(wake: Option<Duration>) -> Duration {
    let loading = wake.unwrap_or_default().saturating_mul(RESIDENCE_WAKES);
    loading.clamp(RESIDENCE_MIN, RESIDENCE_MAX)
}

/// When a model was last of use, as far as is known.
fn used_at(resident: &Resident) -> Option<Timestamp> {
    resident.called_at.max(resident.woken_at)
}

/// What losing a model costs, for each byte.
fn density(resident: &Resident) -> f64 {
    let guess = || WAKE_MIN + Duration::from_secs(resident.held / READ_BYTES_PER_SECOND);
    let wake = resident.wake.unwrap_or_else(guess);
    resident.chance.clamp(0.0, 1.0) * wake.as_secs_f64() / gives(resident).max(1) as f64
}

/// The chance that a service is called within [`HORIZON_MINUTES`] when it has been idle for so long. `pattern`: what is
/// known of its habits.
#[must_use]
pub fn chance(pattern: Option<&Pattern>, idle: Duration) -> f64 {
    let unknown = Pattern::default();
    pattern
        .unwrap_or(&unknown)
        .chance_within(&Budget::default(), idle, HORIZON_MINUTES)
}

/// Whether a service may be put to sleep by what it is, whatever its traffic says: it may sleep at all, a definition
/// with a minimum of 0 serves, none is on its way, and every site answers.
#[must_use]
pub fn may_rest(view: &ServiceView) -> bool {
    let serves = |it: &&crate::Deployment| it.status.is_serving();
    let serving = view.deployments.iter().filter(serves).max_by_key(|it| it.version);
    let coming = view.deployments.iter().any(|it| it.status.is_starting_up());
    view.intent == crate::Intent::Run && view.may_sleep && !coming && serving.is_some_and(sleep::sleeps)
}

#[cfg(test)]
mod tests;
