//! The connections: reading requests, sending replies and events.
//!
//! Owns the bounds on what peers may cost. The one design choice to know: sending never waits. What a
//! socket does not take is kept, up to a bound; a watcher that does not read is dropped.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::net::SocketFlags;
use serde::Serialize;

use crate::protocol::frame::{self, Decoder, FrameError};
use crate::protocol::{Event, Refusal, Reply, Request};

/// Each call has its own connection, so this bounds calls at once; an agent has a few dozen.
const CLIENTS_MAX: usize = 512;
/// Some thousands of events. A watcher so far behind lists anew.
const BACKLOG_BYTES_MAX: usize = 1 << 20;
/// When no descriptor is left for a new connection, accepting again is tried this much later.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
pub(super) struct Clients {
    clients: BTreeMap<u64, Client>,
    next: u64,
    accept_after: Option<Instant>,
}

#[derive(Debug)]
struct Client {
    socket: OwnedFd,
    decoder: Decoder,
    out: VecDeque<Outgoing>,
    out_bytes: usize,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// A request may come.
    Idle,
    /// A reply is owed.
    Busy,
    /// Gets events.
    Watching,
}

#[derive(Debug)]
struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
    fds: Vec<OwnedFd>,
}

impl Clients {
    pub(super) fn accepting(&self) -> bool {
        self.accept_after.is_none_or(|after| Instant::now() >= after)
    }

    pub(super) fn next_timer(&self) -> Option<Duration> {
        self.accept_after
            .map(|after| after.saturating_duration_since(Instant::now()))
            .filter(|left| !left.is_zero())
    }

    pub(super) fn accept(&mut self, listener: &OwnedFd) {
        self.accept_after = None;
        loop {
            match rustix::net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(socket) => {
                    let client = Client {
                        socket,
                        decoder: Decoder::default(),
                        out: VecDeque::new(),
                        out_bytes: 0,
                        state: State::Idle,
                    };
                    let number = self.next;
                    self.next += 1;
                    self.clients.insert(number, client);
                    if self.clients.len() > CLIENTS_MAX {
                        let refusal = Refusal::TooMany {
                            what: "connections".to_owned(),
                            limit: CLIENTS_MAX,
                        };
                        self.reply(number, &Reply::Refused { refusal }, Vec::new());
                        self.clients.remove(&number);
                    }
                }
                Err(rustix::io::Errno::AGAIN) => return,
                Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => {}
                Err(errno) => {
                    tracing::warn!(error = %errno, "cannot accept a connection");
                    self.accept_after = Some(Instant::now() + ACCEPT_PAUSE);
                    return;
                }
            }
        }
    }

    /// What each connection waits for.
    pub(super) fn interests(&self) -> impl Iterator<Item = (u64, &OwnedFd, PollFlags)> {
        self.clients.iter().map(|(number, client)| {
            // A busy client is not read: its next request waits in the socket.
            let mut flags = if client.state == State::Busy {
                PollFlags::empty()
            } else {
                PollFlags::IN
            };
            if !client.out.is_empty() {
                flags |= PollFlags::OUT;
            }
            (*number, &client.socket, flags)
        })
    }

    /// Read and write what can be; forgets the client when it is gone.
    pub(super) fn turn(&mut self, number: u64, flags: PollFlags) {
        let Some(client) = self.clients.get_mut(&number) else {
            return;
        };
        let alive = (!flags.contains(PollFlags::OUT) || client.send())
            && (!flags.contains(PollFlags::IN) || client.receive());
        // A peer that hung up can get no reply.
        let gone = flags.intersects(PollFlags::HUP | PollFlags::ERR) && !flags.contains(PollFlags::IN);
        if !alive || gone {
            self.clients.remove(&number);
        }
    }

    /// The next whole request of an idle client.
    pub(super) fn request(&mut self, number: u64) -> Option<Result<Request, FrameError>> {
        let client = self.clients.get_mut(&number)?;
        if client.state != State::Idle {
            return None;
        }
        let request = client.decoder.decode().transpose()?;
        client.state = State::Busy;
        Some(request)
    }

    /// Send what is owed. A client that is gone owes nothing any more.
    pub(super) fn reply(&mut self, number: u64, reply: &Reply, fds: Vec<OwnedFd>) {
        let Some(client) = self.clients.get_mut(&number) else {
            return;
        };
        client.state = if matches!(reply, Reply::Watching) {
            State::Watching
        } else {
            State::Idle
        };
        if !client.queue(reply, fds) {
            self.clients.remove(&number);
        }
    }

    pub(super) fn drop_client(&mut self, number: u64) {
        self.clients.remove(&number);
    }

    pub(super) fn broadcast(&mut self, event: &Event) {
        self.clients.retain(|_, client| {
            if client.state != State::Watching {
                return true;
            }
            client.out_bytes < BACKLOG_BYTES_MAX && client.queue(event, Vec::new())
        });
    }
}

impl Client {
    /// False when the connection is of no more use.
    fn queue<T: Serialize>(&mut self, message: &T, fds: Vec<OwnedFd>) -> bool {
        let bytes = match frame::encode(message) {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::error!(%error, "cannot encode a message");
                return false;
            }
        };
        self.out_bytes += bytes.len();
        self.out.push_back(Outgoing { bytes, sent: 0, fds });
        self.send()
    }

    fn send(&mut self) -> bool {
        while let Some(first) = self.out.front_mut() {
            let rest = first.bytes.get(first.sent..).unwrap_or_default();
            let fds: Vec<_> = first.fds.iter().map(AsFd::as_fd).collect();
            match frame::send(self.socket.as_fd(), rest, &fds) {
                Ok(sent) => {
                    // They rode on the first byte.
                    first.fds.clear();
                    first.sent += sent;
                    if first.sent == first.bytes.len() {
                        self.out_bytes -= first.bytes.len();
                        self.out.pop_front();
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }

    fn receive(&mut self) -> bool {
        // Nobody sends us descriptors; what comes is closed.
        let mut fds = Vec::new();
        match frame::receive(&self.socket, &mut self.decoder, &mut fds) {
            Ok(0) => false,
            Ok(_) => self.state != State::Watching,
            Err(error) => matches!(
                error.kind(),
                std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted
            ),
        }
    }
}
