//! Connections to one instance, kept for the next request. The forwarder checks them out and in.
//!
//! Each worker has its own slot, because a connection is driven by the runtime that opened it; the slot's lock is
//! therefore uncontended. A connection dropped before its answer was read whole is cut, which is how a client's
//! leaving reaches the instance.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustix::io::Errno;
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use uuid::Uuid;

use crate::body::RequestBody;
use crate::canary::Tally;
use crate::gather::Gather;
use crate::inference::Load;
use crate::spare::Spare;

/// Idle connections one worker keeps to one instance: enough for a burst, few enough to fit an instance's
/// descriptor limit with several workers.
const IDLE_MAX: usize = 128;

/// Idle connections older than this are closed: below the 60 to 75 seconds after which common servers close them,
/// so that we seldom race with the instance's own close.
const IDLE_TIMEOUT: Duration = Duration::from_secs(50);

/// An instance on the same machine or network that takes longer to accept is down.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How long an instance that refused a connection is passed over while others can serve.
const AVOID_FOR: Duration = Duration::from_secs(2);

/// A dead peer is noticed by pings of this interval on HTTP/2 connections.
const H2_PING_INTERVAL: Duration = Duration::from_secs(30);

/// Requests that share one HTTP/2 connection, if the instance does not allow fewer: what common servers allow. More go
/// on another connection, since beyond the limit they would wait for each other.
const H2_STREAMS_MAX: usize = 100;

/// The same before the instance has said anything: few, since a stream beyond its limit waits for another to end, and it
/// says its limit in its first packet.
const H2_STREAMS_UNTOLD: usize = 10;

/// Most response header bytes and lines we take from an instance.
const RESPONSE_HEAD_MAX_BYTES: usize = 128 * 1024;

/// One port of one instance, shared by all tables and workers.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) instance_id: Uuid,
    pub(crate) address: SocketAddr,
    /// Requests, streams and connections on it now.
    in_flight: AtomicU32,
    /// Whether the table in force has it no more.
    /// The version of the table that took it out; 0 while it is in the latest one.
    left_in: AtomicU64,
    /// Milliseconds after [`epoch`]; zero: not avoided.
    avoid_until_ms: AtomicU64,
    /// When it was last woken from light sleep, in microseconds after [`epoch`]; zero: never.
    woken_us: AtomicU64,
    /// Counted while it is a canary or is tried beside one.
    pub(crate) tally: Tally,
    /// Streams that it allows on one HTTP/2 connection, as it said last.
    streams_allowed: Arc<AtomicUsize>,
    /// Of a model that it serves.
    pub(crate) model: Load,
    slots: Box<[Slot]>,
}

#[derive(Debug, Default)]
struct Slot {
    idle: Mutex<Vec<(Http1, Instant)>>,
    shared: Mutex<Vec<Connection>>,
    /// Held while one is opened, so that a burst does not open one each.
    opening: tokio::sync::Mutex<()>,
}

/// A connection for many requests at a time. Closes when nobody has its sender any more.
#[derive(Debug)]
struct Connection {
    sender: http2::SendRequest<RequestBody>,
    open: Arc<AtomicU32>,
    /// Since when it was seen without a request.
    idle_since: Option<Instant>,
}

/// What one request needs of a shared connection.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) sender: http2::SendRequest<RequestBody>,
    pub(crate) stream: SharedStream,
    /// Whether the connection was there before.
    pub(crate) kept: bool,
}

/// A place on a shared connection, given back on drop.
#[derive(Debug)]
pub(crate) struct SharedStream(Arc<AtomicU32>);

impl Drop for SharedStream {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Connection {
    fn has_room(&self, allowed: usize) -> bool {
        let open = usize::try_from(self.open.load(Relaxed)).unwrap_or(usize::MAX);
        // One that allows none is asked all the same: it may again, and another would not help.
        open < allowed.clamp(1, H2_STREAMS_MAX)
    }

    fn share(&mut self, kept: bool) -> Shared {
        self.open.fetch_add(1, Relaxed);
        self.idle_since = None;
        Shared {
            sender: self.sender.clone(),
            stream: SharedStream(Arc::clone(&self.open)),
            kept,
        }
    }
}

/// Why no connection came about.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// The kernel said no.
    #[error("the instance refused the connection")]
    Refused(#[source] std::io::Error),
    /// Nothing said anything.
    #[error("the instance did not accept the connection in time")]
    TimedOut,
    /// The HTTP/2 preface failed.
    #[error("the instance does not speak the protocol of its port")]
    Handshake(#[source] hyper::Error),
}

/// A connection for one request at a time. Cut on drop unless it went back to its pool.
#[derive(Debug)]
pub(crate) struct Http1 {
    pub(crate) sender: http1::SendRequest<RequestBody>,
    /// Room for the copy of a request while it is under way.
    pub(crate) spare: Spare,
    task: AbortHandle,
}

impl Drop for Http1 {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(crate) fn epoch() -> Instant {
    static EPOCH: OnceLock<Instant> = OnceLock::new();
    *EPOCH.get_or_init(Instant::now)
}

pub(crate) fn ms_since_epoch(now: Instant) -> u64 {
    u64::try_from(now.saturating_duration_since(epoch()).as_millis()).unwrap_or(u64::MAX)
}

fn us_since_epoch(now: Instant) -> u64 {
    u64::try_from(now.saturating_duration_since(epoch()).as_micros()).unwrap_or(u64::MAX)
}

impl Endpoint {
    pub(crate) fn new(instance_id: Uuid, address: SocketAddr, workers: usize) -> Self {
        epoch();
        Self {
            instance_id,
            address,
            in_flight: AtomicU32::new(0),
            left_in: AtomicU64::new(0),
            avoid_until_ms: AtomicU64::new(0),
            woken_us: AtomicU64::new(0),
            tally: Tally::default(),
            streams_allowed: Arc::new(AtomicUsize::new(H2_STREAMS_UNTOLD)),
            model: Load::default(),
            slots: (0..workers.max(1)).map(|_| Slot::default()).collect(),
        }
    }

    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight.load(SeqCst)
    }

    pub(crate) fn is_leaving(&self) -> bool {
        self.left_in.load(Relaxed) != 0
    }

    /// A table of this version was made, with it or without.
    pub(crate) fn told(&self, version: u64, is_in_it: bool) {
        match is_in_it {
            true => self.left_in.store(0, Relaxed),
            // It stays the first of them.
            false => _ = self.left_in.compare_exchange(0, version, Relaxed, Relaxed),
        }
    }

    /// Left, and finished: the table in force is without it, so nobody begins any more, and nobody has begun. While the
    /// one before is in force it may look idle to us and be chosen all the same.
    pub(crate) fn is_gone(&self, in_force: u64) -> bool {
        self.is_leaving() && self.left_in.load(Relaxed) <= in_force && self.in_flight() == 0
    }

    pub(crate) fn is_avoided(&self) -> bool {
        let until = self.avoid_until_ms.load(Relaxed);
        // The clock is only looked at where there is a reason.
        until != 0 && ms_since_epoch(Instant::now()) < until
    }

    /// Passes the instance over for a while.
    pub(crate) fn avoid(&self) {
        self.avoid_until_ms
            .store(ms_since_epoch(Instant::now() + AVOID_FOR), Relaxed);
    }

    /// It slept until now.
    pub(crate) fn woken(&self, now: Instant) {
        self.woken_us.store(us_since_epoch(now), Relaxed);
    }

    /// An idle connection that still lives, the one used last first. One that was idle while the instance slept may be
    /// closed by it as soon as it looks at its clock, so only a request that can be sent again gets it.
    pub(crate) async fn checkout(&self, worker: usize, repeatable: bool) -> Option<Http1> {
        loop {
            let (mut connection, since) = self.slots[worker].lock_idle().pop()?;
            if connection.sender.is_closed() || since.elapsed() > IDLE_TIMEOUT {
                continue;
            }
            if !repeatable && us_since_epoch(since) < self.woken_us.load(Relaxed) {
                continue;
            }
            if connection.sender.is_ready() || connection.sender.ready().await.is_ok() {
                return Some(connection);
            }
        }
    }

    /// Keeps a connection whose answer was read whole.
    pub(crate) fn checkin(&self, worker: usize, connection: Http1, now: Instant) {
        if connection.sender.is_closed() {
            return;
        }
        if self.is_leaving() {
            return;
        }
        let mut idle = self.slots[worker].lock_idle();
        if idle.len() < IDLE_MAX {
            idle.push((connection, now));
        }
    }

    /// Closes what was idle too long.
    pub(crate) fn prune(&self) {
        for slot in &self.slots {
            slot.lock_idle().retain(|(connection, since)| {
                !connection.sender.is_closed() && since.elapsed() <= IDLE_TIMEOUT
            });
            let mut first = true;
            slot.lock_shared().retain_mut(|connection| {
                if connection.sender.is_closed() {
                    return false;
                }
                // The first one stays, so that the next request need not open one.
                if std::mem::take(&mut first) || connection.open.load(Relaxed) > 0 {
                    connection.idle_since = None;
                    return true;
                }
                connection.idle_since.get_or_insert_with(Instant::now).elapsed() <= IDLE_TIMEOUT
            });
        }
    }

    /// A plain connection.
    pub(crate) async fn connect_tcp(&self) -> Result<TcpStream, ConnectError> {
        let stream = match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(self.address)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(refused)) => {
                // That we are out of descriptors or ports is no fault of the instance.
                if !matches!(
                    refused.raw_os_error().map(Errno::from_raw_os_error),
                    Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::ADDRNOTAVAIL)
                ) {
                    self.avoid();
                }
                return Err(ConnectError::Refused(refused));
            }
            Err(_) => {
                self.avoid();
                return Err(ConnectError::TimedOut);
            }
        };
        self.avoid_until_ms.store(0, Relaxed);
        crate::listen::tune(&stream);
        Ok(stream)
    }

    /// A new HTTP/1.1 connection.
    pub(crate) async fn connect(&self) -> Result<Http1, ConnectError> {
        let stream = self.connect_tcp().await?;
        let (sender, connection) = http1::Builder::new()
            .max_header_size(RESPONSE_HEAD_MAX_BYTES)
            .handshake(Gather(TokioIo::new(stream)))
            .await
            .map_err(ConnectError::Handshake)?;
        let task = tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "connection to an instance ended"
                );
            }
        });
        Ok(Http1 {
            sender,
            spare: Spare::default(),
            task: task.abort_handle(),
        })
    }

    /// A place on one of the worker's HTTP/2 connections; opens another when none has room.
    pub(crate) async fn shared(&self, worker: usize) -> Result<Shared, ConnectError> {
        let slot = &self.slots[worker];
        if let Some(shared) = slot.share(self.streams_allowed.load(Relaxed)) {
            return Ok(shared);
        }
        let _opening = slot.opening.lock().await;
        if let Some(shared) = slot.share(self.streams_allowed.load(Relaxed)) {
            return Ok(shared);
        }
        let stream = self.connect_tcp().await?;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(H2_PING_INTERVAL)
            .adaptive_window(true)
            .initial_max_send_streams(self.streams_allowed.load(Relaxed))
            .handshake(TokioIo::new(stream))
            .await
            .map_err(ConnectError::Handshake)?;
        let told = Arc::clone(&self.streams_allowed);
        tokio::spawn(async move {
            let mut connection = std::pin::pin!(connection);
            let driven = poll_fn(|cx| {
                let polled = connection.as_mut().poll(cx);
                told.store(connection.current_max_send_streams(), Relaxed);
                polled
            });
            if let Err(error) = driven.await {
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "connection to an instance ended"
                );
            }
        });
        let mut connection = Connection {
            sender,
            open: Arc::default(),
            idle_since: None,
        };
        let shared = connection.share(false);
        slot.lock_shared().push(connection);
        Ok(shared)
    }

    /// Forgets the shared connection that failed a stream.
    pub(crate) fn forget_shared(&self, worker: usize, stream: &SharedStream) {
        self.slots[worker]
            .lock_shared()
            .retain(|connection| !Arc::ptr_eq(&connection.open, &stream.0));
    }
}

impl Slot {
    fn lock_idle(&self) -> std::sync::MutexGuard<'_, Vec<(Http1, Instant)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place on the first connection that has room: those behind it fall idle.
    fn share(&self, allowed: usize) -> Option<Shared> {
        let mut shared = self.lock_shared();
        let found = shared
            .iter_mut()
            .find(|connection| !connection.sender.is_closed() && connection.has_room(allowed))?;
        Some(found.share(true))
    }

    fn lock_shared(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place on an endpoint, given back on drop.
#[derive(Debug)]
pub(crate) struct Seat {
    pub(crate) endpoint: Arc<Endpoint>,
}

impl Seat {
    pub(crate) fn take(endpoint: &Arc<Endpoint>) -> Self {
        endpoint.in_flight.fetch_add(1, SeqCst);
        Self {
            endpoint: Arc::clone(endpoint),
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.endpoint.in_flight.fetch_sub(1, SeqCst);
    }
}
