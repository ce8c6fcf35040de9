//! Elements of sets straight to the kernel: a batch of netlink messages, which is one transaction.
//!
//! Only what a start and an end of an instance need: adding and deleting elements, of sets without intervals. The layout is
//! that of `linux/netfilter/nfnetlink.h` and `linux/netfilter/nf_tables.h`. A run of `nft` does the same, and takes
//! milliseconds to be loaded and to read what is there, which nobody waits for here.

use std::io;
use std::time::Duration;

use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_NETFILTER;

use super::{Element, Line, Part};

/// Messages: what they are (`NFNL_MSG_*`, and `NFT_MSG_*` of the subsystem nf_tables).
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM: u16 = 10;
const NEW_ELEMENTS: u16 = SUBSYSTEM << 8 | 12;
const DELETE_ELEMENTS: u16 = SUBSYSTEM << 8 | 14;
/// The answer to a message (`NLMSG_ERROR`): an error, or its absence.
const ANSWER: u16 = 2;
/// Flags: `NLM_F_REQUEST`, `NLM_F_ACK`, `NLM_F_CREATE`.
const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;
const CREATE: u16 = 0x400;
/// `NFPROTO_INET`: the family of our table.
const INET: u8 = 1;
/// Attributes.
const NESTED: u16 = 0x8000;
const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
const LIST_ELEMENTS: u16 = 3 | NESTED;
const ELEMENT: u16 = 1 | NESTED;
const KEY: u16 = 1 | NESTED;
const DATA: u16 = 2 | NESTED;
const TIMEOUT_MS: u16 = 4;
const VALUE: u16 = 1;
/// A message's head, and all that its answer says before it repeats the message.
const HEAD_BYTES: usize = 16;
const ANSWER_BYTES: usize = HEAD_BYTES + 4;
/// Answers repeat what they answer.
const RECEIVE_BYTES: usize = 64 * 1024;
/// The answers are there when the kernel is done: a look that finds none found a bug.
const LOOK: Duration = Duration::from_secs(1);

/// A transaction as the kernel takes it.
#[derive(Debug)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    /// How many answers come back when it is carried out.
    messages: usize,
}

/// These lines as one transaction; `None` when one of them cannot be said here.
pub(super) fn batch(table: &str, lines: &[Line]) -> Option<Batch> {
    let mut bytes = Vec::new();
    let mut sequence = 0;
    let mut message = |kind: u16, flags: u16, family: u8, resource: u16, attributes: &[u8]| {
        sequence += 1;
        let length = u32::try_from(HEAD_BYTES + 4 + attributes.len()).ok()?;
        bytes.extend(length.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((flags | REQUEST).to_ne_bytes());
        bytes.extend(u32::to_ne_bytes(sequence));
        // The port, which the kernel fills in; then the family, the version and the resource.
        bytes.extend([0, 0, 0, 0, family, 0]);
        bytes.extend(resource.to_be_bytes());
        bytes.extend(attributes);
        Some(())
    };
    message(BATCH_BEGIN, 0, 0, SUBSYSTEM, &[])?;
    for line in lines {
        match line {
            Line::Add(element) => {
                message(
                    NEW_ELEMENTS,
                    ACKNOWLEDGE | CREATE,
                    INET,
                    0,
                    &list(table, element, None, true)?,
                )?;
            }
            Line::AddFor(element, time) => {
                let attributes = list(table, element, Some(*time), true)?;
                message(NEW_ELEMENTS, ACKNOWLEDGE | CREATE, INET, 0, &attributes)?;
            }
            Line::Delete(element) => {
                message(
                    DELETE_ELEMENTS,
                    ACKNOWLEDGE,
                    INET,
                    0,
                    &list(table, element, None, false)?,
                )?;
            }
        }
    }
    message(BATCH_END, 0, 0, SUBSYSTEM, &[])?;
    Some(Batch {
        bytes,
        messages: lines.len(),
    })
}

/// The attributes of a message about one element.
fn list(table: &str, element: &Element, time: Option<Duration>, with_value: bool) -> Option<Vec<u8>> {
    let mut key = Vec::new();
    for part in &element.key {
        match part {
            Part::Address(address) => key.extend(address.octets()),
            // As the processor has it: the kernel compares it with a mark.
            Part::Mark(mark) => key.extend(mark.to_ne_bytes()),
            Part::Ipv6(address) => key.extend(address.octets()),
            Part::Block(_) | Part::Ipv6Block(_) => return None,
        }
    }
    let mut inner = attribute(KEY, &attribute(VALUE, &key)?)?;
    if let (Some(value), true) = (element.value, with_value) {
        inner.extend(attribute(DATA, &attribute(VALUE, &value.to_ne_bytes())?)?);
    }
    if let Some(time) = time {
        let millis = time.as_secs().checked_mul(1000)?;
        inner.extend(attribute(TIMEOUT_MS, &millis.to_be_bytes())?);
    }
    let text = |kind, text: &str| attribute(kind, &[text.as_bytes(), &[0]].concat());
    let parts = [
        text(LIST_TABLE, table)?,
        text(LIST_SET, element.set)?,
        attribute(LIST_ELEMENTS, &attribute(ELEMENT, &inner)?)?,
    ];
    Some(parts.concat())
}

/// An attribute, filled up to four bytes.
fn attribute(kind: u16, value: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(4 + value.len()).ok()?;
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    Some(bytes)
}

/// Carries a transaction out. Blocks for as long as the kernel takes, and behind others who change its rules.
///
/// # Errors
/// When the kernel refused it; nothing of it was done then.
pub(super) fn send(batch: &Batch) -> io::Result<()> {
    let socket = Socket::new(NETLINK_NETFILTER)?;
    let sent = socket.send(&batch.bytes, 0)?;
    if sent != batch.bytes.len() {
        return Err(io::Error::other("the batch was cut off"));
    }
    let mut answered = 0;
    let mut buffer = Vec::with_capacity(RECEIVE_BYTES);
    while answered < batch.messages {
        let readable = rustix::event::PollFd::new(&socket, rustix::event::PollFlags::IN);
        let look = rustix::event::Timespec {
            tv_sec: i64::try_from(LOOK.as_secs()).unwrap_or(1),
            tv_nsec: 0,
        };
        if rustix::event::poll(&mut [readable], Some(&look))? == 0 {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the kernel did not answer",
            ));
        }
        buffer.clear();
        socket.recv(&mut buffer, 0)?;
        answered += answers(&buffer)?;
    }
    Ok(())
}

/// How many messages were carried out, says the kernel.
fn answers(mut bytes: &[u8]) -> io::Result<usize> {
    let mut count = 0;
    while let Some(answer) = bytes.first_chunk::<ANSWER_BYTES>() {
        let [a, b, c, d, kind, more, ..] = *answer;
        let length = u32::from_ne_bytes([a, b, c, d]);
        if u16::from_ne_bytes([kind, more]) == ANSWER {
            let [.., a, b, c, d] = *answer;
            match i32::from_ne_bytes([a, b, c, d]) {
                0 => count += 1,
                errno => return Err(io::Error::from_raw_os_error(-errno)),
            }
        }
        let length = usize::try_from(length).unwrap_or(usize::MAX).next_multiple_of(4);
        bytes = bytes.get(length.max(HEAD_BYTES)..).unwrap_or_default();
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn element(key: Vec<Part>) -> Element {
        Element {
            set: "members",
            key,
            value: None,
        }
    }

    #[test]
    fn a_batch_has_the_layout_that_the_kernel_reads() {
        let key = vec![Part::Mark(7), Part::Address(Ipv4Addr::new(10, 1, 0, 2))];
        let batch = batch("t", &[Line::Add(element(key))]).unwrap();
        assert_eq!(batch.messages, 1);
        // Begin and end take 20 bytes each. In between: the head, two names, and an element in two wrappings.
        assert_eq!(batch.bytes.len(), 20 + 20 + 8 + 12 + (4 + 4 + 4 + 12) + 20);
        let middle = &batch.bytes[20..];
        assert_eq!(middle[..4], 64_u32.to_ne_bytes());
        assert_eq!(middle[4..6], 0x0a0c_u16.to_ne_bytes());
        assert_eq!(middle[16], INET);
        let key = [&7_u32.to_ne_bytes()[..], &[10, 1, 0, 2]].concat();
        assert!(batch.bytes.windows(8).any(|window| window == key));
    }

    #[test]
    fn blocks_are_left_to_the_tool() {
        let block = Part::Block("10.0.0.0/8".parse().unwrap());
        assert!(batch("t", &[Line::Add(element(vec![block]))]).is_none());
    }

    #[test]
    fn answers_are_counted_and_an_error_is_one() {
        let answer = |errno: i32| {
            let mut bytes = 20_u32.to_ne_bytes().to_vec();
            bytes.extend(ANSWER.to_ne_bytes());
            bytes.extend([0; 10]);
            bytes.extend(errno.to_ne_bytes());
            bytes
        };
        assert_eq!(answers(&[answer(0), answer(0)].concat()).unwrap(), 2);
        let error = answers(&[answer(0), answer(-2)].concat()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert_eq!(answers(&[1, 2, 3]).unwrap(), 0);
    }
}
