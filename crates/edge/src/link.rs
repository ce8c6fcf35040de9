//! The control link between the controller and the edge: a Unix socket, frames of JSON, each behind its length in four
//! bytes, big end first.
//!
//! The controller uses [`Client`]: it pushes whole tables and changes of them, and hears reports and wake demands. The edge's half is in
//! `control.rs`. Both sides say which protocol they speak before anything else. Either may go away at any time: the
//! edge goes on serving, the controller connects again and learns from [`Hello`] which table is held. A wake that was
//! demanded and has not come is demanded again on every new link.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio_util::codec::{FramedRead, FramedWrite, LengthDelimitedCodec};
use tram_types::routing::{RoutingTable, SecretHash, TableChange};
use uuid::Uuid;

/// Raised when a frame changes its meaning; new optional fields do not count.
pub const PROTOCOL: u32 = 1;

/// Longest frame: a table of some fifty thousand services. Stops a stray writer from taking all memory.
const FRAME_MAX_BYTES: usize = 64 * 1024 * 1024;

/// Reports that wait for a slow controller; later ones are dropped, since they repeat the same running totals.
const REPORTS_MAX: usize = 256;

/// How long the edge may take to answer; it compiles a table of thousands of services in some tens of milliseconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Where the edge of a state directory listens.
#[must_use]
pub fn socket_path(state_dir: &Path) -> PathBuf {
    state_dir.join("edge.sock")
}

/// What the edge says first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`PROTOCOL`] of the edge.
    pub protocol: u32,
    /// New with every start of the edge; running totals begin at zero with it.
    pub edge_id: Uuid,
    /// The version held now; zero: none.
    pub table_version: u64,
    /// Whether [`Client::thawed`] and [`Client::is_quiet`] are understood. An edge that does not needs whole tables.
    #[serde(default)]
    pub light_sleep: bool,
    /// Whether [`Client::push_change`] is understood.
    #[serde(default)]
    pub changes: bool,
}

/// From the controller.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Request {
    Hello {
        protocol: u32,
        /// See [`Client::connect_with_front`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        front: Option<SecretHash>,
    },
    Table {
        table: Box<RoutingTable>,
    },
    /// See [`Client::push_change`].
    Change {
        change: Box<TableChange>,
    },
    Metrics,
    /// See [`Client::thawed`].
    Thawed {
        service_id: Uuid,
        table_version: u64,
        instances: Vec<Uuid>,
    },
    /// See [`Client::is_quiet`].
    Quiet {
        service_id: Uuid,
    },
}

/// [`Request::Table`] and [`Request::Change`] without a copy.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Push<'t> {
    Table { table: &'t RoutingTable },
    Change { change: &'t TableChange },
}

/// From the edge.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Message {
    Hello(Hello),
    Accepted { version: u64 },
    Refused { version: u64, held: u64, reason: String },
    Metrics { text: String },
    Thawed { open: bool },
    Quiet { quiet: bool },
    Report(Report),
    Wake(WakeDemand),
}

/// Callers wait for a service that sleeps. Sent when the first one comes, and again on a new link or when the service
/// falls asleep again under them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WakeDemand {
    /// The service.
    pub service_id: Uuid,
    /// How many wait now.
    pub waiting: u32,
    /// The span of the caller who caused it, as the value of a `traceparent` header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

/// What services do. Sent at once when one goes busy or idle and after each table, every second while any is busy, and
/// more often while an instance that left the table still has something in flight.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// When it was true.
    pub at: Timestamp,
    /// The table that was in force. A service that is idle here will get no more requests by an older table.
    pub table_version: u64,
    /// Whether every service of the table is here; else those alone that have something to tell.
    pub complete: bool,
    /// The services.
    pub services: Vec<ServiceReport>,
    /// Every instance with anything in flight, of the table or of one before. An instance that the controller took
    /// out of the table with a version no newer than `table_version`, and that is not here, may be stopped.
    #[serde(default)]
    pub busy_instances: Vec<BusyInstance>,
    /// Public TCP ports of the table on which the edge cannot listen, with the cause. The edge goes on trying.
    #[serde(default)]
    pub closed_ports: Vec<ClosedPort>,
}

/// What one instance has in flight.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BusyInstance {
    /// The instance.
    pub instance_id: Uuid,
    /// Requests, streams and connections.
    pub in_flight: u32,
}

/// A public TCP port that is not open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClosedPort {
    /// The port.
    pub public_port: u16,
    /// In words for its user.
    pub reason: String,
}

/// One service. Totals run from the start of the edge.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServiceReport {
    /// The service.
    pub service_id: Uuid,
    /// Requests, open streams, WebSockets and TCP connections now. Callers that wait for a wake are not in it.
    pub in_flight: u32,
    /// Callers that wait for a wake now.
    pub queued: u32,
    /// The last arrival or end of a request; none since the edge started: absent.
    pub last_activity: Option<Timestamp>,
    /// Requests that came, refused ones included.
    pub arrivals: u64,
    /// Requests answered by class, 1xx first.
    pub classes: [u64; 5],
    /// Arrival to the head of the answer.
    pub latency: Histogram,
    /// Bytes of request bodies and of tunnels.
    pub bytes_in: u64,
    /// Bytes of answers' bodies and of tunnels.
    pub bytes_out: u64,
    /// Callers who had to wait for a wake.
    pub holds: u64,
    /// Wakes demanded.
    pub wakes: u64,
    /// How requests to each instance turned out since a canary is tried; empty: none is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tallies: Vec<InstanceTally>,
}

/// How requests to one instance turned out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceTally {
    /// The instance.
    pub instance_id: Uuid,
    /// Requests that it answered or failed to.
    pub answers: u64,
    /// Those of them answered with 5xx or not at all, and those that wait far longer than others. May become fewer.
    pub failures: u64,
}

/// How many fell where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Histogram {
    /// Upper bounds in microseconds; one bucket more than bounds.
    pub bounds_us: Vec<u64>,
    /// Not cumulative.
    pub counts: Vec<u64>,
    /// Of all values.
    pub sum_us: u64,
}

/// What a controller hears.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A service must wake.
    Wake(WakeDemand),
    /// Services have something to tell.
    Report(Report),
}

/// Why the link does not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No edge there.
    #[error("cannot reach the edge at {}", .path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// The link broke or the edge does not answer.
    #[error("the link to the edge broke")]
    Broken,
    /// The other side does not speak our protocol.
    #[error("the edge speaks protocol {theirs} and we speak {PROTOCOL}: run the same version of both")]
    Protocol {
        /// What the edge said.
        theirs: u32,
    },
    /// The edge holds a newer table, or the table does not hold together.
    #[error("the edge refused table version {version} and keeps version {held}: {reason}")]
    Refused {
        /// What was pushed.
        version: u64,
        /// What the edge serves.
        held: u64,
        /// The edge's words.
        reason: String,
    },
    /// Larger than a frame may be.
    #[error("cannot write to the edge")]
    Write(#[source] std::io::Error),
}

pub(crate) type Reader = FramedRead<OwnedReadHalf, LengthDelimitedCodec>;
pub(crate) type Writer = FramedWrite<OwnedWriteHalf, LengthDelimitedCodec>;

pub(crate) fn framed(stream: UnixStream) -> (Reader, Writer) {
    let codec = || {
        LengthDelimitedCodec::builder()
            .max_frame_length(FRAME_MAX_BYTES)
            .new_codec()
    };
    let (read, write) = stream.into_split();
    (FramedRead::new(read, codec()), FramedWrite::new(write, codec()))
}

/// One frame's bytes. `None`: the value does not go into JSON, which plain data always does.
pub(crate) fn encode(value: &impl Serialize) -> Option<Bytes> {
    serde_json::to_vec(value).ok().map(Bytes::from)
}

pub(crate) fn decode<T: for<'de> Deserialize<'de>>(frame: &BytesMut) -> Option<T> {
    serde_json::from_slice(frame)
        .inspect_err(|error| {
            tracing::warn!(
                error = error as &dyn std::error::Error,
                "a frame of the control link makes no sense"
            )
        })
        .ok()
}

/// The controller's half of the link. Clone-free; share it by reference. Ends its tasks when dropped.
#[derive(Debug)]
pub struct Client {
    hello: Hello,
    orders: mpsc::Sender<(Bytes, oneshot::Sender<Message>)>,
}

/// What comes without being asked for.
#[derive(Debug)]
pub struct Events {
    wakes: mpsc::UnboundedReceiver<WakeDemand>,
    reports: mpsc::Receiver<Report>,
}

impl Events {
    /// The next event, wakes first; `None` when the link broke. Cancel-safe.
    pub async fn next(&mut self) -> Option<Event> {
        tokio::select! {
            biased;
            Some(wake) = self.wakes.recv() => Some(Event::Wake(wake)),
            Some(report) = self.reports.recv() => Some(Event::Report(report)),
            else => None,
        }
    }
}

impl Client {
    /// Connects and waits for the edge's first words. The caller connects again when [`Events::next`] ends.
    pub async fn connect(path: &Path) -> Result<(Self, Events), Error> {
        Self::connect_with_front(path, None).await
    }

    /// [`Client::connect`] of a control plane whose front asks models through this edge: the edge believes what a request
    /// says of who asks when it proves itself by the secret of this hash, in the header `x-tram-front`.
    pub async fn connect_with_front(path: &Path, front: Option<SecretHash>) -> Result<(Self, Events), Error> {
        let stream = UnixStream::connect(path).await.map_err(|source| Error::Connect {
            path: path.to_owned(),
            source,
        })?;
        let (mut reader, mut writer) = framed(stream);
        let hello = encode(&Request::Hello {
            protocol: PROTOCOL,
            front,
        })
        .ok_or(Error::Broken)?;
        writer.send(hello).await.map_err(Error::Write)?;
        let first = tokio::time::timeout(ANSWER_TIMEOUT, reader.next())
            .await
            .map_err(|_| Error::Broken)?;
        let Some(Message::Hello(hello)) = first.and_then(Result::ok).as_ref().and_then(decode) else {
            return Err(Error::Broken);
        };
        if hello.protocol != PROTOCOL {
            return Err(Error::Protocol {
                theirs: hello.protocol,
            });
        }
        let (orders, received) = mpsc::channel(16);
        let (wake_sender, wakes) = mpsc::unbounded_channel();
        let (report_sender, reports) = mpsc::channel(REPORTS_MAX);
        tokio::spawn(converse(reader, writer, received, wake_sender, report_sender));
        Ok((Self { hello, orders }, Events { wakes, reports }))
    }

    /// What the edge said when we connected.
    #[must_use]
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// Puts a table into force. When this returns, no request is routed by an older one any more, and the edge is
    /// keeping the new one on its disk. Pushing the version that is held already changes nothing.
    pub async fn push_table(&self, table: &RoutingTable) -> Result<(), Error> {
        self.put(&Push::Table { table }).await
    }

    /// Makes the table in force into the next version, as [`Client::push_table`] would with that one whole. Refused when
    /// another version is in force than the change begins with. Only for an edge that said [`Hello::changes`].
    pub async fn push_change(&self, change: &TableChange) -> Result<(), Error> {
        self.put(&Push::Change { change }).await
    }

    async fn put(&self, push: &Push<'_>) -> Result<(), Error> {
        match self.ask(push).await? {
            Message::Accepted { .. } => Ok(()),
            Message::Refused {
                version,
                held,
                reason,
            } => Err(Error::Refused {
                version,
                held,
                reason,
            }),
            _ => Err(Error::Broken),
        }
    }

    /// Says that these instances of a sleeping service answer again: whoever waits goes on, without a new table. It
    /// holds under the table of `table_version` alone; false when another one is in force, or when the service has
    /// other endpoints in it. Only for an edge that said [`Hello::light_sleep`].
    pub async fn thawed(
        &self,
        service_id: Uuid,
        table_version: u64,
        instances: Vec<Uuid>,
    ) -> Result<bool, Error> {
        let thawed = Request::Thawed {
            service_id,
            table_version,
            instances,
        };
        match self.ask(&thawed).await? {
            Message::Thawed { open } => Ok(open),
            _ => Err(Error::Broken),
        }
    }

    /// Whether the service sleeps under the table in force and nothing of it is under way: then nothing is sent to its
    /// instances before a newer table or [`Client::thawed`]. Only for an edge that said [`Hello::light_sleep`].
    pub async fn is_quiet(&self, service_id: Uuid) -> Result<bool, Error> {
        match self.ask(&Request::Quiet { service_id }).await? {
            Message::Quiet { quiet } => Ok(quiet),
            _ => Err(Error::Broken),
        }
    }

    /// The edge's metrics in Prometheus' text format.
    pub async fn metrics(&self) -> Result<String, Error> {
        match self.ask(&Request::Metrics).await? {
            Message::Metrics { text } => Ok(text),
            _ => Err(Error::Broken),
        }
    }

    async fn ask(&self, request: &impl Serialize) -> Result<Message, Error> {
        let frame = encode(request).ok_or(Error::Broken)?;
        let (sender, answer) = oneshot::channel();
        self.orders
            .send((frame, sender))
            .await
            .map_err(|_| Error::Broken)?;
        tokio::time::timeout(ANSWER_TIMEOUT, answer)
            .await
            .map_err(|_| Error::Broken)?
            .map_err(|_| Error::Broken)
    }
}

/// Carries orders out and sorts what comes in, until either end is gone. Answers come in the order of the orders.
async fn converse(
    mut reader: Reader,
    mut writer: Writer,
    mut orders: mpsc::Receiver<(Bytes, oneshot::Sender<Message>)>,
    wakes: mpsc::UnboundedSender<WakeDemand>,
    reports: mpsc::Sender<Report>,
) {
    let pending: Mutex<std::collections::VecDeque<oneshot::Sender<Message>>> = Mutex::default();
    let pending = || pending.lock().unwrap_or_else(PoisonError::into_inner);
    let write = async {
        while let Some((frame, answer)) = orders.recv().await {
            pending().push_back(answer);
            if writer.send(frame).await.is_err() {
                return;
            }
        }
    };
    let read = async {
        while let Some(Ok(frame)) = reader.next().await {
            match decode::<Message>(&frame) {
                Some(Message::Wake(wake)) => {
                    if wakes.send(wake).is_err() {
                        return;
                    }
                }
                // Dropped when the controller is slow: the next one carries the same totals.
                Some(Message::Report(report)) => drop(reports.try_send(report)),
                Some(answer) => {
                    if let Some(asker) = pending().pop_front() {
                        drop(asker.send(answer));
                    }
                }
                None => return,
            }
        }
    };
    tokio::select! {
        () = write => {}
        () = read => {}
    }
}
