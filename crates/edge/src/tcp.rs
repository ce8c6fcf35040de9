//! Public TCP ports: bytes to the least loaded instance and back. A connection counts as a request in flight for as
//! long as it is open, and wakes a sleeping service as a request does. Each is a line of the access log, with a status as
//! if it were a request.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::access_log::Entry;
use crate::account::InFlight;
use crate::balance::Candidates;
use crate::page::Refusal;
use crate::pool::Seat;
use crate::relay::{Passed, relay};
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
            Ok((stream, peer)) => {
                let shared = Arc::clone(&worker.shared);
                worker
                    .shared
                    .open
                    .spawn(async move { proxy(&shared, stream, peer.ip(), port).await });
            }
            Err(error) => accept::after_failed_accept(&error).await,
        }
    }
}

/// The status of a client that left before it was let in, as for a request.
const CLIENT_LEFT: u16 = 499;

async fn proxy(shared: &Shared, client: TcpStream, ip: IpAddr, port: u16) {
    let mut entry = shared
        .log
        .as_ref()
        .map(|log| Box::new(Entry::tcp(log, ip.to_canonical(), port)));
    let status = serve(shared, client, port, entry.as_deref_mut()).await;
    if let Some(mut entry) = entry {
        entry.status = status;
        entry.refusal = status != 200 && status != CLIENT_LEFT;
        entry.write();
    }
}

/// Returns the status that the connection ended with.
async fn serve(shared: &Shared, client: TcpStream, port: u16, mut entry: Option<&mut Entry>) -> u16 {
    let started = Instant::now();
    let (route, version, in_flight) = match admit(shared, &client, port, started).await {
        Ok(admitted) => admitted,
        Err(status) => return status,
    };
    if let Some(entry) = &mut entry {
        entry.held = started.elapsed();
        entry.service = Some(route.service.spec.id);
    }
    let Some((seat, instance)) = connect(shared, &route, version).await else {
        in_flight.live().count(502);
        return 502;
    };
    let passed = Passed::new(in_flight.live());
    if let Some(entry) = &mut entry {
        entry.instance = Some(seat.endpoint.instance_id);
        entry.first_byte = started.elapsed();
    }
    let outcome = relay(client, instance, &passed).await;
    if let Err(error) = &outcome {
        tracing::debug!(
            error = error as &dyn std::error::Error,
            port,
            "a TCP connection broke"
        );
    }
    if let Some(entry) = &mut entry {
        entry.bytes_in = passed.bytes_in();
        entry.bytes_out = passed.bytes_out();
        entry.complete = outcome.is_ok();
    }
    200
}

/// As the pipeline's, without a page to refuse with: the connection closes, and the log has the status.
async fn admit(
    shared: &Shared,
    client: &TcpStream,
    port: u16,
    started: Instant,
) -> Result<(Arc<Route>, u64, InFlight), u16> {
    let mut arrived = false;
    loop {
        let (route, version) = {
            let table = shared.table.load();
            let route = table.tcp_ports().get(&port).ok_or(404u16)?;
            (Arc::clone(route), table.version)
        };
        let spec = &route.service.spec;
        if !arrived {
            route.service.live.arrive(started);
            arrived = true;
        }
        match route.gate(version) {
            Gate::Open => {
                let in_flight = route
                    .service
                    .live
                    .enter(spec.max_concurrent_requests)
                    .ok_or(503u16)?;
                if shared.table.load().version == version {
                    return Ok((route, version, in_flight));
                }
            }
            Gate::Hold => {
                let deadline = started + Duration::from_millis(spec.hold_deadline_ms);
                let held = wake::hold(
                    &route.service,
                    || shared.table.load().version == version && route.gate(version) == Gate::Hold,
                    deadline,
                    None,
                );
                let outcome = tokio::select! {
                    outcome = held => outcome,
                    () = shared.stop.cancelled() => Err(Refusal::Stopping { name: spec.name.clone() }),
                    () = hang_up(client) => return Err(CLIENT_LEFT),
                };
                if let Err(refusal) = outcome {
                    tracing::debug!(?refusal, port, "a TCP connection was not let in");
                    return Err(refusal.status().as_u16());
                }
            }
            Gate::Refuse => return Err(503),
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
