//! Copies of a running instance: what they begin as is written down here, and here they begin.
//!
//! ```text
//! keeper ── frozen ── memory written down ── disk held still, copied ── runs on ── both made durable, named
//! shim ──── first process in place of the program ── memory linked ── restored into its namespaces ── gone
//! ```
//!
//! The one design choice to know: a copy is set up as every instance is, by a first process in namespaces, mounts and
//! cgroups of its own with its own disk, host name and address; but instead of a program, that process holds the place
//! until CRIU has put the kept ones there. So a copy shares nothing with the first one but the pages of a file, and all
//! that isolates an instance is made by the code that makes it for every other.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use super::Order;
use super::control::ShimAnswer;
use super::keeper::{Keeper, Next};
use rustix::process::{Pid, Signal};

use crate::checkpoint::{self, Dump, Dumped, Held, Image, Kept, Pages, Purpose, Restore, Restored};
use crate::protocol::{KeepSpec, Limits, MemoryFrom};
use crate::sys::{self, Cloned};
use crate::{patience, snapshot, userns, volume};

const DEATH_LOOK: Duration = Duration::from_millis(1);
/// CRIU itself, its helpers, and the process that holds the place: some five of them.
const CRIU_PROCESSES: u64 = 16;
/// Somebody waits for a restore, and a small share of a processor would make it a long wait. Two, since CRIU and the process
/// that it makes work side by side.
const CRIU_CPU_MILLIS: u32 = 2000;

impl Keeper<'_> {
    /// Writes the instance down for others to begin as, and lets it go on.
    pub(super) fn keep_copy(&mut self, spec: &KeepSpec) -> Next {
        if self.process.is_none() {
            return refused("it sleeps on the disk: wake it first".to_owned(), false);
        }
        let (driver, name) = (self.order.driver, self.name());
        let frozen_before = driver.is_frozen(name).unwrap_or(false);
        // The disk comes last, so an earlier order was carried out whole, and whoever gave it did not hear of it. Done again,
        // there would be memory of another moment beside that disk.
        if std::fs::symlink_metadata(&spec.disk).is_ok() {
            return answer(None, frozen_before);
        }
        // From before it waits: whoever gave the order up meanwhile must see that it may still be carried out.
        let begun = self.order.dir.begin_errand();
        if let Err(error) = self.await_pages() {
            let _ = self.order.dir.end_errand();
            return refused(
                format!("its memory is still being read back: {error}"),
                frozen_before,
            );
        }
        let kept = begun.and_then(|()| self.try_keep_copy(spec, frozen_before));
        if !frozen_before && let Err(error) = driver.thaw(name) {
            self.say(&format!("the instance could not be thawed: {error}"));
        }
        let kept = kept.and_then(|dumped| {
            let Copied { disk, image } = match dumped {
                Ok(copied) => copied,
                Err(next) => return Ok(next),
            };
            // Only now, because it takes as long as the disk does, and the instance runs again.
            image.commit()?;
            volume::publish(&disk, &spec.disk)?;
            Ok(answer(None, frozen_before))
        });
        let next = kept.unwrap_or_else(|error| {
            if let Ok(image) = Image::kept_at(&spec.memory) {
                let _ = image.remove();
            }
            refused(error.to_string(), frozen_before)
        });
        let _ = self.order.dir.end_errand();
        next
    }

    /// An instance that was restored a moment ago may wait for parts of its memory.
    fn await_pages(&mut self) -> io::Result<()> {
        let Some(pages) = &self.pages else {
            return Ok(());
        };
        let bytes = self.order.dir.image().bytes()?;
        if !sys::wait_readable(pages.pidfd(), patience::pages(bytes))? {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.pages_ended();
        Ok(())
    }

    fn try_keep_copy(&self, spec: &KeepSpec, frozen_before: bool) -> io::Result<Result<Copied, Next>> {
        let (driver, name) = (self.order.driver, self.name());
        if !frozen_before {
            driver.freeze(name)?;
        }
        let image = Image::kept_at(&spec.memory)?;
        let held = Held::of(self.run.init.pid)?;
        let freezer = driver.freezer(name)?;
        // Asked before the limits are lifted: nothing may fail between that and their return.
        let (processes, memory_bytes) = (driver.processes(name)?, driver.stats(name)?.held_bytes());
        driver.lift_limits(name)?;
        let dumped = checkpoint::dump(&Dump {
            program: &spec.checkpoint.program,
            image: &image,
            facts: &self.order.dir.criu_facts(self.order.boot_id),
            init: self.run.init.pid,
            processes,
            peers: &spec.checkpoint.peers,
            freezer: &freezer,
            pipes: self.pump.pipes().collect(),
            memory_bytes,
            held: &held,
            purpose: Purpose::Copies,
        });
        let limited = driver.create(name, &self.order.spec.limits);
        let dumped = dumped.and_then(|dumped| limited.map(|()| dumped))?;
        match dumped {
            Dumped::Whole => {}
            Dumped::Refused(reason) => {
                image.remove()?;
                return Ok(Err(refused(reason, frozen_before)));
            }
            Dumped::Broken(why) => {
                image.remove()?;
                self.say(&format!("the instance had to be ended: {why}"));
                driver.kill(name)?;
                return Ok(Err(Next::Answer(ShimAnswer::Ending)));
            }
        }
        // CRIU leaves it as it found it; said once more, because memory and disk must be of one moment.
        driver.freeze(name)?;
        let directory = spec.disk.parent().ok_or(io::ErrorKind::InvalidInput)?;
        let disk = snapshot::copy(&self.run, directory)?;
        Ok(Ok(Copied { disk, image }))
    }
}

/// Memory and disk of one moment, neither of which has its name yet.
struct Copied {
    disk: std::fs::File,
    image: Image,
}

fn answer(reason: Option<String>, frozen: bool) -> Next {
    Next::Answer(ShimAnswer::Kept { reason, frozen })
}

fn refused(reason: String, frozen: bool) -> Next {
    answer(Some(reason), frozen)
}

/// Puts the kept processes in the place of the one that holds it, which ends.
pub(super) fn begin_as(
    order: &Order<'_>,
    from: &MemoryFrom,
    holder: &Cloned,
    streams: [&OwnedFd; 2],
) -> io::Result<Restored> {
    let restored = try_begin_as(order, from, holder, streams);
    let limited = order.driver.create(order.spec.id.as_str(), &order.spec.limits);
    let _ = sys::send_signal(&holder.pidfd, libc::SIGKILL);
    let _ = sys::wait_pidfd(&holder.pidfd);
    let restored = restored?;
    limited?;
    Ok(restored)
}

fn try_begin_as(
    order: &Order<'_>,
    from: &MemoryFrom,
    holder: &Cloned,
    streams: [&OwnedFd; 2],
) -> io::Result<Restored> {
    let (driver, name) = (order.driver, order.spec.id.as_str());
    let image = order.dir.image();
    image.link(&Image::kept_at(&from.image)?)?;
    checkpoint::give_ids(&image.path(), order.spec.ids)?;
    let kept = image.kept()?;
    let mut held = Held::of(holder.pid)?;
    held.name_as(&kept.mounts)?;
    // In force before any process of the copy runs; its own take their place when CRIU has left.
    driver.create(name, &with_room_for_criu(&order.spec.limits))?;
    // The kernel lets nobody in a user namespace of its own wait for the pages that itself needs (userfaultfd).
    let lazily = order.spec.ids.is_none() && kept.may_come_lazily(order.spec.limits.memory_bytes);
    let restored = restore(order, from, &held, &kept, streams, lazily).or_else(|first| {
        if !lazily {
            return Err(first);
        }
        let why = Pages::last_words(&image);
        let _ = crate::logs::append_platform(
            order.dir.logs(),
            &format!("its memory is read before its first step, since it could not come as it is touched: {first}; {why}"),
        );
        end_others(order, holder)?;
        restore(order, from, &held, &kept, streams, false)
    })?;
    if order.spec.ids.is_some()
        && let Err(error) = userns::bound_of(restored.pidfd.as_fd())
    {
        let _ = driver.kill(name);
        return Err(error);
    }
    if restored.pages.is_none() {
        image.remove()?;
    }
    Ok(restored)
}

/// The limits of a copy while it is put together: CRIU works among its processes.
fn with_room_for_criu(limits: &Limits) -> Limits {
    Limits {
        cpu_millis: limits.cpu_millis.map(|millis| millis.max(CRIU_CPU_MILLIS)),
        pids_max: limits.pids_max.map(|most| most.saturating_add(CRIU_PROCESSES)),
        ..limits.clone()
    }
}

/// What a restore that failed may have left: everything in the cgroup but the one that holds the place.
fn end_others(order: &Order<'_>, holder: &Cloned) -> io::Result<()> {
    let (driver, name) = (order.driver, order.spec.id.as_str());
    let deadline = Instant::now() + patience::DEATH;
    loop {
        let others: Vec<i32> = driver
            .processes(name)?
            .into_iter()
            .filter(|pid| *pid != holder.pid)
            .collect();
        if others.is_empty() {
            return Ok(());
        }
        for pid in others {
            if let Some(known) = Pid::from_raw(pid) {
                // In the cgroup a moment ago, so the number is its own or free.
                let _ = rustix::process::kill_process(known, Signal::KILL);
            }
            // The first one is a child of this process; the others are not, and this returns at once.
            sys::reap(pid);
        }
        if Instant::now() > deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        sys::poll(&mut [], Some(DEATH_LOOK))?;
    }
}

fn restore(
    order: &Order<'_>,
    from: &MemoryFrom,
    held: &Held,
    kept: &Kept,
    streams: [&OwnedFd; 2],
    lazily: bool,
) -> io::Result<Restored> {
    let mut pipes = Vec::with_capacity(streams.len());
    for (name, stream) in kept.pipes.iter().zip(streams) {
        pipes.push((name.clone(), checkpoint::writing_end(stream.as_fd())?));
    }
    checkpoint::restore(Restore {
        program: &from.program,
        image: &order.dir.image(),
        facts: &order.dir.criu_facts(order.boot_id),
        held,
        attach: order.driver.attach(order.spec.id.as_str())?,
        pipes,
        lazily,
        memory_bytes: kept.pages_bytes(),
        ids: order.spec.ids,
    })
}
