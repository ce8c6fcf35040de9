//! How the supervisor tells a shim to checkpoint and to wake.
//!
//! One connection to `<instance>/shim.sock` carries one order and one answer; a checkpoint can be called off on it. The
//! supervisor's side of it is `supervisor/errand.rs`.
//!
//! The one design choice to know: the shim does one thing at a time and finishes it whoever asked. So a supervisor that
//! finds a shim at work (there is a file `errand`) connects, and is answered when that is done.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::protocol::{CheckpointSpec, KeepSpec};
use crate::state::{InstanceDir, ProcessIdentity};

/// An order is sent at once after connecting.
const ORDER_TIMEOUT: Duration = Duration::from_secs(2);
/// A path, some addresses; a sentence or two.
const MESSAGE_BYTES_MAX: usize = 64 << 10;
/// One supervisor asks one thing at a time; a new one may come while the old one's is waiting.
const BACKLOG: i32 = 16;

/// What a shim is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "snake_case")]
pub(crate) enum ShimOrder {
    /// The instance is frozen: write it down and let it go.
    Checkpoint(CheckpointSpec),
    /// Write it down for others to begin as; it goes on as it is.
    Keep(KeepSpec),
    /// On the connection of a checkpoint: the instance is wanted. It stays frozen if that is still possible.
    CallOff,
    /// Let it run, from wherever it is.
    Wake,
    /// Say where it is.
    Tell,
    /// It is checkpointed: that is its end.
    End,
}

/// What a shim answers, once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub(crate) enum ShimAnswer {
    Awake {
        init: ProcessIdentity,
    },
    Frozen,
    Checkpointed,
    /// It cannot be checkpointed, and is frozen as before. The words are for its owner.
    Refused {
        reason: String,
    },
    /// It was written down for others, or not for a reason that is for its owner. It is awake or frozen, as before.
    Kept {
        reason: Option<String>,
        frozen: bool,
    },
    /// Its end is near, and goes on record.
    Ending,
}

/// Made by the supervisor's fork before it says that the program runs.
pub(super) fn listen(dir: &InstanceDir) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    let (_directory, address) = dir.shim_socket()?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// The next connection and its order. `None` when it went away.
pub(super) fn accept(listener: &OwnedFd) -> Option<(OwnedFd, ShimOrder)> {
    let connection = rustix::net::accept_with(listener, SocketFlags::CLOEXEC).ok()?;
    set_socket_timeout(&connection, Timeout::Recv, Some(ORDER_TIMEOUT)).ok()?;
    let order = receive(&connection, RecvFlags::empty()).ok()?;
    Some((connection, order))
}

/// Whether who ordered a checkpoint does not want it any more, or is gone.
pub(super) fn is_called_off(connection: &OwnedFd) -> bool {
    match receive::<ShimOrder>(connection, RecvFlags::DONTWAIT) {
        Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        Ok(_) => true,
    }
}

/// Connects and sends an order; the answer makes the connection readable.
pub(crate) fn order(dir: &InstanceDir, order: &ShimOrder) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    let (_directory, address) = dir.shim_socket()?;
    rustix::net::connect(&socket, &address)?;
    send(&socket, order)?;
    Ok(socket)
}

pub(crate) fn send<T: Serialize>(socket: impl AsFd, message: &T) -> io::Result<()> {
    let bytes = serde_json::to_vec(message).map_err(io::Error::other)?;
    rustix::net::send(socket, &bytes, SendFlags::NOSIGNAL)?;
    Ok(())
}

pub(crate) fn receive<T: DeserializeOwned>(socket: impl AsFd, flags: RecvFlags) -> io::Result<T> {
    let mut bytes = vec![0; MESSAGE_BYTES_MAX];
    let length = loop {
        match rustix::net::recv(socket.as_fd(), bytes.as_mut_slice(), flags) {
            // The other side closed before it had read all, such as a checkpoint that was called off too late. The kernel
            // tells that first and once; what it sent before comes next.
            Err(Errno::INTR | Errno::CONNRESET) => {}
            Ok((length, _)) => break length,
            Err(errno) => return Err(errno.into()),
        }
    };
    if length == 0 {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
    }
    serde_json::from_slice(bytes.get(..length).unwrap_or_default()).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_though_the_other_side_closed_with_words_unread() {
        let flags = SocketFlags::CLOEXEC;
        let (shim, supervisor) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        send(&supervisor, &ShimOrder::CallOff).unwrap();
        send(&shim, &ShimAnswer::Checkpointed).unwrap();
        drop(shim);
        let answer: ShimAnswer = receive(&supervisor, RecvFlags::DONTWAIT).unwrap();
        assert_eq!(answer, ShimAnswer::Checkpointed);
        let end = receive::<ShimAnswer>(&supervisor, RecvFlags::DONTWAIT).unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
    }
}
