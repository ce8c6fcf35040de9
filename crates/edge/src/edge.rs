//! The edge as a whole: bind, serve, drain. `tram edge` calls [`run`]; tests and other hosts embed [`Edge`].
//!
//! Everything that can fail for want of a port, a permission or a file fails in [`Edge::bind`], before anything
//! is served.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use arc_swap::ArcSwap;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tram_types::routing::RoutingTable;

use crate::access_log::AccessLog;
use crate::account::Signals;
use crate::certificates::{self, Certificates};
use crate::config::Config;
use crate::control::{self, Control};
use crate::error::Error;
use crate::table::{Registry, Table, TableError};
use crate::trace::Tracer;
use crate::usage::{self, Journal};
use crate::worker::{Running, Service, Shared};
use crate::{ca, keep, link, listen, metrics};

/// A bound edge. Serves once [`Edge::serve`] is awaited; dropping it closes everything.
#[derive(Debug)]
pub struct Edge {
    control: Arc<Control>,
    workers: Vec<Running>,
    http: Vec<TcpListener>,
    https: Vec<TcpListener>,
    metrics: Option<TcpListener>,
    socket: std::os::unix::net::UnixListener,
    /// Held as long as we live; the kernel gives it back however we die.
    _lock: File,
    _end: EndOnDrop,
}

/// Ends the workers of an edge that was dropped, whether or not it ever served.
#[derive(Debug)]
struct EndOnDrop(Arc<Shared>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.stop.cancel();
        self.0.end.cancel();
    }
}

/// Where an edge listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addresses {
    /// Cleartext HTTP.
    pub http: Vec<SocketAddr>,
    /// TLS.
    pub https: Vec<SocketAddr>,
    /// Prometheus metrics.
    pub metrics: Option<SocketAddr>,
}

/// Reaches into an edge of this process, as the control link reaches into one of another.
#[derive(Debug, Clone)]
pub struct Handle {
    control: Arc<Control>,
}

impl Handle {
    /// Puts a table into force. Refuses an older one than is held.
    pub fn apply(&self, table: RoutingTable) -> Result<(), TableError> {
        self.control.apply(table)
    }

    /// The version in force; zero: none yet.
    #[must_use]
    pub fn table_version(&self) -> u64 {
        self.control.shared.table.load().version
    }

    /// Metrics in Prometheus' text format.
    #[must_use]
    pub fn metrics(&self) -> String {
        metrics::encode(&self.control.shared)
    }
}

/// Binds, serves, and drains on SIGTERM or SIGINT.
pub async fn run(config: Config) -> Result<(), Error> {
    let stop = CancellationToken::new();
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut signal = signal(kind).map_err(|source| Error::Worker { index: 0, source })?;
        let stop = stop.clone();
        tokio::spawn(async move {
            signal.recv().await;
            stop.cancel();
        });
    }
    Edge::bind(config)?.serve(stop.cancelled_owned()).await
}

impl Edge {
    /// Takes ports, files and threads, and raises the process's soft limit of file descriptors to the hard one.
    /// Needs a tokio runtime only for [`Edge::serve`].
    pub fn bind(config: Config) -> Result<Self, Error> {
        raise_descriptor_limit();
        let lock = take_state_dir(&config.state_dir)?;
        let http = listen::bind_all(&config.http)?;
        let https = listen::bind_all(&config.https)?;
        let metrics = config.metrics.map(listen::bind).transpose()?;
        let socket = control_socket(&config.state_dir)?;
        let log = AccessLog::open(&config.access_log)?;
        let usage = Journal::open(&config.state_dir)?;
        let table = Arc::new(ArcSwap::from_pointee(Table::empty()));
        let authority = ca::ensure(&config.state_dir, &config.base_domain)?;
        let certificates = Arc::new(Certificates::new(
            &config.state_dir,
            authority,
            Arc::clone(&table),
        ));
        let signals = Arc::new(Signals::new());
        let shared = Arc::new(Shared {
            table,
            signals: Arc::clone(&signals),
            log,
            usage,
            inference: crate::inference::Shared::new(),
            changed: tokio::sync::watch::Sender::new(0),
            tracer: config.traces.then(Tracer::new),
            unrouted: AtomicU64::new(0),
            tls: Arc::new(certificates::server_config(Arc::clone(&certificates))?),
            stop: CancellationToken::new(),
            end: CancellationToken::new(),
            connections_max: crate::accept::connections_max(),
            open: TaskTracker::new(),
        });
        let count = match config.workers {
            0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            given => given,
        };
        let workers = (0..count)
            .map(|index| Running::start(index, Arc::clone(&shared)))
            .collect::<Result<Vec<_>, _>>()?;
        let orders = workers.iter().map(|worker| worker.orders.clone()).collect();
        let kept = keep::load(&config.state_dir)?;
        let control = Arc::new(Control::new(
            config,
            shared,
            Registry::new(signals, count),
            certificates,
            orders,
        ));
        if let Some(table) = kept {
            let version = table.version;
            match control.apply(table) {
                Ok(()) => tracing::info!(version, "serving the kept routing table until a controller comes"),
                Err(error) => tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "the kept routing table was passed over"
                ),
            }
        }
        let _end = EndOnDrop(Arc::clone(&control.shared));
        Ok(Self {
            control,
            workers,
            http,
            https,
            metrics,
            socket,
            _lock: lock,
            _end,
        })
    }

    /// Where we listen, with the ports that the kernel chose.
    #[must_use]
    pub fn addresses(&self) -> Addresses {
        let of = |listeners: &[TcpListener]| {
            listeners
                .iter()
                .filter_map(|listener| listener.local_addr().ok())
                .collect()
        };
        Addresses {
            http: of(&self.http),
            https: of(&self.https),
            metrics: self
                .metrics
                .as_ref()
                .and_then(|listener| listener.local_addr().ok()),
        }
    }

    /// For the same process.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle {
            control: Arc::clone(&self.control),
        }
    }

    /// Serves until `shutdown` completes, then stops accepting and lets open requests finish within the drain bound.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
        let Self {
            control,
            workers,
            http,
            https,
            metrics,
            socket,
            _lock,
            _end,
        } = self;
        let path = link::socket_path(&control.config.state_dir);
        let listener = UnixListener::from_std(socket).map_err(|source| Error::File {
            doing: "listen on",
            path: path.clone(),
            source,
        })?;
        let stop = control.shared.stop.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(control::listen(Arc::clone(&control), listener));
        tasks.spawn(control::forward_wakes(Arc::clone(&control)));
        tasks.spawn(control::report_activity(Arc::clone(&control)));
        tasks.spawn(control::keep_house(Arc::clone(&control)));
        tasks.spawn(control::keep_tables(Arc::clone(&control)));
        tasks.spawn(usage::keep(control.shared.usage.clone()));
        if let Some(listener) = metrics {
            let listener = tokio::net::TcpListener::from_std(listener)
                .map_err(|source| Error::Worker { index: 0, source })?;
            tasks.spawn(metrics::serve(Arc::clone(&control.shared), listener));
        }
        for (listeners, service) in [(http, Service::Http), (https, Service::Https)] {
            for listener in listeners {
                control.order(&listener, &service, &stop);
            }
        }
        shutdown.await;
        tracing::info!(
            open = control.shared.open.len(),
            "stopping; open requests may finish"
        );
        stop.cancel();
        control.shared.open.close();
        let drained = tokio::time::timeout(control.config.drain, control.shared.open.wait()).await;
        if drained.is_err() {
            tracing::warn!(
                open = control.shared.open.len(),
                "the drain bound is reached; what is open is cut off"
            );
        }
        tasks.shutdown().await;
        control.shared.end.cancel();
        let ended = tokio::task::spawn_blocking(move || workers.into_iter().for_each(Running::stop)).await;
        if let Err(error) = ended {
            tracing::error!(error = &error as &dyn std::error::Error, "a worker did not end");
        }
        if let Some(log) = control.shared.log.clone()
            && tokio::task::spawn_blocking(move || log.close()).await.is_err()
        {
            tracing::error!("the access log was not closed");
        }
        let usage = control.shared.usage.clone();
        if tokio::task::spawn_blocking(move || usage.settle()).await.is_err() {
            tracing::error!("the journal of what questions cost was not settled");
        }
        // The next edge would remove it too; leaving it would make a dead edge look like a slow one.
        if let Err(error) = fs::remove_file(&path) {
            tracing::debug!(
                error = &error as &dyn std::error::Error,
                "cannot remove the control socket"
            );
        }
        Ok(())
    }
}

/// Every connection and its counterpart at an instance are a descriptor each, and the usual soft limit of 1024 is for
/// programs that use `select`, which we do not.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(errno) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%errno, soft = limit.current, "cannot raise the limit of file descriptors");
    }
}

/// Makes the directory when absent and says so when another edge holds it.
fn take_state_dir(state_dir: &Path) -> Result<File, Error> {
    let failed = |doing, path: &Path| {
        let path = path.to_owned();
        move |source| Error::File { doing, path, source }
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(state_dir)
        .map_err(failed("create", state_dir))?;
    let path = state_dir.join("edge.lock");
    let lock = File::create(&path).map_err(failed("create", &path))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(fs::TryLockError::WouldBlock) => Err(Error::AlreadyRunning {
            state_dir: state_dir.to_owned(),
        }),
        Err(fs::TryLockError::Error(source)) => Err(failed("lock", &path)(source)),
    }
}

/// The lock is ours, so a socket that is there already is a dead edge's.
fn control_socket(state_dir: &Path) -> Result<std::os::unix::net::UnixListener, Error> {
    let path = link::socket_path(state_dir);
    let failed = |doing| {
        let path = path.clone();
        move |source| Error::File { doing, path, source }
    };
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(failed("remove the old")(error));
        }
        _ => {}
    }
    let listener = std::os::unix::net::UnixListener::bind(&path).map_err(failed("listen on"))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).map_err(failed("restrict"))?;
    listener.set_nonblocking(true).map_err(failed("listen on"))?;
    Ok(listener)
}
