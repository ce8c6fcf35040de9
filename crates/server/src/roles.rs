//! The mains of the helper processes, and what the control plane tells them.
//!
//! Both sides of these arguments are ours: the control plane writes them when it starts a helper, the helper reads
//! them here.

use std::{
    ffi::OsString,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitCode,
};

use serde::{Deserialize, Serialize};

use crate::{processes::DirectoryLock, traces::Traces};

/// Name of the lock that a helper holds on its state directory.
pub const LOCK_NAME: &str = "process.lock";
/// Name of the edge's settings in its state directory.
const EDGE_SETTINGS: &str = "settings.json";

/// What the control plane tells the edge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EdgeSettings {
    /// Where to accept cleartext HTTP.
    pub http: Vec<SocketAddr>,
    /// Where to accept TLS.
    pub https: Vec<SocketAddr>,
    /// On which addresses the TCP ports of services are opened.
    pub tcp: Vec<IpAddr>,
    /// Where finished requests are written.
    pub access_log: PathBuf,
    /// Where traces are sent; empty: nowhere.
    #[serde(default)]
    pub otlp_endpoint: String,
}

impl EdgeSettings {
    /// What the running edge was told, if it can be read.
    #[must_use]
    pub fn read(state_dir: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(state_dir.join(EDGE_SETTINGS)).ok()?).ok()
    }

    /// Tells the next edge that starts.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, state_dir: &Path) -> std::io::Result<()> {
        crate::paths::write_whole(&state_dir.join(EDGE_SETTINGS), &serde_json::to_vec_pretty(self)?)
    }
}

/// The arguments of a helper: its state directory.
#[must_use]
pub fn arguments(state_dir: &Path) -> Vec<String> {
    vec!["--state".to_owned(), state_dir.display().to_string()]
}

fn state_dir(arguments: &[OsString]) -> Option<PathBuf> {
    match arguments {
        [flag, directory] if flag == "--state" => Some(PathBuf::from(directory)),
        _ => None,
    }
}

/// The main of `tram supervise`. Must be called before the process has a second thread.
#[must_use]
pub fn supervise(arguments: &[OsString]) -> ExitCode {
    let sealed = tram_sandbox::ensure_sealed();
    crate::logging::helper();
    if let Err(error) = sealed {
        tracing::warn!(%error, "cannot run from a read-only mount; the program's file is less protected from instances");
    }
    let Some(directory) = state_dir(arguments) else {
        return usage("supervise");
    };
    with_lock(&directory, "supervise", || {
        let config = tram_sandbox::supervisor::Config {
            state_dir: directory.clone(),
            freezer: Default::default(),
        };
        tram_sandbox::supervisor::run(&config).map_err(|error| crate::chain(&error))
    })
}

/// The main of `tram edge`.
#[must_use]
pub fn edge(arguments: &[OsString]) -> ExitCode {
    crate::logging::helper();
    let Some(directory) = state_dir(arguments) else {
        return usage("edge");
    };
    let Some(settings) = EdgeSettings::read(&directory) else {
        tracing::error!(directory = %directory.display(), "the edge has no settings; `tram up` writes them");
        return ExitCode::FAILURE;
    };
    with_lock(&directory, "edge", || {
        let traces =
            Traces::start(&settings.otlp_endpoint, "tram-edge").map_err(|error| crate::chain(&error))?;
        let config = tram_edge::Config {
            state_dir: directory.clone(),
            http: settings.http,
            https: settings.https,
            tcp: settings.tcp,
            metrics: None,
            workers: 0,
            access_log: tram_edge::AccessLog::File(settings.access_log),
            traces: traces.is_some(),
            drain: tram_edge::config::DEFAULT_DRAIN,
        };
        // The workers have runtimes of their own; this one carries the control link.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| crate::chain(&error))?;
        let outcome = runtime
            .block_on(tram_edge::run(config))
            .map_err(|error| crate::chain(&error));
        if let Some(traces) = traces {
            traces.finish();
        }
        outcome
    })
}

fn with_lock(directory: &Path, role: &'static str, main: impl FnOnce() -> Result<(), String>) -> ExitCode {
    let _lock = match DirectoryLock::take(directory, LOCK_NAME) {
        Ok(Ok(lock)) => lock,
        Ok(Err(holder)) => {
            tracing::error!(role, holder = ?holder.pid, "another process has this role already");
            return ExitCode::FAILURE;
        }
        Err(error) => {
            tracing::error!(role, error = %crate::chain(&error), "cannot lock the state directory");
            return ExitCode::FAILURE;
        }
    };
    match main() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(role, error, "stopped");
            ExitCode::FAILURE
        }
    }
}

fn usage(role: &'static str) -> ExitCode {
    tracing::error!(role, "started by `tram up`, with `--state DIRECTORY`");
    ExitCode::from(2)
}
