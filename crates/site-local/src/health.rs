//! Whether an instance is well: when to probe, what a result means.
//!
//! [`Health`] is the pure part: it is given results and times and says what is due next and how things look. The
//! probes are in `probe`, the hints for people in `hint`, and [`watch`] puts them together, one task an instance.
//!
//! ```text
//! starting: every check fast (2 ms, then 1.3 times as long, up to 1 s) until it passed once; all passed: healthy
//! healthy:  every check once in its interval; one failure is confirmed a second later before it counts
//! failing:  every 2 s, so that recovery is seen soon; a failure counts once in an interval
//! ```
//!
//! The one design choice to know: a single failed probe of a healthy instance counts for nothing until it is
//! confirmed. Taking the only instance of a service out of traffic for half a minute because of one slow answer
//! hurts more than the second it takes to be sure.

mod hint;
mod probe;
pub(crate) mod watch;

use std::time::Duration;

use tokio::time::Instant;
use tram_types::effective::HealthCheck;

/// The first probe: the fastest programs listen by then, and a refused connection costs next to nothing. (The clock of
/// the runtime has milliseconds, so it is the next one.)
const FIRST_PROBE: Duration = Duration::from_micros(500);
/// The last time between probes of an instance that starts (digest, section 3.3).
const STARTUP_INTERVAL_MAX: Duration = Duration::from_secs(1);
/// Before a failure of a healthy instance counts, it is asked again after so long.
const CONFIRMATION: Duration = Duration::from_secs(1);
/// Between probes of an instance that fails, unless its interval is shorter.
const RECOVERY_INTERVAL: Duration = Duration::from_secs(2);

/// How an instance looks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct View {
    /// All checks passed once.
    pub(crate) became_healthy: bool,
    /// All checks pass now.
    pub(crate) healthy: bool,
    /// Failures in a row that count, of the check that fails most.
    pub(crate) failures: u32,
    /// Why the last failed probe failed.
    pub(crate) last_failure: Option<String>,
}

/// The checks of one instance.
#[derive(Debug)]
pub(crate) struct Health {
    started_at: Instant,
    became_healthy: bool,
    checks: Vec<Check>,
}

#[derive(Debug)]
struct Check {
    spec: HealthCheck,
    state: State,
    due: Instant,
    last_failure: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Never passed. Holds the time to the next probe.
    Starting {
        pause: Duration,
    },
    Passing,
    /// Failed once; being asked again.
    Doubtful,
    /// Fails.
    Failing {
        failures: u32,
        counted_at: Instant,
    },
    /// Passed in the life of an earlier control plane; not asked yet in this one.
    Unknown,
}

impl Health {
    /// Checks of an instance that started at `started_at`; `became_healthy` when an earlier process saw it healthy.
    pub(crate) fn new(
        checks: &[HealthCheck],
        started_at: Instant,
        became_healthy: bool,
        now: Instant,
    ) -> Self {
        let checks = checks
            .iter()
            .map(|spec| Check {
                spec: spec.clone(),
                state: if became_healthy {
                    State::Unknown
                } else {
                    State::Starting { pause: FIRST_PROBE }
                },
                due: if became_healthy {
                    now
                } else {
                    started_at + FIRST_PROBE
                },
                last_failure: None,
            })
            .collect::<Vec<_>>();
        // Without checks an instance is healthy while it runs.
        let became_healthy = became_healthy || checks.is_empty();
        Self {
            started_at,
            became_healthy,
            checks,
        }
    }

    /// Which check is due next, and when; `None` when there are no checks.
    pub(crate) fn next(&self) -> Option<(usize, Instant)> {
        self.checks
            .iter()
            .enumerate()
            .map(|(index, check)| (index, check.due))
            .min_by_key(|(_, due)| *due)
    }

    /// What check `index` does.
    pub(crate) fn spec(&self, index: usize) -> Option<&HealthCheck> {
        self.checks.get(index).map(|check| &check.spec)
    }

    /// Takes the result of a probe of check `index` that ended at `now`.
    pub(crate) fn record(&mut self, index: usize, result: Result<(), String>, now: Instant) {
        let in_grace = |spec: &HealthCheck| now < self.started_at + spec.grace_period;
        let Some(check) = self.checks.get_mut(index) else {
            return;
        };
        let recovery = RECOVERY_INTERVAL.min(check.spec.interval);
        let pause = match result {
            Ok(()) => {
                check.state = State::Passing;
                check.last_failure = None;
                check.spec.interval
            }
            Err(reason) => {
                check.last_failure = Some(reason);
                match check.state {
                    State::Starting { pause } => {
                        let next = pause.mul_f64(1.3).min(STARTUP_INTERVAL_MAX);
                        check.state = State::Starting { pause: next };
                        next
                    }
                    State::Passing | State::Unknown => {
                        check.state = State::Doubtful;
                        CONFIRMATION
                    }
                    // A failure in the grace period is seen, and does not count.
                    State::Doubtful => {
                        let failures = u32::from(!in_grace(&check.spec));
                        check.state = State::Failing {
                            failures,
                            counted_at: now,
                        };
                        recovery
                    }
                    State::Failing { failures, counted_at } => {
                        if now >= counted_at + check.spec.interval && !in_grace(&check.spec) {
                            check.state = State::Failing {
                                failures: failures.saturating_add(1),
                                counted_at: now,
                            };
                        }
                        recovery
                    }
                }
            }
        };
        check.due = now + pause;
        if self.checks.iter().all(|check| check.state == State::Passing) {
            self.became_healthy = true;
        }
    }

    /// An earlier process froze it. Only what is healthy is frozen, so what passed before is taken to pass until it is
    /// asked again: nobody should wait for a probe after the thaw.
    pub(crate) fn was_frozen(&mut self) {
        for check in &mut self.checks {
            if check.state == State::Unknown {
                check.state = State::Passing;
            }
        }
    }

    /// After a time without probes (frozen): what was known holds, and everything is asked again soon.
    pub(crate) fn resume(&mut self, now: Instant) {
        for check in &mut self.checks {
            check.due = check.due.max(now + CONFIRMATION);
            if let State::Failing { counted_at, .. } = &mut check.state {
                *counted_at = now;
            }
        }
    }

    /// How things look.
    pub(crate) fn view(&self) -> View {
        let failures = self.checks.iter().map(|check| match check.state {
            State::Failing { failures, .. } => failures,
            _ => 0,
        });
        View {
            became_healthy: self.became_healthy,
            healthy: self.became_healthy
                && self
                    .checks
                    .iter()
                    .all(|check| matches!(check.state, State::Passing | State::Doubtful)),
            failures: failures.max().unwrap_or(0),
            last_failure: self.checks.iter().find_map(|check| check.last_failure.clone()),
        }
    }
}

#[cfg(test)]
mod tests;
