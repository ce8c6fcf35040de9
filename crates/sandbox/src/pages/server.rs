//! The loop: who waits is served first, then what is likely to be wanted, then the rest.

use std::collections::VecDeque;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags};

use super::fault::Contents;
use super::image::Space;
use super::process::Process;
use super::touched::{self, Window};
use crate::sys;

/// Where CRIU's restore looks for a server, in the directory of the image.
pub(crate) const SOCKET: &str = "lazy-pages.socket";
/// What CRIU says when all is restored ("ReSTore Finished").
const RESTORED: i32 = 0x5253_5446;
/// Of the rest, handed over between two looks for faults: some 50 microseconds.
const PIECE_BYTES: u64 = 256 * 1024;
/// The rest is copied once no fault came for this long: the first request is answered by then, and did not have to
/// share the processor.
const QUIET: Duration = Duration::from_millis(20);
/// But no later than this: a busy program may never be quiet, and its image takes room until the end.
const REST_AFTER: Duration = Duration::from_millis(250);
/// Until a change of an address space is over that has been announced: it takes its thread some microseconds.
const CHANGE_LOOK: Duration = Duration::from_micros(50);

/// Serves the instance whose image is in `directory` until all of its memory is there, with `listener` bound to
/// [`SOCKET`]. `touched` is where it is kept what was wanted first.
///
/// # Errors
/// When a page cannot be read or handed over: the instance must be ended then.
pub(crate) fn serve(listener: OwnedFd, directory: &Path, touched: &Path) -> io::Result<()> {
    let criu = rustix::net::accept_with(&listener, SocketFlags::CLOEXEC)?;
    drop(listener);
    let mut server = Server {
        directory,
        touched,
        processes: Vec::new(),
        likely: VecDeque::new(),
        known: touched::read(touched),
        wanted: Vec::new(),
        phase: Phase::Restoring(criu),
        last_fault: Instant::now(),
        held_up: false,
    };
    while server.step()? {}
    Ok(())
}

/// How far it is.
#[derive(Debug)]
enum Phase {
    /// CRIU is at work, at the other end of this.
    Restoring(OwnedFd),
    /// It has run since then, and may be answering its first request.
    Running(Instant),
    /// The rest is copied.
    Rest,
}

#[derive(Debug)]
struct Server<'a> {
    directory: &'a Path,
    touched: &'a Path,
    processes: Vec<Process>,
    /// Windows to hand over before anybody asks.
    likely: VecDeque<Window>,
    /// Windows that were wanted in earlier wakes.
    known: Vec<Window>,
    /// Windows that were wanted in this one.
    wanted: Vec<Window>,
    phase: Phase,
    last_fault: Instant,
    /// An address space was changing when it should have been given something.
    held_up: bool,
}

impl Server<'_> {
    /// One look at everybody, and one piece that nobody has asked for yet. Whether there is more to do.
    fn step(&mut self) -> io::Result<bool> {
        if self.wait()? {
            self.hear_criu()?;
        }
        self.attend()?;
        self.held_up = self.processes.iter().any(Process::is_held_up);
        if let Phase::Restoring(_) = self.phase {
            return Ok(true);
        }
        if let Some((pid, start)) = self.likely.pop_front() {
            for process in self.processes.iter_mut().filter(|process| process.pid == pid) {
                process.give_window(start)?;
            }
            return Ok(true);
        }
        let done = self.processes.iter().all(Process::is_done);
        if let Phase::Running(since) = self.phase
            && (done || self.rest_at(since) <= Instant::now())
        {
            // It costs the next wake some milliseconds when this fails, and this one nothing.
            let _ = touched::write(self.touched, &self.wanted, &self.known);
            // From here on there is more to copy than to answer: no more than its share of the processor.
            sys::hurry(false);
            self.phase = Phase::Rest;
        }
        if let (Phase::Rest, Some(process)) = (
            &self.phase,
            self.processes.iter_mut().find(|process| !process.is_done()),
        ) {
            self.held_up |= !process.give_next(PIECE_BYTES)?;
        }
        Ok(!done)
    }

    fn rest_at(&self, since: Instant) -> Instant {
        (self.last_fault + QUIET).min(since + REST_AFTER)
    }

    /// Until there is something to do. Whether CRIU has something to say.
    fn wait(&self) -> io::Result<bool> {
        let timeout = match self.phase {
            _ if self.held_up => Some(CHANGE_LOOK),
            Phase::Restoring(_) => None,
            Phase::Running(_) if !self.likely.is_empty() => Some(Duration::ZERO),
            Phase::Running(since) => Some(self.rest_at(since).saturating_duration_since(Instant::now())),
            Phase::Rest => Some(Duration::ZERO),
        };
        let mut fds: Vec<_> = self
            .processes
            .iter()
            .map(|process| PollFd::from_borrowed_fd(process.faults().as_fd(), PollFlags::IN))
            .collect();
        if let Phase::Restoring(criu) = &self.phase {
            fds.push(PollFd::new(criu, PollFlags::IN));
        }
        sys::poll(&mut fds, timeout)?;
        let criu = fds.last().filter(|_| matches!(self.phase, Phase::Restoring(_)));
        Ok(criu.is_some_and(|criu| !criu.revents().is_empty()))
    }

    /// What CRIU says: which process comes next, or that all are there.
    fn hear_criu(&mut self) -> io::Result<()> {
        let Phase::Restoring(criu) = &self.phase else {
            return Ok(());
        };
        let mut word = [0; 4];
        let (read, _) = rustix::net::recv(criu, &mut word, RecvFlags::WAITALL)?;
        if read < word.len() {
            return Err(io::Error::other("CRIU ended before all was restored"));
        }
        match i32::from_ne_bytes(word) {
            RESTORED => {
                self.phase = Phase::Running(Instant::now());
                self.last_fault = Instant::now();
                self.likely = self.known.iter().copied().collect();
            }
            // A process that had ended and that nobody had asked about yet, said by its number below zero: it has no memory,
            // and no descriptor follows.
            ended if ended < 0 => {}
            pid => {
                let faults = receive(criu)?;
                let Space { missing, pages } = Space::read(self.directory, pid)?;
                let contents = Rc::new(Contents::map(&pages)?);
                self.processes.push(Process::new(pid, faults, missing, contents));
            }
        }
        Ok(())
    }

    fn attend(&mut self) -> io::Result<()> {
        let mut forked = Vec::new();
        for process in &mut self.processes {
            let (wanted, children) = process.attend()?;
            forked.extend(children);
            if !wanted.is_empty() {
                self.last_fault = Instant::now();
                if !matches!(self.phase, Phase::Rest) && self.wanted.len() < touched::WINDOWS_MAX {
                    let pid = process.pid;
                    self.wanted.extend(wanted.into_iter().map(|start| (pid, start)));
                }
            }
        }
        self.processes.extend(forked);
        Ok(())
    }
}

/// The descriptor that comes next: one byte with it.
fn receive(criu: &OwnedFd) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut buffers = [io::IoSliceMut::new(&mut byte)];
    rustix::net::recvmsg(criu, &mut buffers, &mut beside, RecvFlags::CMSG_CLOEXEC)?;
    let received = beside.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    received.ok_or_else(|| io::Error::other("CRIU sent no descriptor"))
}
