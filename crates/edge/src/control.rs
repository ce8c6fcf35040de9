//! The edge's own half of the control link, and what a new table sets in motion: swap, release of waiting callers,
//! TCP ports, the copy on disk.
//!
//! Started by `edge.rs`. The order on a new table matters: swap first, then release those who wait (a wake must not
//! wait for a disk), then answer the controller, and write to disk behind its back.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use jiff::Timestamp;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tram_types::routing::{RoutingTable, State, TableChange};
use uuid::Uuid;

use crate::account::{LATENCY_BOUNDS_US, Live};
use crate::config::Config;
use crate::link::{
    self, BusyInstance, ClosedPort, Hello, Histogram, InstanceTally, Message, Report, Request, ServiceReport,
    WakeDemand,
};
use crate::table::{Registry, Table, TableError};
use crate::worker::{Listen, Service, Shared};
use crate::{keep, listen, metrics};

/// Least time between two reports of changes, so that one client with one connection, which goes busy and idle
/// with every request, does not become a flood.
const REPORT_SPACING: Duration = Duration::from_millis(20);

/// How often busy services are reported without a change.
const REPORT_PERIOD: Duration = Duration::from_secs(1);

/// How often the controller hears of instances that left the table and have something in flight: it waits for them.
const LEAVING_PERIOD: Duration = Duration::from_millis(100);

/// How often certificates are looked at, idle connections closed and refused ports tried again.
const HOUSEKEEPING_PERIOD: Duration = Duration::from_secs(2);

/// Rest before a table that could not be kept is written again: a full disk seldom has room at once.
const KEEP_AGAIN: Duration = Duration::from_secs(2);

/// A rest after each write of so many times its own length: a large table that changes all the time is written a fifth
/// of the time at most, on a disk that instances use too.
const KEEP_REST_FACTOR: u32 = 4;
/// Longest such rest: an edge that dies in it, and its controller too, comes back with a table that is that much older.
const KEEP_REST_MAX: Duration = Duration::from_secs(1);

/// Frames that wait for a controller; one that is further behind is cut off and may connect again.
const OUTBOX_MAX: usize = 1024;

/// Everything the control tasks work with.
#[derive(Debug)]
pub(crate) struct Control {
    pub(crate) config: Config,
    pub(crate) edge_id: Uuid,
    pub(crate) shared: Arc<Shared>,
    pub(crate) registry: Registry,
    pub(crate) certificates: Arc<crate::certificates::Certificates>,
    pub(crate) workers: Vec<mpsc::UnboundedSender<Listen>>,
    /// Held while a table is applied or a gate opened, so that versions only grow.
    pub(crate) applying: Mutex<Ports>,
    links: Mutex<Vec<(mpsc::Sender<Bytes>, CancellationToken)>>,
    to_keep: Notify,
    started: (Instant, Timestamp),
}

#[derive(Debug, Default)]
pub(crate) struct Ports {
    open: HashMap<u16, (CancellationToken, Vec<SocketAddr>)>,
    closed: Vec<ClosedPort>,
}

impl Control {
    pub(crate) fn new(
        config: Config,
        shared: Arc<Shared>,
        registry: Registry,
        certificates: Arc<crate::certificates::Certificates>,
        workers: Vec<mpsc::UnboundedSender<Listen>>,
    ) -> Self {
        let started = (
            shared.signals.epoch,
            Timestamp::now()
                - jiff::SignedDuration::try_from(shared.signals.epoch.elapsed()).unwrap_or_default(),
        );
        Self {
            config,
            edge_id: Uuid::new_v4(),
            shared,
            registry,
            certificates,
            workers,
            applying: Mutex::default(),
            links: Mutex::default(),
            to_keep: Notify::new(),
            started,
        }
    }

    /// Puts a table into force, see the module's doc.
    pub(crate) fn apply(&self, source: RoutingTable) -> Result<(), TableError> {
        let ports = self.applying.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.shared.table.load_full();
        if source.version < before.version {
            return Err(TableError::Older {
                offered: source.version,
                held: before.version,
            });
        }
        if source.version == before.version && before.version != 0 {
            return Ok(());
        }
        let table = Table::compile(source, &before, &self.registry)?;
        let touched = before.services().chain(table.services());
        let touched: HashSet<Uuid> = touched.map(|service| service.spec.id).collect();
        self.enter(&before, table, &touched, ports);
        Ok(())
    }

    /// Makes the table in force into the next version, see the module's doc.
    pub(crate) fn change(&self, change: TableChange) -> Result<(), TableError> {
        let ports = self.applying.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.shared.table.load_full();
        if change.version <= before.version {
            return Err(TableError::Older {
                offered: change.version,
                held: before.version,
            });
        }
        let put = change.services.iter().map(|service| service.id);
        let touched: HashSet<Uuid> = put.chain(change.services_gone.iter().copied()).collect();
        let table = before.change(change, &self.registry)?;
        self.enter(&before, table, &touched, ports);
        Ok(())
    }

    /// `touched`: every service that may differ.
    fn enter(&self, before: &Table, table: Table, touched: &HashSet<Uuid>, mut ports: MutexGuard<'_, Ports>) {
        let table = Arc::new(table);
        self.shared.table.store(Arc::clone(&table));
        self.shared.changed.send_replace(table.version);
        self.release(before, &table, touched);
        self.sync_ports(&table, &mut ports);
        drop(ports);
        self.to_keep.notify_one();
        self.report_changed_states(before, &table, touched);
        // An instance that left may still be busy; the reporter looks after it.
        self.shared.signals.on_change.notify_one();
        tracing::debug!(version = table.version, "routing table in force");
    }

    /// Sends those who wait to look at the new table.
    fn release(&self, before: &Table, table: &Table, touched: &HashSet<Uuid>) {
        for service in touched.iter().filter_map(|id| before.service(*id)) {
            let now = table.service(service.spec.id);
            if service.spec.state == State::Sleeping
                && now.is_some_and(|now| now.spec.state != State::Sleeping)
            {
                self.registry.woken(&service.spec.endpoints, Instant::now());
            }
            if service.live.queue.len() == 0 {
                continue;
            }
            let Some(now) = now else {
                service.live.queue.release(false);
                continue;
            };
            match now.spec.state {
                State::Sleeping if service.spec.state != State::Sleeping => {
                    self.shared.signals.want(&now.live)
                }
                State::Sleeping => {}
                // Endpoints for one port are endpoints enough: those who wait for another port queue again.
                State::Starting { .. } if now.spec.endpoints.is_empty() => {}
                State::Ready => now.live.queue.release(true),
                _ => now.live.queue.release(!now.spec.endpoints.is_empty()),
            }
        }
    }

    /// Opens and closes public TCP ports.
    fn sync_ports(&self, table: &Table, ports: &mut Ports) {
        ports.open.retain(|port, (until, _)| {
            let kept = table.tcp_ports().contains_key(port);
            if !kept {
                until.cancel();
            }
            kept
        });
        let before = std::mem::take(&mut ports.closed);
        for &public_port in table.tcp_ports().keys() {
            if ports.open.contains_key(&public_port) {
                continue;
            }
            let addresses: Vec<SocketAddr> = self
                .config
                .tcp
                .iter()
                .map(|ip| SocketAddr::new(*ip, public_port))
                .collect();
            match listen::bind_all(&addresses) {
                Ok(listeners) => {
                    let until = self.shared.stop.child_token();
                    let bound = listeners
                        .iter()
                        .filter_map(|listener| listener.local_addr().ok())
                        .collect();
                    for listener in listeners {
                        self.order(&listener, &Service::Tcp(public_port), &until);
                    }
                    ports.open.insert(public_port, (until, bound));
                }
                Err(error) => {
                    let closed = ClosedPort {
                        public_port,
                        reason: error.to_string(),
                    };
                    // It is tried again every few seconds.
                    if !before.contains(&closed) {
                        tracing::warn!(
                            error = &error as &dyn std::error::Error,
                            public_port,
                            "cannot open a public TCP port"
                        );
                    }
                    ports.closed.push(closed);
                }
            }
        }
    }

    /// Has every worker accept on a listener.
    pub(crate) fn order(
        &self,
        listener: &std::net::TcpListener,
        service: &Service,
        until: &CancellationToken,
    ) {
        for worker in &self.workers {
            match listener.try_clone() {
                Ok(listener) => drop(worker.send(Listen {
                    listener,
                    service: service.clone(),
                    until: until.clone(),
                })),
                Err(error) => tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "cannot share a listener with a worker"
                ),
            }
        }
    }

    fn report_changed_states(&self, before: &Table, table: &Table, touched: &HashSet<Uuid>) {
        let changed: Vec<Arc<Live>> = touched
            .iter()
            .filter_map(|id| table.service(*id))
            .filter(|service| {
                before
                    .service(service.spec.id)
                    .is_none_or(|former| former.spec.state != service.spec.state)
            })
            .map(|service| Arc::clone(&service.live))
            .collect();
        self.broadcast(&Message::Report(self.report(changed.iter(), false)));
    }

    fn report<'l>(&self, lives: impl Iterator<Item = &'l Arc<Live>>, complete: bool) -> Report {
        // Versions first: what is idle after this was read stays idle under it.
        let table = self.shared.table.load();
        let table_version = table.version;
        Report {
            at: Timestamp::now(),
            table_version,
            complete,
            services: lives.map(|live| self.service_report(live, &table)).collect(),
            busy_instances: self
                .registry
                .busy()
                .0
                .into_iter()
                .map(|(instance_id, in_flight)| BusyInstance {
                    instance_id,
                    in_flight,
                })
                .collect(),
            closed_ports: self
                .applying
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .closed
                .clone(),
        }
    }

    fn service_report(&self, live: &Live, table: &Table) -> ServiceReport {
        let at = |since: Duration| {
            jiff::SignedDuration::try_from(since)
                .ok()
                .and_then(|since| self.started.1.checked_add(since).ok())
        };
        ServiceReport {
            service_id: live.id,
            in_flight: live.in_flight(),
            queued: u32::try_from(live.queue.len()).unwrap_or(u32::MAX),
            last_activity: live.last_activity().and_then(at),
            arrivals: live.arrivals.load(Relaxed),
            classes: std::array::from_fn(|class| live.classes[class].load(Relaxed)),
            latency: Histogram {
                bounds_us: LATENCY_BOUNDS_US.to_vec(),
                counts: live
                    .latency
                    .buckets
                    .iter()
                    .map(|bucket| bucket.load(Relaxed))
                    .collect(),
                sum_us: live.latency.sum_us.load(Relaxed),
            },
            bytes_in: live.bytes_in.load(Relaxed),
            bytes_out: live.bytes_out.load(Relaxed),
            holds: live.holds.load(Relaxed),
            wakes: live.wakes.load(Relaxed),
            tallies: table
                .service(live.id)
                .filter(|service| service.spec.has_canary())
                .map(|service| self.registry.tallies(&service.spec.endpoints))
                .unwrap_or_default()
                .into_iter()
                .map(|(instance_id, (answers, failures))| InstanceTally {
                    instance_id,
                    answers,
                    failures,
                })
                .collect(),
        }
    }

    /// To every controller that listens; one that cannot keep up is cut off.
    fn broadcast(&self, message: &Message) {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        if links.is_empty() {
            return;
        }
        if let Some(frame) = link::encode(message) {
            links.retain(|(outbox, cut)| {
                let sent = outbox.try_send(frame.clone()).is_ok();
                if !sent {
                    cut.cancel();
                }
                sent
            });
        }
    }

    fn demand(live: &Live) -> Message {
        Message::Wake(WakeDemand {
            service_id: live.id,
            waiting: u32::try_from(live.queue.len()).unwrap_or(u32::MAX),
            traceparent: live.queue.cause(),
        })
    }
}

/// Carries wake demands to the controllers, each at once.
pub(crate) async fn forward_wakes(control: Arc<Control>) {
    loop {
        control.shared.signals.on_wanted.notified().await;
        for live in control.shared.signals.take_wanted() {
            control.broadcast(&Control::demand(&live));
        }
    }
}

/// Reports services that went busy or idle, at once but not more often than [`REPORT_SPACING`], and busy ones
/// every [`REPORT_PERIOD`].
pub(crate) async fn report_activity(control: Arc<Control>) {
    let mut tick = tokio::time::interval(REPORT_PERIOD);
    let mut leaving = false;
    loop {
        let lives: Vec<Arc<Live>> = tokio::select! {
            () = control.shared.signals.on_change.notified() => control.shared.signals.take_changed(),
            () = tokio::time::sleep(LEAVING_PERIOD), if leaving => Vec::new(),
            _ = tick.tick() => {
                let table = control.shared.table.load();
                table.services().map(|service| &service.live).filter(|live| live.in_flight() > 0 || live.queue.len() > 0).cloned().collect()
            }
        };
        let left = std::mem::replace(&mut leaving, control.registry.busy().1);
        if !lives.is_empty() || leaving || left {
            control.broadcast(&Message::Report(control.report(lives.iter(), false)));
            tokio::time::sleep(REPORT_SPACING).await;
        }
    }
}

/// What must be looked at now and then.
pub(crate) async fn keep_house(control: Arc<Control>) {
    let mut tick = tokio::time::interval(HOUSEKEEPING_PERIOD);
    loop {
        tick.tick().await;
        control.certificates.reload();
        control.registry.prune(control.shared.table.load().version);
        let table = control.shared.table.load_full();
        let mut ports = control.applying.lock().unwrap_or_else(PoisonError::into_inner);
        if !ports.closed.is_empty() {
            control.sync_ports(&table, &mut ports);
        }
    }
}

/// Keeps the table in force on disk; several that come in quick succession are one write. One that cannot be written is
/// tried again, and told once.
pub(crate) async fn keep_tables(control: Arc<Control>) {
    let mut failing = false;
    loop {
        tokio::select! {
            () = control.to_keep.notified() => {}
            () = tokio::time::sleep(KEEP_AGAIN), if failing => {}
        }
        let began = Instant::now();
        let (control, table) = (Arc::clone(&control), control.shared.table.load_full());
        let saved =
            tokio::task::spawn_blocking(move || keep::save(&control.config.state_dir, &table.source())).await;
        let rest = began
            .elapsed()
            .saturating_mul(KEEP_REST_FACTOR)
            .min(KEEP_REST_MAX);
        let failed = match saved {
            Ok(Err(error)) => {
                if !failing {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "cannot keep the routing table on disk; trying again"
                    );
                }
                true
            }
            _ => false,
        };
        if failing && !failed {
            tracing::info!("the routing table is on the disk again");
        }
        failing = failed;
        tokio::time::sleep(rest).await;
    }
}

/// Takes controllers in.
pub(crate) async fn listen(control: Arc<Control>, listener: UnixListener) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(converse(Arc::clone(&control), stream));
            }
            Err(error) => crate::accept::after_failed_accept(&error).await,
        }
    }
}

/// One controller, from its first word to its last.
async fn converse(control: Arc<Control>, stream: UnixStream) {
    let (mut reader, mut writer) = link::framed(stream);
    let (outbox, mut frames) = mpsc::channel::<Bytes>(OUTBOX_MAX);
    let cut = CancellationToken::new();
    let send = |message: &Message| link::encode(message).is_some_and(|frame| outbox.try_send(frame).is_ok());
    let Some(Ok(first)) = reader.next().await else {
        return;
    };
    let Some(Request::Hello { protocol, front }) = link::decode(&first) else {
        return;
    };
    if let Some(front) = front.filter(|_| protocol == link::PROTOCOL) {
        control.shared.inference.fronts.trust(&front);
    }
    let hello = Hello {
        protocol: link::PROTOCOL,
        edge_id: control.edge_id,
        table_version: control.shared.table.load().version,
        light_sleep: true,
        changes: true,
    };
    if !send(&Message::Hello(hello)) || protocol != link::PROTOCOL {
        if let Some(frame) = frames.recv().await {
            drop(writer.send(frame).await);
        }
        return;
    }
    control
        .links
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push((outbox.clone(), cut.clone()));
    let everything: Vec<Arc<Live>> = control
        .shared
        .table
        .load()
        .services()
        .map(|service| Arc::clone(&service.live))
        .collect();
    if !send(&Message::Report(control.report(everything.iter(), true))) {
        return;
    }
    for live in everything.iter().filter(|live| live.queue.len() > 0) {
        if !send(&Control::demand(live)) {
            return;
        }
    }
    let write = async {
        while let Some(frame) = frames.recv().await {
            if writer.send(frame).await.is_err() {
                return;
            }
        }
    };
    let read = async {
        while let Some(Ok(frame)) = reader.next().await {
            let Some(request) = link::decode::<Request>(&frame) else {
                return;
            };
            if !answer(&control, request).is_none_or(|message| send(&message)) {
                return;
            }
        }
    };
    tokio::select! {
        () = write => {}
        () = read => {}
        () = cut.cancelled() => tracing::warn!("a controller that reads too slowly was cut off"),
    }
    tracing::info!("a controller left");
}

fn answer(control: &Control, request: Request) -> Option<Message> {
    match request {
        Request::Hello { .. } => None,
        Request::Table { table } => Some(taken(control, table.version, control.apply(*table))),
        Request::Change { change } => Some(taken(control, change.version, control.change(*change))),
        Request::Thawed {
            service_id,
            table_version,
            instances,
        } => Some(Message::Thawed {
            open: control.thawed(service_id, table_version, &instances),
        }),
        Request::Quiet { service_id } => Some(Message::Quiet {
            quiet: control.is_quiet(service_id),
        }),
        Request::Metrics => Some(Message::Metrics {
            text: metrics::encode(&control.shared),
        }),
    }
}

fn taken(control: &Control, version: u64, outcome: Result<(), TableError>) -> Message {
    match outcome {
        Ok(()) => Message::Accepted { version },
        Err(error) => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                version,
                "a routing table was refused"
            );
            Message::Refused {
                version,
                held: control.shared.table.load().version,
                reason: error.to_string(),
            }
        }
    }
}
