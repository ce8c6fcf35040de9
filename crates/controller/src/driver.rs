//! Runs a reconciler: at once, then by signal and by clock, until it is told to stop.
//!
//! A reconciler that fails is tried again after a pause that doubles; one that has more to do goes on without one.

use std::{fmt::Debug, sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::error::Error;

/// First pause after a failure.
const RETRY_MIN: Duration = Duration::from_millis(200);
/// Longest pause after a failure: an operator who mends something should see the effect soon.
const RETRY_MAX: Duration = Duration::from_secs(30);

/// Keeps one thing true. Takes no argument, does bounded work, may be repeated.
#[async_trait]
pub trait Reconciler: Send + Sync + Debug + 'static {
    /// What one run did.
    type Report: Report;

    /// For logs and metrics.
    fn name(&self) -> &'static str;

    /// How often it runs without a signal.
    fn period(&self) -> Duration;

    /// What it waits for after a signal; nothing, unless its work is in the way of whoever signals.
    fn calm(&self) -> Option<Calm> {
        None
    }

    /// Does a bounded piece of the work.
    ///
    /// # Errors
    /// When it should be tried again.
    async fn run(&self) -> Result<Self::Report, Error>;
}

/// A pause without signals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Calm {
    /// How long no signal comes.
    pub pause: Duration,
    /// How long it waits for such a pause at most.
    pub within: Duration,
}

impl Calm {
    async fn come(self, signal: &Notify) {
        let again = async {
            // Ends when no signal came for so long.
            while tokio::time::timeout(self.pause, signal.notified()).await.is_ok() {}
        };
        let _ = tokio::time::timeout(self.within, again).await;
    }
}

/// What one run did.
pub trait Report: Debug + Send {
    /// Whether anything changed: quiet runs are not logged.
    fn is_quiet(&self) -> bool;

    /// Whether there is more to do right away.
    fn has_more(&self) -> bool {
        false
    }
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing was to be done.
    Quiet,
    /// Something was done.
    Changed,
    /// Somebody else was faster; it was or will be tried again.
    Conflict,
    /// It will be tried again.
    Failed,
}

/// Is told what reconcilers do; metrics hang on it.
pub trait Observer: Send + Sync + Debug {
    /// A run of the reconciler `name` ended.
    fn ran(&self, name: &'static str, outcome: Outcome, took: Duration);

    /// A service that was woken for a call that was expected was called, or fell asleep again without one.
    fn prewoken(&self, _called: bool) {}
}

/// Tells nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoObserver;

impl Observer for NoObserver {
    fn ran(&self, _name: &'static str, _outcome: Outcome, _took: Duration) {}
}

/// Runs a reconciler until `cancel`. A step under way is finished first.
pub(crate) async fn drive<R: Reconciler>(
    reconciler: Arc<R>,
    signal: Arc<Notify>,
    observer: Arc<dyn Observer>,
    cancel: CancellationToken,
) {
    let name = reconciler.name();
    let mut pause = RETRY_MIN;
    while !cancel.is_cancelled() {
        let began = Instant::now();
        let (outcome, wait) = match reconciler.run().await {
            Ok(report) => {
                pause = RETRY_MIN;
                let wait = if report.has_more() {
                    Duration::ZERO
                } else {
                    reconciler.period()
                };
                if report.is_quiet() {
                    (Outcome::Quiet, wait)
                } else {
                    tracing::debug!(reconciler = name, ?report, "reconciled");
                    (Outcome::Changed, wait)
                }
            }
            Err(error) => {
                tracing::warn!(
                    reconciler = name,
                    error = &error as &dyn std::error::Error,
                    retry_ms = pause.as_millis(),
                    "a reconciler failed and will be tried again"
                );
                let wait = pause;
                pause = pause.saturating_mul(2).min(RETRY_MAX);
                let outcome = if error.is_conflict() {
                    Outcome::Conflict
                } else {
                    Outcome::Failed
                };
                (outcome, wait)
            }
        };
        observer.ran(name, outcome, began.elapsed());
        if wait.is_zero() {
            tokio::task::yield_now().await;
            continue;
        }
        tokio::select! {
            () = cancel.cancelled() => {}
            () = signal.notified() => {
                if let Some(calm) = reconciler.calm() {
                    tokio::select! {
                        () = cancel.cancelled() => {}
                        () = calm.come(&signal) => {}
                    }
                }
            }
            () = tokio::time::sleep(wait) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALM: Calm = Calm {
        pause: Duration::from_millis(200),
        within: Duration::from_secs(2),
    };

    /// How long it takes to come when a signal follows the other after `gap`, so many times.
    async fn waited(gap: Duration, signals: u32) -> Duration {
        let signal = Arc::new(Notify::new());
        let sender = Arc::clone(&signal);
        let sending = tokio::spawn(async move {
            for _ in 0..signals {
                tokio::time::sleep(gap).await;
                sender.notify_one();
            }
        });
        let began = Instant::now();
        CALM.come(&signal).await;
        sending.abort();
        began.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn calm_comes_a_pause_after_the_last_signal_and_in_time_without_one() {
        let [gap, slack] = [Duration::from_millis(100), Duration::from_millis(10)];
        for (signals, expected) in [(0, CALM.pause), (5, gap * 5 + CALM.pause), (1000, CALM.within)] {
            let waited = waited(gap, signals).await;
            assert!(
                waited >= expected && waited < expected + slack,
                "{signals} signals: {waited:?}"
            );
        }
    }
}
