//! The rest of a file in pieces that come side by side: one connection to a store of files is often slower than the line.
//!
//! Pieces come out in their order, so what is on the disk is always the file's beginning, and a transfer that was cut off
//! goes on from its length alone. What came out of order waits in memory: [`SIDE_BY_SIDE`] pieces at most.

use std::ops::Range;

use futures_util::{Stream, StreamExt, stream};
use reqwest::{
    Client, Response, StatusCode, Url,
    header::{ACCEPT_RANGES, ETAG, IF_RANGE, RANGE},
};
use tokio_util::bytes::{Bytes, BytesMut};

/// Bytes of a piece: long beside the time that asking for one takes.
pub(super) const PIECE_BYTES: u64 = 16 * 1024 * 1024;
/// Pieces on their way at once, of 64 MiB together: what the hub's own clients do, and no burden on a smaller store.
const SIDE_BY_SIDE: usize = 4;

/// Where pieces of a file come from.
#[derive(Debug, Clone)]
pub(super) struct Source {
    client: Client,
    /// Where the first answer came from, behind all redirects.
    url: Url,
    /// Shown to that host.
    token: Option<String>,
    /// Says that a piece is of the same file.
    tag: String,
}

/// Why a piece did not come. Another try of the whole can help.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Transfer(#[from] reqwest::Error),
    #[error("the server answered {0}")]
    Status(StatusCode),
    #[error("the file changed on the server")]
    Changed,
    #[error("the server sent another part than it was asked for")]
    Other,
}

impl Source {
    /// Where the rest of what `first` began comes from in pieces; nothing when its server does not say that it gives parts,
    /// or by what to know that they are of the same file. `tag`: the strong one of the answer. `token`: what the host of
    /// `asked` was shown.
    pub(super) fn of(
        client: &Client,
        asked: &str,
        token: Option<&str>,
        first: &Response,
        tag: &str,
    ) -> Option<Self> {
        let takes_ranges = first
            .headers()
            .get(ACCEPT_RANGES)
            .is_some_and(|unit| unit == "bytes");
        if tag.is_empty() || !(takes_ranges || first.status() == StatusCode::PARTIAL_CONTENT) {
            return None;
        }
        let url = first.url().clone();
        let is_asked = Url::parse(asked).is_ok_and(|asked| asked.origin() == url.origin());
        Some(Self {
            client: client.clone(),
            url,
            token: token.filter(|_| is_asked).map(str::to_owned),
            tag: tag.to_owned(),
        })
    }

    /// The bytes of `range`, piece by piece in their order.
    pub(super) fn pieces(self, range: Range<u64>) -> impl Stream<Item = Result<Bytes, Error>> {
        let end = range.end;
        let starts =
            stream::iter((range.start..end).step_by(usize::try_from(PIECE_BYTES).unwrap_or(usize::MAX)));
        starts
            .map(move |start| {
                let source = self.clone();
                async move { source.piece(start..end.min(start + PIECE_BYTES)).await }
            })
            .buffered(SIDE_BY_SIDE)
    }

    async fn piece(&self, range: Range<u64>) -> Result<Bytes, Error> {
        let mut request = self
            .client
            .get(self.url.clone())
            .header(RANGE, format!("bytes={}-{}", range.start, range.end - 1))
            .header(IF_RANGE, &self.tag);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        let mut response = request.send().await?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT if super::starts_at(&response) == Some(range.start) => {}
            // The tag is of another file: this is all of that one.
            StatusCode::OK | StatusCode::RANGE_NOT_SATISFIABLE => return Err(Error::Changed),
            StatusCode::PARTIAL_CONTENT => return Err(Error::Other),
            status => return Err(Error::Status(status)),
        }
        if response.headers().get(ETAG).is_some_and(|tag| *tag != *self.tag) {
            return Err(Error::Changed);
        }
        let length = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let mut piece = BytesMut::with_capacity(length);
        while let Some(chunk) = response.chunk().await? {
            if piece.len() + chunk.len() > length {
                return Err(Error::Other);
            }
            piece.extend_from_slice(&chunk);
        }
        if piece.len() < length {
            return Err(Error::Other);
        }
        Ok(piece.freeze())
    }
}
