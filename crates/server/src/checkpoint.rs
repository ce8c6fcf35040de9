//! Whether this machine can move sleeping instances to disk, and with what.

use std::path::{Path, PathBuf};

use tram_cli::settings::{CheckpointAfter, Settings};
use tram_sandbox::checkpoint::{Criu, Missing};

/// The program to use; `None` when none is wanted or none works, which is said in the log.
pub async fn program(settings: &Settings) -> Option<PathBuf> {
    if settings.light_sleep_checkpoint_after == CheckpointAfter::Never {
        return None;
    }
    let named = settings.checkpoint_program.clone();
    let found = tokio::task::spawn_blocking(move || find(&named)).await.ok()?;
    match found {
        Ok(criu) => {
            tracing::info!(version = criu.version, program = %criu.program.display(), "light sleep can go to disk");
            Some(criu.program)
        }
        Err(error) => {
            tracing::info!(%error, "light sleep stays in memory");
            None
        }
    }
}

/// How long an instance sleeps in memory before it goes to disk, for the planner.
#[must_use]
pub const fn after(settings: &Settings) -> Option<std::time::Duration> {
    match settings.light_sleep_checkpoint_after {
        CheckpointAfter::Span(after) => Some(after),
        CheckpointAfter::Memory | CheckpointAfter::Never => None,
    }
}

/// The program that is named, or the one that is there. Blocks for some tens of milliseconds.
///
/// # Errors
/// Why there is none that works here.
pub fn find(named: &Path) -> Result<Criu, Missing> {
    let named = (!named.as_os_str().is_empty()).then_some(named);
    let criu = Criu::find(named)?;
    criu.check()?;
    Ok(criu)
}
