//! The task that keeps an eye on one instance.
//!
//! Started by the site when the program runs, ended by cancelling its token. One task an instance and no thread:
//! between probes it is a timer.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tram_types::effective::{HealthCheck, Port};

use super::{Health, View, hint, probe};

/// Probes under way at once: bounds sockets when a thousand instances start together.
pub(crate) const PROBES_MAX: usize = 256;

/// A program that has not come up in this time gets a hint with its failure: before, it is only on its way.
const HINT_AFTER: Duration = Duration::from_millis(500);

/// What is watched.
#[derive(Debug)]
pub(crate) struct Subject {
    pub(crate) address: IpAddr,
    /// Its first process, if that is known; a restore gives it another.
    pub(crate) pid: watch::Receiver<Option<i32>>,
    pub(crate) ports: Vec<Port>,
    pub(crate) checks: Vec<HealthCheck>,
    pub(crate) started_at: Instant,
    /// An earlier process saw it healthy.
    pub(crate) became_healthy: bool,
    /// True while the instance is frozen: then it is left alone.
    pub(crate) frozen: watch::Receiver<bool>,
    /// Shared by all instances: [`PROBES_MAX`].
    pub(crate) probes: Arc<Semaphore>,
}

/// Probes until dropped; `report` gets the first view at once and then every other one.
pub(crate) async fn watch(mut subject: Subject, mut report: impl FnMut(View)) {
    let now = Instant::now();
    let mut health = Health::new(&subject.checks, subject.started_at, subject.became_healthy, now);
    if *subject.frozen.borrow() {
        health.was_frozen();
    }
    let mut shown = health.view();
    report(shown.clone());
    while let Some((index, due)) = health.next() {
        if *subject.frozen.borrow_and_update() {
            if subject.frozen.wait_for(|frozen| !*frozen).await.is_err() {
                return;
            }
            health.resume(Instant::now());
            continue;
        }
        tokio::select! {
            changed = subject.frozen.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
            () = tokio::time::sleep_until(due) => {}
        }
        let Some(check) = health.spec(index) else { return };
        let mut frozen = subject.frozen.clone();
        let result = tokio::select! {
            result = ask(&subject, check) => result,
            // Frozen in the middle: whatever came of it says nothing.
            changed = frozen.wait_for(|frozen| *frozen) => match changed {
                Ok(_) => continue,
                Err(_) => return,
            },
        };
        health.record(index, result, Instant::now());
        let view = health.view();
        if view != shown {
            shown = view;
            report(shown.clone());
        }
    }
    // Nothing to probe: stay until ended, so that the caller need not tell the two apart.
    std::future::pending().await
}

async fn ask(subject: &Subject, check: &HealthCheck) -> Result<(), String> {
    // Closed only with the site, whose end cancels this task.
    let _permit = subject.probes.acquire().await;
    match probe::probe(subject.address, &subject.ports, check).await {
        Ok(()) => Ok(()),
        Err(failure) => {
            let mut text = failure.to_string();
            let pid = *subject.pid.borrow();
            if let (probe::Failure::Refused { port }, Some(pid)) = (&failure, pid)
                && subject.started_at.elapsed() >= HINT_AFTER
                && let Some(hint) = hint::hint(pid, *port).await
            {
                text = format!("{text}; {hint}");
            }
            Err(text)
        }
    }
}
