//! From the bytes a program writes to pieces of text.
//!
//! A piece is a line with its line end; a line that does not end yet is passed on after a moment, so that prompts and
//! progress bars are seen. Both streams of a program go through one bounded queue: whoever reads slowly slows the
//! program down, and neither stream can block the other.

use std::time::Duration;

use serde::Serialize;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// The longest piece: a line beyond is passed on in parts.
pub(crate) const PIECE_BYTES_MAX: usize = 32 << 10;
/// Read at once: what a pipe holds.
const READ_BYTES: usize = 64 << 10;
/// How long the beginning of a line is held back for its end.
const LINE_PATIENCE: Duration = Duration::from_millis(20);
/// Pieces on their way to the reader, at most.
pub(crate) const QUEUE_PIECES: usize = 64;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// Some text of a program.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Piece {
    pub(crate) stream: Stream,
    pub(crate) data: String,
}

/// Both streams of a program, until both have ended.
pub(crate) fn pieces(stdout: pipe::Receiver, stderr: pipe::Receiver) -> mpsc::Receiver<Piece> {
    let (send, receive) = mpsc::channel(QUEUE_PIECES);
    tokio::spawn(follow(stdout, Stream::Stdout, send.clone()));
    tokio::spawn(follow(stderr, Stream::Stderr, send));
    receive
}

async fn follow(mut pipe: pipe::Receiver, stream: Stream, send: mpsc::Sender<Piece>) {
    let mut buffer = vec![0; READ_BYTES];
    let mut splitter = Splitter::default();
    loop {
        let read = if splitter.is_empty() {
            pipe.read(&mut buffer).await
        } else {
            match timeout(LINE_PATIENCE, pipe.read(&mut buffer)).await {
                Ok(read) => read,
                Err(_) => {
                    if let Some(data) = splitter.beginning() {
                        let _ = send.send(Piece { stream, data }).await;
                        continue;
                    }
                    // Half a character: there is nothing to say until more of it comes.
                    pipe.read(&mut buffer).await
                }
            }
        };
        let bytes = match read {
            Ok(0) | Err(_) => break,
            Ok(length) => buffer.get(..length).unwrap_or_default(),
        };
        for data in splitter.push(bytes) {
            // Nobody listens any more, yet what was left in the background may go on writing: a closed pipe would
            // kill it, so the rest is read and dropped.
            if send.send(Piece { stream, data }).await.is_err() {
                splitter = Splitter::default();
                break;
            }
        }
    }
    if let Some(data) = splitter.rest() {
        let _ = send.send(Piece { stream, data }).await;
    }
}

/// Cuts bytes into pieces of text. What is no UTF-8 becomes U+FFFD, as JSON has no other way to say it.
#[derive(Debug, Default)]
pub(crate) struct Splitter {
    held: Vec<u8>,
}

impl Splitter {
    pub(crate) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Adds bytes; returns what is complete.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        self.held.extend_from_slice(bytes);
        let mut pieces = Vec::new();
        let mut begin = 0;
        loop {
            let rest = self.held.get(begin..).unwrap_or_default();
            let window = rest.get(..PIECE_BYTES_MAX).unwrap_or(rest);
            let length = match window.iter().position(|byte| *byte == b'\n') {
                Some(end) => end + 1,
                None if rest.len() >= PIECE_BYTES_MAX => whole_characters(window),
                None => break,
            };
            pieces.push(String::from_utf8_lossy(window.get(..length).unwrap_or_default()).into_owned());
            begin += length;
        }
        self.held.drain(..begin);
        pieces
    }

    /// The beginning of a line, up to its last whole character.
    pub(crate) fn beginning(&mut self) -> Option<String> {
        let length = whole_characters(&self.held);
        (length > 0).then(|| {
            let bytes: Vec<u8> = self.held.drain(..length).collect();
            String::from_utf8_lossy(&bytes).into_owned()
        })
    }

    /// Everything that is left, at the end.
    pub(crate) fn rest(&mut self) -> Option<String> {
        let held = std::mem::take(&mut self.held);
        (!held.is_empty()).then(|| String::from_utf8_lossy(&held).into_owned())
    }
}

/// Length of the bytes without a character at the end of which more may come. A character has four bytes at most.
fn whole_characters(bytes: &[u8]) -> usize {
    for back in 1..=3.min(bytes.len()) {
        let begin = bytes.len() - back;
        let byte = bytes.get(begin).copied().unwrap_or_default();
        let expected = match byte {
            0xC2..=0xDF => 2,
            0xE0..=0xEF => 3,
            0xF0..=0xF4 => 4,
            0x80..=0xBF => continue,
            _ => break,
        };
        return if expected > back { begin } else { bytes.len() };
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_keep_their_ends_and_beginnings_can_be_taken() {
        let mut splitter = Splitter::default();
        assert_eq!(splitter.push(b"one\ntwo\nthr"), ["one\n", "two\n"]);
        assert_eq!(splitter.beginning().as_deref(), Some("thr"));
        assert_eq!(splitter.push(b"ee\n"), ["ee\n"]);
        assert_eq!(splitter.rest(), None);
    }

    #[test]
    fn half_a_character_waits_for_its_other_half() {
        let mut splitter = Splitter::default();
        assert!(splitter.push(&"é".as_bytes()[..1]).is_empty());
        assert_eq!(splitter.beginning(), None);
        assert!(splitter.push(&"é".as_bytes()[1..]).is_empty());
        assert_eq!(splitter.beginning().as_deref(), Some("é"));
    }

    proptest! {
        #[test]
        fn nothing_is_lost_however_the_bytes_arrive(
            text in "[a-zé€😀\n]{0,400}", long in 0_usize..3, cut in 1_usize..50, take in any::<bool>(),
        ) {
            let text = format!("{text}{}", "😀x".repeat(long * PIECE_BYTES_MAX / 4));
            let cut = cut * (1 + long * 997);
            let mut splitter = Splitter::default();
            let mut whole = String::new();
            for bytes in text.as_bytes().chunks(cut) {
                let pieces = splitter.push(bytes);
                prop_assert!(pieces.iter().all(|piece| piece.len() <= PIECE_BYTES_MAX));
                whole.extend(pieces);
                if take {
                    whole.extend(splitter.beginning());
                }
            }
            whole.extend(splitter.rest());
            prop_assert_eq!(whole, text);
        }

        #[test]
        fn any_bytes_become_text(bytes in proptest::collection::vec(any::<u8>(), 0..300), cut in 1_usize..20) {
            let mut splitter = Splitter::default();
            for bytes in bytes.chunks(cut) {
                splitter.push(bytes);
                splitter.beginning();
            }
            splitter.rest();
            prop_assert!(splitter.is_empty());
        }
    }
}
