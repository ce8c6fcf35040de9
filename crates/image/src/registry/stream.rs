//! The body of a layer's answer: bytes as they arrive, with the stall limit.

use std::time::Duration;

use bytes::Bytes;
use reqwest::Response;
use tokio::time::timeout;

use super::answer::transport;
use super::client::LAYER;
use crate::error::Error;
use crate::limits::MIN_BYTES_PER_STALL_WINDOW;

/// The bytes of a layer as they arrive.
#[derive(Debug)]
pub(crate) struct BlobStream {
    response: Response,
    /// The first byte that will come.
    pub(crate) offset: u64,
    registry: String,
    limit: Duration,
    /// When the current window ends, and what arrived in it.
    window: Option<(tokio::time::Instant, u64)>,
}

impl BlobStream {
    pub(super) fn new(response: Response, offset: u64, registry: String, limit: Duration) -> Self {
        Self {
            response,
            offset,
            registry,
            limit,
            window: None,
        }
    }

    /// The next bytes, or `None` at the end of the stream (which may be early). A pause longer than the stall
    /// limit, or a trickle for as long, is an error.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        let now = tokio::time::Instant::now();
        let stalled = Error::Timeout {
            registry: self.registry.clone(),
            doing: LAYER,
            limit: self.limit,
        };
        let (end, bytes) = match self.window {
            Some((end, bytes)) if now >= end => {
                if bytes < MIN_BYTES_PER_STALL_WINDOW {
                    return Err(stalled);
                }
                (now + self.limit, 0)
            }
            Some(window) => window,
            None => (now + self.limit, 0),
        };
        let chunk = match timeout(self.limit, self.response.chunk()).await {
            Ok(outcome) => outcome.map_err(|error| transport(&self.registry, LAYER, error, self.limit))?,
            Err(_) => return Err(stalled),
        };
        self.window = Some((end, bytes + chunk.as_ref().map_or(0, |chunk| chunk.len() as u64)));
        Ok(chunk)
    }

    pub(crate) fn registry(&self) -> &str {
        &self.registry
    }
}
