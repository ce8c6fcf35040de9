//! How the control plane is told to stop: by SIGTERM, by Ctrl-C, or by the end of its terminal. Ctrl-C while it stops
//! means at once.
//!
//! The first word cancels [`Stops::asked`], from the start on, so that what is half started is taken back in order.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tram_cli::Printer;

/// What we were told.
#[derive(Debug, Clone, Default)]
pub struct Stops {
    /// To stop.
    pub asked: CancellationToken,
    /// To wait for nothing more.
    pub hurry: CancellationToken,
}

/// A start was ended by a word to stop.
#[derive(Debug, thiserror::Error)]
#[error("told to stop during the start")]
pub struct ToldToStop;

impl Stops {
    /// Listens from now on.
    ///
    /// # Errors
    /// When the kernel does not allow it.
    pub fn listen(printer: &Printer) -> std::io::Result<Self> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        // `nohup` ignores it for us, and then it is to stay ignored.
        let mut hangup = if is_ignored(SignalKind::hangup()) {
            None
        } else {
            Some(signal(SignalKind::hangup())?)
        };
        let stops = Self::default();
        let told = stops.clone();
        let printer = printer.clone();
        tokio::spawn(async move {
            loop {
                let by_hand = tokio::select! {
                    _ = terminate.recv() => false,
                    _ = interrupt.recv() => true,
                    () = heard(&mut hangup) => false,
                };
                if !told.asked.is_cancelled() {
                    told.asked.cancel();
                } else if by_hand && !told.hurry.is_cancelled() {
                    printer.note("stopping at once");
                    told.hurry.cancel();
                }
            }
        });
        Ok(stops)
    }
}

async fn heard(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}

fn is_ignored(kind: SignalKind) -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| ignores(&status, kind.as_raw_value()))
}

fn ignores(status: &str, number: i32) -> bool {
    status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask >> (number - 1) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ignored_signal_is_known() {
        let status = "Name:\ttram\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\n";
        assert!(ignores(status, 1));
        assert!(!ignores(status, 2));
        assert!(ignores(status, 13));
        assert!(!ignores("Name:\ttram\n", 1));
    }
}
