//! Runs a command inside an instance and keeps what it writes, up to a limit.
//!
//! The same call of the API as `tram exec`, for callers that want an answer and not a terminal. Output beyond the limit
//! is read and dropped, so that the command is never stuck for a reader.

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde_json::{Value, json};

use super::exec::{self, STDIN_CHUNK_BYTES, data};
use crate::{
    client::{Client, Receiver, Sender},
    error::Error,
    view::text,
};

/// What became of a command.
#[derive(Debug, Default)]
pub(super) struct Captured {
    pub(super) stdout: Kept,
    pub(super) stderr: Kept,
    /// The exit code: a byte.
    pub(super) code: u8,
}

/// The beginning of a stream.
#[derive(Debug, Default)]
pub(super) struct Kept {
    pub(super) bytes: Vec<u8>,
    /// How many bytes there were in all.
    pub(super) total: usize,
}

impl Kept {
    /// Keeps what there is room for.
    fn add(&mut self, bytes: &[u8], limit: usize) {
        self.total = self.total.saturating_add(bytes.len());
        let room = limit.saturating_sub(self.bytes.len()).min(bytes.len());
        self.bytes
            .extend_from_slice(bytes.get(..room).unwrap_or_default());
    }

    /// How many bytes were dropped.
    pub(super) fn dropped(&self) -> usize {
        self.total.saturating_sub(self.bytes.len())
    }
}

/// Runs `command` in an instance of the service with `input` as its standard input; keeps `limit` bytes of each stream.
///
/// When this is dropped the connection goes, and the command's process group with it.
pub(super) async fn capture(
    client: &Client,
    service_id: &str,
    command: &[String],
    input: &[u8],
    limit: usize,
) -> Result<Captured, Error> {
    let (mut sender, receiver) = client.stream(exec::PATH, &[]).await?.split();
    let order = json!({
        "id": service_id,
        "idType": "SERVICE_ID",
        "body": { "command": command, "disableTty": true },
    });
    sender.send(&order).await?;
    tokio::select! {
        captured = receive(receiver, limit) => captured,
        error = feed(&mut sender, input) => Err(error),
    }
}

/// Sends the input and its end, then keeps the stream alive; what it returns is why it cannot.
async fn feed(sender: &mut Sender, input: &[u8]) -> Error {
    let mut frames = input
        .chunks(STDIN_CHUNK_BYTES)
        .map(|chunk| json!({ "body": { "stdin": { "data": BASE64.encode(chunk) } } }))
        .chain([json!({ "body": { "stdin": { "close": true } } })]);
    loop {
        let sent = match frames.next() {
            Some(frame) => sender.send(&frame).await,
            None => sender.keep_alive().await,
        };
        if let Err(error) = sent {
            return error.into();
        }
    }
}

async fn receive(mut receiver: Receiver, limit: usize) -> Result<Captured, Error> {
    let mut captured = Captured::default();
    while let Some(frame) = receiver.next().await? {
        if let Some(error) = frame.get("error") {
            let message = text(error, "message").trim_end_matches('.');
            return Err(Error::Exec(message.to_owned()));
        }
        let result = frame.get("result").cloned().unwrap_or_default();
        for (name, kept) in [("stdout", &mut captured.stdout), ("stderr", &mut captured.stderr)] {
            if let Some(bytes) = data(&result, name)? {
                kept.add(&bytes, limit);
            }
        }
        if result.get("exited").and_then(Value::as_bool) == Some(true) {
            let code = crate::view::number(&result, "exit_code");
            // An exit code is a byte; a server that says more says "failed".
            captured.code = u8::try_from(code).unwrap_or(u8::MAX);
            return Ok(captured);
        }
    }
    Err(Error::Exec(
        "the connection ended before the command did".to_owned(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beginning_is_kept_and_the_rest_counted() {
        let mut kept = Kept::default();
        for bytes in [&b"abc"[..], b"", b"defg", b"h"] {
            kept.add(bytes, 5);
        }
        assert_eq!(
            (kept.bytes.as_slice(), kept.total, kept.dropped()),
            (&b"abcde"[..], 8, 3)
        );
    }
}
