//! A WebSocket of the API: JSON in text frames, both ways, kept alive by pings.

use std::time::Duration;

use futures_util::{
    SinkExt as _, StreamExt as _,
    stream::{SplitSink, SplitStream},
};
use reqwest::{Method, StatusCode, Upgraded, header};
use serde_json::Value;
use tokio::time::{Interval, MissedTickBehavior, interval_at, timeout};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Bytes, Message,
        handshake::{client::generate_key, derive_accept_key},
        protocol::{Role, frame::coding::CloseCode},
    },
};

use super::{Client, Error, Query};

/// How long opening a stream may take.
const OPEN_TIMEOUT: Duration = Duration::from_secs(15);
/// How often a ping is sent, so that nothing between takes the stream for dead.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// How long a server gets to answer our close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// An open stream.
pub(crate) struct Stream {
    sender: Sender,
    receiver: Receiver,
}

/// The half that sends. Both halves can wait at the same time: a server that takes nothing until we have read
/// what it sent does not stop us from reading.
pub(crate) struct Sender {
    sink: SplitSink<WebSocketStream<Upgraded>, Message>,
    pings: Interval,
}

/// The half that receives.
pub(crate) struct Receiver {
    frames: SplitStream<WebSocketStream<Upgraded>>,
}

impl Client {
    /// Opens the stream at `path`.
    pub(crate) async fn stream(&self, path: &str, query: Query<'_>) -> Result<Stream, Error> {
        match timeout(OPEN_TIMEOUT, self.upgrade(path, query)).await {
            Ok(stream) => stream,
            Err(_) => Err(Error::TimedOut {
                call: path.to_owned(),
                after: OPEN_TIMEOUT,
            }),
        }
    }

    async fn upgrade(&self, path: &str, query: Query<'_>) -> Result<Stream, Error> {
        let key = generate_key();
        let response = self
            .request(Method::GET, path, query)?
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .header(header::SEC_WEBSOCKET_KEY, &key)
            .send()
            .await
            .map_err(|source| self.transport(path, source))?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            // A refusal has an error body; anything else is no answer to an upgrade.
            self.body(path, response).await?;
            return Err(self.unexpected(path, "it does not open a WebSocket".to_owned()));
        }
        let accepted = response
            .headers()
            .get(header::SEC_WEBSOCKET_ACCEPT)
            .is_some_and(|accept| accept.as_bytes() == derive_accept_key(key.as_bytes()).as_bytes());
        if !accepted {
            return Err(self.unexpected(path, "it accepts another WebSocket than ours".to_owned()));
        }
        let upgraded = response
            .upgrade()
            .await
            .map_err(|source| self.transport(path, source))?;
        let socket = WebSocketStream::from_raw_socket(upgraded, Role::Client, None).await;
        let mut pings = interval_at(tokio::time::Instant::now() + PING_INTERVAL, PING_INTERVAL);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (sink, frames) = socket.split();
        Ok(Stream {
            sender: Sender { sink, pings },
            receiver: Receiver { frames },
        })
    }
}

impl Stream {
    /// Both halves.
    pub(crate) fn split(self) -> (Sender, Receiver) {
        (self.sender, self.receiver)
    }

    /// The next message, as [`Receiver::next`], with pings sent meanwhile.
    pub(crate) async fn next(&mut self) -> Result<Option<Value>, Error> {
        loop {
            tokio::select! {
                message = self.receiver.next() => return message,
                kept = self.sender.keep_alive() => kept?,
            }
        }
    }

    /// Closes the stream; a server that does not answer is left.
    pub(crate) async fn close(mut self) {
        let _ = timeout(CLOSE_TIMEOUT, self.sender.sink.close()).await;
    }
}

impl Sender {
    /// Sends one message; waits as long as the server takes nothing.
    pub(crate) async fn send(&mut self, message: &Value) -> Result<(), Error> {
        self.frame(Message::text(message.to_string())).await
    }

    /// Waits for the time of the next ping and sends it.
    pub(crate) async fn keep_alive(&mut self) -> Result<(), Error> {
        self.pings.tick().await;
        self.frame(Message::Ping(Bytes::new())).await
    }

    async fn frame(&mut self, frame: Message) -> Result<(), Error> {
        self.sink
            .send(frame)
            .await
            .map_err(|source| Error::Stream(source.to_string()))
    }
}

impl Receiver {
    /// The next message; `None` when the server has closed the stream as agreed. Safe to cancel.
    pub(crate) async fn next(&mut self) -> Result<Option<Value>, Error> {
        loop {
            match self.frames.next().await {
                Some(Ok(Message::Text(text))) => return parse(text.as_bytes()).map(Some),
                Some(Ok(Message::Binary(bytes))) => return parse(&bytes).map(Some),
                Some(Ok(Message::Close(Some(reason)))) if reason.code != CloseCode::Normal => {
                    return Err(Error::Stream(match reason.reason.as_str() {
                        "" => format!("closed by the server with code {}", u16::from(reason.code)),
                        text => text.to_owned(),
                    }));
                }
                Some(Ok(Message::Close(_))) => return Ok(None),
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Err(source)) => return Err(Error::Stream(source.to_string())),
                None => return Err(Error::Stream("the server has gone".to_owned())),
            }
        }
    }
}

fn parse(bytes: &[u8]) -> Result<Value, Error> {
    serde_json::from_slice(bytes).map_err(|source| Error::Stream(format!("a frame is not JSON ({source})")))
}
