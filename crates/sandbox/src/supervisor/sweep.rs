//! Deleting what was discarded, in a process of its own: a writable layer may hold a million files,
//! and the supervisor must not wait for them.

use std::fs;
use std::io;

use crate::state::StateDir;
use crate::sys;

#[derive(Debug, Default)]
pub(super) struct Sweeper {
    pid: Option<i32>,
    /// Something was discarded after it had begun.
    again: bool,
}

impl Sweeper {
    /// Delete everything in the trash, soon. One process at a time.
    pub(super) fn start(&mut self, state: &StateDir) {
        if self.pid.is_some() {
            self.again = true;
            return;
        }
        self.again = false;
        let trash = state.trash();
        let sweep = || {
            let sweep = || {
                sys::close_all_except(&[])?;
                rustix::thread::set_name(c"tram-sweeper")?;
                sys::hurry(false);
                sys::reset_signals()?;
                for entry in fs::read_dir(&trash)? {
                    // Go on with the others; the next sweep tries this one again.
                    let _ = fs::remove_dir_all(entry?.path());
                }
                Ok::<_, io::Error>(())
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
