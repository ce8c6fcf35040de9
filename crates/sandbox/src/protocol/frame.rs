//! Frames: a four byte little-endian length, then JSON; file descriptors ride on the first byte.
//!
//! Used by the client and the supervisor. Owns the limits that keep one peer from filling the memory
//! of the other.
//!
//! The one design choice to know: [`Decoder`] is fed bytes and gives messages, so the same code
//! serves the blocking client and the supervisor's poll loop.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A launch spec with a few megabytes of config files fits; a peer that sends more is cut off.
pub const FRAME_BYTES_MAX: usize = 8 << 20;
/// The most file descriptors on one message: pidfd, exit pipe, stdin, stdout, stderr.
pub const FDS_MAX: usize = 5;
/// One read from a socket; a message of usual size arrives in one.
const READ_BYTES: usize = 16 << 10;
const LENGTH_BYTES: usize = 4;

/// A message that could not be put into, or taken out of, a frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("a frame of {bytes} bytes is larger than the limit of {FRAME_BYTES_MAX}")]
    TooLarge { bytes: usize },
    #[error("cannot encode the message")]
    Encode(#[source] serde_json::Error),
    #[error("cannot decode the message")]
    Decode(#[source] serde_json::Error),
}

/// One message as bytes to send.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let mut bytes = vec![0; LENGTH_BYTES];
    serde_json::to_writer(&mut bytes, message).map_err(FrameError::Encode)?;
    let body = bytes.len() - LENGTH_BYTES;
    match u32::try_from(body) {
        Ok(length) if body <= FRAME_BYTES_MAX => bytes[..LENGTH_BYTES].copy_from_slice(&length.to_le_bytes()),
        _ => return Err(FrameError::TooLarge { bytes: body }),
    }
    Ok(bytes)
}

/// Collects received bytes and gives whole messages.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
}

impl Decoder {
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message, if it has arrived.
    pub fn decode<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        let Some(length) = self.buffer.first_chunk::<LENGTH_BYTES>() else {
            return Ok(None);
        };
        let bytes = u32::from_le_bytes(*length) as usize;
        if bytes > FRAME_BYTES_MAX {
            return Err(FrameError::TooLarge { bytes });
        }
        let end = LENGTH_BYTES + bytes;
        let Some(body) = self.buffer.get(LENGTH_BYTES..end) else {
            return Ok(None);
        };
        let message = serde_json::from_slice(body).map_err(FrameError::Decode);
        self.buffer.drain(..end);
        message.map(Some)
    }
}

/// Send bytes, with file descriptors on the first of them. Returns how many bytes went out.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    Ok(rustix::net::sendmsg(
        socket,
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?)
}

/// Receive what is there into the decoder, and file descriptors into `fds`. Zero is the end.
pub fn receive(socket: impl AsFd, decoder: &mut Decoder, fds: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut bytes = [0_u8; READ_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(arrived) = message {
            fds.extend(arrived);
        }
    }
    // A peer that sends descriptors nobody asked for must not fill our table.
    fds.truncate(FDS_MAX);
    decoder.push(&bytes[..received.bytes]);
    Ok(received.bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn messages_survive_any_cut(texts in proptest::collection::vec(".{0,40}", 0..8), step in 1_usize..17) {
            let mut bytes = Vec::new();
            for text in &texts {
                bytes.extend(encode(text).unwrap());
            }
            let mut decoder = Decoder::default();
            let mut seen: Vec<String> = Vec::new();
            for chunk in bytes.chunks(step) {
                decoder.push(chunk);
                while let Some(text) = decoder.decode().unwrap() {
                    seen.push(text);
                }
            }
            prop_assert_eq!(seen, texts);
        }
    }

    #[test]
    fn a_silly_length_is_refused_before_it_is_buffered() {
        let mut decoder = Decoder::default();
        decoder.push(&u32::MAX.to_le_bytes());
        assert!(matches!(
            decoder.decode::<String>(),
            Err(FrameError::TooLarge { .. })
        ));
    }
}
