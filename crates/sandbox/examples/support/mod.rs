//! What several measurements need.

use std::process::Child;

/// A supervisor that ends with the measurement.
pub(crate) struct Supervisor(pub(crate) Child);

impl Drop for Supervisor {
    fn drop(&mut self) {
        // Asked, not killed, so that it takes its cgroups along.
        if let Some(pid) = i32::try_from(self.0.id())
            .ok()
            .and_then(rustix::process::Pid::from_raw)
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.0.wait();
    }
}
