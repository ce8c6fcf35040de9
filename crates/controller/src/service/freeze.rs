//! Orders of light sleep, each in its turn with a wake beside us: see [`crate::light`].

use tokio::sync::MutexGuard as Turn;
use tram_planner::{Activity, Plan, Write};
use tram_site::Error as SiteError;
use tram_store::record;
use tram_types::InstanceId;

use super::{
    Reconciler,
    execute::{Done, words},
    view::Seen,
};
use crate::{error::Error, light::Sleeper};

/// Times in a row a site may fail to freeze an instance: a supervisor that is restarted costs one, and what fails every
/// time is a program that will not be frozen.
const TRIES: u32 = 3;

/// How an instance could not be frozen.
#[derive(Debug, Clone, Default)]
pub(super) struct Failures {
    count: u32,
    /// It is not tried again.
    given_up: bool,
    message: String,
}

/// The traffic of a service. One that was woken beside us was wanted, whatever became of its callers.
pub(super) const fn activity(known: Activity, woken: bool) -> Activity {
    match known {
        Activity::Known {
            in_flight,
            queued,
            last_at,
            wake,
        } => Activity::Known {
            in_flight,
            queued,
            last_at,
            wake: wake || woken,
        },
        Activity::Unknown if woken => Activity::Known {
            in_flight: 0,
            queued: 0,
            last_at: None,
            wake: true,
        },
        Activity::Unknown => Activity::Unknown,
    }
}

/// Whether the sleep that was seen has ended since, or before, though the store may not say so yet.
fn is_over(seen: &Seen, sleeper: &Sleeper) -> bool {
    let since = seen.view.sleeping_since;
    since.is_some_and(|since| sleeper.is_over(since))
}

impl Reconciler {
    /// Before kept instances are recorded to be on their way out: nobody may thaw them for a caller from then on. The
    /// turn is to be held until that is written. `Err`: the plan did not know of a wake.
    pub(super) async fn send_away<'s>(
        &self,
        seen: &Seen,
        plan: &Plan,
        sleeper: &'s Sleeper,
    ) -> Result<Option<Turn<'s, ()>>, Done> {
        let leaves = |write: &Write| match write {
            Write::Instance(write) if !is_kept(write.to) => Some(write.id),
            _ => None,
        };
        let leaving: Vec<InstanceId> = plan.writes.iter().filter_map(leaves).collect();
        if leaving.is_empty() {
            return Ok(None);
        }
        let turn = sleeper.turn().await;
        if !seen.over && is_over(seen, sleeper) {
            return Err(Done::Conflict);
        }
        sleeper.send_away(&leaving);
        Ok(Some(turn))
    }

    pub(super) async fn freeze(&self, seen: &Seen, instance: InstanceId) -> Result<Option<Done>, Error> {
        let id = seen.view.id;
        let (Some((row, site)), Some(sleeper)) = (self.row(seen, instance), self.sleepers.get(id)) else {
            return Ok(None);
        };
        let _turn = sleeper.turn().await;
        // The sleep may have begun in this very plan, and then nobody can have ended it yet.
        if is_over(seen, &sleeper) {
            return Ok(Some(Done::Progress));
        }
        // With a request under way, or a link that is down, the news that this has changed brings us here again.
        if seen.view.routed && !self.deps.data_plane.is_quiet(id).await.unwrap_or(false) {
            return Ok(None);
        }
        let frozen = site.freeze(instance, row.generation).await;
        let mut memory = self.memory();
        let unfrozen = &mut memory.services.entry(id).or_default().unfrozen;
        match frozen {
            Ok(()) => {
                unfrozen.remove(&instance);
                Ok(None)
            }
            Err(error @ (SiteError::Refused { .. } | SiteError::Unavailable { .. })) => {
                let failures = unfrozen.entry(instance).or_default();
                failures.count += 1;
                failures.message = words(&error);
                failures.given_up = !error.is_retryable() || failures.count >= TRIES;
                if failures.given_up {
                    Ok(Some(Done::Progress))
                } else {
                    Err(Error::site("freeze an instance")(error))
                }
            }
            Err(error) => Err(Error::site("freeze an instance")(error)),
        }
    }

    /// Has a frozen instance moved to disk. A wake that came before is seen here; one that comes later overtakes it at
    /// the site, and waits for nothing but its turn.
    pub(super) async fn checkpoint(&self, seen: &Seen, instance: InstanceId) -> Result<Option<Done>, Error> {
        let (Some((row, site)), Some(sleeper)) = (self.row(seen, instance), self.sleepers.get(seen.view.id))
        else {
            return Ok(None);
        };
        let _turn = sleeper.turn().await;
        if is_over(seen, &sleeper) {
            return Ok(Some(Done::Progress));
        }
        let begun = site.checkpoint(instance, row.generation).await;
        begun.map_err(Error::site("checkpoint an instance"))?;
        Ok(None)
    }

    pub(super) async fn thaw(&self, seen: &Seen, instance: InstanceId) -> Result<Option<Done>, Error> {
        let Some((row, site)) = self.row(seen, instance) else {
            return Ok(None);
        };
        let sleeper = self.sleepers.get(seen.view.id);
        let _turn = match &sleeper {
            Some(sleeper) => Some(sleeper.turn().await),
            None => None,
        };
        let thawed = site.thaw(instance, row.generation).await;
        thawed.map_err(Error::site("thaw an instance"))?;
        Ok(None)
    }

    /// Why an instance is not to be frozen any more.
    pub(super) fn unfreezable(&self, row: &record::Instance) -> Option<String> {
        let memory = self.memory();
        let failures = memory.services.get(&row.service_id)?.unfrozen.get(&row.id)?;
        failures.given_up.then(|| failures.message.clone())
    }
}

const fn is_kept(status: tram_types::status::InstanceStatus) -> bool {
    use tram_types::status::InstanceStatus as I;
    matches!(status, I::Healthy | I::Sleeping)
}
