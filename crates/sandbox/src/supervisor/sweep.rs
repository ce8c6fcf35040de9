//! Deleting what was discarded and making directories in advance, in a process of its own: a writable
//! layer may hold a million files, and the supervisor must not wait for them.

use std::fs;
use std::os::fd::AsFd;

use rustix::fs::{FlockOperation, flock};

use crate::disk::{self, Stock};
use crate::state::StateDir;
use crate::sys;

#[derive(Debug, Default)]
pub(super) struct Sweeper {
    pid: Option<i32>,
    /// Something was discarded after it had begun.
    again: bool,
}

impl Sweeper {
    /// Empty the trash and fill up the spares and the stock of disks, soon. One process at a time.
    pub(super) fn start(&mut self, state: &StateDir, stock: &mut Stock) {
        if self.pid.is_some() {
            self.again = true;
            return;
        }
        self.again = false;
        let order = match stock.order() {
            Ok((missing, to)) => Some((missing, to)),
            Err(error) => {
                tracing::warn!(%error, "cannot have disks made");
                None
            }
        };
        let sweep = || {
            let sweep = || {
                let keep: Vec<_> = order.iter().map(|(_, to)| to.as_fd()).collect();
                sys::close_all_except(&keep)?;
                rustix::thread::set_name(c"tram-sweeper")?;
                sys::hurry(false);
                sys::reset_signals()?;
                if let Some((missing, to)) = &order {
                    // First, for the trash may take long. Where there can be none, launches do without.
                    let _ = disk::deliver(state, missing, to);
                }
                // A sweeper of an earlier supervisor may still be at it; one of them must not take for
                // whole what the other deletes.
                let trash = fs::File::open(state.trash())?;
                flock(&trash, FlockOperation::LockExclusive)?;
                for entry in fs::read_dir(state.trash())? {
                    // Go on with the others; the next sweep tries this one again.
                    let _ = fs::remove_dir_all(entry?.path());
                }
                state.make_spares()
            };
            i32::from(sweep().is_err())
        };
        match sys::fork(sweep) {
            Ok(pid) => self.pid = Some(pid),
            Err(error) => tracing::warn!(%error, "cannot start the sweeper"),
        }
    }

    /// Whether it has ended and should be started again.
    pub(super) fn reaped(&mut self, pids: &[i32]) -> bool {
        if self.pid.is_some_and(|pid| pids.contains(&pid)) {
            self.pid = None;
            return self.again;
        }
        false
    }
}
