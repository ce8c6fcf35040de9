//! A connection whose requests arrive without the secret that they were sent with.
//!
//! ```text
//! socket ── Authorization: Bearer SECRET ──> here ── authorization: SEAL:sha256:DIGEST ──> hyper
//! ```
//!
//! Wrapped around each connection by `server`. What hyper reads stays in its buffers, and in the headers of a request for as
//! long as that is answered; so the secret must not get there. The head of each request is read into a buffer of this
//! module's own, which is overwritten when the head is passed on; bodies are passed on as they come.
//!
//! The one design choice to know: where a head begins is known from the length of the body before it. After a body whose
//! end only a whole parser would find (`Transfer-Encoding`), no other request is taken on that connection: the head says
//! `Connection: close`, which hyper obeys. The digest goes along in the header, behind a seal that is drawn anew for each
//! connection: so no client can show a digest instead of a secret, whatever it sends.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use zeroize::{Zeroize, Zeroizing};

use crate::secret::Digest;

/// A secret is no longer than this. Clients make 43 characters.
const SECRET_BYTES_MAX: usize = 4096;
/// Room for a head at first: nearly all are shorter than a kilobyte.
const ROOM_BYTES: usize = 4096;
/// Longest head: as hyper has it.
const HEAD_BYTES_MAX: usize = 8192 + 4096 * 100;
/// Most headers: as hyper has it.
const HEADERS_MAX: usize = 100;
/// Given to hyper in the place of a head that it would refuse: it refuses this one, too.
const REFUSED: &[u8] = b"x\r\n\r\n";

/// What a connection and the service behind it know of each other.
#[derive(Debug)]
pub(crate) struct Seal {
    word: String,
    upgraded: AtomicBool,
}

impl Seal {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            // From the kernel: a copy of this process draws others.
            word: uuid::Uuid::new_v4().simple().to_string(),
            upgraded: AtomicBool::new(false),
        })
    }

    /// The digest of the secret that a request was sent with. `header`: its `Authorization`.
    pub(crate) fn shown(&self, header: Option<&str>) -> Option<Digest> {
        let digest = header?.strip_prefix(self.word.as_str())?.strip_prefix(':')?;
        Digest::read(digest)
    }

    /// What comes on this connection from now on is no request.
    pub(crate) fn upgrade(&self) {
        self.upgraded.store(true, Ordering::Release);
    }
}

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Head,
    /// So many bytes of a body, then a head.
    Body(u64),
    /// Nothing that is looked at.
    Rest,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Blind<S> {
    stream: S,
    seal: Arc<Seal>,
    next: Next,
    /// What was read and not looked at yet: the first `filled` bytes.
    raw: Zeroizing<Vec<u8>>,
    filled: usize,
    /// Up to here there is no end of a head.
    searched: usize,
    /// For hyper, from `given` on.
    out: Vec<u8>,
    given: usize,
}

impl<S> Blind<S> {
    /// Also what the service behind it needs.
    pub(crate) fn new(stream: S) -> (Self, Arc<Seal>) {
        let seal = Seal::new();
        let blind = Self {
            stream,
            seal: Arc::clone(&seal),
            next: Next::Head,
            raw: Zeroizing::new(Vec::new()),
            filled: 0,
            searched: 0,
            out: Vec::new(),
            given: 0,
        };
        (blind, seal)
    }

    /// Drops the first `count` bytes of what was read, and leaves no trace of them.
    fn drop_raw(&mut self, count: usize) {
        let rest = Zeroizing::new(self.raw.get(count..self.filled).unwrap_or_default().to_vec());
        self.raw.zeroize();
        self.filled = rest.len();
        self.searched = 0;
        if !rest.is_empty() {
            self.raw.resize(rest.len().max(ROOM_BYTES), 0);
            if let Some(room) = self.raw.get_mut(..rest.len()) {
                room.copy_from_slice(&rest);
            }
        }
    }

    /// Room to read more of a head into; what was read moves to a larger place, and its old one is overwritten.
    fn make_room(&mut self) {
        if self.filled < self.raw.len() {
            return;
        }
        let larger = (self.raw.len() * 2).clamp(ROOM_BYTES, HEAD_BYTES_MAX + ROOM_BYTES);
        let mut room = Zeroizing::new(vec![0; larger]);
        if let (Some(to), Some(from)) = (room.get_mut(..self.filled), self.raw.get(..self.filled)) {
            to.copy_from_slice(from);
        }
        self.raw = room;
    }

    /// Makes something for hyper of what was read; whether there is anything now.
    fn look(&mut self) -> bool {
        let read = self.raw.get(..self.filled).unwrap_or_default();
        match self.next {
            Next::Rest => {
                self.out.extend_from_slice(read);
                self.drop_raw(self.filled);
            }
            Next::Body(left) => {
                let count = self.filled.min(usize::try_from(left).unwrap_or(usize::MAX));
                self.out.extend(read.iter().take(count));
                self.drop_raw(count);
                self.next = after(left - count as u64);
            }
            Next::Head => {
                let blank = blank_lines(read);
                if blank > 0 {
                    self.drop_raw(blank);
                    return self.look();
                }
                let Some(end) = end_of_head(read, self.searched) else {
                    self.searched = self.filled;
                    if self.filled > HEAD_BYTES_MAX {
                        self.refuse();
                    }
                    return !self.out.is_empty();
                };
                match rewrite(read.get(..end).unwrap_or_default(), &self.seal.word) {
                    Some((head, next)) => {
                        self.out = head;
                        self.next = next;
                        self.drop_raw(end);
                    }
                    None => self.refuse(),
                }
            }
        }
        !self.out.is_empty()
    }

    fn refuse(&mut self) {
        self.out = REFUSED.to_vec();
        self.drop_raw(self.filled);
        self.next = Next::Rest;
    }
}

fn after(body: u64) -> Next {
    if body == 0 { Next::Head } else { Next::Body(body) }
}

/// The length of the empty lines at the beginning, which a server passes over before a head. A line's end without its
/// beginning is none: hyper refuses it, and so does what may be in between.
fn blank_lines(read: &[u8]) -> usize {
    let mut at = 0;
    loop {
        at += match read.get(at..) {
            Some([b'\n', ..]) => 1,
            Some([b'\r', b'\n', ..]) => 2,
            _ => return at,
        };
    }
}

/// Where the first head ends, looked for from a little before `searched` on.
fn end_of_head(read: &[u8], searched: usize) -> Option<usize> {
    let from = searched.saturating_sub(2);
    let tail = read.get(from..)?;
    let mut at = tail.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
    at.find_map(|(index, _)| match tail.get(index + 1..)? {
        [b'\n', ..] => Some(from + index + 2),
        [b'\r', b'\n', ..] => Some(from + index + 3),
        _ => None,
    })
}

/// A head with digests in the place of secrets, and what comes after it. `None`: it is no head.
fn rewrite(head: &[u8], seal: &str) -> Option<(Vec<u8>, Next)> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    if !request.parse(head).ok()?.is_complete() {
        return None;
    }
    let mut out = Vec::with_capacity(head.len() + 128);
    let (mut copied, mut length, mut unclear) = (0, None, false);
    for header in request.headers.iter() {
        if header.name.eq_ignore_ascii_case("authorization") {
            let begin = (header.value.as_ptr() as usize).checked_sub(head.as_ptr() as usize)?;
            out.extend_from_slice(head.get(copied..begin)?);
            if let Some(secret) = bearer(header.value) {
                out.extend_from_slice(format!("{seal}:{}", Digest::of(secret)).as_bytes());
            }
            copied = begin + header.value.len();
        } else if header.name.eq_ignore_ascii_case("content-length") {
            let text = std::str::from_utf8(header.value).ok()?;
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            // Said twice, or in another way than in digits: hyper decides whether it is good.
            unclear |= length.is_some() || !digits;
            length = text.parse::<u64>().ok();
            unclear |= length.is_none();
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            unclear = true;
        }
    }
    let rest = head.get(copied..)?;
    if !unclear {
        out.extend_from_slice(rest);
        return Some((out, after(length.unwrap_or(0))));
    }
    let last = if rest.ends_with(b"\r\n") { 2 } else { 1 };
    let (rest, line) = rest.split_at_checked(rest.len().checked_sub(last)?)?;
    out.extend_from_slice(rest);
    out.extend_from_slice(b"connection: close\r\n");
    out.extend_from_slice(line);
    Some((out, Next::Rest))
}

/// The secret in the value of an `Authorization` header.
pub(crate) fn bearer(value: &[u8]) -> Option<&[u8]> {
    let space = value.iter().position(|byte| *byte == b' ')?;
    let (scheme, secret) = value.split_at_checked(space)?;
    let secret = secret.trim_ascii();
    let good = scheme.eq_ignore_ascii_case(b"bearer") && (1..=SECRET_BYTES_MAX).contains(&secret.len());
    good.then_some(secret)
}

impl<S: AsyncRead + Unpin> AsyncRead for Blind<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            let out = this.out.get(this.given..).unwrap_or_default();
            if !out.is_empty() {
                let count = out.len().min(buffer.remaining());
                buffer.put_slice(out.get(..count).unwrap_or_default());
                this.given += count;
                if this.given == this.out.len() {
                    (this.out, this.given) = (Vec::new(), 0);
                }
                return Poll::Ready(Ok(()));
            }
            if this.next == Next::Head && this.seal.upgraded.load(Ordering::Acquire) {
                (this.next, this.searched) = (Next::Rest, 0);
            }
            if this.filled > this.searched && this.look() {
                continue;
            }
            match this.next {
                Next::Rest => return Pin::new(&mut this.stream).poll_read(context, buffer),
                Next::Body(left) => {
                    let room = buffer.remaining() as u64;
                    let before = buffer.filled().len();
                    if left >= room {
                        ready!(Pin::new(&mut this.stream).poll_read(context, buffer))?;
                    } else {
                        let most = usize::try_from(left).unwrap_or(usize::MAX);
                        let mut part = ReadBuf::new(buffer.initialize_unfilled_to(most));
                        ready!(Pin::new(&mut this.stream).poll_read(context, &mut part))?;
                        let count = part.filled().len();
                        buffer.advance(count);
                    }
                    this.next = after(left - (buffer.filled().len() - before) as u64);
                    return Poll::Ready(Ok(()));
                }
                Next::Head => {
                    this.make_room();
                    let mut part = ReadBuf::new(this.raw.get_mut(this.filled..).unwrap_or_default());
                    ready!(Pin::new(&mut this.stream).poll_read(context, &mut part))?;
                    let count = part.filled().len();
                    if count == 0 {
                        // The end, also in the middle of a head.
                        this.drop_raw(this.filled);
                        return Poll::Ready(Ok(()));
                    }
                    this.filled += count;
                }
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Blind<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests;
