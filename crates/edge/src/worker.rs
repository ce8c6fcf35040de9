//! A worker: one thread, one single-threaded runtime, its own accept loops. `edge.rs` starts them and tells them
//! what to listen on.
//!
//! Every worker listens on a duplicate of the same socket, so no worker's death or birth loses a connection and the
//! kernel still refuses the port to a second edge.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread::JoinHandle;

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::access_log::AccessLog;
use crate::account::Signals;
use crate::error::Error;
use crate::table::Table;
use crate::trace::Tracer;
use crate::usage::Journal;
use crate::{accept, inference, tcp};

/// What all workers and the control tasks share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) table: Arc<ArcSwap<Table>>,
    pub(crate) signals: Arc<Signals>,
    pub(crate) log: Option<AccessLog>,
    /// What questions to models cost.
    pub(crate) usage: Journal,
    /// What questions to models share.
    pub(crate) inference: inference::Shared,
    /// Told with each table, by its version.
    pub(crate) changed: watch::Sender<u64>,
    /// Only when requests are traced.
    pub(crate) tracer: Option<Tracer>,
    /// Requests that no service answers for.
    pub(crate) unrouted: AtomicU64,
    pub(crate) tls: Arc<rustls::ServerConfig>,
    /// Cancelled when the edge begins to stop.
    pub(crate) stop: CancellationToken,
    /// Cancelled when the workers are to end, drained or not.
    pub(crate) end: CancellationToken,
    /// Most client connections and tunnels at a time.
    pub(crate) connections_max: usize,
    /// Client connections and tunnels, waited for while draining.
    pub(crate) open: TaskTracker,
}

/// One worker as its tasks see it.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) index: usize,
    pub(crate) shared: Arc<Shared>,
}

/// What comes in on a listener.
#[derive(Debug, Clone)]
pub(crate) enum Service {
    Http,
    Https,
    /// Bytes for the public port of this number.
    Tcp(u16),
}

/// An order to a worker.
#[derive(Debug)]
pub(crate) struct Listen {
    pub(crate) listener: TcpListener,
    pub(crate) service: Service,
    /// Cancelled when this listener is to close.
    pub(crate) until: CancellationToken,
}

/// A started worker.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) orders: mpsc::UnboundedSender<Listen>,
    thread: JoinHandle<()>,
}

impl Running {
    pub(crate) fn start(index: usize, shared: Arc<Shared>) -> Result<Self, Error> {
        let failed = |source| Error::Worker { index, source };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(failed)?;
        let (orders, received) = mpsc::unbounded_channel();
        let worker = Arc::new(Worker { index, shared });
        let thread = std::thread::Builder::new()
            .name(format!("edge-{index}"))
            .spawn(move || runtime.block_on(run(&worker, received)))
            .map_err(failed)?;
        Ok(Self { orders, thread })
    }

    /// Ends the thread and everything still open on it.
    pub(crate) fn stop(self) {
        if self.thread.join().is_err() {
            tracing::error!("a worker panicked");
        }
    }
}

/// Runs until the edge ends; what is open then is cut off with the runtime.
async fn run(worker: &Arc<Worker>, mut orders: mpsc::UnboundedReceiver<Listen>) {
    loop {
        let order = tokio::select! {
            biased;
            () = worker.shared.end.cancelled() => return,
            order = orders.recv() => match order {
                Some(order) => order,
                None => return,
            },
        };
        let listener = match tokio::net::TcpListener::from_std(order.listener) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "cannot listen");
                continue;
            }
        };
        let worker = Arc::clone(worker);
        match order.service {
            Service::Http => tokio::spawn(accept::run(worker, listener, false, order.until)),
            Service::Https => tokio::spawn(accept::run(worker, listener, true, order.until)),
            Service::Tcp(port) => tokio::spawn(tcp::run(worker, listener, port, order.until)),
        };
    }
}
