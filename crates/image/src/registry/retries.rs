//! How often a request is tried again, and after what pause.

use std::time::Duration;

use crate::error::Error;
use crate::limits::{FIRST_BACK_OFF, MAX_BACK_OFF, MAX_BRIEF_ROUNDS, MAX_ROUNDS, MAX_TIMED_OUT_ROUNDS};

/// Counts rounds and waits between them.
#[derive(Debug)]
pub(crate) struct Retries {
    rounds: u32,
    timed_out: u32,
    max_rounds: u32,
    max_timed_out: u32,
}

impl Default for Retries {
    fn default() -> Self {
        Self {
            rounds: 0,
            timed_out: 0,
            max_rounds: MAX_ROUNDS,
            max_timed_out: MAX_TIMED_OUT_ROUNDS,
        }
    }
}

impl Retries {
    /// For a question whose answer can be done without.
    pub(super) fn brief() -> Self {
        Self {
            max_rounds: MAX_BRIEF_ROUNDS,
            max_timed_out: 1,
            ..Self::default()
        }
    }

    /// Forgives earlier rounds: bytes have arrived since.
    pub(crate) fn made_progress(&mut self) {
        *self = Self::default();
    }

    /// Waits before the next round, or gives the error back when there shall be none.
    pub(crate) async fn pause(&mut self, error: Error) -> Result<(), Error> {
        self.rounds += 1;
        let again = match &error {
            Error::Timeout { .. } | Error::Dns { .. } | Error::DigestMismatch { .. } => {
                self.timed_out += 1;
                self.timed_out < self.max_timed_out
            }
            Error::Transport { .. } => true,
            Error::Status { .. } => error.retryable(),
            _ => false,
        };
        if !again || self.rounds >= self.max_rounds {
            return Err(error);
        }
        let asked = match &error {
            Error::Status { retry_after, .. } => *retry_after,
            _ => None,
        };
        let doubled = FIRST_BACK_OFF * 2_u32.saturating_pow(self.rounds - 1);
        tokio::time::sleep(jitter(asked.unwrap_or(doubled).min(MAX_BACK_OFF))).await;
        Ok(())
    }
}

/// Up to a quarter longer, so that many pulls that failed together do not return together.
fn jitter(pause: Duration) -> Duration {
    let byte = uuid::Uuid::new_v4().as_bytes()[0];
    pause + pause * u32::from(byte) / (4 * 256)
}
