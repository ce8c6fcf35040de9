//! What wakes the reconciler: the store's signals, the sites' news, the clock.

use std::sync::Arc;

use tokio::{
    sync::{Notify, broadcast::error::RecvError},
    task::JoinSet,
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tram_site::{Changed, Site};
use tram_store::Change;
use tram_types::{AppId, ServiceId};

use super::Reconciler;
use crate::{
    Deps, Error,
    activity::Activities,
    light::Waker,
    queue::{Key, Queue},
    routing,
};

/// Ids read at a time by a sweep: bounds what it holds in memory and how long it keeps the database busy.
const SWEEP_IDS: u32 = 256;

/// Rings alarms and sweeps, until `cancel`.
pub(crate) async fn tell_time(queue: Arc<Queue>, deps: Deps, cancel: CancellationToken) {
    let mut swept: Option<Instant> = None;
    loop {
        if swept.is_none_or(|at| at.elapsed() >= deps.settings.sweep) {
            match sweep(&queue, &deps).await {
                Ok(()) => swept = Some(Instant::now()),
                Err(error) => tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "cannot sweep for services that need attention; trying again"
                ),
            }
        }
        let now = deps.clock.now();
        let next = queue.ring(now);
        // The clock may be moved by hand or by an operator: never sleep longer than a tick.
        let wait = next.map_or(deps.settings.tick, |next| next.since(now).min(deps.settings.tick));
        tokio::select! {
            () = cancel.cancelled() => return,
            () = queue.earlier_alarm() => {}
            () = tokio::time::sleep(wait.max(MIN_WAIT)) => {}
        }
    }
}

/// Shortest wait for an alarm: tokio's timers count milliseconds.
const MIN_WAIT: std::time::Duration = std::time::Duration::from_millis(1);

async fn sweep(queue: &Queue, deps: &Deps) -> Result<(), Error> {
    let mut after: Option<ServiceId> = None;
    loop {
        let ids = deps
            .store
            .services_needing_attention(after, SWEEP_IDS)
            .await
            .map_err(Error::store("look for services that need attention"))?;
        for id in &ids {
            queue.add(Key::Service(*id));
        }
        match ids.last() {
            Some(last) if ids.len() == SWEEP_IDS as usize => after = Some(*last),
            _ => break,
        }
    }
    let mut after: Option<AppId> = None;
    loop {
        let ids = deps
            .store
            .apps_needing_attention(after, SWEEP_IDS)
            .await
            .map_err(Error::store("look for apps that need attention"))?;
        for id in &ids {
            queue.add(Key::App(*id));
        }
        match ids.last() {
            Some(last) if ids.len() == SWEEP_IDS as usize => after = Some(*last),
            _ => return Ok(()),
        }
    }
}

/// Follows the store's signals until `cancel`.
pub(crate) async fn follow_store(
    queue: Arc<Queue>,
    routing: Arc<routing::Reconciler>,
    routing_signal: Arc<Notify>,
    activities: Arc<Activities>,
    waker: Arc<Waker>,
    deps: Deps,
    cancel: CancellationToken,
) {
    let mut changes = deps.store.subscribe();
    let mut wakes = JoinSet::new();
    loop {
        let change = tokio::select! {
            () = cancel.cancelled() => return,
            change = changes.recv() => change,
            Some(_over) = wakes.join_next() => continue,
        };
        match change {
            Ok(Change::Wake(id)) => {
                activities.wake(id, 0, deps.clock.now());
                let waker = Arc::clone(&waker);
                wakes.spawn(async move { waker.wake(id).await });
            }
            Ok(Change::Service(id)) => {
                queue.add(Key::Service(id));
                routing.dirty(id);
            }
            Ok(Change::App(id)) => {
                queue.add(Key::App(id));
                routing.dirty_app(id);
            }
            Ok(Change::Domain(id)) => routing.dirty_domain(id),
            Ok(Change::InstanceSnapshot(_)) => {}
            Ok(Change::Secret(_)) => routing.dirty_secrets(),
            Ok(Change::Volume(_)) => {}
            Ok(Change::Pool(_)) => continue,
            Err(RecvError::Lagged(missed)) => {
                tracing::debug!(missed, "signals of the store were lost; sweeping");
                routing.dirty_all();
                if let Err(error) = sweep(&queue, &deps).await {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "cannot sweep after lost signals"
                    );
                }
            }
            Err(RecvError::Closed) => return,
        }
        routing_signal.notify_one();
    }
}

/// Follows a site's news until `cancel`.
pub(crate) async fn follow_site(
    region: String,
    site: Arc<dyn Site>,
    services: Arc<Reconciler>,
    queue: Arc<Queue>,
    cancel: CancellationToken,
) {
    let mut news = site.changed();
    loop {
        let changed = tokio::select! {
            () = cancel.cancelled() => return,
            changed = news.recv() => changed,
        };
        match changed {
            Ok(Changed::Instance(instance)) => {
                if let Some(owner) = services.owner_of(instance) {
                    queue.add(Key::Service(owner));
                }
            }
            Ok(Changed::Image(reference)) => {
                let waiting = services
                    .memory()
                    .image_waits
                    .remove(&reference)
                    .unwrap_or_default();
                for service in waiting {
                    queue.add(Key::Service(service));
                }
            }
            Err(RecvError::Lagged(missed)) => {
                tracing::debug!(
                    region,
                    missed,
                    "news of a site were lost; looking at everything there"
                );
                let owners: Vec<ServiceId> = services.memory().owners.values().copied().collect();
                for owner in owners {
                    queue.add(Key::Service(owner));
                }
            }
            Err(RecvError::Closed) => return,
        }
    }
}
