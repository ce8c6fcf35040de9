//! Public TCP ports: bytes to the least loaded instance and back. A connection counts as a request in flight for as
//! long as it is open, and wakes a sleeping service as a request does.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::account::InFlight;
use crate::balance::Candidates;
use crate::pool::Seat;
use crate::table::{Gate, Route};
use crate::worker::{Shared, Worker};
use crate::{accept, wake};

/// Accepts until told to stop. Connections that are open then go on.
pub(crate) async fn run(worker: Arc<Worker>, listener: TcpListener, port: u16, until: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = until.cancelled() => return,
            accepted = accept::next(&worker.shared, &listener) => accepted,
        };
        match accepted {
            Ok((stream, _peer)) => {
                let shared = Arc::clone(&worker.shared);
                worker
                    .shared
                    .open
                    .spawn(async move { proxy(&shared, stream, port).await });
            }
            Err(error) => accept::after_failed_accept(&error).await,
        }
    }
}

async fn proxy(shared: &Shared, mut client: TcpStream, port: u16) {
    let Some((route, version, in_flight)) = admit(shared, &client, port).await else {
        return;
    };
    let Some((_seat, mut instance)) = connect(shared, &route, version).await else {
        in_flight.live().count(502);
        return;
    };
    match tokio::io::copy_bidirectional(&mut client, &mut instance).await {
        Ok((from_client, to_client)) => {
            in_flight.live().bytes_in.fetch_add(from_client, Relaxed);
            in_flight.live().bytes_out.fetch_add(to_client, Relaxed);
            in_flight.live().count(200);
        }
        Err(error) => tracing::debug!(
            error = &error as &dyn std::error::Error,
            port,
            "a TCP connection broke"
        ),
    }
}

/// As the pipeline's, without a page to refuse with: the connection closes.
async fn admit(shared: &Shared, client: &TcpStream, port: u16) -> Option<(Arc<Route>, u64, InFlight)> {
    let started = Instant::now();
    let mut arrived = false;
    loop {
        let (route, version) = {
            let table = shared.table.load();
            (Arc::clone(table.tcp_ports().get(&port)?), table.version)
        };
        let spec = &route.service.spec;
        if !arrived {
            route.service.live.arrive(started);
            arrived = true;
        }
        match route.gate() {
            Gate::Open => {
                let in_flight = route.service.live.enter(spec.max_concurrent_requests)?;
                if shared.table.load().version == version {
                    return Some((route, version, in_flight));
                }
            }
            Gate::Hold => {
                let deadline = started + Duration::from_millis(spec.hold_deadline_ms);
                let held = wake::hold(
                    &route.service,
                    version,
                    || shared.table.load().version,
                    deadline,
                    None,
                );
                let outcome = tokio::select! {
                    outcome = held => outcome,
                    () = hang_up(client) => return None,
                };
                if let Err(refusal) = outcome {
                    tracing::debug!(?refusal, port, "a TCP connection was not let in");
                    return None;
                }
            }
            Gate::Refuse => return None,
        }
    }
}

/// Ends when the client closes before it has sent anything; never ends once there are bytes to pass on.
async fn hang_up(client: &TcpStream) {
    let mut byte = [0];
    if let Ok(1) = client.peek(&mut byte).await {
        std::future::pending::<()>().await;
    }
}

async fn connect(shared: &Shared, route: &Arc<Route>, version: u64) -> Option<(Seat, TcpStream)> {
    let mut candidates = Candidates::new(&shared.table, version, route);
    loop {
        let seat = candidates.next().ok()?;
        match seat.endpoint.connect_tcp().await {
            Ok(stream) => return Some((seat, stream)),
            Err(error) => candidates.failed(seat, &error),
        }
    }
}
