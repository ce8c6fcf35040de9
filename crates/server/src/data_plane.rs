//! The link to the edge process, in the controller's words. Connects again for as long as the control plane lives.

use std::{path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::sync::{Mutex, RwLock, mpsc};
use tokio_util::sync::CancellationToken;
use tram_controller::data_plane::{DataPlane, Error, Event, Latency, ServiceActivity};
use tram_edge::link;
use tram_planner::Tally;
use tram_types::routing::SecretHash;
use tram_types::{
    InstanceId, ServiceId, Timestamp,
    routing::{RoutingTable, TableChange},
};

use crate::{figures::Figures, metrics::Metrics, wakes::Wakes};

/// Pause before the edge is looked for again. Short: an edge that is being started again is back in milliseconds,
/// and the attempt is one connect on a Unix socket.
const RECONNECT: Duration = Duration::from_millis(50);
/// News that may wait for the controller. More would be old before they are read; the link itself holds back too.
const EVENTS_MAX: usize = 256;

/// The edge process as the controller's data plane.
#[derive(Debug)]
pub struct EdgeLink {
    client: Arc<RwLock<Option<Arc<link::Client>>>>,
    events: Mutex<mpsc::Receiver<Event>>,
    wakes: Arc<Wakes>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
}

impl EdgeLink {
    /// Keeps a link to the edge that listens on `socket`; what it reports also goes into `figures`,
    /// and how long wakes take into `metrics`.
    #[must_use]
    pub fn start(
        socket: PathBuf,
        front: Option<SecretHash>,
        figures: Arc<Figures>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let client = Arc::new(RwLock::new(None));
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let stop = CancellationToken::new();
        let wakes = Arc::new(Wakes::default());
        let seen = Seen {
            front,
            figures,
            wakes: Arc::clone(&wakes),
            metrics: Arc::clone(&metrics),
        };
        tokio::spawn(follow(socket, seen, Arc::clone(&client), sender, stop.clone()));
        Self {
            client,
            events: Mutex::new(events),
            wakes,
            metrics,
            stop,
        }
    }

    /// The edge's metrics in Prometheus' text format; `None` while the link is down.
    pub async fn metrics(&self) -> Option<String> {
        let client = self.client.read().await.clone()?;
        client.metrics().await.ok()
    }

    /// Whether the edge is there.
    pub async fn is_connected(&self) -> bool {
        self.client.read().await.is_some()
    }
}

impl Drop for EdgeLink {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Who else wants to know what the edge reports.
#[derive(Debug)]
struct Seen {
    /// By which our own front proves itself to the edge.
    front: Option<SecretHash>,
    figures: Arc<Figures>,
    wakes: Arc<Wakes>,
    metrics: Arc<Metrics>,
}

async fn follow(
    socket: PathBuf,
    seen: Seen,
    shared: Arc<RwLock<Option<Arc<link::Client>>>>,
    sender: mpsc::Sender<Event>,
    stop: CancellationToken,
) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = one_link(&socket, &seen, &shared, &sender) => {}
        }
        let was_up = shared.write().await.take().is_some();
        if was_up {
            tracing::warn!("the link to the edge broke; the edge goes on serving what it has");
            if sender.send(Event::Lost).await.is_err() {
                return;
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(RECONNECT) => {}
        }
    }
}

/// From one connect to its end.
async fn one_link(
    socket: &std::path::Path,
    seen: &Seen,
    shared: &RwLock<Option<Arc<link::Client>>>,
    sender: &mpsc::Sender<Event>,
) {
    let (client, mut events) = match link::Client::connect_with_front(socket, seen.front.clone()).await {
        Ok(link) => link,
        Err(error) => {
            tracing::debug!(error = %crate::chain(&error), "the edge cannot be reached yet");
            return;
        }
    };
    let edge = client.hello().edge_id;
    let held = client.hello().table_version;
    *shared.write().await = Some(Arc::new(client));
    tracing::info!(%edge, held, "linked to the edge");
    if sender.send(Event::Connected { held }).await.is_err() {
        return;
    }
    let mut closed = Vec::new();
    while let Some(event) = events.next().await {
        if let link::Event::Wake(demand) = &event {
            seen.wakes
                .demanded(demand.service_id, demand.traceparent.as_deref());
        }
        if let link::Event::Report(report) = &event {
            seen.figures.traffic(edge, report);
            seen.metrics.models().traffic(report);
            for port in newly_closed(&mut closed, &report.closed_ports) {
                tracing::warn!(
                    port = port.public_port,
                    reason = port.reason,
                    "the edge cannot open a public TCP port"
                );
            }
        }
        if let link::Event::Report(report) = &event {
            for told in report
                .services
                .iter()
                .filter(|service| !service.tallies.is_empty())
            {
                if sender.send(tallies(told)).await.is_err() {
                    return;
                }
            }
            let busy = Event::Busy {
                version: report.table_version,
                instances: report
                    .busy_instances
                    .iter()
                    .map(|busy| InstanceId::from_uuid(busy.instance_id))
                    .collect(),
            };
            if sender.send(busy).await.is_err() {
                return;
            }
        }
        if sender.send(translate(event)).await.is_err() {
            return;
        }
    }
}

/// Those that the last report did not name: every report names all.
fn newly_closed<'r>(
    known: &mut Vec<link::ClosedPort>,
    reported: &'r [link::ClosedPort],
) -> Vec<&'r link::ClosedPort> {
    if known.as_slice() == reported {
        return Vec::new();
    }
    let news = reported.iter().filter(|port| !known.contains(port)).collect();
    *known = reported.to_vec();
    news
}

fn tallies(told: &link::ServiceReport) -> Event {
    let tally = |it: &link::InstanceTally| Tally {
        answers: it.answers,
        failures: it.failures,
    };
    let instances = told.tallies.iter();
    Event::Tallies {
        service: ServiceId::from_uuid(told.service_id),
        instances: instances
            .map(|it| (InstanceId::from_uuid(it.instance_id), tally(it)))
            .collect(),
    }
}

fn translate(event: link::Event) -> Event {
    match event {
        link::Event::Wake(demand) => Event::Wake {
            service: ServiceId::from_uuid(demand.service_id),
            waiting: u64::from(demand.waiting),
        },
        link::Event::Report(report) => Event::Report {
            complete: report.complete,
            services: report
                .services
                .into_iter()
                .map(|service| ServiceActivity {
                    service: ServiceId::from_uuid(service.service_id),
                    in_flight: u64::from(service.in_flight),
                    queued: u64::from(service.queued),
                    last_at: service.last_activity.map(Timestamp::from),
                    arrivals: Some(service.arrivals),
                    latency: Latency {
                        bounds_us: service.latency.bounds_us,
                        counts: service.latency.counts,
                    },
                })
                .collect(),
        },
    }
}

fn untaken(error: link::Error) -> Error {
    match error {
        link::Error::Refused { held, reason, .. } => Error::Refused { held, reason },
        other => Error::Lost(Some(Box::new(other))),
    }
}

#[async_trait]
impl DataPlane for EdgeLink {
    async fn push(&self, table: &RoutingTable) -> Result<(), Error> {
        let client = self.client.read().await.clone().ok_or(Error::Lost(None))?;
        client.push_table(table).await.map_err(untaken)?;
        for ended in self.wakes.in_force(&table.services) {
            self.metrics.woke(ended);
        }
        Ok(())
    }

    async fn change(&self, change: &TableChange) -> Result<bool, Error> {
        let client = self.client.read().await.clone().ok_or(Error::Lost(None))?;
        if !client.hello().changes {
            return Ok(false);
        }
        client.push_change(change).await.map_err(untaken)?;
        for ended in self.wakes.changed(&change.services, &change.services_gone) {
            self.metrics.woke(ended);
        }
        Ok(true)
    }

    async fn thawed(
        &self,
        service: ServiceId,
        version: u64,
        instances: Vec<InstanceId>,
    ) -> Result<bool, Error> {
        let client = self.client.read().await.clone().ok_or(Error::Lost(None))?;
        if !client.hello().light_sleep {
            return Ok(false);
        }
        let instances = instances.into_iter().map(InstanceId::uuid).collect();
        let told = client.thawed(service.uuid(), version, instances).await;
        let open = told.map_err(|error| Error::Lost(Some(Box::new(error))))?;
        if open && let Some(ended) = self.wakes.opened(service.uuid()) {
            self.metrics.woke(ended);
        }
        Ok(open)
    }

    async fn is_quiet(&self, service: ServiceId) -> Result<bool, Error> {
        let client = self.client.read().await.clone().ok_or(Error::Lost(None))?;
        if !client.hello().light_sleep {
            return Ok(true);
        }
        let told = client.is_quiet(service.uuid()).await;
        told.map_err(|error| Error::Lost(Some(Box::new(error))))
    }

    async fn next_event(&self) -> Option<Event> {
        self.events.lock().await.recv().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_port_is_told_once() {
        let port = |public_port| link::ClosedPort {
            public_port,
            reason: "taken".to_owned(),
        };
        let (mut known, both) = (Vec::new(), [port(1), port(2)]);
        assert_eq!(newly_closed(&mut known, &both[..1]), [&both[0]]);
        assert!(newly_closed(&mut known, &both[..1]).is_empty());
        assert_eq!(newly_closed(&mut known, &both), [&both[1]]);
        assert!(newly_closed(&mut known, &[]).is_empty());
        assert_eq!(newly_closed(&mut known, &both[..1]), [&both[0]], "closed again");
    }
}
