//! The state machines: which change of status is legal.
//!
//! ```text
//! PENDING -> PROVISIONING -> (SCHEDULED) -> ALLOCATING -> STARTING -> HEALTHY <-> DEGRADED <-> UNHEALTHY
//!    |            |                |             |            |          |  ^
//!    +------------+----------------+             |            |          v  | request
//!    v            v                v             |            |       SLEEPING
//! CANCELING -> CANCELED                          v            v
//!    any of the start-up states -> ERRORING -> ERROR    served ones -> STOPPING -> STOPPED
//! STASHED: stored by `save_only`, never run.
//! ```
//!
//! The planner proposes, [`Deployment`](DeploymentStatus) and [`Instance`](InstanceStatus) statuses only ever move
//! along these arrows; a property test in `planner` holds it to that.

use crate::status::{DeploymentStatus, InstanceStatus};

impl DeploymentStatus {
    /// Whether nothing will ever change again.
    #[must_use]
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Canceled | Self::Stopped | Self::Error | Self::Stashed)
    }

    /// Whether the deployment is on its way up and was never healthy.
    #[must_use]
    pub const fn is_starting_up(self) -> bool {
        matches!(
            self,
            Self::Pending | Self::Provisioning | Self::Scheduled | Self::Allocating | Self::Starting
        )
    }

    /// Whether the deployment became healthy at some time and is meant to serve.
    #[must_use]
    pub const fn is_serving(self) -> bool {
        matches!(
            self,
            Self::Healthy | Self::Degraded | Self::Unhealthy | Self::Sleeping
        )
    }

    /// Whether a user may cancel it: nothing was allocated yet.
    #[must_use]
    pub const fn is_cancelable(self) -> bool {
        matches!(self, Self::Pending | Self::Provisioning | Self::Scheduled)
    }

    /// Whether the status may change to `next` in one step. Staying is always legal.
    #[must_use]
    pub fn may_become(self, next: Self) -> bool {
        use DeploymentStatus as S;
        if self == next {
            return true;
        }
        match self {
            S::Pending => matches!(next, S::Provisioning | S::Canceling | S::Erroring | S::Stopping),
            S::Provisioning => matches!(
                next,
                S::Scheduled | S::Allocating | S::Canceling | S::Erroring | S::Stopping
            ),
            S::Scheduled => matches!(next, S::Allocating | S::Canceling | S::Erroring | S::Stopping),
            S::Allocating => matches!(next, S::Starting | S::Erroring | S::Stopping | S::Canceling),
            S::Starting => matches!(
                next,
                S::Healthy | S::Degraded | S::Erroring | S::Stopping | S::Canceling
            ),
            S::Healthy => matches!(next, S::Degraded | S::Unhealthy | S::Sleeping | S::Stopping),
            S::Degraded => matches!(next, S::Healthy | S::Unhealthy | S::Sleeping | S::Stopping),
            S::Unhealthy => matches!(next, S::Healthy | S::Degraded | S::Sleeping | S::Stopping),
            S::Sleeping => matches!(next, S::Healthy | S::Degraded | S::Unhealthy | S::Stopping),
            S::Canceling => next == S::Canceled,
            S::Stopping => next == S::Stopped,
            S::Erroring => next == S::Error,
            S::Canceled | S::Stopped | S::Error | S::Stashed => false,
        }
    }
}

impl InstanceStatus {
    /// Whether the instance is over and holds nothing any more.
    #[must_use]
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Stopped | Self::Error)
    }

    /// Whether the status may change to `next` in one step. Staying is always legal.
    #[must_use]
    pub fn may_become(self, next: Self) -> bool {
        use InstanceStatus as S;
        if self == next {
            return true;
        }
        match self {
            S::Allocating => matches!(next, S::Starting | S::Stopping | S::Error),
            S::Starting => matches!(next, S::Healthy | S::Stopping | S::Error),
            S::Healthy => matches!(next, S::Unhealthy | S::Sleeping | S::Stopping | S::Error),
            S::Unhealthy => matches!(next, S::Healthy | S::Stopping | S::Error),
            S::Sleeping => matches!(next, S::Healthy | S::Stopping | S::Error),
            S::Stopping => matches!(next, S::Stopped | S::Error),
            S::Stopped | S::Error => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn final_states_stay() {
        for from in DeploymentStatus::ALL {
            for to in DeploymentStatus::ALL {
                if from.is_final() && from != to {
                    assert!(!from.may_become(*to), "{from} -> {to}");
                }
            }
        }
    }

    #[test]
    fn every_state_but_the_stashed_one_can_reach_an_end() {
        for start in DeploymentStatus::ALL {
            let mut reached = vec![*start];
            let mut next = 0;
            while next < reached.len() {
                for to in DeploymentStatus::ALL {
                    if reached[next].may_become(*to) && !reached.contains(to) {
                        reached.push(*to);
                    }
                }
                next += 1;
            }
            assert!(reached.iter().any(|state| state.is_final()), "{start} never ends");
        }
    }

    #[test]
    fn cancelling_is_legal_wherever_the_contract_allows_it() {
        for state in DeploymentStatus::ALL.iter().filter(|state| state.is_cancelable()) {
            assert!(state.may_become(DeploymentStatus::Canceling));
        }
    }
}
