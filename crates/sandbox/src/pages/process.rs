//! One address space: what it lacks, who waits in it, and handing over.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use super::PAGE_BYTES;
use super::fault::{Contents, Event, Faults, Given};
use super::missing::{Missing, Piece};

/// Handed over around a fault. Copying 16 pages takes less than another fault.
const WINDOW_BYTES: u64 = 64 * 1024;

/// The window that an address lies in.
pub(super) fn window_of(address: u64) -> Range<u64> {
    let start = address & !(WINDOW_BYTES - 1);
    start..start.saturating_add(WINDOW_BYTES)
}

#[derive(Debug)]
pub(super) struct Process {
    /// Its number inside, or that of the process it was forked from since.
    pub(super) pid: i32,
    faults: Faults,
    missing: Missing,
    contents: Rc<Contents>,
    /// Addresses that somebody waits for.
    waiting: VecDeque<u64>,
    /// Where the rest goes on.
    cursor: u64,
    gone: bool,
}

impl Process {
    pub(super) fn new(pid: i32, faults: OwnedFd, missing: Missing, contents: Rc<Contents>) -> Self {
        Self {
            pid,
            faults: Faults::new(faults),
            missing,
            contents,
            waiting: VecDeque::new(),
            cursor: 0,
            gone: false,
        }
    }

    pub(super) fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Whether somebody waits for a change of its address space to be over.
    pub(super) fn is_held_up(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Whether it needs nothing more.
    pub(super) fn is_done(&self) -> bool {
        self.gone || self.missing.is_empty() && self.waiting.is_empty()
    }

    /// Takes in what it said, and serves who waits. Gives back the windows in which somebody waited, and the processes
    /// that were forked off.
    pub(super) fn attend(&mut self) -> io::Result<(Vec<u64>, Vec<Self>)> {
        let (mut wanted, mut forked) = (Vec::new(), Vec::new());
        if self.gone {
            return Ok((wanted, forked));
        }
        loop {
            let events = self.faults.events()?;
            if events.is_empty() {
                break;
            }
            for event in events {
                match event {
                    Event::Fault(address) => {
                        self.waiting.push_back(address);
                        wanted.push(window_of(address).start);
                    }
                    // What its parent has was copied; what it lacks, the child lacks.
                    Event::Forked(faults) => forked.push(Self::new(
                        self.pid,
                        faults,
                        self.missing.clone(),
                        Rc::clone(&self.contents),
                    )),
                    Event::Moved { from, to, bytes } => self.missing.moved(from, to, bytes),
                    Event::Dropped(range) => self.missing.forget(&range),
                }
            }
            self.serve()?;
        }
        if self.is_held_up() {
            self.serve()?;
        }
        Ok((wanted, forked))
    }

    fn serve(&mut self) -> io::Result<()> {
        for address in mem::take(&mut self.waiting) {
            if self.gone {
                break;
            }
            let served = match self.missing.take(address, &window_of(address)) {
                Some(piece) => self.give(piece)?,
                None => self.give_zeroes(address & !(PAGE_BYTES - 1))?,
            };
            if !served {
                self.waiting.push_back(address);
            }
        }
        Ok(())
    }

    /// Hands over what it lacks of a window that begins there.
    pub(super) fn give_window(&mut self, start: u64) -> io::Result<()> {
        for piece in self.missing.take_all(&window_of(start)) {
            self.give(piece)?;
        }
        Ok(())
    }

    /// Hands over the next piece of the rest. Whether it was possible now.
    pub(super) fn give_next(&mut self, bytes_max: u64) -> io::Result<bool> {
        let Some(piece) = self.missing.next(self.cursor, bytes_max) else {
            return Ok(true);
        };
        self.cursor = piece.end();
        self.give(piece)
    }

    /// Hands over a piece that was taken. When the address space is changing, what is left of it is missing again.
    fn give(&mut self, piece: Piece) -> io::Result<bool> {
        let mut todo = vec![piece];
        while let Some(piece) = todo.pop() {
            match self.faults.give(piece, &self.contents)? {
                Given::Bytes(bytes) if bytes < piece.bytes => todo.push(piece.split(bytes).1),
                Given::Bytes(_) => {}
                Given::There => {
                    let (there, rest) = piece.split(PAGE_BYTES);
                    self.faults.wake(there.start)?;
                    if rest.bytes > 0 {
                        todo.push(rest);
                    }
                }
                Given::Elsewhere if piece.bytes > PAGE_BYTES => {
                    // It may lie across the border of two mappings.
                    let (first, second) = piece.split(piece.bytes / PAGE_BYTES / 2 * PAGE_BYTES);
                    todo.extend([second, first]);
                }
                // It was unmapped, and the word of that is on its way.
                Given::Elsewhere => {}
                Given::Later => {
                    self.missing.put(piece);
                    for piece in todo {
                        self.missing.put(piece);
                    }
                    return Ok(false);
                }
                Given::Gone => {
                    self.leave();
                    return Ok(true);
                }
            }
        }
        Ok(true)
    }

    /// For a page that the image does not have, or that was handed over already and given up since.
    fn give_zeroes(&mut self, page: u64) -> io::Result<bool> {
        match self.faults.give_zeroes(page)? {
            Given::Bytes(_) => {}
            Given::There | Given::Elsewhere => self.faults.wake(page)?,
            Given::Later => return Ok(false),
            Given::Gone => self.leave(),
        }
        Ok(true)
    }

    fn leave(&mut self) {
        self.gone = true;
        self.missing = Missing::default();
        self.waiting.clear();
    }
}
