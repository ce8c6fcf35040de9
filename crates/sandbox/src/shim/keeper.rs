//! An instance from its exec to its end, with all the sleep between.
//!
//! ```text
//! running or frozen ── Checkpoint ── image whole, on record, processes killed ──> checkpointed
//!        ^                                                                             │
//!        └────── on record again, pages on their way ── Wake ──────────────────────────┘
//! ```
//!
//! The one design choice to know: at every moment either the processes are there or a whole image is, and `run.json` says
//! which before the other is given up. So whoever else dies, the shim can go on from what it holds; when the shim
//! dies, the instance does, as ever.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::control::{self, ShimAnswer, ShimOrder};
use super::pump::{Pump, Woken};
use super::{Order, ProcessIdentity, Run};
use crate::checkpoint::{self, Dump, Dumped, Held, Kept, Pages, Purpose, Restore, Restored};
use crate::protocol::{CheckpointSpec, ExitStatus};
use crate::{patience, sys};

const DEATH_LOOK: Duration = Duration::from_millis(1);
/// Why an instance in gVisor is not written down.
const NOT_FROM_GVISOR: &str = "it runs in the isolation class gvisor, whose kernel cannot be written to the disk with \
                               connections open";
/// How a checkpointed instance ends that is not wanted any more: its processes were killed long before.
const KILLED: ExitStatus = ExitStatus::Signal(libc::SIGKILL);

pub(super) struct Keeper<'a> {
    pub(super) order: &'a Order<'a>,
    pub(super) run: Run,
    /// Absent while it is checkpointed.
    pub(super) process: Option<OwnedFd>,
    pub(super) pump: Pump,
    listener: OwnedFd,
    asleep: Option<Asleep>,
    pub(super) pages: Option<Pages>,
}

/// What a checkpointed instance is brought back with, beside its image.
struct Asleep {
    held: Held,
    program: PathBuf,
    kept: Kept,
    /// Its memory may come as it is touched.
    lazily: bool,
}

/// What an order leads to.
pub(super) enum Next {
    Answer(ShimAnswer),
    /// It is over. No status: it could not be brought back.
    Over(Option<ExitStatus>),
}

impl<'a> Keeper<'a> {
    pub(super) fn new(
        order: &'a Order<'a>,
        run: Run,
        process: OwnedFd,
        pages: Option<Pages>,
        pump: Pump,
        listener: OwnedFd,
    ) -> Self {
        Self {
            order,
            run,
            process: Some(process),
            pump,
            listener,
            asleep: None,
            pages,
        }
    }

    /// Until the instance is over and its output is kept. How it ended, if that is known.
    pub(super) fn run(mut self) -> io::Result<Option<ExitStatus>> {
        let status = self.keep()?;
        if let Some(pages) = self.pages.take() {
            pages.end();
        }
        // Nobody will read it again; what cannot be removed goes with the directory.
        let _ = self.order.dir.image().remove();
        self.pump.finish()?;
        Ok(status)
    }

    fn keep(&mut self) -> io::Result<Option<ExitStatus>> {
        loop {
            let others: Vec<BorrowedFd<'_>> = [self.listener.as_fd()]
                .into_iter()
                .chain(self.pages.as_ref().map(|pages| pages.pidfd().as_fd()))
                .collect();
            let woken = match &self.process {
                Some(process) => self.pump.run(process, &others)?,
                None => {
                    let mut fds = [rustix::event::PollFd::new(
                        &self.listener,
                        rustix::event::PollFlags::IN,
                    )];
                    sys::poll(&mut fds, None)?;
                    Woken::Other(0)
                }
            };
            match (woken, &self.process) {
                (Woken::Ended, Some(process)) => return sys::wait_pidfd(process).map(Some),
                (Woken::Ended, None) => {}
                (Woken::Other(0), _) => {
                    if let Some(status) = self.serve() {
                        return Ok(status);
                    }
                }
                (Woken::Other(_), _) => self.pages_ended(),
            }
        }
    }

    /// One order and its answer. The end, if it leads to that.
    fn serve(&mut self) -> Option<Option<ExitStatus>> {
        let (connection, order) = control::accept(&self.listener)?;
        let (answer, over) = match self.carry_out(&connection, order) {
            Next::Answer(answer) => (answer, None),
            Next::Over(status) => (ShimAnswer::Ending, Some(status)),
        };
        // Who asked may be gone; the next one reads the disk or asks again.
        let _ = control::send(&connection, &answer);
        over
    }

    fn carry_out(&mut self, connection: &OwnedFd, order: ShimOrder) -> Next {
        match order {
            ShimOrder::Checkpoint(_) if self.order.spec.gvisor.is_some() => {
                Next::Answer(ShimAnswer::Refused {
                    reason: NOT_FROM_GVISOR.to_owned(),
                })
            }
            ShimOrder::Keep(_) if self.order.spec.gvisor.is_some() => Next::Answer(ShimAnswer::Kept {
                reason: Some(NOT_FROM_GVISOR.to_owned()),
                frozen: self.order.driver.is_frozen(self.name()).unwrap_or(false),
            }),
            ShimOrder::Checkpoint(_) if self.process.is_none() => Next::Answer(ShimAnswer::Checkpointed),
            // Its image is still being read.
            ShimOrder::Checkpoint(_) if self.pages.is_some() => Next::Answer(ShimAnswer::Frozen),
            ShimOrder::Checkpoint(spec) => self.checkpoint(connection, &spec),
            ShimOrder::Keep(spec) => self.keep_copy(&spec),
            ShimOrder::Wake => self.wake(),
            ShimOrder::End if self.process.is_none() => Next::Over(Some(KILLED)),
            ShimOrder::End | ShimOrder::CallOff | ShimOrder::Tell => Next::Answer(self.where_it_is()),
        }
    }

    fn where_it_is(&self) -> ShimAnswer {
        if self.process.is_none() {
            ShimAnswer::Checkpointed
        } else if self.order.driver.is_frozen(self.name()).unwrap_or(false) {
            ShimAnswer::Frozen
        } else {
            ShimAnswer::Awake { init: self.run.init }
        }
    }

    pub(super) fn name(&self) -> &'a str {
        self.order.spec.id.as_str()
    }

    /// A line in the instance's log.
    pub(super) fn say(&self, text: &str) {
        let _ = crate::logs::append_platform(self.order.dir.logs(), text);
    }

    fn checkpoint(&mut self, connection: &OwnedFd, spec: &CheckpointSpec) -> Next {
        let begun = self.order.dir.begin_errand();
        let next = begun.and_then(|()| self.try_checkpoint(connection, spec));
        let next = next.unwrap_or_else(|error| {
            let _ = self.order.dir.image().remove();
            Next::Answer(ShimAnswer::Refused {
                reason: error.to_string(),
            })
        });
        let _ = self.order.dir.end_errand();
        next
    }

    fn try_checkpoint(&mut self, connection: &OwnedFd, spec: &CheckpointSpec) -> io::Result<Next> {
        let (driver, name) = (self.order.driver, self.name());
        let image = self.order.dir.image();
        let held = Held::of(self.run.init.pid)?;
        let freezer = driver.freezer(name)?;
        let processes = driver.processes(name)?;
        let memory_bytes = driver.stats(name)?.held_bytes();
        driver.lift_limits(name)?;
        let dumped = checkpoint::dump(&Dump {
            program: &spec.program,
            image: &image,
            facts: &self.order.dir.criu_facts(self.order.boot_id),
            init: self.run.init.pid,
            processes,
            peers: &spec.peers,
            freezer: &freezer,
            pipes: self.pump.pipes().collect(),
            memory_bytes,
            held: &held,
            purpose: Purpose::Sleep,
        });
        let limited = driver.create(name, &self.order.spec.limits);
        let dumped = dumped.and_then(|dumped| limited.map(|()| dumped))?;
        match dumped {
            Dumped::Whole => image.commit()?,
            Dumped::Refused(reason) => {
                // CRIU thaws what it gives up on.
                driver.freeze(name)?;
                image.remove()?;
                return Ok(Next::Answer(ShimAnswer::Refused { reason }));
            }
            Dumped::Broken(why) => {
                self.say(&format!("the instance had to be ended: {why}"));
                driver.kill(name)?;
                return Ok(Next::Answer(ShimAnswer::Ending));
            }
        }
        if control::is_called_off(connection) {
            image.remove()?;
            return Ok(Next::Answer(ShimAnswer::Frozen));
        }
        let kept = image.kept()?;
        self.run.checkpointed = true;
        if let Err(error) = self.order.dir.write_run(&self.run) {
            self.run.checkpointed = false;
            return Err(error);
        }
        let lazily = kept.may_come_lazily(self.order.spec.limits.memory_bytes);
        self.let_go();
        self.process = None;
        self.asleep = Some(Asleep {
            held,
            program: spec.program.clone(),
            kept,
            lazily,
        });
        Ok(Next::Answer(ShimAnswer::Checkpointed))
    }

    /// Ends every process and leaves the cgroups empty, thawed and limited.
    fn let_go(&mut self) {
        let (driver, name) = (self.order.driver, self.name());
        // Thousands of processes cannot die within a small share of a processor.
        let _ = driver.lift_limits(name);
        if let Some(process) = &self.process {
            // Its namespace, and all that is in it, dies with it.
            let _ = sys::send_signal(process, libc::SIGKILL);
        }
        let deadline = Instant::now() + patience::DEATH;
        loop {
            // One by one, and not by `cgroup.kill`: the cgroup is used again, and Linux from 6.14 on kills at birth whatever
            // is born (`CLONE_INTO_CGROUP`) into one that was ever told so, since it compares the number of such orders with
            // that of the parent's cgroup. No command could be run in the instance any more.
            for pid in driver.processes(name).unwrap_or_default() {
                if let Some(known) = rustix::process::Pid::from_raw(pid) {
                    // In the cgroup a moment ago, so the number is its own or free.
                    let _ = rustix::process::kill_process(known, rustix::process::Signal::KILL);
                }
            }
            // What the v1 freezer holds dies only when it runs again; it runs no line of its own.
            let _ = driver.thaw(name);
            if driver.is_empty(name).unwrap_or(true)
                || Instant::now() >= deadline
                || sys::poll(&mut [], Some(DEATH_LOOK)).is_err()
            {
                break;
            }
        }
        if let Some(process) = &self.process {
            let _ = sys::wait_pidfd(process);
        }
        let _ = driver.create(name, &self.order.spec.limits);
    }

    fn wake(&mut self) -> Next {
        if self.process.is_some() {
            return match self.order.driver.thaw(self.name()) {
                Ok(()) => Next::Answer(ShimAnswer::Awake { init: self.run.init }),
                Err(_) => Next::Answer(self.where_it_is()),
            };
        }
        let _ = self.order.dir.begin_errand();
        let lazily = self.asleep.as_ref().is_some_and(|asleep| asleep.lazily);
        let restored = self.restore(lazily).or_else(|first| {
            // Without the server of pages there is less that can go wrong.
            self.let_go();
            match self.restore(false) {
                Ok(restored) => {
                    self.say(&format!(
                        "the instance's memory was read back as a whole, which takes longer: {first}"
                    ));
                    Ok(restored)
                }
                Err(_) => Err(first),
            }
        });
        let _ = self.order.driver.create(self.name(), &self.order.spec.limits);
        let restored = match restored {
            Ok(restored) => restored,
            Err(error) => {
                self.say(&format!("the instance could not be restored: {error}"));
                self.let_go();
                return Next::Over(None);
            }
        };
        self.run.init = ProcessIdentity {
            pid: restored.pid,
            start_ticks: sys::start_ticks(restored.pid).unwrap_or_default(),
        };
        self.run.checkpointed = false;
        self.process = Some(restored.pidfd);
        self.asleep = None;
        self.pages = restored.pages;
        if self.pages.is_none() {
            let _ = self.order.dir.image().remove();
        }
        if self.order.dir.write_run(&self.run).is_ok() {
            // Else it stays, and the next supervisor asks instead of believing the disk.
            let _ = self.order.dir.end_errand();
        }
        Next::Answer(ShimAnswer::Awake { init: self.run.init })
    }

    fn restore(&self, lazily: bool) -> io::Result<Restored> {
        let asleep = self
            .asleep
            .as_ref()
            .ok_or_else(|| io::Error::other("it is not checkpointed"))?;
        let (driver, name) = (self.order.driver, self.name());
        driver.lift_limits(name)?;
        let mut pipes = Vec::new();
        for (name, pipe) in asleep.kept.pipes.iter().zip(self.pump.pipes()) {
            pipes.push((name.clone(), checkpoint::writing_end(pipe)?));
        }
        checkpoint::restore(Restore {
            program: &asleep.program,
            image: &self.order.dir.image(),
            facts: &self.order.dir.criu_facts(self.order.boot_id),
            held: &asleep.held,
            attach: driver.attach(name)?,
            pipes,
            lazily,
            memory_bytes: asleep.kept.pages_bytes(),
            // What has ids of its own is not put to sleep on the disk.
            ids: None,
        })
    }

    /// The server of pages has ended: all is in memory, or what is missing is lost.
    pub(super) fn pages_ended(&mut self) {
        let Some(pages) = self.pages.take() else { return };
        if pages.finished() {
            let _ = self.order.dir.image().remove();
            return;
        }
        let why = Pages::last_words(&self.order.dir.image());
        self.say(&format!(
            "the instance had to be ended: a part of its memory could not be read back from the disk: {why}"
        ));
        let _ = self.order.driver.kill(self.name());
        // What it holds keeps the program from running on with zeroes until it is dead.
        if let Some(process) = &self.process {
            let _ = sys::wait_readable(process, patience::DEATH);
        }
        drop(pages);
    }
}
