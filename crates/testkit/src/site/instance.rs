//! One instance of the fake site and the steps its script takes.

use std::net::IpAddr;

use tram_site::{EndCause, InstancePhase, InstanceSpec, ObservedInstance};
use tram_types::{Generation, Timestamp};

use crate::behaviour::{Behaviour, Life};

/// Probes the fake says have failed once a program sickens: more than any restart limit of the contract (10).
const MANY_FAILURES: u32 = 100;

/// One instance of the fake site.
#[derive(Debug)]
pub(super) struct FakeInstance {
    pub(super) spec: InstanceSpec,
    pub(super) generation: Generation,
    pub(super) phase: InstancePhase,
    pub(super) uncheckpointable: Option<String>,
    pub(super) started_at: Timestamp,
    pub(super) life: Life,
    /// A test has set the phase by hand: the script no longer moves it.
    pub(super) pinned: bool,
    address: IpAddr,
    observations: u32,
    stop_observations: u32,
}

/// Running, all checks passing.
pub(super) const fn healthy() -> InstancePhase {
    InstancePhase::Running {
        healthy: true,
        failures: 0,
        last_failure: None,
    }
}

impl FakeInstance {
    pub(super) fn new(
        spec: InstanceSpec,
        generation: Generation,
        behaviour: Behaviour,
        address: IpAddr,
        now: Timestamp,
    ) -> Self {
        let phase = match behaviour.life {
            Life::HealthyAfter(0) | Life::EndsHealthy { .. } | Life::SickensAfter(_) => healthy(),
            _ => InstancePhase::Starting { last_failure: None },
        };
        Self {
            spec,
            generation,
            phase,
            uncheckpointable: None,
            started_at: now,
            life: behaviour.life,
            pinned: false,
            address,
            observations: 0,
            stop_observations: behaviour.stop_observations,
        }
    }

    /// Begins to stop, or ends at once when the script says so.
    pub(super) fn stop(&mut self, now: Timestamp) {
        if self.phase.is_ended() {
            return;
        }
        self.phase = if self.stop_observations == 0 {
            InstancePhase::Ended {
                cause: EndCause::Stopped,
                at: now,
            }
        } else {
            InstancePhase::Stopping
        };
    }

    /// Takes one step of the script; says whether more steps are to come.
    pub(super) fn step(&mut self, now: Timestamp) -> bool {
        if self.phase.is_ended() || self.phase.is_asleep() {
            return false;
        }
        if self.phase == InstancePhase::Stopping {
            self.stop_observations = self.stop_observations.saturating_sub(1);
            if self.stop_observations == 0 {
                self.phase = InstancePhase::Ended {
                    cause: EndCause::Stopped,
                    at: now,
                };
            }
            return true;
        }
        if self.pinned {
            return false;
        }
        self.observations = self.observations.saturating_add(1);
        let seen = self.observations;
        let (phase, more) = match &self.life {
            Life::HealthyAfter(after) if seen < *after => {
                (InstancePhase::Starting { last_failure: None }, true)
            }
            Life::HealthyAfter(_) => (healthy(), false),
            Life::NeverHealthy | Life::Refused { .. } | Life::Unavailable => (
                InstancePhase::Starting {
                    last_failure: Some("nobody listens on port 8000".to_owned()),
                },
                false,
            ),
            Life::SickensAfter(after) if seen <= *after => (healthy(), true),
            Life::SickensAfter(_) => (
                InstancePhase::Running {
                    healthy: false,
                    failures: MANY_FAILURES,
                    last_failure: Some("the probe was answered with status 500".to_owned()),
                },
                false,
            ),
            Life::EndsUnhealthy { after, .. } if seen < *after => {
                (InstancePhase::Starting { last_failure: None }, true)
            }
            Life::EndsHealthy { after, .. } if seen <= *after => (healthy(), true),
            Life::EndsUnhealthy { cause, .. } | Life::EndsHealthy { cause, .. } => (
                InstancePhase::Ended {
                    cause: cause.clone(),
                    at: now,
                },
                false,
            ),
        };
        self.phase = phase;
        more
    }

    pub(super) fn observed(&self) -> ObservedInstance {
        ObservedInstance {
            id: self.spec.id,
            generation: self.generation,
            phase: self.phase.clone(),
            address: Some(self.address),
            started_at: Some(self.started_at),
            deployment: Some(self.spec.deployment_id),
            uncheckpointable: self.uncheckpointable.clone(),
        }
    }
}
