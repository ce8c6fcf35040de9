//! Logs as they are written, over a WebSocket or, without an upgrade, as lines of JSON.
//!
//! Without an upgrade, a `limit` is how many lines there are in all: the official SDK reads such an answer to its end
//! and takes it for one object, so `limit=1` is what it can use.
//!
//! One task follows the instances and puts frames into a bounded channel; what takes them out writes to the client.
//! A slow client slows its own task down and nobody else: lines wait in the instance's log, not in memory. The
//! stream ends with a normal close when what it follows is gone, or when nothing of it can write any more.

use std::{collections::BTreeMap, convert::Infallible, time::Duration};

use axum::{
    body::Body,
    extract::ws::{Message, WebSocket},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::header::CONTENT_TYPE;
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval, timeout},
};
use tram_site::{LogCursor, LogEntry, LogQuery};
use tram_store::record::Instance;
use tram_types::{InstanceId, Timestamp};

use super::{
    frame::{self, Code},
    logs::{entry, limit},
    scan::{after, unreadable},
    select::{Lines, Selection},
};
use crate::{
    auth::{Access, Caller},
    endpoint::{Endpoint, Incoming, read_query},
    error::Error,
    serve::chain,
    state::ApiState,
    wire::stream::StreamResultOfLogEntry,
};

/// How often instances are asked for new lines: soon enough to feel live.
const POLL: Duration = Duration::from_millis(250);
/// Every so many polls the instances are looked up anew: a deployment brings others.
const POLLS_BETWEEN_LOOKUPS: u32 = 8;
/// Lines taken from one instance at a poll: one that writes without end does not starve the others.
const LINES_PER_POLL: usize = 1_000;
/// Frames that wait for a slow client.
const WAITING_FRAMES: usize = 256;
/// How long a client may take to accept a frame before it counts as gone.
const SEND_TIMEOUT: Duration = Duration::from_secs(60);
/// How often a silent client is asked whether it is there.
const PING_EVERY: Duration = Duration::from_secs(20);
/// Largest message from a client, which has nothing to say here.
const MESSAGE_MAX_BYTES: usize = 4 * 1024;

pub(super) fn endpoints() -> Vec<Endpoint> {
    vec![
        Endpoint::stream::<Lines, _, _>("/v1/streams/logs/tail", "TailLogs", Access::Read, tail)
            .giving::<StreamResultOfLogEntry>(),
    ]
}

async fn tail(mut incoming: Incoming) -> Result<Response, Error> {
    let caller = incoming.caller.take().ok_or(Error::Internal {
        doing: "following logs without a caller",
        source: None,
    })?;
    let lines: Lines = read_query(&incoming.parts)?;
    let api = incoming.api.clone();
    let selection = Selection::new(&api, caller.organization, &lines)?;
    let backlog = limit(lines.limit)?;
    selection.check_owner(&api).await?;
    let now = api.clock.now();
    let follower = Follower {
        selection,
        // A client that comes back says the time of the last line it has, and does not want it again.
        from: lines.start.map_or(now, after),
        backlog: backlog.filter(|_| lines.start.is_none()),
        cursors: BTreeMap::new(),
        caller,
        api,
    };
    let (sender, receiver) = mpsc::channel(WAITING_FRAMES);
    if frame::wants_websocket(&incoming.parts) {
        let upgrade = frame::upgrade(&mut incoming.parts, MESSAGE_MAX_BYTES).await?;
        return Ok(upgrade.on_upgrade(move |socket| async move {
            tokio::join!(follower.run(sender), write(socket, receiver));
        }));
    }
    tokio::spawn(follower.run(sender));
    let frames = stream::unfold(receiver, |mut receiver| async move {
        let frame: Frame = receiver.recv().await?;
        Some((Ok::<_, Infallible>(Bytes::from(frame.text + "\n")), receiver))
    });
    let frames = frames.take(backlog.unwrap_or(usize::MAX));
    Ok(([(CONTENT_TYPE, "application/json")], Body::from_stream(frames)).into_response())
}

/// What the follower has for the client.
struct Frame {
    text: String,
    /// How a WebSocket is closed if this is the last frame.
    close: Message,
}

/// Writes frames to a client until either side ends.
async fn write(mut socket: WebSocket, mut frames: mpsc::Receiver<Frame>) {
    let mut close = frame::normal_close();
    let mut pings = interval(PING_EVERY);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let message = tokio::select! {
            frame = frames.recv() => match frame {
                Some(frame) => {
                    close = frame.close;
                    frame::text(frame.text)
                }
                None => {
                    let _ = timeout(SEND_TIMEOUT, socket.send(close)).await;
                    return;
                }
            },
            received = socket.recv() => match received {
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => continue,
            },
            _ = pings.tick() => Message::Ping(Bytes::new()),
        };
        if !matches!(timeout(SEND_TIMEOUT, socket.send(message)).await, Ok(Ok(()))) {
            return;
        }
    }
}

/// Follows the logs of whatever a selection means.
struct Follower {
    api: ApiState,
    caller: Caller,
    selection: Selection,
    from: Timestamp,
    /// Lines from before the start to begin with.
    backlog: Option<usize>,
    cursors: BTreeMap<InstanceId, LogCursor>,
}

/// Why following ended.
enum End {
    /// What was followed is gone, or nothing can write any more.
    Over,
    /// The client left.
    Left,
    Failed(Error),
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        match error {
            Error::NotFound { .. } => Self::Over,
            other => Self::Failed(other),
        }
    }
}

impl Follower {
    async fn run(mut self, frames: mpsc::Sender<Frame>) {
        let (caller, api) = (self.caller.clone(), self.api.clone());
        let end = tokio::select! {
            end = self.follow(&frames) => end,
            () = frames.closed() => End::Left,
            error = caller.until_refused(&api, Access::Read) => End::Failed(error),
        };
        if let End::Failed(error) = end {
            if error.is_ours() {
                tracing::warn!(error = %chain(&error), "following logs failed");
            }
            let failure = Frame {
                text: frame::failure(Code::of(&error), &error.to_string()),
                close: frame::close_after(&error),
            };
            let _ = timeout(SEND_TIMEOUT, frames.send(failure)).await;
        }
    }

    async fn follow(&mut self, frames: &mpsc::Sender<Frame>) -> End {
        let mut ticks = interval(POLL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut instances = Vec::new();
        let mut poll: u32 = 0;
        loop {
            ticks.tick().await;
            if poll.is_multiple_of(POLLS_BETWEEN_LOOKUPS) {
                instances = match self.look_up().await {
                    Ok(found) => found,
                    Err(end) => return end,
                };
            }
            let over = !instances.is_empty()
                && self.selection.names_instances()
                && instances.iter().all(|instance| instance.status.is_final());
            match self.poll(&instances, frames, poll == 0).await {
                Ok(0) if over => return End::Over,
                Ok(_) => {}
                Err(end) => return end,
            }
            poll = poll.wrapping_add(1);
        }
    }

    async fn look_up(&self) -> Result<Vec<Instance>, End> {
        self.selection.check_owner(&self.api).await?;
        Ok(self.selection.instances(&self.api, Some(self.from), None).await?)
    }

    /// Sends what is new; says how many lines that were.
    async fn poll(
        &mut self,
        instances: &[Instance],
        frames: &mpsc::Sender<Frame>,
        is_first: bool,
    ) -> Result<usize, End> {
        let mut fresh: Vec<(usize, LogEntry)> = Vec::new();
        for (index, instance) in instances.iter().enumerate() {
            let Some(site) = self.api.sites.for_region(&instance.region) else {
                continue;
            };
            let backlog = self.backlog.filter(|_| is_first);
            let query = LogQuery {
                after: self.cursors.get(&instance.id).copied(),
                start: backlog.is_none().then_some(self.from),
                end: None,
                streams: self.selection.streams.clone(),
                limit: backlog.unwrap_or(LINES_PER_POLL),
                newest: backlog.is_some(),
            };
            let page = site.logs(instance.id, &query).await.map_err(unreadable)?;
            if let Some(last) = page.entries.last() {
                self.cursors.insert(instance.id, last.cursor);
            }
            fresh.extend(page.entries.into_iter().map(|line| (index, line)));
        }
        fresh.sort_by_key(|(index, line)| (line.at, *index, line.cursor));
        let count = fresh.len();
        for (index, line) in fresh {
            let Some(instance) = instances.get(index) else {
                continue;
            };
            if self.selection.matcher.matches(&line.message) {
                let frame = Frame {
                    text: frame::result(&entry(instance, line)),
                    close: frame::normal_close(),
                };
                frames.send(frame).await.map_err(|_| End::Left)?;
            }
        }
        Ok(count)
    }
}
