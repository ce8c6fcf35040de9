//! The kernel's side: userfaultfd (`linux/userfaultfd.h`, `userfaultfd(2)`), and a file as memory.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;

use rustix::mm::{MapFlags, ProtFlags};

use super::PAGE_BYTES;
use super::missing::Piece;

/// As the kernel lays out what `UFFDIO_COPY` takes.
#[repr(C)]
struct Copy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copied: i64,
}

#[repr(C)]
struct Range {
    start: u64,
    len: u64,
}

#[repr(C)]
struct Zero {
    range: Range,
    mode: u64,
    zeroed: i64,
}

nix::ioctl_readwrite!(uffdio_copy, 0xAA, 0x03, Copy);
nix::ioctl_readwrite!(uffdio_zeropage, 0xAA, 0x04, Zero);
nix::ioctl_read!(uffdio_wake, 0xAA, 0x02, Range);

/// The bytes of one message.
const MESSAGE_BYTES: usize = 32;
/// Messages read at once: as many threads may wait for pages.
const MESSAGES: usize = 16;

/// What an address space says.
#[derive(Debug)]
pub(super) enum Event {
    /// A thread waits for the page at this address.
    Fault(u64),
    /// A process was forked off; its address space says what it does through this.
    Forked(OwnedFd),
    /// These many bytes moved.
    Moved { from: u64, to: u64, bytes: u64 },
    /// What was there is of no use any more.
    Dropped(std::ops::Range<u64>),
}

/// What came of handing over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Given {
    /// These many bytes of it, from its start; at least a page.
    Bytes(u64),
    /// The address space is changing: once its events are read, again.
    Later,
    /// The first page is there already.
    There,
    /// Not one mapping that waits for pages.
    Elsewhere,
    /// The address space is no more.
    Gone,
}

/// An address space of another process whose pages are handed over.
#[derive(Debug)]
pub(super) struct Faults(OwnedFd);

impl Faults {
    /// Of a descriptor that was received.
    pub(super) fn new(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Hands over what a piece says, and wakes who waits for it.
    pub(super) fn give(&self, piece: Piece, contents: &Contents) -> io::Result<Given> {
        let mut order = Copy {
            dst: piece.start,
            src: contents.address(piece)?,
            len: piece.bytes,
            mode: 0,
            copied: 0,
        };
        // SAFETY: needed because no wrapper in use offers it. The kernel reads and writes the one value, which outlives
        // the call; the memory it copies from is checked by the kernel, and is mapped as long as `contents` is.
        match unsafe { uffdio_copy(self.0.as_raw_fd(), &raw mut order) } {
            Ok(_) => Ok(Given::Bytes(piece.bytes)),
            Err(errno) => outcome(errno, order.copied),
        }
    }

    /// Hands over a page of zeroes.
    pub(super) fn give_zeroes(&self, page: u64) -> io::Result<Given> {
        let range = Range {
            start: page,
            len: PAGE_BYTES,
        };
        let mut order = Zero {
            range,
            mode: 0,
            zeroed: 0,
        };
        // SAFETY: as above.
        match unsafe { uffdio_zeropage(self.0.as_raw_fd(), &raw mut order) } {
            Ok(_) => Ok(Given::Bytes(PAGE_BYTES)),
            Err(errno) => outcome(errno, order.zeroed),
        }
    }

    /// Has who waits there look again.
    pub(super) fn wake(&self, page: u64) -> io::Result<()> {
        let mut range = Range {
            start: page,
            len: PAGE_BYTES,
        };
        // SAFETY: as above; the kernel calls it reading, and reads.
        match unsafe { uffdio_wake(self.0.as_raw_fd(), &raw mut range) } {
            Ok(_) | Err(nix::errno::Errno::ESRCH) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// What was said since the last time; nothing when it said nothing.
    pub(super) fn events(&self) -> io::Result<Vec<Event>> {
        let mut bytes = [0; MESSAGE_BYTES * MESSAGES];
        let read = match rustix::io::read(&self.0, &mut bytes) {
            Ok(read) => read,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => 0,
            Err(errno) => return Err(errno.into()),
        };
        let messages = bytes.get(..read).unwrap_or_default();
        messages.chunks_exact(MESSAGE_BYTES).filter_map(decode).collect()
    }
}

impl AsFd for Faults {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn outcome(errno: nix::errno::Errno, done: i64) -> io::Result<Given> {
    use nix::errno::Errno;
    match (errno, u64::try_from(done)) {
        (Errno::EAGAIN, Ok(done)) if done > 0 => Ok(Given::Bytes(done)),
        // Memory is short in its cgroup: the kernel makes room there, or ends something.
        (Errno::EAGAIN | Errno::ENOMEM, _) => Ok(Given::Later),
        (Errno::EEXIST, _) => Ok(Given::There),
        (Errno::ENOENT, _) => Ok(Given::Elsewhere),
        (Errno::ESRCH, _) => Ok(Given::Gone),
        (errno, _) => Err(errno.into()),
    }
}

/// One message: `struct uffd_msg`.
fn decode(message: &[u8]) -> Option<io::Result<Event>> {
    const FAULT: u8 = 0x12;
    const FORK: u8 = 0x13;
    const REMAP: u8 = 0x14;
    const REMOVE: u8 = 0x15;
    const UNMAP: u8 = 0x16;
    let number = |at: usize| {
        let bytes = message.get(at..at + 8)?;
        Some(u64::from_ne_bytes(bytes.try_into().ok()?))
    };
    let (first, second, third) = (number(8)?, number(16)?, number(24)?);
    let event = match message.first()? {
        &FAULT => Event::Fault(second),
        &FORK => {
            // The lower half, on a machine that puts it first: the only kind this runs on.
            let number = i32::try_from(first & 0xffff_ffff).ok()?;
            // SAFETY: the kernel has just made this descriptor for the reader of the message.
            Event::Forked(unsafe { OwnedFd::from_raw_fd(number) })
        }
        &REMAP => Event::Moved {
            from: first,
            to: second,
            bytes: third,
        },
        &(REMOVE | UNMAP) => Event::Dropped(first..second),
        other => return Some(Err(io::Error::other(format!("an unknown event, {other:#x}")))),
    };
    Some(Ok(event))
}

/// The pages of a file as memory, from which the kernel copies: once, and straight from what it has read.
#[derive(Debug)]
pub(super) struct Contents {
    address: NonNull<libc::c_void>,
    bytes: usize,
}

impl Contents {
    pub(super) fn map(file: &File) -> io::Result<Self> {
        let bytes = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        if bytes == 0 {
            return Ok(Self {
                address: NonNull::dangling(),
                bytes,
            });
        }
        // SAFETY: needed because mapping is unsafe by nature. A new mapping at a place of the kernel's choice; nothing in
        // this process reads it, only the kernel, which answers a fault there with an error.
        let address = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ,
                MapFlags::PRIVATE,
                file,
                0,
            )?
        };
        let address = NonNull::new(address).ok_or_else(|| io::Error::other("mapped at zero"))?;
        Ok(Self { address, bytes })
    }

    fn address(&self, piece: Piece) -> io::Result<u64> {
        let end = piece.at.checked_add(piece.bytes);
        let bytes = u64::try_from(self.bytes).map_err(io::Error::other)?;
        if end.is_none_or(|end| end > bytes) {
            return Err(io::Error::other("a page beyond the end of the file"));
        }
        let address = u64::try_from(self.address.as_ptr().addr()).map_err(io::Error::other)?;
        Ok(address + piece.at)
    }
}

impl Drop for Contents {
    fn drop(&mut self) {
        if self.bytes > 0 {
            // SAFETY: exactly what `map` mapped; nothing refers to it once this is gone.
            let _ = unsafe { rustix::mm::munmap(self.address.as_ptr(), self.bytes) };
        }
    }
}
